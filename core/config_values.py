"""From the text of a value to the value: numbers with or without a unit, switches, choices; and the nearest name."""

from __future__ import annotations

from stirbar.core import schema_keys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

TRUE = ("1", "true", "yes", "on")
FALSE = ("0", "false", "no", "off")
# unit: (what it measures, how many base units it is)
SCALES: dict[str, tuple[str, float]] = {
    "us": ("time", 1e-6),
    "µs": ("time", 1e-6),
    "ms": ("time", 1e-3),
    "s": ("time", 1.0),
    "min": ("time", 60.0),
    "h": ("time", 3600.0),
    "mHz": ("frequency", 1e-3),
    "Hz": ("frequency", 1.0),
    "kHz": ("frequency", 1e3),
    "uV": ("voltage", 1e-6),
    "mV": ("voltage", 1e-3),
    "V": ("voltage", 1.0),
    "kB": ("size", 1e3),
    "MB": ("size", 1e6),
    "GB": ("size", 1e9),
}


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the name most alike, or nothing."""
    import difflib

    folded = {name.lower(): name for name in known}
    match = difflib.get_close_matches(word.lower(), folded, 1, 0.5)
    return f"; did you mean '{folded[match[0]]}'?" if match else ""


def _parse_bool(key: schema_keys.Key, text: str) -> bool:
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise ValueError("is neither on nor off; write 1 or 0 (or true/false, yes/no, on/off)")


def _parse_choice(key: schema_keys.Key, text: str) -> str:
    value = _to_float(text)  # 50.0 is 50
    if value is not None and schema_keys.number(value) in key.choices:
        return schema_keys.number(value)
    raise ValueError(f"is not known; write {key.allowed()}{nearest(text, key.choices)}")


def _to_float(text: str) -> float | None:
    if "_" in text:
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _split_unit(text: str) -> tuple[str, str]:
    """`500 rpm` -> ("500", "rpm")."""
    for end in range(len(text), 0, -1):
        if _to_float(text[:end]) is not None:
            return text[:end].strip(), text[end:].strip()
    return "", text


def _wrong_unit(key: schema_keys.Key, value: float, unit: str) -> str:
    """What to say, and if possible the value to write, when a number came in another unit."""
    if not key.unit:
        return f"has the unit '{unit}', and this key has none; write the number alone"
    kind, scale = SCALES.get(unit, ("", 1.0))
    own_kind, own_scale = SCALES.get(key.unit, ("none", 1.0))
    remedy = f"write {key.allowed()}"
    if kind == own_kind:
        remedy = f"write {schema_keys.number(value * scale / own_scale)} {key.unit}"
    return f"is in '{unit}', and this key is in {key.unit}; {remedy}"


def _parse_number(key: schema_keys.Key, text: str) -> int | float:
    value, unit = _to_float(text), ""
    if value is None and key.unit and text.endswith(key.unit):
        value = _to_float(text.removesuffix(key.unit))
    if value is None:
        digits, unit = _split_unit(text)
        value = _to_float(digits)
    if value is None or value - value != 0.0:  # no number, an infinity or NaN
        raise ValueError(f"is not a number; write {key.allowed()}")
    if unit:
        raise ValueError(_wrong_unit(key, value, unit))
    if key.type == "int" and value != int(value):
        raise ValueError(f"is not a whole number; write {key.allowed()}")
    if value < key.low:
        raise ValueError(f"is below the lowest allowed; write {key.allowed()}")
    if value > key.high:
        raise ValueError(f"is above the highest allowed; write {key.allowed()}")
    if key.choices and schema_keys.number(value) not in key.choices:
        raise ValueError(f"is not one that the hardware has; write {key.allowed()}")
    return int(value) if key.type == "int" else value


def parse_value(key: schema_keys.Key, text: str) -> schema_keys.Value:
    """The typed value of a text. An empty text means the default, except where empty is a choice.

    Raises ValueError with what is wrong and what to write, to be put behind `key = text`.
    """
    if key.type == "choice" and text in key.choices:
        return text
    if not text:
        return key.default
    if key.type == "choice":
        return _parse_choice(key, text)
    if key.type == "bool":
        return _parse_bool(key, text)
    if key.type in ("int", "float"):
        return _parse_number(key, text)
    allowed, is_allowed = schema_keys.TEXT_RULES[key.type]
    if not is_allowed(text):
        raise ValueError(f"is not allowed; write {allowed}")
    return text
