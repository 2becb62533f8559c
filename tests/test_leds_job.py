"""The LED channels of a whole worker in virtual time: asked, refused, held, kept; and what is said of them."""

from __future__ import annotations

import json
import pathlib

import pytest
from stirbar.bridge.dialect_payloads import parse_command
from stirbar.core import events
from stirbar.core.events import LED_CHANNELS
from stirbar.rt.leds_arrays import LEASE_S

from tests.test_dialect import make
from tests.test_host import ask, make_twin
from tests.test_journal import Unit


def led(twin, source: str = "user", **percent):
    """The answer to the command `led`."""
    request = {"command": "led", "channels": percent, "source_of_event": source}
    return ask(twin, request if percent else {"command": "led"})[0]


def heard(twin, seconds: float) -> list[dict]:
    return [json.loads(payload) for topic, _, payload in twin.run(seconds) if topic == b"event"]


def value(twin, setting: str):
    return twin.host.settings[("leds", setting)]["value"]


def test_a_channel_is_set_and_says_what_the_driver_made_of_it(tmp_path) -> None:
    twin = make_twin(tmp_path)
    list(twin.run(3))
    answer = led(twin, B=50)
    assert answer["ok"] and answer["result"]["channels"]["B"]["set"] == 49.8
    list(twin.run(1))
    assert value(twin, "intensity")["B"] == value(twin, "B") == 49.8
    assert twin.host.jobs["leds"].state == "ready"
    assert led(twin)["result"]["channels"]["B"] == {"set": 49.8, "intensity": 49.8, "held": ""}
    # as any job's setting, too
    answer, _ = ask(twin, {"command": "set", "job": "leds", "setting": "B", "value": 0})
    assert answer["ok"] and answer["result"]["value"] == 0.0
    list(twin.run(1))
    assert twin.host.jobs["leds"].state == "disconnected"


def test_while_the_host_thread_lives_a_channel_keeps_its_light(tmp_path) -> None:
    twin = make_twin(tmp_path, "od_reading.config.autostart=0")
    led(twin, D=30)
    list(twin.run(3 * LEASE_S))
    assert twin.loop.leds()["D"] == pytest.approx(30.0, abs=0.2)
    # and when it stands still, the light goes out; it comes back with it
    twin.loop.run_until(twin.loop.now_ns() + (LEASE_S + 2) * 1_000_000_000)
    assert twin.loop.leds()["D"] == 0.0
    said = heard(twin, 2.0)
    assert {"led_lapsed", "led_lapsed_over"} <= {event["code"] for event in said}
    changed = [event for event in said if event["code"] == "led_changed"]
    assert [(event["channel"], event["source_of_event"]) for event in changed] == [("D", "lease")] * 2
    assert twin.loop.leds()["D"] == pytest.approx(30.0, abs=0.2)


@pytest.mark.parametrize(
    ("percent", "field", "words"),
    [
        ({"A": 10}, "A", ("OD LED", "od_reading runs", "ir_led_intensity")),
        ({"B": 60}, "B", ("B must be from 0 to 40 %", "60", "maximum_percent_B")),
        ({"B": -1}, "B", ("0 to 40 %",)),
        ({"B": "bright"}, "B", ("number",)),
        ({"E": 10}, "E", ("no LED channel 'E'", "A, B, C, D", "hardware profile")),
        ({"C": 10, "B": 60}, "B", ("B must be",)),
    ],
)
def test_what_is_refused_says_why_and_nothing_changes(tmp_path, percent, field, words) -> None:
    twin = make_twin(tmp_path, "leds.config.maximum_percent_B=40")
    list(twin.run(2))
    error = led(twin, **percent)["error"]
    assert error["field"] == field
    text = f"{error['message']} {error.get('remedy', '')}"
    assert all(word in text for word in words), text
    list(twin.run(1))
    assert not any(twin.loop.leds().values()) and not any(value(twin, letter) for letter in LED_CHANNELS)


def test_a_request_of_the_wrong_shape_is_refused(tmp_path) -> None:
    twin = make_twin(tmp_path)
    for request, field in (
        ({"channels": [1]}, "channels"),
        ({"channels": {}}, "channels"),
        ({"channels": {"B": 1}, "source_of_event": ""}, "source_of_event"),
        ({"channels": {"B": 1}, "source_of_event": 5}, "source_of_event"),
    ):
        assert ask(twin, {"command": "led", **request})[0]["error"]["field"] == field


def test_a_locked_channel_waits_for_od_reading_to_end(tmp_path) -> None:
    twin = make_twin(tmp_path, "leds.config.lock_during_od=B, C")
    list(twin.run(2))
    channel = led(twin, C=20)["result"]["channels"]["C"]
    assert channel["set"] == 20.0 and channel["intensity"] == 0.0 and "lock_during_od" in channel["held"]
    list(twin.run(2))
    assert value(twin, "held") == ["C"] and value(twin, "intensity")["C"] == 0.0
    ask(twin, {"command": "stop", "job": "od_reading"})
    said = heard(twin, 1.0)
    assert value(twin, "held") == [] and value(twin, "intensity")["C"] == 20.0
    assert not said or all(event["level"] != "error" for event in said)
    ask(twin, {"command": "start", "job": "od_reading"})
    said = heard(twin, 1.0)
    assert value(twin, "intensity")["C"] == 0.0 and value(twin, "C") == 20.0
    changed = [event for event in said if event["code"] == "led_changed"]
    assert not changed or changed[-1]["source_of_event"] == "od_reading"


