// Purpose: what is known of a unit's computer, in words, and the buttons that make it blink, start anew or switch off.

import { command, path, post } from "./api.js";
import { act, h, text } from "./dom.js";
import { fixed } from "./format.js";
import { setting } from "./units.js";

const SURE_MS = 4000; // a button that asks "sure?" goes back after this

/** The figures of a unit's computer now, as words; those that are bad are told apart. */
export function figures(unit) {
  const told = setting(unit, "monitor", "computer_statistics")?.value ?? {};
  const words = [];
  const say = (name, words_of, bad = () => false) => {
    const value = told[name];
    if (Number.isFinite(value)) words.push([words_of(value), bad(value) ? "warn" : ""]);
  };
  say("cpu_usage_percent", (value) => `CPU ${fixed(value, 0)} %`);
  say(
    "cpu_temperature_celcius",
    (value) => `${fixed(value, 0)} °C`,
    (value) => value >= 80,
  );
  say("available_memory_percent", (value) => `memory ${fixed(100 - value, 0)} %`);
  say(
    "disk_usage_percent",
    (value) => `disk ${fixed(value, 0)} %`,
    (value) => value >= 95,
  );
  say("wifi_signal_dbm", (value) => `Wi-Fi ${fixed(value, 0)} dBm`);
  if (told.under_voltage) words.push(["under-voltage", "warn"]);
  const offset = unit.clock_offset_s;
  if (Number.isFinite(offset) && Math.abs(offset) > 2) words.push([`clock ${fixed(offset, 1)} s off`, "warn"]);
  return words;
}

/** Draw the figures into an element; it is rebuilt only when they change. */
export function showFigures(element, unit) {
  const words = figures(unit);
  const key = words.join();
  if (element.dataset.words === key) return;
  element.dataset.words = key;
  element.replaceChildren(
    ...(words.length
      ? words.map(([label, tone]) => h("span", { class: `flag ${tone}` }, label))
      : [h("span", { class: "hint" }, "nothing told yet")]),
  );
}

/** A button that is asked twice before it does something. */
function sure(label, answer, work) {
  const button = h("button", { type: "button" }, label);
  let timer = 0;
  const back = () => {
    clearTimeout(timer);
    timer = 0;
    text(button, label);
  };
  button.addEventListener("click", async () => {
    if (timer) {
      back();
      await act(button, answer, work);
      return;
    }
    text(button, `${label}: sure?`);
    timer = setTimeout(back, SURE_MS);
  });
  return button;
}

/** Identify, reboot, shut down: buttons and the answer beside them. */
export function actions(name) {
  const answer = h("output", { class: "answer" });
  const identify = h("button", { type: "button" }, "Identify");
  identify.addEventListener("click", () =>
    act(identify, answer, async () => `its LED blinks for ${(await command(name, "identify")).seconds} s`),
  );
  const power = async (action, said) => {
    await post(path`/api/units/${name}/power`, { action });
    return said;
  };
  return h(
    "div",
    { class: "row" },
    identify,
    sure("Reboot", answer, () => power("reboot", "it starts anew")),
    sure("Shut down", answer, () => power("shutdown", "it switches off")),
    answer,
  );
}
