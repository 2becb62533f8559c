"""`stirbar bench NAME`: measure this machine against the budgets of the design.

A benchmark is a function `(arguments: list[str]) -> Result`. Those of this room are named here; those of higher rooms
are found through the entry-point group `stirbar.benchmarks`. Figures are ratios of one run, instruction counts, bytes
and CPU time, because machines differ; each row states its budget, and a missed one says why.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

GROUP = "stirbar.benchmarks"

# name: (module:function, one line of help)
BENCHMARKS: dict[str, tuple[str, str]] = {
    "loop": (
        "stirbar.core.bench_loop:bench_loop",
        "lateness beside cyclictest, page faults, undisturbed and disturbed",
    ),
    "instructions": ("stirbar.core.bench_instructions:bench_instructions", "instructions of a tick, the vial apart"),
    "twin": ("stirbar.core.bench_virtual:bench_twin", "speed of virtual time"),
    "capture": ("stirbar.core.bench_virtual:bench_capture", "distinct conversions captured, converter clock 10 % off"),
    "raw": ("stirbar.core.bench_virtual:bench_raw", "bytes of a stored raw conversion"),
    "start": ("stirbar.core.bench_start:bench_start", "from process start to the first reading"),
}
UPPER_BENCHMARKS: dict[str, str] = {
    "footprint": "memory and CPU of worker and bridge",
    "bridge": "CPU of the bridge per message and per stored block",
    "ingest": "readings a second into the store, CPU and bytes of a reading",
    "stopped": "lateness of a worker while bridge and broker are stopped",
    "latency": "from the last conversion of a reading to the broker's subscriber",
    "page": "from the last conversion of a reading to its point in the browser",
    "week": "charts of a week of a hundred units",
    "overview": "the overview of a thousand units in a browser",
    "leader": "a thousand units' readings into one leader: stored, lost, lag, CPU and memory",
}


class BenchError(Exception):
    """One sentence: why a benchmark cannot run here, and what to do."""


@dataclass(frozen=True)
class Row:
    """One figure. `limit` is None where there is no budget; `at_least` turns its direction."""

    what: str
    value: float
    unit: str
    limit: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.limit is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def budget(self) -> str:
        return "" if self.limit is None else f"{'≥' if self.at_least else '≤'} {self.limit:g} {self.unit}".rstrip()

    @property
    def figure(self) -> str:
        return f"{format_number(self.value)} {self.unit}".rstrip()


@dataclass
class Result:
    """What a benchmark found: rows for people, `details` for programs, `conditions` in which it ran."""

    benchmark: str
    rows: list[Row]
    conditions: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        rows = [{**asdict(row), "met": row.met, "budget": row.budget, "figure": row.figure} for row in self.rows]
        return {"benchmark": self.benchmark, "conditions": self.conditions, "rows": rows, "details": self.details}


def format_number(value: float) -> str:
    """Four significant digits, without an exponent in the usual range."""
    if value != value:
        return "not measured"
    if value and (abs(value) >= 1e7 or abs(value) < 1e-3):
        return f"{value:.3e}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def parser_for(name: str, text: str) -> ArgumentParser:
    """A parser with what every benchmark understands."""
    parser = ArgumentParser(prog=f"stirbar bench {name}", description=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def positive(text: str) -> float:
    """A number above 0, for ArgumentParser."""
    number = float(text)
    if not 0.0 < number < float("inf"):
        raise ValueError(text)
    return number


def worker_config(arguments: Namespace | None = None, overrides: Sequence[tuple[str, str, str]] = ()) -> Any:
    """The configuration that the user's files give, simulated, with a benchmark's own overrides last."""
    from stirbar.core.config import load_config, parse_overrides

    given = parse_overrides(arguments.set or []) if arguments is not None and getattr(arguments, "set", None) else []
    path = getattr(arguments, "config", None)
    unit_path = getattr(arguments, "unit_config", None)
    return load_config(path, unit_path, [*given, ("unit", "simulate", "1"), *overrides])


def child_environment(python: Sequence[str]) -> dict[str, str]:
    """The environment of a child: one of this interpreter finds the stirbar that runs here, another has its own."""
    environment = dict(os.environ)
    if python[0] == sys.executable:
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in sys.path if path)
    else:
        environment.pop("PYTHONPATH", None)
    return environment


def find(name: str) -> Callable[[list[str]], Result] | None:
    """The benchmark of that name, or None."""
    from stirbar.core.cli import load

    if name in BENCHMARKS:
        found: Any = load(BENCHMARKS[name][0])
        return found  # type: ignore[no-any-return]
    from importlib.metadata import entry_points

    for entry in entry_points(group=GROUP, name=name):
        return entry.load()  # type: ignore[no-any-return]
    return None


def usage() -> str:
    """The page of text of `stirbar bench --help`."""
    lines = ["usage: stirbar bench NAME [--json] [OPTIONS]", "", "benchmarks:"]
    lines += [f"  {name:13} {text}" for name, (_, text) in BENCHMARKS.items()]
    lines += [f"  {name:13} {text}" for name, text in UPPER_BENCHMARKS.items()]
    lines += ["", "`stirbar bench NAME --help` explains one. What they mean: docs/benchmarks.md."]
    return "\n".join(lines)


def table(result: Result) -> str:
    """The rows as text."""
    lines = [f"{result.benchmark}: {result.conditions}"] if result.conditions else [result.benchmark]
    width = max((len(row.what) for row in result.rows), default=0)
    figures = max((len(row.figure) for row in result.rows), default=0)
    for row in result.rows:
        verdict = "" if row.met is None else f"{row.budget:>16}  {'met' if row.met else 'MISSED'}"
        lines.append(f"  {row.what:{width}}  {row.figure:>{figures}}  {verdict}".rstrip())
        if row.note:
            lines.append(f"      {row.note}")
    return "\n".join(lines)


def machine() -> str:
    """Processor, processors, kernel and Python, in a line."""
    model = os.uname().machine
    try:
        with open("/proc/cpuinfo") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.lower().startswith(("model name", "hardware"))
            ]
        model = names[0] if names else model
    except OSError:
        pass
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{model}, {os.cpu_count()} CPUs, Linux {os.uname().release}, Python {python}"


def main(argv: list[str]) -> int:
    """`stirbar bench`: 0 when it ran, whether or not budgets were met; 1 when it could not."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    benchmark = find(argv[0])
    if benchmark is None:
        import difflib

        near = difflib.get_close_matches(argv[0], [*BENCHMARKS, *UPPER_BENCHMARKS], 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        print(f"stirbar bench: no benchmark '{argv[0]}'{hint} (see `stirbar bench --help`)", file=sys.stderr)
        return 2
    try:
        result = benchmark(argv[1:])
    except (BenchError, ValueError, OSError) as error:
        print(f"stirbar bench {argv[0]}: {error}", file=sys.stderr)
        return 1
    print(json.dumps({**result.as_json(), "machine": machine()}) if "--json" in argv[1:] else table(result))
    return 0
