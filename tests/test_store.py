"""The store: exact counts whatever order blocks come in, marks never ahead of the data, charts against a twin."""

from __future__ import annotations

import csv
import io
import itertools
import math
import os
import pathlib
import random
import signal
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import psycopg
import pytest
import stirbar.bridge.sqlite_store as sqlite_store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgres import fresh, server
from stirbar.bridge.blocks import Coverage
from stirbar.bridge.sqlite_reader import CSV_COLUMNS
from stirbar.bridge.store import StoreError, StoreUnavailable, open_store
from stirbar.core.records import READING, Header
from units import START_NS, block, chunk, event, gap, identity, value_of, wall_ns

UNIT, RUN = identity(1), identity(100)
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def postgres():
    with server() as address:
        yield address


@pytest.fixture(params=["sqlite", "postgres"])
def store(request, tmp_path):
    if request.param == "sqlite":
        place = tmp_path / "leader.sqlite"
    else:
        place = fresh(request.getfixturevalue("postgres"), f"t{next(NUMBERS)}")
    one = open_store(place)
    one.place = place
    yield one
    one.close()


@pytest.fixture
def sqlite_only(tmp_path):
    """For what a file alone can do."""
    one = open_store(tmp_path / "leader.sqlite")
    one.place = one.path
    yield one
    one.close()


def connected(place):
    """A connection beside the store's."""
    return sqlite3.connect(place) if isinstance(place, pathlib.Path) else psycopg.connect(place)


def rows(place, statement: str) -> list:
    with connected(getattr(place, "place", place)) as connection:
        return connection.execute(statement).fetchall()


def sequences(store) -> list[int]:
    return [row[0] for row in rows(store, "SELECT id & 1099511627775 FROM reading ORDER BY id")]


def assert_consistent(store) -> dict[int, int]:
    """Coverage, rows, gaps and both roll-ups tell the same story; return {run: readings}."""
    with connected(getattr(store, "place", store)) as connection:
        run_of = dict(connection.execute("SELECT id, run FROM series"))
        held: dict[int, set[int]] = {}
        for (identifier,) in connection.execute("SELECT id FROM reading"):
            held.setdefault(run_of[identifier >> 40], set()).add(identifier & 0xFFFFFFFFFF)
        for run, first, count in connection.execute("SELECT run, first_sequence, count FROM gap WHERE stream = 2"):
            held.setdefault(run, set()).update(range(first, first + count))
        covered: dict[int, set[int]] = {}
        for run, first, end in connection.execute(
            "SELECT run, first_sequence, end_sequence FROM coverage WHERE stream = 2"
        ):
            covered.setdefault(run, set()).update(range(first, end))
        assert covered == held
        (readings,) = connection.execute("SELECT count(*) FROM reading").fetchone()
        for level in (10, 60, 900):
            counted = connection.execute(f"SELECT coalesce(sum(count), 0) FROM rollup_{level}s").fetchone()[0]
            assert counted == readings
    return {run: len(found) for run, found in held.items()}


# Order, duplicates, holes


def test_in_order(store):
    for first in range(0, 1000, 10):
        store.add(*block(first, 10))
    assert store.high_water(UNIT, RUN) == {}
    assert store.expected(UNIT, RUN, 2) == 1000
    assert store.commit() == {(UNIT, RUN, 2): 1000}
    assert store.high_water(UNIT, RUN) == {2: 1000}
    assert sequences(store) == list(range(1000))
    assert store.commit() == {}


def test_out_of_order_duplicates_and_overlaps(store):
    rng = random.Random(4)
    places = [(first, 10) for first in range(0, 500, 10)]
    places += [(rng.randrange(480), rng.randrange(1, 20)) for _ in range(100)]
    rng.shuffle(places)
    sent = sum(count for _, count in places)
    for number, (first, count) in enumerate(places):
        store.add(*block(first, count))
        if number % 7 == 0:
            store.commit()
    store.commit()
    assert sequences(store) == list(range(500))
    assert store.high_water(UNIT, RUN) == {2: 500}
    counters = store.counters()
    assert (counters["readings"], counters["duplicates"]) == (500, sent - 500)
    assert assert_consistent(store) == {1: 500}
    assert rows(store, "SELECT first_sequence, end_sequence FROM coverage") == [(0, 500)]


