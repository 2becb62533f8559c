"""HTTP/1.1 server for a WSGI application: a thread per connection, TLS, limits, and hand-over of live connections.

What the standard library's wsgiref leaves out and a page needs: connections kept alive, the TLS handshake in the
connection's own thread (a client that stalls in it stalls nobody), time limits, a limit on the body and on the number
of connections, and `environ["stirbar.hand_over"]`: the application sets `.receiver` on it, and once the headers are
sent the socket belongs to that receiver and the thread ends.
"""

from __future__ import annotations

import io
import socket
import socketserver
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote_to_bytes

MAXIMUM_BODY_BYTES = 64 * 1024
MAXIMUM_CONNECTIONS = 256
IDLE_TIMEOUT_S = 20.0  # between two requests of a connection, and between two reads within one
HANDSHAKE_TIMEOUT_S = 10.0
TLS_HANDSHAKE_BYTE = 0x16

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class HandOver:
    """Where the application asks for the connection's socket: `receiver(socket)` is called after the headers."""

    __slots__ = ("receiver",)

    def __init__(self) -> None:
        self.receiver: Callable[[socket.socket], None] | None = None


class _Response:
    """The writing half of one request: status and headers first, then the body in the framing that fits."""

    def __init__(self, handler: _Handler) -> None:
        self.handler = handler
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        self.sent = False
        self.chunked = False
        self.bodiless = False

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        if exc_info and self.sent:
            raise exc_info[1].with_traceback(exc_info[2])
        self.status, self.headers = status, list(headers)
        return self.write

    def send_head(self, taken_over: bool = False) -> None:
        handler = self.handler
        self.sent = True
        names = {name.lower() for name, _ in self.headers}
        code = int(self.status.split(" ", 1)[0])
        self.bodiless = handler.command == "HEAD" or code in (204, 304) or code < 200
        headers = [item for item in self.headers if not (taken_over and item[0].lower() == "content-length")]
        if taken_over:
            handler.close_connection = True
        elif "content-length" not in names and not self.bodiless:
            if handler.request_version == "HTTP/1.1":
                self.chunked = True
                headers.append(("Transfer-Encoding", "chunked"))
            else:
                handler.close_connection = True
        if handler.close_connection:
            headers.append(("Connection", "close"))
        lines = [f"HTTP/1.1 {self.status}", f"Date: {handler.date_time_string()}"]
        lines += [f"{name}: {value}" for name, value in headers]
        handler.wfile.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    def write(self, data: bytes) -> None:
        if not self.sent:
            self.send_head()
        if not data or self.bodiless:
            return
        self.handler.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)

    def finish(self) -> None:
        if not self.sent:
            self.send_head()
        if self.chunked:
            self.handler.wfile.write(b"0\r\n\r\n")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_TIMEOUT_S
    disable_nagle_algorithm = True
    server: Server

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, TimeoutError, ssl.SSLError):
            self.close_connection = True  # the client went away or stalled: nothing is left to say to it

    def handle_one_request(self) -> None:
        try:
            self.raw_requestline = self.rfile.readline(65537)
        except TimeoutError:
            self.close_connection = True
            return
        if not self.raw_requestline:
            self.close_connection = True
            return
        if len(self.raw_requestline) > 65536:
            self.requestline = self.request_version = self.command = ""
            self.send_error(414)
            return
        if not self.parse_request():
            return
        body = self._read_body()
        if body is not None:
            self._run(body)

    def _read_body(self) -> bytes | None:
        """The request's body, or None when it was refused."""
        if self.headers.get("Transfer-Encoding"):
            self.send_error(411, "send the body with a Content-Length")
            return None
        try:
            length = int(self.headers.get("Content-Length") or 0)
        except ValueError:
            length = -1
        if length < 0:
            self.send_error(400, "Content-Length is not a number")
            return None
        if length > MAXIMUM_BODY_BYTES:
            self.send_error(413, f"the body is larger than {MAXIMUM_BODY_BYTES} bytes")
            return None
        body = self.rfile.read(length) if length else b""
        if len(body) < length:
            raise ConnectionError("the body ended early")
        return body

    def _run(self, body: bytes) -> None:
        hand_over = HandOver()
        response = _Response(self)
        result = self.server.application(self._environ(body, hand_over), response.start)
        try:
            if hand_over.receiver is not None:
                response.send_head(taken_over=True)
                self.server.release(self.connection)
                hand_over.receiver(self.connection)
                return
            for part in result:
                response.write(part)
            response.finish()
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()

    def _environ(self, body: bytes, hand_over: HandOver) -> dict[str, Any]:
        path, _, query = self.path.partition("?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": self.command,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query,
            "SERVER_NAME": self.server.host,
            "SERVER_PORT": str(self.server.port),
            "SERVER_PROTOCOL": self.request_version,
            "REMOTE_ADDR": self.client_address[0],
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "https" if self.server.tls else "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "stirbar.hand_over": hand_over,
        }
        for name, value in self.headers.items():
            key = "HTTP_" + name.upper().replace("-", "_")
            if "_" not in name and key not in ("HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"):
                environ[key] = f"{environ[key]},{value}" if key in environ else value
        return environ

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.close_connection = True
        text = (message or self.responses.get(code, ("error", ""))[0]).replace('"', "'")
        body = f'{{"error":"{text}","field":null,"remedy":null}}'.encode("ascii", "replace")
        head = (
            f"HTTP/1.1 {code} {self.responses.get(code, ('error', ''))[0]}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        )
        self.wfile.write(head.encode("latin-1") + body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a request line may hold a one-time token, and none of them belongs in a log."""


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Serves one WSGI application.

    `host` and `port` say where it listens (port 0: a free one is chosen), `tls` a server-side context or None.

    Synchronization: start, stop and release may be called from any thread; the application is called from many.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, application: Application, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.application = application
        self.tls = tls
        self.host = host
        self.refused = 0
        self.failures = 0
        self._open: set[socket.socket] = set()  # guarded by _lock
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)
        self.port: int = self.server_address[1]

    def start(self) -> None:
        """Accept connections in a thread of their own."""
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name="http", daemon=True)
        self._thread.start()

    def stop(self, grace_s: float = 0.5) -> None:
        """Stop accepting, give requests under way a moment, then close what is left. May be called twice."""
        if self._thread is None:
            return
        self.shutdown()
        self._thread.join()
        self._thread = None
        self.server_close()
        deadline = time.monotonic() + grace_s
        for connection in self._connections():
            self._shut(connection, socket.SHUT_RD)  # an idle one ends at once, a busy one can still answer
        while self._connections() and time.monotonic() < deadline:
            time.sleep(0.01)
        for connection in self._connections():
            self._shut(connection, socket.SHUT_RDWR)

    def release(self, connection: socket.socket) -> None:
        """Forget a connection that was handed over: from now on its receiver closes it."""
        with self._lock:
            self._open.discard(connection)

    def connections(self) -> int:
        """How many connections have a thread now."""
        return len(self._connections())

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            full = len(self._open) >= MAXIMUM_CONNECTIONS
            if not full:
                self._open.add(request)
        if full:
            self.refused += 1
            super().shutdown_request(request)
            return
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        connection = request
        if self.tls is not None:
            connection = self._handshake(request)
            if connection is None:
                return
        try:
            _Handler(connection, client_address, self)
        finally:
            if connection is not request and connection in self._connections():  # not handed over
                self.release(connection)
                connection.close()

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            ours = request in self._open
            self._open.discard(request)
        if ours:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.failures += 1
        error = sys.exc_info()[1]
        print(f"web: a connection ended with {type(error).__name__}: {error}", file=sys.stderr)

    def _handshake(self, request: socket.socket) -> ssl.SSLSocket | None:
        """The connection with TLS, or None: then it spoke plain HTTP (and was sent to https) or failed."""
        assert self.tls is not None
        request.settimeout(HANDSHAKE_TIMEOUT_S)
        try:
            first = request.recv(1, socket.MSG_PEEK)
            if first and first[0] != TLS_HANDSHAKE_BYTE:
                self._send_to_https(request)
                return None
            connection = self.tls.wrap_socket(request, server_side=True)  # takes the descriptor of `request`
        except OSError:
            return None
        with self._lock:
            self._open.discard(request)
            self._open.add(connection)
        return connection

    def _send_to_https(self, request: socket.socket) -> None:
        lines = request.recv(8192).decode("latin-1").split("\r\n")
        hosts = [line[5:].strip() for line in lines if line.lower().startswith("host:")]
        host = hosts[0] if hosts and hosts[0].replace(".", "").replace(":", "").replace("-", "").isalnum() else ""
        location = f"Location: https://{host}/\r\n" if host else ""
        request.sendall(
            f"HTTP/1.1 {301 if host else 400} This page is served over https\r\n{location}"
            "Content-Length: 0\r\nConnection: close\r\n\r\n".encode("latin-1")
        )

    def _connections(self) -> list[socket.socket]:
        with self._lock:
            return list(self._open)

    @staticmethod
    def _shut(connection: socket.socket, how: int) -> None:
        try:
            connection.shutdown(how)
        except OSError:
            pass
