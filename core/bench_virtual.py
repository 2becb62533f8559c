"""`stirbar bench twin`, `capture` and `raw`: the speed of virtual time, what is captured and what is stored."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections import Counter
from typing import Any

from stirbar.core import events, raw_codec, records
from stirbar.core.bench import Result, Row, parser_for, positive, worker_config
from stirbar.core.bench_loop import start_everything
from stirbar.core.host import Host
from stirbar.core.jobs import SAMPLING
from stirbar.core.recording import Recording
from stirbar.core.twin import Twin
from stirbar.rt.loop import Loop

DAY_H = 24.0
LOOP_LIMIT_S, WORKER_LIMIT_S = 20.0, 30.0
CAPTURE_LIMIT_PERCENT = 99.9
QUANTILES = 1024
RAW_LIMIT_BYTES, ENTROPY_RATIO = 1.1, 1.15
CHUNK_S = 5
QUIET_SIGMA_LSB = 30.0
SLOW_BOARDS = ("hat1.0", "hat1.1")  # whose chunks are closed by age
STEADY = (0, 1)  # phases: the light did not change within the conversion
DISTURBANCES = ("bubble_rate_hz", "hum_amplitude_v", "flicker_percent")


class Automation:
    """Python that decides once a second, as a turbidostat does: it follows the density and sets the stirrer by it.

    Synchronization: the host thread.
    """

    def __init__(self) -> None:
        self.smooth = math.nan
        self.target_rpm = 500.0
        self.decisions = 0

    def __call__(self, host: Host, now_ns: int) -> None:
        reading = next((host.latest[stream] for stream in (1, 2, 3, 4) if stream in host.latest), None)
        if reading is None:
            return
        value: Any = reading["value"]
        if value == value:
            self.smooth = value if self.smooth != self.smooth else self.smooth + 0.05 * (value - self.smooth)
        wanted = 480.0 if self.smooth < 0.2 else 520.0
        self.decisions += 1
        if wanted != self.target_rpm and not host.waiting:
            self.target_rpm = wanted
            host.jobs["stirring"].set("target_rpm", wanted, lambda ok, limit: None)


def run_loop(loop: Loop, config: Any, seconds: float) -> float:
    """Run loop and vial alone; returns CPU seconds."""
    start_everything(loop, config)
    end_ns = loop.now_ns() + round(seconds * 1e9)
    begun = time.process_time()
    while loop.now_ns() < end_ns:
        loop.run_until(min(loop.now_ns() + 10_000_000_000, end_ns))
        loop.drain_readings()
        loop.drain_events()
    return time.process_time() - begun


def run_worker(config: Any, seconds: float, automation: Automation) -> tuple[float, dict[str, int]]:
    """Run a whole worker with its automation; returns CPU seconds and the loop's counters."""
    with tempfile.TemporaryDirectory(prefix="stirbar-bench-") as directory:
        twin = Twin(config, directory, automation)
        begun = time.process_time()
        for _ in twin.run(seconds):
            pass
        return time.process_time() - begun, twin.loop.counters()


def bench_twin(argv: list[str]) -> Result:
    """`stirbar bench twin`"""
    parser = parser_for("twin", "CPU time of 24 h of virtual time.")
    parser.add_argument("--hours", type=positive, default=2.0, help="virtual hours; the figures are scaled to 24 (2)")
    arguments = parser.parse_args(argv)
    config = worker_config()
    seconds, scale = arguments.hours * 3600.0, DAY_H / arguments.hours
    loop = Loop(config, virtual=True)
    loop_s = run_loop(loop, config, seconds) * scale
    counters = loop.counters()
    automation = Automation()
    worker_cpu_s, worker_counters = run_worker(config, seconds, automation)
    note = f"{counters['conversions'] / seconds:.0f} conversions and {counters['ticks'] / seconds:.0f} ticks a second"
    rows = [
        Row("24 h, loop and vial alone", loop_s, "s CPU", LOOP_LIMIT_S, note=note),
        Row(
            "24 h, whole worker with a 1 Hz automation",
            worker_cpu_s * scale,
            "s CPU",
            WORKER_LIMIT_S,
            note=f"{automation.decisions} decisions in {arguments.hours:g} h",
        ),
    ]
    return Result(
        "twin",
        rows,
        f"{arguments.hours:g} virtual hours, scaled to 24; CPU time of one core",
        {"counters": counters, "worker_counters": worker_counters},
    )


