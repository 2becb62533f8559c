"""The heater's part of the loop: observer against its twin, control in the plant, and what no fault may cross."""

from __future__ import annotations

import math

import numpy as np
import pytest
from heat_plant import CONTROL, SECOND, ObserverTwin, Plant, Run, heat_of_a_vial, limits
from hypothesis import given, settings
from hypothesis import strategies as st
from stirbar.core import events, vials
from stirbar.core.records import FLAGS, READING, READING_FIELDS, STREAM_IDS
from stirbar.rt import heat_arrays
from stirbar.rt.heat_arrays import Heater

# --- observer --------------------------------------------------------------------------------------------------------


def test_observer_agrees_with_its_twin():
    plant = Plant(3)
    heater = Run(plant).heater
    twin: ObserverTwin | None = None
    duty = 0.0
    for second in range(1, 1200):
        shown = plant.run(duty)
        heater.reading(shown, second * SECOND)
        if twin is None:
            twin = ObserverTwin(shown, plant.volume_ml)
            twin.covariance[:, :] -= np.outer(twin.covariance[:, 0] / 0.14, twin.covariance[0])
        else:
            twin.step(0.01 * duty, shown)
        heater.target(37.0, second * SECOND)
        duty = heater.tick(second * SECOND)
        assert heater.liquid_degc == pytest.approx(twin.x[1], abs=2e-3)
        assert heater.liquid_se_degc == pytest.approx(math.sqrt(twin.covariance[1, 1]), rel=2e-3)
    assert heater.air_degc == pytest.approx(twin.x[2], abs=0.01)
    assert list(heater.coefficients.values()) == pytest.approx(np.exp(twin.x[3:]), rel=2e-3)


def test_the_liquids_standard_error_is_what_its_error_is():
    """Twenty units that differ as units do: coupling by 30 %, losses by 15 %, heater by 5 %."""
    score, error = [], []
    for seed in range(20):
        run = Run(Plant(seed))
        run.run(5400)
        last = run.table()[-1800:]
        error.append(float(np.mean(last[:, 3] - last[:, 2])))
        score.append(error[-1] / float(np.mean(last[:, 4])))
    assert np.sqrt(np.mean(np.square(error))) < 0.4
    assert np.max(np.abs(error)) < 1.5
    assert np.max(np.abs(score)) < 4.0
    assert 0.6 < np.sqrt(np.mean(np.square(score))) < 1.5


def test_the_target_is_reached_without_overshoot_and_held():
    for seed in range(4):
        run = Run(Plant(seed, spread=0.0))
        run.run(5400)
        table = run.table()
        reached = int(np.argmax(np.abs(table[:, 2] - 37.0) < 0.5))
        assert reached < 900
        assert np.abs(table[reached + 300 :, 2] - 37.0).max() < 0.5
        assert table[:, 2].max() < 37.6
        assert table[-1800:, 2].std() < 0.15


def test_a_ramp_moves_the_target_at_its_pace():
    plant = Plant(0, spread=0.0, air_degc=25.0)
    heater = Heater(
        vial=heat_of_a_vial(), limits=limits(), control={**CONTROL, "ramp_degc_per_min": 0.5}, volume_ml=14.0
    )
    duty, liquid = 0.0, []
    for second in range(1, 1801):
        heater.reading(plant.run(duty), second * SECOND)
        heater.target(35.0, second * SECOND)
        duty = heater.tick(second * SECOND)
        liquid.append(plant.liquid_degc)
    assert liquid[1199] - liquid[599] == pytest.approx(5.0, abs=0.6)
    assert max(liquid) < 35.5


def test_inflow_cools_the_estimate_and_the_volume_counts():
    plant = Plant(0, spread=0.0, air_degc=22.0)
    run = Run(plant)
    run.run(2400)
    before, capacity = run.heater.liquid_degc, run.heater.coefficients["capacity"]
    run.heater.exchange(1.0, 0.0)
    expected = before + (run.heater.air_degc - before) / (plant.volume_ml + 1.0)
    assert run.heater.liquid_degc == pytest.approx(expected, abs=1e-9)
    assert run.heater.coefficients["capacity"] == pytest.approx(capacity * (1.0 + 1.0 / plant.volume_ml), rel=1e-9)


