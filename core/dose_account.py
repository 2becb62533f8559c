"""What is in the vial and what the pumps have moved, on disk, so that it outlives the worker.

`<data_directory>/bioreactor` is one JSON object, replaced whole: the loop's account (pyx/volume.pxd), and the dose
under way. It is written before a dose begins and after each run of a pump: a worker that ends in between leaves the
dose open, and the worker after it counts what may have come in and doses no more until somebody has looked (IS-11).

Synchronization: none; belongs to the host thread.
"""

from __future__ import annotations

import json
import os

from stirbar.core.ini import write_atomically

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 1
# VOLUME_* of pyx/volume.pxd in order, as they are kept
ITEMS = (
    "current_volume_ml",
    "alt_media_fraction",
    "cumulative_media_added_ml",
    "cumulative_alt_media_added_ml",
    "cumulative_waste_removed_ml",
    "unseen_ml",
    "efflux_tube_volume_ml",
    "owed_ml",
)
TOTALS = dict(zip(("media", "alt_media", "waste"), ITEMS[2:5], strict=True))


class DoseAccount:
    """`values` by ITEMS; `open_dose` is what came in the way of {"pumps": {pump: mL}} and has not ended; `held` says
    why nothing may be dosed, empty: it may."""

    __slots__ = ("_path", "found", "held", "open_dose", "values")

    def __init__(self, directory: str, values: dict[str, float]) -> None:
        self._path = os.path.join(directory, "bioreactor")
        self.values = values
        self.open_dose: dict[str, float] | None = None
        self.held = ""
        self.found = self._read()

    def _read(self) -> bool:
        """Take up what the run before left; a file that cannot be read is none."""
        try:
            with open(self._path) as file:
                kept = json.load(file)
        except (OSError, ValueError):
            return False
        if not isinstance(kept, dict) or kept.get("version") != VERSION or not isinstance(kept.get("values"), dict):
            return False
        for name in ITEMS:
            value = kept["values"].get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value < 1e9:
                self.values[name] = float(value)
        self.held = str(kept.get("held") or "")
        left = kept.get("open_dose")
        if isinstance(left, dict):
            self._take_up(left)
        return True

    def _take_up(self, left: dict[str, Any]) -> None:
        """A dose was under way when the run before ended: what had not come in yet may have."""
        inflow = sum(float(left[pump]) for pump in ("media", "alt_media") if isinstance(left.get(pump), int | float))
        self.values["current_volume_ml"] += inflow
        self.values["unseen_ml"] += inflow
        self.held = f"a dose was under way when the worker ended; up to {inflow:.2f} mL of it may have come in unseen"

    def begin(self, planned_ml: dict[str, float]) -> None:
        """A dose is about to begin. OSError: nothing can be written, and so it may not."""
        self.open_dose = dict(planned_ml)
        try:
            self.write()
        except OSError:
            self.open_dose = None
            raise

    def moved(self, pump: str, ml: float) -> None:
        if self.open_dose is not None and pump in self.open_dose:
            self.open_dose[pump] = max(0.0, self.open_dose[pump] - ml)

    def end(self) -> None:
        self.open_dose = None

    def write(self) -> None:
        document = {"version": VERSION, "values": self.values, "open_dose": self.open_dose, "held": self.held}
        write_atomically(self._path, json.dumps(document) + "\n")
