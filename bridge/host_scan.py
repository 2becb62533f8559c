"""Finding machines with SSH: by mDNS, or by asking each address of one small private network."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ipaddress
import socket
from typing import NamedTuple

from stirbar.bridge.authority import machine_names
from stirbar.bridge.discovery import SSH_TYPES, browse

MDNS = "mdns"
MOST_ADDRESSES = 256
CONNECT_LIMIT_S = 1.0
AT_ONCE = 64
ARP = "/proc/net/arp"
# The first half of network cards' addresses that belong to Raspberry Pi.
RASPBERRY_PI = ("b8:27:eb", "dc:a6:32", "e4:5f:01", "28:cd:c1", "d8:3a:dd", "2c:cf:67", "88:a2:9e")


class Found(NamedTuple):
    """A machine that takes SSH connections; `hint` says what it may be."""

    address: str
    name: str
    hint: str

    @property
    def is_raspberry_pi(self) -> bool:
        """Whether its network card is one of theirs."""
        return bool(self.hint)


def scan(where: str, port: int) -> list[Found]:
    """`mdns`, or a network such as 192.168.1.0/24. Raises ValueError for one that is not to be scanned."""
    if where == MDNS:
        heard = {one.addresses[0]: one.host for one in browse(SSH_TYPES) if one.addresses}
    else:
        heard = dict.fromkeys(_listening(check_network(where), port), "")
    cards = _cards()
    own = machine_names("0.0.0.0")[1]
    return [
        Found(address, name, "Raspberry Pi" if cards.get(address, "").startswith(RASPBERRY_PI) else "")
        for address, name in sorted(heard.items(), key=lambda one: ipaddress.ip_address(one[0]))
        if address not in own
    ]


def check_network(text: str) -> ipaddress.IPv4Network:
    """Raises ValueError for what is no small private network."""
    try:
        network = ipaddress.IPv4Network(text, strict=False)
    except ValueError:
        raise ValueError(f"'{text}' is no network: write 192.168.1.0/24, or mdns") from None
    if network.num_addresses > MOST_ADDRESSES:
        raise ValueError(f"{network} has {network.num_addresses} addresses; at most {MOST_ADDRESSES} are asked: /24")
    if not network.is_private:
        raise ValueError(f"{network} is not a private network: only one's own is asked")
    return network


def _listening(network: ipaddress.IPv4Network, port: int) -> list[str]:
    def answers(address: str) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((address, port), CONNECT_LIMIT_S):
            return True
        return False

    addresses = [str(one) for one in network.hosts()]
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        return [address for address, there in zip(addresses, pool.map(answers, addresses), strict=True) if there]


def _cards() -> dict[str, str]:
    """{address: that of its network card}, of those that this machine has spoken to."""
    with contextlib.suppress(OSError), open(ARP) as file:
        rows = [line.split() for line in file.readlines()[1:]]
        return {row[0]: row[3].lower() for row in rows if len(row) > 3}
    return {}
