"""Blanks: what a photodiode reads without cells, taken from a command and kept on disk.

A blank that lived only in memory would silently change what the readings mean after a restart.

Synchronization: none; belongs to the host thread.
"""

from __future__ import annotations

import json
import os

from stirbar.core.ini import write_atomically


class Blanks:
    """The blanks of each experiment, in `<directory>/blanks.json`: {experiment: {channel: value}}."""

    __slots__ = ("_path", "_values")

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, "blanks.json")
        self._values: dict[str, dict[str, float]] = {}
        try:
            with open(self._path) as file:
                loaded = json.load(file)
            self._values = {
                str(experiment): {str(channel): float(value) for channel, value in channels.items()}
                for experiment, channels in loaded.items()
            }
        except FileNotFoundError:
            pass
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{self._path} is not readable as blanks ({error}); restore it from a backup or remove it"
            ) from None

    def of(self, experiment: str) -> dict[int, float]:
        """Channel (1..4): blank, in the unit of the reading's value."""
        return {int(channel): value for channel, value in self._values.get(experiment, {}).items()}

    def put(self, experiment: str, channel: int, value: float | None) -> None:
        """Remember a blank, or forget it with None; on disk before this returns."""
        values = {name: dict(channels) for name, channels in self._values.items()}
        channels = values.setdefault(experiment, {})
        if value is None:
            channels.pop(str(channel), None)
        else:
            channels[str(channel)] = value
        write_atomically(self._path, json.dumps(values, indent=1))
        self._values = values


class BlankTaking:
    """Averages the readings of some channels until a deadline."""

    __slots__ = ("channels", "deadline_ns", "sums")

    def __init__(self, channels: tuple[int, ...], deadline_ns: int) -> None:
        self.channels = channels
        self.deadline_ns = deadline_ns
        self.sums: dict[int, tuple[int, float]] = {}

    def add(self, channel: int, unblanked: float) -> None:
        if channel in self.channels and unblanked == unblanked:
            count, total = self.sums.get(channel, (0, 0.0))
            self.sums[channel] = (count + 1, total + unblanked)

    def means(self) -> dict[int, float]:
        return {channel: total / count for channel, (count, total) in self.sums.items()}
