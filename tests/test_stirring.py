"""The tachometer's line against NumPy, and the stirring controller on plants that are not the one it was tuned for."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stirbar.core.records import FLAGS, READING_DTYPE
from stirbar.rt.control_arrays import (
    CURVE_POINTS,
    DUTY_CEILING_PERCENT,
    RPM_CEILING,
    RPM_FLOOR,
    Stirrer,
    fit_edges,
    stirring_defaults,
)

from .stirring_twin import MS, PLANTS, SECOND, Bench, LagPlant, line_speed, rotor_edges

KICK, STALL, FAULT, RUNNING = 3, 4, 5, 6  # EVENT_STIR_*


def bench(plant=None, config=None, **options) -> Bench:
    return Bench(Stirrer(**(config or {})), copy.copy(plant) if plant else LagPlant(), **options)


def reading(data: bytes) -> np.void:
    return np.frombuffer(data, READING_DTYPE)[0]


def codes(trial) -> list[int]:
    return [code for _, code, _ in trial.events]


# --- tachometer ---


@pytest.mark.parametrize("rpm", [60, 137.5, 500, 1500, 3000])
@pytest.mark.parametrize("pulses", [1, 2, 4])
def test_line_equals_numpy(rpm: float, pulses: int) -> None:
    stamps = rotor_edges(rpm, 6, jitter_ns=50e3, pulses_per_turn=pulses)
    fit = fit_edges(stamps, int(stamps[-1]) + 1000, 1.0, pulses)
    newest = stamps[-fit["used"] :]
    speed, residual_sd = line_speed(newest, np.arange(len(newest)), pulses)
    assert fit["rpm"] == pytest.approx(speed, rel=1e-10)
    assert fit["window_s"] == pytest.approx((newest[-1] - newest[0]) * 1e-9)
    n = len(newest)
    pooled = math.sqrt((n * residual_sd**2 + 2 * 50e3**2) / n)
    slope_sd = pooled / math.sqrt(np.sum((np.arange(n) - (n - 1) / 2) ** 2))
    assert fit["standard_error_rpm"] == pytest.approx(speed * slope_sd / (60e9 / speed / pulses), rel=1e-6)


def test_noise_at_500_rpm_is_below_a_tenth() -> None:
    runs = [rotor_edges(500, 2, jitter_ns=50e3, seed=seed) for seed in range(300)]
    fits = [fit_edges(stamps, int(stamps[-1]) + 1000) for stamps in runs]
    speeds = np.array([fit["rpm"] for fit in fits])
    assert speeds.std() < 0.04
    assert abs(speeds.mean() - 500) < 0.01
    assert np.sqrt(np.mean([fit["standard_error_rpm"] ** 2 for fit in fits])) == pytest.approx(speeds.std(), rel=0.15)


def test_turn_statistics_tell_the_rotors_own_variation() -> None:
    periods = np.random.default_rng(5).normal(120e6, 3e6, 400)
    stamps = (SECOND + np.cumsum(periods)).astype(np.int64)
    fit = fit_edges(stamps, int(stamps[-1]), window_s=10.0)
    turns = np.diff(stamps[-fit["used"] :])
    assert fit["turns"] == len(turns)
    assert fit["turn_mean_ns"] == pytest.approx(turns.mean())
    assert fit["turn_sd_ns"] == pytest.approx(turns.std(ddof=1), rel=1e-9)


def test_uneven_magnets_do_not_show_in_whole_turns() -> None:
    turns = SECOND + 120 * MS * np.arange(40)
    stamps = np.sort(np.concatenate([turns, turns + 47 * MS])).astype(np.int64)
    fit = fit_edges(stamps, int(stamps[-1]), window_s=2.0, pulses_per_turn=2)
    assert fit["turn_sd_ns"] == pytest.approx(0.0, abs=1.0)
    assert fit["bounced"] == fit["lost"] == fit["restarts"] == 0
    assert fit["rpm"] == pytest.approx(500, rel=2e-3)


@pytest.mark.parametrize("delay_ns", [0, 200_000, 5 * MS, 30 * MS])
def test_bounce_is_rejected_and_counted(delay_ns: int) -> None:
    clean = rotor_edges(500, 3)
    doubled = clean[8::5] + delay_ns
    stamps = np.sort(np.concatenate([clean, doubled]))
    fit = fit_edges(stamps, int(clean[-1]) + 1)
    assert fit["bounced"] == len(doubled)
    assert fit["rpm"] == pytest.approx(500, rel=1e-9)
    assert fit["restarts"] == 0


@pytest.mark.parametrize("rpm", [60, 500, 3000])
def test_lost_edges_leave_the_speed_alone(rpm: float) -> None:
    clean = rotor_edges(rpm, 400 * 60 / rpm, jitter_ns=50e3)
    keep = np.random.default_rng(2).random(len(clean)) > 0.04
    keep[:8] = keep[-1] = True
    lost = int((~keep).sum())
    speeds = []
    for end in range(20, len(clean), 7):
        kept = clean[:end][keep[:end]]
        speeds.append(fit_edges(kept, int(kept[-1]) + 1)["rpm"])
    error = np.abs(np.array(speeds) / rpm - 1)
    assert np.mean(error > 0.002) < 0.01  # two losses in a row look like a slower rotor, for one turn
    assert fit_edges(clean[keep], int(clean[-1]))["lost"] >= 0.8 * lost


def test_a_real_halving_of_speed_is_believed_after_two_turns() -> None:
    fast = rotor_edges(500, 3)
    slow = fast[-1] + (240 * MS) * np.arange(1, 4)
    one = fit_edges(np.concatenate([fast, slow[:1]]), int(slow[0]))
    assert one["lost"] == 1 and one["rpm"] == pytest.approx(500)
    for end in (2, 3):
        more = fit_edges(np.concatenate([fast, slow[:end]]), int(slow[end - 1]))
        assert more["restarts"] == 1
        assert more["rpm"] == pytest.approx(250)


def test_a_long_stop_is_no_broken_pattern() -> None:
    before = rotor_edges(500, 3)
    after = rotor_edges(300, 3, start_ns=int(before[-1]) + 60 * SECOND)
    fit = fit_edges(np.concatenate([before, after]), int(after[-1]))
    assert fit["rpm"] == pytest.approx(300)
    assert fit["restarts"] == fit["lost"] == fit["bounced"] == 0


def test_silence_bounds_the_speed() -> None:
    stamps = rotor_edges(500, 3)
    last = int(stamps[-1])
    assert fit_edges(stamps, last + 240 * MS)["rpm"] == pytest.approx(500)  # one lost edge explains it
    late = fit_edges(stamps, last + 400 * MS)
    assert late["bounded"] == 1
    assert late["rpm"] == late["bound_rpm"] == pytest.approx(150)
    assert fit_edges(stamps, last + 3001 * MS)["rpm"] == 0.0


@given(st.lists(st.integers(-10 * SECOND, 10 * SECOND), max_size=300), st.integers(1, 8))
@settings(max_examples=200, deadline=None)
def test_any_edges_give_a_finite_speed(stamps: list[int], pulses: int) -> None:
    fit = fit_edges(np.array(stamps, np.int64), 10 * SECOND, 1.0, pulses)
    assert all(math.isfinite(value) for value in fit.values())
    assert 0.0 <= fit["rpm"] <= 6000.0 * 1.01
    assert fit["used"] <= 128


# --- controller on plants ---


@pytest.mark.parametrize("name", PLANTS)
def test_500_rpm_within_one_percent_in_three_seconds_and_held(name: str) -> None:
    for phase in (0.02, 0.5, 0.98):
        run = bench(PLANTS[name], phase=phase)
        run.stirrer.target_rpm(500, run.now_ns)
        trial = run.run(8)
        assert trial.settled_s(500) <= 3.0
        held = trial.speed(3.0) / 500 - 1
        assert np.sqrt(np.mean(held**2)) <= 0.005
        assert max(trial.rpm) <= 1.4 * 500
        assert codes(trial) == [KICK, RUNNING]


def test_a_true_feed_forward_does_not_overshoot() -> None:
    run = bench()
    run.stirrer.target_rpm(500, run.now_ns)
    assert max(run.run(6).rpm) < 505


@pytest.mark.parametrize("ticks", ["steady 20", "steady 60", "some 60"])
@pytest.mark.parametrize("name", ["nominal", "30 % slower, harder to start", "inertia and drag"])
def test_late_ticks_do_no_harm(ticks: str, name: str) -> None:
    chance = random.Random(3)
    steps = {"steady 20": lambda: 20, "steady 60": lambda: 60, "some 60": lambda: 60 if chance.random() < 0.05 else 10}
    run = bench(PLANTS[name], tick_ms=steps[ticks])
    run.stirrer.target_rpm(500, run.now_ns)
    trial = run.run(7)
    assert trial.settled_s(500) <= 3.0
    assert np.sqrt(np.mean((trial.speed(3.0) / 500 - 1) ** 2)) <= 0.005


@pytest.mark.parametrize("target", [100, 200, 1000, 1500])
@pytest.mark.parametrize("name", ["nominal", "30 % faster", "30 % slower", "inertia and drag"])
def test_other_targets_are_reached(name: str, target: int) -> None:
    run = bench(PLANTS[name])
    run.stirrer.target_rpm(target, run.now_ns)
    trial = run.run(14 if target < 200 else 6)
    assert trial.settled_s(target) <= (12.0 if target < 200 else 3.5)
    assert STALL not in codes(trial)


@pytest.mark.parametrize("name", ["nominal", "30 % faster", "30 % slower", "inertia and drag"])
def test_target_changes_follow_without_a_kick(name: str) -> None:
    run = bench(PLANTS[name])
    begin = 0.0
    for target in (500, 900, 400, 1200, 500):
        run.stirrer.target_rpm(target, run.now_ns)
        trial = run.run(4)
        assert trial.settled_s(target, begin_s=begin, end_s=begin + 4) <= 3.2
        begin += 4
    assert codes(trial) == [KICK] + [RUNNING] * 5
    assert np.abs(np.diff(trial.duty)).max() <= 100


def test_duty_slews_while_running() -> None:
    run = bench(jitter_ns=0)
    run.stirrer.target_rpm(500, run.now_ns)
    run.run(3)
    run.stirrer.target_rpm(1500, run.now_ns)
    steps = np.diff(run.run(2).duty[3000:])
    assert 1.0 < steps.max() <= 1.5 + 1e-9  # 150 %/s on the 10 ms grid


def test_two_pulses_per_turn() -> None:
    run = bench(config={"pulses_per_turn": 2}, pulses_per_turn=2)
    run.stirrer.target_rpm(500, run.now_ns)
    trial = run.run(5)
    assert trial.settled_s(500) <= 3.0
    assert reading(trial.readings[-1])["value"] == pytest.approx(500, abs=1)


def test_load_step_is_taken_up() -> None:
    run = bench()
    run.stirrer.target_rpm(500, run.now_ns)
    run.run(4)
    run.plant.full_hz = 40.0
    trial = run.run(4)
    assert trial.settled_s(500, begin_s=4.0) <= 2.5


def test_a_sensor_that_loses_and_doubles_edges() -> None:
    def sensor(stamp_ns: float, chance: np.random.Generator) -> list[float]:
        if chance.random() < 0.02:
            return []
        return [stamp_ns, stamp_ns + 0.7 * MS] if chance.random() < 0.1 else [stamp_ns]

    run = bench(sensor=sensor)
    run.stirrer.target_rpm(500, run.now_ns)
    trial = run.run(40)
    assert np.abs(trial.speed(3.0) / 500 - 1).max() < 0.02
    values = [float(reading(data)["value"]) for data in trial.readings[3:]]
    assert np.abs(np.array(values) / 500 - 1).max() < 0.01
    assert run.stirrer.counters["bounced"] > 10
    assert run.stirrer.counters["lost"] > 2
    assert sum(int(reading(data)["rejected"]) for data in trial.readings) <= run.stirrer.counters["bounced"]
    assert STALL not in codes(trial)


@pytest.mark.parametrize(("target", "least", "most"), [(500, 78, 86), (1500, 150, 200)])
def test_one_update_an_edge_and_at_most_twenty_a_second(target: int, least: int, most: int) -> None:
    run = bench()
    run.stirrer.target_rpm(target, run.now_ns)
    run.run(10)
    assert least <= run.stirrer.counters["updates"] <= most


# --- kick, stall, fault ---


def test_silent_tachometer_ends_in_a_fault_with_duty_0() -> None:
    run = bench(sensor=lambda stamp, chance: [])
    run.stirrer.target_rpm(500, run.now_ns)
    trial = run.run(4)
    times = {code: [t for t, c, _ in trial.events if c == code] for code in (KICK, STALL, FAULT)}
    assert codes(trial) == [KICK, STALL, KICK, STALL, KICK, STALL, KICK, STALL, FAULT]
    assert [value for _, code, value in trial.events if code == STALL] == [1, 2, 3, 4]
    assert times[KICK][0] == 0.0
    for kick, stall in zip(times[KICK], times[STALL], strict=True):
        assert 0.5 <= stall - kick <= 0.53
    fault_s = times[FAULT][0]
    duty, time = np.array(trial.duty), np.array(trial.time_s)
    assert (duty[time > fault_s + 0.001] == 0).all()
    full = duty == 100
    for kick in times[KICK][1:]:
        assert full[(time > kick) & (time < kick + 0.5)].sum() == pytest.approx(350, abs=11)
    last = reading(trial.readings[-1])
    assert last["flags"] & FLAGS["stalled"] and last["flags"] & FLAGS["sensor_lost"]
    assert last["flags"] & FLAGS["stirring_off"]
    assert run.stirrer.phase == "fault"


@pytest.mark.parametrize(("target", "limit_s"), [(500, 0.5), (200, 0.9), (1500, 0.5)])
def test_a_blocked_rotor_is_seen_in_time(target: int, limit_s: float) -> None:
    run = bench()
    run.stirrer.target_rpm(target, run.now_ns)
    before = list(run.run(5).events)
    run.plant.dead = run.plant.start = 2.0  # held fast
    run.plant.speed_hz = 0.0
    trial = run.run(6)
    stall_s = trial.events[len(before)][0]
    assert trial.events[len(before)][1] == STALL
    assert stall_s - 5.0 <= limit_s + 0.02
    assert codes(trial)[-1] == FAULT
    assert trial.duty[-1] == 0.0


def test_a_stopped_process_is_no_stall() -> None:
    """After a pause of the whole loop, during which edges were lost, stirring goes on without a kick."""
    run = bench()
    run.stirrer.target_rpm(500, run.now_ns)
    run.run(3)
    run.now_ms += 5000
    run.next_tick_ms = run.now_ms
    trial = run.run(3)
    assert codes(trial) == [KICK, RUNNING]
    assert np.abs(trial.speed(8.0) / 500 - 1).max() < 0.05


def test_a_stamp_from_the_future_ends_in_a_kick_not_in_deafness() -> None:
    run = bench()
    run.stirrer.target_rpm(500, run.now_ns)
    run.run(3)
    run.stirrer.edge(run.now_ns + 2 * SECOND)
    trial = run.run(8)
    assert FAULT not in codes(trial)
    assert trial.rpm[-1] == pytest.approx(500, rel=0.01)


def test_a_stall_that_clears_is_kicked_free_and_forgiven() -> None:
    run = bench()
    run.stirrer.target_rpm(500, run.now_ns)
    run.run(4)
    run.plant.speed_hz, free = 0.0, run.plant.start
    run.plant.start = 2.0
    run.run(1.2)
    run.plant.start = free
    assert reading(run.run(1.0).readings[-1])["flags"] & FLAGS["stalled"]
    trial = run.run(7)
    assert trial.settled_s(500, begin_s=9.0) == 0.0
    assert trial.events[-1][1] == RUNNING and FAULT not in codes(trial)
    assert run.stirrer.counters["stalls"] == 0
    assert reading(trial.readings[-1])["flags"] == 0


def test_a_fault_stays_until_a_new_command() -> None:
    run = bench()
    run.plant.start = 2.0
    run.stirrer.target_rpm(500, run.now_ns)
    run.run(10)
    assert run.stirrer.phase == "fault"
    run.plant.start = 0.15
    run.stirrer.target_rpm(500, run.now_ns)
    trial = run.run(4)
    assert trial.settled_s(500, begin_s=10) <= 3.0
    assert trial.rpm[-1] == pytest.approx(500, rel=0.005)


def test_a_stiff_rotor_starts_by_the_retry() -> None:
    """The first kick is only as long as a usual fan needs; here it does not break the rotor free."""

    class Stiff(LagPlant):
        pushed_s = 0.0

        def step(self, duty: float, dt_s: float) -> None:
            self.pushed_s = self.pushed_s + dt_s if duty > 0.9 else 0.0
            if self.speed_hz > 0.0 or self.pushed_s > 0.15:
                super().step(duty, dt_s)

    run = bench(Stiff())
    run.stirrer.target_rpm(500, run.now_ns)
    trial = run.run(5)
    assert codes(trial) == [KICK, STALL, KICK, RUNNING]
    assert trial.settled_s(500) <= 3.0


def test_repeated_commands_do_not_prolong_a_kick() -> None:
    run = bench(sensor=lambda stamp, chance: [])
    for _ in range(100):
        run.stirrer.target_rpm(1500, run.now_ns)
        trial = run.run(0.02)
    assert (np.array(trial.duty) == 100).sum() <= 360


def test_stop_and_start_of_a_coasting_rotor_needs_no_kick() -> None:
    run = bench()
    run.stirrer.target_rpm(500, run.now_ns)
    run.run(3)
    run.stirrer.stop(run.now_ns)
    assert run.run(0.2).duty[-1] == 0.0
    run.stirrer.target_rpm(500, run.now_ns)
    trial = run.run(3)
    assert codes(trial) == [KICK, RUNNING, RUNNING]
    assert trial.rpm[-1] == pytest.approx(500, rel=0.01)


def test_target_0_stops() -> None:
    run = bench()
    run.stirrer.target_rpm(500, run.now_ns)
    run.run(2)
    run.stirrer.target_rpm(0, run.now_ns)
    trial = run.run(6)
    assert set(trial.duty[2010:]) == {0.0}
    last = reading(trial.readings[-1])
    assert last["value"] == 0.0 and math.isnan(last["reference_v"])
    assert last["flags"] == FLAGS["stirring_off"]


# --- open loop ---


def test_open_loop_holds_its_duty_and_never_faults() -> None:
    run = bench()
    run.stirrer.duty(30.0, run.now_ns)
    trial = run.run(5)
    assert trial.duty[-1] == 30.0
    assert trial.rpm[-1] == pytest.approx(60 * 50 * 0.2 / 0.9, rel=1e-3)
    assert codes(trial) == [KICK, RUNNING]
    run.plant.start = run.plant.dead = 2.0
    run.plant.speed_hz = 0.0
    trial = run.run(8)
    assert trial.duty[-1] == 30.0
    assert codes(trial) == [KICK, RUNNING]


def test_without_a_sensor_a_target_is_met_by_feed_forward() -> None:
    run = bench(config={"use_rpm": 0}, sensor=lambda stamp, chance: [])
    run.stirrer.target_rpm(500, run.now_ns)
    trial = run.run(6)
    assert trial.rpm[-1] == pytest.approx(500, rel=0.01)
    assert codes(trial) == [KICK]
    assert reading(trial.readings[-1])["flags"] == FLAGS["sensor_lost"]


# --- readings ---


def test_a_reading_a_second_with_every_field() -> None:
    run = bench()
    run.stirrer.target_rpm(500, run.now_ns)
    trial = run.run(10)
    rows = np.concatenate([np.frombuffer(data, READING_DTYPE) for data in trial.readings])
    assert rows["sequence"].tolist() == list(range(len(rows)))
    assert set(np.diff(rows["monotonic_ns"]).tolist()) == {SECOND}
    last = rows[-1]
    assert last["value"] == pytest.approx(500, abs=0.5)
    assert 0 < last["se_instrument"] < 0.1
    assert 0 < last["se_culture"] < 1.0
    assert 0.7 < last["window_s"] <= 1.0
    assert last["noise_bandwidth_hz"] == pytest.approx(0.6 / last["window_s"])
    assert last["signal_v"] == pytest.approx(25, abs=0.2)
    assert last["reference_v"] == 500
    assert last["used"] in (8, 9)
    assert last["flags"] == 0 and last["stream"] == 8 and last["version"] == 1


def test_noise_bandwidth_of_a_line() -> None:
    """White noise of the speed passes the slope of a line as through a filter of 0.6 / window."""
    turns = 400
    chance = np.random.default_rng(1)
    speeds = []
    for _ in range(300):
        periods = 1 / (8.333 * (1 + 0.01 * chance.normal(size=turns)))
        stamps = (np.cumsum(periods) * 1e9).astype(np.int64)
        fit = fit_edges(stamps, int(stamps[-1]), window_s=10.0)
        speeds.append(fit["rpm"])
    variance_per_hz = (5.0**2) * 2 / 8.333
    assert np.var(speeds) == pytest.approx(variance_per_hz * 0.6 / fit["window_s"], rel=0.2)


def test_late_calls_skip_whole_periods() -> None:
    stirrer = Stirrer()
    assert stirrer.reading(10 * SECOND) is None
    assert stirrer.reading(11 * SECOND) is not None
    assert stirrer.reading(15 * SECOND + 300 * MS) is not None
    assert stirrer.reading(15 * SECOND + 999 * MS) is None
    assert stirrer.reading(16 * SECOND) is not None


# --- envelope ---


@pytest.mark.parametrize("rpm", [-1, math.nan, math.inf, 59.9, 1500.1, 1e9])
def test_a_target_outside_the_envelope_changes_nothing(rpm: float) -> None:
    stirrer = Stirrer()
    stirrer.target_rpm(500, SECOND)
    before = stirrer.snapshot()
    with pytest.raises(ValueError, match=r"must be 0 or 60\.\.1500"):
        stirrer.target_rpm(rpm, 2 * SECOND)
    assert stirrer.snapshot() == before


@pytest.mark.parametrize("duty", [-0.1, 80.1, math.nan, math.inf])
def test_a_duty_outside_the_envelope_changes_nothing(duty: float) -> None:
    stirrer = Stirrer(duty_maximum_percent=80.0)
    before = stirrer.snapshot()
    with pytest.raises(ValueError, match=r"must be 0\.\.80"):
        stirrer.duty(duty, SECOND)
    assert stirrer.snapshot() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pulses_per_turn", 0),
        ("pulses_per_turn", 9),
        ("kp", -1),
        ("ki", math.nan),
        ("duty_maximum_percent", 100.1),
        ("duty_maximum_percent", 0),
        ("kick_duty_percent", 101),
        ("kick_s", 0.51),
        ("stall_retries", 11),
        ("rpm_maximum", 3001),
        ("rpm_maximum", 59),
        ("report_period_s", 0),
        ("feed_forward_percent_per_rpm", math.inf),
    ],
)
def test_settings_outside_their_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match="outside their range"):
        Stirrer(**{name: value})


def test_the_kick_obeys_the_maximum() -> None:
    run = bench(config={"duty_maximum_percent": 40.0}, sensor=lambda stamp, chance: [])
    run.stirrer.target_rpm(500, run.now_ns)
    assert max(run.run(4).duty) == 40.0


COMMANDS = st.one_of(
    st.tuples(st.just("target"), st.floats()),
    st.tuples(st.just("target"), st.floats(60, 1500)),
    st.tuples(st.just("duty"), st.floats()),
    st.tuples(st.just("duty"), st.floats(0, 100)),
    st.tuples(st.just("stop"), st.just(0.0)),
    st.tuples(st.just("edges"), st.integers(1, 400)),
    st.tuples(st.just("turning"), st.floats(1, 5000)),
    st.tuples(st.just("back"), st.integers(1, 5000)),
    st.tuples(st.just("ticks"), st.integers(1, 300)),
)


@given(
    steps=st.lists(COMMANDS, min_size=1, max_size=60),
    maximum=st.floats(1, 100),
    pulses=st.integers(1, 8),
    kp=st.floats(0, 10),
    ki=st.floats(0, 100),
    kd=st.floats(0, 10),
    offset=st.floats(-100, 100),
    slope=st.floats(0, 10),
)
@settings(max_examples=150, deadline=None)
def test_no_sequence_leaves_the_envelope(steps, maximum, pulses, kp, ki, kd, offset, slope) -> None:
    stirrer = Stirrer(
        duty_maximum_percent=maximum,
        pulses_per_turn=pulses,
        kp=kp,
        ki=ki,
        kd=kd,
        feed_forward_offset_percent=offset,
        feed_forward_percent_per_rpm=slope,
    )
    now = SECOND

    def check() -> None:
        duty, event, _ = stirrer.tick(now)
        assert 0.0 <= duty <= min(maximum, DUTY_CEILING_PERCENT)
        assert event in (0, KICK, STALL, FAULT, RUNNING)
        if stirrer.phase in ("off", "fault"):
            assert duty == 0.0
        data = stirrer.reading(now)
        if data is not None:
            row = reading(data)
            assert 0.0 <= row["value"] <= 6100.0 and not math.isnan(row["signal_v"])

    for kind, value in steps:
        if kind == "target":
            allowed = value == 0 or RPM_FLOOR <= value <= min(1500, RPM_CEILING)
            try:
                stirrer.target_rpm(value, now)
                assert allowed
            except ValueError:
                assert not allowed
        elif kind == "duty":
            allowed = 0.0 <= value <= maximum
            try:
                stirrer.duty(value, now)
                assert allowed
            except ValueError:
                assert not allowed
        elif kind == "stop":
            stirrer.stop(now)
        elif kind == "edges":
            stirrer.edge(now - value * MS)
        elif kind == "turning":
            for _ in range(12):
                now += int(60e9 / (value * pulses))
                stirrer.edge(now)
                check()
        elif kind == "ticks":
            for _ in range(value):
                now += 10 * MS
                check()
        else:
            now += value * MS
        check()


# --- state ---


def test_a_snapshot_continues_bit_identically() -> None:
    """Pure and flat: state and inputs decide every output, so a copy taken anywhere goes the same way."""
    run = bench(PLANTS["inertia and drag"], sensor=lambda stamp, chance: [] if chance.random() < 0.05 else [stamp])
    original, twin = run.stirrer, Stirrer()

    class Pair:
        def __init__(self) -> None:
            self.compare = False

        def __getattr__(self, name):
            def both(*arguments):
                result = getattr(original, name)(*arguments)
                if self.compare:
                    again = getattr(twin, name)(*arguments)
                    assert repr(again) == repr(result)
                return result

            return both

    run.stirrer = pair = Pair()
    pair.target_rpm(500, run.now_ns)
    for target in (500, 800, 300):
        run.run(0.73)
        twin.restore(original.snapshot())
        pair.compare = True
        pair.target_rpm(target, run.now_ns)
        run.run(2.0)
        assert twin.snapshot() == original.snapshot()
        pair.compare = False
    with pytest.raises(ValueError, match="snapshot of 3 bytes"):
        twin.restore(b"abc")


def test_defaults_are_inside_the_envelope() -> None:
    defaults = stirring_defaults()
    Stirrer(**defaults)
    assert defaults["duty_maximum_percent"] == DUTY_CEILING_PERCENT
    with pytest.raises(TypeError, match="unknown settings \\['ku'\\]"):
        Stirrer(ku=1)


# --- ramps ---


def ramped(plant=None, rate: float = 100.0, **config) -> Bench:
    return bench(plant, config={"ramp_rpm_per_s": rate, **config})


@pytest.mark.parametrize("name", PLANTS)
def test_a_ramp_is_followed_and_does_not_overshoot(name: str) -> None:
    run = ramped(PLANTS[name])
    run.stirrer.target_rpm(500, run.now_ns)
    run.run(6)
    run.stirrer.target_rpm(1200, run.now_ns)
    trial = run.run(10)
    assert codes(trial) == [KICK, RUNNING, RUNNING]
    time, rpm = np.array(trial.time_s), np.array(trial.rpm)
    asked = np.clip(500 + 100 * (time - 6), 500, 1200)
    assert np.abs(rpm - asked)[time > 6].max() < 25
    assert rpm[time > 6].max() < 1.013 * 1200
    assert trial.settled_s(1200, begin_s=6) < 7.8
    run.stirrer.target_rpm(300, run.now_ns)
    trial = run.run(13)
    assert trial.speed(16).min() > 0.9 * 300
    assert trial.settled_s(300, begin_s=16) < 10.5


def test_without_windup_the_integral_stays_on_a_true_feed_forward() -> None:
    run = ramped()
    run.stirrer.target_rpm(500, run.now_ns)
    run.run(6)
    run.stirrer.target_rpm(1500, run.now_ns)
    assert max(run.run(14).rpm) < 1504


def test_a_ramp_from_rest_begins_at_200_rpm() -> None:
    run = ramped(rate=50)
    run.stirrer.target_rpm(500, run.now_ns)
    trial = run.run(9)
    assert codes(trial) == [KICK, RUNNING]
    asked = [float(reading(data)["reference_v"]) for data in trial.readings]
    assert 200 <= asked[0] <= 260
    assert np.diff(asked[:5]) == pytest.approx(50, abs=1)
    assert asked[-1] == 500
    assert np.abs(trial.speed(1.5, 5.0) - (200 + 50 * np.arange(1.5, 4.9995, 0.001))).max() < 40


def test_a_change_in_mid_ramp_turns_from_where_it_is() -> None:
    run = ramped(rate=200)
    run.stirrer.target_rpm(500, run.now_ns)
    run.run(4)
    run.stirrer.target_rpm(1500, run.now_ns)
    top = run.run(2).rpm[-1]
    assert 840 < top < 940
    run.stirrer.target_rpm(600, run.now_ns)
    trial = run.run(4)
    assert max(trial.rpm) < top + 40
    assert trial.settled_s(600, begin_s=6) < 2.2
    run.stirrer.target_rpm(1500, run.now_ns)
    run.run(1)
    run.stirrer.ramp(0)
    assert run.run(3).settled_s(1500, begin_s=11) < 2.5


def test_a_slow_ramp_is_no_stall() -> None:
    run = ramped(rate=20)
    run.stirrer.target_rpm(60, run.now_ns)
    run.run(12)
    run.stirrer.target_rpm(1500, run.now_ns)
    before = len(run.trial.events)
    trial = run.run(30)
    assert STALL not in [code for _, code, _ in trial.events[before:]]
    assert 600 < trial.rpm[-1] < 720


def test_stop_ends_a_ramp_at_once() -> None:
    run = ramped(rate=50)
    run.stirrer.target_rpm(1000, run.now_ns)
    run.run(3)
    run.stirrer.stop(run.now_ns)
    trial = run.run(4)
    assert set(trial.duty[3010:]) == {0.0}
    assert trial.rpm[-1] < 1
    assert run.stirrer.phase == "off"


def test_a_stall_on_a_ramp_begins_it_anew() -> None:
    run = ramped(rate=100)
    run.stirrer.target_rpm(1000, run.now_ns)
    run.run(5)
    run.plant.speed_hz, free = 0.0, run.plant.start
    run.plant.start = 2.0
    run.run(1.0)
    run.plant.start = free
    trial = run.run(11)
    assert STALL in codes(trial) and FAULT not in codes(trial)
    assert trial.settled_s(1000, begin_s=6) < 9.5
    assert max(trial.rpm) < 1015


def test_a_ramp_without_a_sensor_is_feed_forward() -> None:
    run = bench(config={"ramp_rpm_per_s": 100.0, "use_rpm": 0}, sensor=lambda stamp, chance: [])
    run.stirrer.target_rpm(500, run.now_ns)
    trial = run.run(6)
    assert trial.speed(2.0, 2.1).mean() == pytest.approx(400, abs=15)
    assert trial.rpm[-1] == pytest.approx(500, rel=0.01)


@pytest.mark.parametrize("rate", [-1, math.nan, 10001])
def test_a_ramp_outside_the_envelope_changes_nothing(rate: float) -> None:
    stirrer = Stirrer()
    before = stirrer.snapshot()
    with pytest.raises(ValueError, match=r"must be 0\.\.10000"):
        stirrer.ramp(rate)
    assert stirrer.snapshot() == before


# --- feed-forward from a calibration ---


def speed_at(plant, duty_percent: float) -> float:
    turning = copy.copy(plant)
    turning.speed_hz = 1.0
    for _ in range(6000):
        turning.step(duty_percent / 100, 1e-3)
    return turning.speed_hz * 60


def calibrated(plant, low: float = 15, high: float = 70) -> tuple[list[float], float, float]:
    """A plant's duties at equal steps of speed."""
    duty = np.linspace(low, high, 40)
    rpm = np.array([speed_at(plant, one) for one in duty])
    duty, rpm = duty[rpm > 30], rpm[rpm > 30]
    steps = np.linspace(rpm[0], rpm[-1], CURVE_POINTS)
    return np.interp(steps, rpm, duty).tolist(), float(rpm[0]), float(rpm[-1])


