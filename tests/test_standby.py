"""A leader, its standby, and who leads when one of them is lost; docs/standby.md. The whole of it, in namespaces, is
`test_leader_lost_standby_promoted` of test_outages.py."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import postgres
import pytest
from cluster_processes import LeaderMachine, new_unit
from running import wait_for
from standby_bench import Cluster
from stirbar.bridge import books, peer
from stirbar.bridge.authority import Authority
from stirbar.bridge.broker import Broker
from stirbar.bridge.cluster_command import main as cluster_main
from stirbar.bridge.credentials import LEADER, STANDBY, CredentialError, Credentials
from stirbar.bridge.enrolment import Enrolment, EnrolmentError
from stirbar.bridge.ingest import CommandNotSent, Ingest
from stirbar.bridge.peer import PeerError, who_leads
from stirbar.bridge.places import database_path, leader_directory
from stirbar.bridge.postgres_promote import promote as promote_database
from stirbar.bridge.standing import DEPOSED, Place, Standing, StandingError, change_standing, read_standing
from stirbar.bridge.store import Store, StoreError, open_store
from stirbar.core.config import load_config
from stirbar.web import tending
from stirbar.web.command import Leader
from stirbar.web.command import main as leader_main
from stirbar.web.server import Server
from stirbar.web.tending import Tending
from units import Unit, block, identity, wait_until

pytest.importorskip("cryptography", reason="the leader's certificates")

NOBODY = 65534
HERE, THERE = Place("10.0.0.1", 4280, 8883), Place("10.0.0.2", 4281, 8884)


# --- what a machine is -----------------------------------------------------------------------------------------------


def test_a_machine_knows_what_it_is_after_a_restart(tmp_path: Path) -> None:
    assert read_standing(tmp_path).leads and read_standing(tmp_path).leaders() == []
    change_standing(tmp_path, lambda old: old.but(epoch=3, own=HERE, peer=THERE))
    kept = read_standing(tmp_path)
    assert kept.leads and kept.epoch == 3 and not kept.refusal()
    assert kept.leaders() == [["10.0.0.1", 8883, 4280], ["10.0.0.2", 8884, 4281]]
    books.step_down(tmp_path, 4)
    kept = read_standing(tmp_path)
    assert (kept.role, kept.epoch) == (DEPOSED, 4) and "units follow the one at 10.0.0.2, of epoch 4" in kept.refusal()
    assert books.promote(tmp_path).epoch == 5, "above all that it knows"
    with pytest.raises(books.StandbyError, match="leads already"):
        books.promote(tmp_path)
    assert stat.S_IMODE((tmp_path / "standing.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "{}", '{"role": "king", "epoch": 1, "own": null, "peer": null}', "[]"])
def test_a_machine_that_does_not_know_what_it_is_does_not_lead(tmp_path: Path, text: str) -> None:
    (tmp_path / "standing.json").write_text(text)
    with pytest.raises(StandingError, match="is damaged"):
        read_standing(tmp_path)


def test_the_standing_is_said_with_a_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = LeaderMachine(tmp_path / "m")
    directory = machine.data / "leader"

    def run(main: Callable[[list[str]], int], *words: str) -> tuple[int, str, str]:
        return main([*words, "--config", str(machine.config)]), *capsys.readouterr()

    assert run(leader_main, "standing")[:2] == (0, "this machine leads; no standby\n")
    change_standing(directory, lambda old: Standing("standby", 1, HERE, THERE))
    assert run(leader_main, "standing")[:2] == (3, "this is the standby of the leader at 10.0.0.2\n")
    for words in (["password"], ["token", "create", "x"], ["token", "revoke", "x"]):
        status, printed, said = run(leader_main, *words)
        assert (status, printed) == (1, "") and "lets in whom that one lets in" in said
    for main, word in ((leader_main, "standby-token"), (cluster_main, "invite"), (leader_main, "standby-forget")):
        status, printed, said = run(main, word)
        assert (status, printed) == (1, "") and ("the leader at 10.0.0.2" in said or "does not lead" in said)
    status, _, said = run(leader_main, "promote")  # nobody answers at 10.0.0.2
    assert status == 0 and "leads, by epoch 2" in said
    assert run(leader_main, "promote")[0] == 1
    assert run(leader_main, "standing")[:2] == (0, "this machine leads; the standby is at 10.0.0.2\n")
    assert run(leader_main, "standby-forget")[0] == 0
    assert read_standing(directory).peer is None


def test_a_standby_on_a_database_that_follows_opens_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = LeaderMachine(tmp_path / "m", **{"leader.config": {"database": "postgresql://nobody@127.0.0.1:1/x"}})
    config = load_config(str(machine.config))
    change_standing(leader_directory(config), lambda old: Standing("standby", 1, HERE, THERE))
    leader = Leader(config)
    leader.start()
    assert leader.store is leader.broker is leader.server is None
    assert "the database follows that of the leader by itself" in capsys.readouterr().err
    leader.stop()


# --- accounts --------------------------------------------------------------------------------------------------------


def test_a_standbys_users_are_the_leaders_but_for_its_own(tmp_path: Path) -> None:
    theirs, ours = Credentials(tmp_path / "theirs"), Credentials(tmp_path / "ours")
    password = theirs.admit("u1", identity(1))
    secret = theirs.admit_standby()
    assert theirs.proves_standby(secret) and not theirs.proves_standby(password) and not theirs.proves(STANDBY, secret)
    assert list(theirs.units()) == ["u1"] == list(theirs.book())
    with pytest.raises(CredentialError):
        theirs.admit(STANDBY, identity(2))
    with pytest.raises(CredentialError):
        theirs.revoke(STANDBY)
    before = ours.leader_password
    ours.adopt(theirs.book())
    assert ours.proves("u1", password)
    assert Credentials(tmp_path / "ours").leader_password == before, "the leader's account is of this machine"
    theirs.revoke("u1")
    ours.adopt({**theirs.book(), LEADER: {"hash": "x", "unit_id": None}})
    assert not ours.units() and Credentials(tmp_path / "ours").leader_password == before
    again = theirs.admit_standby()
    assert theirs.proves_standby(again) and not theirs.proves_standby(secret), "one standby at a time"
    theirs.dismiss_standby()
    assert not theirs.proves_standby(again)


def as_standby(port: int, secret: str) -> mqtt.Client:
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5, reconnect_on_failure=False)
    client.username_pw_set(STANDBY, secret)
    client.connect("127.0.0.1", port)
    return client


def test_a_standby_hears_what_units_report_and_says_nothing(tmp_path: Path) -> None:
    credentials = Credentials(tmp_path / "credentials")
    secret = credentials.admit_standby()
    password_file = tmp_path / "u1.password"
    credentials.issue("u1", identity(1), password_file)
    broker = Broker(tmp_path, log=lambda line: None)
    broker.start()
    unit = Unit(broker, "u1", 1, password_file.read_text().strip())
    assert unit.connected.wait(10)
    heard: list[str] = []
    subscribed: list[int] = []
    listener = as_standby(broker.port, secret)
    listener.on_connect = lambda *_: listener.subscribe("#", 1)
    listener.on_subscribe = lambda *_: subscribed.append(1)
    listener.on_message = lambda _, __, message: heard.append(message.topic)
    listener.loop_start()
    wait_until(lambda: subscribed, "subscription")
    own = f"stirbar/{identity(1).hex()}"
    for leaf in ("ack", "command", "describe"):
        ended: list[int] = []
        talker = as_standby(broker.port, secret)
        talker.on_connect = lambda client, *_, leaf=leaf: client.publish(f"{own}/{leaf}", b'{"epoch": 9}', 1)
        talker.on_disconnect = lambda *_, ended=ended: ended.append(1)  # which is how this mosquitto refuses
        talker.on_publish = lambda *_, ended=ended: ended.append(1)
        talker.loop_start()
        wait_until(lambda ended=ended: ended, "the broker's refusal")
        talker.disconnect()
        talker.loop_stop()
    for leaf in ("ask", "reply"):
        unit.say(leaf, {})
    unit.store(block(0, 10))
    unit.say("state", {"state": "online"})
    wait_until(lambda: f"{own}/state" in heard, "what a unit reports")
    assert sorted(set(heard)) == [f"{own}/state", f"{own}/store/od2"]
    assert not unit.heard, "nothing of the standby's came to the unit"
    listener.disconnect()
    listener.loop_stop()
    unit.close()
    broker.stop()


def test_tokens_of_units_and_of_standbys_are_not_good_for_each_other(tmp_path: Path) -> None:
    machine = LeaderMachine(tmp_path / "leader")
    enrolment = Enrolment(load_config(str(machine.config)), lambda: None, lambda line: None)
    unit, standby = enrolment.invite(30), enrolment.invite_standby(30)
    with pytest.raises(EnrolmentError, match="for a unit"):
        enrolment.admit_standby(unit.secret.hex())
    asked = {"secret": standby.secret.hex(), "unit_id": identity(1).hex(), "name": "u1", "request": ""}
    with pytest.raises(EnrolmentError, match="stirbar-standby"):
        enrolment.join(asked)
    unused = enrolment.invite_standby(30)
    books.forget_standby(enrolment.directory)
    with pytest.raises(EnrolmentError, match="knows no such"):
        enrolment.admit_standby(unused.secret.hex())
    standby = enrolment.invite_standby(30)
    assert enrolment.admit_standby(standby.secret.hex())
    with pytest.raises(EnrolmentError, match="was used"):
        enrolment.admit_standby(standby.secret.hex())
    with pytest.raises(EnrolmentError, match="not what a unit sends"):
        enrolment.admit_standby("zz")


# --- the standby's ingest and book -----------------------------------------------------------------------------------


def test_one_that_does_not_lead_stores_and_answers_nobody(tmp_path: Path) -> None:
    broker = Broker(tmp_path, log=lambda line: None)
    broker.start()
    store = open_store(tmp_path / "store.sqlite")
    store.upsert_unit(identity(1), "u1", {})
    store.create_experiment("e")
    store.assign(identity(1), "e")
    ingest = Ingest(
        store, host="127.0.0.1", port=broker.port, username=broker.username, password=broker.password,
        topic_root="pioreactor", data_root="stirbar", refusal="another one leads",
    )  # fmt: skip
    ingest.tell_leaders([["h", 1, 2]])
    ingest.start()
    password_file = tmp_path / "u1.password"
    broker.issue("u1", identity(1), password_file)
    unit = Unit(broker, "u1", 1, password_file.read_text().strip())
    assert unit.connected.wait(10)
    unit.describe(version="0.1")
    unit.store(block(0, 30))
    unit.say("ask", {"unit": "u1", "runs": {identity(100).hex(): [2]}, "epoch": 1})
    with pytest.raises(CommandNotSent, match="another one leads"):
        ingest.command(identity(1), {"command": "describe"})
    wait_until(lambda: store.high_water(identity(1), identity(100)) == {2: 30}, "stored")
    ingest.stop()
    assert not unit.acks()
    unit.close()
    store.close()
    broker.stop()


def entered(store: Store) -> dict[str, Any]:
    """The part of a book that people entered."""
    return {
        "experiments": [
            {name: one[name] for name in ("name", "description", "created_at")} for one in store.experiments()
        ],
        "assignments": {unit_id.hex(): name for unit_id, name in store.assignments().items()},
        "labels": {
            one["name"]: {u.hex(): la for u, la in store.labels(one["name"]).items()} for one in store.experiments()
        },
        "tags": {one["unit_id"].hex(): one["tags"] for one in store.units()},
    }


def test_what_people_entered_is_taken_over_when_the_unit_is_known(tmp_path: Path) -> None:
    theirs, ours = (open_store(tmp_path / name) for name in ("theirs", "ours"))
    theirs.upsert_unit(identity(1), "u1", {})
    theirs.create_experiment("e", "said")
    theirs.assign(identity(1), "e")
    theirs.set_label(identity(1), "e", "left")
    theirs.set_tags(identity(1), ["pair"])
    assert not books.take_entries(ours, entered(theirs)), "not whole: the unit was not heard of yet"
    assert [one["name"] for one in ours.experiments()] == ["e"] and ours.assignments() == {}
    ours.upsert_unit(identity(1), "u1", {})
    ours.upsert_unit(identity(2), "u2", {})
    ours.assign(identity(2), "e")
    ours.set_label(identity(2), "e", "left")
    assert books.take_entries(ours, entered(theirs))
    taken = entered(ours)
    taken["tags"].pop(identity(2).hex())
    assert taken == entered(theirs), "also that a unit belongs to nothing any more"
    theirs.close()
    ours.close()


# --- who is believed -------------------------------------------------------------------------------------------------


def test_the_thread_wakes_the_leader_when_it_has_to_step_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tending, "TEND_S", 0.02)
    word = Word(monkeypatch, tmp_path)
    woken: list[int] = []
    word.tending.start(lambda: word.standing, word.store, lambda: None, lambda: woken.append(1))
    word.answers = ("standby", 1)
    time.sleep(0.1)
    assert not woken
    word.answers = ("leader", 2)
    wait_until(lambda: woken, "the leader is woken")
    word.tending.stop()
    assert read_standing(tmp_path).role == DEPOSED
    word.store.close()


class Word:
    """What the other one says of itself, in place of its page."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path, epoch: int = 1) -> None:
        self.answers: tuple[str, int] | None = None
        self.said: list[str] = []
        monkeypatch.setattr(tending, "who_leads", self._ask)
        self.store = open_store(directory / "store.sqlite")
        self.store.set_epoch(epoch)
        self.standing = change_standing(directory, lambda old: old.but(epoch=epoch, own=HERE, peer=THERE))
        config = load_config(str(LeaderMachine(directory / "m").config))
        self.tending = Tending(config, directory, self.said.append)

    def _ask(self, *_: object) -> tuple[str, int]:
        if self.answers is None:
            raise PeerError("it does not answer")
        return self.answers

    def step(self) -> Standing:
        return self.tending.step(self.standing, self.store, lambda: None)

    def events(self) -> list[str]:
        self.store.commit()
        return [event["code"] for event in self.store.events()]


