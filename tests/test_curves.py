"""Calibration curves: the loop's own kernels against NumPy and SciPy, root for root, and what noise becomes of."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import Akima1DInterpolator, CubicSpline
from stirbar.core import calibration_fits as fits
from stirbar.rt.calibration_arrays import ABOVE, BELOW, BEYOND, COEFFICIENTS, INSIDE, PIECES, Curve

STANDARDS = [0.0, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.5, 8.0]


def scatter(x, fold=4.0):
    """A 90° photodiode: single scatter that folds back."""
    return 0.02 + 0.3 * np.asarray(x) * np.exp(-np.asarray(x) / fold)


def made(curve, low=0.0, high=8.0, **more):
    return Curve({**curve, "domain": [low, high], "ir_led_intensity": 80.0, **more})


def fitted(kind, x=STANDARDS, fold=4.0):
    return fits.FITS[kind](list(x), list(scatter(x, fold)))


def roots(curve, y, low, high):
    """All x of a curve, slowly: where it crosses y on a fine grid, then halving."""
    grid = np.linspace(low, high, 20_001)
    above = fits.evaluate(curve, grid) - y
    found = []
    for i in np.flatnonzero(above[:-1] * above[1:] <= 0.0):
        a, b = grid[i], grid[i + 1]
        for _ in range(80):
            middle = 0.5 * (a + b)
            if (fits.evaluate(curve, [middle])[0] - y) * (fits.evaluate(curve, [a])[0] - y) <= 0.0:
                b = middle
            else:
                a = middle
        found.append(0.5 * (a + b))
    return found


@pytest.mark.parametrize("kind", fits.FITS)
def test_value_and_derivatives(kind) -> None:
    curve = fitted(kind)
    x = np.concatenate([np.linspace(-1.0, 9.0, 401), STANDARDS])
    at = made(curve).at(x)
    assert at.shape == (len(x), 3)
    np.testing.assert_allclose(at[:, 0], fits.evaluate(curve, x), rtol=1e-12, atol=1e-12)
    inside = np.linspace(0.03, 7.97, 200)
    h = 1e-5
    low, high = fits.evaluate(curve, inside - h), fits.evaluate(curve, inside + h)
    np.testing.assert_allclose(made(curve).at(inside)[:, 1], (high - low) / (2 * h), rtol=1e-6, atol=1e-8)
    smooth = np.array([x for x in inside if min(abs(x - k) for k in curve.get("knots", [-1])) > 1e-3])
    low, high = made(curve).at(smooth - h)[:, 1], made(curve).at(smooth + h)[:, 1]
    np.testing.assert_allclose(made(curve).at(smooth)[:, 2], (high - low) / (2 * h), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", fits.FITS)
def test_turns_are_the_ends_and_the_extrema(kind) -> None:
    curve = fitted(kind)
    grid = np.linspace(0.0, 8.0, 200_001)
    y = fits.evaluate(curve, grid)
    rising = np.sign(np.diff(y))
    inner = grid[1:-1][rising[:-1] * rising[1:] < 0]
    turns = made(curve).turns
    assert len(inner) >= 1  # it folds back
    np.testing.assert_allclose(turns[:, 0], [0.0, *inner, 8.0], atol=1e-4)
    np.testing.assert_allclose(turns[:, 1], fits.evaluate(curve, turns[:, 0]), rtol=1e-12)


@pytest.mark.parametrize("kind", fits.FITS)
def test_inverse_gives_the_solution_nearest_to_the_previous_one(kind) -> None:
    curve = fitted(kind)
    loop = made(curve)
    rng = np.random.default_rng(5)
    counts = set()
    for y, previous in zip(rng.uniform(0.03, 0.45, 60), rng.uniform(0.0, 8.0, 60), strict=True):
        every = roots(curve, y, 0.0, 8.0)
        x, where = loop.inverse(y, previous)
        counts.add(len(every))
        if every:
            assert where == INSIDE
            assert abs(x - min(every, key=lambda one: abs(one - previous))) < 1e-7
            first, _ = loop.inverse(y)
            assert abs(first - every[0]) < 1e-7, "without a previous one: the thinnest culture"
    assert counts >= {0, 2} or counts >= {1, 2}


def test_a_culture_that_grows_is_followed_through_the_fold() -> None:
    """Nearest to the previous goes on along one branch; past the top it is the other one."""
    curve = fitted("spline")
    loop = made(curve)
    truth = np.concatenate([np.linspace(0.1, 3.6, 300), np.linspace(4.6, 7.5, 300)])
    x, where = loop.inverse(fits.evaluate(curve, truth[:300]))
    np.testing.assert_allclose(x, truth[:300], atol=1e-9)
    assert not where.any()
    x, _ = loop.inverse(fits.evaluate(curve, truth[300:]), 4.6)
    np.testing.assert_allclose(x, truth[300:], atol=1e-9)


def test_outside_it_clamps_and_says_so() -> None:
    rising = made({"type": "poly", "coefficients": [0.25, 0.5]}, 0.0, 4.0)
    x, where = rising.inverse([0.25, 0.5, 1.0, 1.5, 2.0])
    np.testing.assert_allclose(x, [0, 0, 2, 4, 4], atol=1e-12)
    assert list(where) == [BELOW, INSIDE, INSIDE, INSIDE, ABOVE]
    falling = made({"type": "poly", "coefficients": [-0.25, 1.0]}, 0.0, 4.0)
    x, where = falling.inverse([1.5, -0.05])
    assert list(x) == [0, 4] and list(where) == [BELOW, ABOVE]
    folded = made(fitted("akima"))
    top = folded.turns[1]
    x, where = folded.inverse([top[1] + 0.01, 0.01])
    assert where[0] == BEYOND and x[0] == pytest.approx(top[0])
    assert where[1] == BELOW and x[1] == 0.0


@pytest.mark.parametrize("kind", fits.FITS)
def test_errors_are_those_of_repeated_readings(kind) -> None:
    """Readings with noise of y, inverted: their scatter is the error that each carries, also close to the fold."""
    curve = fitted(kind)
    loop = made(curve)
    noise = np.random.default_rng(6).normal(size=4000)
    for truth, sigma in ((0.3, 1e-4), (1.5, 1e-4), (3.0, 1e-4), (6.0, 2e-4)):
        y, slope, _ = loop.at(truth)
        x = np.array([loop.inverse(one, truth)[0] for one in y + sigma * noise])
        assert np.std(x) == pytest.approx(loop.error(sigma, truth), rel=0.06)
        assert loop.error(sigma, truth) == pytest.approx(sigma / abs(slope), rel=0.02)
    top = loop.turns[1, 0]
    bend = abs(loop.at(top)[2])
    assert loop.error(1e-4, top) == pytest.approx(np.sqrt(2e-4 / bend), rel=1e-3)


def test_the_fits_are_those_of_the_literature() -> None:
    x, y = STANDARDS, list(scatter(STANDARDS))
    akima = fits.fit_akima(x, y)
    fine = np.linspace(0.0, 8.0, 301)
    np.testing.assert_allclose(fits.evaluate(akima, fine), Akima1DInterpolator(x, y)(fine), rtol=1e-9, atol=1e-12)
    knots = np.array([0.0, 1.0, 2.5, 8.0])
    values = scatter(knots)
    pieces = fits.natural_pieces(knots, values)
    natural = CubicSpline(knots, values, bc_type="natural")
    np.testing.assert_allclose(fits.evaluate_pieces(knots, pieces, fine), natural(fine), rtol=1e-10)
    # as many knots as standards: the regression spline goes through all of them
    through = fits.fit_spline(knots.tolist(), values.tolist(), 4)
    np.testing.assert_allclose(fits.evaluate(through, fine), natural(fine), rtol=1e-9)
    # two standards: a line, in all kinds
    for kind in fits.FITS.values():
        np.testing.assert_allclose(fits.evaluate(kind([0.0, 2.0], [1.0, 2.0]), [0.5, 1.0]), [1.25, 1.5])


def test_aicc_finds_the_degree_that_made_the_data() -> None:
    rng = np.random.default_rng(3)
    x = np.linspace(0.0, 4.0, 25)
    found = []
    for degree in (1, 2, 3):
        chosen = []
        for _ in range(20):
            y = np.polyval([0.4] * (degree + 1), x) + 0.01 * rng.normal(size=25)
            chosen.append(len(fits.fit_polynomial(x.tolist(), y.tolist())["coefficients"]) - 1)
        assert min(chosen) == degree, "never too stiff"
        found.append(np.mean(np.array(chosen) == degree))
    assert min(found) >= 0.7
    assert fits.aicc(1.0, 5, 4) == np.inf


def test_the_residual_is_the_noise_of_the_standards() -> None:
    rng = np.random.default_rng(8)
    x = np.repeat(STANDARDS, 4)
    for kind in fits.FITS:
        scales = []
        for _ in range(30):
            y = 0.02 + 0.1 * x + 0.002 * rng.normal(size=len(x))
            curve = fits.FITS[kind](x.tolist(), y.tolist())
            scales.append(fits.residual_scale(curve, x.tolist(), y.tolist()))
        assert np.sqrt(np.mean(np.square(scales))) == pytest.approx(0.002, rel=0.06)
    assert fits.residual_scale(fits.fit_akima([0.0, 1.0], [0.0, 1.0]), [0.0, 1.0], [0.0, 1.0]) is None


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([0.0, 1.0], [1.0], "2 values of x and 1 of y"),
        ([0.0, float("nan")], [1.0, 2.0], "point 2"),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], "1 different values of x"),
    ],
)
def test_bad_standards_are_named(x, y, words) -> None:
    for fit in fits.FITS.values():
        with pytest.raises(ValueError, match=words):
            fit(x, y)
    with pytest.raises(ValueError, match="degree 7"):
        fits.fit_polynomial([0, 1, 2], [0, 1, 2], 7)
    with pytest.raises(ValueError, match="1 knots"):
        fits.fit_spline([0, 1, 2], [0, 1, 2], 1)


@pytest.mark.parametrize(
    "bad",
    [
        {"type": "poly", "coefficients": [1.0]},
        {"type": "poly", "coefficients": [0.0, 0.0, 1.0]},
        {"type": "poly", "coefficients": [float("nan"), 1.0]},
        {"type": "poly", "coefficients": [1.0] * (COEFFICIENTS + 1)},
        {"type": "quadratic", "coefficients": [1.0, 2.0]},
        {"type": "spline", "knots": [0.0, 0.0], "coefficients": [[0.0, 1.0, 0.0, 0.0]]},
        {"type": "akima", "knots": [0.0, 1.0, 2.0], "coefficients": [[0.0, 1.0, 0.0, 0.0]]},
        {"type": "akima", "knots": [0.0, 1.0], "coefficients": [[0.0, 1.0, 0.0]]},
        {"type": "spline", "knots": list(range(PIECES + 2)), "coefficients": [[0.0, 1.0, 0.0, 0.0]] * (PIECES + 1)},
    ],
)
def test_what_is_no_curve_is_refused(bad) -> None:
    with pytest.raises(ValueError):
        made(bad)


def test_a_range_must_be_one() -> None:
    for low, high in ((1.0, 1.0), (2.0, 1.0), (0.0, float("inf"))):
        with pytest.raises(ValueError, match="cannot be inverted"):
            made(fitted("poly"), low, high)
    # a wiggle of many turns is no calibration
    x = list(range(PIECES + 1))
    wiggle = fits.fit_akima(x, [(-1.0) ** i for i in x])
    with pytest.raises(ValueError, match="not turning"):
        made(wiggle, 0.0, float(PIECES))


finite = st.floats(-5.0, 5.0)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(0.05, 2.0), min_size=1, max_size=8),
    st.data(),
    st.sampled_from(["akima", "poly"]),
)
def test_every_inverse_is_a_solution_or_says_that_there_is_none(gaps, data, kind) -> None:
    if kind == "akima":
        knots = [0.0, *itertools.accumulate(gaps)]
        curve = fits.fit_akima(knots, data.draw(st.lists(finite, min_size=len(knots), max_size=len(knots))))
        high = knots[-1]
    else:
        curve = {"type": "poly", "coefficients": data.draw(st.lists(finite, min_size=2, max_size=7))}
        high = 2.0
    try:
        loop = made(curve, 0.0, high)
    except ValueError:
        return
    y = data.draw(st.floats(-20.0, 20.0))
    x, where = loop.inverse(y, data.draw(st.floats(-1.0, 10.0)))
    turns = loop.turns
    assert 0.0 <= x <= high
    scale = 1e-9 * (1.0 + np.abs(turns[:, 1]).max() + abs(y))
    if where == INSIDE:
        assert abs(loop.at(x)[0] - y) < scale * 100
    else:
        grid = fits.evaluate(curve, np.linspace(0.0, high, 500))
        assert (grid > y - scale).all() or (grid < y + scale).all(), "no sign change, so no solution"
        assert abs(loop.at(x)[0] - y) <= np.abs(grid - y).min() + scale
