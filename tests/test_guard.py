"""The guard: what it holds is off, and goes off whatever becomes of the worker. On the fake board and the kernel's."""

from __future__ import annotations

import fcntl
import os
import pathlib
import re
import signal
import subprocess
import time

import pytest
from board_bench import board
from board_uapi import OUTPUT, Lines
from guards import LINES, RunningGuard, compiled_guard
from running import wait_for
from stirbar.core import guard as guard_client
from stirbar.core import guard_command
from stirbar.core.config import load_config
from stirbar.core.profiles import ProfileError, choose, load_profile

on_board = board("eyespy")
PWM = "/sys/class/pwm/pwmchip0/pwm1"
NO_WATCHDOG = ("guard.config", "hardware_watchdog", "0")  # the computer that tests run on may have one, or none
ALL_LINES = [f"--line={name}={number}" for name, number in LINES.items()]


@pytest.fixture(scope="module")
def executable(tmp_path_factory):
    from board_bench import current_bench

    here = current_bench()
    return compiled_guard(tmp_path_factory.mktemp("guard"), here.where if here else "")


@pytest.fixture
def start(executable):
    """start(arguments...) -> RunningGuard; all are ended with the test."""
    started: list[RunningGuard] = []

    def run(*arguments: str) -> RunningGuard:
        started.append(RunningGuard(executable, *arguments))
        return started[-1]

    yield run
    for one in started:
        one.close()


def low_after(bench, line: int, since: float, seconds: float) -> float:
    """How long until a line was low, seconds."""
    wait_for(lambda: bench.level(line) == 0, seconds, f"line {line} low", every_s=0.0005)
    return time.monotonic() - since


# --- what it holds ---------------------------------------------------------------------------------------------------


@on_board
def test_everything_is_off_from_the_start_and_the_worker_gets_it_by_name(bench, start):
    with Lines([LINES["heating"], LINES["stirring"]], OUTPUT, values=3):
        pass
    assert bench.level(18) == bench.level(17) == 1  # a program ended: its outputs stay as they were
    guard = start(*ALL_LINES, f"--pwm=media={PWM}@4000000").ready()
    assert bench.level(18) == bench.level(17) == 0
    given = guard_client.connect(guard.path)
    assert list(given.lines) == list(LINES) and list(given.pwms) == ["media"] and given.heartbeat >= 0
    with pytest.raises(OSError, match="busy"):
        Lines(17, OUTPUT)
    Lines.of(given.lines["stirring"]).set(1)
    assert (bench.level(17), bench.level(18)) == (1, 0)
    given.close()
    low_after(bench, 17, time.monotonic(), 5)
    guard.wait_said("hung up: outputs off")


@on_board
def test_a_worker_that_stays_silent_is_killed(bench, start):
    """So that systemd can start another; one that is only slow lives."""
    guard = start(*ALL_LINES, "--kill-after=4").ready()
    worker = guard.worker()
    worker.do("beat")
    worker.do("duty heating 100")
    beaten_at = time.monotonic()
    guard.wait_said("has had no heartbeat for 3 s: outputs off")
    assert worker.process.poll() is None
    worker.process.wait(5)
    assert 3.8 < time.monotonic() - beaten_at < 5.0
    guard.wait_said("has had no heartbeat for 4 s: killed")
    assert bench.level(18) == 0
    guard.worker().do("beat")  # the next has the outputs


def test_it_is_given_time_to_come_back(start):
    guard = start("--kill-after=3")
    assert guard.process.wait(5) == 2
    assert "--kill-after=3: at least 4 s" in guard.errors()


@on_board
def test_a_busy_line_is_named_with_its_user(bench, start):
    with Lines(17, OUTPUT, consumer=b"old-stirrer"):
        guard = start(*ALL_LINES)
        assert guard.process.wait(10) == 1
    said = guard.errors()
    assert len(said.splitlines()) == 1
    assert "line 17 (stirring) of /dev/gpiochip0 is in use by 'old-stirrer': end that program" in said


@on_board
def test_two_guards_do_not_share_a_socket(bench, start, executable):
    guard = start(*ALL_LINES).ready()
    second = subprocess.run([executable, f"--socket={guard.path}"], capture_output=True, text=True, timeout=10)
    assert second.returncode == 1 and "another guard already serves" in second.stderr
    third = start(*ALL_LINES)
    assert third.process.wait(10) == 1 and "(a guard, or a worker that has outlived its guard)" in third.errors()


