// Purpose: numbers, times and flags as people read them.

const MISSING = "–";

/** Decimals so that an uncertainty has one significant digit (two when it starts with 1). */
export function decimalsOf(error) {
  if (!(error > 0)) return null;
  const exponent = Math.floor(Math.log10(error));
  const leading = Math.floor(error / 10 ** exponent + 1e-9);
  return Math.min(7, Math.max(0, leading === 1 ? 1 - exponent : -exponent));
}

/** `{value: "0.1234", error: "0.0005"}`: both end at the same digit; error is "" when it is not known. */
export function withError(value, error, fallback = 4) {
  if (!Number.isFinite(value)) return { value: MISSING, error: "" };
  const decimals = decimalsOf(error);
  if (decimals === null) return { value: value.toFixed(fallback), error: "" };
  return { value: value.toFixed(decimals), error: error.toFixed(decimals) };
}

export const fixed = (value, decimals) => (Number.isFinite(value) ? value.toFixed(decimals) : MISSING);

const pad = (number) => String(number).padStart(2, "0");

/** Local time of day of a Unix time in seconds. */
export function clock(t, seconds = true) {
  const date = new Date(t * 1000);
  return `${pad(date.getHours())}:${pad(date.getMinutes())}${seconds ? `:${pad(date.getSeconds())}` : ""}`;
}

export const day = (t) => new Date(t * 1000).toLocaleDateString(undefined, { day: "numeric", month: "short" });

/** Local date and time; of today, the time alone. */
export function when(t) {
  const today = new Date().toDateString() === new Date(t * 1000).toDateString();
  return today ? clock(t) : `${day(t)} ${clock(t)}`;
}

export const iso = (t) => (Number.isFinite(t) ? new Date(t * 1000).toISOString() : "");

/** How long ago, from seconds. */
export function ago(seconds) {
  if (!Number.isFinite(seconds)) return "never";
  if (seconds < 2) return "now";
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 129_600) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86_400)} d ago`;
}

/** A time in nanoseconds with a fitting unit. */
export function nanoseconds(ns) {
  if (!Number.isFinite(ns)) return MISSING;
  const [scale, unit] = ns < 1e3 ? [1, "ns"] : ns < 1e6 ? [1e3, "µs"] : ns < 1e9 ? [1e6, "ms"] : [1e9, "s"];
  const scaled = ns / scale;
  return `${scaled < 10 && scale > 1 ? scaled.toFixed(1) : Math.round(scaled)} ${unit}`;
}

const SI = new Intl.NumberFormat("en", { useGrouping: true });
/** A count with thin spaces between the thousands. */
export const count = (number) => (Number.isFinite(number) ? SI.format(number).replaceAll(",", "\u202f") : MISSING);

// flag: words, and how serious it is. What is said elsewhere on the page (badge, statement) has no words here.
const FLAGS = {
  saturated: ["detector saturated", "bad"],
  dark: ["no light seen", "bad"],
  bubbles: ["many bubbles", "warn"],
  dosing: ["dosing", "info"],
  ambient_step: ["room light stepped", "warn"],
  warming: ["LED warming up", "info"],
  stirring_off: ["stirring off", "warn"],
  gap: ["conversions missing", "warn"],
  stale_reference: ["no reference light", "warn"],
  unchopped: ["light always on: room light is in the value", "warn"],
  stalled: ["stirrer stalled", "bad"],
  sensor_lost: ["sensor lost", "bad"],
  below_curve: ["below the calibration", "warn"],
  above_curve: ["above the calibration", "warn"],
  mains_unlocked: ["mains not tracked yet", "info"],
};

/** The flags of several readings in words, each once, the serious ones first: [[words, tone], …]. */
export function flagWords(readings) {
  const names = new Set(readings.flatMap((reading) => reading?.flag_names ?? []));
  const order = { bad: 0, warn: 1, info: 2 };
  return Object.entries(FLAGS)
    .filter(([name]) => names.has(name))
    .map(([, words]) => words)
    .sort((a, b) => order[a[1]] - order[b[1]]);
}

/** Of a unit that is not stirbar's: what its number means is its own affair. */
export const AS_PUBLISHED = "as the unit publishes it";

/** What an OD number is, in one plain sentence. */
export function odStatement(reading) {
  const names = reading?.flag_names ?? [];
  const kind = names.includes("uncalibrated") ? "normalised scatter, uncalibrated" : "calibrated OD";
  const blank = names.includes("blanked") ? `blank ${fixed(reading.blank, 4)} AU subtracted` : "no blank subtracted";
  return `${kind}; ${blank}`;
}

const JOBS = {
  od_reading: "Optical density",
  stirring: "Stirring",
  temperature_automation: "Temperature",
  bioreactor: "Pumps",
  leds: "LEDs",
  monitor: "Monitor",
};
export const jobName = (job) => JOBS[job] ?? job;
