"""Configuration from leader to unit with real processes: taken, refused, heard late, repaired; units out of use."""

from __future__ import annotations

import http.client
import json
import pathlib
import re
import shutil
import sqlite3
import ssl
import tempfile

import pytest
from cluster_processes import LeaderMachine, Machine, new_unit
from mosquitto import find_mosquitto
from running import wait_for
from stirbar import Leader, Worker
from stirbar.core import desired
from stirbar.core.config import load_config
from stirbar.core.leader_client import LeaderRefused
from stirbar.web.tokens import Tokens

pytest.importorskip("cryptography", reason="the leader's certificates")

RPM = ("stirring.config", "initial_target_rpm")


def text(rpm: object) -> str:
    return f"[stirring.config]\ninitial_target_rpm = {rpm}\n"


class Cluster:
    """A leader, and the unit vial1 elsewhere with worker and bridge."""

    def __init__(self, place: pathlib.Path) -> None:
        self.leader = LeaderMachine(place / "leader")
        own = self.leader.config.read_text()
        self.leader.config.write_text(own.replace("[leader.config]\n", "[leader.config]\nstate_check_minutes = 0.1\n"))
        self.leader.run()
        self.token = Tokens(self.leader.data / "leader").create("test", "admin")
        self.unit: Machine = new_unit(place, "vial1")
        self.unit.cluster("join", self.leader.cluster("invite"))
        self.unit.start("worker")
        self.unit.start("bridge")
        self.address = f"ipc://{self.unit.directory}/r/vial1"
        self.run_id()

    def close(self) -> None:
        assert "state is not known" not in self.leader.log("leader").read_text()
        for machine in (self.unit, self.leader):
            machine.close()

    def run(self, *words: str, given: str = "") -> tuple[int, str]:
        """`stirbar cluster`: status, and what it said on both outputs."""
        done = self.leader.command("cluster", *words, text=given)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout + done.stderr

    def push(self, given: str, *words: str) -> tuple[int, str]:
        return self.run("config", "push", "-", *words, given=given)

    def api(self, method: str, path: str, **fields: object) -> tuple[int, object, http.client.HTTPMessage]:
        context = ssl.create_default_context(cafile=self.leader.data / "leader" / "tls" / "ca.pem")
        connection = http.client.HTTPSConnection("127.0.0.1", self.leader.page_port, context=context, timeout=10)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        connection.request(method, path, None if method == "GET" else json.dumps(fields), headers)
        response = connection.getresponse()
        body = json.loads(response.read())
        connection.close()
        return response.status, body, response.headers

    def ask(self, command: str) -> dict:
        with Worker(self.address, timeout_s=5.0) as worker:
            return worker.command(command)

    def client(self) -> Leader:
        address = f"https://127.0.0.1:{self.leader.page_port}"
        return Leader(address, token=self.token, ca_file=self.leader.data / "leader" / "tls" / "ca.pem")

    def run_id(self, other_than: str = "") -> str:
        """The run of the worker, when there is one (another one)."""

        def found() -> str:
            try:
                run = str(self.ask("describe")["run_id"])
            except (ConnectionError, TimeoutError):
                return ""
            return "" if run == other_than else run

        return wait_for(found, 20.0, f"a worker; {self.unit.log('worker').read_text()}")

    def state(self) -> dict:
        (one,) = json.loads(self.leader.command("cluster", "state", "--json").stdout)
        return one

    def drift(self) -> list[str]:
        return [entry["what"] for entry in self.state()["drift"]]

    def events(self, code: str) -> list[str]:
        status, found, _ = self.api("GET", "/api/events?unit=vial1&limit=1000")
        assert status == 200
        return [one["message"] for one in found if one["code"] == code]

    def kept(self) -> desired.Desired:
        return desired.read(str(self.unit.data / "cluster" / "desired.json"))

    def head(self) -> int:
        return json.loads(self.run("config", "history", "--json")[1])[0]["version"]


@pytest.fixture(scope="module")
def cluster():
    find_mosquitto()
    place = pathlib.Path(tempfile.mkdtemp(prefix="sd", dir="/tmp"))  # the paths of sockets are limited
    one = Cluster(place)
    yield one
    one.close()
    shutil.rmtree(place, ignore_errors=True)


