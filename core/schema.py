"""Every section and key of the configuration: type, unit, bounds, default and help.

The checks of `stirbar.core.config`, the example file and `docs/configuration.md` all come from here. Pioreactor's keys
that stirbar does not use are here too, each with the reason, so that its files load.
"""

from __future__ import annotations

try:
    from stirbar.core.simulation import PARAMETERS
except ImportError:
    PARAMETERS = ()

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

Value = int | float | str | bool


class Key:
    """One key: `type` is int, float, bool, choice, or a name of TEXT_RULES; bounds belong to int and float.

    `also` holds texts that stand for another value: (text, text to take instead, why), listed by `config check`.
    """

    __slots__ = ("also", "choices", "default", "help", "high", "low", "name", "section", "type", "unit")

    def __init__(
        self,
        section: str,
        name: str,
        type: str,
        default: Value,
        help: str,
        unit: str = "",
        low: float | None = None,
        high: float | None = None,
        choices: tuple[str, ...] = (),
        also: tuple[tuple[str, str, str], ...] = (),
    ) -> None:
        self.section = section
        self.name = name
        self.type = type
        self.default = default
        self.help = help
        self.unit = unit
        self.low = low
        self.high = high
        self.choices = choices
        self.also = also

    def allowed(self) -> str:
        """The permitted values in words."""
        if self.type in ("int", "float"):
            whole = "whole number, " if self.type == "int" else ""
            return f"{whole}{number(self.low)} to {number(self.high)} {self.unit}".rstrip()
        if self.type == "bool":
            return "0 or 1"
        if self.type == "choice":
            return " | ".join(choice or "(empty)" for choice in self.choices)
        return TEXT_RULES[self.type][0]


def number(value: float | None) -> str:
    """A number as a person writes it."""
    return "" if value is None else f"{value:.10g}"


def _any_text(text: str) -> bool:
    return True


def _is_label(text: str) -> bool:
    return len(text) <= 63 and not text.startswith("$") and not any(letter in "/+# \t" for letter in text)


def _is_topic(text: str) -> bool:
    return bool(text) and not text.startswith("$") and all(map(_is_label, text.split("/"))) and "//" not in f"/{text}/"


def _is_host(text: str) -> bool:
    return len(text) <= 253 and all(letter.isalnum() or letter in ".-_:[]%" for letter in text)


def _is_address(text: str) -> bool:
    if text.startswith("ipc://"):
        return len(text) <= 6 + 90  # leaves room for /telemetry within the 107 bytes of a socket's path
    return not text or (text.startswith("tcp://") and text.count(":") == 2 and text.rpartition(":")[2].isdigit())


def _is_cpu_list(text: str) -> bool:
    if not text:
        return True
    ranges = [part.split("-") for part in text.split(",")]
    return all(
        len(ends) <= 2 and all(end.strip().isdigit() for end in ends) and int(ends[0]) <= int(ends[-1])
        for ends in ranges
    )


# type: (what is permitted, in words; the test of it)
TEXT_RULES: dict[str, tuple[str, Callable[[str], bool]]] = {
    "text": ("text", _any_text),
    "path": ("a path; ~ is the home directory", _any_text),
    "label": ("a name of at most 63 characters without / + # or spaces, not beginning with $", _is_label),
    "topic": ("an MQTT topic without wildcards, not beginning or ending with /", _is_topic),
    "host": ("a host name or an IP address", _is_host),
    "address": ("empty, ipc:///path (at most 90 characters), or tcp://host:port", _is_address),
    "cpus": ("empty, or CPU numbers as in 3 or 0,2-3", _is_cpu_list),
}

ANGLES = ("", "REF", "45", "90", "135", "180")

