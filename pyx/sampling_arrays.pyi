"""The sampler on a bench: virtual time in which each transfer takes its time on the bus. Never loaded by the worker.

Synchronization: none; an object belongs to one thread at a time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

PACES: dict[str, int]
KINDS: tuple[str, ...]
TRANSFER_DTYPE: np.dtype[Any]

class SamplerBench:
    def __init__(
        self,
        plans: Sequence[Mapping[str, Any]],
        angles: Sequence[int],
        parameters: Sequence[float],
        *,
        seed: int = 1,
        late_ns: ArrayLike | None = None,
        mains_hz: float = 50.0,
        rpm: float = 0.0,
        half_cycle: int = 0,
        low: int = 4,
        high: int = 9,
        full_scale_v: float = 1.024,
        led_duty: float = 50.0,
        window_s: float = 1.0,
        readings_per_second: float = 10.0,
        slow_ns: int = 470000,
        led_stages: bool = False,
        leds_locked: int = 0,
    ) -> None: ...
    def push(self, code: int, value: float, channel: int = 0, index: int = 0) -> None: ...
    def set(self, parameter: int, value: float) -> None: ...
    def stick(self, channel: int, stuck: bool) -> None: ...
    def refuse_leds(self, refuse: bool) -> None: ...
    def stir(self, rpm: float, unlocked_hz: float = 0.0) -> None: ...
    def run(self, seconds: float) -> tuple[bytes, bytes, list[tuple[int, float, int, int, int]]]: ...
    def now_ns(self) -> int: ...
    def transfers(self) -> NDArray[Any]: ...
    def look(self) -> dict[str, Any]: ...

def light_share(lag_ns: ArrayLike, aperture_ns: float, half_ns: float, tau_ns: float) -> NDArray[np.float64]: ...
def fit_light_path(
    lag_ns: ArrayLike,
    codes: ArrayLike,
    on: ArrayLike,
    aperture_ns: float,
    half_ns: float,
    delay_step_ns: float = 0.0,
) -> dict[str, float]: ...
