"""The contract of the two benches, continued: lines, PWM, and what moves."""

from __future__ import annotations

import array
import errno
import fcntl
import math
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest
from board_bench import HEATER, MOTOR, board
from board_uapi import (
    ACTIVE_LOW,
    FALLING,
    GET_LINEINFO,
    INPUT,
    OUTPUT,
    RISING,
    Event,
    I2c,
    Lines,
    raises,
    wait_for,
)

pytestmark = board("all", ready={0x48: 27})

TMP, MCU = 0x4F, 0x2C
PWM = pathlib.Path("/sys/class/pwm/pwmchip0")


@pytest.fixture
def bus():
    with I2c() as it:
        it.set_timeout(100)
        yield it


# --- lines -----------------------------------------------------------------------------------------------------------


def line_info(offset: int) -> tuple[bytes, bytes, int]:
    chip = os.open("/dev/gpiochip0", os.O_RDWR)
    info = bytearray(256)
    struct.pack_into("=I", info, 64, offset)
    fcntl.ioctl(chip, GET_LINEINFO, info)
    os.close(chip)
    name, consumer = (info[at : at + 32].rstrip(b"\0") for at in (0, 32))
    return bytes(name), bytes(consumer), struct.unpack_from("=Q", info, 72)[0]


def test_a_line_belongs_to_one_request(bench):
    Lines(5, INPUT).close()
    assert line_info(5) == (b"GPIO5", b"", INPUT)
    with Lines([5, 6], OUTPUT, 0b10, consumer=b"the first"):
        assert line_info(6) == (b"GPIO6", b"the first", 1 | OUTPUT)
        assert (bench.level(5), bench.level(6)) == (0, 1)
        with raises(errno.EBUSY):
            Lines(6, INPUT)
    with Lines(6, INPUT) as again:
        assert again.get() in (0, 1)
    with raises(errno.EBUSY):
        Lines([7, 7], INPUT)
    for offset, flags in ((99, INPUT), (5, INPUT | OUTPUT), (5, OUTPUT | RISING), (5, 1 << 40)):
        with raises(errno.EINVAL):
            Lines(offset, flags)
    assert line_info(5)[1] == b""


def test_values(bench):
    with Lines([5, 6, 7], OUTPUT, 0) as lines:
        lines.set(0b101, 0b111)
        assert [bench.level(n) for n in (5, 6, 7)] == [1, 0, 1]
        lines.set(0b010, 0b010)
        assert lines.get(0b111) == 0b111
        assert lines.get(0b010) == 0b010
        with raises(errno.EINVAL):
            lines.set(0, 0)
        with raises(errno.EINVAL):
            lines.get(0)
        lines.configure(INPUT)
        with raises(errno.EPERM):
            lines.set(0, 1)
    bench.drive(8, 1)
    with Lines(8, INPUT | ACTIVE_LOW) as line:
        assert line.get() == 0
        bench.drive(8, 0)
        assert line.get() == 1


@pytest.mark.parametrize("strict", [False, True], ids=["raspberry-pi-os", "strict_gpiod"])
def test_a_released_outputs_level(bench, strict):
    bench.strict_gpio(strict)
    with Lines(HEATER, OUTPUT, 1):
        assert bench.level(HEATER) == 1
    assert bench.level(HEATER) == (0 if strict else 1)
    bench.strict_gpio(False)


def test_edges(bench):
    bench.drive(9, 0)
    with Lines(9, INPUT | RISING | FALLING) as line:
        times = []
        for level in (1, 0, 1, 1, 0):
            before = time.monotonic_ns()
            bench.drive(9, level)
            times.append((before, time.monotonic_ns()))
        events = line.events(4)
        assert [(e.id, e.offset, e.number, e.line_number) for e in events] == [
            (1, 9, 1, 1), (2, 9, 2, 2), (1, 9, 3, 3), (2, 9, 4, 4)
        ]  # fmt: skip
        del times[3]  # it was high already
        assert all(a <= e.stamp_ns <= b for e, (a, b) in zip(events, times, strict=True))
        assert not line.wait(0)
        os.set_blocking(line.fd, False)
        with raises(errno.EAGAIN):
            os.read(line.fd, 48)
    with Lines([9, 10], INPUT | RISING) as lines:
        for n in (10, 9, 10):
            bench.drive(n, 0)
            bench.drive(n, 1)
        assert [(e.offset, e.number, e.line_number) for e in lines.events(3)] == [(10, 1, 1), (9, 2, 1), (10, 3, 2)]
        with raises(errno.EINVAL):
            os.read(lines.fd, 47)


