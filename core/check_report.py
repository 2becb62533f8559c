"""What one check of `stirbar hardware check` found.

Synchronization: plain values.
"""

from __future__ import annotations

OK, NOTE, WARN, FAIL, SKIP = "ok", "note", "warn", "fail", "skip"


class Finding:
    """`status`, what was looked at, what was measured, the limit that it was held against, and what to do.

    A `fail` means that the board will not work as its profile says, a `warn` that it will, but worse; a `note` is a
    figure without a limit, a `skip` what could not be looked at, with the reason as `measured`.
    """

    __slots__ = ("limit", "measured", "remedy", "status", "what")

    def __init__(self, status: str, what: str, measured: str, limit: str = "", remedy: str = "") -> None:
        self.status = status
        self.what = what
        self.measured = measured
        self.limit = limit
        self.remedy = remedy

    def line(self) -> str:
        limit = f" (limit: {self.limit})" if self.limit else ""
        remedy = f"\n       -> {self.remedy}" if self.remedy and self.status in (WARN, FAIL) else ""
        return f"{self.status:4}   {self.what}: {self.measured}{limit}{remedy}"

    def as_dict(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in ("status", "what", "measured", "limit", "remedy")}


def judge(good: bool, what: str, measured: str, limit: str, remedy: str, bad: str = FAIL) -> Finding:
    """`ok`, or `bad` with the remedy."""
    return Finding(OK if good else bad, what, measured, limit, remedy)
