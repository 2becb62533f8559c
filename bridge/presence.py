"""Which units are there: by their own word, by their last will, and by how long nothing was heard of them.

A broker sends a will when it has missed a unit for one and a half keep-alives; a unit without power must not count as
ready for so long. Every unit's heartbeat comes once a second, so silence tells sooner. The dialect has a state of each
job, which nobody corrects for a unit that has died: that is done here, and undone when the unit is heard again.
"""

from __future__ import annotations

from stirbar.bridge import topics
from stirbar.bridge.dialect import UNIVERSAL
from stirbar.bridge.dialect_payloads import DISCONNECTED, LOST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stirbar.bridge.live import LiveUnit

UNSEEN_S = 5.0  # a unit that was not heard of for this long is lost
STALL_S = 2.0  # we did not listen ourselves for so long: what the units said meanwhile is still to be read


class Presence:
    """`say(topic, payload)` leaves a retained message for the broker, `tell(unit)` that a unit's state has changed.

    Synchronization: the ingest thread, with the ingest's lock held.
    """

    def __init__(self, topic_root: str, say: Callable[[str, bytes], None], tell: Callable[[LiveUnit], None]) -> None:
        self._topic_root = topic_root
        self._say = say
        self._tell = tell
        self._since = 0.0  # nobody counts as silent for longer than we have listened
        self._looked = 0.0

    def listening(self, now: float) -> None:
        """The connection to the broker is new."""
        self._since = self._looked = now

    def step(self, now: float, units: Iterable[LiveUnit]) -> None:
        """Look for units that fell silent. Called about once a second."""
        if now - self._looked > STALL_S:
            self._since = now
        self._looked = now
        for unit in units:
            if unit.foreign:
                continue  # speaks when its jobs do, some seconds apart: foreign.py judges it
            if unit.state == "online" and now - max(unit.heard_at, self._since) > UNSEEN_S:
                unit.silent = True
                self._change(unit, LOST)

    def said(self, unit: LiveUnit, state: str) -> bool:
        """A unit's own word, or its will; whether that is news."""
        unit.silent = False
        if state == unit.state:
            return False
        self._change(unit, state)
        return True

    def heard(self, unit: LiveUnit) -> None:
        """A silent unit has sent something: the connection stood all the while, so it does not say that it is back."""
        unit.silent = False
        self._change(unit, "online")

    def jobs_are(self, unit: LiveUnit, jobs: object) -> None:
        """The heartbeat of a unit says how its jobs are: so do we, where we called them lost."""
        if unit.jobs_lost and unit.state == "online" and isinstance(jobs, dict):
            for job in unit.jobs_lost:
                if isinstance(jobs.get(job), str):
                    self._say_job(unit, job, jobs[job])
            unit.jobs_lost = ()

    def _change(self, unit: LiveUnit, state: str) -> None:
        unit.state = state
        if state == LOST:
            ran = {job: job_state for job, job_state in unit.jobs().items() if job_state != DISCONNECTED}
            unit.jobs_lost = tuple(ran)  # those too that a leader before this one has called lost
            for job, job_state in ran.items():
                if job_state != LOST:
                    self._say_job(unit, job, LOST)
        self._tell(unit)

    def _say_job(self, unit: LiveUnit, job: str, state: str) -> None:
        experiment = topics.UNIVERSAL_EXPERIMENT if job in UNIVERSAL else unit.experiment
        if experiment is not None:
            topic = topics.dialect(self._topic_root, unit.name, experiment, job, topics.STATE_SETTING)
            self._say(topic, state.encode())
