"""Commands that come over MQTT: the dialect's `/set`, the assignment, and requests on our own `command` topic.

Nothing here waits: a request goes to the worker with its own id, and its answer is published when it comes. What is
malformed, too old, from an older leader or for a worker that is not there is refused, counted and, where there is
somebody to tell, answered.

Synchronization: one thread.
"""

from __future__ import annotations

import json
import time

from stirbar.bridge import topics
from stirbar.bridge.dialect_payloads import compact, parse_assignment
from stirbar.bridge.machine import ANSWERED_HERE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from stirbar.bridge.dialect import Dialect
    from stirbar.bridge.leader_time import LeaderTime
    from stirbar.bridge.log import Log
    from stirbar.bridge.machine import Machine
    from stirbar.bridge.spool import Spool
    from stirbar.bridge.topics import UnitTopics
    from stirbar.bridge.worker_link import WorkerLink

    Answer = Callable[[str, bytes, bytes], None]

REQUEST_BYTES = 64 << 10
UNIQUE_ID_LENGTH = 16  # an id this long is taken as unique in the world, here as by the worker
REMEMBERED_IDS = 64  # a worker that was restarted does not know any more what it has done
REMEMBERED_BYTES = 2 << 10
DOSE_SETTLE_S = 10.0  # after a connect: what waited at the broker is not to be pumped all at once
_DOSES = ("dose", "exchange")
_NOT_OVER_MQTT = ("resend",)  # its answer is binary; the stored path carries it


