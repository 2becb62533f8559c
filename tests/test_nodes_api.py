"""The routes of docs/nodes.md over a real broker, ingest and store: what they give, refuse, and to whom."""

from __future__ import annotations

import json
import time

import pytest
from stirbar.core.leader_client import Leader, LeaderRefused
from stirbar.core.records import KIND_JSON, STREAM_IDS
from stirbar.web.tokens import Tokens

from .test_api import Cluster, refused, wait_for

VITALS = STREAM_IDS["vitals"]


def wait_until_online(client, units):
    """Not heard of for five seconds, they would be lost."""

    def are_online():
        for unit in units:
            unit.status()
        return [one["state"] for one in client.units()] == ["online", "online"]

    wait_for(are_online)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("leader"))
    units = [cluster.unit("vial1"), cluster.unit("vial3")]
    with cluster.client() as client:
        wait_until_online(client, units)
        for name in ("growth", "other"):
            client.create_experiment(name)
        for unit in ("vial1", "vial3"):
            client.assign(unit, "growth")
        cluster.units = units
        yield cluster
    for unit in units:
        unit.close()
    cluster.stop()


@pytest.fixture
def client(cluster):
    with cluster.client() as client:
        wait_until_online(client, cluster.units)
        yield client


def test_labels_and_tags_are_beside_a_units_name(client):
    client.label("vial1", "growth", "left fermenter")
    assert client.tag("vial1", ["pair", "gpu", "pair"]) == ["gpu", "pair"]
    assert [(one["unit"], one["label"], one["tags"]) for one in client.units()] == [
        ("vial1", "left fermenter", ["gpu", "pair"]), ("vial3", None, []),
    ]  # fmt: skip
    assert client.unit("vial1")["label"] == "left fermenter"
    assert client.assignments(unit="vial1")[0]["label"] == "left fermenter"
    place = "/api/experiments/growth/units/vial3/label"
    assert refused(client, "PUT", place, {"label": "left fermenter"})[0] == 409
    assert refused(client, "PUT", place, {})[0] == 400
    assert refused(client, "PUT", "/api/experiments/none/units/vial3/label", {"label": "x"})[0] == 404
    assert refused(client, "PUT", "/api/units/vial3/tags", {"tags": ["two words"]})[0] == 409
    assert refused(client, "PUT", "/api/units/vial3/tags", {"tags": [1]}) == (400, "tags")
    assert refused(client, "PUT", "/api/units/vial3/tags", {"tags": "gpu"}) == (400, "tags")


def test_vitals_come_by_the_stored_path(cluster, client):
    unit = cluster.units[0]
    now_ns = time.time_ns()
    body = {"monotonic_ns": 10**15, "wall_ns": now_ns, "cpu_usage_percent": 12.5, "wifi_signal_dbm": -61, "odd": "x"}
    packed = unit.header(KIND_JSON, VITALS, 0, 1, 0) + json.dumps(body).encode()
    for _ in range(2):
        unit.client.publish(f"{unit.base}/store/vitals", packed, 1)
    lines = wait_for(lambda: client.vitals("vial1", points=10))
    assert [(line["name"], line["unit_of_value"], line["mean"]) for line in lines if "clock" not in line["name"]] == [
        ("cpu_usage_percent", "%", [12.5]), ("wifi_signal_dbm", "dBm", [-61.0]),
    ]  # fmt: skip
    assert client.vitals("vial1", start=1.0, end=2.0) == []
    assert refused(client, "GET", "/api/units/vial1/vitals?from=5&to=2")[0] == 400


def test_one_command_to_all_says_what_each_answered(cluster, client):
    said = client.command_all("growth", "set", job="stirring", setting="target_rpm", value=300)
    assert (said["done"], said["failed"]) == (2, 0) and all(one["result"]["value"] == 300 for one in said["units"])
    said = client.command_all("growth", "set", job="stirring", setting="target_rpm", value=3000)
    assert (said["done"], said["failed"]) == (0, 2)
    assert {one["error"]["message"] for one in said["units"]} == {"target_rpm out of range"}
    place = "/api/experiments/other/command"
    assert refused(client, "POST", place, {"command": "start", "job": "stirring"}) == (409, "experiment")
    assert refused(client, "POST", "/api/experiments/growth/command", {"command": "jump"}) == (400, "command")
    assert refused(client, "POST", "/api/experiments/growth/command", {"command": "start", "pump": "a"}) == (
        400,
        "pump",
    )
    results = [entry["result"] for entry in client._get("/api/audit?limit=20")]
    assert "refused by 2 of 2 units: vial1, vial3" in results, results


def test_a_spare_has_to_be_free_and_there(client):
    place = "/api/experiments/growth/replace"
    assert refused(client, "POST", place, {"failed": "vial1"}) == (400, "spare")
    assert refused(client, "POST", place, {"failed": "vial1", "spare": "vial3"})[0] == 409
    assert refused(client, "POST", "/api/experiments/other/replace", {"failed": "vial1", "spare": "vial3"})[0] == 409
    assert [one["experiment"] for one in client.units()] == ["growth", "growth"]


def test_who_may_do_what(cluster):
    tokens = {scope: Tokens(cluster.directory).create(f"{scope}s", scope) for scope in ("read", "control", "admin")}
    with Leader(cluster.address, token=tokens["read"]) as reader:
        assert reader.assignments() and reader.vitals("vial3") == []
        for work in (
            lambda: reader.journal("vial1"),
            lambda: reader.tag("vial1", []),
            lambda: reader.power("vial1", "reboot"),
        ):
            with pytest.raises(LeaderRefused) as caught:
                work()
            assert caught.value.status == 403
    with (
        Leader(cluster.address, token=tokens["control"]) as controller,
        pytest.raises(LeaderRefused, match="needs admin"),
    ):
        controller.power("vial1", "shutdown")
    with Leader(cluster.address, token=tokens["admin"]) as admin:
        assert refused(admin, "POST", "/api/units/vial1/power", {"action": "explode"}) == (400, "action")
        admin.power("vial1", "reboot", force=True)
    asked = cluster.units[0].commands[-1]
    assert (asked["command"], asked["force"]) == ("reboot", True)


def test_the_results_are_a_zip_by_name(cluster, client, tmp_path):
    assert client.results("growth", tmp_path / "all.zip") > 200
    assert (tmp_path / "all.zip").read_bytes()[:2] == b"PK"
    assert refused(client, "GET", "/api/experiments/none/results.zip")[0] == 404
