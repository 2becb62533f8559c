"""A fresh machine as bootstrap sees it: what it is, and commands and files there, as root where that is needed."""

from __future__ import annotations

import hashlib
import re
import shlex
from typing import TYPE_CHECKING, NamedTuple

from stirbar.bridge.credentials import check_unit_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stirbar.bridge.enrolment import Enrolment
    from stirbar.bridge.parcel import Parcels
    from stirbar.bridge.ssh import HostKey, KnownHosts, Session, Target
    from stirbar.core.config import Config

OPT = "/opt/stirbar"
DATA = "/var/lib/stirbar"
ETC = "/etc/stirbar"
RESTART = (
    "/run/stirbar-bootstrap.restart"  # something changed that running services have not seen; gone at boot, as they
)
MACHINES = {"amd64": ["x86_64"], "arm64": ["aarch64"], "armhf": ["armv7l", "armv6l"]}  # of Debian's architectures
SUFFIX_DIGITS = (4, 6, 8)

FACTS = r"""
say() { printf '%s=%s\n' "$1" "$2"; }
tree=/sys/firmware/devicetree/base
say uid "$(id -u)"
say kernel "$(uname -m)"
say architecture "$(dpkg --print-architecture 2>/dev/null)"
say distribution "$(. /etc/os-release 2>/dev/null && printf %s "$PRETTY_NAME")"
say python "$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)"
say model "$(tr -d '\0' <$tree/model 2>/dev/null)"
say serial "$(tr -d '\0' <$tree/serial-number 2>/dev/null)"
say mac "$(cat /sys/class/net/e*/address /sys/class/net/w*/address 2>/dev/null | head -n 1)"
say machine_id "$(cat /etc/machine-id 2>/dev/null)"
say memory_kb "$(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo 2>/dev/null)"
say free_kb "$(df -Pk /opt / 2>/dev/null | awk 'NR == 2 { print $4 }')"
say time "$(date +%s)"
say boot_config "$(ls /boot/firmware/config.txt /boot/config.txt 2>/dev/null | head -n 1)"
"""


class Refusal(Exception):
    """A step cannot be done; the text says what failed, `remedy` what to do."""

    def __init__(self, text: str, remedy: str) -> None:
        super().__init__(text)
        self.remedy = remedy


class Plan(NamedTuple):
    """What is the same for all hosts of one bootstrap. The functions may be called from any thread."""

    config: Config
    enrolment: Enrolment
    known_hosts: KnownHosts
    own_key: Path
    parcels: Parcels
    confirm: Callable[[Target, list[HostKey]], HostKey | None]  # which of a host's keys is the right one
    password: Callable[[Target], str]  # empty: none is given
    dry_run: bool = False
    replace_default_password: bool = False
    name: str = ""


class Host:
    """One machine and what is known of it so far.

    Synchronization: one thread.
    """

    def __init__(self, plan: Plan, target: Target, directory: Path) -> None:
        self.plan = plan
        self.target = target
        self.directory = directory  # private and short-lived: of the connection
        self.session: Session | None = None
        self.host_key: HostKey | None = None
        self.password = ""
        self.sudo = ""  # before a command of root's; "?": with the password
        self.facts: dict[str, str] = {}
        self.unit = ""
        self.notes: list[str] = []

    def user(self, script: str, data: bytes = b"") -> str:
        """What a script prints; Refusal with what it said when it fails."""
        assert self.session is not None
        done = self.session.run(script, data)
        if done.returncode:
            said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
            raise Refusal(f"status {done.returncode}: {' / '.join(said[-3:])[-400:] or 'no word'}", "see what it says")
        return done.stdout.decode(errors="replace")

    def root(self, script: str, data: bytes = b"") -> str:
        """The same as root."""
        if self.sudo == "?":
            # -k: ask in any case, so that the first line of what we send is never taken for something else
            return self.user(f"sudo -k -S -p '' sh -c {shlex.quote(script)}", self.password.encode() + b"\n" + data)
        return self.user(f"{self.sudo} sh -c {shlex.quote(script)}" if self.sudo else script, data)

    def put(self, path: str, content: bytes, mode: str = "644") -> None:
        """Write a file of root's, whole or not at all."""
        quoted, part = shlex.quote(path), shlex.quote(path + ".part")
        self.root(
            f"umask 077; mkdir -p -m 755 {shlex.quote(path.rpartition('/')[0])} && cat >{part} && "
            f"chmod {mode} {part} && mv {part} {quoted}",
            content,
        )

    def differing(self, files: dict[str, bytes]) -> list[str]:
        """Which of these are not there, or not so."""
        there = self.root(f"sha256sum {' '.join(map(shlex.quote, files))} 2>/dev/null || true")
        found = {name: digest for digest, _, name in (line.partition("  ") for line in there.splitlines())}
        return [path for path, content in files.items() if found.get(path) != hashlib.sha256(content).hexdigest()]

    def wants_restart(self) -> None:
        """Note there, before a change, that services will have to start again: also when we are interrupted."""
        self.root(f"touch {RESTART}")

    def read_facts(self) -> None:
        """What machine this is."""
        lines = self.user(FACTS).splitlines()
        self.facts = {name: value.strip() for name, _, value in (line.partition("=") for line in lines)}

    @property
    def machines(self) -> list[str]:
        """What wheels call this machine's architecture, the likeliest first."""
        names = MACHINES.get(self.facts["architecture"], [])
        return sorted(names, key=lambda name: name != self.facts["kernel"])

    @property
    def unit_id(self) -> str:
        """The id that the unit has already; empty for one that never ran."""
        return self.root(f"cat {DATA}/unit_id 2>/dev/null || true").strip()


def board_name(model: str) -> str:
    """A short word for a board: `zero2w` of "Raspberry Pi Zero 2 W Rev 1.0"; `unit` where there is no device tree."""
    words = re.sub(r"^Raspberry Pi | Rev [\d.]+$", "", model).lower()
    if match := re.match(r"compute module (\d+\w*)", words):
        return f"cm{match[1]}"
    if match := re.match(r"(\d+)( model ([ab]))?( plus)?", words):
        return f"pi{match[1]}{'a' if match[3] == 'a' else ''}{'plus' if match[4] else ''}"
    return re.sub(r"[^a-z0-9]", "", words)[:24] or "unit"


def choose_name(facts: dict[str, str], taken: dict[str, str], unit_id: str) -> str:
    """A unit's name by board and serial number; one that it has already stays. `taken` is {name: unit_id}."""
    for name, owner in taken.items():
        if owner == unit_id != "":
            return name
    number = re.sub(r"[^0-9a-f]", "", (facts["serial"] or facts["mac"] or facts["machine_id"]).lower())
    for digits in SUFFIX_DIGITS:
        name = f"{board_name(facts['model'])}-{number[-digits:] or '1'}"
        if name not in taken:
            check_unit_name(name)
            return name
    raise Refusal(f"the name {name} is taken, and this board has no longer number", "choose one with --name")