@on_board
def test_a_line_that_the_chip_lacks_is_named(bench, start):
    guard = start("--line=heating=99")
    assert guard.process.wait(10) == 1 and "has no line 99 (heating): it has 58" in guard.errors()


def test_its_arguments_are_checked(executable, tmp_path):
    wrong = [["--line=17"], ["--line=a=17x"], ["--pwm=a="], ["--what"], [], ["--socket=" + 200 * "x"], ["x"]]
    wrong += [["--on-time=stirring=100"], ["--on-time=media"], ["--on-time=media=1s"]]
    wrong += [["--dac=/dev/i2c-1"], ["--dac=/dev/i2c-1:0x80:00"], ["--dac=/dev/i2c-1:0x49:01x"], ["--dac=b:0x49:"]]
    for arguments in (*wrong, ["--on-time=media=60001"], ["--on-time=media=0"]):
        socket = [] if not arguments or "--socket" in arguments[0] else [f"--socket={tmp_path}/guard"]
        done = subprocess.run([executable, *socket, *arguments], capture_output=True, text=True, timeout=10)
        assert done.returncode == 2 and "usage: stirbar-guard" in done.stderr, arguments
    assert "--on-time=media=0: a pump may be on for 1 to 60000 ms in one piece" in done.stderr


# --- what makes it safe ----------------------------------------------------------------------------------------------


@on_board
def test_a_killed_worker_leaves_nothing_on(bench, start):
    guard = start(*ALL_LINES, f"--pwm=media={PWM}@4000000").ready()
    worker = guard.worker()
    for name in ("media", "alt_media"):
        worker.do(f"arm {name} 30000")
    for name in (*LINES, "media"):
        worker.do(f"duty {name} {'40' if name == 'media' else '100'}")
    assert [bench.level(line) for line in LINES.values()] == [1, 1, 1]
    assert (bench.number("board/pwm/1/duty_ns"), bench.number("board/pwm/1/enabled")) == (1_600_000, 1)
    killed_at = worker.kill()
    took_s = low_after(bench, LINES["stirring"], killed_at, 5)
    wait_for(lambda: not bench.number("board/pwm/1/enabled"), 5, "PWM disabled")
    assert [bench.level(line) for line in LINES.values()] == [0, 0, 0]
    assert bench.number("board/pwm/1/duty_ns") == 0
    safe_us = int(guard.wait_said(r"outputs off \(took (\d+) us\)")[1])
    print(f"{bench.where}: {1e3 * took_s:.1f} ms from SIGKILL to low, of which the guard's writes {safe_us} us")
    # the rest is the kernel's, to end a Python process; 5 outputs at less than 1 ms each, x 10 for the bench
    assert took_s < 1.0 and safe_us < 50_000


@on_board
def test_one_worker_at_a_time(bench, start):
    guard = start(*ALL_LINES).ready()
    first = guard.worker()
    first.do("duty stirring 100")
    second = guard.worker()
    assert f"refused: the outputs belong to the worker with process number {first.process.pid}" in second.error()
    assert bench.level(17) == 1
    # it hangs up but lives on: what it holds cannot be taken from it, so nobody else gets the outputs
    first.do("close")
    low_after(bench, 17, time.monotonic(), 5)
    third = guard.worker()
    assert "still lives and could write to them" in third.error()
    first.kill()
    first.process.wait()
    fourth = wait_for(lambda: (worker := guard.worker()).said and worker, 5, "the outputs again")
    fourth.do("duty stirring 100")
    assert bench.level(17) == 1


@on_board
def test_a_worker_without_heartbeat_is_switched_off_after_3_s(bench, start):
    guard = start(*ALL_LINES).ready()
    worker = guard.worker()
    worker.do("beat")
    worker.do("duty heating 100")
    worker.do("duty stirring 100")
    stop_at = time.monotonic() + 0.5
    while time.monotonic() < stop_at:
        worker.do("beat")
    beaten_at = time.monotonic()
    worker.process.send_signal(signal.SIGSTOP)
    took_s = low_after(bench, LINES["heating"], beaten_at, 6)
    assert 2.5 < took_s < 3.5
    low_after(bench, LINES["stirring"], beaten_at, 6)
    guard.wait_said("has had no heartbeat for 3 s: outputs off")
    worker.process.send_signal(signal.SIGCONT)
    worker.do("beat")
    guard.wait_said("beats again after")
    worker.do("duty heating 0")
    worker.do("duty heating 100")
    assert bench.level(18) == 1


