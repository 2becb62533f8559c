"""The LED channels on every board's driver: what the chip then has, that it costs no conversion, and when it fails."""

from __future__ import annotations

import pathlib
import time

import pytest
from board_bench import Bench, board
from stirbar.core import events
from stirbar.core.config import load_config
from stirbar.core.profiles import load_profile
from stirbar.rt.loop import Loop

from tests.test_board_loop import SAMPLING, Run, led, run  # noqa: F401 (run is a fixture)

B, C, D = 1, 2, 3


def driver(run: Run) -> int:  # noqa: F811
    return led(run.profile)[0]


def code(run: Run, channel: int) -> int:  # noqa: F811
    """That the driver gives on a channel."""
    return run.bench.led_code(driver(run), channel) or 0


def set_led(run: Run, channel: int, percent: float) -> None:  # noqa: F811
    assert run.loop.push(SAMPLING, 99, events.COMMAND_LED_SET, channel, 0, percent)


@board("hat1.0", travel=True)
@board("hat1.1", travel=True)
@board("model1.5", travel=True, seldom=True)
@board("xr1.5", travel=True, seldom=True)
@board("eyespy", travel=True)
def test_ten_changes_a_second_cost_no_conversion(run: Run, bench: Bench) -> None:  # noqa: F811
    """Stretches with and without changes; on the fake, whose clock is the busy machine's, one short one of each."""
    run.until(lambda: len(run.good("od2")) >= 3)
    stretches, stretch_s = (8, 5.0) if bench.where == "kernel" else (2, 1.0)
    missed: dict[bool, list[int]] = {False: [], True: []}
    changes = 0
    for number in range(stretches):
        changing = bool(number % 2)
        before = run.loop.counters()
        end = time.monotonic() + stretch_s
        while time.monotonic() < end:
            if changing:
                changes += 1
                set_led(run, B + changes % 2, 7.0 * (changes % 9))
            time.sleep(0.1)  # a programme's pace
            run.drain()
        after = run.loop.counters()
        missed[changing].append(after["missed_conversions"] - before["missed_conversions"])
        assert after["bus_transfer_errors"] == before["bus_transfer_errors"]
    print(missed, run.loop.counters()["slow_reads_forced"], run.announced("led_changed"), changes)
    if bench.where == "kernel":
        assert run.announced("led_changed") >= 20
        assert run.loop.counters()["missed_conversions"] == run.loop.counters()["slow_reads_forced"] == 0
    else:
        assert run.announced("led_changed") >= 1
        assert missed[True][0] <= 2 * missed[False][0] + 100
    count = len(run.good("od2"))
    run.until(lambda: len(run.good("od2")) >= count + 3)  # and the density is what it was


@board("hat1.0", travel=True)
@board("hat1.1", travel=True)
def test_the_driver_has_what_was_asked_and_nothing_at_the_end(run: Run, bench: Bench) -> None:  # noqa: F811
    run.until(lambda: len(run.good("od2")) >= 2)
    for channel, percent in ((B, 20.0), (C, 0.1), (D, 100.0)):
        set_led(run, channel, percent)
    run.until(lambda: [code(run, channel) for channel in (B, C, D)] == [51, 1, 255])
    assert run.loop.leds()["B"] == 20.0
    set_led(run, B, 60.0)
    set_led(run, C, 0.0)
    run.until(lambda: [code(run, channel) for channel in (B, C, D)] == [153, 0, 255])
    run.loop.stop()
    assert [code(run, channel) for channel in range(4)] == [0, 0, 0, 0]


@board("hat1.0", travel=True, seldom=True)
def test_a_driver_that_lost_its_power_gets_every_channel_anew(run: Run, bench: Bench) -> None:  # noqa: F811
    run.until(lambda: len(run.good("od2")) >= 2)
    set_led(run, B, 20.0)
    run.until(lambda: code(run, B) == 51)
    bench.unplug(driver(run))
    bench.replug(driver(run))  # its registers are those of power-on
    run.until(lambda: code(run, B) == 51, 40.0)
    count = len(run.good("od2"))
    run.until(lambda: len(run.good("od2")) >= count + 3)


@board("hat1.0", travel=True)
@board("hat1.1", travel=True)
def test_a_driver_that_is_gone_is_named_and_asked_again(run: Run, bench: Bench) -> None:  # noqa: F811
    run.until(lambda: len(run.good("od2")) >= 2)
    bench.unplug(driver(run))
    set_led(run, B, 20.0)
    run.until(lambda: run.announced("led_lost") == 1)
    bench.replug(driver(run))
    run.until(lambda: run.announced("led_lost_over") == 1 and code(run, B) == 51)


@board("hat1.0", travel=True)
def test_a_channel_without_an_output_is_refused(bench: Bench, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "three.ini"
    path.write_text("[profile]\nextends = hat1.0\n[led]\nd =\n")
    profile = load_profile(str(path))
    settings = [("unit", "data_directory", str(tmp_path)), ("loop.config", "lock_memory", "0")]
    loop = Loop(load_config(overrides=settings), profile=profile)
    loop.start()
    try:
        assert set(loop.leds()) == {"A", "B", "C"} and loop.od_led() == "A"
        loop.push(SAMPLING, 7, events.COMMAND_LED_SET, D, 0, 10.0)
        end = time.monotonic() + 10
        answers: list[tuple] = []
        while not answers and time.monotonic() < end:
            answers = [event for event in loop.drain_events() if event[2] == 7]
        assert answers[0][3] == events.EVENT_COMMAND_REFUSED and answers[0][1] == pytest.approx(-19)  # ENODEV
    finally:
        loop.stop()
