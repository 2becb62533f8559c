"""`stirbar self-test`: hold a unit against the field's self-tests and ours, and put it back as it was.

It runs against a worker that runs, against one of its own where none does, or against a twin in virtual time
(`--simulate`). The worker itself keeps what ran before, and puts it back also when this process is killed
(core/loan.py).

Synchronization: none; one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import signal
import subprocess
import sys
import time

from stirbar.core import paths, profiles
from stirbar.core.client import CommandRefused, Worker, WorkerUnreachable
from stirbar.core.config import ConfigError, add_config_options, config_from_arguments
from stirbar.core.loan import FAILED, PASSED, SKIPPED, last
from stirbar.core.self_test_bench import Bench, LiveBench, TwinBench
from stirbar.core.self_test_list import TESTS, SelfTest
from stirbar.core.self_test_probe import Probe, Skipped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from stirbar.core.check_report import Finding
    from stirbar.core.config import Config

    Result = dict[str, Any]

START_S, ASK_S, STOP_S = 20.0, 1.0, 15.0
# A vial as a self-test wants it: clear medium that does not grow, and nothing running.
CLEAR = (
    ("unit", "hardware", profiles.SIMULATED),
    ("simulation", "time_acceleration", "0"),
    ("simulation", "biomass_od", "0.01"),
    *((f"{job}.config", "autostart", "0") for job in ("od_reading", "stirring", "temperature_automation")),
)


class Refused(Exception):
    """One sentence: why no self-test is made."""


# --- -k --------------------------------------------------------------------------------------------------------------


def matches(expression: str, name: str) -> bool:
    """Whether a name holds what `-k` asks for: parts of names with `and`, `or`, `not` and brackets, case ignored.

    Raises Refused for what is no such expression.
    """
    words = expression.replace("(", " ( ").replace(")", " ) ").split()
    value, rest = _either(words, name.lower(), expression)
    if rest:
        raise Refused(f"-k '{expression}': '{rest[0]}' is not expected there")
    return value


def _either(words: list[str], name: str, whole: str) -> tuple[bool, list[str]]:
    value, words = _both(words, name, whole)
    while words[:1] == ["or"]:
        other, words = _both(words[1:], name, whole)
        value = value or other
    return value, words


def _both(words: list[str], name: str, whole: str) -> tuple[bool, list[str]]:
    value, words = _one(words, name, whole)
    while words[:1] == ["and"]:
        other, words = _one(words[1:], name, whole)
        value = value and other
    return value, words


def _one(words: list[str], name: str, whole: str) -> tuple[bool, list[str]]:
    if words[:1] == ["not"]:
        value, words = _one(words[1:], name, whole)
        return not value, words
    if words[:1] == ["("]:
        value, words = _either(words[1:], name, whole)
        if words[:1] != [")"]:
            raise Refused(f"-k '{whole}': a bracket is not closed")
        return value, words[1:]
    if not words or words[0] in ("and", "or", ")"):
        raise Refused(f"-k '{whole}': a part of a test's name is missing; `stirbar self-test --list` has them")
    return words[0].lower() in name, words[1:]


def chosen(expression: str) -> list[SelfTest]:
    """The tests that `-k` asks for. Raises Refused where there are none."""
    found = [test for test in TESTS if not expression or matches(expression, test.name)]
    if not found:
        raise Refused(f"-k '{expression}' fits no test; `stirbar self-test --list` has them")
    return found


# --- running ---------------------------------------------------------------------------------------------------------


def run_test(test: SelfTest, probe: Probe) -> Result:
    """One test's result: name, status, value, unit, threshold, reason, remedy."""
    value: float | str | None = None
    reason = ""
    try:
        value, good = test.measure(probe)
        status = PASSED if good else FAILED
        if isinstance(value, float):
            value = round(value, 6) if math.isfinite(value) else None
        if value is None and not good:
            reason = "nothing could be measured"
    except Skipped as why:
        status, reason = SKIPPED, str(why)
    except CommandRefused as why:
        status, reason = FAILED, str(why)
        if str(why).startswith("there is nothing to"):
            status = SKIPPED
    return {
        "name": test.name,
        "status": status,
        "value": value,
        "unit": test.unit,
        "threshold": test.threshold,
        "reason": reason,
        "remedy": test.remedy,
    }


