"""The HTTP API of docs/http-api.md. Every route checks what it was sent, and says what is wrong with it."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from bottle import Bottle, HTTPResponse, request, response
from stirbar.core.records import KIND_RAW_CHUNK, READING_STREAMS, STREAM_IDS, STREAM_UNITS, STREAMS
from stirbar.web.live import UNSEEN_S
from stirbar.web.routes import (
    PUBLIC,
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
from stirbar.web.wire import answer, json_answer, lines_to_json, refuse
from stirbar.web.worker_commands import COMMANDS, FIELDS, only_looks, with_source

if TYPE_CHECKING:
    from stirbar.web.app import Site

MAXIMUM_POINTS = 2000
MAXIMUM_NAMES = 200  # of units, in one request
DEFAULT_POINTS = 600
MAXIMUM_EVENTS = 1000
LAST_TIME_S = 9.2e9  # Unix time, the year 2261: what the store can count in nanoseconds
EXPERIMENT_FIELDS: dict[str, Kinds] = {"name": str, "description": str}
MAXIMUM_RAW_S = 10.0
RAW_ASKED_S = 30.0  # a unit is asked for so much raw data at once,
RAW_RENEW_S = 10.0  # and again when less than this is left
RAW_STALE_S = 2.0  # what is older shows that none are coming
RAW_WAIT_S = 2.0  # for the first of it,
RAW_ENOUGH_S = 0.5  # until so much has come (or nine tenths of what is asked for)
RAW_LOOK_S = 0.05
COMMAND_TIMEOUT_S = 5.0
LONGEST_BLANK_S = 600.0
LONGEST_NAME = 100  # characters
LONGEST_NAME_BYTES = 128  # a worker takes no more
FORBIDDEN_IN_NAMES = "#+/$%\\"  # a name is part of MQTT topics and of file names
LONGEST_DESCRIPTION = 1000
CSV_CHUNK_BYTES = 32 * 1024
SETTING_UNITS = {  # of what ends in a channel's number, the number is left out
    "target_rpm": "rpm",
    "measured_rpm": "rpm",
    "duty_cycle": "%",
    "ir_led_intensity": "%",
    "temperature": "°C",
    "target_temperature": "°C",
    "heater_duty_cycle": "%",
    "blank": "AU",
    "interval": "s",
    **dict.fromkeys(("A", "B", "C", "D", "intensity"), "%"),  # of the LED channels
}


def add_routes(app: Bottle, site: Site) -> None:
    """Put the API onto an application."""
    routes: tuple[tuple[str, str, Callable[..., Any]], ...] = (
        ("GET", "/api/units", units),
        ("GET", "/api/units/<unit>", unit_details),
        ("POST", "/api/units/<unit>/command", command),
        ("GET", "/api/units/<unit>/simulation", simulation),
        ("GET", "/api/units/<unit>/raw", raw),
        ("GET", "/api/readings", readings),
        ("GET", "/api/experiments", experiments),
        ("POST", "/api/experiments", create_experiment),
        ("PUT", "/api/experiments/<experiment>/units/<unit>", assign),
        ("DELETE", "/api/experiments/<experiment>/units/<unit>", unassign),
        ("GET", "/api/experiments/<experiment>/readings.csv", download),
        ("GET", "/api/events", events),
        ("GET", "/api/live", live),
        ("GET", "/api/health", health),
    )
    for method, path, function in routes:
        app.route(path, method, guarded(site, function))


def _stream(required: bool) -> int | None:
    """The number of the stream in the query, by name or number."""
    text = text_of("stream")
    if not text and not required:
        return None
    number = int(text) if text.isdecimal() and len(text) < 4 else STREAM_IDS.get(text)
    if number not in READING_STREAMS:
        known = ", ".join(STREAMS[stream] for stream in READING_STREAMS)
        refuse(400, f"there is no stream '{text[:50]}' of readings", "stream", f"known are: {known}")
    return number


def units_now(site: Site, brief: bool = False) -> list[dict[str, Any]]:
    """All units: what the store knows of them, and over it what ingest heard of them since the start; in brief without
    their readings."""
    found: dict[str, dict[str, Any]] = {}
    for stored in site.store.units():
        found[stored["unit_id"].hex()] = {**stored, "last_seen": None, "state": "lost"}
    for heard in site.ingest.units(brief=brief):
        entry = found.setdefault(heard["unit_id"], {})
        entry.update({key: value for key, value in heard.items() if value or key not in entry})
    for unit_id, entry in found.items():
        entry["unit_id"] = unit_id
    return sorted(map(_with_state, found.values()), key=lambda entry: (str(entry.get("unit")), entry["unit_id"]))


def _with_state(entry: dict[str, Any]) -> dict[str, Any]:
    """A unit that is said to be online is lost when it has been silent for too long."""
    seen = entry.get("last_seen")
    if entry.get("state") == "online" and (seen is None or time.time() - seen > UNSEEN_S):
        entry["state"] = "lost"
    return entry


def find_unit(site: Site, name: str) -> dict[str, Any]:
    """The unit of this name (or of this unit_id, for two that share a name)."""
    return find_units(site, [name])[0]


def find_units(site: Site, names: list[str]) -> list[dict[str, Any]]:
    """The units of these names, or of these unit_ids."""
    entries = units_now(site)
    return [_one_of(entries, name) for name in names]


def _one_of(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    found = [entry for entry in entries if entry["unit_id"] == name] or [
        entry for entry in entries if entry.get("unit") == name
    ]
    if not found:
        known = ", ".join(str(entry.get("unit")) for entry in entries[:10]) or "none has reported yet"
        refuse(404, f"there is no unit '{name[:LONGEST_NAME]}'", "unit", f"known units: {known}")
    if len(found) > 1:
        ids = ", ".join(entry["unit_id"] for entry in found)
        refuse(409, f"{len(found)} units have the name '{name}'", "unit", f"use the unit_id instead: {ids}")
    return found[0]


def _settings(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings in force as a list, each with its unit and whether it can be set."""
    settable = {
        (job, name)
        for job, about in (entry.get("describe", {}).get("jobs") or {}).items()
        if isinstance(about, dict)
        for name in about.get("settable") or ()
    }
    return [
        {
            **setting,
            "unit": SETTING_UNITS.get(setting["setting"].rstrip("1234"), ""),
            "settable": setting["setting"] == "$state" or (setting["job"], setting["setting"]) in settable,
        }
        for setting in entry.get("settings") or []
    ]


