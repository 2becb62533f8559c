"""What a self-test runs against: a worker over its sockets, or a twin in virtual time; both look the same.

Synchronization: none; one thread.
"""

from __future__ import annotations

import os
import struct
import tempfile
import time

from stirbar.core import records
from stirbar.core.client import CommandRefused, Worker
from stirbar.core.commands import Commands
from stirbar.core.records import Header
from stirbar.core.twin import Twin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from stirbar.core.config import Config

    Reading = dict[str, Any]
    Message = tuple[str, Header, bytes]

SLICE_S = 2.0  # of a long watch; the loan is renewed between
ANSWER_S = 3.0
STEP_S = 0.02  # virtual time between two looks for an answer
IDLE_S = 0.5
OFF, ON = 0, 1  # phases of the light in the trace


class Samples:
    """The conversions of one photodiode: when each ended (ns), under which light, and its volts."""

    __slots__ = ("phase", "time_ns", "volts")

    def __init__(self) -> None:
        self.time_ns: list[int] = []
        self.phase: list[int] = []
        self.volts: list[float] = []

    def under(self, phase: int) -> tuple[list[int], list[float]]:
        """Times and volts of those made wholly under one light."""
        chosen = [i for i, one in enumerate(self.phase) if one == phase]
        return [self.time_ns[i] for i in chosen], [self.volts[i] for i in chosen]


class Capture:
    """What was heard in a while: readings by stream, conversions by channel (1..4), edges of the stirrer (ns)."""

    def __init__(self, since_ns: int) -> None:
        self.since_ns = since_ns
        self.until_ns = since_ns
        self.readings: dict[str, list[Reading]] = {}
        self.samples: dict[int, Samples] = {}
        self.edges_ns: list[int] = []

    def values(self, stream: str, field: str = "value") -> list[float]:
        """A field of a stream's readings, without those that have none."""
        values = [float(reading[field]) for reading in self.readings.get(stream, ())]
        return [value for value in values if value == value]


class Clocks:
    """What the trace says of each converter: its range, and when which conversion ends."""

    def __init__(self, volts_per_code: dict[int, float]) -> None:
        self.volts_per_code = volts_per_code
        self._index0: dict[int, int] = {}
        self._t0_ns: dict[int, int] = {}
        self._period_ns: dict[int, float] = {}

    def item(self, capture: Capture, item: tuple[int, int, int, int, int, int]) -> None:
        kind, channel, phase, _, index, value = item
        channel += 1
        if kind == records.TRACE_CONVERSION:
            period, scale = self._period_ns.get(channel), self.volts_per_code.get(channel)
            if period is None or scale is None:
                return
            behind = (index - self._index0[channel] + 0x80000000) % 0x100000000 - 0x80000000
            at_ns = self._t0_ns[channel] + round(behind * period)
            if at_ns >= capture.since_ns:
                samples = capture.samples.setdefault(channel, Samples())
                samples.time_ns.append(at_ns)
                samples.phase.append(phase)
                samples.volts.append(value * scale)
        elif kind == records.TRACE_CLOCK:
            self._index0[channel], self._t0_ns[channel] = index, value
        elif kind == records.TRACE_PERIOD:
            self._period_ns[channel] = _double(value)
        elif kind == records.TRACE_GAIN:
            self.volts_per_code[channel] = _double(value)
        elif kind == records.TRACE_EDGE and value >= capture.since_ns:
            capture.edges_ns.append(value)


def _double(word: int) -> float:
    """The floating-point number whose bits a trace item carries."""
    return float(struct.unpack("<d", struct.pack("<q", word))[0])


