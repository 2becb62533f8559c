"""Worker or guard killed or stopped, or Python in it gone wrong, at a random moment while heater, stirrer, a pump and
LED are on: how long until everything that heats or pumps is off, on the board itself.

`STIRBAR_DEATHS=50` makes fifty rounds of each (`make soak` and `python -m benchmarks.deaths` do); `STIRBAR_DEATHS_FILE`
gets a line of JSON for each kind.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time

import pytest
from guards import LINES, RunningGuard, compiled_guard
from running import wait_for
from stirbar.core.client import CommandRefused
from test_guard_worker import LED_DRIVER, LEDS_OUT, BoardWorker, on_board, state_of, what_is_on

ROUNDS = int(os.environ.get("STIRBAR_DEATHS", "1"))
SETTINGS = (
    "stirring.config.use_rpm=0",
    "stirring.config.initial_duty_cycle=100",
    "temperature_automation.config.automation_name=thermostat",
    "temperature_automation.config.target_temperature=45",
    "dosing_automation.config.waste_ml_per_s=0.5",
)
STIRRED = {"stirring", *(f"LED {output}" for output in range(4))}
# worker and guard are let live for so long at most before they die
LIFE_S = 0.3
QUIET_S = 0.4


class Place:
    """A guard, and a worker with everything on."""

    def __init__(self, bench, executable: str) -> None:
        self.bench = bench
        self.executable = executable
        self.guard = self.worker = None
        self.begin()

    def begin(self) -> None:
        if self.guard is None:
            self.guard = RunningGuard(
                self.executable,
                *(f"--line={name}={number}" for name, number in LINES.items()),
                *(f"--pwm={name}=/sys/class/pwm/pwmchip0/pwm{n}@4000000" for name, n in (("media", 1), ("waste", 0))),
                *(f"--dac=/dev/i2c-1:{LED_DRIVER:#04x}:{message}" for message in LEDS_OUT["rp2040"]),
            ).ready()
        if self.worker is None:
            self.worker = BoardWorker(self.guard.directory, *SETTINGS, code=GOES_WRONG)

    def end_worker(self) -> None:
        self.worker.process.send_signal(signal.SIGKILL)
        self.worker.process.wait()
        self.worker.stop(check=False)
        self.worker = None

    def end_guard(self) -> None:
        self.guard.process.send_signal(signal.SIGKILL)
        self.guard.process.wait()
        self.guard.close()
        self.guard = None

    def close(self) -> None:
        if self.worker is not None:
            self.end_worker()
        if self.guard is not None:
            self.end_guard()

    def on(self) -> set[str]:
        return set(what_is_on(self.bench))

    def last_on(self, may_stay: set[str], limit_s: float) -> float:
        """When anything but that was on last, in looks of a millisecond, until nothing was for a while: a heater at
        16 Hz is dark for up to 60 ms."""
        begun = last = time.monotonic()
        while (now := time.monotonic()) < last + QUIET_S:
            if self.on() - may_stay:
                last = now
                assert now < begun + limit_s, self.on()
        return last

    def everything_on(self) -> None:
        """Heat, stirrer, LED, and a pump that runs for a while."""

        def doses() -> bool:
            try:
                return bool(self.worker.client.dose("waste", seconds=25.0))
            except CommandRefused:
                return False

        if "pwm 0" not in self.on():
            self.worker.client.stop_doses()
            wait_for(doses, 20, "a dose", every_s=0.1)
        wait_for(lambda: "pwm 0" in self.on(), 10, "the pump on", every_s=0.01)
        wait_for(lambda: {"heating", "stirring"} & self.on(), 40, "the heater on", every_s=0.01)
        wait_for(lambda: "heating" in self.on(), 40, "the heater on", every_s=0.002)


@pytest.fixture
def place(tmp_path_factory, bench):
    place = Place(bench, compiled_guard(tmp_path_factory.mktemp("guard"), bench.where))
    yield place
    place.close()


# A worker whose Python goes wrong, as a plug-in's may, once a file is there.
GOES_WRONG = """
import os, sys
from stirbar.core import host
from stirbar.core.cli import main
step = host.Host.step
def wrong(self):
    if os.path.exists(os.path.join(self.directory, "loop")):
        while True:
            pass
    if os.path.exists(os.path.join(self.directory, "exception")):
        raise RuntimeError("a plug-in's")
    return step(self)
host.Host.step = wrong
sys.exit(main(sys.argv[1:]))
"""

# who dies, of what; what may stay on; within how many seconds the rest is off
DEATHS = {
    "worker SIGKILL": (set(), 3.0),
    "worker SIGSTOP": (set(), 3.0),
    "guard SIGKILL": (STIRRED, 1.0),
    "guard SIGSTOP": (STIRRED, 1.0),
    "python loop": (STIRRED | {"pwm 0"}, 5.0),  # the dose under way goes to its end
    "python exception": (set(), 3.0),
}
LATE_S = 0.3  # of an ordinary process on a busy machine, and of the look


@on_board
@pytest.mark.parametrize("death", DEATHS)
def test_nothing_that_heats_or_pumps_stays_on(bench, place, death):
    who, name = death.split()
    may_stay, within_s = DEATHS[death]
    chance = random.Random(20261129)
    took_s = []
    for _ in range(ROUNDS):
        place.begin()
        place.everything_on()
        dies_at = time.monotonic() + chance.uniform(0.0, LIFE_S)
        wait_for(lambda dies_at=dies_at: time.monotonic() >= dies_at, 5, "its time", every_s=0.001)
        process = place.guard.process if who == "guard" else place.worker.process
        if who == "python":
            (place.worker.directory / "data" / name).touch()
        else:
            process.send_signal(getattr(signal, name))
        if name == "SIGSTOP":
            wait_for(lambda process=process: state_of(process.pid) == "T", 5, "a stopped process", every_s=0.0005)
        at = time.monotonic()
        took_s.append(place.last_on(may_stay, within_s + 2.0) - at)
        if name == "SIGSTOP":
            process.send_signal(signal.SIGCONT)
        if who != "guard":  # a sensor that was not read for seconds would have to prove itself again
            place.end_worker()
        elif name == "SIGKILL":
            place.end_worker()
            place.end_guard()
    took_s.sort()
    found = {"death": death, "rounds": ROUNDS, "p50_s": took_s[len(took_s) // 2], "max_s": took_s[-1]}
    print(f"{bench.where}: {found}")
    if path := os.environ.get("STIRBAR_DEATHS_FILE"):
        with open(path, "a") as file:
            file.write(json.dumps({**found, "where": bench.where, "within_s": within_s}) + "\n")
    assert took_s[-1] < within_s + LATE_S
