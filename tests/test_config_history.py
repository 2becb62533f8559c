"""The history of the configuration that a leader distributes: on both stores, with several editors, in backups."""

from __future__ import annotations

import itertools
import json
import pathlib
import sqlite3
import threading

import pytest
from postgres import fresh, server
from stirbar.bridge import sqlite_copy
from stirbar.bridge.config_history import EVERY_UNIT, Changed, ConfigHistory, Refused, check, difference, texts
from stirbar.bridge.store import StoreError, StoreUnavailable, open_store
from stirbar.core import desired
from units import identity

UNIT, OTHER = identity(1), identity(2)
NUMBERS = itertools.count()
SLOW = "[stirring.config]\ninitial_target_rpm = 300\n"
FAST = "[stirring.config]\ninitial_target_rpm = 700\n"


@pytest.fixture(scope="module")
def postgres():
    with server() as address:
        yield address


@pytest.fixture(params=["sqlite", "postgres"])
def history(request, tmp_path):
    """That of a store whose leader runs and writes."""
    if request.param == "sqlite":
        place = tmp_path / "running.sqlite"
    else:
        place = fresh(request.getfixturevalue("postgres"), f"h{next(NUMBERS)}")
    store = open_store(place)
    store.upsert_unit(UNIT, "vial1", {})
    store.commit()
    found = ConfigHistory(place)
    found.place = place
    yield found
    store.close()


def test_versions_count_over_all_texts_and_each_is_kept(history):
    assert history.head(EVERY_UNIT).number == 0 and history.heads() == {}
    first = history.save(EVERY_UNIT, SLOW, "anna", 0)
    second = history.save(UNIT, FAST, "ben", 0)
    third = history.save(EVERY_UNIT, FAST, "carl", first.number)
    assert [first.number, second.number, third.number] == [1, 2, 3]
    assert [(one.number, one.saved_by, one.text) for one in history.versions(EVERY_UNIT)] == [
        (3, "carl", FAST), (1, "anna", SLOW),
    ]  # fmt: skip
    assert history.version(EVERY_UNIT, 1).text == SLOW and history.version(UNIT, 0).text == ""
    assert third.digest == second.digest != first.digest
    heads = history.heads()
    assert texts(UNIT, heads) == {desired.SHARED: FAST, desired.UNIT: FAST}
    assert texts(OTHER, heads) == {desired.SHARED: FAST, desired.UNIT: ""}
    assert history.save(EVERY_UNIT, FAST, "dora", 3).number == 3  # the same text is no new version
    assert history.save(EVERY_UNIT, FAST, "dora", 3, at_least=12).number == 12
    assert history.units() == {"vial1": UNIT}
    with pytest.raises(StoreError, match="no version 2 of this"):
        history.version(EVERY_UNIT, 2)


def test_the_difference_of_two_versions(history):
    one, two = history.save(UNIT, SLOW, "anna", 0), history.save(UNIT, FAST + "pwm_hz = 200\n", "anna", 1)
    assert difference(one, two).splitlines() == [
        "--- version 1", "+++ version 2", "@@ -1,2 +1,3 @@", " [stirring.config]",
        "-initial_target_rpm = 300", "+initial_target_rpm = 700", "+pwm_hz = 200",
    ]  # fmt: skip
    assert difference(two, two) == ""


def test_of_many_editors_at_once_one_saves_and_the_others_hear_whose_it_is(history):
    saved, refused = [], []
    together = threading.Barrier(6)

    def edit(number: int) -> None:
        together.wait()
        text = f"[stirring.config]\ninitial_target_rpm = {300 + number}\n"
        try:
            saved.append(history.save(EVERY_UNIT, text, f"editor{number}", 0))
        except Changed as error:
            refused.append(error.version.saved_by)

    editors = [threading.Thread(target=edit, args=(number,)) for number in range(6)]
    for one in editors:
        one.start()
    for one in editors:
        one.join()
    (winner,) = saved
    assert refused == [winner.saved_by] * 5 and [one.text for one in history.versions(EVERY_UNIT)] == [winner.text]
    # different texts are not each other's: each gets a number of its own
    together = threading.Barrier(4)
    numbers = []

    def edit_of_a_unit(number: int) -> None:
        together.wait()
        numbers.append(history.save(identity(10 + number), SLOW, "x", 0).number)

    editors = [threading.Thread(target=edit_of_a_unit, args=(number,)) for number in range(4)]
    for one in editors:
        one.start()
    for one in editors:
        one.join()
    assert sorted(numbers) == [2, 3, 4, 5]