def measured_lateness(config: Any, seconds: float) -> list[int]:
    """Quantiles of how late the sampling thread wakes on this machine, ns, from the loop itself in real time."""
    loop = Loop(config)
    start_everything(loop, config)
    loop.start()
    time.sleep(seconds)
    loop.stop()
    counts = loop.lateness(SAMPLING)["counts"]
    total = sum(count for _, _, count in counts)
    quantiles: list[int] = []
    passed = 0
    for low, high, count in counts:
        passed += count
        while len(quantiles) < QUANTILES and (len(quantiles) + 0.5) * total <= passed * QUANTILES:
            quantiles.append((low + high) // 2)
    return quantiles


def bench_capture(argv: list[str]) -> Result:
    """`stirbar bench capture`"""
    parser = parser_for("capture", "Share of the converters' conversions that the loop reads, each once.")
    parser.add_argument("--seconds", type=positive, default=120.0, help="virtual seconds for each clock error (120)")
    parser.add_argument("--measure", type=positive, default=20.0, help="seconds in which lateness is measured (20)")
    arguments = parser.parse_args(argv)
    late_ns = measured_lateness(worker_config(), arguments.measure)
    rows = []
    for late, words in ((None, ""), (late_ns, ", threads late as measured here")):
        for percent in (-10, 0, 10):
            config = worker_config(None, [("simulation", "oscillator_error_percent", str(percent))])
            loop = Loop(config, virtual=True)
            if late:
                loop.wake_late(late)
            run_loop(loop, config, arguments.seconds)
            counters = loop.counters()
            made = counters["conversions"] + counters["missed_conversions"]
            rows.append(
                Row(
                    f"captured, converter clock {percent:+d} %{words}",
                    100.0 * counters["conversions"] / made,
                    "%",
                    CAPTURE_LIMIT_PERCENT,
                    at_least=True,
                    note=f"{counters['conversions']} of {made}, {made / arguments.seconds:.1f} a second",
                )
            )
    middle, high, highest = (late_ns[QUANTILES * part // 1000] / 1e3 for part in (500, 990, 999))
    return Result(
        "capture",
        rows,
        f"{arguments.seconds:g} virtual seconds each, from the first conversion on; lateness p50 {middle:.0f} µs, "
        f"p99 {high:.0f} µs, p99.9 {highest:.0f} µs",
    )


def trace_chunks(config: Any, seconds: float) -> list[bytes]:
    """The sampling thread's trace in chunks of CHUNK_S seconds."""
    loop = Loop(config, virtual=True)
    start_everything(loop, config)
    loop.push(SAMPLING, 9, events.COMMAND_TRACE, 0, 0, 1e9)
    chunks: list[bytes] = []
    items = bytearray()
    for second in range(1, round(seconds) + 1):
        loop.run_until(loop.now_ns() + 1_000_000_000)
        loop.drain_readings()
        drained = loop.drain_trace(SAMPLING)
        items += drained[1] if drained is not None else b""
        if second % CHUNK_S == 0:
            chunks.append(bytes(items))
            items.clear()
    return chunks[1:]  # the first holds the settling of light and clock


def entropy(chunks: list[bytes]) -> tuple[float, float, int]:
    """Empirical entropy of a conversion in bits, its standard deviation in codes, and how many there are.

    Codes are compared with the mean, over one chunk, of those of the same channel, light and light before: what no
    predictor knows better while the signal is quiet. The deviation is that of conversions under steady light.
    """
    deviations: Counter[int] = Counter()
    steady: Counter[int] = Counter()
    for chunk in chunks:
        groups: dict[tuple[int, int, int], list[int]] = {}
        before: dict[int, int] = {}
        for kind, channel, phase, _, _, value in records.TRACE.iter_unpack(chunk):
            if kind == records.TRACE_CONVERSION:
                groups.setdefault((channel, phase, before.get(channel, 0)), []).append(value)
                before[channel] = phase
        for (_, phase, _), codes in groups.items():
            middle = round(sum(codes) / len(codes))
            deviations.update(code - middle for code in codes)
            if phase in STEADY:
                steady.update(code - middle for code in codes)
    count = sum(deviations.values())
    bits = -sum(number / count * math.log2(number / count) for number in deviations.values())
    sigma = math.sqrt(sum(number * value * value for value, number in steady.items()) / steady.total())
    return bits, sigma, count


def measure_raw(overrides: list[tuple[str, str, str]], seconds: float) -> dict[str, float]:
    """Size, entropy (bytes a conversion), spread (codes) and CPU (µs a conversion) of a vial's trace."""
    config = worker_config(None, [("simulation", "time_acceleration", "0"), *overrides])
    chunks = trace_chunks(config, max(2.0 * CHUNK_S, seconds))
    begun = time.process_time()
    encoded = [raw_codec.encode(chunk) for chunk in chunks]
    cpu_s = time.process_time() - begun
    if [raw_codec.decode(chunk) for chunk in encoded] != chunks:
        raise ValueError("the codec did not give back what it was given")
    bits, sigma, count = entropy(chunks)
    size = sum(map(len, encoded)) / count
    return {"bytes": size, "entropy": bits / 8.0, "sigma": sigma, "cpu_us": 1e6 * cpu_s / count, "conversions": count}


def measure_file(overrides: list[tuple[str, str, str]], hours: float) -> dict[str, float]:
    """What a recording of a vial takes on disk: bytes in all and by what they hold, and conversions."""
    config = worker_config(None, [("simulation", "time_acceleration", "0"), *overrides])
    sizes: dict[str, float] = {"snapshots": 0, "raw": 0, "edges": 0}
    with tempfile.TemporaryDirectory(prefix="stirbar-bench-") as directory:
        path = os.path.join(directory, "x.rec")
        twin = Twin(config, directory)
        recorder = twin.record(path)
        for _ in twin.run(hours * 3600.0):
            pass
        recorder.close()
        with Recording(path) as recording:
            for header, body in recording.segments[0].batches():
                is_chunk = header.kind == records.KIND_RAW_CHUNK
                sizes[records.STREAMS[header.stream] if is_chunk else "snapshots"] += len(body)
        size = os.path.getsize(path)
    return {**sizes, "bytes": size, "conversions": twin.loop.counters()["conversions"], "hours": hours}


def file_row(name: str, file: dict[str, float]) -> Row:
    """Bytes a conversion of a whole recording. There is no budget: it holds more than conversions."""
    shares = {part: 100.0 * file[part] / file["bytes"] for part in ("raw", "edges", "snapshots")}
    rest = 100.0 - sum(shares.values())
    return Row(
        f"file, everything included, {name}",
        file["bytes"] / file["conversions"],
        "B",
        note=f"{file['bytes'] / file['hours'] * 24e-6:.0f} MB a day: {shares['raw']:.0f} % conversions, "
        f"{shares['edges']:.0f} % the stirrer's edges and ticks, {shares['snapshots']:.0f} % snapshots, "
        f"{rest:.0f} % headers",
    )


def bench_raw(argv: list[str]) -> Result:
    """`stirbar bench raw`"""
    parser = parser_for("raw", "Bytes of a stored raw conversion, on a quiet trace and with every disturbance.")
    parser.add_argument("--seconds", type=positive, default=60.0, help="virtual seconds (60, at least 10)")
    parser.add_argument("--hours", type=positive, default=1.0, help="virtual hours of each recording (1)")
    arguments = parser.parse_args(argv)
    quiet = measure_raw([("simulation", name, "0") for name in DISTURBANCES], arguments.seconds)
    usual = measure_raw([], arguments.seconds)
    files = {
        "two photodiodes at full rate": measure_file([], arguments.hours),
        **{board: measure_file([("unit", "hardware", board)], arguments.hours) for board in SLOW_BOARDS},
    }
    title = "stored raw conversion, time and light included"
    rows = [
        Row(
            f"{title}, quiet trace",
            quiet["bytes"],
            "B",
            RAW_LIMIT_BYTES,
            note=f"σ {quiet['sigma']:.1f} codes (the budget is for σ ≤ {QUIET_SIGMA_LSB:g}), chunks of {CHUNK_S} s",
        ),
        Row(
            "size of the empirical entropy, quiet trace",
            quiet["bytes"] / quiet["entropy"],
            "",
            ENTROPY_RATIO,
            note=f"entropy {quiet['entropy']:.3f} B a conversion",
        ),
        Row(f"{title}, usual disturbances", usual["bytes"], "B", note=f"σ {usual['sigma']:.1f} codes"),
        Row(
            "size of the empirical entropy, usual disturbances",
            usual["bytes"] / usual["entropy"],
            "",
            ENTROPY_RATIO,
            note=f"entropy {usual['entropy']:.3f} B a conversion",
        ),
        *(file_row(name, file) for name, file in files.items()),
        Row("CPU of encoding a conversion", usual["cpu_us"], "µs"),
    ]
    return Result(
        "raw",
        rows,
        f"{quiet['conversions']} conversions, culture frozen; files of {arguments.hours:g} h",
        {"quiet": quiet, "usual": usual, "files": files},
    )
