"""Looking around by mDNS: on the leader, and only while somebody asks.

With the library `zeroconf` (an extra), which needs no avahi here and is a page of code less than parsing avahi-browse.
What is heard is said by anybody on the network: it is shown, and trusted in nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from stirbar.bridge.announce import LEADER_TYPE, UNIT_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterable

BROWSE_S = 2.0
RESOLVE_MS = 1000
MOST_SERVICES = 256
LONGEST_TEXT = 80
SSH_TYPES = ("_ssh._tcp", "_workstation._tcp")


class DiscoveryError(Exception):
    """Nobody can be looked for; the text says why, `remedy` what to do."""

    def __init__(self, text: str, remedy: str) -> None:
        super().__init__(text)
        self.remedy = remedy


class Service(NamedTuple):
    """One thing that was heard of."""

    kind: str
    name: str
    host: str
    addresses: list[str]
    port: int
    records: dict[str, str]


def browse(kinds: Iterable[str], seconds: float = BROWSE_S, interfaces: Iterable[str] = ()) -> list[Service]:
    """What answers within `seconds`, by name. `interfaces`: addresses of ours; none: all. Raises DiscoveryError."""
    try:
        import zeroconf
    except ImportError:
        raise DiscoveryError("the package zeroconf is not installed", "pip install stirbar[discovery]") from None
    heard: dict[tuple[str, str], None] = {}

    def changed(
        zeroconf: zeroconf.Zeroconf, service_type: str, name: str, state_change: zeroconf.ServiceStateChange
    ) -> None:
        if len(heard) < MOST_SERVICES:
            heard[service_type, name] = None

    try:
        open_zeroconf = zeroconf.Zeroconf(
            interfaces=list(interfaces) or zeroconf.InterfaceChoice.All, ip_version=zeroconf.IPVersion.V4Only
        )
    except OSError as error:
        raise DiscoveryError(f"mDNS is not to be had here ({error.strerror})", "is there a network?") from None
    with open_zeroconf as zc:
        zeroconf.ServiceBrowser(zc, [f"{kind}.local." for kind in kinds], handlers=[changed])
        time.sleep(seconds)
        found = [_resolve(zc, kind, name) for kind, name in list(heard)]
    return sorted((one for one in found if one is not None), key=lambda one: (one.kind, one.name))


def _resolve(zc: object, kind: str, name: str) -> Service | None:
    from zeroconf import ServiceInfo, Zeroconf

    assert isinstance(zc, Zeroconf)
    info = ServiceInfo(kind, name)
    if not info.request(zc, RESOLVE_MS):
        return None
    records = {key: _printable(value or "") for key, value in info.decoded_properties.items()}
    host = _printable((info.server or "").rstrip("."))
    plain = _printable(name.removesuffix(f".{kind}"))
    return Service(kind.removesuffix(".local."), plain, host, info.parsed_addresses(), info.port or 0, records)


def _printable(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable())[:LONGEST_TEXT]


def units(seconds: float = BROWSE_S, interfaces: Iterable[str] = ()) -> list[dict[str, str]]:
    """Units that announce themselves: unit, unit_id, version, board, state, address. Raises DiscoveryError."""
    found = {}
    for one in browse([UNIT_TYPE], seconds, interfaces):
        about = {key: one.records.get(key, "") for key in ("unit", "unit_id", "version", "board", "state")}
        if len(about["unit_id"]) == 32:
            found[about["unit_id"]] = about | {"address": (one.addresses or [one.host])[0]}
    return list(found.values())


def leaders(seconds: float = BROWSE_S, interfaces: Iterable[str] = ()) -> list[Service]:
    """Leaders that announce themselves. Raises DiscoveryError."""
    return browse([LEADER_TYPE], seconds, interfaces)