def run(
    bench: Bench, probe: Probe, tests: list[SelfTest], stop_jobs: bool, tell: Callable[[Result], None]
) -> list[Result]:
    """Run tests on a unit and put it back; `tell` hears of each result as it comes. Raises Refused."""
    try:
        bench.ask("self_test", step="begin", tests=[test.name for test in tests], stop_jobs=stop_jobs)
    except CommandRefused as why:
        raise Refused(str(why)) from None
    except BaseException:  # an interrupt between the worker's doing and its answer
        bench.ask("self_test", step="end")
        raise
    results: list[Result] = []
    bench.has_loan = True
    try:
        if any(test.heats for test in tests):
            probe.ask_board()
        for test in tests:
            result = run_test(test, probe)
            results.append(result)
            tell(result)
            bench.ask("self_test", step="result", **result)
    finally:
        bench.has_loan = False
        bench.ask("self_test", step="end")
    return results


def line(result: Result) -> str:
    """What a person reads of a result."""
    value = result["value"]
    text = f"{value:.4g}" if isinstance(value, int | float) else str(value or "")
    said = f"{text} {result['unit']}".strip() if text else ""
    if result["status"] == SKIPPED:
        said, threshold = result["reason"], ""
    else:
        said, threshold = said or result["reason"], f"({result['threshold']})"
    remedy = f"  {result['remedy']}" if result["status"] == FAILED else ""
    return f"{result['status']:4}  {result['name']:52}  {said:12}  {threshold}{remedy}".rstrip()


def summary(results: list[Result]) -> str:
    """The last line."""
    count = {status: sum(one["status"] == status for one in results) for status in (PASSED, FAILED, SKIPPED)}
    return f"{len(results)} tests: {count[PASSED]} passed, {count[FAILED]} failed, {count[SKIPPED]} skipped"


# --- what it runs against --------------------------------------------------------------------------------------------


def profile_of(bench: Bench, config: Config) -> profiles.Profile | None:
    """The hardware profile of a unit; None where it cannot be known from here."""
    name = str(bench.config["unit"]["hardware"])
    with contextlib.suppress(profiles.ProfileError, OSError):
        if bench.simulated or name != profiles.AUTO:
            return profiles.load_profile(profiles.SIMULATED if name == profiles.AUTO else name)
        return profiles.choose(config, remembered=True)
    return None


def look_at_bus(config: Config) -> Finding | None:
    """The clock of a board's bus, before a worker has it; None where that cannot be told."""
    if config.get("unit", "simulate"):
        return None
    from stirbar.core.check_bus import check_speed
    from stirbar.core.hardware_command import Busy, Held
    from stirbar.core.i2c_bus import I2cBus

    with contextlib.suppress(profiles.ProfileError, Busy, OSError), Held(config):
        profile = profiles.choose(config)
        with I2cBus(profile.get("i2c", "bus"), profile.get("i2c", "timeout_ms")) as bus:
            return next(iter(check_speed(profile, bus)))
    return None


def _answers(worker: Worker) -> bool:
    try:
        worker.command("describe", timeout_s=ASK_S)
    except WorkerUnreachable:
        return False
    return True


