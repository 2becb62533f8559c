"""`stirbar demo`: a leader and some simulated units on this machine, and the account of every reading at the end.

Each part is a process of its own, as in a real cluster: the leader with its mosquitto, and for each unit a worker and a
bridge with credentials that the leader issued. What is killed is started again; when the demo ends, however it ends,
nothing of it is left running.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from stirbar.bridge.credentials import Credentials
from stirbar.bridge.places import database_path
from stirbar.core import identity
from stirbar.core.client import CommandRefused, Worker, WorkerUnreachable
from stirbar.core.config import EXAMPLE, Config, ConfigError, add_config_options, load_config, parse_overrides
from stirbar.core.leader_client import Leader, LeaderRefused, LeaderUnreachable
from stirbar.core.records import STREAMS
from stirbar.web.accounting import Key, Stored, Tally
from stirbar.web.app import link_address
from stirbar.web.auth import Links
from stirbar.web.certificate import CertificateError
from stirbar.web.children import Child, python, stop_all
from stirbar.web.command import page_address

EXPERIMENT = "demo"
MAXIMUM_WORKERS = 64
START_LIMIT_S = 40.0  # a busy small machine takes its time
DELIVERY_LIMIT_S = 5.0
STOP_LIMIT_S = 4.0
TURN_S = 0.1
JOBS = ("od_reading", "stirring", "temperature_automation")
TIME_ACCELERATION = 60  # a minute of growth in a second, so that something is to be seen


class DemoError(Exception):
    """One sentence: why the demo cannot run, and what to do."""


def say(line: str) -> None:
    """One line to whoever started the demo."""
    print(f"stirbar demo: {line}", file=sys.stderr, flush=True)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Whether nothing listens on a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def write_config(path: Path, sections: dict[str, dict[str, object]]) -> None:
    """Write an INI file."""
    lines = []
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{key} = {value}" for key, value in values.items()), ""]
    path.write_text("\n".join(lines))


class Unit:
    """One simulated unit: its directory, its address, and the configuration that its worker and bridge share."""

    def __init__(self, number: int, directory: Path, runtime: Path) -> None:
        self.name = f"unit{number}"
        self.directory = directory / self.name
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.address = f"ipc://{runtime}/{self.name}"
        self.unit_id = identity.unit_id(str(self.directory))
        self.password_file = self.directory / "mqtt_password"
        self.config_file = self.directory / "unit_config.ini"
        self.number = number

    def write_config(self, username: str, broker_port: int, runtime: Path) -> None:
        """What a unit of a real cluster has in its unit_config.ini, and that it is simulated."""
        write_config(
            self.config_file,
            {
                "unit": {
                    "name": self.name,
                    "data_directory": self.directory,
                    "runtime_directory": runtime,
                    "simulate": 1,
                },
                "worker.config": {"address": self.address},
                "mqtt": {
                    "broker_address": "127.0.0.1",
                    "broker_port": broker_port,
                    "username": username,
                    "password_file": self.password_file,
                },
                # the computer is not the unit's, but that of whoever looks at the demo
                "bridge.config": {"reboot_command": "none", "shutdown_command": "none", "journal_command": "none"},
                "simulation": {"seed": self.number, "time_acceleration": TIME_ACCELERATION},
            },
        )


class Demo:
    """The processes of a demo and its account.

    Synchronization: one thread; a signal handler may set `ended`.
    """

    def __init__(
        self, directory: Path, runtime: Path, workers: int, port: int, config: str, options: list[str]
    ) -> None:
        self.directory = directory
        self.runtime = runtime
        self.ended = False
        self.config_file = config
        self.options = options
        self.children: list[Child] = []
        self.units: list[Unit] = []
        self.tally = Tally()
        self.logs = directory / "logs"
        self.logs.mkdir(exist_ok=True)
        self.leader_config = directory / "leader_config.ini"
        broker_port = free_port()
        write_config(
            self.leader_config,
            {
                "unit": {"data_directory": directory / "leader"},
                "leader.config": {"data_directory": directory / "leader"},
                "web.config": {"port": port},
                "mqtt": {"broker_address": "127.0.0.1", "broker_port": broker_port},
            },
        )
        self.config: Config = load_config(config, str(self.leader_config), parse_overrides(options))
        self.leader_directory = Path(self.config.get("leader.config", "data_directory")).expanduser()
        self.leader_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.address = page_address(self.config)
        self.stored = Stored(database_path(self.config, self.leader_directory))
        self.earlier = {key[:2] for key in self.stored.readings()}  # runs of a demo that was kept
        self.client: Leader | None = None
        credentials = Credentials(self.leader_directory / "credentials")
        for number in range(1, workers + 1):
            unit = Unit(number, directory, runtime)
            username = credentials.issue(unit.name, unit.unit_id, unit.password_file)
            unit.write_config(username, self.config.get("mqtt", "broker_port"), runtime)
            self.units.append(unit)

    # --- start -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything and wait until every unit reports to the leader. Raises DemoError."""
        self._add("leader", "stirbar.web.command", self.leader_config)
        for unit in self.units:
            self._add(f"worker of {unit.name}", "stirbar.core.worker", unit.config_file)
            self._add(f"bridge of {unit.name}", "stirbar.bridge.command", unit.config_file)
            self.tally.connect(unit.address)
        deadline = time.monotonic() + START_LIMIT_S
        self._until(self._leader_answers, deadline, "the leader does not answer", self.children[0])
        self.client = Leader(self.address, token=Links(self.leader_directory).issue(), ca_file=self._authority())
        self._until(self._units_report, deadline, "not every unit reports to the leader")
        self._assign()

    def _add(self, name: str, module: str, unit_config: Path) -> None:
        """One more child; the user's own `--set` come last and win."""
        arguments = ["--config", self.config_file, "--unit-config", str(unit_config)]
        for option in self.options:
            arguments += ["--set", option]
        log = self.logs / f"{name.replace(' ', '_')}.log"
        child = Child(name, python(module, *arguments), log, say)
        child.start()
        self.children.append(child)
        self._write_processes()

    def _authority(self) -> str | None:
        path = self.leader_directory / "tls" / "ca.pem"
        return str(path) if self.address.startswith("https") else None

    def _until(self, condition: Callable[[], bool], deadline: float, problem: str, child: Child | None = None) -> None:
        while not condition():
            self.turn()
            if self.ended:
                return
            if time.monotonic() > deadline:
                words = (
                    child.last_words() if child else "; ".join(filter(None, (c.last_words() for c in self.children)))
                )
                raise DemoError(f"{problem} after {START_LIMIT_S:g} s ({words})")

    def _leader_answers(self) -> bool:
        try:
            with Leader(self.address, ca_file=self._authority(), timeout_s=2.0) as client:
                return bool(client.health()["status"] == "ok")
        except (LeaderUnreachable, LeaderRefused, FileNotFoundError):
            return False

    def _units_report(self) -> bool:
        assert self.client is not None
        with contextlib.suppress(LeaderUnreachable, LeaderRefused):
            units = self.client.units()
            online = {unit["unit"] for unit in units if unit["state"] == "online" and unit["latest"] and unit["jobs"]}
            return online >= {unit.name for unit in self.units}
        return False

    def _assign(self) -> None:
        """Put all units into the experiment."""
        if self.client is None or self.ended:
            return
        if EXPERIMENT not in [experiment["name"] for experiment in self.client.experiments()]:
            self.client.create_experiment(EXPERIMENT, "simulated vials")
        for unit in self.units:
            self.client.assign(unit.name, EXPERIMENT)

    # --- run ---------------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Count what comes, and start again what ended."""
        begun = time.monotonic()
        self.tally.listen(TURN_S)
        if [child for child in self.children if child.watch()]:
            self._write_processes()
        left = begun + TURN_S - time.monotonic()
        if left > 0:
            time.sleep(left)  # one turn takes in what came meanwhile: waking up for each message costs more

    def _write_processes(self) -> None:
        """Which process is what, for those who want to disturb one."""
        path = self.directory / "processes.json"
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps({child.name: child.pid for child in self.children}) + "\n")
        temporary.replace(path)

    # --- stop --------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Stop sampling, wait until the leader has everything, and stop the rest."""
        workers = [child for child in self.children if child.name.startswith("worker")]
        others = [child for child in self.children if child not in workers]
        for unit in self.units:
            self._stop_jobs(unit)
        self._wait_for_delivery(self.children)  # while the workers live, bridges can ask them for what they missed
        self._report_killed(stop_all(workers, STOP_LIMIT_S))
        self._wait_for_delivery(others)
        if self.client is not None:
            self.client.close()
        self._report_killed(stop_all(others[1:], STOP_LIMIT_S))
        self._report_killed(stop_all(others[:1], STOP_LIMIT_S))

    def _wait_for_delivery(self, children: list[Child]) -> None:
        """Until the leader has committed all that has been published by now, at most DELIVERY_LIMIT_S."""
        self.tally.listen(TURN_S)
        published = dict(self.tally.ends)  # a stirrer that runs down may add a reading or two meanwhile
        deadline = time.monotonic() + DELIVERY_LIMIT_S
        while missing := self._missing(published):
            if time.monotonic() > deadline:
                say(f"the leader still lacks {sum(missing.values())} readings after {DELIVERY_LIMIT_S:g} s")
                return
            self.tally.listen(TURN_S)
            for child in children:
                child.watch()

    def _stop_jobs(self, unit: Unit) -> None:
        """Stop sampling, and take the worker's last word on how far its streams came."""
        try:
            with Worker(unit.address, timeout_s=2.0) as worker:
                for job in JOBS:
                    with contextlib.suppress(CommandRefused):
                        worker.stop(job)
                self.tally.add_status(unit.unit_id.hex(), worker.status())
        except WorkerUnreachable as error:
            say(f"{unit.name}: {error}")

    def _report_killed(self, names: list[str]) -> None:
        for name in names:
            say(f"{name} did not end within {STOP_LIMIT_S:g} s and was killed")

    def _missing(self, published: dict[Key, int]) -> dict[Key, int]:
        """How much of what was published the leader has not committed yet, where it lacks anything."""
        covered = self.stored.covered()
        missing = {key: end - covered.get(key, 0) for key, end in published.items()}
        return {key: count for key, count in missing.items() if count > 0}

    def kill(self) -> None:
        """End every child at once (after an error)."""
        stop_all(self.children, STOP_LIMIT_S)

    def account(self, seconds: float) -> dict[str, Any]:
        """What was published, stored and lost; after everything ended."""
        self.tally.listen(TURN_S)  # what came with the workers' last flush
        stored = {key: value for key, value in self.stored.readings().items() if key[:2] not in self.earlier}
        published = dict(self.tally.ends)
        for key, (_, end) in stored.items():
            published[key] = max(published.get(key, 0), end)  # a message may have passed this listener by
        missing = {key: end - stored.get(key, (0, 0))[0] for key, end in published.items()}
        lost = {key: count for key, count in missing.items() if count}
        self._name_losses(lost)
        return {
            "units": len(self.units),
            "seconds": round(seconds, 1),
            "readings_published": sum(published.values()),
            "readings_stored": sum(count for count, _ in stored.values()),
            "readings_lost": sum(lost.values()),
            "gaps": sum(count for run, count in self.stored.gaps().items() if run not in self.earlier),
            "lateness_p99_9_us": self.tally.lateness_us(99.9),
            "overruns": self.tally.overruns(),
            "restarts": {child.name: child.restarts for child in self.children if child.restarts},
        }

    def _name_losses(self, lost: dict[Key, int]) -> None:
        names = {unit.unit_id.hex(): unit.name for unit in self.units}
        for (unit, run, stream), count in lost.items():
            say(f"{names.get(unit, unit)}, run {run[:8]}, {STREAMS[stream]}: {count} readings lost")