FAR = {
    "half as fast": LagPlant(full_hz=25.0),
    "twice as fast": LagPlant(full_hz=100.0),
    "hard to start": LagPlant(full_hz=60.0, dead=0.25, start=0.33),
    "inertia and drag": PLANTS["inertia and drag"],
    "less drag": PLANTS["less drag"],
}


@pytest.mark.parametrize("name", FAR)
def test_a_calibrated_fan_overshoots_less_and_settles_in_time(name: str) -> None:
    peaks, settled = {}, {}
    for with_curve in (False, True):
        run = bench(FAR[name])
        if with_curve:
            run.stirrer.curve(*calibrated(FAR[name]))
        run.stirrer.target_rpm(500, run.now_ns)
        run.run(6)
        run.stirrer.target_rpm(900, run.now_ns)
        trial = run.run(6)
        peaks[with_curve] = max(trial.speed(0, 6)) / 500 - 1
        settled[with_curve] = max(trial.settled_s(500, end_s=6), trial.settled_s(900, begin_s=6))
    assert settled[True] < 2.6
    assert peaks[True] < 0.16
    if name != "half as fast":
        assert peaks[True] < 0.6 * peaks[False]
    else:
        assert settled[True] < settled[False] - 0.5 and settled[False] > 3


def test_a_curve_and_its_ends() -> None:
    run = bench(config={"use_rpm": 0})
    run.stirrer.curve([20 + i for i in range(CURVE_POINTS)], 300, 1050)
    for target, duty in ((300, 20), (325, 20.5), (675, 27.5), (1050, 35), (1200, 38), (100, 16)):
        run.stirrer.target_rpm(target, run.now_ns)
        assert run.run(1.5).duty[-1] == pytest.approx(duty)
    run.stirrer.line()
    run.stirrer.target_rpm(500, run.now_ns)
    assert run.run(1.5).duty[-1] == pytest.approx(25)


