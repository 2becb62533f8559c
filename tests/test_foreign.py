"""Units that are not stirbar's, and foreign jobs about ours: heard, shown, stored once, and marked as what they are."""

from __future__ import annotations

import json
import time

import paho.mqtt.client as mqtt
import pytest
import stirbar.bridge.foreign as foreign_module
import stirbar.bridge.ingest as ingest_module
from stirbar.bridge.foreign import foreign_id, parse_time
from stirbar.bridge.ingest import CommandNotSent
from test_ingest import Leader
from units import block, identity, wait_until

NAME = "pio01"
WHEN = "2026-11-29T12:00:0{}.123Z"


class Stranger:
    """What publishes in the dialect and knows nothing of stirbar."""

    def __init__(self, leader: Leader) -> None:
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        self.client.username_pw_set(leader.broker.username, leader.broker.password)
        self.client.connect("127.0.0.1", leader.broker.port)
        self.client.loop_start()

    def say(self, rest: str, payload: object, retain: bool = True, unit: str = NAME) -> None:
        text = payload if isinstance(payload, str) else json.dumps(payload)
        self.client.publish(f"pioreactor/{unit}/{rest}", text, 2, retain).wait_for_publish(5)

    def od(self, second: int, od: float, channel: int = 2, retain: bool = True) -> None:
        struct = {"calibrated": 0, "timestamp": WHEN.format(second), "angle": "90", "od": od, "channel": str(channel)}
        self.say(f"batch/od_reading/od{channel}", {**struct, "ir_led_intensity": 80.0}, retain)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def leader(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest_module, "COMMIT_INTERVAL_S", 0.1)
    monkeypatch.setattr(foreign_module, "SETTLE_S", 0.5)
    one = Leader(tmp_path)
    yield one
    one.close()
    assert one.ingest.counters()["internal_errors"] == 0


@pytest.fixture
def stranger(leader):
    one = Stranger(leader)
    yield one
    one.close()


def unit_of(leader: Leader, name: str = NAME) -> dict:
    return next((one for one in leader.ingest.units() if one["unit"] == name), {})


def test_a_foreign_unit_is_shown_and_stored_once(leader, stranger):
    stranger.say("batch/od_reading/$state", "ready")
    stranger.say("batch/stirring/$state", "ready")
    stranger.say("batch/stirring/target_rpm", "500.0")
    for second in range(5):
        stranger.od(second, 0.1 * second)
        stranger.od(second, 0.1 * second)  # QoS is no promise: the same reading may come again
    stranger.say("batch/stirring/measured_rpm", {"measured_rpm": 499.5, "timestamp": WHEN.format(1)})
    stranger.say("batch/temperature_automation/temperature", {"timestamp": WHEN.format(1), "temperature": 30.5})
    stranger.say("batch/bioreactor/current_volume_ml", "14.5")
    wait_until(lambda: leader.ingest.counters()["foreign_readings"] == 8, "stored")
    unit = unit_of(leader)
    assert unit["unit_id"] == foreign_id("pioreactor", NAME).hex()
    assert unit["describe"]["foreign"] is True and unit["state"] == "online"
    assert unit["jobs"] == {"od_reading": "ready", "stirring": "ready"}
    assert unit["channels"] == [{"stream": "od2", "channel": 2, "angle": 90, "name": "90°", "unit": "AU"}]
    assert {name: one["value"] for name, one in unit["latest"].items()} == {
        "od2": pytest.approx(0.4), "rpm": 499.5, "liquid": 30.5, "volume": 14.5,
    }  # fmt: skip
    assert unit["foreign"] is True and unit["experiment"] == "batch" and time.time() - unit["last_seen"] < 2
    assert "uncalibrated" in unit["latest"]["od2"]["flag_names"]
    assert {"job": "stirring", "setting": "target_rpm", "value": 500} in unit["settings"]
    wait_until(lambda: leader.store.units() != [], "the description is stored")
    start = parse_time(WHEN.format(0)) / 1e9
    line = leader.store.series(2, start - 1, start + 10, 100)[0]
    assert (line["unit"], line["angle"], len(line["t"])) == (NAME, 90, 5)
    assert leader.rows("SELECT count(*) FROM run") == [(1,)]
    stranger.say("batch/stirring/$state", "lost")
    stranger.say("batch/od_reading/$state", "lost")
    wait_until(lambda: unit_of(leader)["state"] == "lost", "lost")
    with pytest.raises(CommandNotSent, match="not a stirbar unit"):
        leader.ingest.command(bytes.fromhex(unit["unit_id"]), {"command": "describe"})


