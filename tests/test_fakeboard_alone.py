"""The fake board alone: its options, and what a late server or a stopped program does not change."""

from __future__ import annotations

import errno
import itertools
import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from board_bench import fake_board, run_on
from board_uapi import wait_for

HERE = pathlib.Path(__file__).parent

RECVMSG = {"x86_64": "47", "aarch64": "212"}.get(os.uname().machine, "297")  # the system call's number

PRELUDE = f"""
import os, sys, time
sys.path.insert(0, {str(HERE)!r})
from board_uapi import *
from board_bench import current_bench
bench = current_bench()
"""


def run(bench, code: str) -> str:
    """What a program on the board prints."""
    done = run_on(bench, code=PRELUDE + code)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_another_pi():
    options = {"gpio_number": 4, "gpio_label": "pinctrl-rp1", "pwm_number": 2, "i2c_number": 1, "product_version": ""}
    with fake_board("hat1.0", model="Raspberry Pi 5 Model B Rev 1.0", **options) as bench:
        code = """
import glob
print(glob.glob("/dev/gpiochip*"), os.listdir("/sys/class/pwm"), open("/proc/device-tree/model").read().rstrip(chr(0)))
print(os.path.exists("/proc/device-tree/hat/vendor"))
chip, info = os.open("/dev/gpiochip4", os.O_RDWR), bytearray(68)
fcntl.ioctl(chip, GET_CHIPINFO, info)
print(struct.unpack("32s32sI", info)[1].rstrip(bytes(1)))
"""
        first, second, third = run(
            bench, code.replace("/proc/device-tree/../device-tree", "/proc/device-tree")
        ).splitlines()
        assert first == "['/dev/gpiochip4'] ['pwmchip2'] Raspberry Pi 5 Model B Rev 1.0"
        assert (second, third) == ("False", "b'pinctrl-rp1'")


def test_nothing_changes_without_a_board():
    with fake_board("hat1.0") as bench:
        environment = {**os.environ, **bench.environment, "STIRBAR_BOARD": ""}
        code = "import os; print(os.path.exists('/proc/device-tree/hat/vendor'))"
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == f"{os.path.exists('/proc/device-tree/hat/vendor')}\n"


def test_two_boards_at_once():
    with fake_board("hat1.0") as one, fake_board("xr1.5") as other:
        one.set_celsius(0x4F, 30)
        other.set_celsius(0x4F, 40)
        assert run(one, "print(I2c().get(0x4F, 0) / 256)") == "30.0"
        assert run(other, "print(I2c().get(0x4F, 0) / 256)") == "40.0"