def test_a_curve_put_in_force_while_it_turns_is_not_noticed() -> None:
    run = bench(PLANTS["30 % faster"])
    run.stirrer.target_rpm(500, run.now_ns)
    run.run(5)
    run.stirrer.curve(*calibrated(PLANTS["30 % faster"]))
    trial = run.run(4)
    assert np.abs(trial.speed(5.0) / 500 - 1).max() < 0.005
    run.stirrer.line()
    assert np.abs(run.run(4).speed(9.0) / 500 - 1).max() < 0.005


@pytest.mark.parametrize(
    ("duty", "low", "high"),
    [
        ([20.0] * 16, 300, 900),
        ([20 + i if i != 7 else math.nan for i in range(16)], 300, 900),
        ([90 + i for i in range(16)], 300, 900),
        ([i - 1 for i in range(16)], 300, 900),
        ([20 + i for i in range(16)], 900, 300),
        ([20 + i for i in range(16)], math.nan, 900),
        ([20 + i for i in range(16)], 300, math.inf),
    ],
)
def test_a_curve_that_does_not_rise_is_refused_and_the_line_stays(duty: list[float], low: float, high: float) -> None:
    run = bench(config={"use_rpm": 0})
    with pytest.raises(ValueError, match="do not rise"):
        run.stirrer.curve(duty, low, high)
    run.stirrer.target_rpm(500, run.now_ns)
    assert run.run(1.5).duty[-1] == pytest.approx(25)


