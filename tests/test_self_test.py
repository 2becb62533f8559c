"""The self-tests: no false alarm on healthy vials, each injected fault found by its test, everything put back."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from running import stirbar_environment, wait_for
from stirbar.core import loan, self_test, simulation
from stirbar.core.client import CommandRefused
from stirbar.core.config import load_config
from stirbar.core.records import STREAM_IDS
from stirbar.core.self_test import CLEAR, Refused, chosen, matches, profile_of, run, run_test
from stirbar.core.self_test_bench import TwinBench
from stirbar.core.self_test_list import TESTS, SelfTest, table
from stirbar.core.self_test_probe import Probe
from stirbar.core.self_test_signal import lines, quiet_rpm

ROOT = pathlib.Path(__file__).parents[1]
FIELD = {test.name for test in TESTS[:11]}
SIMULATED = {"pioreactor_HAT_present", "aux_power_is_not_too_high"}  # what no simulated vial has
SEEDS = range(1, 7)


@contextlib.contextmanager
def opened(*settings: str, jobs: bool = False):
    """A bench on a twin, and a probe on it."""
    given = [(*setting.partition("=")[0].rsplit(".", 1), setting.partition("=")[2]) for setting in settings]
    clear = [one for one in CLEAR if one[1] != "autostart" or not jobs]
    config = load_config(None, None, [*clear, ("unit", "simulate", "1"), *given])
    bench = TwinBench(config)
    try:
        yield bench, Probe(bench, profile_of(bench, config))
    finally:
        bench.close()


def found(*settings: str, tests: tuple[SelfTest, ...] = TESTS, before=lambda bench: None) -> dict[str, str]:
    """The status of each test on a vial."""
    with opened(*settings) as (bench, probe):
        before(bench)
        results = run(bench, probe, list(tests), False, lambda _: None)
    return {one["name"]: one["status"] for one in results}


def failed(statuses: dict[str, str]) -> set[str]:
    return {name for name, status in statuses.items() if status == "FAIL"}


# --- healthy, and with one fault -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_healthy_vial_passes_everything(seed: int) -> None:
    statuses = found(f"simulation.seed={seed}")
    assert len(statuses) == len(TESTS) == 20
    assert {name for name, status in statuses.items() if status != "ok"} == SIMULATED


# fault: what must fail, and what may as well because it follows
FAULTS: dict[str, tuple[set[str], set[str]]] = {
    "reference_swapped=1": (
        {"reference_and_signal_not_swapped", "REF_is_in_correct_position"},
        {"PD_is_near_0_volts_for_blank", "light_leak"},
    ),
    "stir_bar_missing=1": ({"stir_bar_present"}, set()),
    "vial_missing=1": ({"vial_present"}, set()),
    "heater_power_w=0": ({"heater_heats", "positive_correlation_between_temperature_and_heating"}, set()),
    "hum_amplitude_v=0.02": ({"hum_level"}, set()),
    "light_leak_v=0.1": ({"light_leak", "PD_is_near_0_volts_for_blank"}, set()),
    "bus_slowness=3": ({"bus_speed"}, set()),
    "pwm_pickup_v=0.002": ({"pwm_pickup"}, set()),
    "ambient_light_v=0.2": ({"ambient_light_interference"}, {"hum_level"}),  # the lamp flickers more
    "fan_stalled=1": ({"positive_correlation_between_rpm_and_stirring"}, set()),
    "temperature_fault=1": ({"detect_heating_pcb"}, set()),
    "reference_lost=1": (
        {"REF_is_lower_than_0_dot_256_volts", "all_positive_correlations_between_pds_and_leds"},
        set(),
    ),
    "adc2_fault=2": (
        {"dark_offset_correction_is_effective", "all_positive_correlations_between_pds_and_leds"},
        {"hum_level", "pwm_pickup"},
    ),
}


@pytest.mark.parametrize("seed", (1, 2))
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_by_its_test_and_by_no_other(fault: str, seed: int) -> None:
    must, may = FAULTS[fault]
    bad = failed(found(f"simulation.{fault}", f"simulation.seed={seed}"))
    assert must <= bad <= must | may


def test_a_loop_that_wakes_late_is_found() -> None:
    late = [test for test in TESTS if test.name == "loop_lateness"]
    assert found(tests=tuple(late)) == {"loop_lateness": "ok"}
    wake_late = {"before": lambda bench: bench.twin.loop.wake_late([2_000_000])}
    assert found(tests=tuple(late), **wake_late) == {"loop_lateness": "FAIL"}


@pytest.mark.parametrize("board", ["hat1.0", "hat1.1", "hat1.2", "model1.5", "xr1.5"])
def test_healthy_converters_of_every_kind_pass(board: str) -> None:
    statuses = found(f"unit.hardware={board}")
    assert failed(statuses) == set()
    assert sum(status == "ok" for status in statuses.values()) >= 14


def test_every_fault_is_a_parameter_of_the_vial() -> None:
    assert {fault.partition("=")[0] for fault in FAULTS} <= set(simulation.BY_NAME)


# --- names, expressions, documents -----------------------------------------------------------------------------------


def test_the_fields_names_come_first_and_the_table_is_the_documents() -> None:
    reference = "pioreactor_HAT_present all_positive_correlations_between_pds_and_leds ambient_light_interference"
    assert [test.name for test in TESTS[:3]] == reference.split()
    assert len(FIELD) == 11 and len({test.name for test in TESTS}) == len(TESTS)
    text = (ROOT / "docs" / "self-test.md").read_text()
    assert table() in text, "paste what stirbar.core.self_test_list.table() returns"
    for fault in ("stir_bar_missing", "vial_missing", "bus_slowness", "pwm_pickup_v", "reference_swapped"):
        assert f"`{fault}`" in text and f"`{fault}`" in (ROOT / "docs" / "simulation.md").read_text()


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("stir_bar", {"stir_bar_present"}),
        ("REF and not swapped", {"REF_is_in_correct_position", "REF_is_lower_than_0_dot_256_volts"}),
        ("hum_level or bus_speed", {"hum_level", "bus_speed"}),
        ("not (a or e or i)", set()),
        ("(hum or bus) and not bus", {"hum_level"}),
    ],
)
def test_k_chooses(expression: str, names: set[str]) -> None:
    if not names:
        with pytest.raises(Refused, match="fits no test"):
            chosen(expression)
        return
    assert {test.name for test in chosen(expression)} == {name for name in names if matches(expression, name)} == names


@pytest.mark.parametrize("expression", ["and", "a or", "(a", "a b", "not", "a )"])
def test_what_is_no_expression_is_refused(expression: str) -> None:
    with pytest.raises(Refused, match="-k"):
        chosen(expression)


def test_a_line_is_measured_among_gaps_and_others() -> None:
    position = [i / 900.0 for i in range(9000) if i % 10 < 4]
    values = [5.0 + 0.3 * math.sin(2 * math.pi * 50.0 * t) + 0.1 * math.cos(2 * math.pi * 31.0 * t) for t in position]
    assert lines(position, values, [50.0, 31.0, 44.0]) == pytest.approx([0.3, 0.1, 0.0], abs=0.003)


def test_the_speed_is_chosen_away_from_what_the_chop_folds_onto_it() -> None:
    """With a chop of 115 Hz a lamp's 100 Hz is seen at 15 Hz: 900 rpm."""
    for chop_hz in (69.0, 87.0, 115.0):
        rpm = quiet_rpm(chop_hz)
        for turns in (1, 2):
            assert all(abs(turns * rpm / 60 - abs(100.0 - n * chop_hz)) > 0.4 for n in range(4))
    assert quiet_rpm(115.0) != 900.0


