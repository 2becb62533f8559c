"""The HTTP API over a real broker, ingest and store; the units speak real MQTT."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from urllib.parse import quote

import pytest
from stirbar.bridge.broker import Broker
from stirbar.bridge.ingest import Ingest
from stirbar.bridge.store import open_store
from stirbar.core.leader_client import Leader, LeaderRefused, LeaderUnreachable
from stirbar.web.app import Site, make_app
from stirbar.web.auth import Sessions
from stirbar.web.live import Live
from stirbar.web.server import Server
from stirbar.web.tokens import Tokens, either

from .mqtt_unit import TONE_HZ, TONE_V, MqttUnit


def wait_for(condition, deadline_s=8.0):
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


class Cluster:
    """Broker, store, ingest and page, as `stirbar leader` puts them together."""

    def __init__(self, directory):
        self.directory = directory
        self.broker = Broker(directory)
        self.accounts = {}
        for name in ("vial1", "vial 2", "vial3"):
            file = directory / f"{name}.password"
            unit_id = bytes([len(self.accounts) + 1]) * 16
            username = self.broker.issue(name.replace(" ", ""), unit_id, file)
            self.accounts[name] = (username, file.read_text().strip(), unit_id)
        self.broker.start()
        self.store = open_store(directory / "store.sqlite")
        self.ingest = Ingest(
            self.store, host="127.0.0.1", port=self.broker.port, username=self.broker.username,
            password=self.broker.password, topic_root="pioreactor", data_root="stirbar",
        )  # fmt: skip
        sessions = Sessions(directory, 3600.0)
        self.live = Live(either(sessions, Tokens(directory)), "test")
        self.live.start()
        self.ingest.listen(self.live.publish)
        self.ingest.start()
        self.site = Site(
            directory, self.store, self.ingest, self.live, broker=self.broker, version="test", sessions=sessions
        )
        self.server = Server(make_app(self.site), "127.0.0.1", 0)
        self.server.start()
        self.address = f"http://127.0.0.1:{self.server.port}"

    def client(self, **options):
        return Leader(self.address, token=self.site.links.issue(), **options)

    def unit(self, name, **options):
        username, password, unit_id = self.accounts[name]
        unit = MqttUnit(name, self.broker.port, username, password, unit_id, **options)
        unit.status()
        return unit

    def stop(self):
        self.server.stop()
        self.live.stop()
        self.ingest.stop()
        self.store.close()
        self.broker.stop()


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
        wait_for(lambda: [one for one in client.units() if one["unit"] == "vial1" and one["state"] == "online"])
        yield client


def refused(client, method, path, body=None):
    """The status and the error of a request that must fail."""
    with pytest.raises(LeaderRefused) as caught:
        client._json(method, path, body)
    assert set(caught.value.error) == {"error", "field", "remedy"}, caught.value.error
    return caught.value.status, caught.value.error["field"]


def test_units(client, unit):
    unit.read("od2", [0.5, 0.25])
    unit.read("rpm", [float("nan")])
    unit.setting("stirring", "target_rpm", 500)
    unit.status()

    def settled():
        (found,) = [one for one in client.units() if one["unit"] == "vial1"]
        return found if {"od2", "rpm"} <= set(found["latest"]) and found["settings"] else None

    found = wait_for(settled)
    assert found["unit_id"] == unit.unit_id.hex()
    assert found["simulated"] is True and found["version"] == "9.9"
    assert found["jobs"]["stirring"] == "ready"
    assert found["channels"][0]["angle"] == 90
    assert abs(found["last_seen"] - time.time()) < 5
    assert abs(found["clock_offset_s"] or 0.0) < 1.0  # None until it was heard for long enough
    latest = found["latest"]["od2"]
    assert latest["value"] == 0.25 and latest["stream"] == "od2"
    assert latest["flag_names"] == ["uncalibrated", "simulated"]
    assert latest["blank"] is None and found["latest"]["rpm"]["value"] is None  # NaN
    assert abs(latest["t"] - time.time()) < 5
    (setting,) = [one for one in found["settings"] if one["setting"] == "target_rpm"]
    assert setting == {"job": "stirring", "setting": "target_rpm", "value": 500, "unit": "rpm", "settable": True}


def test_unit_details(client, unit):
    unit.status()
    found = wait_for(lambda: (one := client.unit("vial1")) and one["counters"] and one)
    assert found["counters"]["ticks"] == 1000
    assert found["lateness"]["sampling"]["worst_ns"] == 2100
    assert found["limits"] == {"target_rpm": [0, 1500]}
    assert found["protection"]["attended_only"] is True and found["protection"]["missing"] == ["bund"]
    assert found["status"]["uptime_s"] == 12.5
    assert client.unit(unit.unit_id.hex())["unit"] == "vial1"  # by id as well


def test_unknown_unit(client):
    for path in ("", "/simulation", "/raw"):
        assert refused(client, "GET", f"/api/units/nobody{path}") == (404, "unit")
    with pytest.raises(LeaderRefused, match="vial1"):  # the answer names those that there are
        client.unit("nobody")


def test_command_and_reply(client, unit):
    assert client.set("vial1", "stirring", "target_rpm", 600) == 600
    assert unit.rpm == 600 and unit.commands[-1]["command"] == "set"
    assert client.start("vial1", "stirring") == "ready"
    with pytest.raises(LeaderRefused, match="out of range") as caught:  # the worker's own refusal comes through
        client.set("vial1", "stirring", "target_rpm", 5000)
    assert caught.value.error["limit"] == 1500 and caught.value.error["remedy"] == "lower it"


def test_leds_are_asked_for_by_letter(client, unit):
    assert client.led("vial1", B=20, C=0, source_of_event="programme")["B"]["set"] == 20
    asked = unit.commands[-1]
    assert asked["command"] == "led" and asked["channels"] == {"B": 20, "C": 0}
    assert asked["source_of_event"] == "operator: programme"
    client.led("vial1")
    assert "channels" not in unit.commands[-1]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "command"),
        ({"command": "explode"}, "command"),
        ({"command": "experiment", "name": "x"}, "name"),
        ({"command": "resend"}, "command"),
        ({"command": "set", "job": 3}, "job"),
        ({"command": "set", "value": [1]}, "value"),
        ({"command": "start", "value": 3}, "value"),
        ({"command": "blank", "channel": True}, "channel"),
        ({"command": "raw", "seconds": "many"}, "seconds"),
        ({"command": "led", "channels": [20]}, "channels"),
        ({"command": "led", "channels": {"B": 20}, "source_of_event": 3}, "source_of_event"),
        ({"command": 7}, "command"),
    ],
)
def test_bad_commands(client, unit, body, field):
    before = len(unit.commands)
    assert refused(client, "POST", "/api/units/vial1/command", body) == (400, field)
    assert len(unit.commands) == before  # nothing of it reached the unit


def test_command_to_a_unit_that_is_silent(client, unit, monkeypatch):
    monkeypatch.setattr("stirbar.web.api.COMMAND_TIMEOUT_S", 0.3)
    unit.answers = False
    try:
        begun = time.monotonic()
        assert refused(client, "POST", "/api/units/vial1/command", {"command": "describe"}) == (504, "unit")
        assert time.monotonic() - begun < 3
    finally:
        unit.answers = True


def test_simulation(client, unit):
    found = {one["name"]: one for one in client.simulation("vial1")}
    one = found["time_acceleration"]
    assert set(one) == {"name", "unit", "low", "high", "default", "value", "help", "group"}
    assert one["low"] <= one["value"] <= one["high"]
    client.command("vial1", "simulate", set={"time_acceleration": 60})
    assert {one["name"]: one["value"] for one in client.simulation("vial1")}["time_acceleration"] == 60


def test_simulation_of_a_real_unit(cluster, client):
    real = cluster.unit("vial3", simulated=False)
    try:
        wait_for(lambda: "vial3" in [one["unit"] for one in client.units()])
        assert refused(client, "GET", "/api/units/vial3/simulation") == (409, "unit")
    finally:
        real.close()


def test_raw_and_spectrum(client, unit):
    asked = len([one for one in unit.commands if one["command"] == "raw"])
    found = client.raw("vial1", seconds=2.0)
    assert len([one for one in unit.commands if one["command"] == "raw"]) == asked + 1
    (channel,) = found["channels"]
    assert (channel["channel"], channel["angle"], channel["stream"]) == (2, 90, "od2")
    assert channel["rate_hz"] == pytest.approx(800, rel=1e-6)
    assert len(channel["t_ns"]) == len(channel["volts"]) == len(channel["phase"]) == 1600
    on = [v for v, phase in zip(channel["volts"], channel["phase"], strict=True) if phase == 1]
    assert sum(on) / len(on) == pytest.approx(0.4, abs=1e-3)
    assert {line["phase"] for line in found["spectrum"]} == {"on", "off"}
    for line in found["spectrum"]:
        nearest = min(range(len(line["hz"])), key=lambda i: abs(line["hz"][i] - TONE_HZ))
        assert line["volts"][nearest] == pytest.approx(TONE_V, rel=0.15)
    unit.status()
    wait_for(lambda: client.unit("vial1")["status"]["raw_until_ns"])
    client.raw("vial1", seconds=0.5)  # still coming: nobody is asked again
    assert len([one for one in unit.commands if one["command"] == "raw"]) == asked + 1
    assert refused(client, "GET", "/api/units/vial1/raw?seconds=11") == (400, "seconds")
    assert refused(client, "GET", "/api/units/vial1/raw?seconds=nan") == (400, "seconds")


def test_readings_keep_extremes(client, unit):
    t = time.time()
    values = [1.0] * 100
    values[37], values[61] = 9.0, -3.0
    unit.read("temperature", values, t=t)
    unit.wait_for_ack("temperature")
    (line,) = client.readings("temperature", unit="vial1", start=t - 10, end=t + 0.1, points=10)
    assert line["unit"] == "vial1" and line["stream"] == "temperature" and line["unit_of_value"] == "°C"
    assert line["unit_id"] == unit.unit_id.hex()
    assert len(line["t"]) <= 10 and max(line["high"]) == 9.0 and min(line["low"]) == -3.0
    (full,) = client.readings("temperature", unit="vial1", start=t - 20, end=t + 0.1, points=2000)
    assert full["mean"] == pytest.approx(values)
    assert client.readings("temperature", unit="vial1", start=1.0, end=2.0) == []


@pytest.mark.parametrize(
    ("query", "status", "field"),
    [
        ("stream=od2", 400, "unit"),
        ("stream=od2&unit=vial1&experiment=x", 400, "unit"),
        ("unit=vial1", 400, "stream"),
        ("unit=vial1&stream=event", 400, "stream"),
        ("unit=vial1&stream=od9", 400, "stream"),
        ("unit=vial1&stream=99999999999", 400, "stream"),
        ("unit=nobody&stream=od2", 404, "unit"),
        ("experiment=nothing&stream=od2", 404, "experiment"),
        ("unit=vial1&stream=od2&points=0", 400, "points"),
        ("unit=vial1&stream=od2&points=2001", 400, "points"),
        ("unit=vial1&stream=od2&from=5&to=4", 400, "from"),
        ("unit=vial1&stream=od2&from=yesterday", 400, "from"),
        ("unit=vial1&stream=od2&to=inf", 400, "to"),
        ("unit=vial1&stream=od2&from=-1e300", 400, "from"),
        ("unit=%ff%00&stream=od2", 400, "unit"),
    ],
)
def test_bad_readings(client, query, status, field):
    assert refused(client, "GET", f"/api/readings?{query}") == (status, field)


def test_experiments_from_name_to_csv(client, unit):
    name = "Growth of E. coli, déjà vu"
    made = client.create_experiment(name, "what is seen")
    assert made["name"] == name and made["description"] == "what is seen" and made["units"] == []
    assert abs(made["created_at"] - time.time()) < 5
    client.assign("vial1", name)
    assert client.experiments()[0]["units"] == ["vial1"]
    assert client.unit("vial1")["experiment"] == name
    unit.read("od3", [0.1, 0.2, float("nan")], experiment=name)
    unit.read("od4", [0.7], experiment=name)
    unit.wait_for_ack("od3")
    unit.wait_for_ack("od4")
    (line,) = client.readings("od3", experiment=name)
    assert line["mean"] == [0.1, 0.2]
    response = client._request("GET", f"/api/experiments/{quote(name, safe='')}/readings.csv", None, 5.0)
    assert response.getheader("Content-Type").startswith("text/csv")
    assert response.getheader("Content-Disposition").startswith('attachment; filename="Growth_of')
    rows = list(csv.DictReader(io.StringIO(response.read().decode())))
    assert [row["stream"] for row in rows] == ["od3", "od3", "od3", "od4"]
    assert [row["value"] for row in rows] == ["0.1", "0.2", "", "0.7"]
    assert {row["experiment"] for row in rows} == {name}
    client.unassign("vial1", name)
    assert client.unit("vial1")["experiment"] is None


def test_download_of_one_stream(client, unit, tmp_path):
    client.create_experiment("long")
    unit.read("od1", [i / 1000 for i in range(3000)], experiment="long")
    unit.read("rpm", [1.0], experiment="long")
    unit.wait_for_ack("od1")
    unit.wait_for_ack("rpm")
    length = client.download("long", tmp_path / "od1.csv", stream="od1")
    assert length == (tmp_path / "od1.csv").stat().st_size > 100_000
    with (tmp_path / "od1.csv").open() as file:
        values = [float(row["value"]) for row in csv.DictReader(file)]
    assert values == [i / 1000 for i in range(3000)]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 400, "name"),
        ({"name": ""}, 400, "name"),
        ({"name": "   "}, 400, "name"),
        ({"name": "a" * 101}, 400, "name"),
        ({"name": "€" * 60}, 400, "name"),
        ({"name": "a/b"}, 400, "name"),
        ({"name": "a+b"}, 400, "name"),
        ({"name": "a\nb"}, 400, "name"),
        ({"name": "$experiment"}, 400, "name"),
        ({"name": 5}, 400, "name"),
        ({"name": "fine", "description": "d" * 1001}, 400, "description"),
        ({"name": "fine", "units": []}, 400, "units"),
    ],
)
def test_bad_experiments(client, body, status, field):
    assert refused(client, "POST", "/api/experiments", body) == (status, field)
    assert "fine" not in [one["name"] for one in client.experiments()]


def test_bad_assignments(client):
    client.create_experiment("assigned")
    assert refused(client, "POST", "/api/experiments", {"name": "assigned"}) == (409, "name")
    assert refused(client, "PUT", "/api/experiments/nothing/units/vial1", {}) == (404, "experiment")
    assert refused(client, "PUT", "/api/experiments/assigned/units/nobody", {}) == (404, "unit")
    assert refused(client, "DELETE", "/api/experiments/assigned/units/vial1", {}) == (409, "unit")
    assert refused(client, "GET", "/api/experiments/nothing/readings.csv") == (404, "experiment")
    assert refused(client, "GET", "/api/experiments/assigned/readings.csv?stream=raw") == (400, "stream")


def test_a_unit_has_one_experiment(client):
    client.create_experiment("first")
    client.create_experiment("second")
    client.assign("vial1", "first")
    client.assign("vial1", "second")
    units = {one["name"]: one["units"] for one in client.experiments()}
    assert units["first"] == [] and units["second"] == ["vial1"]
    client.unassign("vial1", "second")


def test_events(client, unit):
    for number in range(5):
        unit.event(f"turn {number}")
    unit.wait_for_ack("event")
    found = client.events(unit="vial1", limit=3)
    assert [one["message"] for one in found] == ["turn 4", "turn 3", "turn 2"]
    assert found[0]["level"] == "notice" and found[0]["unit"] == "vial1" and found[0]["value"] == 1.5
    older = client.events(unit="vial1", before=found[-1]["t"])
    assert [one["message"] for one in older[:2]] == ["turn 1", "turn 0"]
    for query in ("limit=0", "limit=1001", "before=x", "before=nan"):
        assert refused(client, "GET", f"/api/events?{query}") == (400, query.split("=")[0])
    assert refused(client, "GET", "/api/events?unit=nobody") == (404, "unit")


def test_live_from_unit_to_page(client, unit):
    stream = client.live("vial1")
    assert next(stream)[0] == "hello"
    sent = time.time()
    unit.read("od2", [0.123])
    unit.event("seen live")
    unit.status()
    unit.setting("stirring", "target_rpm", 777)
    seen = {}
    for kind, event in stream:
        seen.setdefault(kind, (event, time.time() - sent))
        if {"reading", "event", "status", "setting"} <= set(seen):
            break
    assert all(event["unit"] == "vial1" for event, _ in seen.values())
    reading, delay = seen["reading"]
    assert reading["value"] == 0.123 and reading["blank"] is None and delay < 1.0
    assert seen["event"][0]["message"] == "seen live"
    assert seen["setting"][0]["value"] == 777
    stream.close()


def test_lost_and_offline_units(cluster, client, monkeypatch):
    unit = cluster.unit("vial 2")
    state = lambda: {one["unit"]: one["state"] for one in client.units()}.get("vial 2")  # noqa: E731
    wait_for(lambda: state() == "online")
    monkeypatch.setattr("stirbar.web.api.UNSEEN_S", 0.0)  # connected, but silent
    assert state() == "lost"
    monkeypatch.undo()
    wait_for(lambda: state() == "online")
    unit.close(suddenly=True)
    wait_for(lambda: state() == "lost")  # the will
    again = cluster.unit("vial 2")
    wait_for(lambda: state() == "online")
    again.close()
    wait_for(lambda: state() == "offline")


def test_two_units_of_one_name(cluster, client, unit):
    username, password, unit_id = cluster.accounts["vial3"]
    twin = MqttUnit("vial1", cluster.broker.port, username, password, unit_id)
    try:
        wait_for(lambda: [one["unit"] for one in client.units()].count("vial1") == 2)
        with pytest.raises(LeaderRefused, match=unit.unit_id.hex()):
            client.unit("vial1")
        assert client.unit(twin.unit_id.hex())["unit_id"] == twin.unit_id.hex()
    finally:
        twin.name = "vial3"
        twin.describe()
        wait_for(lambda: [one["unit"] for one in client.units()].count("vial1") == 1)
        twin.close()


def test_health(cluster, client):
    found = client.health()
    assert found["status"] == "ok" and found["broker"]["alive"] and found["ingest"]["connected"]
    assert found["store"]["commits"] > 0 and found["live"]["pages_open"] >= 0
    with Leader(cluster.address) as stranger:
        assert stranger.health() == {"status": "ok"}  # nothing more to strangers


def test_no_nan_in_any_answer(client):
    def forbid(name):
        raise AssertionError(name)

    for path in ("/api/units", "/api/units/vial1", "/api/events", "/api/health", "/api/readings?unit=vial1&stream=rpm"):
        json.loads(client._request("GET", path, None, 5.0).read(), parse_constant=forbid)


def test_pages_are_served(client):
    for path, words in {
        "/": "overview",
        "/units/vial1": "vial1",
        "/experiments": "xperiment",
        "/events": "vent",
    }.items():
        text = client._request("GET", path, None, 5.0).read().decode()
        assert words in text and "<script>" not in text and 'style="' not in text and " onclick" not in text
        assert client._csrf in text
    page = client._request("GET", "/static/api.js", None, 5.0)
    assert "javascript" in page.getheader("Content-Type") and page.getheader("Cache-Control") == "no-cache"
    tag = page.getheader("ETag")
    page.read()
    again = client._send("GET", "/static/../app.py", None, 5.0)
    assert again.status in (403, 404)
    again.read()
    assert tag


def test_wrong_method_and_path(client):
    assert refused(client, "DELETE", "/api/units")[0] == 405
    assert refused(client, "GET", "/api/nothing")[0] == 404


def test_client_errors(cluster, tmp_path):
    with pytest.raises(LeaderUnreachable, match=r"127\.0\.0\.1:9"):
        Leader("http://127.0.0.1:9", password="x", timeout_s=1).units()
    with pytest.raises(ValueError, match="not the address of a leader"):
        Leader("ftp://x")
    with pytest.raises(LeaderRefused, match="no password is set"):
        Leader(cluster.address, password="something").units()
    with pytest.raises(LeaderRefused, match="not logged in"):
        Leader(cluster.address).units()


def test_broker_dies_and_comes_back(cluster, client, unit):
    """kill -9 of the broker: said by /api/health, and everything works again without anybody's help."""
    import os
    import signal

    connects = cluster.ingest.counters()["connects"]
    os.kill(cluster.broker.pid, signal.SIGKILL)
    wait_for(lambda: cluster.ingest.counters()["connects"] > connects, 20)
    wait_for(lambda: client.health()["status"] == "ok", 10)

    def answers():
        try:
            return client.set("vial1", "stirring", "target_rpm", 321) == 321
        except LeaderRefused:
            return False

    wait_for(answers, 15)
    assert math.isclose(unit.rpm, 321)
