"""The host thread's work on a real loop in virtual time: jobs, commands, batches, blanks, history."""

from __future__ import annotations

import errno
import json
import os

import pytest
from stirbar.core import records
from stirbar.core.commands import Commands
from stirbar.core.config import load_config, parse_overrides
from stirbar.core.history import History
from stirbar.core.host import NO_EXPERIMENT
from stirbar.core.records import Header
from stirbar.core.twin import Twin


def make_twin(tmp_path, *settings):
    config = load_config(overrides=parse_overrides(["unit.simulate=1", *settings]))
    return Twin(config, str(tmp_path))


def ask(twin, request, seconds=0.2):
    """Send a request and run on until its answer came; returns (answer, frames)."""
    answers = []
    commands = getattr(twin, "commands", None) or Commands(twin.host)
    twin.commands = commands
    commands.handle(request, lambda answer, frames: answers.append((answer, frames)))
    end = twin.elapsed_s + 30
    while not answers and twin.elapsed_s < end:
        list(twin.run(seconds))
    assert len(answers) == 1
    json.dumps(answers[0][0], allow_nan=False)
    return answers[0]


def batches(messages, topic):
    return [(Header.unpack(header)[0], payload) for name, header, payload in messages if name == topic]


def readings(messages, topic):
    return [
        dict(zip(records.READING_FIELDS, fields, strict=True))
        for _, payload in batches(messages, topic)
        for fields in records.READING.iter_unpack(payload)
    ]


def test_streams_are_complete_and_in_order(tmp_path):
    twin = make_twin(tmp_path)
    messages = list(twin.run(20))
    for stream, rate in (("od2", 10), ("rpm", 1), ("temperature", 1)):
        found = readings(messages, f"reading/{stream}".encode())
        assert [reading["sequence"] for reading in found] == list(range(len(found)))
        assert abs(len(found) - 20 * rate) <= rate + 1
        times = [reading["monotonic_ns"] for reading in found]
        assert times == sorted(times) and len(set(times)) == len(times)
        for reading in found:
            assert reading["flags"] & records.FLAGS["simulated"]
            assert reading["wall_ns"] - reading["monotonic_ns"] == found[0]["wall_ns"] - found[0]["monotonic_ns"]
    counters = twin.loop.counters()
    assert counters["missed_conversions"] == counters["ring_drops"] == counters["overruns"] == 0
    # two converters at 860 Hz, each up to 10 % off
    assert 2 * 20 * 860 * 0.9 - 200 < counters["conversions"] < 2 * 20 * 860 * 1.1


def test_first_reading_comes_within_half_a_second(tmp_path):
    twin = make_twin(tmp_path)
    first = readings(list(twin.run(2)), b"reading/od2")[0]
    assert (first["monotonic_ns"] - twin.start_ns) / 1e9 < 0.5
    assert first["window_s"] < 0.5


