"""Calibration files of the field, the command that keeps them, and what a worker makes of them."""

from __future__ import annotations

import json
import math
import zlib

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from stirbar.core import calibration_files as files
from stirbar.core import calibration_fits as fits
from stirbar.core import calibrations, calibrations_command, raw_codec, records
from stirbar.core.calibration_files import CalibrationError
from stirbar.core.commands import Commands
from stirbar.core.config import load_config, parse_overrides
from stirbar.core.twin import Twin
from stirbar.rt.replay_arrays import Replay

OD = """\
calibration_type: od600
calibration_name: od90-2026-01-27
calibrated_on_pioreactor_unit: unit1
created_at: 2026-01-27 15:59:11.334000+00:00
curve_data_:
  type: poly
  coefficients:
  - -0.02
  - 0.3
  - 0.02
x: OD600
y: Voltage
recorded_data:
  x: [0.0, 0.5, 1.0, 2.0, 4.0, 6.0]
  y: [0.02, 0.166, 0.299, 0.541, 0.899, 1.101]
ir_led_intensity: 80.0
angle: '90'
pd_channel: '2'
"""
PUMP = """\
calibration_type: simple_peristaltic_pump
calibration_name: first pump
calibrated_on_pioreactor_unit: unit1
created_at: '2026-01-27T15:59:11.334000Z'
curve_data_: {type: poly, coefficients: [0.0911, 0.0]}
x: Duration
y: Volume
recorded_data: {x: [], y: []}
hz: 250.0
dc: 100.0
voltage: -1
"""
STIRRING = """\
calibration_type: simple_stirring
calibration_name: stir
calibrated_on_pioreactor_unit: unit1
created_at: 2026-01-27 15:59:11+00:00
curve_data_: {type: akima, knots: [20.0, 30.0, 40.0], coefficients: [[300.0, 20.0, 0, 0], [500.0, 20.0, 0, 0]]}
x: DC %
y: RPM
recorded_data: {x: [20, 30, 40], y: [300, 500, 700]}
pwm_hz: 200
voltage: 5.0
"""
OLD = """\
calibration_type: od
calibration_name: old
calibrated_on_pioreactor_unit: unit1
created_at: 2024-12-01 00:00:00
curve_type: poly
curve_data_: [0.5, 0.1]
x: OD
y: Voltage
recorded_data: {x: [0, 1], y: [0.1, 0.6]}
ir_led_intensity: 70
angle: 135
pd_channel: 3
"""


def fused_text(kind="akima", angles=("45", "90", "135"), **more) -> str:
    curve = {"type": kind, "knots": [-2.0, 0.0, 0.5], "coefficients": [[-1.7, 0.2, 0.0, 0.1], [-0.5, 1.0, 0.1, 0.0]]}
    flat = {"type": kind, "knots": [-2.0, 0.5], "coefficients": [[-3.0, 0.0, 0.0, 0.0]]}
    return yaml.safe_dump({
        "estimator_type": "od_fused_estimator",
        "estimator_name": "od-fused-estimator-2026-01-27",
        "calibrated_on_pioreactor_unit": "xr1",
        "created_at": "2026-01-27T15:59:11.334000Z",
        "ir_led_intensity": 80.0,
        "angles": list(angles),
        "mu_splines": dict.fromkeys(angles, curve),
        "sigma_splines_log": dict.fromkeys(angles, flat),
        "min_logc": -2.0,
        "max_logc": 0.5,
        "sigma_floor": 0.04,
        "recorded_data": {"by_angle": {}},
        "y": "log(Voltage)",
        **more,
    })  # fmt: skip


