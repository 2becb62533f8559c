"""`stirbar calibrations`: keep, fit, exchange and choose the calibrations of a unit."""

from __future__ import annotations

import csv
import datetime
import sys
from typing import TYPE_CHECKING, Any

from stirbar.core import calibration_files as files
from stirbar.core.calibration_files import CalibrationError
from stirbar.core.calibration_fits import FITS, fit_fusion, residual_scale
from stirbar.core.config import ConfigError, add_config_options, config_from_arguments
from stirbar.core.paths import data_directory, unit_name

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from stirbar.core.client import Worker
    from stirbar.core.config import Config

    Rows = list[dict[str, float]]

DESCRIPTION = "Keep, fit, exchange and choose the calibrations of this unit."
RELOAD_S = 3.0
STRETCH_S = 130.0  # of light that one warm-up needs (pyx/reference.pxd)


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    import argparse

    top = argparse.ArgumentParser(prog="stirbar calibrations", description=DESCRIPTION)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, *positions: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        for position in positions:
            made.add_argument(position)
        add_config_options(made)
        return made

    command("list", "what is kept, and which is in force (*)").add_argument("--device", help="only of this device")
    command("show", "one calibration, with its curve and how well it is known", "device", "name")
    one = command("import", "keep a YAML file of this or another program", "file")
    one.add_argument("--device", help="device it belongs to (default: by its type and angle)")
    command("export", "write a calibration as YAML", "device", "name").add_argument(
        "--out", help="file (default: print)"
    )
    command("set-active", "put a calibration in force, at once where the worker runs", "device", "name")
    command("end", "take a device's calibration out of force", "device")
    command("remove", "delete a calibration that is not in force", "device", "name")
    fit = command("fit", "make a calibration from measured standards", "device", "data")
    fit.description = (
        "DATA is a CSV with a header and the columns x,y (standard, reading); for od_fused angle,concentration,reading."
    )
    fit.add_argument("--name", required=True)
    fit.add_argument("--kind", choices=sorted(FITS), help="default: spline for OD, polynomial else")
    fit.add_argument("--type", choices=sorted(files.KINDS), help="default: od600 for OD devices")
    fit.add_argument("--degree", type=int, help="of a polynomial (default: by AICc)")
    fit.add_argument("--knots", type=int, help="of a spline (default: by AICc)")
    fit.add_argument("--angle", choices=files.ANGLES, help="default: by the device")
    fit.add_argument("--channel", choices=("1", "2", "3", "4"), help="photodiode (default: the one at that angle)")
    fit.add_argument("--ir-led-intensity", type=float, help="percent (default: of the config)")
    for option in ("--hz", "--dc", "--voltage", "--pwm-hz"):
        fit.add_argument(option, type=float, help="of pump and stirring calibrations")
    run = command("run", "measure a calibration on the running worker", "device")
    run.description = (
        "DEVICE is stirring: it runs at duties from high to low, up and down again, and the polynomial through "
        "its speeds is kept (docs/calibration.md). Fill the vial as you will use it, stir bar inside."
    )
    run.add_argument("--name", required=True)
    run.add_argument("--low", type=float, help="percent (default: two thirds of initial_duty_cycle)")
    run.add_argument("--high", type=float, help="percent (default: four thirds of initial_duty_cycle)")
    run.add_argument("--points", type=int, default=5, help="duties of each way (default: 5)")
    run.add_argument("--settle-seconds", type=float, default=2.0, help="after each change (default: 2)")
    run.add_argument("--measure-seconds", type=int, default=2, help="of each duty (default: 2)")
    run.add_argument("--voltage", type=float, help="of the fan's supply (default: as the board measures it, else 5)")
    run.add_argument("--set-active", action="store_true", help="put it in force at once")
    reference = command("reference", "measure the reference's coefficient while the LED warms up")
    reference.description = (
        "Switches the LED off and on several times and learns from its warming-up how the photodiode follows the "
        "reference (docs/calibration.md). Put a sample into the vial that scatters and does not grow, and stir it."
    )
    reference.add_argument("--channel", choices=("1", "2", "3", "4"), required=True, help="photodiode")
    reference.add_argument("--warm-ups", type=int, default=8, help="more make it better known (default: 8)")
    reference.add_argument("--dark-seconds", type=float, default=90.0, help="off between them (default: 90)")
    return top


