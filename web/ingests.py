"""The ingest processes of a leader whose store is shared: kept running, and ended with it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from stirbar.web.children import Child, python, stop_all

LOOK_S = 0.25
STOP_LIMIT_S = 10.0


class Ingests:
    """`count` times `stirbar ingest` with these options, from `start` to `stop`.

    Synchronization: start and stop from one thread; the children belong to a thread of their own, with which the
    kernel would end them.
    """

    def __init__(self, count: int, options: list[str], directory: Path, say: Callable[[str], None]) -> None:
        command = python("stirbar.bridge.shared_ingest", *options)
        self.children = [
            Child(f"ingest {number}", command, directory / f"ingest{number}.log", say) for number in range(1, count + 1)
        ]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ingests", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End them; each commits and acknowledges what it has."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        for child in self.children:
            child.start()
        while not self._stopping.wait(LOOK_S):
            for child in self.children:
                child.watch()
        stop_all(self.children, STOP_LIMIT_S)
