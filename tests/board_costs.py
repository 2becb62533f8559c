"""What system calls on a board cost, on either bench:

python tests/board_bench.py fake -c 48:ads1114,49:ads1114,4a:ads1114,4b:ads1114 -a 48:5,49:6,4a:7,4b:8 \
    python tests/board_costs.py
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable

from board_bench import current_bench
from board_uapi import FALLING, GET_VALUES, INPUT, OUTPUT, SET_VALUES, I2c, Lines


def quantiles(call: Callable[[], object], count: int) -> str:
    """Microseconds of a call."""
    took = []
    for _ in range(count):
        before = time.perf_counter_ns()
        call()
        took.append(time.perf_counter_ns() - before)
    took.sort()
    return "  ".join(f"{name} {took[int(share * (count - 1))] / 1000:8.1f}" for name, share in
                     (("p50", 0.5), ("p99", 0.99), ("max", 1.0)))  # fmt: skip


def four_converters(bus: I2c, seconds: float) -> str:
    """Every conversion of four ADS1114 at 860/s read when its edge comes, 3440 edges/s, at a bus without pacing."""
    bench = current_bench()
    assert bench is not None
    bench.write("board/i2c-1/bus_hz", 0)
    lines = {}
    for address, line in sorted(bench.ready.items()):
        bus.put(address, 2, 0)
        bus.put(address, 3, 0x8000)
        lines[address] = Lines(line, INPUT | FALLING, room=256)
        bus.put(address, 1, 0x42E0)
    got = lost = 0
    last: dict[int, int] = {}
    begun, used = time.monotonic(), time.process_time()
    while time.monotonic() - begun < seconds:
        for address, line in lines.items():
            for event in line.events(1, 0.01):
                got += 1
                lost += event.line_number - last.get(address, event.line_number - 1) - 1
                last[address] = event.line_number
                bus.get(address, 0)
    share = (time.process_time() - used) / (time.monotonic() - begun)
    for address, line in lines.items():
        bus.put(address, 1, 0x0583)
        line.close()
    bench.write("board/i2c-1/bus_hz", 100_000)
    return f"{got / seconds:.0f} edges/s and reads, {lost} lost; {100 * share:.0f} % of a processor for the program"


def main() -> None:
    """Prints a table."""
    bench = current_bench()
    assert bench is not None, "run this by board_bench.py"
    address = min(bench.chips)
    with I2c() as bus, Lines(17, OUTPUT, 0) as output, Lines(9, INPUT | FALLING) as quiet:
        values = struct.pack("=QQ", 1, 1)
        os.set_blocking(quiet.fd, False)

        def nothing() -> None:
            try:
                os.read(quiet.fd, 48)
            except BlockingIOError:
                return

        print("us: GPIO_V2_LINE_SET_VALUES    ", quantiles(lambda: fcntl.ioctl(output.fd, SET_VALUES, values), 20_000))
        print("us: GPIO_V2_LINE_GET_VALUES    ", quantiles(lambda: fcntl.ioctl(output.fd, GET_VALUES, values), 20_000))
        print("us: read of no event           ", quantiles(nothing, 20_000))
        print("us: register read, 490 of bus  ", quantiles(lambda: bus.get(address, 1), 1_000))
        if len(bench.ready) == 4:
            print("four ADS1114:", four_converters(bus, 5))


if __name__ == "__main__":
    main()
