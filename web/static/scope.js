// Purpose: the oscilloscope: raw conversions of one channel against time, coloured by the light's phase, with the
// spectrum beside it. It asks for raw data only while it is on the screen and not paused.

import { get, path } from "./api.js";
import { followWidth, numberAxis, valueAxis } from "./axes.js";
import { answer, h, options, reason, text } from "./dom.js";
import { css, onTheme } from "./palette.js";
import { redraw } from "./schedule.js";
import { mainsFrequency, spectrumPlot } from "./spectrum.js";

const PERIOD_MS = 1000;
const LEAST_SECONDS = 2; // for the spectrum's resolution, however short the stretch that is shown
const STRETCHES = [
  [0.05, "50 ms"],
  [0.1, "100 ms"],
  [0.5, "0.5 s"],
  [2, "2 s"],
  [10, "10 s"],
];
const PHASES = [
  ["off", "--phase-off"],
  ["on", "--phase-on"],
  ["edge", "--phase-edge"],
];

export class Scope {
  constructor(root, unit) {
    this.unit = unit.unit;
    this.paused = false;
    this.visible = false;
    this.data = null;
    this.plots = [];
    this.channel = h("select", { "aria-label": "Channel", onchange: () => this.#rebuild() });
    this.stretch = h("select", { "aria-label": "Stretch of time", onchange: () => this.#changed() });
    options(
      this.stretch,
      STRETCHES.map(([seconds, label]) => [String(seconds), label]),
    );
    this.stretch.value = "0.1";
    this.pause = h("button", { type: "button", "aria-pressed": "false", onclick: () => this.#toggle() }, "Pause");
    this.output = h("output", { class: "answer" });
    this.time = h("div", { class: "plot", role: "img" });
    this.frequency = h("div", { class: "plot", role: "img" });
    this.words = h("p", { class: "hint" });
    const legend = PHASES.map(([name]) =>
      h(
        "span",
        {},
        h("i", { class: `swatch phase-${name}` }),
        name === "edge" ? "changing (not used)" : `light ${name}`,
      ),
    );
    root.append(
      h("div", { class: "row" }, this.channel, this.stretch, this.pause, this.output),
      h(
        "div",
        { class: "scope panel" },
        h(
          "figure",
          {},
          h("figcaption", {}, h("h3", {}, "Conversions"), h("span", { class: "hint" }, "V against ms")),
          this.time,
        ),
        h(
          "figure",
          {},
          h("figcaption", {}, h("h3", {}, "Spectrum"), h("span", { class: "hint" }, "V against Hz")),
          this.frequency,
        ),
        h("p", { class: "legend" }, ...legend, h("span", {}, h("i", { class: "swatch mains" }), "mains and harmonics")),
        this.words,
      ),
    );
    new IntersectionObserver(([entry]) => this.#seen(entry.isIntersecting)).observe(root);
    onTheme(() => this.#rebuild());
    this.draw = () => this.#draw();
  }

  #seen(visible) {
    const before = this.visible;
    this.visible = visible;
    if (visible && !before) this.#poll();
  }

  #toggle() {
    this.paused = !this.paused;
    this.pause.setAttribute("aria-pressed", String(this.paused));
    text(this.pause, this.paused ? "Continue" : "Pause");
    if (!this.paused) this.#poll();
  }

  #changed() {
    this.#rebuild();
    if (!this.paused) this.#poll();
  }

  async #poll() {
    clearTimeout(this.timer);
    if (this.busy || this.paused || !this.visible) return;
    if (!document.hidden) await this.#fetch();
    this.timer = setTimeout(() => this.#poll(), PERIOD_MS);
  }

  async #fetch() {
    this.busy = true;
    if (!this.data) answer(this.output, "busy", "asking the unit for raw data …");
    try {
      const seconds = Math.max(LEAST_SECONDS, Number(this.stretch.value));
      const data = await get(`${path`/api/units/${this.unit}/raw`}?seconds=${seconds}`);
      if (this.paused) return;
      const some = data.channels?.some((one) => one.t_ns.length);
      if (some) this.data = data;
      answer(this.output, some ? "done" : "busy", some ? "" : "waiting for the first raw data …");
      this.#channels();
      redraw(this.draw);
    } catch (error) {
      answer(this.output, "error", `✗ ${reason(error)}`);
    } finally {
      this.busy = false;
    }
  }

  #channels() {
    const entries = (this.data?.channels ?? []).map((one) => [
      String(one.channel),
      `channel ${one.channel}${one.angle ? `, ${Number(one.angle) ? `${one.angle}°` : one.angle}` : ", reference"}`,
    ]);
    if (entries.length === this.channel.options.length) return;
    options(this.channel, entries);
    const first = this.data.channels.find((one) => Number(one.angle) > 0);
    if (first) this.channel.value = String(first.channel);
  }

  #rebuild() {
    for (const { plot, stop } of this.plots) {
      stop();
      plot.destroy();
    }
    this.plots = [];
    redraw(this.draw);
  }

  /** Columns for the chosen stretch: milliseconds before the newest conversion, all, and one column for each phase. */
  #columns(one) {
    const newest = one.t_ns.at(-1);
    const from = newest - Number(this.stretch.value) * 1e9;
    let start = one.t_ns.findIndex((t) => t >= from);
    if (start < 0) start = 0;
    const volts = one.volts.slice(start);
    const phase = one.phase.slice(start);
    const columns = [0, 1, 2].map((wanted) => volts.map((value, i) => (phase[i] === wanted ? value : null)));
    return [one.t_ns.slice(start).map((t) => (t - newest) / 1e6), volts, ...columns];
  }

  #draw() {
    const one = this.data?.channels.find((each) => String(each.channel) === this.channel.value);
    if (!one?.t_ns.length || !this.time.clientWidth) return;
    const columns = this.#columns(one);
    const lines = this.data.spectrum.filter((each) => each.channel === one.channel);
    const mains = mainsFrequency(lines);
    if (this.plots.length) {
      this.plots[0].plot.setData(columns);
      this.plots[1].update(lines, mains);
    } else this.plots = [this.#scopePlot(columns), spectrumPlot(this.frequency, lines, mains)];
    const rate = Number.isFinite(one.rate_hz) ? `${one.rate_hz.toFixed(1)} conversions/s` : "";
    const hum = mains ? `the strongest lines fit mains of ${mains} Hz` : "no mains line stands out";
    text(
      this.words,
      [`${columns[0].length} of ${one.t_ns.length} conversions shown`, rate, hum].filter(Boolean).join(" · "),
    );
    const [low, high] = [Math.min(...columns[1]), Math.max(...columns[1])];
    this.time.setAttribute("aria-label", `Raw conversions, ${low.toFixed(4)} to ${high.toFixed(4)} V`);
    this.frequency.setAttribute("aria-label", `Spectrum of the raw conversions, ${hum}`);
  }

  #scopePlot(columns) {
    const height = () => 260;
    const points = ([label, name]) => ({
      label,
      stroke: css(name),
      paths: () => null,
      points: { show: true, size: 5, fill: css(name), width: 0 },
    });
    const plot = new uPlot(
      {
        width: this.time.clientWidth,
        height: height(),
        legend: { show: false },
        scales: { x: { time: false } },
        axes: [numberAxis((_, splits) => splits.map(String)), valueAxis()],
        cursor: { points: { show: false }, drag: { x: true, y: true, uni: 20 } },
        series: [{}, { stroke: css("--grid-strong"), width: 1, points: { show: false } }, ...PHASES.map(points)],
      },
      columns,
      this.time,
    );
    return { plot, stop: followWidth(plot, this.time, height) };
  }
}
