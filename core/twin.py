"""`stirbar twin`: a whole worker, with its simulated vial, in virtual time.

The loop and the host run in lock-step: the loop stops at each host deadline until the host's step returns, and nothing
waits for a clock on a wall.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time

from stirbar.core import identity, profiles, records
from stirbar.core.config import ConfigError, add_config_options, config_from_arguments
from stirbar.core.host import RAW_SECONDS_FOR_EVER, Host
from stirbar.core.recorder import Recorder, RecorderError
from stirbar.core.records import Header
from stirbar.core.version import VERSION
from stirbar.rt.loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from stirbar.core.config import Config

    Reading = dict[str, Any]

HOST_PERIOD_NS = 1_000_000_000
HOURS_MAXIMUM = 10_000.0
COLUMNS = ("time_h", "stream", "angle", "value", "se_instrument", "se_culture", "flags")


class Twin:
    """A worker in virtual time.

    `automation(host, now_ns)`, when given, is called after each host step (once a virtual second): Python that decides,
    at the pace at which it would on a worker. `recorder` gets the raw conversions (`record`).

    Synchronization: none; one thread.
    """

    def __init__(self, config: Config, directory: str, automation: Callable[[Host, int], None] | None = None) -> None:
        # the vial's converters are like those of the board that is named
        profile = None if config.get("unit", "hardware") == profiles.AUTO else profiles.choose(config)
        self.loop = Loop(config, virtual=True, profile=profile)
        self.automation = automation
        self.recorder: Recorder | None = None
        self.host = Host(
            self.loop,
            config,
            unit="twin",
            unit_id=bytes(16),
            run_id=identity.run_id(),
            boot_id=bytes(16),
            directory=directory,
            version=VERSION,
        )
        self.start_ns = self.loop.now_ns()
        self.host.start_jobs()

    @property
    def elapsed_s(self) -> float:
        """Virtual seconds since the start."""
        return float(self.loop.now_ns() - self.start_ns) / 1e9

    def record(self, path: str, keep_bytes: int = 0) -> Recorder:
        """Record everything from here on; the caller closes the recorder. Raises as Recorder does."""
        self.recorder = Recorder(path, {**self.host.describe(), "config": self.host.config.values()}, keep_bytes)
        self.host.request_raw(RAW_SECONDS_FOR_EVER)
        return self.recorder

    def run(self, seconds: float) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Run on for virtual seconds; yields the messages (topic, header, payload) that a worker would publish."""
        end_ns = self.loop.now_ns() + round(seconds * 1e9)
        while (now_ns := self.loop.now_ns()) < end_ns:
            self.loop.run_until(min(now_ns - (now_ns - self.start_ns) % HOST_PERIOD_NS + HOST_PERIOD_NS, end_ns))
            for topic, header, payload in self.host.step():
                if self.recorder is not None and topic.startswith((b"trace/", b"snapshot/")):
                    self.recorder.message(Header.unpack(header)[0], payload)
                yield topic, header, payload
            if self.automation is not None:
                self.automation(self.host, self.loop.now_ns())

    def readings(self, seconds: float) -> Iterator[Reading]:
        """As `run`, but only the readings, each a dictionary of its fields."""
        for topic, _, payload in self.run(seconds):
            if topic.startswith(b"reading/"):
                for fields in records.READING.iter_unpack(payload):
                    yield dict(zip(records.READING_FIELDS, fields, strict=True))


class Thinner:
    """Keeps the last reading of each stream in every interval."""

    def __init__(self, interval_s: float, start_ns: int) -> None:
        self.interval_ns = round(interval_s * 1e9)
        self.start_ns = start_ns
        self.kept: list[Reading] = []
        self.count = 0
        self._waiting: dict[int, tuple[int, Reading]] = {}

    def add(self, reading: Reading) -> None:
        self.count += 1
        number = (reading["monotonic_ns"] - self.start_ns) // self.interval_ns
        waiting = self._waiting.get(reading["stream"])
        if waiting is not None and waiting[0] != number:
            self.kept.append(waiting[1])
        self._waiting[reading["stream"]] = (number, reading)

    def finish(self) -> list[Reading]:
        self.kept += [reading for _, reading in self._waiting.values()]
        self._waiting.clear()
        self.kept.sort(key=lambda reading: (reading["monotonic_ns"], reading["stream"]))
        return self.kept

    def hours(self, reading: Reading) -> float:
        return float(reading["monotonic_ns"] - self.start_ns) / 3.6e12


def write_csv(path: str, readings: list[Reading], thinner: Thinner) -> None:
    """One line a reading, with the columns COLUMNS."""
    import csv

    from stirbar.core.status import flag_names

    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for reading in readings:
            writer.writerow(
                (
                    f"{thinner.hours(reading):.6f}",
                    records.STREAMS[reading["stream"]],
                    reading["angle"],
                    f"{reading['value']:.9g}",
                    f"{reading['se_instrument']:.4g}",
                    f"{reading['se_culture']:.4g}",
                    " ".join(flag_names(reading["flags"])),
                )
            )


