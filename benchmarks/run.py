"""`make bench`: every system benchmark and every kernel; the rows go to benchmarks/RESULTS.md.

A machine has one section there; running again replaces it.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import inspect
import json
import pathlib
import subprocess
import sys
import timeit
from typing import Any

from stirbar.core.bench import child_environment, format_number, machine

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
SOURCE = str(HERE.parent)
# `stirbar bench` and then this; quick: the same in a minute or two, for trying out
COMMANDS = {
    False: (
        "instructions --seconds 10 --worst 2",
        "loop --rate 1000 --seconds 120",
        "loop --rate 10000 --seconds 140",
        "start",
        f"footprint --install {SOURCE}",
        "twin --hours 24",
        "capture",
        "raw",
        "bridge",
        "ingest",
        "latency",
        "stopped",
        "page",
        "week",
        "leader",
        "overview",
    ),
    True: (
        "instructions --seconds 2",
        "loop --seconds 6 --slice 1",
        "start --runs 1",
        "footprint --seconds 3",
        "twin --hours 0.1",
        "capture --seconds 10",
        "raw --seconds 15",
        "bridge --seconds 3",
        "ingest --seconds 5",
        "latency --seconds 5",
        "stopped --rounds 1 --slice 1",
        "page --seconds 10",
        "week --units 10 --rounds 3",
        "leader --units 50 --seconds 5",
        "overview --units 50 --seconds 5",
    ),
}
# `python -m benchmarks.<name>`: optical density against physics and against the field's method; the run that gives the
# rows draws the figures of docs/instrument.md too
INSTRUMENT = (
    "od_against_field",
    "od_efficiency",
    "od_errors",
    "od_robust",
    "od_rejection",
    "od_mains",
    "od_ambient",
    "od_step",
    "od_temperature",
    "od_cost",
    "od_bus",
    "heat_against_field",
    "doses",
    "deaths",
    "outages",
    "stirring",
)
KERNELS = ("bench_ring", "bench_od", "bench_tick", "bench_codec")
HEADER = "| command | what | figure | budget | met | remark |\n|---|---|---|---|---|---|\n"
INTRODUCTION = """# Results of the benchmarks

Written by `make bench` (`python -m benchmarks.run`); a section per machine, replaced when it is run there again. What
the rows mean, and how to repeat one of them: [docs/benchmarks.md](../docs/benchmarks.md).
"""


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def system_rows(command: str) -> list[str]:
    """Run `stirbar bench <command>`."""
    name, *options = command.split()
    shown = f"stirbar bench {command.replace(SOURCE, '.')}"
    return rows_of(shown, [sys.executable, "-m", "stirbar.core.cli", "bench", name, *options, "--json"])


def od_rows(name: str, quick: bool) -> list[str]:
    """Run `python -m benchmarks.<name>`; rows and figure are of one run."""
    options = ["--quick"] if quick else ["--plot"]
    return rows_of(f"python -m benchmarks.{name}", [sys.executable, "-m", f"benchmarks.{name}", *options, "--json"])


def rows_of(shown: str, command: list[str]) -> list[str]:
    """The rows that a command prints as JSON, or one that says why there are none."""
    shown = f"`{shown}`"
    done = subprocess.run(command, capture_output=True, text=True, cwd=SOURCE, env=child_environment([sys.executable]))
    if done.returncode:
        return [f"| {shown} | did not run | | | | {cell(done.stderr.strip()[-300:])} |"]
    result: dict[str, Any] = json.loads(done.stdout)
    rows = []
    for row in result["rows"]:
        met = {None: "", True: "yes", False: "**no**"}[row["met"]]
        rows.append(
            f"| {shown} | {cell(row['what'])} | {row['figure']} | {row['budget']} | {met} | {cell(row['note'])} |"
        )
        shown = ""
    rows[0] = rows[0][:-2] + cell(f" ({result['conditions']})") + " |" if result["conditions"] else rows[0]
    return rows


def kernel_rows() -> list[str]:
    """Each `time_*` of the asv suite: the best of five, per item."""
    rows = []
    for name in KERNELS:
        module = importlib.import_module(f"benchmarks.{name}")
        for title, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__ != module.__name__:
                continue
            bench = kind()
            cache = (bench.setup_cache(),) if hasattr(bench, "setup_cache") else ()
            bench.setup(*cache)
            for method in (method for method in dir(bench) if method.startswith("time_")):
                timer = timeit.Timer(lambda bench=bench, method=method, cache=cache: getattr(bench, method)(*cache))
                loops, _ = timer.autorange()
                best_s = min(timer.repeat(5, loops)) / loops
                figure = f"{format_number(1e9 * best_s / bench.items)} ns"
                rows.append(
                    f"| `asv run --bench {title}.{method}` | {title}, {method[5:].replace('_', ' ')}, "
                    f"each of {bench.items} | {figure} | | | best of 5, wall time |"
                )
    return rows


def grouped(lines: list[str]) -> dict[str, list[str]]:
    """Rows of a table by the command that stands in the first of them."""
    groups: dict[str, list[str]] = {}
    name = ""
    for line in lines:
        first = line.split("|")[1].strip()
        name = first or name
        groups.setdefault(name, []).append(line)
    return groups


def write(lines: list[str], title: str, keep: bool) -> None:
    """Put a machine's rows in its section; `keep` leaves those of other commands as they are."""
    parts = RESULTS.read_text(encoding="utf-8").split("\n## ")[1:] if RESULTS.exists() else []
    sections = {part.split("\n", 1)[0]: part.split("\n", 1)[1].strip("\n") for part in parts}
    groups = grouped(lines)
    if keep and title in sections:
        before = [line for line in sections[title].splitlines() if line.startswith(("| `", "|  |"))]
        groups = {**grouped(before), **groups}
    today = datetime.date.today().isoformat()
    text = (
        f"{today}. Load of the machine is part of the figures of wall time; the others do not depend on it.\n\n{HEADER}"
    )
    sections[title] = text + "\n".join(line for group in groups.values() for line in group)
    body = [f"{name}\n\n{section}" for name, section in sections.items()]
    RESULTS.write_text("\n## ".join([INTRODUCTION, *body]) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description="Measure this machine; write RESULTS.md."
    )
    parser.add_argument("--quick", action="store_true", help="short runs, printed and not written")
    parser.add_argument(
        "--only", metavar="NAME", action="append", help="only this system benchmark, or `kernels`; others' rows stay"
    )
    arguments = parser.parse_args()
    lines: list[str] = []
    for command in COMMANDS[arguments.quick]:
        if not arguments.only or command.split()[0] in arguments.only:
            print(f"stirbar bench {command}", file=sys.stderr, flush=True)
            lines += system_rows(command)
    for name in INSTRUMENT:
        if not arguments.only or name in arguments.only:
            print(f"python -m benchmarks.{name}", file=sys.stderr, flush=True)
            lines += od_rows(name, arguments.quick)
    if not arguments.only or "kernels" in arguments.only:
        print("kernels", file=sys.stderr, flush=True)
        lines += kernel_rows()
    if arguments.quick:
        print(HEADER + "\n".join(lines))
    else:
        write(lines, machine(), bool(arguments.only))
    return 0


if __name__ == "__main__":
    sys.exit(main())
