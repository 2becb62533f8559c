// Purpose: one chart of one quantity against time: a line and a min-max band for each unit, a legend of buttons that
// shows values and hides lines, and the unit's name at the end of its line.

import { FONT, followWidth, gapsLongerThan, timeAxis, valueAxis } from "./axes.js";
import { h, text } from "./dom.js";
import { clock, fixed } from "./format.js";
import { css, line } from "./palette.js";
import { redraw } from "./schedule.js";
import { BinnedSeries } from "./series.js";

const LABEL_HEIGHT = 13;
const MAX_LABELS = 8;
const LONGEST_PERIOD_MS = 1000;

export class Chart {
  /**
   * quantity: {key, title, unit, note, decimals, least} where `least` is the smallest span of the value axis.
   * zoom(from, to) is called when the user drags over a range of time.
   */
  constructor(quantity, zoom) {
    this.quantity = quantity;
    this.zoom = zoom;
    this.series = new Map(); // unit -> {index, bins, hidden, button, value}
    this.grid = { width: 1, size: 2 };
    this.window = [0, 1];
    this.plot = null;
    this.drawn = -Infinity;
    this.timer = 0;
    this.place = h("div", { class: "plot", role: "img" });
    this.legend = h("div", { class: "legend", role: "group", "aria-label": `Lines of ${quantity.title}` });
    this.cursor = h("span", { class: "hint cursor-time" });
    this.element = h(
      "figure",
      { class: "chart panel", "data-quantity": quantity.key },
      h(
        "figcaption",
        {},
        h("h3", {}, quantity.title),
        h("span", { class: "hint" }, [quantity.unit, quantity.note].filter(Boolean).join(" · ")),
        this.cursor,
      ),
      this.place,
      this.legend,
    );
    this.draw = () => this.#draw();
  }

  /** Forget the data; bins of `width` seconds, `size` of them, from now on. */
  reset(width, size) {
    this.grid = { width, size };
    for (const entry of this.series.values()) entry.bins = new BinnedSeries(width, size);
    this.#rebuild();
  }

