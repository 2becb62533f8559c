"""What the leader distributes, and whether the units are as they should be (docs/desired-state.md)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from bottle import Bottle, HTTPResponse
from stirbar.bridge.config_history import EVERY_UNIT, Changed, Refused, Version, check, difference, unit_ids
from stirbar.bridge.desired_state import number_above
from stirbar.bridge.store import StoreError
from stirbar.web.routes import TEXT, Kinds, body_fields, caller_at, guarded, number, number_of, takes, text_of
from stirbar.web.tokens import ADMIN
from stirbar.web.wire import answer, refuse

if TYPE_CHECKING:
    from stirbar.bridge.desired_state import DesiredState
    from stirbar.web.app import Site

LAST_VERSION = 2**53 - 1
VERSIONS, MAXIMUM_VERSIONS = 50, 1000
SETTLE_S = 1.5  # for the answers of units that are there
LOOK_S = 0.05
CHECKED: dict[str, Kinds] = {"unit": str, "text": str}
SAVED: dict[str, Kinds] = {**CHECKED, "version": int}
RESTORED: dict[str, Kinds] = {"unit": str, "version": int, "expected": int}
REPAIRED: dict[str, Kinds] = {"unit": str, "restart": bool, "dry_run": bool}
VERSION = number(0, LAST_VERSION)


def add_routes(app: Bottle, site: Site) -> None:
    """Put the routes onto an application."""
    for method, path, function in (
        ("GET", "/api/config", config_text),
        ("PUT", "/api/config", save_config),
        ("POST", "/api/config/check", check_config),
        ("GET", "/api/config/history", config_history),
        ("GET", "/api/config/diff", config_diff),
        ("POST", "/api/config/restore", restore_config),
        ("GET", "/api/cluster/state", cluster_state),
        ("POST", "/api/cluster/repair", repair_units),
    ):
        app.route(path, method, guarded(site, function))


def _desired(site: Site) -> DesiredState:
    if site.desired is None:
        refuse(503, "this leader distributes nothing yet", remedy="try again in a few seconds", Retry_After="3")
    return site.desired


def _unit_id(site: Site, name: str | None) -> bytes:
    if not name:
        return EVERY_UNIT
    assert site.config is not None
    found = unit_ids(site.config, _desired(site).history).get(name)
    if found is None:
        refuse(404, f"there is no unit '{name[:100]}' in this cluster", "unit", "GET /api/cluster/state names them")
    return found


def _whole(name: str, default: int) -> int:
    return int(number_of(name, default, 0, LAST_VERSION))


def _version(site: Site, unit_id: bytes, wanted: int) -> Version:
    try:
        return _desired(site).history.version(unit_id, wanted)
    except StoreError as error:
        refuse(404, str(error), "version", "GET /api/config/history lists them")


def _shown(version: Version, name: str) -> HTTPResponse:
    result = answer({**version.as_dict(), "unit": name, "text": version.text})
    result.set_header("ETag", f'"{version.number}"')
    return result


@takes(query={"unit": TEXT, "version": VERSION})
def config_text(site: Site) -> HTTPResponse:
    """The text that is distributed to all units, or to one; an earlier version of it."""
    name = text_of("unit")
    unit_id = _unit_id(site, name)
    head = _desired(site).history.head(unit_id)
    wanted = _whole("version", head.number)
    return _shown(head if wanted == head.number else _version(site, unit_id, wanted), name)


@takes(body=CHECKED, required=("text",))
def check_config(site: Site) -> HTTPResponse:
    """What would be wrong with a text, each problem with line, key and what is allowed; nothing is saved."""
    fields = body_fields(CHECKED)
    unit_id = _unit_id(site, fields.get("unit"))
    problems, warnings = check(_text(fields), unit_id, _desired(site).history.heads())
    return answer({"problems": problems, "warnings": warnings})


def _text(fields: dict[str, Any]) -> str:
    text = fields.get("text")
    if not isinstance(text, str):
        refuse(400, "'text' is missing", "text", "send the whole text of the configuration")
    return text.replace("\r\n", "\n")


@takes(scope=ADMIN, body=SAVED, required=("text", "version"))
def save_config(site: Site) -> HTTPResponse:
    """Save a text that was made from a version, and distribute it; 409 when another one is the newest by now."""
    fields = body_fields(SAVED)
    text = _text(fields)
    if "version" not in fields:
        refuse(400, "'version' is missing", "version", "send the number of the version that the text was made from")
    return _saved(site, fields.get("unit") or "", text, fields["version"])


def _saved(site: Site, name: str, text: str, expected: int) -> HTTPResponse:
    state = _desired(site)
    try:
        version = state.history.save(_unit_id(site, name), text, caller_at(), expected, number_above(state.state()))
    except Refused as error:
        refuse(422, str(error), "text", "nothing was saved: correct it")
    except Changed as error:
        refuse(409, str(error), "version", "nothing was saved: GET /api/config has theirs; put yours on it")
    state.reload()
    return _shown(version, name)


@takes(query={"unit": TEXT, "limit": number(1, MAXIMUM_VERSIONS, VERSIONS)})
def config_history(site: Site) -> HTTPResponse:
    """The versions of the text for all units, or for one, newest first."""
    limit = int(number_of("limit", VERSIONS, 1, MAXIMUM_VERSIONS))
    unit_id = _unit_id(site, text_of("unit"))
    return answer([version.as_dict() for version in _desired(site).history.versions(unit_id, limit)])


@takes(query={"unit": TEXT, "from": VERSION, "to": VERSION})
def config_diff(site: Site) -> HTTPResponse:
    """What changed between two versions, as `diff -u` shows it; by default the last two."""
    unit_id = _unit_id(site, text_of("unit"))
    last = [version.number for version in _desired(site).history.versions(unit_id, 2)] + [0, 0]
    old, new = (_version(site, unit_id, _whole(name, last[at])) for name, at in (("from", 1), ("to", 0)))
    return answer({"from": old.number, "to": new.number, "diff": difference(old, new)})


@takes(scope=ADMIN, body=RESTORED, required=("version", "expected"))
def restore_config(site: Site) -> HTTPResponse:
    """Make an earlier version the newest again, and distribute it."""
    fields = body_fields(RESTORED)
    for name in ("version", "expected"):
        if not 0 <= fields.get(name, -1) <= LAST_VERSION:
            refuse(400, f"'{name}' is no version", name, "GET /api/config/history lists them")
    name = fields.get("unit") or ""
    return _saved(site, name, _version(site, _unit_id(site, name), fields["version"]).text, fields["expected"])


@takes(query={"unit": TEXT})
def cluster_state(site: Site) -> HTTPResponse:
    """Every unit, or one: what it should be, what it is, and where the two differ."""
    name = text_of("unit")
    found = [one for one in _desired(site).state() if name in ("", one["unit"], one["unit_id"])]
    if name and not found:
        refuse(404, f"there is no unit '{name[:100]}' in this cluster", "unit", "leave it out to see all")
    return answer(found)


@takes(scope=ADMIN, body=REPAIRED)
def repair_units(site: Site) -> HTTPResponse:
    """Tell a unit, or all, once more what it should be; with `restart` let workers that need it begin anew."""
    fields = body_fields(REPAIRED)
    state = _desired(site)
    wanted = fields.get("unit") or ""
    found = [one for one in state.state() if wanted in ("", one["unit"], one["unit_id"])]
    if wanted and not found:
        refuse(404, f"there is no unit '{wanted[:100]}' in this cluster", "unit", "leave it out to repair all")
    ids = {one["unit_id"] for one in found}
    restarted: dict[str, str] = {}
    if not fields.get("dry_run"):
        if any(one["is_ahead"] for one in found):
            state.overtake(caller_at())
        if fields.get("restart"):
            for one in found:
                if one["restart_needed"] and one["state"] == "online":
                    restarted[one["unit"]] = state.restart(bytes.fromhex(one["unit_id"])) or "restarted"
        state.tell_again(ids)
        end = time.monotonic() + SETTLE_S
        while time.monotonic() < end and any(one["drift"] for one in state.state() if one["unit_id"] in ids):
            time.sleep(LOOK_S)
    left = [one for one in state.state() if one["unit_id"] in ids]
    return answer({"units": left, "restarted": restarted})