class Bench:
    """Commands and telemetry of a unit; `ask` raises as `Worker.command` does."""

    local = True  # the unit is this machine

    def __init__(self) -> None:
        self.description = self.ask("describe")
        scales = {one["channel"]: one["volts_per_code"] for one in self.description["channels"]}
        self.clocks = Clocks({channel: scale for channel, scale in scales.items() if scale is not None})
        self.config: dict[str, dict[str, Any]] = self.ask("config")["config"]
        self.has_loan = False

    @property
    def simulated(self) -> bool:
        return bool(self.description["simulated"])

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        raise NotImplementedError

    def _messages(self, until_ns: int) -> Iterator[Message]:
        """Telemetry up to an instant of the unit's clock."""
        raise NotImplementedError

    def setting(self, job: str, name: str) -> Any:
        """A setting in force, None where there is none."""
        found = self.ask("settings", job=job)["settings"]
        return next((one["value"] for one in found if one["setting"] == name), None)

    def watch(self, seconds: float, raw: bool = False) -> Capture:
        """Everything that the unit says in the next seconds, of light that came from now on; `raw`: conversions too."""
        capture = Capture(int(self.ask("status")["monotonic_ns"]))
        end_ns = capture.since_ns + round(seconds * 1e9)
        while capture.until_ns < end_ns:
            slice_end_ns = min(end_ns, capture.until_ns + round(SLICE_S * 1e9))
            if raw:
                self.ask("raw", seconds=SLICE_S + ANSWER_S)
            for topic, header, payload in self._messages(slice_end_ns):
                self._take(capture, topic, header, payload)
            capture.until_ns = slice_end_ns
            if self.has_loan:
                self.ask("self_test", step="renew")
        return capture

    def _take(self, capture: Capture, topic: str, header: Header, payload: bytes) -> None:
        if topic.startswith("reading/"):
            kept = capture.readings.setdefault(records.STREAMS[header.stream], [])
            for fields in records.READING.iter_unpack(payload):
                reading = dict(zip(records.READING_FIELDS, fields, strict=True))
                window_s = reading["window_s"] if reading["window_s"] == reading["window_s"] else 0.0
                if reading["monotonic_ns"] - round(1e9 * window_s) >= capture.since_ns:
                    kept.append(reading)
        elif topic.startswith("trace/"):
            for item in records.TRACE.iter_unpack(payload):
                self.clocks.item(capture, item)

    def close(self) -> None:
        """Let go of what was opened."""


class LiveBench(Bench):
    """A worker that runs."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.local = worker.address.startswith("ipc://")
        self._telemetry = worker.messages("reading/", "trace/", "status", timeout_s=IDLE_S, idle=True)
        next(self._telemetry)  # connects
        super().__init__()

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        return self.worker.command(command, **arguments)

    def _messages(self, until_ns: int) -> Iterator[Message]:
        deadline = time.monotonic() + SLICE_S + ANSWER_S
        for message in self._telemetry:
            if message is not None:
                yield message
                if message[0] == "status" and message[1].monotonic_ns >= until_ns:
                    return
            if time.monotonic() > deadline:
                return

    def close(self) -> None:
        self._telemetry.close()  # type: ignore[attr-defined]


class TwinBench(Bench):
    """A simulated worker in virtual time, with a directory of its own."""

    def __init__(self, config: Config) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="stirbar-self-test-")
        self.twin = Twin(config, self._directory.name)
        self._commands = Commands(self.twin.host)
        self._heard: list[tuple[bytes, bytes, bytes]] = []
        super().__init__()

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        answers: list[dict[str, Any]] = []
        self._commands.handle(
            {"id": os.urandom(16).hex(), "command": command, **arguments}, lambda answer, _: answers.append(answer)
        )
        end_s = self.twin.elapsed_s + ANSWER_S
        while not answers and self.twin.elapsed_s < end_s:
            self._heard += self.twin.run(STEP_S)
        if not answers or not answers[0]["ok"]:
            raise CommandRefused(answers[0]["error"] if answers else {"message": "the twin did not answer"})
        result: dict[str, Any] = answers[0]["result"]
        return result

    def _messages(self, until_ns: int) -> Iterator[Message]:
        heard, self._heard = self._heard, []
        heard += self.twin.run(max(0.0, (until_ns - self.twin.loop.now_ns()) / 1e9))
        for topic, header, payload in heard:
            yield topic.decode(), Header.unpack(header)[0], payload

    def close(self) -> None:
        self._directory.cleanup()
