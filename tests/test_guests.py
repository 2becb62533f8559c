"""Guests of the broker: what each may is tried, at the doors with and without TLS, and so is everything else."""

from __future__ import annotations

import json
import os
import pathlib
import queue
import signal
import subprocess
import time

import paho.mqtt.client as mqtt
import pytest
from mosquitto import free_port
from running import wait_for
from stirbar.bridge import cluster_command
from stirbar.bridge.authority import Authority
from stirbar.bridge.broker import Broker, Network
from stirbar.bridge.credentials import CredentialError
from stirbar.bridge.guests import Scope
from stirbar.core.config import load_config
from units import identity

OWN = f"stirbar/{identity(1).hex()}"


class Client:
    """A client (MQTT 3.1.1, as the field's) that remembers what it was told; `refused` says why it was not let in."""

    def __init__(self, port: int, name: str, password: str, tls: tuple[str, str] | None = None) -> None:
        self.heard: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self.refused = ""
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        self.client.username_pw_set(name, password)
        if tls is not None:
            self.client.tls_set(tls[0], tls[1])
        self.client.on_message = lambda _, __, message: self.heard.put((message.topic, message.payload))
        answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.client.on_connect = lambda _, __, ___, reason, ____: answers.put(str(reason))
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        try:
            answer = answers.get(timeout=5)
        except queue.Empty:
            answer = "no answer"
        if answer != "Success":
            self.refused = answer
            self.close()

    def subscribe(self, *filters: str) -> Client:
        done: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.client.on_subscribe = lambda *_: done.put(None)
        for pattern in filters:
            self.client.subscribe(pattern, 1)
            done.get(timeout=5)
        return self

    def say(self, topic: str, payload: str = "x") -> None:
        self.client.publish(topic, payload, 1).wait_for_publish(5)

    def next(self) -> tuple[str, bytes]:
        return self.heard.get(timeout=5)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


