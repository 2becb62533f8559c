"""A vial on its heater board for tests and benchmarks of the heater, and the slow, obvious twin of its observer."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from stirbar.core.vials import vial
from stirbar.rt.heat_arrays import Heater

LSB_DEGC = 0.0625
SECOND = 1_000_000_000
HEAT = ("power_w", "power_sd", "board_j_per_k", "board_sd", "coupling_w_per_k", "coupling_sd", "board_loss_w_per_k",
        "liquid_loss_w_per_k", "loss_sd", "volume_sd")  # fmt: skip
CONTROL = {"kp": 0.4, "ki": 0.0007, "ramp_degc_per_min": 0.0, "dither": 0.1, "dither_period_s": 180.0}


def limits(**changes: float) -> dict[str, float]:
    """HeatLimits of the strictest vial."""
    model = vial("pioreactor_20ml_1.0")
    values = {name: model[name] for name in ("reduce_degc", "disable_degc", "shutdown_degc", "blind_duty_percent",
                                             "energy_maximum_j")}  # fmt: skip
    return {
        "duty_maximum_percent": 100.0,
        "target_maximum_degc": 60.0,
        "blind_s": 60.0,
        "lease_s": 5.0,
        **values,
        **changes,
    }


def heat_of_a_vial() -> dict[str, float]:
    """LiquidConfig of a vial."""
    model = vial("pioreactor_20ml_1.0")
    return {name: model[name] for name in HEAT}


class Plant:
    """Board and liquid, two nodes, in steps of 0.1 s; `spread` 1 draws a unit that differs as units do, 0 the model.

    Synchronization: none.
    """

    def __init__(self, seed: int, spread: float = 1.0, air_degc: float | None = None) -> None:
        self.random = np.random.default_rng(seed)
        model = heat_of_a_vial()
        units = np.random.default_rng(1000 + seed)
        self.air_degc = float(units.uniform(18, 28)) if air_degc is None else air_degc
        self.volume_ml = float(units.uniform(12, 16))

        def draw(name: str, relative: float) -> float:
            return model[name] * math.exp(spread * relative * units.standard_normal())

        self.power_w = draw("power_w", 0.05)
        self.board_j_per_k = draw("board_j_per_k", 0.1)
        self.coupling_w_per_k = draw("coupling_w_per_k", 0.3)
        self.board_loss_w_per_k = draw("board_loss_w_per_k", 0.15)
        self.liquid_loss_w_per_k = draw("liquid_loss_w_per_k", 0.15)
        self.liquid_j_per_k = 4.18 * self.volume_ml
        self.board_degc = self.liquid_degc = self.air_degc

    def run(self, duty_percent: float, seconds: float = 1.0) -> float:
        """Run on, and return what the sensor says: steps of 0.0625 degC with 0.02 degC of noise."""
        for _ in range(round(10 * seconds)):
            across = self.coupling_w_per_k * (self.board_degc - self.liquid_degc)
            board_w = 0.01 * self.power_w * duty_percent - across
            board_w -= self.board_loss_w_per_k * (self.board_degc - self.air_degc)
            liquid_w = across - self.liquid_loss_w_per_k * (self.liquid_degc - self.air_degc)
            self.board_degc += 0.1 * board_w / self.board_j_per_k
            self.liquid_degc += 0.1 * liquid_w / self.liquid_j_per_k
        noisy = self.board_degc + 0.02 * self.random.standard_normal()
        return math.floor(noisy / LSB_DEGC + 0.5) * LSB_DEGC


class Run:
    """A heater on a plant, a reading and a tick a second; `rows`: s, board, liquid, estimate, standard error, duty."""

    def __init__(self, plant: Plant, target_degc: float = 37.0, **changes: float) -> None:
        self.plant = plant
        self.heater = Heater(
            vial=heat_of_a_vial(), limits=limits(**changes), control=CONTROL, volume_ml=plant.volume_ml
        )
        self.target_degc = target_degc
        self.duty_percent = 0.0
        self.second = 0
        self.leased = True
        self.rows: list[tuple[float, ...]] = []
        self.told: list[tuple[int, tuple[str, ...], str]] = []  # (s, reasons, distrust), when they changed

    def run(self, seconds: int, sensor: Callable[[int, float], float | None] = lambda _, shown: shown) -> None:
        """Run on; `sensor` makes of (s, what it should say) what it says, None: nothing."""
        for _ in range(seconds):
            self.second += 1
            now_ns = self.second * SECOND
            shown = sensor(self.second, self.plant.run(self.duty_percent))
            if shown is not None:
                self.heater.reading(shown, now_ns)
            if self.second == 5:
                self.heater.target(self.target_degc, now_ns)
            elif self.second > 5 and self.leased:
                self.heater.renew(now_ns)
            self.duty_percent = self.heater.tick(now_ns)
            plant = self.plant
            self.rows.append((self.second, plant.board_degc, plant.liquid_degc, self.heater.liquid_degc,
                              self.heater.liquid_se_degc, self.duty_percent))  # fmt: skip
            state = (tuple(self.heater.reasons), self.heater.distrust)
            if not self.told or self.told[-1][1:] != state:
                self.told.append((self.second, *state))

    def table(self) -> np.ndarray:
        return np.array(self.rows)


class ObserverTwin:
    """The observer of pyx/liquid.pxd with whole matrices, for readings a second apart."""

    def __init__(self, board_degc: float, volume_ml: float) -> None:
        model = heat_of_a_vial()
        names = ("coupling_w_per_k", "power_w", "board_j_per_k", "board_loss_w_per_k", "liquid_loss_w_per_k")
        self.x = np.array([board_degc] * 3 + [math.log(model[name]) for name in names] + [math.log(4.18 * volume_ml)])
        relative = [model[name] for name in ("coupling_sd", "power_sd", "board_sd", "loss_sd", "loss_sd", "volume_sd")]
        self.covariance = np.diag([0.1, 1.0, 4.0, *np.square(relative)])
        self.noise = np.zeros(9)
        self.noise[:4] = np.square([0.002, 0.0005, 0.00215, 0.00033])

    def rates(self, x: np.ndarray, duty: float) -> np.ndarray:
        board, liquid, air = x[:3]
        coupling, power, board_heat, board_loss, liquid_loss, liquid_heat = np.exp(x[3:])
        across = coupling * (board - liquid)
        change = np.zeros(9)
        change[0] = (power * duty - across - board_loss * (board - air)) / board_heat
        change[1] = (across - liquid_loss * (liquid - air)) / liquid_heat
        return change

    def step(self, duty: float, board_degc: float) -> None:
        """A second at a duty, then a reading. The Jacobian is numerical."""
        move = np.eye(9)
        for i in range(9):
            nudge = np.zeros(9)
            nudge[i] = 1e-6
            move[:, i] += (self.rates(self.x + nudge, duty) - self.rates(self.x - nudge, duty)) / 2e-6
        self.x = self.x + self.rates(self.x, duty)
        self.covariance = move @ self.covariance @ move.T + np.diag(self.noise)
        gain = self.covariance[:, 0] / (self.covariance[0, 0] + 0.04)
        self.x = self.x + gain * (board_degc - self.x[0])
        self.covariance = self.covariance - np.outer(gain, self.covariance[0])
