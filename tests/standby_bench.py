"""A leader, its standby and units, each in a network namespace of its own, on one switch whose cables can be pulled."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster_processes import LeaderMachine, Machine, new_unit
from mosquitto import find_mosquitto
from outage_bench import Account
from running import stirbar_environment, wait_for
from stirbar.core.records import STREAM_IDS
from stirbar.web.accounting import Key, Stored, Tally

LONGEST_PAUSE_S = 0.5  # between two of ten readings a second, on a machine that others use too
HTTP = """
import json, sys
from stirbar import Leader
from stirbar.core.leader_client import LeaderRefused
address, token, authority, method, path, body = sys.argv[1:]
with Leader(address, token=token, ca_file=authority) as leader:
    try:
        print(json.dumps([200, leader._json(method, path, json.loads(body), 10.0)]))
    except LeaderRefused as error:
        print(json.dumps([error.status, str(error)]))
"""
COMMAND = """
import json, sys, threading
import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
port, password, topic, body = sys.argv[1:]
heard, ready = threading.Event(), threading.Event()
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
client.username_pw_set("stirbar-leader", password)
client.on_message = lambda _, __, message: (print(message.payload.decode(), flush=True), heard.set())
client.on_subscribe = lambda *_: ready.set()
client.connect("127.0.0.1", int(port))
reply = topic.removesuffix("command") + "reply"
client.subscribe(reply, 1)
client.loop_start()
assert ready.wait(5)
properties = Properties(PacketTypes.PUBLISH)
properties.ResponseTopic = reply
client.publish(topic, body, 1, properties=properties).wait_for_publish(5)
assert heard.wait(5)
"""


class Switch:
    """Namespaces `names` with a cable each to a switch in one of its own. Skips where that is forbidden."""

    def __init__(self, names: list[str]) -> None:
        self._prefix = f"stirbar{os.getpid() % 100_000}"
        self._names = names
        self._hub = f"{self._prefix}-hub"
        self.addresses = {name: f"10.214.7.{number}" for number, name in enumerate(names, 1)}
        try:
            self._ip("netns", "add", self._hub)
            self._ip("-n", self._hub, "link", "add", "switch", "type", "bridge")
            self._ip("-n", self._hub, "link", "set", "switch", "up")
            for name in names:
                self._plug(name)
        except (OSError, subprocess.CalledProcessError) as error:
            self.close()
            pytest.skip(f"no network namespaces here: {error}")

    def _plug(self, name: str) -> None:
        own, cable = self._space(name), f"to-{name}"
        self._ip("netns", "add", own)
        self._ip("-n", self._hub, "link", "add", cable, "type", "veth", "peer", "name", "inner", "netns", own)
        self._ip("-n", self._hub, "link", "set", cable, "master", "switch", "up")
        self._ip("-n", own, "addr", "add", f"{self.addresses[name]}/24", "dev", "inner")
        self._ip("-n", own, "link", "set", "inner", "up")
        self._ip("-n", own, "link", "set", "lo", "up")

    def _space(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def inside(self, name: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self._space(name))

    def cut(self, name: str) -> None:
        self._ip("-n", self._hub, "link", "set", f"to-{name}", "down")

    def mend(self, name: str) -> None:
        self._ip("-n", self._hub, "link", "set", f"to-{name}", "up")

    @staticmethod
    def _ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def close(self) -> None:
        for name in [*self._names, "hub"]:
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                self._ip("netns", "del", self._space(name))


class Cluster:
    """`leader`, `standby` and `units` as machines, and the tally of what the units' workers made."""

    def __init__(self, place: Path, units: int = 2) -> None:
        find_mosquitto()
        names = [f"u{number}" for number in range(1, units + 1)]
        self.switch = Switch(["l", "s", *names])
        self.leader = LeaderMachine(place / "l", address=self.switch.addresses["l"])
        self.standby = LeaderMachine(place / "s", address=self.switch.addresses["s"])
        self.units = [new_unit(place, name) for name in names]
        self.tally = Tally()
        self._token = ""
        for name, machine in zip(["l", "s", *names], [self.leader, self.standby, *self.units], strict=True):
            machine.inside = self.switch.inside(name)

    def join(self, unit: Machine) -> None:
        """Let a unit in, and start it."""
        unit.cluster("join", self.leader.cluster("invite"))
        self.tally.connect(f"ipc://{unit.directory}/r/{unit.name}")
        unit.start("worker")
        unit.start("bridge")

    def take_on_standby(self, leader: LeaderMachine, standby: LeaderMachine) -> None:
        token = leader.command("leader", "standby-token").stdout
        done = standby.command("leader", "standby", text=token)
        assert done.returncode == 0, done.stderr

    def stored(self, machine: LeaderMachine) -> dict[Key, tuple[int, int]]:
        """Readings in a machine's store by unit, run and stream: how many, and how far without a hole."""
        path = machine.data / "leader" / "stirbar.sqlite"
        return Stored(path).readings() if path.exists() else {}

    def more_stored(self, machine: LeaderMachine, unit: Machine, more: int, seconds: float = 40.0) -> None:
        """Until so many more readings of a unit are in a machine's store."""
        unit_id = self.unit_id(unit)

        def count() -> int:
            self.tally.listen(0.0)
            return sum(here for (one, _, _), (here, _) in self.stored(machine).items() if one == unit_id)

        wanted = count() + more
        wait_for(lambda: count() >= wanted, seconds, f"{more} more readings of {unit.name} at {machine.name}", 0.1)

    def settle(self, machine: LeaderMachine, seconds: float = 30.0) -> None:
        """Stop the workers; until all that they made is in a machine's store, once."""
        for unit in self.units:
            self.tally.listen(0.05)
            unit.stop("worker")
        self.tally.listen(0.2)
        try:
            wait_for(lambda: self.whole(machine), seconds, "everything stored", 0.1)
        except AssertionError as error:
            found = self.stored(machine)
            raise AssertionError(f"{error}: {[(k, e, found.get(k)) for k, e in self.tally.ends.items()]}") from None

    def whole(self, machine: LeaderMachine) -> bool:
        found = self.stored(machine)
        return all(found.get(key) == (end, end) for key, end in self.tally.ends.items())

    def longest_pause_s(self, machine: LeaderMachine, unit: Machine, stream: int) -> float:
        """Between two readings of a unit's stream, by its own clock."""
        with contextlib.closing(sqlite3.connect(machine.data / "leader" / "stirbar.sqlite", timeout=5.0)) as connection:
            times = [
                row[0]
                for row in connection.execute(
                    "SELECT monotonic_ns FROM readings WHERE unit_id = ? AND stream = ? ORDER BY sequence",
                    (self.unit_id(unit).upper(), stream),
                )
            ]
        return max(after - before for before, after in itertools.pairwise(times)) / 1e9

    def rows(self, machine: LeaderMachine, statement: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(machine.data / "leader" / "stirbar.sqlite", timeout=5.0)) as connection:
            return connection.execute(statement).fetchall()

    def unit_id(self, unit: Machine) -> str:
        return (unit.data / "unit_id").read_text().strip().replace("-", "")

    def http(self, machine: LeaderMachine, method: str, path: str, body: dict[str, object]) -> list[Any]:
        """[status, answer] of a machine's API, asked on that machine; the token was made at the first leader."""
        if not self._token:
            done = self.leader.command("leader", "token", "create", "test", "--scope", "admin")
            assert done.returncode == 0, done.stderr
            self._token = done.stdout.strip()
        address = f"https://127.0.0.1:{machine.page_port}"
        authority = str(machine.data / "leader" / "tls" / "ca.pem")
        words = [address, self._token, authority, method, path, json.dumps(body)]
        return list(json.loads(self._python(machine, HTTP, *words)))

    def command(self, machine: LeaderMachine, unit: Machine, **body: object) -> dict[str, Any]:
        """What a unit answers to a command on a machine's broker, whoever may send it."""
        password = (machine.data / "leader" / "credentials" / "leader.password").read_text().strip()
        topic = f"stirbar/{self.unit_id(unit)}/command"
        answer = self._python(machine, COMMAND, str(machine.local_port), password, topic, json.dumps(body))
        return dict(json.loads(answer.splitlines()[0]))

    def _python(self, machine: Machine, code: str, *words: str) -> str:
        done = subprocess.run(
            [*machine.inside, sys.executable, "-c", code, *words],
            env=stirbar_environment(), capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def logs(self) -> str:
        """What all processes have said."""
        return "\n".join(
            f"--- {machine.name} {path.name}\n{path.read_text()}"
            for machine in (self.leader, self.standby, *self.units)
            for path in sorted(machine.directory.glob("*.log"))
        )

    def close(self) -> None:
        self.tally.close()
        for machine in (*self.units, self.standby, self.leader):
            for command in list(machine.processes):
                machine.kill(command)
        self.switch.close()


def lose_the_leader(cluster: Cluster) -> Account:
    """The leader is killed, its standby promoted, units follow, the old leader comes back; what became of the readings.

    The second unit joins, and an experiment is made, when the standby is there already: it has to hear of both.
    """
    leader, standby, (first, second) = cluster.leader, cluster.standby, cluster.units
    leader.run()
    cluster.join(first)
    # the standby's machine is a unit too: its [mqtt] is about the leader's broker
    standby.cluster("join", leader.cluster("invite"), "--name", "s")
    standby.local_port = 1883
    cluster.take_on_standby(leader, standby)
    standby.run()
    cluster.join(second)
    culture = {"name": "culture 7", "description": "what it is about"}
    assert cluster.http(leader, "POST", "/api/experiments", culture)[0] == 200
    assert cluster.http(leader, "PUT", "/api/experiments/culture%207/units/u1", {})[0] == 200
    for unit in cluster.units:
        cluster.more_stored(standby, unit, 5)
    users = standby.data / "leader" / "credentials" / "users.json"
    wait_for(lambda: "u2" in users.read_text(), 15, "the second unit's account at the standby")
    wait_for(lambda: cluster.rows(standby, "SELECT 1 FROM assignment"), 15, "the assignment at the standby")
    # a standby changes nothing, and does not take the leader's place while that one answers
    status, said = cluster.http(standby, "POST", "/api/experiments", culture)
    assert status == 409 and "standby of the leader at" in said
    refused = standby.command("leader", "promote")
    assert refused.returncode == 1 and "answers, and leads" in refused.stderr

    leader.kill("leader")
    promoted = standby.command("leader", "promote")
    assert promoted.returncode == 0 and "leads, by epoch 2" in promoted.stderr, promoted.stderr
    for unit in cluster.units:
        cluster.more_stored(standby, unit, 20)
    rows = cluster.rows(standby, "SELECT name, description FROM experiment WHERE description <> ''")
    assert rows == [("culture 7", "what it is about")]

    leader.run()
    assert "commands and acknowledges no more" in leader.log("leader").read_text()
    standing = leader.command("leader", "standing")
    assert standing.returncode == 4 and "of epoch 2" in standing.stdout
    status, said = cluster.http(leader, "POST", "/api/experiments", {"name": "another", "description": ""})
    assert status == 409 and "no longer the leader" in said
    deposed = "SELECT level FROM event WHERE code = 'deposed'"
    wait_for(lambda: cluster.rows(leader, deposed) == [("error",)], 10, "the alert of the old leader")
    # whoever commands by the old epoch is refused by the unit itself
    old = cluster.command(standby, first, id="by the old leader", command="status", epoch=1)
    assert not old["ok"] and old["error"]["message"] == "this unit follows a newer leader (epoch 2)"
    assert cluster.command(standby, first, id="by the new leader", command="status", epoch=2)["ok"]

    cluster.settle(standby)
    for unit in cluster.units:
        assert cluster.longest_pause_s(standby, unit, STREAM_IDS["od2"]) < LONGEST_PAUSE_S, "the worker faltered"
    assert len({run for _, run, _ in cluster.stored(standby)}) == 2, "a run for each worker: none was started again"
    stored = sum(here for here, _ in cluster.stored(standby).values())
    gaps = cluster.rows(standby, "SELECT count, reason FROM gap")
    return Account(cluster.tally.published(), stored, 0, gaps)
