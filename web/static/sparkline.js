// Purpose: the last minutes of one value as a small line without axes, on a canvas.

import { css } from "./palette.js";
import { redraw } from "./schedule.js";
import { BinnedSeries } from "./series.js";
import { h } from "./dom.js";

export const SPARK_SECONDS = 300;
const BINS = 100;

export class Sparkline {
  constructor(label) {
    this.bins = new BinnedSeries(SPARK_SECONDS / BINS, BINS + 1);
    this.canvas = h("canvas", { class: "spark", role: "img", "aria-label": label });
    this.draw = () => this.#draw();
  }

  addAll(series) {
    this.bins.addAll(series);
    redraw(this.draw);
  }

  /** Returns without drawing when the value only changes the newest bin's mean: the next bin draws it. */
  add(t, value) {
    const head = this.bins.head;
    this.bins.add(t, value, value, value);
    if (this.bins.head !== head) redraw(this.draw);
  }

  #draw() {
    const { canvas, bins } = this;
    const ratio = devicePixelRatio;
    const width = Math.round(canvas.clientWidth * ratio);
    const height = Math.round(canvas.clientHeight * ratio);
    if (!width) return;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const ctx = canvas.getContext("2d");
    ctx.clearRect(0, 0, width, height);
    const { mean } = bins.columns(bins.head - BINS + 1, bins.head);
    const known = mean.filter((value) => value !== null);
    if (known.length < 2) return;
    const low = Math.min(...known);
    const span = Math.max(Math.max(...known) - low, 0.002);
    const middle = low + (Math.max(...known) - low) / 2;
    const y = (value) => height / 2 - ((value - middle) / span) * (height - 6 * ratio);
    ctx.beginPath();
    let pen = false;
    let last = null;
    mean.forEach((value, i) => {
      if (value === null) {
        pen = false;
        return;
      }
      const x = (i / (BINS - 1)) * (width - 6 * ratio) + 3 * ratio;
      if (pen) ctx.lineTo(x, y(value));
      else ctx.moveTo(x, y(value));
      pen = true;
      last = [x, y(value)];
    });
    ctx.strokeStyle = css("--accent");
    ctx.lineWidth = 1.5 * ratio;
    ctx.lineJoin = "round";
    ctx.stroke();
    ctx.beginPath();
    ctx.arc(...last, 2.4 * ratio, 0, 2 * Math.PI);
    ctx.fillStyle = css("--accent");
    ctx.fill();
  }
}
