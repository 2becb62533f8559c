"""`stirbar cluster`: on the leader invite, list, remove, rename, revoke, guest; on a unit join, renew."""

from __future__ import annotations

import argparse
import datetime
import fcntl
import json
import os
import signal
import sys

from stirbar.bridge import guest_command, joining
from stirbar.bridge.authority import CertificateError
from stirbar.bridge.credentials import CredentialError
from stirbar.bridge.enrolment import INVITATION_MINUTES, Enrolment, EnrolmentError
from stirbar.bridge.inventory import write_inventory
from stirbar.bridge.invitations import InvitationError, parse_token
from stirbar.bridge.renewal import RENEW_DAYS
from stirbar.core import paths
from stirbar.core.config import Config, ConfigError, add_config_options, config_from_arguments

NAME_FIELD = "name"


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


def tell_leader(config: Config) -> None:
    """Let the leader that runs, if one does, take in what has changed."""
    process = leader_process(config)
    if process:
        os.kill(process, signal.SIGUSR1)


def _check_leader(config: Config) -> None:
    """Raises JoinError on a unit of another leader."""
    about = joining.Files(config).leader
    if about.exists() and not os.path.exists(os.path.join(paths.leader_directory(config), "tls")):
        address = json.loads(about.read_text())["address"]
        raise joining.JoinError(f"this machine is a unit of the leader at {address}: run the command there")


def enrolment_of(config: Config) -> Enrolment:
    """The cluster of the leader on this machine. Raises JoinError on a unit of another leader."""
    _check_leader(config)
    return Enrolment(config, lambda: tell_leader(config), say)


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
    units = enrolment_of(config).units()
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
    say(f"'{arguments.unit}' is {'in' if active else 'out of'} use; its worker and bridge read it at their next start")


def join(config: Config, arguments: argparse.Namespace) -> None:
    """Make this machine a unit of the leader's cluster."""
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
    say(f"this machine is unit '{unit}' now; {path} says where the leader is")
    say("start worker and bridge again: `sudo systemctl restart stirbar-worker stirbar-bridge`")


def renew(config: Config, arguments: argparse.Namespace) -> None:
    """Renew this unit's certificate if it is time."""
    ends = joining.renew(config, float("inf") if arguments.now else RENEW_DAYS)
    say(f"the certificate is good until {datetime.datetime.fromtimestamp(ends):%Y-%m-%d}")


def guest(config: Config, arguments: argparse.Namespace) -> None:
    """Let a client in that is no unit."""
    _check_leader(config)
    guest_command.guest(config, arguments, say, lambda: tell_leader(config))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stirbar cluster", description="The units of a cluster; docs/cluster.md.")
    actions = parser.add_subparsers(dest="action", required=True)

    def action(name: str, help: str, unit: bool = False) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=help, description=help)
        if unit:
            one.add_argument("unit")
        add_config_options(one)
        return one

    low, usual, high = INVITATION_MINUTES
    made = action("invite", "on the leader: print a token by which one unit joins")
    made.add_argument("--name", default="", help="the name that the unit gets, whatever it calls itself")
    joined = action("join", "on a unit: join by the token that the leader printed")
    joined.add_argument("token", nargs="?", help="left out: it is read from standard input")
    joined.add_argument("--name", default="", help="the unit's name (default: that of the configuration)")
    action("list", "on the leader: the units").add_argument("--json", action="store_true")
    action("remove", "on the leader: take a unit out of the cluster", unit=True)
    renamed = action("rename", "on the leader: print a token by which a unit takes another name", unit=True)
    renamed.add_argument("new")
    for one in (made, renamed):
        one.add_argument(
            "--minutes", type=float, default=usual, help=f"how long it is good ({low:g} to {high:g}, else {usual:g})"
        )
    action("revoke", "on the leader: take a unit's account and certificate away", unit=True)
    action("activate", "mark a unit in use, in this machine's config.ini", unit=True)
    action("deactivate", "mark a unit out of use: its worker and bridge run nothing", unit=True)
    guest_command.add_options(
        action("guest", "on the leader: let a client that is no unit into the broker, or list them")
    )
    action("renew", "on a unit: renew its certificate if it ends soon").add_argument(
        "--now", action="store_true", help="renew it in any case"
    )
    return parser


def main(argv: list[str]) -> int:
    """`stirbar cluster`"""
    arguments = _parser().parse_args(argv)
    act = {
        "invite": invite, "join": join, "list": show, "remove": remove, "rename": rename, "revoke": revoke,
        "guest": guest, "activate": set_active, "deactivate": set_active, "renew": renew,
    }[arguments.action]  # fmt: skip
    try:
        act(config_from_arguments(arguments), arguments)
    except (EnrolmentError, InvitationError) as error:
        say(f"{error}: {error.remedy}")
        return 1
    except (ConfigError, CertificateError, CredentialError, joining.JoinError, ValueError, OSError) as error:
        say(str(error))
        return 1
    return 0
