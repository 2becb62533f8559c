// Purpose: the units as computers, a row each: label, tags, presence, vitals in short, and what can be done to them.

import { get, path, put, serverNow } from "./api.js";
import { STATES } from "./card.js";
import { actions, showFigures } from "./computer.js";
import { $, act, h, notice, options, reason, text } from "./dom.js";
import { ago, iso, when } from "./format.js";
import { onReturn } from "./live.js";
import { redraw } from "./schedule.js";
import { page } from "./shell.js";
import { experimentOf, load, onChange, stateOf, units } from "./units.js";

const HISTORY = 100; // lines of it
const place = $("#nodes");
const history = $("#assignments");
const tagged = $("#tag");
const rows = new Map();

/** An input whose value is kept by `save(value)` when it was changed. */
function kept(label, save) {
  const answer = h("output", { class: "answer" });
  const input = h("input", { type: "text", "aria-label": label, autocomplete: "off" });
  input.addEventListener("change", () => act(input, answer, () => save(input.value.trim()), "…"));
  return { input, element: h("div", {}, input, answer) };
}

/** Show what the leader has, unless somebody is writing. */
function fill(input, value) {
  if (document.activeElement !== input && input.value !== value) input.value = value;
}

class Row {
  constructor(name) {
    this.name = name;
    this.state = h("span", { class: "state" });
    this.seen = h("span", { class: "hint" });
    this.experiment = h("span", {});
    this.figures = h("p", { class: "flags" });
    this.label = kept(`Label of ${name}`, async (label) => {
      const { experiment } = units.get(name);
      await put(path`/api/experiments/${experiment}/units/${name}/label`, { label });
      units.get(name).label = label;
      return label ? "kept" : "taken away";
    });
    this.tags = kept(`Tags of ${name}`, async (words) => {
      const { tags } = await put(path`/api/units/${name}/tags`, { tags: words.split(/[\s,]+/).filter(Boolean) });
      units.get(name).tags = tags;
      showTags();
      return "kept";
    });
    this.element = h(
      "tr",
      { "data-unit": name },
      h("th", { scope: "row" }, h("a", { href: `/units/${encodeURIComponent(name)}` }, name)),
      h("td", {}, this.state, h("br"), this.seen),
      h("td", {}, this.experiment, this.label.element),
      h("td", {}, this.tags.element),
      h("td", {}, this.figures),
      h("td", {}, actions(name)),
    );
    this.draw = () => this.#draw(units.get(name));
  }

  #draw(unit) {
    if (!unit) return;
    const state = stateOf(unit);
    const experiment = experimentOf(unit);
    this.element.hidden = Boolean(tagged.value) && !unit.tags.includes(tagged.value);
    this.state.dataset.state = state;
    text(this.state, STATES[state]);
    text(this.seen, Number.isFinite(unit.last_seen) ? ago(serverNow() - unit.last_seen) : "");
    text(this.experiment, experiment || "no experiment");
    this.label.input.disabled = !experiment;
    this.label.input.placeholder = experiment ? "label" : "";
    this.tags.input.placeholder = "tags";
    fill(this.label.input, unit.label ?? "");
    fill(this.tags.input, unit.tags.join(" "));
    showFigures(this.figures, unit);
  }
}

function showTags() {
  const found = new Set([...units.values()].flatMap((unit) => unit.tags));
  options(tagged, [["", "all units"], ...[...found].sort().map((tag) => [tag, tag])]);
}

function summary() {
  const states = [...units.values()].map(stateOf);
  text($("#summary"), `${states.filter((state) => state === "live").length} of ${states.length} live`);
}

function drawAll() {
  summary();
  for (const row of rows.values()) redraw(row.draw);
}

function show() {
  const names = [...units.keys()].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
  for (const name of names) if (!rows.has(name)) rows.set(name, new Row(name));
  place.replaceChildren(...names.map((name) => rows.get(name).element));
  showTags();
  drawAll();
}

const time = (t) => h("time", { datetime: iso(t), title: iso(t) }, when(t));

async function showHistory() {
  const found = await get(`/api/assignments?limit=${HISTORY}`);
  const lines = found.map((one) =>
    h(
      "tr",
      {},
      h("td", {}, one.unit),
      h("td", {}, one.experiment),
      h("td", {}, one.label ?? ""),
      h("td", {}, time(one.from)),
      h("td", {}, one.until === null ? "now" : time(one.until)),
    ),
  );
  const none = h("tr", {}, h("td", { colspan: 5, class: "hint" }, "no unit has been in an experiment yet"));
  history.replaceChildren(...(lines.length ? lines : [none]));
}

page(async () => {
  await load();
  place.setAttribute("aria-busy", "false");
  show();
  await showHistory();
  tagged.addEventListener("change", drawAll);
  const again = () => Promise.all([load().then(show), showHistory()]).catch((error) => notice(reason(error)));
  onReturn(again);
  onChange((unit, kind) => {
    if (!rows.has(unit.unit)) show();
    else if (kind === "state") redraw(rows.get(unit.unit).draw); // the rest can wait for the next second
  });
  setInterval(drawAll, 1000);
});