# --- the loan --------------------------------------------------------------------------------------------------------


def state_of(bench: TwinBench) -> dict[str, object]:
    """What runs, and the set-points, as the worker says."""
    kept = {name: bench.setting("stirring", name) for name in ("target_rpm", "duty_cycle")}
    kept |= {name: bench.setting("temperature_automation", name) for name in ("automation_name", "target_temperature")}
    kept["heater_duty_cycle"] = bench.setting("temperature_automation", "heater_duty_cycle")
    kept["ir_led_intensity"] = bench.setting("od_reading", "ir_led_intensity")
    return {**kept, **bench.ask("status")["jobs"]}


def disturb(probe: Probe):
    """A test that changes all it can, then fails as an interrupted one does."""
    probe.set("stirring", "duty_cycle", 20)
    probe.set("od_reading", "ir_led_intensity", 10)
    probe.set("temperature_automation", "heater_duty_cycle", 40)
    for job in ("od_reading", "stirring", "temperature_automation"):
        probe.start(job)
    raise KeyboardInterrupt


DISTURBING = SelfTest("disturbing", "", "", "", "", "", disturb, False)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"target_temperature": 37.0},
        {"heater_duty_cycle": 12.0},
        {"target_rpm": 700.0},
    ],
)
def test_what_ran_is_put_back_after_an_interrupt(changes: dict[str, float]) -> None:
    with opened(jobs=True) as (bench, probe):
        for setting, value in changes.items():
            probe.set("stirring" if setting == "target_rpm" else "temperature_automation", setting, value)
        bench.watch(3.0)
        before = state_of(bench)
        assert before["stirring"] == "ready"
        with pytest.raises(KeyboardInterrupt):
            run(bench, probe, [DISTURBING], False, lambda _: None)
        assert state_of(bench) == before


