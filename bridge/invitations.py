"""Invitations to a cluster: what a token says, and which of them are still good.

A token is one word for a person to carry to a new unit. The leader keeps the SHA-256 of its secret, so a copy of
`invitations.json` lets nobody in.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import secrets
import struct
import time

from stirbar.bridge.credentials import locked, write_private

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Iterator
    from typing import Any

PREFIX = "stirbar1-"
SECRET_BYTES = 16
FINGERPRINT_BYTES = 32
CHECK_BYTES = 4  # finds a slip of pen or clipboard; it protects against nobody
_FIXED = struct.Struct(f">{FINGERPRINT_BYTES}s{SECRET_BYTES}sH")
LONGEST_TOKEN = 1000
REMEMBERED_S = 7 * 86400.0  # so long a token that was used or has expired is told from one that never was


class InvitationError(Exception):
    """The token lets nobody in; the text says why, `remedy` what to do."""

    def __init__(self, text: str, remedy: str) -> None:
        super().__init__(text)
        self.remedy = remedy


class Token:
    """What an invitation carries: where the leader is, the fingerprint of its authority, and the one-time secret.

    Synchronization: immutable by convention.
    """

    __slots__ = ("addresses", "fingerprint", "port", "secret")

    def __init__(self, addresses: list[str], port: int, fingerprint: bytes, secret: bytes) -> None:
        self.addresses = addresses
        self.port = port
        self.fingerprint = fingerprint
        self.secret = secret

    def text(self) -> str:
        """The token as one word of letters, digits, - and _."""
        body = _FIXED.pack(self.fingerprint, self.secret, self.port) + ",".join(self.addresses).encode()
        checked = hashlib.sha256(body).digest()[:CHECK_BYTES] + body
        return PREFIX + base64.urlsafe_b64encode(checked).decode().rstrip("=")


def parse_token(text: str) -> Token:
    """Raises InvitationError for what is no token, or not all of one."""
    text = "".join(text.split())
    damaged = InvitationError("the token is damaged, or not all of it is there", "copy it once more, the whole word")
    if not text.startswith(PREFIX) or len(text) > LONGEST_TOKEN:
        raise InvitationError(
            f"this is not an invitation: a token begins with {PREFIX}",
            "run `stirbar cluster invite` on the leader, and give what it prints",
        )
    word = text[len(PREFIX) :]
    try:
        checked = base64.b64decode(word + "=" * (-len(word) % 4), b"-_", validate=True)
        body = checked[CHECK_BYTES:]
        fingerprint, secret, port = _FIXED.unpack_from(body)
        addresses = body[_FIXED.size :].decode("ascii").split(",")
    except (ValueError, struct.error):
        raise damaged from None
    if hashlib.sha256(body).digest()[:CHECK_BYTES] != checked[:CHECK_BYTES] or not all(addresses) or not port:
        raise damaged
    return Token(addresses, port, fingerprint, secret)


class Invitations:
    """The invitations of a leader, shared between the running leader and `stirbar cluster` by a locked file.

    Synchronization: safe from any thread and any process.
    """

    def __init__(self, directory: pathlib.Path, now: Callable[[], float] = time.time) -> None:
        self._path = directory / "invitations.json"
        self._now = now

    def issue(self, lifetime_s: float, name: str = "", unit_id: str = "") -> bytes:
        """A new secret: for the unit of this name or this id only, if one is given."""
        secret = secrets.token_bytes(SECRET_BYTES)
        with self._locked() as known:
            known[_digest(secret)] = {"ends": self._now() + lifetime_s, "name": name, "unit_id": unit_id, "used": 0.0}
        return secret

    @contextlib.contextmanager
    def use(self, secret: bytes) -> Iterator[dict[str, Any]]:
        """The invitation of this secret, used up unless what is done with it fails. Raises InvitationError."""
        again = "run `stirbar cluster invite` on the leader for another"
        with self._locked() as known:
            found = known.get(_digest(secret))
            if found is None:
                raise InvitationError("this leader knows no such invitation, or it is long over", again)
            if found["used"]:
                ago = (self._now() - found["used"]) / 60
                raise InvitationError(f"this invitation was used {ago:.0f} min ago, and each works once", again)
            if found["ends"] <= self._now():
                ago = (self._now() - found["ends"]) / 60
                raise InvitationError(f"this invitation expired {ago:.0f} min ago", again)
            yield found
            found["used"] = self._now()

    def withdraw(self, name: str) -> None:
        """Forget the open invitations for a name."""
        with self._locked() as known:
            for key in [key for key, item in known.items() if item["name"] == name and not item["used"]]:
                del known[key]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[dict[str, dict[str, Any]]]:
        with locked(self._path.with_suffix(".lock")):
            try:
                stored = json.loads(self._path.read_text(encoding="utf-8"))
            except (FileNotFoundError, ValueError):
                stored = {}  # none yet, or damaged: then nobody gets in by it
            yield stored
            kept = {key: item for key, item in stored.items() if item["ends"] + REMEMBERED_S > self._now()}
            write_private(self._path, json.dumps(kept, indent=1) + "\n")


def _digest(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()