@on_board
def test_a_worker_that_never_beats_has_nothing_on_either(bench, start):
    guard = start(*ALL_LINES).ready()
    worker = guard.worker()
    begun = time.monotonic()
    worker.do("duty stirring 100")
    assert low_after(bench, 17, begun, 6) > 1.5


@on_board
def test_a_worker_that_says_what_nobody_understands_loses_the_outputs(bench, start):
    guard = start(*ALL_LINES).ready()
    worker = guard.worker()
    worker.do("duty stirring 100")
    worker.do("say")
    low_after(bench, 17, time.monotonic(), 5)
    guard.wait_said("sent what this guard does not understand")


@on_board
def test_sigterm_makes_safe(bench, start):
    guard = start(*ALL_LINES, f"--pwm=media={PWM}").ready()
    worker = guard.worker()
    worker.do("duty stirring 100")
    worker.do("arm media 30000")
    worker.do("duty media 50")
    guard.process.terminate()
    assert guard.process.wait(10) == 0
    assert bench.level(17) == 0 and bench.number("board/pwm/1/enabled") == 0
    assert "ends; outputs off" in guard.errors() and not os.path.exists(guard.path)


@on_board
def test_an_output_that_refuses_is_reported(bench, start):
    guard = start(*ALL_LINES, f"--pwm=media={PWM}").ready()
    worker = guard.worker()
    worker.do("duty stirring 100")
    worker.do("arm media 30000")
    worker.do("duty media 50")
    bench.fail("pwm", 2, 5)
    worker.kill()
    guard.wait_said("2 of 5 outputs did not take the order to go off")
    # the orders are given once more when the process has gone
    wait_for(lambda: not bench.number("board/pwm/1/enabled"), 5, "PWM disabled")
    assert bench.level(17) == bench.number("board/pwm/1/duty_ns") == 0


@on_board
def test_an_inversed_channel_is_set_right_before_anything_is_on(bench, start):
    directory = pathlib.Path("/sys/class/pwm/pwmchip0")
    if not (directory / "pwm2").exists():
        (directory / "export").write_text("2")
    for name, text in (("period", "4000000"), ("polarity", "inversed"), ("duty_cycle", "1000000"), ("enable", "1")):
        (directory / "pwm2" / name).write_text(text)
    start(f"--pwm=waste={directory}/pwm2@4000000").ready()
    state = [bench.number(f"board/pwm/2/{name}") for name in ("period_ns", "duty_ns", "enabled", "inversed")]
    assert state == [4_000_000, 0, 0, 0]


# --- pumps -----------------------------------------------------------------------------------------------------------

MEDIA = f"--pwm=media={PWM}@4000000"
GRACE_S = 0.050
LATE_S = 0.5  # of a guard without real-time rights beside other programs; without deadlines it would be 3 s


def armed(worker, pump: str, milliseconds: int, wake: bool = False) -> float:
    """Arms and starts a pump; returns when its deadline is, time.monotonic()."""
    worker.do(f"arm {pump} {milliseconds}")
    deadline = time.monotonic() + 1e-3 * milliseconds
    if wake:
        worker.do("wake")
    worker.do(f"duty {pump} {40 if pump == 'media' else 100}")
    return deadline