def test_a_pushed_text_is_taken_and_in_force_when_the_worker_begins_anew(cluster):
    assert cluster.run("state") == (0, "vial1: online, configuration version 0 of 0, as it should be\n")
    before = cluster.run_id()
    status, said = cluster.push(text(321))
    assert status == 3 and "saved as version 1" in said and "vial1: online, configuration version 1 of 1" in said
    assert "restart: its worker runs by the configuration that it had before" in said
    assert load_config(str(cluster.unit.config)).get(*RPM) == 321 and not cluster.kept().texts[desired.UNIT]
    assert cluster.ask("config")["config"][RPM[0]][RPM[1]] == 500 and cluster.run_id() == before  # nobody restarts it
    status, said = cluster.run("repair", "vial1")
    assert status == 3 and cluster.run_id() == before
    assert "would do nothing without --restart" in cluster.run("repair", "vial1", "--dry-run")[1]
    status, said = cluster.run("repair", "vial1", "--restart")
    assert (status, "vial1: restarted" in said) == (0, True), said
    assert cluster.run_id(before) != before and cluster.ask("config")["config"][RPM[0]][RPM[1]] == 321
    assert cluster.ask("describe")["desired_digest"] == cluster.kept().digest()
    assert cluster.unit.processes["worker"].poll() is None  # the same process, for systemd


def test_a_units_own_text_is_above_the_shared_one(cluster):
    assert "saved as version 2" in cluster.push(text(345), "--unit", "vial1")[1]
    config = load_config(str(cluster.unit.config))
    assert config.get(*RPM) == 345 and config.get("unit", "name") == "vial1"
    assert [cluster.run("config", "show", *of)[1] for of in ([], ["--unit", "vial1"])] == [text(321), text(345)]
    assert "there is no unit 'nobody'" in cluster.push(text(1), "--unit", "nobody")[1]
    assert cluster.push("", "--unit", "vial1")[0] == 0  # as the worker runs, and so no restart is needed
    assert load_config(str(cluster.unit.config)).get(*RPM) == 321


def test_what_is_not_valid_is_refused_here_and_nothing_is_saved(cluster):
    before = cluster.head()
    status, said = cluster.push("[stirring.config]\n\ninitial_target_rpm = 99999\n")
    assert status == 1 and "leader's config.ini:3: [stirring.config] initial_target_rpm = 99999: is above the" in said
    status, said = cluster.push("[mqtt]\npassword = geheim\n")
    assert status == 1 and "secrets are never distributed" in said and "geheim" not in said
    assert cluster.head() == before and cluster.run("config", "show")[1] == text(321)


def test_a_unit_refuses_what_its_own_files_do_not_allow_and_says_where(cluster):
    file = cluster.unit.directory / "unit_config.ini"
    own = file.read_text()
    file.write_text(own + "\n[stirring.config]\nmaximum_rpm = 600\n")
    try:
        status, said = cluster.push(text(700))
        assert status == 3 and "it refuses version" in said and "leader's config.ini:2" in said
        assert "initial_target_rpm (700 rpm) is above maximum_rpm (600 rpm)" in said
        assert cluster.kept().texts[desired.SHARED] == text(321)
        assert cluster.state()["refused"]["version"] == cluster.head()
        wait_for(lambda: any("it refuses version" in one for one in cluster.events("drift")), 15.0, "an event")
    finally:
        file.write_text(own)
    # its files are corrected there, and it is told again what it has refused
    status, said = cluster.run("repair", "vial1")
    assert status == 3 and "refuses" not in said and cluster.kept().texts[desired.SHARED] == text(700)
    status, said = cluster.push(text(400), "--restart")
    assert status == 0, said
    wait_for(lambda: cluster.events("drift_over"), 15.0, "the end of it")


def test_a_text_is_edited_and_a_bad_one_is_kept_as_a_draft(cluster, monkeypatch):
    monkeypatch.setenv("EDITOR", "sed -i s/400/405/")
    status, said = cluster.run("config", "edit")
    assert status == 3 and "saved as version" in said and cluster.run("config", "show")[1] == text(405)
    assert "nothing was changed" in cluster.run("config", "edit")[1]
    monkeypatch.setenv("EDITOR", "sed -i s/405/99999/")
    status, said = cluster.run("config", "edit")
    draft = pathlib.Path(re.search(r"your text is in (\S+):", said)[1])
    assert status == 1 and "above the highest allowed" in said and draft.read_text() == text(99999)
    draft.unlink()
    monkeypatch.setenv("EDITOR", "false")
    assert "nothing was changed" in cluster.run("config", "edit")[1]
    assert cluster.run("config", "show")[1] == text(405)