def _brief(entry: dict[str, Any]) -> dict[str, Any]:
    about = entry.get("describe") or {}
    return {
        "unit": entry.get("unit"),
        "unit_id": entry["unit_id"],
        "state": entry["state"],
        "last_seen": entry.get("last_seen"),
        "clock_offset_s": entry.get("clock_offset_s"),
        "experiment": entry.get("experiment"),
        "label": entry.get("label"),
        "tags": entry.get("tags") or [],
        "simulated": bool(about.get("simulated")),
        "foreign": bool(about.get("foreign")),
        "version": about.get("version"),
        "channels": about.get("channels") or [],
    }


def _summary(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        **_brief(entry),
        "jobs": entry.get("jobs") or {},
        "settings": _settings(entry),
        "latest": entry.get("latest") or {},
    }


def _names_of(text: str) -> list[str]:
    """Names with commas between; refuses too many."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(names) > MAXIMUM_NAMES:
        refuse(400, f"{len(names)} units are named", "units", f"name at most {MAXIMUM_NAMES}, or none for all")
    return names


@takes(query={"units": TEXT, "brief": number(0, 1, 0)})
def units(site: Site) -> HTTPResponse:
    """Every unit, or those named, with its latest readings; in brief without them."""
    names = _names_of(text_of("units"))
    brief = bool(number_of("brief", 0, 0, 1))
    entries = units_now(site, brief)
    chosen = [_one_of(entries, name) for name in names] or entries
    return answer([_brief(entry) if brief else _summary(entry) for entry in chosen])


def unit_details(site: Site, unit: str) -> HTTPResponse:
    """One unit, with its status, counters and lateness."""
    entry = find_unit(site, unit)
    about, status = entry.get("describe") or {}, entry.get("status") or {}
    details = {
        key: about.get(key) for key in ("run_id", "boot_id", "build_id", "normalisation", "limits", "protection")
    }
    details |= {key: status.get(key) for key in ("counters", "lateness", "uptime_s", "sequences")}
    return answer({**_summary(entry), **details, "status": status})


def checked_command() -> dict[str, Any]:
    """The worker's command in the request's body."""
    fields = body_fields(FIELDS)
    name = fields.get("command")
    if name not in COMMANDS:
        text = f"there is no command '{str(name)[:50]}'" if name else "'command' is missing"
        refuse(400, text, "command", f"known are: {', '.join(COMMANDS)}")
    for field in fields:
        if field not in ("command", "id", *COMMANDS[name]):
            takes = ", ".join(COMMANDS[name]) or "no fields"
            refuse(400, f"the command '{name}' has no field '{field}'", field, f"it takes {takes}")
    return fields


@takes(body=FIELDS, choices={"command": tuple(COMMANDS)}, required=("command",))
def command(site: Site, unit: str) -> HTTPResponse:
    """A worker's command, sent to the unit; its reply is the answer, refusals by the worker included."""
    fields = checked_command()
    entry = find_unit(site, unit)
    reply = _ask(site, entry, with_source(fields, caller_name()))
    if only_looks(fields):
        note(only_looks=True)
    elif not reply.get("ok"):
        note(result=f"refused by the unit: {(reply.get('error') or {}).get('message')}")
    return answer(reply)


