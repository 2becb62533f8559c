"""The two ends of a bridge, small and exact: a worker's sockets and a leader's acknowledgement (docs/protocol.md)."""

from __future__ import annotations

import json
import queue
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as mqtt
import zmq
from stirbar.bridge import topics
from stirbar.bridge.packing import unpack_readings
from stirbar.core.records import (
    FLAGS,
    KIND_GAP,
    KIND_JSON,
    KIND_RAW_CHUNK,
    KIND_READINGS,
    KIND_TRACE,
    READING,
    STREAM_IDS,
    STREAMS,
    TRACE,
    Header,
    parse_batch,
)

UNIT_ID = bytes.fromhex("00112233445566778899aabbccddeeff")
WALL_NS = 1_750_000_000_123_000_000
EVENT = STREAM_IDS["event"]


def wait_for(condition: Callable[[], bool], seconds: float, what: str = "") -> None:
    """Until the condition holds; fails after so many seconds."""
    end = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        pause.wait(0.01)


def reading(stream: int, sequence: int, value: float | None = None) -> bytes:
    wall = WALL_NS + sequence * 100_000_000
    angle = 90 if stream <= 4 else 0
    return READING.pack(
        sequence, sequence * 100_000_000, wall, float(sequence) if value is None else value,
        0.001, 0.002, 1.0, 0.5, 0.3, 0.2, 0.1, 0.0, 800, 3, FLAGS["uncalibrated"], 0, stream, angle, 9, 1,
    )  # fmt: skip


