"""Simulated units for `stirbar bench leader`: many bridges in a process, each with a connection and an account.

`python -m stirbar.bridge.bench_units` reads one JSON line (what `Fleet` takes), connects, prints `ready`, waits for a
line, and then each unit does what a bridge does: every reading at once at QoS 0, a block a second at QoS 1 that is kept
until the leader's acknowledgement of its sequence number, a status a second, the dialect every five. What is
acknowledged by nobody is asked for and sent again. At the end it prints one JSON object.

MQTT is written by hand: a thousand paho clients would cost more than the leader that is measured.
"""

from __future__ import annotations

import heapq
import json
import os
import selectors
import socket
import struct
import sys
import time
from collections import deque

from stirbar.bridge import topics
from stirbar.core.records import KIND_READINGS, READING, RECORD_VERSION, STREAM_IDS, Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OD2 = STREAM_IDS["od2"]
EXPERIMENT = "bench"
KEEPALIVE_S = 60
CONNECT_S = 30.0  # for all of them
AT_ONCE = 50  # connections under way
DRAIN_S = 60.0  # after the last reading, for the acknowledgement of everything
STALL_S = 10.0  # as a bridge: nothing acknowledged for so long, and the leader is asked
DIALECT_EVERY = 5  # seconds
CONNACK, PUBLISH, PUBACK, SUBACK = 2, 3, 4, 9
TAIL = (
    1e-4,
    2e-4,
    1.0,
    0.7,
    0.3,
    0.5,
    0.1,
    0.0,
    380,
    3,
    0,
    0,
    OD2,
    90,
    8,
    RECORD_VERSION,
)  # of a reading, behind its value


# --- MQTT 5, as little of it as is needed ----------------------------------------------------------------------------


def _text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack(">H", len(data)) + data


def _packet(first: int, body: bytes) -> bytes:
    length, size = len(body), b""
    while True:
        length, digit = divmod(length, 128)
        size += bytes([digit | (0x80 if length else 0)])
        if not length:
            return bytes([first]) + size + body


def connect_packet(client_id: str, will: tuple[str, bytes], username: str, password: str) -> bytes:
    """CONNECT with a clean start, a retained will at QoS 1, name and password."""
    body = _text("MQTT") + bytes([5, 0xEE]) + struct.pack(">H", KEEPALIVE_S) + b"\0" + _text(client_id)
    return _packet(0x10, body + b"\0" + _text(will[0]) + _text(will[1]) + _text(username) + _text(password))


def subscribe_packet(filters: list[str]) -> bytes:
    """SUBSCRIBE at QoS 1, with packet number 1."""
    return _packet(0x82, b"\0\1\0" + b"".join(_text(one) + b"\1" for one in filters))


def publish_packet(topic: bytes, payload: bytes, number: int = 0, retain: bool = False) -> bytes:
    """PUBLISH of a topic that `_text` made; QoS 1 with a packet number, else 0."""
    middle = struct.pack(">HB", number, 0) if number else b"\0"
    return _packet(0x30 | (2 if number else 0) | retain, topic + middle + payload)


def packets(data: bytearray) -> list[tuple[int, bytes]]:
    """Take the whole packets (first byte, body) out of what has come."""
    found = []
    place = 0
    while place + 2 <= len(data):
        length, shift, at = 0, 0, place + 1
        while at < len(data):
            length |= (data[at] & 0x7F) << shift
            shift += 7
            at += 1
            if not data[at - 1] & 0x80:
                break
        else:
            break
        if at + length > len(data):
            break
        found.append((data[place], bytes(data[at : at + length])))
        place = at + length
    del data[:place]
    return found


def published(first: int, body: bytes) -> tuple[str, bytes, int]:
    """Topic, payload and packet number (0: none) of a PUBLISH."""
    (length,) = struct.unpack_from(">H", body)
    topic, place, number = body[2 : 2 + length].decode(), 2 + length, 0
    if first & 6:
        (number,) = struct.unpack_from(">H", body, place)
        place += 2
    properties, shift = 0, 0
    while True:
        digit = body[place]
        properties |= (digit & 0x7F) << shift
        shift += 7
        place += 1
        if not digit & 0x80:
            return topic, body[place + properties :], number


