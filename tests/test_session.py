"""The bridge's MQTT connection against a real mosquitto: how it ends."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
import zmq
from bridge_doubles import wait_for
from mosquitto import Mosquitto, start_mosquitto
from stirbar.bridge.log import Log
from stirbar.bridge.session import Broker, Session

MORE_THAN_IN_FLIGHT = 60  # paho and mosquitto allow 20 unacknowledged messages


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    mosquitto = start_mosquitto(tmp_path)
    yield mosquitto
    mosquitto.kill()


class Listener:
    """Hears everything on the broker, in order, and can talk."""

    def __init__(self, port: int) -> None:
        self.heard: list[bytes] = []
        self.subscribed = False
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.on_message = lambda _, __, message: self.heard.append(message.payload)
        self.client.on_subscribe = lambda *_: setattr(self, "subscribed", True)
        self.client.connect("127.0.0.1", port)
        self.client.subscribe("said/#", qos=1)
        self.client.loop_start()
        wait_for(lambda: self.subscribed, 10, "subscription")

    def stop(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def online(port: int) -> Session:
    """Connected, and its subscriptions made: it has heard what it asked for."""
    heard: list[bytes] = []
    session = Session(
        Broker("127.0.0.1", port, "stirbar-test"),
        ("said/state", b"lost"),
        [("asked/#", False)],
        1.0,
        Log("test"),
        *[lambda *_: None] * 2,
        lambda message: heard.append(message.payload),
        lambda _: None,
    )
    session.step(time.monotonic())
    wait_for(lambda: turn(session) and session.online, 10, "connection")
    session.publish("asked/me", b"", 0)
    wait_for(lambda: turn(session) and bool(heard), 10, "subscription")
    return session


def turn(session: Session) -> bool:
    """One turn of a poll loop; true, so that it can stand in a condition."""
    poller = zmq.Poller()
    poller.register(*session.interest())
    for _, events in poller.poll(100):
        session.handle(events, time.monotonic())
    return True


def test_the_goodbye_follows_more_than_the_broker_lets_be_in_flight(broker: Mosquitto) -> None:
    listener = Listener(broker.port)
    session = online(broker.port)
    said = [b"%d" % number for number in range(MORE_THAN_IN_FLIGHT)] + [b"offline"]
    for payload in said:
        assert session.publish("said/x", payload, 1)
    session.close(time.monotonic, 5.0)
    wait_for(lambda: len(listener.heard) >= len(said), 5, "everything said")
    broker_settled(listener)
    assert listener.heard == [*said, b"end"]
    listener.stop()


def test_the_goodbye_survives_unread_messages(broker: Mosquitto) -> None:
    listener = Listener(broker.port)
    session = online(broker.port)
    descriptor, _ = session.interest()
    for _ in range(200):
        listener.client.publish("asked/x", bytes(1000), 0)
    assert select.select([descriptor], [], [], 5)[0]  # they are in our socket, unread
    broker.freeze()  # it finds the message and whatever ended the connection at once
    thaw = threading.Timer(0.3, broker.thaw)
    thaw.start()
    assert session.publish("said/x", b"offline", 1)
    session.close(time.monotonic, 5.0)
    thaw.join()
    wait_for(lambda: bool(listener.heard), 5, "goodbye")
    broker_settled(listener)
    assert listener.heard == [b"offline", b"end"]
    listener.stop()


def test_the_goodbye_of_a_stalled_broker_is_bounded(broker: Mosquitto) -> None:
    session = online(broker.port)
    broker.freeze()
    session.publish("said/x", b"offline", 1)
    began = time.monotonic()
    session.close(time.monotonic, 0.3)
    assert 0.2 < time.monotonic() - began < 3.0
    broker.thaw()


def broker_settled(listener: Listener) -> None:
    """The broker has handled the session's end: it answers a message that came after it."""
    listener.client.publish("said/end", b"end", 1)
    wait_for(lambda: b"end" in listener.heard, 5, "broker's answer")