def _ask(site: Site, entry: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Send a command to a unit and return its reply; 504 when none comes."""
    limit_s = COMMAND_TIMEOUT_S
    if fields["command"] == "blank" and "value" not in fields and not fields.get("clear"):
        limit_s += min(float(fields.get("seconds", 10.0)), LONGEST_BLANK_S)  # it averages for so long
    try:
        reply = site.ingest.command(bytes.fromhex(entry["unit_id"]), fields, limit_s)
    except TimeoutError:
        reply = None
    except ConnectionError as error:
        refuse(503, f"the command could not be sent: {error}", remedy="the leader reconnects to its broker: try again")
    if reply is None:
        refuse(
            504,
            f"the unit '{entry.get('unit')}' did not answer within {limit_s:g} s",
            "unit",
            "see whether its worker and bridge run; the command has expired and will not be done later",
        )
    checked: dict[str, Any] = reply
    return checked


def simulation(site: Site, unit: str) -> HTTPResponse:
    """The parameters of a simulated unit, with the values in force."""
    entry = find_unit(site, unit)
    if not (entry.get("describe") or {}).get("simulated"):
        refuse(409, f"the unit '{entry.get('unit')}' is not simulated", "unit", "start its worker with --simulate")
    reply = _ask(site, entry, {"command": "describe"})
    if not reply.get("ok"):
        return answer(reply, 502)
    from stirbar.core.simulation import PARAMETERS

    values = reply["result"]["simulation"]
    return answer(
        [
            {
                "name": one.name,
                "unit": one.unit,
                "low": one.low,
                "high": one.high,
                "default": one.default,
                "value": values.get(one.name, one.default),
                "help": one.help,
                "group": one.group,
            }
            for one in PARAMETERS
        ]
    )


@takes(query={"seconds": number(0.1, MAXIMUM_RAW_S, 2.0)})
def raw(site: Site, unit: str) -> HTTPResponse:
    """The last seconds of raw conversions with their spectrum; the unit is asked for them when none are coming."""
    seconds = number_of("seconds", 2.0, 0.1, MAXIMUM_RAW_S)
    entry = find_unit(site, unit)
    unit_id = bytes.fromhex(entry["unit_id"])
    status = entry.get("status") or {}
    deadline = time.monotonic()
    if status.get("raw_until_ns", 0) - status.get("monotonic_ns", 0) < RAW_RENEW_S * 1e9:
        reply = _ask(site, entry, {"command": "raw", "seconds": RAW_ASKED_S})
        if not reply.get("ok"):
            return answer(reply, 502)
        deadline += RAW_WAIT_S
    from stirbar.core import raw_codec
    from stirbar.web.raw import view  # NumPy, only for those who look

    while True:
        blocks = site.ingest.raw(unit_id, seconds)
        stale = not blocks or blocks[-1][0].realtime_ns < (time.time() - RAW_STALE_S) * 1e9
        parts = [raw_codec.decode(body) if header.kind == KIND_RAW_CHUNK else body for header, body in blocks]
        found = view(b"".join(parts), _summary(entry)["channels"], seconds)
        span_s = max((line["t_ns"][-1] - line["t_ns"][0] for line in found["channels"]), default=0) / 1e9
        if (span_s >= min(0.9 * seconds, RAW_ENOUGH_S) and not stale) or time.monotonic() >= deadline:
            return answer(found)
        time.sleep(RAW_LOOK_S)  # asked a moment ago: the first of it is on its way


@takes(
    query={
        "unit": TEXT,
        "units": TEXT,
        "experiment": TEXT,
        "stream": TEXT,
        **dict.fromkeys(("from", "to"), number(0.0, LAST_TIME_S)),
        "points": number(1, MAXIMUM_POINTS, DEFAULT_POINTS),
    },
    required=("stream",),
)
def readings(site: Site) -> HTTPResponse:
    """Binned readings for a chart."""
    stream = _stream(required=True)
    now = time.time()
    end = number_of("to", now, 0.0, LAST_TIME_S)
    start = number_of("from", end - 3600.0, 0.0, LAST_TIME_S)
    points = int(number_of("points", DEFAULT_POINTS, 1, MAXIMUM_POINTS))
    if start >= end:
        refuse(400, f"'from' ({start:g}) is not before 'to' ({end:g})", "from", "give Unix seconds, the earlier first")
    unit, several, experiment = text_of("unit"), _names_of(text_of("units")), text_of("experiment")
    if (unit and (several or experiment)) or not (unit or several or experiment):
        text = "give either 'unit' or 'experiment', or 'units', which go with an experiment too"
        refuse(400, text, "unit", "they say whose readings are asked for")
    names = several or [unit] if several or unit else None
    ids = None if names is None else [bytes.fromhex(one["unit_id"]) for one in find_units(site, names)]
    if experiment:
        find_experiment(site, experiment)
    lines = site.store.series(stream, start, end, points, unit_ids=ids, experiment=experiment or None)
    shown = [
        {
            **line,
            "unit_id": line["unit_id"].hex(),
            "stream": STREAMS[line["stream"]],
            "unit_of_value": STREAM_UNITS[line["stream"]],
        }
        for line in lines
    ]
    return json_answer(f'{{"series":{lines_to_json(shown)}}}')


def find_experiment(site: Site, name: str) -> dict[str, Any]:
    """The experiment of this name."""
    found: list[dict[str, Any]] = [one for one in site.store.experiments() if one["name"] == name]
    if not found:
        refuse(404, f"there is no experiment '{name[:LONGEST_NAME]}'", "experiment", "GET /api/experiments lists them")
    return found[0]


def experiments(site: Site) -> HTTPResponse:
    """Every experiment."""
    return answer(site.store.experiments())


@takes(body=EXPERIMENT_FIELDS, required=("name",), status=201)
def create_experiment(site: Site) -> HTTPResponse:
    """Name a new experiment."""
    fields = body_fields(EXPERIMENT_FIELDS)
    name, description = fields.get("name", "").strip(), fields.get("description", "").strip()
    if not name or len(name) > LONGEST_NAME or len(name.encode()) > LONGEST_NAME_BYTES:
        refuse(400, f"the name has {len(name)} characters", "name", f"give one of 1 to {LONGEST_NAME}")
    bad = [character for character in name if character in FORBIDDEN_IN_NAMES or not character.isprintable()]
    if bad:
        remedy = f"leave out {' '.join(FORBIDDEN_IN_NAMES)} and control characters"
        refuse(400, f"the name has a character that is not allowed: {bad[0]!r}", "name", remedy)
    if len(description) > LONGEST_DESCRIPTION:
        refuse(
            400, f"the description has {len(description)} characters", "description", f"at most {LONGEST_DESCRIPTION}"
        )
    if any(experiment["name"] == name for experiment in site.store.experiments()):
        refuse(409, f"there is an experiment '{name}' already", "name", "choose another name")
    site.store.create_experiment(name, description)
    return answer(find_experiment(site, name), 201)


def assign(site: Site, experiment: str, unit: str) -> HTTPResponse:
    """From now on the unit's readings belong to this experiment."""
    find_experiment(site, experiment)
    entry = find_unit(site, unit)
    unit_id = bytes.fromhex(entry["unit_id"])
    if unit_id not in [stored["unit_id"] for stored in site.store.units()]:
        site.store.upsert_unit(unit_id, entry["unit"], entry.get("describe") or {})  # it has reported just now
    site.ingest.assign(unit_id, experiment)
    return answer({"unit": entry["unit"], "experiment": experiment})


def unassign(site: Site, experiment: str, unit: str) -> HTTPResponse:
    """From now on the unit's readings belong to no experiment."""
    find_experiment(site, experiment)
    entry = find_unit(site, unit)
    if entry.get("experiment") != experiment:
        refuse(
            409, f"the unit '{unit}' is not in the experiment '{experiment}'", "unit", "GET /api/units says where it is"
        )
    site.ingest.assign(bytes.fromhex(entry["unit_id"]), None)
    return answer({"unit": entry["unit"], "experiment": None})


@takes(query={"stream": TEXT}, answer="text/csv")
def download(site: Site, experiment: str) -> Iterator[bytes]:
    """The readings of an experiment as CSV, written while the store is read."""
    stream = _stream(required=False)
    find_experiment(site, experiment)
    rows = site.store.csv_rows(experiment, stream)
    plain = "".join(character if character.isalnum() and character.isascii() else "_" for character in experiment)
    name = f"{plain}{'_' + STREAMS[stream] if stream else ''}.csv"
    response.content_type = "text/csv; charset=UTF-8"
    response.set_header("Content-Disposition", f'attachment; filename="{name}"')
    return _csv(rows)


def _csv(rows: Iterator[list[str]]) -> Iterator[bytes]:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    for row in rows:
        writer.writerow(row)
        if buffer.tell() >= CSV_CHUNK_BYTES:
            yield buffer.getvalue().encode()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue().encode()


@takes(query={"unit": TEXT, "limit": number(1, MAXIMUM_EVENTS, 100), "before": number(0.0, LAST_TIME_S)})
def events(site: Site) -> HTTPResponse:
    """The log of events, newest first."""
    limit = int(number_of("limit", 100, 1, MAXIMUM_EVENTS))
    before = number_of("before", math.inf, 0.0, LAST_TIME_S)
    unit = text_of("unit")
    unit_id = bytes.fromhex(find_unit(site, unit)["unit_id"]) if unit else None
    found = site.store.events(unit_id, limit, None if math.isinf(before) else before)
    return answer([{**event, "unit_id": event["unit_id"].hex() if event["unit_id"] else None} for event in found])


@takes(query={"units": TEXT, "states": {"type": "string", "enum": ["all"]}}, answer="text/event-stream")
def live(site: Site) -> str:
    """Hand the connection over to the hub of live events."""
    hand_over = request.environ.get("stirbar.hand_over")
    if hand_over is None:
        refuse(501, "this server cannot hold a live connection", remedy="run it by `stirbar leader`")
    wanted = text_of("units")
    names = frozenset(name.strip() for name in wanted.split(",") if name.strip()) or None
    states = text_of("states")
    if states not in ("", "all"):
        refuse(400, f"'states' is '{states[:50]}'", "states", "leave it out, or give 'all'")
    key = request.environ["stirbar.caller"].key
    response.content_type = "text/event-stream; charset=UTF-8"
    response.set_header("Cache-Control", "no-store")
    response.set_header("X-Accel-Buffering", "no")
    hand_over.receiver = lambda sock: site.live.add(sock, names, key, states == "all")
    return ""


@takes(scope=PUBLIC)
def health(site: Site) -> HTTPResponse:
    """In one word to anybody; the counters to those who are logged in."""
    broker = site.broker.counters() if site.broker is not None else {"external": True}
    ingest = site.ingest.counters()
    well = broker.get("alive", True) and ingest.get("connected", True)
    status = {"status": "ok" if well else "degraded"}
    if request.environ.get("stirbar.caller") is None:
        return answer(status)
    store = site.store.counters()
    uptime = time.time() - site.started
    return answer(
        {**status, "ingest": ingest, "store": store, "broker": broker, "live": site.live.counters(), "uptime_s": uptime}
    )
