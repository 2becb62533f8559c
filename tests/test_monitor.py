"""The monitor job: the computer's figures, self-checks by thresholds, error codes, and how the LED tells them."""

from __future__ import annotations

import json
import pathlib

import pytest
from stirbar.core import check_system, events
from stirbar.core.commands import Commands
from stirbar.core.config import load_config, parse_overrides
from stirbar.core.front_panel import IDENTIFY_NS, fault_level, identify_level
from stirbar.core.monitor_job import FIRST_CHECK_NS, VITALS_PERIOD_NS, Monitor, make_checks
from stirbar.core.twin import Twin
from stirbar.core.vitals import Vitals, throttle_flags

PI = {
    "proc/stat": "cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 1 1 1\n",
    "proc/meminfo": "MemTotal:        1000 kB\nMemFree:          100 kB\nMemAvailable:     250 kB\n",
    "proc/net/wireless": "Inter-| sta-| Quality\n face | tus | link level noise\n wlan0: 0000   54.  -56.  -256   0\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1000000\n",
    "sys/class/thermal/thermal_zone0/temp": "48312\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    "run/systemd/timesync/synchronized": "",
}


def write(root: pathlib.Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


# --- the computer's figures ------------------------------------------------------------------------------------------


def test_every_figure_of_a_raspberry_pi(tmp_path):
    write(tmp_path, PI)
    vitals = Vitals(str(tmp_path), str(tmp_path))
    figures = vitals.read()
    assert 0 <= figures.pop("disk_usage_percent") <= 100
    assert figures.pop("disk_available_gb") >= 0
    assert figures == {
        "cpu_usage_percent": 20.0,
        "cpu_frequency_mhz": 1000,
        "cpu_temperature_celcius": 48.312,
        "available_memory_percent": 25.0,
        "under_voltage": True,
        "throttled": True,
        "wifi_signal_dbm": -56.0,
        "clock_synchronized": True,
    }
    write(tmp_path, {"proc/stat": "cpu  200 0 100 800 100 0 0 0 0 0\n"})
    assert vitals.read()["cpu_usage_percent"] == 50.0  # since the call before
    assert "cpu_usage_percent" not in vitals.read()


def test_what_a_computer_does_not_tell_is_absent(tmp_path):
    assert set(Vitals(str(tmp_path), str(tmp_path)).read()) == {"disk_usage_percent", "disk_available_gb"}
    write(tmp_path, {name: "nonsense\n" for name in PI if not name.startswith("run")})
    assert set(Vitals(str(tmp_path), str(tmp_path)).read()) == {"disk_usage_percent", "disk_available_gb"}
    assert Vitals(str(tmp_path / "gone"), str(tmp_path / "gone")).read() == {}


def test_a_clock_that_is_not_yet_set(tmp_path):
    (tmp_path / "run/systemd/timesync").mkdir(parents=True)
    assert Vitals(str(tmp_path), str(tmp_path)).read()["clock_synchronized"] is False


@pytest.mark.parametrize(("alarm", "flags"), [("0\n", 0), ("1\n", 1)])
def test_under_voltage_by_the_kernels_driver(tmp_path, alarm, flags):
    write(tmp_path, {"sys/class/hwmon/hwmon0/name": "cpu_thermal\n", "sys/class/hwmon/hwmon1/name": "rpi_volt\n"})
    write(tmp_path, {"sys/class/hwmon/hwmon1/in0_lcrit_alarm": alarm})
    assert throttle_flags(str(tmp_path)) == flags
    assert throttle_flags(str(tmp_path / "elsewhere")) is None


def test_the_hardware_check_reads_the_same_flags(tmp_path, monkeypatch):
    monkeypatch.setattr(check_system, "throttle_flags", lambda: throttle_flags(str(tmp_path)))
    assert [finding.status for finding in check_system._power()] == ["skip"]
    write(tmp_path, PI)
    (finding,) = check_system._power()
    assert (finding.status, finding.measured) == ("fail", "under-voltage now")


# --- self-checks -----------------------------------------------------------------------------------------------------

CHECKS = {check.code: check for check in make_checks(85.0)}


@pytest.mark.parametrize(
    ("code", "well", "bad", "still", "over"),
    [
        ("disk_almost_full", 3.01, 2.99, 3.2, 3.31),
        ("cpu_hot", 79.9, 80.1, 76.0, 74.9),
        ("rail_low", 4.81, 4.80, 4.84, 4.86),
        ("under_voltage", 0, 1, 1, 0),
        ("heater_board_hot", 84.9, 85.0, 81.0, 79.9),
    ],
)
def test_thresholds(code, well, bad, still, over):
    check = CHECKS[code]
    assert not check.is_bad(well, False) and check.is_bad(bad, False)
    assert check.is_bad(still, True) and not check.is_bad(over, True)


def make_twin(directory: pathlib.Path, *settings: str) -> Twin:
    return Twin(load_config(overrides=parse_overrides(["unit.simulate=1", *settings])), str(directory))


def said(twin: Twin, seconds: float) -> list[tuple[str, str, str]]:
    """Level, code and message of each event of the next virtual seconds that matters to a person."""
    found = [json.loads(payload) for topic, _, payload in twin.run(seconds) if topic == b"event"]
    return [(one["level"], one["code"], one["message"]) for one in found if one["level"] not in ("debug", "info")]


def set_celsius(root: pathlib.Path, celsius: float) -> None:
    write(root, {"sys/class/thermal/thermal_zone0/temp": f"{celsius * 1000:.0f}\n"})


def of_monitor(twin: Twin, seconds: float, code: str) -> list[tuple[str, str]]:
    return [(level, name) for level, name, _ in said(twin, seconds) if name.startswith(code)]


def test_a_check_speaks_once_and_says_when_it_is_over(tmp_path):
    twin = make_twin(tmp_path)
    twin.host.vitals = Vitals(str(tmp_path), str(tmp_path))
    set_celsius(tmp_path, 91.0)
    assert of_monitor(twin, FIRST_CHECK_NS / 1e9 - 2, "cpu") == []
    found = [one for one in said(twin, 5) if one[1] == "cpu_hot"]
    assert found == [
        ("warning", "cpu_hot", "the processor is at 91 °C (80 or more): give the computer air, or a heat sink")
    ]
    assert of_monitor(twin, 200, "cpu") == []
    set_celsius(tmp_path, 76.0)
    assert of_monitor(twin, 2 * VITALS_PERIOD_NS / 1e9, "cpu") == []
    set_celsius(tmp_path, 60.0)
    assert of_monitor(twin, 2 * VITALS_PERIOD_NS / 1e9, "cpu") == [("notice", "cpu_hot_over")]
    set_celsius(tmp_path, 91.0)
    assert of_monitor(twin, 200, "cpu") == []  # until the next check


@pytest.mark.parametrize(("hours", "again"), [("0.1", [("warning", "cpu_hot")]), ("0", [])])
def test_the_checks_are_repeated(tmp_path, hours, again):
    twin = make_twin(tmp_path, f"monitor.config.self_check_interval_hours={hours}")
    twin.host.vitals = Vitals(str(tmp_path), str(tmp_path))
    set_celsius(tmp_path, 50.0)
    assert of_monitor(twin, 100, "cpu") == []
    set_celsius(tmp_path, 91.0)
    assert of_monitor(twin, 400, "cpu") == again


def monitor_of(twin: Twin) -> Monitor:
    monitor = twin.host.jobs["monitor"]
    assert isinstance(monitor, Monitor)
    return monitor


def test_figures_become_error_codes(tmp_path, monkeypatch):
    twin = make_twin(tmp_path)
    list(twin.run(2))
    monitor = monitor_of(twin)
    assert 20 < monitor.figures(twin.loop.now_ns())["heater_board_degc"] < 60
    bad = {"disk_available_gb": 1.0, "voltage_on_pwm_rail": 4.5, "heater_board_degc": 90.0, "under_voltage": True}
    figures = dict(bad)
    monkeypatch.setattr(monitor, "figures", lambda now_ns: figures)
    codes = [code for level, code, _ in said(twin, 12) if level in ("warning", "error")]
    assert codes == ["disk_almost_full", "rail_low", "under_voltage", "heater_board_hot"]
    assert twin.host.settings["monitor", "error_codes"]["value"] == [3, 6, 7]
    figures.clear()
    assert said(twin, 130) == []  # nobody measures any more: nothing is known to be over
    figures.update(bad | {"voltage_on_pwm_rail": 5.1, "under_voltage": False})
    assert [code for _, code, _ in said(twin, 130)] == ["rail_low_over", "under_voltage_over"]
    assert twin.host.settings["monitor", "error_codes"]["value"] == [3, 6]


def test_a_stalled_stirrer_is_code_4_until_it_is_started_again(tmp_path):
    twin = make_twin(tmp_path)
    list(twin.run(5))
    monitor = monitor_of(twin)
    twin.host.jobs["stirring"].on_event(events.EVENT_STIR_FAULT, 0.0)
    list(twin.run(2))
    assert twin.host.settings["monitor", "error_codes"]["value"] == [4] and monitor.faults == {4}
    twin.host.jobs["stirring"].stop(lambda ok, limit: None)
    list(twin.run(2))
    assert monitor.faults == {4}
    twin.host.jobs["stirring"].start(lambda ok, limit: None)
    list(twin.run(2))
    assert monitor.faults == set()


def test_too_much_light_is_code_5_until_the_light_is_on_again(tmp_path):
    twin = make_twin(tmp_path)
    list(twin.run(5))
    twin.host.jobs["od_reading"].on_event(events.EVENT_OVER_VOLTAGE, 3.3)
    list(twin.run(2))
    assert twin.host.jobs["od_reading"].state == "sleeping"
    assert monitor_of(twin).faults == {5}
    twin.host.jobs["od_reading"].start(lambda ok, limit: None)
    assert ("notice", "over_voltage_over", "the light is on again") in said(twin, 2)
    assert monitor_of(twin).faults == set()


def test_codes_that_the_bridge_reports_lapse(tmp_path):
    twin = make_twin(tmp_path)
    commands, answers = Commands(twin.host), []

    def ask(**fields):
        commands.handle({"id": 1, "command": "fault", **fields}, lambda answer, _: answers.append(answer))
        list(twin.run(1.1))
        return answers.pop()

    assert ask(code=2, seconds=10)["result"] == {"code": 2, "seconds": 10.0}
    assert twin.host.settings["monitor", "error_codes"]["value"] == [2]
    list(twin.run(11))
    assert monitor_of(twin).faults == set()
    ask(code=1, seconds=300)
    assert monitor_of(twin).faults == {1}
    ask(code=1, seconds=0)
    assert monitor_of(twin).faults == set()
    for wrong, field in (
        ({"code": 3, "seconds": 1}, "code"),
        ({"code": 1}, "seconds"),
        ({"code": 1, "seconds": 301}, "seconds"),
    ):
        assert ask(**wrong)["error"]["field"] == field
    assert monitor_of(twin).faults == set()


# --- the LED ---------------------------------------------------------------------------------------------------------


def drawn(level, seconds: float) -> str:
    """The LED in steps of 0.25 s, looked at in their middle."""
    return "".join("#" if level(round((step + 0.5) * 0.25e9)) else "." for step in range(round(seconds * 4)))


@pytest.mark.parametrize(
    ("codes", "picture"),
    [
        ((), "." * 20),
        ((1,), "########.#....########"),
        ((3,), "########.#.#.#....########.#"),
        ((7,), "########.#.#.#.#.#.#.#....########"),
        ((4, 3), "########.#.#.#....########.#.#.#.#....########.#.#.#...."),
    ],
)
def test_the_blinks_of_error_codes(codes, picture):
    assert drawn(lambda now_ns: fault_level(frozenset(codes), now_ns), len(picture) / 4) == picture


def test_the_blinks_that_say_which_unit_this_is():
    assert drawn(identify_level, 8) == 4 * "#.#..." + 8 * "."
    assert IDENTIFY_NS == 6_000_000_000
    assert not identify_level(-1)