@on_board
def test_a_pumps_deadline_holds_while_the_worker_is_stopped(bench, start):
    guard = start(*ALL_LINES, MEDIA).ready()
    worker = guard.worker()
    worker.do("beat")
    deadline = armed(worker, "alt_media", 800)
    second = armed(worker, "media", 1500)
    worker.do("duty stirring 100")
    worker.process.send_signal(signal.SIGSTOP)
    late_s = low_after(bench, LINES["alt_media"], deadline, 5)
    assert bench.number("board/pwm/1/enabled") == 1
    wait_for(lambda: not bench.number("board/pwm/1/enabled"), 5, "PWM disabled", every_s=0.0005)
    second_s = time.monotonic() - second
    print(f"{bench.where}: off {1e3 * late_s:.1f} and {1e3 * second_s:.1f} ms after the deadlines")
    assert GRACE_S - 0.005 < late_s < GRACE_S + LATE_S and GRACE_S - 0.005 < second_s < GRACE_S + LATE_S
    assert bench.number("board/pwm/1/duty_ns") == 0 and bench.level(LINES["stirring"]) == 1
    guard.wait_said(rf"worker {worker.process.pid}: media was to be off \d+ ms ago: switched off")
    # it goes on, in the middle of what it was about to do: off again at the next look, and nothing is said of it
    worker.process.send_signal(signal.SIGCONT)
    worker.do("beat")
    worker.do("duty alt_media 0")
    worker.do("duty alt_media 100")
    low_after(bench, LINES["alt_media"], time.monotonic(), 1)
    assert guard.errors().count("alt_media was to be off") == 1


@on_board
def test_a_pump_that_is_not_armed_is_off_within_a_look(bench, start):
    guard = start(*ALL_LINES, MEDIA).ready()
    worker = guard.worker()
    worker.do("duty stirring 100")
    at = time.monotonic()
    worker.do("duty alt_media 100")
    worker.do("duty media 40")
    assert low_after(bench, LINES["alt_media"], at, 5) < 0.1 + LATE_S
    wait_for(lambda: not bench.number("board/pwm/1/enabled"), 0.1 + LATE_S, "PWM disabled", every_s=0.0005)
    assert bench.level(LINES["stirring"]) == 1
    # armed and cleared in time: neither
    worker.do("duty alt_media 0")
    armed(worker, "alt_media", 30_000)
    assert bench.level(LINES["alt_media"]) == 1
    worker.do("duty alt_media 0")
    worker.do("disarm alt_media")
    low_after(bench, LINES["alt_media"], time.monotonic(), 1)
    assert "alt_media" not in guard.errors()


@on_board
def test_a_deadline_beyond_the_longest_on_time_does_not_count(bench, start):
    guard = start(*ALL_LINES, MEDIA, "--on-time=alt_media=2000").ready()
    worker = guard.worker()
    worker.do("beat")
    at = time.monotonic()
    armed(worker, "alt_media", 5000)
    assert low_after(bench, LINES["alt_media"], at, 5) < 0.3 + LATE_S
    said = guard.wait_said(r"alt_media was to be on for (\d+) ms, more than its (\d+) ms: switched off")
    assert 4700 < int(said[1]) <= 5001 and said[2] == "2000"
    # the other one has the ceiling that is compiled in
    armed(worker, "media", 59_000)
    assert bench.number("board/pwm/1/enabled") == 1
    worker.do("duty media 0")
    armed(worker, "media", 61_000)
    wait_for(lambda: not bench.number("board/pwm/1/enabled"), 0.3 + LATE_S, "PWM disabled", every_s=0.0005)
    assert guard.wait_said(r"media was to be on for \d+ ms, more than its (\d+) ms")[1] == "2000"
    assert "more than its 60000 ms" in guard.errors() and guard.errors().count("was to be on for") == 2


@on_board
def test_a_woken_guard_holds_a_deadline_that_is_shorter_than_its_look(bench, start):
    guard = start(*ALL_LINES).ready()
    worker = guard.worker()
    late_s = []
    for _ in range(10):
        deadline = armed(worker, "alt_media", 15, wake=True)
        late_s.append(low_after(bench, LINES["alt_media"], deadline, 5))
        worker.do("duty alt_media 0")
    print(f"{bench.where}: off {', '.join(f'{1e3 * late:.1f}' for late in late_s)} ms after the deadline")
    assert min(late_s) > GRACE_S - 0.005 and sorted(late_s)[4] < GRACE_S + 0.025


