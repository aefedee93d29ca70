import { known, language, t } from "./i18n.js";

const KEY = "api-key";
let asking = null;
let declined = false;
let askForKey = async () => null;
let onTrouble = () => {};

export class ApiError extends Error {
  constructor(message, { status = 0, code = "", requestId = "" } = {}) {
    super(message);
    Object.assign(this, { status, code, requestId });
  }
}

export function onKeyNeeded(ask) {
  askForKey = ask;
}

/* `tell` is called whenever the service cannot be reached or fails. */
export function whenInTrouble(tell) {
  onTrouble = tell;
}

/* The key of this tab; empty: none. Everything is asked anew with another one. */
export const key = {
  get value() { return sessionStorage.getItem(KEY) ?? ""; },
  set value(text) {
    if (text) sessionStorage.setItem(KEY, text);
    else sessionStorage.removeItem(KEY);
  },
};

export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("");
}

async function keyFromPerson(refused) {
  asking ??= askForKey(refused).finally(() => (asking = null));
  const key = await asking;
  declined = !key;
  if (key) sessionStorage.setItem(KEY, key);
  return key;
}

function headersOf(extra) {
  const headers = new Headers(extra);
  headers.set("Accept-Language", language);
  const key = sessionStorage.getItem(KEY);
  if (key) headers.set("X-API-Key", key);
  return headers;
}

/* A `quiet` request, which nobody asked for, does not ask for the key again once the person has declined. */
export async function send(path, { headers, quiet = false, ...options } = {}) {
  for (;;) {
    const used = sessionStorage.getItem(KEY);
    let response;
    try {
      response = await fetch(path, { ...options, headers: headersOf(headers) });
    } catch (err) {
      if (err.name === "AbortError") throw err;
      if (!quiet) onTrouble();
      throw new ApiError(t("offline"), { code: "offline" });
    }
    if (response.ok) return response;
    const problem = await errorOf(response);
    if (response.status >= 500 && !quiet) onTrouble();
    if (response.status !== 401) throw problem;
    if (used === sessionStorage.getItem(KEY)) {
      sessionStorage.removeItem(KEY);
      if ((quiet && declined) || !(await keyFromPerson(used !== null))) throw problem;
    }
  }
}

async function errorOf(response) {
  const body = await response.json().catch(() => null);
  const text = known(`e_${body?.code}`) ? t(`e_${body.code}`) : body?.error || t("odd", { status: response.status });
  const wait = Number(response.headers.get("Retry-After")) || 0;
  const error = new ApiError(text, { status: response.status, code: body?.code, requestId: body?.request_id });
  error.wait = wait;
  return error;
}

export async function json(path, options) {
  return (await send(path, options)).json();
}

const modules = new Map();
let missed = 0;

/* A module that few need, once it is needed. A browser remembers what it failed to load, so that has another address then. */
export async function later(path) {
  try {
    if (!modules.has(path)) modules.set(path, await import(missed ? `${path}?${missed}` : path));
  } catch (err) {
    if (err instanceof SyntaxError) throw new ApiError(t("outdated"), { code: "outdated" });
    missed += 1;
    onTrouble();
    throw new ApiError(t("offline"), { code: "offline" });
  }
  return modules.get(path);
}

export async function patiently(work, tries = 6) {
  for (let n = 1; ; n += 1) {
    try {
      return await work();
    } catch (err) {
      const worth = err.status === 503 && ["queue_full", "not_ready", "fit_in_progress"].includes(err.code);
      if (!worth || n >= tries) throw err;
      await new Promise((done) => setTimeout(done, 1000 * Math.min(err.wait || 1, 10)));
    }
  }
}

/* Server-sent events with headers, which EventSource cannot send. Ends quietly where there is no such route. */
export async function follow(path, signal, tell) {
  while (!signal.aborted) {
    try {
      const response = await send(path, { headers: { Accept: "text/event-stream" }, signal });
      await readEvents(response, tell);
      return;
    } catch (err) {
      if (err.name === "AbortError" || err.code === "not_found" || err.status === 405) return;
      await new Promise((done) => setTimeout(done, 700));
    }
  }
}

/* Server-sent events for as long as `signal` lets them; after a break they go on where they were. `up` hears of both. */
export async function listen(path, signal, tell, up) {
  let place = "";
  while (!signal.aborted) {
    try {
      const headers = { Accept: "text/event-stream", ...(place ? { "Last-Event-ID": place } : {}) };
      const response = await send(path, { headers, signal, quiet: true });
      up(true);
      await readEvents(response, tell, (id) => (place = id));
    } catch (err) {
      if (err.name === "AbortError") return;
      if (["not_found", "records_off"].includes(err.code) || err.status === 405) {
        up(null);
        return;
      }
    }
    if (signal.aborted) return;
    up(false);
    await new Promise((done) => setTimeout(done, 1500));
  }
}

async function readEvents(response, tell, remember = () => {}) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const id = block.split(/\r?\n/).find((line) => line.startsWith("id:"));
      if (id) remember(id.slice(3).trim());
      const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
      try {
        if (data) tell(JSON.parse(data));
      } catch (err) {
        if (!(err instanceof SyntaxError)) throw err;
      }
    }
  }
}
