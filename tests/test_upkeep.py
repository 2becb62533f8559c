"""Backups on schedule while the store is written, and retention: what goes is counted, charts go on."""

from __future__ import annotations

import os
import pathlib
import sqlite3
import threading
import time

import pytest
from stirbar.bridge import sqlite_check, upkeep
from stirbar.bridge.store import open_store
from stirbar.bridge.upkeep import DAY_S, HOUR_S, Settings, Upkeep
from units import START_NS, block, chunk, identity, wait_until, wall_ns

UNIT, RUN = identity(1), identity(100)
START_S = START_NS / 1e9


@pytest.fixture
def store(tmp_path):
    one = open_store(tmp_path / "leader.sqlite")
    yield one
    one.close()


def keeper(store, **settings: float) -> Upkeep:
    return Upkeep(store, Settings(store.path, store.path.parent / "backups", **settings), print)


def codes(store) -> list[tuple[str, str]]:
    store.commit()
    return [(one["level"], one["code"]) for one in store.events()]


def aged(store, count: int) -> None:
    """Readings of long ago, from a run that the leader knew then."""
    for first in range(0, count, 500):
        store.add(*block(first, min(500, count - first)))
    for first in range(0, 1000, 100):
        store.add(*chunk(first, 100))
    store.commit()
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE run SET first_seen_ns = ?", (START_NS,))


def count_rows(store, table: str) -> int:
    with sqlite3.connect(store.path) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


# Backups


def test_backups_are_made_checked_and_the_oldest_go(store):
    aged(store, 5000)
    one = keeper(store, keep=2)
    now = time.time()
    assert one.backup_due(now) <= now
    for number in range(3):
        store.add(*block(5000 + 10 * number, 10))
        store.commit()
        one.back_up(now + number)
    assert [sqlite_check.check(path)["reading"] for path in one.backups()] == [5020, 5030]
    assert codes(store)[:3] == [("info", "backup_made")] * 3
    assert "5030 reading" in store.events()[0]["message"]
    made = one.backups()[-1].stat().st_mtime
    assert keeper(store, interval_hours=5).backup_due(now) == pytest.approx(made + 5 * HOUR_S, abs=1)
    assert keeper(store, interval_hours=0).backup_due(now) == float("inf")


def test_what_is_no_backup_of_this_store_stays(store):
    one = keeper(store, keep=1)
    directory = store.path.parent / "backups"
    directory.mkdir()
    others = [directory / name for name in ("notes.txt", "leader-old.sqlite", "other-20200101-000000Z.sqlite")]
    for other in others:
        other.touch()
    left = directory / "leader-20200101-000000Z.sqlite.part"
    left.touch()
    one.back_up(time.time())
    one.back_up(time.time() + 1)
    assert all(other.exists() for other in others) and not left.exists()
    assert len(one.backups()) == 1


def test_a_copy_from_the_future_does_not_put_backups_off(store):
    one = keeper(store)
    now = time.time()
    one.back_up(now)
    os.utime(one.backups()[0], (now + 1e8, now + 1e8))
    assert one.backup_due(now) == pytest.approx(now + 24 * HOUR_S)


def test_a_failure_is_an_event_and_costs_no_backup(store, monkeypatch):
    one = keeper(store, keep=1)
    aged(store, 1000)
    now = time.time()
    one.back_up(now - 1)
    with sqlite3.connect(store.path) as connection:
        connection.execute("DELETE FROM reading WHERE id & 0xffffffffff = 7")
    one.back_up(now)
    assert len(one.backups()) == 1 and not list((store.path.parent / "backups").glob("*.part*"))
    assert codes(store)[0] == ("error", "backup_failed")
    assert "damaged" in store.alerts()["alerts"][0]["message"]
    assert one.backup_due(now) == pytest.approx(max(now + HOUR_S, one.backups()[0].stat().st_mtime + 24 * HOUR_S))
    monkeypatch.setattr(upkeep, "ROOM_BYTES", 1 << 60)
    one.back_up(now)
    store.commit()
    assert "make room, or name another [leader.config] backup_directory" in store.events()[0]["message"]


def test_the_thread_makes_the_first_backup_while_readings_come(store, monkeypatch):
    monkeypatch.setattr(upkeep, "FIRST_S", 0.0)
    aged(store, 1000)
    one = keeper(store)
    ended = threading.Event()

    def write() -> None:
        sequence = 1000
        while not ended.is_set():
            store.add(*block(sequence, 10))
            store.commit()
            sequence += 10

    thread = threading.Thread(target=write)
    thread.start()
    one.start()
    wait_until(one.backups, "a backup", 60)
    one.stop()
    ended.set()
    thread.join()
    assert 1000 <= sqlite_check.check(one.backups()[0])["reading"] < count_rows(store, "reading")


