"""`stirbar hardware`: list, detect, scan and check."""

from __future__ import annotations

import argparse
import json
import sys

from stirbar.core import bus_plan, chips, paths
from stirbar.core.check_report import FAIL, NOTE, WARN, Finding, judge
from stirbar.core.config import ConfigError, add_config_options, config_from_arguments
from stirbar.core.detection import BOARDS, Detection, detect
from stirbar.core.i2c_bus import BusError, I2cBus
from stirbar.core.profiles import AUTO, PROFILES, PROTECTIONS, SIMULATED, Profile, ProfileError, load_profile
from stirbar.core.protection import (
    NO,
    UNKNOWN,
    YES,
    Protection,
    ProtectionError,
    parse_answer,
    read_answers,
    write_answers,
)
from stirbar.core.schema_keys import number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator
    from typing import Any

    from stirbar.core.config import Config


class Busy(Exception):
    """A worker drives the board; the message says which."""


class Held:
    """The unit's lock for as long as a command talks to the board: `with Held(config): ...`. Raises Busy."""

    def __init__(self, config: Config) -> None:
        from stirbar.core.worker import WorkerError, take_lock

        try:
            self._lock = take_lock(
                paths.worker_address(config), paths.runtime_directory(config), paths.unit_name(config)
            )
        except WorkerError as error:
            who = str(error).partition(";")[0].replace("another worker", "a worker")
            raise Busy(f"{who}, and the bus is its alone; stop it first") from None

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        import os

        os.close(self._lock)


# --- list ------------------------------------------------------------------------------------------------------------


def plan_rows(profile: Profile) -> list[dict[str, Any]]:
    """The rate plan of each photodiode."""
    rows = []
    for channel in profile.channels():
        section = f"photodiode.{channel}"
        lost = bus_plan.discarded(profile, section)
        low, high = profile.get(section, "half_cycle_low"), profile.get(section, "half_cycle_high")
        good = [k for k in range(low, high + 1) if k > lost]
        rate = profile.get(section, "rate_hz")
        rows.append(
            {
                "channel": channel,
                "chip": profile.get(section, "chip"),
                "address": profile.get(section, "address"),
                "input": profile.get(section, "input") or 0,
                "pace": profile.get(section, "pace"),
                "rate_hz": rate,
                "settle_ms": profile.get(section, "settle_ms"),
                "half_cycle": [good[0], good[-1]] if good else [],
                "discarded": lost,
                "chop_hz": [rate / (2 * good[-1]), rate / (2 * good[0])] if good else [],
                "noise_over_b0": [bus_plan.noise_over_b0(good[-1], lost), bus_plan.noise_over_b0(good[0], lost)]
                if good
                else [],
            }
        )
    return rows


def describe(profile: Profile) -> dict[str, Any]:
    """What `list` prints of one profile."""
    return {
        "name": profile.name,
        "title": profile.get("profile", "title"),
        "hat_version": profile.get("profile", "hat_version"),
        "digest": profile.digest(),
        "bus_hz": profile.get("i2c", "clock_hz"),
        "bus_share": bus_plan.bus_share(profile),
        "bus_share_fast": bus_plan.bus_share(profile, bus_plan.CLOCK_SPREAD),
        "noise_over_b0": profile.get("plan", "noise_over_b0"),
        "note": profile.get("plan", "note"),
        "photodiodes": plan_rows(profile),
    }


def list_profiles(arguments: Namespace) -> int:
    """Print the shipped profiles, or one of the user's, with their rate plans."""
    names = arguments.profile or [name for name in PROFILES if name != "custom-example"]
    entries = [describe(load_profile(name)) for name in names]
    if arguments.json:
        print(json.dumps(entries, indent=2))
        return 0
    for entry in entries:
        hat = f", HAT {entry['hat_version']}" if entry["hat_version"] else ""
        print(f"{entry['name']}: {entry['title']}{hat}")
        print(
            f"  bus {entry['bus_hz'] / 1e3:g} kHz, {100 * entry['bus_share']:.0f} % of its time"
            f" ({100 * entry['bus_share_fast']:.0f} % with the fastest converters); noise"
            f" {number(entry['noise_over_b0'])} x B0"
        )
        for row in entry["photodiodes"]:
            chop = "-".join(f"{value:.1f}" for value in row["chop_hz"])
            ks = "-".join(str(value) for value in row["half_cycle"])
            print(
                f"  channel {row['channel']}: {row['chip']} {row['address']:#x} input {row['input']}, {row['pace']},"
                f" {number(row['rate_hz'])}/s, k {ks} ({chop} Hz), {row['discarded']} lost a change"
            )
        print(f"  {entry['note']}")
    return 0


