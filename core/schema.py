"""Every section and key of the configuration: type, unit, bounds, default and help.

The checks of `stirbar.core.config`, the example file and `docs/configuration.md` all come from here, from
`schema_keys` (what a key is), `schema_vial` (the sections about what acts on the vial), `schema_rules` (rules between
keys) and `pioreactor_keys` (those that stirbar does not use).
"""

from __future__ import annotations

from stirbar.core.schema_keys import Key, choice_key, integer_key, real_key, switch_key, text_key
from stirbar.core.schema_vial import VIAL
from stirbar.core.simulation import PARAMETERS
from stirbar.core.vials import NAMES as VIALS
from stirbar.core.vials import STRICTEST as STRICTEST_VIAL


def _intensity() -> Key:
    key = real_key(
        "ir_led_intensity", 80.0, "%", 0.0, 100.0, "Intensity of the OD LED while on; below 90 it lives long."
    )
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
            text_key("leader_hostname", "host", "localhost", "Host name of the leader."),
            text_key("leader_address", "host", "", "Its address, when the name cannot be resolved."),
        ),
    ),
    ("cluster.inventory", "The units that the leader expects: their names, with 1, or 0 for one out of use.", ()),
    (
        "unit",
        "This unit. What differs between units belongs into unit_config.ini, beside config.ini.",
        (
            text_key("name", "unit", "", "Name of this unit; empty takes the host name."),
            text_key(
                "data_directory",
                "path",
                "",
                "Where spool, identity and recordings are kept; empty takes $STIRBAR_DATA, else ~/.stirbar.",
            ),
            text_key(
                "runtime_directory",
                "path",
                "",
                "Where sockets and locks are; empty takes $STIRBAR_RUN, else /run/stirbar if it can be written, else"
                " $XDG_RUNTIME_DIR/stirbar, else /tmp/stirbar-<uid>.",
            ),
            switch_key("simulate", False, "Run the simulated vial of [simulation] instead of the hardware."),
            text_key(
                "hardware",
                "path",
                "auto",
                "Hardware profile: auto looks which board is there (or takes simulated), else a name that `stirbar"
                " hardware list` prints, or the path of a file.",
            ),
            choice_key(
                "vial", STRICTEST_VIAL, VIALS, "The vial: how hot its heater board may get, and how much it holds."
            ),
        ),
    ),
    (
        "worker.config",
        "The worker process and its ZeroMQ sockets.",
        (
            text_key(
                "address", "address", "", "Base address of the sockets; empty takes ipc://<runtime_directory>/<name>."
            ),
            integer_key(
                "telemetry_high_water",
                1000,
                "messages",
                10,
                1_000_000,
                "What is kept for a slow subscriber before it loses some; the worker never waits for one.",
            ),
            choice_key(
                "resume",
                "safe",
                ("never", "safe", "all"),
                "After a restart: go on with the jobs and set-points that were in force (safe: heat only by the rules"
                " of docs/temperature.md; all: heat as well), or start what autostart says (never).",
            ),
            real_key("batch_interval_s", 0.1, "s", 0.02, 1.0, "How often readings are sent."),
            integer_key(
                "history_mb", 8, "MB", 1, 1024, "Memory for sent batches; bridge and recorder fill gaps from it."
            ),
        ),
    ),
    (
        "guard.config",
        "The guard of the outputs; see docs/determinism.md.",
        (
            switch_key(
                "hardware_watchdog",
                True,
                "Let the computer's watchdog reset it when it stands still; on boards that heat or pump.",
            ),
        ),
    ),
    (
        "recorder.config",
        "Raw conversions on disk: `stirbar record --continuous`.",
        (
            text_key("directory", "path", "", "Where they are kept; empty takes <data_directory>/raw."),
            integer_key(
                "keep_mb", 2000, "MB", 16, 10_000_000, "Then the oldest are dropped. Two photodiodes: 180 MB a day."
            ),
        ),
    ),
    (
        "loop.config",
        "The real-time loop; see docs/determinism.md.",
        (
            integer_key(
                "priority_sampling",
                45,
                "priority",
                0,
                49,
                "SCHED_FIFO priority of the sampling thread, below the interrupt threads' 50; 0 asks for none.",
            ),
            integer_key(
                "priority_actuators",
                47,
                "priority",
                0,
                49,
                "SCHED_FIFO priority of the actuator thread, above the sampling thread; 0 asks for none.",
            ),
            text_key("cpu_affinity", "cpus", "", "CPUs that the loop may run on; empty leaves it to the kernel."),
            integer_key(
                "cpu_dma_latency_us",
                0,
                "us",
                -1,
                1_000_000,
                "Longest wake-up latency of the CPU's sleep states; -1 does not ask the kernel.",
            ),
            switch_key("lock_memory", True, "Keep the worker's memory from being paged out."),
            real_key("control_period_ms", 10.0, "ms", 1.0, 100.0, "Period of the actuator thread."),
        ),
    ),
    (
        "od_reading.config",
        "Measuring optical density.",
        (
            real_key("readings_per_second", 10.0, "Hz", 0.01, 150.0, "Readings of each channel."),
            real_key("window_s", 1.0, "s", 0.005, 100.0, "Light that each reading is made of; windows overlap."),
            text_key(
                "slower_readings_per_second",
                "numbers",
                "",
                "Up to three slower rates in Hz, as streams of their own (od1_rate1...), from the same light.",
            ),
            text_key(
                "slower_windows_s",
                "numbers",
                "",
                "Seconds of light for a reading of each slower rate; empty is all of it, 1 / rate.",
            ),
            integer_key(
                "adc_rate_hz", 860, "Hz", 8, 860, "Conversions a second to ask of the converter.", ADC_RATES_HZ
            ),
            choice_key(
                "adc_full_scale_v",
                "1.024",
                ("auto", *ADC_FULL_SCALES_V),
                "Full scale of the converter in V: the smallest that the light does not reach; auto follows the light.",
            ),
            integer_key(
                "half_cycle",
                0,
                "conversions",
                0,
                64,
                "Half a cycle of the chopped light; 0 lets the worker choose it against mains, stirrer and PWM.",
            ),
            _intensity(),
            real_key(
                "led_duty",
                50.0,
                "%",
                5.0,
                50.0,
                "Share of time in which the LED is lit: 50 chops without a pause, less in bursts of one window each.",
            ),
            choice_key(
                "local_ac_hz", "auto", ("auto", "50", "60"), "Mains frequency in Hz; auto finds it in the light."
            ),
            choice_key(
                "ref_normalization",
                "unity",
                ("unity", "classic", "regressed"),
                "Divide by the reference photodiode relative to its first value of the run (unity), or by its volts"
                " (classic); regressed is unity without what is left of the LED's temperature coefficient.",
            ),
            switch_key("raw", False, "Send the raw conversions always, not only when asked."),
            switch_key("autostart", True, "Start reading when the worker starts."),
        ),
    ),
    (
        "od_config.photodiode_channel",
        "The photodiode of each channel: its angle to the LED in degrees, REF for the reference photodiode, empty for"
        " none.",
        tuple(
            choice_key(channel, default, PHOTODIODES, f"Photodiode of channel {channel}.")
            for channel, default in (("1", "REF"), ("2", "90"), ("3", ""), ("4", ""))
        ),
    ),
    *VIAL,
    (
        "simulation",
        "The simulated vial, which runs instead of the hardware when [unit] simulate is on.",
        (
            integer_key(
                "seed", 1, "seed", 0, 2**32 - 1, "Seed of all its randomness: the same seed, the same culture."
            ),
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
            text_key("broker_address", "host", "localhost", "Where the broker is; of a list separated by ; the first."),
            integer_key("broker_port", 1883, "port", 1, 65535, "Its port (8883 is usual with TLS)."),
            text_key("username", "text", "", "Account of the bridge at the broker; empty connects without one."),
            text_key("password_file", "path", "", "File whose first line is the password of that account."),
            text_key("topic_root", "topic", "pioreactor", "First level of the dialect's topics."),
            text_key("data_root", "topic", "stirbar", "First level of our own topics."),
            real_key(
                "dialect_readings_per_second",
                0.2,
                "Hz",
                0.0,
                10.0,
                "Readings of each channel on the dialect's topics; our own topics carry all.",
            ),
            switch_key("use_tls", False, "Talk TLS to the broker."),
            text_key("ca_file", "path", "", "Certificate of the broker's authority; empty trusts the system's."),
            text_key("certificate_file", "path", "", "This unit's certificate, which a leader's broker asks for."),
            text_key("key_file", "path", "", "Its key; empty: it is in the same file."),
        ),
    ),
    (
        "bridge.config",
        "The bridge from a worker to the broker.",
        (
            text_key("spool_directory", "path", "", "Where readings wait; empty takes data_directory/spool."),
            integer_key("spool_limit_mb", 512, "MB", 1, 1_000_000, "Room for what waits."),
            choice_key(
                "acknowledge",
                "end_to_end",
                ("end_to_end", "broker"),
                "Who says that data are safe: the leader after its commit, or the broker (for other leaders).",
            ),
            real_key("block_interval_s", 1.0, "s", 0.1, 60.0, "Time between stored blocks."),
            real_key(
                "reconnect_maximum_s", 30.0, "s", 1.0, 3600.0, "Longest wait between attempts to reach the broker."
            ),
            text_key(
                "reboot_command", "text", "systemctl reboot", "What a reboot asked for by the leader runs, or none."
            ),
            text_key(
                "shutdown_command",
                "text",
                "systemctl poweroff",
                "What a shutdown asked for by the leader runs, or none.",
            ),
            text_key(
                "journal_command",
                "text",
                "journalctl -q --no-pager -o short-iso -u stirbar-worker -u stirbar-bridge -u stirbar-guard",
                "What shows this machine's journal to the leader, --lines=N is put behind it; or none.",
            ),
        ),
    ),
    (
        "leader.config",
        "The leader.",
        (
            text_key(
                "data_directory", "path", "", "Where its files are; empty takes leader/ in the unit's data_directory."
            ),
            text_key(
                "database",
                "path",
                "",
                "SQLite file of readings and events, or postgresql://user@host/name; empty: stirbar.sqlite in there.",
            ),
            integer_key(
                "ingest_processes",
                0,
                "processes",
                0,
                16,
                "So many processes share the storing, which needs PostgreSQL; 0: the leader itself does it.",
            ),
            choice_key(
                "broker",
                "own",
                ("own", "external"),
                "Run a mosquitto of our own, or use the external broker of [mqtt].",
            ),
            text_key(
                "broker_bind",
                "host",
                "127.0.0.1",
                "Address at which units on other machines reach our own broker: 0.0.0.0 is every one, 127.0.0.1 none.",
            ),
            integer_key(
                "broker_tls_port", 8883, "port", 1, 65535, "Its port there; [mqtt] broker_port is this machine's."
            ),
            integer_key(
                "legacy_port",
                0,
                "port",
                0,
                65535,
                "Port of a door without TLS, for guests made with `stirbar cluster guest --legacy` alone; 0: shut.",
            ),
            text_key("legacy_bind", "host", "127.0.0.1", "Address of that door."),
            real_key(
                "backup_interval_hours",
                24.0,
                "h",
                0.0,
                8760.0,
                "Time between backups of the database, also during experiments; 0 makes none.",
            ),
            integer_key("backup_keep", 7, "backups", 1, 1000, "So many backups are kept, the newest."),
            text_key("backup_directory", "path", "", "Where backups are; empty takes backups/ beside the database."),
            real_key(
                "keep_readings_days",
                0.0,
                "d",
                0.0,
                36500.0,
                "Older readings are kept as roll-ups of 10 s, 60 s and 900 s only; 0 keeps all for ever.",
            ),
            real_key("keep_raw_days", 0.0, "d", 0.0, 36500.0, "Older raw conversions are removed; 0 keeps all."),
            real_key(
                "state_check_minutes",
                10.0,
                "min",
                0.1,
                1440.0,
                "Time between looks whether the units are as they should be; each is looked at when it connects, too.",
            ),
        ),
    ),
    (
        "desired",
        "What the leader asks of the units: meant for the configuration that it distributes (docs/desired-state.md).",
        (
            text_key("stirbar_version", "version", "", "Version of stirbar that they should run; empty asks nothing."),
            text_key("plugins", "plugins", "", "Plug-ins that they should have installed; empty asks nothing."),
        ),
    ),
    (
        "web.config",
        "The leader's page.",
        (
            text_key("bind", "host", "127.0.0.1", "Address that it listens on; HTTPS beyond loopback."),
            integer_key("port", 4280, "port", 1, 65535, "Its port."),
            real_key("session_hours", 12.0, "h", 0.1, 8760.0, "How long a login lasts."),
        ),
    ),
)

# Sections whose keys are the user's: what a key names, and the rule of all its values.
FREE: dict[str, tuple[str, Key]] = {
    "cluster.inventory": ("unit", switch_key("", True, "1 in use, 0 out of use.")),
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
