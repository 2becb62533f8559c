"""`stirbar experiment`: one experiment on many units."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stirbar.core.config import ConfigError
from stirbar.core.job_command import value_of
from stirbar.core.leader_client import Leader, LeaderRefused, LeaderUnreachable
from stirbar.web.leader_options import add_leader_options, chosen, open_leader, table
from stirbar.web.worker_commands import COMMANDS

Action = Callable[[Leader, argparse.Namespace], int]


def say(line: str) -> None:
    """One line to whoever runs the command; standard output is for what it gives."""
    print(f"stirbar experiment: {line}", file=sys.stderr, flush=True)


def show(leader: Leader, arguments: argparse.Namespace) -> int:
    """The experiments and their units."""
    found = leader.experiments()
    if arguments.json:
        print(json.dumps(found))
    else:
        print(table(("experiment", "units"), [(one["name"], ", ".join(one["units"]) or "-") for one in found]))
    return 0


def create(leader: Leader, arguments: argparse.Namespace) -> int:
    """Name an experiment and assign units to it."""
    names = _units(leader, arguments) if arguments.units or arguments.tag else []
    leader.create_experiment(arguments.name, arguments.description)
    return _assign(leader, arguments.name, names)


def add(leader: Leader, arguments: argparse.Namespace) -> int:
    """Assign more units."""
    return _assign(leader, arguments.name, _units(leader, arguments))


def remove(leader: Leader, arguments: argparse.Namespace) -> int:
    """Take units out of it; what runs on them goes on."""
    return _each(_units(leader, arguments), lambda name: leader.unassign(name, arguments.name), "is out of it")


def _units(leader: Leader, arguments: argparse.Namespace) -> list[str]:
    names = [name.strip() for name in arguments.units.split(",") if name.strip()]
    return chosen(leader.units(), names, arguments.tag)


def _assign(leader: Leader, experiment: str, names: list[str]) -> int:
    return _each(names, lambda name: leader.assign(name, experiment), f"is in '{experiment}'")


def _each(names: list[str], work: Callable[[str], None], done: str) -> int:
    failed = 0
    for name in names:
        try:
            work(name)
            say(f"{name} {done}")
        except LeaderRefused as error:
            failed += 1
            say(f"{name}: {error}")
    return 1 if failed else 0


def command(leader: Leader, arguments: argparse.Namespace) -> int:
    """One command to all its units at once; status 1 when one of them does not do it."""
    said = leader.command_all(arguments.name, **parse_words(" ".join(arguments.words).split()))
    if arguments.json:
        print(json.dumps(said))
    else:
        print(table(("unit", "label", "answer"), [_line(one) for one in said["units"]]))
    if said["failed"]:
        say(f"{said['failed']} of {len(said['units'])} units did not do it")
    return 1 if said["failed"] else 0


def _line(one: dict[str, Any]) -> tuple[str, str, str]:
    if one.get("ok"):
        return one["unit"], one["label"] or "-", json.dumps(one.get("result") or {}, ensure_ascii=False)
    error = one.get("error") or {}
    remedy = f" ({error['remedy']})" if error.get("remedy") else ""
    return one["unit"], one["label"] or "-", f"refused: {error.get('message')}{remedy}"


def parse_words(words: list[str]) -> dict[str, Any]:
    """`start stirring`, `set stirring target_rpm 500`, `blank seconds=20`: a command and its fields.

    Raises ValueError with what it takes.
    """
    name = words[0] if words else ""
    if name not in COMMANDS:
        raise ValueError(f"there is no command '{name}'; known are {', '.join(COMMANDS)}")
    fields = COMMANDS[name]
    plain = [word for word in words[1:] if "=" not in word]
    if len(plain) > len(fields):
        raise ValueError(f"'{name}' takes {', '.join(fields) or 'nothing more'}")
    found: dict[str, Any] = dict(zip(fields, plain, strict=False))
    found |= dict(word.split("=", 1) for word in words[1:] if "=" in word)
    typed = {
        field: text if field in ("job", "setting", "pump", "source") else value_of(text)
        for field, text in found.items()
    }
    return {"command": name, **typed}


def replace(leader: Leader, arguments: argparse.Namespace) -> int:
    """Let a spare take over a failed unit's role; status 1 when a step was refused."""
    said = leader.replace(arguments.name, arguments.failed, arguments.spare)
    rows = [
        (one["step"], "done" if one["ok"] else f"refused: {(one.get('error') or {}).get('message')}")
        for one in said["steps"]
    ]
    print(table((f"on {said['spare']}", ""), rows))
    label = f", as '{said['label']}'" if said["label"] else ""
    say(f"'{said['spare']}' has taken the place of '{said['failed']}' in '{arguments.name}'{label}; its pumps rest")
    return 0 if all(one["ok"] for one in said["steps"]) else 1


def results(leader: Leader, arguments: argparse.Namespace) -> int:
    """Readings, events, doses, gaps and assignments, in a directory or, when its name ends so, a .zip file."""
    plain = "".join(letter if letter.isalnum() else "_" for letter in arguments.name)
    target = Path(arguments.out or plain)
    if target.suffix == ".zip":
        length = leader.results(arguments.name, target)
        print(f"{target} ({length} bytes)")
        return 0
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target, suffix=".part") as part:
        leader.results(arguments.name, part.name)
        with zipfile.ZipFile(part.name) as archive:
            archive.extractall(target)
            for name in archive.namelist():
                print(target / name)
    return 0


ACTIONS: dict[str, tuple[Action, str]] = {
    "list": (show, "the experiments and their units"),
    "create": (create, "name an experiment and assign units to it"),
    "add": (add, "assign more units to it"),
    "remove": (remove, "take units out of it"),
    "command": (command, "one command to all its units, as 'start stirring'"),
    "replace": (replace, "let a spare take over the role of a failed unit"),
    "results": (results, "gather readings, events, doses, gaps and assignments"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stirbar experiment", description="One experiment on many units; docs/nodes.md."
    )
    actions = parser.add_subparsers(dest="action", required=True)
    of = {}
    for name, (_, text) in ACTIONS.items():
        of[name] = actions.add_parser(name, help=text, description=text)
        add_leader_options(of[name])
        if name != "list":
            of[name].add_argument("name")
    for name in ("create", "add", "remove"):
        of[name].add_argument("--units", default="", metavar="A,B", help="their names")
        of[name].add_argument("--tag", default="", help="the units that have this tag")
    of["create"].add_argument("--description", default="")
    of["command"].add_argument("words", nargs="+", metavar="WORD", help="as: set stirring target_rpm 500")
    of["replace"].add_argument("failed")
    of["replace"].add_argument("spare")
    of["results"].add_argument("--out", help="a directory (default: the experiment's name), or a .zip file")
    for name in ("list", "command"):
        of[name].add_argument("--json", action="store_true")
    return parser


def main(argv: list[str]) -> int:
    """`stirbar experiment`"""
    arguments = _parser().parse_args(argv)
    try:
        with open_leader(arguments) as leader:
            return ACTIONS[arguments.action][0](leader, arguments)
    except (ConfigError, LeaderRefused, LeaderUnreachable, ValueError, OSError) as error:
        say(str(error))
        return 1
