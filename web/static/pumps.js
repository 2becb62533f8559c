// Purpose: the pumps of a unit by hand, and what is in its vial. Each request shows the worker's answer beside it.

import { command } from "./api.js";
import { act, h, text } from "./dom.js";
import { fixed } from "./format.js";
import { setting } from "./units.js";

const PUMPS = [
  ["media", "Media"],
  ["alt_media", "Alternative media"],
  ["waste", "Waste"],
];
const CUTS = { none: "", stopped: "stopped", unguarded: "the guard is silent", unstirred: "nobody sees the stirrer turn" };

const number = (label, max, value = "") =>
  h("input", { type: "number", min: 0, max, step: "any", value, inputmode: "decimal", "aria-label": label });

const words = (dose) =>
  dose.state === "queued" ? `dose ${dose.dose} waits behind ${dose.ahead}` : `dose ${dose.dose} ${dose.state}`;

export class Pumps {
  constructor(root, unit, panel, output) {
    this.unit = unit;
    this.state = h("p", { class: "hint", id: "vial-state" });
    this.doing = h("p", { class: "hint", id: "dose-state" });
    this.warning = h("p", { class: "hint" });
    root.append(panel("Pumps", this.state, this.warning, this.doing, this.#one(output), this.#exchange(output)));
    root.append(panel("Liquid in the vial", this.#volume(output)));
  }

  #value(name) {
    return setting(this.unit, "bioreactor", name)?.value;
  }

  #form(label, button, answer, request, ...inputs) {
    const submit = (event) => {
      event.preventDefault();
      act(button, answer, request);
    };
    return h("form", { class: "row", onsubmit: submit }, h("span", { class: "form-label" }, label), ...inputs, button, answer);
  }

  #one(output) {
    const pump = h("select", { "aria-label": "Pump" }, ...PUMPS.map(([value, name]) => h("option", { value }, name)));
    const amount = number("Amount", 1000, 1);
    const unit = h(
      "select",
      { "aria-label": "Unit of the amount" },
      h("option", { value: "ml" }, "mL"),
      h("option", { value: "seconds" }, "s"),
    );
    const run = h("button", { type: "submit", id: "dose-run" }, "Run");
    return this.#form(
      "One pump",
      run,
      output(),
      async () =>
        words(await command(this.unit.unit, "dose", { pump: pump.value, [unit.value]: Number(amount.value) })),
      pump,
      amount,
      unit,
    );
  }

  #exchange(output) {
    const media = number("Media, mL", 1000, 0.5);
    const alt = number("Alternative media, mL", 1000, 0);
    const run = h("button", { type: "submit", id: "dose-exchange" }, "Exchange");
    const stop = h("button", { type: "button", class: "quiet", id: "dose-stop" }, "Stop pumps");
    const answer = output();
    stop.addEventListener("click", () =>
      act(stop, answer, async () => {
        await command(this.unit.unit, "dose_stop", { finish: false });
        return "stopped";
      }),
    );
    return this.#form(
      "Exchange (mL of media, of alternative media)",
      run,
      answer,
      async () =>
        words(
          await command(this.unit.unit, "exchange", {
            media_ml: Number(media.value),
            alt_media_ml: Number(alt.value),
          }),
        ),
      media,
      alt,
      stop,
    );
  }

  #volume(output) {
    const volume = number("Volume, mL", 1000);
    volume.required = true;
    const button = h("button", { type: "submit", id: "volume-set" }, "I have looked");
    return this.#form(
      "In the vial (mL)",
      button,
      output(),
      async () => {
        const result = await command(this.unit.unit, "set", {
          job: "bioreactor",
          setting: "current_volume_ml",
          value: Number(volume.value),
        });
        return `${fixed(result.value, 2)} mL in force`;
      },
      volume,
    );
  }

  draw() {
    const volume = this.#value("current_volume_ml");
    const fraction = this.#value("alt_media_fraction");
    const unseen = this.#value("unseen_ml");
    const parts = [];
    if (Number.isFinite(volume)) parts.push(`${fixed(volume, 2)} mL in the vial`);
    if (Number.isFinite(fraction)) parts.push(`${fixed(100 * fraction, 1)} % alternative media`);
    if (Number.isFinite(unseen)) parts.push(`${fixed(unseen, 2)} mL came in since somebody looked`);
    text(this.state, parts.join(" · ") || "no account yet");
    const held = this.#value("held");
    const detectable = this.#value("overflow_detectable") ?? true;
    const blind = detectable ? "" : "overflow not detectable: look at the vial";
    text(this.warning, held ? `no dosing: ${held}` : blind);
    const dose = this.#value("dose");
    const queued = this.#value("queued");
    const waits = queued ? ` · ${queued} wait` : "";
    const cut = dose?.cut ? ` (${CUTS[dose.cut] ?? dose.cut})` : "";
    text(this.doing, dose ? `dose ${dose.dose}: ${dose.kind} ${dose.state}${cut}${waits}` : "no pump runs");
  }
}
