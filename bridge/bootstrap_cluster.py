"""The last steps of a bootstrap: join the cluster, say so by mDNS, start, and be heard by the leader."""

from __future__ import annotations

import json
import ssl
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from stirbar.bridge.announce import AVAHI_FILE
from stirbar.bridge.bootstrap_host import DATA, ETC, OPT, RESTART, Host, Refusal
from stirbar.bridge.credentials import LEADER
from stirbar.bridge.places import leader_directory
from stirbar.bridge.topics import STATE_ONLINE, UnitTopics

if TYPE_CHECKING:
    from typing import Any

    from stirbar.core.config import Config

SERVICES = ("stirbar-safe", "stirbar-guard", "stirbar-worker", "stirbar-bridge")
STIRBAR = f"runuser -u stirbar -- env STIRBAR_DATA={DATA} {OPT}/bin/stirbar"  # as the services run it
INVITED_MINUTES = 30.0
REPORT_LIMIT_S = 45.0


def _joined_as(host: Host) -> str:
    """The name under which the unit is in this leader's cluster, with all that it needs; empty when it is not."""
    lines = host.root(
        f"cd {DATA}/cluster 2>/dev/null && [ -s password ] && [ -s unit.pem ] && cat leader.json ca.pem || true"
    )
    about, _, authority = lines.partition("\n")
    if not about or authority.strip() != host.plan.enrolment.authority.pem.strip():
        return ""
    name = str(json.loads(about).get("unit", ""))
    states = {one["unit"]: (one["state"], one["unit_id"]) for one in host.plan.enrolment.units()}
    return name if states.get(name) == ("joined", host.unit_id) else ""


def check_join(host: Host) -> list[str]:
    """The unit is in this leader's cluster, under its name."""
    name = _joined_as(host)
    if name == host.unit:
        return []
    return [f"rename the unit '{name}' to '{host.unit}'" if name else f"join the cluster as '{host.unit}'"]


def join(host: Host) -> None:
    """Invite the unit, and hand it the token by its standard input."""
    enrolment = host.plan.enrolment
    known = {one["unit_id"]: one["unit"] for one in enrolment.units() if one["state"] == "joined"}
    old = known.get(host.unit_id, "") if host.unit_id else ""
    if old and old != host.unit:
        token = enrolment.rename(old, host.unit, INVITED_MINUTES)
    else:
        token = enrolment.invite(INVITED_MINUTES, old or host.unit)
    host.wants_restart()
    try:
        host.root(f"{STIRBAR} cluster join --config {ETC}/config.ini --name {host.unit}", token.text().encode() + b"\n")
    except Refusal as error:
        raise Refusal(f"it does not join, {error}", "docs/cluster.md lists the refusals") from None


def _announcement(host: Host) -> bytes:
    """What the unit's avahi is to say."""
    return host.root(f"{STIRBAR} cluster announce --print --config {ETC}/config.ini").encode()


def check_announcement(host: Host) -> list[str]:
    """The system's avahi, where there is one, says that this is a unit."""
    if not host.root(f"test -d {Path(AVAHI_FILE).parent} && echo yes || true"):
        return []
    installed = host.root(f"test -x {OPT}/bin/stirbar && echo yes || true")
    right = installed and not host.differing({AVAHI_FILE: _announcement(host)})
    return [] if right else [f"write {AVAHI_FILE}"]


def write_announcement(host: Host) -> None:
    """avahi sees the file by itself."""
    host.put(AVAHI_FILE, _announcement(host))


def check_start(host: Host) -> list[str]:
    """The services start at boot, and run what is installed and configured now."""
    names = " ".join(SERVICES)
    script = (
        f"for name in {names}; do systemctl is-enabled -q $name 2>/dev/null || echo enable $name; "
        f"systemctl is-active -q $name 2>/dev/null || echo start $name; done; "
        f"[ ! -e {RESTART} ] || echo restart what runs"
    )
    return host.root(script).splitlines()


def start(host: Host) -> None:
    """Enable and start; what runs starts again, because something was changed."""
    names = " ".join(SERVICES)
    try:
        host.root(
            f"systemctl daemon-reload && systemctl enable -q {names} && systemctl restart {names} && rm -f {RESTART}"
        )
    except Refusal as error:
        raise Refusal(f"a service does not start, {error}", "on the host: `journalctl -u 'stirbar-*' -n 50`") from None


def check_report(host: Host) -> list[str]:
    """The leader's broker hears the unit."""
    if host.plan.dry_run:
        return []
    heard = is_heard(host.plan.config, host.unit_id, 0.3 if not host.unit_id else REPORT_LIMIT_S)
    if not heard:
        raise Refusal(
            f"the leader has not heard of '{host.unit}' within {REPORT_LIMIT_S:.0f} s",
            "does the leader run? On the host: `journalctl -u stirbar-bridge -n 50`",
        )
    return []


def is_heard(config: Config, unit_id: str, limit_s: float) -> bool:
    """Whether the unit's bridge is at the leader's broker, or comes to it within `limit_s`. Raises OSError where the
    broker is not reached."""
    from paho.mqtt import client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion

    get = config.get
    own = get("leader.config", "broker") == "own"
    user = LEADER if own else str(get("mqtt", "username"))
    password = (
        leader_directory(config) / "credentials" / "leader.password" if own else str(get("mqtt", "password_file"))
    )
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.username_pw_set(user, Path(password).expanduser().read_text().strip())
    if not own and get("mqtt", "use_tls"):
        client.tls_set(str(get("mqtt", "ca_file")) or None, tls_version=ssl.PROTOCOL_TLS_CLIENT)
    topic, heard = UnitTopics(str(get("mqtt", "data_root")), unit_id).state, threading.Event()

    def connected(*_: Any) -> None:
        client.subscribe(topic, 1)

    def come(_: Any, __: Any, message: Any) -> None:
        if message.payload.startswith(STATE_ONLINE[:-1]):
            heard.set()

    client.on_connect, client.on_message = connected, come
    client.connect("127.0.0.1" if own else str(get("mqtt", "broker_address")), int(get("mqtt", "broker_port")))
    client.loop_start()
    try:
        return heard.wait(limit_s)
    finally:
        client.disconnect()
        client.loop_stop()