def test_stopping_ends_a_backup(store, monkeypatch):
    monkeypatch.setattr(upkeep, "FIRST_S", 0.0)
    with sqlite3.connect(store.path) as connection:
        connection.execute("CREATE TABLE large AS SELECT zeroblob(60000000)")  # six seconds at the leader's pace
    one = keeper(store)
    one.start()
    directory = store.path.parent / "backups"
    wait_until(lambda: any(path.stat().st_size for path in directory.glob("*.part")), "a copy that was begun", 60)
    begun = time.monotonic()
    one.stop()
    assert time.monotonic() - begun < 4.0
    assert one.backups() == [] and codes(store) == []


# Retention


def test_old_readings_become_roll_ups_and_are_counted(store):
    aged(store, 20_000)
    span = (START_S - 300, START_S + 2300)
    before = store.series(2, *span, 100)
    (fine,) = store.series(2, START_S + 900, START_S + 1150, 3000)
    marks = store.high_water(UNIT, RUN)
    edge_s = (START_S + 1250) // 900 * 900
    keeper(store, readings_days=1.0).thin(START_S + 1250 + DAY_S)
    with sqlite3.connect(store.path) as connection:
        (oldest,) = connection.execute("SELECT min(wall_ns) FROM reading").fetchone()
    assert oldest / 1e9 == pytest.approx(edge_s)
    gone = 20_000 - count_rows(store, "reading")
    assert gone == store.counters()["thinned_readings"] > 9000
    assert codes(store) == [("info", "readings_thinned")]
    assert f"{gone} readings older than 1 days" in store.events()[0]["message"]
    # charts from roll-ups are what they were; a fine one is coarse before the edge and as it was behind it
    assert store.series(2, *span, 100) == before
    (mixed,) = store.series(2, START_S + 900, START_S + 1150, 3000)
    new, old = [at for at in mixed["t"] if at >= edge_s], [at for at in mixed["t"] if at < edge_s]
    assert new == [at for at in fine["t"] if at >= edge_s] and len(new) == 1500
    assert [at % 10 for at in old] == [5.0] * 10
    # the check knows what went, and what comes again is known
    assert sqlite_check.check(store.path)["reading"] == 20_000 - gone
    store.add(*block(0, 500))
    assert store.commit() == {} and store.high_water(UNIT, RUN) == marks
    keeper(store, readings_days=1.0).thin(START_S + 1250 + DAY_S)
    assert store.counters()["thinned_readings"] == gone


@pytest.mark.parametrize("damage", ["UPDATE thinned SET readings = readings - 1", "UPDATE thinned SET finite = 0"])
def test_a_check_finds_what_nobody_thinned(store, damage):
    aged(store, 10_000)
    keeper(store, readings_days=1.0).thin(START_S + 900 + DAY_S)
    sqlite_check.check(store.path)
    with sqlite3.connect(store.path) as connection:
        connection.execute(damage)
    with pytest.raises(upkeep.StoreError, match=r"accounted for|were thinned"):
        sqlite_check.check(store.path)


def test_old_raw_chunks_go(store):
    aged(store, 1000)
    before_s = wall_ns(501) / 1e9
    keeper(store, raw_days=2.0).thin(before_s + 2 * DAY_S)
    assert len(store.raw_chunks(UNIT, 0, 4e9)) == 5 == store.counters()["removed_raw_chunks"]
    assert count_rows(store, "reading") == 1000
    assert codes(store) == [("info", "raw_removed")]
    sqlite_check.check(store.path)


def test_a_wrong_clock_does_not_make_readings_old(store):
    store.add(*block(0, 1000))  # stamped years ago, and the leader met the run just now
    store.add(*chunk(0, 100))
    store.commit()
    keeper(store, readings_days=30.0, raw_days=30.0).thin(time.time())
    assert count_rows(store, "reading") == 1000 and count_rows(store, "raw_chunk") == 1
    assert codes(store) == []


def test_all_is_kept_by_default(store):
    aged(store, 1000)
    keeper(store).thin(START_S + 1e9)
    assert (count_rows(store, "reading"), count_rows(store, "raw_chunk")) == (1000, 10)


def test_an_older_store_is_brought_up_to_date(tmp_path):
    path = tmp_path / "old.sqlite"
    connection = sqlite3.connect(path)
    for number, step in sqlite_check.migration_steps():
        if number < 4:
            connection.executescript(f"{pathlib.Path(step).read_text()}; PRAGMA user_version = {number}")
    connection.close()
    sqlite_check.check(path)
    store = open_store(path)
    aged(store, 5000)
    keeper(store, readings_days=1.0).thin(START_S + 900 + DAY_S)
    assert count_rows(store, "thinned") == 1
    store.close()