def written(tmp_path, text: str, name: str = "one.yaml") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        (OD, ("od90", "od")),
        (PUMP, ("media_pump", "alt_media_pump", "waste_pump")),
        (STIRRING, ("stirring",)),
        (OLD, ("od135", "od")),
        (fused_text(), ("od_fused",)),
        (fused_text("spline", low_conc_scales={"135": 0.04}), ("od_fused",)),
    ],
)
def test_the_fields_files_load_and_come_back(tmp_path, text, devices) -> None:
    document = files.read(written(tmp_path, text))
    assert files.devices_of(document) == devices
    again = files.read(files.save(str(tmp_path), devices[0], document))
    assert again == document
    assert files.stored(str(tmp_path)) == [(devices[0], files.name_of(document))]
    # what they wrote is still what it was
    theirs, ours = yaml.safe_load(text), yaml.safe_load(files.text_of(document))
    for field in theirs.keys() - {"created_at", "curve_type", "curve_data_", "angle", "pd_channel"}:
        assert ours[field] == pytest.approx(theirs[field]) if isinstance(theirs[field], float) else theirs[field]
    assert document["created_at"].tzinfo is not None


def test_fields_of_other_programs_are_kept(tmp_path) -> None:
    document = files.read(written(tmp_path, OD + "note: by hand\nrpm: 500\n"))
    again = yaml.safe_load(files.text_of(document))
    assert again["note"] == "by hand" and again["rpm"] == 500


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("calibration_type: od600", "calibration_type: ph", "calibration_type is 'ph', expected one of od, od600"),
        (
            "calibration_name: od90-2026-01-27",
            "calibration_name: ../../etc/passwd",
            "calibration_name '../../etc/passwd'",
        ),
        ("created_at: 2026-01-27 15:59:11.334000+00:00", "created_at: soon", "created_at is 'soon'"),
        ("ir_led_intensity: 80.0", "ir_led_intensity: auto", "ir_led_intensity is 'auto', expected a number"),
        ("angle: '90'", "angle: '60'", "angle is '60', expected one of 45, 90, 135, 180"),
        ("pd_channel: '2'", "pd_channel: REF", "pd_channel is 'REF'"),
        ("angle: '90'\n", "", "angle is missing"),
        ("type: poly", "type: fourier", "curve_data_ has no type poly, spline, akima"),
        ("  - 0.3", "  - .nan", "curve_data_.coefficients\\[1\\] is nan, expected a finite number"),
        ("y: [0.02, 0.166, ", "y: [0.02, ", "recorded_data has 6 x and 5 y"),
        ("x: [0.0,", "x: [zero,", "recorded_data.x\\[0\\] is 'zero'"),
        ("curve_data_:", "curve_data_", "is no YAML"),
    ],
)
def test_bad_files_are_named(tmp_path, old, new, words) -> None:
    assert old in OD
    path = written(tmp_path, OD.replace(old, new))
    with pytest.raises(CalibrationError, match=words) as error:
        files.read(path)
    assert path in str(error.value)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"sigma_splines_log": 3}, "sigma_splines_log has no curve for each angle"),
        ({"mu_splines": {"45": {}}}, "mu_splines.45 has no type"),
        ({"sigma_floor": "low"}, "sigma_floor is 'low'"),
        ({"low_conc_scales": {"45": None}}, "low_conc_scales.45 is None"),
        ({"estimator_type": "ph"}, "estimator_type is 'ph'"),
        ({"min_logc": None}, "min_logc is missing"),
    ],
)
def test_bad_estimators_are_named(tmp_path, more, words) -> None:
    with pytest.raises(CalibrationError, match=words):
        files.read(written(tmp_path, fused_text(**more)))


json_like = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_document_does_worse_than_an_error(data) -> None:
    """One field of a good file replaced by anything: it is checked, or refused with words."""
    document = yaml.safe_load(data.draw(st.sampled_from([OD, PUMP, STIRRING, OLD, fused_text()])))
    field = data.draw(st.sampled_from(sorted(document)))
    document[field] = data.draw(json_like)
    try:
        checked = files.check(document, "file")
        files.for_worker(checked, files.devices_of(checked)[0])
    except CalibrationError as error:
        assert str(error)


# --- the command ------------------------------------------------------------------------------------------------------