def main(argv: list[str]) -> int:
    """`stirbar calibrations`; exit status 1 where something is wrong."""
    arguments = parser().parse_args(argv)
    try:
        config = config_from_arguments(arguments)
        run = {
            "list": _list,
            "show": _show,
            "import": _import,
            "export": _export,
            "set-active": _set_active,
            "end": _end,
            "remove": _remove,
            "fit": _fit,
            "run": _run,
            "reference": _reference,
        }[arguments.command]
        run(arguments, config, data_directory(config))
    except (ConfigError, ValueError, OSError) as error:
        print(f"stirbar calibrations: {error}", file=sys.stderr)
        return 1
    return 0


# --- looking ----------------------------------------------------------------------------------------------------------


def _read(directory: str, device: str, name: str) -> dict[str, Any]:
    try:
        return files.read(files.path_of(directory, device, name))
    except FileNotFoundError:
        names = [name for kept, name in files.stored(directory) if kept == device]
        known = f"known are {', '.join(names)}" if names else "it has none"
        raise CalibrationError(f"no calibration '{name}' of {device}: {known}") from None


def _list(arguments: argparse.Namespace, config: Config, directory: str) -> None:
    active = files.names_in_force(directory)
    for device, name in files.stored(directory):
        if arguments.device in (None, device):
            print(f"{'*' if active.get(device) == name else ' '} {device:16} {name}")


def _show(arguments: argparse.Namespace, config: Config, directory: str) -> None:
    document = _read(directory, arguments.device, arguments.name)
    print(files.text_of({key: value for key, value in document.items() if key != "recorded_data"}), end="")
    if files.is_estimator(document):
        return
    points, curve = document["recorded_data"], document["curve_data_"]
    print(f"\n{document['x']:>12} {document['y']:>12} {'curve':>12}")
    for x, y, fitted in zip(points["x"], points["y"], files.y_of(document, points["x"]), strict=True):
        print(f"{x:12.6g} {y:12.6g} {fitted:12.6g}")
    scale = residual_scale(curve, points["x"], points["y"]) if points["x"] else None
    unknown = "not known: no standard is left over"
    print(f"scatter of the standards about the curve: {unknown if scale is None else f'{scale:.3g}'} ({document['y']})")
    if document["calibration_type"] in files.OD_TAGS and len(set(points["x"])) > 1:
        for x, error in files.for_worker(document, arguments.device)["standard_errors"] or []:
            print(f"at {document['x']} {x:.4g}: one such vial is known to {error:.3g}")


# --- keeping ----------------------------------------------------------------------------------------------------------


def _import(arguments: argparse.Namespace, config: Config, directory: str) -> None:
    document = files.read(arguments.file)
    allowed = files.devices_of(document)
    device = arguments.device or allowed[0]
    if device not in allowed:
        raise CalibrationError(f"{arguments.file} is for {' or '.join(allowed)}, not for {device}")
    _refuse_existing(directory, device, files.name_of(document))
    print(files.save(directory, device, document))


def _refuse_existing(directory: str, device: str, name: str) -> None:
    if (device, name) in files.stored(directory):
        raise CalibrationError(f"{device} has a calibration '{name}': remove it first, or choose another name")


def _export(arguments: argparse.Namespace, config: Config, directory: str) -> None:
    text = files.text_of(_read(directory, arguments.device, arguments.name))
    if arguments.out is None:
        print(text, end="")
        return
    with open(arguments.out, "x") as file:
        file.write(text)


def _remove(arguments: argparse.Namespace, config: Config, directory: str) -> None:
    import os

    _read(directory, arguments.device, arguments.name)
    if files.names_in_force(directory).get(arguments.device) == arguments.name:
        raise CalibrationError(f"'{arguments.name}' is in force: `stirbar calibrations end {arguments.device}` first")
    os.remove(files.path_of(directory, arguments.device, arguments.name))


def _set_active(arguments: argparse.Namespace, config: Config, directory: str) -> None:
    document = _read(directory, arguments.device, arguments.name)
    if arguments.device not in files.devices_of(document):
        raise CalibrationError(f"'{arguments.name}' is for {' or '.join(files.devices_of(document))}")
    made = files.for_worker(document, arguments.device)
    if "ir_led_intensity" in made:
        configured = float(config.get("od_reading.config", "ir_led_intensity"))
        if made["ir_led_intensity"] != configured:
            raise CalibrationError(
                f"'{arguments.name}' was made at {made['ir_led_intensity']:g} % of the LED, [od_reading.config] "
                f"ir_led_intensity is {configured:g} %: set that first"
            )
    if "channel" in made:
        angle = str(config.get("od_config.photodiode_channel", str(made["channel"])))
        if angle != str(made["angle"]):
            raise CalibrationError(
                f"'{arguments.name}' is for photodiode {made['channel']} at {made['angle']}°, "
                f"[od_config.photodiode_channel] {made['channel']} is {angle or 'empty'}"
            )
    if "pwm_hz" in made and made["pwm_hz"] != config.get("stirring.config", "pwm_hz"):
        print(
            f"warning: '{arguments.name}' was made at a PWM of {made['pwm_hz']:g} Hz, [stirring.config] pwm_hz is "
            f"{config.get('stirring.config', 'pwm_hz'):g} Hz: the same duty gives another speed there",
            file=sys.stderr,
        )
    files.put_in_force(directory, arguments.device, made)
    _reload(config)


