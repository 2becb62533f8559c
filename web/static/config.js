// Purpose: the configuration that the leader distributes: edit, check, save, compare, restore; and how each unit stands.

import { get, path, post, put } from "./api.js";
import { $, act, answer, h, options, reason } from "./dom.js";
import { iso, when } from "./format.js";
import { on, onReturn } from "./live.js";
import { page } from "./shell.js";

const SETTLE_MS = 1500; // the leader looks at what a unit says a moment after it was said
const STATES = { online: ["live", "live"], offline: ["unknown", "stopped"], lost: ["lost", "lost"] }; // colour and word
const scope = $("#scope");
const text = $("#text");
const output = $("#config-answer");
const problems = $("#problems");
let loaded = { text: "", version: 0 };

const query = (more = {}) => new URLSearchParams({ ...(scope.value ? { unit: scope.value } : {}), ...more });
const isChanged = () => text.value !== loaded.text;

function list(lines) {
  problems.hidden = !lines.length;
  problems.replaceChildren(...lines.map((line) => h("li", {}, line)));
}

function show(version) {
  loaded = version;
  text.value = version.text;
  text.setAttribute("aria-busy", "false");
  $("#version").textContent = version.version
    ? `version ${version.version}, ${when(version.t)}, by ${version.who}`
    : "nothing is distributed yet";
  list([]);
}

async function load() {
  show(await get(`/api/config?${query()}`));
  await loadHistory();
  return loaded.version ? `version ${loaded.version}` : "nothing is distributed yet";
}

async function check() {
  const found = await post("/api/config/check", { unit: scope.value, text: text.value });
  list([...found.problems, ...found.warnings.map((line) => `note: ${line}`)]);
  if (found.problems.length) throw new Error(`${found.problems.length} to correct, nothing was saved`);
  return "it is valid";
}

async function save() {
  await check();
  show(await put("/api/config", { unit: scope.value, text: text.value, version: loaded.version }));
  await Promise.all([loadHistory(), loadUnits()]);
  return `saved as version ${loaded.version}`;
}

async function compare(version, before) {
  const found = await get(`/api/config/diff?${query({ from: before, to: version })}`);
  const place = $("#diff");
  place.hidden = false;
  place.replaceChildren(
    ...(found.diff || "no difference\n").split("\n").map((line) => {
      const kind = line.startsWith("+") ? "added" : line.startsWith("-") ? "removed" : "";
      return h("span", { class: kind }, `${line}\n`);
    }),
  );
  place.scrollIntoView({ block: "nearest" });
  return `from version ${found.from} to ${found.to}`;
}

async function restore(version) {
  show(await post("/api/config/restore", { unit: scope.value, version, expected: loaded.version }));
  await Promise.all([loadHistory(), loadUnits()]);
  return `version ${version} is in force again, as version ${loaded.version}`;
}

function historyRow(entry, index, all) {
  const before = all[index + 1]?.version ?? 0;
  const differs = h("button", { type: "button", class: "quiet" }, "Changes");
  differs.addEventListener("click", () => act(differs, output, () => compare(entry.version, before), "…"));
  const again = h("button", { type: "button", class: "quiet", disabled: index === 0 }, "Restore");
  again.addEventListener("click", () => act(again, output, () => restore(entry.version), "restoring …"));
  return h(
    "tr",
    { "data-version": entry.version },
    h("td", {}, String(entry.version)),
    h("td", {}, h("time", { datetime: iso(entry.t), title: iso(entry.t) }, when(entry.t))),
    h("td", {}, entry.who),
    h("td", {}, h("span", { class: "row" }, differs, again)),
  );
}

async function loadHistory() {
  const found = await get(`/api/config/history?${query()}`);
  const place = $("#history");
  place.replaceChildren(...found.map(historyRow));
  place.setAttribute("aria-busy", "false");
}

function unitRow(one) {
  const drift = one.drift.map((entry) => h("li", { "data-what": entry.what }, `${entry.text}; ${entry.remedy}`));
  const [colour, word] = STATES[one.state];
  const use = one.desired.active ? word : "out of use";
  const said = h("output", { class: "answer" });
  const button = (label, restart) => {
    const made = h("button", { type: "button", class: "quiet" }, label);
    const work = async () => {
      const done = await post("/api/cluster/repair", { unit: one.unit, restart });
      await loadUnits();
      return done.restarted[one.unit] ?? "told again";
    };
    made.addEventListener("click", () => act(made, said, work, "asking …"));
    return made;
  };
  return h(
    "tr",
    { "data-unit": one.unit },
    h("td", {}, h("a", { href: path`/units/${one.unit}` }, one.unit)),
    h("td", {}, h("span", { class: "state", "data-state": colour }, use)),
    h("td", {}, one.actual.version === null ? "unknown" : one.actual.version ? String(one.actual.version) : "none"),
    h("td", {}, drift.length ? h("ul", { class: "drift" }, ...drift) : "as it should be"),
    h(
      "td",
      {},
      drift.length ? button("Tell again", false) : null,
      one.restart_needed ? button("Restart worker", true) : null,
      said,
    ),
  );
}

async function loadUnits() {
  const found = await get("/api/cluster/state");
  const place = $("#units");
  place.replaceChildren(...found.map(unitRow));
  place.setAttribute("aria-busy", "false");
  const chosen = scope.value;
  options(scope, [["", "all units"], ...found.map((one) => [one.unit, one.unit])]);
  scope.value = chosen;
}

const failed = (error) => answer(output, "error", `✗ ${reason(error)}`);

page(async () => {
  await loadUnits();
  await load();
  let chosen = scope.value;
  scope.addEventListener("change", () => {
    if (isChanged() && !confirm("Throw away what you have changed?")) scope.value = chosen;
    else load().catch(failed);
    chosen = scope.value;
  });
  $("#save").addEventListener("click", (event) => act(event.currentTarget, output, save, "saving …"));
  $("#check").addEventListener("click", (event) => act(event.currentTarget, output, check, "checking …"));
  $("#reload").addEventListener("click", (event) => act(event.currentTarget, output, load, "loading …"));
  const again = () => loadUnits().catch(failed);
  onReturn(again);
  for (const kind of ["state", "applied", "described"]) on(kind, () => setTimeout(again, SETTLE_MS));
});
