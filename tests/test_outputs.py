"""Slow PWM, kernel PWM and tachometer edges: against slow twins, on the fake board and in the simulator kernel."""

from __future__ import annotations

import contextlib
import os
import time

import numpy as np
import pytest
from board_bench import board
from guards import Heart, RunningGuard, compiled_guard
from hypothesis import given, settings
from hypothesis import strategies as st
from running import wait_for
from stirbar.core import guard as guard_client
from stirbar.core.profiles import load_profile
from stirbar.rt.control_arrays import fit_edges
from stirbar.rt.outputs_arrays import NEVER_NS, OutputLines, locked_period_ns

on_board = board("eyespy", plant=True)
PERIOD_NS = 5_000_000
SECOND_NS = 1_000_000_000


@pytest.fixture
def nothing():
    """A descriptor on which every write of a line fails."""
    fd = os.open(os.devnull, os.O_RDWR)
    yield fd
    os.close(fd)


def unwired(fd: int, **phases: int) -> OutputLines:
    """Outputs whose lines lead nowhere: level() is what was asked of them."""
    lines = OutputLines()
    for name, phase_ns in phases.items():
        with contextlib.suppress(OSError):
            lines.add_line(name, fd, PERIOD_NS, phase_ns)
    return lines


# --- the state machine -----------------------------------------------------------------------------------------------


def write(lines: OutputLines, name: str, percent: float, now_ns: int) -> None:
    """Set a duty; the write itself fails on a line that leads nowhere."""
    with contextlib.suppress(OSError):
        lines.duty(name, percent, now_ns)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 3 * PERIOD_NS), min_size=1, max_size=60),
    st.floats(0.1, 99.9),
    st.integers(0, PERIOD_NS - 1),
)
def test_at_any_moment_the_line_is_where_an_ideal_pwm_would_be(steps, percent, phase_ns):
    """Looked at whenever: after each call the level is that of the ideal, and the deadline is its next edge."""
    with open(os.devnull, "r+b", buffering=0) as nowhere:
        lines = unwired(nowhere.fileno(), stirring=phase_ns)
        now_ns = 7 * SECOND_NS
        write(lines, "stirring", percent, now_ns)
        on_ns = int(0.01 * percent * PERIOD_NS + 0.5)
        for step in steps:
            now_ns += step
            next_ns = lines.pulse(now_ns)
            into_ns = (now_ns - phase_ns) % PERIOD_NS
            assert lines.level("stirring") == (into_ns < on_ns)
            assert next_ns == now_ns - into_ns + (on_ns if into_ns < on_ns else PERIOD_NS)


def test_a_line_that_is_off_has_no_edges_and_one_that_is_on_is_written_each_cycle(nothing):
    lines = unwired(nothing, heating=0)
    assert lines.pulse(SECOND_NS) == NEVER_NS and lines.level("heating") == 0
    write(lines, "heating", 100, SECOND_NS)
    for cycle in range(1, 4):
        assert lines.pulse(SECOND_NS + (cycle - 1) * PERIOD_NS) == SECOND_NS + cycle * PERIOD_NS
        assert lines.level("heating") == 1
    write(lines, "heating", 25, SECOND_NS + 3 * PERIOD_NS - 1)
    assert lines.pulse(SECOND_NS + 3 * PERIOD_NS) == SECOND_NS + 3 * PERIOD_NS + PERIOD_NS // 4
    write(lines, "heating", 0, SECOND_NS + 3 * PERIOD_NS + 4)  # off: at once
    assert lines.level("heating") == 0 and lines.pulse(SECOND_NS + 4 * PERIOD_NS) == NEVER_NS


