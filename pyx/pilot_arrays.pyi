"""The converter's clock without a ready line, and gain ranging, for NumPy users; see docs/converter-clock.md.

Synchronization: none; an object belongs to one thread at a time. Never loaded by the worker.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

NOTHING: int
NEW: int
REPEATED: int
UNSURE: int
STATES: dict[int, str]
STATE_BYTES: int
GAIN_RANGES: int
GAIN_AUTO: int
GAIN_WRITE: int
GAIN_LIGHT_OFF: int
GAIN_MOVED: int
GAIN_OVER_VOLTAGE: int
GAIN_WARNING: int
GAIN_IN_FORCE: int
GAIN_FRESH: int
GAIN_FOREIGN: int
GAIN_STATES: dict[int, str]

class PilotChain:
    """Which conversion a silent, free-running converter's register holds, from the edges of the light (IS-22).

    `rate_hz` is nominal (11 % off at most), `settle_ns` how long the light takes to 0.1 %. Raises ValueError for a rate
    that is not above 0, or a negative time.
    """

    def __init__(self, rate_hz: float, settle_ns: int = 0, now_ns: int = 0) -> None: ...
    def read(self, latch_ns: int, code: int, clipped: bool = False) -> int:
        """The register held `code` at that time: NEW (conversion `index`), REPEATED, UNSURE, or NOTHING before a lock."""

    def reads(self, latch_ns: ArrayLike, code: ArrayLike, clipped: ArrayLike | None = None) -> NDArray[np.uint8]:
        """Many reads, all of shape (n,); what `read` says of each. Raises ValueError for unequal lengths."""

    def edge(self, from_ns: int, to_ns: int) -> None:
        """The light went on or off between these moments."""

    def end_ns(self, index: int) -> int:
        """When conversion `index` ends."""

    def next_ns(self, lead_ns: int = 0) -> int:
        """When to wake for the next read, `lead_ns` earlier where the light is to be switched first."""

    @property
    def next_edge_ns(self) -> int:
        """When the light is to change while the clock is sought; far away once it is locked."""

    @property
    def index(self) -> int: ...
    @property
    def state(self) -> str: ...
    @property
    def locked(self) -> bool: ...
    @property
    def rate_hz(self) -> float: ...
    @property
    def period_ns(self) -> float: ...
    @property
    def end_sd_ns(self) -> float:
        """Standard error of the clock's phase, without what all edges have in common."""

    @property
    def period_sd_ns(self) -> float: ...
    @property
    def edge_sd_ns(self) -> float:
        """Scatter of one edge, as learned."""

    @property
    def swing(self) -> float: ...
    @property
    def noise(self) -> float: ...
    @property
    def guard(self) -> float: ...
    def counters(self) -> dict[str, int]:
        """missed, repeated, unsure, outliers, faint, locks, corrections."""

    def correct(self, conversions: int, residual_ns: float) -> None:
        """The filter alone: carry the clock on by conversions, then correct it by a residual."""

    def covariance(self) -> NDArray[np.float64]:
        """Of end and period, ns^2, shape (2, 2)."""

    def periodogram(self) -> tuple[NDArray[np.float64], NDArray[np.complex128]]:
        """Rates (Hz) and the sums of the edges' moments turned by them, both of shape (105,)."""

class GainChain:
    """Which range a converter is to have (IS-15, 32). `full_scale_v` None follows the light, else the range is fixed.

    Raises ValueError for a full scale that the chip does not have.
    """

    def __init__(self, full_scale_v: float | None = None, rate_hz: float = 860.0) -> None: ...
    def chop(self) -> int:
        """The light is about to go on. Returns what to do, GAIN_WRITE... as bits."""

    def conversion(self, code: int, clipped: bool, phase: int) -> int:
        """One conversion (phase 0 off, 1 on, 2 edge), after `admit`. Returns what to do, as bits."""

    def written(self, from_ns: int, to_ns: int) -> None:
        """The range `full_scale_v` was written between these moments."""

    def admit(self, begin_ns: int, end_ns: int) -> int:
        """At which range a conversion was made: GAIN_IN_FORCE, GAIN_FRESH or GAIN_FOREIGN."""

    @property
    def full_scale_v(self) -> float: ...
    @property
    def volts_per_code(self) -> float: ...
    @property
    def multiple(self) -> int: ...
    @property
    def holds_light(self) -> bool: ...
    @property
    def state(self) -> str: ...
    @property
    def level_v(self) -> float: ...
    @property
    def moves(self) -> int: ...
    @property
    def corrections(self) -> NDArray[np.float64]:
        """Of the six ranges, lowest gain first: volts = code * nominal * correction."""

    @property
    def ratios(self) -> NDArray[np.float64]:
        """Log ratio of each range to the one below and its standard error, shape (5, 2)."""