def _end(arguments: argparse.Namespace, config: Config, directory: str) -> None:
    if arguments.device not in files.names_in_force(directory):
        raise CalibrationError(f"no calibration of {arguments.device} is in force")
    files.put_in_force(directory, arguments.device, None)
    _reload(config)


def _reload(config: Config) -> None:
    """Tell a running worker of this unit; without one the next start loads the file."""
    from stirbar.core.client import CommandRefused, Worker, WorkerUnreachable

    try:
        with Worker(None, config=config, timeout_s=RELOAD_S) as worker:
            worker.command("calibrations", reload=True)
    except WorkerUnreachable:
        print("no worker answers: in force from its next start on")
    except CommandRefused as error:
        raise CalibrationError(f"the worker refused: {error}") from None
    else:
        print("in force")


# --- the reference ----------------------------------------------------------------------------------------------------


def measure_reference(
    worker: Worker, wait: Callable[[float], object], channel: int, warm_ups: int, dark_s: float
) -> dict[str, float]:
    """Let the LED warm up several times, and return what the worker learned: coefficient, standard_error.

    Raises CalibrationError where the reference's light did not move clearly.
    """
    for _ in range(warm_ups):
        worker.stop("od_reading")
        wait(dark_s)
        worker.start("od_reading")
        wait(STRETCH_S)
    learned = worker.settings().get(("od_reading", f"reference_coefficient{channel}"))
    if learned is None:
        raise CalibrationError(
            f"photodiode {channel} learned nothing: the reference's light did not move clearly while the LED warmed up "
            "or the signal was disturbed; let it cool longer (--dark-seconds), and take a sample that scatters well"
        )
    return {key: float(learned[key]) for key in ("coefficient", "standard_error")}


def _reference(arguments: argparse.Namespace, config: Config, directory: str) -> None:
    import time

    from stirbar.core.client import CommandRefused, Worker, WorkerUnreachable

    total_s = arguments.warm_ups * (arguments.dark_seconds + STRETCH_S)
    print(f"about {total_s / 60:.0f} minutes", flush=True)
    try:
        with Worker(None, config=config) as worker:
            found = measure_reference(
                worker, time.sleep, int(arguments.channel), arguments.warm_ups, arguments.dark_seconds
            )
    except (WorkerUnreachable, CommandRefused) as error:
        raise CalibrationError(str(error)) from None
    files.put_reference(directory, int(arguments.channel), found)
    print(f"coefficient {found['coefficient']:+.4f} ± {found['standard_error']:.4f}")
    _reload(config)


# --- the stirrer ------------------------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace, config: Config, directory: str) -> None:
    import time

    from stirbar.core import stirring_calibration
    from stirbar.core.client import CommandRefused, Worker, WorkerUnreachable

    if arguments.device != "stirring":
        raise CalibrationError(f"only stirring can be measured by itself, not {arguments.device}: use `fit`")
    files.check_name(arguments.name)
    _refuse_existing(directory, arguments.device, arguments.name)
    usual, most = (float(config.get("stirring.config", key)) for key in ("initial_duty_cycle", "duty_maximum_percent"))
    low = usual * 2 / 3 if arguments.low is None else arguments.low
    high = min(most, usual * 4 / 3) if arguments.high is None else arguments.high
    if not 0 < low < high <= most or arguments.points < 3 or arguments.measure_seconds < 1:
        raise CalibrationError(
            f"--low {low:g} to --high {high:g} % in --points {arguments.points}: expected 0 < low < high <= "
            f"{most:g} %, at least 3 points and at least a second of measuring"
        )
    duties = stirring_calibration.sweep(low, high, arguments.points)
    total_s = len(duties) * (arguments.settle_seconds + arguments.measure_seconds)
    print(f"about {total_s:.0f} s", flush=True)
    try:
        with Worker(None, config=config) as worker:
            x, y = stirring_calibration.measure(
                worker,
                time.sleep,
                duties,
                arguments.settle_seconds,
                arguments.measure_seconds,
                lambda text: print(text, flush=True),
            )
            rail_v = worker.settings().get(("monitor", "voltage_on_pwm_rail"))
    except (WorkerUnreachable, CommandRefused) as error:
        raise CalibrationError(str(error)) from None
    voltage = arguments.voltage or rail_v or stirring_calibration.NOMINAL_VOLTAGE
    document = stirring_calibration.document(
        arguments.name, unit_name(config), x, y, float(config.get("stirring.config", "pwm_hz")), float(voltage)
    )
    files.for_worker(files.check(document, arguments.name), arguments.device)
    print(f"speeds at one duty differ by up to {stirring_calibration.hysteresis_rpm(x, y):.1f} rpm")
    print(files.save(directory, arguments.device, document))
    if arguments.set_active:
        _set_active(arguments, config, directory)