# --- units -----------------------------------------------------------------------------------------------------------


class Unit:
    """One bridge: its connection, and what it has sent that is not acknowledged."""

    def __init__(self, name: str, unit_id: bytes, password: str, per_second: int) -> None:
        self.name, self.unit_id, self.password, self.per_second = name, unit_id, password, per_second
        self.run_id, self.boot_id = os.urandom(16), os.urandom(16)
        self.topics = topics.UnitTopics("stirbar", unit_id.hex())
        self.live, self.store, self.status = (
            _text(one) for one in (self.topics.live[OD2], self.topics.store[OD2], f"{self.topics.base}/live/status")
        )
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.coming, self.going = bytearray(), bytearray()
        self.ready = self.refused = self.answered = False
        self.sequence = self.acknowledged = self.ticks = self.number = self.rewinds = self.asks = 0
        self.records: list[bytes] = []  # of the second under way
        self.unacknowledged: deque[tuple[int, float, bytes]] = deque()  # end, when first sent, block
        self.asked_at = 0.0
        self.lags_s: list[float] = []

    def send(self, packet: bytes) -> None:
        self.going += packet
        self.flush()

    def flush(self) -> None:
        """Write what the socket takes."""
        while self.going:
            try:
                sent = self.sock.send(self.going)
            except BlockingIOError:
                return
            del self.going[:sent]

    def next_number(self) -> int:
        self.number = self.number % 65535 + 1
        return self.number

    def hello(self) -> None:
        """What a bridge says in a new connection."""
        self.send(
            connect_packet(f"bench-{self.name}", (self.topics.state, topics.STATE_LOST), self.name, self.password)
        )
        self.send(subscribe_packet([self.topics.ack, self.topics.command]))

    def introduce(self) -> None:
        """Description, state, question and the states of the jobs."""
        about = {
            "unit": self.name, "unit_id": self.unit_id.hex(), "run_id": self.run_id.hex(),
            "boot_id": self.boot_id.hex(), "version": "bench", "simulated": True, "experiment": EXPERIMENT,
            "channels": [{"stream": "od2", "channel": 2, "angle": 90, "name": "90°", "volts_per_code": 3e-5}],
            "jobs": {job: {"state": "ready", "settable": ["target"]} for job in ("od_reading", "stirring", "monitor")},
            "limits": {"target_rpm": [0, 1500]}, "protection": {"attended_only": False, "missing": [], "sentences": []},
        }  # fmt: skip
        self.say(self.topics.describe, about, retain=True)
        self.say(self.topics.state, {"state": "online"}, retain=True)
        for job in ("od_reading", "stirring", "temperature_automation"):
            self.say(
                topics.dialect("pioreactor", self.name, EXPERIMENT, job, topics.STATE_SETTING), "ready", retain=True
            )
        self.ask()

    def say(self, topic: str, what: Any, retain: bool = False) -> None:
        """JSON (or a word) at QoS 1."""
        payload = what if isinstance(what, str) else json.dumps(what)
        self.send(publish_packet(_text(topic), payload.encode(), self.next_number(), retain))

    def ask(self) -> None:
        self.asks += 1
        self.asked_at = time.monotonic()
        self.say(self.topics.ask, {"unit": self.name, "runs": {self.run_id.hex(): [OD2]}, "epoch": 0})

    def tick(self, last: bool) -> None:
        """One reading at once; every second, and at the last of all, what a bridge does once a second."""
        wall, mono = time.time_ns(), time.monotonic_ns()
        value = 0.5 + 0.01 * (self.sequence * 7919 % 101) / 101.0
        record = READING.pack(self.sequence, mono, wall, value, *TAIL)
        self.going += publish_packet(self.live, self._header(1, self.sequence, wall, mono) + record)
        self.records.append(record)
        self.sequence += 1
        self.ticks += 1
        if last or self.ticks % self.per_second == 0:
            self._second(wall, mono)
        self.flush()

    def _header(self, count: int, first: int, wall: int, mono: int) -> bytes:
        ids = (self.unit_id, self.run_id, self.boot_id)
        return Header(KIND_READINGS, OD2, READING.size, count, first, *ids, mono, mono, wall, EXPERIMENT).pack()

    def _second(self, wall: int, mono: int) -> None:
        count = len(self.records)
        block = self._header(count, self.sequence - count, wall, mono) + b"".join(self.records)
        self.records.clear()
        now = time.monotonic()
        self.unacknowledged.append((self.sequence, now, block))
        self.going += publish_packet(self.store, block, self.next_number())
        self.going += publish_packet(self.status, self._status(wall, mono))
        if self.ticks // self.per_second % DIALECT_EVERY == 0:
            text = {"calibrated": 0, "timestamp": "2026-01-01T00:00:00.000Z", "angle": "90", "od": 0.5, "channel": "2"}
            self.say(topics.dialect("pioreactor", self.name, EXPERIMENT, "od_reading", "od2"), text, retain=True)
        self.look_for_stall(now)

    def look_for_stall(self, now: float) -> None:
        """Ask, when nothing was acknowledged for long."""
        if self.unacknowledged and now - max(self.unacknowledged[0][1], self.asked_at) > STALL_S:
            self.ask()

    def _status(self, wall: int, mono: int) -> bytes:
        """As large as that of a worker: counters, two histograms of lateness, the bridge's own counters."""
        counts = [[1 << i, 1 << (i + 1), 1000 + self.ticks] for i in range(12)]
        body = {
            "unit": self.name, "run_id": self.run_id.hex(), "monotonic_ns": mono, "wall_ns": wall,
            "uptime_s": self.ticks / self.per_second, "experiment": EXPERIMENT, "raw_until_ns": 0,
            "jobs": {"od_reading": "ready", "stirring": "ready", "temperature_automation": "ready"},
            "counters": {f"counter_{i:02d}": self.ticks + i for i in range(24)},
            "lateness": {name: {"counts": counts, "worst_ns": 210_000} for name in ("sampling", "actuators")},
            "sequences": {"od2": self.sequence}, "bridge": {f"bridge_{i:02d}": self.ticks + i for i in range(24)},
        }  # fmt: skip
        return json.dumps(body, separators=(",", ":")).encode()

    def hear(self) -> None:
        """Take what has come."""
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self.refused = True
            return
        self.coming += data
        for first, body in packets(self.coming):
            kind = first >> 4
            if kind == CONNACK and body[1]:
                self.refused = True
            elif kind == SUBACK:
                self.ready = True
            elif kind == PUBLISH:
                topic, payload, number = published(first, body)
                if number:
                    self.going += struct.pack(">BBH", PUBACK << 4, 2, number)
                if topic == self.topics.ack:
                    self.on_ack(json.loads(payload))
        self.flush()

    def on_ack(self, told: dict[str, Any]) -> None:
        """Forget what is committed; send again what the leader misses."""
        now = time.monotonic()
        through = told.get("through", {}).get(self.run_id.hex(), {}).get(str(OD2), 0)
        self.acknowledged = max(self.acknowledged, through)
        while self.unacknowledged and self.unacknowledged[0][0] <= through:
            self.lags_s.append(now - self.unacknowledged.popleft()[1])
        origin = told.get("from", {}).get(self.run_id.hex(), {}).get(str(OD2))
        first_answer, self.answered = not self.answered, self.answered or origin is not None
        if origin is not None and self.unacknowledged and not first_answer:
            self.rewinds += 1
            for _, _, block in self.unacknowledged:
                self.going += publish_packet(self.store, block, self.next_number())

    def goodbye(self) -> None:
        self.say(self.topics.state, {"state": "offline"}, retain=True)
        self.send(b"\xe0\0")


