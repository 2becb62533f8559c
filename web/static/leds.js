// Purpose: the LED channels of a unit, a row each: set by hand, with what it gives now and why it is dark.

import { command } from "./api.js";
import { act, h, text } from "./dom.js";
import { fixed } from "./format.js";
import { setting } from "./units.js";

const output = () => h("output", { class: "answer", "aria-live": "polite" });

export class Leds {
  constructor(unit) {
    this.unit = unit;
    this.rows = Object.entries(unit.limits?.leds ?? {}).map(([letter, max]) => this.#row(letter, max));
    this.element = h(
      "section",
      { class: "panel", id: "leds" },
      h("h3", {}, "LEDs"),
      this.rows.length === 0 && h("p", { class: "hint" }, "This board has no LED channels."),
      ...this.rows.map((row) => row.element),
    );
  }

  #row(letter, max) {
    const id = `set-led-${letter}`;
    const value = setting(this.unit, "leds", letter)?.value ?? 0;
    const input = h("input", { id, type: "number", min: 0, max, step: "any", required: true, value });
    const button = h("button", { type: "submit" }, "Set");
    const answer = output();
    const inForce = h("span", { class: "hint" });
    const submit = (event) => {
      event.preventDefault();
      act(button, answer, async () => {
        const result = await command(this.unit.unit, "led", { channels: { [letter]: Number(input.value) } });
        const { set, held } = result.channels[letter];
        return held ? `set to ${fixed(set, 1)} %; ${held}` : `${fixed(set, 1)} % in force`;
      });
    };
    const label = h("label", { for: id }, `${letter} (%)`);
    return { letter, inForce, element: h("form", { class: "row", onsubmit: submit }, label, input, button, inForce, answer) };
  }

  /** Show what each channel gives. */
  draw() {
    const given = setting(this.unit, "leds", "intensity")?.value ?? {};
    const held = setting(this.unit, "leds", "held")?.value ?? [];
    for (const { letter, inForce } of this.rows) {
      const now = Number.isFinite(given[letter]) ? `gives ${fixed(given[letter], 1)} %` : "";
      text(inForce, held.includes(letter) ? "dark while OD is read" : now);
    }
  }
}
