"""What a worker was doing, on disk, so that it can go on after a crash or a power cut; and the rules for the heater.

`<data_directory>/journal` is one JSON object, replaced whole: which jobs ran, with what set-points, when the worker
last lived, whether it ended in good order, and how often it came back without an hour of running in between.

A Pi does not know for how long it was off, and a heater that browns out the supply makes an endless loop of reboots
(IS-11): so heat is resumed only while `missing` names nothing.

Synchronization: none; belongs to the host thread.
"""

from __future__ import annotations

import json
import os

from stirbar.core.ini import write_atomically

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Jobs = dict[str, dict[str, object]]

VERSION = 1
WRITE_PERIOD_NS = 60_000_000_000
OUTAGE_MAXIMUM_S = 1800.0
RESUMES_MAXIMUM = 3  # in a row, each within an hour of the one before
PROVEN_NS = 3600_000_000_000  # a run of this length forgives them
GIVE_UP_NS = 600_000_000_000  # so long heat waits for what is missing
SYNCHRONISED = ("/run/systemd/timesync/synchronized", "/dev/rtc0")  # one of these: the wall clock can be believed
THROTTLED = "/sys/devices/platform/soc/soc:firmware/get_throttled"
UNDER_VOLTAGE = 0x10001  # now, and since the start


class Journal:
    """`before` is what the run before left, None without one. `clock()` is (monotonic ns, wall ns)."""

    __slots__ = (
        "_boot",
        "_clock",
        "_path",
        "_proven_at_ns",
        "_started_ns",
        "_write_at_ns",
        "_written",
        "before",
        "held",
        "resumes",
    )

    def __init__(self, directory: str, boot_id: bytes, clock: Callable[[], tuple[int, int]]) -> None:
        self._path = os.path.join(directory, "journal")
        self._boot = boot_id.hex()
        self._clock = clock
        self._written: Jobs | None = None
        now_ns, _ = clock()
        self._started_ns = self._write_at_ns = now_ns
        self._proven_at_ns = now_ns + PROVEN_NS
        self.before = self._read()
        unclean = self.before is not None and not self.before["clean"]
        self.resumes = self._count() + 1 if unclean else 0
        self.held = self.resumes > RESUMES_MAXIMUM or bool(self.before and self.before.get("held"))

    def _read(self) -> dict[str, object] | None:
        """A file that cannot be read is none: the worker then starts as it does for the first time."""
        try:
            with open(self._path) as file:
                found = json.load(file)
        except (OSError, ValueError):
            return None
        kinds = {"clean": bool, "boot": str, "alive_ns": int, "wall_ns": int, "jobs": dict}
        if not isinstance(found, dict) or found.get("version") != VERSION:
            return None
        return found if all(isinstance(found.get(key), kind) for key, kind in kinds.items()) else None

    def _count(self) -> int:
        count = self.before.get("resumes") if self.before else 0
        return count if isinstance(count, int) else 0

    def job(self, name: str) -> dict[str, object] | None:
        """What a job was doing in the run before."""
        jobs = self.before["jobs"] if self.before else {}
        kept = jobs.get(name) if isinstance(jobs, dict) else None
        return kept if isinstance(kept, dict) else None

    def note(self, jobs: Jobs) -> None:
        """Keep what is running now: at once when it changed, else once a minute."""
        now_ns, _ = self._clock()
        if now_ns >= self._proven_at_ns and self.resumes:
            self.resumes = 0
        if jobs != self._written or now_ns >= self._write_at_ns:
            self._write(jobs, clean=False)

    def close(self) -> None:
        """The worker ends in good order."""
        if self._written is not None:
            self._write(self._written, clean=True)

    def _write(self, jobs: Jobs, clean: bool) -> None:
        now_ns, wall_ns = self._clock()
        document = {
            "version": VERSION,
            "clean": clean,
            "boot": self._boot,
            "alive_ns": now_ns,
            "wall_ns": wall_ns,
            "resumes": self.resumes,
            "held": self.held,
            "jobs": jobs,
        }
        write_atomically(self._path, json.dumps(document) + "\n")
        self._written = jobs
        self._write_at_ns = now_ns + WRITE_PERIOD_NS

    def outage_s(self) -> float | None:
        """For how long nothing had run when this run began, None where nobody knows (yet)."""
        if self.before is None:
            return None
        now_ns, wall_ns = self._clock()
        if self.before["boot"] == self._boot:
            passed = now_ns - int(str(self.before["alive_ns"]))
        elif any(os.path.exists(path) for path in SYNCHRONISED):
            passed = wall_ns - int(str(self.before["wall_ns"]))
        else:
            return None
        passed -= now_ns - self._started_ns
        return passed / 1e9 if passed >= 0 else None

    def missing(self, trusted: bool, stirred: bool) -> list[str]:
        """What keeps heat from being resumed, in words; empty: nothing does."""
        found = []
        if self.held:
            found.append(f"it was resumed {RESUMES_MAXIMUM} times without an hour of running in between")
        if self.before is not None and not self.before["clean"]:
            outage = self.outage_s()
            if outage is None:
                found.append("nobody knows how long the unit was off")
            elif outage > OUTAGE_MAXIMUM_S:
                found.append(f"the unit was off for {outage / 60:.0f} min")
        if not trusted:
            found.append("its sensor is not believed")
        if not stirred:
            found.append("nobody sees the stirrer turn")
        if is_under_voltage():
            found.append("the supply's voltage was too low since the start")
        return found


def is_under_voltage() -> bool:
    """Whether a Raspberry Pi's firmware has seen too low a voltage since the start."""
    try:
        with open(THROTTLED) as file:
            return bool(int(file.read().strip(), 16) & UNDER_VOLTAGE)
    except (OSError, ValueError):
        return False