def test_the_reading_says_what_it_is():
    run = Run(Plant(1))
    run.run(1)
    reading = dict(zip(READING_FIELDS, READING.unpack(run.heater.published(SECOND)), strict=True))
    assert reading["stream"] == STREAM_IDS["liquid"]
    assert reading["flags"] & FLAGS["unobserved"]
    assert math.isnan(reading["reference_v"])
    run.run(1800)
    reading = dict(zip(READING_FIELDS, READING.unpack(run.heater.published(1801 * SECOND)), strict=True))
    assert not reading["flags"] & FLAGS["unobserved"]
    assert reading["reference_v"] == 37.0
    assert reading["signal_v"] == pytest.approx(run.duty_percent)
    assert reading["value"] == pytest.approx(37.0, abs=0.3)


# --- trust -----------------------------------------------------------------------------------------------------------


def heated(**changes: float) -> Run:
    """An hour at 37 degC with a healthy sensor."""
    run = Run(Plant(1), **changes)
    run.run(3600)
    assert run.heater.reasons == []
    return run


def test_a_healthy_heater_is_never_distrusted_after_its_first_minute():
    for seed in range(12):
        run = Run(Plant(seed))
        run.run(3600)
        assert [entry for entry in run.told if entry[0] > 60] == [], seed


def test_a_frozen_sensor_is_found_within_two_minutes_and_the_board_stays_cool():
    run = heated()
    held = run.plant.run(run.duty_percent)
    run.run(3600, lambda *_: held)
    first = next(entry for entry in run.told if entry[0] > 3600)
    assert first[0] < 3600 + 120 and first[2] in ("stuck", "slope")
    table = run.table()
    assert table[3600:, 1].max() < 45.0
    assert table[3600 + 240 :, 5].mean() < 5.0


def test_a_sensor_that_freezes_during_the_approach_is_found():
    run = Run(Plant(1))
    run.run(100)
    held = run.plant.run(run.duty_percent)
    run.run(3500, lambda *_: held)
    table = run.table()
    assert table[:, 1].max() < 45.0
    assert table[300:, 5].max() == 0.0


@pytest.mark.parametrize(("says", "why"), [(None, "stale"), (math.nan, "stale"), (200.0, "stale")])
def test_a_sensor_that_says_nothing_is_blind_for_a_minute_then_off_and_comes_back(says: float | None, why: str):
    run = heated()
    run.run(600, lambda *_: says)
    table = run.table()
    off = int(np.argmax(table[3600:, 5] == 0.0))
    assert 60 <= off <= 70
    assert run.heater.distrust == why
    assert table[3600 + off :, 5].max() == 0.0
    run.run(120)
    assert run.heater.reasons == []
    assert run.table()[-1, 5] > 0.0


def test_a_jump_is_not_followed():
    run = heated()
    run.run(50, lambda _, shown: shown + 20.0)
    assert run.heater.liquid_degc == pytest.approx(37.0, abs=1.0)
    assert run.heater.distrust == "jump"


def test_single_impossible_readings_are_passed_over():
    run = heated()
    run.run(600, lambda second, shown: shown - 15.0 if second % 20 == 0 else shown)
    assert [entry for entry in run.told if entry[0] > 60] == []
    assert abs(run.plant.liquid_degc - run.heater.liquid_degc) < 1.0


def test_a_dead_heater_is_noticed():
    run = heated()
    power, run.plant.power_w = run.plant.power_w, 0.0
    run.run(180)
    assert any(entry[2] == "slope" for entry in run.told if entry[0] > 3600)
    run.plant.power_w = power