def test_same_seed_same_readings_and_another_seed_others(tmp_path):
    runs = [
        [payload for topic, _, payload in make_twin(tmp_path, f"simulation.seed={seed}").run(5) if b"reading" in topic]
        for seed in (3, 3, 4)
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_reading_is_stamped_with_the_experiment_at_the_time_of_measuring(tmp_path):
    twin = make_twin(tmp_path)
    before = list(twin.run(2))
    answer, _ = ask(twin, {"id": 1, "command": "experiment", "name": "yeast 1"})
    after = list(twin.run(2))
    assert answer["ok"]
    assert {header.experiment for header, _ in batches(before, b"reading/od2")} == {NO_EXPERIMENT}
    assert {header.experiment for header, _ in batches(after, b"reading/od2")} == {"yeast 1"}
    assert {reading["experiment"] for reading in readings(after, b"reading/od2")} == {answer["result"]["number"]}
    # and it is still the experiment after a restart
    assert make_twin(tmp_path).host.experiment == "yeast 1"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"command": "nonsense"}, "command"),
        ({}, "command"),
        ([], "request"),
        ({"command": "start", "job": "x"}, "job"),
        ({"command": "start", "job": "monitor"}, "job"),
        ({"command": "set", "job": "stirring", "setting": "target_rpm"}, "value"),
        ({"command": "set", "job": "stirring", "setting": "target_rpm", "value": "fast"}, "target_rpm"),
        ({"command": "set", "job": "stirring", "setting": "target_rpm", "value": 1e9}, "target_rpm"),
        ({"command": "set", "job": "stirring", "setting": "target_rpm", "value": float("nan")}, "target_rpm"),
        ({"command": "set", "job": "stirring", "setting": "target_rpm", "value": True}, "target_rpm"),
        ({"command": "set", "job": "stirring", "setting": "colour", "value": 1}, "setting"),
        ({"command": "set", "job": "od_reading", "setting": "ir_led_intensity", "value": 101}, "ir_led_intensity"),
        ({"command": "experiment", "name": ""}, "name"),
        ({"command": "experiment", "name": "a/b"}, "name"),
        ({"command": "experiment", "name": "x" * 200}, "name"),
        ({"command": "raw", "seconds": -1}, "seconds"),
        ({"command": "resend", "stream": "od9", "from_sequence": 0}, "stream"),
        ({"command": "resend", "stream": "od2", "from_sequence": "x"}, "from_sequence"),
        ({"command": "blank", "channel": 1}, "channel"),
        ({"command": "simulate", "set": {"bubble_rate": 1}}, "set"),
        ({"command": "simulate", "set": {"bubble_rate_hz": -5}}, "bubble_rate_hz"),
        ({"command": "describe", "expires_at": 1.0}, "expires_at"),
    ],
)
def test_a_bad_request_is_answered_with_the_field_it_is_about(tmp_path, request_, field):
    twin = make_twin(tmp_path)
    answer, _ = ask(twin, request_)
    assert answer["ok"] is False
    assert answer["error"]["field"] == field
    assert answer["error"]["message"]


def test_a_refused_target_leaves_the_one_in_force(tmp_path):
    twin = make_twin(tmp_path)
    list(twin.run(1))
    ask(twin, {"command": "set", "job": "stirring", "setting": "target_rpm", "value": 600})
    answer, _ = ask(
        twin, {"command": "set", "job": "stirring", "setting": "target_rpm", "value": 10}
    )  # below the floor
    assert answer["ok"] is False
    assert "60 to 1500 rpm" in answer["error"]["message"]
    assert twin.host.settings["stirring", "target_rpm"]["value"] == 600


def test_target_rpm_is_reached(tmp_path):
    twin = make_twin(tmp_path)
    list(twin.run(5))
    answer, _ = ask(twin, {"command": "set", "job": "stirring", "setting": "target_rpm", "value": 800})
    assert answer["result"]["value"] == 800
    last = readings(list(twin.run(6)), b"reading/rpm")[-1]
    assert abs(last["value"] - 800) < 8
    assert last["reference_v"] == 800


def test_jobs_start_and_stop(tmp_path):
    twin = make_twin(tmp_path, "od_reading.config.autostart=0", "stirring.config.autostart=0")
    assert not readings(list(twin.run(2)), b"reading/od2")
    assert twin.host.jobs["od_reading"].state == "disconnected"
    answer, _ = ask(twin, {"command": "start", "job": "od_reading"})
    assert answer["result"]["state"] == "ready"
    found = readings(list(twin.run(2)), b"reading/od2")
    assert found
    assert all(reading["flags"] & records.FLAGS["stirring_off"] for reading in found)
    answer, _ = ask(twin, {"command": "stop", "job": "od_reading"})
    assert answer["result"]["state"] == "disconnected"
    assert not readings(list(twin.run(2)), b"reading/od2")
    ask(twin, {"command": "start", "job": "od_reading"})
    again = readings(list(twin.run(2)), b"reading/od2")
    assert again[0]["sequence"] > found[-1]["sequence"]


