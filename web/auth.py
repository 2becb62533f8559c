"""Who may use the page: one password, one-time links, sessions, and the headers that keep a browser honest.

Everything is kept in the leader's data directory, readable by its owner only: `password.json` (a scrypt hash),
`links.json` and `sessions.json` (SHA-256 of each secret with its expiry: a copy of the file lets nobody in).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

LINK_LIFETIME_S = 600.0
MINIMUM_PASSWORD_LENGTH = 8
MAXIMUM_PASSWORD_LENGTH = 1024
SCRYPT = {"n": 2**14, "r": 8, "p": 1}  # 16 MB and some 50 ms for each guess
FREE_FAILURES = 5  # wrong passwords before the delays begin
FIRST_DELAY_S = 2.0
LONGEST_DELAY_S = 300.0
FORGET_FAILURES_S = 900.0
USER = "operator"

SECURITY_HEADERS = (
    (
        "Content-Security-Policy",
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), microphone=(), geolocation=()"),
)


def secure(application: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Put the security headers on every answer of a WSGI application, errors included."""

    def wrapped(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            names = {name.lower() for name, _ in headers}
            added = [item for item in SECURITY_HEADERS if item[0].lower() not in names]
            if "cache-control" not in names:
                added.append(("Cache-Control", "no-store"))
            return start_response(status, headers + added, exc_info)

        return application(environ, start)

    return wrapped


def write_secret(path: Path, text: str) -> None:
    """Replace a file in one step; only its owner can read it, from its first byte on."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty when there is none or it was damaged (then nobody gets in by it)."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class Password:
    """The password of the page, kept as a scrypt hash.

    Synchronization: safe from any thread; guesses are hashed one at a time, so that they cost one core at most.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "password.json"
        self._lock = threading.Lock()

    def exists(self) -> bool:
        return self.path.exists()

    def set(self, password: str) -> None:
        """Store a new password. Raises ValueError, with the limit, for one that is too short or too long."""
        if not MINIMUM_PASSWORD_LENGTH <= len(password) <= MAXIMUM_PASSWORD_LENGTH:
            raise ValueError(
                f"the password has {len(password)} characters; allowed are {MINIMUM_PASSWORD_LENGTH} to "
                f"{MAXIMUM_PASSWORD_LENGTH}"
            )
        salt = secrets.token_bytes(16)
        digest = hashlib.scrypt(password.encode(), salt=salt, maxmem=64 * 2**20, **SCRYPT)
        write_secret(self.path, json.dumps({"scrypt": SCRYPT, "salt": salt.hex(), "hash": digest.hex()}))

    def check(self, password: str) -> bool:
        """Whether this is the password; false as well when none was set."""
        stored = read_json(self.path)
        try:
            salt, expected = bytes.fromhex(stored["salt"]), bytes.fromhex(stored["hash"])
            cost = {key: int(stored["scrypt"][key]) for key in SCRYPT}
        except (KeyError, ValueError, TypeError):
            return False
        with self._lock:
            digest = hashlib.scrypt(
                password[: MAXIMUM_PASSWORD_LENGTH + 1].encode(), salt=salt, maxmem=64 * 2**20, **cost
            )
        return hmac.compare_digest(digest, expected)


class Links:
    """One-time login links, shared between the running leader and `stirbar leader link` by a locked file.

    Synchronization: safe from any thread and any process.
    """

    def __init__(self, directory: Path, now: Callable[[], float] = time.time) -> None:
        self.path = directory / "links.json"
        self._now = now

    def issue(self, lifetime_s: float = LINK_LIFETIME_S) -> str:
        """A new token, good for one login within `lifetime_s`."""
        token = secrets.token_urlsafe(32)
        with self._locked() as links:
            links[_digest(token)] = self._now() + lifetime_s
        return token

    def redeem(self, token: str) -> bool:
        """Whether the token was good; it is used up by this."""
        with self._locked() as links:
            return links.pop(_digest(token), 0.0) > self._now()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[dict[str, float]]:
        """The links that have not expired; written back at the end."""
        descriptor = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            stored = read_json(self.path)
            now = self._now()
            links = {key: end for key, end in stored.items() if isinstance(end, int | float) and end > now}
            yield links
            if links != stored:
                write_secret(self.path, json.dumps(links))
        finally:
            os.close(descriptor)


class Session:
    """One login: its secret (the cookie's value), when it ends, and the token that its changing requests carry."""

    __slots__ = ("expires", "key", "secret")

    def __init__(self, secret: str, key: str, expires: float) -> None:
        self.secret = secret
        self.key = key
        self.expires = expires

    @property
    def csrf(self) -> str:
        return hashlib.sha256(b"csrf:" + self.secret.encode()).hexdigest()

    def allows(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self.csrf.encode())


class Sessions:
    """The logins in force. They survive a restart of the leader, and are prolonged while they are used; a new password
    ends all that are older than it.

    Synchronization: safe from any thread of one process.
    """

    def __init__(self, directory: Path, lifetime_s: float, now: Callable[[], float] = time.time) -> None:
        self.path = directory / "sessions.json"
        self.lifetime_s = lifetime_s
        self._password_path = directory / "password.json"
        self._now = now
        self._lock = threading.Lock()
        self._entries: dict[str, list[float]] = {  # SHA-256 of the secret: [opened, ends] in Unix s; guarded by _lock
            key: [float(value[0]), float(value[1])]
            for key, value in read_json(self.path).items()
            if isinstance(value, list) and len(value) == 2
        }

    def open(self) -> Session:
        """A new login."""
        secret = secrets.token_urlsafe(32)
        now = self._now()
        session = Session(secret, _digest(secret), now + self.lifetime_s)
        with self._lock:
            self._entries[session.key] = [now, session.expires]
            self._save()
        return session

    def find(self, secret: str) -> Session | None:
        """The login that this cookie belongs to, or None when there is none or it has ended."""
        key = _digest(secret)
        if not self.valid(key):
            return None
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            if entry[1] - self._now() < self.lifetime_s / 2:
                entry[1] = self._now() + self.lifetime_s
                self._save()
            return Session(secret, key, entry[1])

    def valid(self, key: str) -> bool:
        """Whether the login of this key (not its secret) is in force."""
        try:
            password_set = self._password_path.stat().st_mtime
        except OSError:
            password_set = 0.0
        with self._lock:
            opened, ends = self._entries.get(key, (0.0, 0.0))
        return ends > self._now() and opened >= password_set

    def close(self, session: Session) -> None:
        with self._lock:
            if self._entries.pop(session.key, None) is not None:
                self._save()

    def _save(self) -> None:
        self._entries = {key: entry for key, entry in self._entries.items() if entry[1] > self._now()}
        write_secret(self.path, json.dumps(self._entries))


class RateLimit:
    """Slows guessing: after five wrong passwords from an address each further one doubles the wait.

    Synchronization: safe from any thread.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._failures: dict[str, tuple[int, float]] = {}  # address: failures, time of the last; guarded by _lock

    def attempt(self, address: str) -> float:
        """Seconds until this address may try; 0 when it may now. Then the attempt counts as failed until `succeeded`:
        a hundred guesses at once are a hundred guesses."""
        now = self._now()
        with self._lock:
            self._failures = {key: item for key, item in self._failures.items() if now - item[1] < FORGET_FAILURES_S}
            count, last = self._failures.get(address, (0, now))
            if count >= FREE_FAILURES:
                wait = last + min(FIRST_DELAY_S * 2.0 ** min(count - FREE_FAILURES, 30), LONGEST_DELAY_S) - now
                if wait > 0:
                    return wait
            self._failures[address] = (count + 1, now)
            return 0.0

    def succeeded(self, address: str) -> None:
        with self._lock:
            self._failures.pop(address, None)
