"""`$broadcast`: one message on the broker reaches every unit of the experiment it names, and nobody else."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from bridge_doubles import wait_for
from node_lab import Lab
from running import stirbar_environment


@pytest.fixture
def lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="sb") as name:
        one = Lab(Path(name))
        yield one
        one.close()


def test_a_broadcast_reaches_the_units_of_its_experiment_or_all(lab: Lab) -> None:
    left, right, other = lab.node("left", "growth"), lab.node("right", "growth"), lab.node("other", "second")
    lab.say("$broadcast/growth/stirring/target_rpm/set", "400")
    lab.say("$broadcast/second/stirring/target_rpm/set", "600")
    lab.say("$broadcast/third/stirring/target_rpm/set", "999")
    lab.say("$broadcast/$experiment/stirring/$state/set", "sleeping")  # last: what went before is through then
    wait_for(lambda: all(("stop", "stirring") in node.done() for node in lab.nodes), 10, "the last of them at all")
    assert left.done() == right.done() == [("set", "stirring", 400.0), ("stop", "stirring")]
    assert other.done() == [("set", "stirring", 600.0), ("stop", "stirring")]
    assert [node.relay.counters()["ignored"] for node in lab.nodes] == [2, 2, 2], "those for other experiments"


def test_a_retained_broadcast_is_done_by_nobody_who_comes_later(lab: Lab) -> None:
    lab.say("$broadcast/$experiment/stirring/target_rpm/set", "1500", retain=True)
    node = lab.node("late", "growth")
    lab.say("$broadcast/$experiment/stirring/$state/set", "ready")
    wait_for(lambda: bool(node.done()), 10, "one that is not retained")
    assert node.done() == [("start", "stirring")]


def test_a_unit_out_of_use_does_not_follow(lab: Lab) -> None:
    """Its bridge does not even connect."""
    words = [f"unit.data_directory={lab.place}/d", "unit.name=spare", f"mqtt.broker_port={lab.broker.port}"]
    config = lab.place / "config.ini"
    config.write_text("[cluster.inventory]\nspare = 0\n")
    done = subprocess.run(
        [sys.executable, "-m", "stirbar.core.cli", "bridge", "--config", str(config)]
        + [part for word in words for part in ("--set", word)],
        env=stirbar_environment(), capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 78 and "unit 'spare' is out of use" in done.stderr
