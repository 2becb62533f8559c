"""Long campaigns, run by `make soak`: a demo whose parts are killed at random, and a day in virtual time."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
from demo_process import BROKER, Demo, wait_for
from stirbar.core.config import load_config, parse_overrides
from stirbar.core.twin import Twin

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("STIRBAR_SOAK_SECONDS", "600"))


def test_random_kills_of_bridge_broker_and_leader_lose_nothing(tmp_path):
    chance = random.Random(20261120)
    demo = Demo(tmp_path, "--workers", 3).wait_for_link()
    try:
        end = time.monotonic() + SECONDS
        kills = 0
        while time.monotonic() < end:
            pids = {name: pid for name, pid in demo.pids().items() if pid and not name.startswith("worker")}
            name = chance.choice(sorted(pids))
            os.kill(pids[name], signal.SIGKILL)
            kills += 1
            wait_for(lambda name=name, pid=pids[name]: demo.pids()[name] not in (None, pid), 60)
            after = time.monotonic() + chance.uniform(0.0, 8.0)
            wait_for(lambda after=after: time.monotonic() > after, 20)
        demo.process.send_signal(signal.SIGTERM)
        status, account, said = demo.finish(120)
    finally:
        demo.close()
    assert kills > SECONDS / 20
    assert BROKER not in account["restarts"]
    assert status == 0, said
    assert account["readings_published"] == account["readings_stored"]
    assert account["readings_lost"] == account["gaps"] == 0


def test_a_day_in_virtual_time_misses_nothing(tmp_path):
    disturbances = ["unit.simulate=1", "simulation.bubble_rate_hz=0.2", "simulation.ambient_step_rate_hz=0.01"]
    twin = Twin(load_config(overrides=parse_overrides(disturbances)), str(tmp_path))
    following: dict[int, int] = {}
    for reading in twin.readings(24 * 3600.0):
        assert reading["sequence"] == following.get(reading["stream"], 0)
        following[reading["stream"]] = reading["sequence"] + 1
    counters = twin.loop.counters()
    assert counters["missed_conversions"] == counters["ring_drops"] == counters["overruns"] == 0
    assert following[2] == pytest.approx(24 * 36_000, abs=50)