def choose_port(asked: int | None) -> int:
    """The port of the page: the one asked for, else 4280, else a free one. Raises DemoError when it cannot be had."""
    if asked is not None:
        if not is_free(asked):
            raise DemoError(f"port {asked} is taken by another program: choose another with --port, or leave it out")
        return asked
    usual = int(load_config(EXAMPLE).get("web.config", "port"))
    if is_free(usual):
        return usual
    port = free_port()
    say(f"port {usual} is taken, the page uses {port}")
    return port


def run(arguments: argparse.Namespace, directory: Path, runtime: Path) -> int:
    """Run a demo in a data directory until it is stopped or its time is over; returns the exit status."""
    port = choose_port(arguments.port)
    demo = Demo(directory, runtime, arguments.workers, port, arguments.config or EXAMPLE, arguments.set)
    signals = 0

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal signals
        signals += 1
        demo.ended = True
        if signals > 2:
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    try:
        demo.start()
        begun = time.monotonic()
        _announce(demo, arguments)
        while not demo.ended and (arguments.seconds is None or time.monotonic() - begun < arguments.seconds):
            demo.turn()
        seconds = time.monotonic() - begun
        say("stopping: waiting until the leader has every reading")
        demo.finish()
    except BaseException:
        demo.kill()
        raise
    account = demo.account(seconds)
    demo.tally.close()
    print(json.dumps(account), flush=True)
    return 0 if account["readings_lost"] == 0 else 1


