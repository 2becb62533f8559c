"""How a unit finds its leader when that changes: places it was told of, whom it follows, what it sends again."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path

import pytest
import zmq
from bridge_doubles import UNIT_ID, wait_for
from cluster_processes import new_unit
from mosquitto import free_port, start_mosquitto
from stirbar.bridge import joining, topics
from stirbar.bridge.leaders import FILE, MARK, Leaders, parse_leaders
from stirbar.bridge.log import Log
from stirbar.bridge.sender import SILENT_S, Sender
from stirbar.bridge.session import Broker, Session
from stirbar.bridge.spool import Spool
from stirbar.core.config import load_config
from stirbar.core.records import KIND_READINGS, Header

OWN = topics.UnitTopics("stirbar", UNIT_ID.hex())
FIRST = ("10.0.0.1", 8883)
TOLD = [["10.0.0.1", 8883, 4280], ["10.0.0.2", 8884, 4281]]
OLD_RUN, RUN = b"A" * 16, b"B" * 16


def leaders(path: Path) -> Leaders:
    return Leaders(FIRST, str(path / FILE), Log("test"))


@pytest.mark.parametrize(
    "told",
    [None, {}, "x", [["a", 1]], [["a", 1, 2, 3]], [["", 1, 2]], [["a", 0, 2]], [["a", 1, 65536]], [["a", True, 2]],
     [[1, 1, 2]], [["a" * 254, 1, 2]], [["a", 1.5, 2]], [["a", 1, 2]] * 9],
)  # fmt: skip
def test_what_is_no_list_of_leaders_is_refused(told: object) -> None:
    with pytest.raises(ValueError):
        parse_leaders(told)


def test_places_are_kept_for_the_owner_alone_and_forgotten_when_they_are_told_no_more(tmp_path: Path) -> None:
    told = leaders(tmp_path)
    told.learn(TOLD)
    assert told.places == [FIRST, ("10.0.0.2", 8884)]
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    told.prefer(("10.0.0.2", 8884))
    told.learn([*TOLD[1:], ["10.0.0.3", 1, 2]])
    assert told.places == [("10.0.0.2", 8884), FIRST, ("10.0.0.3", 1)], "that of the configuration stays"
    assert leaders(tmp_path).places == [FIRST, ("10.0.0.2", 8884), ("10.0.0.3", 1)]
    told.learn([])
    assert told.places == [FIRST] == leaders(tmp_path).places
    (tmp_path / FILE).write_text("[[")
    assert leaders(tmp_path).places == [FIRST]


def test_without_a_certificate_nobody_is_believed(tmp_path: Path) -> None:
    told = Leaders(FIRST, "", Log("test"))
    told.learn(TOLD)
    assert told.places == [FIRST] and not list(tmp_path.iterdir())


class Unit:
    """Spool and sender of a unit, online."""

    def __init__(self, path: Path) -> None:
        self.asked: list[dict[str, object]] = []
        self.sent: list[tuple[int, int]] = []
        self.spool = Spool(str(path / "spool"), UNIT_ID, 1_000_000, lambda _: None)
        for run, count in ((OLD_RUN, 5), (RUN, 3)):
            header = Header(KIND_READINGS, 8, 8, count, 0, UNIT_ID, run, bytes(16), 0, 0, 0, "e")
            self.spool.append([header.pack() + bytes(8 * count)])
            self.spool.acknowledge((run, 8), count)
        self.spool.current_run = RUN
        self.leaders = leaders(path)
        self.sender = Sender(self.spool, OWN, "u", True, self.publish, Log("test"), self.leaders)
        self.sender.online(100.0)

    def publish(self, topic: str, payload: bytes, qos: int) -> int:
        if topic == OWN.ask:
            self.asked.append(json.loads(payload))
        return 1

    def hear(self, now: float, **said: object) -> None:
        self.sender.on_ack(json.dumps(said).encode(), now)


def test_a_new_leader_is_given_what_another_had_acknowledged_of_earlier_runs_too(tmp_path: Path) -> None:
    unit = Unit(tmp_path)
    unit.sender.step(100.0)
    assert unit.asked[0]["runs"] == {OLD_RUN.hex(): [8], RUN.hex(): [8]}
    unit.hear(100.1, epoch=2, **{"from": {OLD_RUN.hex(): {"8": 1}, RUN.hex(): {"8": 3}}}, leaders=TOLD)
    unit.sender.step(100.2)
    assert (unit.sender.sent, unit.sender.sent_data) == (1, 4)
    assert unit.leaders.places == [FIRST, ("10.0.0.2", 8884)]
    assert unit.spool.epoch == 2
    unit.spool.close()


def test_who_answers_by_an_older_epoch_or_not_at_all_is_not_the_leader(tmp_path: Path) -> None:
    unit = Unit(tmp_path)
    unit.spool.follow_epoch(3)
    assert not unit.sender.misled(100.0 + SILENT_S)
    assert "no leader has answered" in unit.sender.misled(100.1 + SILENT_S)
    unit.hear(101.0, epoch=2, leaders=[])
    assert unit.sender.misled(101.0) == "an older leader answers here"
    unit.sender.offline()
    unit.sender.online(200.0)
    assert not unit.sender.misled(200.0), "another connection, perhaps another leader"
    unit.hear(200.1, epoch=3, **{"from": {}})
    unit.hear(200.2, epoch=2)
    assert not unit.sender.misled(500.0), "the leader has answered here: the older one is a guest"
    unit.spool.close()


def test_a_broken_list_of_leaders_spoils_nothing(tmp_path: Path) -> None:
    unit = Unit(tmp_path)
    unit.hear(100.0, epoch=1, leaders=[["x"]])
    assert unit.sender.malformed == 1 and unit.leaders.places == [FIRST]
    unit.spool.close()


def test_a_unit_of_another_cluster_counts_epochs_anew(tmp_path: Path) -> None:
    told = leaders(tmp_path)
    assert not told.came_from_another_cluster()
    (tmp_path / MARK).write_text("")
    assert told.came_from_another_cluster() and not told.came_from_another_cluster()
    unit = Unit(tmp_path)
    unit.spool.follow_epoch(4)
    unit.spool.forget_epoch()
    assert unit.spool.follow_epoch(1)
    unit.spool.close()
    assert Spool(str(tmp_path / "spool"), UNIT_ID, 1_000_000, lambda _: None).epoch == 1


def test_the_next_place_is_tried_at_once_and_one_that_misleads_last(tmp_path: Path) -> None:
    """A shut door first, then two brokers: the session takes the first that answers, and leaves it when told to."""
    brokers = [start_mosquitto(tmp_path) for _ in range(2)]
    told = Leaders(("127.0.0.1", free_port()), str(tmp_path / FILE), Log("test"))
    told.learn([["127.0.0.1", broker.port, 1] for broker in brokers])
    session = Session(
        Broker(*told.places[0], "stirbar-test"), ("said/state", b"lost"), [("asked/#", False)], 1.0, Log("test"),
        *[lambda *_: None] * 4, leaders=told,
    )  # fmt: skip

    def at(broker: int) -> bool:
        session.step(time.monotonic())
        poller = zmq.Poller()
        if session.interest()[0] >= 0:
            poller.register(*session.interest())
        for _, events in poller.poll(20):
            session.handle(events, time.monotonic())
        return session.online and told.places[0] == ("127.0.0.1", brokers[broker].port)

    wait_for(lambda: at(0), 10, "the first broker that answers")
    session.move_on(time.monotonic(), "it does not lead")
    wait_for(lambda: at(1), 10, "the other one")
    assert told.places[-1] == ("127.0.0.1", brokers[0].port)
    brokers[1].kill()
    wait_for(lambda: at(0), 10, "the one that is left")
    session.close(time.monotonic, 0.1)
    for broker in brokers:
        broker.kill()


def test_a_certificate_is_renewed_by_whoever_leads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = new_unit(tmp_path, "u1")
    files = joining.Files(load_config(str(machine.config)))
    files.write(files.directory / FILE, json.dumps(TOLD))
    asked: list[tuple[str, int]] = []
    answers: dict[str, dict[str, object]] = {"10.0.0.2": {"ends": 1}}

    def ask(address: str, port: int, *_: object) -> dict[str, object]:
        asked.append((address, port))
        if address not in answers:
            raise joining.JoinError("it is gone")
        return answers[address]

    monkeypatch.setattr(joining, "ask", ask)
    about = {"address": "10.0.0.1", "port": 4280}
    assert joining._ask_whoever_leads(files, about, "", {}) == {"ends": 1}
    assert asked == [("10.0.0.1", 4280), ("10.0.0.2", 4281)]
    answers.clear()
    with pytest.raises(joining.JoinError, match=r"10\.0\.0\.1: it is gone; 10\.0\.0\.2: it is gone"):
        joining._ask_whoever_leads(files, about, "", {})
