"""What the dialect says of the machine on `monitor/…`: versions, addresses, how full the disk is.

Pure functions: each reads the machine once and returns what to say.
"""

from __future__ import annotations

import os

INTERFACES = "/sys/class/net"
MODEL = "/proc/device-tree/model"
_ETHERNET = "1"  # ARPHRD_ETHER, of cable and radio alike


def versions(app: object, when: str) -> dict[str, object]:
    """The field's struct; what a worker does not tell is empty, as there."""
    model = _text(MODEL).rstrip("\0") or os.uname().machine
    return {"app": str(app), "hat": "", "firmware": "", "hat_serial": "", "rpi_machine": model, "timestamp": when}


def statistics(path: str, when: str) -> dict[str, object]:
    """The disk that holds `path`, and the processor's temperature."""
    disk = os.statvfs(path)
    return {
        "disk_usage_percent": round(100 * (1 - disk.f_bavail / max(disk.f_blocks, 1))),
        "cpu_temperature_celcius": _cpu_temperature(),  # spelt as the dialect spells it
        "timestamp": when,
    }


def addresses() -> dict[str, str]:
    """`wlan_mac_address` and `eth_mac_address` of the interfaces that are devices; several are joined by commas."""
    found: dict[str, list[str]] = {"wlan_mac_address": [], "eth_mac_address": []}
    try:
        names = sorted(os.listdir(INTERFACES))
    except OSError:
        names = []
    for name in names:
        place = f"{INTERFACES}/{name}"
        if os.path.exists(f"{place}/device") and _text(f"{place}/type") == _ETHERNET:
            kind = "wlan" if os.path.exists(f"{place}/wireless") else "eth"
            found[f"{kind}_mac_address"].append(_text(f"{place}/address"))
    return {setting: ",".join(several) for setting, several in found.items()}


def _cpu_temperature() -> float | None:
    try:
        return round(int(_text("/sys/class/thermal/thermal_zone0/temp")) / 1000)
    except ValueError:
        return None


def _text(path: str) -> str:
    """A small file's text; nothing where it cannot be read."""
    try:
        with open(path) as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""
