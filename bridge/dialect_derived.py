"""What the field has topics for and our worker says in another form: blanks, the IR LED's relative intensity, the time
of the first reading, the thermostat's settings as a record, and names of volumes that an older field used.

Each function returns what to say as (job, setting, payload), an empty payload takes the topic away.

Synchronization: one thread, that of the dialect.
"""

from __future__ import annotations

import binascii
import math

from stirbar.bridge.dialect_payloads import compact, od_struct, scalar, timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    Reading = dict[str, float | int]
    Said = list[tuple[str, str, bytes]]

OD, BLANK = "od_reading", "od_blank"
THERMAL = "temperature_automation"
AUTOMATION_RECORD = f"{THERMAL}_settings"
# until the field's version 26 the volumes were settings of this job; later ones are of `bioreactor`, as ours
OLD_VOLUMES = "dosing_automation"
_OLD_NAMES = ("current_volume_ml", "alt_media_fraction")
_RECORDED = ("automation_name", "target_temperature", "heater_duty_cycle")


class Derived:
    """Follows settings and OD readings of one experiment; `forget` begins another one."""

    def __init__(self) -> None:
        self._blanks: dict[int, tuple[float, int]] = {}  # channel: value, wall time
        self._angles: dict[int, int] = {}
        self._reference_v = math.nan  # of the first reading: what the relative intensity is relative to
        self._begun = False  # the first reading's time was said
        self._automation: dict[str, object] = {}
        self._since_ns = 0

    def forget(self) -> None:
        """Another experiment: blanks and reference belong to the old one."""
        self._blanks.clear()
        self._reference_v = math.nan
        self._begun = False

    def od(self, readings: dict[int, Reading]) -> Said:
        """The newest readings of the OD channels."""
        said: Said = []
        if not self._begun:
            first_ns = min(int(reading["wall_ns"]) for reading in readings.values())
            said.append((OD, "first_od_obs_time", scalar(round(first_ns / 1e9, 3))))
            self._begun = True
        for channel, reading in readings.items():
            known = channel in self._angles
            self._angles[channel] = int(reading["angle"])
            if channel in self._blanks and not known:
                said += self._say_blank(channel)
        reading = next(iter(readings.values()))
        reference_v = reading["reference_v"]
        if math.isfinite(reference_v) and reference_v > 0.0:
            if math.isnan(self._reference_v):
                self._reference_v = reference_v
            relative = {
                "relative_intensity_of_ir_led": round(reference_v / self._reference_v, 6),
                "timestamp": timestamp(int(reading["wall_ns"])),
            }
            said.append((OD, "relative_intensity_of_ir_led", compact(relative)))
        return said

    def stopped(self) -> Said:
        """od_reading is not ready any more; its next first reading is another."""
        begun, self._begun = self._begun, False
        return [(OD, "first_od_obs_time", b"")] if begun else []

    def blank(self, channel: int, value: object, wall_ns: int) -> Said:
        """A channel's blank was taken, or forgotten (None)."""
        if isinstance(value, int | float):
            self._blanks[channel] = (float(value), wall_ns)
            return self._say_blank(channel) if channel in self._angles else []
        if self._blanks.pop(channel, None) is None or channel not in self._angles:
            return []
        return [(BLANK, f"mean/{channel}", b""), (BLANK, "means", self._means())]

    def _say_blank(self, channel: int) -> Said:
        value, wall_ns = self._blanks[channel]
        struct = od_struct(channel, self._angles[channel], value, wall_ns, 0.0)
        return [(BLANK, f"mean/{channel}", compact(struct)), (BLANK, "means", self._means())]

    def _means(self) -> bytes:
        means = {str(channel): value for channel, (value, _) in sorted(self._blanks.items()) if channel in self._angles}
        return compact(means) if means else b""

    def volume(self, name: str, payload: bytes) -> Said:
        """A setting of `bioreactor`, under the name of an older field."""
        return [(OLD_VOLUMES, name, payload)] if name in _OLD_NAMES else []

    def automation(self, name: str, value: object, unit: str, experiment: str, now_ns: int) -> list[bytes]:
        """The records of what the thermostat was set to: the one that ends, and the one that begins."""
        if name not in _RECORDED or self._automation.get(name) == value:
            return []
        records = []
        if self._automation.get("automation_name"):
            records.append(self._record(unit, experiment, timestamp(now_ns)))
        self._automation[name] = value
        self._since_ns = now_ns
        if self._automation.get("automation_name"):
            records.append(self._record(unit, experiment, None))
        return records

    def _record(self, unit: str, experiment: str, ended_at: str | None) -> bytes:
        settings = {name: value for name, value in self._automation.items() if value is not None}
        automation = settings.pop("automation_name")
        return compact(
            {
                "pioreactor_unit": unit,
                "experiment": experiment,
                "started_at": timestamp(self._since_ns),
                "ended_at": ended_at,
                "automation_name": automation,
                "settings": binascii.b2a_base64(compact(settings), newline=False).decode(),  # the field's bytes in JSON
            }
        )
