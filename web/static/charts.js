// Purpose: the charts of a scope (one unit, or the units of an experiment): one chart for each OD angle, stirring and
// temperature, a choice of range, data from /api/readings, and live readings appended as they come.

import { readings, serverNow } from "./api.js";
import { Chart } from "./chart.js";
import { answer, h, reason, remember } from "./dom.js";
import { clock, day } from "./format.js";
import { on, onReturn } from "./live.js";
import { onTheme } from "./palette.js";
import { idsOf, namesInOrder, odChannels, placeOf, streamName, units } from "./units.js";

const RANGES = [
  ["1 min", 60],
  ["10 min", 600],
  ["1 h", 3600],
  ["6 h", 21_600],
  ["1 d", 86_400],
  ["7 d", 604_800],
];
const SHOWN_BINS = 300;
const FETCHED_POINTS = 900; // more than the bins shown, so that no bin is empty for want of alignment
const FEW_POINTS = 400; // when there are many lines
const MANY_LINES = 12;
const MOST_LINES = 100; // more are no chart

const OTHERS = ["rpm", "temperature", "liquid"]; // streams beside optical density that have a chart

export class ChartPanel {
  constructor(root) {
    this.root = root;
    this.scope = null; // {unit} or {experiment} or {units: [...]}
    this.members = []; // names of the units in it, at most MOST_LINES
    this.left = 0; // units that are too many
    this.span = Number(remember("range")) || 600;
    if (!RANGES.some(([, seconds]) => seconds === this.span)) this.span = 600;
    this.zoomed = null;
    this.charts = new Map(); // "od 90" | "rpm" | "temperature" -> Chart
    this.pending = null;
    this.generation = 0;
    this.message = h("output", { class: "answer" });
    this.liveButton = h("button", { type: "button", hidden: true, onclick: () => this.#zoom(null) }, "Back to now");
    this.box = h("div", { class: "charts" });
    root.append(this.#ranges(), this.box);
    on("reading", (message) => this.#live(message));
    onReturn(() => this.reload());
    onTheme(() => this.charts.forEach((chart) => chart.recolour()));
    setInterval(() => this.#follow(), 1000);
  }

  #ranges() {
    const choose = (event) => {
      this.span = Number(event.target.value);
      remember("range", String(this.span));
      this.#zoom(null);
    };
    const radios = RANGES.map(([label, seconds]) => {
      const checked = seconds === this.span;
      const input = h("input", { type: "radio", name: "range", value: String(seconds), checked, onchange: choose });
      return h("label", {}, input, h("span", {}, label));
    });
    const group = h("fieldset", { class: "segments" }, h("legend", { class: "hidden" }, "Time range"), ...radios);
    return h("div", { class: "row" }, group, this.liveButton, this.message);
  }

  /** Show another scope: {unit}, {experiment} or {units}. */
  setScope(scope) {
    this.scope = scope;
    for (const chart of this.charts.values()) chart.element.remove();
    this.charts.clear();
    this.zoomed = null;
    return this.reload();
  }

  #choose() {
    const { unit, units: names, experiment } = this.scope;
    const every = unit ? [unit] : (names ?? namesInOrder().filter((one) => units.get(one).experiment === experiment));
    this.members = every.slice(0, MOST_LINES);
    this.left = every.length - this.members.length;
  }

  #zoom(range) {
    this.zoomed = range;
    this.liveButton.hidden = !range;
    return this.reload();
  }

  #window() {
    if (this.zoomed) return this.zoomed;
    const now = serverNow();
    return [now - this.span, now];
  }

  #binWidth() {
    const [from, to] = this.#window();
    return Math.max(0.1, (to - from) / SHOWN_BINS);
  }

