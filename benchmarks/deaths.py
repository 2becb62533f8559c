"""How long until everything is safe after a death? `python -m benchmarks.deaths`

Worker and guard are killed (SIGKILL) and stopped (SIGSTOP) at random moments, fifty times each, while heater, stirrer,
a pump and the LED of a fake board are on; what is on is read from the board itself, each millisecond
(tests/test_deaths.py). Nothing here has real-time priority unless it was granted.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from stirbar.core.bench import Row

from .od_report import main

ROUNDS, QUICK_ROUNDS = 50, 3
ROOT = pathlib.Path(__file__).parents[1]


def measure(quick: bool) -> tuple[list[Row], dict[str, Any]]:
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "deaths")
        rounds = str(QUICK_ROUNDS if quick else ROUNDS)
        environment = {**os.environ, "STIRBAR_DEATHS": rounds, "STIRBAR_DEATHS_FILE": str(path)}
        environment["STIRBAR_BOARD_SECONDS"] = "3000"
        environment.pop("STIRBAR_HIL", None)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_deaths.py"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout[-2000:])
        found = [json.loads(line) for line in path.read_text().splitlines()]
    rows = []
    for one in found:
        note = f"{one['rounds']} times, on the {one['where']} board"
        rows.append(Row(f"{one['death']}: everything off, p50", 1e3 * one["p50_s"], "ms", note=note))
        rows.append(Row(f"{one['death']}: everything off, longest", 1e3 * one["max_s"], "ms", 1e3 * one["within_s"]))
    return rows, {}


if __name__ == "__main__":
    main(__doc__, measure, None)
