"""The MQTT 5 connection, driven by the relay's own poll loop: no thread, no blocking connect.

One paho client object per connection: paho would otherwise send again by itself what a broken connection left in its
memory, before the leader has said from where to go on. What must not be lost is in the spool, not here.

Synchronization: one thread.
"""

from __future__ import annotations

import errno
import os
import random
import socket

import paho.mqtt.client as mqtt
import zmq
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from stirbar.bridge.leaders import Leaders
    from stirbar.bridge.log import Log

KEEPALIVE_S = 15
CONNECT_TIMEOUT_S = 10.0  # for TCP, and again for the broker's answer
FIRST_DELAY_S = 0.25
STABLE_S = 5.0  # a connection that lasted this long starts the back-off afresh
LIVE_BACKLOG_BYTES = 256 << 10  # QoS 0 is dropped (counted) while more than this waits for a stalled socket
REFUSED_REMEDY = "the leader must let this unit in: name its account with [mqtt] username and password_file"
IDLE, CONNECTING, GREETING, ONLINE = range(4)


class Broker:
    """Where the broker is and who we are to it. Synchronization: immutable by convention."""

    __slots__ = (
        "ca_file",
        "certificate_file",
        "client_id",
        "host",
        "key_file",
        "password",
        "port",
        "use_tls",
        "username",
    )

    def __init__(
        self,
        host: str,
        port: int,
        client_id: str,
        username: str = "",
        password: str = "",
        use_tls: bool = False,
        ca_file: str = "",
        certificate_file: str = "",
        key_file: str = "",
    ) -> None:
        self.host = host
        self.port = port
        self.client_id = client_id
        self.username = username
        self.password = password
        self.use_tls = use_tls
        self.ca_file = ca_file
        self.certificate_file = certificate_file
        self.key_file = key_file