def test_the_mark_stays_before_a_hole(store):
    store.add(*block(0, 10))
    store.add(*block(20, 10))
    assert store.commit() == {(UNIT, RUN, 2): 10}
    store.add(*block(40, 5))
    assert store.commit() == {}
    assert sequences(store) == [*range(10), *range(20, 30), *range(40, 45)]
    store.add(*gap(10, 10))
    assert store.commit() == {(UNIT, RUN, 2): 30}
    store.add(*gap(25, 20))  # only what is really missing becomes a gap
    assert store.commit() == {(UNIT, RUN, 2): 45}
    found = [(one["first_sequence"], one["count"], one["reason"]) for one in store.gaps(UNIT)]
    assert found == [(30, 10, "spool full"), (10, 10, "spool full")]
    assert store.counters()["lost"] == 20
    assert_consistent(store)


def test_marks_survive_reopening(store):
    store.add(*block(0, 10))
    store.add(*block(20, 10))
    store.add(*block(0, 5, run=identity(101)))
    store.close()
    again = open_store(store.place)
    assert again.high_water(UNIT, RUN) == {2: 10}
    assert again.high_water(UNIT, identity(101)) == {2: 5}
    assert again.expected(UNIT, RUN, 2) == 10
    again.add(*block(5, 15))
    assert again.commit() == {(UNIT, RUN, 2): 30}
    assert again.counters()["readings"] == 10
    assert len(rows(store, "SELECT * FROM run")) == 2
    again.close()


def test_streams_runs_and_units_are_apart(store):
    for unit in (1, 2):
        for run in (100, 101):
            for stream in (1, 2, 8):
                store.add(*block(0, unit * 10 + run + stream, unit=identity(unit), run=identity(run), stream=stream))
    store.commit()
    for unit in (1, 2):
        for run in (100, 101):
            marks = {stream: unit * 10 + run + stream for stream in (1, 2, 8)}
            assert store.high_water(identity(unit), identity(run)) == marks


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=40),
    st.tuples(st.integers(0, 60), st.integers(0, 20)),
)
def test_coverage_against_a_set(spans, question):
    coverage, twin = Coverage(), set()
    for first, count in spans:
        coverage.add(first, first + count)
        twin.update(range(first, first + count))
    assert {number for first, end in coverage.spans for number in range(first, end)} == twin
    assert all(one[1] < other[0] for one, other in zip(coverage.spans, coverage.spans[1:], strict=False))
    assert coverage.mark == next(number for number in range(200) if number not in twin)
    first, count = question
    missing = coverage.missing(first, first + count)
    assert [number for start, end in missing for number in range(start, end)] == [
        number for number in range(first, first + count) if number not in twin
    ]


# Bad input


