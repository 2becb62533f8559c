// Purpose: the banner of warnings and errors that nobody has acknowledged yet; it is kept by the leader, for all browsers.

import { get, post } from "./api.js";
import { $, act, h, notice, reason } from "./dom.js";
import { iso, when } from "./format.js";
import { on, onReturn } from "./live.js";

const LINES = 3;
// an event is told live before the leader has stored it
const SOON_MS = 1_000;
const LATE_MS = 4_000;
const EVERY_MS = 30_000;
const LEVELS = ["warning", "error"];

const place = $("#alerts");
let due = null;
let late = null;
let unit;
let shown = "";

/** Acknowledge one alert, or all; the answer stands at the button until the banner is drawn again. */
function button(label, fields) {
  const output = h("output", { class: "answer", "aria-live": "polite" });
  const element = h("button", { type: "button" }, label);
  element.addEventListener("click", async () => {
    if (await act(element, output, () => post("/api/alerts/acknowledge", fields).then(() => "acknowledged"), "…")) load();
  });
  return [output, element];
}

function line(alert) {
  const name = alert.unit ? h("a", { href: `/units/${encodeURIComponent(alert.unit)}` }, alert.unit) : "leader";
  return h(
    "li",
    { "data-level": alert.level, "data-code": alert.code, "data-id": alert.id },
    h("span", { class: `level ${alert.level}` }, alert.level),
    h("time", { datetime: iso(alert.t), title: iso(alert.t) }, when(alert.t)),
    h("strong", {}, name),
    h(
      "span",
      { class: "message" },
      alert.message,
      alert.over && h("span", { class: "over", title: iso(alert.over) }, ` · over since ${when(alert.over)}`),
    ),
    button("Acknowledge", { id: alert.id }),
  );
}

function rest({ count, newest, alerts }) {
  if (count < 2) return null;
  const more = count - alerts.length;
  const fields = unit ? { through: newest, unit } : { through: newest };
  return h(
    "li",
    { class: "rest" },
    h("span", { class: "message" }, more > 0 && h("a", { href: "/events" }, `and ${more} more`)),
    button(`Acknowledge all ${count}`, fields),
  );
}

/** Fetch and draw; what has not changed is left alone, so that nobody's click goes astray. */
async function load() {
  const query = new URLSearchParams({ limit: LINES });
  if (unit) query.set("unit", unit);
  let found;
  try {
    found = await get(`/api/alerts?${query}`);
  } catch (error) {
    if (error.status) notice(`The alerts could not be loaded: ${reason(error)}`);
    return; // without a connection the page says so already, and comes back to this when it returns
  }
  const text = JSON.stringify(found);
  if (text === shown) return;
  shown = text;
  place.replaceChildren(...[...found.alerts.map(line), rest(found)].filter(Boolean));
  place.hidden = !found.count;
}

/** Look a moment after an event, whatever follows on it, and once more when none has come for longer. */
function soon() {
  due ??= setTimeout(() => {
    due = null;
    load();
  }, SOON_MS);
  clearTimeout(late);
  late = setTimeout(load, LATE_MS);
}

/** Show the alerts of one unit, or of all, and keep them current. */
export function showAlerts(name) {
  unit = name;
  on("event", (event) => {
    if (LEVELS.includes(event.level) || !place.hidden) soon(); // any event may be the end of what is shown
  });
  on("acknowledged", load);
  onReturn(load);
  setInterval(load, EVERY_MS);
  return load();
}