REFUSED = [
    ("[stirring.config]\n\ninitial_target_rpm = 99999\n",
     "config.ini:3: [stirring.config] initial_target_rpm = 99999: is above"
     " the highest allowed; write 60 to 2000 rpm"),
    ("[stirring.config]\ninitial_target = 3\n", "config.ini:2: [stirring.config] initial_target = 3: there is no key"),
    ("[unit]\nname = x\n", "config.ini:2: [unit] name may not be distributed: a unit's name is its own"),
    ("[unit]\nsimulate = 1\n", "config.ini:2: [unit] simulate may not be distributed: whether a machine drives"),
    ("[bridge.config]\nreboot_command = rm\n", "[bridge.config] reboot_command may not be distributed: which programs"),
    ("[mqtt]\nbroker_address = elsewhere\n", "how a machine reaches its leader is its own"),
    ("[cluster.topology]\nleader_address = elsewhere\n", "[cluster.topology] leader_address may not be distributed"),
    ("[cluster.inventory]\nvial1 = 0\n", "`stirbar cluster activate` and `deactivate`"),
    ("[leader.config]\ndatabase = postgresql://me:geheim@host/x\n", "[leader.config] database may not be distributed"),
    ("[local_access_point]\npassphrase = geheim\n", "[local_access_point] passphrase may not be distributed: secrets"),
    ("[mqtt]\npassword = geheim\n", "secrets are never distributed"),
    ("no section = 1\n", "config.ini:1: 'no section' comes before the first section"),
    ("#" * 50_000, "longer than 48000 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "why"), REFUSED)
def test_what_may_not_be_distributed_is_refused_with_its_line(sqlite_history, text, why):
    for unit_id in (EVERY_UNIT, UNIT):
        with pytest.raises(Refused) as caught:
            sqlite_history.save(unit_id, text, "anna", 0)
        assert why in str(caught.value) and "geheim" not in str(caught.value)
    assert sqlite_history.heads() == {}


@pytest.fixture
def sqlite_history(tmp_path):
    open_store(tmp_path / "leader.sqlite").close()
    return ConfigHistory(tmp_path / "leader.sqlite")


def test_another_leader_adopts_the_newest_texts_under_their_numbers(history, sqlite_history):
    history.save(EVERY_UNIT, SLOW, "anna", 0)
    history.save(UNIT, FAST, "ben", 0)
    history.save(EVERY_UNIT, FAST, "carl", 1)
    book = json.loads(json.dumps(history.book()))
    for _ in range(2):
        sqlite_history.adopt(book)
    found = sqlite_history.heads()
    assert {one.unit_id: (one.number, one.saved_by, one.text, one.digest) for one in found.values()} == {
        one.unit_id: (one.number, one.saved_by, one.text, one.digest) for one in history.heads().values()
    }
    assert sqlite_history.save(UNIT, SLOW, "dora", 2).number == 4


def test_a_shared_text_has_to_fit_every_units_own(sqlite_history):
    sqlite_history.save(UNIT, "[stirring.config]\nmaximum_rpm = 500\n", "anna", 0)
    with pytest.raises(Refused, match=r"initial_target_rpm \(700 rpm\) is above maximum_rpm \(500 rpm\)"):
        sqlite_history.save(EVERY_UNIT, FAST, "anna", 0)
    sqlite_history.save(EVERY_UNIT, SLOW, "anna", 0)
    assert check("[nobody]\nx = 1\n", EVERY_UNIT, {})[1][0].startswith("leader's config.ini:1: stirbar has no section")


def test_a_backup_has_the_history_and_a_restored_store_too(sqlite_history, tmp_path):
    sqlite_history.save(EVERY_UNIT, SLOW, "anna", 0)
    backup = tmp_path / "backup.sqlite"
    sqlite_copy.back_up(tmp_path / "leader.sqlite", backup)
    sqlite_history.save(EVERY_UNIT, FAST, "anna", 1)
    sqlite_copy.restore(backup, tmp_path / "leader.sqlite")
    assert [one.text for one in sqlite_history.versions(EVERY_UNIT)] == [SLOW]


def test_a_store_that_is_not_there_or_older_is_named(tmp_path):
    with pytest.raises(StoreUnavailable, match="the leader makes it"):
        ConfigHistory(tmp_path / "none.sqlite").heads()
    assert not (tmp_path / "none.sqlite").exists()
    sqlite3.connect(tmp_path / "old.sqlite").execute("CREATE TABLE unit (x)").connection.close()
    with pytest.raises(StoreUnavailable, match="no such table: config_version"):
        ConfigHistory(pathlib.Path(tmp_path / "old.sqlite")).save(UNIT, SLOW, "x", 0)
