"""`python tests/outage_table.py` runs the outage matrix, long cases too, and writes its counts to docs/outages.md.

Further arguments are pytest's; with `-k CASE` the other rows stay as they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "outages.md"
MARKS = ("<!-- begin: python tests/outage_table.py -->", "<!-- end -->")

# What was done; the test of this name does it.
CASES = {
    "broker_restarted": "broker stopped and started, its persistence kept",
    "broker_killed_persistence_lost": "broker killed, its persistence lost",
    "leader_killed_mid_commit": "leader killed between the last row and the end of the transaction",
    "leader_killed_before_ack": "leader killed between commit and acknowledgement",
    "leader_disk_full": "leader's disk full, then room again",
    "bridge_killed_mid_write": "bridge killed with half a frame in the spool's file",
    "worker_killed": "worker killed with 7 readings that only its memory had",
    "simulated_worker_killed": "simulated worker killed (SIGKILL) at any moment, and started again",
    "spool_full": "broker away for longer than the spool has room (150 kB)",
    "unit_renamed": "unit renamed while it measures",
    "clock_unknown_until_ntp": "unit at 1970, without a leader at first, until the time comes",
    "clock_jumps_forward": "unit's clock jumps by +1 h and back",
    "clock_jumps_back": "unit's clock jumps by −1 h and back",
    "two_leaders": "two leaders of the same epoch, each with a store of its own",
    "leader_replaced": "a leader of a higher epoch, with an empty store, beside the old one",
    "leader_lost_standby_promoted": "leader killed, its standby promoted, two workers; the old one comes back",
    "network_cut_1_s": "network cut for 1 s (cable of a namespace)",
    "network_cut_1_min": "network cut for 1 min",
    "network_cut_24_h": "no leader for 24 h, a reading a second (virtual time)",
    "network_cut_24_h_at_full_rate": "no leader for 24 h, ten readings a second (virtual time)",
    "flapping_link": "link down 0.2 s and up 0.3 s, four times",
    "duplicated_and_reordered": "a third of the messages twice, a quarter behind the next, both ways",
}


def _lines() -> dict[str, str]:
    """The rows of the document, as they stand there, by case."""
    text = DOCUMENT.read_text()
    table = text[text.index(MARKS[0]) : text.index(MARKS[1])].splitlines()
    return {case: line for case, said in CASES.items() for line in table if line.startswith(f"| {said} |")}


def documented() -> dict[str, tuple[int, ...]]:
    """The rows of the document: (published, stored, duplicates, lost, gap records) by case."""
    return {case: tuple(map(int, line.split("|")[2:7])) for case, line in _lines().items()}


def main() -> int:
    """Run the matrix; write the table when every case passed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows"
        status = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "soak or not soak", str(ROOT / "tests" / "test_outages.py"),
             "--deselect", "tests/test_outages.py::test_the_document_has_every_case_with_its_counts", *sys.argv[1:]],
            env={**os.environ, "STIRBAR_OUTAGE_ROWS": str(file)},
            cwd=ROOT,
        ).returncode  # fmt: skip
        rows = {row["case"]: row for row in map(json.loads, file.read_text().splitlines())} if file.exists() else {}
    kept = _lines()
    missing = set(CASES) - set(rows) - set(kept)
    if status or missing:
        print(f"not written: {', '.join(sorted(missing)) or 'a test failed'}", file=sys.stderr)
        return 1
    lines = [
        "| case | published | stored | duplicates | lost | gap records | reason |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, said in CASES.items():
        row = rows.get(case)
        if row is None:
            lines.append(kept[case])
            continue
        counts = [row[name] for name in ("published", "stored", "duplicates", "lost", "gaps")]
        lines.append(f"| {said} | {' | '.join(map(str, counts))} | {', '.join(row['reasons'])} |")
    text = DOCUMENT.read_text()
    start, end = text.index(MARKS[0]) + len(MARKS[0]), text.index(MARKS[1])
    DOCUMENT.write_text(text[:start] + "\n" + "\n".join(lines) + "\n" + text[end:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
