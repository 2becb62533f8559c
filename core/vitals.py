"""How the computer under the worker is: disk, processor, memory, supply, wireless link, clock.

Synchronization: none; belongs to the host thread.
"""

from __future__ import annotations

import os

THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"
HWMON = "sys/class/hwmon"
# bits of the firmware's flags: now, and since the start
UNDER_VOLTAGE_NOW, UNDER_VOLTAGE_BEFORE = 1 << 0, 1 << 16
THROTTLED_NOW = 1 << 1 | 1 << 2 | 1 << 3  # frequency capped, throttled, soft temperature limit

# what is stored over time, with its unit: figures of the computer, and what the bridge and the leader add to them
STORED: dict[str, str] = {
    "cpu_usage_percent": "%",
    "cpu_frequency_mhz": "MHz",
    "cpu_temperature_celcius": "°C",
    "available_memory_percent": "%",
    "disk_usage_percent": "%",
    "disk_available_gb": "GB",
    "wifi_signal_dbm": "dBm",
    "under_voltage": "",
    "throttled": "",
    "clock_synchronized": "",
    "spool_bytes": "B",
    "clock_offset_s": "s",
}


class Vitals:
    """Reads the system's figures; the processor's use is that since the call before.

    `root` is where /proc, /sys and /run are.
    """

    __slots__ = ("_busy", "_directory", "_root", "_total")

    def __init__(self, directory: str, root: str = "/") -> None:
        self._directory = directory  # on the disk whose use is told
        self._root = root
        self._busy = 0
        self._total = 0

    def read(self) -> dict[str, float | bool]:
        """The figures, under the names that the field's dashboards read, without what the system does not tell.

        The spelling of `cpu_temperature_celcius` is the field's.
        """
        figures: dict[str, float | bool] = {}
        for read in (self._disk, self._processor, self._memory, self._supply, self._wireless, self._clock):
            try:
                figures.update(read())
            except (OSError, ValueError, IndexError, KeyError):
                continue  # not there, or written otherwise than here is known: not told
        return figures

    def _disk(self) -> dict[str, float | bool]:
        disk = os.statvfs(self._directory)
        return {
            "disk_usage_percent": round(100 * (1 - disk.f_bavail / max(disk.f_blocks, 1)), 1),
            "disk_available_gb": round(disk.f_bavail * disk.f_frsize / 1e9, 2),
        }

    def _text(self, path: str) -> str:
        """What a file says; empty when it cannot be read."""
        return read_text(os.path.join(self._root, path))

    def _processor(self) -> dict[str, float | bool]:
        """Use from the first line of /proc/stat (jiffies in user, nice, system, idle, iowait, ...), kHz, and m°C."""
        figures: dict[str, float | bool] = {}
        text = self._text("proc/stat")
        if text:
            jiffies = [int(field) for field in text.splitlines()[0].split()[1:9]]
            total, busy = sum(jiffies), sum(jiffies) - jiffies[3] - jiffies[4]
            passed, worked = total - self._total, busy - self._busy
            self._total, self._busy = total, busy
            if passed > 0:
                figures["cpu_usage_percent"] = round(100.0 * worked / passed, 1)
        kilohertz = self._text("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
        if kilohertz:
            figures["cpu_frequency_mhz"] = int(kilohertz) // 1000
        millidegrees = self._text("sys/class/thermal/thermal_zone0/temp")
        if millidegrees:
            figures["cpu_temperature_celcius"] = int(millidegrees) / 1000.0
        return figures

    def _memory(self) -> dict[str, float | bool]:
        text = self._text("proc/meminfo")
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines() if " kB" in line}
        return {"available_memory_percent": round(100.0 * kilobytes["MemAvailable"] / kilobytes["MemTotal"], 1)}

    def _supply(self) -> dict[str, float | bool]:
        flags = throttle_flags(self._root)
        if flags is None:
            return {}
        return {"under_voltage": bool(flags & UNDER_VOLTAGE_NOW), "throttled": bool(flags & THROTTLED_NOW)}

    def _wireless(self) -> dict[str, float | bool]:
        """The level of the first interface, the fourth field of the line after two of headings."""
        lines = self._text("proc/net/wireless").splitlines()[2:]
        return {"wifi_signal_dbm": float(lines[0].split()[3])} if lines else {}

    def _clock(self) -> dict[str, float | bool]:
        """Whether systemd-timesyncd, where it runs, has set the clock; its offset would cost a system call's layout."""
        if not os.path.isdir(os.path.join(self._root, "run/systemd/timesync")):
            return {}
        return {"clock_synchronized": os.path.exists(os.path.join(self._root, "run/systemd/timesync/synchronized"))}


def read_text(path: str) -> str:
    """What a small file says, without white space at its ends; empty when it cannot be read."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def throttle_flags(root: str = "/") -> int | None:
    """The flags of a Raspberry Pi's firmware, or under-voltage alone where only the kernel's driver tells it.

    None on other computers.
    """
    text = read_text(os.path.join(root, THROTTLED))
    if text:
        return int(text, 16)
    monitors = os.path.join(root, HWMON)
    for name in sorted(os.listdir(monitors)) if os.path.isdir(monitors) else ():
        if read_text(os.path.join(monitors, name, "name")) == "rpi_volt":
            alarm = read_text(os.path.join(monitors, name, "in0_lcrit_alarm"))
            return UNDER_VOLTAGE_NOW if alarm == "1" else 0
    return None
