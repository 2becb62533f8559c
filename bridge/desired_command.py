"""`stirbar cluster config`, `state` and `repair`, on the leader: what it distributes, whether the units are as
they should be, and what to do where they are not.

The texts are written into the leader's store, whether it runs or not; a leader that runs tells the units at once.
"""

from __future__ import annotations

import argparse
import datetime
import getpass
import json
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stirbar.bridge.config_history import (
    EVERY_UNIT,
    Changed,
    ConfigHistory,
    Refused,
    check,
    difference,
    history_of,
    unit_ids,
)
from stirbar.bridge.credentials import write_private
from stirbar.bridge.desired_state import ORDER_FILE, number_above, read_state
from stirbar.bridge.places import leader_directory
from stirbar.bridge.store import StoreError
from stirbar.core.config import add_config_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from stirbar.core.config import Config

    Act = Callable[[Config, argparse.Namespace], int]
    Tell = Callable[[Config], bool]

WAIT_S = 10.0  # for the units' answers
ANSWER_S = 2.0  # for those of units that were told again, and may have nothing new to say
RESTART_WAIT_S = 20.0
LOOK_S = 0.05
DRIFT_STATUS = 3  # 1 is a command that failed, 2 one that was not understood
EDIT_HEAD = "# Above the files of {whom}; empty keys and lines like this one say nothing.\n"


def say(line: str) -> None:
    """One line to whoever runs the command; standard output is for what it gives."""
    print(f"stirbar cluster: {line}", file=sys.stderr, flush=True)


class Desk:
    """What all these commands work with. `tell` lets the leader take in what has changed; False: none runs."""

    def __init__(self, config: Config, arguments: argparse.Namespace, tell: Tell) -> None:
        self.config = config
        self.arguments = arguments
        self.directory: Path = leader_directory(config)
        self.history: ConfigHistory = history_of(config)
        self.who = f"{os.environ.get('SUDO_USER') or getpass.getuser()} at the command line"
        self._tell = tell

    def unit_id(self, name: str) -> bytes:
        """Of a unit of this cluster; EVERY_UNIT for no name. Raises StoreError."""
        if not name:
            return EVERY_UNIT
        known = unit_ids(self.config, self.history)
        if name not in known:
            raise StoreError(f"there is no unit '{name[:63]}' in this cluster: `stirbar cluster list` names them")
        return known[name]

    def save(self, unit_id: bytes, text: str, expected: int, restart: bool = False) -> int:
        """Save a text, tell the units, and say what they answer."""
        before = self.history.head(unit_id)
        version = self.history.save(unit_id, text, self.who, expected, number_above(self.units(None)))
        for warning in check(text, unit_id, self.history.heads())[1]:
            say(f"note: {warning}")
        if version.number == before.number:
            say(f"nothing was changed: version {version.number}")
        else:
            say(f"saved as version {version.number}")
        return self.distribute(self.chosen(self.arguments.unit), restart)

    def distribute(self, units: set[str] | None, restart: bool = False, again: bool = False) -> int:
        """Let the leader tell the units, and print for each what came of it; DRIFT_STATUS where one is not there yet.

        None stands for all units. `again`: also what has not changed, numbered above what a unit holds if need be.
        """
        asked_at = time.time()
        if not self.tell():
            say("no leader runs here: the units are told when it does")
            return 0
        if again:
            known = self.units(units)
            overtake = any(
                one["is_ahead"] and any(entry["what"] == "config" for entry in one["drift"]) for one in known
            )
            self._order(tell=[one["unit_id"] for one in known], overtake=overtake)
        found = self.settled(asked_at, units, again=again)
        ids = [one["unit_id"] for one in found if one["restart_needed"] and one["state"] == "online"]
        if restart and ids:
            for unit, result in self._restarted(ids).items():
                say(f"{next(one['unit'] for one in found if one['unit_id'] == unit)}: {result}")
            found = self.settled(time.time(), units, restarting=True)
        show(found)
        return DRIFT_STATUS if any(one["drift"] for one in found) else 0

    def tell(self) -> bool:
        """Let the leader take in what has changed; whether one runs."""
        return self._tell(self.config)

    def chosen(self, name: str) -> set[str] | None:
        """The unit_id of a unit; None, which stands for all units, for no name."""
        return {self.unit_id(name).hex()} if name else None

    def units(self, names: set[str] | None) -> list[dict[str, Any]]:
        """What the leader found last, of some units or of all."""
        return [one for one in read_state(self.directory)["units"] if names is None or one["unit_id"] in names]

    def settled(
        self, since: float, units: set[str] | None, restarting: bool = False, again: bool = False
    ) -> list[dict[str, Any]]:
        """The units when those that are online have answered, or when it takes too long."""
        start = time.monotonic()
        while True:
            is_new = read_state(self.directory)["t"] > since
            found = self.units(units)
            took_s = time.monotonic() - start
            online = [one for one in found if one["state"] == "online"]
            waiting = any(_is_under_way(one, restarting, again and took_s < ANSWER_S) for one in online)
            if (is_new and not waiting) or took_s > (RESTART_WAIT_S if restarting else WAIT_S):
                return found
            time.sleep(LOOK_S)

    def _restarted(self, ids: list[str]) -> dict[str, str]:
        """Have workers begin anew; {unit_id: what came of it}."""
        return self._order(restart=ids) or dict.fromkeys(ids, "the leader did not answer in time")

    def _order(self, **what: Any) -> dict[str, str]:
        """Have the leader do something; what came of it, empty where it does not answer."""
        path = self.directory / ORDER_FILE.format(secrets.token_hex(8))
        order = {"who": self.who, "expires_at": time.time() + RESTART_WAIT_S, "restart": [], **what}
        write_private(path, json.dumps(order))
        self.tell()
        end = time.monotonic() + RESTART_WAIT_S
        while time.monotonic() < end:
            done: dict[str, str] | None = read_state(self.directory)["restarts"].get(path.stem)
            if done is not None:
                return done
            time.sleep(LOOK_S)
        return {}


