"""The OD chain: against its NumPy twin, its noise bound, and what a vial does to the light."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from stirbar.core.records import FLAGS
from stirbar.rt import od_arrays
from stirbar.rt.od_arrays import (
    ConverterClock,
    MainsTracker,
    OdChain,
    choose_half_cycle,
    chop_gain,
    classify,
    culture_density,
    tukey_mean,
)

from benchmarks.od_errors import ornstein_uhlenbeck

from . import od_twin as twin
from .od_twin import EDGE, OFF, ON, VOLTS_PER_CODE, Bench, Record, always_on_bound, run

NOISE_V = 5 * VOLTS_PER_CODE


def measure(record: Record, skip_s: float = 5.0, **options) -> np.ndarray:
    """Readings of one signal channel from `skip_s` after the start on."""
    out = run(OdChain(["signal"], **options), [record])
    return out[out["monotonic_ns"] > (100 + skip_s) * 1e9]


def flagged(out: np.ndarray, name: str) -> np.ndarray:
    return (out["flags"] & FLAGS[name]) != 0


def cut(record: Record, keep: np.ndarray) -> Record:
    """A record of which only some conversions came."""
    names = ("index", "code", "phase", "clipped", "middle_s")
    return record._replace(**{name: getattr(record, name)[keep] for name in names})


# --- against the twin -------------------------------------------------------------------------------------------------


def test_agrees_with_the_twin():
    record = Bench(2.95).record()
    chain = OdChain(["signal"], window_s=0.5, mains_hz=50.0)
    chain.gain(0, VOLTS_PER_CODE)
    chain.clock(0, 0, record.t0_ns, record.period_ns)
    got, known = [], []
    for n in range(len(record.index)):
        got.append(chain.push(0, *(a[n : n + 1] for a in (record.index, record.code, record.phase, record.clipped))))
        inside = chain.inspect(0)
        assert not inside["mains_power"].any() and not (inside["flags"] & 32).any(), "the twin knows no hum, no bubbles"
        names = ("on_scale_v", "off_scale_v", "centre_v", "lit_scale_v")
        known.append(twin.Known(inside["scale_v"] or None, *(inside[name] for name in names)))
    seen = np.concatenate(got)
    # the twin is given what was carried along before each conversion (scales are tested below)
    want = twin.readings(record, 0.5, 50.0, lambda index: known[index - 1])
    assert len(want) == len(seen) >= 26
    assert sum(one.scale_v is not None for one in known) > 1000
    for reading, w in zip(seen, want, strict=True):
        assert reading["monotonic_ns"] == w.monotonic_ns
        assert reading["value"] == pytest.approx(w.value, rel=1e-9)
        assert reading["noise_bandwidth_hz"] == pytest.approx(w.bandwidth_hz, rel=1e-6)
        assert reading["ambient_v"] == pytest.approx(w.ambient_v, rel=1e-6)
        assert (reading["used"], reading["rejected"]) == (w.used, w.rejected)
        if reading["monotonic_ns"] > 101e9:
            assert reading["se_instrument"] == pytest.approx(w.se, rel=1e-6)


def test_tukey_mean_agrees_with_the_twin():
    rng = np.random.default_rng(5)
    for n in (3, 17, 86):
        values = rng.standard_normal(n) + np.where(rng.random(n) < 0.2, 20.0, 0.0)
        level, kept = tukey_mean(values, 1.0)
        want, weights = twin.biweight(values, np.ones(n), 1.0, float(np.median(values)))
        assert level == pytest.approx(want, rel=1e-12)
        assert kept == pytest.approx(weights.sum() / n, rel=1e-12)


def test_median_and_scale():
    rng = np.random.default_rng(6)
    for n in range(1, 40):
        values = np.round(rng.standard_normal(n), 1)  # with ties
        assert od_arrays.median(values) == pytest.approx(np.median(values))
    values = rng.standard_normal(20000)
    assert od_arrays.winsorised_scale(values, 0.0, 3.0) == pytest.approx(1.0, abs=0.02)
    values[:1000] = 100.0
    assert od_arrays.winsorised_scale(values, 0.0, 1.0) < 1.25


# --- noise ------------------------------------------------------------------------------------------------------------


def test_noise_and_instrument_error_in_white_noise():
    """The budget of IS-16, at every window from the same light; 3000 s."""
    rates = [(10.0, 1.0), (10.0, 0.1), (10.0, 0.2), (10.0, 0.5)]
    squares, errors, offsets = np.zeros(4), np.zeros(4), np.zeros(4)
    for seed in range(11, 16):
        chain = OdChain(["signal"], slower=rates[1:])
        out = run(chain, [Bench(600, seed=seed).record()], 860)
        assert out["half_cycle"][-1] == 5
        for n, (stream, (_, window_s)) in enumerate(zip((1, 32, 36, 40), rates, strict=True)):
            mine = out[(out["stream"] == stream) & (out["monotonic_ns"] > 105e9)]
            assert mine["window_s"][-1] == pytest.approx(window_s, rel=0.02 if window_s > 0.1 else 0.1)
            squares[n] += mine["value"].var() / 5
            errors[n] += np.median(mine["se_instrument"]) / 5
            offsets[n] += (mine["value"].mean() - 0.1) / 5
    for n, (limit, (_, window_s)) in enumerate(zip((2.3, 2.6, 2.4, 2.35), rates, strict=True)):
        assert 2.0 < np.sqrt(squares[n]) / always_on_bound(NOISE_V, 860, window_s) < limit
        assert errors[n] == pytest.approx(np.sqrt(squares[n]), rel=0.05)
        assert abs(offsets[n]) < 0.05 * errors[n]


@pytest.mark.parametrize("correlation", [0.0, 0.46, 0.7])
def test_instrument_error_of_a_running_mean(correlation):
    """Conversions whose noise their neighbours know: the error of a mean is larger than that of independent ones."""
    rng = np.random.default_rng(6)
    count = 4000 * 45
    noise = np.empty(count)
    noise[0] = rng.standard_normal()
    for i, kick in enumerate(np.sqrt(1 - correlation**2) * rng.standard_normal(count - 1)):
        noise[i + 1] = correlation * noise[i] + kick
    record = Bench(4000, 45.0, 18).record(noise_v=0.0, light=lambda t: NOISE_V * noise[: len(t)])
    out = measure(record, skip_s=100, window_s=5.0, readings_per_second=0.2, correlation=correlation)
    assert out["value"].std() == pytest.approx(np.median(out["se_instrument"]), rel=0.1)


@pytest.mark.parametrize("tau_s", [0.02, 0.06, 0.12])
def test_culture_error_in_coloured_noise(tau_s):
    """IS-27: particle noise (Ornstein-Uhlenbeck) makes the density less sure than the light; right within 10 %."""
    noise = 0.003 * ornstein_uhlenbeck(1500 * 860, tau_s, np.random.default_rng(4))
    out = measure(Bench(1500).record(noise_v=VOLTS_PER_CODE, shine=lambda t: 1 + noise[: len(t)]), skip_s=70)
    error = np.sqrt(np.mean(out["se_culture"].astype(float) ** 2))
    assert out["value"].std() == pytest.approx(error, rel=0.1)
    assert error == pytest.approx(0.1 * 0.003 * np.sqrt(2 * tau_s * (1 - tau_s)), rel=0.1)  # of a mean of 1 s
    assert np.median(out["se_culture"]) > 3 * np.median(out["se_instrument"])
    assert np.isnan(measure(Bench(10).record(), skip_s=1)["se_culture"]).all()


def test_culture_density_is_unbiased():
    rng = np.random.default_rng(8)
    white = [culture_density(rng.standard_normal(60) + 0.1 * np.arange(60))[0] for _ in range(400)]
    assert np.mean(white) == pytest.approx(1.0, rel=0.1)
    fine = rng.standard_normal((400, 620))
    fine = np.cumsum(fine, axis=1)[:, 10:] - np.cumsum(fine, axis=1)[:, :-10]  # correlated over a tenth of 10 steps
    coloured = [culture_density(row[:600].reshape(60, 10).mean(axis=1) / 10)[0] for row in fine]
    assert np.mean(coloured) == pytest.approx(0.1, rel=0.15)
    slope, error = culture_density(np.arange(60.0))[1:]
    assert slope == pytest.approx(1.0) and error == pytest.approx(0.0, abs=1e-9)


# --- mains ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_hz", [774.0, 830.0, 860.0, 946.0])
@pytest.mark.parametrize("mains_hz", [49.7, 50.1, 60.2])
def test_hum_is_removed(rate_hz, mains_hz):
    """A hum of 40 times the noise (and harmonics 2-6) leaves the noise of a quiet light."""
    k = choose_half_cycle(rate_hz, round(mains_hz, -1))
    hum = {h * mains_hz: 200 * VOLTS_PER_CODE / h for h in range(1, 7)}
    record = Bench(60, rate_hz, k, seed=round(rate_hz + 10 * mains_hz)).record(hum=hum)
    chain = OdChain(["signal"])
    out = run(chain, [record])
    out = out[out["monotonic_ns"] > 120e9]
    bound = always_on_bound(NOISE_V, rate_hz, 1.0)
    assert out["value"].std() / bound < 3.2
    assert abs(out["value"].mean() - 0.1) < 2.0 * bound
    assert chain.inspect(0)["mains_hz"] == pytest.approx(mains_hz, abs=0.01)
    assert not flagged(out, "mains_unlocked").any()


def test_hum_from_the_first_readings_on():
    hum = {50.0: 100 * VOLTS_PER_CODE, 100.0: 100 * VOLTS_PER_CODE}
    out = measure(Bench(10).record(hum=hum), skip_s=3.0)
    assert out["value"].std() < 4 * always_on_bound(NOISE_V, 860, 1.0)


@pytest.mark.parametrize(("wander_hz", "time_s", "limit"), [(0.02, 60.0, 0.37), (0.05, 10.0, 1.17)])
def test_a_hum_is_followed_as_far_as_the_grid_wanders(wander_hz, time_s, limit):
    """Phasors are those of a block's middle, and used until the next block's end: the frequency carries them there."""
    left = []
    for seed in (1, 2, 3):
        rng = np.random.default_rng(100 + seed)

        def hum(t, rng=rng):
            keep = np.exp(-0.1 / time_s)
            walk = [wander_hz * rng.standard_normal()]
            for kick in rng.standard_normal(len(t) // 86 + 1):
                walk.append(keep * walk[-1] + wander_hz * np.sqrt(1 - keep**2) * kick)
            hz = 50.0 + np.interp(np.arange(len(t)) / 86, np.arange(len(walk)), walk)
            phase = 2 * np.pi * np.cumsum(hz) * (t[1] - t[0])
            return sum(200 * VOLTS_PER_CODE / h * np.cos(h * phase + h) for h in range(1, 7))

        quiet = measure(Bench(150, seed=seed).record(), skip_s=30)
        out = measure(Bench(150, seed=seed).record(light=hum), skip_s=30)
        left.append(np.sqrt(np.mean((out["value"] - quiet["value"]) ** 2)) / quiet["value"].std())
    assert np.mean(left) < limit


def wandering(t: np.ndarray, seed: int) -> np.ndarray:
    """A hum of 200/h codes whose frequency walks at random, by 0.1 Hz in a second, within 50 Hz +-0.5."""
    rng = np.random.default_rng(seed)
    walk = np.cumsum(0.1 * np.sqrt(t[1] - t[0]) * rng.standard_normal(len(t)))
    phase = 2 * np.pi * np.cumsum(50.0 + np.clip(walk, -0.5, 0.5)) * (t[1] - t[0])
    return sum(200 * VOLTS_PER_CODE / h * np.cos(h * phase + h) for h in range(1, 7))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_hum_that_wanders_leaves_finite_errors(seed):
    """Half-cycles then stray far beyond the noise of conversions: one of which none agrees has little weight, not none,
    and what is carried over stays finite."""
    chain = OdChain(["signal"])
    out = run(chain, [Bench(60, seed=seed).record(light=lambda t: wandering(t, seed))])
    assert len(out) > 550 and np.isfinite(out["se_instrument"]).all() and np.isfinite(out["value"]).all()
    inside = chain.inspect(0)
    assert inside["lit_scale_v"] > 0 and np.isfinite(inside["on_count"]).all()


def test_a_half_cycle_of_which_nothing_agrees_has_little_weight():
    """Light that stirs by 10 %, so that a half-cycle may be far from what is expected, and for a second conversions
    that are 25 times their noise apart: one step of the estimator keeps them all, the next none."""

    def spikes(rng, n):
        return np.where(np.arange(n) // 860 == 27, 25 * NOISE_V * (-1.0) ** np.arange(n), 0.0)

    chain = OdChain(["signal"])
    out = run(chain, [Bench(30).record(shine=lambda t: 1 + 0.1 * np.sin(2 * np.pi * 11.3 * t), spikes=spikes)])
    assert chain.inspect(0)["on_count"].min() == pytest.approx(0.25)
    assert np.isfinite(out["se_instrument"]).all() and chain.inspect(0)["lit_scale_v"] > 0


def test_no_hum_is_not_believed():
    out = measure(Bench(300).record())
    assert flagged(out, "mains_unlocked").all()


def test_mains_tracker_follows_a_drift():
    rate, rng = 860.0, np.random.default_rng(2)
    t = np.arange(int(60 * rate)) / rate
    frequency = 49.9 + 0.1 * t / 60
    phase = np.cumsum(frequency) / rate
    values = 1.0 + np.cos(2 * np.pi * phase) + 0.5 * np.cos(4 * np.pi * phase + 1) + 0.05 * rng.standard_normal(len(t))
    learn = (np.arange(len(t)) % 10) < 4
    tracker = MainsTracker()
    cleaned = tracker.push(values, learn, 1e9 / rate)
    assert tracker.locked and tracker.nominal_hz == 50
    assert tracker.frequency_hz == pytest.approx(50.0, abs=0.01)
    assert tracker.amplitudes[:2] == pytest.approx([1.0, 0.5], abs=0.03)
    assert cleaned[-8600:].std() < 0.08


# --- what a vial does -------------------------------------------------------------------------------------------------


def bubbles(share: float, sigmas: float, length: int = 1):
    def spikes(rng, n):
        hit = np.zeros(n, dtype=bool)
        for begin in np.flatnonzero(rng.random(n) < share / length):
            hit[begin : begin + length] = True
        return np.where(hit, sigmas * NOISE_V, 0.0)

    return spikes


@pytest.mark.parametrize("window_s", [0.2, 1.0])
@pytest.mark.parametrize(
    ("share", "sigmas", "length"), [(0.05, 6, 1), (0.05, 6, 12), (0.1, 40, 20), (0.25, 10, 1), (0.25, 10, 12)]
)
def test_bubbles_are_rejected(share, sigmas, length, window_s):
    """From the very start of the run; without rejection the bias would be 5 to 130 standard errors (IS-26). The same
    noise without bubbles is what the change is measured against."""
    changes, flags = [], []
    spread = np.zeros(2)
    for seed in (3, 4):
        clean = without_bubbles(seed, window_s)
        out = measure(Bench(200, seed=seed).record(spikes=bubbles(share, sigmas, length)), skip_s=10, window_s=window_s)
        changes.append((out["value"] - clean["value"]).mean() / clean["value"].std())
        spread += clean["value"].var(), out["value"].var()
        flags.append(flagged(out, "bubbles").mean())
        assert out["rejected"].mean() > 5 * window_s * (share > 0.05)
    assert abs(np.mean(changes)) < 0.1
    assert spread[1] < (2.0 if sigmas == 10 else 1.1) ** 2 * spread[0]
    low, high = (0.2, 0.6) if share == 0.25 else (0.0, 0.1)  # a quarter is the limit: about half of the windows
    assert low <= np.mean(flags) <= high


@functools.cache
def without_bubbles(seed: int, window_s: float) -> np.ndarray:
    return measure(Bench(200, seed=seed).record(), skip_s=10, window_s=window_s)


def test_many_bubbles_are_flagged():
    out = measure(Bench(30).record(spikes=bubbles(0.35, 10)), skip_s=10)
    assert flagged(out, "bubbles").mean() > 0.95


def test_weak_long_bubbles_are_seen_in_block_means():
    """One sigma over 100 ms shows in no conversion; eight chop periods together show it."""
    spikes = bubbles(0.02, 1.5, 86)
    chain = OdChain(["signal"])
    out = run(chain, [Bench(300, seed=3).record(spikes=spikes)])
    clean = measure(Bench(300, seed=3).record())
    bias = (out["value"][50:].mean() - 0.1) / clean["value"].std()
    assert bias < 0.5 * 0.02 * 1.5 * NOISE_V / clean["value"].std(), "more than half of it is gone"
    assert out["value"].std() < 1.15 * clean["value"].std()


# --- rates ------------------------------------------------------------------------------------------------------------


def test_slower_rates_from_the_same_light():
    """IS-31: every rate has its noise bound, its own stream and grid, and the same value."""
    bench = Bench(420, seed=5)
    rates = [(10.0, 1.0), (2.0, 0.5), (0.2, 5.0), (0.05, 20.0)]
    chain = OdChain(["reference", "signal"], slower=rates[1:])
    out = run(chain, [bench.record(level_v=0.2, rate_hz=845.0), bench.record()], 860)
    assert set(out["stream"]) == {2, 33, 37, 41}
    for stream, (rate, window_s) in zip((2, 33, 37, 41), rates, strict=True):
        mine = out[(out["stream"] == stream) & (out["monotonic_ns"] > 121e9)]
        assert len(mine) == pytest.approx(399 * rate, abs=2)
        assert mine["window_s"] == pytest.approx(window_s * np.ones(len(mine)), rel=0.02)
        bound = always_on_bound(NOISE_V, 860, window_s) * 2.24 * np.sqrt(1.25)  # the reference's part
        assert mine["se_instrument"] == pytest.approx(bound * np.ones(len(mine)), rel=0.15)
        assert mine["value"].std() == pytest.approx(bound, rel=0.1 + 2 / np.sqrt(len(mine)))
        assert mine["value"].mean() == pytest.approx(out["value"][out["stream"] == 2].mean(), abs=bound)
        assert not flagged(mine, "stale_reference").any()
    assert chain.inspect(1)["grid_misses"] == 0 and chain.inspect(1)["untaken"] == 0


def test_whole_turns_and_the_modulation():
    """IS-29: light that turns with the stirrer averages out over whole turns, and its amplitude is said."""
    turn_s = 0.137

    def shine(t):
        return 1 + 0.004 * np.cos(2 * np.pi * t / turn_s) + 0.003 * np.cos(4 * np.pi * t / turn_s + 1)

    record = Bench(120).record(shine=shine)
    free = OdChain(["signal"], window_s=0.5)
    whole = OdChain(["signal"], window_s=0.5)
    whole.turn(turn_s)
    plain, out = run(free, [record]), run(whole, [record])
    assert set(plain["stream"]) == {1} and set(out["stream"]) == {1, 44}
    turning = out[(out["stream"] == 44) & (out["monotonic_ns"] > 105e9)]
    assert len(turning) == pytest.approx(115, abs=2) and turning["version"][0] == 1
    assert turning["value"].mean() == pytest.approx(0.5, rel=0.05)
    assert turning["signal_v"].mean() == pytest.approx(0.1 * 0.004, rel=0.05)
    assert turning["reference_v"].mean() == pytest.approx(0.1 * 0.003, rel=0.05)
    out = out[out["stream"] == 1]
    assert out["window_s"][-1] == pytest.approx(4 * turn_s, abs=0.006)
    assert out["value"][100:].std() < 0.85 * plain["value"][100:].std()
    still = OdChain(["signal"])
    still.turn(turn_s)
    quiet = run(still, [Bench(60).record()])
    quiet = quiet[quiet["stream"] == 44]
    assert np.sqrt(np.mean(quiet["value"] ** 2)) == pytest.approx(2 * quiet["se_instrument"].mean(), rel=0.2)


def test_one_reading_per_chop_period():
    chain = OdChain(["signal"], window_s=0.0117, readings_per_second=86.0)
    out = run(chain, [Bench(60).record()])
    out = out[out["monotonic_ns"] > 120e9]
    assert len(out) == pytest.approx(40 * 86, abs=2)
    assert out["value"].std() == pytest.approx(np.median(out["se_instrument"]), rel=0.1)


def test_a_slow_chop():
    """1 Hz, as boards with a smoothing converter chop: a window of ten chop periods, and blocks of four of them."""
    rng = np.random.default_rng(3)
    bench = Bench(600, rate_hz=60.0, k=30)
    chain = OdChain(["signal"], window_s=10.0, readings_per_second=1.0, slower=[(0.02, 50.0)])
    record = bench.record(ambient_v=0.01, light=lambda t: 1e-5 * rng.standard_normal(len(t)))
    out = run(chain, [record])
    assert chain.inspect(0)["half_cycle"] == 30 and chain.inspect(0)["untaken"] == 0
    slow = out[(out["stream"] == 32) & (out["monotonic_ns"] > 160e9)]
    fast = out[(out["stream"] == 1) & (out["monotonic_ns"] > 200e9)]
    assert len(slow) >= 8 and slow["window_s"] == pytest.approx(48 * np.ones(len(slow)), abs=4.1)
    assert fast["window_s"] == pytest.approx(10 * np.ones(len(fast)), rel=0.25)
    for mine in (fast, slow):
        assert np.abs(mine["value"] - 0.1).max() < 5 * np.median(mine["se_instrument"])
    assert not flagged(fast, "unchopped").any()


def test_a_step_of_the_culture_is_followed_within_a_window():
    """A dilution of 18 %: rejected while it is the smaller part of the window, believed when it is the larger."""
    out = measure(Bench(30).record(shine=lambda t: np.where(t < 120, 1.0, 0.82)))
    since = out["monotonic_ns"] * 1e-9 - 120
    error = np.median(out["se_instrument"])
    assert np.abs(out["value"][since < -0.05] - 0.1).max() < 6 * error
    assert np.abs(out["value"][since > 1.05] - 0.082).max() < 6 * error
    assert np.abs(out["value"][since > 0.65] - 0.082).max() < 12 * error
    assert not flagged(out[since > 1.05], "bubbles").any()


@pytest.mark.parametrize("share", [0.5, 0.005])
def test_a_change_is_right_in_the_first_window_after_it(share):
    """IS-31, for every rate that is made of chop periods."""
    rates = [(20.0, 0.2), (5.0, 0.5), (2.0, 1.0)]
    chain = OdChain(["signal"], readings_per_second=86.0, window_s=0.0117, slower=rates)
    out = run(chain, [Bench(30).record(shine=lambda t: np.where(t < 120.003, 1.0, 1.0 - share))])
    for stream, window_s in zip((1, 32, 36, 40), (0.0117, 0.2, 0.5, 1.0), strict=True):
        mine = out[out["stream"] == stream]
        later = mine[mine["monotonic_ns"] * 1e-9 > 120.028 + window_s]
        assert np.abs(later["value"] - 0.1 * (1 - share)).max() < 5 * np.median(mine["se_instrument"])


def test_ambient_steps_are_cut_out():
    def light(t):
        return np.where((t > 120.003) & (t < 125.0017), 0.05, 0.0)

    out = measure(Bench(40).record(light=light), skip_s=10)
    quiet = measure(Bench(40).record(), skip_s=10)
    assert np.abs(out["value"] - quiet["value"]).max() < 1.5 * np.median(quiet["se_instrument"])  # less light is used
    since = out["monotonic_ns"] * 1e-9 - 120
    assert flagged(out[(since > 0.1) & (since < 0.9)], "ambient_step").all()
    assert not flagged(out[(since < 0) | (since > 6.2)], "ambient_step").any()
    assert out["ambient_v"][(since > 2) & (since < 4)].mean() == pytest.approx(0.052, rel=0.01)


def step_change(window_s: float, volts: float, place: float) -> float:
    """Light that steps up and down every 2.6 s at a place of the chop period: the largest mean change of readings of an
    age since the step, in standard errors."""
    cycle_s = 10 / 860
    half_s = round(2.6 / cycle_s) * cycle_s

    def turns(t):
        return (t - 100 - place * cycle_s - 1e-4) / half_s

    seconds = 40 * half_s + 10
    quiet = measure(Bench(seconds, seed=3).record(), 12, window_s=window_s)
    lit = Bench(seconds, seed=3).record(light=lambda t: np.where(np.floor(turns(t)) % 2, volts, 0.0))
    out = measure(lit, 12, window_s=window_s)
    change = (out["value"] - quiet["value"]) / np.median(quiet["se_instrument"])
    at = turns(out["monotonic_ns"] * 1e-9)
    since = (at - np.floor(at)) * half_s
    found = []
    for up in (0, 1):
        for age in np.arange(0.05, window_s + 0.1, 0.1):
            mine = change[(np.floor(at) % 2 == up) & (np.abs(since - age) < 0.05)]
            if len(mine) > 5:
                found.append(float(mine.mean()))
    return max(found, key=abs)


@pytest.mark.parametrize(
    ("window_s", "codes", "limit"), [(0.2, 1600, 0.2), (1.0, 1600, 0.2), (1.0, 32, 0.2), (0.2, 16, 0.4), (1.0, 16, 0.2)]
)
def test_an_ambient_step_changes_no_reading(window_s, codes, limit):
    """IS-19: 0.2 standard errors of a reading's mean, wherever in the chop period it comes; 16 codes are too few to be
    told from noise, and leave up to 0.4 in 0.2 s."""
    for place in np.arange(0.0, 1.0, 0.1):
        assert abs(step_change(window_s, codes * VOLTS_PER_CODE, place)) < limit, place


def test_slow_ambient_light_is_removed():
    out = measure(Bench(60).record(light=lambda t: 0.02 * np.sin(2 * np.pi * 1.3 * t)), skip_s=10)
    assert out["value"].std() < 3 * always_on_bound(NOISE_V, 860, 1.0)


# --- what the thread, the converter and the config do -----------------------------------------------------------------


def test_gaps_are_flagged_and_survived():
    record = Bench(30).record()
    keep = np.random.default_rng(3).random(len(record.index)) > 0.01
    keep[:8600] = True
    keep[12000:14000] = False
    out = measure(cut(record, keep))
    clean = measure(record)
    gap = flagged(out, "gap")
    assert not gap[out["monotonic_ns"] < 109.9e9].any() and gap[out["monotonic_ns"] > 111e9].all()
    assert out["value"].std() < 1.5 * clean["value"].std()
    assert abs(out["value"].mean() - 0.1) < clean["value"].std()


def test_repeated_conversions_are_ignored():
    record = Bench(5).record()
    chain = OdChain(["signal"])
    twice = cut(record, np.repeat(record.index, 1 + (record.index % 7 == 0)))
    whole = 2 * len(record.index)  # one clock model for both
    assert run(chain, [twice], whole).tobytes() == run(OdChain(["signal"]), [record], whole).tobytes()
    assert chain.inspect(0)["repeated"] > 500


def test_a_converter_that_counts_anew():
    """Stopped and started again: the index begins at 0, half a minute later."""
    record, again = Bench(10).record(), Bench(10, start_s=140.0).record()
    chain = OdChain(["signal"])
    run(chain, [record])
    out = run(chain, [again])
    assert out["monotonic_ns"][0] < 140.4e9 and flagged(out[:3], "gap").all()
    assert out["value"] == pytest.approx(0.1 * np.ones(len(out)), rel=2e-3)
    assert chain.inspect(0)["repeated"] == 0


def test_half_cycles_of_varying_length():
    """A late thread toggles late: the line through both off neighbours still takes drifting light away."""
    rng = np.random.default_rng(9)
    n = 30 * 860
    end = 100e9 + (np.arange(n) + 1) * 1e9 / 860
    toggles = np.cumsum(rng.choice([5, 5, 5, 6, 7], n // 4))
    toggles = toggles[toggles < n - 1]
    edges = np.column_stack([end[toggles] + 60000, end[toggles] + 100000]).astype(np.int64)
    levels = (np.arange(len(toggles)) + 1) % 2
    phase = classify(edges, levels, (end - 1e9 / 860).astype(np.int64), end.astype(np.int64))
    record = Bench(30).record(level_v=0.0, light=lambda t: 0.01 * (t - 100))
    code = record.code + np.where(phase == ON, 3200, 0).astype(np.int32)
    out = measure(record._replace(code=code, phase=phase))
    assert out["signal_v"].mean() == pytest.approx(3200 * VOLTS_PER_CODE, rel=2e-4)
    assert out["value"].std() < 3.0 * always_on_bound(NOISE_V, 860, 1.0)


def test_reference_division_takes_the_leds_drift_away():
    """Two converters of different rates; the LED loses 0.05 % a second."""
    bench = Bench(40, rate_hz=911.0)

    def shine(t):
        return 1 - 0.0005 * (t - 100)

    signal = bench.record(shine=shine)
    reference = bench.record(level_v=0.2, rate_hz=793.0, shine=shine)
    out = run(OdChain(["reference", "signal"], angles=[0, 90]), [reference, signal])
    out = out[~flagged(out, "stale_reference")]
    assert len(out) > 350, "the first reference took long"
    drift = np.polyfit(out["monotonic_ns"] * 1e-9, out["value"] / 0.1, 1)[0]
    assert abs(drift) < 2e-6
    assert out["value"].mean() == pytest.approx(
        0.1, rel=2e-3
    )  # relative to its third second, when a thousandth was gone
    assert out["se_instrument"][-1] == pytest.approx(out["value"].std(), rel=0.25)
    assert (out["stream"] == 2).all() and (out["angle"] == 90).all()
    assert not flagged(out, "stale_reference").any()
    classic = run(OdChain(["reference", "signal"], normalization="classic"), [reference, signal])[10:]
    assert classic["value"] == pytest.approx(0.5 * np.ones(len(classic)), rel=1.5e-3)


def test_a_stalled_reference_does_not_block():
    bench = Bench(20)
    reference, signal = bench.record(level_v=0.2, rate_hz=911.0), bench.record()
    reference = cut(reference, reference.middle_s < 110)
    out = run(OdChain(["reference", "signal"]), [reference, signal])
    stale = flagged(out, "stale_reference")
    time_s = out["monotonic_ns"] * 1e-9
    assert not stale[(time_s > 103.5) & (time_s < 109.9)].any() and stale[time_s > 110.7].all()
    assert np.diff(time_s).max() < 0.65
    assert out["value"][20:].std() < 3 * always_on_bound(NOISE_V, 860, 1.0)


def test_always_on_and_dark_light_are_accepted():
    on = measure(Bench(20).record(chopped=False))
    assert flagged(on, "unchopped").all() and not flagged(on, "dark").any()
    assert on["value"].mean() == pytest.approx(0.102, rel=1e-3)
    assert on["value"].std() < 1.6 * always_on_bound(NOISE_V, 860, 1.0)
    record = Bench(20).record(level_v=0.0, chopped=False)
    dark = measure(record._replace(phase=np.full(len(record.index), OFF, dtype=np.uint8)))
    assert flagged(dark, "dark").all()
    assert dark["ambient_v"].mean() == pytest.approx(0.002, rel=0.01)


def test_chopping_begins_after_darkness():
    """The dark conversions before the LED's first edge do not get into the readings."""
    bench = Bench(10)
    bench.edges_ns, bench.levels = bench.edges_ns[200:], bench.levels[200:]
    out = run(OdChain(["signal"]), [bench.record()])
    chopped = out[out["monotonic_ns"] > 101.4e9]
    assert flagged(out[out["monotonic_ns"] < 101.1e9], "dark").all()
    assert chopped["value"] == pytest.approx(0.1 * np.ones(len(chopped)), rel=3e-3)


