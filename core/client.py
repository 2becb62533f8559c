"""`stirbar.Worker`: a worker from a script or a notebook.

>>> from stirbar import Worker
>>> for block in Worker().stream("od"):        # NumPy structured arrays, as they come
...     print(block["value"].mean())
"""

from __future__ import annotations

import json
import os

import zmq
from stirbar.core import records, sockets
from stirbar.core.records import Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    import numpy
    from stirbar.core.config import Config

# More than a PUB socket's own queue, so that only a reader that is slow for long loses data.
RECEIVE_HIGH_WATER = 2000


class WorkerUnreachable(ConnectionError):
    """No worker answered; the message says at which address and for how long."""


class CommandRefused(Exception):
    """The worker refused a command. `error` is its reason: message, field, limit, remedy."""

    def __init__(self, error: dict[str, Any]) -> None:
        text = str(error.get("message", "refused"))
        if error.get("remedy"):
            text += f" ({error['remedy']})"
        super().__init__(text)
        self.error = error


class Worker:
    """A connection to a worker.

    `address` is the worker's base address; by default that of the unit named in the config, or of the only worker that
    runs on this machine. `timeout_s` bounds every command. `key_file` holds the client's keys for a `tcp://` address,
    as `stirbar worker --admit NAME` printed them; by default those that a worker of this user made.

    Synchronization: not thread-safe; use one instance per thread.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        config: Config | None = None,
        timeout_s: float = 5.0,
        key_file: str | None = None,
    ) -> None:
        self.address = address or default_address(config)
        self.key_file = key_file or (default_key_file(config) if self.address.startswith("tcp://") else "")
        self.timeout_s = timeout_s
        self.lost = 0  # readings that a stream missed and the worker could not send again
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._command = self._connect_command()

    def _connect_command(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        sockets.connect(socket, self.address, "command", self.key_file)
        return socket

    def close(self) -> None:
        self._context.destroy(linger=0)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- commands ----------------------------------------------------------------------------------------------------

    def command(self, command: str, *, timeout_s: float | None = None, **arguments: Any) -> dict[str, Any]:
        """Run a command of docs/protocol.md and return its result.

        Raises CommandRefused with the worker's reason, WorkerUnreachable when no answer comes in time. The worker
        does a command at most once, even when the answer was late.
        """
        return self._request(command, timeout_s, arguments)[0]

    def _request(
        self, command: str, timeout_s: float | None, arguments: dict[str, Any]
    ) -> tuple[dict[str, Any], list[bytes]]:
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        identifier = os.urandom(16).hex()
        self._command.send(json.dumps({"id": identifier, "command": command, **arguments}).encode())
        while self._command.poll(round(limit_s * 1000)):
            answer, *frames = self._command.recv_multipart()
            reply = json.loads(answer)
            if reply.get("id") != identifier:
                continue  # the late answer to an earlier command that timed out
            if not reply["ok"]:
                raise CommandRefused(reply["error"])
            return reply["result"], frames
        self._command.close()
        self._command = self._connect_command()
        raise WorkerUnreachable(
            f"no answer from a worker at {self.address} within {limit_s:g} s; is `stirbar worker` running there?"
        )

    def describe(self) -> dict[str, Any]:
        """Who the unit is: names, ids, photodiode channels with their angles, jobs."""
        return self.command("describe")

    def status(self) -> dict[str, Any]:
        """Counters, lateness histograms, states of jobs, latest reading of each stream."""
        return self.command("status")

    def latest(self, stream: str) -> dict[str, Any] | None:
        """The latest reading of a stream (`od1`..`od4`, `rpm`, `temperature`), or None."""
        latest: dict[str, Any] = self.status()["latest"]
        return latest.get(stream)

    def settings(self) -> dict[tuple[str, str], Any]:
        """Every setting in force: {(job, setting): value}."""
        return {(item["job"], item["setting"]): item["value"] for item in self.command("settings")["settings"]}

    def set(self, job: str, setting: str, value: float | str | bool) -> Any:
        """Change a setting; returns the value in force."""
        return self.command("set", job=job, setting=setting, value=value)["value"]

    def start(self, job: str) -> str:
        """Start a job; returns its state."""
        return str(self.command("start", job=job)["state"])

    def stop(self, job: str) -> str:
        """Stop a job; returns its state."""
        return str(self.command("stop", job=job)["state"])

    def blank(self, channel: int | None = None, seconds: float = 10.0) -> dict[str, float]:
        """Take a blank over the next seconds; returns it per photodiode channel."""
        arguments: dict[str, Any] = {"seconds": seconds} | ({} if channel is None else {"channel": channel})
        result = self.command("blank", timeout_s=self.timeout_s + seconds, **arguments)
        blank: dict[str, float] = result["blank"]
        return blank

    def dose(
        self, pump: str, *, ml: float | None = None, seconds: float | None = None, source: str = "user"
    ) -> dict[str, Any]:
        """Run a pump (`media`, `alt_media`, `waste`) for millilitres or seconds; returns what was begun: its number
        `dose`, `state` (`running`, or `queued` behind others). `dose_result` tells the end."""
        amount = (
            {"ml": ml} if seconds is None else {"seconds": seconds} if ml is None else {"ml": ml, "seconds": seconds}
        )
        return self.command("dose", pump=pump, source=source, **amount)

    def exchange(
        self, media_ml: float, alt_media_ml: float = 0.0, waste_ml: float | None = None, *, source: str = "user"
    ) -> dict[str, Any]:
        """Waste, media, waste as one, which is finished or made good; without `waste_ml` as much goes out as comes in.
        Returns as `dose` does."""
        waste = {} if waste_ml is None else {"waste_ml": waste_ml}
        return self.command("exchange", media_ml=media_ml, alt_media_ml=alt_media_ml, source=source, **waste)

    def dose_result(self, dose: int) -> dict[str, Any]:
        """How a dose stands: `state` (queued, running, done, cut, stopped, refused), `cut` (why), `moved_ml`."""
        return self.command("dose_result", dose=dose)

    def stop_doses(self, *, finish: bool = False) -> None:
        """Stop the pumps and forget what waits; `finish`: take out first what an exchange has let in."""
        self.command("dose_stop", finish=finish)

    def led(self, source_of_event: str = "user", **percent: float) -> dict[str, Any]:
        """Set LED channels, as in `led(B=20, C=0)`; without any, only look. Returns for each channel what it is `set`
        to, the `intensity` that it gives, and why it is `held` from that (empty: it is not)."""
        arguments: dict[str, Any] = {"channels": percent, "source_of_event": source_of_event} if percent else {}
        channels: dict[str, Any] = self.command("led", **arguments)["channels"]
        return channels

    def identify(self) -> float:
        """Let the LED of the unit's board blink; returns for how many seconds."""
        return float(self.command("identify")["seconds"])

    # --- streams -----------------------------------------------------------------------------------------------------

    def messages(
        self, *topics: str, timeout_s: float | None = None, idle: bool = False
    ) -> Iterator[tuple[str, Header, bytes] | None]:
        """Messages of the telemetry socket below these topic prefixes, as they come: (topic, header, payload).

        After `timeout_s` seconds without a message it ends, or, with `idle`, yields None and goes on.
        """
        socket = self._context.socket(zmq.SUB)
        socket.rcvhwm = RECEIVE_HIGH_WATER
        socket.linger = 0
        for topic in topics:
            socket.subscribe(topic.encode())
        sockets.connect(socket, self.address, "telemetry", self.key_file)
        try:
            while True:
                if not socket.poll(None if timeout_s is None else round(timeout_s * 1000)):
                    if not idle:
                        return
                    yield None
                    continue
                name, header, payload = socket.recv_multipart()
                yield name.decode(), Header.unpack(header)[0], payload
        finally:
            socket.close()

    def batches(
        self, *topics: str, timeout_s: float | None = None, idle: bool = False
    ) -> Iterator[tuple[str, Header, bytes] | None]:
        """As `messages`, but without holes: what this reader missed is asked for again from the worker's memory, and
        what cannot be had any more is counted in `lost`."""
        expected: dict[tuple[bytes, int], int] = {}
        for message in self.messages(*topics, timeout_s=timeout_s, idle=idle):
            if message is None or message[1].kind not in (records.KIND_READINGS, records.KIND_TRACE):
                yield message
                continue
            topic, header, payload = message
            key = (header.run_id, header.stream)
            at = expected.get(key, header.first_sequence)
            if header.first_sequence > at:
                for resent, resent_payload in self._missed(header, at):
                    self.lost += max(0, resent.first_sequence - at)
                    at = resent.end_sequence
                    yield topic, resent, resent_payload
                self.lost += max(0, header.first_sequence - at)
            if header.end_sequence > expected.get(key, 0):
                expected[key] = header.end_sequence
                yield topic, header, payload

    def _missed(self, header: Header, start: int) -> Iterator[tuple[Header, bytes]]:
        """Batches of the worker's memory from `start` up to the one whose header came."""
        at = start
        while at < header.first_sequence:
            result, frames = self._request(
                "resend", None, {"stream": records.STREAMS[header.stream], "from_sequence": at}
            )
            for packed, payload in zip(frames[::2], frames[1::2], strict=True):
                resent = Header.unpack(packed)[0]
                if resent.run_id != header.run_id or resent.first_sequence >= header.first_sequence:
                    return
                yield resent, payload
            if result["end"] is None or result["end"] <= at:
                return
            at = result["end"]

    def stream(self, name: str = "od", timeout_s: float | None = None) -> Iterator[numpy.ndarray]:
        """Readings as they come, without holes: NumPy structured arrays of `records.READING_DTYPE`, of one stream each.

        `name` is a stream (`od2`, `rpm`, `temperature`) or a prefix of some (`od`).
        """
        import numpy

        dtype = numpy.dtype(records.READING_DTYPE)
        for batch in self.batches(f"reading/{name}", timeout_s=timeout_s):
            assert batch is not None
            yield numpy.frombuffer(batch[2], dtype)


def default_key_file(config: Config | None = None) -> str:
    """The keys that a worker of this user and config made for its own machine."""
    from stirbar.core import paths
    from stirbar.core.config import load_config

    return sockets.local_key_file(paths.data_directory(load_config() if config is None else config))


def default_address(config: Config | None = None) -> str:
    """The address of the config's unit; of the only running worker on this machine when the config's is not there."""
    from stirbar.core import paths
    from stirbar.core.config import load_config

    config = load_config() if config is None else config
    address = paths.worker_address(config)
    if not address.startswith("ipc://") or os.path.exists(f"{address[6:]}/command"):
        return address
    directory = paths.runtime_directory(config)
    found = [
        entry.path for entry in os.scandir(directory) if entry.is_dir() and os.path.exists(f"{entry.path}/command")
    ]
    return f"ipc://{found[0]}" if len(found) == 1 else address
