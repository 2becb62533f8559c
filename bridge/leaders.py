"""Where a unit may find its leader: the address of its configuration, and those that the leader has told it since.

A leader tells of its standby, so that units know where to look when it is gone. What was told is kept beside the
unit's certificate; whoever answers there has to show a broker's certificate of the same authority.

Synchronization: one thread.
"""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stirbar.bridge.log import Log

    Place = tuple[str, int]  # host and port of a broker

FILE = "leaders.json"
MARK = "other_authority"  # left by `stirbar cluster join` where the unit was in another cluster before
PLACES_MAXIMUM = 8
HOST_LENGTH = 253  # of a name in the DNS


class Leaders:
    """`places` in the order in which they are tried. `path` is the file of what was told; "": nothing is learned."""

    def __init__(self, first: Place, path: str, log: Log) -> None:
        self.places: list[Place] = [first]
        self._first = first
        self._path = path
        self._log = log
        self._told: list[list[object]] = []
        if path:
            self._read()

    def came_from_another_cluster(self) -> bool:
        """Whether this unit has changed its cluster since the last start."""
        try:
            os.unlink(os.path.join(os.path.dirname(self._path), MARK))
        except OSError:
            return False
        return True

    def learn(self, told: object) -> None:
        """Take in what a leader says: `[[host, port of its broker, port of its page], …]`. Raises ValueError."""
        places = parse_leaders(told)
        if not self._path or told == self._told:
            return
        self._take(told, places)
        try:
            with open(self._path + ".new", "w", opener=_private) as file:
                json.dump(told, file)
            os.replace(self._path + ".new", self._path)
        except OSError as error:
            self._log("warning", f"{self._path} is not written ({error.strerror}): a restart forgets it", "leaders")
        self._log("info", f"leaders: {', '.join(f'{host}:{port}' for host, port in self.places)}", "told")

    def prefer(self, place: Place) -> None:
        """The leader was found there."""
        if place in self.places:
            self.places.remove(place)
            self.places.insert(0, place)

    def avoid(self, place: Place) -> None:
        """Who is there does not lead."""
        if place in self.places:
            self.places.remove(place)
            self.places.append(place)

    def _take(self, told: object, places: list[Place]) -> None:
        kept = [place for place in self.places if place in places or place == self._first]
        self.places = list(dict.fromkeys([*kept, *places]))
        self._told = told if isinstance(told, list) else []

    def _read(self) -> None:
        try:
            with open(self._path) as file:
                told = json.load(file)
            self._take(told, parse_leaders(told))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            self._log("warning", f"{self._path} is not readable ({error}); the leader tells it again", "leaders")


def parse_leaders(told: object) -> list[Place]:
    """The brokers of a list of leaders; ValueError for anything else."""
    if not isinstance(told, list) or len(told) > PLACES_MAXIMUM:
        raise ValueError(f"leaders are a list of at most {PLACES_MAXIMUM}")
    found: list[Place] = []
    for one in told:
        if not isinstance(one, list) or len(one) != 3 or not isinstance(one[0], str):
            raise ValueError("a leader is a host and two ports")
        host, *ports = one
        good = [isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65536 for port in ports]
        if not 0 < len(host) <= HOST_LENGTH or not all(good):
            raise ValueError("a leader is a host and two ports")
        found.append((host, ports[0]))
    return found


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
