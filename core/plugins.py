"""The plug-ins that are installed: distributions with an entry point in the group `stirbar.plugins`.

Read from the files of site-packages: `importlib.metadata` would cost a worker two megabytes.
"""

from __future__ import annotations

import os
import sys

GROUP = "stirbar.plugins"


def installed(directories: list[str] | None = None) -> list[str]:
    """`name==version` of each, in order of name; of two on the path the first counts, as for Python."""
    found: dict[str, str] = {}
    for directory in sys.path if directories is None else directories:
        try:
            entries = [entry for entry in os.listdir(directory or ".") if entry.endswith(".dist-info")]
        except OSError:
            continue
        for entry in entries:
            name, _, version = entry.removesuffix(".dist-info").partition("-")
            if version and _has_group(os.path.join(directory, entry, "entry_points.txt")):
                found.setdefault(plain(name), version)
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def plain(name: str) -> str:
    """A distribution's name as the index compares them."""
    return name.strip().lower().replace("_", "-").replace(".", "-")


def wanted(text: str) -> list[str] | None:
    """A list as `[desired] plugins` has it: `a==1, b==2`; None where nothing is asked, an empty one for `none`."""
    if not text.strip():
        return None
    pairs = [part.partition("==") for part in text.split(",") if part.strip() and part.strip() != "none"]
    return sorted(f"{plain(name)}=={version.strip()}" for name, _, version in pairs)


def _has_group(path: str) -> bool:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return any(line.strip() == f"[{GROUP}]" for line in file)
    except OSError:
        return False
