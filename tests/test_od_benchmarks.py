"""The benchmarks of optical density measure what they say: the light, the field's method, the bounds."""

from __future__ import annotations

import importlib
import subprocess
import sys

import numpy
import pytest
from stirbar.core.profiles import load_profile
from stirbar.rt.od_arrays import chop_price

from benchmarks import (
    od_against_field,
    od_bus,
    od_cost,
    od_efficiency,
    od_errors,
    od_field_method,
    od_light,
    od_rejection,
    od_step,
    run,
)

# these start a worker in real time for each board, and valgrind: tested below by their parts
BY_PARTS = {"od_bus", "od_cost", "deaths", "outages"}  # the last two are test_deaths.py and test_outages.py


def test_light_of_a_conversion_is_the_mean_over_its_time():
    rng = numpy.random.default_rng(1)
    light = od_light.Light(
        rng, 10.0, noise_v=0.0, tones={50.0: 0.01}, steps=[(5.0, 0.02)], bubble_hz=2.0, shine=lambda t: 1 + 0.01 * t
    )
    start_s = numpy.linspace(0.0, 9.5, 37)
    got = light.measure(start_s, start_s + 0.007, numpy.ones(37))
    fine = numpy.linspace(0, 0.007, 4001)[:-1] + 0.007 / 8000
    for start, value in zip(start_s, got, strict=True):
        parts = light.measure(start + fine, start + fine + 1e-9, numpy.ones(4000))
        assert parts.mean() == pytest.approx(value, rel=2e-4)


def test_the_noise_is_the_same_whatever_disturbs_the_light():
    """So that the clean run and the dirty one are a pair."""
    start_s = numpy.arange(2000) / od_light.RATE_HZ
    clean, dirty = (
        od_light.Light(numpy.random.default_rng(7), 3.0, **disturbed).measure(
            start_s, start_s + 1 / od_light.RATE_HZ, numpy.ones(2000)
        )
        for disturbed in ({}, {"spike_share": 0.1, "bubble_hz": 3.0, "bubble_share": 10.0, "tones": {50.0: 0.0}})
    )
    same = dirty == clean
    assert 0.4 < same.mean() < 0.95 and (dirty - clean)[~same].min() > 1e-3


def test_the_fields_method_is_as_its_own_code_was_measured():
    """Its own code at this level and noise: bias about 0, root mean square error 0.22 %, +10 % of an ambient step."""
    for converter in od_field_method.CONVERSIONS_S:
        lights = [od_light.Light(numpy.random.default_rng((3, run)), 100.0) for run in range(100)]
        readings = [od_field_method.field_method(light, converter) for light in lights]
        values = numpy.array([one.values for one in readings])
        assert values.mean() == pytest.approx(0.1, rel=5e-4)
        assert 1000 * numpy.sqrt(numpy.mean((values - 0.1) ** 2)) == pytest.approx(0.22, abs=0.03)
        # each run keeps its own dark batch, so the spread within runs is that of the lit batches
        assert numpy.mean([one.errors for one in readings]) == pytest.approx(values.std(axis=1).mean(), rel=0.15)
    light = od_light.Light(numpy.random.default_rng(2), 100.0, steps=[(50.0, 0.01)])
    times, values, _ = od_field_method.field_method(light)
    assert values[times > 51].mean() == pytest.approx(0.11, rel=0.01)


def test_ours_is_better_than_the_fields_on_the_same_light():
    white = od_against_field.errors({}, runs=6, seed=4)
    assert white["ours, 5 s"] < 0.25 * white["ADS111x"]
    step = od_against_field.errors(od_against_field.STEP, runs=4, seed=5)
    assert step["ours, 5 s"] < 0.05 * step["ADS111x"]


