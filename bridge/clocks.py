"""How wrong a unit's wall clock is, judged by when its live batches arrive.

A live batch leaves its unit as soon as it is made and carries the unit's clocks. Its way takes time, never less than
none: the smallest `arrival - monotonic` of the last while is the least late, and tells the leader's time at which the
unit's monotonic clock stood at zero (`zero_ns`). Whatever the unit's wall clock says, `monotonic + zero` is right to
within the quickest delivery. Arrivals are measured on the leader's monotonic clock, so that a step of its own wall
clock is no step of a unit's.

Synchronization: one thread, that of the ingest.
"""

from __future__ import annotations

import time

from stirbar.bridge.blocks import CLOCK_CORRECTED, WALL_TOLERANCE_NS, check_header
from stirbar.core.records import READING_FIELDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from stirbar.bridge.live import LiveUnit
    from stirbar.bridge.store import Store
    from stirbar.core.records import Header

WINDOW_S = 30.0  # of the minimum; the last whole one counts as well
SILENCE_S = 10.0  # after it, what comes first may have waited for long
SETTLE_S = 3.0  # of arrivals, before the minimum is believed
STEP_NS = 100_000_000  # a smaller change is the network's, not the clock's
OVER_NS = WALL_TOLERANCE_NS // 2  # an error that is smaller than this has ended

_MONOTONIC, _WALL, _FLAG_BITS = (READING_FIELDS.index(name) for name in ("monotonic_ns", "wall_ns", "flags"))


class BootClock:
    """The clocks of one boot of a unit. `note` as batches arrive; all times in ns. Pure: the caller has the clock."""

    __slots__ = ("_before", "_least", "_settled_at", "_started", "_wall_less_monotonic", "boot_id", "heard")

    def __init__(self, boot_id: bytes) -> None:
        self.boot_id = boot_id
        self.heard = 0  # when, on our monotonic clock; 0: never
        self._least: int | None = None
        self._before: int | None = None
        self._started = self._settled_at = 0
        self._wall_less_monotonic = 0

    def note(self, monotonic_ns: int, wall_ns: int, arrival_ns: int) -> None:
        """A batch made at these times of the unit arrived at this time of our monotonic clock."""
        if not self.heard or arrival_ns - self.heard > SILENCE_S * 1e9:
            self._least = self._before = None
            self._started = arrival_ns
            self._settled_at = arrival_ns + round(SETTLE_S * 1e9)
        elif arrival_ns - self._started > WINDOW_S * 1e9:
            self._before, self._least = self._least, None
            self._started = arrival_ns
        late = arrival_ns - monotonic_ns
        self._least = late if self._least is None else min(self._least, late)
        self._wall_less_monotonic = wall_ns - monotonic_ns
        self.heard = arrival_ns

    def judge(self, our_wall_less_monotonic_ns: int) -> tuple[int, int] | None:
        """(zero, error of the unit's wall clock), or None while too little was heard."""
        if not self.heard or self.heard < self._settled_at or self._least is None:
            return None
        least = self._least if self._before is None else min(self._least, self._before)
        zero_ns = least + our_wall_less_monotonic_ns
        return zero_ns, self._wall_less_monotonic - zero_ns


class Clocks:
    """The clocks of all units: tells the store, and names a clock that is wrong by more than two seconds.

    `tell(unit, level, code, message)` makes an event. What is in force is kept in the unit's `clock`.
    """

    def __init__(self, store: Store, tell: Callable[[LiveUnit | None, str, str, str], None]) -> None:
        self._store = store
        self._tell = tell
        self._ours_ns = time.time_ns() - time.monotonic_ns()
        self._boots: dict[bytes, BootClock] = {}
        self._news: dict[bytes, LiveUnit] = {}

    def note(self, unit: LiveUnit, header: Header) -> None:
        """A live batch of the unit came just now. Raises ValueError for clocks that no store could keep."""
        check_header(header)
        boot = self._boots.get(unit.unit_id)
        if boot is None or boot.boot_id != header.boot_id:
            boot = self._boots[unit.unit_id] = BootClock(header.boot_id)
            unit.clock = None
        boot.note(header.monotonic_ns, header.realtime_ns, time.monotonic_ns())
        self._news[unit.unit_id] = unit

    def judge(self) -> None:
        """Once a commit: what has changed goes to the store. Raises StoreError."""
        our_ns = time.time_ns() - time.monotonic_ns()
        jump_ns, self._ours_ns = our_ns - self._ours_ns, our_ns
        if abs(jump_ns) > WALL_TOLERANCE_NS:
            text = f"the leader's own clock jumped by {jump_ns / 1e9:+.1f} s; the units' clocks are held against it"
            self._tell(None, "warning", "leader_clock_jump", text)
        news, self._news = self._news, {}
        for unit in news.values():
            boot = self._boots[unit.unit_id]
            judged = boot.judge(our_ns)
            if judged is None:
                continue
            zero_ns, error_ns = judged
            known = unit.clock
            if known is not None and abs(zero_ns - known[0]) < STEP_NS:
                zero_ns = known[0]
            unit.clock = (zero_ns, error_ns)
            if known is None or zero_ns != known[0] or abs(error_ns - known[1]) > STEP_NS:
                self._store.set_clock(unit.unit_id, boot.boot_id, zero_ns, error_ns)
            self._name(unit, error_ns)

    def _name(self, unit: LiveUnit, error_ns: int) -> None:
        if abs(error_ns) > WALL_TOLERANCE_NS and not unit.clock_wrong:
            unit.clock_wrong = True
            text = (
                f"the clock of '{unit.name}' is {abs(error_ns) / 1e9:.1f} s {'ahead' if error_ns > 0 else 'behind'}; "
                "its readings are stored with the leader's time: see to its time synchronisation (timedatectl)"
            )
            self._tell(unit, "warning", "clock_offset", text)
        elif abs(error_ns) < OVER_NS and unit.clock_wrong:
            unit.clock_wrong = False
            self._tell(unit, "notice", "clock_offset_over", f"the clock of '{unit.name}' is right again")

    def corrected(self, unit: LiveUnit, records: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Live readings with the time that the store will have for them."""
        if unit.clock is None:
            return records
        zero_ns = unit.clock[0]
        return [
            record
            if abs(record[_WALL] - record[_MONOTONIC] - zero_ns) <= WALL_TOLERANCE_NS
            else (
                *record[:_WALL],
                record[_MONOTONIC] + zero_ns,
                *record[_WALL + 1 : _FLAG_BITS],
                record[_FLAG_BITS] | CLOCK_CORRECTED,
                *record[_FLAG_BITS + 1 :],
            )
            for record in records
        ]
