"""The job `bioreactor`: the pumps, and the account of what is in the vial.

The loop doses, stops at deadlines and keeps the account (pyx/doser.pxd); this asks it for one bounded dose at a time,
waits for its end, and keeps the account on disk. When this stands still, the dose under way goes to its end and nothing
new begins.

Synchronization: none; belongs to the host thread.
"""

from __future__ import annotations

import errno
import math

from stirbar.core import events
from stirbar.core.calibrations import active_path, read_active
from stirbar.core.dose_account import ITEMS, TOTALS, DoseAccount
from stirbar.core.jobs import ACTUATORS, READY, CommandError, Job, number, refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from stirbar.core.config import Config
    from stirbar.core.host import Host
    from stirbar.core.jobs import Done

    Answer = Callable[[dict[str, object]], None]
    Refuse = Callable[[CommandError], None]

SECTION = "dosing_automation.config"
PUMPS = events.PUMPS
FIELD_EVENTS = {"media": "add_media", "alt_media": "add_alt_media", "waste": "remove_waste"}
QUEUE_ROOM = 16
REMEMBERED = 64
DOSE_MAXIMUM_ML, DOSE_MAXIMUM_S = 1000.0, 3600.0
SOURCE_BYTES = 64
GUESS_ML_PER_S = 0.0911  # PUMP_GUESS_ML_PER_S of pyx/dose_plan.pxd, for a pump without calibration
FLOW, OFFSET, DUTY = 0, 1, 2  # PUMP_* of pyx/dose_plan.pxd
PUMP_LIMITS = (
    ("flow", 0.0, 20.0, "mL/s"),
    ("offset", -1.0, 1.0, "mL"),
    ("duty", 0.0, 100.0, "%"),
)  # of pump_set there

# What the loop's refusals mean: (why, the limit's name, remedy)
REFUSALS: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("it does not fit into the vial", "take liquid out first (`stirbar dose waste`)"),
    errno.EDQUOT: (
        "too much has come in since somebody looked at the level",
        "look, and say how much is in the vial: `stirbar dose volume --ml ML`",
    ),
    errno.ERANGE: ("less than [bioreactor] minimum_volume_ml would stay in the vial", "take out less"),
    errno.ENODATA: (
        "the pump has no calibration",
        "calibrate it (`stirbar calibrations`), write its flow into [dosing_automation.config], or dose by --seconds",
    ),
    errno.EBUSY: ("another dose is under way", "wait for its end, or stop it (`stirbar dose stop`)"),
    errno.ENOLINK: ("the guard is silent", "start it with `stirbar guard`"),
    errno.EHOSTDOWN: ("the stirrer is to turn and nobody sees it", "look at the stir bar, or stop stirring"),
    errno.EINVAL: ("the waste is less than what comes in", "ask for as much waste, or more"),
    errno.EDOM: ("an amount is outside of what the pumps can do", "ask for less, or for more than 0"),
}


class Dose:
    """One request: `parts` mL by pump of an exchange, or one pump's `amount` in mL or seconds, or continuously."""

    __slots__ = ("amount", "cut", "factor", "kind", "moved_ml", "number", "parts", "pump", "source", "state")

    def __init__(self, kind: str, source: str) -> None:
        self.kind = kind  # ml, seconds, continuously, exchange
        self.source = source
        self.pump = ""
        self.amount = self.factor = 0.0
        self.parts: dict[str, float] = {}
        self.number = 0
        self.state = "queued"
        self.cut = ""
        self.moved_ml = dict.fromkeys(PUMPS, 0.0)

    def describe(self) -> dict[str, object]:
        asked: dict[str, object] = dict(self.parts) if self.kind == "exchange" else {self.pump: self.amount}
        return {
            "dose": self.number,
            "kind": self.kind,
            "asked": asked,
            "state": self.state,
            "cut": self.cut,
            "moved_ml": {pump: round(ml, 6) for pump, ml in self.moved_ml.items()},
            "source": self.source,
        }


