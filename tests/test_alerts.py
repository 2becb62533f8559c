"""Alerts: warnings and errors stay until acknowledged, over a restart of the leader, and say when they ended."""

from __future__ import annotations

import json
import sqlite3

import pytest
from stirbar.bridge.sqlite_store import MIGRATIONS
from stirbar.bridge.store import StoreError, open_store

from .test_api import Cluster, refused, wait_for
from .units import event, identity, wall_ns

UNIT, OTHER = identity(1), identity(2)


@pytest.fixture
def store(tmp_path):
    store = open_store(tmp_path / "store.sqlite")
    yield store
    store.close()


def put(store, sequence, code, level="warning", message="", **where):
    store.add(*event(sequence, code=code, level=level, message=message or code, **where))
    store.commit()


def codes(store, unit_id=None):
    return [(one["code"], one["over"]) for one in store.alerts(unit_id)["alerts"]]


# --- the store -------------------------------------------------------------------------------------------------------


def test_only_warnings_and_errors_newest_first_and_counted(store):
    for sequence, level in enumerate(("debug", "info", "notice", "warning", "error")):
        put(store, sequence, f"a_{level}", level)
    store.add_event(None, "warning", "leader", "of_leader", "two units share a name")
    store.commit()
    assert [code for code, _ in codes(store)] == ["of_leader", "a_error", "a_warning"]
    found = store.alerts(UNIT, 1)
    assert (found["count"], [one["code"] for one in found["alerts"]]) == (2, ["a_error"])
    assert store.alerts(OTHER) == {"count": 0, "newest": None, "alerts": []}


def test_one_is_acknowledged_by_somebody_and_stays_so_over_a_restart(tmp_path):
    path = tmp_path / "store.sqlite"
    store = open_store(path)
    for sequence in range(3):
        put(store, sequence, f"fault_{sequence}")
    second = store.alerts()["alerts"][1]
    assert store.acknowledge(second["id"], second["id"], None, "operator at here") == [second["unit"]]
    assert store.acknowledge(second["id"], second["id"], None, "somebody else") == []  # done already: the first stays
    store.close()
    store = open_store(path)
    try:
        assert [code for code, _ in codes(store)] == ["fault_2", "fault_0"]
        known = {one["code"]: (one["acknowledged_by"], one["acknowledged_at"]) for one in store.events()}
        assert known["fault_0"] == (None, None)
        assert known["fault_1"][0] == "operator at here" and known["fault_1"][1] > 1.7e9
    finally:
        store.close()


def test_all_up_to_one_of_a_unit_or_of_all(store):
    put(store, 0, "first")
    put(store, 0, "second", unit=OTHER, run=identity(200))
    newest = store.alerts()["newest"]
    put(store, 1, "third")
    assert len(store.acknowledge(1, newest, UNIT, "me")) == 1
    assert [code for code, _ in codes(store)] == ["third", "second"]
    assert len(store.acknowledge(1, store.alerts()["newest"], None, "me")) == 2
    assert codes(store) == []


def test_what_is_no_alert_cannot_be_acknowledged(store):
    put(store, 0, "kick", "info")
    (number,) = [one["id"] for one in store.events()]
    for wrong in (number, 99):
        with pytest.raises(StoreError, match=f"event {wrong} is no warning and no error"):
            store.acknowledge(wrong, wrong, None, "me")


@pytest.mark.parametrize(
    ("fault", "end"),
    [
        (("heat_disabled", "too hot"), ("heat_disabled_over", "free")),
        (("stir_stall", "stalled"), ("stir_running", "runs")),
        (("stir_fault", "does not turn"), ("stir_running", "runs")),
        (("sensor_lost", "od2 does not answer"), ("sensor_back", "od2 answers again")),
        (("rail_low", "4.5 V"), ("rail_low_over", "5.1 V")),
    ],
)
def test_a_fault_that_ended_stays_and_is_shown_as_over(store, fault, end):
    put(store, 0, end[0], "notice", end[1])  # the end of an earlier one
    put(store, 1, fault[0], "error", fault[1])
    put(store, 2, "heat_reduced_over", "notice", "od3 answers again")
    put(store, 3, "sensor_back", "notice", "od3 answers again")
    put(store, 4, end[0], "notice", end[1], unit=OTHER, run=identity(200))
    assert codes(store) == [(fault[0], None)]
    put(store, 5, end[0], "notice", end[1])
    put(store, 6, end[0], "notice", end[1])
    assert codes(store) == [(fault[0], wall_ns(5) / 1e9)]


