"""The units as computers, and as members of experiments: docs/nodes.md, routes in docs/http-api.md."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from bottle import Bottle, HTTPResponse, response
from stirbar.bridge.machine import JOURNAL, JOURNAL_LINES, JOURNAL_LINES_MAXIMUM, POWER
from stirbar.web.api import (
    COMMAND_TIMEOUT_S,
    DEFAULT_POINTS,
    LAST_TIME_S,
    LONGEST_BLANK_S,
    MAXIMUM_POINTS,
    checked_command,
    find_experiment,
    find_unit,
    units_now,
)
from stirbar.web.results import results
from stirbar.web.routes import (
    TEXT,
    Kinds,
    body_fields,
    caller_name,
    guarded,
    note,
    number,
    number_of,
    takes,
    text_of,
)
from stirbar.web.together import ONLINE, ask_all, reply_of, take_over
from stirbar.web.tokens import ADMIN, CONTROL
from stirbar.web.wire import answer, lines_to_json, refuse
from stirbar.web.worker_commands import COMMANDS, FIELDS, with_source

if TYPE_CHECKING:
    from stirbar.web.app import Site

MACHINE_TIMEOUT_S = 15.0  # the bridge ends its program after ten
MAXIMUM_HISTORY = 10_000
DAY_S = 86400.0
POWER_FIELDS: dict[str, Kinds] = {"action": str, "force": bool}


def add_routes(app: Bottle, site: Site) -> None:
    """Put what is about nodes onto an application."""
    routes: tuple[tuple[str, str, Callable[..., Any]], ...] = (
        ("GET", "/api/assignments", assignments),
        ("PUT", "/api/units/<unit>/tags", set_tags),
        ("GET", "/api/units/<unit>/vitals", vitals),
        ("POST", "/api/units/<unit>/power", power),
        ("GET", "/api/units/<unit>/journal", journal),
        ("PUT", "/api/experiments/<experiment>/units/<unit>/label", set_label),
        ("POST", "/api/experiments/<experiment>/command", command_all),
        ("POST", "/api/experiments/<experiment>/replace", replace),
        ("GET", "/api/experiments/<experiment>/results.zip", download_results),
    )
    for method, path, function in routes:
        app.route(path, method, guarded(site, function))


def _id_of(site: Site, unit: str) -> bytes:
    """The id of a unit that the store knows as well."""
    entry = find_unit(site, unit)
    unit_id = bytes.fromhex(entry["unit_id"])
    if "first_seen" not in entry:
        site.store.upsert_unit(unit_id, entry["unit"], entry.get("describe") or {})  # it has reported just now
    return unit_id


@takes(query={"unit": TEXT, "experiment": TEXT, "limit": number(1, MAXIMUM_HISTORY, 1000)})
def assignments(site: Site) -> HTTPResponse:
    """Which unit was in which experiment and when, newest first."""
    unit, experiment = text_of("unit"), text_of("experiment")
    limit = int(number_of("limit", 1000, 1, MAXIMUM_HISTORY))
    if experiment:
        find_experiment(site, experiment)
    found = site.store.assignment_history(_id_of(site, unit) if unit else None, experiment or None, limit)
    return answer([{**one, "unit_id": one["unit_id"].hex()} for one in found])


@takes(body={"tags": list}, required=("tags",))
def set_tags(site: Site, unit: str) -> HTTPResponse:
    """The words by which a unit is chosen, all of them."""
    tags = body_fields({"tags": list}).get("tags")
    if tags is None or not all(isinstance(tag, str) for tag in tags):
        refuse(400, "'tags' is no list of words", "tags", 'send {"tags": ["rack-3", "spare"]}')
    return answer({"unit": unit, "tags": site.store.set_tags(_id_of(site, unit), tags)})


@takes(body={"label": str}, required=("label",))
def set_label(site: Site, experiment: str, unit: str) -> HTTPResponse:
    """What people call a unit within an experiment; an empty label takes it away."""
    label = body_fields({"label": str}).get("label")
    if label is None:
        refuse(400, "'label' is missing", "label", 'send {"label": "left fermenter"}; "" takes it away')
    find_experiment(site, experiment)
    kept = site.store.set_label(_id_of(site, unit), experiment, label)
    return answer({"unit": unit, "experiment": experiment, "label": kept or None})


@takes(
    query={
        **dict.fromkeys(("from", "to"), number(0.0, LAST_TIME_S)),
        "points": number(1, MAXIMUM_POINTS, DEFAULT_POINTS),
    }
)
def vitals(site: Site, unit: str) -> HTTPResponse:
    """How a unit's computer was: binned figures for a chart."""
    end = number_of("to", time.time(), 0.0, LAST_TIME_S)
    start = number_of("from", max(0.0, end - DAY_S), 0.0, LAST_TIME_S)
    points = int(number_of("points", DEFAULT_POINTS, 1, MAXIMUM_POINTS))
    if start >= end:
        refuse(400, f"'from' ({start:g}) is not before 'to' ({end:g})", "from", "give Unix seconds, the earlier first")
    lines = site.store.vitals(bytes.fromhex(find_unit(site, unit)["unit_id"]), start, end, points)
    return HTTPResponse(body=f'{{"vitals":{lines_to_json(lines)}}}', **{"Content-Type": "application/json"})


