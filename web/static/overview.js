// Purpose: the overview: a card for each unit and the charts of an experiment, or of all units.

import { showAlerts } from "./alerts.js";
import { get, readings, serverNow } from "./api.js";
import { Card } from "./card.js";
import { ChartPanel } from "./charts.js";
import { $, h, notice, options, reason, remember, text } from "./dom.js";
import { showFound } from "./found.js";
import { follow, onReturn } from "./live.js";
import { PAGE_UNITS, Pages } from "./pages.js";
import { onTheme } from "./palette.js";
import { redraw } from "./schedule.js";
import { page } from "./shell.js";
import { SPARK_SECONDS } from "./sparkline.js";
import { experimentOf, idsOf, loadBrief, loadNamed, onChange, stateOf, units } from "./units.js";

const SPARK_POINTS = 150; // a line of a hundred bins

const cards = new Map(); // of the units that are shown, in order
const place = $("#cards");
const scope = $("#scope");
const pages = new Pages($("#pages"), () => arrange().catch((error) => notice(reason(error))));
let panel = null;

/** The past of cards in one request for each stream. */
async function fillSparks(fresh) {
  const now = serverNow();
  const streams = new Map();
  for (const card of fresh) if (card.stream) streams.set(card.stream, [...(streams.get(card.stream) ?? []), card]);
  for (const [stream, of] of streams) {
    const ids = idsOf(of.map((card) => card.unit.unit));
    const series = await readings({ units: ids }, stream, now - SPARK_SECONDS, now, SPARK_POINTS);
    for (const one of series) cards.get(one.unit)?.spark.addAll(one);
  }
}

/** Show the cards of the page chosen: those that are there already stay, and what the others measure is fetched. */
async function arrange() {
  const names = pages.names();
  if (names.join() === [...cards.keys()].join() && names.length) return;
  const before = new Map(cards);
  const fresh = [];
  cards.clear();
  for (const name of names) {
    const card = before.get(name) ?? new Card(units.get(name));
    if (!before.has(name)) fresh.push(card);
    cards.set(name, card);
  }
  place.replaceChildren(...[...cards.values()].map((card) => card.element));
  empty();
  follow(units.size > PAGE_UNITS ? names : null);
  await loadNamed(fresh.map((card) => card.unit.unit));
  if (panel?.scope?.units) showScope();
  await fillSparks(fresh);
}

function update(unit) {
  cards.get(unit.unit)?.update(unit);
}

function summary() {
  const states = [...units.values()].map(stateOf);
  const live = states.filter((state) => state === "live").length;
  text($("#summary"), states.length ? `${live} of ${states.length} live` : "");
}

function empty() {
  if (units.size) return;
  place.replaceChildren(
    h(
      "p",
      { class: "panel hint" },
      "No unit has reported yet. Units appear here by themselves once their bridge has reached this leader.",
    ),
  );
}

function showScope() {
  const [kind, name] = [scope.value.slice(0, 1), scope.value.slice(2)];
  remember("scope", scope.value);
  return panel.setScope(kind === "e" ? { experiment: name } : { units: [...cards.keys()] });
}

async function scopes() {
  const experiments = await get("/api/experiments");
  const entries = experiments.map(({ name }) => [`e:${name}`, `experiment ${name}`]);
  options(scope, [["a:", units.size > PAGE_UNITS ? "the units shown" : "all units"], ...entries]);
  const inUse = [...units.values()].map(experimentOf).filter(Boolean);
  const asked = new URLSearchParams(location.search).get("experiment");
  const wanted = asked ? `e:${asked}` : (remember("scope") ?? (new Set(inUse).size === 1 ? `e:${inUse[0]}` : "a:"));
  scope.value = [...scope.options].some((option) => option.value === wanted) ? wanted : "a:";
}

page(async () => {
  panel = new ChartPanel($("#charts"));
  onChange(update);
  showAlerts();
  showFound();
  await loadBrief();
  await arrange();
  place.setAttribute("aria-busy", "false");
  summary();
  await scopes();
  scope.addEventListener("change", showScope);
  await showScope();
  let known = units.size;
  onChange(() => {
    if (units.size === known) return;
    known = units.size;
    setTimeout(() => arrange().catch((error) => notice(reason(error)))); // when all that came with it are known
  });
  const again = () => loadBrief().then(() => loadNamed([...cards.keys()]));
  onReturn(() => again().catch((error) => notice(reason(error))));
  onTheme(() => cards.forEach((card) => redraw(card.spark.draw)));
  setInterval(() => {
    summary();
    cards.forEach((card) => redraw(card.draw));
  }, 1000);
});