@pytest.mark.parametrize(("room", "kept"), [(0, 16), (50, 64)])
def test_a_full_queue_loses_its_oldest_events(bench, room, kept):
    bench.drive(9, 0)
    with Lines(9, INPUT | RISING | FALLING, room=room) as line:
        for i in range(100):
            bench.drive(9, i % 2 == 0)
        wait_for(lambda: line.wait(0))
        events: list[Event] = line.events(kept)
        assert [e.line_number for e in events] == list(range(101 - kept, 101))
        assert not line.wait(0)
        bench.drive(9, 1)
        assert line.events(1)[0].line_number == 101


def test_a_waiting_reader_is_woken(bench):
    bench.drive(9, 0)
    with Lines(9, INPUT | RISING) as line:
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(os.read(line.fd, 480)))
        reader.start()
        time.sleep(0.05)
        bench.drive(9, 1)
        reader.join(5)
        assert len(got[0]) == 48


HOLDER = """
import array, os, socket, sys
sys.path.insert(0, sys.argv[2])
from board_uapi import Lines
peer = socket.socket(fileno=int(sys.argv[1]))
_, fds, _, _ = socket.recv_fds(peer, 16, 2)
output, edges = Lines.of(fds[0]), Lines.of(fds[1])
output.set(1)
peer.send(b"set")
peer.send(b"%d" % edges.events(1)[0].line_number)
peer.recv(16)
"""


def test_lines_in_another_process(bench):
    """As the guard hands them out: both can switch them, and they are taken until the last has let go."""
    mine, theirs = socket.socketpair()
    bench.drive(9, 0)
    output, edges = Lines(MOTOR, OUTPUT, 0), Lines(9, INPUT | RISING)
    copy = os.dup(output.fd)
    here = str(pathlib.Path(__file__).parent)
    command = [sys.executable, "-c", HOLDER, str(theirs.fileno()), here]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as child:
        theirs.close()
        socket.send_fds(mine, [b"here"], [output.fd, edges.fd])
        assert mine.recv(3) == b"set"
        assert bench.level(MOTOR) == 1
        output.set(0)
        assert bench.level(MOTOR) == 0
        bench.drive(9, 1)
        assert mine.recv(16) == b"1"
        output.close()
        edges.close()
        os.close(copy)
        with raises(errno.EBUSY):
            Lines(MOTOR, INPUT)
        child.send_signal(signal.SIGKILL)
        child.wait()
    Lines(MOTOR, OUTPUT, 1).close()
    mine.close()


def test_descriptors_are_close_on_exec_and_never_blocked_by_the_bus(bench, bus):
    with Lines(5, OUTPUT, 0) as line:
        assert not os.get_inheritable(line.fd)
        assert not os.get_inheritable(bus.fd)
        bench.stretch(MCU, 300_000)
        slow = threading.Thread(target=lambda: bus.transfer((MCU, 2)))
        slow.start()
        time.sleep(0.05)
        before = time.monotonic()
        line.set(1)
        assert time.monotonic() - before < 0.1
        assert slow.is_alive()
        slow.join()


def test_poll_of_several_lines(bench):
    import select

    bench.drive(9, 0)
    bench.drive(10, 0)
    with Lines(9, INPUT | RISING) as first, Lines(10, INPUT | RISING) as second, select.epoll() as poll:
        poll.register(first.fd, select.EPOLLIN)
        poll.register(second.fd, select.EPOLLIN)
        assert poll.poll(0) == []
        bench.drive(10, 1)
        assert poll.poll(5) == [(second.fd, select.EPOLLIN)]


# --- PWM -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def channel():
    """PWM channel 1, exported."""
    (PWM / "export").write_text("1")
    yield PWM / "pwm1"
    (PWM / "pwm1/enable").write_text("0")
    (PWM / "unexport").write_text("1")
    assert not (PWM / "pwm1").exists()


def pwm_output(bench, number: int) -> list[int]:
    return [bench.number(f"board/pwm/{number}/{name}") for name in ("period_ns", "duty_ns", "enabled", "inversed")]


def test_sysfs_pwm(bench, channel):
    assert (PWM / "npwm").read_text() == "4\n"
    with raises(errno.EBUSY):
        (PWM / "export").write_text("1")
    with raises(errno.ENODEV):
        (PWM / "export").write_text("9")
    (channel / "period").write_text("5000000\n")
    (channel / "duty_cycle").write_text("6000000")  # in a disabled channel anything goes
    with raises(errno.EINVAL):
        (channel / "enable").write_text("1")
    (channel / "duty_cycle").write_text("3000000")
    (channel / "enable").write_text("1")
    with raises(errno.EINVAL):
        (channel / "duty_cycle").write_text("6000000")
    assert pwm_output(bench, 1) == [5_000_000, 3_000_000, 1, 0]
    duty = os.open(channel / "duty_cycle", os.O_RDWR | os.O_CLOEXEC)
    for value in (b"1000000", b"20"):
        assert os.pwrite(duty, value, 0) == len(value)
        assert os.pread(duty, 32, 0) == value + b"\n"
        assert bench.number("board/pwm/1/duty_ns") == int(value)
    bench.fail("pwm", 1)
    with raises(errno.EIO):
        os.pwrite(duty, b"1", 0)
    os.close(duty)
    with raises(errno.EINVAL):
        (channel / "enable").write_text("maybe")
    assert (channel / "duty_cycle").read_text() == "20\n"
    (channel / "enable").write_text("0")
    (channel / "polarity").write_text("inversed")
    assert pwm_output(bench, 1) == [5_000_000, 20, 0, 1]
    (channel / "polarity").write_text("normal")


