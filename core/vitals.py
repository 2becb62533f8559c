"""How the computer under the worker is: disk, processor, memory, temperature.

Synchronization: none; belongs to the host thread.
"""

from __future__ import annotations

import os


class Vitals:
    """Reads the system's figures; the processor's use is that since the call before."""

    __slots__ = ("_busy", "_directory", "_total")

    def __init__(self, directory: str) -> None:
        self._directory = directory  # on the disk whose use is told
        self._busy = 0
        self._total = 0

    def read(self) -> dict[str, float]:
        """Percentages and °C, under the names that the field's dashboards read, without what the system does not tell.

        The spelling of `cpu_temperature_celcius` is the field's.
        """
        figures: dict[str, float] = {}
        disk = os.statvfs(self._directory)
        if disk.f_blocks:
            figures["disk_usage_percent"] = round(100 * (1 - disk.f_bavail / disk.f_blocks), 1)
        usage = self._processor_percent()
        if usage is not None:
            figures["cpu_usage_percent"] = round(usage, 1)
        memory = _memory_available_percent()
        if memory is not None:
            figures["available_memory_percent"] = round(memory, 1)
        celsius = _processor_celsius()
        if celsius is not None:
            figures["cpu_temperature_celcius"] = celsius
        return figures

    def _processor_percent(self) -> float | None:
        """From the first line of /proc/stat: jiffies in user, nice, system, idle, iowait, ..."""
        text = _read("/proc/stat")
        if text is None:
            return None
        jiffies = [int(field) for field in text.splitlines()[0].split()[1:9]]
        total, busy = sum(jiffies), sum(jiffies) - jiffies[3] - jiffies[4]
        passed, worked = total - self._total, busy - self._busy
        self._total, self._busy = total, busy
        return 100.0 * worked / passed if passed > 0 else None


def _read(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return None


def _memory_available_percent() -> float | None:
    text = _read("/proc/meminfo")
    if text is None:
        return None
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines() if " kB" in line}
    if "MemAvailable" not in kilobytes:
        return None
    return 100.0 * kilobytes["MemAvailable"] / kilobytes["MemTotal"]


def _processor_celsius() -> float | None:
    text = _read("/sys/class/thermal/thermal_zone0/temp")
    return None if text is None else int(text) / 1000.0
