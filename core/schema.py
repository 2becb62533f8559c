"""Every section and key of the configuration: type, unit, bounds, default and help.

The checks of `stirbar.core.config`, the example file and `docs/configuration.md` all come from here, from
`schema_rules` (rules between keys) and from `pioreactor_keys` (those that stirbar does not use).
"""

from __future__ import annotations

from stirbar.core.simulation import PARAMETERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

Value = int | float | str | bool


class Key:
    """One key: `type` is int, float, bool, choice, or a name of TEXT_RULES.

    `low` and `high` (both inclusive) belong to numbers; `choices` are the texts of a choice, or the only values that a
    number may have. `also` holds texts that stand for another: (text, text to take instead, why), listed by
    `config check`.

    Synchronization: constant after import.
    """

    __slots__ = ("also", "choices", "default", "help", "high", "low", "name", "section", "type", "unit")

    def __init__(
        self,
        name: str,
        type: str,
        default: Value,
        help: str,
        unit: str = "",
        low: float = 0.0,
        high: float = 0.0,
        choices: tuple[str, ...] = (),
        also: tuple[tuple[str, str, str], ...] = (),
    ) -> None:
        self.section = ""
        self.name = name
        self.type = type
        self.default = default
        self.help = help
        self.unit = unit
        self.low = low
        self.high = high
        self.choices = choices
        self.also = also

    def is_number(self) -> bool:
        return self.type in ("int", "float")

    def allowed(self) -> str:
        """The permitted values in words."""
        if self.is_number() and self.choices:
            return f"{', '.join(self.choices[:-1])} or {self.choices[-1]} {self.unit}"
        if self.is_number():
            whole = "whole number, " if self.type == "int" else ""
            return f"{whole}{number(self.low)} to {number(self.high)} {self.unit}".rstrip()
        if self.type == "bool":
            return "0 or 1"
        if self.type == "choice":
            return ", ".join(choice or "empty" for choice in self.choices[:-1]) + f" or {self.choices[-1]}"
        return TEXT_RULES[self.type][0]


def number(value: float) -> str:
    """A number as a person writes it."""
    return f"{value:.10g}"


def format_value(value: Value) -> str:
    """A value as it is written in a file."""
    if isinstance(value, bool):
        return "1" if value else "0"
    return value if isinstance(value, str) else number(value)


def _any_text(text: str) -> bool:
    return True


def _is_label(text: str) -> bool:
    return 0 < len(text) <= 63 and not text.startswith("$") and not any(letter in "/+# \t" for letter in text)


def _is_unit_name(text: str) -> bool:
    """What is a level of a topic, a user of the broker and a file name at once."""
    plain = all(letter.isascii() and (letter.isalnum() or letter in "-_.") for letter in text)
    return 0 < len(text) <= 63 and plain and text[0].isalnum()


def _is_topic(text: str) -> bool:
    return all(_is_label(level) for level in text.split("/"))


def _is_host(text: str) -> bool:
    return len(text) <= 253 and all(letter.isalnum() or letter in ".-_:[]%" for letter in text)


def _is_address(text: str) -> bool:
    if text.startswith("ipc://"):
        return 6 < len(text.encode()) <= 6 + 97  # with /telemetry it must fit into the 107 bytes of a socket's path
    return text.startswith("tcp://") and ":" in text[6:] and text.rpartition(":")[2].isdigit()


def _is_cpu_list(text: str) -> bool:
    ranges = [part.strip().split("-") for part in text.split(",")]
    return all(
        len(ends) <= 2 and all(end.isascii() and end.isdigit() for end in ends) and int(ends[0]) <= int(ends[-1])
        for ends in ranges
    )


def _is_numbers(text: str) -> bool:
    return all(part.strip().replace(".", "", 1).isdecimal() for part in text.split(","))


# type: (what is permitted, in words; the test of a text that is not empty)
TEXT_RULES: dict[str, tuple[str, Callable[[str], bool]]] = {
    "text": ("text", _any_text),
    "path": ("a path, ~ is the home directory", _any_text),
    "unit": ("at most 63 letters, digits, - _ and ., beginning with a letter or digit", _is_unit_name),
    "topic": ("an MQTT topic without wildcards, not beginning or ending with /", _is_topic),
    "host": ("a host name or an IP address", _is_host),
    "address": ("ipc:///path of at most 97 characters, or tcp://host:port", _is_address),
    "numbers": ("numbers as in 0.2, 0.01", _is_numbers),
    "cpus": ("CPU numbers as in 3 or 0,2-3", _is_cpu_list),
}


def _integer(name: str, default: int, unit: str, low: int, high: int, help: str, choices: tuple[str, ...] = ()) -> Key:
    return Key(name, "int", default, help, unit, low, high, choices)