def test_a_fault_of_an_earlier_run_of_the_worker_is_over(store):
    put(store, 0, "heat_disabled", "error")
    assert codes(store) == [("heat_disabled", None)]
    put(store, 0, "kick", "info", run=identity(101))
    ((code, over),) = codes(store)
    assert code == "heat_disabled" and over > 1.7e9


def test_events_from_before_acknowledgements_do_not_flood_the_page(tmp_path):
    path = tmp_path / "store.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript((MIGRATIONS / "0001_first.sql").read_text() + "PRAGMA user_version = 1;")
    row = (1, 10**18, "warning", "stirring", "stir_stall", "stalled", "{}")
    connection.execute(
        "INSERT INTO event (id, wall_ns, level, source, code, message, object) VALUES (?,?,?,?,?,?,?)", row
    )
    connection.commit()
    connection.close()
    store = open_store(path)
    try:
        assert store.alerts()["count"] == 0
        assert [one["acknowledged_by"] for one in store.events()] == ["update"]
    finally:
        store.close()


# --- the API ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("leader"))
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def unit(cluster):
    unit = cluster.unit("vial1")
    yield unit
    unit.close()


@pytest.fixture(scope="module")
def client(cluster, unit):
    with cluster.client() as client:
        wait_for(lambda: [one for one in client.units() if one["state"] == "online"])
        yield client


def of_unit(client):
    return client._json("GET", "/api/alerts?unit=vial1", None)


def test_alerts_over_http(cluster, client, unit):
    for number in range(3):
        unit.event(f"stalled {number}", "warning", "stir_stall")
    found = wait_for(lambda: (now := of_unit(client))["count"] == 3 and now)
    first = found["alerts"][0]
    assert (first["message"], first["unit"], first["over"]) == ("stalled 2", "vial1", None)
    assert client._json("GET", "/api/alerts?limit=1", None)["alerts"] == [first]
    stream = client.live("vial1")
    assert next(stream)[0] == "hello"
    assert client._json("POST", "/api/alerts/acknowledge", {"id": first["id"]}) == {"acknowledged": 1}
    by = "operator at 127.0.0.1"
    assert next(said for kind, said in stream if kind == "acknowledged") == {"unit": "vial1", "by": by}
    stream.close()
    assert client._json("POST", "/api/alerts/acknowledge", {"id": first["id"]}) == {"acknowledged": 0}
    assert [one["message"] for one in of_unit(client)["alerts"]] == ["stalled 1", "stalled 0"]
    (event,) = [one for one in client.events(unit="vial1") if one["id"] == first["id"]]
    assert event["acknowledged_by"] == by
    everything = {"through": found["newest"], "unit": "vial1"}
    assert client._json("POST", "/api/alerts/acknowledge", everything) == {"acknowledged": 2}
    assert of_unit(client) == {"count": 0, "newest": None, "alerts": []}


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 400, "id"),
        ({"id": 1, "through": 2}, 400, "id"),
        ({"id": 0}, 400, "id"),
        ({"through": 2**60}, 400, "through"),
        ({"id": "1"}, 400, "id"),
        ({"id": True}, 400, "id"),
        ({"through": 1, "unit": "nobody"}, 404, "unit"),
        ({"id": 99999}, 409, None),
        ({"all": 1}, 400, "all"),
    ],
)
def test_bad_acknowledgements(client, body, status, field):
    assert refused(client, "POST", "/api/alerts/acknowledge", body) == (status, field)


def test_alerts_need_a_login_and_a_token(cluster):
    import urllib.error
    import urllib.request

    for method, path in (("GET", "/api/alerts"), ("POST", "/api/alerts/acknowledge")):
        asked = urllib.request.Request(
            cluster.address + path, json.dumps({"id": 1}).encode() if method == "POST" else None,
            {"Content-Type": "application/json"}, method=method,
        )  # fmt: skip
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(asked, timeout=5)
        assert caught.value.code == 401
