"""`stirbar hardware` on every board of the field, whole and broken, on both benches."""

from __future__ import annotations

import fcntl
import json
import os
import select
import time

import pytest
from board_bench import Bench, board
from stirbar.core import check_bus, check_light, check_lines, gpio_lines, hardware_command, profiles, records
from stirbar.core.check_report import FAIL, NOTE, OK, SKIP, WARN, Finding
from stirbar.core.chips import BusHeld
from stirbar.core.commands import Commands
from stirbar.core.config import load_config
from stirbar.core.detection import detect
from stirbar.core.front_panel import IDENTIFY_NS, Panel, open_panel
from stirbar.core.gpio_lines import Line, LineError
from stirbar.core.i2c_bus import I2cBus
from stirbar.core.status import render
from stirbar.core.twin import Twin

BOARDS = ("hat1.0", "hat1.1", "hat1.2", "model1.5", "xr1.5", "eyespy")
GPIO = "/dev/gpiochip0"


def every_board(test):
    for name in reversed(BOARDS):
        test = board(name)(test)
    return test


@pytest.fixture
def run(tmp_path, capsys):
    """run("scan", ...) -> (exit status, what was printed, or the parsed JSON)."""

    def call(*arguments: str, text: bool = False):
        place = ["--config", os.devnull, "--set", f"unit.runtime_directory={tmp_path}", "--set", "unit.name=vial"]
        place += ["--set", f"unit.data_directory={tmp_path}/data"]
        status = hardware_command.main([*arguments, *place, *([] if text else ["--json"])])
        printed = capsys.readouterr()
        return status, printed.out + printed.err if text or not printed.out else json.loads(printed.out)

    return call


@pytest.fixture
def bus():
    with I2cBus(1, 20) as opened:
        yield opened


def wire_light(bench: Bench, profile: profiles.Profile, volts: float = 0.6) -> None:
    """Each photodiode sees the OD LED: so many volts at full intensity."""
    led = (profile.get("led", "address"), profile.get("led", profile.get("led", "ir")))
    for n in profile.channels():
        section = f"photodiode.{n}"
        place = (profile.get(section, "address"), profile.get(section, "input") or 0)
        bench.led_to_photodiode(led, place, volts)
        bench.set_noise(*place, 30e-6)


def wire_rail(bench: Bench, profile: profiles.Profile, volts: float = 5.0) -> None:
    bench.set_volts(profile.get("rail", "address"), profile.get("rail", "input"), 0.134 * volts)


def named(findings, words: str) -> list[Finding]:
    found = [one for one in findings if words in one.what]
    assert found, f"no finding about '{words}'"
    return found


# --- scan and detect -------------------------------------------------------------------------------------------------

FAMILIES = {"ads1114": "ads111x", "ads1115": "ads111x", "pico": "rp2040"}


@every_board
def test_scan_names_every_chip(bench, run):
    status, report = run("scan")
    assert status == 0
    found = {one["address"]: one["kind"] for one in report["devices"]}
    assert found == {address: FAMILIES.get(kind, kind) for address, kind in bench.chips.items()}
    if 0x2C in bench.chips:
        assert next(one["firmware"] for one in report["devices"] if one["address"] == 0x2C) == [0, 4]


@every_board
def test_detect_finds_the_board(bench, run):
    status, report = run("detect")
    assert (status, report["profile"]) == (0, bench.profile)
    assert profiles.detect().profile().name == bench.profile
    assert profiles.gpio_chip_path(profiles.load_profile(bench.profile)) == GPIO


@board("hat1.0")
def test_scan_leaves_a_converter_as_it_was(bench, run, bus):
    bus.write_word(0x48, 1, 0x42E3)
    bus.transfer(0x48, b"\0")
    assert run("scan")[0] == 0
    assert bus.read_word(0x48, 1) == 0x42E3
    status, text = run("scan", text=True)
    assert status == 0
    assert "0x48  ads111x   ADS1114 or ADS1115, set up: 0x42e3" in text