def _is_under_way(one: dict[str, Any], restarting: bool, again: bool) -> bool:
    """Whether an online unit has not answered what it was told last; one that was told `again` may say the same."""
    should, is_, refused = one["desired"], one["actual"], one["refused"] or {}
    if restarting and one["restart_needed"]:
        return True
    if again:
        return any(entry["what"] in ("config", "active") for entry in one["drift"])
    if one["is_ahead"]:
        return False  # it takes nothing of a lower number
    return should["version"] not in (is_["version"], refused.get("version")) or is_["active"] != should["active"]


def show(found: list[dict[str, Any]]) -> None:
    """Print the units with what differs."""
    for one in found:
        stands, use = one["actual"]["version"], "" if one["desired"]["active"] else ", out of use"
        version = "unknown" if stands is None else f"version {stands} of {one['desired']['version']}"
        print(
            f"{one['unit']}: {one['state']}{use}, configuration {version}{'' if one['drift'] else ', as it should be'}"
        )
        for entry in one["drift"]:
            print(f"  {entry['what']}: {entry['text']}; {entry['remedy']}")


def state(desk: Desk) -> int:
    """Print whether the units are as they should be; DRIFT_STATUS where one is not."""
    names = desk.chosen(desk.arguments.unit)
    found = desk.units(names)
    asked_at = time.time()
    known = read_state(desk.directory)
    if desk.tell():
        found = desk.settled(asked_at, names)
    elif known["t"]:
        say(f"no leader runs here; this is how it was at {_when(known['t'])}")
    else:
        say("no leader runs here, and none has looked yet")
    if desk.arguments.json:
        print(json.dumps(found))
    else:
        show(found)
    return DRIFT_STATUS if any(one["drift"] for one in found) else 0


def repair(desk: Desk) -> int:
    """Tell units once more what they should be, and say what a person has to do."""
    if bool(desk.arguments.unit) == desk.arguments.all:
        raise StoreError("name a unit, or say --all")
    names = desk.chosen(desk.arguments.unit)
    found = desk.units(names)
    if desk.arguments.dry_run:
        for one in found:
            for entry in one["drift"]:
                print(f"{one['unit']}: {entry['what']}: {_would_do(one, entry, desk.arguments.restart)}")
        return DRIFT_STATUS if any(one["drift"] for one in found) else 0
    return desk.distribute(names, desk.arguments.restart, again=True)


def _would_do(one: dict[str, Any], entry: dict[str, str], restart: bool) -> str:
    if entry["what"] == "restart":
        return "would let its worker begin anew" if restart else f"would do nothing without --restart ({entry['text']})"
    if entry["what"] in ("config", "active") and not one["refused"]:
        return f"would tell it version {one['desired']['version']} again" + (
            ", numbered above its own" if one["is_ahead"] else ""
        )
    return f"would do nothing: {entry['remedy']}"


# stirbar cluster config


def _show(desk: Desk) -> int:
    unit_id = desk.unit_id(desk.arguments.unit)
    number = desk.arguments.version
    version = desk.history.head(unit_id) if number is None else desk.history.version(unit_id, number)
    sys.stdout.write(version.text)
    return 0


def _edit(desk: Desk) -> int:
    unit_id = desk.unit_id(desk.arguments.unit)
    head = desk.history.head(unit_id)
    whom = f"unit {desk.arguments.unit}" if desk.arguments.unit else "every unit"
    text = head.text or EDIT_HEAD.format(whom=whom)
    while True:
        text = _edited(text)
        if text in (head.text, EDIT_HEAD.format(whom=whom)):
            say("nothing was changed")
            return 0
        try:
            return desk.save(unit_id, text, head.number)
        except (Refused, Changed) as error:
            print(error, file=sys.stderr)
            if isinstance(error, Changed) or not sys.stdin.isatty() or input("edit again? [Y/n] ").lower() == "n":
                _keep_draft(text)
                return 1