def test_an_interrupt_while_the_jobs_are_being_lent_puts_them_back() -> None:
    with opened(jobs=True) as (bench, probe):
        bench.watch(3.0)
        before, ask = state_of(bench), bench.ask

        def interrupted(command: str, **arguments):
            answer = ask(command, **arguments)
            if arguments.get("step") == "begin":
                raise KeyboardInterrupt
            return answer

        bench.ask = interrupted
        with pytest.raises(KeyboardInterrupt):
            run(bench, probe, [DISTURBING], False, lambda _: None)
        assert state_of(bench) == before


def test_what_did_not_run_does_not_afterwards() -> None:
    with opened() as (bench, probe):
        before = state_of(bench)
        with pytest.raises(KeyboardInterrupt):
            run(bench, probe, [DISTURBING], False, lambda _: None)
        assert state_of(bench) == before and before["stirring"] == "disconnected"
        bench.watch(5.0)
        assert bench.twin.host.latest[STREAM_IDS["rpm"]]["signal_v"] == 0.0


def test_a_tester_that_falls_silent_loses_the_loan() -> None:
    with opened(jobs=True) as (bench, probe):
        bench.watch(3.0)
        before = state_of(bench)
        bench.ask("self_test", step="begin", tests=["x"])
        with pytest.raises(KeyboardInterrupt):
            disturb(probe)
        bench.watch(8.0)
        assert state_of(bench) != before
        events: list[str] = []
        for topic, _, payload in bench.twin.run(6.0):
            if topic == b"event":
                events.append(json.loads(payload)["code"])
        assert "self_test_lost" in events and state_of(bench) == before
        with pytest.raises(CommandRefused, match="no self-test is running"):
            bench.ask("self_test", step="renew")


def test_an_experiment_is_not_disturbed_unless_that_is_asked_for() -> None:
    ambient = [test for test in TESTS if test.name == "ambient_light_interference"]
    with opened(jobs=True) as (bench, probe):
        bench.ask("experiment", name="yeast")
        bench.watch(3.0)
        before = state_of(bench)
        with pytest.raises(Refused, match=r"od_reading, stirring.* run in the experiment 'yeast'.*--stop-jobs"):
            run(bench, probe, ambient, False, lambda _: None)
        assert state_of(bench) == before
        assert [one["status"] for one in run(bench, probe, ambient, True, lambda _: None)] == ["ok"]
        assert state_of(bench) == before


def test_there_is_one_self_test_at_a_time() -> None:
    with opened() as (bench, _):
        bench.ask("self_test", step="begin", tests=[])
        with pytest.raises(CommandRefused, match="a self-test is running"):
            bench.ask("self_test", step="begin", tests=[])
        bench.ask("self_test", step="end")
        bench.ask("self_test", step="begin", tests=[])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"step": "jump"}, "no step"),
        ({"step": "result", "name": "a b", "status": "ok"}, "letters, digits"),
        ({"step": "result", "name": "x" * 65, "status": "ok"}, "at most 64"),
        ({"step": "result", "name": "x", "status": "fine"}, "ok, FAIL or skip"),
    ],
)
def test_bad_steps_are_refused(request_: dict[str, str], message: str) -> None:
    with opened() as (bench, _):
        bench.ask("self_test", step="begin", tests=[])
        with pytest.raises(CommandRefused, match=message):
            bench.ask("self_test", **request_)


def test_results_are_settings_events_and_a_file() -> None:
    leak = [test for test in TESTS if test.name == "light_leak"]
    with opened("simulation.light_leak_v=0.2") as (bench, probe):
        host = bench.twin.host
        codes: list[tuple[str, str, str]] = []
        keep = host.event

        def event(level: str, source: str, message: str, *, code: str, **rest) -> None:
            codes.append((level, code, message))
            keep(level, source, message, code=code, **rest)

        host.event = event
        run(bench, probe, leak, False, lambda _: None)
        assert host.settings["self_test", "test_light_leak"]["value"] == 0
        assert host.settings["self_test", "all_tests_passed"]["value"] == 0
        assert [one[:2] for one in codes if "self_test" in one[1]] == [("warning", "self_test_light_leak")]
        assert "allowed is < 0.08 V" in codes[-1][2] and "past the vial" in codes[-1][2]
        assert [one["status"] for one in loan.last(host.directory)] == ["FAIL"]
        bench.ask("simulate", set={"light_leak_v": 0})
        run(bench, Probe(bench, probe.profile), leak, False, lambda _: None)
        assert host.settings["self_test", "test_light_leak"]["value"] == 1
        assert codes[-1][:2] == ("notice", "self_test_light_leak_over")
        assert host.settings["self_test", "$state"]["value"] == "disconnected"


