"""The bridge process: one poll loop over the worker's sockets and the broker's.

    worker PUB  -> live topic at once, QoS 0
                -> intake -> spool -> sender -> store topic once a second, QoS 1 -> leader's ack
                -> dialect, at its slow rate
    broker      -> remote -> worker's command socket -> reply

Synchronization: one thread; a signal handler may call `stop()`.
"""

from __future__ import annotations

import json
import os
import signal
import time

import zmq
from stirbar.bridge import remote, topics
from stirbar.bridge.dialect import Dialect
from stirbar.bridge.dialect_payloads import LOST, MONITOR
from stirbar.bridge.follower import Follower
from stirbar.bridge.intake import Intake
from stirbar.bridge.leaders import FILE, Leaders
from stirbar.bridge.machine import Machine
from stirbar.bridge.offline import OfflineSign
from stirbar.bridge.renewal import Renewal
from stirbar.bridge.sender import Sender
from stirbar.bridge.session import Session, reply_properties
from stirbar.bridge.spool import Spool
from stirbar.bridge.worker_link import WorkerLink
from stirbar.core.records import KIND_JSON, KIND_READINGS, KIND_TRACE, Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from stirbar.bridge.log import Log
    from stirbar.bridge.relay_settings import Settings

STALE_S = 3.5  # three heartbeats and a little: the worker is taken for gone
DESCRIBE_RETRY_S = 1.0
SYNC_S = 1.0  # at most one wait for the disk in so long
POSITIONS_S = 10.0
STATISTICS_S = 60.0
GOODBYE_S = 1.0
MESSAGES_PER_TURN = 200
LONGEST_SLEEP_S = 1.0
DEAD_RUNS = 8


