"""Is every reading of an outage stored once, or named as lost? `python -m benchmarks.outages`

Runs the outage matrix (tests/test_outages.py): real brokers, leaders and bridges that are killed, stopped, cut off and
renamed. docs/outages.md has the same counts with their reasons.
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

ROOT = pathlib.Path(__file__).parents[1]


def measure(quick: bool) -> tuple[list[Row], dict[str, Any]]:
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "rows")
        chosen = "not soak" if quick else "soak or not soak"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", chosen]
        command.append("tests/test_outages.py")
        environment = {**os.environ, "STIRBAR_OUTAGE_ROWS": str(path)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout[-2000:])
        found = [json.loads(line) for line in path.read_text().splitlines()]
    rows = []
    for one in found:
        name = one["case"].replace("_", " ")
        unnamed = one["published"] - one["stored"] - one["lost"]
        note = f"{one['published']} published, {one['stored']} stored, {one['lost']} lost and named"
        rows.append(Row(f"{name}: neither stored nor named as lost", unnamed, "readings", 0, note=note))
        rows.append(Row(f"{name}: stored twice", one["duplicates"], "readings", 0))
    return rows, {}


if __name__ == "__main__":
    main(__doc__, measure, None)
