"""What a guest of the broker may do: a client that is no unit of the cluster, such as a dashboard, a Pioreactor, a job.

A guest reads the dialect of some or all units and writes below its own name there. Our own tree (`<data_root>/…`) is
closed to it. Everything else is granted one by one.
"""

from __future__ import annotations

from stirbar.bridge import topics
from stirbar.bridge.credentials import CredentialError
from stirbar.bridge.dialect_payloads import JOBS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Scope:
    """`units`: whose dialect it reads, none for all; `control`: it may set their settings; `jobs`: foreign jobs whose
    results it publishes for them; `legacy`: it may come in without TLS.

    Synchronization: immutable by convention.
    """

    __slots__ = ("control", "jobs", "legacy", "units")

    def __init__(
        self, units: tuple[str, ...] = (), control: bool = False, jobs: tuple[str, ...] = (), legacy: bool = False
    ) -> None:
        for job in jobs:
            if job in (*JOBS, "self_test") or topics.level(job) != job or job.startswith("$"):
                raise CredentialError(f"job {job[:63]!r}: a guest speaks for jobs that a unit does not have itself")
        self.units = units
        self.control = control
        self.jobs = jobs
        self.legacy = legacy

    def kept(self) -> dict[str, Any]:
        """As it stands in the file of users."""
        return {"units": list(self.units), "control": self.control, "jobs": list(self.jobs), "legacy": self.legacy}

    @classmethod
    def of(cls, kept: dict[str, Any]) -> Scope:
        return cls(tuple(kept["units"]), kept["control"], tuple(kept["jobs"]), kept["legacy"])

    def acl(self, name: str, root: str) -> list[str]:
        """The lines of mosquitto's ACL file for a guest of this name; the first that fits a topic decides."""
        lines = [f"user {name}", f"topic readwrite {root}/{name}/#"]
        for unit in self.units or ("+",):
            if self.control:
                lines += [f"topic readwrite {root}/{unit}/+/+/+/set"]
                lines += [f"topic readwrite {root}/{unit}/+/{topics.MONITOR}/{topics.BLINK}"]
            lines += [f"topic readwrite {root}/{unit}/+/{job}/#" for job in self.jobs]
            if self.jobs:
                lines += [f"topic readwrite {root}/{unit}/+/logs/#"]
        lines += [f"topic read {root}/{unit}/#" for unit in (*self.units, topics.BROADCAST)] if self.units else []
        return lines if self.units else [*lines, f"topic read {root}/#"]
