"""The hardware watchdog: fed while the outputs are in somebody's hand or off, left to bite when they are not.

A file that an interposer makes a watchdog (fake_watchdog.c); on the simulator kernel its softdog, where it has one.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import pytest
from board_bench import board
from guards import LINES, Heart, RunningGuard, compiled_guard
from running import wait_for
from stirbar.core import guard as guard_client
from stirbar.core import guard_command
from stirbar.core.config import load_config
from stirbar.core.profiles import load_profile

HERE = pathlib.Path(__file__).parent
HEATER = f"--line=heating={LINES['heating']}"
MEDIA = "--pwm=media=/sys/class/pwm/pwmchip0/pwm1@4000000"


class FakeWatchdog:
    """A file that is a watchdog to programs in `environment`; `text` is what it was asked and fed."""

    def __init__(self, library: pathlib.Path, path: pathlib.Path, longest_s: int) -> None:
        self.path = path
        path.touch()
        self.environment = {
            "LD_PRELOAD": f"{library} {os.environ.get('LD_PRELOAD', '')}".strip(),
            "STIRBAR_WATCHDOG": str(path),
            "STIRBAR_WATCHDOG_LONGEST": str(longest_s),
        }

    @property
    def text(self) -> str:
        return self.path.read_text()

    def wait_fed(self, times: int = 3) -> None:
        size = len(self.text)
        wait_for(lambda: len(self.text) >= size + times, 10, f"{times} feeds")


@pytest.fixture(scope="module")
def interposer(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the fake watchdog")
    library = tmp_path_factory.mktemp("watchdog") / "fake_watchdog.so"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", HERE / "fake_watchdog.c", "-o", library, "-ldl"], check=True)
    return library


@pytest.fixture(scope="module")
def executable(tmp_path_factory):
    return compiled_guard(tmp_path_factory.mktemp("guard"), "fake")


@pytest.fixture
def start(executable):
    started: list[RunningGuard] = []

    def run(*arguments: str, environment: dict[str, str] | None = None) -> RunningGuard:
        started.append(RunningGuard(executable, *arguments, environment=environment))
        return started[-1]

    yield run
    for one in started:
        one.process.send_signal(signal.SIGCONT)
        one.close()


def test_it_is_fed_without_a_worker_and_stopped_at_the_end(start, interposer, tmp_path):
    watchdog = FakeWatchdog(interposer, tmp_path / "watchdog", 1)
    guard = start(f"--watchdog={watchdog.path}", environment=watchdog.environment).ready()
    assert "the hardware watchdog resets after 1 s, not after the 10 s that were asked for" in guard.errors()
    watchdog.wait_fed()
    guard.process.terminate()
    assert guard.process.wait(10) == 0
    assert re.fullmatch(r"<10>\0+V", watchdog.text)


def test_it_is_fed_while_a_worker_beats_or_all_is_off(start, interposer, tmp_path):
    watchdog = FakeWatchdog(interposer, tmp_path / "watchdog", 1)
    guard = start(f"--watchdog={watchdog.path}", environment=watchdog.environment).ready()
    given = guard_client.connect(guard.path)
    heart = Heart(given.heartbeat)
    watchdog.wait_fed()
    heart.stop()
    guard.wait_said("has had no heartbeat for 3 s: outputs off")
    watchdog.wait_fed()
    given.close()
    watchdog.wait_fed()


def test_a_guard_that_stands_still_or_is_killed_does_not_feed_it(start, interposer, tmp_path):
    watchdog = FakeWatchdog(interposer, tmp_path / "watchdog", 15)
    guard = start(f"--watchdog={watchdog.path}", environment=watchdog.environment).ready()
    assert "the hardware watchdog" not in guard.errors()
    guard.process.kill()
    guard.process.wait()
    assert re.fullmatch(r"<10>\0*", watchdog.text)


def test_what_is_no_watchdog_is_one_line_and_no_reason_to_end(start, tmp_path):
    (tmp_path / "file").touch()
    for path, reason in ((tmp_path / "none", "No such file"), (tmp_path / "file", "Inappropriate ioctl")):
        guard = start(f"--watchdog={path}").ready()
        assert re.search(rf"no hardware watchdog: {path}: {reason}.*; a kernel that stands still", guard.errors())
        assert guard_client.connect(guard.path).close() is None


def softdog() -> str:
    """The simulator kernel's own watchdog, which says what it would do; empty: that kernel has none."""
    modules = pathlib.Path(os.environ["HIL_OUT"])
    if not (modules / "softdog.ko").exists():
        return ""
    for module, *parameters in (["watchdog.ko"], ["softdog.ko", "soft_noboot=1"]):
        subprocess.run(["insmod", modules / module, *parameters], check=True)
    return "/dev/watchdog"


