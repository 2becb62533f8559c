"""Controllers of the loop for NumPy users; the worker never loads this module."""

from collections.abc import Sequence
from typing import TypedDict, Unpack

import numpy as np
import numpy.typing as npt

DUTY_CEILING_PERCENT: int
RAMP_CEILING: int
RPM_CEILING: int
RPM_FLOOR: int
RPM_LIMIT: int
CURVE_POINTS: int
CURVE_LINE: int
KICK_CEILING_S: float
RETRIES_CEILING: int
PHASES: dict[int, str]

class Fit(TypedDict):
    rpm: float
    standard_error_rpm: float
    window_s: float
    turn_mean_ns: float
    turn_sd_ns: float
    turns: int
    used: int
    bounded: int
    bounced: int
    lost: int
    restarts: int
    bound_rpm: float

class Settings(TypedDict, total=False):
    pulses_per_turn: int
    use_rpm: int
    stall_retries: int
    kp: float
    ki: float
    kd: float
    feed_forward_offset_percent: float
    feed_forward_percent_per_rpm: float
    duty_maximum_percent: float
    kick_duty_percent: float
    kick_s: float
    rpm_maximum: float
    ramp_rpm_per_s: float
    report_period_s: float
    turns_window_s: float

def fit_edges(
    stamps_ns: npt.NDArray[np.int64], now_ns: int, window_s: float = 1.0, pulses_per_turn: int = 1
) -> Fit: ...
def stirring_defaults() -> Settings: ...

class Stirrer:
    def __init__(self, **settings: Unpack[Settings]) -> None: ...
    def target_rpm(self, rpm: float, now_ns: int) -> None: ...
    def duty(self, duty_percent: float, now_ns: int) -> None: ...
    def ramp(self, rpm_per_s: float) -> None: ...
    def curve(self, duty_percent: Sequence[float], low_rpm: float, high_rpm: float) -> None: ...
    def dodge(self, period_s: float, quiet_s: float, quiet_rpm: float, now_ns: int, on: bool = True) -> None: ...
    def line(self) -> None: ...
    def stop(self, now_ns: int) -> None: ...
    def edge(self, stamp_ns: int) -> bool: ...
    def tick(self, now_ns: int) -> tuple[float, int, float]: ...
    def ticks(self, start_ns: int, step_ns: int, count: int) -> float: ...
    def reading(self, now_ns: int) -> bytes | None: ...
    def turns(self, now_ns: int) -> bytes | None: ...
    def snapshot(self) -> bytes: ...
    def restore(self, snapshot: bytes) -> None: ...
    @property
    def phase(self) -> str: ...
    @property
    def counters(self) -> dict[str, int]: ...