def _announce(demo: Demo, arguments: argparse.Namespace) -> None:
    if demo.ended:
        return
    link = link_address(demo.address, Links(demo.leader_directory).issue())
    units = f"{len(demo.units)} unit{'s' if len(demo.units) > 1 else ''}"
    until = f" for {arguments.seconds:g} s" if arguments.seconds is not None else "; Ctrl-C ends it"
    say(f"{units} running, time of the culture {TIME_ACCELERATION} times faster{until}")
    say(f"open the page by this link (once, within 10 minutes): {link}")
    desktop = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if desktop and not arguments.no_browser:
        webbrowser.open(link)


def _workers(text: str) -> int:
    number = int(text)
    if not 1 <= number <= MAXIMUM_WORKERS:
        raise argparse.ArgumentTypeError(f"{number} workers; allowed are 1 to {MAXIMUM_WORKERS}")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"{text} seconds; give a positive number")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"port {number}; allowed are 1 to 65535")
    return number


def main(argv: list[str]) -> int:
    """`stirbar demo`"""
    parser = argparse.ArgumentParser(
        prog="stirbar demo",
        description="Run a leader and simulated units on this machine. Prints one JSON line of what it did at the end, "
        "and exits with 1 if a reading was lost.",
    )
    parser.add_argument("--workers", type=_workers, default=3, metavar="N", help="simulated units (default: 3)")
    parser.add_argument("--seconds", type=_seconds, metavar="S", help="end after this long (default: at Ctrl-C)")
    parser.add_argument("--port", type=_port, metavar="P", help="port of the page (default: 4280, or a free one)")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page in a browser")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep all files in this directory")
    add_config_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.keep is not None:
        directory = arguments.keep.expanduser().resolve()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    else:
        directory = Path(tempfile.mkdtemp(prefix="stirbar-demo-"))
    runtime = Path(tempfile.mkdtemp(prefix="stirbar-", dir="/tmp"))  # socket paths have to be short
    status = 1
    try:
        status = run(arguments, directory, runtime)
    except (DemoError, ConfigError, CertificateError, LeaderRefused, LeaderUnreachable, OSError) as error:
        say(str(error))
    finally:
        shutil.rmtree(runtime, ignore_errors=True)
        if status == 0 and arguments.keep is None:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            say(f"data and logs are in {directory}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