class Relay:
    """`run()` serves until `stop()`. Raises OSError when the spool cannot be used.

    The last will: paho has one per connection. A stirbar leader reads it on our own `state` topic, and says `lost` for
    the unit's jobs in the dialect. Without one (`acknowledge = broker`) the will is the dialect's `monitor/$state`,
    where a foreign dashboard looks.
    """

    def __init__(self, settings: Settings, log: Log) -> None:
        self.settings = settings
        self.running = True
        self.foreign = self.malformed = 0
        self._log = log
        self._own = own = topics.UnitTopics(settings.data_root, settings.unit_id.hex())
        self._spool = Spool(
            settings.spool_directory,
            settings.unit_id,
            settings.spool_limit_bytes,
            lambda text: log("warning", text, text[:24]),
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._link = WorkerLink(self._context, settings.worker_address, settings.worker_key_file)
        self.intake = Intake(self._spool, self._link, log, settings.with_raw)
        self._dialect = Dialect(
            settings.topic_root, settings.unit, settings.dialect_readings_per_second, self._publish_retained
        )
        leaders = _leaders(settings, log)
        if leaders.came_from_another_cluster():
            self._spool.forget_epoch()
        self.sender = Sender(self._spool, own, settings.unit, settings.end_to_end, self._publish_stored, log, leaders)
        assignment = topics.assignment(settings.topic_root, settings.unit)
        self._machine = Machine(settings.machine_commands, self._link, log)
        self.remote = remote.Remote(
            self._link,
            self._machine,
            self._dialect,
            self._spool,
            self.sender.leader_time,
            own,
            assignment,
            self._reply,
            log,
        )
        will = (own.state, topics.STATE_LOST)
        if not settings.end_to_end:
            will_topic = topics.dialect(
                settings.topic_root, settings.unit, topics.UNIVERSAL_EXPERIMENT, MONITOR, topics.STATE_SETTING
            )
            will = (will_topic, LOST.encode())
        self.session = Session(
            settings.broker,
            will,
            remote.subscriptions(settings.topic_root, settings.unit, own),
            settings.reconnect_maximum_s,
            log,
            self._on_online,
            self._on_offline,
            self._on_message,
            self.sender.on_puback,
            leaders,
        )
        self._offline_sign = OfflineSign(self._link)
        self._renewal = Renewal(settings.cluster_file, settings.renewal_command, log) if settings.cluster_file else None
        self.follower: Follower | None = None  # where somebody else's leader is, nobody wants anything of this unit
        if settings.load is not None and settings.end_to_end:
            self.follower = Follower(
                settings.desired_file, settings.load, self._spool, self._link, self._publish_applied, log
            )
        self._describe = b""
        self._state_said = b""
        self._dead_runs: list[bytes] = []
        self._heard_at = -STALE_S
        self._described = False
        self._describe_at = 0.0
        now = time.monotonic()
        self._flush_at = now + settings.block_interval_s
        self._tick_at = now + min(1.0, self._dialect.interval_s)
        self._sync_at = now
        self._positions_at = now + POSITIONS_S
        self._statistics_at = now
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def stop(self, *_: object) -> None:
        """End `run()`; a signal handler may call this."""
        self.running = False
        try:
            os.write(self._wake_write, b"x")
        except BlockingIOError:
            pass

    # The loop

    def run(self) -> None:
        """Serve until `stop()`; on the way out everything held is written, said and released."""
        poller = zmq.Poller()
        poller.register(self._link.telemetry, zmq.POLLIN)
        poller.register(self._link.command, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        watched = (-1, 0)
        try:
            while self.running:
                wanted = self.session.interest()
                if wanted != watched:
                    if watched[0] >= 0:
                        poller.unregister(watched[0])
                    if wanted[0] >= 0:
                        poller.register(*wanted)
                    watched = wanted
                ready = dict(poller.poll(self._sleep_ms()))
                if self._link.command in ready:
                    self._link.handle_replies()
                if self._link.telemetry in ready:
                    self._receive()
                events = ready.get(watched[0], 0) if watched[0] >= 0 else 0
                if events:
                    self.session.handle(events, time.monotonic())
                self._step(time.monotonic())
        finally:
            self._close()

    def _sleep_ms(self) -> int:
        now = time.monotonic()
        due = min(self._flush_at, self._tick_at, self.session.due, self.sender.due, self._machine.due)
        due = min(due, now + LONGEST_SLEEP_S)
        return max(1, int((due - now) * 1000) + 1) if due > now else 0

    def _step(self, now: float) -> None:
        """Whatever the time demands."""
        self.session.step(now)
        self._link.expire(now)
        self._machine.step(now)
        self._watch_worker(now)
        self._offline_sign.step(self.session.online, now)
        if self.follower is not None:
            self.follower.step(self.remote.worker_present, now)
            if self.follower.restart_asked:
                self.stop()
        if self._renewal is not None:
            self._renewal.step(now)
        self.intake.step(now)
        if now >= self._flush_at:
            self._flush_at = max(self._flush_at + self.settings.block_interval_s, now)
            self.intake.flush(now)
            self._say_state()
        if now >= self._sync_at and self._spool.sync():
            self._sync_at = now + SYNC_S
        self.sender.step(now)
        misled = self.sender.misled(now)
        if misled:
            self.session.move_on(now, misled)
        if now >= self._tick_at:
            self._tick_at = now + self._dialect.interval_s
            self._dialect.tick()
        if now >= self._statistics_at:
            self._statistics_at = now + STATISTICS_S
            self._dialect.machine(self.settings.spool_directory, self.session.local_address())
        if now >= self._positions_at:
            self._positions_at = now + POSITIONS_S
            self._spool.save_positions()

    def _close(self) -> None:
        self.intake.flush(time.monotonic())
        self.sender.step(time.monotonic())
        self._dialect.states("disconnected")
        self.session.publish(self._own.state, topics.STATE_OFFLINE, 1, True)
        self.session.close(time.monotonic, GOODBYE_S)
        self._spool.close()
        self._link.close()
        self._context.term()
        os.close(self._wake_read)
        os.close(self._wake_write)

    # The worker

    def _watch_worker(self, now: float) -> None:
        """Ask a worker that was just met who it is; notice one that has fallen silent."""
        if self.remote.worker_present and now - self._heard_at > STALE_S:
            self.remote.worker_present = False
            self._described = False
            self._log("warning", f"no heartbeat of the worker for {STALE_S:g} s", "worker")
            self._dialect.states(LOST)
            if self.follower is not None:
                self.follower.worker_says(None)
        if not self._described and now >= self._describe_at:
            self._describe_at = now + DESCRIBE_RETRY_S
            if self._link.ask({"command": "describe"}, self._on_describe, now):
                self._link.ask({"command": "settings"}, self._on_settings, now)

    def _on_describe(self, answer: dict[str, object], _: list[bytes]) -> None:
        result = answer.get("result")
        if not answer.get("ok") or not isinstance(result, dict):
            return
        if result.get("unit_id") != self.settings.unit_id.hex():
            self._count_foreign(str(result.get("unit_id")))
            return
        try:
            run_id = bytes.fromhex(str(result.get("run_id")))
        except ValueError:
            return
        self._described = True
        self._describe = json.dumps(result, separators=(",", ":")).encode()
        self.session.publish(self._own.describe, self._describe, 1, True)
        self._meet(run_id)
        if self.follower is not None:
            self.follower.worker_says(result)
        self._follow_experiment(result.get("experiment"))
        self.remote.assign(time.monotonic())

    def _on_settings(self, answer: dict[str, object], _: list[bytes]) -> None:
        result = answer.get("result")
        found = result.get("settings") if isinstance(result, dict) else None
        for document in found if isinstance(found, list) else []:
            if isinstance(document, dict):
                self._dialect.setting(document)

    def _meet(self, run_id: bytes) -> bool:
        """A sign of life from a run of the worker; False when that run is over."""
        if run_id in self._dead_runs:
            return False
        self._heard_at = time.monotonic()
        if run_id != self.intake.run_id:
            if self.intake.run_id:
                self._dead_runs = [*self._dead_runs[1 - DEAD_RUNS :], self.intake.run_id]
            self.intake.begin_run(run_id)
            self._described = False
            self._describe_at = 0.0
            self._log("info", f"worker met, run {run_id.hex()[:8]}", "met")
        if not self.remote.worker_present:
            self.remote.worker_present = True
            self._described = False
            self._describe_at = 0.0
        return True

    def _count_foreign(self, unit_id: str) -> None:
        self.foreign += 1
        self._log(
            "error",
            f"the worker at {self.settings.worker_address} is unit {unit_id}, this bridge is for "
            f"{self.settings.unit_id.hex()}; its data are not passed on: give both the same [unit] data_directory",
            "foreign",
        )

    def _receive(self) -> None:
        for _ in range(MESSAGES_PER_TURN):
            message = self._link.receive()
            if message is None:
                return
            try:
                topic, packed, body = message
                header, _ = Header.unpack(packed)
                if header.record_size and len(body) != header.record_size * header.count:
                    raise ValueError(f"{header.count} records announced, {len(body)} bytes came")
                if header.unit_id != self.settings.unit_id:
                    self._count_foreign(header.unit_id.hex())
                elif self._meet(header.run_id):
                    self._pass_on(topic.decode(), header, packed, body)
            except ValueError as error:
                self.malformed += 1
                self._log("warning", f"telemetry message {message[0][:40]!r} dropped: {error}", "telemetry")

    def _pass_on(self, topic: str, header: Header, packed: bytes, body: bytes) -> None:
        if topic == "status":
            self._on_status(body)
        elif topic.startswith("setting/"):
            document = _json_object(body)
            if document.get("job") == MONITOR and document.get("setting") == "experiment":
                self._follow_experiment(document.get("value"))
            self._dialect.setting(document)
        elif topic == "vitals":
            self.intake.take(header, body)
        elif header.kind in (KIND_READINGS, KIND_TRACE) or (header.kind == KIND_JSON and topic == "event"):
            live = self._own.live.get(header.stream)
            if live is not None:
                self.session.publish(live, packed + body)
            if header.kind == KIND_READINGS and header.experiment == self._dialect.experiment:
                self._dialect.reading(header, body)
            elif header.kind == KIND_JSON:
                self._dialect.event(_json_object(body))
            self.intake.take(header, body)

    def _on_status(self, body: bytes) -> None:
        document = _json_object(body)
        sequences = document.get("sequences")
        self.intake.status(sequences if isinstance(sequences, dict) else {})
        self._follow_experiment(document.get("experiment"))
        counters = json.dumps(self.counters(), separators=(",", ":")).encode()
        self.session.publish(
            f"{self._own.base}/{topics.LIVE}/status", body.rstrip()[:-1] + b',"bridge":' + counters + b"}"
        )

    def _follow_experiment(self, name: object) -> None:
        if isinstance(name, str) and name:
            self._dialect.follow_experiment(name)

    # The broker

    def _on_online(self) -> None:
        self._state_said = b""
        self._say_state()
        if self._describe:
            self.session.publish(self._own.describe, self._describe, 1, True)
        if self.follower is not None:
            self.follower.forget()
            self.follower.say()
        self._dialect.say_again()
        now = self.remote.connected_at = self._statistics_at = time.monotonic()  # our address may be another
        self.sender.online(now)

    def _on_offline(self) -> None:
        self.sender.offline()

    def _say_state(self) -> None:
        """Our state, when it changed; a full disk is told here, retained, until there is room again."""
        state = b'{"state":"online","spool":"full"}' if self.intake.full else topics.STATE_ONLINE
        if state != self._state_said and self.session.publish(self._own.state, state, 1, True):
            self._state_said = state

    def _on_message(self, message: Any) -> None:
        now = time.monotonic()
        if message.topic == self._own.ack:
            self.sender.on_ack(message.payload, now)
        elif message.topic == self._own.desired:
            self._hear_desired(message.payload)
        else:
            self.remote.handle(message, now)

    def _hear_desired(self, payload: bytes) -> None:
        try:
            if self.follower is not None:
                self.follower.handle(payload)
        except ValueError as error:
            self.malformed += 1
            self._log("warning", f"message on {self._own.desired} dropped: {error}", "malformed desired")

    def _publish_applied(self, payload: bytes) -> object:
        return self.session.publish(self._own.applied, payload, 1, True)

    def _publish_retained(self, topic: str, payload: bytes, qos: int, retain: bool) -> object:
        return self.session.publish(topic, payload, qos, retain)

    def _publish_stored(self, topic: str, payload: bytes, qos: int) -> int:
        return self.session.publish(topic, payload, qos)

    def _reply(self, topic: str, payload: bytes, correlation: bytes) -> None:
        self.session.publish(topic, payload, 1, False, reply_properties(correlation))

    def counters(self) -> dict[str, int | bool]:
        """What the bridge counts, as it stands in `live/status` under `bridge`."""
        return {
            "taken": self.intake.taken,
            "duplicates": self.intake.duplicates,
            "holes": self.intake.holes,
            "refilled": self.intake.refilled,
            "gaps": self.intake.gaps + self.sender.gaps,
            "spool_bytes": self._spool.size,
            "spool_lost": self._spool.lost,
            "spool_full": self.intake.full,
            "spool_refused": self._spool.full,
            "spool_damaged": self._spool.damaged,
            "sent": self.sender.sent,
            "sent_data": self.sender.sent_data,
            "rewinds": self.sender.rewinds,
            "asks": self.sender.asks,
            "stale_epochs": self.sender.stale_epochs,
            "connects": self.session.connects,
            "live_dropped": self.session.live_dropped,
            "commands": self.remote.commands,
            "malformed": self.malformed + self.sender.malformed + self.remote.malformed,
            "refused": self.remote.refused,
            "ignored": self.remote.ignored,
            "foreign": self.foreign,
        }


def _leaders(settings: Settings, log: Log) -> Leaders:
    """Where to look for the leader. Without TLS nobody knows who answers at an address that was told."""
    learns = bool(settings.cluster_file) and settings.broker.use_tls
    path = os.path.join(os.path.dirname(settings.cluster_file), FILE) if learns else ""
    return Leaders((settings.broker.host, settings.broker.port), path, log)


def _json_object(body: bytes) -> dict[str, object]:
    """Parse a JSON object; ValueError for anything else."""
    try:
        document = json.loads(body)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    return document


def serve(settings: Settings, log: Log) -> bool:
    """Run a bridge until SIGTERM or SIGINT; True when it has to begin anew with another configuration."""
    relay = Relay(settings, log)
    signal.signal(signal.SIGTERM, relay.stop)
    signal.signal(signal.SIGINT, relay.stop)
    relay.run()
    return relay.follower is not None and relay.follower.restart_asked
