"""The worker's two ZeroMQ sockets, seen from the bridge: telemetry comes, requests go, replies are matched by id.

Synchronization: one thread.
"""

from __future__ import annotations

import json

import zmq
from stirbar.core import sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    OnReply = Callable[[dict[str, object], list[bytes]], None]

REQUEST_TIMEOUT_S = 10.0
BLANK_DEFAULT_S, BLANK_LONGEST_S = 10.0, 1000.0
PENDING_MAXIMUM = 256
TELEMETRY_HIGH_WATER = 2000  # messages; what does not fit is a hole, and asked for again


class WorkerLink:
    """`request` never blocks and never queues for a worker that is not there: a command must not be done minutes later.

    `on_reply(answer, frames)` is called once for each request that was accepted, at the latest after its time limit,
    then with `{"ok": False, "error": …}`.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, key_file: str) -> None:
        self.telemetry = context.socket(zmq.SUB)
        self.telemetry.rcvhwm = TELEMETRY_HIGH_WATER
        self.telemetry.linger = 0
        self.telemetry.subscribe(b"")
        self.command = context.socket(zmq.DEALER)
        self.command.linger = 0
        self.command.immediate = 1
        for one, name in ((self.telemetry, "telemetry"), (self.command, "command")):
            one.reconnect_ivl = 100
            one.reconnect_ivl_max = 2000
            sockets.connect(one, address, name, key_file)
        self._pending: dict[str, list[tuple[float, OnReply]]] = {}
        self._waiting = 0
        self._number = 0

    def receive(self) -> list[bytes] | None:
        """One telemetry message (topic, header, payload), or None."""
        try:
            return self.telemetry.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def ask(self, body: dict[str, object], on_reply: OnReply, now: float) -> bool:
        """Send a request of our own; False when the worker cannot be reached."""
        # a short id: the worker remembers the answers to long ones, and a resend's answer is large
        self._number += 1
        return self.request({**body, "id": f"b{self._number}"}, on_reply, now)

    def request(self, body: dict[str, object], on_reply: OnReply, now: float) -> bool:
        """Send a request with the caller's own id; False when the worker cannot be reached or too many wait."""
        if self._waiting >= PENDING_MAXIMUM:
            return False
        try:
            self.command.send(json.dumps(body).encode(), zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._pending.setdefault(json.dumps(body.get("id")), []).append((now + _patience_s(body), on_reply))
        self._waiting += 1
        return True

    def handle_replies(self) -> None:
        """Match every reply that has come."""
        while True:
            try:
                frames = self.command.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if frames and not frames[0]:
                frames = frames[1:]
            try:
                answer = json.loads(frames[0])
                key = json.dumps(answer["id"])
            except (ValueError, KeyError, TypeError, IndexError, RecursionError):
                continue
            entries = self._pending.get(key)
            if entries:
                _, on_reply = entries.pop(0)
                self._waiting -= 1
                if not entries:
                    del self._pending[key]
                on_reply(answer, frames[1:])

    def expire(self, now: float) -> None:
        """Answer the requests whose time is over."""
        for key, entries in list(self._pending.items()):
            late = [entry for entry in entries if entry[0] <= now]
            if not late:
                continue
            self._pending[key] = [entry for entry in entries if entry[0] > now]
            if not self._pending[key]:
                del self._pending[key]
            self._waiting -= len(late)
            for _, on_reply in late:
                error = {"message": "the worker did not answer in time", "field": ""}
                on_reply({"id": json.loads(key), "ok": False, "error": error}, [])

    def close(self) -> None:
        self.telemetry.close()
        self.command.close()


def _patience_s(body: dict[str, object]) -> float:
    """How long to wait for an answer: a worker that takes a blank answers when it has averaged for so many seconds."""
    seconds = body.get("seconds", BLANK_DEFAULT_S) if body.get("command") == "blank" else 0.0
    averaged = float(seconds) if isinstance(seconds, int | float) and 0 < seconds < BLANK_LONGEST_S else 0.0
    return REQUEST_TIMEOUT_S + averaged
