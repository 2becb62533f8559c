"""A worker's two ZeroMQ endpoints: where they are, and who may come in over a network.

Over `ipc://` the file system decides who may connect. Over `tcp://` every connection is encrypted and both sides show a
key (CURVE): the server's is made at first use in `<data directory>/curve`, and a client is let in when its public key
lies in `curve/clients`. `stirbar worker --admit NAME` makes a key for a client.

Synchronization: none; each process uses its sockets from one thread.
"""

from __future__ import annotations

import os

import zmq

TYPE_CHECKING = False
if TYPE_CHECKING:
    Socket = zmq.Socket[bytes]
    Context = zmq.Context[zmq.Socket[bytes]]

NAMES = ("telemetry", "command")
LOCAL_CLIENT = "local"
ZAP_ENDPOINT = "inproc://zeromq.zap.01"
ZAP_DOMAIN = b"stirbar"


class SocketKeyError(ValueError):
    """A key that is missing or cannot be read; one sentence with the remedy."""


def endpoint(address: str, name: str) -> str:
    """The endpoint `name` below a base address: a path below an ipc directory; for tcp, telemetry is at the port named
    and command at the one after it."""
    if address.startswith("ipc://"):
        return f"{address}/{name}"
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + NAMES.index(name)}"


def key_directory(data_directory: str) -> str:
    """Where a worker keeps its keys."""
    return os.path.join(data_directory, "curve")


def make_client_key(directory: str, name: str) -> str:
    """Admit a client: a new key pair whose public half is kept in `<directory>/clients`; returns the client's file.

    Raises SocketKeyError for a name that is no file name or is taken.
    """
    if not name or any(not (letter.isalnum() or letter in "-_.") for letter in name) or name.startswith("."):
        raise SocketKeyError(f"'{name}' cannot name a client: use letters, digits, - _ and .")
    server_public, _ = server_keys(directory)
    public, secret = zmq.curve_keypair()
    path = os.path.join(directory, "clients", f"{name}.pub")
    try:
        _write_private(path, public.decode() + "\n")
    except FileExistsError:
        raise SocketKeyError(f"a client '{name}' is admitted already: remove {path} to withdraw it") from None
    return f"server {server_public.decode()}\npublic {public.decode()}\nsecret {secret.decode()}\n"


def server_keys(directory: str) -> tuple[bytes, bytes]:
    """Public and secret key of the worker (Z85), made at first use."""
    if not zmq.has("curve"):
        raise SocketKeyError("this libzmq has no CURVE: use an ipc:// address, or install pyzmq's own wheel")
    os.makedirs(os.path.join(directory, "clients"), mode=0o700, exist_ok=True)
    path = os.path.join(directory, "server.secret")
    try:
        with open(path, "rb") as file:
            secret = file.read().strip()
        return zmq.curve_public(secret), secret
    except FileNotFoundError:
        public, secret = zmq.curve_keypair()
        _write_private(path, secret.decode() + "\n")
        return public, secret
    except (ValueError, zmq.ZMQError):
        raise SocketKeyError(f"{path} holds no key: remove it, and admit every client again") from None


def _write_private(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)


class Gate:
    """Answers libzmq's question who may come in (ZAP, RFC 27): clients whose public key was admitted.

    Register `socket` with the poller and call `answer()` when it is readable. `refused` counts those sent away.
    """

    def __init__(self, context: Context, directory: str) -> None:
        self.directory = directory
        self.refused = 0
        self.public, self.secret = server_keys(directory)
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind(ZAP_ENDPOINT)
        local = os.path.join(directory, f"{LOCAL_CLIENT}.client")
        if not os.path.exists(local):
            _write_private(local, make_client_key(directory, LOCAL_CLIENT))

    def secure(self, socket: Socket) -> None:
        """Let only admitted clients connect to a socket that is about to be bound."""
        socket.curve_server = True
        socket.curve_secretkey = self.secret
        socket.zap_domain = ZAP_DOMAIN

    def answer(self) -> None:
        """Decide on every connection that waits."""
        while self.socket.poll(0):
            version, identifier, _, _, _, mechanism, *credentials = self.socket.recv_multipart()
            known = mechanism == b"CURVE" and len(credentials) == 1 and self._admitted(credentials[0])
            self.refused += not known
            status, text = (b"200", b"OK") if known else (b"400", b"key not admitted")
            self.socket.send_multipart([version, identifier, status, text, b"", b""])

    def _admitted(self, key: bytes) -> bool:
        """Whether a file in `clients` holds this key; read anew, so that admitting and withdrawing act at once."""
        from zmq.utils import z85

        wanted = z85.encode(key)
        directory = os.path.join(self.directory, "clients")
        for name in os.listdir(directory):
            with open(os.path.join(directory, name), "rb") as file:
                if file.read(64).strip() == wanted:
                    return True
        return False


def connect(socket: Socket, address: str, name: str, key_file: str) -> None:
    """Connect to a worker's endpoint; over tcp with the keys in `key_file` (the text that `make_client_key` gave).

    Raises SocketKeyError when that file is missing or holds no keys.
    """
    if not address.startswith("ipc://"):
        try:
            with open(key_file, "rb") as file:
                keys = dict(line.split() for line in file.read().splitlines() if line.strip())
            socket.curve_serverkey = keys[b"server"]
            socket.curve_publickey, socket.curve_secretkey = keys[b"public"], keys[b"secret"]
        except FileNotFoundError:
            raise SocketKeyError(
                f"{address} wants a key, and there is none at {key_file}: "
                "`stirbar worker --admit NAME` on the unit makes one"
            ) from None
        except (KeyError, ValueError, zmq.ZMQError):
            raise SocketKeyError(f"{key_file} holds no keys of a client (lines server, public and secret)") from None
    socket.connect(endpoint(address, name))


def local_key_file(data_directory: str) -> str:
    """The key that a worker makes for clients of its own machine and user."""
    return os.path.join(key_directory(data_directory), f"{LOCAL_CLIENT}.client")
