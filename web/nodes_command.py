"""What `stirbar cluster` asks the leader that runs: status, labels, tags, vitals, logs; identify, reboot, shutdown."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from stirbar.bridge.blocks import LEVELS
from stirbar.bridge.machine import JOURNAL_LINES_MAXIMUM, POWER
from stirbar.core.config import ConfigError
from stirbar.core.leader_client import Leader, LeaderRefused, LeaderUnreachable
from stirbar.web.leader_options import add_leader_options, chosen, open_leader, table

EVENTS_AT_ONCE = 1000
PAGES = 20  # of events, before a search for rare ones ends
FOLLOW_S = 1.0
STATISTICS = ("monitor", "computer_statistics")

Action = Callable[[Leader, argparse.Namespace], int]


def say(line: str) -> None:
    """One line to whoever runs the command; standard output is for what it gives."""
    print(f"stirbar cluster: {line}", file=sys.stderr, flush=True)


def clock(t: float | None) -> str:
    """A Unix time as this machine's clock shows it."""
    return "-" if t is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(t))


def _selected(leader: Leader, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    units = leader.units()
    if not (arguments.unit or arguments.tag):
        return units
    names = chosen(units, arguments.unit, arguments.tag)
    return [unit for unit in units if unit["unit"] in names]


def status(leader: Leader, arguments: argparse.Namespace) -> int:
    """Who is there, where, and how their computers are."""
    units = _selected(leader, arguments)
    if arguments.json:
        print(json.dumps(units))
        return 0
    rows = []
    for unit in units:
        figures = next((one["value"] for one in unit["settings"] if (one["job"], one["setting"]) == STATISTICS), None)
        told = figures if isinstance(figures, dict) else {}
        running = [
            job for job, state in unit["jobs"].items() if state == "ready" and job not in ("monitor", "bioreactor")
        ]
        offset = unit["clock_offset_s"]
        rows.append(
            (
                *(unit["unit"], unit["label"] or "-", unit["state"], unit["experiment"] or "-"),
                *(",".join(unit["tags"]) or "-", ",".join(running) or "-", clock(unit["last_seen"])),
                *(str(told.get(name, "-")) for name in ("cpu_usage_percent", "cpu_temperature_celcius")),
                "-" if offset is None else f"{offset:+.3f}",
            )
        )
    heading = ("unit", "label", "state", "experiment", "tags", "runs", "last seen", "CPU %", "°C", "clock s")
    print(table(heading, rows))
    return 0


def assignments(leader: Leader, arguments: argparse.Namespace) -> int:
    """Which unit was in which experiment and when."""
    found = leader.assignments(unit=arguments.unit, experiment=arguments.experiment)
    if arguments.json:
        print(json.dumps(found))
        return 0
    rows = [
        (one["unit"], one["experiment"], one["label"] or "-", clock(one["from"]), clock(one["until"])) for one in found
    ]
    print(table(("unit", "experiment", "label", "from", "until"), rows))
    return 0


def label(leader: Leader, arguments: argparse.Namespace) -> int:
    """Name a unit within its experiment."""
    experiment = arguments.experiment or leader.unit(arguments.unit)["experiment"]
    if not experiment:
        raise ValueError(f"'{arguments.unit}' is in no experiment: name one with --experiment")
    leader.label(arguments.unit, experiment, arguments.label)
    say(
        f"'{arguments.unit}' is called '{arguments.label}' in '{experiment}'"
        if arguments.label
        else "no label any more"
    )
    return 0


def tag(leader: Leader, arguments: argparse.Namespace) -> int:
    """Add tags to a unit, or take some away."""
    tags = set(leader.unit(arguments.unit)["tags"])
    words = set(arguments.tags)
    tags = tags - words if arguments.remove else tags | words
    print(" ".join(leader.tag(arguments.unit, sorted(tags)) if words else sorted(tags)))
    return 0


def vitals(leader: Leader, arguments: argparse.Namespace) -> int:
    """How a unit's computer was."""
    end = time.time()
    lines = leader.vitals(arguments.unit, start=end - arguments.hours * 3600.0, end=end, points=arguments.points)
    if arguments.json:
        print(json.dumps(lines))
        return 0
    rows = [
        (
            *(line["name"], line["unit_of_value"] or "-", f"{min(line['low']):.6g}"),
            *(f"{sum(line['mean']) / len(line['mean']):.6g}", f"{max(line['high']):.6g}", f"{line['mean'][-1]:.6g}"),
        )
        for line in lines
    ]
    print(table(("figure", "unit", "lowest", "mean", "highest", "last"), rows))
    return 0


def logs(leader: Leader, arguments: argparse.Namespace) -> int:
    """The events of a unit that the leader has, or the last lines of the unit's own journal."""
    if arguments.journal:
        for line in leader.journal(arguments.unit, min(arguments.lines, JOURNAL_LINES_MAXIMUM)):
            print(line)
        return 0
    wanted = LEVELS[LEVELS.index(arguments.level) :]
    found = _events(leader, arguments.unit, wanted, arguments.lines)
    seen = {event["id"] for event in found}
    for event in reversed(found):
        _show(event)
    while arguments.follow:
        time.sleep(FOLLOW_S)
        new = [one for one in leader.events(arguments.unit, 100) if one["id"] not in seen and one["level"] in wanted]
        seen |= {one["id"] for one in new}
        for event in reversed(new):
            _show(event)
    return 0


def _events(leader: Leader, unit: str, levels: tuple[str, ...], count: int) -> list[dict[str, Any]]:
    """The newest events of these levels, newest first."""
    found: list[dict[str, Any]] = []
    before = None
    for _ in range(PAGES):
        page = leader.events(unit, EVENTS_AT_ONCE, before)
        found += [event for event in page if event["level"] in levels]
        if len(found) >= count or len(page) < EVENTS_AT_ONCE:
            break
        before = page[-1]["t"]
    return found[:count]


def _show(event: dict[str, Any]) -> None:
    print(f"{clock(event['t'])} {event['level']:7} {event['source']}: {event['message']}", flush=True)


def on_each(leader: Leader, arguments: argparse.Namespace) -> int:
    """Identify, start anew or switch off; status 1 when one of them refuses."""
    failed = 0
    for name in chosen(leader.units(), arguments.unit, arguments.tag):
        try:
            if arguments.action in POWER:
                leader.power(name, arguments.action, force=arguments.force)
                say(f"{name}: {arguments.action} begins")
            else:
                say(f"{name}: its LED blinks for {leader.command(name, 'identify')['seconds']:g} s")
        except LeaderRefused as error:
            failed += 1
            say(f"{name}: {error}")
    return 1 if failed else 0


ACTIONS: dict[str, tuple[Action, str]] = {
    "status": (status, "who is there, where, and how their computers are"),
    "assignments": (assignments, "which unit was in which experiment and when"),
    "label": (label, "name a unit within its experiment; '' takes the label away"),
    "tag": (tag, "add words by which a unit is chosen, show them, take them away"),
    "vitals": (vitals, "how a unit's computer was"),
    "logs": (logs, "a unit's events, or its own journal"),
    "identify": (on_each, "let the LED of units blink"),
    "reboot": (on_each, "start units' computers anew; not while their pumps run"),
    "shutdown": (on_each, "switch units' computers off; not while their pumps run"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stirbar cluster")
    actions = parser.add_subparsers(dest="action", required=True)
    of = {}
    for name, (_, text) in ACTIONS.items():
        of[name] = actions.add_parser(name, help=text, description=text)
        add_leader_options(of[name])
    for name in ("status", "identify", *POWER):
        of[name].add_argument("unit", nargs="*")
        of[name].add_argument("--tag", default="", help="the units that have this tag")
    for name in POWER:
        of[name].add_argument("--force", action="store_true", help="also while pumps run or the unit tests itself")
    for name in ("label", "tag", "vitals", "logs"):
        of[name].add_argument("unit")
    for name in ("status", "assignments", "vitals"):
        of[name].add_argument("--json", action="store_true")
    of["assignments"].add_argument("--unit")
    of["assignments"].add_argument("--experiment")
    of["label"].add_argument("label")
    of["label"].add_argument("--experiment", help="which (default: the one that it is in)")
    of["tag"].add_argument("tags", nargs="*", metavar="TAG")
    of["tag"].add_argument("--remove", action="store_true", help="take them away")
    of["vitals"].add_argument("--hours", type=float, default=24.0)
    of["vitals"].add_argument("--points", type=int, default=600)
    of["logs"].add_argument("-n", "--lines", type=int, default=100)
    of["logs"].add_argument("--level", choices=LEVELS, default="info", help="the least that is shown (default: info)")
    of["logs"].add_argument("--follow", "-f", action="store_true", help="go on with what comes")
    of["logs"].add_argument("--journal", action="store_true", help="the last lines of the unit's own journal instead")
    return parser


def main(argv: list[str]) -> int:
    """The actions of `stirbar cluster` in this room."""
    arguments = _parser().parse_args(argv)
    try:
        with open_leader(arguments) as leader:
            return ACTIONS[arguments.action][0](leader, arguments)
    except (ConfigError, LeaderRefused, LeaderUnreachable, ValueError, OSError) as error:
        say(str(error))
        return 1
