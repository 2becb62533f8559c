"""A converter with six ranges that disagree, under a chopped light: what the gain ranging has to live with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from stirbar.rt import pilot_arrays as pa
from stirbar.rt.od_arrays import OdChain

FULL_SCALES_V = (6.144, 4.096, 2.048, 1.024, 0.512, 0.256)
NOISE_UV = (430.1, 266.9, 118.6, 64.3, 40.2, 35.8)  # peak to peak at 860/s (SBAS444, table 1)
OFF, ON, EDGE = 0, 1, 2
PERIOD_NS = 1e9 / 860


@dataclass
class Bench:
    """Ticks of a sampler that asks for a conversion as soon as it is ready, and chops at k."""

    signal_v: Callable[[float], float]  # of the light while on, by seconds
    ambient_v: Callable[[float], float] = lambda _: 0.02
    gain_error_percent: float = 0.15
    offset_codes: float = 3.0
    modulation: float = 0.0  # of the culture, relative, Ornstein-Uhlenbeck of 60 ms
    full_scale_v: float | None = None
    half_cycle: int = 5
    seed: int = 1
    readings: list = field(default_factory=list)
    ranges: list = field(default_factory=list)  # (seconds, full scale) of each fresh range
    told: list = field(default_factory=list)  # (seconds, bits)
    clipped: int = 0
    blind_s: float = float("nan")  # the first time that two conversions in a row clipped
    lost: int = 0  # conversions that the estimator did not get, beyond the edges

    def run(self, seconds: float) -> Bench:
        rng = np.random.default_rng(self.seed)
        errors = self.gain_error_percent / 100 * np.array([1, -1, 1, -1, 1, -1]) * rng.uniform(0.5, 1, 6)
        offsets = rng.uniform(-1, 1, 6) * self.offset_codes
        self.errors = errors
        chain = pa.GainChain(self.full_scale_v)
        od = OdChain(["signal"], [90], window_s=1.0, readings_per_second=10.0, mains_hz=50.0)
        od.clock(0, 0, 0, PERIOD_NS)
        od.led(80.0)
        od.gain(0, chain.volts_per_code)
        setting = following = FULL_SCALES_V.index(chain.full_scale_v)
        lit = False
        since = 0
        noise = 0.0
        change = None  # of the light, within the next conversion: (share after it, on)
        self.chain = chain
        clipped_before = False
        pending: list[tuple[int, int, int, bool]] = []
        normal = rng.standard_normal((int(seconds * 860), 2))
        keep = np.exp(-PERIOD_NS * 1e-9 / 0.06)
        spread = self.modulation * np.sqrt(1 - keep * keep)
        for index in range(int(seconds * 860)):
            now = (index + 1) * PERIOD_NS * 1e-9
            noise = keep * noise + spread * normal[index, 0]
            share = float(lit)
            phase = ON if lit else OFF
            if change is not None:
                share = change[0] if change[1] else 1 - change[0]
                phase, lit, change = EDGE, change[1], None
            volts = self.ambient_v(now) + share * self.signal_v(now) * (1 + noise)
            volts += 1e-6 * NOISE_UV[setting] / 6.6 * normal[index, 1]
            code = volts * (1 + errors[setting]) / FULL_SCALES_V[setting] * 32768 + offsets[setting]
            clip = not -32768 <= round(code) <= 32767
            code = max(-32768, min(32767, round(code)))
            setting = following
            # the tick of this conversion
            self.clipped += clip
            if clip and clipped_before and np.isnan(self.blind_s):
                self.blind_s = now
            clipped_before = clip
            begin, end = int(index * PERIOD_NS), int((index + 1) * PERIOD_NS)
            admitted = chain.admit(begin, end)
            if admitted == pa.GAIN_FRESH:
                self.readings += list(od.push(0, *zip(*pending, strict=True)))
                pending = []
                od.gain(0, chain.volts_per_code)
                self.ranges.append((now, chain.full_scale_v))
            seen = EDGE if admitted == pa.GAIN_FOREIGN else phase
            self.lost += seen != phase
            pending.append((index, code, seen, clip))
            act = chain.conversion(code, clip, phase)
            since += 1
            toggles = since >= self.half_cycle and not chain.holds_light
            if toggles and not lit:
                act |= chain.chop()
            if act & pa.GAIN_LIGHT_OFF and lit:
                change, since = (0.6, False), 0
            elif toggles and not act & pa.GAIN_LIGHT_OFF:
                change, since = (0.6, not lit), 0
            if act & pa.GAIN_WRITE:
                following = FULL_SCALES_V.index(chain.full_scale_v)
                chain.written(end + int(0.1 * PERIOD_NS), end + int(0.7 * PERIOD_NS))
            if act & ~pa.GAIN_WRITE:
                self.told.append((now, act))
        self.readings += list(od.push(0, *zip(*pending, strict=True)))
        return self

    def values(self, low_s: float = 0.0, high_s: float = 1e9) -> np.ndarray:
        readings = np.array(self.readings)
        time = readings["monotonic_ns"] * 1e-9
        return readings[(time >= low_s) & (time < high_s)]
