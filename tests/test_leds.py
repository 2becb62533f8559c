"""The LED channels: their rules, what their changes cost the measurement, and what a worker says of them."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from stirbar.core import events
from stirbar.rt.leds_arrays import CEILING_PERCENT, LEASE_S, STEPS, LedRules, quantised
from stirbar.rt.sampling_arrays import KINDS

from tests.test_sampling import BOARDS, bench, conversions, readings

SECOND = 1_000_000_000
NEVER = 2**63 - 1


def settle(rules: LedRules, now_ns: int, measuring: bool = False) -> dict[str, float]:
    """Let the driver take whatever is to change; returns what that was."""
    changes = rules.decide(now_ns, measuring)
    for _ in changes:
        rules.write_next()
    assert rules.decide(now_ns, measuring) == {}
    return changes


# --- rules -----------------------------------------------------------------------------------------------------------


def test_an_intensity_is_one_of_the_drivers_steps() -> None:
    for code in range(STEPS + 1):
        assert quantised(100.0 * code / STEPS) == pytest.approx(100.0 * code / STEPS)
    worst = max(abs(quantised(percent) - percent) for percent in np.linspace(1, 100, 5000))
    assert worst <= 50.0 / STEPS + 1e-9
    assert quantised(0.01) == 100.0 / STEPS, "light that was asked for is never none"
    assert quantised(0.0) == 0.0


def test_a_channel_gives_what_was_asked_of_it_while_its_lease_lasts() -> None:
    rules = LedRules()
    assert rules.set("B", 20.0, SECOND) == 0
    assert settle(rules, SECOND) == {"B": pytest.approx(20.0)}
    assert rules.look_ns == SECOND + LEASE_S * SECOND
    assert settle(rules, rules.look_ns - 1) == {}
    assert settle(rules, rules.look_ns) == {"B": 0.0}
    assert rules.lapsed == "B" and rules.look_ns == NEVER
    late = (LEASE_S + 500) * SECOND
    rules.renew("CD", late)  # others' leases are not its own
    assert settle(rules, late) == {}
    rules.renew("B", late)
    assert settle(rules, late) == {"B": pytest.approx(20.0)}
    assert rules.lapsed == "" and rules.look_ns == late + LEASE_S * SECOND


def test_a_dark_channel_needs_no_lease() -> None:
    rules = LedRules()
    rules.set("B", 0.0, SECOND)
    assert settle(rules, SECOND) == {} and rules.look_ns == NEVER


def test_a_locked_channel_is_dark_while_density_is_measured_and_comes_back() -> None:
    rules = LedRules(locked="C")
    rules.set("B", 10.0, 0)
    rules.set("C", 60.0, 0)
    settle(rules, 0)
    assert settle(rules, SECOND, measuring=True) == {"C": 0.0}
    assert rules.held == "C" and rules.given_percent[1] > 0
    assert rules.set("C", 40.0, 2 * SECOND, measuring=True) == 0  # it is taken, for then
    assert settle(rules, 2 * SECOND, measuring=True) == {}
    assert settle(rules, 3 * SECOND) == {"C": pytest.approx(40.0)}
    assert rules.held == ""


def test_the_od_led_is_the_measurements_while_there_is_one() -> None:
    rules = LedRules(od="A")
    assert rules.set("A", 50.0, 0) == 0
    assert settle(rules, 0) == {"A": pytest.approx(50.0, abs=0.2)}
    assert settle(rules, SECOND, measuring=True) == {}
    assert rules.given_percent[0] == 0.0, "the measurement has it: it is no longer written here"
    assert rules.set("A", 50.0, SECOND, measuring=True) == -errno.EBUSY
    assert settle(rules, 2 * SECOND) == {}, "what was asked of it before does not come back"


@pytest.mark.parametrize("percent", [-0.1, 30.1, 1e9, float("nan"), float("inf")])
def test_what_is_above_its_maximum_or_no_number_is_refused(percent: float) -> None:
    rules = LedRules(maximum_percent=(100.0, 30.0, 100.0, 100.0))
    rules.set("B", 30.0, 0)
    settle(rules, 0)
    assert rules.set("B", percent, 0) == -errno.EDOM
    assert settle(rules, 0) == {}


def test_nothing_raises_the_ceiling_and_a_channel_that_is_not_there_is_refused() -> None:
    for wrong in (CEILING_PERCENT + 0.01, -1.0, float("nan")):
        with pytest.raises(ValueError, match="maximum_percent"):
            LedRules(maximum_percent=(100.0, wrong, 100.0, 100.0))
    assert LedRules(present="AB").set("C", 1.0, 0) == -errno.ENODEV


# --- on the bus ------------------------------------------------------------------------------------------------------

LED, LIGHT, READ, CONVERT = (KINDS.index(kind) for kind in ("led", "light", "read", "convert"))


def changing(made, seconds: float, per_second: int = 10) -> tuple[bytes, bytes, list]:
    """Run on while channels B and C change so often in turn; what the sampler said in that time."""
    parts = []
    for i in range(round(seconds * per_second)):
        made.push(events.COMMAND_LED_SET, (7.0 * i) % 60.0 if i % 4 else 0.0, 1 + i % 2)
        parts.append(made.run(1.0 / per_second))
    return b"".join(p[0] for p in parts), b"".join(p[1] for p in parts), [e for p in parts for e in p[2]]


@pytest.mark.parametrize(
    ("name", "stages"), [*((name, False) for name in BOARDS), *((name, True) for name in BOARDS if name != "smoothed")]
)
def test_ten_changes_a_second_cost_no_conversion(name: str, stages: bool) -> None:
    """On every kind of board, with threads that wake late, and where lighting takes two transfers."""
    made = bench(name, led_stages=stages)
    made.push(events.COMMAND_TRACE, 1e6)
    made.run(15.0 if name == "smoothed" else 6.0)
    before, begin_ns = made.look(), made.now_ns()
    _, trace, told = changing(made, 20.0)
    look, seconds = made.look(), (made.now_ns() - begin_ns) / 1e9
    rate_hz = BOARDS[name][0]["rate_hz"]
    for channel in (0, 1):
        period_s = look["adc_period_s"][channel] if name in ("ready", "pilot") else 1.0 / rate_hz
        planned = seconds / period_s
        assert len(conversions(trace, channel)) >= 0.999 * planned - 2
        assert look["missed"][channel] - before["missed"][channel] <= 0.001 * planned
    assert look["slow_forced"] == before["slow_forced"]
    changed = [event for event in told if event[3] == events.EVENT_LED_CHANGED]
    assert len(changed) >= (190 if name != "smoothed" else 20)


@pytest.mark.parametrize("name", ["ready", "host 100 kHz", "pilot"])
def test_a_change_comes_with_a_chop_period_before_a_conversion_that_counts(name: str) -> None:
    made = bench(name)
    made.run(6.0)
    begin_ns = made.now_ns()
    changing(made, 10.0)
    moved = made.transfers()
    moved = moved[moved["begin_ns"] >= begin_ns]
    lights = moved[moved["kind"] == LIGHT]
    half_ns = np.median(np.diff(lights["end_ns"]))
    period_ns = half_ns / made.look()["half_cycle"]
    written = moved[moved["kind"] == LED]["end_ns"]
    assert len(written) >= 90
    written = written[written > lights["end_ns"][0]]
    which = np.searchsorted(lights["end_ns"], written) - 1
    later = written - lights["end_ns"][which]
    assert later.max() < 0.5 * period_ns + 500_000, "each comes right after an edge of the light"
    assert len(set(which % 2)) == 1, "and always after the edge of the same kind: a whole chop period is over"
    if name.startswith("host"):
        begun = moved[moved["kind"] == CONVERT]["end_ns"]
        for at in written[5:]:
            assert not np.any((begun < at) & (begun + 1_280_000 > at)), "no conversion sees the change"


def test_without_density_a_change_is_made_at_once() -> None:
    made = bench("ready")
    made.push(events.COMMAND_OD_STOP, 0.0)
    made.run(1.0)
    made.push(events.COMMAND_LED_SET, 50.0, 3)
    _, _, told = made.run(0.05)
    assert made.look()["leds"][3] == pytest.approx(49.8, abs=0.01)
    assert [event[1:4] for event in told if event[3] == events.EVENT_LED_CHANGED] == [
        (pytest.approx(49.804, abs=0.001), 3, events.EVENT_LED_CHANGED)
    ]


def test_a_lease_that_nobody_renews_puts_it_out_and_a_renewed_one_lights_it() -> None:
    made = bench("ready")
    made.run(2.0)
    made.push(events.COMMAND_LED_SET, 40.0, 1)
    made.run(LEASE_S - 1.0)
    assert made.look()["leds"][1] == 40.0
    _, _, told = made.run(2.0)
    assert made.look()["leds"][1] == 0.0
    assert events.EVENT_LED_LAPSED in [event[3] for event in told]
    made.push(events.COMMAND_LED_RENEW, 0.0, 0, 0b10)
    made.run(0.2)
    assert made.look()["leds"][1] == 40.0


def test_a_locked_channel_gives_no_light_while_density_is_measured() -> None:
    """With light that leaks to the photodiodes: locked, the dark level stays; not locked, the chop removes it."""
    for locked, lit in ((0b10, False), (0, True)):
        made = bench("ready", leds_locked=locked, light_leak_v=0.1)
        made.run(5.0)
        before = readings(made.run(3.0)[0])[-1]
        made.push(events.COMMAND_LED_SET, 50.0, 1)
        _, _, told = made.run(3.0)
        after = readings(made.run(3.0)[0])[-1]
        assert made.look()["leds"][1] == pytest.approx(49.8 * lit, abs=0.01)
        assert after["ambient_v"] - before["ambient_v"] == pytest.approx(0.0498 * lit, abs=1e-3)
        assert after["signal_v"] == pytest.approx(before["signal_v"], rel=1e-3)
        assert (events.EVENT_LED_LOCKED in [event[3] for event in told]) == (not lit)
        made.push(events.COMMAND_OD_STOP, 0.0)
        made.run(0.1)
        assert made.look()["leds"][1] == pytest.approx(49.8, abs=0.01)


def test_a_driver_that_refuses_is_asked_each_second_and_conversions_go_on() -> None:
    made = bench("ready")
    made.run(5.0)
    before = made.look()
    made.refuse_leds(True)
    made.push(events.COMMAND_LED_SET, 50.0, 1)
    begin_ns = made.now_ns()
    _, _, told = made.run(10.0)
    moved = made.transfers()
    tried = np.count_nonzero((moved["kind"] == LED) & (moved["begin_ns"] >= begin_ns))
    assert 5 <= tried <= 12
    assert [event[3] for event in told].count(events.EVENT_LED_LOST) == 1
    assert made.look()["missed"] == before["missed"]
    made.refuse_leds(False)
    _, _, told = made.run(1.5)
    assert [event[3] for event in told if event[3] >= 50] == [events.EVENT_LED_LOST_OVER, events.EVENT_LED_CHANGED]


def test_where_no_chop_period_comes_a_change_does_not_wait_for_ever() -> None:
    """Both converters lost: there is no light to wait for."""
    made = bench("host 100 kHz")
    made.run(5.0)
    made.stick(0, True)
    made.stick(1, True)
    made.run(2.0)
    made.push(events.COMMAND_LED_SET, 50.0, 1)
    made.run(3.5)
    assert made.look()["leds"][1] > 49.0


def test_a_tick_without_changes_puts_nothing_on_the_bus() -> None:
    made = bench("ready")
    made.run(70.0)
    assert np.count_nonzero(made.transfers()["kind"] == LED) == 0
