"""`stirbar cluster discover`, `approve` and `join --ask`: units that are on the network and not in the cluster."""

from __future__ import annotations

import json
import sys
import time

from stirbar.bridge import asking, discovery
from stirbar.bridge.enrolment import EnrolmentError
from stirbar.bridge.joining import JoinError
from stirbar.bridge.pairing import Pairing
from stirbar.core import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from stirbar.bridge.enrolment import Enrolment
    from stirbar.core.config import Config


def add_ask_options(parser: argparse.ArgumentParser) -> None:
    """What `stirbar cluster join` takes besides a token."""
    parser.add_argument(
        "--ask",
        nargs="?",
        const="",
        metavar="LEADER",
        help="without a token: ask this leader, or the one found by mDNS",
    )
    parser.add_argument("--fingerprint", default="", metavar="SHA256", help="with --ask: of the leader's authority")


def add_discover_options(parser: argparse.ArgumentParser) -> None:
    """What `stirbar cluster discover` takes."""
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=discovery.BROWSE_S, help="how long to listen")


def discover(enrolment: Enrolment, arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Print the units that were found and are not in the cluster."""
    heard: list[dict[str, str]] = []
    try:
        heard = discovery.units(min(max(arguments.seconds, 0.0), 60.0))
    except discovery.DiscoveryError as error:
        say(f"only those that ask: {error}: {error.remedy}")
    found = Pairing(enrolment).found(heard)
    if arguments.json:
        print(json.dumps(found))
        return
    names = ("unit", "state", "code", "board", "version", "address", "unit_id")
    rows = [list(names)] + [[str(one[name]) or "-" for name in names] for one in found]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    for row in rows:
        print("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())


def approve(enrolment: Enrolment, arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Let a unit in that asks, after its code was compared. Raises EnrolmentError."""
    pairing = Pairing(enrolment)
    asking_units = [one for one in pairing.waiting() if arguments.unit in (one["unit"], one["unit_id"])]
    code = arguments.code
    if not code and len(asking_units) == 1 and sys.stdin.isatty():
        one = asking_units[0]
        ago = (time.time() - one["asked_at"]) / 60
        say(f"'{one['unit']}' ({one['board'] or 'unknown board'}) at {one['address']} asks since {ago:.0f} min")
        print(f"does it show the code {one['code']}? [y/N] ", end="", file=sys.stderr, flush=True)
        code = one["code"] if sys.stdin.readline().strip().lower() in ("y", "yes") else ""
    if not code:
        raise EnrolmentError(
            f"{len(asking_units)} units ask as '{arguments.unit}'" if len(asking_units) != 1 else "it is not approved",
            "code",
            "give the code that the unit shows: `stirbar cluster approve UNIT --code CODE`",
        )
    ids = {one["unit_id"] for one in asking_units if one["code"] == code.strip().upper()}
    name = pairing.approve(ids.pop() if ids else arguments.unit, code)
    say(f"'{name}' is let in as soon as it comes back, within some seconds")


def ask(config: Config, arguments: argparse.Namespace, say: Callable[[str], None]) -> tuple[str, str]:
    """Ask a leader to be let in. Raises JoinError."""
    if not arguments.fingerprint and not sys.stdin.isatty():
        raise JoinError(
            "somebody has to see that the leader shows the same code: run it at a terminal, or give the leader's "
            "--fingerprint, which it prints at its start"
        )
    leader = asking.find_leader(arguments.ask, int(config.get("web.config", "port")))

    def confirm() -> bool:
        print("does the leader show the same code? [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    return asking.join(config, leader, arguments.name or paths.unit_name(config), arguments.fingerprint, say, confirm)
