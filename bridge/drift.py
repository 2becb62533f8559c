"""What a unit says that it is, checked; and where it differs from what it should be, each with what to do."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Entry = dict[str, str]

SHOWN = 3  # of the problems of a text that was refused
TEXT_LENGTH, LIST_LENGTH = 500, 100  # what is taken of what a unit says
REPORT: dict[str, type | tuple[type, ...]] = {
    "version": int, "epoch": int, "digest": str, "active": bool, "refused": (dict, type(None)), "restart_needed": bool,
    "stirbar": str, "host": str,
}  # fmt: skip


def parse_report(document: dict[str, Any]) -> dict[str, Any]:
    """A unit's report without what is not ours. Raises ValueError for one that is none."""
    found: dict[str, Any] = {}
    for name, kinds in REPORT.items():
        value = document.get(name)
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise ValueError(f"report whose '{name}' is {str(value)[:50]!r}")
        found[name] = value[:TEXT_LENGTH] if isinstance(value, str) else value
    refused = found["refused"]
    if refused is not None:
        problems = refused.get("problems")
        if not isinstance(refused.get("version"), int) or not isinstance(problems, list):
            raise ValueError("report of a refusal without version or problems")
        found["refused"] = {"version": refused["version"], "problems": _texts(problems)}
    return found


def facts_of(describe: dict[str, Any]) -> dict[str, Any]:
    """What a unit's description says of what it runs; None for what it does not say."""
    facts: dict[str, Any] = {}
    for name in ("version", "build_id", "board"):
        value = describe.get(name)
        facts[name] = value[:TEXT_LENGTH] if isinstance(value, str) else None
    plugins = describe.get("plugins")
    return {**facts, "plugins": _texts(plugins) if isinstance(plugins, list) else None}


def _texts(values: list[Any]) -> list[str]:
    return [str(value)[:TEXT_LENGTH] for value in values[:LIST_LENGTH]]


def drift_of(report: dict[str, Any], should: dict[str, Any], is_ahead: bool) -> list[Entry]:
    """`{what, text, remedy}` for each of active, config, restart, version and plugins that is not as it should be.

    A unit out of use has no other difference than that it does not know it.
    """
    applied = report["applied"]
    if not applied:
        if not should["version"] and should["active"]:
            return []
        text = "it does not say which configuration it has: it was not heard of yet, or runs an older stirbar"
        return [
            _entry("config", text, f"it is told when its bridge connects; `stirbar cluster bootstrap {_host(report)}`")
        ]
    found = []
    if applied.get("active") != should["active"]:
        use = "in use" if should["active"] else "out of use"
        found.append(_entry("active", f"it does not know yet that it is {use}", _when(report)))
    if not should["active"]:
        return found
    return found + _of_config(report, should, is_ahead) + _of_software(report, should)


def _of_config(report: dict[str, Any], should: dict[str, Any], is_ahead: bool) -> list[Entry]:
    applied, name = report["applied"], report["unit"]
    refused = applied.get("refused")
    if refused:
        problems = refused["problems"]
        more = f" (and {len(problems) - SHOWN} more)" if len(problems) > SHOWN else ""
        text = f"it refuses version {refused['version']}: {'; '.join(problems[:SHOWN])}{more}"
        return [_entry("config", text, "correct it: `stirbar cluster config edit`, or the files of the unit")]
    found = []
    if applied.get("digest") != should["digest"]:
        text = f"it has version {applied.get('version')} of the configuration, and {should['version']} is the newest"
        remedy = f"`stirbar cluster repair {name}` numbers ours above it" if is_ahead else _when(report)
        if not should["version"]:
            text = f"it has version {applied.get('version')} of a configuration that is not known here"
            remedy = "it keeps that until something is saved here: `stirbar cluster config push FILE`"
        found.append(_entry("config", text, remedy))
    if applied.get("restart_needed"):
        text = "its worker runs by the configuration that it had before"
        found.append(_entry("restart", text, f"`stirbar cluster repair {name} --restart` lets it begin anew"))
    return found


def _of_software(report: dict[str, Any], should: dict[str, Any]) -> list[Entry]:
    about = report["facts"]
    remedy = f"`stirbar cluster bootstrap {_host(report)}`"
    found = []
    version = about["version"] or report["applied"].get("stirbar")
    if should["stirbar_version"] and version != should["stirbar_version"]:
        text = f"it runs stirbar {version}, and {should['stirbar_version']} is wanted"
        found.append(_entry("version", text, remedy))
    has = about["plugins"]
    if should["plugins"] is not None and has != should["plugins"]:
        text = f"it has the plug-ins {_listed(has)}, and {_listed(should['plugins'])} are wanted"
        found.append(_entry("plugins", text, remedy))
    return found


def describe_drift(drift: list[Entry]) -> str:
    """All of it in one line; empty where there is none."""
    return "; ".join(f"{one['text']} ({one['remedy']})" for one in drift)


def _entry(what: str, text: str, remedy: str) -> Entry:
    return {"what": what, "text": text, "remedy": remedy}


def _when(report: dict[str, Any]) -> str:
    return "it is told now" if report["state"] == "online" else f"it is {report['state']}, and told when it is back"


def _host(report: dict[str, Any]) -> str:
    """What the machine is called on its network."""
    host = str(report["applied"].get("host") or report["unit"])
    return host if "." in host else f"{host}.local"


def _listed(plugins: list[str] | None) -> str:
    return ", ".join(plugins) if plugins else "none" if plugins is not None else "that it does not name"
