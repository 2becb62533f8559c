"""The commands of a worker that the HTTP API passes on, and what their fields may be."""

from __future__ import annotations

from typing import Any

# what a worker knows (docs/protocol.md), with the fields that each takes
COMMANDS: dict[str, tuple[str, ...]] = {
    "describe": (),
    "status": (),
    "settings": ("job",),
    "start": ("job",),
    "stop": ("job",),
    "set": ("job", "setting", "value"),
    "blank": ("channel", "seconds", "value", "clear"),
    "led": ("channels", "source_of_event"),
    "identify": (),
    "simulate": ("set",),
    "raw": ("seconds",),
    "dose": ("pump", "ml", "seconds", "source"),
    "exchange": ("media_ml", "alt_media_ml", "waste_ml", "source"),
    "dose_stop": ("finish",),
    "dose_result": ("dose",),
}

# what changes nothing on the unit
LOOKS = ("describe", "status", "settings", "dose_result")

FIELDS: dict[str, type | tuple[type, ...]] = {
    "command": str,
    "id": (str, int, float),
    "job": str,
    "setting": str,
    "value": (int, float, str, bool, type(None)),
    "channel": int,
    "seconds": (int, float),
    "clear": bool,
    "set": dict,
    "pump": str,
    "source": str,
    "finish": bool,
    **dict.fromkeys(("ml", "media_ml", "alt_media_ml", "waste_ml", "dose"), (int, float)),
    "channels": dict,
    "source_of_event": str,
}


def with_source(fields: dict[str, Any], name: str) -> dict[str, Any]:
    """A command with who asked for it, where it has a field for that; what the caller said of itself comes behind the
    name, which it cannot choose."""
    for field in ("source", "source_of_event"):
        if field in COMMANDS[fields["command"]]:
            said = fields.get(field)
            return {**fields, field: f"{name}: {said}" if said else name}
    return fields


def only_looks(fields: dict[str, Any]) -> bool:
    """Whether a command changes nothing."""
    return fields["command"] in LOOKS or (fields["command"] == "led" and "channels" not in fields)
