"""What a unit sends, for the tests of the leader's half: blocks as bytes, and a unit that speaks MQTT."""

from __future__ import annotations

import json
import threading
import time
import zlib

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from stirbar.core.records import (
    KIND_GAP,
    KIND_JSON,
    KIND_RAW_CHUNK,
    KIND_READINGS,
    READING,
    STREAMS,
    Header,
)

START_NS = 1_700_000_000 * 10**9
BOOT_ID = b"b" * 16


def identity(number: int) -> bytes:
    """A unit or run id that is easy to recognise."""
    return number.to_bytes(16, "big")


def wall_ns(sequence: int) -> int:
    """Ten readings a second."""
    return START_NS + sequence * 100_000_000


def value_of(sequence: int) -> float:
    """Irregular enough that a wrong bin shows."""
    return 0.5 + (sequence * 7919 % 1000) / 1000


def reading(
    sequence: int, stream: int = 2, angle: int = 90, value: float | None = None, at_ns: int | None = None
) -> bytes:
    at_ns = wall_ns(sequence) if at_ns is None else at_ns
    value = value_of(sequence) if value is None else value
    return READING.pack(
        sequence, at_ns - START_NS + 5_000_000_000, at_ns, value, 1e-4, 2e-4, 1.0, 0.6, 0.25, 0.1, 0.01, float("nan"),
        430, 3, 0x2100, 1, stream, angle, 4, 1,
    )  # fmt: skip


def header(
    kind: int, stream: int, size: int, first: int, count: int, unit: bytes, run: bytes, experiment: str
) -> Header:
    made_ns = wall_ns(first + count)
    mono_ns = made_ns - START_NS + 5_000_000_000
    return Header(kind, stream, size, count, first, unit, run, BOOT_ID, mono_ns, mono_ns, made_ns, experiment)


def block(
    first: int,
    count: int,
    *,
    stream: int = 2,
    unit: bytes = identity(1),
    run: bytes = identity(100),
    experiment: str = "growth",
    angle: int = 90,
) -> tuple[Header, bytes]:
    """A block of readings."""
    head = header(KIND_READINGS, stream, READING.size, first, count, unit, run, experiment)
    return head, b"".join(reading(first + index, stream, angle) for index in range(count))


def event(
    sequence: int, *, unit: bytes = identity(1), run: bytes = identity(100), **fields: object
) -> tuple[Header, bytes]:
    body = {
        "monotonic_ns": 1, "wall_ns": wall_ns(sequence), "level": "info", "source": "stirring", "code": "kick",
        "message": f"event {sequence}", "value": 1.5,
    } | fields  # fmt: skip
    return header(KIND_JSON, 16, 0, sequence, 1, unit, run, "growth"), json.dumps(body).encode()


def gap(
    first: int, count: int, *, stream: int = 2, unit: bytes = identity(1), run: bytes = identity(100)
) -> tuple[Header, bytes]:
    return header(KIND_GAP, stream, 0, first, count, unit, run, "growth"), b'{"reason":"spool full"}'


def chunk(first: int, count: int, *, unit: bytes = identity(1), run: bytes = identity(100)) -> tuple[Header, bytes]:
    """The envelope of a raw chunk: the store checks its CRC and count, not its columns."""
    body = count.to_bytes(4, "little") + bytes(range(200)) * 3
    return header(KIND_RAW_CHUNK, 18, 0, first, count, unit, run, "growth"), zlib.crc32(body).to_bytes(
        4, "little"
    ) + body


def pack(parts: tuple[Header, bytes]) -> bytes:
    return parts[0].pack() + parts[1]


def wait_until(condition, what: str, seconds: float = 10.0) -> None:
    """Wait for another thread or process, with a deadline that names what did not happen."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        pause.wait(0.01)


class Unit:
    """A unit on the wire: publishes what it is told to, remembers what it hears, answers commands with `answer`."""

    def __init__(self, broker, name: str, number: int, password: str, filters: list[str] | None = None) -> None:
        self.name = name
        self.unit_id = identity(number)
        self.base = f"stirbar/{self.unit_id.hex()}"
        self.heard: list[tuple[str, bytes]] = []
        self.answer = lambda request: {"id": request["id"], "ok": True, "result": request}
        self.connected = threading.Event()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=f"test-{number}", protocol=mqtt.MQTTv5)
        self.client.username_pw_set(name, password)
        self.client.on_connect = self._on_connect
        self.client.on_message = self._on_message
        self.client.on_subscribe = lambda *_: self.connected.set()
        self.client.reconnect_delay_set(1, 1)
        self.filters = filters or [
            f"{self.base}/ack",
            f"{self.base}/command",
            f"pioreactor/{name}/#",
            "pioreactor/$broadcast/#",
        ]
        self.client.connect("127.0.0.1", broker.port, 5)
        self.client.loop_start()

    def _on_connect(self, client, userdata, flags, reason, properties) -> None:
        if not reason.is_failure:
            client.subscribe([(pattern, 1) for pattern in self.filters])

    def _on_message(self, client, userdata, message) -> None:
        self.heard.append((message.topic, message.payload))
        if message.topic == f"{self.base}/command":
            reply = self.answer(json.loads(message.payload))
            if reply is not None:
                properties = Properties(PacketTypes.PUBLISH)
                properties.CorrelationData = message.properties.CorrelationData
                client.publish(message.properties.ResponseTopic, json.dumps(reply), 1, properties=properties)

    def say(self, leaf: str, payload: bytes | dict, retain: bool = False, qos: int = 1) -> None:
        """Publish in our own tree and wait until the broker has it."""
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.client.publish(f"{self.base}/{leaf}", body, qos, retain).wait_for_publish(10)

    def describe(self, **more: object) -> None:
        self.say(
            "describe", {"unit": self.name, "unit_id": self.unit_id.hex(), "run_id": identity(100).hex(), **more}, True
        )
        self.say("state", {"state": "online"}, True)

    def store(self, parts: tuple[Header, bytes]) -> None:
        self.say(f"store/{STREAMS[parts[0].stream]}", pack(parts))

    def acks(self) -> list[dict]:
        return [json.loads(payload) for topic, payload in self.heard if topic == f"{self.base}/ack"]

    def through(self, run: bytes = identity(100), stream: int = 2) -> int:
        """The highest acknowledgement heard."""
        return max((ack["through"].get(run.hex(), {}).get(str(stream), 0) for ack in self.acks()), default=0)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
