"""API tokens: secrets with a name and a scope, for scripts that call the leader without anybody's password.

They are kept in `tokens.json` in the leader's data directory, readable by its owner only: the SHA-256 of each secret,
its scope, when it was made and when it ends. A plain hash is enough, because a secret holds 256 random bits: there is
no list of guesses to try, as there is for a password.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stirbar.core.leader_client import API_TOKEN_PREFIX
from stirbar.web.auth import USER, Session, Sessions, read_json, write_secret

READ, CONTROL, ADMIN = SCOPES = ("read", "control", "admin")  # each may what those before it may
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
MAXIMUM_DAYS = 3650
MAXIMUM_TOKENS = 1000
DAY_S = 86400.0


class TokenError(ValueError):
    """A token that cannot be made or is not there: `field` names what is wrong, `taken` says that others are in the
    way."""

    def __init__(self, text: str, field: str, remedy: str, *, taken: bool = False) -> None:
        super().__init__(text)
        self.field = field
        self.remedy = remedy
        self.taken = taken


class Caller(NamedTuple):
    """Who sent a request: a token, or a browser's session, which may everything. `key` is what live connections are
    held by."""

    name: str
    scope: str
    key: str
    session: Session | None = None

    def may(self, scope: str) -> bool:
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


def caller_of_session(session: Session) -> Caller:
    """The person at the page."""
    return Caller(USER, ADMIN, session.key, session)


class Tokens:
    """The tokens of a leader, shared between the running leader and `stirbar leader token` by a locked file, so that
    making and revoking act at once.

    Synchronization: safe from any thread and any process.
    """

    def __init__(self, directory: Path, now: Callable[[], float] = time.time) -> None:
        self.path = directory / "tokens.json"
        self._now = now

    def create(self, name: str, scope: str, days: float | None = None) -> str:
        """A new token; this is the only time that its secret can be seen. Raises TokenError."""
        if not NAME_PATTERN.fullmatch(name) or name == USER:
            raise TokenError(
                f"'{name[:50]}' cannot name a token",
                "name",
                f"use 1 to 32 letters, digits, . _ and -, a letter or digit first; '{USER}' is the page's user",
            )
        if scope not in SCOPES:
            raise TokenError(f"there is no scope '{scope[:50]}'", "scope", f"known are: {', '.join(SCOPES)}")
        if days is not None and not 0 < days <= MAXIMUM_DAYS:
            raise TokenError(
                f"'days' is {days:g}", "days", f"give more than 0 and at most {MAXIMUM_DAYS}, or none: without an end"
            )
        secret = API_TOKEN_PREFIX + secrets.token_urlsafe(32)
        now = self._now()
        with self._locked() as tokens:
            if name in tokens and not _ended(tokens[name], now):
                raise TokenError(
                    f"there is a token '{name}' already", "name", "revoke it first, or choose another name", taken=True
                )
            if len(tokens) >= MAXIMUM_TOKENS:
                raise TokenError(f"there are {len(tokens)} tokens already", "name", "revoke some of them", taken=True)
            tokens[name] = {
                "sha256": _digest(secret),
                "scope": scope,
                "created_at": now,
                "expires_at": None if days is None else now + days * DAY_S,
            }
        return secret

    def revoke(self, name: str) -> None:
        """End a token. Raises TokenError when there is none of this name."""
        with self._locked() as tokens:
            if tokens.pop(name, None) is None:
                known = ", ".join(sorted(tokens)) or "none"
                raise TokenError(f"there is no token '{name[:50]}'", "name", f"there are: {known}")

    def listed(self) -> list[dict[str, Any]]:
        """Name, scope, created_at, expires_at (or None) and whether it has expired, in order of name; no secrets."""
        now = self._now()
        return [
            {
                "name": name,
                **{key: entry.get(key) for key in ("scope", "created_at", "expires_at")},
                "expired": _ended(entry, now),
            }
            for name, entry in sorted(self._entries().items())
        ]

    def find(self, secret: str) -> Caller | None:
        """Who shows this secret; None when it is of no token that is in force."""
        return self._find(_digest(secret))

    def valid(self, key: str) -> bool:
        """Whether the token of this key (not its secret) is in force."""
        return self._find(key) is not None

    def _find(self, key: str) -> Caller | None:
        now = self._now()
        for name, entry in self._entries().items():
            if entry["sha256"] == key and entry["scope"] in SCOPES and not _ended(entry, now):
                return Caller(name, entry["scope"], key)
        return None

    def _entries(self) -> dict[str, dict[str, Any]]:
        stored = read_json(self.path)
        return {
            name: entry
            for name, entry in stored.items()
            if isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and isinstance(entry.get("scope"), str)
        }

    @contextlib.contextmanager
    def _locked(self) -> Iterator[dict[str, dict[str, Any]]]:
        """The tokens, for a change; written back at the end unless it raises."""
        descriptor = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            tokens = self._entries()
            yield tokens
            write_secret(self.path, json.dumps(tokens))
        finally:
            os.close(descriptor)


def either(sessions: Sessions, tokens: Tokens) -> Callable[[str], bool]:
    """Whether a key of a session or of a token is in force: what live connections are held by."""
    return lambda key: sessions.valid(key) or tokens.valid(key)


def _ended(entry: dict[str, Any], now: float) -> bool:
    end = entry.get("expires_at")
    return isinstance(end, int | float) and end <= now


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
