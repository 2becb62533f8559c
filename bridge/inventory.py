"""`[cluster.inventory]` of config.ini: which units there are, 1 in use, 0 out of use, as the field writes it."""

from __future__ import annotations

import os

from stirbar.core.config import CONFIG_NAME, EXAMPLE, USER_DIRECTORY, load_config
from stirbar.core.desired import NOTHING
from stirbar.core.ini import IniFile, write_atomically

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stirbar.core.config import Config

SECTION = "cluster.inventory"


def config_file(config: Config) -> str:
    """The config.ini to be changed: the one that was read, or the user's own if that was the shipped example."""
    if config.path and config.path != EXAMPLE:
        return config.path
    return os.path.join(os.path.expanduser(USER_DIRECTORY), CONFIG_NAME)


def read_inventory(config: Config) -> dict[str, bool]:
    """The inventory as the file has it now. Raises ConfigError."""
    path = config_file(config)
    if not os.path.exists(path):
        return {}
    return {name: bool(value) for name, value in load_config(path, os.devnull, wanted=NOTHING).section(SECTION).items()}


def write_inventory(config: Config, changes: dict[str, bool | None]) -> str:
    """Set units to 1 or 0, or take them out (None), in place; returns what is wrong, in a sentence, or nothing."""
    path = config_file(config)
    try:
        text = ""
        if os.path.exists(path):
            with open(path, encoding="utf-8", newline="") as file:
                text = file.read()
        ini = IniFile(text, path)
        for name, value in changes.items():
            if value is None:
                ini.remove(SECTION, name)
            else:
                ini.set(SECTION, name, str(int(value)))
        if ini.text() != text:
            os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
            write_atomically(path, ini.text())
    except OSError as error:
        wanted = ", ".join(
            f"take {name} out" if value is None else f"write {name} = {value:d}" for name, value in changes.items()
        )
        return f"{path} cannot be written ({error.strerror}): in its [{SECTION}], {wanted} by hand"
    return ""
