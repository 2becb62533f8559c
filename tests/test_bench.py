"""Benchmarks run with small settings and say sane things; their readers of foreign output are held to known text."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from stirbar.bridge import bench as upper
from stirbar.core import bench, bench_instructions, bench_loop, bench_start, bench_virtual
from stirbar.core.bench import Row
from stirbar.rt.loop import Loop

PATH = "/usr/bin:/bin:/usr/sbin:/sbin"

needs_mosquitto = pytest.mark.skipif(shutil.which("mosquitto", path=PATH) is None, reason="mosquitto is not installed")
needs_valgrind = pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
needs_cyclictest = pytest.mark.skipif(
    shutil.which("cyclictest", path=PATH) is None, reason="cyclictest is not installed"
)


def sane(result):
    """Rows with finite figures that survive JSON, by what they measure."""
    told = json.loads(json.dumps(result.as_json()))
    assert told["rows"]
    for row in told["rows"]:
        assert math.isfinite(row["value"]) and row["value"] >= 0, row
        assert (row["met"] is None) == (row["budget"] == "")
    return {row["what"]: row["value"] for row in told["rows"]}


# --- the command -----------------------------------------------------------------------------------------------------


def test_unknown_benchmark_is_refused_with_the_nearest_name(capsys):
    assert bench.main(["lop"]) == 2
    assert "did you mean 'loop'" in capsys.readouterr().err


def test_usage_names_every_benchmark(capsys):
    assert bench.main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(f"  {name} " in usage for name in [*bench.BENCHMARKS, *bench.UPPER_BENCHMARKS])


def test_every_benchmark_named_here_can_be_loaded():
    assert all(callable(bench.find(name)) for name in bench.BENCHMARKS)
    assert bench.find("nonsense") is None


def test_bad_options_are_one_sentence_and_status_1(capsys):
    assert bench.main(["loop", "--rate", "50000"]) == 1
    assert "--rate is at most" in capsys.readouterr().err


def test_budgets_have_a_direction():
    assert Row("a", 2.0, "s", 2.0).met is True
    assert Row("a", 2.1, "s", 2.0).met is False
    assert Row("a", 99.8, "%", 99.9, at_least=True).met is False
    assert Row("a", 1.0, "s").met is None
    assert Row("a", 99.8, "%", 99.9, at_least=True).budget == "≥ 99.9 %"


def test_json_is_one_line(capsys):
    assert bench.main(["capture", "--seconds", "5", "--measure", "1", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert {"benchmark", "rows", "machine", "conditions", "details"} <= set(json.loads(lines[0]))


# --- readers of foreign output ---------------------------------------------------------------------------------------


def test_quantiles_lie_within_their_bin():
    bins = [(0.0, 10.0, 50), (10.0, 20.0, 0), (20.0, 40.0, 50)]
    assert bench_loop.quantile(bins, 0.25) == 5.0
    assert bench_loop.quantile(bins, 0.75) == 30.0
    assert bench_loop.quantile(bins, 1.0) == 40.0
    assert math.isnan(bench_loop.quantile([(0.0, 1.0, 0)], 0.5))


def test_cyclictest_output_is_read_with_its_overflows():
    text = "# Histogram\n000000 000000\t000001\n000007 000090\t000009\n# Total: 000000090 000000010\n"
    text += "# Max Latencies: 45000 00007\n# Histogram Overflows: 00010 00000\n"
    first, second = bench_loop.parse_cyclictest(text)
    assert sum(count for _, _, count in first) == 100
    assert bench_loop.quantile(first, 0.5) == pytest.approx(7555.5, abs=1)
    assert first[-1] == (30e6, 45e6, 10)
    assert bench_loop.percentiles(second)["max"] == 8.0


def test_unreadable_cyclictest_output_is_refused():
    with pytest.raises(bench.BenchError, match="no histogram"):
        bench_loop.parse_cyclictest("WARN: stat /dev/cpu_dma_latency failed\n")


def test_callgrind_profiles_add_up_calls_by_function_and_object():
    text = """events: Ir
