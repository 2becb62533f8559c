// Purpose: units that were found on the network and are not in the cluster; one that asks is let in by its code.

import { get, path, post } from "./api.js";
import { $, act, h, notice, reason } from "./dom.js";
import { onReturn } from "./live.js";

const EVERY_MS = 10_000;
const WHILE_LISTENING_MS = 3_000;

const place = $("#found");
let shown = "";
let due;

function decide(unit, what, label, quiet) {
  const output = h("output", { class: "answer", "aria-live": "polite" });
  const element = h("button", { type: "button", class: quiet && "quiet" }, label);
  const done = what === "approve" ? "let in: it comes within some seconds" : "forgotten";
  element.addEventListener("click", async () => {
    const asked = () => post(path`/api/cluster/found/${unit.unit_id}/${what}`, { code: unit.code }).then(() => done);
    if (await act(element, output, asked, "…")) setTimeout(load, WHILE_LISTENING_MS);
  });
  return [element, output];
}

function line(unit) {
  const about = [unit.board, unit.version && `stirbar ${unit.version}`, unit.address].filter(Boolean).join(" · ");
  const asks = unit.state === "asks";
  return h(
    "li",
    { "data-unit": unit.unit, "data-state": unit.state },
    h("strong", {}, unit.unit || "unnamed"),
    h("span", { class: "hint" }, about),
    asks
      ? h("span", {}, "shows the code ", h("strong", { class: "code" }, unit.code), "? ", decide(unit, "approve", "Approve"),
          " ", decide(unit, "refuse", "Refuse", true))
      : h("span", { class: "hint" }, "does not ask yet: `stirbar cluster join --ask` on it"),
  );
}

async function load() {
  clearTimeout(due);
  let found;
  try {
    found = await get("/api/cluster/found");
  } catch (error) {
    if (error.status) notice(`Units on the network could not be looked for: ${reason(error)}`);
    found = null;
  }
  due = setTimeout(load, found?.listening ? WHILE_LISTENING_MS : EVERY_MS);
  const text = JSON.stringify(found?.units ?? []);
  if (!found || text === shown) return; // what has not changed is left alone, so that nobody's click goes astray
  shown = text;
  place.replaceChildren(h("h2", {}, "Found, not added"), h("ul", {}, found.units.map(line)));
  place.hidden = !found.units.length;
}

/** Show who is on the network and keep it current. */
export function showFound() {
  onReturn(load);
  return load();
}
