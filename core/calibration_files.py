"""The field's calibration and estimator files (YAML): read, checked, written, and made ready for the worker.

Tags, fields and folders are Pioreactor's, so that files go both ways: `<data>/calibrations/<device>/<name>.yaml` and
`<data>/estimators/<device>/<name>.yaml`. Fields that we do not know are kept. Never loaded by a worker.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
import os
import re
from typing import TYPE_CHECKING, Any

from stirbar.core.calibration_fits import evaluate, residual_scale
from stirbar.core.calibrations import VERSION, active_path, read_active
from stirbar.core.ini import write_atomically
from stirbar.core.stirring_calibration import table_of

if TYPE_CHECKING:
    Document = dict[str, Any]

ESTIMATOR = "od_fused_estimator"
OD_TAGS = ("od", "od600")
OD_DEVICES = ("od", "od45", "od90", "od135", "od180")
ANGLES = ("45", "90", "135", "180")
FUSED_DEVICE = "od_fused"
# tag: (devices, default names of x and y, fields beyond the common ones)
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, str], tuple[str, ...]]] = {
    "od": (OD_DEVICES, ("OD", "Voltage"), ("ir_led_intensity", "angle", "pd_channel")),
    "od600": (OD_DEVICES, ("OD600", "Voltage"), ("ir_led_intensity", "angle", "pd_channel")),
    "simple_peristaltic_pump": (
        ("media_pump", "alt_media_pump", "waste_pump"),
        ("Duration", "Volume"),
        ("hz", "dc", "voltage"),
    ),
    "simple_stirring": (("stirring",), ("DC %", "RPM"), ("pwm_hz", "voltage")),
}
FUSED_FIELDS = ("ir_led_intensity", "angles", "mu_splines", "sigma_splines_log", "min_logc", "max_logc", "sigma_floor")
CURVES = ("poly", "spline", "akima")
NAME = re.compile(r"[A-Za-z0-9][\w.+\- ]{0,99}")
POINTS = 9  # of the table of the calibration's own standard error


class CalibrationError(ValueError):
    """A file or name that is no calibration; one sentence: what, where, what is expected."""


# --- reading ----------------------------------------------------------------------------------------------------------


def read(path: str) -> Document:
    """The checked contents of a calibration or estimator file. Raises CalibrationError."""
    import yaml

    try:
        with open(path, "rb") as file:
            document = yaml.safe_load(file.read(10_000_000))
    except yaml.YAMLError as error:
        raise CalibrationError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise CalibrationError(f"{path}: {error}") from None
    return check(document, path)


def check(document: Any, where: str) -> Document:
    """A document with every field in its proper type. Raises CalibrationError."""
    if not isinstance(document, dict):
        raise CalibrationError(f"{where} holds no fields, expected those of a calibration")
    if "estimator_type" in document:
        return _check_estimator(dict(document), where)
    checked = dict(document)
    tag = checked.get("calibration_type")
    if not isinstance(tag, str) or tag not in KINDS:
        raise CalibrationError(f"{where}: calibration_type is {tag!r}, expected one of {', '.join(KINDS)}")
    _, (x, y), fields = KINDS[tag]
    checked.setdefault("x", x)
    checked.setdefault("y", y)
    for field in ("calibration_name", "calibrated_on_pioreactor_unit", "created_at", "curve_data_", *fields):
        if checked.get(field) is None:
            raise CalibrationError(f"{where}: {field} is missing")
    checked["calibration_name"] = check_name(str(checked["calibration_name"]), f"{where}: calibration_name")
    checked["created_at"] = _moment(checked["created_at"], f"{where}: created_at")
    for field in fields:
        if field not in ("angle", "pd_channel"):
            checked[field] = _number(checked[field], f"{where}: {field}")
    if tag in OD_TAGS:
        checked["angle"] = _choice(checked["angle"], ANGLES, f"{where}: angle")
        checked["pd_channel"] = _choice(checked["pd_channel"], ("1", "2", "3", "4"), f"{where}: pd_channel")
    curve = checked["curve_data_"]
    if isinstance(curve, list):  # as files were before the curve had a type of its own
        curve = {"type": checked.pop("curve_type", "poly"), "coefficients": curve}
    checked["curve_data_"] = _curve(curve, f"{where}: curve_data_", CURVES)
    recorded = checked.get("recorded_data") or {"x": [], "y": []}
    if not isinstance(recorded, dict) or not {"x", "y"} <= recorded.keys():
        raise CalibrationError(f"{where}: recorded_data has no x and y")
    points = {axis: _numbers(recorded[axis], f"{where}: recorded_data.{axis}") for axis in ("x", "y")}
    if len(points["x"]) != len(points["y"]):
        raise CalibrationError(f"{where}: recorded_data has {len(points['x'])} x and {len(points['y'])} y")
    checked["recorded_data"] = {**recorded, **points}
    return checked


def _check_estimator(document: Document, where: str) -> Document:
    tag = document["estimator_type"]
    if tag != ESTIMATOR:
        raise CalibrationError(f"{where}: estimator_type is {tag!r}, expected {ESTIMATOR}")
    for field in ("estimator_name", "calibrated_on_pioreactor_unit", "created_at", *FUSED_FIELDS):
        if document.get(field) is None:
            raise CalibrationError(f"{where}: {field} is missing")
    document["estimator_name"] = check_name(str(document["estimator_name"]), f"{where}: estimator_name")
    document["created_at"] = _moment(document["created_at"], f"{where}: created_at")
    for field in ("ir_led_intensity", "min_logc", "max_logc", "sigma_floor"):
        document[field] = _number(document[field], f"{where}: {field}")
    angles = document["angles"]
    if not isinstance(angles, list) or not angles:
        raise CalibrationError(f"{where}: angles is {angles!r}, expected a list")
    document["angles"] = [_choice(angle, ANGLES, f"{where}: angles") for angle in angles]
    for field in ("mu_splines", "sigma_splines_log"):
        curves = document[field]
        if not isinstance(curves, dict):
            raise CalibrationError(f"{where}: {field} has no curve for each angle")
        curves = {str(angle): curve for angle, curve in curves.items()}
        document[field] = {
            angle: _curve(curves.get(angle), f"{where}: {field}.{angle}", CURVES[1:]) for angle in document["angles"]
        }
    scales = document.get("low_conc_scales") or {}
    if not isinstance(scales, dict):
        raise CalibrationError(f"{where}: low_conc_scales is {scales!r}, expected a number for each angle")
    document["low_conc_scales"] = {
        str(angle): _number(scale, f"{where}: low_conc_scales.{angle}") for angle, scale in scales.items()
    }
    return document


def check_name(name: str, what: str = "name") -> str:
    """A calibration's name, which is also that of its file."""
    if not NAME.fullmatch(name) or name.endswith((".", " ")):
        raise CalibrationError(f"{what} {name!r} must be letters, digits and . _ - + or spaces, at most 100")
    return name


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise CalibrationError(f"{what} is {value!r}, expected a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise CalibrationError(f"{what} is {value!r}, expected a number") from None
    if not math.isfinite(number):
        raise CalibrationError(f"{what} is {value!r}, expected a finite number")
    return number


def _numbers(values: Any, what: str) -> list[float]:
    if not isinstance(values, list):
        raise CalibrationError(f"{what} is {values!r}, expected a list of numbers")
    return [_number(value, f"{what}[{index}]") for index, value in enumerate(values)]


def _choice(value: Any, choices: tuple[str, ...], what: str) -> str:
    if str(value) not in choices:
        raise CalibrationError(f"{what} is {value!r}, expected one of {', '.join(choices)}")
    return str(value)


def _moment(value: Any, what: str) -> datetime.datetime:
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            raise CalibrationError(f"{what} is {value!r}, expected a date and time") from None
    if not isinstance(value, datetime.datetime):
        raise CalibrationError(f"{what} is {value!r}, expected a date and time")
    return value if value.tzinfo is not None else value.replace(tzinfo=datetime.UTC)


def _curve(curve: Any, what: str, kinds: tuple[str, ...]) -> Document:
    if not isinstance(curve, dict) or str(curve.get("type")) not in kinds:
        raise CalibrationError(f"{what} has no type {', '.join(kinds)}")
    if curve["type"] == "poly":
        coefficients = _numbers(curve.get("coefficients"), f"{what}.coefficients")
        if not coefficients:
            raise CalibrationError(f"{what}.coefficients is empty")
        return {"type": "poly", "coefficients": coefficients}
    knots = _numbers(curve.get("knots"), f"{what}.knots")
    pieces = curve.get("coefficients")
    if not isinstance(pieces, list) or len(pieces) < 1 or len(knots) != len(pieces) + 1:
        raise CalibrationError(f"{what} has {len(knots)} knots: expected one more than pieces of four coefficients")
    if any(after <= before for before, after in itertools.pairwise(knots)):
        raise CalibrationError(f"{what}.knots do not ascend")
    numbers = [_numbers(piece, f"{what}.coefficients[{index}]") for index, piece in enumerate(pieces)]
    for index, piece in enumerate(numbers):
        if len(piece) != 4:
            raise CalibrationError(f"{what}.coefficients[{index}] has {len(piece)} numbers, expected 4")
    return {"type": curve["type"], "knots": knots, "coefficients": numbers}


# --- the folders ------------------------------------------------------------------------------------------------------


def is_estimator(document: Document) -> bool:
    """Whether it is a fused estimator, not a calibration."""
    return "estimator_type" in document


def name_of(document: Document) -> str:
    """Its name."""
    return str(document["estimator_name" if is_estimator(document) else "calibration_name"])


def devices_of(document: Document) -> tuple[str, ...]:
    """The devices that it may belong to, the usual one first."""
    if is_estimator(document):
        return (FUSED_DEVICE,)
    if document["calibration_type"] in OD_TAGS:
        return (f"od{document['angle']}", "od")
    return KINDS[document["calibration_type"]][0]


def path_of(data_directory: str, device: str, name: str) -> str:
    """Where a device's calibration (or estimator) of a name is kept."""
    folder = "estimators" if device == FUSED_DEVICE else "calibrations"
    return os.path.join(data_directory, folder, device, f"{check_name(name)}.yaml")


def stored(data_directory: str) -> list[tuple[str, str]]:
    """(device, name) of everything that is kept, in order."""
    found = []
    for folder in ("calibrations", "estimators"):
        top = os.path.join(data_directory, folder)
        for device in sorted(os.listdir(top)) if os.path.isdir(top) else []:
            inside = os.path.join(top, device)
            if os.path.isdir(inside):
                found += [(device, file[:-5]) for file in sorted(os.listdir(inside)) if file.endswith(".yaml")]
    return found


def text_of(document: Document) -> str:
    """The document as YAML."""
    import yaml

    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    return text


def save(data_directory: str, device: str, document: Document) -> str:
    """Write it for a device; returns the path."""
    path = path_of(data_directory, device, name_of(document))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_atomically(path, text_of(document))
    return path


# --- in force ---------------------------------------------------------------------------------------------------------


def for_worker(document: Document, device: str) -> Document:
    """What the worker needs of it. Raises CalibrationError where it cannot be applied."""
    return _fusion_for_worker(document) if is_estimator(document) else _curve_for_worker(document, device)


def _curve_for_worker(document: Document, device: str) -> Document:
    points, curve = document["recorded_data"], document["curve_data_"]
    residual = residual_scale(curve, points["x"], points["y"]) if points["x"] else None
    made: Document = {
        "name": document["calibration_name"],
        "device": device,
        "x": str(document["x"]),
        "y": str(document["y"]),
        "created_at": document["created_at"].isoformat(),
        "residual": residual,
        **curve,
    }
    if document["calibration_type"] == "simple_stirring":
        try:
            table = table_of(curve, points["x"], made["name"])
        except ValueError as error:
            raise CalibrationError(str(error)) from None
        return {**made, **table, "pwm_hz": document["pwm_hz"], "voltage": document["voltage"]}
    if document["calibration_type"] not in OD_TAGS:
        return made
    if len(set(points["x"])) < 2:
        raise CalibrationError(
            f"calibration '{document['calibration_name']}' has no recorded_data, so the range in which it holds is not "
            "known; fit it anew from its standards"
        )
    made["angle"], made["channel"] = int(document["angle"]), int(document["pd_channel"])
    made["ir_led_intensity"] = document["ir_led_intensity"]
    made["domain"] = [min(points["x"]), max(points["x"])]
    if "ref_normalization" in document:
        made["ref_normalization"] = str(document["ref_normalization"])
    made["standard_errors"] = standard_errors(made)
    return made


def standard_errors(made: Document) -> list[list[float]] | None:
    """[x, standard error of x by the scatter of the calibration's own standards] over its range.

    Raises CalibrationError where the curve cannot be inverted."""
    from stirbar.rt.calibration_arrays import Curve

    try:
        curve = Curve(made)
    except ValueError as error:
        raise CalibrationError(f"calibration '{made['name']}': {error}") from None
    if made["residual"] is None:
        return None
    low, high = made["domain"]
    places = [low + (high - low) * i / (POINTS - 1) for i in range(POINTS)]
    return [[x, curve.error(made["residual"], x)] for x in places]


def _fusion_for_worker(document: Document) -> Document:
    from stirbar.rt.calibration_arrays import FusedEstimator

    angles = [
        {
            "angle": int(angle),
            "low_scale": document["low_conc_scales"].get(angle, 1.0),
            "mean": document["mu_splines"][angle],
            "log_sigma": document["sigma_splines_log"][angle],
        }
        for angle in document["angles"]
    ]
    made: Document = {
        "name": document["estimator_name"],
        "device": FUSED_DEVICE,
        "x": "concentration",
        "y": document.get("y", "log(Voltage)"),
        "created_at": document["created_at"].isoformat(),
        "angles": angles,
        **{field: document[field] for field in ("ir_led_intensity", "min_logc", "max_logc", "sigma_floor")},
    }
    try:
        FusedEstimator({**made, "angles": [{**one, "channel": i + 1} for i, one in enumerate(angles)]})
    except ValueError as error:
        raise CalibrationError(f"estimator '{made['name']}': {error}") from None
    return made


def put_in_force(data_directory: str, device: str, made: Document | None) -> None:
    """Write the calibrations in force with that of one device changed; None takes it out."""
    path = active_path(data_directory)
    active = read_active(path)
    if device == FUSED_DEVICE:
        active.pop("fusion", None)
        if made is not None:
            active["fusion"] = made
    else:
        part = "curves" if device in OD_DEVICES else "devices"
        active.setdefault(part, {}).pop(device, None)
        if made is not None:
            clash = [
                other
                for other, curve in active[part].items()
                if part == "curves" and curve["channel"] == made["channel"]
            ]
            if clash:
                raise CalibrationError(
                    f"photodiode {made['channel']} is calibrated by that of {clash[0]}: end it first"
                )
            active[part][device] = made
    write_active(data_directory, active)


def put_reference(data_directory: str, channel: int, found: Document) -> None:
    """Store a photodiode's coefficient of the reference (`ref_normalization = regressed` applies it)."""
    active = read_active(active_path(data_directory))
    active.setdefault("reference", {})[str(channel)] = {
        **found,
        "measured_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    write_active(data_directory, active)


def write_active(data_directory: str, active: Document) -> None:
    """Write the file that the worker loads."""
    path = active_path(data_directory)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_atomically(path, json.dumps({**active, "version": VERSION}))


def names_in_force(data_directory: str) -> dict[str, str]:
    """Device: name of its calibration in force."""
    active = read_active(active_path(data_directory))
    curves = {**active.get("curves", {}), **active.get("devices", {})}
    found = {device: str(curve["name"]) for device, curve in curves.items()}
    if "fusion" in active:
        found[FUSED_DEVICE] = str(active["fusion"]["name"])
    return found


def y_of(document: Document, x: list[float]) -> list[float]:
    """The curve's y at each x."""
    return [float(y) for y in evaluate(document["curve_data_"], x)]