@takes(scope=ADMIN, body=POWER_FIELDS, required=("action",), choices={"action": POWER})
def power(site: Site, unit: str) -> HTTPResponse:
    """Start a unit's computer anew, or switch it off; not while its pumps run or it tests itself, unless forced."""
    fields = body_fields(POWER_FIELDS)
    action = fields.get("action")
    if action not in POWER:
        refuse(400, f"there is no action '{str(action)[:50]}'", "action", f"known are: {', '.join(POWER)}")
    entry = find_unit(site, unit)
    # whether its worker answers or not: a unit whose worker hangs is the one that has to be started anew
    entry = {**entry, "state": ONLINE}
    request = {"command": action, "force": fields.get("force", False)}
    reply = reply_of(site, entry, request, MACHINE_TIMEOUT_S)
    if not reply.get("ok"):
        note(result=f"refused by the unit: {(reply.get('error') or {}).get('message')}")
    else:
        text = f"{action} asked for by {caller_name()}"
        site.store.add_event(bytes.fromhex(entry["unit_id"]), "notice", "leader", f"unit_{action}", text)
    return answer(reply)


@takes(scope=CONTROL, query={"lines": number(1, JOURNAL_LINES_MAXIMUM, JOURNAL_LINES)})
def journal(site: Site, unit: str) -> HTTPResponse:
    """The last lines of a unit's own journal, as its computer has them now."""
    lines = int(number_of("lines", JOURNAL_LINES, 1, JOURNAL_LINES_MAXIMUM))
    entry = {**find_unit(site, unit), "state": ONLINE}
    return answer(reply_of(site, entry, {"command": JOURNAL, "lines": lines}, MACHINE_TIMEOUT_S))


@takes(body=FIELDS, choices={"command": tuple(COMMANDS)}, required=("command",))
def command_all(site: Site, experiment: str) -> HTTPResponse:
    """One command to every unit of an experiment at once, with what each says of it."""
    fields = checked_command()
    find_experiment(site, experiment)
    members = [entry for entry in units_now(site) if entry.get("experiment") == experiment]
    if not members:
        refuse(409, f"no unit is in the experiment '{experiment}'", "experiment", "assign some first")
    limit_s = COMMAND_TIMEOUT_S
    if fields["command"] == "blank":
        limit_s += min(float(fields.get("seconds", 10.0)), LONGEST_BLANK_S)
    replies = ask_all(site, members, with_source(fields, caller_name()), limit_s)
    failed = [reply["unit"] for reply in replies if not reply.get("ok")]
    if failed:
        note(result=f"refused by {len(failed)} of {len(replies)} units: {', '.join(failed[:10])}")
    done = len(replies) - len(failed)
    return answer({"experiment": experiment, "done": done, "failed": len(failed), "units": replies})


@takes(body={"failed": str, "spare": str}, required=("failed", "spare"))
def replace(site: Site, experiment: str) -> HTTPResponse:
    """A spare unit takes over the role of a failed one: assignment, label, tags, settings and jobs, never its pumps."""
    fields = body_fields({"failed": str, "spare": str})
    for name in ("failed", "spare"):
        if not fields.get(name):
            refuse(400, f"'{name}' is missing", name, 'send {"failed": "unit", "spare": "another"}')
    find_experiment(site, experiment)
    failed, spare = (find_unit(site, fields[name]) for name in ("failed", "spare"))
    if spare["state"] != ONLINE:
        refuse(409, f"the unit '{spare['unit']}' is {spare['state']}", "spare", "name a spare that is online")
    for entry in (failed, spare):
        _id_of(site, entry["unit_id"])
    return answer(take_over(site, experiment, failed, spare))


@takes(answer="application/zip")
def download_results(site: Site, experiment: str) -> Iterator[bytes]:
    """Readings, events, doses, gaps and assignments of an experiment, as a ZIP of CSV files."""
    find_experiment(site, experiment)
    plain = "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in experiment)
    response.content_type = "application/zip"
    response.set_header("Content-Disposition", f'attachment; filename="{plain}.zip"')
    return results(site.store, experiment)
