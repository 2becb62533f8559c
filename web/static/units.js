// Purpose: what the page knows about the units: one entry each, in one shape, kept current by the live events.

import { get, path, serverNow } from "./api.js";
import { connected, follows, on } from "./live.js";

export const LOST_AFTER_S = 5;
const STREAMS = { 1: "od1", 2: "od2", 3: "od3", 4: "od4", 5: "od_fused", 8: "rpm", 9: "temperature", 10: "liquid" };
for (let i = 0; i < 12; i++) STREAMS[32 + i] = `od${(i % 4) + 1}_rate${(i >> 2) + 1}`;
for (let i = 0; i < 4; i++) STREAMS[44 + i] = `modulation${i + 1}`;

/** name -> {unit, last_seen, experiment, simulated, channels, jobs, settings, latest, status, lost} */
export const units = new Map();
const listeners = [];
const { compare } = new Intl.Collator(undefined, { numeric: true });
let places = null; // name -> index, in order of names

/** All names in order. */
export const namesInOrder = () => [...units.keys()].sort(compare);

/** The place of a unit among all names, from which it has its colour. */
export function placeOf(name) {
  if (places?.size !== units.size) places = new Map(namesInOrder().map((one, place) => [one, place]));
  return places.get(name) ?? 0;
}

/** Call `listener(unit, kind)` after each change of a unit; kind as in the live events, or "load". */
export const onChange = (listener) => listeners.push(listener);
const changed = (unit, kind) => listeners.forEach((listener) => listener(unit, kind));

export const streamName = (stream) => STREAMS[stream] ?? String(stream);

function normalReading(reading) {
  const t = reading.t ?? reading.wall_ns / 1e9;
  return { ...reading, t, stream: streamName(reading.stream), flag_names: reading.flag_names ?? [] };
}

/** Jobs as a map of name to state: `describe` says {name: {state, settable}}, `status` says {name: state}. */
const normalJobs = (jobs) =>
  Object.fromEntries(Object.entries(jobs ?? {}).map(([job, state]) => [job, state?.state ?? state]));

/** Settings by "job/name", from a list or from a map of setting messages. */
const normalSettings = (settings) =>
  Object.fromEntries(Object.values(settings ?? {}).map((one) => [`${one.job}/${one.setting}`, one]));

function normalLatest(latest) {
  const readings = Object.values(latest ?? {})
    .filter(Boolean)
    .map(normalReading);
  return Object.fromEntries(readings.map((reading) => [reading.stream, reading]));
}

function adopt(raw) {
  const known = units.get(raw.unit);
  const unit = {
    ...known,
    ...raw,
    channels: (raw.channels ?? known?.channels ?? []).map((one) => ({ ...one, stream: streamName(one.stream) })),
    jobs: normalJobs(raw.jobs ?? known?.jobs),
    settings: normalSettings(raw.settings ?? known?.settings),
    latest: { ...known?.latest, ...normalLatest(raw.latest) },
    tags: raw.tags ?? known?.tags ?? [],
    lost: raw.state === "lost",
    silent: raw.state !== "online",
    status: raw.status ?? known?.status ?? raw,
  };
  for (const [job, state] of Object.entries(unit.jobs)) unit.jobs[job] = unit.settings[`${job}/$state`]?.value ?? state;
  units.set(unit.unit, unit);
  return unit;
}

/** Fetch one unit, or all units, with all that is known of them; the map is then complete. */
export const load = async (name) => take(name ? [await get(path`/api/units/${name}`)] : await get("/api/units"), name);

/** Fetch of all units who and how they are. */
export const loadBrief = async () => take(await get("/api/units?brief=1"));

function take(list, name) {
  if (!name) for (const known of [...units.keys()]) if (!list.some((one) => one.unit === known)) units.delete(known);
  for (const raw of list) changed(adopt(raw), "load");
  return units;
}

/** Ids with commas between, as the API takes several units: two may share a name. */
export const idsOf = (names) => names.map((name) => units.get(name)?.unit_id ?? name).join(",");

/** Fetch what these units measure. */
export async function loadNamed(names) {
  if (!names.length) return;
  const list = await get(`/api/units?units=${encodeURIComponent(idsOf(names))}`);
  for (const raw of list) changed(adopt(raw), "load");
}

/**
 * "live", "lost" (not heard of for five seconds, or its last will came), "unknown" (never seen), or "stale": it is the
 * leader that this page does not hear, so that nothing can be said of the unit.
 */
export function stateOf(unit) {
  if (!Number.isFinite(unit.last_seen)) return "unknown";
  if (!follows(unit.unit)) return !connected() ? "stale" : unit.silent ? "lost" : "live";
  if (!unit.lost && serverNow() - unit.last_seen <= LOST_AFTER_S) return "live";
  return connected() ? "lost" : "stale";
}

/** The OD channels of a unit without the reference photodiode, the first one being what the overview shows. */
export const odChannels = (unit) => unit.channels.filter((one) => /^od\d$/.test(one.stream) && Number(one.angle) > 0);

/** Experiment of a unit, or "" when it has none. */
export const experimentOf = (unit) => (unit.experiment?.startsWith("$") ? "" : (unit.experiment ?? ""));

export const setting = (unit, job, name) => unit.settings[`${job}/${name}`];

let reloading = null;
function unitOf(message) {
  const unit = units.get(message.unit);
  if (!unit && message.unit && !reloading) {
    const name = document.body.dataset.unit;
    reloading = (name ? load(name) : loadBrief())
      .catch(() => null) // tried again at the next message
      .finally(() => setTimeout(() => (reloading = null), 2000));
  }
  return unit;
}

function touch(unit, t) {
  unit.last_seen = Math.max(unit.last_seen ?? 0, t ?? serverNow());
  unit.lost = false;
}

on("reading", (message) => {
  const unit = unitOf(message);
  if (!unit) return;
  const reading = normalReading(message);
  unit.latest[reading.stream] = reading;
  touch(unit, reading.t);
  changed(unit, "reading");
});

on("status", (message) => {
  const unit = unitOf(message);
  if (!unit) return;
  unit.status = message.status ?? message;
  if (unit.status.jobs) unit.jobs = { ...unit.jobs, ...normalJobs(unit.status.jobs) };
  touch(unit);
  changed(unit, "status");
});

on("state", (message) => {
  const unit = unitOf(message);
  if (!unit) return;
  for (const key of ["experiment", "simulated", "last_seen", "version"]) if (key in message) unit[key] = message[key];
  if (message.jobs) unit.jobs = { ...unit.jobs, ...normalJobs(message.jobs) };
  if (message.state) unit.silent = message.state !== "online";
  if (message.state === "lost") unit.lost = true;
  else if (message.state) touch(unit, message.last_seen);
  changed(unit, "state");
});

on("setting", (message) => {
  const unit = unitOf(message);
  if (!unit) return;
  const key = `${message.job}/${message.setting}`;
  unit.settings[key] = { ...unit.settings[key], ...message };
  if (message.setting === "$state") unit.jobs[message.job] = message.value;
  changed(unit, "setting");
});