# --- detect ----------------------------------------------------------------------------------------------------------


def _detection(result: Detection) -> dict[str, Any]:
    best = result.best()
    return {
        "model": result.model,
        "hat": {
            "vendor": result.hat.vendor,
            "product": result.hat.product,
            "product_ver": result.hat.version_text,
            "version": result.hat.version,
        },
        "fault": result.fault,
        "devices": [{"address": c.address, "kind": c.kind, "detail": c.detail} for c in result.found],
        "profile": best.name if best else None,
        "fits": [{"name": f.name, "good": f.is_good(), "reason": f.reason(result.hat)} for f in result.fits],
    }


def detect_board(arguments: Namespace) -> int:
    """Say which profile fits, and why the others do not. Exit status 1 when none does."""
    with Held(config_from_arguments(arguments)):
        result = detect(arguments.bus)
    best = result.best()
    if arguments.json:
        print(json.dumps(_detection(result), indent=2))
        return 0 if best else 1
    print(f"model: {result.model or 'unknown (no device tree)'}")
    print(f"HAT: {result.hat}")
    print(f"on /dev/i2c-{arguments.bus}: {result.seen()}")
    if result.fault:
        return 1
    for fit in result.fits:
        print(f"  {'fits' if fit.is_good() else 'no  '}  {fit.name}: {fit.reason(result.hat)}")
    if best is None:
        print("no profile fits; `stirbar hardware scan` lists the bus, docs/hardware.md says how to write a profile")
        return 1
    print(f"profile: {best.name}")
    for section, chip, address in best.missing:
        print(f"missing: {chip} at {address:#x} ([{section}]); the worker runs without it")
    return 0


# --- scan ------------------------------------------------------------------------------------------------------------


def scan(arguments: Namespace) -> int:
    """Print every address that answers and what is probably there."""
    with Held(config_from_arguments(arguments)), I2cBus(arguments.bus) as bus:
        found = chips.look(bus)
        adapter = bus.adapter()
    if arguments.json:
        entries = [{"address": c.address, "kind": c.kind, "detail": c.detail, "firmware": c.firmware} for c in found]
        print(json.dumps({"bus": arguments.bus, "adapter": adapter, "devices": entries}, indent=2))
        return 0
    print(f"/dev/i2c-{arguments.bus} ({adapter or 'unnamed adapter'}): {len(found)} devices")
    for chip in found:
        print(f"  {chip.address:#04x}  {chip.kind or '?':9} {chip.detail}")
    return 0


# --- check -----------------------------------------------------------------------------------------------------------


def _profile(arguments: Namespace, config: Config) -> Profile:
    """The profile that is asked for, configured, or found."""
    name = arguments.profile or str(config.get("unit", "hardware"))
    if name == SIMULATED:
        raise ProfileError("the profile 'simulated' is no board; name one of " + ", ".join(BOARDS))
    return detect(arguments.bus).profile() if name == AUTO else load_profile(name)


def findings(profile: Profile, config: Config, move: bool) -> Iterator[Finding]:
    """Everything that `check` looks at, in order; may raise OSError when the bus fails altogether."""
    from stirbar.core.check_bus import check_bus
    from stirbar.core.check_light import check_sensors
    from stirbar.core.check_lines import check_lines
    from stirbar.core.check_system import check_system

    yield from check_system(config)
    yield from check_lines(profile, move)
    try:
        with I2cBus(profile.get("i2c", "bus"), profile.get("i2c", "timeout_ms")) as bus:
            yield from check_bus(profile, bus)
            yield from check_sensors(profile, bus, config)
    except (BusError, chips.BusHeld) as error:
        text, _, remedy = str(error.args[-1]).partition(". ")
        yield Finding(FAIL, "I2C bus", text, "answers", remedy or "see docs/hardware.md")


