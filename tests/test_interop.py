"""With the real `pioreactor` package of PyPI, on loopback: `make interop`. docs/interop.md says what this shows."""

from __future__ import annotations

import csv
import json
import os
import pathlib
import signal
import time

import pytest
from cluster_processes import Machine
from dialect_goldens import FILE
from mosquitto import free_port, start_mosquitto
from pioreactor_field import SAMPLES_PER_SECOND, Pioreactor
from running import wait_for
from stirbar.bridge.credentials import hash_password
from stirbar.bridge.foreign import parse_time
from stirbar.core.leader_client import Leader
from stirbar.web.tokens import Tokens

pytestmark = pytest.mark.interop

UNIT, EXPERIMENT = "vial1", "batch one"


class Cluster:
    """A leader with a door for old guests, and one unit with a simulated vial, all on this machine."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.port, self.legacy_port, page = free_port(), free_port(), free_port()
        self.machine = Machine(directory / "machine", UNIT, {
            "unit": {"name": UNIT, "data_directory": directory / "machine" / "data",
                     "runtime_directory": directory / "machine" / "run", "simulate": 1},
            "mqtt": {"broker_port": self.port, "dialect_readings_per_second": 2},
            "leader.config": {"legacy_port": self.legacy_port},
            "web.config": {"port": page},
        })  # fmt: skip
        self.machine.start("leader")
        leader_directory = self.machine.data / "leader"
        wait_for(lambda: "page:" in self.machine.log("leader").read_text(), 40, "the leader")
        token = Tokens(leader_directory).create("interop", "admin")
        self.leader = Leader(f"http://127.0.0.1:{page}", token=token)
        self.machine.start("worker")
        self.machine.start("bridge")
        wait_for(lambda: self.unit(UNIT).get("state") == "online", 40, "the unit")
        self.leader.create_experiment(EXPERIMENT)
        self.leader.assign(UNIT, EXPERIMENT)
        self.strangers: list[Pioreactor] = []

    def unit(self, name: str) -> dict:
        return next((one for one in self.leader.units() if one["unit"] == name), {})

    def guest(self, name: str, *words: str) -> tuple[str, str]:
        """Account of a guest that knows no TLS, as somebody makes one."""
        return name, self.machine.cluster("guest", name, "--legacy", *words)

    def stranger(self, name: str, hostname: str, *words: str, experiment: str = EXPERIMENT) -> Pioreactor:
        account = self.guest(name, *words)
        time.sleep(0.3)  # the broker reads its files again
        one = Pioreactor(self.directory / name, hostname, experiment, self.legacy_port, account)
        self.strangers.append(one)
        return one

    def close(self) -> None:
        for one in self.strangers:
            one.close()
        self.leader.close()
        self.machine.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    one = Cluster(tmp_path_factory.mktemp("c"))
    yield one
    one.close()


class ItsLeader:
    """A leader of the field: a mosquitto as its image has it, with its usual account, and its database job."""

    def __init__(self, directory: pathlib.Path) -> None:
        password = directory / "password"
        password.write_text(f"pioreactor:{hash_password('raspberry')}\n")
        password.chmod(0o644)
        directory.chmod(0o755)
        rights = f"persistence false\npassword_file {password}" + ("\nuser root" if os.geteuid() == 0 else "")
        self.broker = start_mosquitto(directory, rights)
        account = ("pioreactor", "raspberry")
        self.field = Pioreactor(directory / "pio-leader", "pio-leader", "$experiment", self.broker.port, account)
        self.field.make_tables()
        self.field.start("mqtt_to_db_streaming")

    def close(self) -> None:
        self.field.close()
        self.broker.stop()


def test_a_leader_of_the_field_stores_our_unit(tmp_path):
    its = ItsLeader(tmp_path)
    name = "vial9"
    own = tmp_path / name
    secret = tmp_path / "raspberry"
    secret.write_text("raspberry\n")
    machine = Machine(own, name, {
        "unit": {"name": name, "data_directory": own / "data", "runtime_directory": own / "run", "simulate": 1},
        "mqtt": {"broker_port": its.broker.port, "username": "pioreactor", "password_file": secret,
                 "dialect_readings_per_second": 2},
        "bridge.config": {"acknowledge": "broker"},
    })  # fmt: skip
    try:
        machine.start("worker")
        machine.start("bridge")

        def stored(table: str) -> bool:
            assert its.field.alive("mqtt_to_db_streaming"), its.field.said("mqtt_to_db_streaming")[-2000:]
            return its.field.rows(f"SELECT count(*) FROM {table} WHERE pioreactor_unit=?", name)[0][0] >= 3

        for table in ("od_readings", "stirring_rates", "temperature_readings"):
            wait_for(lambda table=table: stored(table), 40, f"rows in {table} of their leader", 0.2)
    finally:
        machine.close()
        its.close()


PARSE = """
import json, sys
from paho.mqtt.client import topic_matches_sub
from pioreactor.background_jobs.leader.mqtt_to_db_streaming import add_default_source_to_sinks
sinks = [
    (topic, sink)
    for sink in add_default_source_to_sinks()
    for topic in ([sink.topic] if isinstance(sink.topic, str) else sink.topic)
]
found = {}
for case in json.load(open(sys.argv[1])):
    for topic, payload, _, _ in case["says"]:
        for pattern, sink in sinks:
            if payload and topic_matches_sub(pattern, "pioreactor/vial1/" + topic):
                row = sink.parser("pioreactor/vial1/" + topic, payload.encode())
                found.setdefault(sink.table, []).append(sorted(row))
