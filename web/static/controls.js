// Purpose: the controls of a unit: jobs, stirring speed, blank, OD light, LEDs, experiment. Each shows the worker's answer beside it.

import { command, get, path, put, remove } from "./api.js";
import { act, h, notice, options, reason, text } from "./dom.js";
import { fixed, jobName } from "./format.js";
import { Pumps } from "./pumps.js";
import { Leds } from "./leds.js";
import { experimentOf, odChannels, setting } from "./units.js";

const RUNNING = ["ready", "init"];
const BLANK_SECONDS = 10;

const output = () => h("output", { class: "answer", "aria-live": "polite" });
const panel = (title, ...children) => h("section", { class: "panel" }, h("h3", {}, title), ...children);

export class Controls {
  constructor(root, unit) {
    this.unit = unit;
    this.rows = new Map();
    this.jobs = h("ul", { class: "jobs" });
    this.leds = new Leds(unit);
    root.append(
      panel("Jobs", this.jobs),
      this.#number("Stirring speed", "stirring", "target_rpm", "rpm", [0]),
      this.#blank(),
      this.#number("Temperature", "temperature_automation", "target_temperature", "°C", [0]),
      this.#number("OD light", "od_reading", "ir_led_intensity", "%", [0, 100]),
      this.leds.element,
      this.#experiment(),
    );
    this.pumps = new Pumps(root, unit, panel, output);
    this.draw = () => this.#draw();
    this.draw();
  }

