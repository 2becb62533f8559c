"""The configuration: defaults < config.ini < unit_config.ini < what the leader distributes < `--set section.key=value`,
checked against the schema.

    config = load_config()
    config.get("stirring.config", "initial_target_rpm")  # 500.0

Every problem of every layer is reported at once, with file, line, key, what is allowed and what to do.
"""

from __future__ import annotations

import os

from stirbar.core import desired, paths, schema, schema_keys
from stirbar.core.config_values import nearest, parse_value
from stirbar.core.ini import IniFile
from stirbar.core.schema_rules import FOREIGN, RULES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    Override = tuple[str, str, str]
    Name = tuple[str, str]

USER_DIRECTORY = "~/.stirbar"
SYSTEM_DIRECTORY = "/etc/stirbar"
CONFIG_NAME = "config.ini"
UNIT_NAME = "unit_config.ini"
EXAMPLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "config.example.ini")
COMMAND_LINE = "--set"


class ConfigError(Exception):
    """The configuration cannot be used; `problems` holds one sentence each, the message all of them."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        head = [] if len(problems) == 1 else [f"{len(problems)} problems in the configuration:"]
        super().__init__("\n".join([*head, *problems]))


class Config:
    """The values in force. Made by `load_config`; not changed afterwards.

    `path` and `unit_path` are the files read (`unit_path` may be None), `desired` what the leader distributes,
    `warnings` what deserves attention, `ignored` Pioreactor's keys that were found and are not used, with the reason.

    Synchronization: read only after load, any thread.
    """

    __slots__ = ("_sources", "_values", "desired", "ignored", "path", "unit_path", "warnings")

    def __init__(self, path: str = "", unit_path: str | None = None) -> None:
        self.path = path
        self.unit_path = unit_path
        self.desired = desired.NOTHING
        self.warnings: list[str] = []
        self.ignored: list[str] = []
        self._values: dict[Name, schema_keys.Value] = {(key.section, key.name): key.default for key in schema.KEYS}
        self._sources: dict[Name, tuple[str, int]] = {}  # only of what is not the default

    def get(self, section: str, key: str) -> Any:
        """The value: int, float, str or bool, as the schema says. Raises KeyError for what the schema does not have."""
        try:
            return self._values[section, key]
        except KeyError:
            raise KeyError(f"the configuration has no [{section}] {key}") from None

    def source(self, section: str, key: str) -> str:
        """Where the value comes from: `file:line`, `--set` or `default`."""
        name, line = self._sources.get((section, key), ("default", 0))
        return f"{name}:{line}" if line else name

    def section(self, section: str) -> dict[str, Any]:
        """All values of a section, in the order of the schema; free sections in that of the files."""
        return {key: value for (name, key), value in self._values.items() if name == section}

    def vial(self) -> dict[str, float]:
        """What is known of the vial model that [unit] vial names."""
        from stirbar.core import vials

        return vials.vial(self.get("unit", "vial"))

    def values(self) -> dict[str, dict[str, Any]]:
        """Everything in force: {section: {key: value}}."""
        values: dict[str, dict[str, Any]] = {}
        for section, key, value in self.items():
            values.setdefault(section, {})[key] = value
        return values

    def items(self) -> Iterator[tuple[str, str, Any]]:
        """(section, key, value) of everything."""
        for (section, key), value in self._values.items():
            yield section, key, value

    def digest(self) -> str:
        """16 hex digits that change with any effective value (64-bit FNV-1a); recordings carry it."""
        return desired.fingerprint(
            "\n".join(sorted(f"{section}.{key}={value!r}" for section, key, value in self.items()))
        )


class _Builder:
    """Puts the layers on one another and gathers what is wrong with them."""

    __slots__ = ("_bad", "_unknown", "config", "problems")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.problems: list[str] = []
        self._bad: set[Name] = set()
        self._unknown: set[str] = set()

    def add_file(self, file: IniFile) -> None:
        for section, line in file.sections().items():
            if not schema.is_known(section) and section not in self._unknown:
                self._unknown.add(section)
                self.config.warnings.append(
                    f"{file.name}:{line}: stirbar has no section [{section}], nothing in it is read"
                    f"{nearest(section, schema.section_names())}"
                )
        faults = [(line, f"{file.name}:{line}: {text}") for line, text in file.problems]
        for item in file.items:
            if schema.is_known(item.section):
                fault = self._take(item.section, item.key, item.value, file.name, item.line)
                if fault:
                    faults.append((item.line, fault))
        self.problems += [text for _, text in sorted(faults)]

    def add_override(self, section: str, key: str, text: str) -> None:
        if schema.is_known(section):
            fault = self._take(section, key, text, COMMAND_LINE, 0)
        else:
            fault = (
                f"{COMMAND_LINE} {section}.{key}={text}: there is no section [{section}]"
                f"{nearest(section, schema.section_names())}"
            )
        if fault:
            self.problems.append(fault)

    def _take(self, section: str, name: str, text: str, source: str, line: int) -> str | None:
        """Set one value; returns what is wrong with it."""
        where = f"{source}:{line}: [{section}] {name}" if line else f"{source} {section}.{name}={text}:"
        entry = f"{where} = {text}:" if line else where
        key = schema.find(section, name)
        reason = schema.ignored(section, name) if key is None else None
        if reason:
            self.config.ignored.append(f"{where.removesuffix(':')} is not used: {reason}")
            return None
        if key is None:
            return f"{entry} there is no key '{name}' in [{section}]{nearest(name, schema.key_names(section))}"
        text = self._translate(key, text, where)
        if section in schema.FREE and not schema_keys.TEXT_RULES["unit"][1](name):
            return (
                f"{entry} '{name}' cannot name a {schema.FREE[section][0]}; write {schema_keys.TEXT_RULES['unit'][0]}"
            )
        try:
            self.config._values[section, name] = parse_value(key, text)
        except ValueError as error:
            self._bad.add((section, name))
            return f"{entry} {error}"
        if text or key.type == "choice":
            self.config._sources[section, name] = (source, line)
        else:
            self.config._sources.pop((section, name), None)
        return None

    def _translate(self, key: schema_keys.Key, text: str, where: str) -> str:
        """Texts that stand for others: Pioreactor's words and lists."""
        if key.type == "host" and ";" in text:
            first = text.partition(";")[0].strip()
            self.config.ignored.append(f"{where}: of the list only '{first}' is used")
            return first
        for word, instead, reason in key.also:
            if text == word:
                if reason:
                    self.config.ignored.append(f"{where} = {text}: {reason}")
                return instead
        return text

    def finish(self) -> Config:
        """Check the rules between keys; raises ConfigError with all that was found."""
        config = self.config
        for section, values, reason in FOREIGN:
            self._replace_foreign(section, values, reason)
        for _, keys, test in RULES:
            fault = None if self._bad.intersection(keys) else test(config.get)
            if fault:
                places = dict.fromkeys(config.source(*key) for key in keys if key in config._sources)
                self.problems.append(f"{', '.join(places)}: [{keys[0][0]}] {fault}")
        if self.problems:
            raise ConfigError(*self.problems)
        if not config._values["unit", "name"]:
            config._values["unit", "name"] = os.uname().nodename.partition(".")[0]
        return config

    def _replace_foreign(self, section: str, values: tuple[tuple[str, float], ...], reason: str) -> None:
        """Take the defaults where a file gives a whole set of values that means something else in Pioreactor."""
        config = self.config
        names = [(section, key) for key, _ in values]
        given = all(name in config._sources for name in names)
        if given and all(config._values[section, key] == value for key, value in values):
            config.ignored.append(
                f"{config.source(*names[0])}: [{section}] {', '.join(key for _, key in names)} are not used: {reason}"
            )
            for name in names:
                key = schema.find(*name)
                assert key is not None
                config._values[name] = key.default
                config._sources.pop(name)


