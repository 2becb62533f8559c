// Purpose: axes, sizes and gaps that all uPlot charts of the page share.

import { clock, day } from "./format.js";
import { css } from "./palette.js";

export const FONT = "12px system-ui, sans-serif";

/** Labels of a time axis in local time, as fine as the distance of the ticks asks for; midnight is the day's name. */
function timeLabels(plot, splits, axis, space, increment) {
  const label = (t) => (increment < 60 ? clock(t) : clock(t, false));
  return splits.map((t) => (increment >= 3600 && label(t) === "00:00" ? day(t) : label(t)));
}

function baseAxis() {
  return {
    font: FONT,
    stroke: css("--muted"),
    grid: { stroke: css("--grid"), width: 1 },
    ticks: { stroke: css("--grid"), width: 1, size: 4 },
  };
}

export const timeAxis = () => ({ ...baseAxis(), values: timeLabels, space: 70, size: 30 });

/** Labels of a value axis, all with the decimals that the distance of the ticks needs. */
function valueLabels(plot, splits) {
  const step = splits.length > 1 ? splits[1] - splits[0] : 1;
  let decimals = 0;
  while (decimals < 7 && Math.abs(step * 10 ** decimals - Math.round(step * 10 ** decimals)) > 1e-6) decimals += 1;
  return splits.map((value) => value.toFixed(decimals));
}

/** A value axis as wide as its longest label, and of one width for usual labels, so that charts stand in line. */
export function valueAxis(extra = {}) {
  const size = (plot, labels) => 16 + 7 * Math.max(6, ...(labels ?? []).map((label) => String(label ?? "").length));
  return { ...baseAxis(), values: valueLabels, size, space: 36, ...extra };
}

export const numberAxis = (values, extra = {}) => ({ ...baseAxis(), values, space: 60, size: 30, ...extra });

/** Keep a chart as wide as its place; returns a function that stops it. */
export function followWidth(plot, place, height) {
  const observer = new ResizeObserver(() => {
    const width = Math.floor(place.clientWidth);
    if (width > 0 && width !== plot.width) plot.setSize({ width, height: height() });
  });
  observer.observe(place);
  return () => observer.disconnect();
}

/** Draw lines across gaps no longer than `seconds`: a slow stream has empty bins that are not losses. */
export function gapsLongerThan(seconds) {
  return (plot, series, first, last, gaps) => {
    const perPixel = (plot.scales.x.max - plot.scales.x.min) / plot.bbox.width;
    return gaps.filter(([from, to]) => (to - from) * perPixel > seconds());
  };
}
