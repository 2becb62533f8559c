// Purpose: how well the loop keeps its time: a histogram of lateness on logarithmic axes, percentiles and counters.

import { h, s, text } from "./dom.js";
import { count, nanoseconds } from "./format.js";
import { redraw } from "./schedule.js";

const WIDTH = 640;
const HEIGHT = 200;
const BASE = HEIGHT - 24;
const LIFT = 0.4; // of a bar that counts one, in decades
const PERCENTILES = [
  [0.5, "p50"],
  [0.99, "p99"],
  [0.999, "p99.9"],
];
const GOOD_WHEN_ZERO = /overrun|missed|drop|error|lost|fault|refused|hole|gap/;

/** Histograms of a status: [{name, bins: [[lower_ns, upper_ns, count], …], worst_ns}], one for each thread of the loop. */
export function histograms(status) {
  return Object.entries(status?.lateness ?? {})
    .filter(([, one]) => Array.isArray(one?.counts))
    .map(([name, one]) => ({ name, bins: one.counts.filter(([, , number]) => number > 0), worst_ns: one.worst_ns }));
}

const totalOf = ({ bins }) => bins.reduce((sum, [, , number]) => sum + number, 0);

/** The upper edge of the bin that holds the q-quantile, in ns; NaN without data. */
export function quantile(histogram, q) {
  const total = totalOf(histogram);
  let sum = 0;
  for (const [, upper, number] of histogram.bins) {
    sum += number;
    if (sum >= q * total) return upper;
  }
  return NaN;
}

/** Counters of a status as flat pairs; nested maps become "part: name". */
export function counters(status) {
  const source = status?.counters ?? {};
  return Object.entries(source).flatMap(([name, value]) => {
    if (typeof value === "number") return [[name, value]];
    if (!value || typeof value !== "object" || Array.isArray(value)) return [];
    return Object.entries(value)
      .filter(([, one]) => typeof one === "number")
      .map(([part, one]) => [`${name}: ${part}`, one]);
  });
}

export class LoopPanel {
  constructor(root, unit) {
    this.status = unit.status;
    this.figures = h("div", { class: "panels" });
    this.table = h("dl", { class: "counters panel" });
    root.append(
      h(
        "p",
        { class: "hint" },
        "Lateness: how long after its planned time a thread of the loop began its work. Both axes are logarithmic.",
      ),
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
    return h(
      "div",
      { class: tone, "data-counter": name },
      h("dt", {}, name.replaceAll("_", " ")),
      h("dd", {}, count(value)),
    );
  }

  #figure(one) {
    const marks = PERCENTILES.map(([q, label]) => [label, quantile(one, q)]);
    const words = marks.map(([label, ns]) => `${label} ${nanoseconds(ns)}`);
    if (Number.isFinite(one.worst_ns)) words.push(`worst ${nanoseconds(one.worst_ns)}`);
    return h(
      "figure",
      { class: "panel histogram", "data-thread": one.name },
      h(
        "figcaption",
        {},
        h("h3", {}, `${one.name} thread`),
        h("span", { class: "hint" }, `${count(totalOf(one))} wake-ups`),
      ),
      one.bins.length ? this.#bars(one, marks) : h("p", { class: "hint" }, "no wake-ups yet"),
      h("p", { class: "percentiles" }, words.join(" · ")),
    );
  }

  #bars({ name, bins }, marks) {
    const first = Math.floor(Math.log10(Math.max(100, bins[0][0])));
    const last = Math.max(first + 2, Math.ceil(Math.log10(bins.at(-1)[1])));
    const place = (ns) => (Math.max(0, Math.log10(Math.max(1, ns)) - first) / (last - first)) * WIDTH;
    const top = Math.log10(Math.max(10, ...bins.map(([, , number]) => number))) + LIFT;
    const label = `Histogram of lateness, ${name}: ${marks.map(([mark, ns]) => `${mark} ${nanoseconds(ns)}`).join(", ")}`;
    const picture = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
    for (let decade = first; decade <= last; decade++) {
      const x = place(10 ** decade);
      const anchor = decade === first ? "start" : decade === last ? "end" : "middle";
      picture.append(
        s("line", { class: "tick", x1: x, x2: x, y1: 4, y2: BASE + 4 }),
        s("text", { class: "tick-label", x, y: HEIGHT - 6, "text-anchor": anchor }, nanoseconds(10 ** decade)),
      );
    }
    for (const [lower, upper, number] of bins) {
      const height = ((Math.log10(number) + LIFT) / top) * (BASE - 10);
      const [x, end] = [place(lower), place(upper)];
      const title = s("title", {}, `${nanoseconds(lower)} to ${nanoseconds(upper)}: ${count(number)}`);
      picture.append(
        s("rect", { class: "bar", x, y: BASE - height, width: Math.max(1, end - x - 0.5), height }, title),
      );
    }
    marks.forEach(([mark, ns], row) => {
      const x = place(ns);
      const end = x > WIDTH - 60;
      const at = { x: x + (end ? -4 : 4), y: 14 + 14 * row, "text-anchor": end ? "end" : "start" };
      picture.append(
        s("line", { class: "mark", x1: x, x2: x, y1: 2, y2: BASE }),
        s("text", { class: "mark-label", ...at }, mark),
      );
    });
    return picture;
  }
}