class Command:
    def __init__(self, tmp_path, capsys) -> None:
        self.directory = str(tmp_path / "data")
        self.capsys = capsys
        self.options = ["--config", str(tmp_path / "none.ini")]
        (tmp_path / "none.ini").write_text("")
        for key in ("data_directory", "runtime_directory"):
            self.options += ["--set", f"unit.{key}={self.directory}"]

    def __call__(self, *words: str, fails: str = "") -> str:
        status = calibrations_command.main([*words, *self.options])
        out, err = self.capsys.readouterr()
        assert (status, bool(err)) == ((1, True) if fails else (0, False)), err
        assert fails in err
        return out

    def active(self) -> dict:
        with open(calibrations.active_path(self.directory)) as file:
            return json.load(file)


@pytest.fixture
def command(tmp_path, capsys, monkeypatch) -> Command:
    monkeypatch.setattr(calibrations_command, "RELOAD_S", 0.1)
    return Command(tmp_path, capsys)


def test_keeping_and_choosing(command, tmp_path) -> None:
    path = written(tmp_path, OD)
    assert command("import", path).strip().endswith("calibrations/od90/od90-2026-01-27.yaml")
    command("import", path, fails="od90 has a calibration 'od90-2026-01-27'")
    command("import", path, "--device", "media_pump", fails="is for od90 or od, not for media_pump")
    assert command("list") == "  od90             od90-2026-01-27\n"
    assert "no worker answers" in command("set-active", "od90", "od90-2026-01-27")
    assert command("list", "--device", "od90") == "* od90             od90-2026-01-27\n"
    assert command("list", "--device", "od45") == ""
    shown = command("show", "od90", "od90-2026-01-27")
    assert "scatter of the standards about the curve: 0.00" in shown and "is known to" in shown
    out = tmp_path / "out.yaml"
    command("export", "od90", "od90-2026-01-27", "--out", str(out))
    assert files.read(str(out)) == files.read(path)
    command("remove", "od90", "od90-2026-01-27", fails="is in force")
    command("end", "od90")
    command("end", "od90", fails="no calibration of od90 is in force")
    command("remove", "od90", "od90-2026-01-27")
    assert command("list") == ""
    command("show", "od90", "od90-2026-01-27", fails="no calibration 'od90-2026-01-27' of od90: it has none")
    command("show", "od90", "../x", fails="must be letters")


def test_what_does_not_fit_the_unit_is_not_put_in_force(command, tmp_path) -> None:
    command("import", written(tmp_path, OD))
    name = "od90-2026-01-27"
    command(
        "set-active", "od90", name, "--set", "od_reading.config.ir_led_intensity=70", fails="made at 80 % of the LED"
    )
    command("set-active", "od90", name, "--set", "od_config.photodiode_channel.2=45", fails="for photodiode 2 at 90°")
    command("import", written(tmp_path, OD.replace(name, "other")), "--device", "od")
    command("set-active", "od90", name)
    command("set-active", "od", "other", fails="photodiode 2 is calibrated by that of od90")
    bare = OD.replace(name, "bare")
    bare = bare[: bare.index("recorded_data")] + "recorded_data: {x: [], y: []}\n" + bare[bare.index("ir_led") :]
    command("import", written(tmp_path, bare))
    command("set-active", "od90", "bare", fails="has no recorded_data")
    constant = OD.replace(name, "flat").replace("  - -0.02\n  - 0.3\n", "")
    command("import", written(tmp_path, constant))
    command("set-active", "od90", "flat", fails="expected 2 to 10")
    assert command.active()["curves"]["od90"]["name"] == name, "what was refused changed nothing"


def test_pumps_and_stirring_are_kept_for_who_needs_them(command, tmp_path) -> None:
    command("import", written(tmp_path, PUMP), "--device", "waste_pump")
    command("set-active", "waste_pump", "first pump")
    command("import", written(tmp_path, STIRRING))
    command("set-active", "stirring", "stir")
    active = command.active()
    assert active["devices"]["waste_pump"]["coefficients"] == [0.0911, 0.0]
    assert active["devices"]["stirring"]["knots"] == [20.0, 30.0, 40.0]
    assert command("list").count("*") == 2


