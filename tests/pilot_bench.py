"""A free-running converter without a ready line, its light and a thread that is late: what the pilot has to live with.

Time is continuous and known here; the pilot sees latch times, codes and its own writes. Run as a script it prints the
table of docs/converter-clock.md.
"""

from __future__ import annotations

import bisect
import sys
from dataclasses import dataclass, field

import numpy as np
from stirbar.rt import pilot_arrays

MS = 1e6


@dataclass
class Board:
    """What is true, in ns, codes and seconds; the pilot knows `nominal_hz` and `settle_ns` only."""

    nominal_hz: float = 860.0
    rate_error: float = 0.0
    drift_per_s: float = 0.0  # of the rate
    wobble: float = 0.0  # of the rate, amplitude of a slow sine
    wobble_s: float = 60.0
    swing: float = 8000.0  # codes, on minus off
    noise: float = 1.0  # codes
    hum: float = 0.0  # codes at 50.03 Hz
    bubbles_per_s: float = 0.0
    step_s: float = 0.0  # ambient light steps by half a swing, each so many seconds
    tau_ns: float = 0.0
    settle_ns: int = 0
    read_ns: float = 0.29 * MS
    write_ns: float = 0.37 * MS
    edge_jitter_ns: tuple[float, float] = (20e3, 60e3)
    late_ns: float = 17e3  # mean lateness of a wake-up, exponential
    late_often: float = 0.01  # of the wake-ups are 0.1 ms late and more, exponentially to 1 ms at most
    jump: tuple[float, float] = (1e9, 0.0)  # at so many seconds all later ends come so many periods later
    dark: tuple[float, float] = (1e9, 1e9)  # seconds between which the light is not switched
    half_cycle: int = 5
    seed: int = 1


@dataclass
class Run:
    """What came of it."""

    lock_s: float = float("nan")
    time_s: list[float] = field(default_factory=list)
    phase_ns: list[float] = field(default_factory=list)  # clock minus truth, modulo a period
    rate_error: list[float] = field(default_factory=list)
    captured: int = 0
    made: int = 0
    misnumbered: int = 0
    relocks: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    fractions: list[float] = field(default_factory=list)
    end_sd_ns: list[float] = field(default_factory=list)

    @property
    def capture(self) -> float:
        return self.captured / self.made if self.made else 0.0


