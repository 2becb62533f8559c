"""Renders the schema as `config.example.ini` and as `docs/configuration.md`.

`python -m stirbar.core.schema_docs DIRECTORY` writes them into the sources in DIRECTORY; a test holds them equal.
"""

from __future__ import annotations

import os
import sys
import textwrap

from stirbar.core import schema, schema_keys
from stirbar.core.ini import write_atomically
from stirbar.core.pioreactor_keys import IGNORED
from stirbar.core.schema_rules import FOREIGN, RULES

WIDTH = 118

EXAMPLE_HEAD = """\
# The configuration of stirbar: every key with its default. It runs as it is.
#
# Copy it to ~/.stirbar/config.ini or /etc/stirbar/config.ini (or name it with --config or $STIRBAR_CONFIG) and keep
# what you change. What is not in the file has the default written here. What differs between units goes into
# unit_config.ini beside it; --set section.key=value is above both, for one run. `stirbar config check` checks.
# Generated from core/schema.py.
"""

FREE_EXAMPLES: dict[str, tuple[str, ...]] = {"cluster.inventory": ("# vial1 = 1", "# vial2 = 0")}

REFERENCE_HEAD = """\
# Configuration

Generated from `core/schema.py`; `config.example.ini` holds the same keys as a file to start from.

## Files and layers

| layer, each above the one before | where |
|---|---|
| defaults | the tables below |
| `config.ini`, shared by all units | the first of: `--config`, `$STIRBAR_CONFIG`, those below, the shipped example |
| `unit_config.ini`, of one unit | `--unit-config`, else the file of that name beside `config.ini` |
| what the leader distributes ([desired-state.md](desired-state.md)) | `cluster/desired.json` in the data directory |
| `--set section.key=value`, of one run | command line, may be repeated |

Without `--config` and `$STIRBAR_CONFIG`, `config.ini` is looked for in `~/.stirbar` and in `/etc/stirbar`.

A process reads its configuration once, at start. `Config.digest()` is 16 hex digits that change with any effective
value; recordings carry it.

## Syntax

`[section]`, then `key = value` (or `key: value`), one line each. A comment begins with `#` or `;`, at the start of a
line or behind white space. Names are case sensitive. An empty value means the default. Switches are 1/0, true/false,
yes/no or on/off. A number may be followed by the unit of its key (`500 rpm`); another unit is refused. A key that comes
twice in one file is refused.

## Commands

| command | what it does |
|---|---|
| `stirbar config check` | checks all layers; lists what is ignored and why; exit status 1 if anything is refused |
| `stirbar config show` | values in force and where each comes from; `--changed`, `--defaults`, `--json` |
| `stirbar config get section.key` | one value |
| `stirbar config set section.key=value` | changes the file, keeping its comments; `--unit` for `unit_config.ini` |
| `stirbar config example` | prints the example file |

## What is refused

A value out of bounds, of the wrong kind or in another unit; an unknown key in a known section, with the nearest known
one; a line that cannot be read; rules between keys (at the end of this page). All problems are reported at once, each
with file, line, key, what is allowed and what to do, and nothing starts. An unknown section gets one warning. Keys of
Pioreactor that stirbar does not use are accepted and listed by `stirbar config check`.
"""


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def example() -> str:
    """The example file: every key with its default, help, unit and bounds."""
    lines = [EXAMPLE_HEAD]
    for section, about in schema.SECTIONS.items():
        lines += [*_comment(about), f"[{section}]"]
        for key in schema.KEYS:
            if key.section == section:
                bounds = f" [{key.allowed()}]" if key.is_number() or key.type in ("bool", "choice") else ""
                lines += [
                    *_comment(key.help + bounds),
                    f"{key.name} = {schema_keys.format_value(key.default)}".rstrip(),
                ]
        lines += [*FREE_EXAMPLES.get(section, ()), ""]
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _key_table(section: str) -> list[str]:
    rows = ["| key | type | default | allowed | meaning |", "|---|---|---|---|---|"]
    if section in schema.FREE:
        name, rule = schema.FREE[section]
        rows.append(f"| *{name}* | {rule.type} | | {_cell(rule.allowed())} | {_cell(rule.help)} |")
    for key in (key for key in schema.KEYS if key.section == section):
        default = f"`{schema_keys.format_value(key.default)}`" if key.default != "" else ""
        also = "".join(f" `{text}`: {reason}." for text, _, reason in key.also if reason)
        rows.append(f"| `{key.name}` | {key.type} | {default} | {_cell(key.allowed())} | {_cell(key.help + also)} |")
    return rows


def reference() -> str:
    """`docs/configuration.md`."""
    lines = [REFERENCE_HEAD, "## Keys", ""]
    for section, about in schema.SECTIONS.items():
        lines += [f"### [{section}]", "", about, "", *_key_table(section), ""]
    lines += ["## Rules between keys", ""]
    lines += [f"- {words}" for words, _, _ in RULES]
    lines += ["", "## Pioreactor's keys that are not used", ""]
    lines += ["| section | keys | reason |", "|---|---|---|"]
    for section, names, reason in IGNORED:
        keys = "all" if names == "*" else ", ".join(f"`{name}`" for name in names.split())
        lines.append(f"| `[{section}]` | {keys} | {_cell(reason)} |")
    for section, values, reason in FOREIGN:
        keys = ", ".join(f"`{name} = {schema_keys.number(value)}`" for name, value in values)
        lines.append(f"| `[{section}]` | {keys}, all together | {_cell(reason)} |")
    return "\n".join(lines) + "\n"


FILES = {
    "config.example.ini": example,
    os.path.join("core", "config.example.ini"): example,
    os.path.join("docs", "configuration.md"): reference,
}


def main(argv: list[str]) -> int:
    """Write the generated files below a source tree: `python -m stirbar.core.schema_docs DIRECTORY`."""
    if len(argv) != 1 or not os.path.isdir(os.path.join(argv[0], "core")):
        print("usage: python -m stirbar.core.schema_docs DIRECTORY (that holds core/ and docs/)", file=sys.stderr)
        return 2
    for name, render in FILES.items():
        write_atomically(os.path.join(argv[0], name), render())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
