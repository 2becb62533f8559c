"""The `stirbar` command: finds a sub-command and hands it the rest of the line.

Commands of this room are named here; those of higher rooms, and users' own, are found through the entry-point group
`stirbar.commands`, so that a worker never imports the web.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# name: (module:function, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "worker": ("stirbar.core.worker:main", "run the controller of one vial"),
    "guard": ("stirbar.core.guard_command:main", "hold the lines of heater, pumps and stirrer for the worker"),
    "status": ("stirbar.core.status:main", "what a worker is doing now"),
    "start": ("stirbar.core.job_command:start", "start a job of a worker"),
    "stop": ("stirbar.core.job_command:stop", "stop a job of a worker"),
    "set": ("stirbar.core.job_command:set_value", "change a setting of a job, as the stirrer's speed"),
    "config": ("stirbar.core.config_command:main", "check, show and change the configuration"),
    "hardware": ("stirbar.core.hardware_command:main", "find, list and check the board"),
    "self-test": ("stirbar.core.self_test:main", "test light, stirrer, heater and bus of a unit"),
    "calibrations": ("stirbar.core.calibrations_command:main", "keep, fit and choose calibration curves"),
    "led": ("stirbar.core.led_command:main", "set the LED channels A to D of a unit"),
    "identify": ("stirbar.core.identify_command:main", "let the LED of a unit's board blink"),
    "dose": ("stirbar.core.dose_command:main", "run the pumps by hand, say what is in the vial"),
    "record": ("stirbar.core.record_command:main", "write a worker's raw conversions to disk"),
    "recording": ("stirbar.core.recording_command:main", "look into a recording, export it"),
    "replay": ("stirbar.core.recording:replay_main", "repeat the readings of a recording"),
    "twin": ("stirbar.core.twin:main", "run a simulated worker in virtual time"),
    "bench": ("stirbar.core.bench:main", "measure this machine against the budgets"),
}
UPPER_COMMANDS: dict[str, str] = {
    "bridge": "carry a worker's readings to the leader",
    "leader": "run broker, store and page of a cluster",
    "demo": "leader and simulated units on this machine",
    "cluster": "invite units, let them join, list, rename, revoke and remove them; label, watch and reboot them",
    "experiment": "one experiment on many units: command them, replace one, gather the results",
    "ingest": "store units' readings as one of several processes that share a leader's load",
    "db": "back up, restore and check the leader's store",
}


def load(target: str) -> Callable[[list[str]], int]:
    """Import `module:function`."""
    from importlib import import_module

    module, _, function = target.partition(":")
    loaded: Callable[[list[str]], int] = getattr(import_module(module), function)
    return loaded


def find(name: str) -> Callable[[list[str]], int] | None:
    """The function behind a command name, or None."""
    if name in COMMANDS:
        return load(COMMANDS[name][0])
    from importlib.metadata import entry_points

    for entry in entry_points(group="stirbar.commands", name=name):
        loaded: Callable[[list[str]], int] = entry.load()
        return loaded
    return None


def usage() -> str:
    """The page of text of `stirbar --help`."""
    lines = ["usage: stirbar COMMAND [OPTIONS]", "", "commands:"]
    lines += [f"  {name:12} {text}" for name, (_, text) in COMMANDS.items()]
    lines += [f"  {name:12} {text}" for name, text in UPPER_COMMANDS.items()]
    lines += ["", "`stirbar COMMAND --help` explains one. `stirbar --version` prints the version."]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit status (2 for a command that does not exist)."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version", "version"):
        import stirbar

        print(f"stirbar {stirbar.__version__}")
        return 0
    command = find(arguments[0])
    if command is None:
        import difflib

        near = difflib.get_close_matches(arguments[0], [*COMMANDS, *UPPER_COMMANDS], 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        print(f"stirbar: no command '{arguments[0]}'{hint} (see `stirbar --help`)", file=sys.stderr)
        return 2
    try:
        return command(arguments[1:])
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe (`| head`) has seen enough
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