# section: what it is about, in the order of the example file
SECTIONS: dict[str, str] = {
    "cluster.topology": "Where the leader is.",
    "cluster.inventory": "The units that the leader expects: `name = 1`, or 0 for one that is out of use.",
    "unit": "This unit. What differs between units belongs into unit_config.ini, beside config.ini.",
    "worker.config": "The worker process and its ZeroMQ sockets.",
    "loop.config": "The real-time loop; see docs/determinism.md.",
    "od_reading.config": "Measuring optical density.",
    "od_config.photodiode_channel": "Which photodiode is on which channel: its angle to the LED in degrees, REF for the"
    " reference photodiode, empty for none.",
    "stirring.config": "Stirring.",
    "stirring.pid": "The controller of the stirring speed; it acts on each edge of the tachometer.",
    "temperature_automation.config": "Reading the temperature.",
    "simulation": "The simulated vial, which runs instead of the hardware when [unit] simulate is on.",
    "mqtt": "The broker between units and leader.",
    "bridge.config": "The bridge from a worker to the broker.",
    "leader.config": "The leader.",
    "web.config": "The leader's page.",
}


def _simulation() -> tuple[Key, ...]:
    seed = Key("simulation", "seed", "int", 1, "Seed of all the randomness of the simulated vial.", "seed", 0, 2**32 - 1)
    return (
        seed,
        *(
            Key("simulation", one.name, "float", one.default, one.help, one.unit, one.low, one.high)
            for one in PARAMETERS
        ),
    )


