"""Hardware profiles: what the shipped ones say, what a bad one is told, and that their plans can be kept."""

from __future__ import annotations

import math
import os
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stirbar.core import bus_plan, profile_rules, profiles
from stirbar.core.config import load_config
from stirbar.core.profiles import PROFILES, ProfileError, load_profile

REAL = [name for name in PROFILES if name not in ("simulated", "custom-example")]

# What hangs where on the boards of the field: chips by address, hall, button and LED lines.
BOARDS = {
    "hat1.0": ({0x48: "ads1115", 0x49: "dac43608", 0x4F: "tmp1075"}, (25, 24, 23)),
    "hat1.1": ({0x2C: "rp2040", 0x4F: "tmp1075"}, (21, 4, 23)),
    "hat1.2": ({0x2C: "rp2040", 0x4F: "tmp1075"}, (21, 4, 23)),
    "model1.5": ({0x2C: "rp2040", 0x48: "ads1114", 0x49: "ads1114", 0x4F: "tmp1075"}, (21, 4, 23)),
    "xr1.5": (
        {0x2C: "rp2040", 0x4F: "tmp1075"} | dict.fromkeys((0x48, 0x49, 0x4A, 0x4B), "ads1114"),
        (21, 4, 23),
    ),
    "eyespy": ({0x2C: "rp2040", 0x48: "ads1115", 0x4F: "tmp1075"}, (21, 4, 23)),
}


def write(directory: pathlib.Path, text: str, name: str = "board.ini") -> str:
    path = directory / name
    path.write_text(text)
    return str(path)


def refusal(directory: pathlib.Path, text: str) -> str:
    with pytest.raises(ProfileError) as caught:
        load_profile(write(directory, text))
    return str(caught.value)


# --- the shipped ones ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REAL)
def test_a_board_has_its_chips_and_lines(name: str) -> None:
    profile = load_profile(name)
    chips, lines = BOARDS[name]
    parts = [f"photodiode.{n}" for n in profile.channels()] + ["led", "temperature", "rail", "version_sense"]
    assert {profile.get(part, "address"): profile.get(part, "chip") for part in parts} == chips
    assert tuple(profile.get("gpio", key) for key in ("hall", "button", "pcb_led")) == lines
    assert [profile.get(f"pwm.{n}", "line") for n in range(1, 6)] == [17, 13, 16, 12, 18]
    assert profile.pwm("stirring") == "pwm.1"
    assert profile.pwm("heating") == "pwm.5"


def test_the_files_are_the_names() -> None:
    files = {path.stem for path in pathlib.Path(profiles.DIRECTORY).glob("*.ini")}
    assert files == set(PROFILES)


@pytest.mark.parametrize("name", PROFILES)
def test_a_plan_can_be_kept(name: str) -> None:
    profile = load_profile(name)
    assert profile_rules.check(profile) == []
    assert bus_plan.bus_share(profile, bus_plan.CLOCK_SPREAD) < 0.75
    expected = profile.get("plan", "noise_over_b0")
    for section in (f"photodiode.{n}" for n in profile.channels()):
        limit = bus_plan.shared_rate_limit(profile, section)
        assert limit is None or profile.get(section, "rate_hz") <= limit
        lost = bus_plan.discarded(profile, section)
        span = range(profile.get(section, "half_cycle_low"), profile.get(section, "half_cycle_high") + 1)
        prices = [bus_plan.noise_over_b0(k, lost) for k in span]
        assert min(abs(price / expected - 1.0) for price in prices) < 0.01
        assert expected <= 2.7


def test_bus_time_by_hand() -> None:
    """Two ADS1114 at 860/s, 29 bits each, and the light up to 215 times a second (IS-20: 60-69 % with the driver)."""
    profile = load_profile("model1.5")
    by_hand = 2 * 860 * 29e-5 + 215 * 29e-5 + 2 * 48e-5
    assert bus_plan.bus_share(profile) == pytest.approx(by_hand)
    # one ADS1115 at a time: IS-20 has 219 to 245 a second for each of two photodiodes
    assert 219 <= bus_plan.shared_rate_limit(load_profile("hat1.0"), "photodiode.1") <= 245


def test_price_of_chopping_by_hand() -> None:
    """IS-16: 2.83, 2.24, 2.16 and 2.09 x B0 with one conversion lost in 2, 5, 7 and 12."""
    prices = [round(bus_plan.noise_over_b0(k, 1), 2) for k in (2, 5, 7, 12)]
    assert prices == [2.83, 2.24, 2.16, 2.09]
    assert bus_plan.noise_over_b0(4, 4) == math.inf


def test_half_cycles_fit_the_choice_that_the_loop_makes() -> None:
    for name in PROFILES:
        profile = load_profile(name)
        for n in profile.channels():
            section = f"photodiode.{n}"
            assert profile.get(section, "half_cycle_high") - profile.get(section, "half_cycle_low") < 16