@contextlib.contextmanager
def worker_of_our_own(config: Config, options: list[str]) -> Iterator[str]:
    """A worker of the same configuration for as long as the self-test takes; yields its address. Raises Refused."""
    command = [sys.executable, "-m", "stirbar.core.cli", "worker", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    address = paths.worker_address(config)
    try:
        deadline = time.monotonic() + START_S
        while True:
            if process.poll() is not None:
                said = process.stderr.read().decode(errors="replace").strip() if process.stderr else ""
                reason = said.splitlines()[-1] if said else f"it ended with status {process.returncode}"
                raise Refused(f"no worker answers, and one could not be started: {reason}")
            with Worker(address) as worker:
                if _answers(worker):
                    break
            if time.monotonic() > deadline:
                raise Refused(f"the worker that was started does not answer at {address} within {START_S:g} s")
        yield address
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stderr:
            process.stderr.close()


def _options(arguments: argparse.Namespace) -> list[str]:
    """The options that choose the configuration, for a worker of our own."""
    options = [text for value in arguments.set for text in ("--set", value)]
    for name, value in (("--config", arguments.config), ("--unit-config", arguments.unit_config)):
        options += [name, value] if value else []
    return options


@contextlib.contextmanager
def opened(arguments: argparse.Namespace) -> Iterator[tuple[Bench, Probe]]:
    """The unit to test. Raises Refused, and what config and client raise."""
    with contextlib.ExitStack() as stack:
        bench: Bench
        if arguments.simulate:
            arguments.set.append("unit.simulate=1")
            config = config_from_arguments(arguments, CLEAR)
            bench = TwinBench(config)
            stack.callback(bench.close)
            yield bench, Probe(bench, profile_of(bench, config))
            return
        config = config_from_arguments(arguments)
        clock: Finding | None = None
        address = arguments.address
        worker = stack.enter_context(Worker(address, config=config))
        if not _answers(worker):
            if address or not worker.address.startswith("ipc://"):
                raise Refused(f"no worker answers at {worker.address}; start it there")
            clock = look_at_bus(config)
            address = stack.enter_context(worker_of_our_own(config, _options(arguments)))
            worker = stack.enter_context(Worker(address))
        bench = LiveBench(worker)
        stack.callback(bench.close)
        yield bench, Probe(bench, profile_of(bench, config), clock)


# --- the command -----------------------------------------------------------------------------------------------------


def show_last(config: Config, as_json: bool) -> int:
    """Print the results that the unit kept."""
    directory = paths.data_directory(config)
    results = last(directory)
    if not results:
        print(f"stirbar self-test: no results are kept in {directory}; run `stirbar self-test`", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(results, indent=2))
    else:
        for result in results:
            print(line(result))
        print(summary(results))
    return 1 if any(one["status"] == FAILED for one in results) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stirbar self-test",
        description="Test a unit with a vial of clear medium and a stir bar in it; takes four to five minutes.",
    )
    parser.add_argument("-k", default="", metavar="EXPR", help="only tests whose names fit: parts with and, or, not")
    parser.add_argument("--list", action="store_true", help="the tests, what they look at and their thresholds")
    parser.add_argument("--last", action="store_true", help="the results of the last self-test of this unit")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument("--simulate", action="store_true", help="test a simulated vial in virtual time")
    parser.add_argument("--stop-jobs", action="store_true", help="also while jobs of an experiment run")
    parser.add_argument("--address", help="base address of the worker's sockets")
    add_config_options(parser)
    return parser


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main(argv: list[str]) -> int:
    """`stirbar self-test`. Exit status: 0 nothing failed, 1 something did or no test was made."""
    arguments = _parser().parse_args(argv)
    if arguments.list:
        for test in TESTS:
            print(f"{test.name:52}  {test.about}: {test.threshold}")
        return 0
    tell: Callable[[Result], None] = (lambda _: None) if arguments.json else (lambda one: print(line(one), flush=True))
    handler = signal.signal(signal.SIGTERM, _interrupt)
    try:
        if arguments.last:
            return show_last(config_from_arguments(arguments), arguments.json)
        tests = chosen(arguments.k)
        with opened(arguments) as (bench, probe):
            results = run(bench, probe, tests, arguments.stop_jobs, tell)
    except WorkerUnreachable as error:
        print(f"stirbar self-test: {error}; the worker puts its jobs back by itself", file=sys.stderr)
        return 1
    except (ConfigError, Refused, CommandRefused, ValueError, OSError) as error:
        print(f"stirbar self-test: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, handler)
    print(json.dumps(results, indent=2) if arguments.json else summary(results))
    return 1 if any(one["status"] == FAILED for one in results) else 0