edges64 = st.sampled_from([0, 1, -1, 2**40, 2**40 - 1, 2**62, 2**63 - 1, -(2**63), 10**18])
unsigned = st.one_of(st.integers(0, 50), st.sampled_from([2**32 - 1, 2**40 - 2, 2**40, 2**64 - 1]))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nothing_that_is_accepted_can_spoil_a_commit(store, data):
    draw = data.draw
    kind, stream = (
        draw(st.sampled_from([1, 1, 2, 3, 4, 4, 5, 6, 9])),
        draw(st.sampled_from([0, 1, 2, 8, 16, 17, 18, 20])),
    )
    first, count = draw(unsigned), draw(st.integers(0, 3))
    clocks = [draw(edges64) for _ in range(3)]
    name = draw(st.text(max_size=5))
    head = Header(kind, stream, 88 if kind == 1 else 0, count, first, UNIT, RUN, b"b" * 16, *clocks, name)
    if kind == 1:
        number = st.floats(allow_nan=True, allow_infinity=True)
        angle = draw(st.sampled_from([0, 90, 65535]))
        right = (*([float("nan")] * 8), 2**32 - 1, 0, 2**32 - 1, 0, stream, angle, 65535, 1)
        body = b"".join(
            READING.pack((first + index) % 2**64, draw(edges64), draw(edges64), draw(number), *right)
            for index in range(count)
        )
    elif kind == 4:
        values = st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.none(), max_size=2))
        body = str(draw(st.dictionaries(st.sampled_from(["wall_ns", "level", "code", "value"]), values))).encode(
            "utf-8", "replace"
        )
        if draw(st.booleans()):
            body = b'{"wall_ns": 7, "message": "\\ud800 \\u0000", "value": NaN, "code": 1e999}'
    else:
        body = draw(
            st.sampled_from([b"", b'{"reason": "\\ud800"}', b'{"reason": 4}', b"[]", b"x" * 20, chunk(0, 2)[1]])
        )
    try:
        store.add(head, body)
    except ValueError:
        return
    store.commit()
    store.events(), store.gaps()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda head, body: (head, body[:-1]), "bytes came"),
        (lambda head, body: (head, body[88:] + body[:88]), "reading with sequence"),
        (lambda head, body: (_with(head, stream=1), body), "stream 2"),
        (lambda head, body: (_with(head, stream=7), body), "unknown stream 7"),
        (lambda head, body: (_with(head, stream=16), body), "readings in stream event"),
        (lambda head, body: (_with(head, record_size=16), body), "16 bytes announced"),
        (lambda head, body: (_with(head, count=0), b""), "count 0"),
        (lambda head, body: (_with(head, kind=2), body), "kind 2 does not belong"),
        (lambda head, body: (_with(head, realtime_ns=-5), body), "out of range"),
        (lambda head, body: (_with(head, first_sequence=2**40), body), "out of range"),
    ],
)
def test_damaged_blocks_are_refused_whole(store, change, message):
    with pytest.raises(ValueError, match=message):
        store.add(*change(*block(0, 3)))
    assert store.commit() == {}
    assert rows(store, "SELECT count(*) FROM reading") == [(0,)]


def _with(head: Header, **fields: int) -> Header:
    for name, value in fields.items():
        setattr(head, name, value)
    return head


def test_raw_chunk_with_a_wrong_checksum_is_refused(store):
    head, payload = chunk(0, 50)
    with pytest.raises(ValueError, match="CRC-32"):
        store.add(head, payload[:-1] + b"?")


# Faults


WRITER = """
import sys
sys.path[:0] = sys.argv[3:]
from stirbar.bridge.store import open_store
from units import block, identity
store = open_store(sys.argv[1])
sequence = store.expected(identity(1), identity(100), 2)
while True:
    for _ in range(30):
        store.add(*block(sequence, 10))
        store.add(*block(sequence, 10, run=identity(101)))
        sequence += 10
    store.add(*block(sequence + 10, 10))  # behind a hole, which the next round fills
    for mark in store.commit().values():
        print(mark, flush=True)
"""


def test_killed_at_any_moment_marks_equal_data(tmp_path):
    path = tmp_path / "leader.sqlite"
    rng = random.Random(7)
    acknowledged = 0
    for _ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), "", *sys.path], stdout=subprocess.PIPE, text=True
        )
        for _ in range(rng.randrange(2, 8)):
            acknowledged = int(child.stdout.readline())
        threading.Event().wait(rng.uniform(0.0, 0.01))  # anywhere within the next transaction
        child.send_signal(signal.SIGKILL)
        child.wait()
        acknowledged = max([acknowledged, *map(int, child.stdout.read().split())])
        child.stdout.close()
        store = open_store(path)
        mark = store.high_water(UNIT, RUN)[2]
        store.close()
        assert mark >= acknowledged
        assert_consistent(path)
        with sqlite3.connect(path) as connection:
            (held,) = connection.execute(
                "SELECT count(*) FROM reading JOIN series ON series.id = reading.id >> 40 "
                "WHERE run = 1 AND reading.id & 1099511627775 < ?",
                (mark,),
            ).fetchone()
        assert held == mark
    assert acknowledged > 1000