  #entry(unit, index) {
    let entry = this.series.get(unit);
    if (entry) return entry;
    const value = h("span", { class: "legend-value" });
    const swatch = h("span", { class: `swatch line-${(index % 8) + 1}` });
    const button = h("button", { type: "button", class: "quiet", "aria-pressed": "true" }, swatch, unit, value);
    entry = { index, bins: new BinnedSeries(this.grid.width, this.grid.size), hidden: false, button, value };
    button.addEventListener("click", () => {
      entry.hidden = !entry.hidden;
      button.setAttribute("aria-pressed", String(!entry.hidden));
      this.#rebuild();
    });
    this.series.set(unit, entry);
    const ordered = [...this.series].sort((a, b) => a[1].index - b[1].index);
    this.series = new Map(ordered);
    this.legend.replaceChildren(...ordered.map(([, one]) => one.button));
    this.#rebuild();
    return entry;
  }

  addAll(unit, index, series) {
    this.#entry(unit, index).bins.addAll(series);
    redraw(this.draw);
  }

  /** Add a live reading: `low` and `high` are of those that it stands for. */
  add(unit, index, t, { value, low, high }) {
    this.#entry(unit, index).bins.add(t, low ?? value, high ?? value, value);
    this.#soon();
  }

  /** Draw when half a bin has passed since the last drawing: earlier there is nothing to be seen. */
  #soon() {
    if (this.timer) return;
    const period_ms = Math.min(LONGEST_PERIOD_MS, 500 * this.grid.width);
    const later = () => {
      this.timer = 0;
      redraw(this.draw);
    };
    this.timer = setTimeout(later, Math.max(0, this.drawn + period_ms - performance.now()));
  }

  /** Time of the newest datum of a unit, -Infinity without one. */
  lastOf(unit) {
    return this.series.get(unit)?.bins.last ?? -Infinity;
  }

  /** Show from..to, in Unix seconds. */
  show(from, to) {
    this.window = [from, to];
    redraw(this.draw);
  }

  /** Take the chart down and draw it anew in the next drawing (new lines, new colours). */
  #rebuild() {
    this.plot?.destroy();
    this.stop?.();
    this.plot = null;
    redraw(this.draw);
  }

  recolour() {
    this.#rebuild();
  }

  visible() {
    return [...this.series].filter(([, entry]) => !entry.hidden);
  }

  #make(width) {
    const gaps = gapsLongerThan(() => Math.max(5, 3.5 * this.grid.width));
    const series = [{}];
    const bands = [];
    for (const [unit, entry] of this.visible()) {
      const { colour, dash } = line(entry.index);
      const edge = { stroke: "transparent", width: 0, points: { show: false }, gaps };
      bands.push({ series: [series.length + 1, series.length], fill: `${colour}2e` });
      series.push(edge, edge, { label: unit, stroke: colour, dash, width: 1.6, points: { show: false }, gaps });
    }
    return new uPlot(
      {
        width,
        height: this.#height(),
        padding: [8, 64, 0, 0],
        legend: { show: false },
        scales: {
          x: { time: true, range: () => this.window },
          y: { range: (plot, low, high) => this.#span(low, high) },
        },
        axes: [timeAxis(), valueAxis()],
        cursor: { y: false, points: { show: false }, drag: { x: true, y: false, setScale: false } },
        series,
        bands,
        hooks: {
          setSelect: [(plot) => this.#selected(plot)],
          setCursor: [(plot) => this.#values(plot.cursor.idx)],
          draw: [(plot) => this.#names(plot)],
        },
      },
      this.#data(),
      this.place,
    );
  }

  #height() {
    return matchMedia("(max-width: 560px)").matches ? 190 : 240;
  }

  /** Value range: the data with a margin, never narrower than the quantity's least span. */
  #span(low, high) {
    if (low === null || high === null) return [0, this.quantity.least];
    const least = this.quantity.least;
    const margin = Math.max(0.08 * (high - low), (least - (high - low)) / 2);
    return [low - margin, high + margin];
  }

  #data() {
    const { width } = this.grid;
    const first = Math.floor(this.window[0] / width);
    const last = Math.floor(this.window[1] / width);
    const columns = [Array.from({ length: last - first + 1 }, (_, i) => (first + i + 0.5) * width)];
    for (const [, entry] of this.visible()) {
      const { low, high, mean } = entry.bins.columns(first, last);
      columns.push(low, high, mean);
    }
    return columns;
  }

  #draw() {
    const width = Math.floor(this.place.clientWidth);
    if (!width || !this.element.isConnected) return;
    this.drawn = performance.now();
    if (!this.plot) {
      this.plot = this.#make(width);
      this.stop = followWidth(this.plot, this.place, () => this.#height());
    } else this.plot.setData(this.#data());
    this.#values(this.plot.cursor.idx);
  }

  #selected(plot) {
    if (plot.select.width < 8) return;
    const from = plot.posToVal(plot.select.left, "x");
    const to = plot.posToVal(plot.select.left + plot.select.width, "x");
    plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    this.zoom(from, to);
  }

  /** Values under the cursor, or the latest ones, in the legend and in the description. */
  #values(index) {
    if (!this.plot) return;
    const { data } = this.plot;
    const { unit, decimals, title } = this.quantity;
    const words = [];
    this.visible().forEach(([name, entry], i) => {
      const column = data[3 * i + 3];
      const value = Number.isInteger(index) ? column?.[index] : column?.findLast((one) => one !== null);
      text(entry.value, Number.isFinite(value) ? fixed(value, decimals) : "–");
      words.push(`${name} ${entry.value.textContent} ${unit}`);
    });
    text(this.cursor, Number.isInteger(index) ? clock(data[0][index]) : "");
    const described = `${title} from ${clock(this.window[0])} to ${clock(this.window[1])}; latest: ${words.join(", ")}`;
    if (!Number.isInteger(index)) this.place.setAttribute("aria-label", described);
  }

  /** Names at the right of the lines, pushed apart where they would overlap. */
  #names(plot) {
    const shown = this.visible();
    if (shown.length > MAX_LABELS) return;
    const ratio = devicePixelRatio;
    const labels = [];
    shown.forEach(([name, entry], i) => {
      const value = plot.data[3 * i + 3].findLast((one) => one !== null);
      if (Number.isFinite(value))
        labels.push({ name, colour: line(entry.index).colour, y: plot.valToPos(value, "y", true) });
    });
    labels.sort((a, b) => a.y - b.y);
    const { left, width, top, height } = plot.bbox;
    const step = LABEL_HEIGHT * ratio;
    labels.forEach((one, i) => (one.y = Math.max(one.y, top + step / 2, i ? labels[i - 1].y + step : 0)));
    const over = labels.length ? labels.at(-1).y - (top + height - step / 2) : 0;
    const { ctx } = plot;
    ctx.save();
    ctx.font = FONT.replace("12px", `${12 * ratio}px`);
    ctx.textBaseline = "middle";
    ctx.textAlign = "left";
    for (const { name, colour, y } of labels) {
      ctx.fillStyle = colour || css("--text");
      ctx.fillText(name.length > 9 ? `${name.slice(0, 8)}…` : name, left + width + 6 * ratio, over > 0 ? y - over : y);
    }
    ctx.restore();
  }
}
