"""The whole tick in virtual time, with the simulated vial and without a host; and the vial alone."""

from stirbar.core.bench import worker_config
from stirbar.core.bench_loop import start_everything
from stirbar.core.simulation import PARAMETERS
from stirbar.rt.loop import Loop
from stirbar.rt.sim_arrays import SimulatedVial, run_chopped

SECONDS = 5


class Tick:
    items = 1253 * SECONDS  # ticks of all tasks

    def setup(self):
        self.config = worker_config()
        self.loop = Loop(self.config, virtual=True)
        start_everything(self.loop, self.config)
        self.time_tick()  # clocks locked, light settled

    def time_tick(self):
        for _ in range(SECONDS):
            self.loop.run_until(self.loop.now_ns() + 1_000_000_000)
            self.loop.drain_readings()


class Vial:
    items = 2 * 860 * SECONDS  # conversions

    def setup(self):
        self.vial = SimulatedVial([parameter.default for parameter in PARAMETERS])
        for channel in (0, 1):
            self.vial.adc_start(channel)

    def time_conversions(self):
        run_chopped(self.vial, 2, SECONDS, 8)
