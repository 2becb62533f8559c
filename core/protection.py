"""What protects a vial where software cannot (IS-8): what the board's profile states, and what its user answered.

Without all of it a board is for attended use only. The answers are in `<data directory>/protection`, a line `key = yes`
each; they go before the profile, which speaks of all boards of its kind.

Synchronization: none; one thread at a time.
"""

from __future__ import annotations

import os

from stirbar.core.ini import write_atomically
from stirbar.core.profiles import ANSWERS, PROTECTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stirbar.core.profiles import Profile

YES, NO, UNKNOWN = ANSWERS
HEAT, PUMPS = "heat", "pumps"


class Item:
    """A protection: its key, for boards with what it is needed, what it is, and the question that asks for it."""

    __slots__ = ("key", "name", "needed_by", "question")

    def __init__(self, key: str, needed_by: tuple[str, ...], name: str, question: str) -> None:
        self.key = key
        self.needed_by = needed_by
        self.name = name
        self.question = question


ITEMS = (
    Item(
        "gate_pull_downs",
        (HEAT, PUMPS),
        "gate pull-downs",
        "Does a resistor pull the gate of each transistor of heater and pumps to ground when nothing drives it?",
    ),
    Item(
        "thermal_cut_out",
        (HEAT,),
        "thermal cut-out",
        "Has the heater a thermal cut-out, or does it at 100 % settle below the limit of the vial?",
    ),
    Item("efflux_tube", (PUMPS,), "efflux tube", "Is the waste tube's end at the highest fill that is allowed?"),
    Item("bund", (PUMPS,), "bund", "Does a tray under the vial hold all that the bottles can deliver?"),
    Item(
        "boot_levels",
        (HEAT, PUMPS),
        "pins low during boot",
        "Do heater and pumps stay off from power-on until the guard runs (watch them once)?",
    ),
)
LEVEL_SENSOR = "level_sensor"
NO_OVERFLOW = "overflow not detectable: neither a level sensor nor an efflux tube"


class ProtectionError(ValueError):
    """One sentence: what is wrong with an answer, and what to write."""


def _path(directory: str) -> str:
    return os.path.join(directory, "protection")


def read_answers(directory: str) -> dict[str, str]:
    """What was answered for this unit. Raises ProtectionError for a file that is not ours."""
    try:
        with open(_path(directory), encoding="utf-8") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return {}
    answers: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        try:
            key, answer = parse_answer(line)
        except ProtectionError as error:
            raise ProtectionError(f"{_path(directory)}:{number}: {error}; correct it, or remove the file") from None
        answers[key] = answer
    return answers


def parse_answer(text: str) -> tuple[str, str]:
    """`KEY=yes|no|unknown`. Raises ProtectionError."""
    key, _, answer = (word.strip() for word in text.partition("="))
    if key not in PROTECTIONS:
        raise ProtectionError(f"'{text}': there is no protection '{key}'; known are {', '.join(PROTECTIONS)}")
    if answer not in ANSWERS:
        raise ProtectionError(f"'{text}': write {key}=yes, {key}=no or {key}=unknown")
    return key, answer


def write_answers(directory: str, answers: dict[str, str]) -> None:
    """Keep these answers, and no others."""
    os.makedirs(directory, exist_ok=True)
    write_atomically(_path(directory), "".join(f"{key} = {answer}\n" for key, answer in sorted(answers.items())))


class Protection:
    """What is known of one unit.

    `state` maps each item that the board needs to yes, no or unknown, `missing` names those that are not yes,
    `overflow_detectable` is None for a board without pumps.
    """

    __slots__ = ("items", "missing", "overflow_detectable", "state")

    def __init__(self, profile: Profile, answers: dict[str, str]) -> None:
        pumps = any(profile.pwm(device) is not None for device in ("media", "alt_media", "waste"))
        has = {HEAT: profile.pwm("heating") is not None, PUMPS: pumps}

        def known(key: str) -> str:
            return answers.get(key) or str(profile.get("protection", key) or UNKNOWN)

        self.items = [item for item in ITEMS if any(has[need] for need in item.needed_by)]
        self.state = {item.key: known(item.key) for item in self.items}
        self.missing = [item.name for item in self.items if self.state[item.key] != YES]
        self.overflow_detectable = YES in (known("efflux_tube"), known(LEVEL_SENSOR)) if pumps else None

    def sentences(self) -> list[str]:
        """What a page has to say of it: nothing, where all is there."""
        said = [f"attended use only: {', '.join(self.missing)} missing or not known"] if self.missing else []
        return said + ([NO_OVERFLOW] if self.overflow_detectable is False else [])

    def as_dict(self) -> dict[str, object]:
        """As the worker's description has it."""
        return {
            "attended_only": bool(self.missing),
            "missing": list(self.missing),
            "overflow_detectable": self.overflow_detectable,
            "sentences": self.sentences(),
        }


def protection_of(profile: Profile, directory: str) -> tuple[Protection, str]:
    """What is known of a unit, and what is wrong with its answers, which then count for nothing."""
    try:
        return Protection(profile, read_answers(directory)), ""
    except (ProtectionError, OSError) as error:
        return Protection(profile, {}), str(error)