@board("hat1.0")
def test_nothing_is_chosen_when_a_part_is_missing(bench, run):
    bench.unplug(0x49)
    status, report = run("detect")
    assert (status, report["profile"]) == (1, None)
    fit = next(one for one in report["fits"] if one["name"] == "hat1.0")
    assert fit["reason"] == "misses dac43608 at 0x49 ([led])"
    with pytest.raises(profiles.ProfileError, match=r"no board found: .*0x48.*or simulate one with --simulate"):
        profiles.detect().profile()


@board("hat1.0")
def test_a_missing_heater_board_is_said(bench, run):
    bench.unplug(0x4F)
    status, text = run("detect", text=True)
    assert status == 0
    assert "missing: tmp1075 at 0x4f ([temperature])" in text


@board("model1.5")
def test_half_a_model_is_not_another_board(bench, run):
    """With one photodiode unplugged a model 1.5 has the chips of an eyespy, but no ALERT/RDY edges."""
    bench.unplug(0x49)
    status, report = run("detect")
    assert (status, report["profile"]) == (1, None)
    reasons = {one["name"]: one["reason"] for one in report["fits"]}
    assert reasons["eyespy"] == "no ALERT/RDY edge came on line 27"
    assert reasons["model1.5"] == "misses ads1114 at 0x49 ([photodiode.2])"
    assert reasons["hat1.1"] == "has all of its chips, but does not know the converter at 0x48"


@board("xr1.5")
def test_half_an_xr_is_not_a_model(bench, run):
    bench.unplug(0x4A)
    assert run("detect")[1]["profile"] is None


@board("hat1.1")
def test_a_held_bus_is_named_in_bounded_time(bench, run, bus):
    bench.stick_sda(1 << 30)
    begin = time.monotonic()
    status, said = run("scan")
    assert time.monotonic() - begin < 2.0
    assert status == 1
    assert "SDA or SCL is held low" in said
    status, report = run("detect")
    assert status == 1
    assert "SDA or SCL is held low" in report["fault"]
    with pytest.raises(BusHeld):
        list(check_bus.check_devices(profiles.load_profile("hat1.1"), bus))


@board("hat1.0")
def test_a_running_worker_is_not_disturbed(bench, run, tmp_path):
    held = os.open(tmp_path / "vial.lock", os.O_RDWR | os.O_CREAT)
    os.write(held, b"4711\n")
    fcntl.flock(held, fcntl.LOCK_EX)
    before = bench.number("board/i2c-1/48/count")
    for command in ("scan", "detect", "check"):
        status, said = run(command)
        assert status == 1
        assert "process 4711" in said
        assert "stop it first" in said
    assert bench.number("board/i2c-1/48/count") == before
    os.close(held)
    assert run("scan")[0] == 0


@board("hat1.2")
def test_what_was_found_is_remembered(bench, tmp_path):
    config = load_config(os.devnull, None, [("unit", "runtime_directory", str(tmp_path))])
    assert profiles.choose(config).name == "hat1.2"
    before = bench.number("board/i2c-1/count")
    assert profiles.choose(config, remembered=True).name == "hat1.2"
    assert bench.number("board/i2c-1/count") == before
    (tmp_path / "board").write_text("00 hat1.2\n")  # of another start of the machine
    assert profiles.choose(config, remembered=True).name == "hat1.2"
    assert bench.number("board/i2c-1/count") > before


# --- check: devices and bus ------------------------------------------------------------------------------------------


@board("48:ads1115,4a:dac43608,4f:tmp1075")
def test_a_chip_at_another_address(bench, bus):
    found = list(check_bus.check_devices(profiles.load_profile("hat1.0"), bus))
    led = named(found, "dac43608 at 0x49")[0]
    assert led.status == FAIL
    assert "there is one at 0x4a" in led.measured
    assert "write address = 0x4a into [led]" in led.remedy
    assert named(found, "device at 0x4a")[0].status == NOTE
    assert {one.status for one in named(found, "at 0x48") + named(found, "at 0x4f")} == {OK}


