"""How a command of this room reaches the leader that runs: here by its own files, elsewhere by address and token."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stirbar.bridge.places import leader_directory
from stirbar.core.config import add_config_options, config_from_arguments
from stirbar.core.leader_client import Leader, LeaderUnreachable
from stirbar.web.auth import Links

ADDRESS_FILE = "address"  # in the leader's data directory
TOKEN_VARIABLE = "STIRBAR_TOKEN"


def add_leader_options(parser: argparse.ArgumentParser) -> None:
    """`--leader`, `--token-file` and `--ca-file` beside those of the configuration."""
    parser.add_argument("--leader", metavar="URL", help="the leader's page (default: the leader on this machine)")
    parser.add_argument(
        "--token-file", metavar="FILE", help=f"holds an API token (default: the variable {TOKEN_VARIABLE})"
    )
    parser.add_argument("--ca-file", metavar="FILE", help="the leader's authority, tls/ca.pem in its data directory")
    add_config_options(parser)


@contextmanager
def open_leader(arguments: argparse.Namespace) -> Iterator[Leader]:
    """The leader that the options name; on its own machine a login that ends with the command."""
    if arguments.leader:
        token = os.environ.get(TOKEN_VARIABLE, "")
        if arguments.token_file:
            token = Path(arguments.token_file).expanduser().read_text().strip()
        with Leader(arguments.leader, token=token or None, ca_file=arguments.ca_file) as leader:
            yield leader
        return
    directory = leader_directory(config_from_arguments(arguments))
    try:
        address = (directory / ADDRESS_FILE).read_text().strip()
    except OSError:
        raise LeaderUnreachable(f"no leader has run in {directory}: name one with --leader and --token-file") from None
    authority = directory / "tls" / "ca.pem"
    ca_file = authority if address.startswith("https") and authority.exists() else None
    with Leader(address, token=Links(directory).issue(), ca_file=ca_file) as leader:
        try:
            yield leader
        finally:
            leader.log_out()


def chosen(units: list[dict[str, Any]], names: list[str], tag: str, experiment: str = "") -> list[str]:
    """The names of the units that were named, have a tag, or are in an experiment. Raises ValueError for none."""
    known = {unit["unit"] for unit in units}
    for name in names:
        if name not in known:
            raise ValueError(f"there is no unit '{name}'; known are {', '.join(sorted(known)) or 'none yet'}")
    found = list(dict.fromkeys(names))
    for unit in units:
        fits = (tag and tag in unit["tags"]) or (experiment and unit["experiment"] == experiment)
        if fits and unit["unit"] not in found:
            found.append(unit["unit"])
    if not found:
        raise ValueError(f"no unit has the tag '{tag}'" if tag else "name units, or a tag with --tag")
    return found


def table(heading: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Words in columns."""
    lines = [heading, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heading))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
