"""A whole worker on a board: it stirs with the lines that the guard gave, and leaves nothing on however it ends."""

from __future__ import annotations

import itertools
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
from board_bench import board
from guards import LINES, RunningGuard, compiled_guard
from running import RunningWorker, stirbar_environment, wait_for
from stirbar.core.client import CommandRefused
from stirbar.core.guard_command import LEDS_OUT

on_board = board("eyespy", plant=True)


class BoardWorker(RunningWorker):
    """A worker on the board of the process that starts it; the guard's directory is its runtime directory."""

    def __init__(self, runtime_directory: pathlib.Path, *settings: str, code: str = "") -> None:
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="sb", dir="/tmp"))
        self.address = f"ipc://{runtime_directory}/w"
        arguments = []
        for setting in (
            "unit.name=w",
            "unit.hardware=eyespy",
            f"unit.data_directory={self.directory}/data",
            f"unit.runtime_directory={runtime_directory}",
            "od_config.photodiode_channel.1=",
            "loop.config.lock_memory=0",
            *settings,
        ):
            arguments += ["--set", setting]
        with open(self.directory / "stderr", "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *(["-c", code] if code else ["-m", "stirbar.core.cli"]), "worker", *arguments],
                env=stirbar_environment() | {"STIRBAR_BOARD": os.environ.get("STIRBAR_BOARD", "")},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        self.client = self._connect()


@pytest.fixture(scope="module")
def executable(tmp_path_factory):
    from board_bench import current_bench

    here = current_bench()
    return compiled_guard(tmp_path_factory.mktemp("guard"), here.where if here else "")


@pytest.fixture
def guard(executable):
    guard = RunningGuard(executable, *(f"--line={name}={number}" for name, number in LINES.items())).ready()
    yield guard
    guard.close()


@pytest.fixture
def start():
    started: list[BoardWorker] = []

    def run(directory: pathlib.Path, *settings: str) -> BoardWorker:
        started.append(BoardWorker(directory, *settings))
        return started[-1]

    yield run
    for worker in started:
        worker.stop(check=False)


def near(worker: BoardWorker, rpm: float, tolerance: float) -> float | None:
    reading = worker.client.latest("rpm")
    return reading["value"] if reading and abs(reading["value"] - rpm) < tolerance else None


TRACE = pathlib.Path("/sys/kernel/tracing")
GPIO_BASE = 512  # the kernel's own number of the chip's first line


def rises_of(bench, line: int, seconds: float) -> list[float]:
    """When a line went high, s: by the simulator kernel's trace events; on the fake by looking, as often as it goes."""
    if bench.where == "kernel":
        (TRACE / "trace_clock").write_text("mono")
        (TRACE / "trace").write_text("")
        (TRACE / "events/gpio/enable").write_text("1")
        time.sleep(seconds)
        (TRACE / "events/gpio/enable").write_text("0")
        found = re.findall(rf"\s([\d.]+): gpio_value: {GPIO_BASE + line} set 1", (TRACE / "trace").read_text())
        return [float(at) for at in found]
    begun = time.monotonic()
    looks = [(1, begun)]
    while looks[-1][1] < begun + seconds:
        looks.append((bench.level(line), time.monotonic()))
    return [at for (before, _), (level, at) in itertools.pairwise(looks) if level > before]


LED_DRIVER = 0x2C
EVERYTHING_ON = (
    "stirring.config.use_rpm=0",
    "stirring.config.initial_duty_cycle=100",
    "temperature_automation.config.automation_name=thermostat",
    "temperature_automation.config.target_temperature=40",
)


@pytest.fixture
def whole_guard(executable):
    """All that `stirbar guard` holds of the board, and its LED driver."""
    guard = RunningGuard(
        executable,
        *(f"--line={name}={number}" for name, number in LINES.items()),
        *(f"--pwm={name}=/sys/class/pwm/pwmchip0/pwm{number}@4000000" for name, number in (("media", 1), ("waste", 0))),
        *(f"--dac=/dev/i2c-1:{LED_DRIVER:#04x}:{message}" for message in LEDS_OUT["rp2040"]),
    ).ready()
    yield guard
    guard.close()


def stopped_with_everything_on(bench, worker: BoardWorker) -> float:
    """SIGSTOP at a moment when stirrer, heater and LED are all on; returns when, time.monotonic()."""

    def caught() -> float | None:
        worker.process.send_signal(signal.SIGSTOP)
        at = time.monotonic()
        wait_for(lambda: state_of(worker.process.pid) == "T", 5, "a stopped worker", every_s=0.0005)
        if bench.level(LINES["stirring"]) and bench.level(LINES["heating"]) and bench.led_code(LED_DRIVER, 0):
            return at
        worker.process.send_signal(signal.SIGCONT)
        return None

    return wait_for(caught, 60, "stirrer, heater and LED on at once", every_s=0.005)


def state_of(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def what_is_on(bench) -> list[str]:
    """What the board itself says is on, by name."""
    on = [name for name, line in LINES.items() if bench.level(line)]
    on += [
        f"pwm {n}" for n in (0, 1) if bench.number(f"board/pwm/{n}/enabled") or bench.number(f"board/pwm/{n}/duty_ns")
    ]
    return on + [f"LED {output}" for output in range(4) if bench.led_code(LED_DRIVER, output)]


@on_board
@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_everything_is_off_after_a_worker_that_heated_stirred_and_measured(bench, whole_guard, start, how):
    guard = whole_guard
    worker = start(guard.directory, *EVERYTHING_ON)
    wait_for(lambda: duty_of(worker) > 5.0, 30, "a heater that heats", every_s=0.2)
    stopped_at = stopped_with_everything_on(bench, worker)
    assert {"heating", "stirring", "LED 0"} <= set(what_is_on(bench))
    if how == "SIGKILL":
        worker.process.send_signal(signal.SIGKILL)
    wait_for(lambda: not what_is_on(bench), 6, "everything off", every_s=0.001)
    took_s = time.monotonic() - stopped_at
    assert took_s < 3.6
    guard.wait_said("LEDs off")
    safe_us = int(guard.wait_said(r"outputs off \(took (\d+) us\)")[1])
    led_us = int(guard.wait_said(r"LEDs off \((\d+) us after the order\)")[1])
    print(f"{bench.where}, {how}: everything off after {1e3 * took_s:.0f} ms; lines {safe_us} us, LEDs {led_us} us")
    worker.process.send_signal(signal.SIGKILL)
    worker.process.wait()
    assert what_is_on(bench) == []


@board("eyespy", plant=True, travel=True)
def test_the_stirrers_pwm_is_in_step_with_the_light(bench, guard, start):
    """A whole number of its cycles to each half-cycle of the chopped light."""
    bench.set_volts(0x48, 0, 0.1)
    bench.led_to_photodiode((0x2C, 0), (0x48, 0), 0.5)
    worker = start(guard.directory)
    wait_for(lambda: near(worker, 500, 50), 30, "500 rpm", every_s=0.2)
    tolerance = 2e-4 if bench.where == "kernel" else 0.03  # sleeps are exact in the one, the machine busy in the other

    def cycles() -> float | None:
        """Cycles of the PWM to a half-cycle of the light."""
        rises = rises_of(bench, LINES["stirring"], 1.0)
        if len(rises) < 3:
            return None
        chop_hz = worker.client.settings()["od_reading", "chop_frequency"]
        ratio = 0.5 / chop_hz / float(np.median(np.diff(rises)))
        return ratio if abs(ratio - round(ratio)) < tolerance * round(ratio) else None

    assert round(wait_for(cycles, 30, "a PWM in step")) in (1, 2)


@on_board
def test_a_worker_stirs_and_a_killed_one_does_not(bench, guard, start):
    worker = start(guard.directory)
    rpm = wait_for(lambda: near(worker, 500, 25), 30, "500 rpm", every_s=0.2)
    status = worker.client.status()["counters"]
    late = (
        f"{status['pulses_late']} pulses late, {status['edges_lost']} edges lost, {status['line_errors']} line errors"
    )
    print(f"{bench.where}: {rpm:.1f} rpm, {late}")
    assert status["edges_lost"] == status["line_errors"] == 0
    assert bench.number("board/stir/speed_mhz") == pytest.approx(500 / 0.06, rel=0.2)
    killed_at = time.monotonic()
    worker.process.send_signal(signal.SIGKILL)
    guard.wait_said("outputs off")
    wait_for(lambda: bench.level(LINES["stirring"]) == 0, 5, "the stirrer's line low", every_s=0.001)
    print(f"{bench.where}: low {1e3 * (time.monotonic() - killed_at):.1f} ms after SIGKILL")
    wait_for(lambda: bench.number("board/stir/speed_mhz") == 0, 15, "standstill")
    # and the next one has the outputs again
    worker.process.wait()
    again = start(guard.directory)
    wait_for(lambda: near(again, 500, 25), 30, "500 rpm again", every_s=0.2)
    again.stop(check=False)
    assert bench.level(LINES["stirring"]) == 0


@on_board
def test_a_stopped_worker_is_made_safe_by_the_guard(bench, guard, start):
    """SIGSTOP freezes a software PWM at its last level; the guard sees the heartbeat stop."""
    worker = start(guard.directory, "stirring.config.use_rpm=0", "stirring.config.initial_duty_cycle=100")
    wait_for(lambda: bench.level(LINES["stirring"]), 10, "the stirrer's line high")
    wait_for(lambda: worker.client.latest("rpm"), 10, "a speed")
    worker.process.send_signal(signal.SIGSTOP)
    stopped_at = time.monotonic()
    wait_for(lambda: not bench.level(LINES["stirring"]), 6, "the stirrer's line low", every_s=0.01)
    assert 2.5 < time.monotonic() - stopped_at < 3.6
    guard.wait_said("has had no heartbeat for 3 s")
    worker.process.send_signal(signal.SIGCONT)
    guard.wait_said("beats again after")
    wait_for(lambda: bench.level(LINES["stirring"]), 5, "the stirrer's line high again")


@on_board
def test_without_a_guard_it_measures_and_says_why_it_does_not_stir(bench, start):
    directory = pathlib.Path(tempfile.mkdtemp(prefix="sr", dir="/tmp"))
    try:
        worker = start(directory, "stirring.config.autostart=1")
        assert f"no stirring: no guard at {directory}/guard (No such file or directory)" in worker.errors()
        with pytest.raises(CommandRefused, match=r"nothing to stir with: no guard at .*start it with `stirbar guard`"):
            worker.client.start("stirring")
        wait_for(lambda: worker.client.latest("od2"), 20, "an optical density", every_s=0.2)
        jobs = worker.client.status()["jobs"]
        assert jobs["stirring"] == "disconnected" and jobs["od_reading"] == "ready"
        assert worker.client.status()["counters"]["bus_errors"] == 0
    finally:
        worker.stop(check=False)
        shutil.rmtree(directory, ignore_errors=True)


@on_board
def test_the_boards_led_tells_an_error_code(bench, guard, start):
    """Without anybody to send it: the worker drives the line itself."""
    worker = start(guard.directory)
    worker.client.command("fault", code=2, seconds=60)
    wait_for(lambda: 2 in worker.client.settings()["monitor", "error_codes"], 10, "the code among the settings")
    for level in (1, 0, 1):
        wait_for(lambda level=level: bench.level(bench.led) == level, 10, f"the LED at {level}")
    assert worker.stop(check=False) is None
    assert bench.level(bench.led) == 0


# --- heat ------------------------------------------------------------------------------------------------------------


def duty_of(worker: BoardWorker) -> float:
    reading = worker.client.latest("liquid")
    return reading["signal_v"] if reading else 0.0


def limited_of(worker: BoardWorker) -> list[str]:
    found = worker.client.settings()["temperature_automation", "heater_limited"]
    assert isinstance(found, list)
    return found


def heated(start, guard) -> BoardWorker:
    """Heating, little as yet: the sensor has to prove itself first."""
    worker = start(
        guard.directory,
        "temperature_automation.config.automation_name=thermostat",
        "temperature_automation.config.target_temperature=40",
    )
    wait_for(lambda: duty_of(worker) > 5.0, 30, "a heater that heats", every_s=0.2)
    return worker


@on_board
def test_a_worker_heats_and_a_killed_one_does_not(bench, guard, start):
    """The TMP1075 follows the line's duty; the same board goes cold with the worker."""
    worker = heated(start, guard)
    wait_for(lambda: bench.level(LINES["heating"]), 5, "the heater's line high", every_s=0.001)
    worker.process.send_signal(signal.SIGKILL)
    guard.wait_said("outputs off")
    wait_for(lambda: bench.level(LINES["heating"]) == 0, 5, "the heater's line low", every_s=0.001)


@on_board
def test_a_worker_whose_guard_stands_still_stops_heating_within_a_second(bench, guard, start):
    worker = heated(start, guard)
    guard.process.send_signal(signal.SIGSTOP)
    stopped_at = time.monotonic()
    wait_for(lambda: duty_of(worker) == 0.0, 10, "no heat", every_s=0.05)
    assert time.monotonic() - stopped_at < 4.0, "a second, and the next reading of the liquid"
    wait_for(lambda: "no_guard" in limited_of(worker), 5, "the reason", every_s=0.05)
    assert bench.level(LINES["heating"]) == 0
    guard.process.send_signal(signal.SIGCONT)
    wait_for(lambda: "no_guard" not in limited_of(worker), 10, "a guard that is back", every_s=0.05)
