"""A unit as the leader sees one: real MQTT through a real broker, with readings that a test chooses."""

from __future__ import annotations

import json
import math
import os
import struct
import threading
import time

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from stirbar.core.records import (
    FLAGS,
    KIND_JSON,
    KIND_READINGS,
    KIND_TRACE,
    READING,
    STREAM_IDS,
    STREAMS,
    TRACE,
    TRACE_CLOCK,
    TRACE_CONVERSION,
    TRACE_PERIOD,
    Header,
)

RATE_HZ = 800.0
VOLTS_PER_CODE = 1.024 / 32768
TONE_HZ = 50.0
TONE_V = 0.01
NAN = float("nan")
UPTIME_NS = 20 * 365 * 86_400 * 10**9  # so long that no reading of a test was before the start


def trace_items(first, count, channel=1, chop=10):
    """Conversions of a light level with a 50 Hz tone upon it, 10 with the light off and 10 with it on."""
    period_ns = 1e9 / RATE_HZ
    items = [
        TRACE.pack(TRACE_CLOCK, channel, 0, 0, first, int(first * period_ns)),
        TRACE.pack(TRACE_PERIOD, channel, 1, 0, 0, struct.unpack("<q", struct.pack("<d", period_ns))[0]),
    ]
    for index in range(first, first + count):
        on = index // chop % 2
        volts = 0.1 + 0.3 * on + TONE_V * math.sin(2 * math.pi * TONE_HZ * index / RATE_HZ)
        items.append(TRACE.pack(TRACE_CONVERSION, channel, on, 0, index, round(volts / VOLTS_PER_CODE)))
    return b"".join(items)


