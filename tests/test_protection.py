"""What protects a vial where software cannot: stated by the profile, answered for a unit, said where it is missing."""

from __future__ import annotations

import json
import os

import pytest
from board_bench import board
from guards import LINES, RunningGuard, compiled_guard
from stirbar.core import hardware_command
from stirbar.core.profiles import PROTECTIONS, ProfileError, load_profile
from stirbar.core.protection import (
    ITEMS,
    LEVEL_SENSOR,
    NO_OVERFLOW,
    Protection,
    ProtectionError,
    parse_answer,
    protection_of,
    read_answers,
    write_answers,
)
from test_guard_worker import BoardWorker

ALL = dict.fromkeys(PROTECTIONS, "yes")


def test_a_profile_has_a_key_for_each_item():
    assert (*(item.key for item in ITEMS), LEVEL_SENSOR) == PROTECTIONS


def test_without_a_word_a_board_is_for_attended_use_only():
    protection = Protection(load_profile("hat1.0"), {})
    assert protection.missing == [item.name for item in ITEMS] and protection.overflow_detectable is False
    first, second = protection.sentences()
    assert first.startswith("attended use only: gate pull-downs, thermal cut-out,") and second == NO_OVERFLOW


def test_with_all_of_it_nothing_is_said():
    protection = Protection(load_profile("hat1.0"), ALL)
    assert protection.missing == protection.sentences() == [] and protection.overflow_detectable is True


def test_one_that_is_missing_is_enough():
    for item in ITEMS:
        for answer in ("no", "unknown"):
            protection = Protection(load_profile("hat1.0"), {**ALL, item.key: answer})
            assert protection.missing == [item.name] and protection.as_dict()["attended_only"] is True


def test_a_level_sensor_or_an_efflux_tube_makes_an_overflow_detectable():
    profile = load_profile("hat1.0")
    assert Protection(profile, {"level_sensor": "yes"}).overflow_detectable is True
    assert Protection(profile, {"efflux_tube": "yes"}).overflow_detectable is True
    assert Protection(profile, {"bund": "yes", "efflux_tube": "no"}).overflow_detectable is False


def test_a_board_that_only_stirs_needs_nothing():
    protection = Protection(load_profile("custom-example"), {})
    assert protection.items == [] == protection.sentences() and protection.overflow_detectable is None


def test_a_profile_states_it_and_an_answer_goes_before(tmp_path):
    path = tmp_path / "mine.ini"
    path.write_text("[profile]\nextends = hat1.0\n[protection]\nbund = yes\nefflux_tube = no\n")
    profile = load_profile(str(path))
    assert "bund" not in Protection(profile, {}).missing and "efflux tube" in Protection(profile, {}).missing
    protection = Protection(profile, {"bund": "no", "efflux_tube": "yes"})
    assert "bund" in protection.missing and "efflux tube" not in protection.missing
    path.write_text("[profile]\nextends = hat1.0\n[protection]\nbund = maybe\n")
    with pytest.raises(ProfileError, match=r"\[protection\] bund = maybe"):
        load_profile(str(path))


def test_answers_are_kept_and_checked(tmp_path):
    directory = str(tmp_path / "data")
    assert read_answers(directory) == {}
    write_answers(directory, {"bund": "yes", "boot_levels": "no"})
    assert read_answers(directory) == {"bund": "yes", "boot_levels": "no"}
    assert parse_answer("bund = no") == ("bund", "no")
    for text, reason in (
        ("tray=yes", "no protection 'tray'; known are gate_pull"),
        ("bund", "write bund=yes, bund=no or"),
    ):
        with pytest.raises(ProtectionError, match=reason):
            parse_answer(text)
    (tmp_path / "data" / "protection").write_text("bund = yes\nnonsense\n")
    with pytest.raises(ProtectionError, match=r"protection:2: 'nonsense'.*correct it, or remove the file"):
        read_answers(directory)
    protection, wrong = protection_of(load_profile("hat1.0"), directory)
    assert "bund" in protection.missing and "nonsense" in wrong


@board("hat1.0")
def test_check_asks_and_keeps_the_answers(bench, capsys, tmp_path, monkeypatch):
    def check(*arguments: str) -> dict[str, tuple[str, str]]:
        place = [f"unit.runtime_directory={tmp_path}", f"unit.data_directory={tmp_path}/data", "unit.name=vial"]
        settings = [word for setting in place for word in ("--set", setting)]
        profile = ["--profile", "hat1.0", "--config", os.devnull]
        hardware_command.main(["check", *profile, *settings, "--json", *arguments])
        report = json.loads(capsys.readouterr().out)
        return {one["what"]: (one["status"], one["measured"]) for one in report["findings"]}

    found = check()
    assert found["bund"] == ("warn", "unknown") and found["protection"][1] == NO_OVERFLOW
    found = check(*(f"--answer={key}=yes" for key in PROTECTIONS if key != "bund"))
    assert found["gate pull-downs"] == ("ok", "yes") and found["protection"][1].startswith("attended use only: bund")
    found = check("--answer=bund=yes")
    assert found["bund"] == ("ok", "yes") and "protection" not in found
    assert hardware_command.main(["check", "--answer=tray=yes", "--config", os.devnull]) == 1
    assert "there is no protection 'tray'" in capsys.readouterr().err
    # at a terminal: what nobody has spoken of, once
    write_answers(f"{tmp_path}/data", {key: "yes" for key in PROTECTIONS if key not in ("bund", "boot_levels")})
    asked: list[str] = []

    def answered(question: str) -> str:
        asked.append(question)
        return ["n", ""][len(asked) - 1]

    monkeypatch.setattr("builtins.input", answered)
    hardware_command.ask(load_profile("hat1.0"), f"{tmp_path}/data")
    assert len(asked) == 2 and "Does a tray under the vial" in asked[0]
    assert {"bund": "no"}.items() <= read_answers(f"{tmp_path}/data").items()
    assert "boot_levels" not in read_answers(f"{tmp_path}/data")


@board("eyespy", plant=True)
def test_a_worker_says_what_is_missing(bench, tmp_path_factory):
    executable = compiled_guard(tmp_path_factory.mktemp("guard"), bench.where)
    guard = RunningGuard(executable, *(f"--line={name}={number}" for name, number in LINES.items())).ready()
    try:
        worker = BoardWorker(guard.directory)
        try:
            said = worker.client.describe()["protection"]
            assert said["attended_only"] is True and "bund" in said["missing"]
            assert said["overflow_detectable"] is False and NO_OVERFLOW in said["sentences"]
            assert "attended use only: gate pull-downs" in worker.errors()
        finally:
            worker.stop(check=False)
    finally:
        guard.close()