def test_a_board_that_goes_is_a_device_that_goes():
    with fake_board("hat1.0") as bench:
        code = "bus = I2c()\nprint('here', flush=True)\ninput()\nbus.get(0x4F, 0)"
        child = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code],
            env={**os.environ, **bench.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
    _, said = child.communicate("\n", timeout=20)
    assert f"[Errno {errno.ENODEV}]" in said


def test_wrong_options_are_named(capfd):
    with pytest.raises(RuntimeError), fake_board("48:ads1119"):
        pass
    assert "48:ads1119" in capfd.readouterr().err
    with pytest.raises(ValueError, match="hat9"), fake_board("hat9"):
        pass


def test_a_late_server_changes_nothing_in_the_physics():
    """While the server is stopped a program switches the LED; the light has changed when the bits were through."""
    with fake_board("48:ads1115,49:dac43608", ready={0x48: 27}) as bench:
        assert bench.server_pid is not None
        bench.led_to_photodiode((0x49, 0), (0x48, 0), 2.0)
        code = """
bus = I2c()
bus.put(0x49, 1, 0xFE)
lines = Lines(27, INPUT | FALLING, room=1024)
bus.put(0x48, 2, 0), bus.put(0x48, 3, 0x8000), bus.put(0x48, 1, 0x42E0)
last = lines.events(20)[-1].line_number
print("ready", flush=True)
input()
begun = time.monotonic_ns()
bus.put(0x49, 8, 255 << 4)
events = lines.events(150)
numbers = [e.line_number for e in events]
print(begun, numbers == list(range(last + 1, last + 1 + len(numbers))), time.monotonic_ns() - begun)
"""
        child = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code],
            env={**os.environ, **bench.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        os.kill(bench.server_pid, signal.SIGSTOP)
        try:
            child.stdin.write("\n")
            child.stdin.flush()
            # Until it has asked, and waits for the answer.
            call = pathlib.Path(f"/proc/{child.pid}/syscall")
            wait_for(lambda: call.read_text().split()[0] == RECVMSG)
            time.sleep(0.1)
        finally:
            os.kill(bench.server_pid, signal.SIGCONT)
        begun, complete, _ = child.communicate(timeout=20)[0].split()
        assert complete == "True"
        conversions = bench.conversions(0x48)
        assert all(b.begin_ns == a.end_ns for a, b in itertools.pairwise(conversions))
        (mixed,) = [c for c in conversions if 0.001 < c.volts < 1.999] or [None]
        if mixed is None:
            changed_ns = next(c.begin_ns for c in conversions if c.volts > 1)
        else:
            changed_ns = mixed.end_ns - mixed.volts / (255 * round(2e9 / 255) / 1e9) * (mixed.end_ns - mixed.begin_ns)
        # Four bytes of nine bits, start and stop, at 100 kHz, counted from the program's call.
        assert int(begun) + 380_000 <= changed_ns < int(begun) + 1_500_000


def test_a_stopped_program_holds_up_nobody():
    with fake_board("hat1.0") as bench:
        code = "bus = I2c()\nprint('here', flush=True)\nwhile True: bus.get(0x4F, 0)"
        child = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code],
            env={**os.environ, **bench.environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        for _ in range(5):
            child.send_signal(signal.SIGSTOP)
            assert run(bench, "print(I2c().get(0x4F, 0) / 256)") == "25.0"
            child.send_signal(signal.SIGCONT)
        child.kill()
        child.wait()
        child.stdout.close()


def test_the_microcontrollers_running_mean():
    with fake_board("hat1.1") as bench:
        bench.led_to_photodiode((0x2C, 0), (0x2C, 2), 1.0)
        bench.write("board/i2c-1/2c/window_us", 2_050)
        bench.write("board/i2c-1/2c/ema_ppm", 250_000)
        code = """
bus = I2c()
time.sleep(0.05)
print(time.monotonic_ns(), 0)
bus.transfer((0x2C, bytes((0, 255))))
for _ in range(100):
    at = time.monotonic_ns()
    raw = bus.transfer((0x2C, bytes((6,))), (0x2C, 2))[0]
    print(at, int.from_bytes(raw, "little") / 4095 / 32 * 3.3)
"""
        rows = [row.split() for row in run(bench, code).splitlines()]
        times, values = [int(at) for at, _ in rows], [float(value) for _, value in rows]
        assert values == sorted(values)
        # Each new window takes a quarter of what is left; the first after the change is a mixture.
        left = [1 - level for level in sorted(set(values)) if level < 0.98]
        windows = [math.log(b / a) / math.log(0.75) for a, b in itertools.pairwise(left)][2:]
        assert len(windows) > 2
        assert windows == pytest.approx([round(each) for each in windows], abs=0.1)
        reached = next(at for at, value in zip(times, values, strict=True) if value > 0.98)
        assert (reached - times[0]) / 2_050_000 >= math.log(0.02) / math.log(0.75) - 2


MIXED = """
import os
import pytest
from board_bench import board

@pytest.fixture(scope="module")
def ours():
    yield os.getpid()

def test_here(ours):
    assert not os.path.exists("/dev/i2c-1")

@board("hat1.0")
@board("eyespy")
def test_there(bench, ours):
    assert os.path.exists("/dev/i2c-1")
    assert bench.level(25) == (bench.profile == "hat1.0"), "the hall line rests high"

@board("hat1.0")
def test_fails(bench):
    assert bench.number("board/i2c-1/4f/temp_mc") == 5

@board("hat1.0")
def test_crashes(bench):
    os.abort()

@board("hat1.0")
def test_after_the_crash(bench):
    pytest.skip("only here to be reached")

def test_here_again(ours):
    pass
"""

CONFTEST = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
from board_plugin import BoardPlugin

def pytest_configure(config):
    config.addinivalue_line("markers", "hil: x")
    config.pluginmanager.register(BoardPlugin(config), "boards")
"""


@pytest.mark.skipif(os.path.exists("/dev/i2c-1"), reason="this machine has a bus of its own")
def test_results_come_back_as_they_were(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_mixed.py").write_text(MIXED)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "-rs", "test_mixed.py"]
    environment = {key: value for key, value in os.environ.items() if key != "STIRBAR_HIL"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    said = done.stdout
    for expected in (
        "test_here PASSED",
        "test_there[fake-hat1.0] PASSED",
        "test_there[fake-eyespy] PASSED",
        "test_there[kernel-hat1.0] SKIPPED",
        "test_fails[fake-hat1.0] FAILED",
        "assert 25000 == 5",
        "test_crashes[fake-hat1.0] FAILED",
        "ended without a report of this test",
        "Fatal Python error: Aborted",
        "test_after_the_crash[fake-hat1.0] SKIPPED",
        "only here to be reached",
        "test_here_again PASSED",
        "2 failed, 4 passed, 6 skipped",
    ):
        assert expected in said, said