def test_a_shorted_driver_is_noticed():
    """It heats although it is asked for less and less: the slope does not agree; the tiers are what is left."""
    run = heated()
    seen = set()
    for _ in range(240):
        run.second += 1
        now_ns = run.second * SECOND
        run.heater.reading(run.plant.run(100.0), now_ns)
        run.heater.renew(now_ns)
        run.duty_percent = run.heater.tick(now_ns)
        seen.add(run.heater.distrust)
    assert "slope" in seen
    assert run.duty_percent == 0.0


# --- envelope --------------------------------------------------------------------------------------------------------


def test_the_tiers_of_the_board():
    heater = Heater(vial=heat_of_a_vial(), limits=limits(), control=CONTROL)
    shown, duty = {}, 0.0
    degc = 30.0
    for second in range(1, 4000):
        degc += 0.02 if second < 1900 else -0.02
        heater.reading(degc, second * SECOND)
        heater.target(60.0, second * SECOND)
        duty = heater.tick(second * SECOND)
        shown[second] = (degc, duty, tuple(heater.reasons))
    for degc, duty, reasons in shown.values():
        if degc >= 65.0:
            assert duty == 0.0 and "disabled" in reasons
        elif degc > 63.0:
            assert "reduced" in reasons
            assert duty <= 100.0 * (65.0 - degc) / 2.0 + 1e-9
    assert shown[3999][0] < 30.0 and shown[3999][1] == 0.0 and "locked" in shown[3999][2]
    assert heater.unlock()
    heater.reading(degc, 4000 * SECOND)
    heater.tick(4000 * SECOND)
    assert "locked" not in heater.reasons


def test_a_shutdown_is_not_acknowledged_while_it_is_hot():
    heater = Heater(vial=heat_of_a_vial(), limits=limits(), control=CONTROL)
    for second in range(1, 90):
        heater.reading(30.0 + 0.45 * second, second * SECOND)
        heater.tick(second * SECOND)
    assert "locked" in heater.reasons
    assert not heater.unlock()


def test_without_a_lease_the_heater_is_off_within_five_seconds_and_resumes():
    run = heated()
    run.leased = False
    run.run(10)
    table = run.table()
    assert table[3600 + 5, 5] == 0.0 and table[3600 + 3, 5] > 0.0
    assert run.heater.reasons == ["no_lease"]
    run.leased = True
    run.run(1)
    assert run.heater.reasons == []
    assert 0.0 < run.duty_percent < 5.0, "it comes back over a minute"
    run.run(90)
    assert run.duty_percent > 20.0


def test_the_energy_of_half_an_hour_has_a_ceiling():
    run = Run(Plant(1, air_degc=20.0), target_degc=60.0, energy_maximum_j=2000.0)
    run.run(5400)
    table = run.table()
    spent = np.convolve(table[:, 5] * 0.01 * run.plant.power_w, np.ones(1800), mode="valid")
    assert spent.max() < 2000.0 * 1.02
    assert any("energy" in entry[1] for entry in run.told)


def test_stirring_that_nobody_sees_halves_the_duty():
    run = Run(Plant(1, air_degc=20.0), target_degc=60.0)
    run.run(240)
    now_ns = (run.second + 1) * SECOND
    run.heater.renew(now_ns)
    assert run.heater.tick(now_ns) == 100.0
    assert run.heater.tick(now_ns + 1, is_stirred=False) == 50.0
    assert run.heater.reasons == ["unstirred"]


def test_without_a_guard_it_is_off_in_the_same_tick():
    run = heated()
    now_ns = (run.second + 1) * SECOND
    assert run.heater.tick(now_ns, has_guard=False) == 0.0
    assert run.heater.reasons == ["no_guard"]


@pytest.mark.parametrize("bad", [
    {"reduce_degc": 79.0}, {"disable_degc": 81.0}, {"shutdown_degc": 86.0}, {"reduce_degc": 66.0},
    {"shutdown_degc": 64.0}, {"target_maximum_degc": 71.0}, {"target_maximum_degc": 64.0}, {"lease_s": 5.1},
    {"duty_maximum_percent": 100.1}, {"blind_duty_percent": 101.0}, {"blind_s": math.nan}, {"energy_maximum_j": 1e6},
    {"reduce_degc": math.nan},
])  # fmt: skip
def test_limits_above_their_ceiling_or_out_of_order_are_refused(bad: dict[str, float]):
    with pytest.raises(ValueError, match="envelope"):
        Heater(vial=heat_of_a_vial(), limits=limits(**bad), control=CONTROL)