def _real(
    name: str, default: float, unit: str, low: float, high: float, help: str, choices: tuple[str, ...] = ()
) -> Key:
    return Key(name, "float", default, help, unit, low, high, choices)


def _switch(name: str, default: bool, help: str) -> Key:
    return Key(name, "bool", default, help)


def _text(name: str, type: str, default: str, help: str) -> Key:
    return Key(name, type, default, help)


def _choice(name: str, default: str, choices: tuple[str, ...], help: str) -> Key:
    return Key(name, "choice", default, help, choices=choices)


def _intensity() -> Key:
    key = _real("ir_led_intensity", 80.0, "%", 0.0, 100.0, "Intensity of the OD LED while on; below 90 it lives long.")
    key.also = (("auto", "80", "stirbar does not choose the intensity by itself: 80 % is taken"),)
    return key


ADC_RATES_HZ = ("8", "16", "32", "64", "128", "250", "475", "860")
ADC_FULL_SCALES_V = ("0.256", "0.512", "1.024", "2.048", "4.096", "6.144")
PHOTODIODES = ("", "REF", "45", "90", "135", "180")

# (section, what it is about, its keys), in the order of the example file
_TABLE: tuple[tuple[str, str, tuple[Key, ...]], ...] = (
    (
        "cluster.topology",
        "Where the leader is.",
        (
            _text("leader_hostname", "host", "localhost", "Host name of the leader."),
            _text("leader_address", "host", "", "Its address, when the name cannot be resolved."),
        ),
    ),
    ("cluster.inventory", "The units that the leader expects: their names, with 1, or 0 for one out of use.", ()),
    (
        "unit",
        "This unit. What differs between units belongs into unit_config.ini, beside config.ini.",
        (
            _text("name", "unit", "", "Name of this unit; empty takes the host name."),
            _text(
                "data_directory",
                "path",
                "",
                "Where spool, identity and recordings are kept; empty takes $STIRBAR_DATA, else ~/.stirbar.",
            ),
            _text(
                "runtime_directory",
                "path",
                "",
                "Where sockets and locks are; empty takes $STIRBAR_RUN, else /run/stirbar if it can be written, else"
                " $XDG_RUNTIME_DIR/stirbar, else /tmp/stirbar-<uid>.",
            ),
            _switch("simulate", False, "Run the simulated vial of [simulation] instead of the hardware."),
            _text(
                "hardware",
                "path",
                "auto",
                "Hardware profile: auto looks which board is there (or takes simulated), else a name that `stirbar"
                " hardware list` prints, or the path of a file.",
            ),
        ),
    ),
    (
        "worker.config",
        "The worker process and its ZeroMQ sockets.",
        (
            _text(
                "address", "address", "", "Base address of the sockets; empty takes ipc://<runtime_directory>/<name>."
            ),
            _integer(
                "telemetry_high_water",
                1000,
                "messages",
                10,
                1_000_000,
                "What is kept for a slow subscriber before it loses some; the worker never waits for one.",
            ),
            _real("batch_interval_s", 0.1, "s", 0.02, 1.0, "How often readings are sent."),
            _integer("history_mb", 8, "MB", 1, 1024, "Memory for sent batches; bridge and recorder fill gaps from it."),
        ),
    ),
    (
        "recorder.config",
        "Raw conversions on disk: `stirbar record --continuous`.",
        (
            _text("directory", "path", "", "Where they are kept; empty takes <data_directory>/raw."),
            _integer(
                "keep_mb", 2000, "MB", 16, 10_000_000, "Then the oldest are dropped. Two photodiodes: 180 MB a day."
            ),
        ),
    ),
    (
        "loop.config",
        "The real-time loop; see docs/determinism.md.",
        (
            _integer(
                "priority_sampling",
                45,
                "priority",
                0,
                49,
                "SCHED_FIFO priority of the sampling thread, below the interrupt threads' 50; 0 asks for none.",
            ),
            _integer(
                "priority_actuators",
                47,
                "priority",
                0,
                49,
                "SCHED_FIFO priority of the actuator thread, above the sampling thread; 0 asks for none.",
            ),
            _text("cpu_affinity", "cpus", "", "CPUs that the loop may run on; empty leaves it to the kernel."),
            _integer(
                "cpu_dma_latency_us",
                0,
                "us",
                -1,
                1_000_000,
                "Longest wake-up latency of the CPU's sleep states; -1 does not ask the kernel.",
            ),
            _switch("lock_memory", True, "Keep the worker's memory from being paged out."),
            _real("control_period_ms", 10.0, "ms", 1.0, 100.0, "Period of the actuator thread."),
        ),
    ),
    (
        "od_reading.config",
        "Measuring optical density.",
        (
            _real("readings_per_second", 10.0, "Hz", 0.01, 150.0, "Readings of each channel."),
            _real("window_s", 1.0, "s", 0.005, 100.0, "Light that each reading is made of; windows overlap."),
            _text(
                "slower_readings_per_second",
                "numbers",
                "",
                "Up to three slower rates in Hz, as streams of their own (od1_rate1...), from the same light.",
            ),
            _text(
                "slower_windows_s",
                "numbers",
                "",
                "Seconds of light for a reading of each slower rate; empty is all of it, 1 / rate.",
            ),
            _integer("adc_rate_hz", 860, "Hz", 8, 860, "Conversions a second to ask of the converter.", ADC_RATES_HZ),
            _choice(
                "adc_full_scale_v",
                "1.024",
                ("auto", *ADC_FULL_SCALES_V),
                "Full scale of the converter in V: the smallest that the light does not reach; auto follows the light.",
            ),
            _integer(
                "half_cycle",
                0,
                "conversions",
                0,
                64,
                "Half a cycle of the chopped light; 0 lets the worker choose it against mains, stirrer and PWM.",
            ),
            _intensity(),
            _real(
                "led_duty",
                50.0,
                "%",
                5.0,
                50.0,
                "Share of the time in which the LED is lit: 50 chops without a pause, less in bursts of one window each.",
            ),
            _choice("local_ac_hz", "auto", ("auto", "50", "60"), "Mains frequency in Hz; auto finds it in the light."),
            _choice(
                "ref_normalization",
                "unity",
                ("unity", "classic", "regressed"),
                "Divide by the reference photodiode relative to its first value of the run (unity), or by its volts"
                " (classic); regressed is unity without what is left of the LED's temperature coefficient.",
            ),
            _switch("raw", False, "Send the raw conversions always, not only when asked."),
            _switch("autostart", True, "Start reading when the worker starts."),
        ),
    ),
    (
        "od_config.photodiode_channel",
        "The photodiode of each channel: its angle to the LED in degrees, REF for the reference photodiode, empty for"
        " none.",
        tuple(
            _choice(channel, default, PHOTODIODES, f"Photodiode of channel {channel}.")
            for channel, default in (("1", "REF"), ("2", "90"), ("3", ""), ("4", ""))
        ),
    ),
    (
        "stirring.config",
        "Stirring.",
        (
            _real("initial_target_rpm", 500.0, "rpm", 60.0, 2000.0, "Speed that stirring starts with."),
            _real(
                "initial_duty_cycle", 30.0, "%", 0.0, 100.0, "Duty that open-loop stirring (use_rpm = 0) starts with."
            ),
            _real("pwm_hz", 200.0, "Hz", 10.0, 40_000.0, "Frequency of the stirrer's PWM."),
            _switch("use_rpm", True, "Hold the speed by the tachometer; 0 sets the duty only."),
            _real("maximum_rpm", 1500.0, "rpm", 60.0, 2000.0, "No target above this is accepted."),
            _integer("pulses_per_turn", 1, "edges", 1, 8, "Edges that the tachometer gives in one turn."),
            _real("duty_maximum_percent", 100.0, "%", 1.0, 100.0, "No duty above this is set."),
            _real("kick_duty_percent", 100.0, "%", 0.0, 100.0, "Duty that breaks the rotor loose."),
            _real("kick_s", 0.35, "s", 0.0, 0.5, "How long a kick lasts at most."),
            _integer("stall_retries", 3, "kicks", 0, 10, "Kicks after a stall before stirring stops with a fault."),
            _real(
                "feed_forward_offset_percent",
                6.0,
                "%",
                0.0,
                100.0,
                "Duty at standstill of the line that gives the duty for a speed.",
            ),
            _real("feed_forward_percent_per_rpm", 0.048, "%/rpm", 0.0, 1.0, "Slope of that line."),
            _switch("autostart", True, "Start stirring when the worker starts."),
        ),
    ),
    (
        "stirring.pid",
        "The controller of the stirring speed; it acts on each edge of the tachometer.",
        (
            _real("Kp", 0.05, "%/rpm", 0.0, 10.0, "Proportional gain, at 500 rpm and above."),
            _real("Ki", 0.1, "%/(rpm s)", 0.0, 10.0, "Integral gain, at 500 rpm and above."),
            _real("Kd", 0.0, "% s/rpm", 0.0, 10.0, "Derivative gain, on the measured speed."),
        ),
    ),
    (
        "temperature_automation.config",
        "Reading the temperature.",
        (
            _real("interval_s", 1.0, "s", 0.25, 600.0, "Time between readings."),
            _switch("autostart", True, "Start reading when the worker starts."),
        ),
    ),
    (
        "simulation",
        "The simulated vial, which runs instead of the hardware when [unit] simulate is on.",
        (
            _integer("seed", 1, "seed", 0, 2**32 - 1, "Seed of all its randomness: the same seed, the same culture."),
            *(
                Key(one.name, "float", one.default, f"{one.group}: {one.help}", one.unit, one.low, one.high)
                for one in PARAMETERS
            ),
        ),
    ),
    (
        "mqtt",
        "The broker between units and leader.",
        (
            _text("broker_address", "host", "localhost", "Where the broker is; of a list separated by ; the first."),
            _integer("broker_port", 1883, "port", 1, 65535, "Its port (8883 is usual with TLS)."),
            _text("username", "text", "", "Account of the bridge at the broker; empty connects without one."),
            _text("password_file", "path", "", "File whose first line is the password of that account."),
            _text("topic_root", "topic", "pioreactor", "First level of the dialect's topics."),
            _text("data_root", "topic", "stirbar", "First level of our own topics."),
            _real(
                "dialect_readings_per_second",
                0.2,
                "Hz",
                0.0,
                10.0,
                "Readings of each channel on the dialect's topics; our own topics carry all.",
            ),
            _switch("use_tls", False, "Talk TLS to the broker."),
            _text("ca_file", "path", "", "Certificate of the broker's authority; empty trusts the system's."),
        ),
    ),
    (
        "bridge.config",
        "The bridge from a worker to the broker.",
        (
            _text("spool_directory", "path", "", "Where readings wait; empty takes data_directory/spool."),
            _integer("spool_limit_mb", 512, "MB", 1, 1_000_000, "Room for what waits."),
            _choice(
                "acknowledge",
                "end_to_end",
                ("end_to_end", "broker"),
                "Who says that data are safe: the leader after its commit, or the broker (for other leaders).",
            ),
            _real("block_interval_s", 1.0, "s", 0.1, 60.0, "Time between stored blocks."),
            _real("reconnect_maximum_s", 30.0, "s", 1.0, 3600.0, "Longest wait between attempts to reach the broker."),
        ),
    ),
    (
        "leader.config",
        "The leader.",
        (
            _text(
                "data_directory", "path", "", "Where its files are; empty takes leader/ in the unit's data_directory."
            ),
            _text("database", "path", "", "SQLite file of readings and events; empty takes stirbar.sqlite in there."),
            _choice(
                "broker",
                "own",
                ("own", "external"),
                "Run a mosquitto of our own, or use the external broker of [mqtt].",
            ),
            _text("broker_bind", "host", "127.0.0.1", "Address that our own broker listens on, at [mqtt] broker_port."),
        ),
    ),
    (
        "web.config",
        "The leader's page.",
        (
            _text("bind", "host", "127.0.0.1", "Address that it listens on; HTTPS beyond loopback."),
            _integer("port", 4280, "port", 1, 65535, "Its port."),
            _real("session_hours", 12.0, "h", 0.1, 8760.0, "How long a login lasts."),
        ),
    ),
)

