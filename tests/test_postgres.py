"""What only a PostgreSQL store does: messages without its password, a server that goes away, leadership, retention."""

from __future__ import annotations

import itertools
import time

import psycopg
import pytest
from mosquitto import free_port
from postgres import fresh, server
from stirbar.bridge import db_command, postgres_link
from stirbar.bridge.places import database_path, database_url
from stirbar.bridge.postgres_promote import promote
from stirbar.bridge.store import StoreError, StoreUnavailable, open_store
from stirbar.bridge.upkeep import DAY_S, Settings, Upkeep
from stirbar.core.config import build_config, parse_overrides
from stirbar.web.command import Leader
from units import START_NS, block, chunk, event, identity, wait_until

UNIT, RUN = identity(1), identity(100)
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def address():
    with server() as one:
        yield one


@pytest.fixture
def url(address):
    return fresh(address, f"p{next(NUMBERS)}")


@pytest.fixture
def store(url):
    one = open_store(url)
    yield one
    one.close()


def test_a_database_that_takes_writes_needs_no_promotion(url):
    assert "takes writes already" in promote(url)
    with pytest.raises(StoreError, match="cannot be asked"):
        promote(url.replace("?host", "x?host"))


def ask(url: str, statement: str) -> list:
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(statement)
        return found.fetchall() if found.description else []


def cut(url: str) -> None:
    """End all other connections to the database, as a restart of the server does."""
    ask(url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
             "AND pid <> pg_backend_pid()")  # fmt: skip


def test_a_password_is_in_no_message(url, store, capsys):
    assert ":secret@" in url and "secret" not in store.name
    with pytest.raises(StoreError, match="in use by another leader") as second:
        open_store(url)
    with pytest.raises(StoreError) as absent:
        open_store("postgresql://me:secret@127.0.0.1:1/none")
    with pytest.raises(StoreError) as unreadable:
        open_store("postgresql://me:secret@[/none?x=secret")
    store.add(*block(0, 10))
    cut(url)
    with pytest.raises(StoreUnavailable) as lost:
        store.commit()
    for raised in (second, absent, unreadable, lost):
        assert "secret" not in str(raised.value)


def test_a_server_that_went_away_and_came_back(url, store):
    store.add(*block(0, 10))
    assert store.commit() == {(UNIT, RUN, 2): 10}
    assert len(store.units()) == 1
    store.add(*block(10, 10))
    cut(url)
    with pytest.raises(StoreUnavailable):
        store.commit()
    store.add(*block(20, 10))
    assert store.commit() == {(UNIT, RUN, 2): 30}
    with pytest.raises(StoreError):
        store.units()
    assert len(store.units()) == 1
    assert ask(url, "SELECT count(*) FROM reading") == [(30,)]
    with pytest.raises(StoreError, match="in use by another leader"):
        open_store(url)  # the lock came back with the connection


@pytest.mark.parametrize("went_through", [True, False])
def test_a_commit_whose_answer_is_lost(url, store, went_through):
    store.add(*block(0, 10))
    store.commit()
    execute = store._writer.execute

    def lose(statement, values=()):
        if statement == "COMMIT":
            store._writer.execute = execute
            if went_through:
                execute("COMMIT")
            cut(url)
        return execute(statement, values)

    store._writer.execute = lose
    store.add(*block(10, 10))
    if went_through:
        assert store.commit() == {(UNIT, RUN, 2): 20}
    else:
        with pytest.raises(StoreUnavailable):
            store.commit()
        assert store.commit() == {(UNIT, RUN, 2): 20}
    assert ask(url, "SELECT count(*) FROM reading") == [(20,)]
    assert ask(url, "SELECT sum(count) FROM rollup_10s") == [(20,)]


def test_tables_of_something_else_and_of_a_newer_version(url, address):
    ask(url, "CREATE TABLE other (x INT)")
    with pytest.raises(StoreError, match="something else"):
        open_store(url)
    newer = fresh(address, f"p{next(NUMBERS)}")
    open_store(newer).close()
    ask(newer, "UPDATE stirbar_schema SET version = 9999")
    with pytest.raises(StoreError, match="schema version 9999"):
        open_store(newer)


