"""The whole worker on a board, with its guard: readings, stirring, faults, and everything off at the end."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from board_bench import MOTOR, Bench, board
from guards import RunningGuard, compiled_guard
from running import wait_for
from stirbar import Worker
from stirbar.core.client import WorkerUnreachable
from stirbar.core.profiles import load_profile
from stirbar.core.records import FLAGS
from test_board_loop import ANGLES, DARK_V, FULL_CODE_SHARE, VOLTS, led, sensor

READY_S = 60.0


class BoardWorker:
    """`stirbar worker` on the bench, beside a guard; `client` is connected to it."""

    def __init__(self, bench: Bench, guard: RunningGuard) -> None:
        self.profile = load_profile(bench.profile)
        self.log = guard.directory / "worker"
        channels = self.profile.channels()
        settings = [
            "unit.name=w",
            f"unit.hardware={bench.profile}",
            f"unit.runtime_directory={guard.directory}",
            f"unit.data_directory={guard.directory}/data",
            "loop.config.lock_memory=0",
            *[f"od_config.photodiode_channel.{n}={angle if n in channels else ''}" for n, angle in ANGLES.items()],
        ]
        command = [sys.executable, "-m", "stirbar.core.cli", "worker"]
        for setting in settings:
            command += ["--set", setting]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.client = Worker(f"ipc://{guard.directory}/w", timeout_s=20.0)
        wait_for(self._answers, READY_S, "an answer of the worker")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.said()
        with contextlib.suppress(WorkerUnreachable):
            return bool(self.client.command("describe", timeout_s=1.0))
        return False

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def sees_the_light(self) -> bool:
        """Whether the newest reading is one of the light as it is."""
        reading = self.client.latest("od2") or {}
        signal_v = reading.get("signal_v")  # absent in a reading that says that there is none
        return signal_v is not None and abs(signal_v / (VOLTS * FULL_CODE_SHARE) - 1) < 2e-3

    def is_lost(self) -> bool:
        reading = self.client.latest("od2")
        return reading is not None and bool(reading["flags"] & FLAGS["sensor_lost"])

    def turns_at(self, rpm: float, tolerance: float) -> bool:
        reading = self.client.latest("rpm") or {}
        return abs((reading.get("value") or 0.0) - rpm) < tolerance

    def close(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()
            self.client.close()


@pytest.fixture
def worker(bench: Bench, tmp_path: pathlib.Path):
    profile = load_profile(bench.profile)
    for channel in profile.channels():
        at = sensor(profile, channel)
        bench.set_volts(*at, DARK_V)
        bench.set_noise(*at, 30e-6)
        bench.led_to_photodiode(led(profile), at, VOLTS)
    guard = RunningGuard(compiled_guard(tmp_path, bench.where), "--chip=/dev/gpiochip0", f"--line=stirring={MOTOR}")
    guard.ready()
    made = BoardWorker(bench, guard)
    yield made
    made.close()
    guard.close()


@board("hat1.0", plant=True, travel=True)
@board("hat1.1", plant=True, travel=True)
@board("model1.5", plant=True, travel=True)
@board("xr1.5", plant=True, travel=True)
@board("eyespy", plant=True, travel=True)
def test_a_worker_on_every_board(worker: BoardWorker, bench: Bench) -> None:
    wait_for(worker.sees_the_light, 30, "optical density")
    wait_for(lambda: worker.turns_at(500, 25), 30, "500 rpm")
    temperature = wait_for(lambda: worker.client.latest("temperature"), 10, "a temperature")
    assert 20 < temperature["value"] < 30
    address, _ = sensor(worker.profile, 2)
    bench.unplug(address)
    wait_for(worker.is_lost, 20, "a reading that says that the sensor is lost")
    assert worker.turns_at(500, 60)
    bench.replug(address)
    wait_for(worker.sees_the_light, 30, "optical density, again")
    counters = worker.client.status()["counters"]
    assert counters["bus_transfer_errors"] < 100 and counters["bus_timeouts"] == 0
    assert worker.close() == 0, worker.said()
    assert bench.led_code(*led(worker.profile)) in (None, 0)
    assert bench.level(MOTOR) == 0


@board("hat1.0", plant=True, travel=True)
def test_the_boards_led_tells_an_error_code(worker: BoardWorker, bench: Bench) -> None:
    """Without anybody to send it: the worker drives the line itself."""
    worker.client.command("fault", code=2, seconds=60)

    def codes() -> list[int]:
        found = worker.client.command("settings", job="monitor")["settings"]
        return next(one["value"] for one in found if one["setting"] == "error_codes")

    wait_for(lambda: 2 in codes(), 10, "the code among the settings")
    for level in (1, 0, 1):
        wait_for(lambda level=level: bench.level(bench.led) == level, 10, f"the LED at {level}")
    assert worker.close() == 0, worker.said()
    assert bench.level(bench.led) == 0