def test_blank_is_averaged_subtracted_and_kept_over_a_restart(tmp_path):
    twin = make_twin(tmp_path)
    before = readings(list(twin.run(5)), b"reading/od2")[-1]
    answer, _ = ask(twin, {"command": "blank", "seconds": 3})
    blank = answer["result"]["blank"]["2"]
    assert abs(blank - before["value"]) < 0.05 * before["value"]
    after = readings(list(twin.run(3)), b"reading/od2")[-1]
    assert after["flags"] & records.FLAGS["blanked"]
    assert abs(after["value"]) < 0.05 * before["value"]
    assert after["blank"] == pytest.approx(blank, rel=1e-6)
    again = make_twin(tmp_path)
    assert readings(list(again.run(3)), b"reading/od2")[-1]["blank"] == pytest.approx(blank, rel=1e-6)
    ask(again, {"command": "blank", "clear": True})
    assert not readings(list(again.run(3)), b"reading/od2")[-1]["flags"] & records.FLAGS["blanked"]


def test_a_blank_belongs_to_its_experiment(tmp_path):
    twin = make_twin(tmp_path)
    list(twin.run(2))
    ask(twin, {"command": "blank", "value": 0.01})
    ask(twin, {"command": "experiment", "name": "other"})
    assert readings(list(twin.run(2)), b"reading/od2")[-1]["blank"] == 0
    ask(twin, {"command": "experiment", "name": NO_EXPERIMENT})
    assert readings(list(twin.run(2)), b"reading/od2")[-1]["blank"] == pytest.approx(0.01)


def test_unreadable_blanks_are_refused_not_replaced(tmp_path):
    (tmp_path / "blanks.json").write_text("{broken")
    with pytest.raises(ValueError, match=r"blanks\.json"):
        make_twin(tmp_path)
    assert (tmp_path / "blanks.json").read_text() == "{broken"


def test_a_full_disk_is_an_answer_and_changes_nothing(tmp_path, monkeypatch):
    twin = make_twin(tmp_path)
    list(twin.run(1))

    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr("stirbar.core.host.write_atomically", full)
    monkeypatch.setattr("stirbar.core.blanks.write_atomically", full)
    for request in ({"command": "experiment", "name": "x"}, {"command": "blank", "value": 0.01}):
        answer, _ = ask(twin, request)
        assert answer["ok"] is False
        assert "No space left" in answer["error"]["message"]
    assert twin.host.experiment == NO_EXPERIMENT
    assert not readings(list(twin.run(2)), b"reading/od2")[-1]["flags"] & records.FLAGS["blanked"]
    assert twin.host.blanks.of(NO_EXPERIMENT) == {}


def test_a_lost_sensor_says_so_and_comes_back(tmp_path):
    twin = make_twin(tmp_path)
    list(twin.run(3))
    assert ask(twin, {"command": "simulate", "set": {"temperature_fault": 1}})[0]["ok"]
    lost = list(twin.run(5))
    found = readings(lost, b"reading/temperature")
    assert found[-1]["flags"] & records.FLAGS["sensor_lost"]
    assert found[-1]["value"] != found[-1]["value"]
    codes = [json.loads(payload)["code"] for _, payload in batches(lost, b"event")]
    assert codes.count("sensor_lost") == 1
    assert readings(lost, b"reading/od2"), "the photodiodes go on"
    ask(twin, {"command": "simulate", "set": {"temperature_fault": 0}})
    back = list(twin.run(5))
    assert readings(back, b"reading/temperature")[-1]["value"] > 0
    assert twin.loop.counters()["bus_errors"] > 0


def test_the_light_goes_off_with_the_converter_that_paces_it(tmp_path):
    twin = make_twin(tmp_path)
    list(twin.run(2))

    def phases():
        ask(twin, {"command": "raw", "seconds": 2})
        items = b"".join(payload for _, payload in batches(list(twin.run(3)), b"trace/raw"))
        conversions = [item for item in records.TRACE.iter_unpack(items) if item[0] == records.TRACE_CONVERSION]
        return {item[2] for item in conversions if item[1] == 0}  # of the reference, which goes on

    assert ask(twin, {"command": "simulate", "set": {"adc2_fault": 1}})[0]["ok"]
    list(twin.run(1))
    assert phases() == {0}
    ask(twin, {"command": "simulate", "set": {"adc2_fault": 0}})
    list(twin.run(2))
    assert phases() == {0, 1, 2}
    last = readings(list(twin.run(2)), b"reading/od2")[-1]
    assert last["value"] > 0
    assert not last["flags"] & records.FLAGS["sensor_lost"]


