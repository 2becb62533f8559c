"""Faults and random commands in virtual time, every order of the loop held against the envelope (envelope.py)."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

import pytest
from envelope import HEATER, PUMPS, STIRRER, Watched
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from stirbar.core import events, simulation
from stirbar.core.jobs import ACTUATORS

FEW = 40
EXAMPLES = int(os.environ.get("STIRBAR_FAULT_EXAMPLES", FEW))
HEAT = {name: bit for bit, (name, _, _) in enumerate(events.HEAT_REASONS)}


@pytest.fixture
def busy():
    """A vial that is stirred, heated to 37 °C from 24, and in which an exchange runs."""
    vial = Watched(("simulation", "ambient_temperature_degc", "24"))
    vial.command(ACTUATORS, events.COMMAND_STIR_RPM, 0, 0, 500.0)
    vial.command(ACTUATORS, events.COMMAND_HEAT_TARGET, 0, 0, 37.0)
    for _ in range(90):
        vial.command(ACTUATORS, events.COMMAND_HEAT_RENEW, 0, 0, 0.0)
        vial.run(1.0)
    assert vial.duty[HEATER] > 0.0 and vial.duty[STIRRER] > 0.0
    exchange(vial)
    vial.run(2.0)
    assert any(vial.duty[pump] for pump in PUMPS)
    return vial


def exchange(vial: Watched) -> int:
    for pump, ml in enumerate((0.5, 0.0, 0.5)):
        vial.command(ACTUATORS, events.COMMAND_DOSE_PART, pump, 0, ml)
    return vial.command(ACTUATORS, events.COMMAND_DOSE_EXCHANGE, 0, 0, 2.0)


def fault(vial: Watched, **parameters: float) -> None:
    for name, value in parameters.items():
        index = simulation.BY_NAME[name].index
        vial.command(simulation.owner(index), events.COMMAND_SIMULATION, 0, index, value)


def live(vial: Watched, seconds: int) -> None:
    """The host renews heat once a second."""
    for _ in range(seconds):
        vial.command(ACTUATORS, events.COMMAND_HEAT_RENEW, 0, 0, 0.0)
        vial.run(1.0)


def heat_said(vial: Watched, reason: str) -> bool:
    return (events.EVENT_HEAT_LIMITED, HEAT[reason]) in [(code, argument) for code, argument, _ in vial.said]


def test_nobody_renews_any_more(busy):
    """The host thread stands still (an endless loop in a plug-in): heat ends, the exchange goes to its end, it is
    stirred, and nothing new begins."""
    busy.run(60.0)
    assert busy.duty[HEATER] == 0.0 and heat_said(busy, "no_lease")
    assert busy.duty[STIRRER] > 0.0
    ends = [(code, argument) for code, argument, _ in busy.said if code >= events.EVENT_DOSE_STEP]
    assert ends[-1] == (events.EVENT_DOSE_DONE, 0)
    assert not any(busy.duty[pump] for pump in PUMPS)
    busy.close()


def test_a_temperature_sensor_that_does_not_answer(busy):
    fault(busy, temperature_fault=1)
    live(busy, 150)
    assert busy.duty[HEATER] == 0.0 and heat_said(busy, "untrusted")
    busy.close()


@pytest.mark.parametrize("kind", [2, 3, 4], ids=["frozen", "no number", "jumps"])
def test_a_temperature_sensor_that_lies(busy, kind):
    fault(busy, temperature_fault=kind)
    live(busy, 300)
    assert busy.duty[HEATER] == 0.0 and heat_said(busy, "untrusted")
    busy.close()


def test_a_tachometer_that_is_silent(busy):
    live(busy, 30)
    fault(busy, tachometer_silent=1)
    live(busy, 60)
    assert heat_said(busy, "unstirred")
    refused = exchange(busy)
    live(busy, 2)
    assert busy.answers[refused] < 0.0
    assert any(code == events.EVENT_STIR_FAULT for code, _, _ in busy.said)
    busy.close()


def test_a_stirrer_that_is_held_ends_the_exchange_and_makes_it_good(busy):
    fault(busy, fan_stalled=1)
    live(busy, 60)
    assert not any(busy.duty[pump] for pump in PUMPS)
    assert busy.loop.simulated_truth()["volume_ml"] <= 14.01
    busy.close()


def test_a_driver_that_is_shorted_is_reported(busy):
    """Heat that nobody has asked for: the envelope cannot end it, and says so."""
    live(busy, 20)
    fault(busy, heater_power_w=0.0)
    live(busy, 400)
    assert heat_said(busy, "blind") or heat_said(busy, "untrusted")
    busy.close()


@pytest.mark.parametrize("pump", ["media", "alt_media", "waste"])
def test_a_blocked_pump_crosses_no_limit(pump):
    vial = Watched(("dosing_automation.config", "inflow_without_evidence_ml", "3"))
    vial.command(ACTUATORS, events.COMMAND_STIR_RPM, 0, 0, 500.0)
    vial.run(10.0)
    fault(vial, **{f"{pump}_pump_efficiency_percent": 0.0})
    refused = 0
    for _ in range(12):
        asked = exchange(vial)
        vial.run(40.0)
        refused += vial.answers[asked] < 0.0
    # with a blocked waste pump 3 mL come in and not a drop more: the vial holds 18
    assert refused == 6
    assert vial.loop.simulated_truth()["volume_ml"] <= 17.01
    vial.close()


def test_a_bus_that_is_held_stops_no_pump_and_no_stirrer(busy):
    fault(busy, adc1_fault=1, adc2_fault=1, temperature_fault=1)
    live(busy, 40)
    assert busy.duty[STIRRER] > 0.0
    assert busy.said[-1][0] is not None
    assert any(code == events.EVENT_DOSE_DONE and argument == 0 for code, argument, _ in busy.said)
    busy.close()


def test_the_loop_ends_with_everything_on(busy):
    busy.close()


class Anything(RuleBasedStateMachine):
    """Any command with any value, any fault at any time: no order leaves the envelope, nothing is left on."""

    @initialize()
    def begin(self):
        self.vial = Watched(("simulation", "ambient_temperature_degc", "24"))

    codes = st.sampled_from(
        [
            events.COMMAND_STIR_RPM,
            events.COMMAND_STIR_DUTY,
            events.COMMAND_STIR_STOP,
            *range(events.COMMAND_HEAT_TARGET, events.COMMAND_HEAT_UNLOCK + 1),
            *range(events.COMMAND_DOSE_ML, events.COMMAND_DOSE_STOP + 1),
            events.COMMAND_HEAT_RENEW,
            events.COMMAND_DOSE_ML,
            events.COMMAND_DOSE_EXCHANGE,
        ]
    )
    values = st.one_of(
        st.floats(), st.floats(0.0, 100.0), st.floats(0.0, 2.0), st.sampled_from([0.0, 37.0, 60.0, 500.0])
    )

    @rule(code=codes, channel=st.integers(0, 4), index=st.integers(-(2**31), 2**31 - 1), value=values)
    def command(self, code, channel, index, value):
        self.vial.command(ACTUATORS, code, channel, index, value)
        self.vial.run(0.02)

    @rule(media=st.floats(0.0, 2.0), alt=st.floats(0.0, 2.0), factor=st.floats(0.0, 3.0))
    def exchange(self, media, alt, factor):
        for pump, ml in enumerate((media, alt, media + alt)):
            self.vial.command(ACTUATORS, events.COMMAND_DOSE_PART, pump, 0, ml)
        self.vial.command(ACTUATORS, events.COMMAND_DOSE_EXCHANGE, 0, 0, factor)
        self.vial.run(0.02)

    @rule()
    def somebody_looks(self):
        truth = self.vial.loop.simulated_truth()["volume_ml"]
        self.vial.command(ACTUATORS, events.COMMAND_VOLUME, 0, 0, truth)
        self.vial.run(0.02)

    @rule(
        what=st.sampled_from(
            [
                ("temperature_fault", 0.0),
                ("temperature_fault", 1.0),
                ("temperature_fault", 2.0),
                ("temperature_fault", 3.0),
                ("temperature_fault", 4.0),
                ("fan_stalled", 0.0),
                ("fan_stalled", 1.0),
                ("tachometer_silent", 0.0),
                ("tachometer_silent", 1.0),
                ("ambient_temperature_degc", 5.0),
                ("ambient_temperature_degc", 30.0),
            ]
        )
    )
    def fail(self, what):
        fault(self.vial, **{what[0]: what[1]})
        self.vial.run(0.02)

    @rule(seconds=st.floats(0.0, 30.0), renewed=st.booleans())
    def go_on(self, seconds, renewed):
        for _ in range(int(seconds)):
            if renewed:
                self.vial.command(ACTUATORS, events.COMMAND_HEAT_RENEW, 0, 0, 0.0)
            self.vial.run(1.0)

    @invariant()
    def nothing_is_dropped(self):
        if hasattr(self, "vial"):
            assert self.vial.loop.counters()["ring_drops"] == 0

    def teardown(self):
        if hasattr(self, "vial"):
            self.vial.close()


TestAnything = Anything.TestCase
TestAnything.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=50,
    deadline=None,
    derandomize=EXAMPLES == FEW,
    suppress_health_check=list(HealthCheck),
)


# --- the limits themselves -------------------------------------------------------------------------------------------


def test_limits_can_be_read():
    vial = Watched()
    limits = vial.loop.limits()
    assert limits["pumps"]["on_maximum_s"] == 30.0 and limits["pumps"]["volume_maximum_ml"] == 18.0
    assert limits["heater"]["shutdown_degc"] == 66.0 and limits["stirrer"]["duty_maximum_percent"] == 100.0


def test_limits_cannot_be_written():
    """A process that tries dies of it."""
    code = (
        "import ctypes; from envelope import Watched; vial = Watched();"
        "address, _ = vial.loop.limits_address();"
        "print(ctypes.c_double.from_address(address).value, flush=True);"
        "ctypes.c_double.from_address(address).value = 1e9"
    )
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, *sys.path])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONPATH": path})
    assert done.stdout == b"100.0\n"
    assert done.returncode == -signal.SIGSEGV


def test_limits_that_change_in_memory_are_put_back_and_what_they_bounded_ends(busy):
    _, working = busy.loop.limits_address()
    before = ctypes.c_double.from_address(working).value
    ctypes.c_double.from_address(working).value = 1e9
    busy.run(0.05)
    assert ctypes.c_double.from_address(working).value == before == 18.0
    assert (events.EVENT_LIMITS_RESTORED, 0, 0.0) in busy.said
    assert busy.duty[HEATER] == 0.0 and not any(busy.duty[pump] for pump in PUMPS[:2])
    busy.close()
