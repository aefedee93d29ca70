import { json } from "./api.js";
import { $, el } from "./dom.js";
import { t } from "./i18n.js";

const kept = (name, other) => localStorage.getItem(name) ?? other;
const absent = new Set();
const edited = new Set(); // models whose millimetres per pixel the person has typed
let listeners = [];
let asked = 0;

export const model = {
  get role() { return $("role").value.trim(); },
  get roi() { return $("roi").value.trim(); },
  get recipe() { return $("recipe").value.trim(); },
  get mm() { return Number($("mm").value); },
  get name() { return `${this.role}/${this.roi}`; },
  get key() { return [this.recipe || "default", this.role, this.roi].join("/"); },
  get ready() { return Boolean(this.role && this.roi) && this.mm > 0; },
  fitted: null,
  calibrated: null,
  usable: true,
  stale: "",
  degraded: "",
  working: false,
  reached: true,
  okMean: null,
  okTop: null,
  threshold: null,
  generation: null,
};

export function requireModel() {
  if (!model.role || !model.roi) throw new Error(t("noModel"));
  if (!(model.mm > 0)) throw new Error(t("badMm"));
}

/* The warnings of an answer, without the one that the top of the page gives for as long as it holds. */
export const newsOf = (answer) => (answer.warnings ?? []).filter((text) => text !== model.degraded);

/* Which model a request is about, and whatever else it says. */
export const named = (more = {}) => ({ role_id: model.role, roi_id: model.roi, ...(model.recipe ? { recipe_id: model.recipe } : {}), ...more });

export const queryOf = (more = {}) => new URLSearchParams(named(more));

export function formOf(more = {}) {
  const form = new FormData();
  for (const [name, value] of Object.entries(named({ mm_per_px: model.mm, ...more }))) form.append(name, value);
  return form;
}

export function onModel(listener) {
  listeners.push(listener);
}

const watchers = [];

/* Called whenever something new is known of the model. */
export function onState(watcher) {
  watchers.push(watcher);
}

/* A route that this service does not have is asked once. */
async function optional(path, query) {
  if (absent.has(path)) return null;
  try {
    return await json(`${path}?${new URLSearchParams(query)}`, { quiet: true });
  } catch (err) {
    if (err.status === 404 || err.status === 405) absent.add(path);
    return null;
  }
}

export async function refreshState() {
  const turn = (asked += 1);
  showState();
  if (!model.role || !model.roi) return;
  const state = await optional("/state", named());
  if (turn !== asked || !state) return;
  const usable = !state.memory_fitted || state.memory_usable !== false;
  learn({ fitted: state.memory_fitted, usable, calibrated: state.calib_present, stale: "", working: state.rebuild?.state === "running" });
  if (!state.memory_fitted) return;
  const manifest = await optional("/manifest", named());
  if (turn !== asked || !manifest) return;
  if (manifest.memory?.mm_per_px > 0 && !edited.has(model.key)) $("mm").value = manifest.memory.mm_per_px;
  const { ok_mean: okMean = null, p99_ok: okTop = null, threshold = null } = manifest.calibration ?? {};
  learn({ okMean, okTop, threshold, generation: manifest.memory?.generation ?? null });
  if (manifest.stale?.calibration) learn({ stale: manifest.stale.reasons.join(" ") || t("stale") });
}

/* What an answer taught about the model. */
export function learn(news) {
  Object.assign(model, news);
  showState();
  for (const watcher of watchers) watcher();
}

export function showState() {
  const badge = (kind, text, title = "") => el("li", { className: "badge", title, data: { state: kind } }, el("span", { className: "dot", ariaHidden: "true" }), text);
  const list = [];
  if (!model.reached) {
    $("state").replaceChildren();
    return;
  }
  if (!model.role || !model.roi) list.push(badge("wait", t("noModel")));
  else if (model.fitted === null) list.push(badge("wait", t("unknownState")));
  else if (!model.usable) list.push(badge("bad", t("unusable")));
  else if (!model.fitted) list.push(badge("warn", t("notFitted")));
  else {
    list.push(badge("ok", t("fitted")));
    if (model.stale) list.push(badge("warn", t("stale"), model.stale));
    else if (model.calibrated !== null) list.push(model.calibrated ? badge("ok", t("calibrated")) : badge("warn", t("notCalibrated")));
  }
  if (model.working) list.push(badge("wait", t("working")));
  if (model.degraded) list.push(badge("warn", t("degraded"), model.degraded));
  $("state").replaceChildren(...list);
}

/* Recent choices, and the fitted models where the service lists them. */
export async function offerModels() {
  const listed = await optional("/models", {});
  const known = (Array.isArray(listed) ? listed : listed?.models ?? []).filter((m) => m.role_id && m.roi_id);
  return offer(known.map((m) => [m.role_id, m.roi_id, m.recipe_id ?? "default"]));
}