@board("48:dac43608,49:ads1115,4f:tmp1075")
def test_two_chips_swapped(bench, bus):
    found = list(check_bus.check_devices(profiles.load_profile("hat1.0"), bus))
    assert "answers instead" in named(found, "ads1115 at 0x48")[0].measured
    assert "answers instead" in named(found, "dac43608 at 0x49")[0].measured


@board("xr1.5")
def test_a_model_profile_on_an_xr(bench, bus):
    found = list(check_bus.check_devices(profiles.load_profile("model1.5"), bus))
    other = named(found, "profile")[0]
    assert other.status == WARN
    assert "xr1.5 fits better" in other.measured
    assert "write hardware = xr1.5 into [unit]" in other.remedy


@board("hat1.0", bus_hz=400_000)
def test_a_bus_at_another_clock(bench, bus):
    clock = named(check_bus.check_speed(profiles.load_profile("hat1.0"), bus), "bus clock")[0]
    assert clock.status == FAIL
    assert "dtparam=i2c_arm_baudrate=100000" in clock.remedy


@board("hat1.0")
@board("model1.5")
def test_the_clock_of_the_bus_is_measured(bench, bus):
    clock = named(check_bus.check_speed(profiles.load_profile(bench.profile), bus), "bus clock")[0]
    assert clock.status == OK
    assert 90.0 < float(clock.measured.split()[0]) < 105.0


@board("hat1.1")
def test_a_stretched_clock_is_seen(bench, bus):
    profile = profiles.load_profile("hat1.1")
    assert named(check_bus.check_answers(profile, bus), "stretching")[0].status == OK
    bench.stretch(0x2C, 900)
    late = named(check_bus.check_answers(profile, bus), "stretching")[0]
    assert late.status == WARN
    assert 1.6 < float(late.measured.split()[0]) < 3.0  # two messages a read


@board("hat1.0")
def test_answers_that_fail_are_counted(bench, bus):
    profile = profiles.load_profile("hat1.0")
    assert all(one.status == OK for one in check_bus.check_answers(profile, bus))
    findings = check_bus.check_answers(profile, bus)
    assert next(findings).status == OK
    bench.fail("i2c-1/4f", 0)
    bench.write("board/i2c-1/49/fail_errno", 5)

    def fail_some():
        bench.fail("i2c-1/49", 3)

    # the first look at the chip would meet the fault too: it is armed behind it
    original = check_bus._reference_read
    try:
        check_bus._reference_read = lambda *arguments: (fail_some(), original(*arguments))[1]
        finding = next(findings)
    finally:
        check_bus._reference_read = original
    assert finding.status == FAIL
    assert finding.measured.startswith("3 failed")


# --- check: light, converters, sensors -------------------------------------------------------------------------------


def config(*settings: tuple[str, str, str]):
    return load_config(os.devnull, None, settings)


@every_board
def test_light_reaches_every_photodiode(bench, bus):
    profile = profiles.load_profile(bench.profile)
    wire_light(bench, profile)
    found = list(check_light.check_light(profile, bus, config()))
    lights = named(found, "light on [")
    assert len(lights) == len(profile.channels())
    for one in lights:
        assert one.status == OK, one.line()
        dark, lit = (float(part.split()[1]) for part in one.measured.split(", ")[:2])
        assert abs(dark) < 0.2
        assert lit == pytest.approx(600 * round(2.55 * 80) / 255, rel=2e-3)
    assert {one.status for one in named(found, "step response")} == {OK}
    assert len(named(found, "chopping")) == len(profile.channels())
    assert bench.led_code(profile.get("led", "address"), 0) in (None, 0)


@board("model1.5")
def test_a_dark_photodiode_and_a_bright_one(bench, bus):
    profile = profiles.load_profile("model1.5")
    wire_light(bench, profile)
    bench.led_to_photodiode((0x2C, 0), (0x48, 0), 0.0)
    bench.led_to_photodiode((0x2C, 0), (0x49, 0), 9.0)
    found = list(check_light.check_light(profile, bus, config()))
    assert [one.status for one in named(found, "light on [")] == [FAIL, FAIL]
    assert "at the converter's limit" in named(found, "[photodiode.2]")[0].measured


