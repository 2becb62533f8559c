// Purpose: the page of one unit: what it measures now, and the parts below (charts, controls, scope, loop, simulation).

import { showAlerts } from "./alerts.js";
import { serverNow } from "./api.js";
import { errorOf, showFlags, STATES, targetOf } from "./card.js";
import { ChartPanel } from "./charts.js";
import { showFigures } from "./computer.js";
import { Controls } from "./controls.js";
import { $, h, notice, reason, text } from "./dom.js";
import { AS_PUBLISHED, ago, fixed, iso, odStatement, withError } from "./format.js";
import { onReturn } from "./live.js";
import { LoopPanel } from "./loop.js";
import { redraw } from "./schedule.js";
import { Scope } from "./scope.js";
import { page } from "./shell.js";
import { SimulationPanel } from "./simulation.js";
import { experimentOf, load, odChannels, onChange, stateOf, units } from "./units.js";
import { VitalsPanel } from "./vitals.js";

const name = document.body.dataset.unit;
const tiles = new Map();

/** A tile of the strip of readings: `{value, note}` to be filled. */
function tile(key, label) {
  let one = tiles.get(key);
  if (one) return one;
  one = { value: h("span", { class: "value" }), error: h("span", { class: "error" }), note: h("p", { class: "hint" }) };
  one.element = h(
    "div",
    { class: "tile panel", "data-tile": key },
    h("h2", {}, label),
    h("p", { class: "od" }, one.value, one.error),
    one.note,
  );
  tiles.set(key, one);
  $("#now").append(one.element);
  return one;
}

function fill(one, value, error, note) {
  text(one.value, value);
  text(one.error, error);
  text(one.note, note);
}

function drawTiles(unit) {
  for (const channel of odChannels(unit)) {
    const reading = unit.latest[channel.stream];
    const { value, error } = withError(reading?.value, errorOf(reading));
    const bandwidth = reading
      ? `${fixed(reading.window_s, 1)} s window, ${reading.used} conversions, ${reading.rejected} rejected`
      : "";
    const one = tile(channel.stream, `OD ${channel.angle}°`);
    fill(
      one,
      value,
      error ? `± ${error} AU` : "AU",
      unit.foreign ? AS_PUBLISHED : reading ? `${odStatement(reading)}. ${bandwidth}` : "no reading yet",
    );
    one.element.title = reading
      ? `standard error: of the light ${reading.se_instrument} AU, of the culture ${reading.se_culture} AU`
      : "";
  }
  const { rpm, temperature, liquid } = unit.latest;
  const speed = withError(rpm?.value, rpm?.se_instrument, 1);
  const target = targetOf(unit);
  const duty = Number.isFinite(rpm?.signal_v) ? `, duty ${fixed(rpm.signal_v, 1)} %` : "";
  const wanted = Number.isFinite(target) && target > 0 ? `target ${fixed(target, 0)} rpm` : "no target";
  fill(tile("rpm", "Stirring"), speed.value, speed.error ? `± ${speed.error} rpm` : "rpm", `${wanted}${duty}`);
  fill(tile("temperature", "Temperature"), ...warmth(liquid, temperature));
  const seen = tile("seen", "Last seen");
  fill(
    seen,
    ago(serverNow() - unit.last_seen),
    "",
    `experiment ${experimentOf(unit) || "none"} · ${unit.foreign ? "not a stirbar unit" : `stirbar ${unit.version ?? "?"}`}`,
  );
  seen.value.title = iso(unit.last_seen);
}

/** The liquid's temperature as a tile: value, unit with its error, and what heats it. */
function warmth(liquid, board) {
  if (!liquid) return [fixed(board?.value, 2), "°C", ""];
  const { value, error } = withError(liquid.value, liquid.se_culture, 2);
  const target = Number.isFinite(liquid.reference_v) ? `target ${fixed(liquid.reference_v, 1)} °C` : "no target";
  const unobserved = liquid.flag_names.includes("unobserved") ? " · not known well" : "";
  const heat = `${target}, heater ${fixed(liquid.signal_v, 0)} %, its board ${fixed(board?.value, 1)} °C`;
  return [value, error ? `± ${error} °C` : "°C", `${heat}${unobserved}`];
}

function showTags(tags) {
  const place = $("#tags");
  if (place.dataset.tags === tags.join()) return;
  place.dataset.tags = tags.join();
  place.replaceChildren(...tags.map((tag) => h("span", { class: "flag" }, tag)));
}

function draw() {
  const unit = units.get(name);
  if (!unit) return;
  const state = stateOf(unit);
  $("#state").dataset.state = state;
  text($("#state"), STATES[state]);
  drawTiles(unit);
  text($("#label"), unit.label ?? "");
  showTags(unit.tags ?? []);
  showFigures($("#figures"), unit);
  $("#simulated").hidden = !unit.simulated;
  $("#foreign").hidden = !unit.foreign;
  for (const part of ["controls", "scope", "loop"])
    for (const element of [$(`#${part}`), $(`a[href="#${part}"]`)]) element.hidden = Boolean(unit.foreign);
  const unprotected = unit.protection?.sentences ?? [];
  $("#protection").hidden = !unprotected.length;
  text($("#protection"), unprotected.join("; "));
  showFlags($("#badges"), Object.values(unit.latest));
}

page(async () => {
  showAlerts(name);
  await load(name);
  const unit = units.get(name);
  draw();
  onChange(() => redraw(draw));
  setInterval(() => redraw(draw), 1000);
  onReturn(() => load(name).catch((error) => notice(reason(error))));
  const charts = new ChartPanel($("#charts"));
  const loop = new LoopPanel($("#loop"), unit);
  const controls = new Controls($("#control-panels"), unit);
  new Scope($("#scope"), unit);
  new VitalsPanel($("#computer"), name);
  onChange((changed, kind) => {
    if (kind !== "reading") redraw(controls.draw);
    if (kind === "status" || kind === "load") loop.update(changed);
  });
  if (unit.simulated) {
    $("#simulation").hidden = false;
    $("#simulation-link").hidden = false;
    new SimulationPanel($("#simulation"), name);
  }
  await charts.setScope({ unit: name });
}, name);