def build_config(
    files: Sequence[IniFile], overrides: Iterable[Override] = (), path: str = "", unit_path: str | None = None
) -> Config:
    """The configuration of files that were read already, lowest layer first. Raises ConfigError."""
    builder = _Builder(Config(path, unit_path))
    for file in files:
        builder.add_file(file)
    for section, key, text in overrides:
        builder.add_override(section, key, text)
    return builder.finish()


def find_files(path: str | None = None, unit_path: str | None = None) -> tuple[str, str | None]:
    """The files that are read: config.ini (the shipped example if the user has none) and unit_config.ini (or None)."""
    chosen = os.path.expanduser(path or os.environ.get("STIRBAR_CONFIG", ""))
    directories = [os.path.expanduser(USER_DIRECTORY), SYSTEM_DIRECTORY]
    if chosen:
        directories = [os.path.dirname(chosen)]
    else:
        for directory in directories:
            chosen = os.path.join(directory, CONFIG_NAME)
            if os.path.exists(chosen):
                directories = [directory]
                break
        else:
            chosen = EXAMPLE
    if unit_path is not None:
        unit_path = os.path.expanduser(unit_path)
    else:
        candidates = [os.path.join(directory, UNIT_NAME) for directory in directories]
        unit_path = next((candidate for candidate in candidates if os.path.exists(candidate)), None)
    return chosen, unit_path