@board("eyespy")
def test_a_channel_without_photodiode(bench, bus):
    profile = profiles.load_profile("eyespy")
    wire_light(bench, profile)
    found = list(check_light.check_light(profile, bus, config()))
    assert named(found, "channel 1 (REF)")[0].status == FAIL  # a worker would not start
    channels = [("od_config.photodiode_channel", "3", "45")]
    found = list(check_light.check_light(profile, bus, config(*channels)))
    assert named(found, "channel 3 (45)")[0].status == FAIL


@board("eyespy")
def test_the_converters_clock_by_its_edges(bench, bus):
    bench.write("board/i2c-1/48/osc_ppm", 80_000)
    (finding,) = check_light.check_converters(profiles.load_profile("eyespy"), bus)
    assert finding.status == OK
    assert abs(float(finding.measured.split()[0]) - 860 / 1.08) < 0.5
    bench.write("board/i2c-1/48/osc_ppm", 200_000)
    (finding,) = check_light.check_converters(profiles.load_profile("eyespy"), bus)
    assert finding.status == WARN


@board("model1.5")
def test_the_converters_clock_without_edges(bench, bus):
    bench.write("board/i2c-1/49/osc_ppm", -80_000)
    first, second = check_light.check_converters(profiles.load_profile("model1.5"), bus)
    assert float(first.measured.split()[0]) == pytest.approx(860.0, rel=0.05)
    assert float(second.measured.split()[0]) == pytest.approx(860.0 / 0.92, rel=0.05)


@board("48:ads1115,2c:pico,4f:tmp1075")
def test_a_ready_line_that_is_not_wired(bench, bus):
    (finding,) = check_light.check_converters(profiles.load_profile("eyespy"), bus)
    assert finding.status == FAIL
    assert "0 edges" in finding.measured
    assert "pace = pilot" in finding.remedy
    assert not any(fit.is_good() for fit in detect().fits if fit.name == "eyespy")


@board("hat1.0")
@board("hat1.1")
def test_temperature_and_rail(bench, bus):
    profile = profiles.load_profile(bench.profile)
    bench.set_celsius(0x4F, 37.5)
    wire_rail(bench, profile, 5.1)
    assert next(check_light.check_temperature(profile, bus)).measured == "37.50 C"
    rail = next(check_light.check_rail(profile, bus))
    assert (rail.status, rail.measured) == (OK, "5.10 V")
    wire_rail(bench, profile, 4.2)
    assert next(check_light.check_rail(profile, bus)).status == WARN
    bench.set_celsius(0x4F, 120.0)
    assert next(check_light.check_temperature(profile, bus)).status == FAIL
    bench.unplug(0x4F)
    assert next(check_light.check_temperature(profile, bus)).status == FAIL


def samples(tau_s: float, window_s: float, noise: float = 0.0) -> check_light.Step:
    """A step from 0.01 V to 0.51 V as a light path of one time constant answers."""

    class Reader:
        section, chip = "photodiode.1", "ads1114" if window_s else "rp2040"

        def resolution_v(self) -> float:
            return 3e-5

    step = check_light.Step(Reader())
    step.dark_v, step.lit_v, step.noise_v = 0.01, 0.51, noise
    for turn in range(4):
        ages = [0.0004 + 0.0003 * turn + 0.0021 * n for n in range(40)]
        step.turns.append([(age, 0.51 - 0.5 * check_light._residual(age, tau_s, window_s)) for age in ages])
    step.turns[1][7] = (step.turns[1][7][0], 0.02)  # the machine stalled: this one began before the light
    return step


@pytest.mark.parametrize("tau_ms", [0.2, 1.0, 5.0])
def test_the_time_constant_is_found(tau_ms):
    step = samples(1e-3 * tau_ms, 1 / 860)
    tau_s = check_light.fit_tau_s(step)
    assert tau_s == pytest.approx(1e-3 * tau_ms, rel=0.02)
    assert check_light.settle_s(step, tau_s) == pytest.approx(6.9e-3 * tau_ms, rel=0.05)