def test_the_bridge_begins_anew_for_its_own_values_and_the_worker_does_not(cluster):
    log, bridge = cluster.unit.log("bridge"), cluster.unit.processes["bridge"]
    before, run = log.read_text().count("connected to the broker"), cluster.run_id()
    cluster.push(text(400) + "[bridge.config]\nblock_interval_s = 2\n")
    wait_for(lambda: log.read_text().count("connected to the broker") > before, 15.0, "it is back")
    assert bridge.poll() is None and cluster.run_id() == run
    assert wait_for(lambda: cluster.drift() == ["restart"], 15.0, "it says the same as before")


def test_an_offline_unit_hears_the_highest_version_when_it_is_back(cluster):
    cluster.unit.stop("bridge")
    wait_for(lambda: cluster.state()["state"] == "offline", 10.0, "it is known to be away")
    for rpm in (401, 402, 403):
        status, said = cluster.push(text(rpm))
        assert status == 3 and "it is offline, and told when it is back" in said
    assert cluster.kept().texts[desired.SHARED].startswith(text(400))
    # the leader is away as well: the broker kept nothing in memory alone
    cluster.leader.stop("leader")
    cluster.leader.log("leader").unlink()
    cluster.leader.run()
    cluster.unit.start("bridge")
    wait_for(lambda: cluster.kept().texts[desired.SHARED] == text(403), 20.0, "the newest text")
    assert cluster.kept().version == cluster.head()
    assert wait_for(lambda: cluster.drift() == ["restart"] or None, 10.0, "it is to begin anew")
    assert cluster.run("repair", "--all", "--restart")[0] == 0


def test_of_two_editors_one_saves_and_the_other_is_told(cluster):
    status, begun, headers = cluster.api("GET", "/api/config")
    assert status == 200 and begun["text"] == text(403) and headers["ETag"] == f'"{begun["version"]}"'
    status, first, _ = cluster.api("PUT", "/api/config", text=text(410), version=begun["version"])
    assert (status, first["who"]) == (200, "test at 127.0.0.1")
    status, second, _ = cluster.api("PUT", "/api/config", text=text(420), version=begun["version"])
    assert (status, second["field"]) == (409, "version") and "saved meanwhile by test at" in second["error"]
    assert cluster.push(text(430), "--expected", str(begun["version"]))[0] == 1
    assert cluster.api("GET", "/api/config")[1]["text"] == text(410)
    status, refused, _ = cluster.api("PUT", "/api/config", text=text(99999), version=first["version"])
    assert status == 422 and refused["error"].startswith("leader's config.ini:2: ")
    assert cluster.api("POST", "/api/config/check", text=text(99999))[1]["problems"] == [refused["error"]]
    assert cluster.api("PUT", "/api/config", text=text(1))[0] == 400
    assert cluster.api("GET", "/api/config?unit=nobody")[0] == cluster.api("GET", "/api/config?version=999")[0] == 404


def test_history_difference_and_an_earlier_version_again(cluster):
    _, versions, _ = cluster.api("GET", "/api/config/history")
    newest, before = versions[0]["version"], versions[1]["version"]
    assert [one["version"] for one in versions] == sorted((one["version"] for one in versions), reverse=True)
    _, found, _ = cluster.api("GET", "/api/config/diff")
    assert (found["from"], found["to"]) == (before, newest)
    assert "-initial_target_rpm = 403\n+initial_target_rpm = 410\n" in found["diff"]
    assert cluster.run("config", "diff") == (0, found["diff"])
    status, back, _ = cluster.api("POST", "/api/config/restore", version=before, expected=newest)
    assert status == 200 and back["text"] == text(403) and back["version"] > newest
    assert cluster.api("POST", "/api/config/restore", version=newest, expected=newest)[0] == 409
    assert cluster.run("config", "restore", str(newest))[0] in (0, 3)
    assert cluster.run("config", "show")[1] == text(410)
    wait_for(lambda: cluster.kept().texts[desired.SHARED] == text(410), 10.0, "the unit has it")
    with cluster.client() as client:
        assert client.repair("vial1", restart=True)["restarted"] == {"vial1": "restarted"}
        wait_for(lambda: not client.state()[0]["drift"], 15.0, "all is as it should be")
        assert client.state("vial1")[0]["actual"]["version"] == client.config()["version"]
        assert client.config("vial1", 0)["text"] == ""
        with pytest.raises(LeaderRefused, match="above the highest allowed"):
            client.save_config(text(99999), client.config()["version"])


