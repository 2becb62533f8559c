"""The benchmarks of optical density measure what they say: the light, the field's method, the bounds."""

from __future__ import annotations

import numpy
import pytest

from benchmarks import od_against_field, od_field_method, od_light, od_rejection, od_step


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


def test_the_fields_method_is_as_its_own_code_was_measured():
    """Its own code at this level and noise: bias about 0, root mean square error 0.22 %, +10 % of an ambient step."""
    for converter in od_field_method.CONVERSIONS_S:
        lights = [od_light.Light(numpy.random.default_rng((3, run)), 100.0) for run in range(100)]
        values = numpy.array([od_field_method.field_method(light, converter)[1] for light in lights])
        assert values.mean() == pytest.approx(0.1, rel=5e-4)
        assert 1000 * numpy.sqrt(numpy.mean((values - 0.1) ** 2)) == pytest.approx(0.22, abs=0.03)
    light = od_light.Light(numpy.random.default_rng(2), 100.0, steps=[(50.0, 0.01)])
    times, values = od_field_method.field_method(light)
    assert values[times > 50].mean() == pytest.approx(0.11, rel=0.01)


def test_ours_is_better_than_the_fields_on_the_same_light():
    white = od_against_field.errors({}, runs=6, seed=4)
    assert white["ours, 5 s"] < 0.25 * white["ADS111x"]
    step = od_against_field.errors(od_against_field.STEP, runs=4, seed=5)
    assert step["ours, 5 s"] < 0.05 * step["ADS111x"]


def test_bounds_are_in_order_and_reached():
    b0, b1 = od_light.bound_b0(1e-3, 1.0), od_light.bound_b1(1e-3, 1.0, 5)
    b2 = od_light.bound_b2(1e-3, 1.0, 5)
    assert b0 < b1 < 1.01 * b2
    assert b1 / b0 == pytest.approx(2.236, abs=0.01)
    light = od_light.Light(numpy.random.default_rng(6), 170.0)
    out = od_light.ours(light, half_cycle=5)
    noise = out["value"][out["monotonic_ns"] > 70e9].std()
    assert 0.85 * b2 < noise < 1.15 * b2


def test_rejection_and_step_are_measured():
    assert -85 < od_rejection.ours_db(0.7, 1.0) < -50
    assert od_rejection.ours_db(0.5, 0.2) < -40
    rows, _ = od_step.measure(quick=True)
    assert all(row.met is not False for row in rows), rows