def test_what_a_conversion_sees_of_a_step():
    """Against the plain average over its window."""
    ages = [0.0007 + n * 1e-6 / 10 for n in range(11628)]
    mean = sum(2.718281828459045 ** (-age / 0.0004) for age in ages) / len(ages)
    assert check_light._residual(0.0007, 0.0004, 1 / 860) == pytest.approx(mean, rel=1e-3)


# --- check: lines, panel ---------------------------------------------------------------------------------------------


@board("hat1.1", plant=True)
def test_the_stirrer_is_moved_only_when_asked(bench, monkeypatch):
    monkeypatch.setattr(check_lines, "MOVE_S", 2.0)
    profile = profiles.load_profile(bench.profile)
    bench.write("board/stir/stall", 1)  # what an earlier test set in motion stands still
    edges = bench.number("board/stir/edges")
    (still,) = check_lines.check_stirrer(profile, GPIO, False)
    assert still.status == SKIP
    assert bench.number("board/stir/edges") == edges
    bench.write("board/stir/stall", 0)
    (moved,) = check_lines.check_stirrer(profile, GPIO, True)
    assert moved.status == OK, moved.line()
    assert 10 <= int(moved.measured.split()[0]) <= 60  # 27.8 turns a second at 60 %, longer pulses on a late host
    assert bench.level(17) == 0
    bench.write("board/stir/stall", 1)
    (stuck,) = check_lines.check_stirrer(profile, GPIO, True)
    assert stuck.status == FAIL


@board("hat1.0")
def test_lines_that_somebody_holds(bench):
    profile = profiles.load_profile("hat1.0")
    assert {one.status for one in check_lines.check_free(profile, GPIO)} == {OK}
    with Line(GPIO, 17, gpio_lines.OUTPUT, "intruder"):
        (held,) = check_lines.check_free(profile, GPIO)
        assert held.status == FAIL
        assert "17 ([pwm.1] line) by 'intruder'" in held.measured
        with pytest.raises(LineError, match=r"line 17 .* held by 'intruder'"):
            Line(GPIO, 17, gpio_lines.OUTPUT)
    with Line(GPIO, 17, gpio_lines.OUTPUT, "stirbar-guard"):
        assert {one.status for one in check_lines.check_free(profile, GPIO)} == {OK}


@board("hat1.2")
def test_the_button_and_the_kernels_pwm(bench, monkeypatch):
    profile = profiles.load_profile("hat1.2")
    found = list(check_lines.check_panel(profile, GPIO))
    assert named(found, "button")[0].status == OK
    claim = check_lines.front_panel.open_line

    def pressed(chip, number, output):
        opened = claim(chip, number, output)
        bench.drive(bench.button, 0)  # a finger is stronger than the pull-up that came with the claim
        return opened

    monkeypatch.setattr(check_lines.front_panel, "open_line", pressed)
    assert named(check_lines.check_panel(profile, GPIO), "button")[0].status == WARN
    assert bench.level(bench.led) == 0
    assert [one.status for one in check_lines.check_pwm(profile)] == [OK, OK]


