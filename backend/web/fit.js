import { $, acceptFiles, ask, calm, chosen as picked, choose, complain, el, thumbnail } from "./dom.js";
import { counted, number, t } from "./i18n.js";
import { formOf, learn, model, offerModels, onModel, onState, refreshState, remember, requireModel } from "./model.js";
import { again } from "./parts.js";
import { tracked } from "./progress.js";

const chosen = [];
let stop = null;

export function startFit(goTo) {
  acceptFiles($("fit-files"), addFiles);
  $("fit-go").addEventListener("click", () => fit(goTo));
  $("fit-cancel").addEventListener("click", () => stop?.abort());
  $("fit-clear").addEventListener("click", () => {
    chosen.length = 0;
    $("fit-list").replaceChildren();
    show();
  });
  for (const input of document.querySelectorAll('input[name="fit-how"]')) input.addEventListener("change", show);
  onModel(() => {
    $("fit-result").replaceChildren();
    choose("fit-how", "add");
    show();
  });
  onState(show);
  addEventListener("beforeunload", (event) => {
    if (stop !== null) event.preventDefault();
  });
  show();
}

/* Whether the images join what is remembered. A memory of another extractor can only be replaced. */
const adds = () => Boolean(model.fitted && model.usable) && picked("fit-how") !== "replace";

/* The images that are sent: those that the model has learned from are not added to it again. */
const sent = () => (adds() ? chosen.filter(({ learned }) => learned?.key !== model.key || learned.generation !== model.generation) : chosen);

export async function addFiles(files) {
  for (const file of files) {
    const entry = { file };
    chosen.push(entry);
    const remove = el("button", { type: "button", className: "remove", textContent: "×" });
    remove.setAttribute("aria-label", t("remove", { name: file.name }));
    const item = el("li", { title: file.name }, await thumbnail(file), remove);
    remove.addEventListener("click", () => {
      chosen.splice(chosen.indexOf(entry), 1);
      item.remove();
      show();
    });
    $("fit-list").append(item);
    show();
  }
}

export function show() {
  const n = chosen.length;
  $("fit-count").textContent = n;
  $("fit-unit").textContent = counted("images", n);
  $("fit-how").hidden = !(model.fitted && model.usable);
  const left = sent().length;
  const hints = n === 0 ? [t("fitHintNone")] : !left ? [t("fitHintKnown", { model: model.name })] : n < 10 ? [t("fitHintFew")] : [];
  if (left && model.fitted) hints.push(t(adds() ? "fitHintAdds" : "fitHintReplaces", { model: model.name, n: left }));
  $("fit-hint").textContent = hints.join(" ");
  $("fit-go").disabled = !left || stop !== null;
  $("fit-clear").hidden = !n || stop !== null;
  $("fit-cancel").hidden = stop === null;
}

async function fit(goTo) {
  calm();
  try {
    requireModel();
  } catch (err) {
    complain(err);
    return;
  }
  const add = adds();
  if (model.fitted && !add && !(await ask(t("replaceTitle"), t("replaceText", { model: model.name }), t("fitReplace")))) return;
  stop = new AbortController();
  $("fit-result").replaceChildren();
  show();
  const form = formOf(add ? { memory_fit: "true" } : {});
  const taught = [...sent()];
  const { key, generation } = model;
  for (const { file } of taught) form.append("images", file, file.name);
  try {
    const result = await tracked($("fit-progress"), "/fit_ok", { method: "POST", body: form, signal: stop.signal });
    for (const entry of chosen) {
      const before = add && entry.learned?.key === key && entry.learned.generation === generation;
      if (before || taught.includes(entry)) entry.learned = { key, generation: result.generation };
    }
    if (model.key === key) learn({ generation: result.generation });
    done(taught, result, goTo);
  } catch (err) {
    if (err.name === "AbortError") say(t("fitCancelled"), "wait");
    else complain(err);
  } finally {
    stop = null;
    show();
  }
}

function say(text, state, ...more) {
  $("fit-result").replaceChildren(el("div", { className: "notice", data: { state } }, el("p", {}, text), ...more));
  $("fit-result").firstChild.scrollIntoView({ block: "nearest" });
}

function done(taught, result, goTo) {
  const next = el("button", { type: "button", className: "primary", textContent: t("goCalibrate") });
  next.addEventListener("click", () => goTo("calibrate"));
  const words = t("fitDone", {
    n: result.n_images ?? taught.length,
    rows: number(result.coreset_size, 0),
    all: number(result.n_embeddings, 0),
    version: result.model_version ?? "",
    s: number((result.timings_ms?.total ?? 0) / 1000, 1),
  });
  const warnings = (result.warnings ?? []).map((text) => el("p", { className: "warn", textContent: text }));
  say(words, "ok", el("p", { textContent: t("fitNext") }), next, ...warnings, ...suspects(result.suspects ?? [], goTo));
  learn({ fitted: true, usable: true });
  remember();
  offerModels();
  refreshState();
  again();
}

/* The images that stand out from the others, and a way to learn again without them. */
function suspects(found, goTo) {
  if (!found.length) return [];
  const mine = (name) => chosen.find((entry) => entry.file.name === name);
  const list = el("ul", { className: "reasons", id: "fit-suspects" }, ...found.map((one) => {
    const tick = el("input", { type: "checkbox", checked: true, value: one.filename, disabled: !mine(one.filename) });
    const item = el("li", {}, el("label", { className: "check" }, tick, el("span", {}, el("strong", { textContent: one.filename }), el("small", { textContent: one.why }))));
    if (mine(one.filename)) thumbnail(mine(one.filename).file).then((picture) => tick.after(picture));
    return item;
  }));
  const again = el("button", { type: "button", id: "fit-without", textContent: t("fitWithout") });
  again.disabled = !found.some((one) => mine(one.filename));
  again.addEventListener("click", () => {
    const out = new Set([...list.querySelectorAll("input:checked")].map((input) => input.value));
    for (const name of out) {
      const entry = mine(name);
      if (!entry) continue;
      chosen.splice(chosen.indexOf(entry), 1);
      [...$("fit-list").children].find((item) => item.title === name)?.remove();
    }
    choose("fit-how", "replace");
    show();
    fit(goTo);
  });
  return [list, again];
}
