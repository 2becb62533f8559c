"""What a key of the configuration is: its type, unit, bounds, default, help, and the rules of texts.

`stirbar.core.schema` names the keys themselves.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

Value = int | float | str | bool


class Key:
    """One key: `type` is int, float, bool, choice, or a name of TEXT_RULES.

    `low` and `high` (both inclusive) belong to numbers; `choices` are the texts of a choice, or the only values that a
    number may have. `also` holds texts that stand for another: (text, text to take instead, why), listed by
    `config check`.

    Synchronization: constant after import.
    """

    __slots__ = ("also", "choices", "default", "help", "high", "low", "name", "section", "type", "unit")

    def __init__(
        self,
        name: str,
        type: str,
        default: Value,
        help: str,
        unit: str = "",
        low: float = 0.0,
        high: float = 0.0,
        choices: tuple[str, ...] = (),
        also: tuple[tuple[str, str, str], ...] = (),
    ) -> None:
        self.section = ""
        self.name = name
        self.type = type
        self.default = default
        self.help = help
        self.unit = unit
        self.low = low
        self.high = high
        self.choices = choices
        self.also = also

    def is_number(self) -> bool:
        return self.type in ("int", "float")

    def allowed(self) -> str:
        """The permitted values in words."""
        if self.is_number() and self.choices:
            return f"{', '.join(self.choices[:-1])} or {self.choices[-1]} {self.unit}"
        if self.is_number():
            whole = "whole number, " if self.type == "int" else ""
            return f"{whole}{number(self.low)} to {number(self.high)} {self.unit}".rstrip()
        if self.type == "bool":
            return "0 or 1"
        if self.type == "choice":
            return ", ".join(choice or "empty" for choice in self.choices[:-1]) + f" or {self.choices[-1]}"
        return TEXT_RULES[self.type][0]


def number(value: float) -> str:
    """A number as a person writes it."""
    return f"{value:.10g}"


def format_value(value: Value) -> str:
    """A value as it is written in a file."""
    if isinstance(value, bool):
        return "1" if value else "0"
    return value if isinstance(value, str) else number(value)


def _any_text(text: str) -> bool:
    return True


def _is_label(text: str) -> bool:
    return 0 < len(text) <= 63 and not text.startswith("$") and not any(letter in "/+# \t" for letter in text)


def _is_unit_name(text: str) -> bool:
    """What is a level of a topic, a user of the broker and a file name at once."""
    plain = all(letter.isascii() and (letter.isalnum() or letter in "-_.") for letter in text)
    return 0 < len(text) <= 63 and plain and text[0].isalnum()


def _is_topic(text: str) -> bool:
    return all(_is_label(level) for level in text.split("/"))


def _is_host(text: str) -> bool:
    return len(text) <= 253 and all(letter.isalnum() or letter in ".-_:[]%" for letter in text)


def _is_address(text: str) -> bool:
    if text.startswith("ipc://"):
        return 6 < len(text.encode()) <= 6 + 97  # with /telemetry it must fit into the 107 bytes of a socket's path
    return text.startswith("tcp://") and ":" in text[6:] and text.rpartition(":")[2].isdigit()


def _is_cpu_list(text: str) -> bool:
    ranges = [part.strip().split("-") for part in text.split(",")]
    return all(
        len(ends) <= 2 and all(end.isascii() and end.isdigit() for end in ends) and int(ends[0]) <= int(ends[-1])
        for ends in ranges
    )


def _is_numbers(text: str) -> bool:
    return all(part.strip().replace(".", "", 1).isdecimal() for part in text.split(","))


def _is_channels(text: str) -> bool:
    return all(part.strip() in ("A", "B", "C", "D") for part in text.split(","))


def _is_plugins(text: str) -> bool:
    pairs = [part.strip().partition("==") for part in text.split(",")]
    return text == "none" or all(_is_label(name) and _is_label(version) for name, _, version in pairs)


# type: (what is permitted, in words; the test of a text that is not empty)
TEXT_RULES: dict[str, tuple[str, Callable[[str], bool]]] = {
    "text": ("text", _any_text),
    "path": ("a path, ~ is the home directory", _any_text),
    "unit": ("at most 63 letters, digits, - _ and ., beginning with a letter or digit", _is_unit_name),
    "topic": ("an MQTT topic without wildcards, not beginning or ending with /", _is_topic),
    "host": ("a host name or an IP address", _is_host),
    "address": ("ipc:///path of at most 97 characters, or tcp://host:port", _is_address),
    "numbers": ("numbers as in 0.2, 0.01", _is_numbers),
    "channels": ("LED channels as in B, C", _is_channels),
    "version": ("a version as in 1.2.3", _is_label),
    "plugins": ("plug-ins as in growth==1.2, turbidostat==0.3, or none", _is_plugins),
    "cpus": ("CPU numbers as in 3 or 0,2-3", _is_cpu_list),
}


def integer_key(
    name: str, default: int, unit: str, low: int, high: int, help: str, choices: tuple[str, ...] = ()
) -> Key:
    """A whole number."""
    return Key(name, "int", default, help, unit, low, high, choices)


def real_key(
    name: str, default: float, unit: str, low: float, high: float, help: str, choices: tuple[str, ...] = ()
) -> Key:
    """A number."""
    return Key(name, "float", default, help, unit, low, high, choices)


def switch_key(name: str, default: bool, help: str) -> Key:
    """0 or 1."""
    return Key(name, "bool", default, help)


def text_key(name: str, type: str, default: str, help: str) -> Key:
    """A text of a kind of TEXT_RULES."""
    return Key(name, type, default, help)


def choice_key(name: str, default: str, choices: tuple[str, ...], help: str) -> Key:
    """One of some texts."""
    return Key(name, "choice", default, help, choices=choices)