def reply_properties(correlation: bytes) -> Properties:
    """Properties of the answer to an MQTT 5 request."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if correlation:
        properties.CorrelationData = correlation
    return properties


class _Client(mqtt.Client):
    """paho on a TCP connection that is already there; its own connect would block the poll loop for seconds."""

    ready: socket.socket | None = None

    def _create_socket_connection(self) -> socket.socket:
        if self.ready is None:
            raise OSError(errno.ENOTCONN, "no connection prepared")
        return self.ready


class Session:
    """Connects for ever, with exponential back-off and jitter up to `reconnect_maximum_s`; with `leaders`, to the first
    of their places that takes us.

    Callbacks: `on_online()`, `on_offline()`, `on_message(message)`, `on_puback(mid)`; all are called from `handle` and
    `step`. Subscriptions are made at each connect, with clean start, and retained `…/set` messages are not asked for.
    Counters: `connects`, `live_dropped`.
    """

    def __init__(
        self,
        broker: Broker,
        will: tuple[str, bytes] | None,
        subscriptions: list[tuple[str, bool]],
        reconnect_maximum_s: float,
        log: Log,
        on_online: Callable[[], None],
        on_offline: Callable[[], None],
        on_message: Callable[[Any], None],
        on_puback: Callable[[int], None],
        leaders: Leaders | None = None,
    ) -> None:
        self.broker = broker
        self.state = IDLE
        self.connects = self.live_dropped = 0
        self._will = will
        self._subscriptions = subscriptions
        self._maximum_s = max(reconnect_maximum_s, FIRST_DELAY_S)
        self._log = log
        self._on_online = on_online
        self._on_offline = on_offline
        self._on_message = on_message
        self._on_puback = on_puback
        self._client: _Client | None = None
        self._socket: socket.socket | None = None
        self._leaders = leaders
        self._place = (broker.host, broker.port)
        self._addresses: list[tuple[Any, Any, tuple[str, int]]] = []  # family, address, place
        self._delay_s = FIRST_DELAY_S
        self._due = 0.0  # when something must be done even if nothing is heard
        self._since = 0.0
        self._backlog = 0
        self._unanswered = 0  # messages of this connection that paho has not reported as published
        self._random = random.Random(os.urandom(8))

    # What the poll loop asks

    @property
    def online(self) -> bool:
        return self.state == ONLINE

    def local_address(self) -> str:
        """Our address in the connection, IPv4 as text; nothing without one."""
        wire: Any = self._client.socket() if self._client is not None else None
        return str(wire.getsockname()[0]) if wire is not None and wire.family == socket.AF_INET else ""

    @property
    def due(self) -> float:
        """Time (monotonic) of the next `step`."""
        return self._due

    def interest(self) -> tuple[int, int]:
        """(descriptor, zmq poll flags) to wait for; (-1, 0) when there is none."""
        if self.state == CONNECTING and self._socket is not None:
            return self._socket.fileno(), zmq.POLLOUT
        wire = self._client.socket() if self._client is not None else None
        if self._client is not None and wire is not None:
            return wire.fileno(), zmq.POLLIN | (zmq.POLLOUT if self._client.want_write() else 0)
        return -1, 0

    def handle(self, events: int, now: float) -> None:
        """The descriptor is ready."""
        if self.state == CONNECTING:
            self._finish_tcp(now)
            return
        if self._client is not None:
            self._serve(self._client, events)
            self._look(now)

    def _serve(self, client: _Client, events: int) -> None:
        """Let paho read and write; a callback may end the connection."""
        if events & (zmq.POLLIN | zmq.POLLERR):
            client.loop_read()
            while self._client is client and self.broker.use_tls and _pending(client.socket()):
                client.loop_read()
        if events & zmq.POLLOUT and self._client is client:
            client.loop_write()

    def step(self, now: float) -> None:
        """Begin a connection, keep one alive, or give one up, as the time demands."""
        if now < self._due:
            return
        if self.state == IDLE:
            self._begin(now)
        elif self.state in (CONNECTING, GREETING):
            self._fail(now, "no answer")
        elif self._client is not None:
            self._client.loop_misc()
            self._due = now + 1.0
            self._look(now)

    # Connecting

    def _begin(self, now: float) -> None:
        if not self._addresses:
            wrong = self._find_addresses()
            if wrong:
                self._fail(now, wrong)
                return
        family, address, self._place = self._addresses.pop(0)
        self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.state = CONNECTING
        self._due = now + CONNECT_TIMEOUT_S
        code = self._socket.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            self._fail(now, os.strerror(code))

    def _find_addresses(self) -> str:
        """Look up all places; what is wrong, when there is nowhere to go."""
        wrong = ""
        for place in self._leaders.places if self._leaders is not None else [self._place]:
            try:
                found = socket.getaddrinfo(*place, type=socket.SOCK_STREAM)
            except OSError as error:
                wrong = str(error)
                continue
            self._addresses += [(family, address, place) for family, _, _, _, address in found]
        return "" if self._addresses else wrong

    def _finish_tcp(self, now: float) -> None:
        assert self._socket is not None
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._fail(now, os.strerror(code))
            return
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=self.broker.client_id,
            protocol=mqtt.MQTTv5,
            reconnect_on_failure=False,
        )
        client.ready = self._socket
        if self._will is not None:
            client.will_set(self._will[0], self._will[1], qos=1, retain=True)
        client.on_connect = self._connected
        client.on_message = self._message
        client.on_publish = self._published
        if self.broker.username:
            client.username_pw_set(self.broker.username, self.broker.password)
        self._client = client
        self.state = GREETING
        self._due = now + CONNECT_TIMEOUT_S
        try:
            if self.broker.use_tls:
                client.tls_set(
                    self.broker.ca_file or None, self.broker.certificate_file or None, self.broker.key_file or None
                )
            client.connect(*self._place, KEEPALIVE_S, clean_start=True)
        except (OSError, ValueError) as error:
            self._fail(now, str(error))

    def _connected(self, client: mqtt.Client, _: object, __: object, reason: Any, ___: object) -> None:
        if client is not self._client or reason.is_failure:
            self._log("warning", f"broker refuses the connection: {reason} ({REFUSED_REMEDY})", "refused")
            return
        client.subscribe(
            [
                (pattern, SubscribeOptions(qos=1, retainHandling=0 if retained else 2))
                for pattern, retained in self._subscriptions
            ]
        )
        self.state = ONLINE
        self.connects += 1
        self._backlog = self._unanswered = 0
        where = f"{self._place[0]}:{self._place[1]}"
        self._log("info", f"connected to the broker at {where}", f"online {where}")

    def _look(self, now: float) -> None:
        """After paho did something: did the connection come, or go?"""
        if self._client is None:
            return
        if self._client.socket() is None:
            self._fail(now, "connection closed")
        elif self.state == ONLINE and not self._since:
            self._since = now
            self._due = now + 1.0
            self._addresses = []
            if self._leaders is not None:
                self._leaders.prefer(self._place)
            self._on_online()

    def _fail(self, now: float, why: str) -> None:
        was_online = self._since > 0
        if self.state in (CONNECTING, GREETING) and self._addresses:
            self._drop()
            self._say_failed(why)
            self._due = now
            return
        self._drop()
        self._addresses = []
        if was_online and now - self._since > STABLE_S:
            self._delay_s = FIRST_DELAY_S
        wait = self._delay_s * self._random.uniform(0.5, 1.0)
        self._delay_s = min(self._delay_s * 2, self._maximum_s)
        self._due = now + wait
        self._since = 0.0
        self._say_failed(why)
        if was_online:
            self._on_offline()

    def _say_failed(self, why: str) -> None:
        where = f"{self._place[0]}:{self._place[1]}"
        text = f"no broker at {where} ({why}); trying again for ever, at most {self._maximum_s:g} s apart"
        self._log("warning", text, f"fail {where}")

    def move_on(self, now: float, why: str) -> None:
        """Who answers here does not lead: look for the leader elsewhere, if another place is known."""
        if self._leaders is not None and len(self._leaders.places) > 1 and self.state == ONLINE:
            self._leaders.avoid(self._place)
            self._fail(now, why)

    def _drop(self) -> None:
        client, self._client = self._client, None
        wire = client.socket() if client is not None else None
        if wire is not None:
            wire.close()
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self.state = IDLE
        self._backlog = 0

    # Messages

    def _message(self, _: mqtt.Client, __: object, message: Any) -> None:
        self._on_message(message)

    def _published(self, client: mqtt.Client, _: object, mid: int, reason: Any, __: object) -> None:
        if client is not self._client:
            return
        self._unanswered -= 1
        if reason.is_failure:
            self._log("error", f"the broker refuses a message: {reason}", "puback")
        else:
            self._on_puback(mid)

    def publish(
        self, topic: str, payload: bytes, qos: int = 0, retain: bool = False, properties: Properties | None = None
    ) -> int:
        """Send; returns the message's number, or 0 when it was not sent (offline, or QoS 0 on a stalled socket)."""
        client = self._client
        if client is None or self.state != ONLINE:
            return 0
        if not client.want_write():
            self._backlog = 0
        elif qos == 0 and self._backlog > LIVE_BACKLOG_BYTES:
            self.live_dropped += 1
            return 0
        self._backlog += len(payload) + len(topic)
        self._unanswered += 1
        return int(client.publish(topic, payload, qos, retain, properties).mid)

    def close(self, now: Callable[[], float], seconds: float) -> None:
        """Say goodbye: what was published is acknowledged, then disconnect (the will is not sent); at most so long.

        paho holds back QoS 1 messages beyond 20 unacknowledged ones, but not the DISCONNECT, which must therefore come
        after them. Closing a socket with unread bytes resets the connection, and a broker that sees a reset drops what
        it had not read yet, the goodbye among it, and sends the will: what comes in is read until the broker closes.
        """
        client = self._client
        wire = client.socket() if client is not None else None
        if client is not None and wire is not None and self.state == ONLINE:
            client.on_message = None  # too late to do anything for anybody
            end = now() + seconds
            with socket.socket(fileno=os.dup(wire.fileno())) as held:  # paho closes its own after the DISCONNECT
                self._drain(client, now, end, lambda: self._unanswered <= 0)
                client.disconnect()
                self._drain(client, now, end, lambda: False)
                _read_to_end(held, now, end)
        self._drop()
        self._since = 0.0

    def _drain(self, client: _Client, now: Callable[[], float], end: float, done: Callable[[], bool]) -> None:
        """Write and read until `done`, until paho closes the connection, or until `end`."""
        poller = zmq.Poller()
        while (wire := client.socket()) is not None and not done() and now() < end:
            poller.register(wire.fileno(), zmq.POLLIN | (zmq.POLLOUT if client.want_write() else 0))
            for _, events in poller.poll(max(1, int((end - now()) * 1000))):
                self._serve(client, events)


def _read_to_end(held: socket.socket, now: Callable[[], float], end: float) -> None:
    """Read and forget until the other side closes, or until `end`."""
    try:
        while (left := end - now()) > 0:
            held.settimeout(left)
            if not held.recv(65536):
                return
    except OSError:
        return  # late, or reset by the other side: nothing more can be said


def _pending(reader: Any) -> int:
    """Bytes that TLS has decrypted but nobody has read: poll does not see them."""
    return int(reader.pending()) if hasattr(reader, "pending") else 0
