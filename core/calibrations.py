"""The calibrations in force: from `<data>/calibrations/active.json` into the loop's estimators and its stirrer.

`stirbar calibrations` writes that file from the field's YAML files (`calibration_files`); the worker needs no YAML.
docs/calibration.md has its contents.

Synchronization: none; belongs to the host thread.
"""

from __future__ import annotations

import json
import os

from stirbar.core import events
from stirbar.core.jobs import SAMPLING, CommandError
from stirbar.core.stirring_job import Stirring, checked_curve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from stirbar.core.host import Host

    Data = dict[str, Any]
    Done = Callable[[bool, float], None]

VERSION = 1
FUSION_SLOT = 4
SLOTS = 5  # the photodiode channels, and the fused estimator


def active_path(data_directory: str) -> str:
    """Where the calibrations in force are kept."""
    return os.path.join(data_directory, "calibrations", "active.json")


def read_active(path: str) -> Data:
    """The file's contents, empty where there is none. Raises ValueError, naming it, when it cannot be read."""
    try:
        with open(path) as file:
            active = json.load(file)
    except FileNotFoundError:
        return {"version": VERSION}
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); write it anew with `stirbar calibrations set-active`") from None
    if not isinstance(active, dict) or active.get("version") != VERSION:
        raise ValueError(f"{path} is not of version {VERSION}; write it anew with `stirbar calibrations set-active`")
    return active


def assign(active: Data, channels: list[tuple[int, int]], normalization: str) -> tuple[dict[int, Data], list[str]]:
    """Which calibration goes to which slot (0..3 channels, 4 fused estimator), and what cannot be applied, in words.

    `channels`: (channel 1..4, angle) of the photodiodes in use.
    """
    slots: dict[int, Data] = {}
    problems: list[str] = []
    angle_of = dict(channels)
    for device, curve in active.get("curves", {}).items():
        name, channel, angle = f"calibration '{curve['name']}' of {device}", int(curve["channel"]), int(curve["angle"])
        made_with = curve.get("ref_normalization")
        if angle_of.get(channel) != angle:
            has = angle_of.get(channel)
            problems.append(
                f"{name} is for photodiode {channel} at {angle}°, which is "
                + ("not connected" if has is None else "the reference" if has == 0 else f"at {has}°")
            )
        elif made_with not in (None, normalization):
            problems.append(f"{name} was made with ref_normalization = {made_with}, not {normalization}")
        elif channel - 1 in slots:
            problems.append(f"{name} is for photodiode {channel}, which '{slots[channel - 1]['name']}' calibrates")
        else:
            slots[channel - 1] = curve
    fusion = active.get("fusion")
    if fusion is not None:
        missing = [one["angle"] for one in fusion["angles"] if one["angle"] not in angle_of.values()]
        if missing:
            problems.append(f"estimator '{fusion['name']}' needs {missing[0]}°, which no photodiode has")
        else:
            channel_of = {angle: channel for channel, angle in reversed(channels)}
            angles = [{**one, "channel": channel_of[one["angle"]]} for one in fusion["angles"]]
            slots[FUSION_SLOT] = {**fusion, "angles": angles}
    return slots, problems