def test_fits_from_standards(command, tmp_path) -> None:
    data = written(tmp_path, "x,y\n0,0.02\n0.5,0.16\n1,0.29\n2,0.47\n3,0.58\n4,0.62\n", "standards.csv")
    for kind in fits.FITS:
        command("fit", "od90", data, "--name", kind, "--kind", kind)
        document = files.read(files.path_of(command.directory, "od90", kind))
        assert document["calibration_type"] == "od600" and document["pd_channel"] == "2" and document["angle"] == "90"
        assert document["ir_led_intensity"] == 80.0 and document["ref_normalization"] == "unity"
        np.testing.assert_allclose(files.y_of(document, [0.0, 1.0, 4.0]), [0.02, 0.29, 0.62], atol=0.02)
    volume = written(tmp_path, "x,y\n1,0.09\n2,0.182\n4,0.364\n", "pump.csv")
    command("fit", "media_pump", volume, "--name", "p", "--hz", "250", "--dc", "100", "--voltage", "5")
    assert files.read(files.path_of(command.directory, "media_pump", "p"))["hz"] == 250.0
    command("fit", "media_pump", volume, "--name", "q", fails="hz is missing")
    command("fit", "od90", data, "--name", "poly", fails="od90 has a calibration 'poly'")
    command("fit", "od45", data, "--name", "x", fails="pd_channel is missing")
    command("fit", "ph", data, "--name", "x", fails="no device ph: known are")
    command("fit", "od90", written(tmp_path, "a,b\n1,2\n", "b.csv"), "--name", "x", fails="has no column x")
    command(
        "fit", "od90", written(tmp_path, "x,y\n1,2\n2,none\n", "c.csv"), "--name", "x", fails="line 3: not a number"
    )
    command("fit", "od90", written(tmp_path, "x,y\n1,2\n1,3\n", "d.csv"), "--name", "x", fails="different values of x")


# --- a worker that uses them ------------------------------------------------------------------------------------------

QUIET = ("simulation.growth_rate_maximum_per_hour=0.0001", "simulation.culture_noise_percent=0.01",
         "simulation.vortex_percent=0", "simulation.bubble_rate_hz=0")  # fmt: skip
XR = ("od_config.photodiode_channel.1=REF", "od_config.photodiode_channel.2=45", "od_config.photodiode_channel.3=90",
      "od_config.photodiode_channel.4=135")  # fmt: skip


def twin(directory, *changes: str) -> Twin:
    return Twin(load_config(overrides=parse_overrides(["unit.simulate=1", *QUIET, *changes])), str(directory))


def ask(vial: Twin, request: dict, messages: list | None = None) -> dict:
    """Send a request and run on until its answer came; what is published meanwhile goes into `messages`."""
    answers: list[dict] = []
    Commands(vial.host).handle(request, lambda answer, frames: answers.append(answer))
    end = vial.elapsed_s + 30
    while not answers and vial.elapsed_s < end:
        published = list(vial.run(0.2))
        if messages is not None:
            messages += published
    assert len(answers) == 1
    json.dumps(answers[0], allow_nan=False)
    return answers[0]


def unpacked(messages, stream: str) -> list[dict]:
    return [
        dict(zip(records.READING_FIELDS, fields, strict=True))
        for topic, _, payload in messages
        if topic == b"reading/" + stream.encode()
        for fields in records.READING.iter_unpack(payload)
    ]


def events_of(messages) -> list[str]:
    return [json.loads(payload)["message"] for topic, _, payload in messages if topic == b"event"]


