"""mosquitto as a child: comes back when killed, dies with its parent, lets each unit at its own topics only."""

from __future__ import annotations

import os
import pathlib
import pwd
import signal
import stat
import subprocess
import sys
import threading

import paho.mqtt.client as mqtt
import pytest
import stirbar.bridge.broker as broker_module
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from stirbar.bridge.broker import Broker, BrokerError
from stirbar.bridge.credentials import CredentialError, Credentials, hash_password, verify
from units import Unit, identity, wait_until


@pytest.fixture
def broker(tmp_path):
    one = Broker(tmp_path, log=lambda line: None)
    one.start()
    yield one
    pid = one.pid
    one.stop()
    assert one.pid is None and not one.alive()
    assert pid is None or not is_running(pid)


def is_running(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def join(broker: Broker, tmp_path: pathlib.Path, name: str, number: int, filters: list[str] | None = None) -> Unit:
    broker.issue(name, identity(number), tmp_path / f"{name}.password")
    unit = Unit(broker, name, number, (tmp_path / f"{name}.password").read_text().strip(), filters)
    assert unit.connected.wait(10)
    return unit


def refused(broker: Broker, username: str | None, password: str | None) -> str:
    """Why the broker does not let somebody in."""
    reasons: list[str] = []
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.on_connect = lambda client, userdata, flags, reason, properties: reasons.append(str(reason))
    if username is not None:
        client.username_pw_set(username, password)
    client.connect("127.0.0.1", broker.port, 5)
    client.loop_start()
    wait_until(lambda: reasons, "an answer")
    client.disconnect()
    client.loop_stop()
    return reasons[0]


def forge(broker: Broker, username: str, tmp_path: pathlib.Path, topic: str) -> None:
    """Publish what is not allowed, until the broker has answered: mosquitto ends the connection."""
    done = threading.Event()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5, reconnect_on_failure=False)
    client.username_pw_set(username, (tmp_path / f"{username}.password").read_text().strip())
    client.on_connect = lambda client, userdata, flags, reason, properties: client.publish(topic, b"forged", 1)
    client.on_disconnect = lambda *arguments: done.set()
    client.connect("127.0.0.1", broker.port, 60)
    client.loop_start()
    assert done.wait(10), "the broker took a forged message"
    client.loop_stop()


def test_starts_with_private_files_and_no_privilege(broker, tmp_path):
    assert broker.alive() and broker.port > 0
    owner = tmp_path.stat().st_uid
    status = pathlib.Path(f"/proc/{broker.pid}/status").read_text()
    uid = int(next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1])
    if os.geteuid() == 0:
        assert uid != 0 and uid in {entry.pw_uid for entry in pwd.getpwall()}
        owner = uid
    for name in ("password", "acl", "mosquitto.conf"):
        found = (tmp_path / "broker" / name).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, owner)
    for name in ("users.json", "leader.password"):
        assert stat.S_IMODE((tmp_path / "credentials" / name).stat().st_mode) == 0o600
    listening = pathlib.Path(f"/proc/{broker.pid}/net/tcp").read_text()
    assert f"0100007F:{broker.port:04X}" in listening and f"00000000:{broker.port:04X}" not in listening


def test_only_those_with_a_credential_come_in(broker, tmp_path):
    broker.issue("vial1", identity(1), tmp_path / "vial1.password")
    good = (tmp_path / "vial1.password").read_text().strip()
    assert refused(broker, "vial1", good) == "Success"
    for username, password in (
        (None, None),
        ("vial1", "wrong"),
        ("vial1", ""),
        ("vial2", good),
        ("stirbar-leader", good),
    ):
        assert refused(broker, username, password) == "Not authorized"
    broker.revoke("vial1")
    wait_until(lambda: refused(broker, "vial1", good) == "Not authorized", "revoked")