def test_a_missing_output_is_a_reason_to_skip_and_a_refusal_one_to_fail() -> None:
    def refused(text: str):
        def measure(probe: Probe):
            raise CommandRefused({"message": text})

        return SelfTest("x", "", "", "", "", "", measure, False)

    with opened() as (bench, probe):
        assert run_test(refused("there is nothing to stir with: no guard"), probe)["status"] == "skip"
        result = run_test(refused("the loop did not answer"), probe)
        assert (result["status"], result["reason"]) == ("FAIL", "the loop did not answer")
        assert bench.simulated


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_in_virtual_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert self_test.main(["--simulate", "-k", "hum or HAT"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["skip", "pioreactor_HAT_present", "simulated"]
    assert out[1].startswith("ok    hum_level ") and "mV" in out[1] and "(<= 5 mV)" in out[1]
    assert out[2] == "2 tests: 1 passed, 0 failed, 1 skipped"
    assert self_test.main(["--simulate", "-k", "leak", "--json", "--set", "simulation.light_leak_v=0.3"]) == 1
    (result,) = json.loads(capsys.readouterr().out)
    assert result["status"] == "FAIL" and result["value"] > 0.25 and result["remedy"]
    assert self_test.main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(TESTS)
    assert self_test.main(["--simulate", "-k", "nothing_like_this"]) == 1
    assert "fits no test" in capsys.readouterr().err


def command(*arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "stirbar.core.cli", "self-test", *arguments],
        env=stirbar_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.soak
def test_a_running_worker_is_tested_and_put_back(start_worker) -> None:
    worker = start_worker("simulation.biomass_od=0.01", "simulation.time_acceleration=0", "unit.hardware=simulated")
    client = worker.client
    client.set("stirring", "target_rpm", 450)
    before = client.settings()
    options = [f"--set=unit.{key}={worker.directory}/{name}" for key, name in (
        ("data_directory", "data"), ("runtime_directory", "run"))]  # fmt: skip
    options.append("--set=unit.name=w")
    process = command("-k", "detect_heating or HAT", *options)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, out + err
    assert out.splitlines()[-1] == "2 tests: 1 passed, 0 failed, 1 skipped"
    after = client.settings()
    for key in (("stirring", "$state"), ("od_reading", "$state"), ("stirring", "target_rpm")):
        assert after[key] == before[key]
    assert after["self_test", "test_detect_heating_pcb"] == 1
    process = command("--last", *options)
    assert process.communicate(timeout=30)[0] == out and process.returncode == 0

    def killed_midway(number: int, patience_s: float) -> None:
        process = command("-k", "hum", *options)
        wait_for(lambda: client.settings()["self_test", "$state"] == "ready", 20.0, "a loan")
        journal = json.loads((worker.directory / "data" / "journal").read_text())
        assert journal["jobs"]["stirring"] == {"running": True, **journal["jobs"]["stirring"], "target_rpm": 450}
        process.send_signal(number)
        process.communicate(timeout=30)
        wait_for(lambda: client.settings()["self_test", "$state"] == "disconnected", patience_s, "the end of the loan")
        wait_for(lambda: client.settings()["stirring", "$state"] == "ready", 5.0, "the stirrer")
        assert client.settings()["stirring", "target_rpm"] == 450

    killed_midway(signal.SIGINT, 8.0)  # less than the lease
    killed_midway(signal.SIGKILL, 15.0)


def test_a_worker_of_its_own_is_started_and_ended(tmp_path: pathlib.Path) -> None:
    options = [
        "--set=unit.simulate=1", "--set=unit.name=o", f"--set=unit.data_directory={tmp_path}/d",
        f"--set=unit.runtime_directory={tmp_path}/r",
    ]  # fmt: skip
    process = command("-k", "detect_heating", *options)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    holder = int((tmp_path / "r" / "o.lock").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(holder, 0)
    process = command("--address", f"ipc://{tmp_path}/r/nobody", "-k", "hum")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "no worker answers at" in err
