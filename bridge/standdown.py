"""Units that a spare has replaced stop their jobs as soon as they are heard of again: they are not part of it any more.

Their bridges take them out of the experiment by the retained assignment; that alone would leave them stirring and
heating. Which units these are is in the store, so a restart of the leader forgets none.
"""

from __future__ import annotations

import threading

from stirbar.bridge.dialect_payloads import DISCONNECTED
from stirbar.bridge.store import StoreError

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
                replaced = self._store.standing_down()
                online = (
                    {unit["unit_id"] for unit in self._ingest.units() if unit["state"] == "online"} if replaced else ()
                )
                for unit_id in replaced:
                    if unit_id.hex() in online and self._stops(unit_id):
                        self._store.stood_down(unit_id)
                        text = "a spare has taken its place: its jobs are stopped"
                        self._store.add_event(unit_id, "notice", "leader", "unit_stood_down", text)
            except (StoreError, TimeoutError, ConnectionError):
                continue  # the next round tries again

    def _stops(self, unit_id: bytes) -> bool:
        """Whether nothing runs on it any more; what does is told to stop."""
        status = self._ingest.command(unit_id, {"command": "status"})
        result = status.get("result")
        jobs = result.get("jobs") if status.get("ok") and isinstance(result, dict) else None
        if not isinstance(jobs, dict):
            return False
        running = [job for job in STOPPED if jobs.get(job, DISCONNECTED) != DISCONNECTED]
        stops: list[dict[str, Any]] = [{"command": "stop", "job": job} for job in running]
        done = [self._ingest.command(unit_id, one).get("ok") for one in ({"command": "dose_stop"}, *stops)]
        return all(done)
