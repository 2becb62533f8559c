"""`stirbar bench loop`: the real loop, its threads and the simulated hardware, beside cyclictest.

Slices alternate: the undisturbed loop, cyclictest with two threads at the same two periods and the same priority, the
loop with a busy Python thread in its process, and, where processes are named, the loop while those are stopped. Each
contender's figure is the median over its slices, and what counts are ratios: the machine may be noisy, but it is noisy
for all.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

from stirbar.core import events
from stirbar.core.bench import BenchError, Result, Row, parser_for, positive, worker_config
from stirbar.core.jobs import ACTUATORS, SAMPLING
from stirbar.rt.loop import Loop

THREADS = {"sampling": (SAMPLING, "stirbar-sample"), "actuators": (ACTUATORS, "stirbar-act")}
PERCENTILES = {"p50": 0.5, "p99": 0.99, "p99_9": 0.999}
CYCLICTEST_RATIO = 1.1
DISTURBED_RATIO = 1.3
SETTLE_S = 0.3
DRAIN_S = 0.02
HISTOGRAM_US = 30_000  # cyclictest counts what is later than this without saying how late
QUIET, REFERENCE, BUSY, STOPPED = "undisturbed", "cyclictest", "busy Python thread", "processes stopped"

Bins = list[tuple[float, float, int]]  # from ns, to ns, count; in order


class Tuned:
    """A configuration with some values that the schema would not allow: rates for measuring, not for use."""

    def __init__(self, config: Any, values: dict[tuple[str, str], Any]) -> None:
        self.config = config
        self.values = values

    def get(self, section: str, key: str) -> Any:
        if (section, key) in self.values:
            return self.values[section, key]
        return self.config.get(section, key)

    def vial(self) -> dict[str, float]:
        found: dict[str, float] = self.config.vial()
        return found

    def items(self) -> Iterator[tuple[str, str, Any]]:
        for section, key, value in self.config.items():
            yield section, key, self.values.get((section, key), value)


def quantile(bins: Bins, fraction: float) -> float:
    """The value below which a fraction of the counts lies, ns, even within a bin; NaN without counts."""
    total = sum(count for _, _, count in bins)
    wanted = fraction * total
    passed = 0
    for low, high, count in bins:
        if count and passed + count >= wanted:
            return low + (high - low) * (wanted - passed) / count
        passed += count
    return math.nan


def difference(after: Any, before: Any) -> Bins:
    """What a histogram of the loop gained between two looks."""
    earlier = {low: count for low, _, count in before}
    return [(float(low), float(high), count - earlier.get(low, 0)) for low, high, count in after]


def thread_faults() -> dict[str, int]:
    """Minor and major page faults of the loop's threads so far, by name."""
    faults = {}
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/stat") as file:
                name, rest = file.read().split("(", 1)[1].rsplit(")", 1)
        except OSError:
            continue
        fields = rest.split()
        faults[name] = int(fields[7]) + int(fields[9])
    return faults


@contextmanager
def busy_python() -> Iterator[None]:
    """A thread that holds the GIL whenever it can."""
    running = True

    def spin() -> None:
        number = 0
        while running:
            number += 1

    thread = threading.Thread(target=spin, name="busy")
    thread.start()
    try:
        yield
    finally:
        running = False
        thread.join()


@contextmanager
def stopped(processes: Sequence[int]) -> Iterator[None]:
    """Processes under SIGSTOP; they go on at the end, whatever happens."""
    halted: list[int] = []
    try:
        for process in processes:
            os.kill(process, signal.SIGSTOP)
            halted.append(process)
        yield
    finally:
        for process in halted:
            os.kill(process, signal.SIGCONT)


@contextmanager
def undisturbed() -> Iterator[None]:
    """The slice in which nothing else runs."""
    yield


def start_everything(loop: Loop, config: Any) -> None:
    """Let the loop sample, stir and read the temperature, as a worker's jobs do."""
    loop.push(SAMPLING, 1, events.COMMAND_OD_START, 0, 0, config.get("od_reading.config", "ir_led_intensity"))
    loop.push(SAMPLING, 2, events.COMMAND_TEMPERATURE, 0, 0, 1.0)
    loop.push(ACTUATORS, 3, events.COMMAND_STIR_RPM, 0, 0, config.get("stirring.config", "initial_target_rpm"))