class ActiveCalibrations:
    """Loads the file and hands it to the loop, a part at a time; knows what is in force."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.path = active_path(host.directory)
        self.in_force: dict[int, Data] = {}
        self.loading = False
        self._reference_error = float("nan")

    def start(self) -> None:
        """Load at the worker's start: a file that cannot be used leaves readings uncalibrated, and says so."""
        try:
            active = read_active(self.path)
            if len(active) > 1:
                self.load(active, _ignore)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._tell("error", f"no calibration is in force: {_words(error)}")

    def reload(self, done: Done) -> None:
        """Read the file again, `done` once all of it is in force. CommandError: it is bad, nothing is changed."""
        if self.loading:
            raise CommandError("calibrations are being loaded", remedy="try again in a second")
        try:
            self.load(read_active(self.path), done)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CommandError(f"no change: {_words(error)}", "calibrations") from None

    def load(self, active: Data, done: Done) -> None:
        """Check everything, then change the loop's slots one after the other."""
        normalization = str(self.host.config.get("od_reading.config", "ref_normalization"))
        slots, problems = assign(active, self.host.loop.channels(), normalization)
        for slot, data in slots.items():
            try:
                self.host.loop.prepare_calibration(slot, data)
            except ValueError as error:
                raise ValueError(f"'{data['name']}': {error}") from None
        stirring = checked_curve(active.get("devices", {}).get("stirring"))
        references = {int(channel): float(one["coefficient"]) for channel, one in active.get("reference", {}).items()}
        for channel in range(1, 5):
            value = references.get(channel, float("nan"))
            self.host.send(SAMPLING, events.COMMAND_REFERENCE, channel - 1, 0, value, _ignore)
        for problem in problems:
            self._tell("warning", f"{problem}: not applied")
        self.loading = True

        def stirred(ok: bool, limit: float) -> None:
            if ok:
                self._step(slots, 0, 0, done)
            else:
                self.loading = False
                done(ok, limit)

        # the stirrer's first: at the worker's start it is in force before the stirrer starts
        self.stirrer.apply_curve(stirring, stirred)

    def _step(self, slots: dict[int, Data], slot: int, part: int, done: Done) -> None:
        """Give the loop one part; its answer brings the next."""
        loop = self.host.loop
        if slot == SLOTS:
            self._finish(slots, done)
            return
        parts = loop.prepare_calibration(slot, slots.get(slot))

        def answered(ok: bool, limit: float) -> None:
            if not ok:
                self.loading = False
                done(ok, limit)
            elif part + 1 < parts:
                self._step(slots, slot, part + 1, done)
            else:
                self._step(slots, slot + 1, 0, done)

        loop.stage_calibration(slot, part)
        self.host.send(SAMPLING, events.COMMAND_CURVE, slot, part, 0.0, answered)

    def _finish(self, slots: dict[int, Data], done: Done) -> None:
        self.loading = False
        self.in_force = dict(sorted(slots.items()))
        for slot in range(SLOTS):
            setting = "estimator" if slot == FUSION_SLOT else f"calibration{slot + 1}"
            curve = slots.get(slot)
            self.host.publish_setting("od_reading", setting, None if curve is None else describe(curve))
        blanks = self.host.blanks.of(self.host.experiment)
        for channel in sorted(set(blanks) & set(self.channels())):
            name = slots[channel - 1]["name"]
            self._tell(
                "notice", f"the blank of photodiode {channel} is not subtracted: calibration '{name}' has its own"
            )
        self.check_intensity()
        done(True, 0.0)

    @property
    def stirrer(self) -> Stirring:
        """The job whose feed-forward a calibration can be."""
        job = self.host.jobs["stirring"]
        assert isinstance(job, Stirring)
        return job

    def describe(self) -> list[Data]:
        """What is in force, for a person."""
        curves = [*self.in_force.values(), *([self.stirrer.curve] if self.stirrer.curve else [])]
        return [describe(curve) for curve in curves]

    def channels(self) -> dict[int, Data]:
        """Channel (1..4): the curve in force."""
        return {slot + 1: curve for slot, curve in self.in_force.items() if slot != FUSION_SLOT}

    def check_intensity(self) -> None:
        """Say which calibrations do not hold at the LED's intensity; the loop leaves those readings uncalibrated."""
        intensity = getattr(self.host.jobs["od_reading"], "intensity", None)
        for curve in self.in_force.values():
            if curve["ir_led_intensity"] != intensity:
                self._tell(
                    "warning",
                    f"'{curve['name']}' was made at {curve['ir_led_intensity']:g} % of the LED, it is at "
                    f"{intensity:g} %: not applied until they are equal",
                )

    def on_reference(self, code: int, channel: int, value: float) -> None:
        """A coefficient of the reference was learned: its error comes first, then itself."""
        if code == events.EVENT_REFERENCE_ERROR:
            self._reference_error = value
            return
        learned = {"coefficient": value, "standard_error": self._reference_error}
        self.host.publish_setting("od_reading", f"reference_coefficient{channel}", learned)

    def _tell(self, level: str, message: str) -> None:
        self.host.event(level, "od_reading", message, code="calibration")


def describe(curve: Data) -> Data:
    """What a person wants to know of a calibration; without its coefficients."""
    kept = (
        "name", "device", "x", "y", "angle", "channel", "ir_led_intensity", "domain", "residual", "standard_errors",
        "low_rpm", "high_rpm", "pwm_hz", "voltage",
    )  # fmt: skip
    described = {key: curve[key] for key in kept if key in curve}
    if "angles" in curve:
        described["angles"] = [one["angle"] for one in curve["angles"]]
        described["domain"] = [10.0 ** curve["min_logc"], 10.0 ** curve["max_logc"]]
    return described


def _words(error: Exception) -> str:
    return f"{error.args[0]!r} is missing from active.json" if isinstance(error, KeyError) else str(error)


def _ignore(ok: bool, limit: float) -> None:
    """For loads whose answer nobody waits for."""