def test_retention(url, store):
    for first in range(0, 20_000, 500):
        store.add(*block(first, 500))
    for first in range(0, 1000, 100):
        store.add(*chunk(first, 100))
    store.commit()
    ask(url, f"UPDATE run SET first_seen_ns = {START_NS}")
    span = (START_NS / 1e9 - 300, START_NS / 1e9 + 2300)
    before = store.series(2, *span, 100)
    settings = Settings(store.path, store.path, interval_hours=0, readings_days=1.0, raw_days=1.0)
    Upkeep(store, settings, print).thin(START_NS / 1e9 + 1250 + DAY_S)
    assert ask(url, "SELECT count(*) FROM reading") == [(10_000,)]
    assert ask(url, "SELECT sum(readings), sum(finite), sum(raw_chunks) FROM thinned") == [(10_000, 10_000, 10)]
    assert store.series(2, *span, 100) == before
    store.commit()
    assert [one["code"] for one in store.events()] == ["raw_removed", "readings_thinned"]


def test_alerts_and_their_end(store):
    store.upsert_unit(UNIT, "vial1", {})
    store.add(*event(0, level="warning", code="sensor_lost", message="od1 is lost"))
    store.add(*event(1, code="sensor_back", message="od1 is back"))
    store.add(*event(2, level="error", code="stuck", message="100 % of it"))
    store.commit()
    found = store.alerts(UNIT)
    assert found["count"] == 2
    assert [(one["code"], one["over"] is None) for one in found["alerts"]] == [("stuck", True), ("sensor_lost", False)]
    assert store.acknowledge(1, found["newest"], UNIT, "me") == ["vial1"] * 2
    assert store.alerts()["count"] == 0


def test_every_row_of_a_large_commit_arrives(url, store):
    start = time.monotonic()
    for unit in range(1, 101):
        for stream in (1, 2, 8):
            store.add(*block(0, 10, unit=identity(unit), run=identity(1000 + unit), stream=stream))
    assert len(store.commit()) == 300
    print(f"{time.monotonic() - start:.2f} s")
    assert ask(url, "SELECT count(*) FROM reading") == [(3000,)]
    assert ask(url, "SELECT sum(count) FROM rollup_900s") == [(3000,)]


def test_the_config_chooses_it(tmp_path, capsys):
    chosen = "postgresql://me:secret@127.0.0.1:1/none"
    words = ["--set", f"leader.config.database={chosen}", "--set", f"leader.config.data_directory={tmp_path}"]
    config = build_config([], overrides=parse_overrides([f"leader.config.database={chosen}"]))
    assert database_url(config) == chosen
    config = build_config([], overrides=parse_overrides([f"leader.config.database=sqlite://{tmp_path}/x.sqlite"]))
    assert database_url(config) is None and database_path(config, tmp_path) == tmp_path / "x.sqlite"
    assert db_command.main([*words, "vacuum"]) == 1
    assert "pg_dump" in capsys.readouterr().err
    assert postgres_link.shown(chosen) == "postgresql://me@127.0.0.1:1/none"


def test_a_leader_on_postgresql(tmp_path, url, capsys):
    words = [f"leader.config.database={url}", f"leader.config.data_directory={tmp_path / 'leader'}"]
    words += [f"unit.data_directory={tmp_path}", f"web.config.port={free_port()}", f"mqtt.broker_port={free_port()}"]
    leader = Leader(build_config([], overrides=parse_overrides(words)))
    leader.start()
    try:
        assert leader.store is not None and leader.store.epoch() == 1
        leader.store.add(*block(0, 10))
        wait_until(lambda: ask(url, "SELECT count(*) FROM reading") == [(10,)], "a commit of the ingest")
        with pytest.raises(StoreError, match="in use by another leader"):
            open_store(url)
    finally:
        leader.stop()
    said = capsys.readouterr().err
    assert f"store: {postgres_link.shown(url)}\n" in said and "secret" not in said
    open_store(url).close()