def test_the_example_explains_every_key() -> None:
    text = (pathlib.Path(profiles.DIRECTORY) / "custom-example.ini").read_text()
    lines = text.splitlines()
    for kind, keys in profiles.TABLE.items():
        header = f"[{kind}.1]" if kind in profiles.NUMBERED else f"[{kind}]"
        start = lines.index(header)
        end = next((n for n in range(start + 1, len(lines)) if lines[n].startswith("[")), len(lines))
        written = [line.partition("=")[0].strip() for line in lines[start + 1 : end] if "=" in line and line[0] != "#"]
        assert written == [key.name for key in keys]


# --- extends, absence, defaults --------------------------------------------------------------------------------------


def test_extends_merges_key_by_key(tmp_path: pathlib.Path) -> None:
    base = write(tmp_path, "[profile]\nextends = hat1.0\n[i2c]\nclock_hz = 400000\n", "base.ini")
    path = write(tmp_path, "[profile]\nextends = base.ini\ntitle = Mine\n[photodiode.1]\nrate_hz = 200\n")
    profile = load_profile(path)
    assert profile.get("profile", "title") == "Mine"
    assert profile.get("i2c", "clock_hz") == 400_000
    assert profile.get("photodiode.1", "rate_hz") == 200.0
    assert profile.get("photodiode.2", "rate_hz") == 150.0
    assert profile.source("i2c", "clock_hz") == f"{base}:4"
    shipped = pathlib.Path(profile.source("photodiode.2", "rate_hz").rpartition(":")[0])
    assert shipped == pathlib.Path(profiles.DIRECTORY) / "hat1.0.ini"


def test_empty_takes_away(tmp_path: pathlib.Path) -> None:
    text = (
        "[profile]\nextends = xr1.5\n[photodiode.4]\nchip =\n[pwm.5]\ndevice =\n[temperature]\nchip =\n[gpio]\nhall =\n"
    )
    profile = load_profile(write(tmp_path, text))
    assert profile.channels() == [1, 2, 3]
    assert profile.get("photodiode.4", "address") is None
    assert not profile.has("temperature")
    assert profile.pwm("heating") is None
    assert profile.get("gpio", "hall") is None
    with pytest.raises(KeyError):
        profile.get("photodiode.5", "chip")


def test_what_no_file_says_has_a_default(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, "[profile]\nextends = hat1.0\n[i2c]\nbus =\nclock_hz =\n[rail]\ndivider =\n")
    profile = load_profile(path)
    assert (profile.get("i2c", "bus"), profile.get("i2c", "clock_hz")) == (1, 100_000)
    assert profile.get("rail", "divider") == 0.134


def test_the_digest_changes_with_a_value(tmp_path: pathlib.Path) -> None:
    same = load_profile(write(tmp_path, "[profile]\nextends = hat1.0\ntitle = x\n", "a.ini"))
    other = load_profile(write(tmp_path, "[profile]\nextends = hat1.0\ntitle = x\n[gpio]\nhall = 26\n", "b.ini"))
    again = load_profile(write(tmp_path, "# moved\n[profile]\ntitle = x\nextends = hat1.0\n", "c.ini"))
    assert same.digest() != other.digest()
    # `extends` is a value too, and the same one here
    assert same.digest() == again.digest()


# --- refusals --------------------------------------------------------------------------------------------------------