# --- fitting ----------------------------------------------------------------------------------------------------------


def read_columns(path: str, columns: tuple[str, ...]) -> Rows:
    """The numbers of some columns of a CSV with a header. Raises CalibrationError, naming line and column."""
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        missing = [column for column in columns if column not in (reader.fieldnames or [])]
        if missing:
            raise CalibrationError(f"{path} has no column {missing[0]}; its header is {reader.fieldnames}")
        rows = []
        for row in reader:
            try:
                rows.append({column: float(row[column]) for column in columns})
            except (TypeError, ValueError):
                raise CalibrationError(
                    f"{path}, line {reader.line_num}: not a number in {', '.join(columns)}"
                ) from None
    return rows


def _fit(arguments: argparse.Namespace, config: Config, directory: str) -> None:
    files.check_name(arguments.name)
    _refuse_existing(directory, arguments.device, arguments.name)
    common = {
        "calibrated_on_pioreactor_unit": unit_name(config),
        "created_at": datetime.datetime.now(datetime.UTC).replace(microsecond=0),
    }
    intensity = arguments.ir_led_intensity
    if intensity is None:
        intensity = float(config.get("od_reading.config", "ir_led_intensity"))
    if arguments.device == files.FUSED_DEVICE:
        rows = read_columns(arguments.data, ("angle", "concentration", "reading"))
        angles = sorted({f"{row['angle']:g}" for row in rows}, key=float)
        records = [(f"{row['angle']:g}", row["concentration"], row["reading"]) for row in rows]
        document: dict[str, Any] = {
            "estimator_type": files.ESTIMATOR,
            "estimator_name": arguments.name,
            **common,
            "ir_led_intensity": intensity,
            "angles": angles,
            **fit_fusion(records, angles),
            "low_conc_scales": {},
            "y": "log(Voltage)",
        }
    else:
        document = _fit_curve(arguments, config, common, intensity)
    document = files.check(document, arguments.data)
    if arguments.device not in files.devices_of(document):
        raise CalibrationError(f"this fit is for {' or '.join(files.devices_of(document))}, not {arguments.device}")
    files.for_worker(document, arguments.device)
    print(files.save(directory, arguments.device, document))


def _fit_curve(
    arguments: argparse.Namespace, config: Config, common: dict[str, Any], intensity: float
) -> dict[str, Any]:
    """A calibration's document from its standards."""
    is_od = arguments.device in files.OD_DEVICES
    tag = arguments.type or next(
        (tag for tag, (devices, *_) in files.KINDS.items() if arguments.device in devices), None
    )
    if tag is None:
        known = sorted({device for devices, *_ in files.KINDS.values() for device in devices} | {files.FUSED_DEVICE})
        raise CalibrationError(f"no device {arguments.device}: known are {', '.join(known)}")
    if is_od and arguments.type is None:
        tag = "od600"
    rows = read_columns(arguments.data, ("x", "y"))
    x, y = [row["x"] for row in rows], [row["y"] for row in rows]
    kind = arguments.kind or ("spline" if is_od else "poly")
    curve = FITS[kind](x, y, arguments.degree if kind == "poly" else arguments.knots)
    document = {
        "calibration_type": tag,
        "calibration_name": arguments.name,
        **common,
        "curve_data_": curve,
        "x": files.KINDS[tag][1][0],
        "y": files.KINDS[tag][1][1],
        "recorded_data": {"x": x, "y": y},
    }
    if is_od:
        angle = arguments.angle or arguments.device[2:]
        at_angle = [c for c in "1234" if angle and config.get("od_config.photodiode_channel", c) == angle]
        document |= {
            "ir_led_intensity": intensity,
            "angle": angle or None,
            "pd_channel": arguments.channel or (at_angle[0] if at_angle else None),
            "ref_normalization": str(config.get("od_reading.config", "ref_normalization")),
        }
    for field in files.KINDS[tag][2]:
        if field not in document:
            document[field] = getattr(arguments, field)
    return document