def test_a_leader_steps_down_before_a_higher_epoch_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    word = Word(monkeypatch, tmp_path, epoch=4)
    assert word.step().leads and not word.said, "a standby that is away troubles no leader"
    for answers in (("standby", 9), ("deposed", 9), ("leader", 3), ("leader", 4)):
        word.answers = answers
        assert word.step().leads, answers
    assert word.events() == ["two_leaders", "two_leaders"] and len(word.said) == 2, "told once each"
    word.answers = ("leader", 5)
    assert word.step().role == DEPOSED and read_standing(tmp_path).epoch == 5
    assert word.events()[0] == "deposed"
    word.store.close()


def page(directory: Path, files: tuple[str, str, bool]) -> Server:
    """A page that says that it leads, with this certificate and key."""

    def application(environ: dict[str, Any], start: Any) -> list[bytes]:
        start("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({"role": "leader", "epoch": 99}).encode()]

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files[:2])
    server = Server(application, "127.0.0.1", 0, context)
    server.start()
    return server


def test_only_a_servers_certificate_of_the_same_authority_is_believed(tmp_path: Path) -> None:
    (tmp_path / "stranger").mkdir()
    ours, stranger = Authority(tmp_path / "tls"), Authority(tmp_path / "stranger" / "tls")
    cases = {
        "leader": ours.server("server", [], ["127.0.0.1"]),
        "elsewhere": ours.server("elsewhere", [], ["10.0.0.9"]),
        "client": ours.client("127.0.0.1"),  # as a unit's is: for clients
        "stranger": stranger.server("server", [], ["127.0.0.1"]),
    }
    for name, files in cases.items():
        server = page(tmp_path, files)
        there = Place("127.0.0.1", server.port, 1)
        if name == "leader":
            assert who_leads(tmp_path, there) == ("leader", 99)
        else:
            with pytest.raises(PeerError, match="does not answer"):
                who_leads(tmp_path, there)
        server.stop()
    with pytest.raises(PeerError):
        peer.read_book(tmp_path, Place("127.0.0.1", 1, 1), "x", "")