def drain_for(loop: Loop, seconds: float) -> None:
    """Play the host thread: empty the rings until the time is over."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(DRAIN_S, left))
        loop.drain_readings()
        loop.drain_events()


def loop_slice(config: Any, seconds: float, disturbance: Any) -> dict[str, Any]:
    """Run the loop for so long; lateness bins and page faults per thread, counters, and what the system refused."""
    loop = Loop(config)
    refused = loop.start()
    try:
        start_everything(loop, config)
        drain_for(loop, SETTLE_S)
        with disturbance:
            before = {name: loop.lateness(number)["counts"] for name, (number, _) in THREADS.items()}
            faults, counters = thread_faults(), loop.counters()
            drain_for(loop, seconds)
            after = {name: loop.lateness(number)["counts"] for name, (number, _) in THREADS.items()}
            faults_after, counters_after = thread_faults(), loop.counters()
    finally:
        loop.stop()
    return {
        "bins": {name: difference(after[name], before[name]) for name in THREADS},
        "faults": {name: faults_after[comm] - faults[comm] for name, (_, comm) in THREADS.items()},
        "counters": {name: value - counters[name] for name, value in counters_after.items()},
        "refused": refused,
    }


def cyclictest_slice(periods_us: dict[str, int], priority: int, real_time: bool, seconds: float) -> dict[str, Bins]:
    """cyclictest's histograms: one thread for each of ours, at its period. Raises BenchError."""
    first, second = sorted(periods_us, key=periods_us.__getitem__)
    base = periods_us[first]
    command = ["cyclictest", "-q", "-m", "-t", "2", "-i", str(base), "-d", str(periods_us[second] - base)]
    command += ["-h", str(HISTOGRAM_US), "-D", str(max(1, round(seconds)))]
    command += ["-p", str(priority)] if real_time else ["--policy=other"]
    environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=seconds * 3 + 30)
    if done.returncode:
        raise BenchError(f"cyclictest failed: {(done.stderr or done.stdout).strip()[:200]}")
    return dict(zip((first, second), parse_cyclictest(done.stdout), strict=True))


def parse_cyclictest(text: str) -> tuple[Bins, Bins]:
    """The histograms of two threads from cyclictest's output; the late ones that it does not count fill a last bin."""
    bins: tuple[Bins, Bins] = ([], [])
    overflows, worst = [0, 0], [0, 0]
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[0].isdigit():
            for place in (0, 1):
                bins[place].append((int(fields[0]) * 1e3, (int(fields[0]) + 1) * 1e3, int(fields[1 + place])))
        elif line.startswith("# Histogram Overflows:"):
            overflows = [int(field) for field in fields[3:5]]
        elif line.startswith("# Max Latencies:"):
            worst = [int(field) for field in fields[3:5]]
    if not bins[0]:
        raise BenchError("cyclictest printed no histogram that can be read")
    for place in (0, 1):
        bins[place].append((HISTOGRAM_US * 1e3, max(worst[place], HISTOGRAM_US) * 1e3, overflows[place]))
    return bins


def percentiles(bins: Bins) -> dict[str, float]:
    """p50, p99, p99.9 and the upper edge of the last bin in use, µs."""
    found = {name: quantile(bins, fraction) / 1e3 for name, fraction in PERCENTILES.items()}
    found["max"] = max((high for _, high, count in bins if count), default=math.nan) / 1e3
    return found


def medians(slices: list[dict[str, Bins]]) -> dict[str, dict[str, float]]:
    """Per thread, the median of each percentile over slices, µs."""
    found = {}
    for thread in THREADS:
        each = [percentiles(bins[thread]) for bins in slices]
        found[thread] = {name: median(one[name] for one in each) for name in each[0]}
    return found


def ratio_rows(
    ours: dict[str, dict[str, float]], other: dict[str, dict[str, float]], title: str, limit: float
) -> list[Row]:
    """`ours` over `other` at p50 and p99 of each thread."""
    rows = []
    for thread in THREADS:
        for name in ("p50", "p99"):
            a, b = ours[thread][name], other[thread][name]
            note = f"{a:.1f} µs against {b:.1f} µs"
            if a / b > limit:
                note += "; a figure of wall time: repeat it on a machine with nothing else to do"
            rows.append(Row(f"{thread} {name}, {title}", a / b, "", limit, note=note))
    return rows