@on_board
def test_a_deadline_of_the_worker_before_counts_for_nothing(bench, start):
    guard = start(*ALL_LINES).ready()
    first = guard.worker()
    armed(first, "alt_media", 40_000)
    first.kill()
    first.process.wait()
    guard.wait_said("died|hung up")
    # one that does not clear the words, as a worker does at its start
    given = wait_for(lambda: connected(guard.path), 5, "the outputs")
    line = Lines.of(given.lines["alt_media"])
    line.set(1)
    assert low_after(bench, LINES["alt_media"], time.monotonic(), 5) < 0.1 + LATE_S
    given.close()


def connected(path: str) -> guard_client.Guard | None:
    try:
        return guard_client.connect(path)
    except guard_client.GuardError:
        return None


# --- LEDs ------------------------------------------------------------------------------------------------------------

DRIVERS = {"hat1.0": 0x49, "eyespy": 0x2C}
I2C_SLAVE = 0x0703


def put_out(profile: str) -> list[str]:
    """The guard's arguments for a board's LED driver."""
    address, messages = DRIVERS[profile], guard_command.LEDS_OUT["dac43608" if profile == "hat1.0" else "rp2040"]
    return [f"--dac=/dev/i2c-1:{address:#04x}:{message}" for message in messages]


def light(bench, codes: dict[int, int]) -> None:
    """Codes on the outputs of the board's LED driver, as a worker that died in its work leaves them."""
    bus = os.open("/dev/i2c-1", os.O_RDWR)
    fcntl.ioctl(bus, I2C_SLAVE, DRIVERS[bench.profile])
    for output, code in codes.items():
        if bench.profile == "hat1.0":
            os.write(bus, bytes([8 + output, code >> 4, code << 4 & 0xFF]))
        else:
            os.write(bus, bytes([output, code]))
    if bench.profile == "hat1.0":
        os.write(bus, bytes([1, 0, 0]))  # all outputs powered
    os.close(bus)
    assert lit(bench) == list(codes.values())


def lit(bench) -> list[int]:
    """Codes other than 0 on the outputs that are powered."""
    codes = [bench.led_code(DRIVERS[bench.profile], output) for output in range(4)]
    return [code for code in codes if code]


@board("hat1.0")
@board("eyespy")
def test_a_killed_worker_leaves_no_light_on(bench, start):
    guard = start(*ALL_LINES, *put_out(bench.profile)).ready()
    worker = guard.worker()
    worker.do("duty stirring 100")
    light(bench, {0: 100, 2: 255})
    worker.kill()
    low_after(bench, 17, time.monotonic(), 5)
    wait_for(lambda: not lit(bench), 5, "dark LEDs")
    took_us = int(guard.wait_said(r"LEDs off \((\d+) us after the order\)")[1])
    print(f"{bench.where}, {bench.profile}: LEDs off {took_us} us after the order")


@board("hat1.0")
def test_a_held_bus_keeps_the_light_on_and_nothing_else(bench, start):
    guard = start(*ALL_LINES, *put_out("hat1.0")).ready()
    worker = guard.worker()
    worker.do("duty stirring 100")
    light(bench, {0: 100})
    bench.write("board/i2c-1/delay_us", 4_500_000)
    killed_at = worker.kill()
    assert low_after(bench, 17, killed_at, 5) < 1.0
    worker.process.wait()
    said = guard.wait_said("the LED drivers have not taken the order to go off for 3 s: the bus is held")
    assert time.monotonic() - killed_at > 2.9 and "outputs off" in said.string
    # the guard goes on with its work meanwhile
    bench.write("board/i2c-1/delay_us", 0)
    again = wait_for(lambda: (one := guard.worker()).said and one, 5, "the outputs again")
    again.do("duty stirring 100")
    assert bench.level(17) == 1
    guard.wait_said("LEDs off", 15)
    assert lit(bench) == []


@board("hat1.0")
def test_a_driver_that_does_not_answer_is_named(bench, start):
    guard = start(*ALL_LINES, *put_out("hat1.0"), "--dac=/dev/i2c-77:0x10:00").ready()
    assert "cannot open /dev/i2c-77: No such file or directory" in guard.errors()
    worker = guard.worker()
    bench.unplug(0x49)
    worker.do("duty stirring 100")
    worker.kill()
    guard.wait_said("the LED driver 0x49 of /dev/i2c-1 did not take the order to go off: ")
    guard.wait_said("the LED driver 0x10 of /dev/i2c-77 did not take the order to go off: No such device")
    assert bench.level(17) == 0
    guard.process.terminate()
    assert guard.process.wait(10) == 1
    assert "ends; 2 outputs did not take the order" in guard.errors()


