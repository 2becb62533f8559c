"""`stirbar config`: check, show, get, set and example."""

from __future__ import annotations

import argparse
import json
import os
import sys

from stirbar.core import desired, paths, schema, schema_keys
from stirbar.core.config import (
    CONFIG_NAME,
    EXAMPLE,
    UNIT_NAME,
    USER_DIRECTORY,
    Config,
    ConfigError,
    add_config_options,
    build_config,
    config_from_arguments,
    find_files,
    parse_overrides,
    read_file,
    split_name,
)
from stirbar.core.config_values import nearest
from stirbar.core.ini import IniFile, write_atomically

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator
    from typing import Any

NEW_FILE = "# Values that differ from the defaults; `stirbar config example` prints every key with its help.\n"


def check(arguments: Namespace) -> int:
    """Load everything; print what is not used and what deserves attention."""
    config = config_from_arguments(arguments)
    print(f"config.ini: {config.path}{' (shipped with stirbar)' if config.path == EXAMPLE else ''}")
    print(f"unit_config.ini: {config.unit_path or 'none'}")
    if config.desired.files():
        print(f"leader's: version {config.desired.version}")
    for note in config.ignored:
        print(f"ignored: {note}")
    for warning in config.warnings:
        print(f"warning: {warning}")
    changed = sum(1 for _ in _entries(config, True))
    print(
        f"good: {changed} values differ from the defaults, {len(config.ignored)} ignored,"
        f" {len(config.warnings)} warnings, digest {config.digest()}"
    )
    return 0


def _entries(config: Config, changed: bool) -> Iterator[tuple[str, str, Any, schema_keys.Key]]:
    """(section, key, value, schema) of all values, or of those that differ from the default."""
    for section, name, value in config.items():
        key = schema.find(section, name)
        assert key is not None
        differs = section in schema.FREE or (value != key.default and config.source(section, name) != "default")
        if differs or not changed:
            yield section, name, value, key


def show(arguments: Namespace) -> int:
    """Print the values in force, each with its unit and where it comes from."""
    config = build_config([]) if arguments.defaults else config_from_arguments(arguments)
    entries = list(_entries(config, arguments.changed))
    if arguments.json:
        values: dict[str, dict[str, Any]] = {}
        for section, name, value, key in entries:
            entry = {"value": value, "unit": key.unit, "source": config.source(section, name)}
            values.setdefault(section, {})[name] = entry
        report = {
            "path": config.path,
            "unit_path": config.unit_path,
            "digest": config.digest(),
            "values": values,
            "warnings": config.warnings,
            "ignored": config.ignored,
        }
        print(json.dumps(report, indent=2))
        return 0
    before = ""
    for section, name, value, key in sorted(entries, key=lambda entry: list(schema.SECTIONS).index(entry[0])):
        if section != before:
            print(f"{chr(10) if before else ''}[{section}]")
            before = section
        text = f"{name} = {schema_keys.format_value(value)}"
        unit = f"{key.unit}, " if key.unit else ""
        print(f"{text:44} # {unit}{config.source(section, name)}")
    return 0


def get(arguments: Namespace) -> int:
    """Print one value, or a whole section as `key = value`."""
    config = config_from_arguments(arguments)
    section, name = split_name(arguments.name)
    if arguments.name in schema.SECTIONS:
        for key, value in config.section(arguments.name).items():
            print(f"{key} = {schema_keys.format_value(value)}".rstrip())
        return 0
    try:
        print(schema_keys.format_value(config.get(section, name)))
    except KeyError:
        raise ConfigError(_unknown(section, name)) from None
    return 0


def _unknown(section: str, name: str) -> str:
    reason = schema.ignored(section, name)
    if reason:
        return f"[{section}] {name} is not used: {reason}"
    if not schema.is_known(section):
        return f"there is no section [{section}]{nearest(section, schema.section_names())}"
    if section in schema.FREE:
        return f"[{section}] has no '{name}'"
    return f"there is no key '{name}' in [{section}]{nearest(name, schema.key_names(section))}"


