"""A network that delivers twice and in another order: a TCP proxy that understands where MQTT packets begin."""

from __future__ import annotations

import contextlib
import socket
import threading

PUBLISH = 3
TWICE_EVERY = 3  # of the messages
HELD_EVERY = 4  # sent behind the one that follows
HOLD_S = 0.1  # a message behind which nothing comes


class Mischief:
    """`port` leads to `target`, both on this machine. Counts what it did: `twice`, `swapped`."""

    def __init__(self, target: int) -> None:
        self.twice = self.swapped = 0
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for one in [self._server, *self._open]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                return
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                source.settimeout(HOLD_S)
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        waiting, held, count = b"", b"", 0
        with contextlib.suppress(OSError):
            while True:
                try:
                    data = source.recv(65536)
                    if not data:
                        break
                except TimeoutError:
                    sink.sendall(held)
                    held = b""
                    continue
                waiting += data
                while packet := _first_packet(waiting):
                    waiting = waiting[len(packet) :]
                    if packet[0] >> 4 != PUBLISH:
                        sink.sendall(packet)
                        continue
                    count += 1
                    if not held and count % HELD_EVERY == 0:
                        held = packet
                        continue
                    sink.sendall(packet)
                    if count % TWICE_EVERY == 0:
                        sink.sendall(packet)
                        self.twice += 1
                    self.swapped += bool(held)
                    sink.sendall(held)
                    held = b""
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _first_packet(data: bytes) -> bytes:
    """The first whole MQTT packet of `data`, or nothing."""
    length = shift = 0
    for place in range(1, 5):
        if place >= len(data):
            return b""
        length |= (data[place] & 127) << shift
        if data[place] < 128:
            end = place + 1 + length
            return data[:end] if len(data) >= end else b""
        shift += 7
    raise OSError("no MQTT")