  #streams() {
    const found = new Set(OTHERS);
    // an experiment of the past may have no member now: its readings can be of any unit's channels
    const names = this.scope.experiment ? [...units.keys()] : this.members;
    for (const name of names) {
      for (const channel of units.has(name) ? odChannels(units.get(name)) : []) found.add(channel.stream);
    }
    return [...found].sort();
  }

  #quantity(stream, angle) {
    if (stream === "rpm") return { key: "rpm", title: "Stirring", unit: "rpm", decimals: 1, least: 10 };
    if (stream === "temperature")
      return { key: "temperature of the board", title: "Heater board", unit: "°C", decimals: 2, least: 0.5 };
    if (stream === "liquid") return { key: "temperature", title: "Temperature", unit: "°C", decimals: 2, least: 0.5 };
    const title = `Optical density, ${angle}°`;
    const key = `od ${String(angle).padStart(3, "0")}`;
    return { key, title, unit: "AU", note: "normalised scatter unless calibrated", decimals: 4, least: 0.002 };
  }

  #chart(stream, angle) {
    const quantity = this.#quantity(stream, angle);
    let chart = this.charts.get(quantity.key);
    if (chart) return chart;
    chart = new Chart(quantity, (from, to) => this.#zoom([from, to]));
    this.charts.set(quantity.key, chart);
    const ordered = [...this.charts].sort(([a], [b]) => (a < b ? -1 : 1));
    const [from, to] = this.#window();
    const width = this.#binWidth();
    this.box.replaceChildren(...ordered.map(([, one]) => one.element));
    chart.reset(width, Math.ceil((to - from) / width) + 3);
    chart.show(from, to);
    return chart;
  }

  #angle(unit, stream, fallback) {
    return fallback ?? units.get(unit)?.channels.find((one) => one.stream === stream)?.angle;
  }

  async #fetch(from, to) {
    const { experiment } = this.scope;
    const scope = experiment ? { experiment } : {};
    if (!experiment || this.left) scope.units = idsOf(this.members);
    if (!experiment && !this.members.length) return { series: [] };
    const points = this.members.length > MANY_LINES ? FEW_POINTS : FETCHED_POINTS;
    const wanted = this.#streams().map((stream) => readings(scope, stream, from, to, points));
    const settled = await Promise.allSettled(wanted);
    const failed = settled.find((one) => one.status === "rejected");
    return { series: settled.flatMap((one) => one.value ?? []), failed: failed?.reason };
  }

  /** Fetch the window anew; live readings that come meanwhile are kept and added behind it. */
  async reload() {
    if (!this.scope) return;
    const generation = ++this.generation;
    this.#choose();
    const [from, to] = this.#window();
    const width = this.#binWidth();
    this.pending = [];
    answer(this.message, "busy", "loading …");
    const { series, failed } = await this.#fetch(from, to);
    if (generation !== this.generation) return; // a newer choice has been made
    for (const chart of this.charts.values()) chart.reset(width, Math.ceil((to - from) / width) + 3);
    for (const one of series) {
      if (!one.t.length) continue;
      const stream = streamName(one.stream);
      const chart = this.#chart(stream, this.#angle(one.unit, stream, one.angle));
      chart.addAll(one.unit, placeOf(one.unit), one);
    }
    const pending = this.pending;
    this.pending = null;
    for (const message of pending) this.#live(message);
    for (const chart of this.charts.values()) chart.show(from, to);
    if (failed) answer(this.message, "error", `✗ ${reason(failed)}`);
    else answer(this.message, "done", this.#summary(from, to));
  }

  #summary(from, to) {
    if (!this.charts.size) return "no readings in this range yet";
    if (this.left) return `the first ${MOST_LINES} of ${MOST_LINES + this.left} units`;
    if (!this.zoomed) return "";
    return `${day(from)} ${clock(from)} to ${clock(to)}`;
  }

  #live(message) {
    if (!this.scope || this.zoomed) return;
    if (this.pending) {
      this.pending.push(message);
      return;
    }
    const stream = streamName(message.stream);
    const channel = units.get(message.unit)?.channels.find((one) => one.stream === stream);
    if (!this.members.includes(message.unit)) return;
    // slower rates, several angles fused and the stir bar's modulation have no chart
    const measures = /^od\d$/.test(stream) && Number(channel?.angle ?? message.angle) > 0;
    if (!measures && !OTHERS.includes(stream)) return;
    const t = message.t ?? message.wall_ns / 1e9;
    const chart = this.#chart(stream, this.#angle(message.unit, stream, message.angle || undefined));
    if (t > chart.lastOf(message.unit)) chart.add(message.unit, placeOf(message.unit), t, message);
  }

  /** Let the window follow the clock; a chart of days does not move every second. */
  #follow() {
    if (!this.scope || this.zoomed || this.pending || document.hidden) return;
    const [from, to] = this.#window();
    for (const chart of this.charts.values()) {
      if (to - chart.window[1] >= Math.min(this.#binWidth(), 30)) chart.show(from, to);
    }
    if (this.charts.size && this.message.dataset.kind === "done") answer(this.message, "done", "");
  }
}
