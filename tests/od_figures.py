"""The figures of docs/optical-density.md: `PYTHONPATH=build/view python -m tests.od_figures [noise|hum|...]`.

Noise against the always-on bound B0, hum, bubbles, an ambient step, and the time of a conversion. `push N WINDOW HUM`
only pushes N minutes of conversions, for callgrind: the difference of two runs is the chain's.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from stirbar.rt.od_arrays import OdChain, choose_half_cycle

from .od_twin import VOLTS_PER_CODE, Bench, always_on_bound, run

NOISE_V = 5 * VOLTS_PER_CODE


def measure(bench: Bench, window_s: float, skip_s: float, **light) -> tuple[np.ndarray, float]:
    """Readings after `skip_s`, and B0."""
    out = run(OdChain(["signal"], window_s=window_s), [bench.record(**light)], 860)
    return out[out["monotonic_ns"] > (bench.start_s + skip_s) * 1e9], always_on_bound(NOISE_V, bench.rate_hz, window_s)


def noise() -> None:
    print("\nwhite noise of 5 codes, 860/s, k 5, 2000 s: sd / B0, and sd / se_instrument, sd / se_culture")
    for window_s in (0.1, 0.2, 0.5, 1.0, 2.0):
        out, bound = measure(Bench(2000, seed=21), window_s, 70)
        sd = out["value"].std()
        culture = np.sqrt(np.mean(out["se_culture"].astype(float) ** 2))
        print(f"T {window_s:3} s  {sd / bound:.2f}  {sd / np.median(out['se_instrument']):.3f}  {sd / culture:.3f}")


def hum() -> None:
    print("\nhum, harmonics 1-6 of 200/h codes, T 1 s, k for the named mains: worst sd / B0, worst bias / B0")
    for nominal in (50, 60):
        worst_sd = worst_bias = 0.0
        for rate in np.arange(774.0, 947.0, 8.6):
            k = choose_half_cycle(rate, nominal)
            for mains in nominal + np.array([-0.5, -0.2, 0.1, 0.5]):
                lines = {h * mains: 200 * VOLTS_PER_CODE / h for h in range(1, 7)}
                out, bound = measure(Bench(100, rate, k, seed=3), 1.0, 25, hum=lines)
                sd = out["value"].std() / bound
                if sd > worst_sd:
                    worst_sd, where = sd, f"{rate:.0f}/s, {mains:.1f} Hz, k {k}"
                worst_bias = max(worst_bias, abs(out["value"].mean() - 0.1) / bound)
        print(f"{nominal} Hz +-0.5: {worst_sd:.2f} ({where}), bias {worst_bias:.2f}")


def bubbles() -> None:
    print("\nbubbles from the start of the run, 400 s: bias and sd in units of the clean sd")
    for window_s in (0.2, 1.0):
        clean = measure(Bench(400, seed=3), window_s, 10)[0]["value"].std()
        for share, sigmas, length in ((0.05, 4, 1), (0.05, 6, 1), (0.25, 10, 1), (0.1, 40, 20)):

            def spikes(rng, n, share=share, sigmas=sigmas, length=length):
                hit = np.zeros(n, dtype=bool)
                for begin in np.flatnonzero(rng.random(n) < share / length):
                    hit[begin : begin + length] = True
                return np.where(hit, sigmas * NOISE_V, 0.0)

            value = measure(Bench(400, seed=3), window_s, 10, spikes=spikes)[0]["value"]
            print(
                f"T {window_s} s, {share:.0%} at {sigmas} sigma in runs of {length}: "
                f"bias {(value.mean() - 0.1) / clean:+.2f}, sd {value.std() / clean:.2f}"
            )


def ambient() -> None:
    print("\nambient step of half the signal, T 0.2 and 1 s: largest change of a reading, in se")
    for window_s in (0.2, 1.0):
        step, _ = measure(Bench(40), window_s, 10, light=lambda t: np.where(t > 120.003, 0.05, 0.0))
        quiet, _ = measure(Bench(40), window_s, 10)
        change = np.abs(step["value"] - quiet["value"]).max() / np.median(quiet["se_instrument"])
        print(f"T {window_s} s  {change:.2f}")


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


PARTS = {part.__name__: part for part in (noise, hum, bubbles, ambient, speed)}

if __name__ == "__main__":
    if sys.argv[1:2] == ["push"]:
        push(int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
    else:
        for name in sys.argv[1:] or PARTS:
            PARTS[name]()