KEYS: tuple[Key, ...] = (
    Key("cluster.topology", "leader_hostname", "host", "localhost", "Host name of the leader."),
    Key("cluster.topology", "leader_address", "host", "", "Its address, when the name cannot be resolved."),
    # ---
    Key("unit", "name", "label", "", "Name of this unit; empty takes the host name."),
    Key(
        "unit",
        "data_directory",
        "path",
        "",
        "Where spool, identity and recordings are kept; empty takes $STIRBAR_DATA, else ~/.stirbar.",
    ),
    Key(
        "unit",
        "runtime_directory",
        "path",
        "",
        "Where sockets and locks are; empty takes $STIRBAR_RUN, else /run/stirbar if it can be written, else"
        " $XDG_RUNTIME_DIR/stirbar, else /tmp/stirbar-<uid>.",
    ),
    Key("unit", "simulate", "bool", False, "Run the simulated vial of [simulation] instead of the hardware."),
    # ---
    Key(
        "worker.config",
        "address",
        "address",
        "",
        "Base address of the sockets; empty takes ipc://<runtime_directory>/<name>.",
    ),
    Key(
        "worker.config",
        "telemetry_high_water",
        "int",
        1000,
        "Messages kept for a slow subscriber before it loses some; the worker never waits for one.",
        "messages",
        10,
        1_000_000,
    ),
    Key("worker.config", "batch_interval_s", "float", 0.1, "How often readings are sent.", "s", 0.02, 1.0),
    Key(
        "worker.config",
        "history_mb",
        "int",
        8,
        "Memory for sent batches, from which bridge and recorder fill gaps.",
        "MB",
        1,
        1024,
    ),
    # ---
    Key(
        "loop.config",
        "priority_sampling",
        "int",
        45,
        "SCHED_FIFO priority of the sampling thread; the kernel's interrupt threads have 50. 0 asks for none.",
        "priority",
        0,
        49,
    ),
    Key(
        "loop.config",
        "priority_actuators",
        "int",
        47,
        "SCHED_FIFO priority of the actuator thread, above the sampling thread. 0 asks for none.",
        "priority",
        0,
        49,
    ),
    Key("loop.config", "cpu_affinity", "cpus", "", "CPUs that the loop may run on; empty leaves it to the kernel."),
    Key(
        "loop.config",
        "cpu_dma_latency_us",
        "int",
        0,
        "Longest wake-up latency that the CPU's sleep states may have; -1 does not ask the kernel.",
        "us",
        -1,
        1_000_000,
    ),
    Key("loop.config", "lock_memory", "bool", True, "Keep the worker's memory from being paged out."),
    Key("loop.config", "control_period_ms", "float", 10.0, "Period of the actuator thread.", "ms", 1.0, 100.0),
    # ---
    Key("od_reading.config", "readings_per_second", "float", 10.0, "Readings of each channel.", "Hz", 0.01, 50.0),
    Key(
        "od_reading.config",
        "window_s",
        "float",
        1.0,
        "Length of light that each reading is made of; windows overlap.",
        "s",
        0.1,
        60.0,
    ),
    Key("od_reading.config", "adc_rate_hz", "int", 860, "Conversions a second that the converter is set to.", "Hz", 8, 860),
    Key(
        "od_reading.config",
        "adc_full_scale_v",
        "float",
        1.024,
        "Full scale of the converter: the smallest that the brightest light does not reach.",
        "V",
        0.256,
        6.144,
    ),
    Key(
        "od_reading.config",
        "half_cycle",
        "int",
        0,
        "Conversions in half a cycle of the chopped light; 0 lets the worker choose it against mains, stirrer and PWM.",
        "conversions",
        0,
        64,
    ),
    Key(
        "od_reading.config",
        "ir_led_intensity",
        "float",
        80.0,
        "Intensity of the OD LED while it is on; below 90 for its long life.",
        "%",
        0.0,
        100.0,
        also=(("auto", "80", "stirbar does not choose the intensity by itself: 80 % is taken"),),
    ),
    Key(
        "od_reading.config",
        "local_ac_hz",
        "choice",
        "auto",
        "Mains frequency in Hz; auto finds it in the light.",
        choices=("auto", "50", "60"),
        also=(("50.0", "50", ""), ("60.0", "60", "")),
    ),
    Key(
        "od_reading.config",
        "ref_normalization",
        "choice",
        "unity",
        "Divide by the reference photodiode relative to its first value of the run (unity), or by its volts (classic).",
        choices=("unity", "classic"),
    ),
    Key("od_reading.config", "raw", "bool", False, "Send the raw conversions always, not only when asked."),
    Key("od_reading.config", "autostart", "bool", True, "Start reading when the worker starts."),
    # ---
    *(
        Key(
            "od_config.photodiode_channel",
            channel,
            "choice",
            default,
            f"Photodiode of channel {channel}.",
            choices=ANGLES,
        )
        for channel, default in (("1", "REF"), ("2", "90"), ("3", ""), ("4", ""))
    ),
    # ---
    Key("stirring.config", "initial_target_rpm", "float", 500.0, "Speed that stirring starts with.", "rpm", 0.0, 2000.0),
    Key(
        "stirring.config",
        "initial_duty_cycle",
        "float",
        30.0,
        "Duty that open-loop stirring (use_rpm = 0) starts with.",
        "%",
        0.0,
        100.0,
    ),
    Key("stirring.config", "pwm_hz", "float", 200.0, "Frequency of the stirrer's PWM.", "Hz", 10.0, 40_000.0),
    Key("stirring.config", "use_rpm", "bool", True, "Hold the speed by the tachometer; 0 sets the duty only."),
    Key("stirring.config", "maximum_rpm", "float", 1500.0, "No target above this is accepted.", "rpm", 1.0, 2000.0),
    Key(
        "stirring.config",
        "pulses_per_turn",
        "int",
        1,
        "Edges that the tachometer gives in one turn.",
        "edges",
        1,
        16,
    ),
    Key("stirring.config", "duty_maximum_percent", "float", 100.0, "No duty above this is set.", "%", 1.0, 100.0),
    Key(
        "stirring.config",
        "kick_duty_percent",
        "float",
        100.0,
        "Duty that breaks the rotor loose; never above duty_maximum_percent.",
        "%",
        0.0,
        100.0,
    ),
    Key("stirring.config", "kick_s", "float", 0.35, "How long the kick lasts at most.", "s", 0.0, 2.0),
    Key(
        "stirring.config",
        "stall_retries",
        "int",
        3,
        "Kicks after a stall before stirring stops with a fault.",
        "kicks",
        0,
        20,
    ),
    Key(
        "stirring.config",
        "feed_forward_offset_percent",
        "float",
        5.0,
        "Duty at which the rotor would just stand still, from the line of duty over speed.",
        "%",
        0.0,
        100.0,
    ),
    Key(
        "stirring.config",
        "feed_forward_percent_per_rpm",
        "float",
        0.05,
        "Slope of that line.",
        "%/rpm",
        0.0,
        1.0,
    ),
    Key("stirring.config", "autostart", "bool", True, "Start stirring when the worker starts."),
    # ---
    Key("stirring.pid", "Kp", "float", 0.02, "Proportional gain.", "%/rpm", 0.0, 10.0),
    Key("stirring.pid", "Ki", "float", 0.05, "Integral gain.", "%/(rpm s)", 0.0, 10.0),
    Key("stirring.pid", "Kd", "float", 0.0, "Derivative gain.", "% s/rpm", 0.0, 10.0),
    # ---
    Key("temperature_automation.config", "interval_s", "float", 1.0, "Time between readings.", "s", 0.25, 600.0),
    Key("temperature_automation.config", "autostart", "bool", True, "Start reading when the worker starts."),
    # ---
    *_simulation(),
    # ---
    Key(
        "mqtt",
        "broker_address",
        "host",
        "localhost",
        "Where the broker is. Of a list separated by ; the first is taken.",
    ),
    Key("mqtt", "broker_port", "int", 1883, "Its port (8883 is usual with TLS).", "port", 1, 65535),
    Key("mqtt", "username", "text", "", "Name of the bridge's account; empty takes what the leader handed out."),
    Key("mqtt", "password_file", "path", "", "File whose first line is its password."),
    Key("mqtt", "topic_root", "topic", "pioreactor", "First level of the dialect's topics."),
    Key("mqtt", "data_root", "topic", "stirbar", "First level of our own topics."),
    Key(
        "mqtt",
        "dialect_readings_per_second",
        "float",
        0.2,
        "Readings of each channel on the dialect's topics; our own carry all.",
        "Hz",
        0.0,
        10.0,
    ),
    Key("mqtt", "use_tls", "bool", False, "Talk TLS to the broker."),
    Key("mqtt", "ca_file", "path", "", "Certificate of the broker's authority; empty trusts the system's."),
    # ---
    Key("bridge.config", "spool_directory", "path", "", "Where readings wait for the leader; empty: data_directory/spool."),
    Key("bridge.config", "spool_limit_mb", "int", 512, "Room for what waits.", "MB", 1, 1_000_000),
    Key(
        "bridge.config",
        "acknowledge",
        "choice",
        "end_to_end",
        "Who says that data are safe: the leader after its commit, or the broker (for leaders that are not stirbar).",
        choices=("end_to_end", "broker"),
    ),
    Key("bridge.config", "block_interval_s", "float", 1.0, "Time between stored blocks.", "s", 0.1, 60.0),
    Key(
        "bridge.config",
        "reconnect_maximum_s",
        "float",
        30.0,
        "Longest wait between attempts to reach the broker.",
        "s",
        1.0,
        3600.0,
    ),
    # ---
    Key("leader.config", "data_directory", "path", "", "Where the leader's files are; empty: the unit's, below leader/."),
    Key("leader.config", "database", "path", "", "SQLite file of readings and events; empty: stirbar.sqlite in there."),
    Key(
        "leader.config",
        "broker",
        "choice",
        "own",
        "Start a mosquitto of our own, or use the external broker of [mqtt].",
        choices=("own", "external"),
    ),
    Key(
        "leader.config",
        "broker_bind",
        "host",
        "127.0.0.1",
        "Address that our own broker listens on; its port is [mqtt] broker_port.",
    ),
    # ---
    Key("web.config", "bind", "host", "127.0.0.1", "Address of the page; HTTPS beyond loopback."),
    Key("web.config", "port", "int", 4280, "Its port.", "port", 1, 65535),
    Key("web.config", "session_hours", "float", 12.0, "How long a login lasts.", "h", 0.1, 8760.0),
)

