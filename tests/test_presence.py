"""Who is there: a unit without power, or behind a cut cable, is lost in seconds, and its jobs; then it is back."""

from __future__ import annotations

import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from bridge_doubles import UNIT_ID, wait_for
from outage_bench import Bench, Link, TimedWorker
from stirbar.bridge import presence as presence_module
from stirbar.bridge.ingest import Ingest
from stirbar.bridge.live import LiveUnit
from stirbar.bridge.presence import Presence
from stirbar.bridge.store import open_store

JOBS = {"stirring": "ready", "od_reading": "ready", "monitor": "ready", "leds": "disconnected"}
STATES = {
    "pioreactor/vial1/exp one/stirring/$state",
    "pioreactor/vial1/exp one/od_reading/$state",
    "pioreactor/vial1/$experiment/monitor/$state",
}


class Cluster:
    """A bench with a leader's ingest in this process, and what stands, retained, in the dialect."""

    def __init__(self, place: Path, extra: str = "") -> None:
        self.bench = Bench(place, extra=extra)
        self.store = open_store(place / "presence.sqlite")
        self.ingest = Ingest(
            self.store, host="127.0.0.1", port=self.bench.broker.port, username="", password="",
            topic_root="pioreactor", data_root="stirbar", log=lambda level, text, key="": None,  # type: ignore[arg-type]
        )  # fmt: skip
        self.told: list[str] = []
        self.ingest.listen(lambda kind, _, value: self.told.append(value["state"]) if kind == "state" else None)
        self.ingest.start()
        self.retained: dict[str, str] = {}
        self.ready = threading.Event()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe("pioreactor/#", 1)
        self.client.on_subscribe = lambda *_: self.ready.set()
        self.client.on_message = lambda _, __, message: self.retained.update({message.topic: message.payload.decode()})
        self.client.connect("127.0.0.1", self.bench.broker.port)
        self.client.loop_start()
        assert self.ready.wait(5)

    def start(self, **options: object) -> TimedWorker:
        worker = self.bench.start_worker()
        worker.jobs = JOBS
        self.bench.start_bridge(**options)
        wait_for(lambda: self.stands("online", "ready"), 15, "a unit that is at work")
        return worker

    def stands(self, state: str, job_state: str) -> bool:
        found = [unit["state"] for unit in self.ingest.units()]
        return found == [state] and all(self.retained.get(topic) == job_state for topic in STATES)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        self.ingest.stop()
        counters = self.ingest.counters()
        self.store.close()
        self.bench.close()
        assert counters["internal_errors"] == 0


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sb") as name:
        yield Path(name)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' patience, not what is tested: two heartbeats and a half instead of five."""
    monkeypatch.setattr(presence_module, "UNSEEN_S", 2.5)
    monkeypatch.setattr("stirbar.bridge.ingest.COMMIT_INTERVAL_S", 0.2)


@pytest.fixture
def cluster(place: Path, patience: None) -> Iterator[Cluster]:
    one = Cluster(place)
    yield one
    one.close()


def test_a_unit_that_is_frozen_with_its_connection_open_is_lost_and_comes_back(cluster: Cluster) -> None:
    """As one without power: nothing closes the connection, and no will comes before the keep-alives are over."""
    cluster.start()
    assert cluster.bench.bridge is not None
    cluster.bench.bridge.send_signal(signal.SIGSTOP)
    wait_for(lambda: cluster.stands("lost", "lost"), 6, "lost, with its jobs")
    assert "pioreactor/vial1/exp one/leds/$state" not in cluster.retained, "a job that did not run is not lost"
    cluster.bench.bridge.send_signal(signal.SIGCONT)
    wait_for(lambda: cluster.stands("online", "ready"), 6, "back, with its jobs")
    assert cluster.told == ["online", "lost", "online"]


def test_a_unit_whose_bridge_and_worker_are_killed_is_lost(cluster: Cluster) -> None:
    worker = cluster.start()
    assert cluster.bench.bridge is not None
    worker.end()
    cluster.bench.workers.clear()
    cluster.bench.bridge.kill()
    wait_for(lambda: cluster.stands("lost", "lost"), 6, "lost, with its jobs")