def write_plot(path: str, readings: list[Reading], thinner: Thinner) -> bool:
    """One panel a stream; False when matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    streams = sorted({reading["stream"] for reading in readings})
    figure, panels = pyplot.subplots(len(streams), 1, sharex=True, figsize=(9, 2.4 * len(streams)), squeeze=False)
    for panel, stream in zip(panels[:, 0], streams, strict=True):
        chosen = [reading for reading in readings if reading["stream"] == stream]
        panel.plot([thinner.hours(reading) for reading in chosen], [reading["value"] for reading in chosen], lw=0.8)
        angle = chosen[0]["angle"]
        name = records.STREAMS[stream] + (f" {angle}°" if angle else "")
        panel.set_ylabel(f"{name} ({records.STREAM_UNITS[stream]})")
        panel.grid(alpha=0.3)
    panels[-1, 0].set_xlabel("hours of virtual time")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True


def _progress(done: float) -> None:
    filled = int(done * 40)
    print(f"\r[{'#' * filled}{'.' * (40 - filled)}] {100 * done:3.0f} %", end="", file=sys.stderr, flush=True)


def run_twin(
    config: Config, hours: float, interval_s: float, show_progress: bool, record: str | None = None
) -> tuple[Twin, Thinner, float]:
    """Run a twin to its end, its raw conversions to a file if wanted; returns it, its thinned readings, and the seconds
    it took."""
    with tempfile.TemporaryDirectory(prefix="stirbar-twin-") as directory:
        twin = Twin(config, directory)
        recorder = twin.record(record) if record else None
        thinner = Thinner(interval_s, twin.start_ns)
        started = shown = time.monotonic()
        for reading in twin.readings(hours * 3600.0):
            thinner.add(reading)
            if show_progress and time.monotonic() - shown > 0.25:
                shown = time.monotonic()
                _progress(twin.elapsed_s / (hours * 3600.0))
        if recorder is not None:
            recorder.close()
        if show_progress:
            _progress(1.0)
            print(file=sys.stderr)
    return twin, thinner, time.monotonic() - started


def main(argv: list[str]) -> int:
    """`stirbar twin`"""
    import argparse

    parser = argparse.ArgumentParser(prog="stirbar twin", description="Run a simulated worker in virtual time.")
    parser.add_argument("--hours", type=float, required=True, help="virtual hours to run")
    parser.add_argument("--out", metavar="DIR", help="write readings.csv and readings.png there")
    parser.add_argument("--record", metavar="FILE", help="write the raw conversions there, as `stirbar record` does")
    parser.add_argument("--interval", type=float, default=10.0, help="seconds between readings in the CSV (default 10)")
    parser.add_argument("--json", action="store_true", help="print a machine-readable summary")
    add_config_options(parser)
    arguments = parser.parse_args(argv)
    if not 0 < arguments.hours <= HOURS_MAXIMUM or not 0.1 <= arguments.interval <= 86_400:
        print(
            f"stirbar twin: --hours must be above 0 and at most {HOURS_MAXIMUM:g}, --interval 0.1 to 86400 s",
            file=sys.stderr,
        )
        return 2
    arguments.set = [*(arguments.set or []), "unit.simulate=1"]
    try:
        config = config_from_arguments(arguments)
        if arguments.out:
            os.makedirs(arguments.out, exist_ok=True)
        twin, thinner, wall_s = run_twin(
            config, arguments.hours, arguments.interval, sys.stderr.isatty(), arguments.record
        )
    except (ConfigError, RecorderError, ValueError, OSError) as error:
        print(f"stirbar twin: {error}", file=sys.stderr)
        return 1
    readings = thinner.finish()
    summary = summarise(twin, thinner, arguments.hours, wall_s)
    if arguments.out:
        write_csv(os.path.join(arguments.out, "readings.csv"), readings, thinner)
        if not write_plot(os.path.join(arguments.out, "readings.png"), readings, thinner):
            print("stirbar twin: no plot: matplotlib is not installed (pip install 'stirbar[plot]')", file=sys.stderr)
    if arguments.json:
        print(json.dumps(summary))
    else:
        print(
            f"{arguments.hours:g} h in {wall_s:.1f} s ({summary['speed']:.0f} times real time): "
            f"{summary['readings']} readings, {summary['counters']['conversions']} conversions, "
            f"{summary['counters']['missed_conversions']} missed"
        )
        for stream, last in summary["last"].items():
            print(f"{stream}: {last:.6g} {records.STREAM_UNITS[records.STREAM_IDS[stream]]}")
    return 0


def summarise(twin: Twin, thinner: Thinner, hours: float, wall_s: float) -> dict[str, Any]:
    """What a run did: its length, speed, counters, and the last value of each stream."""
    return {
        "hours": hours,
        "wall_s": round(wall_s, 3),
        "speed": hours * 3600.0 / wall_s,
        "readings": thinner.count,
        "counters": twin.loop.counters(),
        "last": {records.STREAMS[stream]: reading["value"] for stream, reading in twin.host.latest.items()},
    }