# Sections whose keys are the user's: what a key names, and the rule of all its values.
FREE: dict[str, tuple[str, Key]] = {
    "cluster.inventory": ("unit", Key("cluster.inventory", "", "bool", True, "1: in use, 0: out of use.")),
}

NOT_DOSING = "this version does not dose"
PAGE = "the page shows every quantity and remembers what you hide"

# Pioreactor's keys that stirbar does not use: (section, keys or "*", reason).
IGNORED: tuple[tuple[str, str, str], ...] = (
    ("PWM", "*", "the hardware profile says which PWM line drives what"),
    ("PWM_reverse", "*", "derived by Pioreactor from [PWM]"),
    ("leds", "*", "the hardware profile says which line is the OD LED"),
    ("leds_reverse", "*", "derived by Pioreactor from [leds]"),
    ("monitor.config", "enable_button", "the button is not read"),
    ("monitor.config", "self_check_interval_hours", "faults are counted and reported when they happen"),
    ("stirring.config", "duration_between_updates_seconds", "the speed is controlled on each edge of the tachometer"),
    (
        "stirring.config",
        "enable_dodging_od pre_delay_duration post_delay_duration target_rpm_during_od_reading"
        " target_rpm_outside_od_reading",
        "stirring need not stop for a reading: the light is chopped and the readings are continuous",
    ),
    (
        "od_reading.config",
        "samples_per_second",
        "readings come at readings_per_second; [mqtt] dialect_readings_per_second is the rate of Pioreactor's topics",
    ),
    ("od_reading.config", "pd_reference_ema", "light and reference are divided window by window"),
    ("od_reading.config", "smoothing_penalizer", "readings are not smoothed; window_s sets their bandwidth"),
    ("od_reading.config", "turn_off_leds_during_reading", "other light is subtracted by chopping the OD LED"),
    (
        "od_reading.config",
        "duration_between_led_off_and_od_reading",
        "conversions in which the light changes are left out one by one",
    ),
    ("od_reading.config", "use_dark_offsets", "the dark level is subtracted in every cycle of the chopped light"),
    ("od_reading.config", "sample_relative_intensity_fraction", "every reading carries the reference's volts"),
    (
        "od_reading.config",
        "pre_delay_duration post_delay_duration enable_dodging_od",
        "readings are continuous: there is nothing to dodge",
    ),
    (
        "temperature_automation.config",
        "pre_delay_duration post_delay_duration enable_dodging_od",
        "readings are continuous: there is nothing to dodge",
    ),
    ("bioreactor", "*", NOT_DOSING),
    ("dosing_automation.config", "*", NOT_DOSING),
    ("dosing_automation.pid_morbidostat", "*", NOT_DOSING),
    ("dosing_automation.turbidostat", "*", NOT_DOSING),
    ("temperature_automation.thermostat", "*", "this version reads the temperature and does not heat"),
    ("growth_rate_calculating.config", "*", "this version does not compute a growth rate"),
    ("storage", "*", "files are below [unit] data_directory and [leader.config] data_directory"),
    ("logging", "*", "events are stored with the readings and shown on the page; processes write to standard error"),
    ("cluster.addresses", "*", "units call the leader, nobody calls a unit: only leader_address is needed"),
    ("mqtt", "password", "no password is read from this file; put it into a file of its own and name it in password_file"),
    ("mqtt", "broker_ws_port ws_protocol", "the browser talks to the leader only, not to the broker"),
    ("ui", "*", "address and port of the page are in [web.config]"),
    ("ui.overview.settings", "*", PAGE),
    ("ui.overview.charts", "*", PAGE),
    ("ui.overview.cards", "*", PAGE),
    ("camera", "*", "cameras are not used"),
    ("local_access_point", "*", "the operating system's network settings make an access point"),
    ("ui_basic_auth", "*", "the page has a login of its own"),
)

