"""A unit that asks to be let in, without a token: a person compares a short code on both sides, and approves.

The code is of everything that a man in the middle would have to change: the authority that the unit sees, the request
that the leader sees, and a random number of each. The unit commits to its number before it knows the leader's, and
shows it only then; so nobody can try numbers until two codes agree, and each attempt is one more request that waits
here to be seen. Nothing is signed before the unit comes back for it, and nothing secret is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
import time

from stirbar.bridge.credentials import locked, write_private
from stirbar.bridge.enrolment import EnrolmentError, bytes_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from stirbar.bridge.enrolment import Enrolment

NONCE_BYTES = 16
LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # none that are read as another
CODE_LETTERS = 8  # 40 bits, of which one guess counts
LIFETIME_S = 15 * 60.0
MOST_WAITING = 32
MOST_OF_AN_ADDRESS = 8  # so one machine cannot keep the others out; all of them expire
LONGEST_REQUEST = 8192
LONGEST_TEXT = 80
OPEN, WAITING, APPROVED = "open", "waiting", "approved"


def commitment(nonce: bytes, request: str) -> str:
    """What a unit says of its number before it shows it."""
    return hashlib.sha256(b"stirbar commitment 1" + nonce + request.encode()).hexdigest()


def pairing_code(fingerprint: bytes, request: str, unit_id: bytes, leader_nonce: bytes, unit_nonce: bytes) -> str:
    """The code that both sides show; each works it out from what it has seen itself."""
    parts = (fingerprint, hashlib.sha256(request.encode()).digest(), unit_id, leader_nonce, unit_nonce)
    digest = hashlib.sha256(b"stirbar pairing 1" + b"".join(parts)).digest()
    number = int.from_bytes(digest[:8], "big")
    letters = "".join(LETTERS[number >> 5 * place & 31] for place in range(CODE_LETTERS))
    return f"{letters[:4]}-{letters[4:]}"


class Pairing:
    """The units that ask, in `asked.json` of the leader's directory; the running leader and `stirbar cluster` share it.

    Synchronization: safe from any thread and any process.
    """

    def __init__(self, enrolment: Enrolment, now: Callable[[], float] = time.time) -> None:
        self._enrolment = enrolment
        self._path = enrolment.directory / "asked.json"
        self._now = now

    def ask(self, asked: dict[str, str], address: str) -> dict[str, str]:
        """A unit asks; the answer has a secret to come back with, and our number. Raises EnrolmentError."""
        unit_id, committed = bytes_of(asked, "unit_id", 16), bytes_of(asked, "commitment", 32)
        name, request = asked.get("name", ""), asked.get("request", "")
        if not 0 < len(request) <= LONGEST_REQUEST:
            raise EnrolmentError("this is no certificate request", "request", "update stirbar on both machines", 400)
        self._enrolment.check_newcomer(name, unit_id)
        secret, nonce = secrets.token_bytes(NONCE_BYTES), secrets.token_bytes(NONCE_BYTES)
        entry = {
            "unit": name, "unit_id": unit_id.hex(), "board": _plain(asked, "board"), "address": address,
            "version": _plain(asked, "version"), "request": request, "commitment": committed.hex(),
            "nonce": nonce.hex(), "code": "", "asked_at": self._now(), "state": OPEN,
        }  # fmt: skip
        with self._entries() as entries:
            of_address = sum(one["address"] == address for one in entries.values())
            if len(entries) >= MOST_WAITING or of_address >= MOST_OF_AN_ADDRESS:
                raise EnrolmentError(
                    f"{len(entries)} units wait to be let in already, {of_address} of them at {address}",
                    "unit_id",
                    f"approve or refuse them on the leader; each is forgotten after {LIFETIME_S / 60:.0f} min",
                    429,
                )
            entries[_digest(secret)] = entry
        return {"secret": secret.hex(), "nonce": nonce.hex()}

    def answer(self, asked: dict[str, str]) -> dict[str, Any]:
        """The unit shows its number, and asks again until somebody has decided. Raises EnrolmentError."""
        secret, nonce = bytes_of(asked, "secret", NONCE_BYTES), bytes_of(asked, "nonce", NONCE_BYTES)
        with self._entries() as entries:
            entry = entries.get(_digest(secret))
            if entry is None:
                raise EnrolmentError(
                    "nobody waits with this secret: it was refused, or it waited too long",
                    "secret",
                    "ask once more: `stirbar cluster join --ask`",
                    403,
                )
            if not hmac.compare_digest(commitment(nonce, entry["request"]), entry["commitment"]):
                del entries[_digest(secret)]
                raise EnrolmentError("this is not the number that was promised", "nonce", "ask once more", 403)
            unit_id = bytes.fromhex(entry["unit_id"])
            if entry["state"] == OPEN:
                fingerprint = self._enrolment.authority.fingerprint()
                ours = bytes.fromhex(entry["nonce"])
                entry |= {"code": pairing_code(fingerprint, entry["request"], unit_id, ours, nonce), "state": WAITING}
            if entry["state"] == WAITING:
                return {"state": WAITING}
            del entries[_digest(secret)]
        return {"state": APPROVED, **self._enrolment.admit(entry["unit"], unit_id, entry["request"])}

    def waiting(self) -> list[dict[str, Any]]:
        """Those that a person can decide on: unit, unit_id, board, version, address, code, asked_at."""
        names = ("unit", "unit_id", "board", "version", "address", "code", "asked_at")
        with self._entries() as entries:
            return [{name: one[name] for name in names} for one in entries.values() if one["state"] == WAITING]

    def approve(self, unit_id: str, code: str) -> str:
        """Let the unit in that shows this code, when it comes back; its name. Raises EnrolmentError."""
        with self._entries() as entries:
            entry = entries[self._find(entries, unit_id, code)]
            entry["state"] = APPROVED
            return str(entry["unit"])

    def refuse(self, unit_id: str, code: str) -> str:
        """Forget the unit that shows this code; its name. Raises EnrolmentError."""
        with self._entries() as entries:
            return str(entries.pop(self._find(entries, unit_id, code))["unit"])

    def found(self, heard: list[dict[str, str]]) -> list[dict[str, Any]]:
        """Units that are not in the cluster: those that ask, and those of `heard` (discovery.units) that do not."""
        asking = self.waiting()
        known = {one["unit_id"] for one in self._enrolment.units() if one["state"] in ("joined", "this machine")}
        known |= {one["unit_id"] for one in asking}
        silent = [
            {**one, "code": "", "asked_at": None, "state": "announced"} for one in heard if one["unit_id"] not in known
        ]
        return [one | {"state": "asks"} for one in asking] + silent

    def _find(self, entries: dict[str, dict[str, Any]], unit_id: str, code: str) -> str:
        wanted = code.strip().upper()
        for key, one in entries.items():
            if (
                one["unit_id"] == unit_id
                and one["state"] == WAITING
                and hmac.compare_digest(one["code"].encode(), wanted.encode())
            ):
                return key
        raise EnrolmentError(
            f"no unit of id {unit_id[:32]} waits with the code {wanted[:20]}",
            "code",
            "`stirbar cluster discover` shows who waits; the unit may have to ask once more",
            404,
        )

    @contextlib.contextmanager
    def _entries(self) -> Iterator[dict[str, dict[str, Any]]]:
        with locked(self._path.with_suffix(".lock")):
            try:
                text = self._path.read_text(encoding="utf-8")
                stored = json.loads(text)
            except (FileNotFoundError, ValueError):
                text, stored = "", {}  # none yet, or damaged: then who waits asks again
            kept = {key: one for key, one in stored.items() if 0 <= self._now() - one["asked_at"] < LIFETIME_S}
            try:
                yield kept
            finally:
                new = json.dumps(kept, indent=1) + "\n"
                if new != text and (kept or text):
                    write_private(self._path, new)


def _digest(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()


def _plain(asked: dict[str, str], field: str) -> str:
    return "".join(letter for letter in asked.get(field, "") if letter.isprintable())[:LONGEST_TEXT]
