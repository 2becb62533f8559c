"""Several ingest processes, one PostgreSQL: whoever gets a block, each datum is stored once and acknowledged then."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading

import pytest
from postgres import fresh, server
from stirbar.bridge import postgres_store
from stirbar.bridge.bench_cluster import children_of
from stirbar.bridge.store import StoreError, open_store
from stirbar.core.records import STREAM_IDS
from stirbar.web.bench_leader import BenchLeader, Generators
from stirbar.web.bench_week import bench_week
from units import block, event, gap, identity, wait_until

from .running import stirbar_environment, wait_for
from .test_postgres import ask

UNIT, RUN = identity(1), identity(100)
EVENT = STREAM_IDS["event"]
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def address():
    with server() as one:
        yield one


@pytest.fixture
def url(address):
    return fresh(address, f"s{next(NUMBERS)}")


@pytest.fixture
def stores(url):
    """Three processes' worth of one database."""
    opened = [open_store(url, shared=True) for _ in range(3)]
    yield opened
    for store in opened:
        store.close()


def kept(url):
    """(readings, distinct sequence numbers, readings by the finest roll-up), of the whole database."""
    ((rows, distinct),) = ask(url, "SELECT count(*), count(DISTINCT id) FROM reading")
    ((rolled,),) = ask(url, "SELECT coalesce(sum(count), 0) FROM rollup_10s")
    return rows, distinct, int(rolled)


def test_a_mark_moves_when_the_hole_before_it_is_filled_by_another(stores, url):
    one, two, three = stores
    two.add(*block(10, 10))
    assert two.commit() == {} and two.expected(UNIT, RUN, 2) == 0, "what is before it is nobody's yet"
    one.add(*block(0, 10))
    assert one.commit() == {(UNIT, RUN, 2): 20}, "the last to commit sees what all have"
    assert two.expected(UNIT, RUN, 2) == 0, "never more than it has seen committed"
    assert two.commit() == {} and [store.expected(UNIT, RUN, 2) for store in stores] == [20, 20, 20]
    assert three.high_water(UNIT, RUN) == {2: 20}
    assert kept(url) == (20, 20, 20)


def test_what_two_have_is_stored_once(stores, url):
    for store in stores:
        store.add(*block(0, 30))
        store.add(*event(0))
        store.add(*gap(30, 5))
    for store in stores:
        store.commit()
    assert kept(url) == (30, 30, 30)
    assert [store.counters()["duplicates"] for store in stores] == [0, 36, 36]
    assert ask(url, "SELECT count(*) FROM event") == [(1,)] and ask(url, "SELECT count(*) FROM gap") == [(1,)]
    assert [store.expected(UNIT, RUN, 2) for store in stores] == [35, 35, 35]


def test_events_of_all_have_numbers_of_their_own(stores, url):
    for number, store in enumerate(stores):
        store.add(*event(number))
        store.add_event(None, "warning", "leader", "test", f"of {number}")
    for store in stores:
        store.commit()
    assert ask(url, "SELECT count(*), count(DISTINCT id) FROM event") == [(6, 6)]


def test_a_commit_that_fails_keeps_its_blocks(stores, url, monkeypatch):
    one, two, _ = stores
    one.add(*block(0, 10))
    two.add(*block(10, 10))
    ask(url, "ALTER TABLE coverage RENAME TO elsewhere")
    with pytest.raises(StoreError):
        one.commit()
    ask(url, "ALTER TABLE elsewhere RENAME TO coverage")
    assert one.counters()["readings"] == 0 and kept(url) == (0, 0, 0)
    two.commit()
    assert one.commit() == {(UNIT, RUN, 2): 20}
    assert one.counters()["readings"] == 10 and kept(url) == (20, 20, 20)


def test_many_at_once_in_any_order_are_stored_once(stores, url):
    """Three threads, the same units, blocks dealt out at random, a tenth of them to two."""
    rng = random.Random(5)
    dealt = [[], [], []]
    for unit, first in itertools.product(range(1, 7), range(0, 300, 10)):
        for place in rng.sample(range(3), 2 if rng.random() < 0.1 else 1):
            dealt[place].append((unit, first))

    def work(store, blocks):
        for number, (unit, first) in enumerate(blocks):
            store.add(*block(first, 10, unit=identity(unit), run=identity(100 + unit)))
            if number % 7 == 6:
                store.commit()
        store.commit()

    threads = [threading.Thread(target=work, args=pair) for pair in zip(stores, dealt, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept(url) == (1800, 1800, 1800)
    for unit in range(1, 7):
        assert stores[0].high_water(identity(unit), identity(100 + unit)) == {2: 300}
    assert ask(url, "SELECT count(*) FROM unit") == [(6,)] and ask(url, "SELECT count(*) FROM series") == [(6,)]


def test_alone_or_shared_but_not_both(stores, url, tmp_path, monkeypatch):
    monkeypatch.setattr(postgres_store, "LEADER_LOCK_S", 0.2)
    with pytest.raises(StoreError, match="in use by another leader"):
        open_store(url)
    with pytest.raises(StoreError, match="SQLite is written by one process") as refused:
        open_store(tmp_path / "store.sqlite", shared=True)
    assert "\n" not in str(refused.value) and not (tmp_path / "store.sqlite").exists()
    command = [sys.executable, "-m", "stirbar.core.cli", "ingest", "--set", f"leader.config.data_directory={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, env=stirbar_environment(), timeout=30)
    assert done.returncode == 1 and done.stderr.startswith("stirbar ingest: SQLite is written by one process")
    assert done.stderr.count("\n") == 1


def children(leader):
    """The ingest processes of a leader."""
    return [pid for pid in children_of(leader.process.pid) if pid != leader.broker_pid]


def test_one_of_three_is_killed_in_the_middle_and_nothing_is_lost(url):
    """Eight units through a real broker; what the killed one had and had not committed is sent again by the units."""
    with BenchLeader(8, url, ("leader.config.ingest_processes=3",)) as leader:
        pids = wait_for(lambda: len(found := children(leader)) == 3 and found, 20, "three processes")
        wait_for(
            lambda: ask(url, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted")[0][0] >= 4,
            20,
            "all",
        )
        with Generators(leader, 4.0, 5, processes=1) as generators:
            generators.connected()
            generators.go()
            wait_until(lambda: ask(url, "SELECT count(*) FROM reading")[0][0] > 40, "the first are stored")
            os.kill(pids[1], signal.SIGKILL)
            (sent,) = generators.wait()
            again = children(leader)
        leader.stop()
        assert len(again) == 3 and pids[1] not in again, "another has taken its place"
        assert sent["published"] == sent["acknowledged"] == 8 * 4 * 5
        assert kept(url) == (160, 160, 160) and leader.count(sent["runs"]) == (160, 0)
        log = leader.log.read_text()
        assert "ingest 2 was ended by SIGKILL" in log and "Traceback" not in log
        logs = [path.read_text() for path in (leader.directory / "leader").glob("ingest*.log")]
        assert len(logs) == 3 and not any("Traceback" in text or "internal" in text for text in logs)


def test_the_charts_of_a_week_from_postgresql(url):
    result = bench_week(["--units", "2", "--rounds", "2", "--store", url])
    figures = {row.what: row for row in result.rows}
    assert float(figures["charts of a week, warm, p50"].note.split()[0]) * 1e6 > 2 * 4 * 336 * 30
    assert figures["charts of a week, warm, CPU time, p50"].limit == 1000.0 and "PostgreSQL" in result.conditions