# --- once ------------------------------------------------------------------------------------------------------------


@board("hat1.0")
def test_once_switches_everything_off_and_ends(bench, executable, tmp_path):
    """At boot, and after a guard: whoever left it on is gone."""
    command = [executable, f"--socket={tmp_path}/guard", *ALL_LINES, MEDIA, *put_out("hat1.0"), "--once"]

    def leave_on(channel: str) -> None:
        light(bench, {0: 100})
        if not os.path.exists(channel):
            pathlib.Path(channel).with_name("export").write_text(channel[-1])
        for name, text in (("period", "4000000"), ("duty_cycle", "2000000"), ("enable", "1")):
            pathlib.Path(channel, name).write_text(text)

    leave_on(PWM)
    with Lines([LINES["heating"], LINES["stirring"]], OUTPUT, values=3):
        pass
    assert bench.level(18) == bench.level(17) == bench.number("board/pwm/1/enabled") == 1
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert "3 lines of /dev/gpiochip0 and 1 PWM channels are off" in done.stderr and "LEDs off" in done.stderr
    assert bench.level(18) == bench.level(17) == bench.number("board/pwm/1/enabled") == 0 and lit(bench) == []
    # what somebody holds is said, and does not keep it from the rest
    leave_on(PWM)
    with Lines(17, OUTPUT, consumer=b"old-stirrer", values=1):
        with Lines(18, OUTPUT, values=1):
            pass
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert bench.level(18) == bench.number("board/pwm/1/enabled") == 0 and lit(bench) == []
    assert done.returncode == 1 and "in use by 'old-stirrer'" in done.stderr
    assert "1 of 4 outputs could not be switched off" in done.stderr


