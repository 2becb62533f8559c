"""What every `python -m benchmarks.od_*` does with its figures: print them, and draw them in the same run."""

from __future__ import annotations

import json
import pathlib
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

from stirbar.core.bench import Result, Row

IMAGES = pathlib.Path(__file__).parents[1] / "docs" / "images"

Measure = Callable[[bool], tuple[list[Row], dict[str, Any]]]


def main(
    text: str | None, measure: Measure, plot: Callable[[dict[str, Any], str], None] | None, image: str = ""
) -> None:
    """Command line of one benchmark; `plot(details, path)` draws docs/images/<image>."""
    name = pathlib.Path(sys.argv[0]).stem
    parser = ArgumentParser(prog=f"python -m benchmarks.{name}", description=text)
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", action="store_true", help=f"draw docs/images/{image}" if plot else "nothing to draw")
    arguments = parser.parse_args()
    if arguments.plot and arguments.quick:
        parser.error("--plot draws what docs/ shows, --quick has too few runs for that: leave one of them out")
    rows, details = measure(arguments.quick)
    if arguments.plot and plot is not None:
        import matplotlib

        matplotlib.use("Agg")
        IMAGES.mkdir(exist_ok=True)
        plot(details, str(IMAGES / image))
    if arguments.json:
        print(json.dumps(Result(name, rows, "", {}).as_json(), default=lambda number: number.item()))
        return
    for row in rows:
        met = {None: "", True: "met", False: "MISSED"}[row.met]
        print(f"{row.what:62} {row.figure:>14}  {row.budget:>12} {met:7} {row.note}")
