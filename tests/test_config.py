"""The configuration: schema, INI reader, layers, errors, command, generated files."""

from __future__ import annotations

import json
import os
import pathlib
import stat
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stirbar.core import config_command, pioreactor_keys, schema, schema_docs, schema_keys, schema_rules
from stirbar.core.config import (
    EXAMPLE,
    ConfigError,
    build_config,
    find_files,
    load_config,
    parse_overrides,
    parse_value,
    split_name,
)
from stirbar.core.ini import IniFile, write_atomically

ROOT = pathlib.Path(__file__).parents[1]
DATA = pathlib.Path(__file__).parent / "data"


@pytest.fixture(autouse=True)
def no_user_files(tmp_path, monkeypatch):
    """No test reads or writes the configuration of whoever runs it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("STIRBAR_CONFIG", raising=False)
    monkeypatch.setattr("stirbar.core.config.SYSTEM_DIRECTORY", str(tmp_path / "etc"))


def write(path: pathlib.Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def load_text(text: str, *overrides: str):
    return build_config([IniFile(text, "config.ini")], parse_overrides(overrides))


def problems(text: str, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_text(text, *overrides)
    return caught.value.problems


# --- schema


@pytest.mark.parametrize("key", schema.KEYS, ids=lambda key: f"{key.section}.{key.name}")
def test_every_key_is_complete(key):
    assert key.help
    assert "\n" not in key.help
    assert key.section in schema.SECTIONS
    assert key.allowed()
    if key.is_number():
        assert key.low <= key.default <= key.high
        assert key.low < key.high
        if key.section != "simulation":
            assert key.unit, "a number needs a unit"
        for choice in key.choices:
            assert key.low <= float(choice) <= key.high
    text = schema_keys.format_value(key.default)
    value = parse_value(key, text)
    assert value == key.default
    assert type(value) is {"int": int, "float": float, "bool": bool}.get(key.type, str)


def test_keys_are_unique_and_not_ignored_too():
    names = [(key.section, key.name) for key in schema.KEYS]
    assert len(names) == len(set(names))
    assert not [name for name in names if schema.ignored(*name)]
    assert all(reason for _, _, reason in pioreactor_keys.IGNORED)


def test_rules_look_at_existing_keys():
    for words, keys, _ in schema_rules.RULES:
        assert words
        assert all(schema.find(*key) for key in keys)


def test_simulation_keys_are_the_parameters_of_the_model():
    from stirbar.core.simulation import PARAMETERS

    keys = {key.name: key for key in schema.KEYS if key.section == "simulation"}
    assert list(keys) == ["seed", *(parameter.name for parameter in PARAMETERS)]
    for parameter in PARAMETERS:
        key = keys[parameter.name]
        assert (key.default, key.low, key.high, key.unit) == (
            parameter.default,
            parameter.low,
            parameter.high,
            parameter.unit,
        )


# --- generated files


@pytest.mark.parametrize("name", schema_docs.FILES)
def test_generated_files_are_those_of_the_schema(name):
    text = (ROOT / name).read_text()
    assert text == schema_docs.FILES[name](), "run `python -m stirbar.core.schema_docs .`"


def test_generator_writes_all_files(tmp_path):
    (tmp_path / "core").mkdir()
    (tmp_path / "docs").mkdir()
    assert schema_docs.main([str(tmp_path)]) == 0
    for name in schema_docs.FILES:
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()
    assert schema_docs.main([str(tmp_path / "docs")]) == 2


def test_example_is_complete_and_means_the_defaults():
    example = load_config()
    assert example.path == EXAMPLE
    assert not example.warnings
    assert not example.ignored
    assert list(example.items()) == list(build_config([]).items())
    assert example.digest() == build_config([]).digest()
    lines = pathlib.Path(EXAMPLE).read_text().splitlines()
    for key in schema.KEYS:
        entry = f"{key.name} = {schema_keys.format_value(key.default)}".rstrip()
        at = lines.index(entry, lines.index(f"[{key.section}]"))
        assert lines[at - 1].startswith("# ")
    assert max(map(len, lines)) <= 120


# --- layers


def test_layers_and_sources(tmp_path):
    path = write(
        tmp_path / "config.ini",
        "[stirring.config]\ninitial_target_rpm = 400\npwm_hz=150\nmaximum_rpm = 900\n[cluster.inventory]\npio1 = 1\n",
    )
    unit = write(
        tmp_path / "unit_config.ini", "[stirring.config]\npwm_hz = 250 Hz\n[unit]\nname = pio7\nsimulate = yes\n"
    )
    config = load_config(path, overrides=parse_overrides(["stirring.config.maximum_rpm=1000"]))
    assert config.get("stirring.config", "initial_target_rpm") == 400.0
    assert config.source("stirring.config", "initial_target_rpm") == f"{path}:2"
    assert config.get("stirring.config", "pwm_hz") == 250.0
    assert config.source("stirring.config", "pwm_hz") == f"{unit}:2"
    assert config.get("stirring.config", "maximum_rpm") == 1000.0
    assert config.source("stirring.config", "maximum_rpm") == "--set"
    assert config.source("stirring.config", "kick_s") == "default"
    assert config.get("unit", "name") == "pio7"
    assert config.get("unit", "simulate") is True
    assert config.section("cluster.inventory") == {"pio1": True}
    assert (config.path, config.unit_path) == (path, unit)
    other = write(tmp_path / "else" / "mine.ini", "[unit]\nname = pio8\n")
    assert load_config(path, other).get("unit", "name") == "pio8"
    assert load_config(path, other).get("stirring.config", "pwm_hz") == 150.0


def test_empty_value_is_the_default_also_above_a_file(tmp_path):
    path = write(tmp_path / "config.ini", "[stirring.config]\npwm_hz = 150\n[od_config.photodiode_channel]\n2 = 135\n")
    write(tmp_path / "unit_config.ini", "[stirring.config]\npwm_hz =\n[od_config.photodiode_channel]\n1 =\n")
    config = load_config(path)
    assert config.get("stirring.config", "pwm_hz") == 200.0
    assert config.source("stirring.config", "pwm_hz") == "default"
    assert [config.get("od_config.photodiode_channel", channel) for channel in "1234"] == ["", "135", "", ""]


def test_unit_name_is_the_host_name_unless_given():
    assert load_text("").get("unit", "name") == os.uname().nodename.split(".")[0]


def test_places_of_the_files(tmp_path, monkeypatch):
    assert find_files() == (EXAMPLE, None)
    system = write(tmp_path / "etc" / "config.ini", "")
    system_unit = write(tmp_path / "etc" / "unit_config.ini", "")
    assert find_files() == (system, system_unit)
    user = write(tmp_path / "home" / ".stirbar" / "config.ini", "")
    assert find_files() == (user, None)
    named = write(tmp_path / "named.ini", "")
    monkeypatch.setenv("STIRBAR_CONFIG", named)
    assert find_files() == (named, None)
    assert find_files(user) == (user, None)
    assert find_files(user, system_unit) == (user, system_unit)


def test_unit_file_counts_without_a_config_file(tmp_path):
    unit = write(tmp_path / "home" / ".stirbar" / "unit_config.ini", "[unit]\nname = alone\n")
    config = load_config()
    assert (config.path, config.unit_path, config.get("unit", "name")) == (EXAMPLE, unit, "alone")


def test_get_of_an_unknown_key_is_a_programming_error():
    with pytest.raises(KeyError, match=r"no \[stirring.config\] speed"):
        load_text("").get("stirring.config", "speed")


def test_digest_changes_with_any_value_and_not_with_its_writing():
    digests = {load_text("").digest(), load_text("", "stirring.config.pwm_hz=199").digest()}
    digests.add(load_text("[cluster.inventory]\na = 1\n").digest())
    assert len(digests) == 3
    assert all(len(digest) == 16 for digest in digests)
    assert load_text("[stirring.config]\npwm_hz: 2e2 # as default\n").digest() == load_text("").digest()
    one, two = "[unit]\nname=a\n", "[stirring.config]\npwm_hz=100\n"
    assert load_text(one + two).digest() == load_text(two + one).digest()


# --- values


@pytest.mark.parametrize(
    ("text", "value"),
    [("500", 500.0), ("500 rpm", 500.0), ("500rpm", 500.0), ("5e2", 500.0), ("+500.0", 500.0), (" 500\t", 500.0)],
)
def test_numbers_with_and_without_their_unit(text, value):
    assert (
        load_text(f"[stirring.config]\ninitial_target_rpm = {text}").get("stirring.config", "initial_target_rpm")
        == value
    )


@pytest.mark.parametrize("text", ["1", "true", "Yes", "ON"])
def test_true(text):
    assert load_text(f"[unit]\nsimulate = {text}").get("unit", "simulate") is True


@pytest.mark.parametrize("text", ["0", "False", "no", "off"])
def test_false(text):
    assert load_text(f"[loop.config]\nlock_memory = {text}").get("loop.config", "lock_memory") is False


def test_integral_float_is_a_whole_number():
    value = load_text("[mqtt]\nbroker_port = 1884.0").get("mqtt", "broker_port")
    assert (value, type(value)) == (1884, int)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("stirring.config.initial_target_rpm", "5000", "above the highest allowed; write 60 to 2000 rpm"),
        ("stirring.config.initial_target_rpm", "-1", "below the lowest allowed; write 60 to 2000 rpm"),
        ("stirring.config.initial_target_rpm", "fast", "not a number; write 60 to 2000 rpm"),
        ("stirring.config.initial_target_rpm", "nan", "not a number"),
        ("stirring.config.initial_target_rpm", "inf", "not a number"),
        ("stirring.config.initial_target_rpm", "5_0_0", "not a number|in '_0_0'"),
        ("stirring.config.initial_target_rpm", "8 Hz", "is in 'Hz', and this key is in rpm; write 60 to 2000 rpm"),
        ("stirring.config.kick_s", "350 ms", "is in 'ms', and this key is in s; write 0.35 s"),
        ("loop.config.control_period_ms", "0.01 s", "write 10 ms"),
        ("od_reading.config.adc_full_scale_v", "2048mV", "write auto, 0.256, 0.512, 1.024, 2.048, 4.096 or 6.144"),
        (
            "od_reading.config.adc_rate_hz",
            "800",
            "not one that the hardware has; write 8, 16, 32, 64, 128, 250, 475 or 860 Hz",
        ),
        ("stirring.config.stall_retries", "2.5", "not a whole number; write whole number, 0 to 10 kicks"),
        ("unit.simulate", "maybe", "neither on nor off; write 1 or 0"),
        ("od_reading.config.ref_normalization", "clasic", "write unity, classic or regressed; did you mean 'classic'"),
        ("od_config.photodiode_channel.2", "100", "write empty, REF, 45, 90, 135 or 180"),
        ("unit.name", "a/b", "letters, digits"),
        ("unit.name", "$broadcast", "letters, digits"),
        ("mqtt.topic_root", "pio/#", "without wildcards"),
        ("mqtt.topic_root", "pio/", "not beginning or ending"),
        ("mqtt.broker_address", "not a host", "a host name or an IP address"),
        ("worker.config.address", "/tmp/x", "ipc:///path"),
        ("worker.config.address", "tcp://here", "tcp://host:port"),
        ("worker.config.address", "ipc:///" + "x" * 100, "at most 97"),
        ("loop.config.cpu_affinity", "3-1", "0,2-3"),
        ("loop.config.cpu_affinity", "x", "0,2-3"),
    ],
)
def test_bad_values_name_place_limit_and_remedy(name, text, said):
    section, key = split_name(name)
    (problem,) = problems(f"# first\n[{section}]\n{key} = {text}\n")
    assert problem.startswith(f"config.ini:3: [{section}] {key} = {text}: ")
    import re

    assert any(re.search(re.escape(part), problem) for part in said.split("|")), problem
    (problem,) = problems("", f"{name}={text}")
    assert problem.startswith(f"--set {name}={text}: ")


@pytest.mark.parametrize("text", ["3", "0,2-3", "0-1"])
def test_cpu_lists(text):
    assert load_text("", f"loop.config.cpu_affinity={text}").get("loop.config", "cpu_affinity") == text


@pytest.mark.parametrize("text", ["ipc:///run/stirbar/pio1", "tcp://127.0.0.1:5555", "tcp://[::1]:5555"])
def test_addresses(text):
    assert load_text("", f"worker.config.address={text}").get("worker.config", "address") == text


def test_a_unit_that_cannot_be_named_so_is_refused():
    (said,) = problems("[cluster.inventory]\nmy vial = 1\n")
    assert said.startswith(
        "config.ini:2: [cluster.inventory] my vial = 1: 'my vial' cannot name a unit; write at most 63"
    )


# --- what is refused


def test_all_problems_at_once_in_the_order_of_the_file(tmp_path):
    text = "\n".join(
        (
            "before = 1",
            "[stirring.config]",
            "initial_target_rpm = 9000",
            "kik_s = 0.2",
            "garbage",
            "pwm_hz = 100",
            "pwm_hz = 120",
            "[broken",
            "skipped = 1",
            "[mqtt]",
            "= 5",
            "use_tls = perhaps",
        )
    )
    unit = IniFile("[unit]\nname = a b\n", "unit_config.ini")
    with pytest.raises(ConfigError) as caught:
        build_config([IniFile(text, "config.ini"), unit], parse_overrides(["unit.simulate=7"]))
    found = caught.value.problems
    assert [problem.split(": ")[0].split(" unit.")[0] for problem in found] == [
        *(f"config.ini:{line}" for line in (1, 3, 4, 5, 7, 8, 11, 12)),
        "unit_config.ini:2",
        "--set",
    ]
    assert "did you mean 'kick_s'" in found[2]
    assert "given already in line 6" in found[4]
    assert str(caught.value).startswith("10 problems in the configuration:\n")


def test_unknown_section_is_one_warning():
    config = load_text("[striring.config]\na = 1\nb = 2\n[striring.config]\nc = 3\n")
    (warning,) = config.warnings
    assert "config.ini:1: stirbar has no section [striring.config]" in warning
    assert "did you mean 'stirring.config'" in warning


def test_overrides_are_stricter_than_files():
    (problem,) = problems("", "striring.config.pwm_hz=3")
    assert "no section [striring.config]; did you mean 'stirring.config'" in problem
    with pytest.raises(ConfigError) as caught:
        parse_overrides(["unit.name", "name=x", ".=3", "unit.name=ok"])
    assert len(caught.value.problems) == 3
    assert "no '='; write section.key=value" in caught.value.problems[0]


def test_override_names():
    assert parse_overrides(["cluster.inventory.pio.local=1", "a.b.c=d=e ", "unit.name = x"]) == [
        ("cluster.inventory", "pio.local", "1"),
        ("a.b", "c", "d=e"),
        ("unit", "name", "x"),
    ]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["od_config.photodiode_channel.3=REF"], "channels 1 and 3 are REF"),
        (["od_config.photodiode_channel.2="], "no channel has an angle"),
        (["od_reading.config.window_s=0.03", "od_reading.config.half_cycle=16"], "a cycle of the light is 32"),
        (["od_reading.config.adc_rate_hz=8", "od_reading.config.window_s=0.1"], "raise window_s to 0.5 s"),
        (["od_reading.config.half_cycle=1"], "write 0, or 2 and more"),
        (["loop.config.priority_sampling=47"], "priority_actuators (47) must be above priority_sampling (47)"),
        (["stirring.config.maximum_rpm=400"], "initial_target_rpm (500 rpm) is above maximum_rpm (400 rpm)"),
        (["stirring.config.duty_maximum_percent=20"], "initial_duty_cycle (30 %), kick_duty_percent (100 %) are above"),
        (["mqtt.data_root=pioreactor"], "topic_root and data_root are the same"),
        (["web.config.port=1883"], "cannot both listen on port 1883"),
    ],
)
def test_rules_between_keys(overrides, said):
    (problem,) = problems("", *overrides)
    assert problem.startswith("--set: [")
    assert said in problem


def test_rules_that_do_not_apply():
    load_text("", "loop.config.priority_sampling=0", "loop.config.priority_actuators=0")
    load_text("", "leader.config.broker=external", "web.config.port=1883")
    load_text("", "od_config.photodiode_channel.1=")


def test_a_rule_is_silent_about_a_value_that_was_refused_already():
    (problem,) = problems("[stirring.config]\nmaximum_rpm = 10\n")
    assert "below the lowest" in problem


def test_files_that_cannot_be_read(tmp_path):
    for path, said in (
        (tmp_path / "none.ini", "there is no such file; `stirbar config example"),
        (tmp_path, "cannot be read: Is a directory"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_config(str(path))
    latin = tmp_path / "latin.ini"
    latin.write_bytes(b"[unit]\nname = \xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_config(str(latin))
    with pytest.raises(ConfigError) as caught:
        load_config(str(latin), str(tmp_path / "none.ini"))
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="not the name of a file"):
        load_config("a\0b")


# --- Pioreactor's files


def test_pioreactor_file_loads_with_notes_only():
    config = load_config(str(DATA / "pioreactor_config.ini"), str(DATA / "pioreactor_unit_config.ini"))
    assert config.warnings == []
    assert config.get("stirring.config", "initial_target_rpm") == 450.0
    assert config.get("stirring.config", "use_rpm") is True
    assert config.get("od_reading.config", "local_ac_hz") == "60"
    assert config.get("od_reading.config", "ir_led_intensity") == 80.0
    assert config.get("mqtt", "broker_address") == "leader.local"
    assert config.get("cluster.topology", "leader_hostname") == "leader"
    assert config.get("stirring.pid", "Ki") == 0.1, "Pioreactor's gains mean something else"
    assert [config.get("od_config.photodiode_channel", channel) for channel in "1234"] == ["REF", "90", "135", ""]
    notes = "\n".join(config.ignored)
    for said in (
        "[od_reading.config] samples_per_second is not used: readings come at readings_per_second",
        "[mqtt] password is not used",
        "of the list only 'leader.local' is used",
        "stirbar does not choose the intensity by itself",
        "[stirring.pid] Kp, Ki, Kd are not used: Pioreactor's gains",
        "[ui.overview.charts] temperature is not used",
    ):
        assert said in notes
    file = IniFile((DATA / "pioreactor_config.ini").read_text())
    used = [item for item in file.items if not schema.ignored(item.section, item.key)]
    assert len(config.ignored) == len(file.items) - len(used) + 3
    assert all(".ini:" in note for note in config.ignored)


def test_own_gains_are_kept():
    text = "[stirring.pid]\nKp = 0.005\nKi = 0.01\nKd = 0\n"
    assert load_text(text).get("stirring.pid", "Kp") == 0.005
    assert load_text("[stirring.pid]\nKp = 0.005\n").get("stirring.pid", "Kp") == 0.005


# --- the INI reader

names = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="[]=:#;"), min_size=1)
values = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="#;"))
wild = st.text(st.sampled_from("ab[]=:#; \t\r\n\ufeff\x00é\u2028") | st.characters(codec="utf-8"), max_size=200)


@given(wild)
@settings(max_examples=300, deadline=None)
def test_reader_never_fails_and_keeps_the_text(text):
    file = IniFile(text, "x.ini")
    assert file.text() == text
    for item in file.items:
        assert text.split("\n")[item.line - 1][item.start : item.end] == item.value


@given(wild)
@settings(max_examples=200, deadline=None)
def test_config_never_fails_but_with_its_own_error(text):
    try:
        load_text(text)
    except ConfigError as error:
        assert error.problems
        assert all(problem.startswith("config.ini") for problem in error.problems)


@given(st.text(max_size=30), st.sampled_from(schema.KEYS))
@settings(max_examples=400, deadline=None)
def test_any_override_of_any_key_gives_a_legal_value_or_an_error(text, key):
    try:
        value = parse_value(key, text.strip())
    except ValueError as error:
        assert "write" in str(error)
        return
    if key.is_number():
        assert key.low <= value <= key.high


@given(wild, names, names, values)
@settings(max_examples=300, deadline=None)
def test_set_changes_one_value_or_nothing(text, section, key, value):
    file = IniFile(text)
    before = [(item.section, item.key, item.value) for item in file.items if (item.section, item.key) != (section, key)]
    lines = text.split("\n")
    old = file.get(section, key)
    try:
        file.set(section, key, value)
    except ValueError:
        assert file.text() == text
        return
    changed = file.get(section, key)
    assert changed is not None
    assert changed.value == value
    assert [
        (item.section, item.key, item.value) for item in file.items if (item.section, item.key) != (section, key)
    ] == before
    if old is not None:
        after = file.text().split("\n")
        assert [line for number, line in enumerate(after, 1) if number != old.line] == [
            line for number, line in enumerate(lines, 1) if number != old.line
        ]


@given(st.dictionaries(names, st.dictionaries(names, values, max_size=4), max_size=4))
@settings(max_examples=200, deadline=None)
def test_round_trip(content):
    file = IniFile()
    for section, keys in content.items():
        for key, value in keys.items():
            file.set(section, key, value)
    again = IniFile(file.text())
    assert not again.problems
    assert {(item.section, item.key): item.value for item in again.items} == {
        (section, key): value for section, keys in content.items() for key, value in keys.items()
    }


def test_set_keeps_comments_spacing_and_order():
    text = "# head\r\n[a]\r\n; one\r\nx=1   # inline\r\n y :  2\r\n\r\n# about b\r\n[b]\r\nz =\r\n"
    file = IniFile(text)
    file.set("a", "x", "10")
    file.set("a", "y", "20")
    file.set("b", "z", "30")
    file.set("a", "new", "40")
    file.set("c", "w", "50")
    assert file.text() == (
        "# head\r\n[a]\r\n; one\r\nx=10   # inline\r\n y :  20\r\nnew = 40\r\n\r\n# about b\r\n[b]\r\nz = 30\r\n"
        "\r\n[c]\r\nw = 50\r\n"
    )


def test_set_in_a_file_without_a_final_line_end():
    file = IniFile("[a]\nx = 1")
    file.set("a", "y", "2")
    file.set("b", "z", "3")
    assert file.text() == "[a]\nx = 1\ny = 2\n\n[b]\nz = 3\n"


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("a", "x", "1\n2"), ("a", "x", "1 # 2"), ("a", "x", " 1"), ("a", "x=y", "1"), ("a", "#x", "1"), ("a]", "x", "1")],
)
def test_set_refuses_what_a_line_cannot_hold(section, key, value):
    file = IniFile("[a]\nx = 1\n")
    with pytest.raises(ValueError, match="cannot be written"):
        file.set(section, key, value)
    assert file.text() == "[a]\nx = 1\n"
    assert [(item.key, item.value) for item in file.items] == [("x", "1")]


def test_syntax_of_the_field():
    file = IniFile("\ufeff[a]  # comment\nx: 1 ; no\nhosts = b;c\ncolour = a#b\n  indented = yes\nurl = http://x:1/y\n")
    assert not file.problems
    assert {item.key: item.value for item in file.items} == {
        "x": "1",
        "hosts": "b;c",
        "colour": "a#b",
        "indented": "yes",
        "url": "http://x:1/y",
    }


def test_control_characters_are_named():
    file = IniFile("[a]\nx = 1\0\n")
    assert file.problems == [(2, "a control character (code 0) is in this line; remove it")]


def test_write_keeps_mode_and_link_and_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    real = tmp_path / "real.ini"
    real.write_text("old")
    real.chmod(0o640)
    link = tmp_path / "link.ini"
    link.symlink_to(real)
    write_atomically(str(link), "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(str(real), "newer")
    assert real.read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.ini", "real.ini"]


# --- the command


def test_check_of_a_good_configuration(capsys):
    assert config_command.main(["check"]) == 0
    out = capsys.readouterr().out
    assert "(shipped with stirbar)" in out
    assert "good: 0 values differ from the defaults, 0 ignored, 0 warnings" in out


def test_check_lists_ignored_keys_and_warnings(capsys, tmp_path):
    path = write(tmp_path / "c.ini", "[ui]\nport = 80\n[mine]\n[stirring.config]\npwm_hz = 100\n")
    assert config_command.main(["check", "--config", path]) == 0
    out = capsys.readouterr().out
    assert f"ignored: {path}:2: [ui] port is not used: " in out
    assert f"warning: {path}:3: stirbar has no section [mine]" in out
    assert "good: 1 values differ" in out


def test_check_of_a_bad_configuration(capsys, tmp_path):
    path = write(tmp_path / "c.ini", "[stirring.config]\npwm_hz = 1\nx = 2\n")
    assert config_command.main(["check", "--config", path]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2 problems" in captured.err
    assert f"{path}:2: [stirring.config] pwm_hz = 1: is below the lowest allowed" in captured.err


def test_show(capsys, tmp_path):
    path = write(tmp_path / "c.ini", "[stirring.config]\npwm_hz = 100\n[cluster.inventory]\npio1 = 0\n")
    assert config_command.main(["show", "--config", path, "--set", "unit.name=u"]) == 0
    out = capsys.readouterr().out
    shown = IniFile(out)
    assert not shown.problems, "what show prints is an INI file"
    assert {(item.section, item.key) for item in shown.items} == {(key.section, key.name) for key in schema.KEYS} | {
        ("cluster.inventory", "pio1")
    }
    assert f"# Hz, {path}:2" in out
    assert "# --set" in out
    assert config_command.main(["show", "--config", path, "--changed"]) == 0
    changed = IniFile(capsys.readouterr().out)
    assert [(item.key, item.value) for item in changed.items] == [("pio1", "0"), ("pwm_hz", "100")]


def test_show_json_and_defaults(capsys, tmp_path):
    path = write(tmp_path / "c.ini", "[stirring.config]\npwm_hz = 100\n")
    assert config_command.main(["show", "--config", path, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["values"]["stirring.config"]["pwm_hz"] == {"value": 100.0, "unit": "Hz", "source": f"{path}:2"}
    assert report["digest"] == load_config(path).digest()
    assert config_command.main(["show", "--config", path, "--json", "--defaults"]) == 0
    assert json.loads(capsys.readouterr().out)["values"]["stirring.config"]["pwm_hz"]["value"] == 200.0


def test_get(capsys):
    assert config_command.main(["get", "stirring.config.pwm_hz", "--set", "stirring.config.pwm_hz=120"]) == 0
    assert capsys.readouterr().out == "120\n"
    assert config_command.main(["get", "stirring.pid"]) == 0
    assert capsys.readouterr().out == "Kp = 0.05\nKi = 0.1\nKd = 0\n"
    for name, said in (
        ("stirring.config.pwm", "did you mean 'pwm_hz'"),
        ("nothing.config.pwm", "no section [nothing.config]"),
        ("ui.port", "is not used: "),
        ("cluster.inventory.pio9", "[cluster.inventory] has no 'pio9'"),
    ):
        assert config_command.main(["get", name]) == 1
        assert said in capsys.readouterr().err


def test_set_changes_the_file_in_place(capsys, tmp_path):
    text = "# mine\n[stirring.config]\npwm_hz = 100 # slow\n"
    path = tmp_path / "c.ini"
    write(path, text)
    assert config_command.main(["set", "--config", str(path), "stirring.config.pwm_hz=120", "unit.name=pio1"]) == 0
    assert path.read_text() == "# mine\n[stirring.config]\npwm_hz = 120 # slow\n\n[unit]\nname = pio1\n"
    assert f"{path}:3: [stirring.config] pwm_hz = 120" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("stirring.config.pwm_hz=1", "pwm_hz = 1: is below the lowest allowed"),
        ("stirring.config.maximum_rpm=300", "initial_target_rpm (500 rpm) is above maximum_rpm (300 rpm)"),
        ("stirring.config.pwm=1", "did you mean 'pwm_hz'"),
        ("stiring.config.pwm_hz=1", "no section [stiring.config]"),
        ("ui.port=80", "is not used"),
        ("mqtt.username=a # b", "cannot be written in one line"),
        ("mqtt.username=a\nb", "cannot be written in one line"),
    ],
)
def test_set_refuses_and_changes_nothing(capsys, tmp_path, change, said):
    path = tmp_path / "c.ini"
    write(path, "[stirring.config]\npwm_hz = 100\n")
    assert config_command.main(["set", "--config", str(path), "unit.name=pio1", change]) == 1
    assert said in capsys.readouterr().err
    assert path.read_text() == "[stirring.config]\npwm_hz = 100\n"


def test_set_makes_the_users_files(capsys, tmp_path):
    home = tmp_path / "home" / ".stirbar"
    assert config_command.main(["set", "--unit", "unit.name=pio3"]) == 0
    assert load_config().get("unit", "name") == "pio3"
    assert config_command.main(["set", "unit.name=pio4"]) == 0
    assert sorted(path.name for path in home.iterdir()) == ["config.ini", "unit_config.ini"]
    assert "and its value is in force" in capsys.readouterr().out
    config = load_config()
    assert (config.get("unit", "name"), config.path) == ("pio3", str(home / "config.ini"))


def test_set_repairs_a_bad_value(tmp_path):
    path = write(tmp_path / "c.ini", "[stirring.config]\npwm_hz = 1\n")
    assert config_command.main(["set", "--config", path, "stirring.config.pwm_hz=100"]) == 0
    assert load_config(path).get("stirring.config", "pwm_hz") == 100.0


def test_example_command(capsys):
    assert config_command.main(["example"]) == 0
    assert capsys.readouterr().out == (ROOT / "config.example.ini").read_text()


# --- footprint

FOOTPRINT = """
import json, os, sys

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

