"""Gain ranging: decisions within a conversion or two, ranges that agree, over-voltage, and nothing mixed."""

from __future__ import annotations

import numpy as np
import pytest
from gain_bench import EDGE, FULL_SCALES_V, OFF, ON, Bench
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled_run import QUIET, SECOND, SampledRun
from stirbar.rt import pilot_arrays as pa

PERIOD_NS = 1_162_791


def steps(levels: list[float], each_s: float):
    return lambda t: levels[min(len(levels) - 1, int(t // each_s))]


# --- which range -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal_v", [3e-4, 3e-3, 0.03, 0.15, 0.3, 0.8, 1.5, 2.9])
def test_the_first_readings_are_made_at_the_right_range(signal_v: float) -> None:
    bench = Bench(lambda _: signal_v).run(1.0)
    total = signal_v + 0.02
    best = min(v for v in FULL_SCALES_V if total < 0.85 * v)
    assert bench.chain.full_scale_v == best and bench.clipped == 0
    assert len(bench.ranges) <= 1 and all(time < 0.02 for time, _ in bench.ranges)
    assert bench.values()["value"][-1] == pytest.approx(signal_v, rel=0.003, abs=2e-6)


def test_a_fixed_range_stays() -> None:
    bench = Bench(steps([0.05, 0.9, 0.05], 3.0), full_scale_v=1.024).run(9.0)
    assert bench.ranges == [] and bench.told == [] and bench.lost == 0


def test_light_through_four_decades_and_back() -> None:
    levels = [3e-4, 3e-3, 0.03, 0.3, 2.9, 0.3, 0.03, 3e-3, 3e-4]
    bench = Bench(steps(levels, 14.0)).run(14.0 * len(levels))
    values = bench.values()
    time = values["monotonic_ns"] * 1e-9
    chosen = []
    for i, level in enumerate(levels):
        inside = (time > 14.0 * i + 1.5) & (time < 14.0 * (i + 1))
        part = values[inside]
        # the same light is the same number, whatever happens to the range meanwhile
        middle = np.median(part["value"])
        assert np.abs(part["value"] - middle).max() <= max(1e-4 * level, 6 * part["se_instrument"].max()), level
        assert middle == pytest.approx(level, rel=0.005, abs=2e-6)
        chosen.append([v for t, v in bench.ranges if t < 14.0 * (i + 1)][-1])
    assert chosen == [min(v for v in FULL_SCALES_V if level + 0.02 < 0.85 * v) for level in levels]
    assert bench.clipped <= 8 and bench.chain.moves == len(bench.ranges) >= 8


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("before_v", "after_v"), [(0.6, 0.3), (0.3, 0.47), (1.2, 0.55)])
def test_the_level_does_not_step_with_the_range(before_v: float, after_v: float, seed: int) -> None:
    """The light steps at 4 s, the range some time later; around that moment the reading stays within 1e-4."""
    bench = Bench(steps([before_v, after_v, after_v, after_v], 4.0), seed=seed).run(14.0)
    assert len(bench.ranges) == 2
    moved = bench.ranges[1][0]
    values = bench.values(5.2, 14.0)
    time = values["monotonic_ns"] * 1e-9
    assert np.abs(values["value"] / values["value"][-1] - 1)[time > moved].max() < 1e-4
    if moved > 5.5:
        earlier = values["value"][time < moved].mean()
        later = values["value"][time > moved + 1.0].mean()
        assert abs(later / earlier - 1) < 1e-4
        here, there = (FULL_SCALES_V.index(v) for _, v in bench.ranges)
        assert abs(bench.errors[here] - bench.errors[there]) > 1.4e-3, "this bench could not have stepped"


def test_in_a_restless_culture_the_step_is_below_the_readings_own_scatter() -> None:
    errors, surprise = [], []
    for seed in range(12):
        bench = Bench(steps([0.6, 0.3, 0.3], 4.0), modulation=0.005, seed=seed).run(10.0)
        home = FULL_SCALES_V.index(bench.chain.full_scale_v)
        ratio, doubt = bench.chain.ratios[home - 1]
        errors.append(ratio - np.log1p(bench.errors[home]) + np.log1p(bench.errors[home - 1]))
        surprise.append(errors[-1] / doubt)
        assert abs(errors[-1]) * 0.3 < 2 * np.std(bench.values(8.5, 10.0)["value"])
    assert np.std(errors) < 1e-3 and np.std(surprise) < 1.6  # it knows how little it knows


def test_the_ratio_of_neighbours_is_measured_on_the_light_of_the_start() -> None:
    bench = Bench(lambda _: 0.4).run(1.5)
    home = FULL_SCALES_V.index(bench.chain.full_scale_v)
    ratio, doubt = bench.chain.ratios[home - 1]
    assert doubt < 5e-5
    assert ratio == pytest.approx(np.log1p(bench.errors[home]) - np.log1p(bench.errors[home - 1]), abs=5e-5)
    assert bench.lost < 100 and bench.chain.state == "steady"


# --- too much --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full_scale_v", [None, 0.256, 1.024, 2.048])
@pytest.mark.parametrize("seed", range(4))
def test_over_voltage_is_seen_from_any_range(full_scale_v: float | None, seed: int) -> None:
    """Two conversions that clip: light off in that tick; the LED alone made it, so it is lit once more to measure."""
    bench = Bench(lambda t: 0.1 if t < 2.0 else 3.35, full_scale_v=full_scale_v, seed=seed).run(3.0)
    assert bench.chain.state == "shut" and bench.chain.holds_light
    assert bench.chain.level_v > 3.2
    over = [t for t, bits in bench.told if bits & pa.GAIN_OVER_VOLTAGE]
    assert len(over) == 1 and over[0] < 2.0 + 0.05
    off = [t for t, bits in bench.told if bits & pa.GAIN_LIGHT_OFF]
    assert off[0] == bench.blind_s
    assert bench.clipped <= 4


def test_over_voltage_without_the_light_is_seen_in_the_dark() -> None:
    bench = Bench(lambda _: 0.1, ambient_v=lambda t: 0.02 if t < 2.0 else 3.3).run(2.5)
    over = [t for t, bits in bench.told if bits & pa.GAIN_OVER_VOLTAGE]
    assert len(over) == 1 and over[0] - 2.0 < 10 * PERIOD_NS * 1e-9
    assert bench.chain.state == "shut"


def test_a_warning_comes_once() -> None:
    bench = Bench(steps([2.0, 3.05, 2.0, 3.05], 1.0)).run(4.0)
    assert sum(bool(bits & pa.GAIN_WARNING) for _, bits in bench.told) == 2
    assert not any(bits & pa.GAIN_OVER_VOLTAGE for _, bits in bench.told)


def test_a_fixed_range_that_clips_is_looked_at_now_and_then_and_kept() -> None:
    bench = Bench(lambda _: 1.5, full_scale_v=1.024).run(25.0)
    looks = [t for t, bits in bench.told if bits & pa.GAIN_LIGHT_OFF]
    assert len(looks) == 3 and np.diff(looks) == pytest.approx(10.0, abs=0.1)
    assert bench.chain.full_scale_v == 1.024 and bench.chain.state == "steady"


def test_a_bubble_that_clips_once_costs_one_step_and_no_alarm() -> None:
    chain = pa.GainChain(None)
    assert settle_at(chain, 0.2) == 0.256
    act = chain.conversion(32767, True, ON)
    assert act == pa.GAIN_WRITE | pa.GAIN_MOVED and chain.full_scale_v == 0.512 and not chain.holds_light


def settle_at(chain: pa.GainChain, volts: float) -> float:
    """Feed a level until the range stays; returns the full scale."""
    setting, now = chain.full_scale_v, 0
    for number in range(40):
        chain.admit(now, now + PERIOD_NS)
        now += PERIOD_NS
        act = chain.conversion(round(volts / setting * 32768), False, ON)
        if act & pa.GAIN_WRITE:
            setting = chain.full_scale_v
            chain.written(now - 100_000, now)
        assert number < 40
    return chain.full_scale_v


# --- what is whose ---------------------------------------------------------------------------------------------------


def test_a_conversion_during_the_write_is_nobodys() -> None:
    chain = pa.GainChain(None)
    act = 0
    for number in range(3):
        assert chain.admit(number * PERIOD_NS, (number + 1) * PERIOD_NS) == pa.GAIN_IN_FORCE
        act |= chain.conversion(100, False, ON)
        if act:
            break
    assert act & pa.GAIN_WRITE
    begin = (number + 1) * PERIOD_NS
    chain.written(begin + 100_000, begin + 500_000)
    assert chain.admit(begin, begin + PERIOD_NS) == pa.GAIN_FOREIGN
    assert chain.admit(begin + PERIOD_NS, begin + 2 * PERIOD_NS) == pa.GAIN_FRESH
    assert chain.admit(begin + 2 * PERIOD_NS, begin + 3 * PERIOD_NS) == pa.GAIN_IN_FORCE
    assert chain.volts_per_code == pytest.approx(0.256 / 32768)


def test_a_write_that_spans_two_conversions_costs_both() -> None:
    chain = pa.GainChain(None)
    for _ in range(2):
        chain.conversion(100, False, ON)
    chain.written(PERIOD_NS // 2, PERIOD_NS + 100_000)
    said = [chain.admit(i * PERIOD_NS, (i + 1) * PERIOD_NS) for i in range(3)]
    assert said == [pa.GAIN_FOREIGN, pa.GAIN_FOREIGN, pa.GAIN_FRESH]


def test_a_full_scale_that_the_chip_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.0 V, the converter has 6\.144"):
        pa.GainChain(1.0)


@given(
    st.lists(st.tuples(st.floats(-0.1, 7.0), st.integers(1, 60)), min_size=1, max_size=25),
    st.sampled_from([None, *FULL_SCALES_V]),
)
@settings(max_examples=150, deadline=None)
def test_whatever_the_voltage_does_the_rules_hold(course: list[tuple[float, int]], fixed: float | None) -> None:
    """Never blind for more than two conversions in force; shut means dark for ever; the written range is a real one."""
    chain = pa.GainChain(fixed)
    setting = following = chain.full_scale_v
    lit, clips, now, shut, number, quiet = False, 0, 0, False, 0, 0
    for volts, count in course:
        for _ in range(count):
            number += 1
            seen = volts if lit else 0.1 * volts
            code = int(np.clip(round(seen / setting * 32768), -32768, 32767))
            clipped = seen / setting * 32768 > 32767.5
            chain.admit(now, now + PERIOD_NS)
            setting = following
            phase = EDGE if number % 5 == 0 else ON if lit else OFF
            act = chain.conversion(code, clipped, phase)
            clips = clips + 1 if clipped and not shut else 0
            quiet = quiet - 1 if quiet else 0
            if number % 5 == 0 and not chain.holds_light:
                lit = not lit
                if lit:
                    act |= chain.chop()
            if act & pa.GAIN_LIGHT_OFF:
                lit, quiet = False, 900 * 10
            if shut:
                assert act == 0 and chain.holds_light and not lit
            shut = shut or bool(act & pa.GAIN_OVER_VOLTAGE)
            assert chain.full_scale_v in FULL_SCALES_V
            if act & pa.GAIN_WRITE:
                following = chain.full_scale_v
                chain.written(now + PERIOD_NS + 100_000, now + PERIOD_NS + 400_000)
            if fixed is None:
                assert clips <= 3 or shut
            now += PERIOD_NS


# --- in the worker ---------------------------------------------------------------------------------------------------

AUTO = {("od_reading.config", "adc_full_scale_v"): "auto"}
# light on the diodes, nothing that moves: the vial's ranges differ by 0.15 %
STILL = QUIET | {
    "adc_gain_spread_percent": "0.1",
    "adc_offset_spread_lsb": "3",
    "reference_v": "0.3",
    "hum_amplitude_v": "0",
}


@pytest.mark.parametrize("board", ["simulated", "model1.5", "hat1.0"])
def test_the_worker_follows_the_light_and_replays_bit_by_bit(board: str) -> None:
    run = SampledRun(board, settings=AUTO, simulation=STILL, trace_s=60.0).run(6.0)
    for time, volts in ((6.0, 0.03), (14.0, 2.5), (20.0, 0.3)):
        run.set("reference_v", volts)
        run.run(time + (7.9 if time < 20.0 else 16.0))
    scales = [(round(value, 3)) for _, name, channel, value in run.events if name == "gain" and channel == 1]
    assert scales[-1] in (0.512, 1.024) and 4.096 in scales and 0.256 in scales
    assert [value for _, name, _, value in run.events if name in ("over_voltage", "high_voltage")] == []
    live = {(reading["stream"], reading["monotonic_ns"]): reading for part in run.parts for reading in part}
    replayed = run.replayed()
    assert len(replayed[replayed["stream"] == 2]) > 200
    for reading in replayed:
        if reading["stream"] <= 4:
            assert reading["value"].tobytes() == live[reading["stream"], reading["monotonic_ns"]]["value"].tobytes()
    # the reference's own changes of range are not in what it says: by the line before and after (the LED warms)
    for moved in run.times("gain", 1):
        reference = run.readings(2, moved - 1.2, moved + 2.4)
        time = (reference["monotonic_ns"] - run.start_ns) / SECOND - moved
        if moved < 3.0 or np.ptp(reference["reference_v"]) > 0.01 * reference["reference_v"][0]:
            continue  # the light itself has just changed
        before, after = time < 0.0, time > 1.1
        line = np.polyfit(time[before], reference["reference_v"][before], 1)
        assert reference["reference_v"][after][0] == pytest.approx(np.polyval(line, time[after][0]), rel=3e-4)


@pytest.mark.parametrize("board", ["simulated", "model1.5"])
def test_over_voltage_in_the_worker_puts_the_light_out_for_good(board: str) -> None:
    run = SampledRun(board, settings=AUTO, simulation=STILL, trace_s=30.0).run(4.0)
    lit_s = run.loop.led_seconds()
    run.set("reference_v", 5.0)
    run.run(14.0)
    assert len(run.times("over_voltage", 1)) == 1 and run.times("over_voltage", 1)[0] < 4.3
    assert run.loop.led_seconds() - lit_s <= 1
    trace = run.trace()
    mine = trace[(trace["kind"] == 1) & (trace["channel"] == 0)]
    clipped = (mine["flags"] & 1).astype(int)
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], clipped, [0]]))))[::2]
    assert runs.max() <= 3  # two, and the one under way when the light went out
    last_on = np.flatnonzero(mine["phase"] == ON)[-1]
    assert np.all(mine["phase"][last_on + 3 :] == OFF)