def uncalibrated(reading: dict) -> bool:
    return bool(reading["flags"] & records.FLAGS["uncalibrated"])


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict[str, list[tuple[float, float]]]:
    """Standards measured on the simulated unit with three angles: {stream: [(biomass, value)]}."""
    found: dict[str, list[tuple[float, float]]] = {"od2": [], "od3": [], "od4": []}
    for od in (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0):
        messages = list(twin(tmp_path_factory.mktemp("standard"), f"simulation.biomass_od={od}", *XR).run(25))
        for stream, points in found.items():
            points.append((od, float(np.mean([one["value"] for one in unpacked(messages, stream)[-50:]]))))
    return found


def curve_of(points, device="od90", channel=3, angle=90, kind="spline", **more) -> dict:
    x, y = [one for one, _ in points], [one for _, one in points]
    document = files.check({
        "calibration_type": "od600", "calibration_name": "measured", "calibrated_on_pioreactor_unit": "u",
        "created_at": "2026-01-01T00:00:00Z", "curve_data_": fits.FITS[kind](x, y),
        "recorded_data": {"x": x, "y": y}, "ir_led_intensity": 80.0, "angle": str(angle), "pd_channel": str(channel),
        **more,
    }, "standards")  # fmt: skip
    return files.for_worker(document, device)


def estimator_of(measured) -> dict:
    angles = {"45": "od2", "90": "od3", "135": "od4"}
    standards = [(angle, od, y) for angle, stream in angles.items() for od, y in measured[stream] if od > 0]
    document = files.check({
        "estimator_type": files.ESTIMATOR, "estimator_name": "three", "calibrated_on_pioreactor_unit": "u",
        "created_at": "2026-01-01T00:00:00Z", "ir_led_intensity": 80.0, "angles": list(angles),
        **fits.fit_fusion(standards, list(angles)),
    }, "standards")  # fmt: skip
    return files.for_worker(document, files.FUSED_DEVICE)


def test_a_calibrated_worker_reads_the_biomass(measured, tmp_path) -> None:
    files.write_active(str(tmp_path), {"curves": {"od90": curve_of(measured["od3"], kind="akima")}})
    vial = twin(tmp_path, "simulation.biomass_od=1.4", *XR)
    messages = list(vial.run(30))
    before, after = unpacked(messages, "od3")[0], unpacked(messages, "od3")[-1]
    assert uncalibrated(before) and before["signal_v"] == pytest.approx(before["value"], rel=0.05)
    assert not uncalibrated(after) and after["value"] == pytest.approx(1.4, rel=0.02)
    curve = curve_of(measured["od3"], kind="akima")
    np.testing.assert_allclose(fits.evaluate(curve, [after["value"]])[0], after["signal_v"], rtol=1e-6)
    slope = (fits.evaluate(curve, [1.401])[0] - fits.evaluate(curve, [1.399])[0]) / 0.002
    spread = np.std([one["value"] for one in unpacked(messages, "od3")[-100::10]])
    assert after["se_instrument"] == pytest.approx(before["se_instrument"] / slope, rel=1.0)
    assert 0.3 < spread / after["se_culture"] < 3.0
    for other in ("od2", "od4"):
        assert all(uncalibrated(one) for one in unpacked(messages, other))
    channel = next(one for one in vial.host.describe()["channels"] if one["channel"] == 3)
    assert channel["unit"] == "OD600"
    setting = vial.host.settings[("od_reading", "calibration3")]["value"]
    assert setting["name"] == "measured" and setting["domain"] == [0.0, 6.0]
    assert setting["standard_errors"] is None, "Akima goes through every standard: none is left over to tell"
    assert len(curve_of(measured["od3"], kind="poly")["standard_errors"]) == 9


def test_slower_rates_are_calibrated_too(measured, tmp_path) -> None:
    files.write_active(str(tmp_path), {"curves": {"od90": curve_of(measured["od3"], kind="akima")}})
    slower = ("od_reading.config.slower_readings_per_second=1", "od_reading.config.slower_windows_s=2")
    messages = list(twin(tmp_path, "simulation.biomass_od=1.4", *XR, *slower).run(30))
    last = unpacked(messages, "od3_rate1")[-1]
    assert not uncalibrated(last) and last["value"] == pytest.approx(1.4, rel=0.02)