def read_file(path: str) -> IniFile:
    """Read an INI file. Raises ConfigError if it cannot be read or is not UTF-8."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return IniFile(file.read(), path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; `stirbar config example > {path}` writes one") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except ValueError as error:
        raise ConfigError(f"{path!r}: is not the name of a file: {error}") from None


def load_config(
    path: str | None = None,
    unit_path: str | None = None,
    overrides: Iterable[Override] = (),
    wanted: desired.Desired | None = None,
) -> Config:
    """Read and check the configuration.

    `path` is config.ini, by default $STIRBAR_CONFIG, else ~/.stirbar/config.ini or /etc/stirbar/config.ini if present,
    else the shipped example. `unit_path` is by default the unit_config.ini beside it, if present. `overrides` are
    (section, key, text), from `parse_overrides`. `wanted` stands in for what the leader distributed last.
    Raises ConfigError with every problem found.
    """
    overrides = list(overrides)
    chosen, unit = find_files(path, unit_path)
    files: list[IniFile] = []
    problems: list[str] = []
    for name in (chosen, unit):
        if name is not None:
            try:
                files.append(read_file(name))
            except ConfigError as error:
                problems += error.problems
    if problems:
        raise ConfigError(*problems)
    config = build_config(files, overrides, chosen, unit)
    if wanted is None:
        wanted = desired.read(paths.desired_file(config))
    layers = wanted.files()
    if layers:
        problems = desired.objections(layers)
        if problems:
            raise ConfigError(*problems)
        config = build_config([*files, *layers], overrides, chosen, unit)
    config.desired = wanted
    return config


def parse_override(text: str) -> Override:
    """`section.key=value` -> (section, key, value). Raises ConfigError naming what is missing."""
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals:
        raise ConfigError(f"{COMMAND_LINE} {text}: no '='; write section.key=value")
    section, key = split_name(name)
    if not section or not key:
        raise ConfigError(f"{COMMAND_LINE} {text}: '{name}' is not section.key; write section.key=value")
    return section, key, value.strip()


def split_name(name: str) -> tuple[str, str]:
    """`stirring.config.pwm_hz` -> ("stirring.config", "pwm_hz"): the longest known section, else up to the last dot."""
    known = [section for section in schema.section_names() if name.startswith(section + ".")]
    if known:
        section = max(known, key=len)
        return section, name[len(section) + 1 :]
    section, _, key = name.rpartition(".")
    return section, key


def parse_overrides(texts: Iterable[str]) -> list[Override]:
    """The arguments of `--set` as overrides. Raises ConfigError with every one that cannot be read."""
    overrides: list[Override] = []
    problems: list[str] = []
    for text in texts:
        try:
            overrides.append(parse_override(text))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return overrides


def add_config_options(parser: ArgumentParser) -> None:
    """The options that choose a configuration, the same for every command."""
    group = parser.add_argument_group("configuration")
    group.add_argument("--config", metavar="FILE", help=f"config.ini (default: $STIRBAR_CONFIG, {USER_DIRECTORY}, ...)")
    group.add_argument("--unit-config", metavar="FILE", help=f"{UNIT_NAME} (default: the one beside config.ini)")
    group.add_argument(
        "--set",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        dest="set",
        help="one value for this run, above both files; may be repeated",
    )


class PlainOptions:
    """What `read_options` read; `flags` holds the names of the switches that were given."""

    __slots__ = ("config", "flags", "set", "unit_config")

    def __init__(self) -> None:
        self.config: str | None = None
        self.unit_config: str | None = None
        self.set: list[str] = []
        self.flags: set[str] = set()


def read_options(argv: Sequence[str], switches: Sequence[str] = ()) -> PlainOptions | None:
    """The options of `add_config_options`, and switches such as `--simulate`, without argparse (half a megabyte).

    None when there is anything else, a request for help or a mistake: argparse then says what.
    """
    options = PlainOptions()
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument in switches:
            options.flags.add(argument)
            continue
        if name not in ("--config", "--unit-config", "--set"):
            return None
        given = value if equals else next(arguments, None)
        if given is None or (not equals and given.startswith("-")):
            return None
        if name == "--set":
            options.set.append(given)
        elif name == "--config":
            options.config = given
        else:
            options.unit_config = given
    return options


def config_from_arguments(
    arguments: Namespace | PlainOptions, extra: Sequence[Override] = (), wanted: desired.Desired | None = None
) -> Config:
    """The configuration that the options of `add_config_options` ask for; `extra` overrides go below `--set`."""
    return load_config(arguments.config, arguments.unit_config, [*extra, *parse_overrides(arguments.set)], wanted)
