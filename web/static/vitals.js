// Purpose: the charts of how a unit's computer was, from /api/units/<unit>/vitals, fetched when somebody opens them.

import { get, path, serverNow } from "./api.js";
import { Chart } from "./chart.js";
import { actions } from "./computer.js";
import { answer, h, options, reason } from "./dom.js";
import { onTheme } from "./palette.js";

const PERIOD_S = 60; // of the figures
const BINS = 300;
const RANGES = [
  ["21600", "6 h"],
  ["86400", "1 d"],
  ["604800", "7 d"],
];
const SHOWN = {
  cpu_usage_percent: ["Processor in use", 0, 20],
  cpu_temperature_celcius: ["Processor's temperature", 1, 5],
  available_memory_percent: ["Memory available", 0, 20],
  disk_usage_percent: ["Disk in use", 1, 5],
  wifi_signal_dbm: ["Wireless signal", 0, 20],
  under_voltage: ["Supply too low (share of the time)", 2, 1],
  clock_offset_s: ["Clock ahead of the leader's", 3, 0.2],
  spool_bytes: ["Spool on its disk", 0, 1e6],
};

export class VitalsPanel {
  constructor(root, name) {
    this.name = name;
    this.charts = new Map();
    this.message = h("output", { class: "answer" });
    this.range = h("select", { "aria-label": "Time range of the computer's charts" });
    options(this.range, RANGES);
    this.range.value = RANGES[0][0];
    this.range.addEventListener("change", () => this.#load());
    this.box = h("div", { class: "charts vitals" });
    this.details = h(
      "details",
      { class: "panel" },
      h("summary", {}, "charts ", h("span", { class: "hint" }, "processor, memory, disk, supply, clock")),
      h("div", { class: "row" }, this.range, this.message),
      this.box,
    );
    this.details.addEventListener("toggle", () => this.details.open && this.#load());
    root.append(actions(name), this.details);
    onTheme(() => this.charts.forEach((chart) => chart.recolour()));
  }

  #chart(line) {
    let chart = this.charts.get(line.name);
    if (chart) return chart;
    const [title, decimals, least] = SHOWN[line.name];
    const quantity = { key: line.name, title, unit: line.unit_of_value, decimals, least };
    chart = new Chart(quantity, () => {});
    this.charts.set(line.name, chart);
    this.box.append(chart.element);
    return chart;
  }

  async #load() {
    const span = Number(this.range.value);
    const to = serverNow();
    const from = to - span;
    const width = Math.max(PERIOD_S, span / BINS);
    answer(this.message, "busy", "loading …");
    try {
      const query = new URLSearchParams({ from: from.toFixed(3), to: to.toFixed(3), points: Math.ceil(span / width) });
      const { vitals } = await get(`${path`/api/units/${this.name}/vitals`}?${query}`);
      for (const line of vitals.filter((one) => one.name in SHOWN)) {
        const chart = this.#chart(line);
        chart.reset(width, Math.ceil(span / width) + 3);
        chart.addAll(this.name, 0, line);
        chart.show(from, to);
      }
      answer(this.message, "done", vitals.length ? "" : "nothing in this range yet");
    } catch (error) {
      answer(this.message, "error", `✗ ${reason(error)}`);
    }
  }
}