class WorkerDouble(threading.Thread):
    """PUB and ROUTER of one run; everything is done on its own thread, at the request of the test."""

    def __init__(self, address: str, run_id: bytes, experiment: str = "exp one", history: int = 10**9) -> None:
        super().__init__(daemon=True)
        self.address = address
        self.run_id = run_id
        self.experiment = experiment
        self.history_batches = history
        self.requests: list[dict[str, Any]] = []
        self.next: dict[int, int] = {}
        self.sent: dict[tuple[int, int], bytes] = {}  # (stream, sequence): record, for the comparison at the end
        self.silent = False
        self.jobs: dict[str, str] = {}  # as the heartbeat tells them
        self.more_settings: list[dict[str, Any]] = []
        self.failures: dict[str, int] = {}  # command: how many more times it fails
        self._history: dict[int, list[tuple[int, int, bytes, bytes]]] = {}
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._ready = threading.Event()
        self._context = zmq.Context()
        self.start()
        assert self._ready.wait(5)

    def run(self) -> None:
        pub, router = self._context.socket(zmq.PUB), self._context.socket(zmq.ROUTER)
        pub.sndhwm = 1000
        pub.bind(f"{self.address}/telemetry")
        router.bind(f"{self.address}/command")
        self._pub = pub
        self._ready.set()
        heartbeat = 0.0
        running = True
        while running:
            while router.poll(5):
                *envelope, body = router.recv_multipart()
                router.send_multipart([*envelope, *self._answer(json.loads(body))])
            while not self._jobs.empty():
                job = self._jobs.get()
                if job is None:
                    running = False
                    break
                job()
            if time.monotonic() > heartbeat and not self.silent:
                heartbeat = time.monotonic() + 1.0
                self._status()
        pub.close(0)
        router.close(0)
        self._context.term()

    def end(self) -> None:
        self._jobs.put(None)
        self.join(5)

    def do(self, job: Callable[[], None]) -> None:
        """Run `job` on the worker's thread and wait for it."""
        done = threading.Event()
        self._jobs.put(lambda: (job(), done.set())[1])
        assert done.wait(5)

    def header(self, kind: int, stream: int, size: int, count: int, first: int, run: bytes = b"") -> Header:
        return Header(
            kind, stream, size, count, first, UNIT_ID, run or self.run_id, b"b" * 16, 1, 2, 3, self.experiment
        )  # fmt: skip

    def readings(self, stream: int, count: int, lose: bool = False, forget: bool = False) -> None:
        """Publish one batch; `lose` it on the way; `forget` it in the history too."""

        def job() -> None:
            first = self.next.get(stream, 0)
            records = [reading(stream, first + n) for n in range(count)]
            for n, record in enumerate(records):
                self.sent[(stream, first + n)] = record
            self._emit(f"reading/{STREAMS[stream]}", KIND_READINGS, stream, READING.size, records, lose, forget)

        self.do(job)

    def event(self, message: str, lose: bool = False) -> None:
        def job() -> None:
            first = self.next.get(EVENT, 0)
            body = json.dumps(
                {"message": message, "level": "notice", "source": "stirring", "wall_ns": WALL_NS}
            ).encode()
            self.sent[(EVENT, first)] = body
            self._emit("event", KIND_JSON, EVENT, 0, [body], lose, False)

        self.do(job)

    def trace(self, count: int) -> None:
        def job() -> None:
            stream = STREAM_IDS["raw"]
            first = self.next.get(stream, 0)
            items = [TRACE.pack(1, n & 1, n >> 3 & 1, 0, first + n, 900 * (n >> 3 & 1) + n % 7) for n in range(count)]
            for n, item in enumerate(items):
                self.sent[(stream, first + n)] = item
            self._emit("trace/raw", KIND_TRACE, stream, TRACE.size, items, False, False)

        self.do(job)

    def _emit(
        self, topic: str, kind: int, stream: int, size: int, records: list[bytes], lose: bool, forget: bool
    ) -> None:
        first = self.next.get(stream, 0)
        self.next[stream] = first + len(records)
        packed = self.header(kind, stream, size, len(records), first).pack()
        body = b"".join(records)
        if not forget:
            entries = self._history.setdefault(stream, [])
            entries.append((first, first + len(records), packed, body))
            del entries[: -self.history_batches]
        if not lose:
            self._pub.send_multipart([topic.encode(), packed, body])

    def setting(self, job: str, setting: str, value: object) -> None:
        body = json.dumps({"job": job, "setting": setting, "value": value, "unit": "", "settable": True}).encode()
        topic = f"setting/{job}/{setting}".encode()
        self.do(lambda: self._pub.send_multipart([topic, self.header(KIND_JSON, 0, 0, 1, 0).pack(), body]))

    def raw_message(self, frames: list[bytes]) -> None:
        self.do(lambda: self._pub.send_multipart(frames))

    def _status(self) -> None:
        sequences = {STREAMS[stream]: end for stream, end in self.next.items()}
        body = json.dumps({"experiment": self.experiment, "sequences": sequences, "jobs": self.jobs}).encode()
        self._pub.send_multipart([b"status", self.header(KIND_JSON, STREAM_IDS["status"], 0, 1, 0).pack(), body])

    def _answer(self, request: dict[str, Any]) -> list[bytes]:
        self.requests.append(request)
        command = request.get("command")
        if self.failures.get(command, 0):
            self.failures[command] -= 1
            error = {"message": "not now", "field": "command"}
            return [json.dumps({"id": request["id"], "ok": False, "error": error}).encode()]
        result: dict[str, Any] = {}
        frames: list[bytes] = []
        if command == "describe":
            result = {"unit": "vial1", "unit_id": UNIT_ID.hex(), "run_id": self.run_id.hex()}
            result["experiment"] = self.experiment
        elif command == "settings":
            state = {"job": "stirring", "setting": "$state", "value": "ready"}
            result = {"settings": [state, {**state, "job": "od_reading"}, {**state, "job": "monitor"}]}
            result["settings"] += self.more_settings
        elif command == "experiment":
            self.experiment = request["name"]
            result = {"name": request["name"], "number": 1}
        elif command == "resend":
            stream = STREAM_IDS[request["stream"]]
            entries = self._history.get(stream, [])
            room = request.get("limit", 10**9)
            found = []
            for entry in entries:
                if entry[1] > request["from_sequence"] and (room > 0 or not found):
                    found.append(entry)
                    room -= len(entry[3])
            for entry in found:
                frames += [entry[2], entry[3]]
            end = self.next.get(stream, 0)
            result = {
                "first": found[0][0] if found else None,
                "end": found[-1][1] if found else None,
                "available_from": entries[0][0] if entries else end,
                "available_end": end,
            }
        return [json.dumps({"id": request["id"], "ok": True, "result": result}).encode(), *frames]


