"""`stirbar db`: copies of a store that is being written, restored; what a check finds."""

from __future__ import annotations

import math
import pathlib
import sqlite3
import threading

import pytest
from stirbar.bridge import db_command, sqlite_check, sqlite_copy
from stirbar.bridge.store import StoreError, open_store
from stirbar.core.records import READING
from units import block, event, gap, identity, wait_until

UNIT, RUN = identity(1), identity(100)


class Writer:
    """A leader's ingest at its fastest: blocks and commits in a thread; `acknowledged` is what commit returned."""

    def __init__(self, store) -> None:
        self.store = store
        self.acknowledged = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        sequence = self.store.expected(UNIT, RUN, 2)
        while not self._ended.is_set():
            for _ in range(5):
                self.store.add(*block(sequence, 10))
                sequence += 10
            self.acknowledged = self.store.commit()[UNIT, RUN, 2]

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._ended.set()
        self._thread.join()


def filled(path: pathlib.Path, count: int = 5000):
    store = open_store(path)
    for first in range(0, count, 500):
        store.add(*block(first, 500))
    store.add(*event(0))
    store.commit()
    return store


def stirbar_db(path: pathlib.Path, *words: object) -> int:
    chosen = ["--set", f"leader.config.database={path}", "--set", f"leader.config.data_directory={path.parent}"]
    return db_command.main([*chosen, *map(str, words)])


def held(path: pathlib.Path) -> list[int]:
    with sqlite3.connect(path) as connection:
        return [row[0] for row in connection.execute("SELECT id & 0xffffffffff FROM reading ORDER BY id")]


# Backup


def test_a_copy_of_a_store_that_is_written_meanwhile(tmp_path):
    path = tmp_path / "leader.sqlite"
    store = filled(path, 20_000)
    pauses = []
    with Writer(store) as writer:
        wait_until(lambda: writer.acknowledged > 20_500, "readings")
        before = writer.acknowledged

        def pause(seconds: float) -> None:
            """Long enough for commits, which must not make the copy start over."""
            pauses.append(seconds)
            assert len(pauses) < 50, "the copy starts over"
            seen = writer.acknowledged
            wait_until(lambda: writer.acknowledged > seen, "a commit while the copy is made")

        counts = sqlite_copy.back_up(path, tmp_path / "copy.sqlite", 0.001, pause)
        after = writer.acknowledged
    copied = held(tmp_path / "copy.sqlite")
    assert len(pauses) > 2 and after > before
    assert copied == list(range(len(copied))) and before <= len(copied) < after
    assert counts["reading"] == len(copied) == sqlite_check.check(tmp_path / "copy.sqlite")["reading"]
    assert sorted(one.name for one in tmp_path.glob("copy*")) == ["copy.sqlite"]
    assert (tmp_path / "copy.sqlite").stat().st_mode & 0o077 == 0
    store.close()


def test_a_copy_keeps_to_its_pace(tmp_path):
    filled(tmp_path / "leader.sqlite", 20_000).close()
    size = (tmp_path / "leader.sqlite").stat().st_size
    pauses: list[float] = []
    sqlite_copy.back_up(tmp_path / "leader.sqlite", tmp_path / "copy.sqlite", 0.5, pauses.append)
    # nothing really waits here, so each pause is the whole time that is due by then
    assert pauses[-1] == pytest.approx(size / 0.5e6, rel=0.1)


def test_the_command_names_its_copies_and_overwrites_none(tmp_path, capsys):
    path = tmp_path / "leader.sqlite"
    store = filled(path)
    assert stirbar_db(path, "backup") == 0
    (copy,) = (tmp_path / "backups").iterdir()
    assert len(held(copy)) == 5000
    assert "5000 reading" in capsys.readouterr().out
    assert stirbar_db(path, "backup", "--to", copy) == 1
    assert f"{copy} exists already" in capsys.readouterr().err
    assert stirbar_db(path, "backup", "--to", tmp_path / "nowhere" / "x") == 1
    assert "cannot be copied" in capsys.readouterr().err
    store.close()


