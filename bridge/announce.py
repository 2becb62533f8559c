"""What a machine says of itself by mDNS: a file for the system's avahi, because our own processes listen on no port."""

from __future__ import annotations

import hashlib
import importlib.resources
import os
import ssl
import string
from pathlib import Path
from xml.sax.saxutils import escape

from stirbar.bridge.credentials import write_private
from stirbar.core import identity, paths
from stirbar.core.detection import read_tree
from stirbar.core.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stirbar.core.config import Config

AVAHI_FILE = "/etc/avahi/services/stirbar.service"
LEADER_TYPE = "_stirbar._tcp"
UNIT_TYPE = "_stirbar-unit._tcp"
NO_PORT = 9  # discard: what avahi's own _workstation._tcp says, for a thing that is there and serves nothing
LONGEST_RECORD = 200  # bytes of one; DNS takes 255
NEW, JOINED = "new", "joined"


class AnnounceError(Exception):
    """The file cannot be written; the text says why, `remedy` what to do."""

    def __init__(self, text: str, remedy: str) -> None:
        super().__init__(text)
        self.remedy = remedy


def announcement(config: Config) -> str:
    """The file's text: of the leader with its port and its authority's fingerprint, or of a unit."""
    authority = _authority(config)
    if authority is not None:
        fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(authority.read_text())).hexdigest()
        name, kind, port = f"stirbar leader {os.uname().nodename}", LEADER_TYPE, int(config.get("web.config", "port"))
        records = {"fingerprint": fingerprint, "version": VERSION}
    else:
        unit = paths.unit_name(config)
        unit_id = identity.unit_id(paths.data_directory(config)).hex()
        # the id keeps two fresh machines of one image apart, which avahi would rename in turns
        name, kind, port = f"stirbar {unit} {unit_id[:8]}", UNIT_TYPE, NO_PORT
        state = JOINED if os.path.exists(paths.cluster_file(config)) else NEW
        board = read_tree("model") or os.uname().machine
        records = {"unit": unit, "unit_id": unit_id, "version": VERSION, "board": board, "state": state}
    lines = [
        f"    <txt-record>{escape(f'{key}={value}'[:LONGEST_RECORD])}</txt-record>" for key, value in records.items()
    ]
    template = (importlib.resources.files("stirbar.core") / "deploy" / "stirbar-avahi.xml").read_text()
    return string.Template(template).substitute(name=escape(name), type=kind, port=port, records="\n".join(lines))


def _authority(config: Config) -> Path | None:
    """The certificate of the leader's authority on this machine; None where there is no leader that units can join."""
    chosen = str(config.get("leader.config", "data_directory"))
    directory = Path(chosen).expanduser() if chosen else Path(paths.data_directory(config)) / "leader"
    path = directory / "tls" / "ca.pem"
    return path if path.exists() else None


def announce(config: Config, path: str = AVAHI_FILE) -> str:
    """Write the file, which avahi then sees by itself; returns its path. Raises AnnounceError."""
    if not os.path.isdir(os.path.dirname(path)):
        raise AnnounceError(f"there is no {os.path.dirname(path)}", "`sudo apt install avahi-daemon`, then try again")
    try:
        write_private(Path(path), announcement(config))
        os.chmod(path, 0o644)  # nothing in it is secret, and avahi has a user of its own
    except PermissionError:
        raise AnnounceError(f"{path} belongs to root", "run it by sudo, with the services' STIRBAR_DATA") from None
    return path