# --- what moves ------------------------------------------------------------------------------------------------------


def test_the_stirrer_turns_as_its_duty_says(bench, channel):
    (channel / "period").write_text("5000000")
    (channel / "duty_cycle").write_text("3000000")
    for name, value in (("hall", bench.hall), ("pwm", 1), ("tau_ms", 100)):
        bench.write(f"board/stir/{name}", value)
    goal = 50 * (0.6 - 0.1) / 0.9
    with Lines(bench.hall, INPUT | FALLING, room=256) as hall:
        (channel / "enable").write_text("1")
        begun = time.monotonic_ns()
        events = hall.events(36)
        # Turns of a first-order start, from wherever it stood.
        turns = [(e.stamp_ns - begun) / 1e9 for e in events]
        turns = [goal * (t - 0.1 * (1 - math.exp(-t / 0.1))) for t in turns]
        assert max(abs(n - (t - turns[-1] + 35)) for n, t in enumerate(turns)) < 0.12
        assert 1e9 / (events[-1].stamp_ns - events[-2].stamp_ns) == pytest.approx(goal, rel=1e-4)
        assert bench.number("board/stir/speed_mhz") == pytest.approx(goal * 1000, rel=1e-3)
        bench.write("board/stir/magnets", 2)
        hall.events(seconds=0.1)
        events = hall.events(9)
        assert 8e9 / (events[-1].stamp_ns - events[0].stamp_ns) == pytest.approx(2 * goal, rel=1e-3)
        bench.write("board/stir/stall", 1)
        hall.events(seconds=0.1)
        assert hall.events(seconds=0.2) == []
        (channel / "duty_cycle").write_text("600000")  # 12 %: would turn on, but does not start
        bench.write("board/stir/stall", 0)
        assert hall.events(seconds=0.3) == []
        (channel / "duty_cycle").write_text("800000")
        assert len(hall.events(2)) == 2


def speed_after(cycles: list[tuple[int, int]], tau: float) -> float:
    """Hz of the stirrer after cycles of (ns high, ns in all): duty over some ten cycles, then a first-order lag."""
    hertz = high = period = 0.0
    for cycle in cycles:
        high, period = high * 0.875 + cycle[0], period * 0.875 + cycle[1]
        goal = 50 * (high / period - 0.1) / 0.9
        hertz = goal + (hertz - goal) * math.exp(-cycle[1] / 1e9 / tau)
    return hertz


def test_the_plants_follow_software_pwm(bench, bus):
    bench.plant()
    bench.write("board/stir/tau_ms", 100)
    bench.write("board/heat/tau_ms", 300)
    with Lines([MOTOR, HEATER], OUTPUT, 0) as lines, Lines(bench.hall, INPUT | FALLING, room=256) as hall:
        begun = time.monotonic_ns()
        cycles = []
        for _ in range(160):  # 200 Hz, as well as this process keeps it
            lines.set(0b11, 0b11)
            rise = time.monotonic_ns()
            time.sleep(0.0025)
            lines.set(0b10, 0b11)
            fall = time.monotonic_ns()
            time.sleep(0.0025)
            cycles.append((fall - rise, time.monotonic_ns() - rise))
        code = bus.get(TMP, 0)
        heated_s = (time.monotonic_ns() - begun) / 1e9 - 0.25  # a line is taken for high after so long without edges
        hertz = bench.number("board/stir/speed_mhz") / 1000
        lines.set(0, 0b11)
        assert hertz == pytest.approx(speed_after(cycles, 0.1), rel=0.15)
        assert len(hall.events(seconds=0.05)) >= 8
        assert code / 256 == pytest.approx(22 + 30 * (1 - math.exp(-heated_s / 0.3)), abs=0.5)


# --- everything else -------------------------------------------------------------------------------------------------


def test_scm_rights_carry_plain_descriptors_too(bench):
    """The interposer touches nothing else."""
    mine, theirs = socket.socketpair()
    read, write = os.pipe()
    mine.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [write]))])
    _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
    os.write(fds[0], b"through")
    assert os.read(read, 7) == b"through"
    for fd in (read, write, fds[0]):
        os.close(fd)
    mine.close()
    theirs.close()