# --- statistics of turns ---


def rows_of(parts: list[bytes]) -> np.ndarray:
    return np.concatenate([np.frombuffer(data, READING_DTYPE) for data in parts])


def steady(stamps: np.ndarray, **config) -> np.ndarray:
    """Rows of `turns` for these edges, on a controller that holds a duty."""
    stirrer, rows = Stirrer(**config), []
    stirrer.duty(30, 0)
    at = 0
    for now in range(0, int(stamps[-1]) + 12 * SECOND, 10 * MS):
        while at < len(stamps) and stamps[at] <= now:
            stirrer.edge(int(stamps[at]))
            at += 1
        stirrer.tick(now)
        row = stirrer.turns(now)
        rows += [row] if row is not None else []
    return rows_of(rows)


def test_statistics_of_turns_equal_numpy() -> None:
    chance = np.random.default_rng(4)
    stamps = (SECOND + np.cumsum(chance.normal(120e6, 2e6, 400))).astype(np.int64)
    rows = steady(stamps)
    assert len(rows) == 5
    assert rows["sequence"].tolist() == [0, 1, 2, 3, 4]
    for row in rows[1:4]:
        last = int(np.flatnonzero(stamps == row["monotonic_ns"])[0])
        turns = np.diff(stamps[last - row["used"] : last + 1]) * 1e-3
        assert len(turns) == row["used"] > 75
        assert row["value"] == pytest.approx(turns.std(ddof=1), rel=1e-6)
        assert row["se_instrument"] == pytest.approx(row["value"] / math.sqrt(2 * (len(turns) - 1)))
        assert row["signal_v"] == pytest.approx(turns.mean(), rel=1e-6)
        assert (row["reference_v"], row["ambient_v"]) == pytest.approx((turns.min(), turns.max()), rel=1e-6)
        assert row["window_s"] == pytest.approx(turns.sum() * 1e-6, rel=1e-6)
        assert row["stream"] == 12 and row["version"] == 1 and math.isnan(row["blank"])