@board("hat1.0")
def test_once_leaves_the_outputs_to_a_guard_that_serves(bench, start, executable):
    guard = start(*ALL_LINES).ready()
    worker = guard.worker()
    worker.do("duty stirring 100")
    command = [executable, f"--socket={guard.path}", *ALL_LINES, "--once"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and "another guard already serves" in done.stderr
    assert bench.level(17) == 1


def descriptors(process: pathlib.Path) -> list[str]:
    """What a process has open, but for the pidfd of its worker."""
    names = [os.readlink(path) for path in (process / "fd").iterdir()]
    return sorted(name for name in names if "pidfd" not in name)


# --- by itself -------------------------------------------------------------------------------------------------------


def test_it_is_small_locked_and_opens_nothing_later(tmp_path):
    """Without a board: one process, its memory locked, the descriptors that it began with."""
    executable = guard_command.program()
    guard = RunningGuard(executable, "--dac=/dev/null:0x49:0100ff").ready()
    try:
        process = pathlib.Path(f"/proc/{guard.process.pid}")
        before = descriptors(process)
        pss_kb = int(re.search(r"^Pss: +(\d+) kB", (process / "smaps_rollup").read_text(), re.MULTILINE)[1])
        locked_kb = int(re.search(r"^VmLck:\s+(\d+) kB", (process / "status").read_text(), re.MULTILINE)[1])
        print(f"the guard takes {pss_kb} kB, {os.path.getsize(executable)} bytes on disk, {locked_kb} kB locked")
        assert pss_kb < 1000
        assert "locking memory refused" in guard.errors() or locked_kb > 100
        faults = [(process / "stat").read_text().split()[i] for i in (9, 11)]
        given = guard_client.connect(guard.path)
        assert given.lines == given.pwms == {}
        given.close()
        guard.wait_said("hung up: outputs off")
        guard.wait_said("LED driver 0x49 of /dev/null did not take the order to go off")
        assert descriptors(process) == before
        assert [(process / "stat").read_text().split()[i] for i in (9, 11)] == faults
    finally:
        guard.close()


def test_no_guard_is_one_sentence_with_a_remedy(tmp_path):
    with pytest.raises(
        guard_client.GuardError, match=r"no guard at .*/guard \(No such file.*start it with `stirbar gua"
    ):
        guard_client.connect(str(tmp_path / "guard"))
    with pytest.raises(guard_client.GuardError, match="File name too long"):
        guard_client.connect("x" * 200)


@pytest.mark.parametrize("name", ["hat1.0", "hat1.1", "hat1.2", "model1.5", "xr1.5", "eyespy", "custom-example"])
def test_every_profile_makes_a_command_line(name, monkeypatch, tmp_path):
    monkeypatch.setattr("stirbar.core.profiles.gpio_chip_path", lambda profile: "/dev/gpiochip0")
    monkeypatch.setattr("stirbar.core.profiles.pwm_chip", lambda profile, section: 2)
    config = load_config(overrides=[("unit", "runtime_directory", str(tmp_path)), NO_WATCHDOG])
    profile = load_profile(name)
    (first, socket, *rest), warnings = guard_command.arguments(config, profile)
    assert warnings == [] and os.access(first, os.X_OK) and socket == f"--socket={tmp_path}/guard"
    lines = [device for device in guard_command.ORDER if (section := profile.pwm(device)) and profile.has(section)]
    assert sum(word.startswith(("--line=", "--pwm=")) for word in rest) == len(lines) > 0
    pumps = [device for device in lines if device in guard_command.PUMPS]
    assert [word for word in rest if word.startswith("--on-time=")] == [f"--on-time={pump}=30000" for pump in pumps]
    leds = {"rp2040": 4, "dac43608": 1}[profile.get("led", "chip")]
    assert sum(word.startswith(f"--dac=/dev/i2c-1:{profile.get('led', 'address'):#04x}:") for word in rest) == leds
    numbers = {word.split("=")[1]: word.split("=")[2] for word in rest if word.startswith("--line=")}
    assert numbers["stirring"] == str(profile.get(profile.pwm("stirring"), "line"))
    assert rest.index(f"--line=stirring={numbers['stirring']}") == max(
        index for index, word in enumerate(rest) if word.startswith("--line=")
    )


def test_a_pump_without_its_pwm_chip_is_held_low(monkeypatch, tmp_path):
    def no_chip(profile, section):
        raise ProfileError("no chip")

    monkeypatch.setattr("stirbar.core.profiles.gpio_chip_path", lambda profile: "/dev/gpiochip0")
    monkeypatch.setattr("stirbar.core.profiles.pwm_chip", no_chip)
    config = load_config(overrides=[("unit", "runtime_directory", str(tmp_path)), NO_WATCHDOG])
    command, warnings = guard_command.arguments(config, load_profile("hat1.0"))
    assert "--line=media=13" in command and "--line=waste=12" in command
    assert warnings[0] == "media stays off, its line 13 is held low: no chip" and len(warnings) == 2


@on_board
def test_the_command_becomes_the_guard_of_the_board(bench, executable, monkeypatch, tmp_path):
    """`stirbar guard`, told the board or looking at it, holds what the profile names."""
    monkeypatch.setattr(guard_command, "program", lambda: executable)
    for hardware in ("eyespy", "auto"):
        config = load_config(
            overrides=[("unit", "runtime_directory", str(tmp_path)), ("unit", "hardware", hardware), NO_WATCHDOG]
        )
        command, warnings = guard_command.arguments(config, choose(config))
        assert warnings == [] and "--line=stirring=17" in command
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert "holds 3 lines of /dev/gpiochip0 and 2 PWM channels" in wait_line(process)
                given = guard_client.connect(guard_client.socket_path(config))
                assert set(given.lines) | set(given.pwms) == set(guard_command.ORDER)
                given.close()
            finally:
                process.terminate()


def wait_line(process: subprocess.Popen) -> str:
    """The first line that is no warning of a missing right."""
    return next(line for line in process.stderr if "refused" not in line)


def test_the_command_passes_once_on(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("stirbar.core.profiles.gpio_chip_path", lambda profile: "/dev/gpiochip0")
    settings = [f"unit.runtime_directory={tmp_path}", "unit.hardware=custom-example"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    assert guard_command.main(["--once", "--show", *arguments]) == 0
    assert capsys.readouterr().out.split()[-1] == "--once"


def test_a_simulated_vial_needs_no_guard(capsys):
    assert guard_command.main(["--set", "unit.simulate=1"]) == 1
    assert "needs no guard" in capsys.readouterr().err
