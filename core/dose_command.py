"""`stirbar dose`: run the pumps of a unit by hand, and say what is in its vial.

stirbar dose media --ml 1
stirbar dose exchange --media 0.5
stirbar dose waste --continuously
stirbar dose volume --ml 14
stirbar dose stop --finish
"""

from __future__ import annotations

import sys
import time

from stirbar.core.client import CommandRefused, Worker, WorkerUnreachable
from stirbar.core.config import ConfigError, add_config_options, config_from_arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from typing import Any

PUMPS = {"media": "media", "alt-media": "alt_media", "waste": "waste"}
LOOK_S = 0.5
RENEW_S = 1.0


def _parser() -> ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(prog="stirbar dose", description="Run a unit's pumps by hand.")
    parser.add_argument("--address", help="the worker's base address (default: that of the configured unit)")
    add_config_options(parser)
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name in PUMPS:
        pump = commands.add_parser(name, help=f"run the {name} pump")
        amount = pump.add_mutually_exclusive_group(required=True)
        amount.add_argument("--ml", type=float, help="millilitres, by the pump's calibration")
        amount.add_argument("--seconds", type=float, help="seconds")
        amount.add_argument("--continuously", action="store_true", help="until this command ends (Ctrl-C)")
    exchange = commands.add_parser("exchange", help="waste, media, waste: as one, finished or made good")
    exchange.add_argument("--media", type=float, default=0.0, metavar="ML", help="medium that comes in")
    exchange.add_argument("--alt-media", type=float, default=0.0, metavar="ML", help="alternative medium")
    exchange.add_argument("--waste", type=float, metavar="ML", help="what goes out (default: as much as comes in)")
    for command in (*(commands.choices[name] for name in PUMPS), exchange):
        command.add_argument("--source", default="user", help="who asks, for the record (default: user)")
        command.add_argument("--no-wait", action="store_true", help="do not wait for the end")
    stop = commands.add_parser("stop", help="stop the pumps, forget the doses that wait")
    stop.add_argument("--finish", action="store_true", help="take out first what an exchange has let in")
    volume = commands.add_parser("volume", help="say what is in the vial, or see it")
    volume.add_argument("--ml", type=float, help="you have looked: so much is in it")
    volume.add_argument("--alt-media-fraction", type=float, metavar="0..1", help="share of alternative medium in it")
    return parser


def _amounts(moved: dict[str, float]) -> str:
    return ", ".join(f"{pump} {ml:.3f} mL" for pump, ml in moved.items() if ml > 0.0) or "nothing moved"


def _follow(worker: Worker, dose: dict[str, Any]) -> int:
    """Wait for the end of a dose; Ctrl-C stops it."""
    number = dose["dose"]
    if dose["state"] == "queued":
        print(f"dose {number} waits behind {dose['ahead']} other(s)" if dose["ahead"] > 1 else f"dose {number} waits")
    renew_at = 0.0
    try:
        while dose["state"] in ("queued", "running"):
            if dose["kind"] == "continuously" and time.monotonic() >= renew_at:
                worker.command("dose_renew")
                renew_at = time.monotonic() + RENEW_S
            time.sleep(LOOK_S)
            dose = worker.command("dose_result", dose=number)
    except KeyboardInterrupt:
        worker.command("dose_stop", finish=dose["kind"] == "exchange")
        dose = worker.command("dose_result", dose=number)
        print(f"stopped: {_amounts(dose['moved_ml'])}", file=sys.stderr)
        return 130
    if dose["state"] == "done":
        print(f"done: {_amounts(dose['moved_ml'])}")
        return 0
    why = f"{dose['state']}, {dose['cut']}" if dose["cut"] else dose["state"]
    print(f"stirbar dose: {why}: {_amounts(dose['moved_ml'])}", file=sys.stderr)
    return 1


def _volume(worker: Worker, arguments: Namespace) -> int:
    if arguments.ml is not None:
        worker.set("bioreactor", "current_volume_ml", arguments.ml)
    if arguments.alt_media_fraction is not None:
        worker.set("bioreactor", "alt_media_fraction", arguments.alt_media_fraction)
    kept = {name: value for (job, name), value in worker.settings().items() if job == "bioreactor"}
    print(f"{kept['current_volume_ml']:.2f} mL, of it {100 * kept['alt_media_fraction']:.1f} % alternative medium")
    print(f"{kept['unseen_ml']:.2f} mL came in since somebody looked")
    for pump in ("media_added", "alt_media_added", "waste_removed"):
        print(f"{kept[f'cumulative_{pump}_ml']:.2f} mL {pump.replace('_', ' ')} in all")
    if kept.get("held"):
        print(f"no dosing: {kept['held']}")
    return 0


def _dose(worker: Worker, arguments: Namespace) -> int:
    if arguments.what == "stop":
        worker.command("dose_stop", finish=arguments.finish)
        print("taking out what came in" if arguments.finish else "pumps stopped")
        return 0
    if arguments.what == "volume":
        return _volume(worker, arguments)
    if arguments.what == "exchange":
        request = {"media_ml": arguments.media, "alt_media_ml": arguments.alt_media}
        if arguments.waste is not None:
            request["waste_ml"] = arguments.waste
        dose = worker.command("exchange", source=arguments.source, **request)
    else:
        kind = "ml" if arguments.ml is not None else "seconds" if arguments.seconds is not None else "continuously"
        amount = {kind: getattr(arguments, kind)}
        dose = worker.command("dose", pump=PUMPS[arguments.what], source=arguments.source, **amount)
    if arguments.no_wait and dose["kind"] != "continuously":
        print(f"dose {dose['dose']} {dose['state']}")
        return 0
    return _follow(worker, dose)


def main(argv: list[str]) -> int:
    """`stirbar dose`; exit status 1 when a dose was refused or cut."""
    arguments = _parser().parse_args(argv)
    try:
        with Worker(arguments.address, config=config_from_arguments(arguments)) as worker:
            return _dose(worker, arguments)
    except (ConfigError, WorkerUnreachable, CommandRefused, ValueError, OSError) as error:
        print(f"stirbar dose: {error}", file=sys.stderr)
        return 1
