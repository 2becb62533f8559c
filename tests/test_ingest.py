"""The leader's ear with a real broker, a real database and units on the wire: exact counts."""

from __future__ import annotations

import json
import os
import pathlib
import sqlite3
import threading
import time

import pytest
import stirbar.bridge.ingest as ingest_module
import units
from stirbar.bridge.broker import Broker
from stirbar.bridge.ingest import CommandNotSent, CommandTimeout, Ingest
from stirbar.bridge.store import open_store
from stirbar.core.records import KIND_TRACE, STREAM_IDS, TRACE
from units import block, identity, wait_until


class Leader:
    """Broker, store and ingest in a directory; units join it."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.broker = Broker(directory, log=lambda line: None)
        self.broker.start()
        self.units: list[units.Unit] = []
        self.errors_expected = 0
        self.open()

    def open(self) -> None:
        self.store = open_store(self.directory / "leader.sqlite")
        self.ingest = Ingest(
            self.store,
            host="127.0.0.1",
            port=self.broker.port,
            username=self.broker.username,
            password=self.broker.password,
            topic_root="pioreactor",
            data_root="stirbar",
            log=lambda level, text, key="": None,
        )
        self.heard: list[tuple[str, str, dict]] = []
        self.ingest.listen(lambda kind, unit, value: self.heard.append((kind, unit, value)))
        self.ingest.start()
        wait_until(lambda: self.ingest.counters()["connected"], "ingest connected")

    def shut(self) -> None:
        self.ingest.stop()
        self.store.close()

    def unit(self, name: str, number: int, filters: list[str] | None = None) -> units.Unit:
        password_file = self.directory / f"{name}.password"
        self.broker.issue(name, identity(number), password_file)
        unit = units.Unit(self.broker, name, number, password_file.read_text().strip(), filters)
        self.units.append(unit)
        assert unit.connected.wait(10)
        return unit

    def close(self) -> None:
        for unit in self.units:
            unit.close()
        self.shut()
        self.broker.stop()

    def rows(self, statement: str) -> list:
        with sqlite3.connect(f"file:{self.directory}/leader.sqlite?mode=ro", uri=True) as connection:
            return connection.execute(statement).fetchall()


@pytest.fixture
def leader(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest_module, "COMMIT_INTERVAL_S", 0.2)  # the tests' patience, not what is tested
    one = Leader(tmp_path)
    yield one
    one.close()
    assert one.ingest.counters()["internal_errors"] == one.errors_expected


def test_stored_once_and_acknowledged_after_the_commit(leader):
    unit = leader.unit("vial1", 1)
    unit.describe(version="0.1")
    for first in range(0, 100, 10):
        unit.store(block(first, 10))
        unit.store(block(first, 10))
    wait_until(lambda: unit.through() == 100, "all acknowledged")
    assert leader.rows("SELECT count(*), min(id & 0xffffffffff), max(id & 0xffffffffff) FROM reading") == [(100, 0, 99)]
    assert leader.store.counters()["duplicates"] == 100
    # the last block once more: nothing moves, and yet it is acknowledged again
    before = len(unit.acks())
    unit.store(block(90, 10))
    wait_until(lambda: len(unit.acks()) > before, "acknowledged again")
    last = unit.acks()[-1]
    assert abs(last.pop("t") - time.time()) < 5
    assert last == {"epoch": 1, "through": {identity(100).hex(): {"2": 100}}}
    assert leader.rows("SELECT name FROM unit") == [("vial1",)]


def test_every_acknowledgement_is_in_the_file_when_it_is_heard(leader):
    unit = leader.unit("vial1", 1)
    checked = []

    def check(client, userdata, message):
        through = json.loads(message.payload)["through"].get(identity(100).hex(), {}).get("2", 0)
        checked.append((through, leader.rows("SELECT count(*) FROM reading")[0][0]))

    unit.client.on_message = check
    for first in range(0, 500, 5):
        unit.store(block(first, 5))
        if first in (100, 250):
            wait_until(lambda reached=first: checked and checked[-1][0] >= reached, "an acknowledgement on the way")
    wait_until(lambda: checked and checked[-1][0] == 500, "all acknowledged")
    assert all(stored >= through for through, stored in checked)
    assert len({through for through, _ in checked}) >= 3


def test_no_more_than_one_commit_a_second(leader, monkeypatch):
    monkeypatch.undo()
    assert ingest_module.COMMIT_INTERVAL_S == 1.0
    unit = leader.unit("vial1", 1)
    start = time.monotonic()
    commits = leader.store.counters()["commits"]
    sequence = 0
    while time.monotonic() - start < 3.0:
        unit.store(block(sequence, 5))
        sequence += 5
    elapsed = time.monotonic() - start
    made = leader.store.counters()["commits"] - commits
    assert sequence >= 250
    assert 2 <= made <= elapsed + 1


def test_a_hole_is_asked_for_and_the_mark_waits(leader):
    unit = leader.unit("vial1", 1)
    unit.store(block(0, 10))
    unit.store(block(20, 10))
    unit.store(block(30, 10))
    run = identity(100).hex()
    wait_until(lambda: any("from" in ack for ack in unit.acks()), "asked for the hole")
    assert [ack["from"] for ack in unit.acks() if "from" in ack] == [{run: {"2": 10}}]
    wait_until(lambda: unit.through() == 10, "up to the hole")
    assert leader.ingest.counters()["holes"] == 2
    assert leader.ingest.counters()["asked_again"] == 1
    unit.store(block(10, 10))
    wait_until(lambda: unit.through() == 40, "the mark jumps over what was stored behind the hole")
    unit.store(block(50, 5))
    unit.store(units.gap(40, 10))
    wait_until(lambda: unit.through() == 55, "a gap closes a hole")
    assert leader.rows("SELECT count(*) FROM reading") == [(45,)]
    assert [(gap["first_sequence"], gap["count"], gap["reason"]) for gap in leader.store.gaps()] == [
        (40, 10, "spool full")
    ]


def test_ask_is_answered_from_the_store(leader):
    unit = leader.unit("vial1", 1)
    unit.store(block(0, 30))
    wait_until(lambda: unit.through() == 30, "stored")
    run, other = identity(100).hex(), identity(7).hex()
    unit.say("ask", {"unit": "vial1", "runs": {run: [2, "rpm"], other: ["1"]}, "epoch": 1})
    wait_until(lambda: any("from" in ack for ack in unit.acks()), "answered")
    answer = next(ack for ack in unit.acks() if "from" in ack)
    assert answer["from"] == {run: {"2": 30, "8": 0}, other: {"1": 0}}
    assert answer["through"] == {run: {"2": 30, "8": 0}, other: {"1": 0}}
    # a unit that follows a newer leader gets no answer from an old one
    unit.say("ask", {"unit": "vial1", "runs": {run: [2]}, "epoch": 2})
    wait_until(lambda: leader.ingest.counters()["higher_epochs"] == 1, "noticed")
    assert sum("from" in ack for ack in unit.acks()) == 1


def test_malformed_messages_are_counted_and_dropped(leader):
    unit = leader.unit("vial1", 1)
    head, body = block(0, 10)
    bad = [
        ("store/od2", b""),
        ("store/od2", b"STB1 but then nothing"),
        ("store/od2", head.pack() + body[:-1]),
        ("store/od1", head.pack() + body),
        ("store/od2", units.pack(block(0, 10, unit=identity(2)))),
        ("describe", b"[1, 2]"),
        ("describe", b'{"unit": 7}'),
        ("describe", b"\xff"),
        ("state", b'{"state": "asleep"}'),
        ("ask", b'{"runs": {"zz": [1]}, "epoch": 1}'),
        ("ask", b'{"runs": {"%s": [99]}, "epoch": 1}' % identity(1).hex().encode()),
        ("live/od2", b"\0" * 300),
        ("live/status", b"[" * 100_000),
        ("reply", b"x"),
    ]
    for leaf, payload in bad:
        unit.say(leaf, payload)
    unit.store(block(0, 10))
    wait_until(lambda: unit.through() == 10, "what is whole arrives")
    counters = leader.ingest.counters()
    assert counters["malformed"] == len(bad) - 1  # the reply belongs to no command: counted as late
    assert counters["late_replies"] == 1
    assert leader.rows("SELECT count(*) FROM reading") == [(10,)]


def test_a_block_that_stays_damaged_becomes_a_gap(leader):
    unit = leader.unit("vial1", 1)
    unit.store(block(0, 10))
    head, body = block(10, 10)
    wrong = bytearray(body)
    wrong[:8] = (99).to_bytes(8, "little")
    for _ in range(3):
        unit.say("store/od2", head.pack() + bytes(wrong))
    unit.store(block(20, 10))
    wait_until(lambda: unit.through() == 30, "the mark passes the damaged block")
    assert leader.rows("SELECT first_sequence, count FROM gap") == [(10, 10)]
    assert leader.ingest.counters()["given_up"] == 1
    assert [event["code"] for event in leader.store.events()] == ["block_refused"]


def test_command_round_trip(leader):
    unit = leader.unit("vial1", 1)
    request = {"command": "set", "job": "stirring", "setting": "target_rpm", "value": 400}
    reply = leader.ingest.command(identity(1), request)
    asked = reply["result"]
    assert 0 < asked.pop("expires_at") - time.time() < 5
    assert reply["ok"] and asked == {**request, "id": reply["id"], "epoch": 1}
    unit.answer = lambda request: None
    start = time.monotonic()
    with pytest.raises(CommandTimeout, match="did not answer"):
        leader.ingest.command(identity(1), request, 0.3)
    assert time.monotonic() - start < 2
    # many at once, each gets its own
    unit.answer = lambda request: {"id": request["id"], "ok": True, "result": request["value"]}
    answers = {}
    threads = [
        threading.Thread(
            target=lambda n=n: answers.update({n: leader.ingest.command(identity(1), {"value": n})["result"]})
        )
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert answers == {n: n for n in range(20)}


def test_a_reply_from_another_unit_is_not_taken(leader):
    first, second = leader.unit("vial1", 1), leader.unit("vial2", 2)
    correlations = []

    def forge(request):
        properties = units.Properties(units.PacketTypes.PUBLISH)
        properties.CorrelationData = bytes.fromhex(request["id"])
        second.client.publish(f"{second.base}/reply", b'{"ok": true}', 1, properties=properties).wait_for_publish(5)
        correlations.append(request["id"])

    first.answer = forge
    with pytest.raises(CommandTimeout):
        leader.ingest.command(identity(1), {"command": "status"}, 0.5)
    assert len(correlations) == 1
    wait_until(lambda: leader.ingest.counters()["late_replies"] == 1, "counted")


def test_live_state_readings_settings_and_raw(leader):
    unit = leader.unit("vial1", 1)
    unit.describe(version="0.1", simulated=True, channels=[{"stream": "od2", "channel": 2, "angle": 90}])
    unit.say("live/od2", units.pack(block(0, 3)), qos=0)
    unit.say("live/status", {"jobs": {"stirring": "ready"}, "experiment": "growth"}, qos=0)
    unit.client.publish("pioreactor/vial1/growth/stirring/target_rpm", b"500", 1, True).wait_for_publish(5)
    unit.client.publish("pioreactor/vial1/growth/stirring/$state", b"ready", 1, True).wait_for_publish(5)
    unit.client.publish("pioreactor/vial1/growth/od_reading/od2", b'{"od":0.1}', 1, True).wait_for_publish(5)
    for second in range(8):
        items = TRACE.pack(1, 1, 1, 0, second, 1000) * 10
        head = units.header(
            KIND_TRACE, STREAM_IDS["raw"], TRACE.size, second * 10, 10, identity(1), identity(100), "growth"
        )
        unit.say("live/raw", head.pack() + items, qos=0)
    unit.say("live/event", units.pack(units.event(0)), qos=0)
    unit.store(units.event(0))
    wait_until(lambda: unit.through(stream=16) == 1, "the event is stored")
    (now,) = leader.ingest.units()
    assert (now["unit"], now["unit_id"], now["state"], now["simulated"]) == ("vial1", identity(1).hex(), "online", True)
    assert time.time() - now["last_seen"] < 60
    assert now["jobs"] == {"stirring": "ready"}
    assert now["settings"] == [
        {"job": "stirring", "setting": "target_rpm", "value": 500},
        {"job": "stirring", "setting": "$state", "value": "ready"},
    ]
    latest = now["latest"]["od2"]
    assert (latest["sequence"], latest["value"], latest["stream"], latest["blank"]) == (
        2,
        units.value_of(2),
        "od2",
        None,
    )
    assert latest["flag_names"] == ["uncalibrated", "simulated"]
    assert latest["t"] == units.wall_ns(2) / 1e9
    raw = leader.ingest.raw(identity(1), 3.0)
    assert [head.first_sequence for head, _ in raw] == [40, 50, 60, 70]
    assert len(raw[0][1]) == 160
    kinds = [kind for kind, name, _ in leader.heard if name == "vial1"]
    assert (kinds.count("reading"), kinds.count("status"), kinds.count("setting")) == (3, 1, 2)
    assert kinds.count("event") == 1  # it came twice, live and to be stored
    json.dumps(leader.heard, allow_nan=False)
    json.dumps(leader.ingest.units(), allow_nan=False)


def test_the_will_makes_a_unit_lost(leader):
    unit = leader.unit("vial1", 1)
    unit.describe()
    wait_until(lambda: [one["state"] for one in leader.ingest.units()] == ["online"], "online")
    unit.say("state", {"state": "lost"}, True)
    wait_until(lambda: [one["state"] for one in leader.ingest.units()] == ["lost"], "lost")
    assert ("state", "vial1", {"state": "lost"}) in leader.heard


def test_jobs_of_a_lost_unit_are_lost_in_the_dialect_too(leader):
    unit = leader.unit("vial1", 1)
    unit.describe(experiment="yeast")
    jobs = {"od_reading": "ready", "stirring": "disconnected", "monitor": "ready"}
    unit.say("live/status", {"jobs": jobs, "experiment": "yeast"}, qos=0)
    wait_until(lambda: any(kind == "status" for kind, _, _ in leader.heard), "the status")
    unit.say("state", {"state": "lost"}, True)
    jobs = ("yeast/od_reading", "$experiment/monitor")
    lost = {(f"pioreactor/vial1/{job}/$state", b"lost") for job in jobs}
    wait_until(lambda: lost <= set(unit.heard), "the dialect's states")
    assert not any(topic.endswith("stirring/$state") for topic, _ in unit.heard)


def test_two_units_with_one_name_are_named(leader):
    first, second = leader.unit("vial1", 1), leader.unit("vial2", 2)
    second.name = "vial1"
    first.describe()
    second.describe()
    second.describe()
    wait_until(lambda: any(kind == "event" for kind, _, _ in leader.heard), "an event")
    first.store(block(0, 1))
    wait_until(lambda: first.through() == 1, "a commit")
    events = [event for event in leader.store.events() if event["code"] == "two_units_one_name"]
    assert len(events) == 1
    assert identity(1).hex() in events[0]["message"] and identity(2).hex() in events[0]["message"]


def test_assignment_reaches_store_and_unit(leader):
    unit = leader.unit("vial1", 1)
    unit.describe()
    wait_until(lambda: leader.store.units() and leader.store.units()[0]["unit"] == "vial1", "known to the store")
    leader.store.create_experiment("growth curve")
    leader.ingest.assign(identity(1), "growth curve")
    topic = "pioreactor/vial1/$experiment/assignment"
    wait_until(lambda: (topic, b"growth curve") in unit.heard, "told")
    assert leader.store.assignments() == {identity(1): "growth curve"}
    assert leader.ingest.units()[0]["experiment"] == "growth curve"
    leader.ingest.assign(identity(1), None)
    wait_until(lambda: (topic, b"$no_experiment_present") in unit.heard, "told")
    assert leader.store.assignments() == {}
    assert leader.rows("SELECT count(*), count(until_ns) FROM assignment") == [(1, 1)]


def test_locked_database_delays_but_loses_nothing(leader):
    unit = leader.unit("vial1", 1)
    unit.store(block(0, 10))
    wait_until(lambda: unit.through() == 10, "stored")
    other = sqlite3.connect(leader.directory / "leader.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for first in range(10, 100, 10):
        unit.store(block(first, 10))
    wait_until(lambda: leader.ingest.counters()["commit_failures"] >= 2, "two failures")
    run = identity(100).hex()
    unit.say("ask", {"unit": "vial1", "runs": {run: [2]}, "epoch": 1})
    failures = leader.ingest.counters()["commit_failures"]
    wait_until(lambda: leader.ingest.counters()["commit_failures"] > failures, "one more failure")
    # `from` is a promise like `through`: not even a question brings one for what is not committed
    assert unit.through() == 10
    assert not any("from" in ack for ack in unit.acks())
    assert leader.store.high_water(identity(1), identity(100)) == {2: 10}
    other.execute("ROLLBACK")
    other.close()
    wait_until(lambda: unit.through() == 100, "all stored")
    assert [ack["from"] for ack in unit.acks() if "from" in ack] == [{run: {"2": 100}}]
    assert leader.rows("SELECT count(*) FROM reading") == [(100,)]


def test_a_new_leader_tells_the_units_from_where(leader):
    unit = leader.unit("vial1", 1)
    unit.describe()
    unit.store(block(0, 10))
    wait_until(lambda: unit.through() == 10, "stored")
    leader.shut()
    unit.store(block(10, 10))  # nobody hears it
    leader.open()
    run = identity(100).hex()
    wait_until(lambda: any(ack.get("from") == {run: {"2": 10}} for ack in unit.acks()), "told from where")
    unit.store(block(10, 10))
    wait_until(lambda: unit.through() == 20, "the rest")
    assert leader.rows("SELECT count(*) FROM reading") == [(20,)]


def test_it_survives_the_death_of_the_broker(leader):
    unit = leader.unit("vial1", 1)
    unit.describe()
    unit.store(block(0, 10))
    wait_until(lambda: unit.through() == 10, "stored")
    unit.connected.clear()
    os.kill(leader.broker.pid, 9)
    wait_until(lambda: not leader.ingest.counters()["connected"], "noticed")
    with pytest.raises(CommandNotSent):
        leader.ingest.command(identity(1), {"command": "status"})
    wait_until(lambda: leader.ingest.counters()["connected"], "connected again")
    assert unit.connected.wait(10)
    unit.store(block(10, 10))
    wait_until(lambda: unit.through() == 20, "stored again")
    assert leader.ingest.command(identity(1), {"command": "status"})["ok"]


def test_mistakes_of_others_do_not_deafen_the_leader(leader, monkeypatch):
    unit = leader.unit("vial1", 1)

    def broken(kind, name, value):
        raise RuntimeError("a listener's mistake")

    stop_listening = leader.ingest.listen(broken)
    unit.say("live/od2", units.pack(block(0, 1)))
    wait_until(lambda: leader.ingest.counters()["internal_errors"] == 1, "counted")
    stop_listening()
    step, raised = leader.ingest._session.step, []

    def fails_once(now):
        if not raised:
            raised.append(now)
            raise RuntimeError("a mistake in the connection")
        step(now)

    monkeypatch.setattr(leader.ingest._session, "step", fails_once)
    wait_until(lambda: leader.ingest.counters()["connects"] == 2, "connected again")
    unit.store(block(0, 10))
    wait_until(lambda: unit.through() == 10, "still hears")
    leader.errors_expected = 2


def test_over_tls(tmp_path):
    """The authority that the leader makes for its page serves the broker as well."""
    pytest.importorskip("cryptography", reason="makes the certificates of this test")
    from stirbar.web.certificate import server_context

    server_context(tmp_path, "127.0.0.1")
    folder = tmp_path / "tls"
    files = (str(folder / "ca.pem"), str(folder / "server.pem"), str(folder / "server.key"))
    broker = Broker(tmp_path, tls=files, log=lambda line: None)
    broker.start()
    store = open_store(tmp_path / "leader.sqlite")
    known = {
        "username": broker.username,
        "password": broker.password,
        "topic_root": "pioreactor",
        "data_root": "stirbar",
    }
    quiet = {"log": lambda level, text, key="": None}
    trusting = Ingest(store, host="127.0.0.1", port=broker.port, tls=files[0], **known, **quiet)
    plain = Ingest(store, host="127.0.0.1", port=broker.port, **known, **quiet)
    stranger = Ingest(store, host="127.0.0.1", port=broker.port, tls="", **known, **quiet)
    for one in (plain, stranger, trusting):
        one.start()
    wait_until(lambda: trusting.counters()["connected"], "connected")
    assert not plain.counters()["connected"] and not stranger.counters()["connected"]
    for one in (plain, stranger, trusting):
        one.stop()
    store.close()
    broker.stop()
