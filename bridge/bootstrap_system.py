"""The steps of a bootstrap that make a machine a unit: packages, user, stirbar, configuration, services, buses."""

from __future__ import annotations

import importlib.resources
import shlex
import time

from stirbar.bridge.bootstrap_host import DATA, ETC, MACHINES, OPT, Host, Refusal, choose_name
from stirbar.bridge.credentials import CredentialError, check_unit_name
from stirbar.bridge.joining import CLOCK_LIMIT_S

PYTHON_LOWEST = (3, 11)
MEMORY_LOWEST_KB = 200_000
DISK_LOWEST_KB = 400_000
PACKAGES = ("python3-venv", "openssl")
COMPILER = ("gcc", "libc6-dev", "python3-dev")  # for a source distribution alone
SYSUSERS = "/etc/sysusers.d/stirbar.conf"
FILES = {
    "60-stirbar.rules": "/etc/udev/rules.d/60-stirbar.rules",
    "stirbar-limits.conf": "/etc/security/limits.d/stirbar.conf",
    "stirbar-sysctl.conf": "/etc/sysctl.d/60-stirbar.conf",
    **{
        f"stirbar-{name}.service": f"/etc/systemd/system/stirbar-{name}.service"
        for name in ("safe", "guard", "worker", "bridge", "recorder")
    },
}
UPLOAD = "/var/cache/stirbar-bootstrap"
# A connection that broke leaves its pip running there: it ends before another begins.
ALONE = "exec 9>/run/stirbar-bootstrap.lock; flock -w 3500 9 || exit 1"
DIGEST = f"{OPT}/parcel.sha256"  # written last: what was interrupted is done again
I2C_MODULE = "/etc/modules-load.d/stirbar.conf"
# What config.txt has to say, and what counts as having been said (docs/hardware.md: a software bus is a choice).
INTERFACES = {
    "dtparam=i2c_arm=on": ("dtparam=i2c_arm=on", "dtparam=i2c=on", "dtoverlay=i2c-gpio"),
    "dtparam=strict_gpiod": ("dtparam=strict_gpiod",),
}


def deployed(name: str) -> bytes:
    """A file of core/deploy."""
    return (importlib.resources.files("stirbar.core") / "deploy" / name).read_bytes()


def check_machine(host: Host) -> list[str]:
    """A machine that can be a unit; raises Refusal for one that cannot."""
    facts = host.facts
    architecture, python = facts["architecture"], facts["python"]
    if not architecture:
        raise Refusal(f"no Debian: {facts['distribution'] or 'unknown system'}", "install Raspberry Pi OS or Debian")
    if architecture not in MACHINES:
        raise Refusal(
            f"the architecture {architecture} is none that stirbar runs on ({', '.join(MACHINES)})", "use another board"
        )
    version = tuple(int(part) for part in python.split(".")) if python else (0, 0)
    if version < PYTHON_LOWEST:
        raise Refusal(
            f"Python is {python or 'not there'}, and 3.11 is needed ({facts['distribution']})",
            "install Raspberry Pi OS 12 (bookworm) or later",
        )
    memory, free = int(facts["memory_kb"] or MEMORY_LOWEST_KB), int(facts["free_kb"] or DISK_LOWEST_KB)
    if memory < MEMORY_LOWEST_KB:
        raise Refusal(f"{memory // 1000} MB of memory; {MEMORY_LOWEST_KB // 1000} MB are needed", "use another board")
    if free < DISK_LOWEST_KB:
        raise Refusal(f"{free // 1000} MB are free; {DISK_LOWEST_KB // 1000} MB are needed", "make room on the host")
    ahead = int(facts["time"]) - time.time()
    if abs(ahead) > CLOCK_LIMIT_S:
        raise Refusal(
            f"its clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} ours; {CLOCK_LIMIT_S:.0f} s are "
            "allowed",
            "on the host: `sudo timedatectl set-ntp true`, or `sudo date -s`",
        )
    return []


def check_name(host: Host) -> list[str]:
    """A name is chosen; nothing changes by that yet."""
    if host.unit_id and host.unit_id == host.plan.enrolment.own_unit_id():
        raise Refusal(
            "this is the leader's own machine", "its own unit needs no bootstrap: docs/cluster.md, Topologies"
        )
    taken = {one["unit"]: one["unit_id"] for one in host.plan.enrolment.units()}
    try:
        if host.plan.name:
            check_unit_name(host.plan.name)
        host.unit = host.plan.name or choose_name(host.facts, taken, host.unit_id)
    except CredentialError as error:
        raise Refusal(str(error), "choose another with --name") from None
    return []


def _missing_packages(host: Host) -> list[str]:
    parcel = host.plan.parcels.choose(host.facts["python"], host.machines)
    wanted = [*PACKAGES, *(COMPILER if parcel.is_source else ())]
    there = host.user(f"dpkg-query -W -f '${{Package}} ${{Status}}\\n' {' '.join(wanted)} 2>/dev/null || true")
    installed = {line.split()[0] for line in there.splitlines() if line.endswith(" installed")}
    return [name for name in wanted if name not in installed]


def check_packages(host: Host) -> list[str]:
    """The distribution's packages that stirbar needs."""
    missing = _missing_packages(host)
    return [f"install {', '.join(missing)} with apt"] if missing else []


def install_packages(host: Host) -> None:
    """Install what is missing; the list is fetched anew only if it has to be."""
    install = (
        f"DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends {' '.join(_missing_packages(host))}"
    )
    try:
        host.root(f"{install} >&2 || {{ apt-get update >&2 && {install} >&2; }}")
    except Refusal as error:
        remedy = "give the host a network with Debian's archive for as long as this takes, or install them by hand"
        raise Refusal(f"apt-get failed, {error}", remedy) from None


