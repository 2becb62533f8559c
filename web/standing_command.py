"""`stirbar leader standby-token`, `standby`, `promote`, `standing` and `standby-forget`: docs/standby.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from stirbar.bridge import books, joining
from stirbar.bridge.authority import CertificateError
from stirbar.bridge.cluster_command import enrolment_of, leader_process, tell_leader
from stirbar.bridge.credentials import CredentialError
from stirbar.bridge.enrolment import INVITATION_MINUTES, EnrolmentError, open_ports
from stirbar.bridge.invitations import InvitationError, parse_token
from stirbar.bridge.peer import PeerError, who_leads
from stirbar.bridge.places import database_url, leader_directory
from stirbar.bridge.standing import DEPOSED, LEADER, STANDBY, Place, StandingError, read_standing
from stirbar.bridge.store import StoreError
from stirbar.core.config import Config, ConfigError, add_config_options, config_from_arguments
from stirbar.web import access_command

ACTIONS = ("standby-token", "standby", "promote", "standing", "standby-forget")
STATUS = {LEADER: 0, STANDBY: 3, DEPOSED: 4}  # of `standing`

Say = Callable[[str], None]


def main(argv: list[str], say: Say) -> int:
    """One of the actions above."""
    arguments = _parser().parse_args(argv)
    act: Callable[[Config, argparse.Namespace, Path, Say], int] = arguments.run
    try:
        config = config_from_arguments(arguments)
        return act(config, arguments, leader_directory(config), say)
    except (EnrolmentError, InvitationError) as error:
        say(f"{error}: {error.remedy}")
    except (
        books.StandbyError, CertificateError, ConfigError, CredentialError, joining.JoinError, OSError, StandingError,
        StoreError,
    ) as error:  # fmt: skip
        say(str(error))
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stirbar leader", description="A standby for the leader; docs/standby.md.")
    actions = parser.add_subparsers(required=True)

    def action(name: str, run: Callable[..., int], help: str) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=help, description=help)
        one.set_defaults(run=run)
        add_config_options(one)
        return one

    low, usual, high = INVITATION_MINUTES
    token = action("standby-token", _token, "on the leader: print a token by which one machine becomes its standby")
    token.add_argument(
        "--minutes", type=float, default=usual, help=f"how long it is good ({low:g} to {high:g}, else {usual:g})"
    )
    standby = action("standby", _standby, "on another machine: become the standby of the leader that made a token")
    standby.add_argument("token", nargs="?", help="left out: it is read from standard input")
    standby.add_argument("--host", default="", help="this machine's address (default: the one that the leader sees)")
    promote = action("promote", _promote, "on the standby: lead from now on")
    promote.add_argument("--force", action="store_true", help="also while the leader answers: it then steps down")
    action("standing", _standing, "say whether this machine leads (status 0), is the standby (3) or was deposed (4)")
    action("standby-forget", _forget, "on the leader: let the standby in no more, and tell units of none")
    return parser


def _token(config: Config, arguments: argparse.Namespace, directory: Path, say: Say) -> int:
    refusal = read_standing(directory).refusal()
    if refusal:
        raise books.StandbyError(f"{refusal}: run the command there")
    token = enrolment_of(config).invite_standby(arguments.minutes)
    access_command.note(directory, "standby token")
    if not leader_process(config):
        say(f"no leader runs in {directory}: start it before the standby comes")
    say(f"within {arguments.minutes:g} min one machine becomes the standby, by `stirbar leader standby TOKEN`; it is:")
    print(token.text(), flush=True)
    return 0


def _standby(config: Config, arguments: argparse.Namespace, directory: Path, say: Say) -> int:
    page_port, broker_port = open_ports(config)  # what the standby opens when it is promoted
    token = parse_token(arguments.token or sys.stdin.readline())
    address, authority = joining.find_leader(token)
    books.check_free(config, directory, authority)
    asked = {
        "secret": token.secret.hex(),
        "leader": address,
        "host": arguments.host,
        "page_port": page_port,
        "broker_port": broker_port,
    }
    answer = joining.ask(address, token.port, authority, "standby", asked)
    books.become_standby(config, directory, Place(address, token.port, 0), answer)
    access_command.note(directory, "standby", leader=address)
    tell_leader(config)
    say(f"this machine ({answer['host']}) is the standby of the leader at {address}")
    if not leader_process(config):
        say("start it: `stirbar leader`, or `sudo systemctl start stirbar-leader`")
    return 0


def _promote(config: Config, arguments: argparse.Namespace, directory: Path, say: Say) -> int:
    before = read_standing(directory)
    if before.peer is not None and not before.leads and not arguments.force:
        try:
            role, _ = who_leads(directory, before.peer)
        except PeerError:
            role = ""
        if role == LEADER:
            raise books.StandbyError(
                f"the leader at {before.peer} answers, and leads: stop it first, or `stirbar leader promote --force`"
            )
    url = database_url(config)
    if url is not None:
        from stirbar.bridge.postgres_promote import promote as promote_database

        say(promote_database(url))
    standing = books.promote(directory)
    access_command.note(directory, "promote", epoch=str(standing.epoch))
    tell_leader(config)
    say(f"this machine leads, by epoch {standing.epoch}; units that find no other leader come within a minute")
    if not leader_process(config):
        say("start it: `stirbar leader`, or `sudo systemctl start stirbar-leader`")
    return 0


def _standing(config: Config, arguments: argparse.Namespace, directory: Path, say: Say) -> int:
    standing = read_standing(directory)
    peer = "no standby" if standing.peer is None else f"the standby is at {standing.peer}"
    print(standing.refusal() or f"this machine leads; {peer}")
    if not standing.leads:
        say(standing.remedy())
    return STATUS[standing.role]


def _forget(config: Config, arguments: argparse.Namespace, directory: Path, say: Say) -> int:
    books.forget_standby(directory)
    access_command.note(directory, "standby forget")
    tell_leader(config)
    say("there is no standby any more; it still has the authority's key: docs/security.md")
    return 0