def test_after_a_restart_of_the_leader_nothing_is_stored_twice(leader, stranger):
    stranger.say("batch/od_reading/$state", "ready")
    stranger.od(1, 0.1)
    wait_until(lambda: leader.ingest.counters()["foreign_readings"] == 1, "stored")
    leader.shut()
    leader.open()
    wait_until(lambda: unit_of(leader).get("state") == "online", "known from the store, its state from the broker")
    stranger.od(2, 0.2)
    wait_until(lambda: leader.ingest.counters()["foreign_readings"] == 1, "the next one is stored")
    leader.shut()
    assert leader.rows("SELECT count(*) FROM reading") == [(2,)], "what is retained is no reading of now"
    leader.open()


def test_the_growth_rate_of_a_foreign_job_is_our_units(leader, stranger):
    unit = leader.unit("vial1", 1)
    unit.describe(version="0.1")
    unit.store(block(0, 10))
    wait_until(lambda: unit.through() == 10, "our own reading")
    for second in range(3):
        rate = {"growth_rate": 0.1 + second, "timestamp": WHEN.format(second)}
        stranger.say("batch/growth_rate_calculating/growth_rate", rate, unit="vial1")
        filtered = {"od_filtered": 1.0 + second, "timestamp": WHEN.format(second)}
        stranger.say("batch/growth_rate_calculating/od_filtered", filtered, unit="vial1")
    wait_until(lambda: leader.ingest.counters()["foreign_readings"] == 6, "stored")
    about = unit_of(leader, "vial1")
    assert not about["describe"].get("foreign") and about["unit_id"] == identity(1).hex()
    assert about["latest"]["growth_rate"]["value"] == pytest.approx(2.1)
    wait_until(lambda: len(leader.rows("SELECT 1 FROM reading")) == 16, "committed")
    start = parse_time(WHEN.format(0)) / 1e9
    for stream, values in ((13, [0.1, 1.1, 2.1]), (14, [1.0, 2.0, 3.0])):
        line = leader.store.series(stream, start - 1, start + 10, 100)[0]
        assert line["unit"] == "vial1" and line["mean"] == pytest.approx(values)
    # our own od is not stored a second time
    stranger.say("batch/od_reading/od2", {"od": 1.0, "timestamp": WHEN.format(1)}, unit="vial1")
    time.sleep(0.3)
    assert leader.ingest.counters()["foreign_readings"] == 6


def test_a_unit_that_describes_itself_in_time_is_ours(leader, stranger):
    stranger.say("batch/stirring/$state", "ready", unit="vial1")
    unit = leader.unit("vial1", 1)
    unit.describe(version="0.1")
    time.sleep(1.0)
    assert [one["unit_id"] for one in leader.ingest.units()] == [identity(1).hex()]


def test_what_is_only_retained_or_no_units_word_makes_no_unit(leader, stranger):
    stranger.say("batch/stirring/$state", "lost", unit="long-gone")
    leader.shut()
    leader.open()
    stranger.say("$experiment/mqtt_to_db_streaming/$state", "ready", unit="pio-leader")
    stranger.say("$experiment/logs/app/info", {"message": "Ready.", "task": "x"}, False, unit="pio-leader")
    stranger.say("batch/stirring/target_rpm/set", "5", False, unit="$broadcast")
    time.sleep(1.0)
    assert leader.ingest.units() == []


def test_log_lines_are_events_and_nonsense_is_counted(leader, stranger):
    stranger.say("batch/stirring/$state", "ready")
    wait_until(lambda: unit_of(leader) != {}, "known")
    stranger.say("batch/logs/app/warning", {"message": "Stalled", "task": "stirring", "level": "WARNING"}, False)
    stranger.say("batch/logs/app/debug", {"message": "chatter", "task": "stirring"}, False)
    wait_until(lambda: any(one["code"] == "foreign_log" for one in leader.store.events()), "the log line")
    lines = [one for one in leader.store.events() if one["code"] == "foreign_log"]
    assert [(one["unit"], one["level"], one["message"]) for one in lines] == [(NAME, "warning", "stirring: Stalled")]
    when = ',"timestamp":"2026-11-29T12:00:00Z"}'
    nonsense = ["[1]", "x", '{"od":"much"' + when, '{"od":1e999' + when, '{"od":1,"timestamp":"yesterday"}']
    nonsense += ['{"od":1,"timestamp":"2026-11-29T12:00:00"}']
    for text in nonsense:
        stranger.say("batch/od_reading/od1", text)
    stranger.od(3, 0.3)
    wait_until(lambda: leader.ingest.counters()["foreign_readings"] == 1, "the next good one")
    assert leader.ingest.counters()["malformed"] == len(nonsense)
