"""`stirbar cluster bootstrap`: make units of fresh machines, over SSH (docs/bootstrap.md)."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import stat
import sys
import tempfile
import threading
from pathlib import Path

from stirbar.bridge.bootstrap import CHANGED, FAILED, UNCHANGED, Outcome, Result, bootstrap
from stirbar.bridge.bootstrap_access import REPLACE
from stirbar.bridge.bootstrap_host import Plan
from stirbar.bridge.credentials import make_private
from stirbar.bridge.host_scan import MDNS, scan
from stirbar.bridge.parcel import Parcels
from stirbar.bridge.places import leader_directory
from stirbar.bridge.ssh import HostKey, KnownHosts, Target, own_key, parse_target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from stirbar.bridge.enrolment import Enrolment
    from stirbar.core.config import Config

DIRECTORY = "ssh"  # of the leader's: its key, and the hosts' keys
PARCELS = "parcels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `stirbar cluster bootstrap`."""
    add = parser.add_argument
    add("hosts", nargs="*", metavar="HOST", help="HOST, USER@HOST or USER@HOST:PORT")
    add(
        "--scan",
        nargs="?",
        const=MDNS,
        metavar="NETWORK",
        help="find hosts by mDNS, or in a private network of at most /24",
    )
    add("--user", default="pi", help="who logs in (default: pi)")
    add("--port", type=int, default=22)
    add("--name", default="", help="the unit's name, of one host (default: by its board)")
    add("--dry-run", action="store_true", help="list what would change, and change nothing")
    add("--yes", action="store_true", help="accept each new host's key unseen; with --scan, take each Raspberry Pi")
    add("--host-key", action="append", default=[], metavar="SHA256:…", help="a host's fingerprint; may be repeated")
    add("--password-file", metavar="FILE", help="the password to log in with, mode 0600; - for standard input")
    add(REPLACE, action="store_true", help="take default passwords away: then only keys let anybody in")
    add(
        "--package",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a wheel or source distribution of stirbar",
    )
    add("--wheels", type=Path, metavar="DIRECTORY", help="wheels of what stirbar needs, for hosts without a network")
    add("--json", action="store_true", help="print what became of each host as JSON")


class Terminal:
    """Asks the operator, one question at a time. Synchronization: any thread."""

    def __init__(self, arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
        self._arguments = arguments
        self._say = say
        self._lock = threading.Lock()
        self._given = _password_of(arguments.password_file) if arguments.password_file else None
        self._wanted = {"SHA256:" + key.removeprefix("SHA256:").rstrip("=") for key in arguments.host_key}
        self._interactive = sys.stdin.isatty() and arguments.password_file != "-"

    def confirm(self, target: Target, keys: list[HostKey]) -> HostKey | None:
        """The host's key that the operator knows, or accepts."""
        for key in keys:
            if key.fingerprint in self._wanted:
                return key
        if self._wanted:
            return None
        with self._lock:
            self._say(f"{target}: host key {keys[0].fingerprint} ({keys[0].kind})")
            return keys[0] if self._arguments.yes or self.asks("is this the host's? [y/N] ") else None

    def password(self, target: Target) -> str:
        """The password to log in with; empty when none is to be had."""
        if self._given is not None or not self._interactive:
            return self._given or ""
        with self._lock:
            return getpass.getpass(f"password of {target}: ")

    def asks(self, question: str) -> bool:
        """Whether the operator says yes."""
        if not self._interactive:
            return False
        print(question, end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")


def _password_of(path: str) -> str:
    """The first line of a file that nobody else may read, or of standard input. Raises ValueError."""
    if path == "-":
        return sys.stdin.readline().rstrip("\n")
    with open(path) as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise ValueError(f"{path} can be read by others: `chmod 600 {path}`")
        return file.readline().rstrip("\n")


def run(config: Config, arguments: argparse.Namespace, enrolment: Enrolment, say: Callable[[str], None]) -> int:
    """Do it; 0 when nothing failed. Raises ValueError and OSError for what cannot begin."""
    terminal = Terminal(arguments, say)
    targets = [parse_target(one, arguments.user, arguments.port) for one in arguments.hosts]
    if arguments.scan:
        targets += _found(arguments, terminal, say)
    targets = list(dict.fromkeys(targets))
    if not targets:
        raise ValueError("no host: name one, or find them with --scan")
    if arguments.name and len(targets) > 1:
        raise ValueError(f"--name is for one host, and there are {len(targets)}")
    for path in [*arguments.package, *([arguments.wheels] if arguments.wheels else [])]:
        path.stat()
    enrolment.check_open()
    directory = leader_directory(config) / DIRECTORY
    with tempfile.TemporaryDirectory(prefix="sb-") as temporary:
        packed = Path(temporary)  # a dry run leaves nothing here either
        if not arguments.dry_run:
            own_key(make_private(directory))
            packed = make_private(leader_directory(config) / PARCELS)
        parcels = Parcels(packed, arguments.package, arguments.wheels)
        plan = Plan(
            config, enrolment, KnownHosts(directory / "known_hosts"), directory / "id_ed25519", parcels,
            terminal.confirm, terminal.password, arguments.dry_run, arguments.replace_default_password, arguments.name,
        )  # fmt: skip
        results = bootstrap(plan, targets, lambda target, one: _tell(say, target, one))
    print(json.dumps([one.as_json() for one in results], indent=1) if arguments.json else _table(results), flush=True)
    return int(any(one.state == FAILED for one in results))


def _found(arguments: argparse.Namespace, terminal: Terminal, say: Callable[[str], None]) -> list[Target]:
    chosen = []
    for one in scan(arguments.scan, arguments.port):
        about = " ".join(filter(None, (one.address, one.name, one.hint and f"({one.hint})")))
        say(f"found: {about}")
        if one.is_raspberry_pi if arguments.yes else terminal.asks("make a unit of it? [y/N] "):
            chosen.append(parse_target(one.address, arguments.user, arguments.port))
    return chosen


def _tell(say: Callable[[str], None], target: Target, one: Outcome) -> None:
    if one.state != UNCHANGED:
        state = "" if one.state == CHANGED else f"{one.state}: "
        say(f"{target}: {one.step}: {state}{'; '.join(one.what)}" + (f": {one.remedy}" if one.remedy else ""))


def _table(results: list[Result]) -> str:
    rows = [("host", "unit", "board", "state", "")]
    for one in results:
        last = next((f"{step.step}: {step.what[0]}" for step in one.outcomes if step.state == FAILED), "")
        count = sum(len(step.what) for step in one.outcomes if step.state not in (UNCHANGED, FAILED))
        rows.append(
            (one.host, one.unit or "-", one.board or "-", one.state, last or (f"{count} changes" if count else ""))
        )
        rows += [("", "", "", "", note) for note in one.notes]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([*(word.ljust(width) for word, width in zip(row[:4], widths, strict=True)), row[4]]).rstrip()
        for row in rows
    )