def keep_answers(directory: str, answers: dict[str, str]) -> None:
    """Add answers to those of this unit."""
    write_answers(directory, {**read_answers(directory), **answers})


def ask(profile: Profile, directory: str) -> None:
    """Ask at the terminal for each protection that the board needs and nobody has spoken of."""
    protection = Protection(profile, read_answers(directory))
    for item in protection.items:
        if protection.state[item.key] != UNKNOWN:
            continue
        answer = input(f"ask    {item.name}: {item.question} [yes/no, Enter: not known] ").strip().lower()
        if answer[:1] in ("y", "n"):
            keep_answers(directory, {item.key: YES if answer[0] == "y" else NO})


def check_protection(profile: Profile, directory: str) -> Iterator[Finding]:
    """What protects the vial where software cannot."""
    protection = Protection(profile, read_answers(directory))
    for item in protection.items:
        remedy = f"fit it, then `stirbar hardware check --answer {item.key}=yes`"
        answer = protection.state[item.key]
        yield judge(answer == YES, item.name, answer, YES, f"{item.question} {remedy}", WARN)
    for sentence in protection.sentences():
        yield Finding(NOTE, "protection", sentence)


def check(arguments: Namespace) -> int:
    """Hold the board against its profile. Exit status 1 when something fails."""
    config = config_from_arguments(arguments)
    directory = paths.data_directory(config)
    if arguments.answer:
        keep_answers(directory, dict(parse_answer(text) for text in arguments.answer))
    with Held(config):
        profile = _profile(arguments, config)
        if not arguments.json:
            print(f"profile: {profile.name} ({profile.get('profile', 'title')})")
        found = []
        for finding in findings(profile, config, arguments.move):
            found.append(finding)
            if not arguments.json:
                print(finding.line(), flush=True)
    if sys.stdin.isatty() and not arguments.json:
        ask(profile, directory)
    for finding in check_protection(profile, directory):
        found.append(finding)
        if not arguments.json:
            print(finding.line())
    failed = sum(one.status == FAIL for one in found)
    warned = sum(one.status == WARN for one in found)
    if arguments.json:
        report = {"profile": profile.name, "digest": profile.digest(), "findings": [one.as_dict() for one in found]}
        print(json.dumps(report, indent=2))
    else:
        print(f"{len(found)} checks: {failed} failed, {warned} warning{'' if warned == 1 else 's'}")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stirbar hardware", description="Find, list and check the board of a unit.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    one = commands.add_parser("detect", help="which board is there, which profile fits and why")
    one.set_defaults(run=detect_board)
    two = commands.add_parser("scan", help="every address on the I2C bus that answers, and what it probably is")
    two.set_defaults(run=scan)
    for each in (one, two):
        each.add_argument("--bus", type=int, default=1, metavar="N", help="N of /dev/i2c-N (default: 1)")
    three = commands.add_parser("check", help="hold the board against its profile; the worker must be stopped")
    three.add_argument("--profile", metavar="NAME|FILE", help="the profile (default: [unit] hardware)")
    three.add_argument("--bus", type=int, default=1, metavar="N", help="N of /dev/i2c-N to detect on (default: 1)")
    three.add_argument("--move", action="store_true", help="turn the stirrer for 3 s and count what its sensor sees")
    three.add_argument(
        "--answer",
        action="append",
        default=[],
        metavar="KEY=yes|no|unknown",
        help=f"what protects this unit's vial, kept in its data directory: {', '.join(PROTECTIONS)}",
    )
    three.set_defaults(run=check)
    for each in (one, two, three):
        add_config_options(each)
    four = commands.add_parser("list", help="the profiles and their rate plans")
    four.add_argument("profile", nargs="*", metavar="NAME|FILE", help="only these")
    four.set_defaults(run=list_profiles)
    for each in (one, two, three, four):
        each.add_argument("--json", action="store_true", help="as JSON")
    return parser


def main(argv: list[str]) -> int:
    """Exit status: 0 good, 1 something is missing or wrong, 2 the command line is."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except (ConfigError, Busy, ProtectionError, OSError) as error:
        print(f"stirbar hardware: {error.args[-1] if isinstance(error, OSError) else error}", file=sys.stderr)
        return 1
    return status
