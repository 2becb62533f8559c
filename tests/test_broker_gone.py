"""A broker that is gone changes nothing on a worker: temperature, stirring and a running exchange are as with one.

In virtual time a worker has no sockets; what reaches it from a bridge without a broker are that bridge's own commands,
and a run with them is held against one without, reading by reading. In real time worker, bridge and broker are
processes; `STIRBAR_OUTAGE_SECONDS=60` makes a minute of it, under full heat (`make soak` does).
"""

from __future__ import annotations

import os
import signal
import time

import pytest
from mosquitto import Mosquitto
from running import RunningWorker, wait_for
from stirbar.bridge.offline import LEASE_S, NO_BROKER, RENEW_S
from stirbar.core import records
from stirbar.core.commands import Commands
from stirbar.core.config import load_config, parse_overrides
from stirbar.core.twin import Twin
from test_relay import Bridge

VIAL = (
    "simulation.ambient_temperature_degc=24",
    "simulation.volume_ml=14",
    "simulation.waste_tube_ml=14",
    "bioreactor.initial_volume_ml=14",
    "bioreactor.efflux_tube_volume_ml=14",
    "temperature_automation.config.automation_name=thermostat",
)
HOUR_S = 3600
OUTAGE_S = float(os.environ.get("STIRBAR_OUTAGE_SECONDS", "2"))
IS_LONG = OUTAGE_S > 10.0
QUICK = (
    "dosing_automation.config.pause_between_subdoses_seconds=0.3",
    "dosing_automation.config.waste_removal_multiplier=1",
)


def an_hour(directory, broker_gone: bool) -> list[tuple]:
    """Every reading of an hour with three exchanges; the outage begins in the first of them."""
    twin = Twin(load_config(overrides=parse_overrides(["unit.simulate=1", *VIAL])), str(directory))
    commands = Commands(twin.host)
    answers: list[dict] = []
    found: list[tuple] = []
    renew = int(RENEW_S)
    for second in range(HOUR_S):
        if second in (600, 1800, 3000):
            commands.handle({"command": "exchange", "media_ml": 0.5}, lambda answer, _: answers.append(answer))
        if broker_gone and second >= 603 and (second - 603) % renew == 0:
            fault = {"command": "fault", "code": NO_BROKER, "seconds": LEASE_S}
            commands.handle(fault, lambda answer, _: answers.append(answer))
        for topic, _, payload in twin.run(1.0):
            if topic.startswith(b"reading/"):
                found += list(records.READING.iter_unpack(payload))
    assert all(answer["ok"] for answer in answers)
    assert len(answers) == 3 + (broker_gone and 1 + (HOUR_S - 604) // renew)
    return found


def test_an_hour_without_a_broker_is_the_hour_with_one(tmp_path):
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    there, gone = an_hour(tmp_path / "with", False), an_hour(tmp_path / "without", True)
    assert len(there) > 30_000
    assert repr(there) == repr(gone)  # NaN is not equal to itself


@pytest.fixture
def unit():
    worker = RunningWorker(
        (*VIAL, *(() if IS_LONG else QUICK), "stirring.config.autostart=1", "od_reading.config.autostart=0"), None, {}
    )
    yield worker
    worker.stop()


def an_exchange(worker: RunningWorker, at_half=lambda: None) -> dict[str, float]:
    """Run one; what it moved, how long it took, how it was stirred and how warm it was meanwhile."""
    begun = time.monotonic()
    dose = worker.client.exchange(0.5, 0.25)
    wait_for(lambda: worker.client.dose_result(dose["dose"])["moved_ml"]["media"] > 0.0, 20, "the inflow")
    at_half()
    result = wait_for(
        lambda: (r := worker.client.dose_result(dose["dose"]))["state"] == "done" and r, 60, "the end", every_s=0.02
    )
    took_s = time.monotonic() - begun
    rpm, liquid = worker.client.latest("rpm"), worker.client.latest("liquid")
    return {**result["moved_ml"], "took_s": took_s, "rpm": rpm["value"], "duty": liquid["signal_v"]}


@pytest.mark.soak
@pytest.mark.parametrize("how", ["freeze", "kill", "bridge SIGSTOP", "bridge SIGKILL"] if IS_LONG else ["freeze"])
def test_an_exchange_while_the_broker_is_gone(tmp_path, unit, how):
    broker = Mosquitto(tmp_path)
    place = unit.directory / "run"
    of_bridge = how.startswith("bridge")
    bridge = Bridge(place, broker.port, of_bridge, worker_address=unit.address, spool_directory=str(tmp_path / "spool"))
    try:
        wait_for(lambda: (r := unit.client.latest("rpm")) and abs(r["value"] - 500) < 5, 20, "500 rpm", every_s=0.2)
        heat = 99.0 if IS_LONG else 5.0  # a sensor that has yet to prove itself gets little heat for 45 s
        wait_for(lambda: (r := unit.client.latest("liquid")) and r["signal_v"] > heat, 60, "heat", every_s=0.2)
        there = an_exchange(unit)
        # gone in the middle of the second exchange, and for the rest of the time
        fail = (
            (lambda: bridge.process.send_signal(getattr(signal, how.split()[1]))) if of_bridge else getattr(broker, how)
        )
        gone = an_exchange(unit, fail)
        until = time.monotonic() + OUTAGE_S
        lowest = highest = unit.client.latest("rpm")["value"]
        while time.monotonic() < until:
            reading = unit.client.latest("rpm")["value"]
            lowest, highest = min(lowest, reading), max(highest, reading)
            time.sleep(0.2)
        again = an_exchange(unit)
        for one in (gone, again):
            for pump in ("media", "alt_media", "waste"):
                assert one[pump] == pytest.approx(there[pump], abs=0.003)  # 6 ms of a pump
            assert one["took_s"] == pytest.approx(there["took_s"], abs=0.5)
            assert one["duty"] > 5.0  # it heats on; how much changes with the time, not with the broker
        assert 497.0 < lowest <= highest < 503.0
        jobs = unit.client.status()["jobs"]
        assert {jobs[name] for name in ("stirring", "temperature_automation", "bioreactor")} == {"ready"}
        assert unit.client.status()["counters"]["ring_drops"] == 0
    finally:
        if how == "freeze":
            broker.thaw()
        broker.kill()
        if of_bridge:
            bridge.process.kill()
            bridge.process.wait()
        else:
            bridge.stop()
