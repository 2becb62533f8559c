// Purpose: which units the overview shows: those that a search finds, a page of them at a time, so that a thousand units
// cost a browser no more than the ones on the screen.

import { STATES } from "./card.js";
import { h, text } from "./dom.js";
import { experimentOf, namesInOrder, stateOf, units } from "./units.js";

export const PAGE_UNITS = 48;
const TYPING_MS = 200;

export class Pages {
  /** `changed()` is called when the user wants to see others. */
  constructor(root, changed) {
    this.root = root;
    this.changed = changed;
    this.page = 0;
    this.words = [];
    this.timer = 0;
    const place = "Find units by name, experiment or state";
    this.search = h("input", { type: "search", placeholder: place, "aria-label": place, oninput: () => this.#typed() });
    const step = (by) => () => {
      this.page += by;
      this.changed();
    };
    this.back = h("button", { type: "button", class: "quiet", onclick: step(-1) }, "← Previous");
    this.next = h("button", { type: "button", class: "quiet", onclick: step(1) }, "Next →");
    this.where = h("output", { class: "hint" });
    root.append(this.search, this.where, this.back, this.next);
  }

  #typed() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
      this.page = 0;
      this.changed();
    }, TYPING_MS);
  }

  #matches(unit) {
    const all = `${unit.unit} ${experimentOf(unit)} ${STATES[stateOf(unit)]}`.toLowerCase();
    return this.words.every((word) => all.includes(word));
  }

  /** The names to be shown now, in order; the controls then say which they are. */
  names() {
    const found = namesInOrder().filter((name) => this.#matches(units.get(name)));
    const last = Math.max(0, Math.ceil(found.length / PAGE_UNITS) - 1);
    this.page = Math.max(0, Math.min(this.page, last));
    const first = this.page * PAGE_UNITS;
    const shown = found.slice(first, first + PAGE_UNITS);
    this.root.hidden = units.size <= PAGE_UNITS && !this.words.length;
    this.back.disabled = this.page === 0;
    this.next.disabled = this.page === last;
    text(this.where, shown.length ? `${first + 1} to ${first + shown.length} of ${found.length}` : "none found");
    return shown;
  }
}