class LeaderDouble:
    """Stores each datum once, acknowledges what is contiguous, asks for what is not; counts everything.

    `rows[(run, stream)]` maps sequence number to record; the store outlives `stop()` and `start()`.
    """

    def __init__(self, port: int, acknowledges: bool = True) -> None:
        self.port = port
        self.acknowledges = acknowledges
        self.answers = True
        self.epoch = 1
        self.rows: dict[tuple[bytes, int], dict[int, bytes]] = {}
        self.gaps: list[tuple[bytes, int, int, int, str]] = []
        self.next: dict[tuple[bytes, int], int] = {}
        self.duplicates = self.store_messages = self.out_of_order = 0
        self.asks: list[dict[str, Any]] = []
        self.live: dict[str, list[bytes]] = {}
        self.said: list[tuple[str, bytes, bool]] = []  # dialect
        self.replies: list[tuple[str, dict[str, Any], bytes]] = []
        self.states: list[bytes] = []
        self.describes: list[bytes] = []
        self.lock = threading.Lock()
        self._own = topics.UnitTopics("stirbar", UNIT_ID.hex())
        self.start()

    def start(self) -> None:
        self.ready = threading.Event()
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        client.on_connect = self._connected
        client.on_subscribe = lambda *_: self.ready.set()
        client.on_message = self._message
        client.reconnect_delay_set(1, 1)
        client.connect_async("127.0.0.1", self.port)
        client.loop_start()
        self.client = client
        assert self.ready.wait(10)

    def stop(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def _connected(self, client: mqtt.Client, *_: object) -> None:
        client.subscribe([*topics.leader_subscriptions("stirbar"), ("pioreactor/#", 1), ("answers/#", 1)])

    def _message(self, client: mqtt.Client, _: object, message: mqtt.MQTTMessage) -> None:
        with self.lock:
            parsed = topics.parse_unit_topic("stirbar", message.topic)
            if message.topic.startswith("pioreactor/"):
                self.said.append((message.topic, message.payload, message.retain))
            elif parsed is None or parsed.leaf == topics.REPLY:
                correlation = getattr(message.properties, "CorrelationData", b"")
                self.replies.append((message.topic, json.loads(message.payload), correlation))
            elif parsed.leaf == topics.STORE:
                self._store(message.payload)
            elif parsed.leaf == topics.LIVE:
                self.live.setdefault(STREAMS[parsed.stream], []).append(message.payload)
            elif parsed.leaf == topics.ASK:
                question = json.loads(message.payload)
                self.asks.append(question)
                if self.answers:
                    runs = question["runs"].items()
                    origin = {
                        run: {str(s): self.next.get((bytes.fromhex(run), s), 0) for s in found} for run, found in runs
                    }
                    self._ack({}, origin)
            elif parsed.leaf == topics.STATE:
                self.states.append(message.payload)
            elif parsed.leaf == topics.DESCRIBE:
                self.describes.append(message.payload)

    def _ack(self, through: dict[str, Any], origin: dict[str, Any] | None) -> None:
        document: dict[str, Any] = {"epoch": self.epoch, "through": through}
        if origin is not None:
            document["from"] = origin
        self.client.publish(self._own.ack, json.dumps(document), 1)

    def _store(self, payload: bytes) -> None:
        self.store_messages += 1
        header, body = parse_batch(payload)
        body = unpack_readings(header, body)
        key = (header.run_id, header.stream)
        expected = self.next.get(key, 0)
        run, stream = header.run_id.hex(), str(header.stream)
        if header.first_sequence > expected:
            self.out_of_order += 1
            self._ack({}, {run: {stream: expected}})
            return
        if header.kind == KIND_GAP:
            reason = json.loads(body)["reason"]
            self.gaps.append((*key, header.first_sequence, header.end_sequence, reason))
        else:
            if header.kind == KIND_RAW_CHUNK:
                from stirbar.core import raw_codec

                body = raw_codec.decode(body)
            size = len(body) // header.count
            rows = self.rows.setdefault(key, {})
            for n in range(header.count):
                sequence = header.first_sequence + n
                self.duplicates += sequence in rows
                rows[sequence] = body[n * size : (n + 1) * size]
        self.next[key] = max(expected, header.end_sequence)
        if self.acknowledges:
            self._ack({run: {stream: self.next[key]}}, None)

    def has(self, worker: WorkerDouble) -> bool:
        """Whether every stream of this run is stored (or announced as a gap) to its end."""
        with self.lock:
            return all(self.next.get((worker.run_id, stream), 0) >= end for stream, end in worker.next.items())

    def missing(self, worker: WorkerDouble) -> list[tuple[int, int]]:
        """(stream, sequence) that the worker made and the store lacks or has wrong."""
        with self.lock:
            return sorted(
                key for key, record in worker.sent.items()
                if self.rows.get((worker.run_id, key[0]), {}).get(key[1]) != record
            )  # fmt: skip

    def topic(self, suffix: str) -> list[bytes]:
        """Payloads said in the dialect on topics that end so."""
        with self.lock:
            return [payload for topic, payload, _ in self.said if topic.endswith(suffix)]


def value_of(record: bytes) -> float:
    return float(struct.unpack_from("<d", record, 24)[0])