function offer(known) {
  const all = [...known, ...JSON.parse(kept("recent", "[]"))];
  const fill = (id, values) => $(id).replaceChildren(...[...new Set(values)].filter(Boolean).map((value) => el("option", { value })));
  fill("roles", all.map((m) => m[0]));
  fill("rois", all.filter((m) => !model.role || m[0] === model.role).map((m) => m[1]));
  fill("recipes", all.map((m) => m[2]));
  offerPick(known);
  return known;
}

const sameModel = ([role, roi, recipe]) => role === model.role && roi === model.roi && recipe === (model.recipe || "default");

/* The fitted models by name. Whoever wants another one types it. */
function offerPick(listed) {
  const pick = $("pick");
  const chosen = listed.findIndex(sameModel);
  pick.replaceChildren(
    ...listed.map(([role, roi, recipe], n) => el("option", { value: n, selected: n === chosen, textContent: [role, roi].join(" · ").replaceAll("_", " ") + (recipe === "default" ? "" : ` (${recipe})`) })),
    el("option", { value: "", selected: chosen < 0, textContent: t("pickOther") }),
  );
  pick.onchange = () => {
    const [role, roi, recipe] = listed[pick.value] ?? ["", "", "default"];
    Object.assign($("role"), { value: role });
    Object.assign($("roi"), { value: roi });
    Object.assign($("recipe"), { value: recipe === "default" ? "" : recipe });
    changed();
    if (!role) $("role").focus();
  };
  $("pick-line").hidden = !listed.length;
  for (const line of document.querySelectorAll(".typed")) line.hidden = chosen >= 0;
}

/* The model is in the address, so that a reload or a link that was sent shows the same one. */
function keepInAddress() {
  const query = new URLSearchParams(location.search);
  for (const name of ["role", "roi", "recipe"]) {
    if (model[name]) query.set(`${name}_id`, model[name]);
    else query.delete(`${name}_id`);
  }
  const text = query.toString();
  history.replaceState(null, "", `${location.pathname}${text ? `?${text}` : ""}${location.hash}`);
}

/* The browser's back button may come to where another model was open. */
function readAddress() {
  const query = new URLSearchParams(location.search);
  const there = ["role", "roi", "recipe"].map((name) => query.get(`${name}_id`) ?? "");
  if (!there[0] || there.join("/") === [model.role, model.roi, model.recipe].join("/")) return;
  [$("role").value, $("roi").value, $("recipe").value] = there;
  changed();
}

export function remember() {
  const recent = JSON.parse(kept("recent", "[]")).filter(([role, roi]) => role !== model.role || roi !== model.roi);
  recent.unshift([model.role, model.roi, model.recipe || "default"]);
  localStorage.setItem("recent", JSON.stringify(recent.slice(0, 20)));
}

export function keep(name, value) {
  localStorage.setItem(`${name}:${model.key}`, JSON.stringify(value));
}

export function recall(name, other) {
  return JSON.parse(kept(`${name}:${model.key}`, JSON.stringify(other)));
}

/* The model that the address names, or else this one. */
function fromAddress([role = "", roi = "", recipe = "default"] = []) {
  const params = new URLSearchParams(location.search);
  $("role").value = params.get("role_id") ?? role;
  $("roi").value = params.get("roi_id") ?? roi;
  $("recipe").value = params.get("recipe_id") ?? (recipe === "default" ? "" : recipe);
  $("mm").value = params.get("mm_per_px") ?? recall("mm", 0.2);
  return params;
}

export async function startModel() {
  fromAddress(); // at once: parts may be dropped before the models are listed
  const listed = await offerModels();
  const there = ([role, roi, recipe]) => listed.some((m) => m[0] === role && m[1] === roi && m[2] === (recipe || "default"));
  const recent = JSON.parse(kept("recent", "[]"));
  const params = fromAddress(recent.find(there) ?? listed[0] ?? recent[0]);
  if (params.has("mm_per_px")) edited.add(model.key);
  $("model").addEventListener("submit", (event) => event.preventDefault());
  $("mm").addEventListener("change", () => {
    edited.add(model.key);
    keep("mm", Number($("mm").value));
  });
  for (const id of ["role", "roi", "recipe"]) $(id).addEventListener("change", () => changed());
  addEventListener("popstate", readAddress);
  changed(listed);
  return listed.length ? listed : recent;
}

/* `listed`: the fitted models, where they are known already. */
function changed(listed = null) {
  Object.assign(model, { fitted: null, usable: true, calibrated: null, stale: "", working: false, okMean: null, okTop: null, threshold: null, generation: null });
  if (!edited.has(model.key)) $("mm").value = recall("mm", $("mm").value || 0.2);
  if (model.role && model.roi) remember();
  keepInAddress();
  if (listed) offer(listed);
  else offerModels();
  refreshState();
  for (const listener of listeners) listener();
}
