// Purpose: how well the loop keeps its time: a histogram of lateness on logarithmic axes, percentiles and counters.

import { h, s, text } from "./dom.js";
import { count, nanoseconds } from "./format.js";
import { redraw } from "./schedule.js";

const WIDTH = 640;
const HEIGHT = 200;
const BASE = HEIGHT - 24;
const PERCENTILES = [[0.5, "p50"], [0.99, "p99"], [0.999, "p99.9"]];
const GOOD_WHEN_ZERO = /overrun|missed|drop|error|lost|fault|refused|hole|gap/;

/** Histograms of a status: [{name, upper_ns, counts}], one for each thread of the loop. */
export function histograms(status) {
  const found = status?.lateness ?? status?.histogram ?? status?.counters?.lateness;
  if (!found || typeof found !== "object") return [];
  const parts = Array.isArray(found.counts) ? [["loop", found]] : Object.entries(found);
  return parts.filter(([, one]) => Array.isArray(one?.counts)).map(([name, one]) => {
    const edges = one.upper_ns ?? one.edges_ns ?? one.bounds_ns ?? one.counts.map((_, i) => 2 ** i);
    return { name, counts: one.counts, upper_ns: edges.length > one.counts.length ? edges.slice(1) : edges };
  });
}

/** The upper edge of the bin that holds the q-quantile, in ns; NaN without data. */
export function quantile({ upper_ns, counts }, q) {
  const total = counts.reduce((sum, one) => sum + one, 0);
  if (!total) return NaN;
  let sum = 0;
  for (let i = 0; i < counts.length; i++) {
    sum += counts[i];
    if (sum >= q * total) return upper_ns[i] ?? upper_ns.at(-1);
  }
  return upper_ns.at(-1);
}

/** Counters of a status as flat pairs; nested maps become "part: name". */
export function counters(status) {
  const source = status?.counters ?? {};
  return Object.entries(source).flatMap(([name, value]) => {
    if (typeof value === "number") return [[name, value]];
    if (!value || typeof value !== "object" || Array.isArray(value)) return [];
    return Object.entries(value).filter(([, one]) => typeof one === "number").map(([part, one]) => [`${name}: ${part}`, one]);
  });
}

export class LoopPanel {
  constructor(root, unit) {
    this.status = unit.status;
    this.figures = h("div", { class: "panels" });
    this.table = h("dl", { class: "counters panel" });
    root.append(
      h("p", { class: "hint" }, "Lateness: how long after its planned time a thread of the loop began its work. A bar counts one octave or less; both axes are logarithmic."),
      this.figures,
      h("h3", {}, "Counters since the worker started"),
      this.table,
    );
    this.draw = () => this.#draw();
    redraw(this.draw);
  }

  update(unit) {
    this.status = unit.status;
    redraw(this.draw);
  }

  #draw() {
    const found = histograms(this.status);
    if (found.length) this.figures.replaceChildren(...found.map((one) => this.#figure(one)));
    else text(this.figures, "The worker has sent no histogram yet.");
    const rows = counters(this.status);
    if (!rows.length) text(this.table, "The worker has sent no counters yet.");
    else this.table.replaceChildren(...rows.map(([name, value]) => this.#row(name, value)));
  }

  #row(name, value) {
    const tone = GOOD_WHEN_ZERO.test(name) ? (value > 0 ? "warn" : "good") : "";
    return h("div", { class: tone, "data-counter": name }, h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, count(value)));
  }

  #figure(one) {
    const marks = PERCENTILES.map(([q, label]) => [label, quantile(one, q)]);
    const words = marks.map(([label, ns]) => `${label} ${nanoseconds(ns)}`).join(" · ");
    const total = one.counts.reduce((sum, each) => sum + each, 0);
    return h(
      "figure",
      { class: "panel histogram" },
      h("figcaption", {}, h("h3", {}, one.name), h("span", { class: "hint" }, `${count(total)} wake-ups`)),
      this.#bars(one, marks),
      h("p", { class: "percentiles" }, words),
    );
  }

  #bars({ name, upper_ns, counts }, marks) {
    const used = counts.map((each, i) => (each ? i : -1)).filter((i) => i >= 0);
    const first = Math.max(0, (used[0] ?? 0) - 1);
    const last = Math.min(counts.length - 1, (used.at(-1) ?? 0) + 1);
    const step = WIDTH / (last - first + 1);
    const top = Math.log10(Math.max(10, ...counts)) + 0.05;
    const label = `Histogram of lateness, ${name}: ${marks.map(([mark, ns]) => `${mark} ${nanoseconds(ns)}`).join(", ")}`;
    const picture = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
    const edge = (i) => (i - first) * step;
    for (let i = first; i <= last; i++) {
      const height = counts[i] ? (Math.log10(counts[i]) + 0.3) / (top + 0.3) * (BASE - 8) : 0;
      const title = s("title", {}, `up to ${nanoseconds(upper_ns[i])}: ${count(counts[i])}`);
      picture.append(s("rect", { class: "bar", x: edge(i) + 0.5, y: BASE - height, width: Math.max(1, step - 1), height }, title));
      const decade = i > first && Math.floor(Math.log10(upper_ns[i])) > Math.floor(Math.log10(upper_ns[i - 1]));
      if (!decade) continue;
      const x = edge(i + 1);
      picture.append(s("line", { class: "tick", x1: x, x2: x, y1: 4, y2: BASE + 4 }));
      const words = nanoseconds(10 ** Math.floor(Math.log10(upper_ns[i])));
      picture.append(s("text", { class: "tick-label", x, y: HEIGHT - 6, "text-anchor": x > WIDTH - 30 ? "end" : "middle" }, words));
    }
    marks.forEach(([mark, ns], row) => {
      const i = upper_ns.indexOf(ns);
      if (i < 0) return;
      const x = edge(i + 1);
      const end = x > WIDTH - 60;
      picture.append(s("line", { class: "mark", x1: x, x2: x, y1: 2, y2: BASE }));
      picture.append(s("text", { class: "mark-label", x: x + (end ? -4 : 4), y: 14 + 14 * row, "text-anchor": end ? "end" : "start" }, mark));
    });
    return picture;
  }
}
