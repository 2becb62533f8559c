// Purpose: the few helpers that build elements and run a user's action with its answer shown beside the control.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "hidden") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An HTML element: `h("button", {class: "quiet", onclick: f}, "text")`. */
export const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/** An SVG element. */
export const s = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

export const $ = (selector, root = document) => root.querySelector(selector);

/** Set the text only when it differs: the browser then has nothing to lay out again. */
export function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

/** An option list; keeps the selected value when it is still there. */
export function options(select, entries) {
  const before = select.value;
  select.replaceChildren(...entries.map(([value, label]) => h("option", { value }, label)));
  if (entries.some(([value]) => value === before)) select.value = before;
}

/** A limit in words: a range of two numbers, a list of what is known, or one bound. */
function limit(value) {
  const range = Array.isArray(value) && value.length === 2 && value.every(Number.isFinite);
  return range ? value.join(" to ") : [value].flat().join(", ");
}

/** What went wrong, in one line: the message, then the remedy where the server knows one. */
export function reason(error) {
  const parts = [error.message || String(error)];
  if (error.limit !== undefined && error.limit !== null) parts.push(`allowed: ${limit(error.limit)}`);
  if (error.remedy) parts.push(error.remedy);
  return parts.join(" · ");
}

/** Show an answer in an <output>: kind is "busy", "done" or "error". */
export function answer(output, kind, message) {
  output.dataset.kind = kind;
  text(output, message);
}

/**
 * Run a user's action: the button is off and the output says so while it runs; then the output shows what was done or
 * why not. `work` returns the text of success. Nothing fails silently.
 */
export async function act(button, output, work, busy = "asking the unit …") {
  button.disabled = true;
  answer(output, "busy", busy);
  try {
    answer(output, "done", `✓ ${await work()}`);
    return true;
  } catch (error) {
    answer(output, "error", `✗ ${reason(error)}`);
    return false;
  } finally {
    button.disabled = false;
  }
}

/** A problem of the whole page, at its top; an empty message takes it away. */
export function notice(message) {
  const line = document.getElementById("notice");
  text(line, message);
  line.hidden = !message;
}

/** A piece of state kept by the browser; without storage it lasts for one page. */
export function remember(key, value) {
  try {
    if (value !== undefined) localStorage.setItem(key, value);
    return localStorage.getItem(key);
  } catch {
    return value ?? null;
  }
}
