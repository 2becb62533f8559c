"""`stirbar bench week` at small size, and the bytes in which a chart goes to the browser."""

from __future__ import annotations

import json

from stirbar.web.bench_week import STREAM_NAMES, bench_week
from stirbar.web.wire import lines_to_json


def test_the_charts_of_a_week_are_answered():
    result = bench_week(["--units", "2", "--rounds", "2"])
    figures = {row.what: row for row in result.rows}
    # 336 points of three values a line, and their times
    size = float(figures["charts of a week, warm, p50"].note.split()[0])
    assert size * 1e6 > 2 * len(STREAM_NAMES) * 336 * 30
    assert all(row.value > 0 for row in result.rows)
    assert figures["charts of a week, cold, CPU time, p50"].limit == 1000.0


def test_lines_are_json_with_nine_digits():
    values = [0.1, 1 / 3, -1e308, 5e-324, 12345678.912, 0.0]
    line = {"unit": 'a "name" %s', "t": [1.7e9 + 0.123456] * 6, "low": values, "high": values, "mean": values}
    (back, empty) = json.loads(lines_to_json([line, {**line, "t": [], "low": [], "high": [], "mean": []}]))
    assert (back["unit"], back["t"], empty["mean"]) == (line["unit"], line["t"], [])
    assert back["mean"] == back["low"] == [float(f"{value:.9g}") for value in values]
    assert json.loads(lines_to_json([])) == []