print(json.dumps(found))
"""


def test_the_field_reads_our_golden_examples(cluster):
    field = cluster.stranger("reader", "reader")
    found = json.loads(field.run(PARSE, str(FILE)))
    assert set(found) == {
        "od_readings", "raw_od_readings", "stirring_rates", "temperature_readings", "dosing_events",
        "led_change_events", "ir_led_intensities", "od_blanks", "alt_media_fractions", "liquid_volumes", "logs",
        "temperature_automation_settings",
    }  # fmt: skip


def test_its_database_holds_our_readings(cluster):
    field = cluster.stranger("pio-leader", "pio-leader")
    field.make_tables()
    field.start("mqtt_to_db_streaming")

    def stored(table: str, count: int):
        assert field.alive("mqtt_to_db_streaming"), field.said("mqtt_to_db_streaming")[-2000:]
        return field.rows(f"SELECT count(*) FROM {table} WHERE pioreactor_unit=?", UNIT)[0][0] >= count

    for table in ("od_readings", "stirring_rates", "temperature_readings", "ir_led_intensities"):
        wait_for(lambda table=table: stored(table, 5), 30, f"five rows in {table}", 0.2)
    rows = field.rows("SELECT experiment, timestamp, od_reading, angle, channel FROM od_readings")
    time.sleep(2.0)  # ours are committed once a second
    ours = cluster.directory / "ours.csv"
    cluster.leader.download(EXPERIMENT, ours)
    with open(ours) as file:
        known = {(one["stream"], int(one["wall_ns"]) // 1_000_000): float(one["value"]) for one in csv.DictReader(file)}
    for _, when, od, _, channel in rows:
        assert known[f"od{channel}", parse_time(when) // 1_000_000] == pytest.approx(od, rel=1e-9), "a reading of ours"
    assert {row[0] for row in rows} == {EXPERIMENT}
    angles = {one["channel"]: one["angle"] for one in cluster.unit(UNIT)["channels"]}
    assert all(angles[channel] == angle for _, _, _, angle, channel in rows)
    cluster.leader.set(UNIT, "stirring", "target_rpm", 600)
    cluster.leader.led(UNIT, "user", B=20.0)
    wait_for(lambda: stored("led_change_events", 1), 20, "a change of a LED channel", 0.2)
    assert stored("logs", 1)
    field.stop("mqtt_to_db_streaming")


def test_its_growth_rate_of_our_unit_is_in_our_store(cluster):
    field = cluster.stranger("calculator", UNIT, "--jobs", "growth_rate_calculating")
    field.start("growth_rate_calculating")

    def rates() -> bool:
        assert field.alive("growth_rate_calculating"), field.said("growth_rate_calculating")[-3000:]
        lines = cluster.leader.readings("growth_rate", unit=UNIT, start=time.time() - 300, end=time.time() + 10)
        return bool(lines) and len(lines[0]["mean"]) >= 2

    try:
        wait_for(rates, 90, "growth rates in our store", 0.5)
    except AssertionError:
        raise AssertionError(field.said("growth_rate_calculating")[-3000:]) from None
    latest = cluster.unit(UNIT)["latest"]
    assert -2.0 < latest["growth_rate"]["value"] < 5.0 and latest["od_filtered"]["value"] > 0.0
    line = cluster.leader.readings("growth_rate", unit=UNIT, start=time.time() - 300, end=time.time() + 10)[0]
    assert line["unit_of_value"] == "1/h" and line["unit"] == UNIT
    assert not cluster.unit(UNIT)["foreign"]
    field.stop("growth_rate_calculating")


def test_it_sets_our_settings_where_it_may(cluster):
    field = cluster.stranger("console", "console", "--control")
    script = "import sys; from pioreactor.pubsub import publish; publish(sys.argv[1], sys.argv[2], qos=2)"
    field.run(script, f"pioreactor/{UNIT}/{EXPERIMENT}/stirring/target_rpm/set", "450")

    def target() -> bool:
        settings = {(one["job"], one["setting"]): one["value"] for one in cluster.unit(UNIT)["settings"]}
        return settings.get(("stirring", "target_rpm")) == 450

    wait_for(target, 10, "the new speed")


def test_its_simulated_unit_is_shown_and_stored_by_us(cluster):
    field = cluster.stranger("pio01", "pio01", experiment="their batch")
    field.start("od_reading")
    field.start("stirring")

    def has(*streams: str) -> bool:
        for job in ("od_reading", "stirring"):
            assert field.alive(job), field.said(job)[-3000:]
        return set(streams) <= set(cluster.unit("pio01").get("latest", {}))

    wait_for(lambda: has("od2", "rpm"), 40, "od and rpm of the stranger", 0.5)
    unit = cluster.unit("pio01")
    assert unit["foreign"] is True and unit["state"] == "online" and unit["experiment"] == "their batch"
    wait_for(lambda: cluster.unit("pio01")["jobs"].get("stirring") == "ready", 30, "its jobs are ready", 0.5)
    assert cluster.unit("pio01")["jobs"]["od_reading"] == "ready"
    assert {one["channel"]: one["angle"] for one in unit["channels"]} == {2: 90}
    time.sleep(5)
    lines = cluster.leader.readings("od2", unit="pio01", start=time.time() - 60, end=time.time() + 10)
    count = len(lines[0]["mean"])
    assert count >= 4 * SAMPLES_PER_SECOND and all(value > 0.0 for value in lines[0]["mean"])
    assert cluster.leader.readings("rpm", unit="pio01", start=time.time() - 60, end=time.time() + 10)
    theirs = cluster.directory / "theirs.csv"
    cluster.leader.download("their batch", theirs, "od2")
    assert theirs.read_text().count("\n") > count and "pio01" in theirs.read_text()
    assert any(one["unit"] == "pio01" for one in cluster.leader.events(limit=200))
    field.stop("stirring", signal.SIGKILL)
    field.stop("od_reading", signal.SIGKILL)
    wait_for(lambda: cluster.unit("pio01")["state"] == "lost", 30, "its last will", 0.5)