# Values of Pioreactor that have another meaning here: (section, ((key, value), ...), reason). When a file gives all of
# them, the defaults are taken.
FOREIGN: tuple[tuple[str, tuple[tuple[str, float], ...], str], ...] = (
    (
        "stirring.pid",
        (("Kp", 0.005), ("Ki", 0.0), ("Kd", 0.0)),
        "Pioreactor's gains are of a controller that adds to the duty every 23 s: the defaults are taken",
    ),
)

_KEYS: dict[tuple[str, str], Key] = {(key.section, key.name): key for key in KEYS}
_IGNORED: dict[tuple[str, str], str] = {
    (section, name): reason for section, names, reason in IGNORED for name in names.split()
}


def find(section: str, name: str) -> Key | None:
    """The key that checks this value; for free sections the rule of the section."""
    free = FREE.get(section)
    return _KEYS.get((section, name)) or (free[1] if free else None)


def ignored(section: str, name: str) -> str | None:
    """Why this key of Pioreactor is not used; None for every other key."""
    return _IGNORED.get((section, name)) or _IGNORED.get((section, "*"))


def is_known(section: str) -> bool:
    return section in SECTIONS or any(section == name for name, _, _ in IGNORED)


def names(section: str) -> list[str]:
    """The keys of a section, used and ignored."""
    return [key.name for key in KEYS if key.section == section] + [
        name for other, name in _IGNORED if other == section and name != "*"
    ]


