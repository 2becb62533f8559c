// Purpose: the live events of the leader (/api/live), with reconnection that the user can see.
// A hidden page gives its connection back after a while: browsers allow six per leader, and labs open many pages.

import { get } from "./api.js";

const KINDS = ["reading", "status", "state", "event", "setting", "acknowledged", "applied", "described"];
const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 8_000;
const HIDDEN_MS = 20_000;
const WORDS = { connecting: "connecting", live: "live", reconnecting: "reconnecting …", paused: "paused" };

const listeners = new Map(KINDS.map((kind) => [kind, []]));
const openers = [];
let address = "/api/live";
let followed = null; // names of the units whose readings are heard; null: of all
let source = null;
let retry_ms = FIRST_RETRY_MS;
let timer = 0;
let opened = false;

function show(state) {
  const element = document.getElementById("live-state");
  if (!element || element.dataset.state === state) return;
  element.dataset.state = state;
  element.textContent = WORDS[state];
}

function close() {
  clearTimeout(timer);
  source?.close();
  source = null;
}

function receive(kind, text) {
  let message;
  try {
    message = JSON.parse(text);
  } catch {
    console.error(`live ${kind} that is not JSON: ${text.slice(0, 80)}`);
    return;
  }
  const items = Array.isArray(message) ? message : [message];
  for (const item of items) for (const listener of listeners.get(kind)) listener(item);
}

async function lost() {
  close();
  show("reconnecting");
  timer = setTimeout(connect, retry_ms * (0.75 + Math.random() / 2));
  retry_ms = Math.min(retry_ms * 2, LAST_RETRY_MS);
  await get("/api/session").catch(() => null); // an ended session leads to the login page
}

function connect() {
  close();
  source = new EventSource(address);
  source.onopen = () => {
    retry_ms = FIRST_RETRY_MS;
    show("live");
    if (opened) openers.forEach((reload) => reload());
    opened = true;
  };
  source.onerror = lost;
  for (const kind of KINDS) source.addEventListener(kind, (event) => receive(kind, event.data));
}

function visibility() {
  clearTimeout(timer);
  if (!document.hidden) {
    if (!source) connect();
    return;
  }
  timer = setTimeout(() => {
    close();
    show("paused");
  }, HIDDEN_MS);
}

/** Whether the leader is heard now: without it, nothing is known of the units. */
export const connected = () => source?.readyState === EventSource.OPEN;

/** Call `listener(message)` for each message of a kind. */
export const on = (kind, listener) => listeners.get(kind).push(listener);

/** Call `reload()` whenever the connection is back after a loss: what was missed must be fetched. */
export const onReturn = (reload) => openers.push(reload);

/** Whether the readings of a unit are heard. */
export const follows = (unit) => followed === null || followed.has(unit);

/** Hear the readings of these units alone (null: of all), and of the others only how they are and their events. */
export function follow(names) {
  followed = names && new Set(names);
  const list = names?.map(encodeURIComponent).join(",");
  const next = names ? `/api/live?states=all&units=${list}` : "/api/live";
  if (next === address) return;
  address = next;
  opened = false; // nothing was missed: who follows others fetches them
  if (source) connect();
}

/** Open the connection; `unit` limits it to one unit. */
export function start(unit) {
  if (unit) address = `/api/live?units=${encodeURIComponent(unit)}`;
  document.addEventListener("visibilitychange", visibility);
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => event.persisted && connect());
  connect();
}