def bench_loop(argv: list[str]) -> Result:
    """`stirbar bench loop`"""
    parser = parser_for("loop", "Lateness of the loop beside cyclictest, undisturbed and disturbed.")
    parser.add_argument("--rate", type=positive, default=1000.0, help="ticks a second of the actuator thread (1000)")
    parser.add_argument("--seconds", type=positive, default=60.0, help="measuring time of all slices together (60)")
    parser.add_argument("--slice", type=positive, default=4.0, help="seconds of one slice (4)")
    parser.add_argument(
        "--stop",
        type=int,
        action="append",
        default=[],
        metavar="PID",
        help="also measure with this process under SIGSTOP (bridge, leader, broker); repeatable",
    )
    arguments = parser.parse_args(argv)
    if arguments.rate > 20_000:
        raise BenchError("--rate is at most 20000 Hz")
    config = worker_config()
    priority = int(config.get("loop.config", "priority_sampling"))
    tuned = Tuned(
        config,
        {
            ("loop.config", "control_period_ms"): 1000.0 / arguments.rate,
            ("loop.config", "priority_actuators"): priority,
        },
    )
    adc_rate_hz = float(config.get("od_reading.config", "adc_rate_hz"))
    periods_us = {"sampling": round(1e6 / adc_rate_hz), "actuators": round(1e6 / arguments.rate)}
    has_cyclictest = shutil.which("cyclictest", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is not None
    slices, references, real_time = run_slices(arguments, tuned, periods_us, priority, has_cyclictest)
    found = {name: medians([one["bins"] for one in each]) for name, each in slices.items()}
    if references:
        found[REFERENCE] = medians(references)
    return Result(
        "loop",
        rows_of(found, slices, references),
        conditions_of(arguments, slices, priority, real_time),
        {"lateness_us": found, "periods_us": periods_us, "slices": len(slices[QUIET])},
    )


def run_slices(
    arguments: Any, config: Any, periods_us: dict[str, int], priority: int, has_cyclictest: bool
) -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, Bins]], bool]:
    """Alternate the contenders until the time is used up, each at least once."""
    contenders = [QUIET, BUSY] + ([STOPPED] if arguments.stop else [])
    rounds = max(1, round(arguments.seconds / (arguments.slice * (len(contenders) + has_cyclictest))))
    slices: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    references: list[dict[str, Bins]] = []
    real_time = True
    for number in range(rounds):
        # each round begins with another contender, so that a slow drift of the machine favours none
        for name in contenders[number % len(contenders) :] + contenders[: number % len(contenders)]:
            disturbance = {QUIET: undisturbed, BUSY: busy_python}.get(name)
            made = disturbance() if disturbance is not None else stopped(arguments.stop)
            one = loop_slice(config, arguments.slice, made)
            slices[name].append(one)
            real_time = real_time and not any("priority" in what for what, _ in one["refused"])
        if has_cyclictest:
            references.append(cyclictest_slice(periods_us, priority, real_time, arguments.slice))
    return slices, references, real_time


def rows_of(
    found: dict[str, dict[str, dict[str, float]]],
    slices: dict[str, list[dict[str, Any]]],
    references: list[dict[str, Bins]],
) -> list[Row]:
    """The figures of all slices, with their budgets."""
    rows = []
    if references:
        rows += ratio_rows(found[QUIET], found[REFERENCE], "of cyclictest's", CYCLICTEST_RATIO)
    rows += ratio_rows(found[BUSY], found[QUIET], f"with a {BUSY}, of undisturbed", DISTURBED_RATIO)
    if STOPPED in found:
        rows += ratio_rows(found[STOPPED], found[QUIET], f"with {STOPPED}, of undisturbed", DISTURBED_RATIO)
    everything = [one for each in slices.values() for one in each]
    ticks = sum(one["counters"]["ticks"] for one in everything)
    faults = sum(sum(one["faults"].values()) for one in everything)
    rows.append(Row(f"page faults of the loop's threads after start, in {ticks} ticks", faults, "", 0))
    overruns = sum(one["counters"]["overruns"] for one in slices[QUIET])
    rows.append(
        Row("overruns, undisturbed", overruns, "", note="whole periods skipped because the thread came too late")
    )
    return rows


def conditions_of(arguments: Any, slices: dict[str, list[dict[str, Any]]], priority: int, real_time: bool) -> str:
    """In words: how it was measured, and what the system refused."""
    refused = {what for one in slices[QUIET] for what, _ in one["refused"]}
    with_priority = (
        f"SCHED_FIFO {priority}" if real_time else "no real-time priority (refused): see docs/determinism.md"
    )
    text = f"{len(slices[QUIET])} x {arguments.slice:g} s each, alternating; {with_priority}"
    return text + (f"; refused: {', '.join(sorted(refused))}" if refused and real_time else "")
