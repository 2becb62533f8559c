"""The arithmetic of the self-tests: means, correlations, and lines in unevenly spaced conversions.

Synchronization: pure.
"""

from __future__ import annotations

import math

from stirbar.core.self_test_bench import OFF, ON

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stirbar.core.self_test_bench import Samples

# A vortex modulates as the speed squared; at 500 rpm it is hard to see in clear medium.
STIRRED_RPM = tuple(float(rpm) for rpm in range(750, 1051, 10))
MAINS_HARMONICS, CHOP_HARMONICS = 4, 6
OUTLIER = 4.0
MAINS_HZ = (50.0, 60.0)
PART_SAMPLES = 50
PARTS = 8  # of the time, each with an amplitude and phase of its own
# |mean|^2 over its error squared: noise alone is beyond it once in 10 000, as F(2, 14); a lamp's line has another phase
# in each part
LINE_OVER_ERROR = 19.0
HIDDEN = 0.01  # a modulation as usual; what cannot be told from noise below it says nothing of a bar
SEEN_V = 0.0005  # less light than this tells nothing
HARMONICS = [1.0, 2.0]


def difference_v(samples: Samples | None) -> float:
    """Lit less dark, without outliers; NaN without conversions of both."""
    return mean(kept_of(samples.under(ON)[1])) - mean(kept_of(samples.under(OFF)[1])) if samples else math.nan


def mean(values: list[float]) -> float:
    """NaN for none."""
    return sum(values) / len(values) if values else math.nan


def variance(values: list[float]) -> float:
    """NaN for fewer than two."""
    middle = mean(values)
    return sum((value - middle) ** 2 for value in values) / (len(values) - 1) if len(values) > 1 else math.nan


def correlation(x: list[float], y: list[float]) -> float:
    """Pearson's r; NaN where one of the two does not vary."""
    mx, my = mean(x), mean(y)
    product = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    spread = math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))
    return product / spread if spread > 0.0 else math.nan


def _hann(position: list[float]) -> list[float]:
    """Weights that fall to nothing at both ends: a line far away does not reach over."""
    first, span = position[0], max(position[-1] - position[0], 1e-9)
    return [0.5 - 0.5 * math.cos(2.0 * math.pi * (one - first) / span) for one in position]


def phasors(position: list[float], values: list[float], frequencies: list[float]) -> list[complex]:
    """Sinusoids in unevenly spaced samples, with amplitude and phase; frequencies are per unit of position. NaN without
    samples."""
    if len(values) < 3:
        return [complex(math.nan, math.nan) for _ in frequencies]
    weights = _hann(position)
    total = sum(weights)
    middle = sum(w * value for w, value in zip(weights, values, strict=True)) / total
    weighted = [w * (value - middle) for w, value in zip(weights, values, strict=True)]
    found = []
    for frequency in frequencies:
        turn = 2.0 * math.pi * frequency
        real = sum(v * math.cos(turn * at) for v, at in zip(weighted, position, strict=True))
        imaginary = sum(v * math.sin(turn * at) for v, at in zip(weighted, position, strict=True))
        found.append(2.0 * complex(real, imaginary) / total)
    return found


def lines(position: list[float], values: list[float], frequencies: list[float]) -> list[float]:
    """Amplitudes of sinusoids, as `phasors`."""
    return [abs(one) for one in phasors(position, values, frequencies)]


def in_seconds(time_ns: list[int]) -> list[float]:
    """From the first on."""
    return [1e-9 * (at - time_ns[0]) for at in time_ns]


def quiet_rpm(chop_hz: float) -> float:
    """The speed of STIRRED_RPM at which, once and twice per turn, chopped light shows least of mains and lamps."""
    if not chop_hz > 0.0:
        return STIRRED_RPM[len(STIRRED_RPM) // 2]
    folded = {
        abs(nominal * harmonic - chop * chop_hz)
        for nominal in MAINS_HZ
        for harmonic in range(1, MAINS_HARMONICS + 1)
        for chop in range(CHOP_HARMONICS + 1)
    }

    def distance(rpm: float) -> float:
        return min(abs(turns * rpm / 60.0 - hertz) for turns in HARMONICS for hertz in folded)

    return max(STIRRED_RPM, key=distance)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def kept_of(values: list[float]) -> list[float]:
    """Without what stands out by more than OUTLIER robust deviations: bubbles."""
    if not values:
        return values
    middle = _median(values)
    limit = OUTLIER * 1.4826 * _median([abs(value - middle) for value in values])
    return [value for value in values if abs(value - middle) <= limit]


def modulation_of(samples: Samples, edges_ns: list[int]) -> float:
    """Amplitude at once and twice per turn over lit less dark, where it stands out of the noise beside; infinite where
    that hides even a usual one, NaN without light or turns."""
    time_ns, volts = samples.under(ON)
    signal_v = difference_v(samples)
    if len(edges_ns) < 20 or not abs(signal_v) >= SEEN_V:
        return math.nan
    by_turn: dict[int, list[tuple[float, float]]] = {}
    edge = 0
    for at, value in zip(time_ns, volts, strict=True):
        while edge + 2 < len(edges_ns) and edges_ns[edge + 1] <= at:
            edge += 1
        if edges_ns[edge] <= at < edges_ns[edge + 1]:
            position = edge + (at - edges_ns[edge]) / (edges_ns[edge + 1] - edges_ns[edge])
            by_turn.setdefault(edge, []).append((position, value))
    # the mean of a turn shows a bubble, and neither lamp nor stirrer
    means = {turn: mean([value for _, value in seen]) for turn, seen in by_turn.items()}
    allowed = set(kept_of(list(means.values())))
    marred = {near for turn, level in means.items() if level not in allowed for near in (turn - 1, turn, turn + 1)}
    quiet = [one for turn, seen in by_turn.items() if turn not in marred for one in seen]
    count = len(edges_ns)
    found: list[list[complex]] = []
    for part in range(PARTS):
        inside = [one for one in quiet if part * count <= one[0] * PARTS < (part + 1) * count]
        if len(inside) >= PART_SAMPLES:
            found.append(phasors([position for position, _ in inside], [value for _, value in inside], HARMONICS))
    if len(found) < PARTS // 2:
        return math.nan
    power = hidden = 0.0
    for harmonic in range(len(HARMONICS)):
        seen = [one[harmonic] for one in found]
        middle = sum(seen) / len(seen)
        error2 = sum(abs(one - middle) ** 2 for one in seen) / (len(seen) * (len(seen) - 1))
        power += abs(middle) ** 2 if abs(middle) ** 2 > LINE_OVER_ERROR * error2 else 0.0
        hidden = max(hidden, math.sqrt(LINE_OVER_ERROR * error2))
    if not power and hidden > HIDDEN * abs(signal_v):
        return math.inf
    return math.sqrt(power) / abs(signal_v)
