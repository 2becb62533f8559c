// Purpose: the card of one unit on the overview: what it measures now, and whether that can be trusted.

import { serverNow } from "./api.js";
import { h, text } from "./dom.js";
import { AS_PUBLISHED, ago, fixed, flagWords, iso, odStatement, withError } from "./format.js";
import { redraw } from "./schedule.js";
import { SPARK_SECONDS, Sparkline } from "./sparkline.js";
import { experimentOf, odChannels, setting, stateOf } from "./units.js";

export const STATES = {
  live: "live",
  lost: "lost",
  stale: "no news",
  unknown: "never seen",
};

/** Standard error of a reading as a measure of the culture, or that of the light alone. */
export const errorOf = (reading) =>
  Number.isFinite(reading?.se_culture) ? reading.se_culture : (reading?.se_instrument ?? NaN);

/** The target speed of a unit: from its reading, else from its setting. */
export const targetOf = (unit) => unit.latest.rpm?.reference_v ?? setting(unit, "stirring", "target_rpm")?.value;

/** Elements of flags: words in a tone; they are rebuilt only when the words change. */
export function showFlags(element, readings) {
  const words = flagWords(readings);
  const key = words.join();
  if (element.dataset.words === key) return;
  element.dataset.words = key;
  element.replaceChildren(...words.map(([label, tone]) => h("span", { class: `flag ${tone}` }, label)));
}

const FOREIGN = "Not a stirbar unit: it is shown and stored as far as the broker delivers it, and takes no commands from here";

export class Card {
  constructor(unit) {
    this.unit = unit;
    const part = (name) => (this[name] = h("span", { class: name }));
    this.spark = new Sparkline(`Optical density of ${unit.unit} in the last ${SPARK_SECONDS / 60} minutes`);
    this.label = h("span", { class: "inline" });
    this.state = h("span", { class: "state" });
    this.simulated = h("span", { class: "badge", title: "Numbers come from a simulated vial" }, "simulated");
    this.foreign = h("span", { class: "badge", title: FOREIGN }, "foreign");
    this.flags = h("p", { class: "flags" });
    this.statement = h("p", { class: "hint statement" });
    this.seen = h("time", { class: "seen" });
    this.element = h(
      "article",
      { class: "card panel", "data-unit": unit.unit },
      h(
        "header",
        {},
        h("h2", {}, h("a", { href: `/units/${encodeURIComponent(unit.unit)}` }, unit.unit)),
        this.label,
        this.simulated,
        this.foreign,
        this.state,
      ),
      h("p", { class: "od" }, part("value"), part("error"), part("angle")),
      this.statement,
      this.spark.canvas,
      h(
        "dl",
        { class: "facts" },
        h("div", {}, h("dt", {}, "Stirring"), h("dd", {}, part("rpm"), part("target"))),
        h("div", {}, h("dt", {}, "Temperature"), h("dd", {}, part("temperature"))),
        h("div", {}, h("dt", {}, "Experiment"), h("dd", {}, part("experiment"))),
        h("div", {}, h("dt", {}, "Last seen"), h("dd", {}, this.seen)),
      ),
      this.flags,
    );
    this.draw = () => this.#draw();
    this.update(unit);
  }

  /** The stream of the first OD channel, which the card shows. */
  get stream() {
    return odChannels(this.unit)[0]?.stream ?? Object.keys(this.unit.latest).find((name) => /^od\d$/.test(name));
  }

  update(unit) {
    this.unit = unit;
    const reading = unit.latest[this.stream];
    if (reading && reading.t > this.spark.bins.last) this.spark.add(reading.t, reading.value);
    redraw(this.draw);
  }

  #draw() {
    const { unit } = this;
    const state = stateOf(unit);
    const reading = unit.latest[this.stream];
    const { value, error } = withError(reading?.value, errorOf(reading));
    const angle = odChannels(unit)[0]?.angle ?? reading?.angle;
    this.element.dataset.state = state;
    this.state.dataset.state = state;
    text(this.state, STATES[state]);
    this.simulated.hidden = !unit.simulated;
    this.foreign.hidden = !unit.foreign;
    text(this.label, unit.label ?? "");
    text(this.value, value);
    text(this.error, error ? `± ${error} AU` : "AU");
    text(this.angle, angle ? `${angle}°` : "");
    text(this.statement, unit.foreign ? AS_PUBLISHED : reading ? odStatement(reading) : "no reading yet");
    const rpm = unit.latest.rpm?.value;
    const target = targetOf(unit);
    text(this.rpm, Number.isFinite(rpm) ? `${fixed(rpm, rpm < 100 ? 1 : 0)}` : "–");
    text(this.target, Number.isFinite(target) && target > 0 ? ` of ${fixed(target, 0)} rpm` : " rpm");
    text(this.temperature, `${fixed((unit.latest.liquid ?? unit.latest.temperature)?.value, 1)} °C`);
    text(this.experiment, experimentOf(unit) || "none");
    text(this.seen, ago(serverNow() - unit.last_seen));
    this.seen.dateTime = iso(unit.last_seen);
    this.seen.title = iso(unit.last_seen);
    showFlags(this.flags, Object.values(unit.latest));
  }
}