def test_slow_unchopped_input():
    """One conversion a second, as in a CSV of somebody else's."""
    n = 60
    chain = OdChain(["signal"], window_s=5.0)
    chain.gain(0, 1e-4)
    chain.clock(0, 0, 1_000_000_000, 1e9)
    out = chain.push(0, np.arange(n), np.full(n, 2500), np.full(n, ON))
    assert len(out) > 40 and out["value"] == pytest.approx(0.25 * np.ones(len(out)))
    assert flagged(out, "unchopped").all()


def test_saturation_is_flagged():
    out = measure(Bench(10).record(level_v=1.2))
    assert flagged(out, "saturated").all()
    assert not flagged(measure(Bench(10).record()), "saturated").any()


def test_blank_and_led():
    record = Bench(20).record()
    chain = OdChain(["signal"])
    chain.led(80.0)
    half = len(record.index) // 2
    first = run(chain, [cut(record, record.index < half)])
    chain.blank(0, 0.02)
    chain.led(40.0)
    second = run(chain, [cut(record, record.index >= half)])
    assert not flagged(first, "blanked").any() and flagged(second, "blanked").all()
    assert second["value"].mean() == pytest.approx(0.08, rel=1e-3) and second["blank"][0] == np.float32(0.02)
    assert second["window_s"][0] < 0.3, "the window starts anew at the LED's new intensity"
    chain.led(0.0)
    assert flagged(first, "warming").all()


