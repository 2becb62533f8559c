"""The audit log: who did what, when, and what came of it.

Lines of JSON appended to `audit.jsonl` in the leader's data directory, mode 0600, and not a table of the store: it has
to say who asked while the store is locked, full or being replaced; nobody who may read the data may read or change it
with an SQL shell; no export carries it; and the command line reads it while the leader runs. The newest `FILES` files
of `FILE_BYTES` are kept. An entry holds what was asked without secrets: fields named in `SECRETS` are left out, and of
an address only its path is kept.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

FILE_BYTES = 4 * 2**20  # some 15 000 entries
FILES = 8
SECRETS = ("password", "token", "secret", "request")
LONGEST_TEXT = 100  # characters of a field
LONGEST_ARGUMENTS = 400  # characters of all of them
LONGEST_PATH = 200
STRANGERS_A_MINUTE = 20  # entries of requests without a name: a flood of them must not push out the others
COMPLAIN_S = 60.0
LONGEST_RESULT = 200
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Audit:
    """Writes and reads the log of one leader.

    Synchronization: safe from any thread and any process; a line is written whole.
    """

    def __init__(self, directory: Path, now: Callable[[], float] = time.time) -> None:
        self.path = directory / "audit.jsonl"
        self._now = now
        self._lock = threading.Lock()  # protects the fields below
        self._strangers: list[float] = []  # times of their entries in the last minute
        self._left_out = 0
        self._failed = 0
        self._complained = -COMPLAIN_S

    def write(self, who: str, action: str, known: bool = True, **more: Any) -> None:
        """Append an entry. A disk that takes nothing is said on standard error once a minute, and counted: it must not
        keep anybody from stopping a pump."""
        now = self._now()
        entry = {"t": round(now, 3), "who": who, "action": action, **more}
        with self._lock:
            if not known:
                self._strangers = [t for t in self._strangers if now - 60.0 < t <= now]
                if len(self._strangers) >= STRANGERS_A_MINUTE:
                    self._left_out += 1
                    return
                self._strangers.append(now)
            if self._left_out:
                entry["left_out"] = self._left_out  # entries of strangers before this one
                self._left_out = 0
            try:
                self._append(json.dumps(entry).encode() + b"\n")
            except OSError as error:
                self._failed += 1
                if time.monotonic() - self._complained >= COMPLAIN_S:
                    self._complained = time.monotonic()
                    print(f"web: the audit log {self.path} cannot be written: {error.strerror}", file=sys.stderr)

    def failed(self) -> int:
        """How many entries could not be written since the start."""
        with self._lock:
            return self._failed

    def read(self, limit: int, before: float = float("inf")) -> list[dict[str, Any]]:
        """The newest entries before a time, newest first. A line that is damaged is left out."""
        found: list[dict[str, Any]] = []
        for entry in self._newest_first():
            if entry["t"] < before:
                found.append(entry)
                if len(found) >= limit:
                    break
        return found

    def _newest_first(self) -> Iterator[dict[str, Any]]:
        for path in [self.path, *(self._older(number) for number in range(1, FILES))]:
            try:
                lines = path.read_bytes().split(b"\n")
            except OSError:
                continue
            for line in reversed(lines):
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(entry, dict) and isinstance(entry.get("t"), int | float):
                    yield entry

    def _append(self, line: bytes) -> None:
        guard = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(guard, fcntl.LOCK_EX)  # one process turns the files over at a time
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, line)
                os.fdatasync(descriptor)
                full = os.fstat(descriptor).st_size >= FILE_BYTES
            finally:
                os.close(descriptor)
            if full:
                self._turn_over()
        finally:
            os.close(guard)

    def _turn_over(self) -> None:
        for number in range(FILES - 1, 0, -1):
            older = self._older(number)
            newer = self._older(number - 1) if number > 1 else self.path
            if newer.exists():
                newer.replace(older)

    def _older(self, number: int) -> Path:
        return self.path.with_name(f"audit.{number}.jsonl")


def summary(fields: dict[str, Any]) -> str:
    """What was asked, in one line: secrets left out, what is long cut."""
    line = " ".join(f"{name}={_shown(name, value)}" for name, value in fields.items())
    return line if len(line) <= LONGEST_ARGUMENTS else line[: LONGEST_ARGUMENTS - 1] + "…"


def _shown(name: str, value: Any) -> str:
    if name in SECRETS:
        return "…"
    if isinstance(value, dict):
        text = "{" + " ".join(f"{key}={_shown(key, item)}" for key, item in value.items()) + "}"
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def audited(application: Application, audit: Audit) -> Application:
    """A WSGI application that leaves an entry of every request that changes something, whatever became of it.

    What it knows of the request its routes left in the environ: `stirbar.caller`, and in `stirbar.audit` the `unit`,
    the `fields` that were asked, the `result`, `who` it was when they just came in, and `only_looks` when nothing
    changes by it.
    """

    def wrapped(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        told: dict[str, Any] = {}
        environ["stirbar.audit"] = told
        status = [500]

        def start(line: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            status[0] = int(line.split(" ", 1)[0])
            return start_response(line, headers, exc_info)

        answered = application(environ, start)
        changes = environ["REQUEST_METHOD"] not in SAFE_METHODS and not told.get("only_looks")
        if changes or "result" in told:
            _note(audit, environ, told, status[0], answered)
        return answered

    return wrapped


def _note(audit: Audit, environ: dict[str, Any], told: dict[str, Any], status: int, answered: Any) -> None:
    caller = environ.get("stirbar.caller")
    fields = dict(told.get("fields", {}))
    path = environ.get("PATH_INFO", "").encode("latin-1", "replace").decode("utf-8", "replace")[:LONGEST_PATH]
    action = fields.pop("command", None) or f"{environ['REQUEST_METHOD']} {path}"
    result = told.get("result") or ("done" if status < 400 else _error_in(answered))
    audit.write(
        told.get("who") or (caller.name if caller else ""),
        str(action),
        known=caller is not None or status < 400,
        address=environ.get("REMOTE_ADDR", ""),
        unit=told.get("unit"),
        arguments=summary(fields),
        status=status,
        result=result[:LONGEST_RESULT],
    )


def _error_in(answered: Any) -> str:
    """The reason of a refusal."""
    try:
        return str(json.loads(answered[0])["error"])
    except (TypeError, ValueError, KeyError, IndexError):
        return "refused"