def test_a_damaged_store_makes_no_copy(tmp_path):
    path = tmp_path / "leader.sqlite"
    filled(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM reading WHERE id & 0xffffffffff = 7")
    with pytest.raises(StoreError, match="damaged"):
        sqlite_copy.back_up(path, tmp_path / "copy.sqlite")
    assert list(tmp_path.glob("copy*")) == []


# Restore


def test_restored_and_the_units_send_the_rest(tmp_path, capsys):
    path, copy = tmp_path / "leader.sqlite", tmp_path / "copy.sqlite"
    store = filled(path)
    assert stirbar_db(path, "backup", "--to", copy) == 0
    store.add(*block(5000, 100))
    store.commit()
    assert stirbar_db(path, "restore", copy) == 1
    assert "in use by a running leader: stop it first" in capsys.readouterr().err
    assert len(held(path)) == 5100
    store.close()
    assert stirbar_db(path, "restore", copy) == 0
    (aside,) = tmp_path.glob("leader.sqlite.before-????????-??????")
    assert len(held(aside)) == 5100
    again = open_store(path)
    assert again.high_water(UNIT, RUN)[2] == 5000
    again.add(*block(4990, 110))
    again.commit()
    again.close()
    assert sqlite_check.check(path)["reading"] == 5100
    assert again.counters()["duplicates"] == 10


def test_a_write_ahead_log_of_the_old_store_does_not_come_into_the_new(tmp_path):
    path, copy = tmp_path / "leader.sqlite", tmp_path / "copy.sqlite"
    filled(path).close()
    sqlite_copy.back_up(path, copy)
    # what a killed leader leaves: commits in the log alone
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("UPDATE reading SET value = 9")
    left = {suffix: pathlib.Path(f"{path}{suffix}").read_bytes() for suffix in ("-wal", "-shm")}
    other.close()
    for suffix, content in left.items():
        pathlib.Path(f"{path}{suffix}").write_bytes(content)
    sqlite_copy.restore(copy, path)
    assert sqlite_check.check(path)["reading"] == 5000


def test_nothing_but_a_whole_store_of_a_known_version_is_restored(tmp_path):
    path, copy = tmp_path / "leader.sqlite", tmp_path / "copy.sqlite"
    filled(path).close()
    sqlite_copy.back_up(path, copy)
    good, before = copy.read_bytes(), path.read_bytes()

    def refused(match: str) -> None:
        with pytest.raises(StoreError, match=match):
            sqlite_copy.restore(copy, path)
        assert path.read_bytes() == before
        assert [one.name for one in tmp_path.glob("leader.sqlite.*")] == ["leader.sqlite.lock"]

    copy.write_bytes(good[: len(good) // 2])
    refused("malformed|damaged|no store")
    copy.write_bytes(b"nothing of the kind " * 500)
    refused("no store")
    with sqlite3.connect(tmp_path / "other.sqlite") as connection:
        connection.execute("CREATE TABLE t (x)")
    copy.write_bytes((tmp_path / "other.sqlite").read_bytes())
    refused("no store of stirbar")
    copy.write_bytes(good)
    with sqlite3.connect(copy) as connection:
        connection.execute("PRAGMA user_version = 9999")
    refused("schema version 9999")
    copy.unlink()
    refused("is not there")


# Check


DAMAGES = {
    "a reading lost": ("DELETE FROM reading WHERE id & 0xffffffffff = 7", "accounted for"),
    "a reading that belongs nowhere": (
        "INSERT INTO reading (id, wall_ns, clock_ns, used, rejected, flags, half_cycle) "
        "VALUES (1 << 50, 0, 0, 0, 0, 0, 0)",
        "series 1024, which is not there",
    ),
    "a reading too many": (
        "INSERT INTO reading SELECT (id | 0xfffff), wall_ns, clock_ns, value, se_instrument, se_culture, window_s, "
        "noise_bandwidth_hz, signal_v, reference_v, ambient_v, blank, used, rejected, flags, half_cycle FROM reading "
        "WHERE id & 0xffffffffff = 7",
        "coverage does not know",
    ),
    "a series lost": ("DELETE FROM series WHERE stream = 2", "series that is not there"),
    "coverage lost": ("UPDATE coverage SET end_sequence = end_sequence - 1 WHERE stream = 2", "coverage does not know"),
    "coverage too far": ("UPDATE coverage SET end_sequence = end_sequence + 1 WHERE stream = 2", "5001 are accounted"),
    "an event lost": ("DELETE FROM event WHERE sequence = 0", "accounted for"),
    "a gap lost": ("DELETE FROM gap", "accounted for"),
    "a value changed": ("UPDATE reading SET value = value + 1e-6 WHERE id & 0xffffffffff = 7", "roll-ups of 10 s"),
    "a roll-up lost": ("DELETE FROM rollup_60s WHERE bucket IN (SELECT min(bucket) FROM rollup_60s)", "of 60 s"),
    "a roll-up too many": ("INSERT INTO rollup_10s SELECT id, 1, 0, NULL, NULL, 0, 0, 0 FROM series "
                           "WHERE stream = 2", "its readings make"),
}  # fmt: skip


def test_a_whole_store_is_found_whole(tmp_path, capsys):
    path = tmp_path / "leader.sqlite"
    store = filled(path)
    head, body = block(0, 3, run=identity(101))
    values = (math.nan, math.inf, 1e308)
    store.add(
        head,
        b"".join(
            READING.pack(*record[:3], value, *record[4:])
            for record, value in zip(READING.iter_unpack(body), values, strict=True)
        ),
    )
    store.add(*gap(10, 5, run=identity(101)))
    store.add_event(None, "notice", "leader", "started", "of the leader itself")
    with Writer(store):
        assert stirbar_db(path, "check") == 0
    assert "in order" in capsys.readouterr().out
    store.close()
    assert stirbar_db(path, "check", path) == 0
    assert stirbar_db(path, "check", tmp_path / "none") == 1
    assert "none is not there" in capsys.readouterr().err


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_check_finds(damage, tmp_path):
    path = tmp_path / "leader.sqlite"
    store = filled(path)
    store.add(*gap(0, 5, run=identity(101)))
    store.close()
    sqlite_check.check(path)
    statement, message = DAMAGES[damage]
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match=message):
        sqlite_check.check(path)


def test_a_check_finds_a_page_that_was_overwritten(tmp_path):
    path = tmp_path / "leader.sqlite"
    filled(path).close()
    with path.open("r+b") as file:
        file.seek(20 * 4096)
        file.write(b"\xff" * 4096)
    with pytest.raises(StoreError, match="malformed"):
        sqlite_check.check(path)


# Vacuum


def test_vacuum_gives_room_back_but_not_under_a_running_leader(tmp_path, capsys):
    path = tmp_path / "leader.sqlite"
    store = filled(path, 20_000)
    assert stirbar_db(path, "vacuum") == 1
    assert "stop it first" in capsys.readouterr().err
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE large AS SELECT randomblob(1000) FROM reading")
        connection.execute("DROP TABLE large")
    before = path.stat().st_size
    assert stirbar_db(path, "vacuum") == 0
    assert path.stat().st_size < before / 2
    assert sqlite_check.check(path)["reading"] == 20_000
    assert stirbar_db(tmp_path / "none" / "x.sqlite", "vacuum") == 1