def test_warming_ends_when_the_reference_holds_still():
    """Its slope falls below 0.01 % a minute after 128 s; the minute over which it is taken adds half of its own."""

    def shine(t):
        return 1 - 0.02 * np.exp(-(t - 100) / 20)

    bench = Bench(330)
    chain = OdChain(["reference", "signal"])
    chain.led(80.0)
    out = run(chain, [bench.record(level_v=0.5, shine=shine, noise_v=VOLTS_PER_CODE), bench.record(shine=shine)], 860)
    since = out["monotonic_ns"] * 1e-9 - 100
    warming = flagged(out, "warming")
    ended = since[warming].max()
    assert 100 < ended < 220 and warming[since < ended - 0.1].all() and not warming[since > ended].any()
    chain.led(40.0)
    again = bench.record()._replace(t0_ns=int(430e9))
    assert flagged(run(chain, [again, again], 860)[:5], "warming").all(), "and begins with another intensity"


def test_warming_ends_after_a_minute_without_a_reference():
    out = run(OdChain(["signal"]), [Bench(90).record()], 860)
    since = out["monotonic_ns"] * 1e-9 - 100
    assert flagged(out[since < 59.5], "warming").all() and not flagged(out[since > 62.5], "warming").any()


def test_the_first_reading_comes_within_half_a_second():
    out = run(OdChain(["signal"]), [Bench(2).record()])
    assert out["monotonic_ns"][0] < 100.4e9
    assert out["value"][0] == pytest.approx(0.1, rel=2e-3)
    assert np.diff(out["monotonic_ns"]) == pytest.approx(1e8 * np.ones(len(out) - 1), abs=1.3e7)


