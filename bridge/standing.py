"""What this leader is: the one that leads, its standby, or one that another has followed. Kept over restarts.

A leader and its standby are machines of one authority. Only who leads opens its broker to the network: units that come
to the other one's door find it shut, and go on to the next address that they know.

Synchronization: processes take turns by a lock; a `Standing` is a value.
"""

from __future__ import annotations

import json

from stirbar.bridge.credentials import locked, write_private

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable
    from typing import Any

LEADER, STANDBY, DEPOSED = "leader", "standby", "deposed"
FILE = "standing.json"


class StandingError(Exception):
    """What this leader is cannot be read or changed; the sentence says why, and what to do."""


class Place:
    """Where a leader's machine is: its host for others, the port of its page, and that of its broker by TLS.

    Synchronization: immutable by convention.
    """

    __slots__ = ("broker_port", "host", "page_port")

    def __init__(self, host: str, page_port: int, broker_port: int) -> None:
        self.host = host
        self.page_port = page_port
        self.broker_port = broker_port

    def values(self) -> list[object]:
        return [self.host, self.page_port, self.broker_port]

    def __str__(self) -> str:
        return self.host


class Standing:
    """`role` is one of the three above, `epoch` the highest leadership epoch that is known (0: that of the store).

    `own` is where others find this machine, `peer` the other of the two; None where there is no standby.
    Synchronization: immutable by convention.
    """

    __slots__ = ("epoch", "own", "peer", "role")

    def __init__(self, role: str = LEADER, epoch: int = 0, own: Place | None = None, peer: Place | None = None) -> None:
        self.role = role
        self.epoch = epoch
        self.own = own
        self.peer = peer

    @property
    def leads(self) -> bool:
        return self.role == LEADER

    def but(self, **changes: Any) -> Standing:
        """The same with some members changed."""
        return Standing(**{**{name: getattr(self, name) for name in self.__slots__}, **changes})

    def leaders(self) -> list[list[object]]:
        """What units are told: host, broker's port, page's port, this machine's first."""
        places = [place for place in (self.own, self.peer) if place is not None]
        return [[place.host, place.broker_port, place.page_port] for place in places]

    def refusal(self) -> str:
        """Why this machine changes nothing and commands nobody; empty for the one that leads."""
        if self.role == LEADER:
            return ""
        if self.role == STANDBY:
            return f"this is the standby of the leader at {self.peer}"
        return f"this is no longer the leader: units follow the one at {self.peer}, of epoch {self.epoch}"

    def remedy(self) -> str:
        if self.role == STANDBY:
            return "do it there; if that leader is gone, `stirbar leader promote` on this machine"
        return (
            f"do it there; `stirbar leader standby-token` on {self.peer}, and `stirbar leader standby` with it here, "
            "makes this machine the standby"
        )


def read_standing(directory: pathlib.Path) -> Standing:
    """What the leader of a directory is. Raises StandingError when its file is damaged."""
    path = directory / FILE
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        places = [Place(*kept[name]) if kept[name] else None for name in ("own", "peer")]
        if kept["role"] not in (LEADER, STANDBY, DEPOSED):
            raise ValueError
        return Standing(kept["role"], int(kept["epoch"]), *places)
    except FileNotFoundError:
        return Standing()
    except (ValueError, TypeError, KeyError):
        # to lead by mistake is worse than not to start
        raise StandingError(
            f"{path} is damaged, which says whether this machine leads: remove it if it does and no other one was "
            "promoted; else remove it and run `stirbar leader standby` with a token of the leader"
        ) from None


def check_own_access(directory: pathlib.Path) -> None:
    """Raises StandingError on a standby, whose password and tokens are the leader's: others would not last."""
    standing = read_standing(directory)
    if standing.role == STANDBY:
        raise StandingError(f"{standing.refusal()}, and lets in whom that one lets in: {standing.remedy()}")


def change_standing(directory: pathlib.Path, change: Callable[[Standing], Standing]) -> Standing:
    """Change what is kept, from what is kept now. Raises StandingError."""
    with locked(directory / "standing.lock"):
        new = change(read_standing(directory))
        places = {name: place.values() if place else None for name, place in (("own", new.own), ("peer", new.peer))}
        write_private(directory / FILE, json.dumps({"role": new.role, "epoch": new.epoch, **places}, indent=1) + "\n")
    return new
