"""`stirbar bench instructions`: user-space instructions of the loop, counted by valgrind's callgrind.

The same compiled code runs in virtual time under callgrind, twice, for different lengths: what differs is the loop.
What was spent in the simulated vial (everything below the hardware interface's functions) is counted apart. The counts
do not depend on the machine's load; they do depend on processor type and compiler.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from stirbar.core.bench import BenchError, Result, Row, child_environment, parser_for, positive, worker_config

MEAN_LIMIT = 700.0
# A tenth of a conversion's period on a Pi Zero: 1 GHz (ARM1176), about 0.5 instructions a cycle.
WORST_LIMIT = 0.1 / 860.0 * 1e9 * 0.5
SETTLE_S = 3.0
CALL_LIMIT_S = 900.0
ONE_DIODE = ("od_config.photodiode_channel", "1", "")

_POSITION = re.compile(r"^[+*-]?\d*")
_NAME = re.compile(r"^c?(fn|ob)=\((\d+)\)(?: (.*))?$")


@dataclass
class Profile:
    """What a callgrind file says: instructions in all, and including callees of each function (object, name)."""

    total: int = 0
    inclusive: dict[tuple[str, str], int] = field(default_factory=dict)
    calls: dict[tuple[str, str], int] = field(default_factory=dict)


def parse_callgrind(lines: Iterable[str]) -> Profile:
    """Read the callgrind format: costs of calls are added up by the function called."""
    profile = Profile()
    names: dict[tuple[str, str], str] = {}
    objects = {"ob": "", "cob": ""}
    callee = ("", "")
    call_count = 0
    for line in lines:
        if line.startswith("calls="):
            call_count = int(line[6:].split()[0])
        elif line[:1].isdigit() or line[:1] in "+-*":
            fields = line.split()
            cost = int(fields[1]) if len(fields) > 1 else 0
            if call_count:
                profile.inclusive[callee] = profile.inclusive.get(callee, 0) + cost
                profile.calls[callee] = profile.calls.get(callee, 0) + call_count
                call_count = 0
                objects["cob"] = objects["ob"]
            else:
                profile.total += cost
        elif (match := _NAME.match(line.rstrip("\n"))) is not None:
            kind, number, name = match.groups()
            if name is not None:
                names[kind, number] = name
            if kind == "ob":
                objects["cob" if line.startswith("c") else "ob"] = names[kind, number]
                if not line.startswith("c"):
                    objects["cob"] = objects["ob"]
            elif line.startswith("c"):
                callee = (objects["cob"], names[kind, number])
    return profile


def valgrind() -> str:
    """Its path. Raises BenchError."""
    path = shutil.which("valgrind")
    if path is None:
        raise BenchError("valgrind is not installed, which counts instructions: `sudo apt install valgrind`")
    return path


def callgrind(seconds: float, overrides: list[str], directory: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run the child under callgrind; returns what it printed, with `files`, the profiles that were written."""
    out = os.path.join(directory, f"callgrind.{seconds:g}.{len(os.listdir(directory))}")
    command = [valgrind(), "--tool=callgrind", f"--callgrind-out-file={out}", *options, sys.executable, "-m", __name__]
    child = subprocess.run(
        [*command, str(seconds), *overrides],
        capture_output=True,
        text=True,
        timeout=CALL_LIMIT_S,
        env={**child_environment([sys.executable]), "PYTHONHASHSEED": "0"},
    )
    if child.returncode:
        raise BenchError(f"valgrind failed: {child.stderr.strip()[-300:]}")
    report: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    base = os.path.basename(out)
    written = [name for name in os.listdir(directory) if name.startswith(base)]
    written.sort(key=lambda name: int(name[len(base) + 1 :] or 0))  # numbered in order of time
    report["files"] = [os.path.join(directory, name) for name in written]
    return report


def child(seconds: float, overrides: list[str]) -> dict[str, Any]:
    """Run the loop in virtual time and say how far it came and where its code lies (runs under callgrind)."""
    from stirbar.core.bench_loop import start_everything
    from stirbar.rt.loop import Loop

    config = worker_config(None, [tuple(text.split("|", 2)) for text in overrides])  # type: ignore[misc]
    loop = Loop(config, virtual=True)
    start_everything(loop, config)
    begin_ns = loop.now_ns()
    while (elapsed_s := (loop.now_ns() - begin_ns) / 1e9) < seconds:
        loop.run_until(begin_ns + round(min(elapsed_s + 1.0, seconds) * 1e9))  # once a second: Python is not counted
        loop.drain_readings()
        loop.drain_events()
    addresses = loop.code_addresses()
    base, path = loaded_at(addresses["vial"][0])
    offsets = {name: [f"0x{address - base:016x}" for address in each] for name, each in addresses.items()}
    return {"counters": loop.counters(), "object": path, **offsets}


def loaded_at(address: int) -> tuple[int, str]:
    """Where the object that holds an address was loaded, and its path."""
    bases: dict[str, int] = {}
    with open("/proc/self/maps") as file:
        for line in file:
            fields = line.split()
            low, high = (int(part, 16) for part in fields[0].split("-"))
            path = fields[5] if len(fields) > 5 else ""
            if path:
                bases.setdefault(path, low)
            if low <= address < high:
                return bases[path], path
    raise BenchError("the compiled loop is not among this process's mappings")


