"""The OD chain (demodulation, mains, bubbles, reference) and its robust estimators, on NumPy arrays."""

import numpy as np
from stirbar.rt.od_arrays import MainsTracker, OdChain, median, tukey_mean

RATE_HZ = 860.0
SECONDS = 10
HALF_CYCLE = 8


class Chain:
    """Two photodiodes, chopped, with hum and noise."""

    items = int(SECONDS * RATE_HZ) * 2

    def setup(self):
        count = self.items // 2
        index = np.repeat(np.arange(count, dtype=np.uint32), 2)
        on = index // HALF_CYCLE % 2
        phase = np.where(index % HALF_CYCLE == 0, 2, on).astype(np.uint8)
        noise = np.random.default_rng(1).normal(0.0, 8.0, self.items)
        hum = 30.0 * np.sin(2 * np.pi * 50.0 * index / RATE_HZ)
        self.trace = {
            "channel": np.tile(np.array([0, 1], dtype=np.uint8), count),
            "index": index,
            "code": (1000 + 6000 * on + hum + noise).astype(np.int32),
            "phase": phase,
        }

    def time_push(self):
        chain = OdChain(["reference", "signal"], (0, 90))
        for channel in (0, 1):
            chain.gain(channel, 1.024 / 32768)
            chain.clock(channel, 0, 1_000_000_000, 1e9 / RATE_HZ)
        chain.led(80.0)
        if len(chain.push(**self.trace)) < SECONDS * 5:
            raise RuntimeError("the chain made too few readings")


class Mains:
    items = int(SECONDS * RATE_HZ)

    def setup(self):
        self.values = np.sin(2 * np.pi * 50.0 * np.arange(self.items) / RATE_HZ)
        self.learn = np.arange(self.items) // HALF_CYCLE % 2

    def time_push(self):
        MainsTracker(50.0).push(self.values, self.learn, 1e9 / RATE_HZ)


class Robust:
    """One window's worth of differences, with a twentieth of them outliers."""

    items = 108

    def setup(self):
        rng = np.random.default_rng(2)
        self.values = rng.normal(0.3, 0.001, self.items)
        self.values[::20] += 0.05

    def time_tukey_mean(self):
        tukey_mean(self.values, 0.001)

    def time_median(self):
        median(self.values)
