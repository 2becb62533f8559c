"""`stirbar cluster`: on the leader invite, list, remove, rename, revoke, guest; on a unit join, renew."""

from __future__ import annotations

import argparse
import datetime
import fcntl
import functools
import json
import os
import signal
import sys

from stirbar.bridge import bootstrap_command, desired_command, found_command, guest_command, joining, places
from stirbar.bridge.announce import AnnounceError, announce, announcement
from stirbar.bridge.authority import CertificateError
from stirbar.bridge.credentials import CredentialError
from stirbar.bridge.discovery import DiscoveryError
from stirbar.bridge.enrolment import INVITATION_MINUTES, Enrolment, EnrolmentError
from stirbar.bridge.inventory import write_inventory
from stirbar.bridge.invitations import InvitationError, parse_token
from stirbar.bridge.renewal import RENEW_DAYS
from stirbar.bridge.ssh import SshError
from stirbar.bridge.standing import StandingError, read_standing
from stirbar.bridge.store import StoreError
from stirbar.core import desired, paths
from stirbar.core.config import Config, ConfigError, add_config_options, config_from_arguments

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.metadata import EntryPoint

    Action = Callable[[Config, argparse.Namespace], int | None]

NAME_FIELD = "name"
ACTIONS_GROUP = "stirbar.cluster"  # of entry points


def say(line: str) -> None:
    """One line to whoever runs the command; standard output is for what it gives."""
    print(f"stirbar cluster: {line}", file=sys.stderr, flush=True)


def leader_process(config: Config) -> int:
    """The process of the leader that runs in this data directory; 0 when none does."""
    path = os.path.join(paths.leader_directory(config), "leader.lock")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.read(descriptor, 32) or 0)
    finally:
        os.close(descriptor)
    return 0


def tell_leader(config: Config) -> bool:
    """Let the leader that runs, if one does, take in what has changed; whether one does."""
    process = leader_process(config)
    if process:
        os.kill(process, signal.SIGUSR1)
    return bool(process)


def check_leader_here(config: Config, look: bool = False) -> None:
    """Raises JoinError on a unit of a leader elsewhere and, but for who only looks, where this one does not lead."""
    about = joining.Files(config).leader
    if about.exists() and not os.path.exists(os.path.join(paths.leader_directory(config), "tls")):
        address = json.loads(about.read_text())["address"]
        raise joining.JoinError(f"this machine is a unit of the leader at {address}: run the command there")
    standing = read_standing(places.leader_directory(config))
    if not (standing.leads or look):
        raise joining.JoinError(f"{standing.refusal()}: {standing.remedy()}")


def enrolment_of(config: Config, look: bool = False) -> Enrolment:
    """The cluster of the leader on this machine, to be changed or only looked at; raises as `check_leader_here`."""
    check_leader_here(config, look)
    return Enrolment(config, functools.partial(tell_leader, config), say)


def invite(config: Config, arguments: argparse.Namespace) -> None:
    """Print a token."""
    token = enrolment_of(config).invite(arguments.minutes, arguments.name)
    if not leader_process(config):
        say(f"no leader runs in {paths.leader_directory(config)}: start it before the unit joins")
    whom = f"the unit '{arguments.name}'" if arguments.name else "one unit"
    say(f"within {arguments.minutes:g} min {whom} joins, once, by `stirbar cluster join TOKEN`, where TOKEN is:")
    print(token.text(), flush=True)


def rename(config: Config, arguments: argparse.Namespace) -> None:
    """Print a token by which a unit takes a new name."""
    token = enrolment_of(config).rename(arguments.unit, arguments.new, arguments.minutes)
    say(
        f"'{arguments.unit}' becomes '{arguments.new}' when, within {arguments.minutes:g} min, "
        "`stirbar cluster join TOKEN` is run on it; until then nothing changes. TOKEN is:"
    )
    print(token.text(), flush=True)


