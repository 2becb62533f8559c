// Purpose: the audit log from /api/audit, newest first, a page at a time.

import { get } from "./api.js";
import { $, answer, h, reason } from "./dom.js";
import { iso, when } from "./format.js";
import { onReturn } from "./live.js";
import { page } from "./shell.js";

const PAGE = 100;
const place = $("#audit");
const older = $("#older");
const output = $("#audit-answer");
let oldest = null;

const row = (entry) =>
  h(
    "tr",
    { "data-level": entry.status >= 400 ? "warning" : "info" },
    h("td", {}, h("time", { datetime: iso(entry.t), title: iso(entry.t) }, when(entry.t))),
    h("td", {}, entry.who || "nobody known"),
    h("td", {}, entry.address ?? ""),
    h("td", {}, entry.unit ?? ""),
    h("td", {}, [entry.action, entry.arguments].filter(Boolean).join(" ")),
    h("td", {}, entry.result ?? ""),
  );

/** Fetch the newest entries, or those before the oldest that came so far. */
async function fetchPage(before) {
  older.disabled = true;
  answer(output, "busy", "loading …");
  const query = new URLSearchParams({ limit: PAGE });
  if (before !== null) query.set("before", before);
  try {
    const list = await get(`/api/audit?${query}`);
    if (before === null) place.replaceChildren();
    place.append(...list.map(row));
    if (list.length) oldest = list.at(-1).t;
    older.disabled = list.length < PAGE;
    answer(output, "done", list.length < PAGE ? "no older entries" : `entries down to ${when(oldest)} are shown`);
  } catch (error) {
    older.disabled = false;
    answer(output, "error", `✗ ${reason(error)}`);
  }
  place.setAttribute("aria-busy", "false");
}

page(async () => {
  older.addEventListener("click", () => fetchPage(oldest));
  onReturn(() => fetchPage(null));
  await fetchPage(null);
});