class Remote:
    """`answer(topic, payload, correlation)` publishes a reply.

    Counters: `commands`, `malformed`, `refused`, `ignored`.
    """

    def __init__(
        self,
        link: WorkerLink,
        machine: Machine,
        dialect: Dialect,
        spool: Spool,
        leader_time: LeaderTime,
        own: UnitTopics,
        assignment_topic: str,
        answer: Answer,
        log: Log,
    ) -> None:
        self.commands = self.malformed = self.refused = self.ignored = 0
        self.worker_present = False
        self.assigned: str | None = None
        self.connected_at = 0.0
        self._link = link
        self._machine = machine
        self._dialect = dialect
        self._spool = spool
        self._leader_time = leader_time
        self._done: dict[str, bytes] = {}  # the answers to the last commands, by their ids
        self._own = own
        self._assignment_topic = assignment_topic
        self._answer = answer
        self._log = log

    def handle(self, message: Any, now: float) -> None:
        """Any message on a topic of commands."""
        try:
            if message.topic == self._own.command:
                self._request(message, now)
            elif message.topic == self._assignment_topic:
                self.assigned = parse_assignment(message.payload)
                self.assign(now)
            elif message.retain:
                self.ignored += 1
                self._log("warning", f"retained command on {message.topic} ignored", f"retained {message.topic}")
            else:
                self._set(message.topic, message.payload, now)
        except ValueError as error:
            self.malformed += 1
            self._log("warning", f"message on {message.topic} dropped: {error}", f"malformed {message.topic}")

    def _set(self, topic: str, payload: bytes, now: float) -> None:
        command = self._dialect.command(topic, payload)
        if command is None:
            self.ignored += 1
            return
        self._order(command, topic, now)

    def assign(self, now: float) -> None:
        """Let the worker stamp the experiment that the leader assigned, if it does not already."""
        if self.assigned is not None and self.assigned != self._dialect.experiment and self.worker_present:
            self._order({"command": "experiment", "name": self.assigned}, self._assignment_topic, now)

    def _order(self, command: dict[str, object], topic: str, now: float) -> None:
        """A command that nobody waits for the answer of; a refusal goes to the log, here and in the dialect."""

        def replied(reply: dict[str, object], _: list[bytes]) -> None:
            if not reply.get("ok"):
                self._refuse(topic, reply.get("error"))

        self.commands += 1
        if not self.worker_present or not self._link.ask(command, replied, now):
            self._refuse(topic, {"message": "no worker answers"})

    def _refuse(self, topic: str, error: object) -> None:
        self.refused += 1
        text = f"{topic}: {error.get('message') if isinstance(error, dict) else error}"
        self._log("warning", f"refused: {text}", f"refused {topic}")
        self._dialect.log("bridge", "warning", f"refused: {text}", time.time_ns())

    def _request(self, message: Any, now: float) -> None:
        properties = message.properties
        topic = str(getattr(properties, "ResponseTopic", "") or self._own.reply)
        correlation = bytes(getattr(properties, "CorrelationData", b""))
        if len(message.payload) > REQUEST_BYTES:
            raise ValueError(f"request of {len(message.payload)} bytes, at most {REQUEST_BYTES}")
        try:
            body = json.loads(message.payload)
        except RecursionError:
            raise ValueError("request nested too deeply") from None
        if not isinstance(body, dict):
            raise ValueError("a request is one JSON object")
        self.commands += 1
        identifier = body.get("id")
        unique = identifier if isinstance(identifier, str) and len(identifier) >= UNIQUE_ID_LENGTH else ""
        if unique in self._done:
            self._answer(topic, self._done[unique], correlation)
            return
        refusal = self._objection(body, message, now)
        body.pop("epoch", None)  # between leader and bridge only

        def replied(reply: dict[str, object], frames: list[bytes]) -> None:
            answer = compact(reply)
            if unique and reply.get("ok") and len(answer) <= REMEMBERED_BYTES:
                self._done[unique] = answer
                if len(self._done) > REMEMBERED_IDS:
                    del self._done[next(iter(self._done))]
            self._answer(topic, answer, correlation)

        if refusal is None and body.get("command") in ANSWERED_HERE:
            self._machine.request(body, self.worker_present, replied, now)
        elif refusal is None and not (self.worker_present and self._link.request(body, replied, now)):
            refusal = {"message": "no worker answers on this unit", "field": "", "remedy": "start `stirbar worker`"}
        if refusal is not None:
            self.refused += 1
            self._answer(topic, compact({"id": body.get("id"), "ok": False, "error": refusal}), correlation)

    def _objection(self, body: dict[str, Any], message: Any, now: float) -> dict[str, object] | None:
        """Why a request is not passed on, or None."""
        if not isinstance(body.get("id"), str | int | float):
            return {"message": "a request needs an id, a string or a number", "field": "id"}
        if message.retain:
            return {"message": "retained requests are not done", "field": "retain", "remedy": "publish without retain"}
        if body.get("command") in _NOT_OVER_MQTT:
            return {"message": f"{body['command']} is not answered over MQTT", "field": "command"}
        if body.get("command") in _DOSES and now - self.connected_at < DOSE_SETTLE_S:
            text = f"nothing is dosed within {DOSE_SETTLE_S:g} s of a connect"
            return {"message": text, "field": "command", "limit": DOSE_SETTLE_S, "remedy": "ask again in a moment"}
        epoch = body.get("epoch", self._spool.epoch)
        if isinstance(epoch, bool) or not isinstance(epoch, int):
            return {"message": "epoch must be a whole number", "field": "epoch"}
        if not self._spool.follow_epoch(epoch):
            limit = self._spool.epoch
            return {"message": f"this unit follows a newer leader (epoch {limit})", "field": "epoch", "limit": limit}
        expires_at = body.get("expires_at")
        if expires_at is None:
            return None
        if isinstance(expires_at, bool) or not isinstance(expires_at, int | float):
            return {"message": "expires_at must be Unix time in seconds", "field": "expires_at"}
        leader_s = self._leader_time.at(now)
        age = (time.time() if leader_s is None else leader_s) - expires_at
        if age > 0:
            text = f"the command expired {age:.1f} s ago and was not done"
            return {"message": text, "field": "expires_at", "limit": expires_at}
        body["expires_at"] = time.time() - age  # the same moment by this machine's clock, which the worker has too
        return None


def subscriptions(root: str, unit: str, own: UnitTopics) -> list[tuple[str, bool]]:
    """What the unit listens to: (filter, whether retained messages are wanted)."""
    return [
        (own.ack, False),
        (own.command, False),
        (own.desired, True),
        (topics.assignment(root, unit), True),
        *((pattern, False) for pattern in topics.set_filters(root, unit)),
    ]