def test_a_unit_reaches_its_own_topics_only(broker, tmp_path):
    everything = ["#", "stirbar/#", "pioreactor/#", "$SYS/#", f"stirbar/{identity(1).hex()}/ack"]
    spy = join(broker, tmp_path, "spy", 2, everything)
    unit = join(broker, tmp_path, "vial1", 1)
    # what vial1 and the leader say is not for the spy
    unit.client.publish(f"{unit.base}/store/od2", b"private", 1, True).wait_for_publish(5)
    unit.client.publish("pioreactor/vial1/growth/stirring/target_rpm", b"500", 1, True).wait_for_publish(5)
    # what the spy says in another's name is not heard
    forge(broker, "spy", tmp_path, f"{unit.base}/ack")
    forge(broker, "spy", tmp_path, f"{unit.base}/command")
    forge(broker, "spy", tmp_path, "pioreactor/vial1/growth/stirring/target_rpm/set")
    forge(broker, "spy", tmp_path, "pioreactor/$broadcast/growth/stirring/target_rpm/set")
    own = (f"{spy.base}/live/od2", b"mine")
    spy.client.publish(*own, 1).wait_for_publish(5)
    # what the leader says to all is heard by both, and marks the end of what came before it
    leader = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    leader.username_pw_set(broker.username, broker.password)
    leader.connect("127.0.0.1", broker.port, 5)
    leader.loop_start()
    wait_until(leader.is_connected, "the leader connected")
    leader.publish(f"{unit.base}/ack", b"genuine", 1).wait_for_publish(5)
    everyone = ("pioreactor/$broadcast/growth/stirring/target_rpm/set", b"300")
    leader.publish(*everyone, 1).wait_for_publish(5)
    wait_until(lambda: everyone in unit.heard and everyone in spy.heard, "the broadcast")
    assert set(spy.heard) == {everyone, own}
    assert {payload for _, payload in unit.heard} == {b"genuine", b"500", b"300"}
    leader.disconnect()
    leader.loop_stop()
    spy.close()
    unit.close()


def test_killed_it_comes_back_and_knows_its_users(broker, tmp_path):
    unit = join(broker, tmp_path, "vial1", 1)
    for round_number in (1, 2):
        unit.connected.clear()
        first = broker.pid
        os.kill(first, signal.SIGKILL)
        wait_until(lambda gone=first: broker.alive() and broker.pid not in (None, gone), "alive again")
        assert broker.counters()["restarts"] == round_number
        assert unit.connected.wait(10)
    unit.close()


def test_what_is_retained_survives_a_stop(broker, tmp_path):
    unit = join(broker, tmp_path, "vial1", 1)
    unit.say("describe", {"unit": "vial1"}, True)
    unit.close()
    port = broker.port
    broker.stop()
    broker.start()
    assert broker.port == port
    again = join(broker, tmp_path, "vial1", 1, [f"{unit.base}/describe"])
    wait_until(lambda: again.heard == [(f"{unit.base}/describe", b'{"unit": "vial1"}')], "the retained message")
    again.close()


def test_nothing_is_dropped_for_a_slow_subscriber(broker, tmp_path):
    """mosquitto's own default would keep 1000 messages and drop the rest without a word."""
    unit = join(broker, tmp_path, "vial1", 1)
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 3600
    heard: list[bytes] = []

    def subscriber() -> mqtt.Client:
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="slow", protocol=mqtt.MQTTv5)
        client.username_pw_set(broker.username, broker.password)
        client.on_message = lambda client, userdata, message: heard.append(message.payload)
        client.connect("127.0.0.1", broker.port, 60, clean_start=False, properties=properties)
        client.loop_start()
        wait_until(client.is_connected, "connected")
        return client

    slow = subscriber()
    subscribed: list[object] = []
    slow.on_subscribe = lambda *arguments: subscribed.append(arguments)
    slow.subscribe(f"{unit.base}/store/+", 1)
    wait_until(lambda: subscribed, "subscribed")
    slow.disconnect()
    slow.loop_stop()
    for _ in range(4999):
        unit.client.publish(f"{unit.base}/store/od2", bytes(100), 1)
    unit.client.publish(f"{unit.base}/store/od2", b"last", 1).wait_for_publish(30)
    slow = subscriber()
    wait_until(lambda: heard and heard[-1] == b"last", "the last message", 30)
    assert len(heard) == 5000
    slow.disconnect()
    slow.loop_stop()
    unit.close()


