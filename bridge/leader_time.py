"""What the leader's clock shows, as the unit's monotonic clock and the leader's acknowledgements tell it.

Whether a command is late must not depend on the unit's wall clock, which may be at 1970. An acknowledgement says when
it was sent; what it took on the way only makes that older, so the greatest `sent - heard` of the last while is the
nearest to the truth, and never ahead of it.

Synchronization: one thread.
"""

from __future__ import annotations

WINDOW_S = 60.0  # of the maximum; the last whole one counts as well


class LeaderTime:
    """`note` what an acknowledgement says; `at(now)` is the leader's Unix time, or None when it never said any."""

    __slots__ = ("_before", "_most", "_started")

    def __init__(self) -> None:
        self._most: float | None = None
        self._before: float | None = None
        self._started = 0.0

    def forget(self) -> None:
        """Another connection, perhaps another leader."""
        self._most = self._before = None

    def note(self, sent_s: float, now: float) -> None:
        """The leader said at `sent_s` of its clock what is heard at `now` of our monotonic one."""
        if self._most is None or now - self._started > WINDOW_S:
            self._before, self._most = self._most, sent_s - now
            self._started = now
        else:
            self._most = max(self._most, sent_s - now)

    def at(self, now: float) -> float | None:
        if self._most is None:
            return None
        return now + (self._most if self._before is None else max(self._most, self._before))
