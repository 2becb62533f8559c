"""`stirbar status`: what a worker is doing now."""

from __future__ import annotations

import json
import sys

from stirbar.core import records
from stirbar.core.client import CommandRefused, Worker, WorkerUnreachable
from stirbar.core.config import ConfigError, add_config_options, config_from_arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def flag_names(flags: int) -> list[str]:
    """The names of the flags that are set."""
    return [name for name, bit in records.FLAGS.items() if flags & bit]


def percentile_ns(lateness: dict[str, Any], fraction: float) -> float:
    """Upper edge of the histogram bin that holds this fraction of the ticks, ns; NaN without ticks."""
    counts = lateness["counts"]
    total = sum(count for _, _, count in counts)
    seen = 0
    for _, upper_ns, count in counts:
        seen += count
        if seen >= fraction * total:
            return float(upper_ns)
    return float("nan")


def render(description: dict[str, Any], status: dict[str, Any]) -> str:
    """The page of text that a person reads."""
    lines = [
        f"unit {description['unit']} ({'simulated' if description['simulated'] else 'hardware'}), "
        f"experiment {status['experiment']}, up {status['uptime_s']:.0f} s, stirbar {description['version']}",
        "jobs: " + ", ".join(f"{name} {state}" for name, state in status["jobs"].items()),
    ]
    angles = {channel["stream"]: channel["name"] for channel in description["channels"]}
    for stream, reading in status["latest"].items():
        unit = records.STREAM_UNITS[records.STREAM_IDS[stream]]
        error = reading["se_instrument"]
        what = f"{stream} at {angles[stream]}" if stream in angles else stream
        uncertainty = "" if error is None else f" ± {error:.2g}"
        flags = ", ".join(flag_names(reading["flags"]))
        value = "no value" if reading["value"] is None else f"{reading['value']:.6g}{uncertainty} {unit}"
        lines.append(f"{what}: {value}" + (f"  [{flags}]" if flags else ""))
    if any(stream.startswith("od") for stream in status["latest"]):
        lines.append(f"OD is normalised scatter in AU ({description['normalisation']}), not calibrated to OD600")
    for thread, lateness in status["lateness"].items():
        p50, p99, p999 = (percentile_ns(lateness, q) / 1000 for q in (0.5, 0.99, 0.999))
        lines.append(f"lateness of {thread}: p50 {p50:.0f} µs, p99 {p99:.0f} µs, p99.9 {p999:.0f} µs")
    lines.append("counters: " + ", ".join(f"{name} {value}" for name, value in status["counters"].items()))
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """`stirbar status`; exit status 1 when no worker answers."""
    import argparse

    parser = argparse.ArgumentParser(prog="stirbar status", description="What a worker is doing now.")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument("--address", help="base address of the worker's sockets")
    add_config_options(parser)
    arguments = parser.parse_args(argv)
    try:
        with Worker(arguments.address, config=config_from_arguments(arguments)) as worker:
            description, status = worker.describe(), worker.status()
    except (ConfigError, WorkerUnreachable, CommandRefused, ValueError, OSError) as error:
        print(f"stirbar status: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"describe": description, "status": status}) if arguments.json else render(description, status))
    return 0