before, modules = resident(), set(sys.modules)
import stirbar.core.config
config = stirbar.core.config.load_config()
json.dump({"bytes": resident() - before, "modules": sorted(set(sys.modules) - modules)}, sys.stdout)
"""


def test_what_the_worker_loads(tmp_path):
    """Measured at the second start: the first one compiles."""
    package = pathlib.Path(sys.modules["stirbar"].__path__[0])
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(package.parent)}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    for _ in range(2):
        run = subprocess.run(
            [sys.executable, "-c", FOOTPRINT], capture_output=True, text=True, check=True, timeout=30, env=environment
        )
        report = json.loads(run.stdout)
    ours = {name for name in report["modules"] if name.startswith("stirbar")}
    assert ours == {"stirbar", "stirbar.core"} | {
        f"stirbar.core.{name}"
        for name in (
            "config",
            "config_values",
            "desired",
            "ini",
            "paths",
            "schema",
            "schema_keys",
            "schema_rules",
            "schema_vial",
            "simulation",
            "vials",
        )
    }
    forbidden = {"argparse", "asyncio", "configparser", "dataclasses", "difflib", "hashlib", "json", "logging", "numpy"}
    forbidden |= {"pathlib", "pydantic", "re", "typing"}
    assert not forbidden & set(report["modules"])
    assert report["bytes"] < 1_500_000