PARENT = """
import pathlib, sys, threading
sys.path[:0] = sys.argv[2:]
from stirbar.bridge.broker import Broker
broker = Broker(pathlib.Path(sys.argv[1]))
broker.start()
print(broker.pid, broker.port, flush=True)
threading.Event().wait()
"""


def test_it_dies_with_its_parent(tmp_path):
    ports = []
    for _ in range(2):
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(tmp_path), *sys.path], stdout=subprocess.PIPE, text=True
        )
        pid, port = map(int, parent.stdout.readline().split())
        assert is_running(pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        parent.stdout.close()
        wait_until(lambda gone=pid: not is_running(gone), "the broker is gone", 5)
        ports.append(port)
    # the next leader can have the port at once
    again = Broker(tmp_path, port=ports[-1], log=lambda line: None)
    again.start()
    assert again.port == ports[-1]
    again.stop()


def test_port_taken_is_one_sentence(broker, tmp_path, monkeypatch):
    monkeypatch.setattr(broker_module, "PORT_WAIT_S", 0.2)
    with pytest.raises(BrokerError, match=rf"port {broker.port} of 127\.0\.0\.1 cannot be had .*broker_port$"):
        Broker(tmp_path / "other", port=broker.port).start()


def test_missing_mosquitto_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(broker_module, "_search_path", lambda: str(tmp_path))
    with pytest.raises(BrokerError, match="apt install mosquitto"):
        Broker(tmp_path).start()


def test_a_broker_that_cannot_start_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(broker_module, "CONFIGURATION", "no_such_option {port}{bind}{tls}\n")
    with pytest.raises(BrokerError, match=r"mosquitto did not start: .*mosquitto\.conf:1"):
        Broker(tmp_path, log=lambda line: None).start()


def test_the_network_needs_tls(tmp_path):
    with pytest.raises(BrokerError, match="open to the network"):
        Broker(tmp_path, bind="0.0.0.0")


def test_credentials_are_kept_and_not_in_the_clear(tmp_path):
    first = Credentials(tmp_path)
    password_file = tmp_path / "vial1.password"
    first.issue("vial1", identity(1), password_file)
    password = password_file.read_text().strip()
    assert len(password) == 48 and stat.S_IMODE(password_file.stat().st_mode) == 0o600
    assert password not in (tmp_path / "users.json").read_text() + first.password_text()
    again = Credentials(tmp_path)
    assert again.leader_password == first.leader_password
    before = again.password_text()
    again.issue("vial1", identity(1), password_file)
    assert (password_file.read_text().strip(), again.password_text()) == (password, before)
    again.issue("vial1", identity(9), password_file)  # the unit was set up anew: same password, other topics
    assert again.units() == {"vial1": identity(9)}
    assert identity(9).hex() in again.acl_text("pioreactor", "stirbar")
    password_file.write_text("lost\n")
    again.issue("vial1", identity(9), password_file)
    assert password_file.read_text().strip() not in ("lost", password)
    for bad in ("", "a b", "a/b", "#", "+", "x" * 64, "a:b", "$broadcast", "stirbar-leader", "a\nuser b"):
        with pytest.raises(CredentialError, match="unit name"):
            again.issue(bad, identity(3), tmp_path / "bad.password")
    with pytest.raises(CredentialError, match="no unit 'vial7'"):
        again.revoke("vial7")
    assert verify("x", hash_password("x")) and not verify("y", hash_password("x"))