@pytest.mark.parametrize(("jitter_us", "rotor_us"), [(50, 0), (50, 1000), (20, 60), (0, 500)])
def test_the_rotors_own_part_is_told_from_the_stamps(jitter_us: float, rotor_us: float) -> None:
    own, total = [], []
    for seed in range(30):
        chance = np.random.default_rng(seed)
        edges = SECOND + np.cumsum(chance.normal(120e6, 1e3 * rotor_us, 190))
        rows = steady((edges + chance.normal(0, 1e3 * jitter_us, len(edges))).astype(np.int64))
        own += [rows["se_culture"][1]]
        total += [rows["value"][1]]
    assert np.mean(np.square(total)) == pytest.approx(rotor_us**2 + 2 * jitter_us**2, rel=0.1)
    assert np.sqrt(np.mean(np.square(own))) == pytest.approx(rotor_us, rel=0.1, abs=0.75 * jitter_us)


def test_a_slow_drift_is_the_rotors() -> None:
    turns = np.arange(300)
    edges = SECOND + np.cumsum(120e6 + 2e6 * np.sin(turns / 12))
    row = steady(edges.astype(np.int64))[1]
    assert row["se_culture"] == pytest.approx(row["value"], rel=0.05)
    assert row["value"] == pytest.approx(2000 / math.sqrt(2), rel=0.1)


