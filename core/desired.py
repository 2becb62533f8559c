"""What the leader wants of this unit: two texts of configuration, and whether the unit is in use.

The bridge keeps it in one file below the data directory, so that a power cut leaves the whole of this or of the one
before. `load_config` puts the texts above the files of the machine; what makes the machine this unit of this leader is
the machine's own, and no text of a leader may hold it.

Synchronization: none; one thread of one process writes, others read whole files.
"""

from __future__ import annotations

import json
import os

from stirbar.core.ini import IniFile, write_atomically

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SHARED, UNIT = "config", "unit_config"  # the two texts: for every unit, and for this one alone
NAMES = {SHARED: "leader's config.ini", UNIT: "leader's unit_config.ini"}  # as sources of values and in refusals
PREVIOUS = ".previous"
TEXT_BYTES = 48_000  # of one text; a request to the leader's page holds 64 kB

# What a leader distributes holds none of these: (section, keys or all but these keys, why)
OWN_SECTIONS = {
    "cluster.topology": "where its leader is belongs to each machine",
    "cluster.inventory": "the leader tells each unit whether it is in use: `stirbar cluster activate` and `deactivate`",
    "leader.config": "what the leader itself does is in the files of its machine",
    "web.config": "what the leader itself does is in the files of its machine",
    "mqtt": "how a machine reaches its leader is its own",
}
SHARED_OF_MQTT = ("dialect_readings_per_second",)
OWN_KEYS = {
    ("unit", "name"): "a unit's name is its own: `stirbar cluster rename`",
    ("unit", "data_directory"): "where a machine keeps its files is its own",
    ("unit", "runtime_directory"): "where a machine keeps its sockets is its own",
    ("unit", "simulate"): "whether a machine drives a board or simulates one is its own",
    ("worker.config", "address"): "worker and bridge of a machine meet there",
    ("bridge.config", "spool_directory"): "what waits there would be left behind",
}
PROGRAMS = "_command"  # how a key ends whose value is run: a unit takes texts from its leader, and no program
SECRET_WORDS = ("password", "passphrase", "secret", "token", "psk")


def fingerprint(text: str) -> str:
    """16 hex digits that change with the text (64-bit FNV-1a)."""
    state = 0xCBF29CE484222325
    for byte in text.encode():
        state = (state ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{state:016x}"


class Desired:
    """A version of it. Synchronization: immutable by convention."""

    __slots__ = ("active", "epoch", "texts", "version")

    def __init__(self, version: int, epoch: int, active: bool, texts: dict[str, str]) -> None:
        self.version = version
        self.epoch = epoch
        self.active = active
        self.texts = texts

    def files(self) -> list[IniFile]:
        """The texts as layers, the lower one first; empty ones are left out."""
        return [IniFile(self.texts[kind], NAMES[kind]) for kind in (SHARED, UNIT) if self.texts[kind].strip()]

    def digest(self) -> str:
        """Changes with any key or value that the texts give, and with no comment; "" when they give none."""
        values = {(item.section, item.key): item.value for file in self.files() for item in file.items}
        return fingerprint("\n".join(sorted(map(repr, values.items())))) if values else ""

    def as_dict(self) -> dict[str, Any]:
        """As it is sent and kept."""
        return {"version": self.version, "epoch": self.epoch, "active": self.active, **self.texts}


NOTHING = Desired(0, 0, True, {SHARED: "", UNIT: ""})


def parse(document: object) -> Desired:
    """The opposite of `as_dict`. Raises ValueError for what is none."""
    if not isinstance(document, dict):
        raise ValueError("a desired state is one JSON object")
    version, epoch, active = (document.get(name) for name in ("version", "epoch", "active"))
    texts = {kind: document.get(kind) for kind in (SHARED, UNIT)}
    for name, number in (("version", version), ("epoch", epoch)):
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 53:
            raise ValueError(f"a desired state needs a whole number as its {name}")
    if not isinstance(active, bool):
        raise ValueError("a desired state says by true or false whether the unit is active")
    for kind, text in texts.items():
        if not isinstance(text, str) or len(text.encode()) > TEXT_BYTES:
            raise ValueError(f"the desired state's {kind} is no text of at most {TEXT_BYTES} bytes")
    return Desired(version, epoch, active, texts)  # type: ignore[arg-type]


def read(path: str) -> Desired:
    """What is kept in a file; where that is damaged, what was there before; NOTHING where there is none."""
    for name in (path, path + PREVIOUS):
        try:
            with open(name, encoding="utf-8", newline="") as file:
                return parse(json.load(file))
        except (OSError, ValueError, RecursionError):
            continue
    return NOTHING


def keep(path: str, desired: Desired) -> None:
    """Put a version in the place of the one before, which stays beside it. Raises OSError, with nothing changed."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    try:
        with open(path, encoding="utf-8", newline="") as file:
            before = file.read()
        parse(json.loads(before))
    except (OSError, ValueError, RecursionError):
        before = ""
    if before:
        write_atomically(path + PREVIOUS, before)
    write_atomically(path, json.dumps(desired.as_dict()))


def forget(path: str) -> None:
    """Take away what is kept, of this leader or of one before."""
    for name in (path, path + PREVIOUS):
        try:
            os.unlink(name)
        except FileNotFoundError:
            continue


def objections(files: list[IniFile]) -> list[str]:
    """What a leader may not distribute, one sentence each; no value is shown, it may be a secret."""
    found = []
    for file in files:
        for item in file.items:
            why = OWN_KEYS.get((item.section, item.key)) or OWN_SECTIONS.get(item.section)
            if item.section == "mqtt" and item.key in SHARED_OF_MQTT:
                why = None
            elif item.value and any(word in item.key.lower() for word in SECRET_WORDS):
                why = "secrets are never distributed"
            elif item.key.endswith(PROGRAMS):
                why = "which programs a machine runs is its own"
            if why:
                found.append(f"{file.name}:{item.line}: [{item.section}] {item.key} may not be distributed: {why}")
    return found