def section_names() -> list[str]:
    """All sections, used and ignored."""
    return list(dict.fromkeys([*SECTIONS, *(section for section, _, _ in IGNORED)]))


# Rules between keys. Each gets `get(section, key)` and returns what is wrong and what to do, or None.


def _one_reference(get: Callable[[str, str], Any]) -> str | None:
    diodes = {channel: get("od_config.photodiode_channel", channel) for channel in "1234"}
    references = [channel for channel, diode in diodes.items() if diode == "REF"]
    if len(references) > 1:
        return f"channels {' and '.join(references)} are both REF; keep one reference photodiode, give the other its angle"
    if not any(diode not in ("", "REF") for diode in diodes.values()):
        return "no channel has an angle, so nothing would be measured; write 45, 90, 135 or 180 for one channel"
    return None


def _window_holds_light(get: Callable[[str, str], Any]) -> str | None:
    window, rate = get("od_reading.config", "window_s"), get("od_reading.config", "adc_rate_hz")
    half_cycle = get("od_reading.config", "half_cycle") or 1
    needed = 4 * 2 * half_cycle  # four cycles, each of an on and an off half: a signal and its scatter
    if window * rate < needed:
        return (
            f"a window of {number(window)} s holds {number(window * rate)} conversions, and four cycles of the light are"
            f" {needed}; raise window_s to {number(needed / rate)} or more, or lower half_cycle"
        )
    return None


def _actuators_first(get: Callable[[str, str], Any]) -> str | None:
    sampling, actuators = get("loop.config", "priority_sampling"), get("loop.config", "priority_actuators")
    if actuators <= sampling and (sampling or actuators):
        return (
            f"priority_actuators ({actuators}) must be above priority_sampling ({sampling}): a deadline of an actuator"
            " must not wait for a conversion"
        )
    return None


def _target_below_maximum(get: Callable[[str, str], Any]) -> str | None:
    target, maximum = get("stirring.config", "initial_target_rpm"), get("stirring.config", "maximum_rpm")
    if target > maximum:
        return f"initial_target_rpm is above maximum_rpm ({number(maximum)} rpm); lower the one or raise the other"
    return None


def _duties_below_maximum(get: Callable[[str, str], Any]) -> str | None:
    maximum = get("stirring.config", "duty_maximum_percent")
    for key in ("initial_duty_cycle", "kick_duty_percent", "feed_forward_offset_percent"):
        if get("stirring.config", key) > maximum:
            return f"{key} is above duty_maximum_percent ({number(maximum)} %); lower the one or raise the other"
    return None


def _roots_differ(get: Callable[[str, str], Any]) -> str | None:
    if get("mqtt", "topic_root") == get("mqtt", "data_root"):
        return "topic_root and data_root must differ, or foreign dashboards would read our records as theirs"
    return None


def _ports_differ(get: Callable[[str, str], Any]) -> str | None:
    port = get("web.config", "port")
    if get("leader.config", "broker") == "own" and port == get("mqtt", "broker_port"):
        return f"page and broker cannot both listen on port {port}; change one of them"
    return None


_OD = "od_reading.config"
_STIRRING = "stirring.config"
CHECKS: tuple[tuple[tuple[tuple[str, str], ...], Callable[[Callable[[str, str], Any]], str | None]], ...] = (
    (tuple(("od_config.photodiode_channel", channel) for channel in "1234"), _one_reference),
    (((_OD, "window_s"), (_OD, "adc_rate_hz"), (_OD, "half_cycle")), _window_holds_light),
    ((("loop.config", "priority_sampling"), ("loop.config", "priority_actuators")), _actuators_first),
    (((_STIRRING, "initial_target_rpm"), (_STIRRING, "maximum_rpm")), _target_below_maximum),
    (
        tuple(
            (_STIRRING, key)
            for key in (
                "initial_duty_cycle",
                "kick_duty_percent",
                "feed_forward_offset_percent",
                "duty_maximum_percent",
            )
        ),
        _duties_below_maximum,
    ),
    ((("mqtt", "topic_root"), ("mqtt", "data_root")), _roots_differ),
    ((("web.config", "port"), ("mqtt", "broker_port"), ("leader.config", "broker")), _ports_differ),
)