class MqttUnit:
    """Connects, describes itself, and answers commands as docs/protocol.md says."""

    def __init__(self, name, port, username, password, unit_id=None, simulated=True):
        self.name = name
        self.unit_id = unit_id or os.urandom(16)
        self.run_id = os.urandom(16)
        self.boot_id = os.urandom(16)
        self.simulated = simulated
        self.sequences = {}
        self.commands = []
        self.answers = True
        self.acked = {}
        self.rpm = 500.0
        self.raw_until_ns = 0
        self.simulation = {}
        self.base = f"stirbar/{self.unit_id.hex()}"
        self._changed = threading.Condition()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.username_pw_set(username, password)
        self.client.will_set(f"{self.base}/state", b'{"state":"lost"}', 1, True)
        self.client.on_message = self._message
        ready = threading.Event()
        self.client.on_subscribe = lambda *_: ready.set()
        self.client.on_connect = self._connected
        self.client.reconnect_delay_set(1, 1)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert ready.wait(5)

    def _connected(self, *_):
        self.client.subscribe([(f"{self.base}/command", 1), (f"{self.base}/ack", 1)])
        self.describe()
        self.client.publish(f"{self.base}/state", b'{"state":"online"}', 1, True)

    def describe(self):
        about = {
            "unit": self.name,
            "unit_id": self.unit_id.hex(),
            "run_id": self.run_id.hex(),
            "boot_id": self.boot_id.hex(),
            "version": "9.9",
            "simulated": self.simulated,
            "experiment": "$no_experiment_present",
            "channels": [{"stream": "od2", "channel": 2, "angle": 90, "name": "90°", "volts_per_code": VOLTS_PER_CODE}],
            "jobs": {"stirring": {"state": "ready", "settable": ["target_rpm"]}},
            "limits": {"target_rpm": [0, 1500]},
            "protection": {
                "attended_only": True,
                "missing": ["bund"],
                "sentences": ["attended use only: bund missing"],
            },
        }
        self.client.publish(f"{self.base}/describe", json.dumps(about), 1, True)

    def header(self, kind, stream, size, count, first, experiment="$no_experiment_present"):
        now, real = time.monotonic_ns() + UPTIME_NS, time.time_ns()
        return Header(
            kind, stream, size, count, first, self.unit_id, self.run_id, self.boot_id, now, now, real, experiment
        ).pack()

    def read(self, stream, values, t=None, experiment="$no_experiment_present", store=True):
        """Publish readings, live and to be stored, 0.1 s apart and ending at `t`."""
        number = STREAM_IDS[stream]
        first = self.sequences.get(number, 0)
        end_ns = time.time_ns() if t is None else int(t * 1e9)
        monotonic_ns = time.monotonic_ns() + UPTIME_NS - time.time_ns() + end_ns
        flags = FLAGS["uncalibrated"] | FLAGS["simulated"]
        records = b"".join(
            READING.pack(
                first + i, monotonic_ns - before_ns, end_ns - before_ns, value, 1e-4, 2e-4, 1.0, 0.7, 0.3,
                0.5, 0.1, NAN, 380, 3, flags, 0, number, 90 if number < 5 else 0, 8, 1,
            )
            for i, value in enumerate(values)
            for before_ns in [(len(values) - 1 - i) * 100_000_000]
        )  # fmt: skip
        self.sequences[number] = first + len(values)
        packed = self.header(KIND_READINGS, number, READING.size, len(values), first, experiment) + records
        self.client.publish(f"{self.base}/live/{stream}", packed, 0)
        if store:
            self.client.publish(f"{self.base}/store/{stream}", packed, 1)

    def event(self, message, level="notice", code="test"):
        number = STREAM_IDS["event"]
        first = self.sequences.get(number, 0)
        self.sequences[number] = first + 1
        body = {"monotonic_ns": 1, "wall_ns": time.time_ns(), "level": level, "source": "stirring", "code": code,
                "message": message, "value": 1.5}  # fmt: skip
        packed = self.header(KIND_JSON, number, 0, 1, first) + json.dumps(body).encode()
        self.client.publish(f"{self.base}/live/event", packed, 0)
        self.client.publish(f"{self.base}/store/event", packed, 1)

    def status(self):
        body = {
            "unit": self.name,
            "run_id": self.run_id.hex(),
            "monotonic_ns": time.monotonic_ns(),
            "wall_ns": time.time_ns(),
            "uptime_s": 12.5,
            "experiment": "$no_experiment_present",
            "jobs": {"od_reading": "ready", "stirring": "ready"},
            "counters": {"ticks": 1000, "overruns": 0},
            "lateness": {"sampling": {"counts": [[1024, 1152, 900], [2048, 2304, 100]], "worst_ns": 2100}},
            "sequences": {STREAMS[number]: end for number, end in self.sequences.items()},
            "raw_until_ns": self.raw_until_ns,
        }
        self.client.publish(f"{self.base}/live/status", json.dumps(body), 0)

    def setting(self, job, name, value, experiment="$no_experiment_present"):
        self.client.publish(f"pioreactor/{self.name}/{experiment}/{job}/{name}", str(value), 1, True)

    def close(self, suddenly=False):
        if suddenly:
            self.client.socket().close()  # as if the power was cut: the broker sends the will
        else:
            self.client.publish(f"{self.base}/state", b'{"state":"offline"}', 1, True).wait_for_publish(2)
            self.client.disconnect()
        self.client.loop_stop()

    def wait_for_ack(self, stream, deadline_s=5.0):
        """Until the leader has committed all readings of a stream."""
        end = time.monotonic() + deadline_s
        wanted = self.sequences[STREAM_IDS[stream]]
        with self._changed:
            while self.acked.get(stream, 0) < wanted:
                assert self._changed.wait(max(0.0, end - time.monotonic())), f"{stream}: {self.acked}, not {wanted}"

    def _message(self, client, userdata, message):
        body = json.loads(message.payload)
        if message.topic.endswith("/ack"):
            with self._changed:
                for name, end in body.get("through", {}).get(self.run_id.hex(), {}).items():
                    self.acked[STREAMS.get(int(name), name) if str(name).isdecimal() else name] = end
                self._changed.notify_all()
            return
        self.commands.append(body)
        if not self.answers:
            return
        properties = Properties(PacketTypes.PUBLISH)
        properties.CorrelationData = message.properties.CorrelationData
        answer = {"id": body["id"], **self._answer(body)}
        client.publish(message.properties.ResponseTopic, json.dumps(answer), 1, properties=properties)

    def _answer(self, body):
        name = body["command"]
        if name == "set" and body["setting"] == "target_rpm":
            if not 0 <= body["value"] <= 1500:
                error = {"message": "target_rpm out of range", "field": "value", "limit": 1500, "remedy": "lower it"}
                return {"ok": False, "error": error}
            self.rpm = body["value"]
            return {"ok": True, "result": {"value": self.rpm}}
        if name == "raw":
            self.raw_until_ns = time.monotonic_ns() + int(body["seconds"] * 1e9)
            items = trace_items(0, 1600)
            packed = self.header(KIND_TRACE, STREAM_IDS["raw"], TRACE.size, len(items) // TRACE.size, 0) + items
            self.client.publish(f"{self.base}/live/raw", packed, 0)
            return {"ok": True, "result": {}}
        if name == "led":
            asked = body.get("channels", {})
            return {"ok": True, "result": {"channels": {letter: {"set": value} for letter, value in asked.items()}}}
        if name == "simulate":
            self.simulation |= body["set"]
            return {"ok": True, "result": {"simulation": self.simulation}}
        if name == "describe":
            return {"ok": True, "result": {"simulation": self.simulation}}
        return {"ok": True, "result": {"state": "ready"}}