def _target(arguments: Namespace) -> tuple[str, str | None, str]:
    """config.ini and unit_config.ini as they are read, and the one of them that is to be changed."""
    path, unit_path = find_files(arguments.config, arguments.unit_config)
    if arguments.unit:
        home = os.path.dirname(path) if path != EXAMPLE else os.path.expanduser(USER_DIRECTORY)
        unit_path = unit_path or os.path.join(home, UNIT_NAME)
        return path, unit_path, unit_path
    if path == EXAMPLE:
        path = os.path.join(os.path.expanduser(USER_DIRECTORY), CONFIG_NAME)
    return path, unit_path, path


def set_value(arguments: Namespace) -> int:
    """Change keys in config.ini or unit_config.ini; writes nothing unless the whole configuration is good with it."""
    changes = parse_overrides(arguments.changes)
    path, unit_path, target = _target(arguments)
    files: dict[str, IniFile] = {}
    for name in filter(None, (path, unit_path)):
        files[name] = IniFile(NEW_FILE, name) if name == target and not os.path.exists(name) else read_file(name)
    for section, key, text in changes:
        if schema.ignored(section, key) or schema.find(section, key) is None:
            raise ConfigError(_unknown(section, key))
        try:
            files[target].set(section, key, text)
        except ValueError as error:
            raise ConfigError(f"{target}: {error}") from None
    config = build_config(list(files.values()), (), path, unit_path)
    try:
        os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
        write_atomically(target, files[target].text())
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written: {error.strerror}; nothing was changed") from None
    for section, key, _ in changes:
        print(
            f"{config.source(section, key)}: [{section}] {key} = {schema_keys.format_value(config.get(section, key))}"
        )
        if not arguments.unit and unit_path and files[unit_path].get(section, key):
            print(f"note: {unit_path} has this key too, and its value is in force")
        if any(file.get(section, key) for file in desired.read(paths.desired_file(config)).files()):
            print("note: the leader distributes this key, and its value is in force: `stirbar cluster config` there")
    print("processes that run read it at their next start")
    return 0


def example(arguments: Namespace) -> int:
    """Print the example file."""
    with open(EXAMPLE, encoding="utf-8") as file:
        sys.stdout.write(file.read())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stirbar config", description="Check, show and change the configuration.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    one = commands.add_parser("check", help="check all layers; list what is ignored and why")
    add_config_options(one)
    one.set_defaults(run=check)
    one = commands.add_parser("show", help="values in force and where each comes from")
    add_config_options(one)
    one.add_argument("--json", action="store_true", help="as one JSON object")
    one.add_argument("--changed", action="store_true", help="only what differs from the defaults")
    one.add_argument("--defaults", action="store_true", help="the defaults alone, whatever the files say")
    one.set_defaults(run=show)
    one = commands.add_parser("get", help="one value, or all of a section")
    add_config_options(one)
    one.add_argument("name", metavar="SECTION[.KEY]")
    one.set_defaults(run=get)
    one = commands.add_parser("set", help="change values in config.ini, keeping its comments")
    one.add_argument("--config", metavar="FILE", help="config.ini (default: as for every command)")
    one.add_argument("--unit-config", metavar="FILE", help=f"{UNIT_NAME} (default: the one beside config.ini)")
    one.add_argument("--unit", action="store_true", help=f"change {UNIT_NAME} instead")
    one.add_argument("changes", metavar="SECTION.KEY=VALUE", nargs="+")
    one.set_defaults(run=set_value)
    one = commands.add_parser("example", help="print config.example.ini: every key with its default and help")
    one.set_defaults(run=example)
    return parser


def main(argv: list[str]) -> int:
    """Exit status: 0 good, 1 the configuration is refused, 2 the command line is."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status
