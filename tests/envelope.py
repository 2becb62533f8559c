"""The envelope that every actuator of a simulated vial is held to, whatever fails: from what the loop has ordered."""

from __future__ import annotations

from stirbar.core import events
from stirbar.core.bench import worker_config
from stirbar.core.jobs import ACTUATORS, SAMPLING
from stirbar.rt.loop import Loop

SECOND = 1_000_000_000
TICK_NS = 10_000_000
STIRRER, HEATER, MEDIA, ALT_MEDIA, WASTE = range(5)
PUMPS = (MEDIA, ALT_MEDIA, WASTE)
LEASE_NS = 5 * SECOND
SHUTDOWN_DEGC = 66.0  # of the strictest vial
FILL_ML, FLOW_ML_PER_S = 18.0, 0.5
ON_MAXIMUM_S = 30.0
GRACE_ML = FLOW_ML_PER_S * 0.06  # the guard's 50 ms, and a tick


class Watched:
    """A loop in virtual time, watched: each order against the envelope, each early end against what was said of it."""

    def __init__(self, *settings: tuple[str, str, str]) -> None:
        self.loop = Loop(
            worker_config(
                None,
                [
                    ("simulation", "pump_spread_percent", "0"),
                    ("simulation", "pump_ml_per_s", str(FLOW_ML_PER_S)),
                    ("simulation", "volume_ml", "14"),
                    ("simulation", "waste_tube_ml", "14"),
                    ("bioreactor", "initial_volume_ml", "14"),
                    ("bioreactor", "efflux_tube_volume_ml", "14"),
                    ("dosing_automation.config", "maximum_on_time_s", str(ON_MAXIMUM_S)),
                    *settings,
                ],
            ),
            virtual=True,
        )
        self.number = 0
        self.duty = [0.0] * 5
        self.on_ns = [0] * 5
        self.renewed_ns = self.loop.now_ns()
        self.said: list[tuple[int, int, float]] = []  # (code, argument, value)
        self.answers: dict[int, float] = {}  # id: 0, or what a refusal said
        self.orders = 0
        for pump in range(3):
            self.command(ACTUATORS, events.COMMAND_PUMP, pump, 0, FLOW_ML_PER_S)
        self.command(SAMPLING, events.COMMAND_TEMPERATURE, 0, 0, 1.0)
        self.run(0.1)

    def command(self, thread: int, code: int, channel: int, index: int, value: float) -> int:
        self.number += 1
        assert self.loop.push(thread, self.number, code, channel, index, value)
        if code in (events.COMMAND_HEAT_RENEW, events.COMMAND_HEAT_TARGET, events.COMMAND_HEAT_DUTY):
            self.renewed_ns = self.loop.now_ns() + TICK_NS
        return self.number

    def run(self, seconds: float) -> None:
        """Run on, at most a second between two looks."""
        end_ns = self.loop.now_ns() + int(seconds * SECOND)
        while self.loop.now_ns() < end_ns:
            self.loop.run_until(min(end_ns, self.loop.now_ns() + SECOND))
            self.look()

    def look(self) -> None:
        for _, value, argument, code, _ in self.loop.drain_events():
            if code in (events.EVENT_COMMAND_DONE, events.EVENT_COMMAND_REFUSED):
                self.answers[argument] = value if code == events.EVENT_COMMAND_REFUSED else 0.0
            else:
                self.said.append((code, argument, value))
        self.loop.drain_readings()
        for at_ns, output, duty in self.loop.simulated_orders():
            assert output >= 0, "orders that nobody has seen"
            self._order(at_ns, output, duty)
        self._truth()

    def _order(self, at_ns: int, output: int, duty: float) -> None:
        self.orders += 1
        assert 0.0 <= duty <= 100.0
        if output in PUMPS and duty > 0.0:
            assert not any(self.duty[other] for other in PUMPS if other != output), "two pumps at once"
        if self.duty[output] > 0.0 and duty == 0.0 and output in PUMPS:
            assert at_ns - self.on_ns[output] <= ON_MAXIMUM_S * SECOND + TICK_NS, "a pump was on for too long"
        if duty > 0.0 and self.duty[output] == 0.0:
            self.on_ns[output] = at_ns
        if output == HEATER and duty > 0.0:
            assert at_ns <= self.renewed_ns + LEASE_NS + 2 * TICK_NS, "heat that nobody has asked for"
        self.duty[output] = duty

    def _truth(self) -> None:
        now_ns, truth = self.loop.now_ns(), self.loop.simulated_truth()
        assert truth["volume_ml"] <= FILL_ML + GRACE_ML
        assert truth["board_degc"] <= SHUTDOWN_DEGC + 1.0
        if now_ns > self.renewed_ns + LEASE_NS + 2 * TICK_NS:
            assert self.duty[HEATER] == 0.0, "the heater's lease has lapsed"
        for pump in PUMPS:
            if self.duty[pump] > 0.0:
                assert now_ns - self.on_ns[pump] <= ON_MAXIMUM_S * SECOND + TICK_NS

    def all_off(self) -> bool:
        return not any(self.duty)

    def close(self) -> None:
        """Stop the loop: nothing is left on."""
        self.loop.stop()
        self.look()
        assert self.all_off(), self.duty