def test_version_and_plugins_that_differ_are_found_and_said(cluster):
    asked = "[desired]\nstirbar_version = 99.1\nplugins = growth==1.2\n"
    status, said = cluster.push(text(410) + asked, "--restart")
    assert status == 3 and "and 99.1 is wanted" in said and "growth==1.2 are wanted" in said
    assert said.count("`stirbar cluster bootstrap ") == 2
    status, found, _ = cluster.api("GET", "/api/cluster/state?unit=vial1")
    assert status == 200 and [one["what"] for one in found[0]["drift"]] == ["version", "plugins"]
    assert found[0]["actual"]["board"] == "simulated" and found[0]["actual"]["build_id"]
    assert "would do nothing: `stirbar cluster bootstrap" in cluster.run("repair", "--all", "--dry-run")[1]
    assert cluster.push(text(410), "--restart")[0] == 0


def test_a_history_that_was_lost_here_is_overtaken(cluster):
    """A leader's store was restored from a backup, and the unit holds a version that it does not know any more."""
    kept = cluster.kept()
    cluster.push(text(411))
    wait_for(lambda: cluster.kept().version > kept.version, 10.0, "the unit has a newer one")
    ahead = cluster.kept().version
    store = sqlite3.connect(cluster.leader.data / "leader" / "stirbar.sqlite", timeout=5)
    with store:
        store.execute("DELETE FROM config_version WHERE version > ?", (kept.version,))
    store.close()
    status, said = cluster.run("state")
    assert status == 3 and "numbers ours above it" in said
    assert cluster.run("repair", "vial1", "--restart")[0] == 0
    assert cluster.kept().version > ahead and cluster.kept().texts[desired.SHARED] == text(410)


def test_a_text_that_no_longer_fits_leaves_a_way_to_correct_it(cluster):
    """Here on a machine that leads as well: neither the leader nor its commands need the text."""
    place = cluster.leader.data / "cluster" / "desired.json"
    desired.keep(str(place), desired.Desired(1, 1, True, {desired.SHARED: text(99999), desired.UNIT: ""}))
    assert cluster.leader.command("config", "check").returncode == 1
    assert cluster.run("state")[0] == 0
    assert "state is not known" not in cluster.leader.log("leader").read_text()
    cluster.leader.stop("leader")
    cluster.leader.log("leader").unlink()
    cluster.leader.run()
    place.unlink()


def test_out_of_use_reaches_a_unit_elsewhere_and_so_does_its_end(cluster):
    before = cluster.run_id()
    _, said = cluster.run("deactivate", "vial1")
    assert "its worker stops within seconds" in said
    worker = cluster.unit.processes["worker"]
    wait_for(
        lambda: "is out of use by its leader's inventory" in cluster.unit.log("worker").read_text(), 15.0, "it rests"
    )
    with pytest.raises((ConnectionError, TimeoutError)), Worker(cluster.address, timeout_s=1.0) as client:
        client.command("describe")
    status, said = cluster.run("state")
    assert status == 0 and "vial1: online, out of use" in said
    assert worker.poll() is None and cluster.unit.processes["bridge"].poll() is None  # both stay, to hear the opposite
    cluster.unit.stop("worker")  # a worker that is started now rests, too, and ends when it is asked to
    cluster.unit.log("worker").unlink()
    cluster.unit.start("worker")
    wait_for(lambda: "so nothing runs" in cluster.unit.log("worker").read_text(), 15.0, "it rests again")
    cluster.run("activate", "vial1")
    assert cluster.run_id(before) != before
    wait_for(lambda: not cluster.drift(), 15.0, "all is as it should be")


def test_no_secret_is_in_what_is_distributed_kept_or_shown(cluster):
    secrets = [(cluster.unit.data / "cluster" / "password").read_text().strip()]
    secrets += [(cluster.leader.data / "leader" / "credentials" / "leader.password").read_text().strip(), cluster.token]
    shown = cluster.run("state", "--json")[1] + cluster.run("config", "show")[1] + json.dumps(cluster.kept().as_dict())
    shown += (cluster.leader.data / "leader" / "state.json").read_text() + json.dumps(cluster.ask("describe"))
    shown += "".join(machine.log(name).read_text() for machine, name in (
        (cluster.leader, "leader"), (cluster.unit, "bridge"), (cluster.unit, "worker"),
    ))  # fmt: skip
    assert "initial_target_rpm" in shown and not [one for one in secrets if one in shown]
    for path in (cluster.leader.data / "leader" / "state.json", cluster.unit.data / "cluster" / "desired.json"):
        assert path.exists() and (path.parent.stat().st_mode & 0o077) == 0
