// Purpose: every request to the documented HTTP API (docs/http-api.md) goes through here.
// A refusal, by the leader or by the worker behind it, becomes one ApiError with message, field, limit and remedy.

const TIMEOUT_MS = 20_000;
let skew_s = 0;

export class ApiError extends Error {
  constructor(message, details = {}) {
    super(message);
    this.name = "ApiError";
    Object.assign(this, details);
  }
}

/** Unix seconds by the leader's clock; a browser's clock may be wrong by hours, and the charts should not be. */
export const serverNow = () => Date.now() / 1000 + skew_s;

function noteClock(response) {
  const date = Date.parse(response.headers.get("Date") ?? "");
  if (Number.isNaN(date)) return;
  const difference = (date - Date.now()) / 1000;
  skew_s = Math.abs(difference) > 3 ? difference : 0; // the header has whole seconds and was a while on its way
}

function failure(body, status) {
  const error = body?.error ?? body?.message;
  if (error && typeof error === "object") return new ApiError(error.message ?? "refused", { ...error, status });
  const message = error ?? `the leader answered with status ${status}`;
  return new ApiError(message, { field: body?.field, limit: body?.limit, remedy: body?.remedy, status });
}

async function request(method, path, body) {
  const headers = { Accept: "application/json" };
  if (method !== "GET") headers["X-CSRF-Token"] = document.querySelector('meta[name="csrf"]')?.content ?? "";
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      credentials: "same-origin",
      cache: "no-store",
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new ApiError(late ? `no answer in ${TIMEOUT_MS / 1000} s` : "the leader cannot be reached", { status: 0 });
  }
  noteClock(response);
  const answer = await response.json().catch(() => null);
  if (response.status === 401 && path !== "/api/login") location.assign("/login");
  if (!response.ok || answer?.ok === false) throw failure(answer, response.status);
  return answer;
}

export const get = (path) => request("GET", path);
export const post = (path, body = {}) => request("POST", path, body);
export const put = (path, body = {}) => request("PUT", path, body);
export const remove = (path) => request("DELETE", path);

/** A path with its parts escaped: path`/api/units/${name}`. */
export const path = (strings, ...values) =>
  strings.reduce((whole, part, i) => whole + part + (i < values.length ? encodeURIComponent(values[i]) : ""), "");

/** A worker's command (docs/protocol.md) through the leader; returns its `result`. */
export async function command(unit, name, fields = {}) {
  const reply = await post(path`/api/units/${unit}/command`, { command: name, ...fields });
  return reply?.result ?? {};
}

/** Readings of one stream, binned by the leader so that minima and maxima are kept. */
export async function readings(scope, stream, from, to, points) {
  const query = new URLSearchParams({ ...scope, stream, from: from.toFixed(3), to: to.toFixed(3), points });
  return (await get(`/api/readings?${query}`)).series;
}