class World:
    """The converter's conversions and their codes, made as time goes by."""

    def __init__(self, board: Board, seconds: float) -> None:
        self.board = board
        self.rng = np.random.default_rng(board.seed)
        count = int(seconds * board.nominal_hz * 1.3) + 100
        about_s = np.arange(count) / board.nominal_hz
        rate = board.nominal_hz * (
            1
            + board.rate_error
            + board.drift_per_s * about_s
            + board.wobble * np.sin(2 * np.pi * about_s / board.wobble_s)
        )
        self.period_ns = 1e9 / rate
        self.end_ns = self.rng.uniform(0, 1.2) * MS + np.cumsum(self.period_ns)
        self.end_ns[self.end_ns > 1e9 * board.jump[0]] += board.jump[1] * self.period_ns[0]
        self.noise = board.noise * self.rng.standard_normal(count)
        phase = 2 * np.pi * 50.03e-9 * self.end_ns
        self.noise += board.hum * np.sin(phase)
        if board.step_s:
            self.noise += 0.5 * board.swing * (((1e-9 * self.end_ns) // board.step_s) % 2)
        if board.bubbles_per_s:
            hit = self.rng.uniform(size=count) < board.bubbles_per_s / board.nominal_hz
            size = np.where(hit, self.rng.exponential(0.3, count), 0.0)
            size += np.roll(size, 1) * 0.6
            self.noise += board.swing * size
        self.codes: list[int] = []
        self.edges: list[float] = []  # true instants
        self.light = 0.0  # after settling, at the end of the newest conversion
        self.consumed = 0  # edges before it

    def code_at(self, now_ns: float) -> tuple[int, int]:
        """(number, code) of the newest conversion that has ended."""
        last = bisect.bisect_right(self.end_ns, now_ns) - 1
        while len(self.codes) <= last:
            self._convert(len(self.codes))
        return last, self.codes[last] if last >= 0 else 0

    def _convert(self, number: int) -> None:
        end = self.end_ns[number]
        period = self.period_ns[number]
        at, area, tau = end - period, 0.0, self.board.tau_ns
        while True:
            level = float(self.consumed % 2)
            more = self.consumed < len(self.edges) and self.edges[self.consumed] < end
            until = max(self.edges[self.consumed], at) if more else end
            length = until - at
            if tau:
                settled = level + (self.light - level) * np.exp(-length / tau)
                area += level * length - tau * (settled - self.light)
                self.light = settled
            else:
                area += level * length
            at = until
            if not more:
                break
            self.consumed += 1
        self.codes.append(int(np.floor(self.board.swing * area / period + self.noise[number] + 0.5)))


def late(board: Board, rng: np.random.Generator) -> float:
    if rng.uniform() < board.late_often:
        return min(0.1 * MS + rng.exponential(0.15 * MS), 1.0 * MS)
    return 20e3 + rng.exponential(board.late_ns)


def run(board: Board, seconds: float, every: int = 20) -> Run:
    """A thread that does what the sampling thread does: reads when the pilot wants, and chops by its numbers."""
    world = World(board, seconds + 1)
    rng = np.random.default_rng(board.seed + 1000)
    chain = pilot_arrays.PilotChain(board.nominal_hz, board.settle_ns, 0)
    out = Run()
    now, toggled, offset, was_locked, last_true = 0.0, 0, None, False, -1
    while now < seconds * 1e9:
        chops = chain.locked and chain.index + 1 - toggled >= board.half_cycle
        now = max(now + 5e3, min(chain.next_ns(int(board.write_ns) if chops else 0), chain.next_edge_ns))
        now += late(board, rng)
        dark = board.dark[0] <= now * 1e-9 < board.dark[1]
        if chops:
            toggled = chain.index + 1
        if (chops or now >= chain.next_edge_ns) and not dark:
            before = now
            happened = now + rng.uniform(5e3, 15e3) + board.write_ns
            world.code_at(happened - 1)  # conversions that ended before know nothing of it
            world.edges.append(happened)
            now = happened + rng.uniform(*board.edge_jitter_ns)
            chain.edge(int(before + board.write_ns), int(now))
        latch = now + rng.uniform(10e3, 30e3)
        true, code = world.code_at(latch)
        said = chain.read(int(latch), code)
        now = latch + board.read_ns
        if chain.locked and not was_locked:
            out.lock_s = now * 1e-9 if out.lock_s != out.lock_s else out.lock_s
            toggled, offset = chain.index, None
        was_locked = chain.locked
        if said == pilot_arrays.NEW:
            offset = (chain.index - true) if offset is None else offset
            if chain.index - true != offset:
                out.misnumbered += 1
                offset = chain.index - true
            if last_true >= 0:
                out.made += true - last_true
                out.captured += 1
            last_true = true
            if world.edges and chain.index % every == 0:
                error = chain.end_ns(chain.index) - world.end_ns[true]
                out.time_s.append(now * 1e-9)
                out.phase_ns.append(error)
                out.end_sd_ns.append(chain.end_sd_ns)
                out.rate_error.append(world.period_ns[true] / chain.period_ns - 1)
    out.counters = chain.counters()
    out.relocks = out.counters["locks"] - 1
    return out


def figures(board: Board, seconds: float) -> str:
    """One line of the table: the lock, then phase about its mean and the rate after 1 s and after 10 s."""
    result = run(board, seconds, every=5)
    time = np.array(result.time_s) - (result.lock_s if result.lock_s == result.lock_s else 0)
    phase, rate = np.array(result.phase_ns), np.array(result.rate_error)
    parts = [f"{1e3 * result.lock_s:6.0f} ms"]
    for low, high in ((0.7, 1.3), (seconds - 5, seconds)):
        inside = (time >= low) & (time < high)
        if inside.sum() < 3:
            parts.append("      -")
            continue
        parts.append(
            f"{1e-3 * np.mean(phase[inside]):6.1f} us {1e-3 * np.std(phase[inside]):5.1f} us "
            f"{1e6 * np.sqrt(np.mean(rate[inside] ** 2)):6.2f} ppm"
        )
    parts.append(f"{100 * result.capture:8.3f} %  misnumbered {result.misnumbered}  relocks {result.relocks}")
    return "  ".join(parts)


CAMPAIGN = {
    "strong light": {},
    "swing 32": {"swing": 32},
    "swing 16": {"swing": 16},
    "swing 12": {"swing": 12},
    "swing 8": {"swing": 8},
    "hum 0.1": {"swing": 320, "hum": 32},
    "hum 0.3": {"swing": 320, "hum": 96},
    "40 bubbles/s": {"bubbles_per_s": 40},
    "steps 16/s": {"step_s": 0.06},
    "read in 0.6 ms": {"read_ns": 0.62 * MS},
}


def campaign(runs: int) -> None:
    """How long the lock takes, and whether it is the right one, at any rate within 10 % and k from 4 to 9."""
    rng = np.random.default_rng(5)
    print(f"{'':16s}lock p50, p95, longest   never  wrong rate  captured")
    for name, board in CAMPAIGN.items():
        results = [
            run(
                Board(rate_error=rng.uniform(-0.1, 0.1), half_cycle=int(rng.integers(4, 10)), seed=100 + i, **board),
                1.5,
            )
            for i in range(runs)
        ]
        lock = 1e3 * np.array([result.lock_s for result in results])
        wrong = sum(bool(result.rate_error) and abs(result.rate_error[0]) > 0.02 for result in results)
        captured = 100 * sum(r.captured for r in results) / max(1, sum(r.made for r in results))
        never = int(np.isnan(lock).sum())
        p50, p95, longest = np.nanpercentile(lock, [50, 95, 100]) if never < runs else [np.nan] * 3
        print(f"{name:16s}{p50:5.0f} {p95:5.0f} {longest:5.0f} ms {never:8d} {wrong:8d} {captured:12.3f} %", flush=True)


def main() -> None:
    rows = [("nominal", Board())]
    rows += [(f"clock {100 * e:+.0f} %", Board(rate_error=e)) for e in (-0.1, -0.05, 0.05, 0.1)]
    rows += [(f"swing {s} codes", Board(swing=s)) for s in (320, 32, 24, 20, 16, 12, 8)]
    rows += [
        ("hum a tenth of the swing", Board(swing=320, hum=32)),
        ("5 bubbles/s", Board(bubbles_per_s=5)),
        ("40 bubbles/s", Board(bubbles_per_s=40)),
        ("ambient steps each 0.5 s", Board(step_s=0.5)),
        ("settling 0.1 ms", Board(tau_ns=1e5, settle_ns=690_000)),
        ("rate drifts 1 ppm/s", Board(drift_per_s=1e-6)),
        ("rate drifts 10 ppm/s", Board(drift_per_s=1e-5)),
        ("rate drifts 100 ppm/s", Board(drift_per_s=1e-4)),
        ("rate +-10 % in 10 min", Board(wobble=0.1, wobble_s=600)),
        ("rate +-10 % in 60 s", Board(wobble=0.1)),
        ("400 kHz bus", Board(read_ns=0.09 * MS, write_ns=0.1 * MS)),
        ("no late wake-ups", Board(late_often=0.0)),
        ("1 in 20 late to 1 ms", Board(late_often=0.05)),
    ]
    print(f"{'':26s}{'lock':>9s}  {'1 s: offset, sd, rate':>28s}  {'end: offset, sd, rate':>28s}  captured")
    for name, board in rows:
        print(f"{name:26s}{figures(board, 15.0)}", flush=True)


if __name__ == "__main__":
    campaign(int(sys.argv[2])) if sys.argv[1:2] == ["--locks"] else main()