  #job(job) {
    const state = h("span", { class: "job-state" });
    const button = h("button", { type: "button" });
    const answer = output();
    const row = {
      state,
      button,
      element: h("li", { "data-job": job }, h("strong", {}, jobName(job)), state, button, answer),
    };
    button.addEventListener("click", () =>
      act(button, answer, async () => {
        const verb = button.dataset.verb;
        const result = await command(this.unit.unit, verb, { job });
        this.unit.jobs[job] = result.state ?? this.unit.jobs[job];
        return `${verb === "start" ? "started" : "stopped"}${result.state ? `: ${result.state}` : ""}`;
      }).then(this.draw),
    );
    this.rows.set(job, row);
    this.jobs.append(row.element);
    return row;
  }

  #number(title, job, name, unit, limits) {
    const id = `set-${name}`;
    const [min, max] = this.unit.limits?.[name] ?? limits;
    const value = setting(this.unit, job, name)?.value ?? "";
    const input = h("input", {
      id,
      type: "number",
      min,
      max,
      step: "any",
      required: true,
      value,
      inputmode: "decimal",
    });
    const button = h("button", { type: "submit" }, "Set");
    const answer = output();
    const inForce = h("p", { class: "hint" });
    this[name] = { inForce, unit, job, hint: max ? `allowed: ${min} to ${max} ${unit}` : "" };
    const submit = (event) => {
      event.preventDefault();
      act(button, answer, async () => {
        const result = await command(this.unit.unit, "set", { job, setting: name, value: Number(input.value) });
        return `${result.value ?? input.value} ${unit} in force`;
      });
    };
    const form = h(
      "form",
      { class: "row", onsubmit: submit },
      h("label", { for: id }, `${unit === "%" ? "Intensity" : "Target"} (${unit})`),
      input,
      button,
      answer,
    );
    return panel(title, inForce, form);
  }

  #blank() {
    const answer = output();
    answer.id = "blank-answer";
    const take = h("button", { id: "take-blank", type: "button" }, `Take blank (${BLANK_SECONDS} s)`);
    const clear = h("button", { id: "clear-blank", type: "button", class: "quiet" }, "Clear");
    const run = async (button, fields, verb) => {
      const other = button === take ? clear : take;
      other.disabled = true;
      const busy = fields.clear ? "clearing …" : `measuring for ${BLANK_SECONDS} s: keep the vial as it is …`;
      await act(
        button,
        answer,
        async () => this.#blankWords(await command(this.unit.unit, "blank", fields), verb),
        busy,
      );
      other.disabled = false;
    };
    take.addEventListener("click", () => run(take, { seconds: BLANK_SECONDS }, "blank taken"));
    clear.addEventListener("click", () => run(clear, { clear: true }, "blank cleared"));
    this.blank = h("p", { class: "hint" });
    const help = "The signal of the vial with medium and no cells, subtracted from every later reading.";
    return panel("Blank", h("p", { class: "hint" }, help), this.blank, h("div", { class: "row" }, take, clear, answer));
  }

  #blankWords(result, verb) {
    const values = Object.entries(result.blank ?? {}).filter(([, value]) => Number.isFinite(value));
    const words = values.map(([channel, value]) => `${this.#angleOf(channel)} ${fixed(value, 4)} AU`);
    return words.length && verb === "blank taken" ? `${verb}: ${words.join(", ")}` : verb;
  }

  #angleOf(channel) {
    const one = odChannels(this.unit).find((each) => String(each.channel) === channel || each.stream === channel);
    return one ? `${one.angle}°` : `channel ${channel}`;
  }

  #experiment() {
    const answer = output();
    const select = h("select", { "aria-label": "Experiment" });
    const button = h("button", { type: "submit" }, "Assign");
    const submit = (event) => {
      event.preventDefault();
      act(
        button,
        answer,
        async () => {
          const { unit } = this.unit;
          const before = experimentOf(this.unit);
          if (select.value) await put(path`/api/experiments/${select.value}/units/${unit}`);
          else if (before) await remove(path`/api/experiments/${before}/units/${unit}`);
          this.unit.experiment = select.value;
          this.draw();
          return select.value ? `assigned to ${select.value}` : "in no experiment";
        },
        "asking the leader …",
      );
    };
    get("/api/experiments")
      .then((list) => {
        options(select, [["", "none"], ...list.map(({ name }) => [name, name])]);
        select.value = experimentOf(this.unit);
      })
      .catch((error) => notice(`Experiments could not be loaded: ${reason(error)}`));
    this.assigned = h("p", { class: "hint" });
    return panel(
      "Experiment",
      this.assigned,
      h("form", { class: "row", onsubmit: submit }, select, button, answer),
      h("p", {}, h("a", { href: "/experiments" }, "Create or download experiments")),
    );
  }

  #draw() {
    for (const [job, state] of Object.entries(this.unit.jobs)) {
      const row = this.rows.get(job) ?? this.#job(job);
      const running = RUNNING.includes(state);
      text(row.state, state ?? "unknown");
      row.state.dataset.state = state;
      text(row.button, running ? "Stop" : "Start");
      row.button.dataset.verb = running ? "stop" : "start";
      row.button.setAttribute("aria-label", `${running ? "Stop" : "Start"} ${jobName(job)}`);
      row.button.hidden = job === "monitor" || job === "bioreactor";
    }
    for (const name of ["target_rpm", "target_temperature", "ir_led_intensity"]) {
      const { inForce, unit, job, hint } = this[name];
      const value = setting(this.unit, job, name)?.value;
      text(inForce, [Number.isFinite(value) ? `in force: ${value} ${unit}` : "", hint].filter(Boolean).join(" · "));
    }
    this.pumps.draw();
    this.leds.draw();
    const blanks = odChannels(this.unit).map((one) => [
      one.angle,
      setting(this.unit, "od_reading", `blank${one.channel}`)?.value,
    ]);
    const taken = blanks.filter(([, value]) => Number.isFinite(value) && value !== 0);
    text(
      this.blank,
      taken.length
        ? `in force: ${taken.map(([angle, value]) => `${angle}° ${fixed(value, 4)} AU`).join(", ")}`
        : "none in force",
    );
    text(this.assigned, experimentOf(this.unit) ? `now in ${experimentOf(this.unit)}` : "now in no experiment");
  }
}