# Sections whose keys are the user's: what a key names, and the rule of all its values.
FREE: dict[str, tuple[str, Key]] = {
    "cluster.inventory": ("unit", _switch("", True, "1 in use, 0 out of use.")),
}

SECTIONS: dict[str, str] = {section: about for section, about, _ in _TABLE}


def _named() -> dict[tuple[str, str], Key]:
    for section, _, keys in _TABLE:
        for key in keys:
            key.section = section
    return {(section, key.name): key for section, _, keys in _TABLE for key in keys}


_KEYS: dict[tuple[str, str], Key] = _named()
KEYS: tuple[Key, ...] = tuple(_KEYS.values())
_IGNORED: dict[tuple[str, str], str] = {}


def _ignored() -> dict[tuple[str, str], str]:
    """Pioreactor's keys that are not used; loaded when a file has a key that is not ours."""
    if not _IGNORED:
        from stirbar.core.pioreactor_keys import IGNORED

        _IGNORED.update(((section, name), reason) for section, names, reason in IGNORED for name in names.split())
    return _IGNORED


def find(section: str, name: str) -> Key | None:
    """The key that checks this value; for free sections the rule of the section."""
    free = FREE.get(section)
    return _KEYS.get((section, name)) or (free[1] if free else None)


def ignored(section: str, name: str) -> str | None:
    """Why this key of Pioreactor is not used; None for every other key."""
    return _ignored().get((section, name)) or _ignored().get((section, "*"))


def is_known(section: str) -> bool:
    """Whether a section is ours, or one of Pioreactor that is ignored."""
    return section in SECTIONS or any(section == name for name, _ in _ignored())


def key_names(section: str) -> list[str]:
    """The keys of a section, used and ignored."""
    return [name for other, name in (*_KEYS, *_ignored()) if other == section and name != "*"]


def section_names() -> list[str]:
    """All sections, used and ignored."""
    return list(dict.fromkeys([*SECTIONS, *(section for section, _ in _ignored())]))
