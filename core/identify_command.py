"""`stirbar identify`: let the LED of a unit's board blink."""

from __future__ import annotations

import sys

from stirbar.core.client import CommandRefused, Worker, WorkerUnreachable
from stirbar.core.config import ConfigError, add_config_options, config_from_arguments


def main(argv: list[str]) -> int:
    """`stirbar identify`; exit status 1 when no worker answers, or its board has no LED."""
    import argparse

    parser = argparse.ArgumentParser(prog="stirbar identify", description="Let the LED of a unit's board blink.")
    parser.add_argument("--address", help="the worker's base address (default: that of the configured unit)")
    add_config_options(parser)
    arguments = parser.parse_args(argv)
    try:
        with Worker(arguments.address, config=config_from_arguments(arguments)) as worker:
            print(f"the LED blinks for {worker.identify():g} s")
    except (ConfigError, WorkerUnreachable, CommandRefused, ValueError, OSError) as error:
        print(f"stirbar identify: {error}", file=sys.stderr)
        return 1
    return 0