def test_a_snapshot_goes_on_bit_by_bit():
    bench = Bench(12)
    hum = {50.2: 30 * VOLTS_PER_CODE}
    records = [bench.record(level_v=0.2, rate_hz=911.0, hum=hum), bench.record(hum=hum, spikes=bubbles(0.1, 10))]
    halves = [[cut(r, r.middle_s < 106.1234) for r in records], [cut(r, r.middle_s >= 106.1234) for r in records]]
    live = OdChain(["reference", "signal"])
    run(live, halves[0])
    state = live.state()
    later = run(live, halves[1])
    copy = OdChain(["signal"])
    copy.restore(state)
    assert run(copy, halves[1]).tobytes() == later.tobytes() and len(later) > 50
    assert copy.state() == live.state()
    assert od_arrays.STATE_BYTES <= 90112
    with pytest.raises(ValueError, match="bytes"):
        copy.restore(state[:-1])


@pytest.mark.parametrize(
    "options",
    [
        {"roles": ["reference"]},
        {"roles": ["signal"], "window_s": 900.0},
        {"roles": ["signal"], "readings_per_second": 0.0},
        {"roles": ["signal"], "mains_hz": 400.0},
        {"roles": ["signal"], "correlation": 1.0},
        {"roles": ["signal"] * 5},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError):
        OdChain(**options)


# --- chop and converter clock -----------------------------------------------------------------------------------------


def test_half_cycle_stays_away_from_the_mains():
    for rate in np.arange(774.0, 947.0, 4.0):
        for mains in (50.0, 60.0):
            k = choose_half_cycle(rate, mains)
            assert 4 <= k <= 9
            chop = rate / 2 / k
            for h in (1, 2):
                tooth = round(h * mains / chop)
                assert tooth % 2 == 0 or abs(h * mains - tooth * chop) > 1.0 * h, (rate, mains, k)
    assert choose_half_cycle(860.0, 50.0, 500.0, 6, 6) == 6
    assert choose_half_cycle(860.0) == choose_half_cycle(860.0)


@pytest.mark.parametrize(("window_s", "k", "mains_hz"), [(0.1, 5, 50.0), (0.5, 6, 60.0), (1.0, 4, 50.0)])
def test_the_price_of_chopping_agrees_with_the_twin(window_s, k, mains_hz):
    rate = 911.0
    price = od_arrays.chop_price(rate, k, window_s, mains_hz)
    assert price["b1_over_b0"] == pytest.approx(2 / np.sqrt(1 - 1 / k))
    assert price["b2_over_b0"] == pytest.approx(twin.bound_b2(rate, k, window_s, mains_hz), rel=0.002)
    assert price["efficiency_b1"] == pytest.approx((price["b1_over_b0"] / price["noise_over_b0"]) ** 2)
    assert price["noise_over_b0"] < {0.1: 2.6, 0.5: 2.35, 1.0: 2.4}[window_s] and 20 < price["freedom"] < 40
    with pytest.raises(ValueError, match=r"45\.\.65"):
        od_arrays.chop_price(rate, k, window_s, 400.0)


def test_chop_gain_agrees_with_the_twin():
    rate, k = 860.0, 5
    for frequency in (0.5, 7.0, 50.0, 86.0, 120.0, 258.0):
        fine = np.linspace(0, 1, 2000, endpoint=False)

        def conversions(first, frequency=frequency, fine=fine):
            return np.mean([np.exp(2j * np.pi * frequency * (first + i + fine) / rate).mean() for i in range(k - 1)])

        want = abs(conversions(0) - (conversions(-k) + conversions(k)) / 2)
        assert chop_gain(frequency, rate, k) == pytest.approx(want, rel=1e-2, abs=1e-6)


def test_phase_is_never_wrong():
    """Random edges: a conversion called on or off saw no other light, not even within the guard."""
    rng = np.random.default_rng(12)
    for seed in range(30):
        gaps = rng.integers(400_000, 9_000_000, 300)
        before = np.cumsum(gaps)
        after = before + rng.integers(1000, 200_000, len(gaps))
        levels = (np.arange(len(gaps)) + 1) % 2
        starts = np.cumsum(rng.integers(900_000, 1_300_000, 1000)) + seed
        ends = starts + 1_000_000
        settle = int(rng.integers(0, 300_000))
        phase = classify(np.column_stack([before, after]), levels, starts, ends, 30_000, settle)
        for start, end, p in zip(starts, ends, phase, strict=True):
            changing = ((before - 30_000 < end) & (after + 30_000 + settle > start)).any()
            level = levels[np.searchsorted(before, start) - 1] if before[0] < start else 0
            assert p == (EDGE if changing else level)


@pytest.mark.parametrize("offset", [-0.1, 0.0, 0.1])
def test_converter_clock_locks(offset):
    """An oscillator 10 % off, stamps 20-60 us late, one in a hundred by up to 2 ms: 10 ppm within 10 s."""
    rng = np.random.default_rng(7)
    rate = 860.0 * (1 + offset)
    index = np.arange(int(10 * rate), dtype=np.uint32) + 4294967000  # through the wrap
    true = 5e9 + np.arange(len(index)) * 1e9 / rate
    late = rng.uniform(20e3, 60e3, len(index)) + np.where(rng.random(len(index)) < 0.01, rng.uniform(0, 2e6), 0)
    keep = rng.random(len(index)) > 0.02
    clock = ConverterClock(860.0)
    early = int(0.1 * rate)
    index = index.astype(np.uint32)
    clock.push(index[:early][keep[:early]], (true + late)[:early][keep[:early]].astype(np.int64))
    assert clock.locked
    clock.push(index[early:][keep[early:]], (true + late)[early:][keep[early:]].astype(np.int64))
    assert clock.rate_hz == pytest.approx(rate, rel=1e-5)
    assert clock.end_ns(int(index[-1])) == pytest.approx(true[-1] + 40e3, abs=10e3)
    assert clock.next_ns == pytest.approx(true[np.flatnonzero(keep)[-1]] + 1e9 / rate + 40e3, abs=10e3)
    assert clock.relocks == 0


def test_converter_clock_finds_a_new_line():
    clock = ConverterClock(860.0)
    index = np.arange(4000, dtype=np.uint32)
    stamps = index * 1e9 / 860
    stamps[2000:] += 0.5e6
    clock.push(index, stamps.astype(np.int64))
    assert clock.locked and clock.relocks == 1
    assert clock.end_ns(3999) == pytest.approx(stamps[-1], abs=2000)