def _edited(text: str) -> str:
    editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "nano")
    with tempfile.TemporaryDirectory(prefix="stirbar-") as directory:
        path = Path(directory, "config.ini")
        path.write_text(text, encoding="utf-8")
        done = subprocess.run([*editor, str(path)])
        if done.returncode:
            raise StoreError(f"{editor[0]} ended with status {done.returncode}: nothing was changed")
        return path.read_text(encoding="utf-8")


def _keep_draft(text: str) -> None:
    with tempfile.NamedTemporaryFile("w", prefix="stirbar-config-", suffix=".ini", delete=False) as file:
        file.write(text)
    say(f"your text is in {file.name}: `stirbar cluster config push {file.name}` tries again")


def _push(desk: Desk) -> int:
    unit_id = desk.unit_id(desk.arguments.unit)
    file = desk.arguments.file
    if file is not None:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        expected = desk.arguments.expected
        head = desk.history.head(unit_id).number if expected is None else expected
        return desk.save(unit_id, text, head, desk.arguments.restart)
    return desk.distribute(desk.chosen(desk.arguments.unit), desk.arguments.restart, again=True)


def _history(desk: Desk) -> int:
    found = desk.history.versions(desk.unit_id(desk.arguments.unit))
    if desk.arguments.json:
        print(json.dumps([version.as_dict() for version in found]))
        return 0
    for version in found:
        print(f"{version.number:6}  {_when(version.saved_at)}  {version.digest or '-':16}  {version.saved_by}")
    return 0


def _diff(desk: Desk) -> int:
    unit_id = desk.unit_id(desk.arguments.unit)
    found = desk.history.versions(unit_id, 2)
    numbers = [version.number for version in found] + [0, 0]
    new = numbers[0] if desk.arguments.new is None else desk.arguments.new
    old = numbers[1] if desk.arguments.old is None else desk.arguments.old
    sys.stdout.write(difference(desk.history.version(unit_id, old), desk.history.version(unit_id, new)))
    return 0


def _restore(desk: Desk) -> int:
    unit_id = desk.unit_id(desk.arguments.unit)
    head = desk.history.head(unit_id)
    return desk.save(unit_id, desk.history.version(unit_id, desk.arguments.version).text, head.number)


def _when(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).isoformat(" ", "seconds")


CONFIG_ACTIONS = {
    "show": _show, "edit": _edit, "push": _push, "history": _history, "diff": _diff, "restore": _restore,
}  # fmt: skip
ACTIONS = {
    "config": lambda desk: CONFIG_ACTIONS[desk.arguments.what](desk), "state": state, "repair": repair,
}  # fmt: skip


def run(config: Config, arguments: argparse.Namespace, tell: Tell) -> int:
    """One of ACTIONS; raises StoreError, CredentialError and OSError."""
    try:
        return ACTIONS[arguments.action](Desk(config, arguments, tell))
    except (Refused, Changed) as error:
        print(error, file=sys.stderr)
        say("nothing was changed")
        return 1


def add_parsers(actions: Any, act: Act) -> None:
    """Add ACTIONS to the sub-commands of `stirbar cluster`, which calls `act` for each."""
    text = "on the leader: the configuration that it distributes to all units, or with --unit to one"
    commands = actions.add_parser("config", help=text, description=text).add_subparsers(dest="what", required=True)

    def command(name: str, help: str) -> argparse.ArgumentParser:
        one: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help)
        one.add_argument("--unit", default="", help="that of one unit, above the one for all")
        add_config_options(one)
        return one

    command("show", "print a version, by default the newest").add_argument("--version", type=int)
    command("edit", "edit it with $EDITOR; it is checked, saved and distributed")
    pushed = command("push", "save a file and distribute it; without a file distribute the newest version again")
    pushed.add_argument("file", nargs="?", metavar="FILE", help="- is standard input")
    pushed.add_argument("--expected", type=int, metavar="VERSION", help="refuse unless this is the newest")
    pushed.add_argument(
        "--restart", action="store_true", help="let workers that need it begin anew, in experiments too"
    )
    command("history", "list the versions").add_argument("--json", action="store_true")
    differing = command("diff", "what a version changed: OLD to NEW, by default the last two")
    differing.add_argument("old", nargs="?", type=int)
    differing.add_argument("new", nargs="?", type=int)
    command("restore", "make an earlier version the newest").add_argument("version", type=int)
    text = "on the leader: whether the units are as they should be; ends with 3 where one is not"
    one = actions.add_parser("state", help=text, description=text)
    one.add_argument("unit", nargs="?", default="")
    one.add_argument("--json", action="store_true")
    add_config_options(one)
    text = (
        "on the leader: tell units again what they should be; versions and plug-ins are for `stirbar cluster bootstrap`"
    )
    one = actions.add_parser("repair", help=text, description=text)
    one.add_argument("unit", nargs="?", default="")
    one.add_argument("--all", action="store_true")
    one.add_argument("--restart", action="store_true", help="let workers that need it begin anew, in experiments too")
    one.add_argument("--dry-run", action="store_true", help="only say what would be done")
    add_config_options(one)
    for name in ACTIONS:
        actions.choices[name].set_defaults(act=act)
