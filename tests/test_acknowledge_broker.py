"""`acknowledge = broker`, for a leader that is not stirbar: a plain mosquitto, and nobody who answers the bridge."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from bridge_doubles import UNIT_ID, WorkerDouble, wait_for
from mosquitto import Mosquitto, start_mosquitto
from stirbar.bridge import topics
from stirbar.core.records import KIND_READINGS, READING, STREAM_IDS, parse_batch
from test_relay import Bridge

RUN = b"A" * 16
OWN = topics.UnitTopics("stirbar", UNIT_ID.hex())


class Keeper:
    """Keeps what is published to be stored, and says nothing; the broker remembers its session over a restart."""

    def __init__(self, port: int) -> None:
        self.taken: dict[tuple[int, int], int] = {}  # (stream, sequence): how often
        self.asked = 0
        self.retained: dict[str, bytes] = {}
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="keeper", clean_session=False)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_message = self._message
        self.client.connect("127.0.0.1", port)
        self.client.subscribe([(f"{OWN.base}/store/+", 1), (OWN.ask, 1), ("pioreactor/#", 1)])
        self.client.loop_start()

    def _message(self, _: object, __: object, message: mqtt.MQTTMessage) -> None:
        if message.topic == OWN.ask:
            self.asked += 1
        elif message.topic.startswith("pioreactor/"):
            self.retained[message.topic] = message.payload
        else:
            header, _ = parse_batch(message.payload)
            for sequence in range(header.first_sequence, header.end_sequence):
                key = (header.stream, sequence)
                self.taken[key] = self.taken.get(key, 0) + 1

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sb") as name:  # short: a socket's path has at most 107 bytes
        (Path(name) / "w").mkdir()
        yield Path(name)


@pytest.fixture
def broker(place: Path) -> Iterator[Mosquitto]:
    keep = f"persistence true\npersistence_location {place}/\n" + ("user root\n" if os.geteuid() == 0 else "")
    mosquitto = start_mosquitto(place, keep)
    yield mosquitto
    mosquitto.kill()


@pytest.fixture
def keeper(broker: Mosquitto) -> Iterator[Keeper]:
    one = Keeper(broker.port)
    yield one
    one.close()


def make(worker: WorkerDouble, batches: int) -> None:
    for number in range(batches):
        worker.readings(STREAM_IDS["od1"], 3)
        worker.readings(STREAM_IDS["rpm"], 1)
        if number % 5 == 0:
            worker.event(f"event {number}")


def test_what_the_broker_has_is_forgotten_and_an_outage_loses_nothing(place, broker, keeper):
    worker = WorkerDouble(f"ipc://{place}/w", RUN)
    bridge = Bridge(place, broker.port, end_to_end=False)
    make(worker, 30)
    wait_for(lambda: set(worker.sent) == set(keeper.taken), 15, "everything made is published")
    wait_for(lambda: not bridge.relay._spool.pending_keys(), 5, "the spool waits for nobody")
    assert set(keeper.taken.values()) == {1}
    broker.stop()
    wait_for(lambda: not bridge.relay.session.online, 10, "the outage is noticed")
    make(worker, 30)
    wait_for(lambda: bool(bridge.relay._spool.pending_keys()), 5, "what is made meanwhile waits")
    broker.restart()
    wait_for(lambda: set(worker.sent) == set(keeper.taken), 20, "all of it came after the outage")
    wait_for(lambda: not bridge.relay._spool.pending_keys(), 5, "and waits no more")
    assert keeper.asked == 0, "nobody is asked from where to go on"
    assert bridge.relay.counters()["gaps"] == 0
    bridge.stop()
    worker.end()


def test_the_will_is_where_a_foreign_dashboard_looks(place, broker, keeper):
    worker = WorkerDouble(f"ipc://{place}/w", RUN)
    bridge = Bridge(place, broker.port, as_process=True, end_to_end=False)
    monitor = f"pioreactor/vial1/{topics.UNIVERSAL_EXPERIMENT}/monitor/$state"
    wait_for(lambda: keeper.retained.get(monitor) == b"ready", 15, "the monitor's state")
    address = monitor.replace("$state", "ipv4")
    wait_for(lambda: keeper.retained.get(address) == b"127.0.0.1", 5, "the address that it comes from")
    assert bridge.process is not None
    bridge.process.send_signal(signal.SIGKILL)
    bridge.process.wait(10)
    wait_for(lambda: keeper.retained.get(monitor) == b"lost", 10, "its last will")
    worker.end()


def test_what_is_published_anybody_can_read(place, broker, keeper):
    """Readings go out whole and unpacked: there is no stirbar that would unpack them."""
    whole: list[bytes] = []
    keeper.client.message_callback_add(f"{OWN.base}/store/od1", lambda _, __, message: whole.append(message.payload))
    worker = WorkerDouble(f"ipc://{place}/w", RUN)
    worker.readings(STREAM_IDS["od1"], 200)
    bridge = Bridge(place, broker.port, end_to_end=False)
    wait_for(lambda: len(whole) > 0, 15, "readings")
    header, body = parse_batch(whole[0])
    assert header.kind == KIND_READINGS and len(body) == header.count * READING.size
    bridge.stop()
    worker.end()