def test_uneven_magnets_are_measured_and_are_no_variation() -> None:
    turns = SECOND + 120 * MS * np.arange(200)
    stamps = np.sort(np.concatenate([turns, turns + 57 * MS])).astype(np.int64)
    row = steady(stamps, pulses_per_turn=2)[1]
    assert row["blank"] == pytest.approx(100 * (63 - 57) / 60, rel=1e-6)
    assert row["value"] == pytest.approx(0, abs=1e-3)


def test_lost_and_bounced_edges_are_counted_and_left_out() -> None:
    clean = rotor_edges(500, 40, start_ns=SECOND)
    keep = np.ones(len(clean), bool)
    keep[[60, 90, 160]] = False
    stamps = np.sort(np.concatenate([clean[keep], clean[100:103] + 5 * MS]))
    rows = steady(stamps)
    assert rows["value"][:3] == pytest.approx(0, abs=1e-3)
    assert rows["rejected"].sum() == 6
    assert int(rows["used"][1]) in (79, 80, 81)


def test_only_steady_turning_counts_and_a_new_target_closes_the_window() -> None:
    run = bench()
    run.stirrer.target_rpm(500, run.now_ns)
    run.run(8)
    run.stirrer.target_rpm(1000, run.now_ns)
    run.run(6)
    run.stirrer.stop(run.now_ns)
    rows = rows_of(run.run(15).turns)
    assert rows["signal_v"] == pytest.approx([120e3, 60e3], rel=0.01)
    assert rows["ambient_v"] / rows["signal_v"] == pytest.approx(1, abs=0.05)
    assert rows["window_s"][0] < 8 and rows["window_s"][1] < 6