def check_user(host: Host) -> list[str]:
    """The user stirbar, its groups and its directories."""
    wrong = []
    known = host.root("id -u stirbar 2>/dev/null || true")
    if not known or host.differing({SYSUSERS: deployed("stirbar-sysusers.conf")}):
        wrong.append("make the user stirbar, in the groups i2c and gpio")
    for path, mode in ((ETC, "755"), (DATA, "700")):
        if host.root(f"stat -c '%U %a' {path} 2>/dev/null || true").strip() != f"stirbar {mode}":
            wrong.append(f"make {path}, of stirbar, mode {mode}")
    return wrong


def make_user(host: Host) -> None:
    """By systemd-sysusers; safe to repeat."""
    host.put(SYSUSERS, deployed("stirbar-sysusers.conf"))
    host.root(
        f"systemd-sysusers {SYSUSERS} && install -d -o stirbar -g stirbar -m 755 {ETC} && "
        f"install -d -o stirbar -g stirbar -m 700 {DATA}"
    )


def check_stirbar(host: Host) -> list[str]:
    """What is installed there is what would be sent."""
    parcel = host.plan.parcels.choose(host.facts["python"], host.machines)
    there = host.root(f"{OPT}/bin/stirbar --version >/dev/null 2>&1 && cat {DIGEST} 2>/dev/null || true").strip()
    return [] if there == parcel.digest else [f"install {parcel.package.name} into {OPT}"]


def install_stirbar(host: Host) -> None:
    """Copy the package, with what it needs where we have that, and let pip of a virtual environment unpack it."""
    parcel = host.plan.parcels.choose(host.facts["python"], host.machines)
    wheels = host.plan.parcels.beside(parcel)
    host.wants_restart()
    host.root(f"{ALONE}; rm -rf {UPLOAD} && mkdir -m 755 {UPLOAD} && rm -f {DIGEST}")
    for path in (parcel.package, *wheels):
        host.put(f"{UPLOAD}/{path.name}", path.read_bytes())
    package = shlex.quote(f"{UPLOAD}/{parcel.package.name}")
    offline = "--no-index" if wheels else ""
    python = f"{OPT}/bin/python"
    pip = f"{python} -m pip --disable-pip-version-check --no-input install -q"
    try:
        host.root(
            f"{ALONE}; umask 022\n"
            f"{python} -m pip --version >/dev/null 2>&1 || python3 -m venv --clear {OPT} >&2 || exit 1\n"
            f"before=; [ -e {OPT}/bin/stirbar ] && before=1\n"
            f"{pip} {offline} --find-links {UPLOAD} {package} >&2 || exit 1\n"
            f'if [ "$before" ]; then {pip} --force-reinstall --no-deps --no-index {package} >&2 || exit 1; fi\n'
            f"rm -rf {UPLOAD}; {OPT}/bin/stirbar --version >&2 && echo {parcel.digest} >{DIGEST}"
        )
    except Refusal as error:
        remedy = "run it again" if offline else "has the host a network? If not: the wheels that it needs with --wheels"
        raise Refusal(f"the installation failed, {error}", remedy) from None


def check_config(host: Host) -> list[str]:
    """There is a configuration; one that is there stays as it is."""
    there = host.root(f"test -e {ETC}/config.ini && echo yes || true")
    return [] if there else [f"write the commented example to {ETC}/config.ini"]


def write_config(host: Host) -> None:
    """The example of the stirbar that was installed."""
    host.wants_restart()
    host.root(
        f"umask 022; cd {ETC} && {OPT}/bin/stirbar config example >new.ini && chown stirbar: new.ini && "
        "mv new.ini config.ini"
    )


def _files() -> dict[str, bytes]:
    return {path: deployed(name) for name, path in FILES.items()}


def check_files(host: Host) -> list[str]:
    """Services, udev rules and limits are those of this version."""
    return [f"write {path}" for path in host.differing(_files())]


def write_files(host: Host) -> None:
    """Write those that differ, and let the system see them."""
    files = _files()
    host.wants_restart()
    for path in host.differing(files):
        host.put(path, files[path])
    host.root(
        "systemctl daemon-reload; udevadm control --reload 2>/dev/null && udevadm trigger 2>/dev/null; "
        "sysctl -q --system >/dev/null 2>&1; true"
    )


def lacking(text: str) -> list[str]:
    """What config.txt does not say to every board: lines below a filter such as [pi4] count only for [all]."""
    section, said = "all", []
    for line in (line.strip() for line in text.splitlines()):
        if line.startswith("["):
            section = line.strip("[]").lower()
        elif section == "all":
            said.append(line.replace(" ", ""))
    return [wanted for wanted, enough in INTERFACES.items() if not any(line.startswith(enough) for line in said)]


def check_interfaces(host: Host) -> list[str]:
    """On a Raspberry Pi: I2C is on, and lines are let go when their program ends."""
    path = host.facts["boot_config"]
    if not path:
        return []
    wrong = [f"write {line} into {path}" for line in lacking(host.root(f"cat {path}"))]
    return wrong + [f"write {one}" for one in host.differing({I2C_MODULE: b"i2c-dev\n"})]


def write_interfaces(host: Host) -> None:
    """They count from the next boot on, which is the operator's to choose."""
    path = host.facts["boot_config"]
    text = host.root(f"cat {path}")
    missing = lacking(text)
    if missing:
        added = "\n".join(missing)
        host.put(path, f"{text.rstrip()}\n\n[all]\n{added}\n".encode(), "755")  # the only mode that FAT takes
        host.notes.append("restart the machine: its buses and lines are set up at boot")
    host.put(I2C_MODULE, b"i2c-dev\n")
    host.root("modprobe i2c-dev 2>/dev/null || true")
