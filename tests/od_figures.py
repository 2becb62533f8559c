"""The figures of docs/optical-density.md: `PYTHONPATH=build/view python -m tests.od_figures [noise|hum|...]`.

Noise against the always-on bound B0, hum, bubbles, ambient light, both standard errors in coloured noise, many rates,
and the time of a conversion. `push N WINDOW HUM` only pushes N minutes of conversions, for callgrind: the difference of
two runs is the chain's.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from stirbar.rt.od_arrays import OdChain, choose_half_cycle, chop_price

from .od_twin import VOLTS_PER_CODE, Bench, always_on_bound, run

NOISE_V = 5 * VOLTS_PER_CODE
WINDOWS_S = (0.1, 0.2, 0.5, 1.0, 2.0)


def measure(bench: Bench, window_s: float, skip_s: float, mains_hz: float = 0.0, **light) -> tuple[np.ndarray, float]:
    """Readings after `skip_s`, and B0."""
    chain = OdChain(["signal"], window_s=window_s, mains_hz=mains_hz)
    out = run(chain, [bench.record(**light)], 860)
    return out[out["monotonic_ns"] > (bench.start_s + skip_s) * 1e9], always_on_bound(NOISE_V, bench.rate_hz, window_s)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=float))))


def left_over(light, window_s: float, seconds: float, skip_s: float, mains_hz: float = 0.0, rate=860.0, k=5, seed=3):
    """Half the difference that the sign of `light` makes, rms, in V and in standard errors; the noise is the same."""
    ends = []
    for sign in (1, -1):
        bench = Bench(seconds, rate, k, seed=seed)
        ends.append(measure(bench, window_s, skip_s, mains_hz, light=lambda t, sign=sign: sign * light(t))[0])
    count = min(map(len, ends))
    half = 0.5 * (ends[0]["value"][-count:] - ends[1]["value"][-count:])
    return rms(half), rms(half) / float(np.median(ends[0]["se_instrument"]))


def noise() -> None:
    print("\nwhite noise of 5 codes, 860/s, k 5, 2000 s: sd / B0, sd / se_instrument, sd / se_culture; B1 and B2 / B0")
    for window_s in WINDOWS_S:
        out, bound = measure(Bench(2000, seed=21), window_s, 70)
        sd = out["value"].std()
        price = chop_price(860.0, 5, window_s)
        print(
            f"T {window_s:3} s  {sd / bound:.2f}  {sd / rms(out['se_instrument']):.3f}  "
            f"{sd / rms(out['se_culture']):.3f}  B1 {price['b1_over_b0']:.3f} B2 {price['b2_over_b0']:.3f}"
        )
    print(
        "\nlinear part against B2, and what is published as noise / B0; converters 774-946/s, 50 and 60 Hz +-0.5: worst"
    )
    for window_s in WINDOWS_S:
        prices = [
            chop_price(rate, choose_half_cycle(rate, round(mains, -1)), window_s, mains)
            for rate in np.arange(774.0, 947.0, 4.3)
            for mains in (49.5, 50.0, 50.5, 59.5, 60.0, 60.5)
        ]
        linear = min(price["efficiency_b2"] for price in prices) / 0.98  # without what the rejection of bubbles costs
        print(f"T {window_s} s: {linear:.3f}, {max(price['noise_over_b0'] for price in prices):.2f}")


def hum() -> None:
    print("\nhum of 200/h codes, h 1-6, k for the named mains, 774-946/s: what it leaves, rms; worst of 36 each")
    for nominal in (50, 60):
        for window_s in WINDOWS_S:
            worst: tuple = (0.0,)
            for rate in np.arange(774.0, 947.0, 21.5):
                k = choose_half_cycle(rate, nominal)
                for mains in nominal + np.array([-0.5, -0.2, 0.1, 0.5]):

                    def light(t, mains=mains):
                        return sum(
                            200 * VOLTS_PER_CODE / h * np.cos(2 * np.pi * h * mains * t + h) for h in range(1, 7)
                        )

                    volts, errors = left_over(light, window_s, 60, 25, rate=rate, k=k)
                    decibel = 20 * np.log10(volts / (200 * VOLTS_PER_CODE / np.sqrt(2)))
                    worst = max(worst, (errors, decibel, f"{rate:.0f}/s, {mains:.1f} Hz, k {k}"))
            print(f"{nominal} Hz +-0.5, T {window_s} s: {worst[0]:.2f} se, {worst[1]:.0f} dB ({worst[2]})")


def bubbles() -> None:
    print("\nbubbles from the start of the run, 900 s: bias and sd in units of the clean sd, readings flagged")
    cases = ((0.05, 4, 1), (0.05, 6, 1), (0.05, 6, 12), (0.25, 10, 1), (0.25, 10, 12), (0.1, 40, 20), (0.02, 1, 86))
    for window_s in (0.2, 0.5, 1.0, 2.0):
        clean = measure(Bench(900, seed=3), window_s, 70)[0]["value"].std()
        for share, sigmas, length in cases:

            def spikes(rng, n, share=share, sigmas=sigmas, length=length):
                hit = np.zeros(n, dtype=bool)
                for begin in np.flatnonzero(rng.random(n) < -np.log1p(-share) / length):
                    hit[begin : begin + length] = True
                return np.where(hit, sigmas * NOISE_V, 0.0)

            out = measure(Bench(900, seed=3), window_s, 70, spikes=spikes)[0]
            print(
                f"T {window_s} s, {share:.0%} at {sigmas} sigma in runs of {length}: bias "
                f"{(out['value'].mean() - 0.1) / clean:+.2f}, sd {out['value'].std() / clean:.2f}, "
                f"flagged {((out['flags'] & 4) > 0).mean():.0%}"
            )


def ambient() -> None:
    print("\nambient light of 20 mV (a fifth of the signal) at DC-5 Hz, 774-946/s, k as chosen: the worst that is left")
    for window_s in (0.2, 1.0):
        for frequency in (0.1, 1.0, 2.0, 3.3, 5.0):
            worst: tuple = (-200.0,)
            for rate in np.arange(774.0, 947.0, 21.5):
                for nominal in (0, 50, 60):
                    k = choose_half_cycle(rate, nominal)
                    volts, _ = left_over(
                        lambda t, f=frequency: 0.02 * np.sin(2 * np.pi * f * t),
                        window_s,
                        25,
                        8,
                        float(nominal),
                        rate,
                        k,
                    )
                    worst = max(worst, (20 * np.log10(volts * np.sqrt(2) / 0.02), f"{rate:.0f}/s, {nominal} Hz, k {k}"))
            print(f"T {window_s} s, {frequency} Hz: {worst[0]:.0f} dB ({worst[1]})")
    print("\nambient steps, ten places in the chop period: the worst mean change of a reading, and its spread, in se")
    for window_s in (0.2, 1.0):
        for codes in (1600, 32, 22, 16, 10):
            found = [step_change(window_s, codes * VOLTS_PER_CODE, place) for place in np.arange(0, 1, 0.1)]
            print(
                f"T {window_s} s, {codes} codes: {max(abs(mean) for mean, _ in found):.2f}, "
                f"{max(spread for _, spread in found):.2f}"
            )


def steps() -> None:
    print("\na culture that steps down: error of the first reading whose window began after it, in se, three noises")
    for window_s, rate in ((0.0117, 86.0), (0.1, 20.0), (0.2, 20.0), (0.5, 20.0), (1.0, 20.0), (5.0, 2.0)):
        for share in (0.5, 0.05, 0.01, 0.005, 0.002):
            found = []
            for seed in range(3):
                record = Bench(60, seed=seed).record(shine=lambda t, s=share: np.where(t < 140.003, 1.0, 1.0 - s))
                out = run(OdChain(["signal"], window_s=window_s, readings_per_second=rate), [record], 860)
                error = (out["value"] - 0.1 * (1 - share)) / np.median(out["se_instrument"])
                found.append(error[out["monotonic_ns"] * 1e-9 > 140.028 + window_s][0])
            print(f"T {window_s:g} s, {share:.1%}: {', '.join(f'{error:+.1f}' for error in found)}")


def step_change(window_s: float, volts: float, place: float) -> tuple[float, float]:
    """Light that steps up and down every 2.6 s at a place of the chop period: the largest mean change of readings of an
    age since the step, and the largest spread, in standard errors."""
    cycle_s = 10 / 860
    half_s = round(2.6 / cycle_s) * cycle_s

    def turns(t):
        return (t - 100 - place * cycle_s - 1e-4) / half_s

    seconds = 40 * half_s + 10
    quiet = measure(Bench(seconds, seed=3), window_s, 12)[0]
    out = measure(Bench(seconds, seed=3), window_s, 12, light=lambda t: np.where(np.floor(turns(t)) % 2, volts, 0.0))[0]
    change = (out["value"] - quiet["value"]) / np.median(quiet["se_instrument"])
    at = turns(out["monotonic_ns"] * 1e-9)
    since = (at - np.floor(at)) * half_s
    found = []
    for up in (0, 1):
        for age in np.arange(0.05, window_s + 0.1, 0.1):
            mine = change[(np.floor(at) % 2 == up) & (np.abs(since - age) < 0.05)]
            if len(mine) > 5:
                found.append((float(mine.mean()), float(mine.std())))
    return max(found, key=lambda pair: abs(pair[0]))[0], max(spread for _, spread in found)


def ornstein_uhlenbeck(n: int, tau_s: float, rng: np.random.Generator, rate_hz: float = 860.0) -> np.ndarray:
    """Unit variance, exact: chunks of a geometric series."""
    decay = np.exp(-1 / rate_hz / tau_s)
    kicks = np.sqrt(1 - decay**2) * rng.standard_normal(n)
    powers = decay ** np.arange(64)
    mixing = np.tril(np.array([[powers[i - j] if i >= j else 0.0 for j in range(64)] for i in range(64)]))
    out, last = np.empty(n), 0.0
    for begin in range(0, n, 64):
        part = kicks[begin : begin + 64]
        out[begin : begin + 64] = mixing[: len(part), : len(part)] @ part + last * decay * powers[: len(part)]
        last = out[min(begin + 63, n - 1)]
    return out


def errors() -> None:
    print("\nboth standard errors, 1700 s (1600 independent readings of 1 s): sd / se; noise of the culture 0.3 %")
    n, rng = 1770 * 860, np.random.default_rng(5)
    turn = 2 * np.pi * np.cumsum(8.33 * (1 + 0.01 * ornstein_uhlenbeck(n, 1.2, rng))) / 860
    vortex = 0.003 * np.cos(turn) + 0.002 * np.cos(2 * turn + 1)
    cases = {f"Ornstein-Uhlenbeck {tau} ms": 0.003 * ornstein_uhlenbeck(n, tau * 1e-3, rng) for tau in (20, 60, 120)}
    cases = {"white": np.zeros(n), **cases, "vortex": vortex, "vortex, whole turns": vortex, "bubbles": np.zeros(n)}
    rates = [(10.0, 1.0), (5.0, 0.2), (10.0, 0.1), (0.2, 5.0)]
    for name, shine in cases.items():
        ends = []
        for seed in (1, 2):
            chain = OdChain(["signal"], slower=rates[1:])
            chain.turn(1 / 8.33 if "whole" in name else 0.0)
            spikes = (lambda g, n: np.where(g.random(n) < 0.05, 6 * NOISE_V, 0.0)) if name == "bubbles" else None
            bench = Bench(1770, seed=seed)
            record = bench.record(shine=lambda t, shine=shine: 1 + shine[: len(t)], spikes=spikes)
            out = run(chain, [record], 8600)
            ends.append(out[out["monotonic_ns"] > 170e9])
        for stream, (_, window_s) in zip((1, 32, 36, 40), rates, strict=True):
            a, b = (out[out["stream"] == stream] for out in ends)
            count = min(len(a), len(b))
            noise_v = float((a["value"][-count:] - b["value"][-count:]).std() / np.sqrt(2))
            culture = float(np.sqrt((a["value"].var() + b["value"].var()) / 2))
            print(
                f"{name}, T {window_s} s: instrument {noise_v / rms(a['se_instrument']):.2f}, "
                f"culture {culture / rms(a['se_culture']):.2f} (of {culture / noise_v:.1f} times the light's)"
            )


def rates() -> None:
    print("\nrates from one reading per chop period to one in 100 s, from the same light, 4000 s: sd / B0, sd / se")
    record = Bench(4000, seed=9).record()
    for first, slower in (
        ((86.0, 0.0117), [(10.0, 0.1), (2.0, 0.5)]),
        ((10.0, 1.0), [(0.2, 5.0), (0.05, 20.0), (0.01, 100.0)]),
    ):
        chain = OdChain(["signal"], readings_per_second=first[0], window_s=first[1], slower=slower)
        out = run(chain, [record], 8600)
        for stream, (rate, window_s) in zip((1, 32, 36, 40), [first, *slower], strict=False):
            mine = out[(out["stream"] == stream) & (out["monotonic_ns"] > (170 + window_s) * 1e9)]
            bound = always_on_bound(NOISE_V, 860, float(np.median(mine["window_s"])))
            sd = mine["value"].std()
            print(
                f"{rate:g}/s, T {window_s:g} s: {len(mine)} readings, sd / B0 {sd / bound:.2f}, se_instrument / B0 "
                f"{rms(mine['se_instrument']) / bound:.2f}, sd / se {sd / rms(mine['se_instrument']):.2f}"
            )


def speed() -> None:
    print("\ntime of a conversion, ns, best of 7: T 1 and 5 s, without and with hum")
    for window_s in (1.0, 5.0):
        for level in (0.0, 20.0):
            record = Bench(60).record(hum={50.1 * h: level * VOLTS_PER_CODE / h for h in range(1, 7)} if level else {})
            times = []
            for _ in range(7):
                chain = OdChain(["signal"], window_s=window_s)
                chain.gain(0, VOLTS_PER_CODE)
                chain.clock(0, 0, record.t0_ns, record.period_ns)
                begin = time.perf_counter()
                chain.push(0, record.index, record.code, record.phase, record.clipped)
                times.append(time.perf_counter() - begin)
            print(f"T {window_s} s, hum {level:.0f} codes: {min(times) / len(record.index) * 1e9:.0f}")


def push(minutes: int, window_s: float, level: float) -> None:
    record = Bench(60).record(hum={50.1 * h: level * VOLTS_PER_CODE / h for h in range(1, 7)} if level else {})
    whole = len(record.index) // 10 * 10  # whole chop periods
    chain = OdChain(["signal"], window_s=window_s)
    chain.gain(0, VOLTS_PER_CODE)
    chain.clock(0, 0, record.t0_ns, record.period_ns)
    for minute in range(minutes):
        index = record.index[:whole] + np.uint32(minute * whole)
        chain.push(0, index, record.code[:whole], record.phase[:whole], record.clipped[:whole])


PARTS = {part.__name__: part for part in (noise, hum, bubbles, ambient, steps, errors, rates, speed)}

if __name__ == "__main__":
    if sys.argv[1:2] == ["push"]:
        push(int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
    else:
        for name in sys.argv[1:] or PARTS:
            PARTS[name]()