def test_duty_and_period_change_with_the_next_cycle(nothing):
    lines = unwired(nothing, stirring=0)
    write(lines, "stirring", 20, SECOND_NS)
    assert lines.pulse(SECOND_NS) == SECOND_NS + PERIOD_NS // 5
    write(lines, "stirring", 50, SECOND_NS + 1)
    lines.period("stirring", 2 * PERIOD_NS)
    assert lines.pulse(SECOND_NS + 2) == SECOND_NS + PERIOD_NS // 5
    assert lines.pulse(SECOND_NS + PERIOD_NS // 5) == SECOND_NS + PERIOD_NS
    assert lines.pulse(SECOND_NS + PERIOD_NS) == SECOND_NS + 2 * PERIOD_NS  # half of the longer cycle
    assert lines.pulse(SECOND_NS + 2 * PERIOD_NS) == SECOND_NS + 3 * PERIOD_NS
    lines.period("stirring", 0)
    assert lines.pulse(SECOND_NS + 3 * PERIOD_NS) == SECOND_NS + 3 * PERIOD_NS + PERIOD_NS // 2


def test_lateness_is_counted_and_nothing_is_made_up_for(nothing):
    lines = unwired(nothing, stirring=0, heating=PERIOD_NS // 2)
    failed = lines.counters()["line_errors"]
    write(lines, "stirring", 50, SECOND_NS)
    late_ns = PERIOD_NS // 10
    lines.pulse(SECOND_NS + PERIOD_NS // 2 + late_ns)
    assert lines.counters()["pulses_late"] == 0
    lines.pulse(SECOND_NS + PERIOD_NS + late_ns + 1)
    assert lines.counters()["pulses_late"] == 1
    # three seconds later: one write, in phase, not 600
    next_ns = lines.pulse(4 * SECOND_NS + 1)
    assert lines.counters() == {"edges_lost": 0, "pulses_late": 2, "line_errors": failed + 3}
    assert next_ns == 4 * SECOND_NS + PERIOD_NS // 2


def test_what_an_output_cannot_do_is_refused(nothing):
    lines = unwired(nothing, stirring=0)
    for percent in (-1, 100.1, float("nan")):
        with pytest.raises(OSError, match="Invalid"):
            lines.duty("stirring", percent, 0)
    with pytest.raises(OSError, match="No such device"):
        lines.duty("media", 10, 0)
    lines.duty("media", 0, 0)  # what is not there is off
    with pytest.raises(OSError, match="Inappropriate ioctl"):
        lines.duty("stirring", 10, 0)
    with pytest.raises(OSError, match="Invalid"):
        lines.period("stirring", 999_999)
    with pytest.raises(KeyError):
        lines.duty("coffee", 10, 0)
    with pytest.raises(OSError, match="No such device"):
        lines.edges(0)
    assert lines.close() == 1


# --- locked to the chopped light (IS-30) -----------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.integers(1_000_000, 2_000_000_000), st.integers(100_000, 200_000_000))
def test_the_locked_period_is_the_nearest_that_chopping_removes(chop_ns, wanted_ns):
    half = chop_ns / 2
    below = int(half / wanted_ns)
    allowed = [half / m for m in (below, below + 1) if m > 0]
    allowed += [half * n for n in range(1, int(2 * wanted_ns / half) + 4, 2)]
    found = locked_period_ns(chop_ns, wanted_ns)
    best = min(abs(np.log(period / wanted_ns)) for period in allowed)
    assert min(abs(found - period) for period in allowed) <= 0.5
    assert abs(np.log(found / wanted_ns)) <= best + 1e-5
    assert 1 / 1.7333 < found / wanted_ns < 1.7333  # never further than the root of 3


def test_without_chopping_the_period_is_the_wanted_one():
    assert locked_period_ns(0, PERIOD_NS) == PERIOD_NS
    assert locked_period_ns(11_627_907, 0) == 0


def pick_up(
    period_s: float, *, rate_hz=860.0, k=7, seconds=60.0, window_s=1.0, jitter_s=0.0, phase=0.37, seed=1
) -> float:
    """What a PWM of unit amplitude and 30 % duty, seen by the photodiode, does to on minus off: the r.m.s. over the
    windows of one minute. Each conversion is the exact mean over its time; the first after each change of light is left
    out, each on half-cycle is compared with its two off neighbours, and the differences are averaged over a window."""
    rng = np.random.default_rng(seed)
    count = int(seconds * rate_hz) // (2 * k) * (2 * k)
    cycles = int(seconds / period_s) + 3
    begins = (np.arange(cycles) - 1 + phase) * period_s
    edges = np.stack([begins, begins + 0.3 * period_s], axis=1)
    edges += np.abs(rng.normal(0, jitter_s, edges.shape)) if jitter_s else 0.0
    # integral of the square wave up to t, by its edges
    at = np.concatenate([[-1.0], edges.ravel()])
    level = np.tile([0.0, 1.0], cycles)
    integral = np.concatenate([[0.0], np.cumsum(np.diff(at) * level)])
    ends = np.arange(count + 1) / rate_hz
    values = np.diff(np.interp(ends, at, integral)) * rate_hz
    halves = values.reshape(-1, k)[:, 1:].mean(axis=1)
    on, off = halves[0::2], halves[1::2]
    difference = on[1:] - 0.5 * (off[:-1] + off[1:])
    per_window = int(window_s * rate_hz / (2 * k))
    windows = difference[: len(difference) // per_window * per_window].reshape(-1, per_window).mean(axis=1)
    return float(np.sqrt((windows**2).mean()))


def decibel(ratio: float) -> float:
    return float(20 * np.log10(max(ratio, 1e-12)))


@pytest.mark.parametrize("k", [5, 7])
@pytest.mark.parametrize("window_s", [0.2, 1.0])
def test_locking_takes_our_own_pwm_out_of_the_reading(k, window_s):
    """200 Hz wanted, at converter rates across +-10 %, those among them at which it is worst: unlocked, and locked."""
    worst = {2 * k * harmonic * 200.0 / odd for harmonic in range(1, 7) for odd in range(1, 40, 2)}
    rates = [*np.linspace(774, 946, 20), *sorted(rate for rate in worst if 774 < rate < 946)]
    free, locked, off_ppm, jittered = [], [], [], []
    for rate_hz in rates:
        period_s = locked_period_ns(round(2e9 * k / rate_hz), 5_000_000) * 1e-9
        options = {"rate_hz": rate_hz, "k": k, "window_s": window_s, "seconds": 20.0}
        free.append(max(pick_up(5e-3, phase=phase, **options) for phase in (0.0, 0.125, 0.25)))
        locked.append(pick_up(period_s, **options))
        off_ppm.append(pick_up(period_s * (1 + 200e-6), **options))
        jittered.append(pick_up(period_s, jitter_s=50e-6, **options))
    figures = {
        "free, worst": max(free),
        "free, median": float(np.median(free)),
        "locked": max(locked),
        "locked, clocks 200 ppm apart": max(off_ppm),
        "locked, edges late by 50 us": max(jittered),
    }
    print(f"k {k}, window {window_s} s: " + ", ".join(f"{name} {decibel(v):.0f} dB" for name, v in figures.items()))
    assert decibel(max(free)) > -40  # one of the interferer's lines is at an odd multiple of the chop frequency
    assert decibel(max(locked)) < -90
    assert decibel(max(off_ppm)) < -50
    assert decibel(max(jittered)) < decibel(max(free)) - 10


def test_a_whole_number_of_cycles_in_a_chop_period_is_not_enough():
    """An odd number puts the PWM at the chop frequency's own harmonic: the pick-up is all there."""
    half_s = 7 / 860
    assert decibel(pick_up(2 * half_s / 3)) > -20
    assert decibel(pick_up(half_s / 2)) < -90
    # slower than the light: an odd number of half-cycles, gone from windows of as many chop periods
    assert decibel(pick_up(2 * half_s, seconds=60.0)) > -25
    assert decibel(pick_up(3 * half_s, seconds=60.0)) < -35


# --- on a board ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """The board's guard, with the lines and channels of its profile."""
    from board_bench import current_bench

    here = current_bench()
    if here is None:
        yield None
        return
    guard = RunningGuard(
        compiled_guard(tmp_path_factory.mktemp("guard"), here.where),
        *(f"--line={name}={line}" for name, line in (("heating", 18), ("alt_media", 16), ("stirring", 17))),
        *(f"--pwm={name}=/sys/class/pwm/pwmchip0/pwm{n}@4000000" for name, n in (("media", 1), ("waste", 0))),
    ).ready()
    yield guard
    guard.close()


@pytest.fixture
def outputs(bench, running):
    """All outputs of the board, taken from the guard, and the hall sensor's line."""
    profile = load_profile(bench.profile)
    given = wait_for(lambda: connected(running.path), 5, "the outputs")
    lines = OutputLines()
    assert lines.configure(profile, given) == 5
    lines.add_hall("/dev/gpiochip0", profile.get("gpio", "hall"))
    heart = Heart(given.heartbeat)
    yield lines
    heart.stop()
    lines.close()
    given.close()


def connected(path: str):
    with contextlib.suppress(guard_client.GuardError):
        return guard_client.connect(path)
    return None


def run_for(lines: OutputLines, seconds: float) -> None:
    lines.run_until(time.monotonic_ns() + int(seconds * 1e9))


def lateness(lines: OutputLines) -> tuple[int, float]:
    """How many edges were written, and how late on average, us."""
    counts, _ = lines.lateness()
    edges = sum(count for _, _, count in counts)
    return edges, sum(0.5e-3 * (low + high) * count for low, high, count in counts) / edges


@on_board
@pytest.mark.parametrize("hz", [1, 5, 20, 60])
def test_speed_from_the_edges(bench, outputs, hz):
    """A motor that turns as fast as the bench says: all edges, in order, and the speed that they give."""
    bench.write("board/stir/tau_ms", 20)
    bench.write("board/stir/full_mhz", hz * 1000)
    outputs.duty("stirring", 100, time.monotonic_ns())
    wait_for(lambda: bench.number("board/stir/speed_mhz") == hz * 1000, 10, "full speed")
    outputs.edges(time.monotonic_ns(), 512)
    before = bench.number("board/stir/edges")
    run_for(outputs, 4.2 if hz == 1 else 1.2)
    stamps = outputs.edges(time.monotonic_ns(), 512)
    assert abs(bench.number("board/stir/edges") - before - len(stamps)) <= 1 and len(stamps) >= 4
    assert stamps == sorted(stamps) and outputs.counters()["edges_lost"] == 0
    fit = fit_edges(np.array(stamps, dtype=np.int64), stamps[-1], window_s=10.0)
    assert fit["rpm"] == pytest.approx(60 * hz, rel=2e-3)


@on_board
@pytest.mark.parametrize("percent", [20, 50, 80])
def test_the_motor_sees_the_duty(bench, outputs, percent):
    """The speed of the bench's motor is that of the duty: full x (duty - dead) / (1 - dead). At 50 Hz, and in the
    first second in which the machine had time: a falling edge that is written late is a longer pulse."""
    bench.write("board/stir/tau_ms", 20)
    outputs.period("stirring", 20_000_000)
    outputs.duty("stirring", percent, time.monotonic_ns())
    model = 50_000 * (0.01 * percent - 0.1) / 0.9
    for _ in range(12):
        run_for(outputs, 1.0)
        speed = bench.number("board/stir/speed_mhz")
        if speed == pytest.approx(model, abs=0.04 * model + 400):
            break
    edges, late_us = lateness(outputs)
    print(f"{percent} %: {speed} mHz, model {model:.0f}; {edges} edges late by {late_us:.0f} us on average")
    assert speed == pytest.approx(model, abs=0.04 * model + 400)
    assert outputs.counters()["line_errors"] == 0


@on_board
def test_several_outputs_pulse_at_once(bench, outputs):
    """Heater at 16 Hz, pump at 50 Hz and stirrer at 40 Hz for a second: each has its own number of edges."""
    now_ns = time.monotonic_ns()
    for name, hz in (("heating", 16), ("alt_media", 50), ("stirring", 40)):
        outputs.period(name, SECOND_NS // hz)
        outputs.duty(name, 40, now_ns)
    run_for(outputs, 1.0)
    edges, _ = lateness(outputs)
    assert 140 < edges <= 2 * (16 + 50 + 40) + 6  # a busy machine skips some
    assert outputs.close() == 0
    assert [bench.level(line) for line in (16, 17, 18)] == [0, 0, 0]


@on_board
def test_edges_that_nobody_fetched_are_counted(bench, outputs):
    bench.write("board/stir/tau_ms", 20)
    bench.write("board/stir/full_mhz", 300_000)
    before = bench.number("board/stir/edges")
    outputs.duty("stirring", 100, time.monotonic_ns())
    wait_for(lambda: bench.number("board/stir/edges") > before + 600, 15, "600 edges")
    outputs.duty("stirring", 0, time.monotonic_ns())
    wait_for(lambda: bench.number("board/stir/speed_mhz") == 0, 10, "standstill")
    made = bench.number("board/stir/edges") - before
    # the first edge that was lost shows in the number of the first that is still there
    stamps = outputs.edges(time.monotonic_ns(), 512)
    assert len(stamps) == 256
    assert outputs.counters()["edges_lost"] == made - 256


@on_board
def test_kernel_pwm_is_one_write_a_change(bench, outputs):
    def state() -> tuple[int, int, int]:
        return tuple(bench.number(f"board/pwm/1/{name}") for name in ("period_ns", "duty_ns", "enabled"))

    now_ns = time.monotonic_ns()
    assert state() == (4_000_000, 0, 0)
    outputs.duty("media", 40, now_ns)
    assert state() == (4_000_000, 1_600_000, 1)
    before = bench.number("board/pwm/count")
    outputs.duty("media", 60, now_ns)
    assert state() == (4_000_000, 2_400_000, 1) and bench.number("board/pwm/count") == before + 1
    outputs.duty("media", 100, now_ns)
    for period_ns in (3_000_000, 8_000_000):  # shorter than the pulse, then longer
        outputs.period("media", period_ns)
        assert state() == (period_ns, period_ns, 1)
    outputs.period("media", 0)
    assert state() == (4_000_000, 4_000_000, 1)
    outputs.duty("media", 0, now_ns)
    assert state() == (4_000_000, 0, 0)
    bench.fail("pwm", 1, 5)
    with pytest.raises(OSError, match="Input/output"):
        outputs.duty("media", 10, now_ns)
    outputs.duty("media", 10, now_ns)
    assert state() == (4_000_000, 400_000, 1)