def _ignore(ok: bool, limit: float) -> None:
    """For what is answered by an event as well."""


class Bioreactor(Job):
    """Doses one after the other; `settable` are the account's values, for who has looked."""

    name = "bioreactor"
    settable = (*ITEMS[:5], ITEMS[6], "acknowledge")

    def __init__(self, host: Host, config: Config) -> None:
        super().__init__(host, config)
        get = config.get
        self.fill_ml = float(config.vial()["fill_ml"])
        self.account = DoseAccount(
            host.directory,
            {
                **dict.fromkeys(ITEMS, 0.0),
                "current_volume_ml": float(get("bioreactor", "initial_volume_ml")),
                "alt_media_fraction": float(get("bioreactor", "initial_alt_media_fraction")),
                "efflux_tube_volume_ml": float(get("bioreactor", "efflux_tube_volume_ml")),
            },
        )
        self.flows = self._flows_of_config()
        self.queue: list[Dose] = []
        self.current: Dose | None = None
        self.done: dict[int, Dose] = {}
        self._count = 0
        self._asking = False
        self._is_calibrated = True  # the loop has the flows in force

    def begin(self) -> None:
        """At the worker's start: tell the loop what is in the vial, and what its pumps move."""
        self.become(READY)
        # the volume first: it ends what came in unseen, which comes after it
        for item, name in enumerate(ITEMS):
            self.host.send(ACTUATORS, events.COMMAND_VOLUME, item, 0, self.account.values[name], _ignore)
        self.calibrate()
        if self.account.held:
            self.account.write()
            self._say_held()
        self.publish()

    def publish(self) -> None:
        publish = self.host.publish_setting
        for name in (*ITEMS[:5], ITEMS[6]):
            unit = "" if name == "alt_media_fraction" else "mL"
            publish(self.name, name, round(self.account.values[name], 4), unit, settable=True)
        publish(self.name, "unseen_ml", round(self.account.values["unseen_ml"], 4), "mL")
        publish(self.name, "overflow_detectable", bool(self.config.get("bioreactor", "passive_overflow")))
        publish(self.name, "held", self.account.held or None)
        publish(self.name, "dose", None if self.current is None else self.current.describe())
        publish(self.name, "queued", len(self.queue))

    def _say_held(self) -> None:
        text = f"no dosing: {self.account.held}. Look at the vial, then `stirbar dose volume --ml ML`"
        self.host.event("error", self.name, text, code="dosing_held")

    # --- pumps -------------------------------------------------------------------------------------------------------

    def _flows_of_config(self) -> dict[str, tuple[float, float, float]]:
        """mL/s, offset in mL and duty of each pump, without a calibration; a simulated pump has a flow of its own."""
        flows = {}
        for pump in PUMPS:
            ml_per_s = float(self.config.get(SECTION, f"{pump}_ml_per_s"))
            if ml_per_s == 0.0 and self.host.loop.simulated():
                ml_per_s = float(self.config.get("simulation", "pump_ml_per_s"))
            flows[pump] = (ml_per_s, 0.0, 100.0)
        return flows

    def calibrate(self) -> None:
        """Give the loop the calibrations in force; while a dose runs it keeps those that the dose began with."""
        self._is_calibrated = self.current is None and not self._asking
        if not self._is_calibrated:
            return
        self.flows = self._flows_of_config()
        try:
            devices = read_active(active_path(self.host.directory)).get("devices", {})
        except ValueError as error:
            self.host.event("error", self.name, f"pumps without calibration: {error}", code="calibration")
            devices = {}
        for pump in PUMPS:
            kept = devices.get(f"{pump}_pump")
            if kept is not None:
                self._take_calibration(pump, kept)
            for item, value in zip((FLOW, OFFSET, DUTY), self.flows[pump], strict=True):
                index = PUMPS.index(pump) + len(PUMPS) * item
                self.host.send(ACTUATORS, events.COMMAND_PUMP, index, 0, value, self._calibrated(pump, item, value))
            flow = self.flows[pump][0]
            self.host.publish_setting(self.name, f"{pump}_ml_per_s", round(flow, 6) if flow > 0.0 else None, "mL/s")

    def _calibrated(self, pump: str, item: int, value: float) -> Done:
        def answered(ok: bool, limit: float) -> None:
            if not ok:
                name, low, high, unit = PUMP_LIMITS[item]
                text = f"calibration of the {pump} pump: {name} {value:g} {unit} is not within {low:g} to {high:g}"
                self.host.event("error", self.name, f"{text}; calibrate it again", code="calibration")

        return answered

    def _take_calibration(self, pump: str, kept: dict[str, Any]) -> None:
        name, coefficients = kept.get("name"), kept.get("coefficients")
        if not isinstance(coefficients, list) or len(coefficients) != 2 or not coefficients[0] > 0.0:
            text = f"calibration '{name}' of the {pump} pump is no rising straight line of seconds: not applied"
            self.host.event("warning", self.name, text, code="calibration")
            return
        self.flows[pump] = (float(coefficients[0]), float(coefficients[1]), float(kept.get("dc", 100.0)))

    # --- doses -------------------------------------------------------------------------------------------------------

    def request(self, dose: Dose, answer: Answer, refuse: Refuse) -> None:
        """Begin a dose, or put it behind those that wait; CommandError where that cannot be."""
        self.check_outputs("dose")
        if self.account.held:
            raise CommandError(
                f"no dosing: {self.account.held}",
                "volume",
                remedy="look at the vial, then `stirbar dose volume --ml ML`",
            )
        if dose.kind == "continuously" and (self.current or self._asking or self.queue):
            raise self._refusal(-errno.EBUSY)
        if len(self.queue) >= QUEUE_ROOM:
            raise CommandError(f"{QUEUE_ROOM} doses wait already", "dose", QUEUE_ROOM, "wait, or `stirbar dose stop`")
        self._count += 1
        dose.number = self._count
        if self.current is None and not self._asking and not self.queue:
            self._ask(dose, answer, refuse)
        else:
            self.queue.append(dose)
            answer({**dose.describe(), "ahead": len(self.queue)})
            self.publish()

    def _planned_ml(self, dose: Dose) -> dict[str, float]:
        """What a dose may move, for the account of one that is not known to have ended."""
        if dose.kind == "exchange":
            return dict(dose.parts)
        flow, offset, _ = self.flows[dose.pump]
        if dose.kind == "ml":
            return {dose.pump: dose.amount}
        if dose.kind == "continuously":  # until the vial is full
            return {dose.pump: max(0.0, self.fill_ml - self.account.values["current_volume_ml"])}
        return {dose.pump: dose.amount * (flow or GUESS_ML_PER_S) + max(0.0, offset)}

    def _ask(self, dose: Dose, answer: Answer, refuse: Refuse) -> None:
        """Give a dose to the loop, once the disk knows of it."""
        self.account.begin(self._planned_ml(dose))
        self._asking = True

        def answered(ok: bool, limit: float) -> None:
            self._asking = False
            if ok:
                dose.state = "running"
                self.current = dose
                answer(dose.describe())
            elif limit == -errno.EAGAIN:  # the pumps rest: it is asked again
                dose.state = "queued"
                self.queue.insert(0, dose)
                self.account.end()
                self._keep()
                answer({**dose.describe(), "ahead": 0})
            else:
                dose.state = "refused"
                self._finish(dose)
                refuse(self._refusal(limit))
            self.publish()

        def parted(ok: bool, limit: float) -> None:
            if ok:
                self.host.send(ACTUATORS, events.COMMAND_DOSE_EXCHANGE, 0, 0, dose.factor, answered)
            else:
                answered(ok, limit)

        pump = PUMPS.index(dose.pump) if dose.pump else 0
        if dose.kind == "exchange":
            for index, name in enumerate(PUMPS):
                last = index == len(PUMPS) - 1
                part = dose.parts.get(name, 0.0)
                self.host.send(ACTUATORS, events.COMMAND_DOSE_PART, index, 0, part, parted if last else _ignore)
        else:
            code = {"ml": events.COMMAND_DOSE_ML, "seconds": events.COMMAND_DOSE_SECONDS}.get(
                dose.kind, events.COMMAND_DOSE_CONTINUOUS
            )
            self.host.send(ACTUATORS, code, pump, 0, dose.amount, answered)

    def _refusal(self, limit: float) -> CommandError:
        if math.isnan(limit) or -int(limit) not in REFUSALS:
            return refusal(limit)
        why, remedy = REFUSALS[-int(limit)]
        bound: object = None
        if -int(limit) == errno.ENOSPC:
            bound = f"{self.fill_ml:g} mL, {self.account.values['current_volume_ml']:.2f} mL are in it"
        elif -int(limit) == errno.EDQUOT:
            bound = f"{self.config.get(SECTION, 'inflow_without_evidence_ml'):g} mL"
        elif -int(limit) == errno.ERANGE:
            bound = f"{self.config.get('bioreactor', 'minimum_volume_ml'):g} mL"
        return CommandError(f"not dosed: {why}", "dose", bound, remedy)

    def _finish(self, dose: Dose) -> None:
        """A dose is over: remember it, let the next begin."""
        self.current = None
        self.account.end()
        self._keep()
        self.done[dose.number] = dose
        while len(self.done) > REMEMBERED:
            del self.done[next(iter(self.done))]

    def _next(self) -> None:
        if self.current is not None or self._asking or not self.queue:
            return
        dose = self.queue.pop(0)

        def refused(error: CommandError) -> None:
            text = f"dose {dose.number} was not done: {error.message}; {error.remedy}"
            self.host.event("error", self.name, text, code="dose_refused")

        try:
            self._ask(dose, lambda _: None, refused)
        except (CommandError, OSError) as error:
            dose.state = "refused"
            self._finish(dose)
            refused(error if isinstance(error, CommandError) else CommandError(f"the unit could not write: {error}"))

    def stop_doses(self, finish: bool, done: Done) -> None:
        """Stop what runs and forget what waits; `finish`: take out first what an exchange has let in."""
        for dose in self.queue:
            dose.state = "stopped"
            self.done[dose.number] = dose
        self.queue.clear()
        self.host.send(ACTUATORS, events.COMMAND_DOSE_STOP, 0, 0, float(finish), done)

    def renew(self, done: Done) -> None:
        """Somebody still wants the pump that runs continuously; CommandError: none does."""
        if self.current is None or self.current.kind != "continuously":
            raise CommandError("no pump runs continuously", "dose", remedy="start one: `stirbar dose media`")
        self.host.send(ACTUATORS, events.COMMAND_DOSE_RENEW, 0, 0, 0.0, done)

    def find(self, number: int) -> Dose | None:
        for dose in (*([self.current] if self.current else []), *self.queue, *self.done.values()):
            if dose.number == number:
                return dose
        return None

    def event_fields(self, code: int, argument: int, value: float) -> dict[str, object]:
        """An event of the doser; returns what is to be told with it."""
        dose = self.current
        if code == events.EVENT_DOSE_STEP:
            pump = PUMPS[argument]
            self.account.moved(pump, value)
            if dose is not None:
                dose.moved_ml[pump] += value
            source = dose.source if dose is not None else ""
            return {"event": FIELD_EVENTS[pump], "volume_change": value, "source_of_event": source}
        if code == events.EVENT_DOSE_CUT and dose is not None:
            dose.cut = events.CUTS[argument][0]
        if code == events.EVENT_DOSE_DONE and dose is not None:
            dose.state = "cut" if dose.cut else "done"
            self._finish(dose)
            self.publish()
        return {}

    def on_volume(self, reading: dict[str, Any]) -> None:
        """The loop's account has changed."""
        values = self.account.values
        values["current_volume_ml"] = float(reading["value"])
        values["alt_media_fraction"] = float(reading["signal_v"])
        for name, field in zip(TOTALS.values(), ("reference_v", "ambient_v", "blank"), strict=True):
            values[name] = float(reading[field])
        values["unseen_ml"] = 1e-3 * reading["used"]
        values["owed_ml"] = 1e-3 * reading["rejected"]
        self._keep()
        self.publish()

    def _keep(self) -> None:
        try:
            self.account.write()
        except OSError as error:
            self.host.event("error", self.name, f"the account cannot be kept: {error}", code="write_failed")

    def tend(self) -> None:
        if not self._is_calibrated:
            self.calibrate()
        self._next()

    # --- settings ----------------------------------------------------------------------------------------------------

    def set(self, setting: str, value: object, done: Done) -> None:
        if setting == "acknowledge":
            self.account.held = ""
            self._keep()
            self.publish()
            done(True, 0.0)
            return
        if setting not in self.settable:
            super().set(setting, value, done)
        high = {"alt_media_fraction": 1.0, "current_volume_ml": self.fill_ml, "efflux_tube_volume_ml": self.fill_ml}
        unit = "" if setting == "alt_media_fraction" else "mL"
        amount = number(value, setting, 0.0, high.get(setting, 1e6), unit)

        def answered(ok: bool, limit: float) -> None:
            if ok:
                self.account.values[setting] = amount
                if setting == "current_volume_ml":
                    self.account.values["unseen_ml"] = self.account.values["owed_ml"] = 0.0
                    self.account.held = ""
                self._keep()
                self.publish()
            done(ok, limit)

        self.host.send(ACTUATORS, events.COMMAND_VOLUME, ITEMS.index(setting), 0, amount, answered)


