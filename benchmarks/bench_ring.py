"""The ring between a loop's thread and the host: eight bytes in, eight bytes out; and the lateness histogram."""

import numpy as np
from stirbar.rt.core_arrays import Histogram, Ring

ROUNDS = 1000
BATCH = 64


class Rings:
    items = ROUNDS * BATCH

    def setup(self):
        self.ring = Ring(8, 1024)
        self.histogram = Histogram()
        self.lateness_ns = np.random.default_rng(1).integers(0, 1_000_000, self.items)

    def time_push_pop_batches(self):
        for _ in range(ROUNDS):
            self.ring.produce(0, BATCH)
            self.ring.consume(0, BATCH, BATCH)

    def time_histogram(self):
        self.histogram.add(self.lateness_ns)
