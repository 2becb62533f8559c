// Purpose: the overview: a card for each unit and the charts of an experiment, or of all units.

import { showAlerts } from "./alerts.js";
import { get, readings, serverNow } from "./api.js";
import { Card } from "./card.js";
import { ChartPanel } from "./charts.js";
import { $, h, notice, options, reason, remember, text } from "./dom.js";
import { showFound } from "./found.js";
import { onReturn } from "./live.js";
import { onTheme } from "./palette.js";
import { redraw } from "./schedule.js";
import { page } from "./shell.js";
import { SPARK_SECONDS } from "./sparkline.js";
import { experimentOf, load, onChange, stateOf, units } from "./units.js";

const cards = new Map();
const place = $("#cards");
const scope = $("#scope");
let panel = null;

function sortCards() {
  const ordered = [...cards].sort(([a], [b]) => a.localeCompare(b, undefined, { numeric: true }));
  place.replaceChildren(...ordered.map(([, card]) => card.element));
}

async function fillSpark(card) {
  if (!card.stream) return;
  const now = serverNow();
  const series = await readings({ unit: card.unit.unit }, card.stream, now - SPARK_SECONDS, now, 300);
  for (const one of series) card.spark.addAll(one);
}

function update(unit) {
  const known = cards.get(unit.unit);
  if (known) {
    known.update(unit);
    return;
  }
  const card = new Card(unit);
  cards.set(unit.unit, card);
  sortCards();
  fillSpark(card).catch((error) => notice(`The past of ${unit.unit} could not be loaded: ${reason(error)}`));
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
  return panel.setScope(kind === "e" ? { experiment: name } : { units: [...units.keys()] });
}

async function scopes() {
  const experiments = await get("/api/experiments");
  const entries = experiments.map(({ name }) => [`e:${name}`, `experiment ${name}`]);
  options(scope, [["a:", "all units"], ...entries]);
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
  await load();
  place.setAttribute("aria-busy", "false");
  empty();
  summary();
  await scopes();
  scope.addEventListener("change", showScope);
  await showScope();
  let shown = units.size;
  onChange(() => {
    if (units.size === shown || !scope.value.startsWith("a")) return;
    shown = units.size;
    showScope();
  });
  onReturn(() => load().catch((error) => notice(reason(error))));
  onTheme(() => cards.forEach((card) => redraw(card.spark.draw)));
  setInterval(() => {
    summary();
    cards.forEach((card) => redraw(card.draw));
  }, 1000);
});
