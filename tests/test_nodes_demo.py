"""Work over real nodes: workers, bridges, broker and leader as processes, driven by what a person types."""

from __future__ import annotations

import csv
import os
import signal

import pytest
from demo_process import Demo, wait_for
from stirbar.core.leader_client import Leader
from stirbar.web import experiment_command, nodes_command


class Nodes:
    """Three simulated units, and the two commands of a person at the leader's machine."""

    def __init__(self, directory) -> None:
        self.capsys = None  # of the test that runs
        self.directory = directory
        self.demo = Demo(
            directory, "--workers", 3, "--no-browser",
            "--set", f"bridge.config.reboot_command=touch {directory}/rebooted",
            "--set", "bridge.config.journal_command=echo the journal",
        )  # fmt: skip
        self.demo.wait_for_link()
        self.leader = Leader(self.demo.address, token=self.demo.token)
        self.options = ["--set", f"leader.config.data_directory={directory}/leader"]

    def run(self, main, *words, status=0) -> str:
        self.capsys.readouterr()
        assert main([*words, *self.options]) == status, self.capsys.readouterr()
        out = self.capsys.readouterr()
        return out.out + out.err

    def cluster(self, *words, status=0) -> str:
        return self.run(nodes_command.main, *words, status=status)

    def experiment(self, *words, status=0) -> str:
        return self.run(experiment_command.main, *words, status=status)

    def signal(self, unit, what) -> None:
        """To worker and bridge of a unit: the rest of the machine does not notice."""
        for name, pid in self.demo.pids().items():
            if name.endswith((f" {unit}", f"-{unit}")):
                os.kill(pid, what)

    def is_set(self, unit, job, setting, value) -> bool:
        settings = {(one["job"], one["setting"]): one["value"] for one in self.leader.unit(unit)["settings"]}
        return settings.get((job, setting)) == value

    def close(self) -> None:
        self.leader.close()
        self.demo.close()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    one = Nodes(tmp_path_factory.mktemp("nodes"))
    yield one
    one.close()


@pytest.fixture
def nodes(demo, capsys):
    demo.capsys = capsys
    return demo


def test_one_experiment_on_two_units_and_a_spare_for_one_that_fails(nodes, tmp_path):
    nodes.cluster("tag", "unit1", "pair")
    assert nodes.cluster("tag", "unit2", "pair", "other").split() == ["other", "pair"]
    assert "unit2 is in 'run 1'" in nodes.experiment("create", "run 1", "--tag", "pair")
    nodes.cluster("label", "unit1", "left fermenter")
    nodes.experiment("remove", "demo", "--units", "unit3")

    # one command to both
    nodes.experiment("command", "run 1", "start stirring")
    said = nodes.experiment("command", "run 1", "set stirring target_rpm 420")
    assert "left fermenter" in said and said.count("420") == 2 and "unit3" not in said
    assert "9999" in nodes.experiment("command", "run 1", "set", "stirring", "target_rpm", "9999", status=1)

    # one fails, as without power: its connection stays open
    wait_for(lambda: nodes.is_set("unit1", "stirring", "target_rpm", 420.0))
    wait_for(lambda: nodes.leader.unit("unit1")["status"].get("experiment") == "run 1")
    nodes.signal("unit1", signal.SIGSTOP)
    wait_for(lambda: nodes.leader.unit("unit1")["state"] == "lost")
    said = nodes.experiment("command", "run 1", "start stirring", status=1)
    assert "refused: the unit is lost" in said and "1 of 2 units did not do it" in said

    said = nodes.experiment("replace", "run 1", "unit1", "unit3")
    assert "'unit3' has taken the place of 'unit1' in 'run 1', as 'left fermenter'; its pumps rest" in said
    spare = nodes.leader.unit("unit3")
    assert (spare["experiment"], spare["label"], spare["tags"]) == ("run 1", "left fermenter", ["pair"])
    assert spare["jobs"]["stirring"] == "ready"
    wait_for(lambda: nodes.is_set("unit3", "stirring", "target_rpm", 420.0))
    assert "already" in nodes.experiment("replace", "run 1", "unit2", "unit3", status=1)

    # when the failed one comes back it stops by itself, and measures for nobody
    nodes.signal("unit1", signal.SIGCONT)
    wait_for(lambda: nodes.leader.unit("unit1")["state"] == "online")
    stopped = {"stirring": "disconnected", "od_reading": "disconnected"}
    wait_for(lambda: stopped.items() <= nodes.leader.unit("unit1")["status"]["jobs"].items())
    wait_for(lambda: nodes.leader.unit("unit1")["status"]["experiment"] == "$no_experiment_present")
    wait_for(lambda: any(event["code"] == "unit_stood_down" for event in nodes.leader.events("unit1")))

    # what it gave, of both
    wait_for(lambda: nodes.leader.readings("od2", unit="unit3", points=10))
    nodes.experiment("results", "run 1", "--out", str(tmp_path / "out"))
    tables = {path.stem: list(csv.DictReader(path.open())) for path in (tmp_path / "out").glob("*.csv")}
    assert set(tables) == {"readings", "events", "doses", "gaps", "assignments"}
    assert {row["pioreactor_unit"] for row in tables["readings"]} == {"unit1", "unit2", "unit3"}
    held = [(row["pioreactor_unit"], row["until"] == "") for row in tables["assignments"]]
    assert held == [("unit1", False), ("unit2", True), ("unit3", True)]
    assert [row for row in tables["events"] if row["code"] == "unit_replaced"]
    assert "run 1" in nodes.cluster("assignments", "--unit", "unit1")


def test_what_a_person_sees_of_the_computers(nodes):
    assert "no unit has the tag" in nodes.cluster("status", "--tag", "nowhere", status=1)
    said = nodes.cluster("status")
    assert said.count("online") == 3 and "od_reading" in said
    wait_for(lambda: nodes.leader.vitals("unit1"))
    said = nodes.cluster("vitals", "unit1")
    assert "disk_usage_percent" in said and "spool_bytes" in said
    assert nodes.cluster("logs", "unit2", "--journal", "-n", "7").strip() == "the journal --lines=7"
    wait_for(lambda: "info" in nodes.cluster("logs", "unit2"))
    assert not nodes.cluster("logs", "unit2", "--level", "error")
    # a simulated vial has no LED
    assert "this unit has no LED to blink" in nodes.cluster("identify", "unit1", status=1)
    assert "unit1: reboot begins" in nodes.cluster("reboot", "unit1") and (nodes.directory / "rebooted").exists()
    assert "there is no unit 'unit9'" in nodes.cluster("shutdown", "unit9", status=1)
    wait_for(lambda: "reboot asked for by operator" in nodes.cluster("logs", "unit1"))