def test_a_replay_gives_calibrated_and_fused_readings_bit_by_bit(measured, tmp_path) -> None:
    """Also across a change of the calibration while it runs: the curve is in the trace."""
    first = {"curves": {"od90": curve_of(measured["od3"])}, "fusion": estimator_of(measured)}
    files.write_active(str(tmp_path), first)
    vial = twin(tmp_path, "simulation.biomass_od=1.4", *XR, "od_reading.config.raw=1")
    messages = list(vial.run(17))
    second = {**first, "curves": {"od90": curve_of(measured["od3"], kind="poly"),
                                  "od45": curve_of(measured["od2"], "od45", 2, 45)}}  # fmt: skip
    files.write_active(str(tmp_path), second)
    answer = ask(vial, {"id": 1, "command": "calibrations", "reload": True}, messages)
    assert answer["ok"] and [one["device"] for one in answer["result"]["calibrations"]] == ["od45", "od90", "od_fused"]
    messages += list(vial.run(8))
    live = [
        payload[i : i + records.READING.size]
        for topic, _, payload in messages
        if topic.startswith((b"reading/od", b"reading/modulation"))
        for i in range(0, len(payload), records.READING.size)
    ]
    config = vial.host.config
    replay = Replay(False, config)
    replay.restore(zlib.decompress(next(payload for topic, _, payload in messages if topic == b"snapshot/raw")))
    made = b"".join(replay.feed(payload) for topic, _, payload in messages if topic == b"trace/raw")

    def key(packed: bytes) -> tuple:
        fields = dict(zip(records.READING_FIELDS, records.READING.unpack(packed), strict=True))
        flags = fields["flags"] & ~records.FLAGS["simulated"]
        kept = {name: value for name, value in fields.items() if name not in ("sequence", "wall_ns", "experiment")}
        return (fields["stream"], fields["monotonic_ns"], repr({**kept, "flags": flags}))

    size = records.READING.size
    replayed = [made[i : i + size] for i in range(0, len(made), size)]
    assert sorted(map(key, replayed)) == sorted(map(key, live))
    streams = {records.READING.unpack(one)[-4] for one in replayed}
    assert {2, 3, 4, 5} <= streams
    # the trace survives its own coding
    traces = [payload for topic, _, payload in messages if topic == b"trace/raw"]
    assert all(raw_codec.decode(raw_codec.encode(one)) == one for one in traces)


def test_three_angles_make_one_concentration(measured, tmp_path) -> None:
    files.write_active(str(tmp_path), {"fusion": estimator_of(measured)})
    for od in (0.4, 1.4, 5.0):
        messages = list(twin(tmp_path, f"simulation.biomass_od={od}", *XR).run(30))
        fused = unpacked(messages, "od_fused")
        assert [one["sequence"] for one in fused] == list(range(len(fused)))
        last = fused[-1]
        assert last["value"] == pytest.approx(od, rel=0.06)
        assert last["angle"] == 0 and not uncalibrated(last) and math.isnan(last["ambient_v"])
        assert not last["flags"] & (records.FLAGS["below_curve"] | records.FLAGS["above_curve"])
        assert 0 < last["se_instrument"] <= last["se_culture"] < last["signal_v"] < 0.1 * od
        assert last["used"] == sum(unpacked(messages, f"od{channel}")[-1]["used"] for channel in (2, 3, 4))
        gaps = np.diff([one["monotonic_ns"] for one in fused[5:]])
        assert abs(np.median(gaps) - 1e8) < 2e7 and np.max(gaps) < 1.3e8, "ten a second"


