"""Units that a spare has replaced stop their jobs as soon as they are heard of again: they are not part of it any more.

Their bridges take them out of the experiment by the retained assignment; that alone would leave them stirring and
heating. Which units these are is in the store, so a restart of the leader forgets none.
"""

from __future__ import annotations

import threading

from stirbar.bridge.dialect_payloads import DISCONNECTED
from stirbar.bridge.store import StoreError
from stirbar.bridge.topics import NO_EXPERIMENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from stirbar.bridge.ingest import Ingest
    from stirbar.bridge.store import Store

LOOK_S = 2.0
STOPPED = ("od_reading", "stirring", "temperature_automation", "leds")  # the jobs that can be


class StandDown:
    """`start()` runs the thread, `stop()` ends it. Synchronization: both from one thread."""

    def __init__(self, store: Store, ingest: Ingest) -> None:
        self._store = store
        self._ingest = ingest
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="standdown", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while not self._ended.wait(LOOK_S):
            try:
                replaced = [unit_id.hex() for unit_id in self._store.standing_down()]
                for unit in self._ingest.units() if replaced else ():
                    if unit["unit_id"] in replaced and unit["state"] == "online":
                        self._stand_down(unit)
            except (StoreError, TimeoutError, ConnectionError):
                continue  # the next round tries again

    def _stand_down(self, unit: dict[str, Any]) -> None:
        unit_id = bytes.fromhex(unit["unit_id"])
        if unit["experiment"] is None:
            self._ingest.assign(unit_id, None)  # once more: a broker may have forgotten it
        if self._rests(unit_id):
            self._store.stood_down(unit_id)
            text = "a spare has taken its place: its jobs are stopped"
            self._store.add_event(unit_id, "notice", "leader", "unit_stood_down", text)

    def _rests(self, unit_id: bytes) -> bool:
        """Whether nothing runs on it and it measures for nobody; what runs is told to stop."""
        status = self._ingest.command(unit_id, {"command": "status"})
        result = status.get("result")
        if not status.get("ok") or not isinstance(result, dict) or not isinstance(result.get("jobs"), dict):
            return False
        running = [job for job in STOPPED if result["jobs"].get(job, DISCONNECTED) != DISCONNECTED]
        stops: list[dict[str, Any]] = [{"command": "stop", "job": job} for job in running]
        done = [self._ingest.command(unit_id, one).get("ok") for one in ({"command": "dose_stop"}, *stops)]
        return all(done) and result.get("experiment") == NO_EXPERIMENT