class House:
    """A broker with one unit, `vial1`, a leader that hears everything, and the door without TLS."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.legacy_port, self.network_port = free_port(), free_port()
        self.authority = Authority(directory / "tls")
        server = self.authority.server("broker", {"localhost"}, {"127.0.0.1"})[:2]
        files = (str(self.authority.certificate_path), *server, str(self.authority.revoked_path))
        self.broker = Broker(
            directory,
            network=Network("127.0.0.1", self.network_port, files),
            legacy=("127.0.0.1", self.legacy_port),
            log=lambda line: None,
        )
        self.password_file = directory / "vial1.password"
        self.broker.issue("vial1", identity(1), self.password_file)
        self.broker.start()
        self.clients: list[Client] = []
        self.passwords: dict[str, str] = {}
        self.unit = self.client("vial1", self.password_file.read_text().strip())
        self.leader = self.client(self.broker.username, self.broker.password).subscribe("#")

    def client(self, name: str, password: str, legacy: bool = False) -> Client:
        one = Client(self.legacy_port if legacy else self.broker.port, name, password)
        self.clients.append(one)
        return one

    def admit(self, name: str, legacy_door: bool = False, **scope: object) -> Client:
        password = self.passwords[name] = self.broker._credentials.admit_guest(name, Scope(**scope))
        self.broker.reload()
        time.sleep(0.2)  # SIGHUP is read between two rounds of the broker
        return self.client(name, password, legacy_door)

    def attempt(self, name: str, topic: str, legacy: bool) -> None:
        """Publish as a guest, in a connection of its own: mosquitto hangs up on who publishes what it may not."""
        answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        client.username_pw_set(name, self.passwords[name])
        client.on_connect = lambda *_: client.publish(topic, "x", 1)
        client.on_publish = lambda *_: answers.put(True)
        client.on_disconnect = lambda *_: answers.put(False)
        client.connect("127.0.0.1", self.legacy_port if legacy else self.broker.port)
        client.loop_start()
        answers.get(timeout=5)
        client.disconnect()
        client.loop_stop()

    def heard(self) -> list[str]:
        """What the leader has heard until now."""
        self.leader.say("the/end")
        found = []
        while (topic := self.leader.next()[0]) != "the/end":
            found.append(topic)
        return found

    def reach(self, who: Client, topics: list[str]) -> list[str]:
        """Which of these, published by the leader, this client hears."""
        for topic in [*topics, "pioreactor/$broadcast/exp/the/end"]:
            self.leader.say(topic)
        found = []
        while (topic := who.next()[0]) != "pioreactor/$broadcast/exp/the/end":
            found.append(topic)
        self.heard()
        return found

    def close(self) -> None:
        for one in self.clients:
            one.close()
        self.broker.stop()


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    one = House(tmp_path_factory.mktemp("house"))
    yield one
    one.close()


WRITES = [
    "pioreactor/{me}/exp/od_reading/od1",
    "pioreactor/{me}/$experiment/monitor/$state",
    "pioreactor/vial1/exp/od_reading/od1",
    "pioreactor/vial1/exp/growth_rate_calculating/growth_rate",
    "pioreactor/vial1/exp/logs/app/info",
    "pioreactor/vial1/exp/stirring/target_rpm",
    "pioreactor/vial1/exp/stirring/target_rpm/set",
    "pioreactor/vial2/exp/stirring/target_rpm/set",
    "pioreactor/vial1/exp/monitor/flicker_led_response_okay",
    "pioreactor/vial1/$experiment/assignment",
    "pioreactor/$broadcast/exp/stirring/target_rpm/set",
    "pioreactor/vial1/a/set",
    f"{OWN}/command",
    f"{OWN}/store/od1",
    f"{OWN}/ack",
    "stirbar/leader/state",
    "stirbar/" + "0" * 32 + "/describe",
    "elsewhere",
]
READS = [
    "pioreactor/vial1/exp/od_reading/od1",
    "pioreactor/vial2/exp/od_reading/od1",
    f"{OWN}/live/od1",
    f"{OWN}/describe",
    "stirbar/leader/state",
    "elsewhere",
]
OF_ITS_OWN = [0, 1]


@pytest.mark.parametrize(
    ("scope", "legacy_door", "written", "read"),
    [
        ({}, False, OF_ITS_OWN, [0, 1]),
        ({"units": ("vial1",)}, False, OF_ITS_OWN, [0]),
        ({"control": True}, False, [*OF_ITS_OWN, 6, 7, 8, 10], [0, 1]),
        ({"control": True, "units": ("vial1",)}, True, [*OF_ITS_OWN, 6, 8], [0]),
        ({"jobs": ("growth_rate_calculating",)}, True, [*OF_ITS_OWN, 3, 4], [0, 1]),
        ({"jobs": ("growth_rate_calculating",), "units": ("vial2",)}, False, OF_ITS_OWN, [1]),
    ],
    ids=str,
)
def test_a_guest_cannot_step_out_of_its_scope(house, scope, legacy_door, written, read):
    name = f"guest-{len(house.clients)}"
    guest = house.admit(name, legacy_door, **scope, legacy=legacy_door)
    assert not guest.refused
    topics = [topic.format(me=name) for topic in WRITES]
    for topic in topics:
        house.attempt(name, topic, legacy_door)
    assert house.heard() == [topics[index] for index in written]
    guest.subscribe("#", "stirbar/#", "$SYS/broker/clients/connected", "pioreactor/$broadcast/#", "pioreactor/#")
    assert sorted(set(house.reach(guest, READS))) == sorted(READS[index] for index in read)


def test_who_comes_in_by_the_door_without_tls(house):
    guest = house.admit("old-pio", True, legacy=True)
    assert not guest.refused
    password = house.broker._credentials.admit_guest("modern", Scope())
    house.broker.reload()
    time.sleep(0.2)
    assert house.client("modern", password, legacy=True).refused == "Not authorized"
    assert not house.client("modern", password).refused
    for name, word in (
        ("vial1", house.password_file.read_text().strip()),
        (house.broker.username, house.broker.password),
        ("old-pio", "wrong"),
        ("", ""),
    ):
        assert house.client(name, word, legacy=True).refused, name
    assert not house.unit.refused and not house.leader.refused


def test_without_the_port_there_is_no_such_door(tmp_path):
    broker = Broker(tmp_path, log=lambda line: None)
    broker.start()
    try:
        listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
        assert len([line for line in listening.splitlines() if f"pid={broker.pid}," in line]) == 1
        assert not (tmp_path / "broker" / "legacy-password").exists()
    finally:
        broker.stop()


def test_what_is_retained_outlives_a_broker_with_that_door(house):
    house.unit.client.publish("pioreactor/vial1/exp/stirring/$state", "ready", 1, True).wait_for_publish(5)
    house.heard()
    before = house.broker.pid
    os.kill(before, signal.SIGTERM)
    wait_for(lambda: house.broker.alive() and house.broker.pid != before, 10, "the broker again")
    wait_for(house.leader.client.is_connected, 10, "the leader again")
    house.leader.subscribe("#")
    again = house.admit("late-guest").subscribe("pioreactor/vial1/exp/stirring/$state")
    assert again.next() == ("pioreactor/vial1/exp/stirring/$state", b"ready")


def test_names_are_either_a_guests_or_a_units(house, tmp_path):
    house.broker._credentials.admit_guest("taken", Scope())
    with pytest.raises(CredentialError, match="is a guest"):
        house.broker.issue("taken", identity(9), tmp_path / "password")
    with pytest.raises(CredentialError, match="is a unit"):
        house.broker._credentials.admit_guest("vial1", Scope())
    for job in ("od_reading", "self_test", "$state", "a/b", "#"):
        with pytest.raises(CredentialError, match="speaks for jobs"):
            Scope(jobs=(job,))


def cluster(config: pathlib.Path, *words: str) -> int:
    return cluster_command.main(["guest", *words, "--config", str(config)])


def test_the_command_makes_lists_and_removes_guests(tmp_path, capsys):
    port = free_port()
    config_file = tmp_path / "config.ini"
    config_file.write_text(
        f"[unit]\ndata_directory = {tmp_path / 'data'}\n[leader.config]\ndata_directory = {tmp_path}\n"
        f"broker_bind = 0.0.0.0\nbroker_tls_port = {port}\nlegacy_port = 0\n"
    )
    config = load_config(str(config_file))
    authority = Authority(tmp_path / "tls")
    server = authority.server("broker", {"localhost"}, {"127.0.0.1"})[:2]
    files = (str(authority.certificate_path), *server, str(authority.revoked_path))
    broker = Broker(tmp_path, network=Network("127.0.0.1", port, files), log=lambda line: None)
    broker.start()
    try:
        place = tmp_path / "for-the-guest"
        words = ("--units", "vial1,vial2", "--jobs", "growth_rate_calculating", "--control", "--legacy")
        assert cluster(config_file, "pio01", *words, "--certificate", str(place)) == 0
        said = capsys.readouterr()
        password = said.out.strip()
        assert len(password) == 48 and "legacy_port" in said.err and "vial1, vial2, sets their settings" in said.err
        assert password not in (tmp_path / "credentials" / "users.json").read_text()
        assert oct((place / "pio01.pem").stat().st_mode) == "0o100600"
        broker.reload()
        time.sleep(0.2)
        tls = (str(place / "ca.pem"), str(place / "pio01.pem"))
        inside = Client(port, "pio01", password, tls)
        assert not inside.refused
        assert cluster(config_file, "--json") == 0
        listed = json.loads(capsys.readouterr().out)
        assert listed == [
            {"guest": "pio01", "units": ["vial1", "vial2"], "control": True, "jobs": ["growth_rate_calculating"],
             "legacy": True}
        ]  # fmt: skip
        assert cluster(config_file, "pio01", "--remove") == 0
        broker.reload()
        time.sleep(0.2)
        assert Client(broker.port, "pio01", password).refused == "Not authorized"
        inside.close()
        capsys.readouterr()
        assert cluster(config_file) == 0 and capsys.readouterr().out == ""
        assert cluster(config_file, "pio01", "--remove") == 1 and "no guest 'pio01'" in capsys.readouterr().err
        assert cluster(config_file, "a/b") == 1 and cluster(config_file, "x", "--jobs", "stirring") == 1
    finally:
        broker.stop()
    assert config.get("leader.config", "legacy_port") == 0


def test_a_removed_guest_is_out_at_once(house):
    guest = house.admit("going").subscribe("pioreactor/vial1/exp/od_reading/od1")
    house.broker.revoke("going")
    time.sleep(0.2)
    house.leader.say("pioreactor/vial1/exp/od_reading/od1")
    house.heard()
    assert guest.heard.empty()