@pytest.mark.parametrize("target", [0.0, -5.0, 60.5, math.nan, math.inf])
def test_targets_outside_the_limit_are_refused(target: float):
    heater = Heater(vial=heat_of_a_vial(), limits=limits(), control=CONTROL)
    with pytest.raises(ValueError, match="at most 60"):
        heater.target(target, SECOND)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reading", "target", "renew", "stop", "unlock", "nothing"]),
        st.floats(-50.0, 150.0) | st.just(math.nan),
        st.integers(1, 5000),
        st.booleans(),
        st.booleans(),
    ),
    max_size=200,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_nothing_that_is_said_to_it_crosses_a_limit(steps: list[tuple[str, float, int, bool, bool]]):
    heater = Heater(vial=heat_of_a_vial(), limits=limits(duty_maximum_percent=80.0), control=CONTROL)
    now_ns, leased_ns = SECOND, -(10**12)
    for what, value, milliseconds, stirred, guarded in steps:
        now_ns += milliseconds * 1_000_000
        if what == "reading":
            heater.reading(value, now_ns)
        elif what == "target":
            try:
                heater.target(value, now_ns)
                leased_ns = now_ns
            except ValueError:
                assert not 0.0 < value <= 60.0
        elif what == "renew" and heater.renew(now_ns):
            leased_ns = now_ns
        elif what == "stop":
            heater.stop()
            leased_ns = -(10**12)
        elif what == "unlock":
            heater.unlock()
        duty = heater.tick(now_ns, stirred, guarded)
        assert 0.0 <= duty <= (80.0 if stirred else 40.0) + 1e-9
        if not guarded or now_ns - leased_ns >= 5 * SECOND:
            assert duty == 0.0
        if duty > 0.0:
            assert math.isfinite(heater.liquid_degc)


# --- what crosses threads, and what is said --------------------------------------------------------------------------


@pytest.mark.parametrize("degc", [-40.0, -0.0625, 0.0, 21.9375, 37.0, 99.5, 127.9])
def test_a_temperature_crosses_in_one_word(degc: float):
    count, found = heat_arrays.word_round_trip(degc, 41 << 16)
    assert count == 42
    assert found == pytest.approx(degc, abs=1 / 256)


@pytest.mark.parametrize("degc", [math.nan, math.inf, 128.0, -1e9])
def test_what_is_no_temperature_arrives_as_an_impossible_one(degc: float):
    assert heat_arrays.word_round_trip(degc) == (1, -128.0)


def test_every_reason_has_words():
    assert tuple(name for name, _, _ in events.HEAT_REASONS) == heat_arrays.REASONS
    for bit in range(len(heat_arrays.REASONS)):
        for code in (events.EVENT_HEAT_LIMITED, events.EVENT_HEAT_FREED):
            name, level, job, message = events.describe(code, bit, 64.25, "liquid")
            assert name.startswith("heat_") and job == "temperature_automation" and level and "{" not in message


def test_vials_are_within_the_ceilings_and_their_blind_duty_is_safe():
    for name in vials.NAMES:
        model = vials.vial(name)
        tiers = tuple(model[f"{tier}_degc"] for tier in ("reduce", "disable", "shutdown"))
        assert all(tier <= ceiling for tier, ceiling in zip(tiers, heat_arrays.TIER_CEILINGS_DEGC, strict=True))
        assert model["fill_ml"] < model["capacity_ml"]
        plant = Plant(0, spread=0.0, air_degc=vials.WARMEST_ROOM_DEGC)
        plant.run(model["blind_duty_percent"], 3600)
        assert plant.board_degc < model["reduce_degc"]
