"""The unit's side of joining without a token: ask a leader, show the code, and wait until somebody approves."""

from __future__ import annotations

import hashlib
import secrets
import ssl
import time
from typing import TYPE_CHECKING

from stirbar.bridge import joining
from stirbar.bridge.discovery import DiscoveryError, leaders
from stirbar.bridge.pairing import APPROVED, LIFETIME_S, NONCE_BYTES, commitment, pairing_code
from stirbar.core import identity
from stirbar.core.detection import read_tree
from stirbar.core.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from stirbar.core.config import Config

POLL_INTERVAL_S = 2.0


def find_leader(where: str, port: int) -> tuple[str, int]:
    """Address and port of a leader: of `host` or `host:port`, or of the only one that announces itself. Raises
    JoinError."""
    if where:
        host, _, given = where.rpartition(":") if where.count(":") == 1 else (where, "", "")
        if given and not given.isdecimal():
            raise joining.JoinError(f"'{where}' names no leader: write HOST or HOST:PORT")
        return host, int(given or port)
    try:
        found = leaders()
    except DiscoveryError as error:
        raise joining.JoinError(f"{error}: name the leader, `stirbar cluster join --ask HOST`") from None
    if len(found) != 1:
        names = ", ".join(f"{one.host} ({', '.join(one.addresses)})" for one in found) or "none"
        raise joining.JoinError(
            f"there should be one leader that announces itself, and there are {len(found)} ({names}): name one, "
            "`stirbar cluster join --ask HOST`"
        )
    return (found[0].addresses or [found[0].host])[0], found[0].port


def join(
    config: Config,
    leader: tuple[str, int],
    name: str,
    fingerprint: str,
    say: Callable[[str], None],
    confirm: Callable[[], bool],
) -> tuple[str, str]:
    """Ask to be let in as `name`; returns the name that the unit got and the file that was changed. `confirm`: whether
    the leader shows the same code; not asked where its authority's `fingerprint` is known. Raises JoinError, and then
    nothing was changed."""
    files = joining.Files(config)
    address, port = leader
    authority = joining.fetch_authority(address, port)
    shown = hashlib.sha256(ssl.PEM_cert_to_DER_cert(authority)).digest()
    known = fingerprint.replace(":", "").lower()
    if known and known != shown.hex():
        raise joining.JoinError(f"the leader at {address} has the fingerprint {shown.hex()}, and not {known}")
    key, request = joining.make_request(files)
    unit_id, nonce = identity.unit_id(str(files.data)), secrets.token_bytes(NONCE_BYTES)
    asked = {
        "name": name, "unit_id": unit_id.hex(), "request": request,
        "commitment": commitment(nonce, request), "board": read_tree("model"), "version": VERSION,
    }  # fmt: skip
    begun = joining.ask(address, port, authority, "ask", asked)
    code = pairing_code(shown, request, unit_id, bytes.fromhex(begun["nonce"]), nonce)
    again = {"secret": str(begun["secret"]), "nonce": nonce.hex()}
    joining.ask(address, port, authority, "answer", again)  # from now on the leader shows it
    say(f"the leader at {address}:{port} has an authority of SHA-256 {shown.hex(':').upper()}")
    say(f"this unit's code is {code}: approve it on the leader's page, or by `stirbar cluster approve {name}` there")
    if not known and not confirm():
        raise joining.JoinError(
            f"nobody has seen {code} on the leader: if it shows another code, somebody is between the two machines"
        )
    answer = _wait(address, port, authority, again)
    path = joining.accept(config, files, (address, port), authority, key, answer)
    return str(answer["unit"]), path


def _wait(address: str, port: int, authority: str, again: dict[str, str]) -> dict[str, object]:
    deadline = time.monotonic() + LIFETIME_S
    while time.monotonic() < deadline:
        answer = joining.ask(address, port, authority, "answer", again)
        if answer.get("state") == APPROVED:
            return answer
        time.sleep(POLL_INTERVAL_S)
    raise joining.JoinError(f"nobody has approved it within {LIFETIME_S / 60:.0f} min: ask once more")
