"""`stirbar led`: set the LED channels of a unit, or look at them."""

from __future__ import annotations

import sys

from stirbar.core.client import CommandRefused, Worker, WorkerUnreachable
from stirbar.core.config import ConfigError, add_config_options, config_from_arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LETTERS = "ABCD"


def sentence(letter: str, channel: dict[str, Any]) -> str:
    """What a channel is set to and gives."""
    if channel["held"]:
        return f"LED {letter}: set to {channel['set']:g} %, {channel['held']}"
    return f"LED {letter}: {channel['set']:g} %"


def main(argv: list[str]) -> int:
    """`stirbar led`; exit status 1 when no worker answers, or it refuses: nothing is changed then."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="stirbar led", description="Set LED channels of a unit, in percent. Without a channel: show them."
    )
    for letter in LETTERS:
        about = f"intensity of channel {letter}, 0 to 100"
        parser.add_argument(f"--{letter}", type=float, metavar="PERCENT", help=about)
    parser.add_argument("--source-of-event", default="user", help="who asks, for the log (default: user)")
    parser.add_argument("--address", help="the worker's base address (default: that of the configured unit)")
    add_config_options(parser)
    arguments = parser.parse_args(argv)
    percent = {letter: value for letter in LETTERS if (value := getattr(arguments, letter)) is not None}
    try:
        with Worker(arguments.address, config=config_from_arguments(arguments)) as worker:
            channels = worker.led(arguments.source_of_event, **percent)
    except (ConfigError, WorkerUnreachable, CommandRefused, ValueError, OSError) as error:
        print(f"stirbar led: {error}", file=sys.stderr)
        return 1
    for letter, channel in channels.items():
        if not percent or letter in percent:
            print(sentence(letter, channel))
    if not channels:
        print("this board has no LED channel")
    return 0
