"""Where a leader keeps its files and its store, as the configuration says."""

from __future__ import annotations

from pathlib import Path

from stirbar.bridge.store import POSTGRES_SCHEMES
from stirbar.core import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stirbar.core.config import Config

DATABASE = "stirbar.sqlite"
BACKUPS = "backups"  # beside the store


def leader_directory(config: Config) -> Path:
    """Where the leader keeps its files; made, readable by its owner only, when it is not there."""
    chosen = str(config.get("leader.config", "data_directory"))
    directory = Path(chosen).expanduser() if chosen else Path(paths.data_directory(config)) / "leader"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def database_url(config: Config) -> str | None:
    """The PostgreSQL database of readings and events, where one is chosen."""
    chosen = str(config.get("leader.config", "database"))
    return chosen if chosen.partition("://")[0] in POSTGRES_SCHEMES and "://" in chosen else None


def database_path(config: Config, directory: Path) -> Path:
    """The SQLite file of readings and events."""
    chosen = str(config.get("leader.config", "database")).removeprefix("sqlite://")
    return Path(chosen).expanduser() if chosen else directory / DATABASE


def backup_directory(config: Config, database: Path) -> Path:
    """Where the leader's backups are."""
    chosen = str(config.get("leader.config", "backup_directory"))
    return Path(chosen).expanduser() if chosen else database.parent / BACKUPS