def show(config: Config, arguments: argparse.Namespace) -> None:
    """Print the units."""
    units = enrolment_of(config, look=True).units()
    if arguments.json:
        print(json.dumps(units))
        return
    rows = [("unit", "in use", "state", "certificate until", "unit_id")]
    for one in units:
        ends = datetime.datetime.fromtimestamp(one["ends"]).date().isoformat() if one["ends"] else "-"
        rows.append((one["unit"], "yes" if one["active"] else "no", one["state"], ends, one["unit_id"] or "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())


def revoke(config: Config, arguments: argparse.Namespace) -> None:
    """Take a unit's access away."""
    enrolment_of(config).revoke(arguments.unit)
    say(f"'{arguments.unit}' has no access any more; it stays in the inventory, out of use")


def remove(config: Config, arguments: argparse.Namespace) -> None:
    """Take a unit out of the cluster."""
    enrolment_of(config).remove(arguments.unit)
    say(f"'{arguments.unit}' is no longer in the cluster; its readings stay in the store")


def set_active(config: Config, arguments: argparse.Namespace) -> None:
    """Write 1 or 0 into the inventory of this machine's config.ini."""
    active = arguments.action == "activate"
    if arguments.unit == paths.unit_name(config):
        wrong = write_inventory(config, {arguments.unit: active})  # on a unit, where no leader keeps accounts
        if wrong:
            raise joining.JoinError(wrong)
    else:
        enrolment_of(config).activate(arguments.unit, active)
    elsewhere = arguments.unit != paths.unit_name(config)
    told = tell_leader(config)
    goes = "goes on" if active else "stops"
    when = f"its worker {goes} within seconds, or when it is back" if told else "it is told when the leader runs"
    if not (told or elsewhere):
        when = "its worker and bridge read it at their next start"
    say(f"'{arguments.unit}' is {'in' if active else 'out of'} use; {when}")


def join(config: Config, arguments: argparse.Namespace) -> None:
    """Make this machine a unit of the leader's cluster."""
    if arguments.ask is not None:
        _joined(*found_command.ask(config, arguments, say))
        return
    word = arguments.token or sys.stdin.readline()
    token = parse_token(word)
    name = arguments.name or paths.unit_name(config)
    while True:
        try:
            unit, path = joining.join(config, token, name)
            break
        except joining.JoinError as error:
            if error.field != NAME_FIELD or not sys.stdin.isatty():
                raise
            say(str(error))
            name = input("another name: ").strip()
    _joined(unit, path)


def _joined(unit: str, path: str) -> None:
    say(f"this machine is unit '{unit}' now; {path} says where the leader is")
    say("start worker and bridge again: `sudo systemctl restart stirbar-worker stirbar-bridge`")


def provision(config: Config, arguments: argparse.Namespace) -> int:
    """Make units of fresh machines, over SSH."""
    return bootstrap_command.run(config, arguments, enrolment_of(config), say)


def discover(config: Config, arguments: argparse.Namespace) -> None:
    """Print units that were found and not added."""
    found_command.discover(enrolment_of(config), arguments, say)


def approve(config: Config, arguments: argparse.Namespace) -> None:
    """Let a unit in that asks."""
    found_command.approve(enrolment_of(config), arguments, say)


def tell_network(config: Config, arguments: argparse.Namespace) -> None:
    """Let the system's avahi say what this machine is."""
    if arguments.print:
        print(announcement(config), end="")
    else:
        say(f"{announce(config)} is written: avahi tells the network from now on")


def renew(config: Config, arguments: argparse.Namespace) -> None:
    """Renew this unit's certificate if it is time."""
    ends = joining.renew(config, float("inf") if arguments.now else RENEW_DAYS)
    say(f"the certificate is good until {datetime.datetime.fromtimestamp(ends):%Y-%m-%d}")


def distribute(config: Config, arguments: argparse.Namespace) -> int:
    """What the units should be: their configuration, and in what they differ."""
    check_leader_here(config)
    return desired_command.run(config, arguments, tell_leader)


def guest(config: Config, arguments: argparse.Namespace) -> None:
    """Let a client in that is no unit."""
    check_leader_here(config)
    guest_command.guest(config, arguments, say, lambda: tell_leader(config))


def _higher_actions() -> dict[str, EntryPoint]:
    """The actions that higher rooms have: these ask the leader that runs."""
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group=ACTIONS_GROUP)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stirbar cluster", description="The units of a cluster; docs/cluster.md.")
    parser.epilog = "Of the leader that runs (docs/nodes.md): " + ", ".join(sorted(_higher_actions()))
    actions = parser.add_subparsers(dest="action", required=True)

    def action(name: str, act: Action, help: str, unit: bool = False) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=help, description=help)
        one.set_defaults(act=act)
        if unit:
            one.add_argument("unit")
        add_config_options(one)
        return one

    low, usual, high = INVITATION_MINUTES
    made = action("invite", invite, "on the leader: print a token by which one unit joins")
    made.add_argument("--name", default="", help="the name that the unit gets, whatever it calls itself")
    joined = action("join", join, "on a unit: join by the token that the leader printed")
    joined.add_argument("token", nargs="?", help="left out: it is read from standard input")
    joined.add_argument("--name", default="", help="the unit's name (default: that of the configuration)")
    found_command.add_ask_options(joined)
    action("list", show, "on the leader: the units").add_argument("--json", action="store_true")
    action("remove", remove, "on the leader: take a unit out of the cluster", unit=True)
    renamed = action("rename", rename, "on the leader: print a token by which a unit takes another name", unit=True)
    renamed.add_argument("new")
    for one in (made, renamed):
        one.add_argument(
            "--minutes", type=float, default=usual, help=f"how long it is good ({low:g} to {high:g}, else {usual:g})"
        )
    action("revoke", revoke, "on the leader: take a unit's account and certificate away", unit=True)
    action("activate", set_active, "mark a unit in use, in this machine's config.ini", unit=True)
    action("deactivate", set_active, "mark a unit out of use: its worker runs nothing", unit=True)
    guest_command.add_options(
        action("guest", guest, "on the leader: let a client that is no unit into the broker, or list them")
    )
    action("renew", renew, "on a unit: renew its certificate if it ends soon").add_argument(
        "--now", action="store_true", help="renew it in any case"
    )
    fresh = action("bootstrap", provision, "on the leader: make units of fresh machines, over SSH; docs/bootstrap.md")
    bootstrap_command.add_arguments(fresh)
    looked = action("discover", discover, "on the leader: units found on the network and not added")
    found_command.add_discover_options(looked)
    asked = action("approve", approve, "on the leader: let a unit in that asks (`join --ask`)", unit=True)
    asked.add_argument("--code", default="", help="the code that the unit shows")
    said = action("announce", tell_network, "let the system's avahi tell the network of this unit, or leader")
    said.add_argument("--print", action="store_true", help="print what it would write")
    desired_command.add_parsers(actions, distribute)
    return parser


def main(argv: list[str]) -> int:
    """`stirbar cluster`"""
    found = _higher_actions().get(argv[0]) if argv else None
    if found is not None:
        run: Callable[[list[str]], int] = found.load()
        return run(argv)
    arguments = _parser().parse_args(argv)
    act: Action = arguments.act
    try:
        config = config_from_arguments(arguments, wanted=desired.NOTHING)  # so that a bad text can be corrected
        return act(config, arguments) or 0
    except (EnrolmentError, InvitationError, AnnounceError, SshError, DiscoveryError) as error:
        say(f"{error}: {error.remedy}")
        return 1
    except (
        *(ConfigError, CertificateError, CredentialError, joining.JoinError, StandingError, StoreError),
        *(ValueError, OSError),
    ) as error:
        say(str(error))
        return 1