# --- dodging ---


@pytest.mark.parametrize(
    ("name", "quiet_rpm"),
    [
        ("nominal", 0),
        ("30 % faster", 0),
        ("inertia and drag", 0),
        ("nominal", 150),
        ("30 % faster", 150),
        ("inertia and drag", 250),
    ],
)
def test_the_schedule_is_a_grid_of_the_clock(name: str, quiet_rpm: int) -> None:
    run = bench(PLANTS[name], config={"ramp_rpm_per_s": 300.0 if quiet_rpm else 0.0})
    run.stirrer.dodge(10, 4, quiet_rpm, run.now_ns)
    run.stirrer.target_rpm(500, run.now_ns)
    trial = run.run(39)  # begins at 1 s of the clock
    time, rpm, duty = np.array(trial.time_s) + 1, np.array(trial.rpm), np.array(trial.duty)
    phase = time % 10
    late = (phase > 3.2) & (phase < 3.99) & (time > 10)
    assert (rpm[late] < 5).all() if quiet_rpm == 0 else np.abs(rpm[late] / quiet_rpm - 1).max() < 0.4
    outside = (phase > 7.2) & (time > 5)
    assert np.abs(rpm[outside] / 500 - 1).max() < 0.01
    if quiet_rpm == 0:
        assert (duty[(phase > 0.02) & (phase < 3.99)] == 0).all()
    assert STALL not in codes(trial) and len(trial.events) <= 2
    assert {500, quiet_rpm or 500} <= set(rows_of(trial.readings)["reference_v"].tolist())
    turns = rows_of(trial.turns)
    assert turns["ambient_v"] / turns["reference_v"] == pytest.approx(1, abs=0.12), "each reading is of one phase"


