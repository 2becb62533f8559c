// Purpose: the log of events: the past from /api/events, new ones live, by unit and level.

import { get } from "./api.js";
import { $, answer, h, options, reason } from "./dom.js";
import { iso, when } from "./format.js";
import { on, onReturn } from "./live.js";
import { page } from "./shell.js";
import { load, units } from "./units.js";

const PAGE = 100;
const MOST = 2000; // rows kept on the page
const LEVELS = ["debug", "info", "notice", "warning", "error"];
const place = $("#events");
const unit = $("#unit");
const level = $("#level");
const older = $("#older");
const output = $("#events-answer");
let oldest = null;

const timeOf = (event) => event.t ?? event.wall_ns / 1e9;
const keyOf = (event) => [event.unit, timeOf(event), event.code, event.message].join("|");
const shownKeys = new Set();

function row(event) {
  const t = timeOf(event);
  const at = LEVELS.includes(event.level) ? event.level : "info";
  return h(
    "tr",
    { "data-level": at },
    h("td", {}, h("time", { datetime: iso(t), title: iso(t) }, when(t))),
    h("td", {}, h("span", { class: `level ${at}` }, event.level)),
    h("td", {}, event.unit ? h("a", { href: `/units/${encodeURIComponent(event.unit)}` }, event.unit) : "leader"),
    h("td", {}, event.source ?? ""),
    h("td", {}, event.message),
  );
}

function wanted(event) {
  return (!unit.value || event.unit === unit.value) && LEVELS.indexOf(event.level) >= LEVELS.indexOf(level.value);
}

function put(event, where) {
  const key = keyOf(event);
  if (!wanted(event) || shownKeys.has(key)) return;
  shownKeys.add(key);
  place[where](row(event));
}

/** Fetch a page of events: the newest, or those before the oldest that came so far. */
async function fetchPage(before) {
  older.disabled = true;
  answer(output, "busy", "loading …");
  const query = new URLSearchParams({ limit: PAGE });
  if (unit.value) query.set("unit", unit.value);
  if (before !== null) query.set("before", before);
  try {
    const list = await get(`/api/events?${query}`);
    if (before === null) {
      place.replaceChildren();
      shownKeys.clear();
    }
    for (const event of list) put(event, "append");
    if (list.length) oldest = list.at(-1).id ?? timeOf(list.at(-1));
    older.disabled = list.length < PAGE;
    answer(
      output,
      "done",
      list.length < PAGE ? "no older events" : `events down to ${when(timeOf(list.at(-1)))} are shown`,
    );
  } catch (error) {
    older.disabled = false;
    answer(output, "error", `✗ ${reason(error)}`);
  }
  place.setAttribute("aria-busy", "false");
}

on("event", (event) => {
  put(event, "prepend");
  while (place.children.length > MOST) place.lastElementChild.remove();
});

page(async () => {
  await load();
  options(unit, [["", "all units"], ...[...units.keys()].sort().map((name) => [name, name])]);
  const asked = new URLSearchParams(location.search).get("unit");
  if (asked && units.has(asked)) unit.value = asked;
  const anew = () => fetchPage(null);
  unit.addEventListener("change", anew);
  level.addEventListener("change", anew);
  older.addEventListener("click", () => fetchPage(oldest));
  onReturn(anew);
  await anew();
});