def test_a_request_with_a_unique_id_is_done_once_and_answered_again(tmp_path):
    twin = make_twin(tmp_path)
    list(twin.run(2))
    request = {"id": "0123456789abcdef", "command": "set", "job": "stirring", "setting": "target_rpm", "value": 700}
    first, _ = ask(twin, request)
    ask(twin, {"id": 5, "command": "set", "job": "stirring", "setting": "target_rpm", "value": 650})
    second, _ = ask(twin, request)
    assert second == first
    assert twin.host.settings["stirring", "target_rpm"]["value"] == 650


def test_resend_gives_what_was_sent(tmp_path):
    twin = make_twin(tmp_path)
    sent = batches(list(twin.run(10)), b"reading/od2")
    answer, frames = ask(twin, {"command": "resend", "stream": "od2", "from_sequence": 37})
    resent = [(Header.unpack(header)[0], payload) for header, payload in zip(frames[::2], frames[1::2], strict=True)]
    assert answer["result"]["first"] <= 37 < resent[0][0].end_sequence
    assert answer["result"]["end"] >= sent[-1][0].end_sequence
    wanted = b"".join(payload for header, payload in sent if header.end_sequence > 37)
    assert b"".join(payload for _, payload in resent).startswith(wanted)
    few, frames = ask(twin, {"command": "resend", "stream": "od2", "from_sequence": 0, "limit": 1})
    assert len(frames) == 2
    assert few["result"]["end"] < answer["result"]["end"]


def test_raw_is_traced_for_as_long_as_asked(tmp_path):
    twin = make_twin(tmp_path)
    assert not batches(list(twin.run(2)), b"trace/raw")
    ask(twin, {"command": "raw", "seconds": 3})
    traced = batches(list(twin.run(6)), b"trace/raw")
    assert not batches(list(twin.run(2)), b"trace/raw")
    items = b"".join(payload for _, payload in traced)
    conversions = [item for item in records.TRACE.iter_unpack(items) if item[0] == records.TRACE_CONVERSION]
    for channel in (0, 1):
        indices = [item[4] for item in conversions if item[1] == channel]
        assert indices == list(range(indices[0], indices[0] + len(indices)))
        assert 2.8 * 860 * 0.9 < len(indices) < 3.2 * 860 * 1.1
    assert {item[2] for item in conversions} == {0, 1, 2}
    sequence = 0
    for header, _ in traced:
        assert header.first_sequence == sequence
        sequence = header.end_sequence


def test_history_forgets_the_oldest_and_knows_what_it_has():
    history = History(20_000)
    for number in range(200):
        history.add(1 + number % 2, 10 * (number // 2), 10, b"h" * 50, bytes([number]) * 100)
    first, end = history.available(1)
    assert end == 1000
    assert 0 < first < end
    kept = list(history.since(1, 0))
    assert kept[0][0] == first
    assert [entry[0] for entry in kept] == list(range(first, 1000, 10))
    assert [entry[0] for entry in history.since(1, 985)] == [980, 990]
    assert list(history.since(1, 1000)) == []
    assert history.available(7) == (0, 0)


def test_history_of_one_huge_batch_keeps_nothing_but_the_end():
    history = History(100)
    history.add(1, 0, 5, b"", b"x" * 1000)
    assert history.available(1) == (5, 5)
    assert list(history.since(1, 0)) == []


def test_a_job_that_the_loop_refuses_to_start_is_an_event_that_says_why(tmp_path):
    twin = make_twin(tmp_path)  # its jobs are started with it
    list(twin.run(1))
    twin.host.jobs["stirring"].target_rpm = 5000.0  # as a damaged state might have it: above what is compiled in
    twin.host.start_jobs()
    said = [json.loads(payload) for _, payload in batches(list(twin.run(1)), b"event")]
    refused = [(body["level"], body["source"], body["message"]) for body in said if body["code"] == "not_started"]
    why = f"stirring was not started: refused by the loop: {os.strerror(errno.EDOM)}"
    assert refused == [("error", "stirring", why)]
