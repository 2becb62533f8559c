"""`stirbar start`, `stirbar stop` and `stirbar set`: a job of a running worker, by hand."""

from __future__ import annotations

import json
import sys

from stirbar.core.client import CommandRefused, Worker, WorkerUnreachable
from stirbar.core.config import ConfigError, add_config_options, config_from_arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

WORDS = {"true": True, "false": False}


def value_of(text: str) -> float | str | bool:
    """A setting's value as a person writes it: true, false, a number, or text."""
    if text in WORDS:
        return WORDS[text]
    try:
        return float(text)
    except ValueError:
        return text


def _run(
    name: str, text: str, positions: dict[str, str], work: Callable[[Worker, list[str]], str], argv: list[str]
) -> int:
    """Parse, ask the worker, print what was done or why not; exit status 1 then."""
    import argparse

    parser = argparse.ArgumentParser(prog=f"stirbar {name}", description=text)
    for position, help in positions.items():
        parser.add_argument(position, help=help)
    parser.add_argument("--address", help="the worker's base address (default: that of the configured unit)")
    add_config_options(parser)
    arguments = parser.parse_args(argv)
    try:
        with Worker(arguments.address, config=config_from_arguments(arguments)) as worker:
            print(work(worker, [getattr(arguments, position) for position in positions]))
    except CommandRefused as error:
        limit = error.error.get("limit")
        allowed = "" if limit is None or str(limit) in str(error) else f"; allowed: {limit}"
        print(f"stirbar {name}: {error}{allowed}", file=sys.stderr)
        return 1
    except (ConfigError, WorkerUnreachable, ValueError, OSError) as error:
        print(f"stirbar {name}: {error}", file=sys.stderr)
        return 1
    return 0


JOB = {"job": "od_reading, stirring, temperature_automation or monitor"}


def start(argv: list[str]) -> int:
    """`stirbar start JOB`."""
    return _run(
        "start", "Start a job of a worker.", JOB, lambda worker, words: f"{words[0]}: {worker.start(*words)}", argv
    )


def stop(argv: list[str]) -> int:
    """`stirbar stop JOB`."""
    return _run(
        "stop", "Stop a job of a worker.", JOB, lambda worker, words: f"{words[0]}: {worker.stop(*words)}", argv
    )


def set_value(argv: list[str]) -> int:
    """`stirbar set JOB SETTING VALUE`."""

    def work(worker: Worker, words: list[str]) -> str:
        job, setting, value = words
        in_force = worker.set(job, setting, value_of(value))
        state = worker.settings().get((job, "$state"))
        waits = "" if state in ("ready", "init") else f" (the job is {state}: in force when it starts)"
        return f"{job} {setting} = {in_force if isinstance(in_force, str) else json.dumps(in_force)}{waits}"

    text = "Change a setting of a job; a change lasts as docs/protocol.md says, the configuration is not changed."
    return _run("set", text, {**JOB, "setting": "as target_rpm", "value": "number, true, false or text"}, work, argv)