def test_bounds_are_in_order_and_reached():
    k = 5
    b1, b2 = od_light.bounds(1.0, k)
    assert 1 < b1 <= 1.01 * b2
    assert b1 == pytest.approx(2.236, abs=0.01)
    [(efficiency, error)] = od_efficiency.efficiencies([(10.0, 1.0)], k, seconds=160.0, runs=1)
    assert 0.85 < efficiency < 1.05 and 0.9 < error < 1.1
    # what the formula says of the window's weights is what they do to white noise
    seconds, window_s = 600.0, 0.2
    [variance] = od_efficiency.linear(od_efficiency.light_for(seconds, 3), [window_s], k)
    count = round(window_s * od_light.RATE_HZ / (2 * k))
    bound = od_light.bound_b0(od_efficiency.NOISE_V, count * 2 * k / od_light.RATE_HZ)
    assert variance**0.5 / bound == pytest.approx(od_efficiency.exact_linear(window_s, k), rel=0.05)
    assert chop_price(od_light.RATE_HZ, k)["b2_over_b0"] == b2


def test_no_value_of_either_method_moves_before_the_step():
    # the field's forty samples take a fifth of its interval: of thirty steps some fall into them
    runs = [*(od_step.curves(seed) for seed in range(2)), *({"field": od_step.field_curve(seed)} for seed in range(30))]
    for curves in runs:
        for name, (times, values) in curves.items():
            before = (times > -30) & (times <= 0)
            assert before.sum() >= 5, name
            assert abs(values[before] - 1).max() < 0.01, name
            assert abs(values[times > 5.2] - 0.5).max() < 0.01, name


def test_the_step_falls_anywhere_in_the_fields_interval():
    at = numpy.array([od_step.light_for(seed)[1] for seed in range(200)]) - od_step.STEP_FROM_S
    assert at.min() < 0.2 and at.max() > 4.8 and at.mean() == pytest.approx(2.5, abs=0.4)


def test_noise_of_the_culture_is_what_it_is_called():
    noise = od_errors.ornstein_uhlenbeck(400_000, 0.06, numpy.random.default_rng(1))
    lag = round(0.06 * od_light.RATE_HZ)
    assert noise.std() == pytest.approx(1.0, rel=0.03)
    assert numpy.mean(noise[lag:] * noise[:-lag]) == pytest.approx(numpy.exp(-1), abs=0.04)


def test_the_running_mean_settles_as_the_profiles_say():
    """205 ms to a thousandth (IS-24)."""
    steps = od_light.running_mean(numpy.concatenate([[0.0], numpy.ones(60)]), od_light.SMOOTHED_SHARE)
    settled = numpy.flatnonzero(1 - steps < 1e-3)[0]
    assert settled * od_light.SMOOTHED_S == pytest.approx(0.205, abs=0.01)


def test_rejection_is_measured_where_the_figure_is_marked():
    assert -85 < od_rejection.ours_db(0.7, 1.0) < -50
    assert od_rejection.ours_db(0.5, 0.2) < -40
    for quick in (True, False):
        assert set(od_rejection.frequencies(quick)) >= set(od_rejection.MARKED_HZ)


@pytest.mark.parametrize("name", [name for name in run.INSTRUMENT if name not in BY_PARTS])
def test_each_runs_and_gives_rows(name):
    rows, _ = importlib.import_module(f"benchmarks.{name}").measure(quick=True)
    assert rows and len({row.what for row in rows}) == len(rows)
    assert all(row.value == row.value for row in rows), "a figure that was not measured"
    if name in ("od_step", "od_mains"):
        assert all(row.met is not False for row in rows), rows


def test_the_bus_of_each_board_has_rows():
    here = od_bus.Counted(busy=0.3, conversions_hz=854.8, missed=0.006, half_cycle=5, noise_over_b0=2.26)
    for name in od_bus.BOARDS:
        rows = {row.what: row for row in od_bus.rows_of(load_profile(name), here)}
        assert rows[f"{name}: captured of the plan"].met is False


def test_what_callgrind_runs_does_the_work():
    od_cost.push_minutes(1, od_cost.HUM_CODES)
    od_cost.field_readings(2)


def test_a_figure_is_never_drawn_from_few_runs():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.od_step", "--quick", "--plot"],
        capture_output=True,
        text=True,
        cwd=run.SOURCE,
    )
    assert done.returncode == 2 and "--plot draws what docs/ shows" in done.stderr