def test_dodging_begins_and_ends_while_it_turns() -> None:
    run = bench()
    run.stirrer.target_rpm(500, run.now_ns)
    run.run(2.5)
    run.stirrer.dodge(10, 5, 100, run.now_ns)
    assert run.run(1).rpm[-1] < 250
    run.stirrer.dodge(10, 5, 100, run.now_ns, on=False)
    trial = run.run(12)
    assert np.abs(trial.speed(7) / 500 - 1).max() < 0.01
    run.stirrer.dodge(10, 5, 0, run.now_ns)
    run.run(10)
    run.stirrer.target_rpm(700, run.now_ns)
    run.run(10)
    assert max(run.trial.speed(33)) == pytest.approx(700, rel=0.05)
    run.stirrer.duty(30, run.now_ns)
    assert min(run.run(20).duty[-19000:]) == 30.0, "open loop has no schedule"
    run.stirrer.stop(run.now_ns)
    assert set(run.run(20).duty[-19900:]) == {0.0}


def test_a_rotor_held_fast_while_dodging_ends_in_a_fault() -> None:
    run = bench()
    run.stirrer.dodge(8, 4, 0, run.now_ns)
    run.stirrer.target_rpm(500, run.now_ns)
    run.run(7)
    run.plant.dead = run.plant.start = 2.0
    run.plant.speed_hz = 0.0
    trial = run.run(20)
    assert codes(trial)[-1] == FAULT and set(trial.duty[-8000:]) == {0.0}


@pytest.mark.parametrize(
    ("period", "quiet", "rpm"), [(10, 9.5, 100), (10, 9, 0), (10, 5, 30), (10, 5, 2000), (1e4, 5, 0)]
)
def test_a_schedule_that_cannot_be_is_refused(period: float, quiet: float, rpm: float) -> None:
    with pytest.raises(ValueError, match="outside the envelope"):
        Stirrer().dodge(period, quiet, rpm, SECOND)