def test_locked_database_keeps_everything_for_the_next_try(store):
    store.add(*block(0, 10))
    other = connected(store.place)
    if isinstance(store.place, str):
        other.execute("LOCK TABLE leadership IN ACCESS EXCLUSIVE MODE")
    else:
        other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="lock"):
        store.commit()
    with pytest.raises(StoreUnavailable, match="lock"):
        store.create_experiment("x")
    store.add(*block(10, 10))
    assert store.high_water(UNIT, RUN) == {}
    other.rollback()
    other.close()
    assert store.commit() == {(UNIT, RUN, 2): 20}
    store.create_experiment("x")
    assert store.counters()["commit_failures"] == 2
    assert assert_consistent(store) == {1: 20}


def test_full_disk(sqlite_only):
    store = sqlite_only
    store.add(*block(0, 10))
    assert store.commit() == {(UNIT, RUN, 2): 10}
    (pages,) = store._writer.execute("PRAGMA page_count").fetchone()
    store._writer.execute(f"PRAGMA max_page_count = {pages + 2}")
    for first in range(10, 2010, 10):
        store.add(*block(first, 10))
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="full"):
            store.commit()
    assert store.high_water(UNIT, RUN) == {2: 10}
    store._writer.execute("PRAGMA max_page_count = 1000000")
    assert store.commit() == {(UNIT, RUN, 2): 2010}
    assert assert_consistent(store) == {1: 2010}


def test_too_much_waiting_is_refused_whole(store, monkeypatch):
    monkeypatch.setattr(sqlite_store, "PENDING_LIMIT_BYTES", 10_000)
    taken = 0
    with pytest.raises(StoreUnavailable, match="wait for a commit"):
        for taken in range(0, 10_000, 10):
            store.add(*block(taken, 10))
    assert store.expected(UNIT, RUN, 2) == taken
    assert store.commit() == {(UNIT, RUN, 2): taken}
    store.add(*block(taken, 10))
    assert store.commit() == {(UNIT, RUN, 2): taken + 10}


def test_a_second_leader_is_kept_away(store):
    with pytest.raises(StoreError, match="in use by another leader"):
        open_store(store.place)