ob=(1) /usr/bin/python3
fn=(1) main
1 100
cob=(2) loop.so
cfn=(2) 0x0000000000001000
calls=3 0
+1 60
cfn=(3) 0x0000000000001000
calls=1 0
* 7
ob=(2)
fn=(2)
5 40
cfn=(4) 0x0000000000002000
calls=2 0
-1 20
fn=(4)
9 20
"""
    profile = bench_instructions.parse_callgrind(text.splitlines())
    assert profile.total == 160
    assert profile.inclusive[("loop.so", "0x0000000000001000")] == 60
    assert profile.inclusive[("/usr/bin/python3", "0x0000000000001000")] == 7
    assert profile.inclusive[("loop.so", "0x0000000000002000")] == 20
    assert profile.calls[("loop.so", "0x0000000000002000")] == 2


# --- the benchmarks, briefly -----------------------------------------------------------------------------------------


@needs_cyclictest
def test_loop_beside_cyclictest():
    result = bench_loop.bench_loop(["--rate", "500", "--seconds", "1", "--slice", "0.5"])
    rows = sane(result)
    assert sum(name.endswith("of cyclictest's") for name in rows) == 4
    lateness = result.details["lateness_us"]["undisturbed"]
    assert 0 < lateness["actuators"]["p50"] <= lateness["actuators"]["p99"] <= lateness["actuators"]["max"]
    faults = next(row for row in result.rows if row.what.startswith("page faults"))
    assert faults.value == 0


@needs_valgrind
def test_instructions_of_the_loop_and_the_vial(monkeypatch):
    monkeypatch.setattr(bench_instructions, "SETTLE_S", 0.5)
    found = bench_instructions.count(0.5, [])
    assert 500 < found["ticks"] < 800
    assert 200 < found["loop_per_tick"] < 5000
    assert 100 < found["vial_per_conversion"] < 3000


def test_twin_scales_to_a_day():
    result = bench_virtual.bench_twin(["--hours", "0.02"])
    assert all(0 < value < 3600 for value in sane(result).values())
    assert result.details["worker_counters"]["conversions"] > 0.9 * 72 * 1500


def test_capture_finds_every_conversion():
    rows = sane(bench_virtual.bench_capture(["--seconds", "10", "--measure", "1"]))
    assert len(rows) == 6
    assert min(share for what, share in rows.items() if "late" not in what) >= 99.9
    assert 0 < min(rows.values()) <= 100, "how late this machine's threads are is not the loop's doing"


def test_a_virtual_thread_that_wakes_late_misses_what_was_overwritten():
    config = bench.worker_config()
    missed = {}
    for late_ns in (200_000, 2_500_000):
        loop = Loop(config, virtual=True)
        loop.wake_late([0] * 99 + [late_ns])
        bench_virtual.run_loop(loop, config, 5.0)
        missed[late_ns] = loop.counters()["missed_conversions"]
    assert missed[200_000] == 0
    assert missed[2_500_000] > 100
    with pytest.raises(ValueError, match="quantiles"):
        loop.wake_late([])


def test_raw_storage_is_near_its_entropy():
    rows = sane(bench_virtual.bench_raw(["--seconds", "10", "--hours", "0.02"]))
    files = [bytes for what, bytes in rows.items() if what.startswith("file, everything included")]
    assert len(files) == 3 and min(files) > rows["stored raw conversion, time and light included, usual disturbances"]
    assert 0.3 < rows["stored raw conversion, time and light included, quiet trace"] < 1.1
    assert 0.5 < rows["size of the empirical entropy, quiet trace"] < 1.5


def test_start_sees_the_first_readings():
    rows = sane(bench_start.bench_start(["--runs", "1"]))
    anything, density = rows["process start to first reading of anything"], max(rows.values())
    assert 0.02 < anything <= density < 20


def test_ingest_counts_what_it_stored():
    rows = sane(upper.bench_ingest(["--units", "3", "--seconds", "4", "--per-second", "5"]))
    assert rows["readings of one CPU second"] > 1000


@needs_mosquitto
def test_bridge_loses_nothing():
    rows = sane(upper.bench_bridge(["--rate", "200", "--seconds", "1.5"]))
    assert rows["readings lost"] == 0
    assert 5 < rows["CPU of a message at 200/s, live and stored"] < 20_000


@needs_mosquitto
def test_latency_is_that_of_live_readings():
    rows = sane(upper.bench_latency(["--seconds", "3"]))
    assert 0 < rows["optical density: end of window to the leader's listeners, p99"] < 5000


@needs_mosquitto
def test_a_worker_runs_on_while_bridge_and_broker_are_stopped():
    result = upper.bench_stopped(["--rounds", "1", "--slice", "1"])
    rows = sane(result)
    assert rows["readings that found the loop's ring full"] == 0
    assert result.details["stopped_us"]["sampling"]["p50"] > 0


@needs_mosquitto
def test_footprint_over_tls(monkeypatch):
    monkeypatch.setattr(upper, "SETTLE_S", 0.2)
    result = upper.bench_footprint(["--seconds", "1.5"])
    rows = sane(result)
    assert 5 < rows["worker, RSS"] < 80
    assert rows["worker and bridge, PSS"] <= rows["worker, RSS"] + rows["bridge, RSS"]
    assert result.details["tls"] is True
