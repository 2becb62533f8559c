"""The leader's ear: one thread that hears every unit, stores once a second, and carries commands and replies.

The stored path is in `stored_path`, what is known of each unit now in `live`; here is what moves the messages.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import threading
import time
from collections import deque

import zmq
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from stirbar.bridge import topics
from stirbar.bridge.calls import Calls, CommandNotSent, CommandTimeout
from stirbar.bridge.clocks import Clocks
from stirbar.bridge.drift import facts_of, parse_report
from stirbar.bridge.foreign import House, Strangers
from stirbar.bridge.leadership import Leadership
from stirbar.bridge.live import (
    STATES,
    LiveUnit,
    event_object,
    parse_setting,
    parse_value,
    reading_object,
)
from stirbar.bridge.log import Log
from stirbar.bridge.presence import Presence
from stirbar.bridge.session import Broker, Session
from stirbar.bridge.store import StoreError
from stirbar.bridge.stored_path import StoredPath, parse_object
from stirbar.core.records import (
    KIND_JSON,
    KIND_RAW_CHUNK,
    KIND_READINGS,
    KIND_TRACE,
    READING,
    READING_STREAMS,
    STREAM_IDS,
    parse_batch,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from stirbar.bridge.store import Store
    from stirbar.core.records import Header

    Listener = Callable[[str, str, dict[str, Any]], None]

__all__ = ["CommandNotSent", "CommandTimeout", "Ingest"]

COMMIT_INTERVAL_S = 1.0
RECONNECT_MAXIMUM_S = 5.0  # the broker is near, and everything waits for it
CLOSE_LIMIT_S = 2.0
RECOVER_S = 0.5
MESSAGES_A_ROUND = 64  # before commands, commits and the keep-alive are looked after again
REPORT_BYTES = 64 << 10
TOPICS_MAXIMUM = 50_000  # that are remembered parsed
DROPPED_TOPIC = "$SYS/broker/publish/messages/dropped"
EVENT, RAW, STATUS = STREAM_IDS["event"], STREAM_IDS["raw"], STREAM_IDS["status"]
COUNTERS = (
    "messages",
    "bytes",
    "live_readings",
    "malformed",
    "commands",
    "late_replies",
    "internal_errors",
)


class Ingest:
    """`start()` runs the thread, which connects for ever; `stop()` commits, acknowledges and ends it.

    `tls` is the file of the CA that signed the broker's certificate, "" the system's CAs, None no TLS. `refusal` says
    why this machine does not lead, if it does not: then it stores what it hears, and answers nobody.
    Synchronization: every public method from any thread, `start` and `stop` from one. Callbacks of `listen` are called
    from the ingest thread and must not wait.
    """

    def __init__(
        self,
        store: Store,
        *,
        host: str,
        port: int,
        username: str,
        password: str,
        topic_root: str,
        data_root: str,
        tls: str | None = None,
        log: Log | None = None,
        refusal: str = "",
    ) -> None:
        self._store = store
        self._topic_root = topic_root
        self._data_root = data_root
        self._log = log or Log("stirbar leader")
        self._stored = StoredPath(store, self._acknowledge, self._log)
        self._clocks = Clocks(store, self._make_event)
        self._leadership = Leadership(self._stored.epoch, refusal)
        self._presence = Presence(topic_root, self._leave, self._tell_state)
        house = House(lambda name: self._by_name.get(name), self._adopt, self._show, self._tell, self._make_event)
        self._strangers = Strangers(store, topic_root, house)
        self._state_topic = f"{data_root}/leader/state"
        self._session = Session(
            Broker(host, port, f"leader-{secrets.token_hex(4)}", username, password, tls is not None, tls or ""),
            self._will(),
            self._subscriptions(),
            RECONNECT_MAXIMUM_S,
            self._log,
            self._online,
            self._offline,
            self._message,
            lambda mid: None,
        )
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._calls = Calls(self._poke, self._stored.epoch)
        self._thread: threading.Thread | None = None
        self._stopping = False

        self._lock = threading.RLock()  # protects what follows, to the blank line
        self._units: dict[bytes, LiveUnit] = {}
        self._assignments: dict[bytes, str] = store.assignments()
        self._desired: dict[bytes, dict[str, Any]] = {}  # what every unit should be, without the epoch
        self._outbox: deque[tuple[str, bytes]] = deque()  # retained messages of other threads
        self._listeners: tuple[Listener, ...] = ()
        self._leaders: list[list[object]] = []
        self._leaders_due = False
        self._counters = dict.fromkeys(COUNTERS, 0)

        # of the ingest thread alone
        self._by_name: dict[str, LiveUnit] = {}
        self._topics: dict[str, tuple[topics.UnitTopic, LiveUnit]] = {}
        self._conflicts: set[frozenset[bytes]] = set()
        self._next_commit = 0.0
        self._connected = False
        self._broker_dropped = 0
        self._cpu_s = 0.0
        for known in store.units():
            unit = self._known(known["unit_id"])
            unit.name, unit.describe = known["unit"], known["describe"]
            self._by_name[topics.level(unit.name)] = unit

    def _will(self) -> tuple[str, bytes] | None:
        return self._state_topic, topics.STATE_LOST

    def _subscriptions(self) -> list[tuple[str, bool]]:
        """(pattern, whether retained messages are asked for); blocks of a shared store are for `stirbar ingest`."""
        # our own tree first: its retained descriptions name the units that the dialect's settings are about
        own = [pattern for pattern, _ in topics.leader_subscriptions(self._data_root)]
        if self._store.shared:
            own = [pattern for pattern in own if f"/{topics.STORE}/" not in pattern]
        heard = (*own, f"{self._topic_root}/+/+/+/+", DROPPED_TOPIC)
        return [(pattern, True) for pattern in heard] + self._strangers.subscriptions()

    # For other threads

    def start(self) -> None:
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Commit and acknowledge what has come, say goodbye to the broker, end the thread."""
        self._stopping = True
        thread, self._thread = self._thread, None
        if thread is not None:
            self._poke()
            thread.join()

    def listen(self, callback: Listener) -> Callable[[], None]:
        """Call `callback(kind, unit, object)` for each reading, status, state, event and setting from now on.

        Returns a function that ends it.
        """
        with self._lock:
            self._listeners += (callback,)

        def stop_listening() -> None:
            with self._lock:
                self._listeners = tuple(one for one in self._listeners if one is not callback)

        return stop_listening

    def command(self, unit_id: bytes, request: dict[str, Any], timeout_s: float = 5.0) -> dict[str, Any]:
        """Send a worker's command (docs/protocol.md) to a unit and return the worker's reply, refusals included.

        Raises CommandTimeout when none comes in time, CommandNotSent when there is no broker, or another one leads.
        """
        with self._lock:
            unit = self._units.get(unit_id)
        if unit is not None and unit.foreign:
            raise CommandNotSent(f"'{unit.name}' is not a stirbar unit: it is heard, and takes no commands from here")
        if self._leadership.refusal:
            raise CommandNotSent(self._leadership.refusal)
        return self._calls.ask(unit_id, request, timeout_s)

    def units(self, brief: bool = False) -> list[dict[str, Any]]:
        """All units now, in order of name: see `LiveUnit.snapshot` and `LiveUnit.brief`."""
        look = LiveUnit.brief if brief else LiveUnit.snapshot
        with self._lock:
            found = [look(unit, self._assignments.get(unit.unit_id)) for unit in self._units.values()]
        return sorted(found, key=lambda unit: (unit["unit"], unit["unit_id"]))

    def assign(self, unit_id: bytes, experiment: str | None) -> None:
        """Assign a unit to an experiment from now on, in the store and with the broker. Raises StoreError."""
        self._store.assign(unit_id, experiment)
        with self._lock:
            if experiment is None:
                self._assignments.pop(unit_id, None)
            else:
                self._assignments[unit_id] = experiment
            unit = self._known(unit_id)
            unit.assigned = experiment
            name = topics.NO_EXPERIMENT if experiment is None else experiment
            self._outbox.append((topics.assignment(self._topic_root, unit.name), name.encode()))
        self._poke()

    def tell_leaders(self, leaders: list[list[object]]) -> None:
        """Let units know where this leader and its standby are: now, and whenever one asks from where to go on."""
        with self._lock:
            self._leaders, self._leaders_due = leaders, True
        self._poke()

    def set_desired(self, unit_id: bytes, what: dict[str, Any], again: bool = False) -> None:
        """What a unit should be from now on (docs/desired-state.md), retained with the broker; said once, or again."""
        with self._lock:
            if self._desired.get(unit_id) == what and not again:
                return
            self._desired[unit_id] = what
            self._tell_desired(unit_id)
        self._poke()

    def reports(self) -> list[dict[str, Any]]:
        """What each unit says that it is: unit, unit_id, state, facts, applied; and the epoch that is ours."""
        with self._lock:
            return [
                {
                    "unit": unit.name,
                    "unit_id": unit.unit_id.hex(),
                    "state": unit.state,
                    "facts": facts_of(unit.describe),
                    "applied": unit.applied,
                    "epoch": self._stored.epoch,
                }
                for unit in self._units.values()
            ]

    def make_event(self, unit_id: bytes, level: str, code: str, text: str) -> None:
        """An event of the leader's own about a unit, stored and told."""
        self._make_event(self._known(unit_id), level, code, text)

    def raw(self, unit_id: bytes, seconds: float) -> list[tuple[Header, bytes]]:
        """The unit's last seconds of trace as it came live: blocks of kind 2 (items) or 5 (chunks), oldest first."""
        with self._lock:
            unit = self._units.get(unit_id)
            return unit.latest_raw(seconds) if unit is not None else []

    def counters(self) -> dict[str, Any]:
        with self._lock:
            states = [unit.state for unit in self._units.values()]
            return {
                **self._counters,
                **self._stored.counters,
                **self._strangers.counters,
                "connected": self._connected,
                "connects": self._session.connects,
                "broker_dropped": self._broker_dropped,
                "epoch": self._stored.epoch,
                "cpu_s": self._cpu_s,
                "units": {state: states.count(state) for state in STATES},
            }

    def _poke(self) -> None:
        os.eventfd_write(self._wake, 1)

    # The thread

    def _run(self) -> None:
        self._next_commit = time.monotonic() + COMMIT_INTERVAL_S
        while not self._stopping:
            try:
                self._serve()
            except Exception as error:  # neither our own mistakes nor paho's may deafen the leader
                self._counters["internal_errors"] += 1
                self._log("error", f"connection given up after {type(error).__name__}: {error}", "internal")
                self._session.close(time.monotonic, 0.0)
                self._offline()
                time.sleep(RECOVER_S)
        self._commit(time.monotonic())
        self._goodbye()
        self._session.close(time.monotonic, CLOSE_LIMIT_S)
        self._offline()

    def _serve(self) -> None:
        """Poll, hear, commit, until `stop`."""
        poller = zmq.Poller()
        poller.register(self._wake, zmq.POLLIN)
        watched = (-1, 0)
        while not self._stopping:
            now = time.monotonic()
            self._session.step(now)
            self._send_what_waits()
            if now >= self._next_commit:
                self._commit(now)
                self._look_for_silent_units()
                self._cpu_s = time.thread_time()
            wanted = self._session.interest()
            if wanted != watched:
                if watched[0] >= 0:
                    poller.unregister(watched[0])
                if wanted[0] >= 0:
                    poller.register(*wanted)
                watched = wanted
            wait_s = min(self._session.due, self._next_commit) - time.monotonic()
            for descriptor, events in poller.poll(max(0, math.ceil(wait_s * 1000))):
                if descriptor == self._wake:
                    os.eventfd_read(self._wake)
                else:
                    self._hear(events)

    def _hear(self, events: int) -> None:
        """Take what has come on the socket: one message a call of paho, so as long as each call brings one."""
        now = time.monotonic()
        for _ in range(MESSAGES_A_ROUND):
            before = self._counters["messages"]
            self._session.handle(events, now)
            if self._counters["messages"] == before:
                return

    def _send_what_waits(self) -> None:
        """Commands and assignments that other threads left."""
        while True:
            with self._lock:
                if self._leadership.refusal:
                    self._outbox.clear()
                if not self._outbox or not self._connected:
                    break
                topic, payload = self._outbox.popleft()
            self._session.publish(topic, payload, 1, True)
        for call in self._calls.take():
            own = self._known(call.unit_id).topics
            self._counters["commands"] += 1
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.ResponseTopic = own.reply
            properties.CorrelationData = call.correlation
            properties.MessageExpiryInterval = max(1, math.ceil(call.timeout_s))
            if not self._session.publish(own.command, call.payload, 1, False, properties):
                call.fail()

    def _online(self) -> None:
        with self._lock:
            self._connected = True
            self._presence.listening(time.monotonic())
            self._outbox.clear()
            for unit in self._units.values():
                unit.assigned = None
            for unit in self._units.values():
                self._tell_assignment(unit)
            for unit_id in self._desired:
                self._tell_desired(unit_id)
        self._calls.open()
        if not self._leadership.refusal:
            self._session.publish(self._state_topic, self._leadership.said(), 1, True)

    def _goodbye(self) -> None:
        if not self._leadership.refusal:
            self._session.publish(self._state_topic, topics.STATE_OFFLINE, 1, True)

    def _offline(self) -> None:
        with self._lock:
            self._connected = False
        self._calls.close()

    def _tell_assignment(self, unit: LiveUnit) -> None:
        """Say the assignment again, retained: the broker may have forgotten it, or the unit got a new name."""
        experiment = self._assignments.get(unit.unit_id)
        if experiment is not None and unit.assigned != experiment:
            unit.assigned = experiment
            self._outbox.append((topics.assignment(self._topic_root, unit.name), experiment.encode()))

    def _tell_desired(self, unit_id: bytes) -> None:
        payload = json.dumps({**self._desired[unit_id], "epoch": self._stored.epoch}).encode()
        self._outbox.append((self._known(unit_id).topics.desired, payload))

    def _commit(self, now: float) -> None:
        self._next_commit = now + COMMIT_INTERVAL_S
        with self._lock:
            self._strangers.settle(now)
            due = [unit for unit in self._units.values() if unit.describe_due]
            told = [unit.unit_id for unit in self._units.values() if not unit.foreign]
            uninformed = told if self._leaders_due else []
            self._leaders_due = False
        for unit_id in uninformed:
            self._acknowledge(unit_id, {"epoch": self._stored.epoch})
        try:
            self._clocks.judge()
            if due:
                self._store.upsert_units([(unit.unit_id, unit.name, unit.describe) for unit in due])
            for unit in due:
                unit.describe_due = False
        except StoreError as error:
            self._log("error", f"a unit's description or clock is not stored yet: {error}", "describe")
        self._stored.commit()

    def _look_for_silent_units(self) -> None:
        with self._lock:
            if self._connected:
                self._presence.step(time.monotonic(), self._units.values())

    def _leave(self, topic: str, payload: bytes) -> None:
        """A retained message that this thread sends in a moment. Lock held."""
        self._outbox.append((topic, payload))

    def _acknowledge(self, unit_id: bytes, what: dict[str, Any]) -> None:
        """Lost when there is no connection: a unit that hears nothing asks."""
        if self._leadership.refusal:
            return
        if self._leaders and ("through" not in what or "from" in what):
            what = {**what, "leaders": self._leaders}
        payload = json.dumps({**what, "t": time.time()}).encode()
        self._session.publish(self._known(unit_id).topics.ack, payload, 1)

    # Messages

    def _message(self, message: Any) -> None:
        """A message came. Nothing that it contains may end the thread."""
        payload = message.payload
        self._counters["messages"] += 1
        self._counters["bytes"] += len(payload)
        topic = "?"
        try:
            topic = message.topic
            found = self._topics.get(topic)
            if found is None:
                parsed = topics.parse_unit_topic(self._data_root, topic)
                if parsed is None:
                    self._foreign(topic, payload, message.retain)
                    return
                if len(self._topics) >= TOPICS_MAXIMUM:
                    self._topics.clear()
                found = self._topics[topic] = (parsed, self._known(bytes.fromhex(parsed.unit_id)))
            parsed, unit = found
            if not message.retain:
                self._hear_of(unit)
            _HANDLERS[parsed.leaf](self, unit, parsed, message)
        except ValueError as error:
            self._counters["malformed"] += 1
            self._log("warning", f"message that cannot be read, dropped: topic {topic[:200]}: {error}", "malformed")
        except Exception as error:
            self._counters["internal_errors"] += 1
            self._log("error", f"topic {topic[:200]}: {type(error).__name__}: {error}", "internal")

    def _hear_of(self, unit: LiveUnit) -> None:
        unit.last_seen, unit.heard_at = time.time(), time.monotonic()
        if unit.silent:
            with self._lock:
                self._presence.heard(unit)

    def _known(self, unit_id: bytes) -> LiveUnit:
        with self._lock:
            unit = self._units.get(unit_id)
            if unit is None:
                unit = self._units[unit_id] = LiveUnit(unit_id, self._data_root)
            return unit

    def _tell(self, kind: str, unit: str, value: dict[str, Any]) -> None:
        for listener in self._listeners:
            listener(kind, unit, value)

    def _foreign(self, topic: str, payload: bytes, retained: bool) -> None:
        """What is not in our own tree: settings in the dialect, and what the broker says of itself."""
        if topic == DROPPED_TOPIC:
            self._broker_dropped = int(payload)
            return
        if topic == self._state_topic:
            if not retained:
                self._hear_leader(payload)
            return
        with self._lock:
            if self._strangers.hear(topic, payload, retained):
                return
        found = parse_setting(self._topic_root, topic)
        if found is None:
            if topic.startswith(self._data_root + "/"):
                raise ValueError("no such topic")
            return
        name, experiment, job, setting = found
        value = parse_value(payload)
        with self._lock:
            unit = self._by_name.get(name)
            if unit is None:
                return
            belongs = experiment in (topics.level(unit.experiment or experiment), topics.UNIVERSAL_EXPERIMENT)
            # retained settings of earlier experiments stay with the broker for ever
            if (retained and not belongs) or not unit.set_setting(job, setting, value):
                return
        self._tell("setting", unit.name, {"job": job, "setting": setting, "value": value})

    def _adopt(self, name: str, unit_id: bytes) -> LiveUnit:
        """A unit that is not stirbar's, under a name that no other has."""
        with self._lock:
            unit = self._by_name[name] = self._known(unit_id)
            unit.name, unit.describe_due = name, True
            unit.describe = {"unit": name, "unit_id": unit_id.hex(), "foreign": True, "channels": []}
        return unit

    def _show(self, unit: LiveUnit, record: tuple[Any, ...]) -> None:
        """A reading that came without a batch."""
        shown = reading_object(record)
        with self._lock:
            unit.latest[STREAM_IDS[shown["stream"]]] = record
        self._tell("reading", unit.name, shown)

    def _hear_leader(self, payload: bytes) -> None:
        again, text = self._leadership.hear(payload)
        if text:
            self._log("error", text, "leaders")
            self._make_event(None, "error", "two_leaders", text)
        if again:
            self._session.publish(self._state_topic, self._leadership.said(), 1, True)

    def _make_event(self, unit: LiveUnit | None, level: str, code: str, text: str) -> None:
        """An event of the leader's own, stored and told."""
        event = self._store.add_event(None if unit is None else unit.unit_id, level, "leader", code, text)
        self._tell("event", "" if unit is None else unit.name, event_object(event))

    def _on_describe(self, unit: LiveUnit, _: topics.UnitTopic, message: Any) -> None:
        describe = parse_object(message.payload)
        name = describe.get("unit")
        if not isinstance(name, str) or not 0 < len(name) <= 200:
            raise ValueError(f"description with the unit's name {name!r}")
        if describe.get("unit_id", unit.unit_id.hex()) != unit.unit_id.hex():
            raise ValueError(f"description of unit {describe['unit_id']!r}")
        with self._lock:
            if describe != unit.describe or name != unit.name:
                if self._by_name.get(topics.level(unit.name)) is unit:
                    del self._by_name[topics.level(unit.name)]
                unit.describe, unit.name, unit.describe_due = describe, name, True
            self._by_name[topics.level(name)] = unit
            self._tell_assignment(unit)
        self._tell("described", name, {})
        self._look_for_namesakes(unit)
        if message.retain:  # we are new here, the unit is not: it does not know that we were away
            run = str(describe.get("run_id"))
            self._stored.offer(unit.unit_id, bytes.fromhex(run) if topics.is_unit_id(run) else None)

    def _on_state(self, unit: LiveUnit, _: topics.UnitTopic, message: Any) -> None:
        state = parse_object(message.payload).get("state")
        if state not in STATES:
            raise ValueError(f"state {state!r}, expected one of {', '.join(STATES)}")
        with self._lock:
            unit.heard_at = time.monotonic()  # a retained word counts for a while too
            changed = self._presence.said(unit, state)
        if changed:
            self._look_for_namesakes(unit)

    def _tell_state(self, unit: LiveUnit) -> None:
        self._tell("state", unit.name, {"state": unit.state})

    def _on_applied(self, unit: LiveUnit, _: topics.UnitTopic, message: Any) -> None:
        if len(message.payload) > REPORT_BYTES:
            raise ValueError(f"report of {len(message.payload)} bytes, at most {REPORT_BYTES}")
        applied = parse_report(parse_object(message.payload))
        with self._lock:
            unit.applied = applied
        self._tell("applied", unit.name, applied)

    def _look_for_namesakes(self, unit: LiveUnit) -> None:
        """Two units with one name cannot be told apart in the dialect: say it, once for each pair."""
        if unit.state != "online":
            return
        with self._lock:
            others = list(self._units.values())
        for other in others:
            pair = frozenset((unit.unit_id, other.unit_id))
            if other is unit or other.name != unit.name or other.state != "online" or pair in self._conflicts:
                continue
            self._conflicts.add(pair)
            text = (
                f"two units call themselves '{unit.name}': {unit.unit_id.hex()} and {other.unit_id.hex()}; "
                "give one another name ([unit] name)"
            )
            self._log("error", text, "namesakes")
            self._make_event(unit, "error", "two_units_one_name", text)

    def _on_live(self, unit: LiveUnit, topic: topics.UnitTopic, message: Any) -> None:
        payload = message.payload
        if topic.stream == STATUS and not payload.startswith(b"STB1"):
            self._take_status(unit, parse_object(payload))
            return
        header, body = self._parse(unit, topic, payload)
        if not message.retain:
            self._clocks.note(unit, header)
        if topic.stream in READING_STREAMS and header.kind == KIND_READINGS:
            if header.record_size != READING.size or not header.count:
                raise ValueError(f"{header.count} readings of {header.record_size} bytes, expected {READING.size}")
            records = self._clocks.corrected(unit, list(READING.iter_unpack(body)))
            with self._lock:
                unit.latest[topic.stream] = records[-1]
                self._counters["live_readings"] += len(records)
            if self._listeners:
                for record in records:
                    self._tell("reading", unit.name, reading_object(record))
        elif topic.stream == RAW and header.kind in (KIND_TRACE, KIND_RAW_CHUNK):
            with self._lock:
                unit.add_raw(header, body)
        elif topic.stream == EVENT and header.kind == KIND_JSON:
            self._tell_events(unit, header, body)
        elif topic.stream == STATUS and header.kind == KIND_JSON:
            self._take_status(unit, parse_object(body))

    def _take_status(self, unit: LiveUnit, status: dict[str, Any]) -> None:
        with self._lock:
            unit.status = status
            self._presence.jobs_are(unit, status.get("jobs"))
        self._tell("status", unit.name, status)

    def _tell_events(self, unit: LiveUnit, header: Header, body: bytes) -> None:
        parsed = json.loads(body)
        for offset, event in enumerate(parsed if isinstance(parsed, list) else [parsed]):
            if isinstance(event, dict) and unit.new_event(header.run_id, header.first_sequence + offset):
                self._tell("event", unit.name, event_object(event))

    def _parse(self, unit: LiveUnit, topic: topics.UnitTopic, payload: bytes) -> tuple[Header, bytes]:
        """Header and body of a block that is what its topic says."""
        header, body = parse_batch(payload)
        if header.unit_id != unit.unit_id or header.stream != topic.stream:
            raise ValueError(f"block of unit {header.unit_id.hex()}, stream {header.stream}: not what the topic says")
        return header, body

    def _on_store(self, unit: LiveUnit, topic: topics.UnitTopic, message: Any) -> None:
        header, body = self._parse(unit, topic, message.payload)
        if self._stored.add(header, body) and header.stream == EVENT and header.kind == KIND_JSON:
            self._tell_events(unit, header, body)

    def _on_ask(self, unit: LiveUnit, _: topics.UnitTopic, message: Any) -> None:
        if not self._leadership.refusal:
            self._stored.answer(unit.unit_id, parse_object(message.payload))

    def _on_reply(self, unit: LiveUnit, _: topics.UnitTopic, message: Any) -> None:
        call = self._calls.find(getattr(message.properties, "CorrelationData", None), unit.unit_id)
        if call is None:
            self._counters["late_replies"] += 1
            return
        call.reply = parse_object(message.payload)
        call.done.set()

    def _ignore(self, unit: LiveUnit, _: topics.UnitTopic, message: Any) -> None:
        """Our own messages."""


_HANDLERS: dict[str, Callable[[Ingest, LiveUnit, topics.UnitTopic, Any], None]] = {
    topics.DESCRIBE: Ingest._on_describe,
    topics.STATE: Ingest._on_state,
    topics.LIVE: Ingest._on_live,
    topics.STORE: Ingest._on_store,
    topics.ASK: Ingest._on_ask,
    topics.REPLY: Ingest._on_reply,
    topics.APPLIED: Ingest._on_applied,
    topics.ACK: Ingest._ignore,
    topics.DESIRED: Ingest._ignore,
    topics.COMMAND: Ingest._ignore,
}