def _source(request: dict[str, object]) -> str:
    source = request.get("source", "user")
    if not isinstance(source, str) or len(source.encode()) > SOURCE_BYTES:
        raise CommandError(f"source must be a text of at most {SOURCE_BYTES} bytes", "source")
    return source


def parse_dose(request: dict[str, object]) -> Dose:
    """A request's dose. CommandError: what is wrong with it."""
    pump = request.get("pump")
    if pump not in PUMPS:
        raise CommandError(f"no pump {pump!r}", "pump", list(PUMPS))
    given = [name for name in ("ml", "seconds", "continuously") if request.get(name) not in (None, False)]
    if len(given) != 1:
        raise CommandError("a dose needs exactly one of ml, seconds, continuously", "ml")
    dose = Dose(given[0], _source(request))
    dose.pump = str(pump)
    if dose.kind == "ml":
        dose.amount = number(request["ml"], "ml", 0.001, DOSE_MAXIMUM_ML, "mL")
    elif dose.kind == "seconds":
        dose.amount = number(request["seconds"], "seconds", 0.01, DOSE_MAXIMUM_S, "s")
    return dose


def parse_exchange(request: dict[str, object], waste_factor: float) -> Dose:
    """A request's exchange; without waste_ml as much goes out as comes in. CommandError: what is wrong with it."""
    dose = Dose("exchange", _source(request))
    dose.factor = waste_factor
    for pump in PUMPS[:2]:
        dose.parts[pump] = number(request.get(f"{pump}_ml", 0.0), f"{pump}_ml", 0.0, DOSE_MAXIMUM_ML, "mL")
    inflow = sum(dose.parts.values())
    dose.parts["waste"] = number(request.get("waste_ml", inflow), "waste_ml", 0.001, DOSE_MAXIMUM_ML, "mL")
    if dose.parts["waste"] < inflow:
        raise CommandError(
            f"waste_ml is {dose.parts['waste']:g} mL, less than the {inflow:g} mL that come in",
            "waste_ml",
            f"at least {inflow:g} mL",
            "ask for as much waste, or leave it out",
        )
    return dose
