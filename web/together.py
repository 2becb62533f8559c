"""Work over several units: one command to all of an experiment, and a spare that takes over a failed one's role."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from stirbar.bridge.dialect_payloads import DISCONNECTED
from stirbar.bridge.live import event_object
from stirbar.bridge.standdown import STOPPED
from stirbar.web.routes import caller_name

if TYPE_CHECKING:
    from stirbar.web.app import Site

    Entry = dict[str, Any]
    Reply = dict[str, Any]

AT_ONCE = 32
FOLLOW_S = 5.0  # for a spare to stamp what it measures with the experiment
FOLLOW_LOOK_S = 0.2
ONLINE = "online"
# what a spare is set to, as the failed unit last had it; pumps are not among it
SETTINGS = (
    ("od_reading", "ir_led_intensity"),
    ("stirring", "ramp_rpm_per_s"),
    ("stirring", "target_rpm_during_od_reading"),
    ("stirring", "enable_dodging_od"),
    ("stirring", "target_rpm"),
    ("temperature_automation", "target_temperature"),
    *(("leds", letter) for letter in "ABCD"),
)
THERMOSTAT = "thermostat"


def reply_of(site: Site, entry: Entry, fields: dict[str, Any], limit_s: float) -> Reply:
    """The unit's reply; a refusal in the same form when it is not there, does not answer or cannot be asked."""
    if entry["state"] != ONLINE:
        return _refusal(f"the unit is {entry['state']}", "see whether it has power, and its worker and bridge run")
    try:
        reply: Reply = site.ingest.command(bytes.fromhex(entry["unit_id"]), fields, limit_s)
    except TimeoutError:
        return _refusal(f"no answer within {limit_s:g} s", "the command has expired and will not be done later")
    except ConnectionError as error:
        return _refusal(f"not sent: {error}", "the leader reconnects to its broker: try again")
    return reply


def _refusal(message: str, remedy: str) -> Reply:
    return {"ok": False, "error": {"message": message, "field": None, "limit": None, "remedy": remedy}}


def ask_all(site: Site, entries: list[Entry], fields: dict[str, Any], limit_s: float) -> list[Reply]:
    """One command to many units at once; what each says of it, in the same order."""

    def ask(entry: Entry) -> Reply:
        reply = reply_of(site, entry, fields, limit_s)
        told: Reply = {key: reply.get(key) for key in ("ok", "result", "error") if key in reply}
        return {"unit": entry["unit"], "unit_id": entry["unit_id"], "label": entry.get("label"), **told}

    with ThreadPoolExecutor(max(1, min(AT_ONCE, len(entries)))) as pool:
        return list(pool.map(ask, entries))


def take_over(site: Site, experiment: str, failed: Entry, spare: Entry) -> dict[str, Any]:
    """Let a spare take the role of a failed unit; raises StoreError when one is not where it should be."""
    wanted = steps_of(failed)  # as last known, before anything changes
    failed_id, spare_id = bytes.fromhex(failed["unit_id"]), bytes.fromhex(spare["unit_id"])
    role = site.store.replace(experiment, failed_id, spare_id)
    site.ingest.assign(failed_id, None)
    site.ingest.assign(spare_id, experiment)
    steps = [_step({"command": "experiment", "name": experiment}, _followed(site, spare, experiment))]
    for fields in wanted:
        steps.append(_step(fields, reply_of(site, spare, fields, FOLLOW_S)))
    short = sum(not step["ok"] for step in steps)
    text = f"'{spare['unit']}' takes over from '{failed['unit']}' in '{experiment}', asked for by {caller_name()}"
    text += f"; {short} of {len(steps)} steps were refused: do them by hand" if short else ""
    event = site.store.add_event(spare_id, "warning" if short else "notice", "leader", "unit_replaced", text)
    site.live.publish("event", spare["unit"], event_object(event))
    return {"experiment": experiment, "failed": failed["unit"], "spare": spare["unit"], **role, "steps": steps}


def steps_of(failed: Entry) -> list[dict[str, Any]]:
    """The commands that make a spare what a unit was when it was last heard of: its settings, then its jobs."""
    known = {(one["job"], one["setting"]): one["value"] for one in failed.get("settings") or []}
    steps: list[dict[str, Any]] = []
    for job, setting in SETTINGS:
        value = known.get((job, setting))
        dark = job == "leds" and not value
        idle = setting == "target_temperature" and known.get((job, "automation_name")) != THERMOSTAT
        if value not in (None, "") and not dark and not idle:
            steps.append({"command": "set", "job": job, "setting": setting, "value": _told(setting, value)})
    jobs = failed.get("jobs") or {}
    ran = [job for job in STOPPED if job != "leds" and jobs.get(job, DISCONNECTED) != DISCONNECTED]
    return steps + [{"command": "start", "job": job} for job in ran]


def _told(setting: str, value: Any) -> Any:
    """The dialect has 1 and 0 for true and false."""
    return bool(value) if setting == "enable_dodging_od" else value


def _followed(site: Site, spare: Entry, experiment: str) -> Reply:
    """Whether the spare stamps what it measures with the experiment: its bridge hears of it by itself."""
    end = time.monotonic() + FOLLOW_S
    while True:
        reply = reply_of(site, spare, {"command": "status"}, FOLLOW_S)
        result = reply.get("result")
        if reply.get("ok") and isinstance(result, dict) and result.get("experiment") == experiment:
            return {"ok": True}
        if time.monotonic() > end:
            return reply if not reply.get("ok") else _refusal("it still measures for another", "assign it once more")
        time.sleep(FOLLOW_LOOK_S)


def _step(fields: dict[str, Any], reply: Reply) -> dict[str, Any]:
    words = [str(value) for value in fields.values()]
    ok = bool(reply.get("ok"))
    return {"step": " ".join(words), "ok": ok, "error": None if ok else reply.get("error")}
