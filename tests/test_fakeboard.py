"""The contract of the two benches: the fake board does what the simulator kernel does, and both what the chips do."""

from __future__ import annotations

import errno

import pytest

from board_bench import board
from board_uapi import FALLING, INPUT, I2c, Lines

pytestmark = board("eyespy")

ADC = 0x48


def test_registers_after_power_on(bench):
    with I2c() as bus:
        assert [bus.get(ADC, register) for register in range(4)] == [0, 0x8583, 0x8000, 0x7FFF]
        assert bus.get(0x4F, 0) == 0x1900
        bus.put(ADC, 1, 0x4283)
        assert bus.get(ADC, 1) == 0x4283
        bench.unplug(ADC)
        with pytest.raises(OSError) as raised:
            bus.get(ADC, 1)
        assert raised.value.errno == errno.EREMOTEIO
        assert bus.get(0x4F, 0) == 0x1900
        bench.replug(ADC)
        assert bus.get(ADC, 1) == 0x8583


def test_ready_edges(bench):
    with I2c() as bus, Lines(27, INPUT | FALLING, room=64) as ready:
        bus.put(ADC, 2, 0)
        bus.put(ADC, 3, 0x8000)
        bus.put(ADC, 1, 0x42E0)
        events = ready.events(100)
        ends = {c.end_ns: c.number for c in bench.conversions(ADC)}
        assert [ends[e.stamp_ns] for e in events] == list(range(ends[events[0].stamp_ns], ends[events[0].stamp_ns] + len(events)))