HAT = "[profile]\nextends = hat1.0\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HAT + "[gpio]\nhal = 4\n", ("board.ini:4: [gpio] hal = 4", "did you mean 'hall'?")),
        (HAT + "[gpoi]\nhall = 4\n", ("board.ini:3", "no section [gpoi]", "did you mean 'gpio'?")),
        (HAT + "[gpio]\nhall = 77\n", ("board.ini:4: [gpio] hall = 77", "0 to 57")),
        (HAT + "[gpio]\nhall = 23\n", ("board.ini:4: [gpio] hall", "line 23 is that of [gpio] pcb_led already")),
        (HAT + "[gpio]\nhall = 17\n", ("board.ini:4: [gpio] hall", "line 17 is that of [pwm.1] line already")),
        (HAT + "[gpio]\nhall = 2\n", ("board.ini:4: [gpio] hall", "I2C bus 1")),
        (HAT + "[photodiode.1]\nchip = ads1116\n", ("board.ini:4", "ads1115, ads1114 or rp2040")),
        (HAT + "[photodiode.1]\naddress = 72\n", ("board.ini:4", "an I2C address from 0x03 to 0x77")),
        (HAT + "[photodiode.1]\naddress = 0x90\n", ("board.ini:4", "an I2C address from 0x03 to 0x77")),
        (HAT + "[photodiode.1]\naddress = 0x50\nconverter = 1\n", ("0x50 is none that a ads1115", "0x48 to 0x4b")),
        (HAT + "[temperature]\naddress = 0x49\n", ("board.ini:4: [temperature] address", "dac43608", "[led]")),
        (HAT + "[photodiode.1]\ninput = 0\n", ("board.ini:4: [photodiode.1] input: input 0 of 0x48 is that of",)),
        (HAT + "[photodiode.1]\npace = ready\n", ("[photodiode.1] ready_line", "is missing")),
        (HAT + "[photodiode.1]\npace = smoothed\n", ("a ads1115 cannot be read so",)),
        (HAT + "[photodiode.1]\npace = pilot\n[photodiode.2]\npace = pilot\n", ("both need pace = host",)),
        (HAT + "[photodiode.1]\nconverter = 1\n", ("shares the chip at 0x48",)),
        (HAT + "[photodiode.1]\nrate_hz = 300\n", ("board.ini:4: [photodiode.1] rate_hz", "231 or less")),
        (HAT + "[photodiode.1]\nrate_hz = 900\n", ("more than conversion_hz (860 Hz)",)),
        (HAT + "[photodiode.1]\nconversion_hz = 500\n", ("none of the chip's; write 8, 16",)),
        (HAT + "[photodiode.1]\nfull_scale_v = 1\n", ("none of the chip's; write 0.256",)),
        (HAT + "[photodiode.1]\nhalf_cycle_low = 9\n", ("9 is above half_cycle_high (6)",)),
        (HAT + "[pwm.3]\ndevice = media\n", ("media is driven by [pwm.2] already",)),
        (HAT + "[pwm.3]\nkind = sysfs\n", ("needs sysfs_chip",)),
        (HAT + "[led]\nir = e\n", ("a, b, c or d",)),
        (HAT + "[led]\na =\n", ("channel a has no output",)),
        (HAT + "[i2c]\ntimeout_ms = 25\n", ("a multiple of 10",)),
        ("[profile]\nextends = model1.5\n[i2c]\nclock_hz = 50000\n", ("keeps the bus busy for 112 %",)),
        ("[profile]\nextends = xr1.5\n[photodiode.3]\nconverter = 0\n", ("0 is that of [photodiode.1] at another",)),
        ("[profile]\nextends = hat2.0\n", ("board.ini:2: [profile] extends = hat2.0", "did you mean 'hat1.0'?")),
        ("[profile]\nextends = board.ini\n", ("leads back to", "end the circle")),
        ("[led]\nchip = dac43608\naddress = 0x49\na = 0\n", ("the board has no photodiode",)),
        (HAT + "[photodiode.3]\nchip = ads1115\n", ("[photodiode.3] address", "is missing")),
        ("nonsense\n", ("board.ini:1", "has no '='")),
    ],
)  # fmt: skip
def test_a_contradiction_is_refused_with_its_place(tmp_path: pathlib.Path, text: str, words: tuple[str, ...]) -> None:
    said = refusal(tmp_path, text)
    for word in words:
        assert word in said


def test_all_problems_at_once(tmp_path: pathlib.Path) -> None:
    said = refusal(tmp_path, HAT + "[gpio]\nhall = x\nbutton = 99\n[led]\nchip = y\n")
    assert said.startswith("3 problems in the hardware profile:")


def test_unknown_names_and_files(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ProfileError, match=r"no hardware profile 'hat1\.3'; did you mean"):
        load_profile("hat1.3")
    with pytest.raises(ProfileError, match="cannot be read: No such file"):
        load_profile(str(tmp_path / "none.ini"))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_loaded_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.ini"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ProfileError):
        load_profile(str(path))


# --- choosing --------------------------------------------------------------------------------------------------------


def config(*settings: str):
    parts = [setting.partition("=") for setting in settings]
    return load_config(os.devnull, None, [("unit", name, value) for name, _, value in parts])


def test_choosing() -> None:
    assert profiles.choose(config("simulate=1")).name == "simulated"
    assert profiles.choose(config("simulate=1", "hardware=hat1.0")).name == "hat1.0"
    assert profiles.choose(config("hardware=xr1.5")).name == "xr1.5"
    with pytest.raises(ProfileError, match="simulated is no real board"):
        profiles.choose(config("hardware=simulated"))


def test_loading_stays_light() -> None:
    """At a worker's start nothing else comes with it."""
    code = (
        "import sys, stirbar.core.config as c; before = set(sys.modules)\n"
        "from stirbar.core.profiles import load_profile; load_profile('xr1.5')\n"
        "print(sorted(set(sys.modules) - before))"
    )
    path = os.pathsep.join([*sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['stirbar.core.profiles']"
