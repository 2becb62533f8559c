"""One concentration from several angles: the loop's kernel against a slow twin in NumPy, its errors against noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from stirbar.core import calibration_fits as fits
from stirbar.rt.calibration_arrays import FusedEstimator

ANGLES = ("45", "90", "135")
FOLD = {"45": 8.0, "90": 4.0, "135": 2.5}
STRAY = {"45": 0.05, "90": 0.025, "135": 0.1}
GAIN = {"45": 0.125, "90": 0.375, "135": 0.56}
LEVELS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.0, 5.0, 8.0)


def value(angle: str, concentration):
    c = np.asarray(concentration, dtype=float)
    return STRAY[angle] + GAIN[angle] * c * np.exp(-c / FOLD[angle])


def standards(noise: float, seed: int = 1, replicates: int = 4, angles=ANGLES):
    rng = np.random.default_rng(seed)
    return [
        (angle, c, float(value(angle, c) * math.exp(noise * rng.normal())))
        for c in LEVELS
        for _ in range(replicates)
        for angle in angles
    ]


def for_loop(model, angles=ANGLES, scales=None):
    return {
        **{key: model[key] for key in ("min_logc", "max_logc", "sigma_floor")},
        "ir_led_intensity": 80.0,
        "angles": [
            {
                "channel": i + 1,
                "low_scale": (scales or {}).get(angle, 1.0),
                "mean": model["mu_splines"][angle],
                "log_sigma": model["sigma_splines_log"][angle],
            }
            for i, angle in enumerate(angles)
        ],
    }


def slow_cost(model, log_values, x, scales=None, angles=ANGLES):
    """J on an array of log concentrations, as docs/calibration.md writes it."""
    x = np.asarray(x, dtype=float)
    total = np.zeros_like(x)
    for angle, log_value in zip(angles, log_values, strict=True):
        mean = fits.evaluate(model["mu_splines"][angle], x)
        h = 1e-6
        slope = (
            fits.evaluate(model["mu_splines"][angle], x + h) - fits.evaluate(model["mu_splines"][angle], x - h)
        ) / (2 * h)
        sigma = np.maximum(np.exp(fits.evaluate(model["sigma_splines_log"][angle], x)), model["sigma_floor"])
        low = np.clip((-0.1 - x) / 2.4, 0.0, 1.0)
        scale = sigma / np.maximum(np.abs(slope), 0.05) * (1.0 - low + low * (scales or {}).get(angle, 1.0))
        r = (log_value - mean) / scale
        total += np.sqrt(1.0 + r * r) - 1.0 + np.log(scale)
    return total


def slow_estimate(model, log_values, scales=None, angles=ANGLES):
    """The minimum on a fine grid, refined on a finer one."""
    low, high = model["min_logc"], model["max_logc"]
    grid = np.linspace(low, high, 40_001)
    best = grid[np.argmin(slow_cost(model, log_values, grid, scales, angles))]
    step = (high - low) / 40_000
    fine = np.linspace(max(low, best - step), min(high, best + step), 4001)
    return fine[np.argmin(slow_cost(model, log_values, fine, scales, angles))]


def observed(concentration, noise=0.0, rng=None, angles=ANGLES):
    return [
        float(np.log(value(angle, concentration))) + (noise * rng.normal() if rng is not None else 0.0)
        for angle in angles
    ]


@pytest.fixture(scope="module")
def model():
    return fits.fit_fusion(standards(0.01), ANGLES)


def test_the_cost_is_the_documented_one(model) -> None:
    estimator = FusedEstimator(for_loop(model, scales={"135": 0.2, "45": 5.0}))
    v = observed(0.7)
    x = np.linspace(model["min_logc"] + 0.01, model["max_logc"] - 0.01, 97)
    ours = [estimator.cost(v, one) for one in x]
    np.testing.assert_allclose(ours, slow_cost(model, v, x, {"135": 0.2, "45": 5.0}), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scales", [None, {"135": 0.2, "90": 2.0, "45": 5.0}])
def test_it_finds_the_global_minimum(model, scales) -> None:
    estimator = FusedEstimator(for_loop(model, scales=scales))
    rng = np.random.default_rng(2)
    for c in np.exp(rng.uniform(np.log(0.05), np.log(8.0), 40)):
        v = observed(c, 0.02, rng)
        x = slow_estimate(model, v, scales)
        found = estimator.estimate(v)
        # two minima may be equally good: then the cost decides
        same = abs(found["log_concentration"] - x) < 5e-6
        assert same or estimator.cost(v, found["log_concentration"]) < estimator.cost(v, x) + 1e-9
        assert found["concentration"] == pytest.approx(10 ** found["log_concentration"], rel=1e-12)


def test_the_angles_resolve_what_one_cannot(model) -> None:
    """90° reads the same at 2.0 and at 7.3: with the others there is no doubt."""
    estimator = FusedEstimator(for_loop(model))
    for c in (0.06, 0.3, 1.0, 2.0, 3.5, 5.0, 7.3):
        assert estimator.estimate(observed(c))["concentration"] == pytest.approx(c, rel=0.04)


def test_one_bad_angle_moves_it_little(model) -> None:
    """Pseudo-Huber: a bubble on one diode counts by its size, not by its square."""
    estimator = FusedEstimator(for_loop(model))
    for bad in range(3):
        v = observed(1.0)
        v[bad] += 0.3
        found = estimator.estimate(v)
        assert found["concentration"] == pytest.approx(1.0, rel=0.15)
        assert found["disagree"], "and it is said"
    assert not estimator.estimate(observed(1.0))["disagree"]


def test_its_errors_are_those_of_repeated_readings(model) -> None:
    estimator = FusedEstimator(for_loop(model))
    rng = np.random.default_rng(4)
    for c in (0.3, 0.9, 2.2):
        sigma = np.array([3e-4, 2e-4, 4e-4])
        v = np.array(observed(c))
        found = [estimator.estimate(list(v + sigma * rng.normal(size=3)))["concentration"] for _ in range(600)]
        claimed = estimator.estimate(list(v), errors=list(sigma), culture=[0.0] * 3)
        assert np.std(found) == pytest.approx(claimed["error"], rel=0.12)
        assert claimed["culture"] >= claimed["error"]
        # a fluctuation of the culture moves all angles together, each by its slope
        d = 1e-4
        moved = np.array(observed(c * (1 + d))) - v
        common = estimator.estimate(list(v), errors=[0.0] * 3, culture=list(np.abs(moved)))
        truth = abs(estimator.estimate(list(v + moved))["concentration"] - estimator.estimate(list(v))["concentration"])
        assert common["culture"] == pytest.approx(truth, rel=0.05)


def test_the_models_own_error_is_the_curvature(model) -> None:
    estimator = FusedEstimator(for_loop(model))
    v = observed(0.9)
    e = estimator.estimate(v)
    h = 1e-3
    x = e["log_concentration"]
    bend = (estimator.cost(v, x + h) - 2 * estimator.cost(v, x) + estimator.cost(v, x - h)) / h**2
    assert e["model"] == pytest.approx(math.log(10) * e["concentration"] / math.sqrt(bend), rel=1e-6)
    assert 0.005 < e["model"] / e["concentration"] < 0.06  # sigma_floor is 4 % of each value


def test_outside_the_standards_it_says_so(model) -> None:
    estimator = FusedEstimator(for_loop(model))
    below = estimator.estimate([math.log(STRAY[angle]) for angle in ANGLES])
    assert below["edge"] == -1 and below["concentration"] == pytest.approx(0.05, rel=1e-5)
    above = estimator.estimate(observed(9.0))
    assert above["edge"] == 1 and above["concentration"] == pytest.approx(8.0, rel=1e-5)
    assert estimator.estimate(observed(1.0))["edge"] == 0
    far = estimator.estimate(observed(12.0))
    assert far["disagree"], "far outside another concentration may look likelier: then the angles disagree"


def test_sigma_is_the_scatter_of_the_replicates() -> None:
    fitted = fits.fit_fusion(standards(0.1, replicates=400), ANGLES)
    for angle in ANGLES:
        sigma = np.exp(fits.evaluate(fitted["sigma_splines_log"][angle], np.log10(LEVELS)))
        np.testing.assert_allclose(sigma, 0.1, rtol=0.2)
    quiet = fits.fit_fusion(standards(0.001), ANGLES)
    for angle in ANGLES:
        assert np.exp(fits.evaluate(quiet["sigma_splines_log"][angle], [0.0]))[0] == pytest.approx(0.04)


def test_one_angle_is_an_inverse(model) -> None:
    rising = fits.fit_fusion(standards(0.0, angles=("45",)), ("45",))
    estimator = FusedEstimator(for_loop(rising, ("45",)))
    assert estimator.estimate(observed(1.0, angles=("45",)))["concentration"] == pytest.approx(1.0, rel=0.02)


def test_too_few_standards_are_refused() -> None:
    few = [one for one in standards(0.01) if one[1] < 0.3]
    with pytest.raises(ValueError, match="3 concentrations at 45°, the estimator needs 4"):
        fits.fit_fusion(few, ANGLES)


@pytest.mark.parametrize(
    "change",
    [
        {"min_logc": 2.0},
        {"sigma_floor": 0.0},
        {"max_logc": float("nan")},
        {"angles": []},
    ],
)
def test_what_is_no_estimator_is_refused(model, change) -> None:
    with pytest.raises(ValueError):
        FusedEstimator({**for_loop(model), **change})
    with pytest.raises(ValueError):
        FusedEstimator(for_loop(model, scales={"90": 0.0}))
    with pytest.raises(ValueError, match="2 values for 3 angles"):
        FusedEstimator(for_loop(model)).estimate([0.0, 0.0])
