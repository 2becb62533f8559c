"""Where a unit keeps its files and its sockets."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stirbar.core.config import Config


def unit_name(config: Config) -> str:
    """The unit's label: `[unit] name`, or the host name."""
    name = str(config.get("unit", "name") or "")
    return name or os.uname().nodename.split(".")[0]


# Exit status of a unit that is out of use: EX_CONFIG of sysexits.h. Zero would say that the work was done, and 1 that
# something is broken; the systemd units know this one as an end in good order after which nothing is started again.
OUT_OF_USE_STATUS = 78


def out_of_use(config: Config) -> str:
    """Why this unit runs nothing by its own files, in one sentence; empty when it is in use or they do not name it."""
    name = unit_name(config)
    if config.section("cluster.inventory").get(name, True):
        return ""
    where = config.source("cluster.inventory", name)
    return (
        f"unit '{name}' is out of use ({where}: [cluster.inventory] {name} = 0), so nothing runs; "
        f"`stirbar cluster activate {name}`, and start it again"
    )


def data_directory(config: Config) -> str:
    """Directory of what must survive a restart; created with mode 0700."""
    path = _data_path(config)
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


def _data_path(config: Config) -> str:
    configured = str(config.get("unit", "data_directory") or os.environ.get("STIRBAR_DATA", ""))
    return os.path.expanduser(configured or "~/.stirbar")


def desired_file(config: Config) -> str:
    """What the leader wants of this unit (core/desired.py); neither it nor its directory is made here."""
    return os.path.join(_data_path(config), "cluster", "desired.json")


def runtime_directory(config: Config) -> str:
    """Directory of sockets and locks; created with mode 0750.

    The first that can be used of: `[unit] runtime_directory`, $STIRBAR_RUN, /run/stirbar, $XDG_RUNTIME_DIR/stirbar and
    /tmp/stirbar-<uid>. Raises OSError, naming it, when the configured one cannot be made.
    """
    configured = str(config.get("unit", "runtime_directory") or os.environ.get("STIRBAR_RUN", ""))
    if configured:
        path = os.path.expanduser(configured)
        os.makedirs(path, mode=0o750, exist_ok=True)
        return path
    candidates = ["/run/stirbar"]
    if "XDG_RUNTIME_DIR" in os.environ:
        candidates.append(os.path.join(os.environ["XDG_RUNTIME_DIR"], "stirbar"))
    for path in candidates:
        try:
            os.makedirs(path, mode=0o750, exist_ok=True)
        except OSError:
            continue
        if os.access(path, os.W_OK | os.X_OK):
            return path
    path = f"/tmp/stirbar-{os.getuid()}"
    os.makedirs(path, mode=0o750, exist_ok=True)
    if os.stat(path).st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to another user; name a directory with [unit] runtime_directory")
    return path


# The kernel's limit on the path of a Unix socket, without the final zero.
SOCKET_PATH_BYTES = 107


def worker_address(config: Config) -> str:
    """Base address of the worker's two ZeroMQ sockets, without the final `/telemetry` or `/command`.

    Raises ValueError when the path would be longer than the kernel allows.
    """
    address = str(config.get("worker.config", "address") or "")
    if not address:
        address = f"ipc://{runtime_directory(config)}/{unit_name(config)}"
    if address.startswith("ipc://"):
        length = len(f"{address[6:]}/telemetry".encode())
        if length > SOCKET_PATH_BYTES:
            raise ValueError(
                f"the socket path {address[6:]}/telemetry has {length} bytes, the kernel allows {SOCKET_PATH_BYTES}; "
                "choose a shorter [unit] runtime_directory"
            )
    return address


def local_password_file(config: Config) -> str:
    """Where a leader on this machine leaves the broker password of this machine's own unit."""
    return os.path.join(data_directory(config), "mqtt_password")


def cluster_file(config: Config) -> str:
    """What a unit knows of the leader that it joined; certificate and password are beside it."""
    return os.path.join(data_directory(config), "cluster", "leader.json")


def leader_directory(config: Config) -> str:
    """Where a leader on this machine keeps its files; made, readable by its owner only, when it is not there."""
    chosen = str(config.get("leader.config", "data_directory"))
    path = os.path.expanduser(chosen) if chosen else os.path.join(data_directory(config), "leader")
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path