def test_what_is_no_store_of_ours(tmp_path):
    with pytest.raises(StoreError, match="mysql"):
        open_store("mysql://localhost/x")
    with pytest.raises(StoreError, match=r"postgresql://me@.*nobody-here"):
        open_store("postgresql://me:secret@127.0.0.1:1/nobody-here")
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE t (x)")
    with pytest.raises(StoreError, match="something else"):
        open_store(foreign)
    text = tmp_path / "text.sqlite"
    text.write_text("not a database at all, but long enough to be looked at by SQLite " * 20)
    with pytest.raises(StoreError, match="not a database"):
        open_store(f"sqlite://{text}")
    with pytest.raises(StoreError, match="cannot be made"):
        open_store(text / "below.sqlite")
    new = tmp_path / "new.sqlite"
    open_store(new).close()
    with sqlite3.connect(new) as connection:
        newest = max(int(step.name[:4]) for step in sqlite_store.MIGRATIONS.glob("*.sql"))
        assert connection.execute("PRAGMA user_version").fetchone() == (newest,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        connection.execute("PRAGMA user_version = 9999")
    with pytest.raises(StoreError, match="schema version 9999"):
        open_store(new)


# Charts


def fill(store, count: int, **kwargs) -> tuple[np.ndarray, np.ndarray]:
    """Store `count` readings; return their times and values."""
    for first in range(0, count, 500):
        store.add(*block(first, min(500, count - first), **kwargs))
    store.commit()
    numbers = range(count)
    return np.array([wall_ns(n) for n in numbers]) / 1e9, np.array([value_of(n) for n in numbers])


def slow_series(times_ns: list[int], values: np.ndarray, start_s: float, end_s: float, points: int) -> dict[str, list]:
    """What `series` promises, reading by reading."""
    width_s = (end_s - start_s) / points
    level = max((one for one in (10, 60, 900) if 0.7 * one <= width_s <= one or width_s >= 1.5 * one), default=0)
    start_ns, end_ns = round(start_s * 1e9), round(end_s * 1e9)
    origin_ns, width_ns = start_ns, math.ceil((end_ns - start_ns) / points)
    if level:
        origin_ns, width_ns = 0, math.ceil(width_s / level) * level * 10**9
        start_ns = math.floor(start_s / level) * level * 10**9
        end_ns = math.ceil(end_s / level) * level * 10**9
    inside = [(at, value) for at, value in zip(times_ns, values.tolist(), strict=True) if start_ns <= at < end_ns]
    bins: dict[int, list[float]] = {}
    for at, value in inside:
        bins.setdefault((at - origin_ns) // width_ns, []).append(value)
    if not level and len(inside) <= points:
        return {
            "t": [at / 1e9 for at, _ in inside],
            **{name: [v for _, v in inside] for name in ("low", "high", "mean")},
        }
    return {
        "t": [(origin_ns + (number + 0.5) * width_ns) / 1e9 for number in bins],
        "low": [min(found) for found in bins.values()],
        "high": [max(found) for found in bins.values()],
        "mean": [math.fsum(found) / len(found) for found in bins.values()],
    }


@pytest.mark.parametrize("points", [1, 7, 100, 600, 2000])
@pytest.mark.parametrize("span_s", [20.0, 300.0, 1999.9, 3600.0, 86_400.0])
def test_series_against_a_slow_twin(store, points, span_s):
    count = 20_000
    t, v = fill(store, count)
    start = float(t[0]) + (500.2 if span_s < 400 else -333.3)
    end = start + span_s
    (line,) = store.series(2, start, end, points)
    assert (line["unit_id"], line["unit"], line["stream"], line["angle"]) == (UNIT, UNIT.hex(), 2, 90)
    twin = slow_series([wall_ns(number) for number in range(count)], v, start, end, points)
    assert 1 <= len(line["t"]) <= points + 1
    assert line["t"] == pytest.approx(twin["t"], rel=1e-15)
    assert (line["low"], line["high"]) == (twin["low"], twin["high"])
    assert line["mean"] == pytest.approx(twin["mean"], rel=1e-12)


def test_few_readings_come_as_they_are(store):
    t, v = fill(store, 1000)
    (line,) = store.series(2, t[100], t[150], 600)
    assert line["t"] == t[100:150].tolist()
    assert line["low"] == line["high"] == line["mean"] == v[100:150].tolist()


def test_series_by_unit_experiment_angle_and_over_runs(store):
    store.add(*block(0, 100))
    store.add(*block(100, 100, experiment="second"))
    store.add(*block(200, 100, run=identity(101)))
    store.add(*block(0, 50, unit=identity(2), run=identity(200), angle=135))
    store.commit()
    start, end = wall_ns(0) / 1e9, wall_ns(300) / 1e9
    shape = lambda lines: [(line["unit_id"], line["angle"], len(line["t"])) for line in lines]  # noqa: E731
    assert shape(store.series(2, start, end, 1000)) == [(UNIT, 90, 300), (identity(2), 135, 50)]
    assert shape(store.series(2, start, end, 1000, unit_ids=[identity(2)])) == [(identity(2), 135, 50)]
    assert shape(store.series(2, start, end, 1000, experiment="second")) == [(UNIT, 90, 100)]
    assert store.series(2, start, end, 1000, experiment="none") == []
    assert store.series(2, start, end, 1000, unit_ids=[]) == []
    assert store.series(1, start, end, 1000) == []
    assert max(count for _, _, count in shape(store.series(2, start, end, 100))) <= 101
    with pytest.raises(StoreError, match="start < end"):
        store.series(2, end, start, 100)


def test_nan_and_infinity_do_not_reach_charts(store):
    head, body = block(0, 6)
    records = [list(record) for record in READING.iter_unpack(body)]
    for record, value in zip(records, (math.nan, math.inf, -math.inf, 1e308, 1e308, 1.0), strict=True):
        record[3] = value
    store.add(head, b"".join(READING.pack(*record) for record in records))
    store.commit()
    (line,) = store.series(2, wall_ns(0) / 1e9, wall_ns(10) / 1e9, 100)
    assert line["mean"] == [1e308, 1e308, 1.0]
    (line,) = store.series(2, wall_ns(0) / 1e9 - 5000, wall_ns(10) / 1e9 + 5000, 10)
    assert (line["low"], line["high"]) == ([1.0], [1e308]) and math.isfinite(line["mean"][0])
    # a later block into the same bucket, without a finite value
    nans = block(6, 1)
    store.add(
        nans[0], READING.pack(*[math.nan if index == 3 else item for index, item in enumerate(READING.unpack(nans[1]))])
    )
    store.commit()
    assert rows(store, "SELECT count, low, high FROM rollup_10s") == [(3, 1.0, 1e308)]


def test_readers_do_not_wait_for_the_writer(store):
    fill(store, 5000)
    errors: list[Exception] = []
    done = threading.Event()

    def read():
        try:
            while not done.is_set():
                (line,) = store.series(2, START_NS / 1e9, START_NS / 1e9 + 10_000, 300)
                assert len(line["t"]) > 10
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for first in range(5000, 15_000, 50):
        store.add(*block(first, 50))
        store.commit()
    done.set()
    for thread in threads:
        thread.join(10)
    assert not errors
    assert store.high_water(UNIT, RUN) == {2: 15_000}


# Everything else that is kept


def test_csv_holds_every_field(store):
    store.add(*block(0, 4500))
    store.add(*block(0, 3, unit=identity(2), run=identity(200), stream=8, angle=0))
    store.add(*block(4500, 7, experiment="other"))
    store.upsert_unit(UNIT, "vial1", {"version": "1"})
    store.commit()
    text = io.StringIO()
    csv.writer(text).writerows(store.csv_rows("growth"))
    table = list(csv.DictReader(io.StringIO(text.getvalue())))
    assert len(table) == 4503
    od = [row for row in table if row["stream"] == "od2"]
    assert [int(row["sequence"]) for row in od] == list(range(4500))
    assert [float(row["value"]) for row in od] == [value_of(number) for number in range(4500)]
    assert tuple(od[3]) == CSV_COLUMNS
    assert od[3]["timestamp"] == "2023-11-14T22:13:20.300000Z"
    assert (od[3]["pioreactor_unit"], od[3]["unit"], od[3]["angle"], od[3]["blank"]) == ("vial1", "AU", "90", "")
    assert od[3]["flags"] == "uncalibrated simulated"
    assert (int(od[3]["wall_ns"]), int(od[3]["monotonic_ns"])) == (wall_ns(3), 5_300_000_000)
    assert (float(od[3]["se_instrument"]), od[3]["se_culture"]) == (pytest.approx(1e-4), "0.000199999995")
    assert (od[3]["unit_id"], od[3]["run_id"]) == (UNIT.hex(), RUN.hex())
    assert [row["stream"] for row in table if row["unit_id"] == identity(2).hex()] == ["rpm"] * 3
    assert sum(1 for _ in store.csv_rows("growth", 8)) == 4
    assert sum(1 for _ in store.csv_rows("other")) == 8
    with pytest.raises(StoreError, match="no experiment 'missing'"):
        store.csv_rows("missing")


def test_every_field_comes_back(store):
    left = (0, 123_456, wall_ns(0), -0.25, 1.5, 2.5, 0.75, 0.5, 0.125, 3.5, 0.0625, 0.25, 7, 8, 0x3FF)
    store.add(block(0, 1)[0], READING.pack(*left, 5, 2, 135, 6, 1))
    store.commit()
    columns = (
        "sequence, monotonic_ns, wall_ns, value, se_instrument, se_culture, window_s, noise_bandwidth_hz, signal_v, "
        "reference_v, ambient_v, blank, used, rejected, flags, stream, angle, half_cycle"
    )
    assert rows(store, f"SELECT {columns} FROM readings") == [(*left, 2, 135, 6)]


def test_events_newest_first(store):
    for number in range(5):
        store.add(*event(number))
    store.add(*event(0, unit=identity(2), run=identity(200), level="error", value=math.nan, extra={"deep": [1]}))
    store.add_event(None, "notice", "leader", "started", "hello")
    store.commit()
    found = store.events()
    assert [one["message"] for one in found[:3]] == ["hello", "event 4", "event 3"]
    assert (found[0]["unit_id"], found[0]["unit"]) == (None, None)
    assert len(found) == 7
    assert [one["message"] for one in store.events(UNIT, limit=2)] == ["event 4", "event 3"]
    page = store.events(UNIT, limit=2)
    assert [one["message"] for one in store.events(UNIT, before=page[-1]["t"])] == ["event 2", "event 1", "event 0"]
    (other,) = store.events(identity(2))
    assert (other["level"], other["source"], other["code"], other["value"]) == ("error", "stirring", "kick", None)
    store.add(*event(0))
    store.commit()
    assert len(store.events(UNIT)) == 5
    assert store.high_water(UNIT, RUN) == {16: 5}


def test_raw_chunks_come_back_as_they_came(store):
    chunks = [chunk(first, 100) for first in range(0, 500, 100)]
    for one in chunks:
        store.add(*one)
        store.add(*one)
    assert store.commit() == {(UNIT, RUN, 18): 500}
    found = store.raw_chunks(UNIT, wall_ns(200) / 1e9, wall_ns(400) / 1e9)
    assert [(head.pack(), payload) for head, payload in found] == [(h.pack(), payload) for h, payload in chunks[1:3]]
    assert store.raw_chunks(identity(2), 0, 4e9) == []


def test_experiments_and_assignments_have_a_history(store):
    with pytest.raises(StoreError, match="never reported"):
        store.assign(UNIT, None)
    store.upsert_unit(UNIT, "vial1", {"channels": [1]})
    store.create_experiment("first", "about yeast")
    store.create_experiment("second")
    with pytest.raises(StoreError, match="exists already"):
        store.create_experiment(" first ")
    for bad in ("", "a/b", "$experiment", "a#", "tab\tb", "x" * 201):
        with pytest.raises(StoreError, match="experiment name"):
            store.create_experiment(bad)
    with pytest.raises(StoreError, match="create it first"):
        store.assign(UNIT, "third")
    store.assign(UNIT, "first")
    store.assign(UNIT, "first")
    store.assign(UNIT, "second")
    assert store.assignments() == {UNIT: "second"}
    assert [(one["name"], one["description"], one["units"]) for one in store.experiments()] == [
        ("second", "", ["vial1"]),
        ("first", "about yeast", []),
    ]
    (unit,) = store.units()
    assert (unit["unit"], unit["describe"], unit["experiment"]) == ("vial1", {"channels": [1]}, "second")
    store.assign(UNIT, None)
    assert store.assignments() == {}
    history = rows(store, "SELECT experiment.name, from_ns <= until_ns FROM assignment JOIN experiment "
                   "ON experiment.id = assignment.experiment ORDER BY assignment.id")  # fmt: skip
    assert history == [("first", 1), ("second", 1)]
    # what only data named is an experiment too; what the system uses is not listed
    store.add(*block(0, 1, experiment="from a unit"))
    store.add(*block(1, 1, experiment="$no_experiment_present"))
    store.commit()
    assert [one["name"] for one in store.experiments()] == ["from a unit", "second", "first"]


def test_size_of_a_reading_on_disk(sqlite_only):
    store = sqlite_only
    fill(store, 50_000)
    store.close()
    assert os.path.getsize(store.path) / 50_000 < 115


def test_epoch_is_kept(store):
    assert store.epoch() == 1
    store.set_epoch(7)
    assert store.epoch() == 7
    assert rows(store, "SELECT epoch FROM leadership") == [(7,)]


def test_experiments_of_another_leader_are_taken_over(store):
    store.add(*block(0, 1, experiment="by a unit"))
    store.adopt_experiment("by a unit", "what it is about", 1000.5)
    store.adopt_experiment("new", "", 2000.0)
    store.adopt_experiment("new", "said later", 2000.0)
    found = [(one["name"], one["description"], one["created_at"]) for one in store.experiments()]
    assert found == [("new", "said later", 2000.0), ("by a unit", "what it is about", 1000.5)]
