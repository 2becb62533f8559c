"""Pumps of a board: a worker that doses by kernel PWM, and what becomes of a dose when worker or guard are stopped."""

from __future__ import annotations

import signal
import time

import pytest
from guards import RunningGuard, compiled_guard
from running import wait_for
from stirbar.core.client import CommandRefused
from test_guard_worker import LINES, BoardWorker, on_board, state_of

PWM = {"media": 1, "waste": 0}
FLOWS = ("dosing_automation.config.media_ml_per_s=0.5", "dosing_automation.config.waste_ml_per_s=0.5")
QUIET = ("stirring.config.autostart=0", "od_reading.config.autostart=0")


@pytest.fixture
def guard(tmp_path_factory, bench):
    guard = RunningGuard(
        compiled_guard(tmp_path_factory.mktemp("guard"), bench.where),
        *(f"--line={name}={number}" for name, number in LINES.items()),
        *(f"--pwm={name}=/sys/class/pwm/pwmchip0/pwm{number}@4000000" for name, number in PWM.items()),
        "--on-time=media=30000",
    ).ready()
    yield guard
    guard.close()


@pytest.fixture
def worker(guard):
    worker = BoardWorker(guard.directory, *FLOWS, *QUIET, "bioreactor.initial_volume_ml=14")
    yield worker
    worker.process.send_signal(signal.SIGCONT)
    worker.stop(check=False)


def is_on(bench, pump: str) -> bool:
    return bool(bench.number(f"board/pwm/{PWM[pump]}/enabled") and bench.number(f"board/pwm/{PWM[pump]}/duty_ns"))


def began(bench, pump: str) -> float:
    wait_for(lambda: is_on(bench, pump), 10, f"the {pump} pump on", every_s=0.001)
    return time.monotonic()


def ended(bench, pump: str, seconds: float) -> float:
    wait_for(lambda: not is_on(bench, pump), seconds, f"the {pump} pump off", every_s=0.001)
    return time.monotonic()


@on_board
def test_a_dose_is_as_long_as_it_should_be(bench, guard, worker):
    dose = worker.client.dose("media", ml=0.5)
    on_at = began(bench, "media")
    late_s = 0.1 if bench.where == "fake" else 0.2  # of a look, on a kernel that runs many times slower
    assert ended(bench, "media", 5) - on_at == pytest.approx(1.0, abs=late_s)
    result = wait_for(
        lambda: (r := worker.client.dose_result(dose["dose"]))["state"] != "running" and r, 5, "the end", every_s=0.05
    )
    assert result["state"] == "done", result
    assert result["moved_ml"]["media"] == pytest.approx(0.5, abs=0.01)
    assert worker.client.settings()["bioreactor", "current_volume_ml"] == pytest.approx(14.5, abs=0.02)
    assert "was to be off" not in guard.errors()


@on_board
def test_a_worker_that_is_stopped_in_a_dose_pumps_no_longer_than_its_deadline(bench, guard, worker):
    worker.client.dose("media", seconds=1.0)
    on_at = began(bench, "media")
    worker.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: state_of(worker.process.pid) == "T", 5, "a stopped worker", every_s=0.0005)
    off_at = ended(bench, "media", 5)
    print(f"{bench.where}: off {1e3 * (off_at - on_at - 1.0):.0f} ms after the deadline")
    assert off_at - on_at == pytest.approx(1.05, abs=0.06)
    guard.wait_said("media was to be off")
    worker.process.send_signal(signal.SIGCONT)
    # and it has counted what the guard let through
    volume = wait_for(
        lambda: (v := worker.client.settings()["bioreactor", "current_volume_ml"]) != 14.0 and v, 10, "the account"
    )
    assert volume == pytest.approx(14.0 + 0.5 * 1.05, abs=0.02)


@on_board
def test_a_worker_that_is_killed_in_a_dose_leaves_no_pump_on(bench, guard, worker):
    worker.client.dose("waste", seconds=20.0)
    began(bench, "waste")
    worker.process.send_signal(signal.SIGKILL)
    killed_at = time.monotonic()
    off_at = ended(bench, "waste", 5)
    print(f"{bench.where}: off {1e3 * (off_at - killed_at):.1f} ms after SIGKILL")
    assert off_at - killed_at < 0.5


@on_board
def test_a_guard_that_is_stopped_in_a_dose_ends_it(bench, guard, worker):
    dose = worker.client.dose("waste", seconds=20.0)
    began(bench, "waste")
    guard.process.send_signal(signal.SIGSTOP)
    stopped_at = time.monotonic()
    try:
        off_at = ended(bench, "waste", 5)
        assert off_at - stopped_at < 1.5
        result = wait_for(
            lambda: (r := worker.client.dose_result(dose["dose"]))["state"] == "cut" and r, 5, "the end", every_s=0.05
        )
        assert result["cut"] == "unguarded"
        with pytest.raises(CommandRefused, match="the guard is silent"):
            worker.client.dose("waste", seconds=0.1)
    finally:
        guard.process.send_signal(signal.SIGCONT)
    wait_for(lambda: took(worker), 10, "a dose after the guard is back", every_s=0.5)


def took(worker: BoardWorker) -> bool:
    try:
        return bool(worker.client.dose("waste", seconds=0.1))
    except CommandRefused:
        return False