def test_another_intensity_leaves_readings_uncalibrated(measured, tmp_path) -> None:
    active = {"curves": {"od90": curve_of(measured["od3"])}, "fusion": estimator_of(measured)}
    files.write_active(str(tmp_path), active)
    vial = twin(tmp_path, "simulation.biomass_od=1.4", *XR)
    list(vial.run(20))
    answer = ask(vial, {"id": 2, "command": "set", "job": "od_reading", "setting": "ir_led_intensity", "value": 60})
    assert answer["ok"]
    messages = list(vial.run(5))
    assert all(uncalibrated(one) for one in unpacked(messages, "od3")[10:]) and unpacked(messages, "od3")
    assert not unpacked(messages, "od_fused")[1:]
    ask(vial, {"id": 3, "command": "set", "job": "od_reading", "setting": "ir_led_intensity", "value": 80})
    messages = list(vial.run(10))
    assert not uncalibrated(unpacked(messages, "od3")[-1]) and unpacked(messages, "od_fused")


def test_what_does_not_fit_is_said_and_not_applied(measured, tmp_path) -> None:
    curve = curve_of(measured["od3"])
    active = {
        "curves": {
            "od90": {**curve, "channel": 2},
            "od": {**curve, "ref_normalization": "classic"},
        },
        "fusion": {**estimator_of(measured), "angles": [{**estimator_of(measured)["angles"][0], "angle": 180}]},
    }
    files.write_active(str(tmp_path), active)
    vial = twin(tmp_path, "simulation.biomass_od=1.4", *XR)
    messages = list(vial.run(12))
    said = events_of(messages)
    for words in (
        "calibration 'measured' of od90 is for photodiode 2 at 90°, which is at 45°: not applied",
        "calibration 'measured' of od was made with ref_normalization = classic, not unity: not applied",
        "estimator 'three' needs 180°, which no photodiode has: not applied",
    ):
        assert words in said, said
    assert all(uncalibrated(one) for one in unpacked(messages, "od3"))


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 9}', '{"version": 1, "curves": {"od90": {"name": "x"}}}'])
def test_a_file_that_cannot_be_used_leaves_the_worker_running(tmp_path, content) -> None:
    path = calibrations.active_path(str(tmp_path))
    files.write_active(str(tmp_path), {})
    with open(path, "w") as file:
        file.write(content)
    vial = twin(tmp_path)
    messages = list(vial.run(3))
    assert any("no calibration is in force" in one for one in events_of(messages))
    assert unpacked(messages, "od2")
    answer = ask(vial, {"id": 4, "command": "calibrations", "reload": True})
    assert not answer["ok"] and answer["error"]["message"].startswith("no change: ")


def test_a_blank_and_a_calibration(measured, tmp_path) -> None:
    """The curve holds its own blank: an older one is not subtracted, a new one is refused."""
    vial = twin(tmp_path, "simulation.biomass_od=1.4", *XR)
    ask(vial, {"id": 5, "command": "blank", "channel": 3, "value": 0.05})
    blanked = unpacked(list(vial.run(10)), "od3")[-1]
    assert blanked["flags"] & records.FLAGS["blanked"]
    files.write_active(str(tmp_path), {"curves": {"od90": curve_of(measured["od3"], kind="akima")}})
    messages: list = []
    ask(vial, {"id": 6, "command": "calibrations", "reload": True}, messages)
    assert "the blank of photodiode 3 is not subtracted: calibration 'measured' has its own" in events_of(messages)
    last = unpacked(list(vial.run(10)), "od3")[-1]
    assert not last["flags"] & records.FLAGS["blanked"] and last["blank"] == 0.0
    assert last["value"] == pytest.approx(1.4, rel=0.02)
    answer = ask(vial, {"id": 7, "command": "blank", "channel": 3, "value": 0.04})
    assert not answer["ok"] and "has a calibration" in answer["error"]["message"]
    assert ask(vial, {"id": 8, "command": "blank", "channel": 2, "value": 0.04})["ok"]
    # without the calibration the blank is back: nothing was lost
    files.write_active(str(tmp_path), {})
    ask(vial, {"id": 9, "command": "calibrations", "reload": True})
    back = unpacked(list(vial.run(5)), "od3")[-1]
    assert back["value"] == pytest.approx(blanked["value"], rel=0.01) and uncalibrated(back)
