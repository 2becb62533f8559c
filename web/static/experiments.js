// Purpose: experiments: create them, assign units to them, download their readings.

import { get, path, post, put, remove } from "./api.js";
import { $, act, h, notice, options, reason } from "./dom.js";
import { iso, when } from "./format.js";
import { onReturn } from "./live.js";
import { page } from "./shell.js";
import { experimentOf, loadBrief, odChannels, onChange, units } from "./units.js";

const place = $("#experiments");
const form = $("#create");
let shown = "";

function streams(names) {
  const found = new Map([["", "all streams"]]);
  for (const name of names) {
    for (const one of units.has(name) ? odChannels(units.get(name)) : [])
      found.set(one.stream, `${one.stream} (${one.angle}°)`);
  }
  return [...found, ["rpm", "rpm"], ["liquid", "temperature"], ["temperature", "heater board"]];
}

function download(experiment, names) {
  const select = h("select", { "aria-label": `Stream to download of ${experiment.name}` });
  options(select, streams(names));
  const address = () =>
    path`/api/experiments/${experiment.name}/readings.csv` + (select.value ? `?stream=${select.value}` : "");
  const link = h("a", { class: "button", href: address(), download: "" }, "Download CSV");
  select.addEventListener("change", () => (link.href = address()));
  const all = h("a", { class: "button", href: path`/api/experiments/${experiment.name}/results.zip`, download: "" }, "All");
  all.title = "Readings, events, doses, gaps and assignments, as a ZIP";
  return h("div", { class: "row" }, select, link, all);
}

function chip(experiment, name) {
  const answer = h("output", { class: "answer" });
  const button = h(
    "button",
    { type: "button", class: "quiet", "aria-label": `Unassign ${name} from ${experiment.name}` },
    "×",
  );
  button.addEventListener("click", async () => {
    const work = async () => {
      await remove(path`/api/experiments/${experiment.name}/units/${name}`);
      return "unassigned";
    };
    if (await act(button, answer, work, "…")) await refresh();
  });
  return h("li", {}, h("a", { href: `/units/${encodeURIComponent(name)}` }, name), button, answer);
}

function assign(experiment, names) {
  const others = [...units.values()].filter((one) => !names.includes(one.unit));
  const select = h("select", { "aria-label": `Unit to assign to ${experiment.name}` });
  options(
    select,
    others.map((one) => [one.unit, experimentOf(one) ? `${one.unit} (now in ${experimentOf(one)})` : one.unit]),
  );
  const button = h("button", { type: "submit", disabled: !others.length }, "Assign");
  const answer = h("output", { class: "answer" });
  const submit = async (event) => {
    event.preventDefault();
    const work = async () => {
      await put(path`/api/experiments/${experiment.name}/units/${select.value}`);
      return "assigned";
    };
    if (await act(button, answer, work, "asking the leader …")) await refresh();
  };
  return h("form", { class: "row", onsubmit: submit }, select, button, answer);
}

function panel(experiment) {
  const names = experiment.units ?? [];
  const members = names.map((name) => chip(experiment, name));
  return h(
    "article",
    { class: "panel", "data-experiment": experiment.name },
    h(
      "div",
      { class: "heading" },
      h("h2", {}, experiment.name),
      h(
        "time",
        { class: "hint", datetime: iso(experiment.created_at), title: iso(experiment.created_at) },
        `created ${when(experiment.created_at)}`,
      ),
    ),
    experiment.description ? h("p", {}, experiment.description) : null,
    members.length
      ? h("ul", { class: "chips", "aria-label": `Units of ${experiment.name}` }, ...members)
      : h("p", { class: "hint" }, "no units assigned"),
    h(
      "div",
      { class: "row spread" },
      assign(experiment, names),
      h(
        "span",
        { class: "row" },
        h("a", { href: `/?experiment=${encodeURIComponent(experiment.name)}` }, "Charts"),
        download(experiment, names),
      ),
    ),
  );
}

async function refresh() {
  const [list] = await Promise.all([get("/api/experiments"), loadBrief()]);
  place.setAttribute("aria-busy", "false");
  const key = JSON.stringify([list, [...units.values()].map((one) => [one.unit, one.experiment])]);
  if (key === shown) return; // nobody's choice in a list is lost to a refresh that changes nothing
  shown = key;
  if (list.length) place.replaceChildren(...list.map(panel));
  else
    place.replaceChildren(
      h(
        "p",
        { class: "panel hint" },
        "No experiment yet. Readings are kept without one, too; an experiment gives those of some units a name.",
      ),
    );
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const work = async () => {
    const name = form.elements.name.value.trim();
    await post("/api/experiments", { name, description: form.elements.description.value.trim() });
    form.reset();
    return `created ${name}`;
  };
  if (await act($("button", form), $("#create-answer"), work, "asking the leader …")) await refresh();
});

page(async () => {
  await refresh();
  const again = () => refresh().catch((error) => notice(reason(error)));
  onReturn(again);
  onChange((unit, kind) => kind === "state" && again());
});
