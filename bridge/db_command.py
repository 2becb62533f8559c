"""`stirbar db`: copy the leader's store while it runs, restore a copy, check it, give free room back.

stirbar db backup --to /media/usb/monday.sqlite
stirbar db check
stirbar db restore /media/usb/monday.sqlite
stirbar db vacuum
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from stirbar.bridge import sqlite_check, sqlite_copy
from stirbar.bridge.places import BACKUPS, database_path, database_url, leader_directory
from stirbar.bridge.store import StoreError
from stirbar.core.config import ConfigError, add_config_options, config_from_arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

GENTLY_MB_PER_S = 10.0  # an SD card takes 20 or more, and the ingest writes too
GENTLY_NICE = 19


def backup_name(path: Path, seconds: float) -> str:
    """Name of the copy made at a time: in order of name, in order of time."""
    return f"{path.stem}-{time.strftime('%Y%m%d-%H%M%SZ', time.gmtime(seconds))}.sqlite"


def _parser() -> ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(prog="stirbar db", description="Copy, restore and check the leader's store.")
    add_config_options(parser)
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    backup = commands.add_parser("backup", help="copy the store, checked; a running leader goes on")
    backup.add_argument("--to", type=Path, metavar="FILE", help="new file (default: in backups/ beside the store)")
    backup.add_argument("--from", type=Path, dest="source", metavar="FILE", help="a store (default: the leader's)")
    gently = f"at the lowest priority and at most {GENTLY_MB_PER_S:.0f} MB/s, as the leader does it"
    backup.add_argument("--gently", action="store_true", help=gently)
    restore = commands.add_parser("restore", help="put a backup in the place of the store; the old one is kept")
    restore.add_argument("file", type=Path, metavar="FILE")
    check = commands.add_parser("check", help="look whether a store is whole; a running leader goes on")
    check.add_argument("file", type=Path, nargs="?", metavar="FILE", help="a backup (default: the leader's store)")
    commands.add_parser("vacuum", help="give the room of what was deleted back to the disk")
    return parser


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if name != "schema")


def _backup(arguments: Namespace) -> None:
    path: Path = arguments.source or _database(arguments)
    target: Path = arguments.to or path.parent / BACKUPS / backup_name(path, time.time())
    if arguments.to is None:
        target.parent.mkdir(mode=0o700, exist_ok=True)
    if arguments.gently:
        os.nice(GENTLY_NICE)
    start = time.monotonic()
    counts = sqlite_copy.back_up(path, target.expanduser(), GENTLY_MB_PER_S if arguments.gently else 0.0)
    print(f"{target}: {_counts(counts)}; {target.stat().st_size} bytes, checked, {time.monotonic() - start:.1f} s")


def _restore(arguments: Namespace) -> None:
    path = _database(arguments)
    counts, aside = sqlite_copy.restore(arguments.file.expanduser(), path)
    print(f"{path}: {_counts(counts)}")
    if aside is not None:
        print(f"the store before is {aside}")
    print("the units send again what the copy lacks, as far as their spools reach back")


def _check(arguments: Namespace) -> None:
    chosen: Path = arguments.file or _database(arguments)
    counts = sqlite_check.check(chosen.expanduser())
    print(f"{chosen}: schema version {counts['schema']}, {_counts(counts)}: in order")


def _vacuum(arguments: Namespace) -> None:
    path = _database(arguments)
    before, after = sqlite_copy.vacuum(path)
    print(f"{path}: {before} bytes before, {after} after")


_ACTIONS = {"backup": _backup, "restore": _restore, "check": _check, "vacuum": _vacuum}


def _database(arguments: Namespace) -> Path:
    """The store of the leader that the configuration describes."""
    config = config_from_arguments(arguments)
    if database_url(config) is not None:
        raise StoreError(
            "the leader's database is PostgreSQL: pg_dump and pg_restore make and restore its backups while it runs, "
            "and the server vacuums by itself (docs/store.md)"
        )
    return database_path(config, leader_directory(config))


def main(argv: list[str]) -> int:
    """`stirbar db`: 1, and a sentence, for what cannot be done or is not in order."""
    arguments = _parser().parse_args(argv)
    try:
        _ACTIONS[arguments.what](arguments)
    except (ConfigError, StoreError, OSError) as error:
        print(f"stirbar db: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
