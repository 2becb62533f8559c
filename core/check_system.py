"""`stirbar hardware check`: what the kernel grants and how it is set up.

Synchronization: none; one thread at a time.
"""

from __future__ import annotations

import os
import resource

from stirbar.core.check_report import FAIL, NOTE, OK, SKIP, WARN, Finding, judge
from stirbar.core.detection import read_tree
from stirbar.core.vitals import UNDER_VOLTAGE_BEFORE, UNDER_VOLTAGE_NOW, read_text, throttle_flags

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from stirbar.core.config import Config

CONFIG_TXT = "/boot/firmware/config.txt"
RT_RUNTIME = "/proc/sys/kernel/sched_rt_runtime_us"
# What decides whether a line keeps its level when the program that drove it ends; Y: it does.
PERSISTENCE = (
    "/sys/module/pinctrl_rp1/parameters/persist_gpio_outputs",
    "/sys/module/pinctrl_bcm2835/parameters/persist_gpio_outputs",
    "/sys/module/gpio_sim/parameters/persist_outputs",
)
LOCKED_BYTES = 64 << 20
LIMITS_REMEDY = "start the worker by its systemd unit, or write `@stirbar - {} {}` into /etc/security/limits.d"


def _groups() -> Iterator[Finding]:
    import grp

    if os.geteuid() == 0:
        yield Finding(NOTE, "user", "root, so groups were not looked at; run this as the worker's user, too")
        return
    for name, device in (("i2c", "/dev/i2c-*"), ("gpio", "/dev/gpiochip*")):
        try:
            member = grp.getgrnam(name).gr_gid in (os.getegid(), *os.getgroups())
        except KeyError:
            yield Finding(SKIP, f"group {name}", "this system has none; access goes by the devices' mode")
            continue
        yield judge(
            member,
            f"group {name}",
            "member" if member else "no member",
            f"may open {device}",
            f"sudo usermod -aG {name} $USER, then log in again",
            WARN,
        )


def _real_time(config: Config) -> Iterator[Finding]:
    priority = max(config.get("loop.config", f"priority_{name}") for name in ("sampling", "actuators"))
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(max(1, priority)))
        os.sched_setscheduler(0, policy, parameter)
        granted = True
    except OSError:
        granted = False
    yield judge(
        granted,
        "real-time priority",
        "granted" if granted else "refused",
        f"SCHED_FIFO {priority}",
        LIMITS_REMEDY.format("rtprio", priority),
        WARN,
    )
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    enough = os.geteuid() == 0 or locked == resource.RLIM_INFINITY or locked >= LOCKED_BYTES
    yield judge(
        enough,
        "locked memory",
        "any (root)" if os.geteuid() == 0 else "unlimited" if locked < 0 else f"{locked >> 20} MB",
        f"{LOCKED_BYTES >> 20} MB or more",
        LIMITS_REMEDY.format("memlock", "unlimited"),
        WARN,
    )
    runtime = read_text(RT_RUNTIME)
    if runtime:
        yield judge(
            runtime != "-1",
            "real-time throttling",
            f"sched_rt_runtime_us = {runtime}",
            "not -1",
            "sudo sysctl kernel.sched_rt_runtime_us=950000: else a thread that runs wild stops the whole machine",
        )


def _power() -> Iterator[Finding]:
    flags = throttle_flags()
    if flags is None:
        yield Finding(SKIP, "supply voltage", "the firmware's flags are not here (no Raspberry Pi?)")
        return
    state = "under-voltage now" if flags & UNDER_VOLTAGE_NOW else "under-voltage since the start"
    low = flags & (UNDER_VOLTAGE_NOW | UNDER_VOLTAGE_BEFORE)
    yield judge(
        not low,
        "supply voltage",
        state if low else "no under-voltage since the start",
        "no flag",
        "use a supply of 5.1 V, 3 A with a short cable",
        FAIL if flags & UNDER_VOLTAGE_NOW else WARN,
    )


def _release() -> Iterator[Finding]:
    for path in PERSISTENCE:
        value = read_text(path)
        if value:
            yield judge(
                value in ("N", "0"),
                "lines when their program ends",
                "become inputs" if value in ("N", "0") else "keep their level",
                "become inputs",
                f"write dtparam=strict_gpiod into {CONFIG_TXT}: a second safeguard behind the guard",
                WARN,
            )
            return
    yield Finding(SKIP, "lines when their program ends", "this kernel does not say")


def _latency(config: Config) -> Iterator[Finding]:
    if config.get("loop.config", "cpu_dma_latency_us") < 0 or not os.path.exists("/dev/cpu_dma_latency"):
        return
    allowed = os.access("/dev/cpu_dma_latency", os.W_OK)
    yield judge(
        allowed,
        "sleep states of the CPU",
        "may be limited" if allowed else "may not be limited",
        "/dev/cpu_dma_latency can be written",
        "let the worker's group write /dev/cpu_dma_latency by a udev rule (docs/determinism.md)",
        WARN,
    )


def _lgpio() -> Iterator[Finding]:
    from importlib.util import find_spec

    there = find_spec("lgpio") is not None
    text = "importable" if there else "not installed; the worker needs none (pip install stirbar[pi] for plug-ins)"
    yield Finding(NOTE, "lgpio", text)


def check_system(config: Config) -> Iterator[Finding]:
    """Rights and settings of this machine."""
    model = read_tree("model")
    yield Finding(OK if model.startswith("Raspberry Pi") else NOTE, "model", model or "unknown (no device tree)")
    yield from _groups()
    yield from _real_time(config)
    yield from _latency(config)
    yield from _power()
    yield from _release()
    yield from _lgpio()