def bitten() -> bool:
    """Whether softdog would have reset the kernel."""
    return "Reboot ignored" in subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout


def a_kernel_resets_itself(bench, start, device: str) -> None:
    guard = start(HEATER, MEDIA, f"--watchdog={device}").ready()
    assert "no hardware watchdog" not in guard.errors()
    worker = guard.worker()
    worker.do("beat")
    worker.do("arm media 59000")
    worker.do("duty media 50")
    worker.process.send_signal(signal.SIGSTOP)
    bench.fail("pwm", errno=5)
    guard.wait_said("the hardware watchdog is not fed any more: outputs may be on", 10)
    starved_at = time.monotonic()
    assert not bitten()
    wait_for(bitten, 15, "softdog's word in the kernel's log", every_s=0.2)
    print(f"{bench.where}: softdog bites {time.monotonic() - starved_at:.1f} s after the last feed was refused")
    bench.fail("pwm", 0)
    guard.process.terminate()
    assert guard.process.wait(10) == 0


@board("eyespy")
def test_outputs_that_do_not_go_off_are_left_to_it(bench, start, interposer, tmp_path):
    watchdog = FakeWatchdog(interposer, tmp_path / "watchdog", 1)
    guard = start(HEATER, MEDIA, f"--watchdog={watchdog.path}", environment=watchdog.environment).ready()
    worker = guard.worker()
    worker.do("beat")
    worker.do("arm media 30000")
    worker.do("duty media 50")
    watchdog.wait_fed()
    worker.process.send_signal(signal.SIGSTOP)
    bench.fail("pwm", errno=5)
    guard.wait_said("the hardware watchdog is not fed any more: outputs may be on")
    size = len(watchdog.text)
    at = time.monotonic()
    guard.wait_said("2 of 3 outputs did not take the order to go off")
    wait_for(lambda: time.monotonic() > at + 1.0, 5, "the time in which it would have been fed")
    assert len(watchdog.text) == size
    bench.fail("pwm", 0)
    guard.wait_said("the hardware watchdog is fed again")
    watchdog.wait_fed()
    worker.process.send_signal(signal.SIGCONT)
    for what in ("beat", "duty media 0", "duty media 50"):
        worker.do(what)
    bench.fail("pwm", errno=5)
    guard.process.terminate()
    assert guard.process.wait(10) == 1
    assert "the hardware watchdog goes on, and resets this machine" in guard.errors() and "V" not in watchdog.text
    if bench.where == "kernel" and (device := softdog()):
        bench.fail("pwm", 0)
        guard.close()
        a_kernel_resets_itself(bench, start, device)


def test_only_boards_that_heat_or_pump_have_one_unless_it_is_switched_off(monkeypatch, tmp_path):
    monkeypatch.setattr("stirbar.core.profiles.gpio_chip_path", lambda profile: "/dev/gpiochip0")
    monkeypatch.setattr("stirbar.core.profiles.pwm_chip", lambda profile, section: 2)
    profile = load_profile("hat1.0")

    def given(device: str, *settings: tuple[str, str, str]) -> tuple[list[str], list[str]]:
        monkeypatch.setattr(guard_command, "WATCHDOGS", (str(tmp_path / "none"), device))
        config = load_config(overrides=[("unit", "runtime_directory", str(tmp_path)), *settings])
        command, warnings = guard_command.arguments(config, profile)
        return [word for word in command if word.startswith("--watchdog=")], warnings

    assert given("/dev/null") == (["--watchdog=/dev/null"], [])
    assert given("/dev/null", ("guard.config", "hardware_watchdog", "0")) == ([], [])
    missing, warnings = given(str(tmp_path / "neither"))
    assert missing == [] and "no hardware watchdog" in warnings[0]
    stirrer_only = tmp_path / "stirrer.ini"
    stirrer_only.write_text(
        "[profile]\ntitle = x\nextends = hat1.0\n"
        + "".join(
            f"[{profile.pwm(device)}]\ndevice =\n"
            for device in ("heating", *guard_command.PUMPS)
            if profile.pwm(device)
        )
    )
    profile = load_profile(str(stirrer_only))
    assert given("/dev/null") == ([], [])
