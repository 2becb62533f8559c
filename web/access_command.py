"""`stirbar leader token` and `stirbar leader audit`: API tokens made, listed and revoked, and the log of who did what.

On the leader's own machine, whether the leader runs or not.
"""

from __future__ import annotations

import argparse
import getpass
import time
from collections.abc import Callable
from pathlib import Path

from stirbar.bridge.standing import StandingError, check_own_access
from stirbar.core.config import Config, ConfigError, add_config_options, config_from_arguments
from stirbar.web.audit import Audit, summary
from stirbar.web.tokens import READ, SCOPES, TokenError, Tokens

ACTIONS = ("token", "audit")
HERE = "command line"  # where who did it was


def main(argv: list[str], directory_of: Callable[[Config], Path], say: Callable[[str], None]) -> int:
    """`stirbar leader token …|audit`; `directory_of` says where the leader of a config keeps its files."""
    arguments = _parser().parse_args(argv)
    try:
        directory = directory_of(config_from_arguments(arguments))
        action: Callable[[argparse.Namespace, Path, Callable[[str], None]], int] = arguments.run
        return action(arguments, directory, say)
    except TokenError as error:
        say(f"{error}: {error.remedy}")
    except (ConfigError, StandingError, OSError) as error:
        say(str(error))
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stirbar leader")
    actions = parser.add_subparsers(required=True)
    token = actions.add_parser("token", help="API tokens")
    kinds = token.add_subparsers(required=True)
    create = kinds.add_parser("create", help="make a token and show it, once")
    create.add_argument("name", help="what it is called in lists, logs and events")
    create.add_argument(
        "--scope", choices=SCOPES, default=READ, help="read (default); control: commands too; admin: everything"
    )
    create.add_argument("--days", type=float, help="how long it is in force (default: until it is revoked)")
    create.set_defaults(run=_create)
    listing = kinds.add_parser("list", help="list the tokens, without their secrets")
    listing.set_defaults(run=_list)
    revoke = kinds.add_parser("revoke", help="end a token at once")
    revoke.add_argument("name")
    revoke.set_defaults(run=_revoke)
    audit = actions.add_parser("audit", help="who did what, newest last")
    audit.add_argument("--limit", type=int, default=100, help="how many entries (default: 100)")
    audit.set_defaults(run=_audit)
    for each in (create, listing, revoke, audit):
        add_config_options(each)
    return parser


def _create(arguments: argparse.Namespace, directory: Path, say: Callable[[str], None]) -> int:
    check_own_access(directory)
    secret = Tokens(directory).create(arguments.name, arguments.scope, arguments.days)
    note(directory, "token create", name=arguments.name, scope=arguments.scope)
    say(f"the token '{arguments.name}' may {arguments.scope}; it is shown this once:")
    print(secret, flush=True)
    return 0


def _list(arguments: argparse.Namespace, directory: Path, say: Callable[[str], None]) -> int:
    found = Tokens(directory).listed()
    if not found:
        say("there are no API tokens: `stirbar leader token create NAME --scope read|control|admin` makes one")
    for one in found:
        made, end = _day(one["created_at"]), one["expires_at"]
        until = "no end" if end is None else f"{'expired' if one['expired'] else 'until'} {_day(end)}"
        print(f"{one['name']:<32} {one['scope']:<8} made {made}  {until}")
    return 0


def _revoke(arguments: argparse.Namespace, directory: Path, say: Callable[[str], None]) -> int:
    check_own_access(directory)
    Tokens(directory).revoke(arguments.name)
    note(directory, "token revoke", name=arguments.name)
    say(f"the token '{arguments.name}' is revoked")
    return 0


def _audit(arguments: argparse.Namespace, directory: Path, say: Callable[[str], None]) -> int:
    found = Audit(directory).read(max(1, arguments.limit))
    if not found:
        say(f"nothing was done yet: {Audit(directory).path} has no entries")
    for entry in reversed(found):
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["t"]))
        what = " ".join(str(part) for part in (entry.get("unit"), entry["action"], entry.get("arguments")) if part)
        who = f"{entry['who'] or 'nobody known'} at {entry.get('address', '?')}"
        line = f"{at}  {who}: {what}: {entry.get('result', '')}"
        print("".join(letter if letter.isprintable() else "?" for letter in line))
    return 0


def note(directory: Path, action: str, **fields: str) -> None:
    """Leave an entry of what somebody did at the leader's own machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "?"
    Audit(directory).write(user, action, address=HERE, unit=None, arguments=summary(fields), status=200, result="done")


def _day(t: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(t))