class Fleet:
    """All units of this process. `units` is a list of [name, unit id, password].

    Synchronization: one thread.
    """

    def __init__(self, *, port: int, units: list[list[str]], seconds: float, rate: int) -> None:
        self.port, self.seconds, self.rate = port, seconds, rate
        self.units = [Unit(name, bytes.fromhex(identity), password, rate) for name, identity, password in units]
        self.selector = selectors.DefaultSelector()
        self.late_s = 0.0  # by how much the generator itself was behind, at worst

    def connect(self) -> None:
        """Let every unit in, a few at a time. Raises ConnectionError."""
        waiting = list(reversed(self.units))
        under_way: list[Unit] = []
        end = time.monotonic() + CONNECT_S
        while waiting or under_way:
            while waiting and len(under_way) < AT_ONCE:
                unit = waiting.pop()
                unit.sock.setblocking(True)
                unit.sock.connect(("127.0.0.1", self.port))
                unit.sock.setblocking(False)
                self.selector.register(unit.sock, selectors.EVENT_READ, unit)
                unit.hello()
                under_way.append(unit)
            self.look(0.05)
            for unit in [one for one in under_way if one.ready]:
                under_way.remove(unit)
                unit.introduce()
            if time.monotonic() > end or any(unit.refused for unit in under_way):
                raise ConnectionError(f"{len(waiting) + len(under_way)} of {len(self.units)} units were not let in")

    def look(self, seconds: float) -> None:
        """Hear for so long at most, until something came."""
        for key, _ in self.selector.select(max(0.0, seconds)):
            key.data.hear()
            if key.data.refused:
                self.selector.unregister(key.fileobj)

    def run(self) -> None:
        """Readings for so many seconds, spread evenly; then until everything is acknowledged."""
        start, step = time.monotonic(), 1.0 / self.rate
        count = round(self.seconds * self.rate)
        due = [(start + place / len(self.units) * step, place) for place in range(len(self.units))]
        heapq.heapify(due)
        while due:
            at, place = due[0]
            now = time.monotonic()
            if now < at:
                self.look(at - now)
                continue
            self.late_s = max(self.late_s, now - at)
            unit = self.units[place]
            unit.tick(unit.ticks + 1 >= count)
            if unit.ticks < count:
                heapq.heapreplace(due, (at + step, place))
            else:
                heapq.heappop(due)
            self.look(0.0)
        end = time.monotonic() + DRAIN_S
        while any(unit.unacknowledged for unit in self.units) and time.monotonic() < end:
            self.look(0.2)
            for unit in self.units:
                unit.look_for_stall(time.monotonic())

    def result(self) -> dict[str, Any]:
        """What was sent, and how long each block waited for its acknowledgement."""
        return {
            "published": sum(unit.sequence for unit in self.units),
            "acknowledged": sum(unit.acknowledged for unit in self.units),
            "rewinds": sum(unit.rewinds for unit in self.units),
            "connections_lost": sum(unit.refused for unit in self.units),
            "late_s": self.late_s,
            "lags_s": [round(lag, 4) for unit in self.units for lag in unit.lags_s],
            "runs": {unit.unit_id.hex(): [unit.run_id.hex(), unit.sequence] for unit in self.units},
        }

    def close(self) -> None:
        for unit in self.units:
            if not unit.refused:
                unit.goodbye()
        for unit in self.units:
            unit.sock.close()


def main() -> int:
    """See the module."""
    fleet = Fleet(**json.loads(sys.stdin.readline()))
    try:
        fleet.connect()
    except OSError as error:
        print(f"simulated units: {error}", file=sys.stderr)
        return 1
    print("ready", flush=True)
    sys.stdin.readline()
    fleet.run()
    print(json.dumps(fleet.result()), flush=True)
    fleet.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