def test_a_unit_behind_a_cut_cable_is_lost_and_comes_back(place: Path, patience: None) -> None:
    link = Link()
    cluster = None
    try:
        port = 18100 + int(link.cable[3:])
        cluster = Cluster(place, f"listener {port} {link.address}")
        cluster.start(port=port, host=link.address, inside=link.inside)
        link.cut()
        wait_for(lambda: cluster.stands("lost", "lost"), 6, "lost, with its jobs")
        link.mend()
        wait_for(lambda: cluster.stands("online", "ready"), 15, "back, with its jobs")
    finally:
        if cluster is not None:
            cluster.close()
        link.close()


# Presence alone


class Book:
    """A presence with units, and what it says."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []
        self.told: list[str] = []
        self.presence = Presence(
            "root", lambda topic, payload: self.said.append((topic, payload.decode())),
            lambda unit: self.told.append(unit.state),
        )  # fmt: skip
        self.unit = LiveUnit(UNIT_ID, "stirbar")
        self.unit.name, self.unit.status = "a/b", {"experiment": "e", "jobs": {"stirring": "ready"}}
        self.presence.listening(0.0)

    def look(self, now: float) -> str:
        self.presence.step(now, [self.unit])
        return self.unit.state


def test_silence_counts_from_when_we_listen() -> None:
    book = Book()
    book.presence.said(book.unit, "online")
    assert [book.look(float(now)) for now in range(1, 7)] == ["online"] * 5 + ["lost"]
    assert book.said == [("root/a_b/e/stirring/$state", "lost")]
    # what it said last is that it is online: it does not say so again when it is heard
    book.presence.heard(book.unit)
    book.unit.heard_at = 6.5
    book.presence.jobs_are(book.unit, {"stirring": "sleeping", "leds": "ready"})
    assert book.said[1:] == [("root/a_b/e/stirring/$state", "sleeping")]
    assert book.told == ["online", "lost", "online"] and book.look(7.0) == "online"


def test_what_an_earlier_leader_called_lost_is_put_right() -> None:
    """All that is known of the unit is what stands in the dialect."""
    book = Book()
    book.unit.status = {"experiment": "e"}
    book.unit.settings = {"stirring": {"$state": "lost"}, "leds": {"$state": "disconnected"}}
    book.presence.said(book.unit, "online")
    for now in range(1, 8):
        book.look(float(now))
    assert book.unit.state == "lost" and book.said == []
    book.presence.heard(book.unit)
    book.presence.jobs_are(book.unit, {"stirring": "ready", "leds": "disconnected"})
    assert book.said == [("root/a_b/e/stirring/$state", "ready")]


def test_who_does_not_listen_itself_calls_nobody_silent() -> None:
    """A leader whose disk stood still for a minute has not read what the units said meanwhile."""
    book = Book()
    book.presence.said(book.unit, "online")
    assert book.look(60.0) == "online" and book.look(61.0) == "online"
    assert [book.look(float(now)) for now in range(62, 66)][-1] == "online" and book.look(66.0) == "lost"


@pytest.mark.parametrize("state", ["offline", "lost"])
def test_who_has_left_is_not_silent(state: str) -> None:
    book = Book()
    book.presence.said(book.unit, "online")
    assert book.presence.said(book.unit, state) and not book.presence.said(book.unit, state)
    told = len(book.told)
    for now in range(1, 20):
        book.look(float(now))
    assert (book.unit.state, len(book.told)) == (state, told)


def test_a_foreign_unit_speaks_when_its_jobs_do() -> None:
    book = Book()
    book.unit.describe = {"foreign": True}
    book.presence.said(book.unit, "online")
    assert {book.look(float(now)) for now in range(1, 20)} == {"online"}


def test_a_will_that_comes_after_the_silence_is_no_news() -> None:
    book = Book()
    book.presence.said(book.unit, "online")
    for now in range(1, 8):
        book.look(float(now))
    assert not book.presence.said(book.unit, "lost") and len(book.said) == 1
    assert not book.unit.silent, "now it has to say itself that it is back"
