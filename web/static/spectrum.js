// Purpose: the spectrum of the raw conversions: amplitude on a logarithmic axis for each phase of the light, with the
// mains frequency and its harmonics marked.

import { followWidth, numberAxis, valueAxis } from "./axes.js";
import { css } from "./palette.js";

const COLOURS = { off: "--phase-off", on: "--phase-on" };
const SUPERSCRIPT = { ..."⁰¹²³⁴⁵⁶⁷⁸⁹", "-": "⁻" };
const MAINS = [50, 60];
const NEAR_HZ = 1.5;

/** 50 or 60 when that line, or its double (lamps flicker at twice the mains), stands out three times; else null. */
export function mainsFrequency(lines) {
  let best = [3, null];
  for (const { hz, volts } of lines) {
    const level = [...volts].sort((a, b) => a - b)[Math.floor(volts.length / 2)] || Infinity;
    for (const f of MAINS) {
      const near = volts.filter((_, i) => Math.abs(hz[i] - f) < NEAR_HZ || Math.abs(hz[i] - 2 * f) < 2 * NEAR_HZ);
      const ratio = Math.max(0, ...near) / level;
      if (ratio > best[0]) best = [ratio, f];
    }
  }
  return best[1];
}

function columns(lines) {
  if (!lines.length) return [[0, 1]];
  const tables = lines.map(({ hz, volts }) => [hz, volts.map((value) => (value > 0 ? value : null))]);
  return uPlot.join(tables);
}

function markMains(plot, mains) {
  const { ctx, bbox } = plot;
  const { min, max } = plot.scales.x;
  ctx.save();
  ctx.strokeStyle = css("--mains");
  ctx.setLineDash([4, 4]);
  ctx.lineWidth = devicePixelRatio;
  for (const base of mains ? [mains] : MAINS) {
    for (let f = base; f < max; f += base) {
      if (f < min) continue;
      const x = Math.round(plot.valToPos(f, "x", true)) + 0.5;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      if (!mains) break; // not known which: only the two fundamentals
    }
  }
  ctx.restore();
}

/** "10⁻⁴" at whole decades, nothing between them. */
function decade(value) {
  const exponent = Math.log10(value);
  if (!value || Math.abs(exponent - Math.round(exponent)) > 1e-9) return "";
  return `10${[...String(Math.round(exponent))].map((digit) => SUPERSCRIPT[digit]).join("")}`;
}

/** A plot in `place`; `update(lines, mains)` shows newer lines of /api/units/<unit>/raw. */
export function spectrumPlot(place, lines, mains) {
  const height = () => 260;
  let marked = mains;
  const plot = new uPlot(
    {
      width: place.clientWidth,
      height: height(),
      legend: { show: false },
      scales: { x: { time: false }, y: { distr: 3 } },
      axes: [numberAxis((_, splits) => splits.map(String)), valueAxis({ values: (_, splits) => splits.map(decade) })],
      cursor: { points: { show: false }, drag: { x: true, y: false } },
      series: [
        {},
        ...lines.map(({ phase }) => ({
          stroke: css(COLOURS[phase]),
          width: 1.2,
          points: { show: false },
          spanGaps: true,
        })),
      ],
      hooks: { draw: [(self) => markMains(self, marked)] },
    },
    columns(lines),
    place,
  );
  const update = (newer, frequency) => {
    marked = frequency;
    plot.setData(columns(newer));
  };
  return { plot, update, stop: followWidth(plot, place, height) };
}
