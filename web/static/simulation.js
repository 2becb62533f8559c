// Purpose: the disturbances and faults of a simulated vial, as grouped inputs; each is sent when it is changed.

import { command, get, path } from "./api.js";
import { answer, h, reason } from "./dom.js";

// the unit stands behind the input; in the name it would be said twice
const UNIT_SUFFIX = /(?<!_per)_(degc|ml|h|s|ms|us|ns|hz|v|mv|w|rpm|percent|ppm|g_per_l|per_hour|j_per_k|w_per_k)$/;

export class SimulationPanel {
  constructor(root, unit) {
    this.unit = unit;
    this.box = h("div", { class: "stack" });
    this.answer = h("output", { class: "answer" });
    root.append(
      h(
        "p",
        { class: "hint" },
        "The vial behind this unit is a physical model. Change what disturbs it, and see what the readings, the flags and the loop make of it.",
      ),
      this.answer,
      this.box,
    );
    this.#load();
  }

  async #load() {
    try {
      const list = await get(path`/api/units/${this.unit}/simulation`);
      this.#show(list);
    } catch (error) {
      answer(this.answer, "error", `✗ ${reason(error)}`);
      this.answer.append(
        " ",
        h("button", { type: "button", class: "quiet", onclick: () => this.#retry() }, "Try again"),
      );
    }
  }

  #retry() {
    answer(this.answer, "busy", "asking the unit …");
    this.#load().then(() => this.answer.dataset.kind === "busy" && answer(this.answer, "done", ""));
  }

  #show(parameters) {
    const groups = group(parameters);
    const blocks = [...groups].map(([name, members], i) =>
      h(
        "details",
        { class: "panel", open: i === 0 },
        h("summary", {}, name.replaceAll("_", " "), h("span", { class: "hint" }, ` ${members.length}`)),
        h("div", { class: "parameters" }, ...members.map((one) => this.#field(one))),
      ),
    );
    this.box.replaceChildren(...blocks);
  }

  #field(parameter) {
    const one = { ...parameter, unit: parameter.unit.replace("degC", "°C") };
    const id = `sim-${one.name}`;
    const output = h("output", { class: "answer" });
    const input = h("input", {
      id,
      type: "number",
      min: one.low,
      max: one.high,
      step: "any",
      value: one.value ?? one.default,
      "aria-describedby": `${id}-help`,
    });
    const back = h(
      "button",
      {
        type: "button",
        class: "quiet",
        title: `Back to ${one.default}`,
        "aria-label": `${one.name} back to ${one.default}`,
      },
      "↺",
    );
    let inForce = Number(input.value);
    const mark = () => (back.hidden = Number(input.value) === one.default);
    const send = async () => {
      const value = Number(input.value);
      if (input.value === "" || !input.checkValidity()) {
        answer(output, "error", `✗ allowed: ${one.low} to ${one.high} ${one.unit}; ${inForce} stays in force`);
        return;
      }
      answer(output, "busy", "…");
      try {
        const result = await command(this.unit, "simulate", { set: { [one.name]: value } });
        inForce = result.simulation?.[one.name] ?? value;
        input.value = inForce;
        answer(output, "done", "✓ in force");
      } catch (error) {
        answer(output, "error", `✗ ${reason(error)}; ${inForce} stays in force`);
      }
      mark();
    };
    input.addEventListener("change", send);
    back.addEventListener("click", () => {
      input.value = one.default;
      send();
    });
    mark();
    const range = `${one.low} to ${one.high}${one.unit ? ` ${one.unit}` : ""}`;
    return h(
      "div",
      { class: "parameter" },
      h("label", { for: id }, one.name.replace(UNIT_SUFFIX, "").replaceAll("_", " ")),
      h("span", { class: "row" }, input, h("span", { class: "unit-of" }, one.unit), back, output),
      h("p", { class: "hint", id: `${id}-help` }, `${one.help} (${range})`),
    );
  }
}

function group(parameters) {
  const groups = new Map();
  for (const one of parameters) groups.set(one.group, [...(groups.get(one.group) ?? []), one]);
  return groups;
}