def read_profile(path: str) -> Profile:
    """The profile in a file that callgrind wrote."""
    with open(path, errors="replace") as file:
        return parse_callgrind(file)


def vial_cost(profile: Profile, report: dict[str, Any]) -> int:
    """Instructions below the hardware interface. Functions that share an address are counted once."""
    return sum(profile.inclusive.get((report["object"], name), 0) for name in set(report["vial"]))


def count(seconds: float, overrides: list[str]) -> dict[str, float]:
    """Mean instructions of a tick and a conversion, with the vial's apart."""
    with tempfile.TemporaryDirectory(prefix="stirbar-bench-") as directory:
        costs = []
        for length in (SETTLE_S, SETTLE_S + seconds):
            report = callgrind(length, overrides, directory)
            profile = read_profile(report["files"][0])
            costs.append((profile.total, vial_cost(profile, report), report["counters"]))
    (total0, vial0, counters0), (total1, vial1, counters1) = costs
    ticks = counters1["ticks"] - counters0["ticks"]
    conversions = counters1["conversions"] - counters0["conversions"]
    if vial1 <= vial0:
        raise BenchError("callgrind did not see the hardware interface's functions: the vial cannot be told apart")
    loop = total1 - total0 - (vial1 - vial0)
    return {
        "ticks": ticks,
        "conversions": conversions,
        "loop_per_tick": loop / ticks,
        "loop_per_conversion": loop / conversions,
        "vial_per_conversion": (vial1 - vial0) / conversions,
        "all_per_virtual_second": (total1 - total0) / seconds,
    }


def worst_tick(seconds: float, overrides: list[str]) -> dict[str, float]:
    """The most instructions between two ticks of any task, without the vial: callgrind dumps at each tick.

    `worst` and `p99` are of the last `seconds`; `worst_at_start` is of the time before, when clocks lock and the chop
    is chosen.
    """
    with tempfile.TemporaryDirectory(prefix="stirbar-bench-") as directory:
        first = callgrind(0.1, overrides, directory)
        dumps = tuple(f"--dump-before={name}" for name in sorted(set(first["ticks"])))
        report = callgrind(SETTLE_S + seconds, overrides, directory, dumps)
        costs = []
        for path in report["files"]:
            profile = read_profile(path)
            in_loop = sum(profile.inclusive.get((report["object"], name), 0) for name in set(report["ticks"]))
            if in_loop:
                costs.append(in_loop - vial_cost(profile, report))
    early = round(len(costs) * SETTLE_S / (SETTLE_S + seconds))
    steady = sorted(costs[early:])
    if len(steady) < 100:
        raise BenchError(f"callgrind told only {len(steady)} ticks apart; the worst cannot be found")
    return {
        "ticks_apart": len(steady),
        "worst": steady[-1],
        "p99": steady[int(0.99 * len(steady))],
        "worst_at_start": max(costs[:early]),
    }


def mean_tick_row(title: str, found: dict[str, float]) -> Row:
    """The mean tick, with a word on where the instructions go when there are too many."""
    note = (
        f"{found['conversions'] / found['ticks']:.2f} conversions in a mean tick; "
        f"{found['loop_per_conversion']:.0f} instructions of the loop for each"
    )
    if found["loop_per_tick"] > MEAN_LIMIT:
        note += ", most of them the removal of mains and the windows: docs/benchmarks.md, Where the time goes"
    return Row(title, found["loop_per_tick"], "instructions", MEAN_LIMIT, note=note)


def bench_instructions(argv: list[str]) -> Result:
    """`stirbar bench instructions`"""
    parser = parser_for("instructions", "User-space instructions of a tick, counted by valgrind.")
    parser.add_argument("--seconds", type=positive, default=10.0, help="virtual seconds (10)")
    parser.add_argument(
        "--worst",
        type=positive,
        default=None,
        metavar="SECONDS",
        help="also look for the worst tick in so many virtual seconds (slow: one dump a tick)",
    )
    arguments = parser.parse_args(argv)
    two = count(arguments.seconds, [])
    one = count(arguments.seconds, ["|".join(ONE_DIODE)])
    rows = [
        mean_tick_row("mean tick, reference and one diode", two),
        mean_tick_row("mean tick, one diode alone", one),
        Row("simulated vial, each conversion", two["vial_per_conversion"], "instructions"),
    ]
    details: dict[str, Any] = {"reference_and_one": two, "one": one}
    if arguments.worst is not None:
        worst = details["worst"] = worst_tick(arguments.worst, [])
        rows.append(
            Row(
                "worst tick at start",
                worst["worst_at_start"],
                "instructions",
                note="when the converters' clocks lock and the chop is chosen",
            )
        )
        rows.append(
            Row(
                "worst tick",
                worst["worst"],
                "instructions",
                WORST_LIMIT,
                note=f"of {worst['ticks_apart']:.0f} ticks; p99 {worst['p99']:.0f}; the budget is a tenth of "
                "1/860 s at 1 GHz and 0.5 instructions a cycle",
            )
        )
    return Result("instructions", rows, f"callgrind, {arguments.seconds:g} virtual seconds", details)


if __name__ == "__main__":
    print(json.dumps(child(float(sys.argv[1]), sys.argv[2:])))