@board("hat1.0")
def test_presses_and_the_blinking_led(bench):
    bench.drive(bench.button, 1)
    panel = Panel(GPIO, bench.button, bench.led)
    now = 1_000_000_000
    assert panel.step(now) == []
    bench.drive(bench.button, 0)
    assert wait_for(panel, now) == [True]
    assert bench.level(bench.led) == 1
    time.sleep(0.025)  # longer than contacts bounce
    bench.drive(bench.button, 1)
    assert wait_for(panel, now) == [False]
    assert bench.level(bench.led) == 0
    panel.identify(now)
    levels = []
    for tick in range(28):
        panel.step(now + tick * IDENTIFY_NS // 24)
        levels.append(bench.level(bench.led))
    assert levels == 4 * [1, 0, 1, 0, 0, 0] + [0, 0, 0, 0]
    panel.faults = frozenset({2})
    levels = []
    for tick in range(4 * 4):
        panel.step(4_000_000_000 * 1000 + tick * 250_000_000)  # a fault of code 2 takes 4 s
        levels.append(bench.level(bench.led))
    assert levels == [1] * 8 + [0, 1, 0, 1] + [0] * 4
    panel.identify(now)
    panel.close()
    assert bench.level(bench.led) == 0


def await_press(panel: Panel) -> None:
    """Until the kernel has an edge of the button: virtual time does not wait for it."""
    assert select.select([panel.button_descriptor], [], [], 5.0)[0]


def wait_for(panel: Panel, now_ns: int) -> list[bool]:
    """The next changes of the button."""
    await_press(panel)
    return panel.step(now_ns)


@board("hat1.0")
def test_a_worker_publishes_the_button_and_identifies_itself(bench, tmp_path, request):
    twin = Twin(load_config(os.devnull, None, [("unit", "simulate", "1")]), str(tmp_path))
    answers = []

    def identify():
        Commands(twin.host).handle({"id": 1, "command": "identify"}, lambda answer, _: answers.append(answer))
        return answers[-1]

    assert identify()["error"]["message"] == "this unit has no LED to blink"
    panel, without = open_panel(profiles.load_profile("hat1.0"))
    assert without == ""
    request.addfinalizer(panel.close)
    twin.host.panel = panel
    bench.drive(bench.button, 1)
    list(twin.run(0.3))
    assert ("monitor", "button_down") not in twin.host.settings
    bench.drive(bench.button, 0)
    await_press(panel)
    said = [json.loads(payload) for topic, _, payload in twin.run(0.3) if topic == b"setting/monitor/button_down"]
    assert [one["value"] for one in said] == [True]
    assert bench.level(bench.led) == 1
    time.sleep(0.025)  # longer than contacts bounce
    bench.drive(bench.button, 1)
    await_press(panel)
    list(twin.run(0.3))
    assert twin.host.settings["monitor", "button_down"]["value"] is False
    assert identify()["result"] == {"seconds": 6.0}
    levels = set()
    for _ in range(8):
        list(twin.run(0.1))
        levels.add(bench.level(bench.led))
    assert levels == {0, 1}
    list(twin.run(6))
    assert bench.level(bench.led) == 0


@board("hat1.0")
def test_a_panel_that_somebody_holds_is_said(bench):
    with Line(GPIO, bench.button, gpio_lines.INPUT, "intruder"):
        panel, without = open_panel(profiles.load_profile("hat1.0"))
    assert panel is None
    assert without == f"no button and LED: line {bench.button} of {GPIO} is held by 'intruder'; stop it first"
    assert gpio_lines.line_user(GPIO, bench.led) == ""


@board("hat1.0")
def test_edges_have_the_kernels_stamps(bench):
    with Line(GPIO, bench.hall, gpio_lines.INPUT | gpio_lines.FALLING) as hall:
        begin = time.monotonic_ns()
        for _ in range(5):
            bench.drive(bench.hall, 1)
            bench.drive(bench.hall, 0)
        edges = hall.events(1.0)
        end = time.monotonic_ns()
    assert len(edges) == 5
    assert all(begin <= stamp <= end and not rising for stamp, rising in edges)
    assert hall.lost == 0


# --- the whole -------------------------------------------------------------------------------------------------------


@board("eyespy")
@board("hat1.0")
def test_check_of_a_whole_board(bench, run):
    profile = profiles.load_profile(bench.profile)
    wire_light(bench, profile)
    wire_rail(bench, profile)
    bench.drive(bench.button, 1)
    channels = [f"od_config.photodiode_channel.{n}=" for n in "12" if int(n) not in profile.channels()]
    status, report = run("check", *(word for one in channels for word in ("--set", one)))
    failed = [one for one in report["findings"] if one["status"] == FAIL]
    assert (status, failed, report["profile"]) == (0, [], bench.profile)
    for one in report["findings"]:
        assert one["measured"]
        assert one["limit"] or one["status"] not in (FAIL, WARN)
        assert one["remedy"] or one["status"] not in (FAIL, WARN)


@board("48:ads1114,49:ads1114,4a:dac43608,4f:tmp1075", ready={0x48: 27, 0x49: 22}, bus_hz=400_000)
def test_scan_and_check_of_the_custom_example(bench, run):
    wire_light(bench, profiles.load_profile("custom-example"))
    bench.drive(bench.button, 1)
    status, report = run("scan")
    assert status == 0
    assert {one["address"]: one["kind"] for one in report["devices"]} == {
        0x48: "ads111x", 0x49: "ads111x", 0x4A: "dac43608", 0x4F: "tmp1075"
    }  # fmt: skip
    status, report = run("check", "--profile", "custom-example")
    assert (status, [one for one in report["findings"] if one["status"] == FAIL]) == (0, [])
    assert [one["status"] for one in report["findings"] if "ALERT/RDY" in one["what"]] == [OK, OK]


@board("hat1.1")
def test_how_a_held_bus_is_freed_is_found(bench, tmp_path):
    """As the worker would: the registers where the profile or the platform wants them, and they are there."""

    def found(recovery: str, label: str = "pinctrl-bcm2711") -> tuple[str, str]:
        path = tmp_path / "recovery.ini"
        path.write_text(f"[profile]\ntitle = x\nextends = hat1.1\n[i2c]\nrecovery = {recovery}\n")
        one = check_lines.check_recovery(profiles.load_profile(str(path)), label)
        return one.status, one.measured

    assert found("none") == (NOTE, "not wanted by [i2c] recovery")
    assert found("lines")[0] == OK
    assert found("") == (NOTE, "not possible: this kernel has no /dev/gpiomem")
    assert found("registers") == (WARN, "/dev/gpiomem: No such file or directory")
    assert found("registers", "pinctrl-rp1")[0] == WARN and found("", "pinctrl-rp1")[0] == NOTE


@board("hat1.1")
def test_check_of_a_broken_board(bench, run):
    bench.unplug(0x4F)
    status, text = run("check", "--profile", "hat1.1", text=True)
    assert status == 1
    assert "fail   tmp1075 at 0x4f ([temperature]): missing (limit: answers)" in text
    assert "-> check plug and cable" in text
    bench.stick_sda(1 << 30)
    status, text = run("check", "--profile", "hat1.1", text=True)
    assert status == 1
    assert "SDA or SCL is held low" in text


def test_status_of_a_lost_sensor():
    channels = [{"stream": "od2", "name": "90°"}]
    description = {"unit": "vial", "simulated": False, "version": "0", "channels": channels, "normalisation": "unity"}
    lost = {"value": None, "se_instrument": None, "flags": records.FLAGS["sensor_lost"]}
    state = {"experiment": "e", "uptime_s": 1.0, "jobs": {}, "latest": {"od2": lost}, "lateness": {}, "counters": {}}
    assert "od2 at 90°: no value  [sensor_lost]" in render(description, state)


# --- without a board -------------------------------------------------------------------------------------------------


def test_list_prints_the_plans(capsys):
    assert hardware_command.main(["list"]) == 0
    text = capsys.readouterr().out
    assert "hat1.0: Pioreactor HAT 1.0, HAT 1.0" in text
    assert "channel 1: ads1115 0x48 input 1, host, 150/s, k 2-6 (12.5-37.5 Hz), 0 lost a change" in text
    assert hardware_command.main(["list", "xr1.5", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert [one["address"] for one in entry["photodiodes"]] == [0x49, 0x4A, 0x4B, 0x48]
    assert hardware_command.main(["list", "hat9"]) == 1


def test_without_a_bus(run):
    if os.path.exists("/dev/i2c-1"):
        pytest.skip("this machine has an I2C bus")
    for command in ("scan", "check"):
        status, said = run(command)
        assert status == 1
        assert "there is no /dev/i2c-1" in said
    status, report = run("detect")
    assert (status, report["profile"]) == (1, None)