def test_a_driver_that_refuses_is_in_the_answer(tmp_path) -> None:
    twin = make_twin(tmp_path)
    job = twin.host.jobs["leds"]
    job.event_fields(events.EVENT_LED_LOST, 1, 20.0)
    channels = led(twin, B=20)["result"]["channels"]
    assert "driver refused" in channels["B"]["held"] and channels["C"]["held"] == ""
    job.event_fields(events.EVENT_LED_LOST_OVER, 1, 20.0)
    assert led(twin)["result"]["channels"]["B"]["held"] == ""


def test_the_od_led_can_be_had_by_hand_until_od_reading_takes_it(tmp_path) -> None:
    twin = make_twin(tmp_path, "od_reading.config.autostart=0")
    assert led(twin, A=25)["ok"]
    list(twin.run(1.5))
    assert value(twin, "intensity")["A"] == pytest.approx(25.1, abs=0.1)
    ask(twin, {"command": "start", "job": "od_reading"})
    list(twin.run(2))
    assert value(twin, "A") == 0.0 and value(twin, "intensity")["A"] == 80.0
    ask(twin, {"command": "stop", "job": "od_reading"})
    list(twin.run(2))
    assert value(twin, "intensity")["A"] == twin.loop.leds()["A"] == 0.0


def test_stop_puts_all_out_and_start_lights_them_again(tmp_path) -> None:
    twin = make_twin(tmp_path)
    answer, _ = ask(twin, {"command": "start", "job": "leds"})
    assert not answer["ok"] and "stirbar led" in answer["error"]["remedy"]
    led(twin, B=20, D=60)
    assert ask(twin, {"command": "stop", "job": "leds"})[0]["ok"]
    list(twin.run(1))
    assert not any(twin.loop.leds().values()) and twin.host.jobs["leds"].state == "disconnected"
    assert ask(twin, {"command": "start", "job": "leds"})[0]["ok"]
    list(twin.run(1))
    assert twin.loop.leds()["B"] == 20.0 and twin.loop.leds()["D"] == 60.0


def test_ten_changes_a_second_miss_no_conversion(tmp_path) -> None:
    """A whole worker; more than a programme would ask."""
    twin = make_twin(tmp_path)
    list(twin.run(5))
    before = twin.loop.counters()
    for i in range(100):
        twin.host.jobs["leds"].ask({"B": 5.0 * (i % 20), "C": 40.0 * (i % 2)}, "test", lambda ok, limit: None)
        list(twin.run(0.1))
    after = twin.loop.counters()
    for name in ("missed_conversions", "slow_reads_forced", "ring_drops"):
        assert after[name] == before[name], name


def test_lit_channels_are_taken_up_after_a_crash(tmp_path: pathlib.Path) -> None:
    unit = Unit(tmp_path)
    unit.start()
    unit.run(3)
    unit.set("leds", "B", 20)
    unit.run(2)
    unit.crash()
    unit.off(10)
    unit.start()
    unit.run(2)
    assert unit.value("leds", "intensity")["B"] == 20.0
    unit.set("leds", "B", 0)
    unit.run(2)
    unit.crash()
    unit.start()
    unit.run(2)
    assert unit.value("leds", "intensity")["B"] == 0.0
    unit.set("leds", "C", 20)
    unit.run(2)
    unit.end()
    unit.start("worker.config.resume=never")
    unit.run(2)
    assert unit.value("leds", "intensity")["C"] == 0.0


def test_the_dialect_says_intensity_and_changes_as_the_field_does() -> None:
    dialect, said = make()
    dialect.setting({"job": "leds", "setting": "intensity", "value": {"A": 80.0, "B": 20.0, "C": 0.0, "D": 0.0}})
    dialect.event(
        {
            "level": "info",
            "source": "leds",
            "code": "led_changed",
            "message": "LED B gives 20 %",
            "wall_ns": 1_000_000_000,
            "channel": "B",
            "intensity": 20.0,
            "source_of_event": "user",
        }
    )
    assert said[0] == (
        "pioreactor/vial1/exp/leds/intensity",
        b'{"A":80.0,"B":20.0,"C":0.0,"D":0.0}',
        0,
        True,
    )
    assert said[2:] == [
        (
            "pioreactor/vial1/exp/led_change_events",
            b'{"channel":"B","intensity":20.0,"source_of_event":"user","timestamp":"1970-01-01T00:00:01.000Z"}',
            0,
            False,
        )
    ]
    assert parse_command("leds", "B", b"20") == {"command": "set", "job": "leds", "setting": "B", "value": 20.0}
    assert parse_command("leds", "$state", b"disconnected") == {"command": "stop", "job": "leds"}
    with pytest.raises(ValueError, match="cannot be set"):
        parse_command("leds", "E", b"20")


def test_the_command_line_sets_shows_and_refuses(start_worker, capsys) -> None:
    from stirbar.core.led_command import main

    worker = start_worker("leds.config.maximum_percent_C=40")
    assert worker.client.led(D=10)["D"]["set"] == pytest.approx(10.2)
    address = ["--address", worker.client.address]
    assert main([*address, "--B", "20", "--D", "0"]) == 0
    assert capsys.readouterr().out == "LED B: 20 %\nLED D: 0 %\n"
    assert main([*address, "--B", "10", "--C", "50"]) == 1
    assert "C must be from 0 to 40 %, not 50 ([leds.config] maximum_percent_C" in capsys.readouterr().err
    assert main(address) == 0
    assert "LED B: 20 %" in capsys.readouterr().out