def test_a_machine_that_leads_others_becomes_no_standby(tmp_path: Path) -> None:
    machine = LeaderMachine(tmp_path / "m")
    config, directory = load_config(str(machine.config)), machine.data / "leader"
    directory.mkdir(parents=True)
    authority = Authority(directory / "tls")
    books.check_free(config, directory, authority.pem)
    books.check_free(config, directory, "another one: this one leads nobody")
    unit = new_unit(tmp_path, "u1")
    from stirbar.bridge.joining import Files, make_request

    authority.sign(make_request(Files(load_config(str(unit.config))))[1], "u1", identity(1))
    books.check_free(config, directory, authority.pem)
    with pytest.raises(books.StandbyError, match="leads a cluster of its own, with u1"):
        books.check_free(config, directory, "another one")


def test_what_root_sets_up_belongs_to_the_services_user(tmp_path: Path) -> None:
    """A leader's books and a standby's, without processes: admitted, set up, and set up for whom."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    leader, standby = LeaderMachine(tmp_path / "l"), LeaderMachine(tmp_path / "s")
    config = load_config(str(leader.config))
    store = open_store(database_path(config, leader_directory(config)))
    store.set_epoch(3)
    enrolment = Enrolment(config, lambda: None, lambda line: None)
    admitted = books.Books(config, store, enrolment).admit(enrolment.invite_standby(30).secret.hex(), "10.0.0.1", THERE)
    assert read_standing(enrolment.directory).leaders()[1][0] == "10.0.0.2"
    theirs = load_config(str(standby.config))
    directory = leader_directory(theirs)
    os.chown(standby.data, NOBODY, NOBODY)
    wrong = {**admitted, "data_root": "another"}
    with pytest.raises(books.StandbyError, match="data_root is 'another'"):
        books.become_standby(theirs, directory, HERE, wrong)
    assert read_standing(directory).leads and not (directory / "tls").exists()
    books.become_standby(theirs, directory, HERE, admitted)
    kept = read_standing(directory)
    assert (kept.role, kept.epoch) == ("standby", 3) and str(kept.peer) == "10.0.0.1" and str(kept.own) == "10.0.0.2"
    made = [directory, *directory.rglob("*")]
    assert {one.stat().st_uid for one in made} == {NOBODY}
    assert all(stat.S_IMODE(one.stat().st_mode) & 0o77 == 0 for one in made)
    assert (directory / "tls" / "ca.key").read_text() == (enrolment.directory / "tls" / "ca.key").read_text()
    store.close()


# --- long ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def place() -> Iterator[Path]:
    """A short path: those of sockets are limited."""
    directory = Path(tempfile.mkdtemp(prefix="sy", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.soak
def test_the_leadership_goes_there_and_back_over_a_cut_cable(place: Path) -> None:
    """The leader's cable is pulled: two lead for a while. Then the old one becomes the standby, missing what the other
    one alone was given, and is promoted: units give it all that it lacks."""
    cluster = Cluster(place)
    leader, standby = cluster.leader, cluster.standby
    try:
        leader.run()
        for unit in cluster.units:
            cluster.join(unit)
        cluster.take_on_standby(leader, standby)
        standby.run()
        for unit in cluster.units:
            cluster.more_stored(standby, unit, 50)
        cluster.switch.cut("l")
        began = time.monotonic()
        assert standby.command("leader", "promote").returncode == 0
        for unit in cluster.units:
            cluster.more_stored(standby, unit, 50, 120)
        print(f"units followed within {time.monotonic() - began:.0f} s of the promotion")
        cluster.switch.mend("l")
        wait_for(lambda: leader.command("leader", "standing").returncode == 4, 60, "the old leader steps down", 1.0)
        for unit in cluster.units:
            cluster.more_stored(standby, unit, 50)
        before = sum(here for here, _ in cluster.stored(leader).values())
        cluster.take_on_standby(standby, leader)
        wait_for(lambda: sum(here for here, _ in cluster.stored(leader).values()) > before + 20, 60, "it hears again")
        assert not cluster.whole(leader)
        standby.kill("leader")
        assert "by epoch 3" in leader.command("leader", "promote").stderr
        for unit in cluster.units:
            cluster.more_stored(leader, unit, 50, 120)
        cluster.settle(leader, 60)
        assert cluster.rows(leader, "SELECT count(*) FROM gap") == [(0,)]
    except AssertionError as error:
        raise AssertionError(f"{error}\n{cluster.logs()}") from error
    finally:
        cluster.close()


@pytest.mark.soak
def test_a_database_that_follows_is_promoted_with_the_leader(tmp_path: Path) -> None:
    """Two servers, the second a copy that follows the first by streaming replication."""
    with postgres.server() as address:
        url = postgres.fresh(address, "stirbar")
        store = open_store(url)
        with postgres.follower(address) as second:
            follower_url = second.format("stirbar")
            store.add(*block(0, 30))
            store.commit()
            machine = LeaderMachine(tmp_path / "m", **{"leader.config": {"database": follower_url}})
            directory = machine.data / "leader"
            directory.mkdir(parents=True)
            change_standing(directory, lambda old: Standing("standby", 1, HERE, THERE))
            copy = open_store(follower_url)
            wait_for(lambda: len(copy.units()) == 1, 10, "what was stored comes")
            with pytest.raises(StoreError):
                copy.set_epoch(2)  # it takes no writes
            copy.close()
            with pytest.raises(StoreError, match="cannot be asked"):
                promote_database(address.format("nowhere"))
            assert leader_main(["promote", "--config", str(machine.config)]) == 0
            copy = open_store(follower_url)
            copy.set_epoch(2)
            assert copy.expected(identity(1), identity(100), 2) == 30, "what was stored before is there"
            copy.add(*block(30, 10))
            copy.commit()
            assert copy.high_water(identity(1), identity(100)) == {2: 40}
            copy.close()
        store.close()
