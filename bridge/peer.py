"""The other one of leader and standby, asked over its page: who leads, and what stands in its book.

It is believed for its certificate, which is of our own authority and for servers: units have none of that kind.
"""

from __future__ import annotations

import json

from stirbar.bridge.joining import exchange, vouched

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pathlib
    from typing import Any

    from stirbar.bridge.standing import Place

PATIENCE_S = 3.0
PASSWORD_HEADER = "X-Stirbar-Standby"
LONGEST_BOOK_BYTES = 16 << 20


class PeerError(Exception):
    """The other one does not answer, or not as it should."""


def who_leads(directory: pathlib.Path, peer: Place) -> tuple[str, int]:
    """The peer's role and its epoch. Raises PeerError."""
    said = _get(directory, peer, "leadership", {})
    role, epoch = said.get("role"), said.get("epoch")
    if not isinstance(role, str) or not isinstance(epoch, int):
        raise PeerError(f"{peer} does not say whether it leads")
    return role, epoch


def read_book(directory: pathlib.Path, peer: Place, password: str, have: str) -> dict[str, Any] | None:
    """The leader's book; None when it is the one that we `have`, by its digest. Raises PeerError."""
    said = _get(directory, peer, f"book?have={have}", {PASSWORD_HEADER: password})
    book = said.get("book")
    return book if isinstance(book, dict) else None


def _get(directory: pathlib.Path, peer: Place, what: str, headers: dict[str, str]) -> dict[str, Any]:
    try:
        context = vouched((directory / "tls" / "ca.pem").read_text())
        status, _, body = exchange(
            peer.host, peer.page_port, context, "GET", what, None, headers, PATIENCE_S, LONGEST_BOOK_BYTES
        )
        said = json.loads(body)
    except (OSError, ValueError) as error:
        raise PeerError(f"{peer} does not answer ({error})") from None
    if status != 200 or not isinstance(said, dict):
        why = said.get("error") if isinstance(said, dict) else None
        raise PeerError(f"{peer} answers {status}: {why or 'not as a leader does'}")
    return said
