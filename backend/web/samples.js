import { json, newId, patiently, send } from "./api.js";
import { $, ask, complain, el } from "./dom.js";
import { t } from "./i18n.js";
import { formOf, model, onModel, refreshState } from "./model.js";
import { release } from "./records.js";

const LABELS = ["ok", "ng"];
let turn = 0;
let suspects = new Map();

const query = (more = {}) =>
  new URLSearchParams({ role_id: model.role, roi_id: model.roi, ...(model.recipe ? { recipe_id: model.recipe } : {}), ...more });

export function startSamples() {
  $("sa-suspects").addEventListener("click", () => find().catch(complain));
  $("sa-again").addEventListener("click", () => learnAgain().catch(complain));
  onModel(() => {
    suspects = new Map();
    if (!$("samples").hidden) open();
  });
}

/* What is stored for the model, suspects first. */
export async function open() {
  const mine = (turn += 1);
  $("sa-trouble").hidden = true;
  $("sa-said").textContent = "";
  const ready = Boolean(model.role && model.roi);
  for (const id of ["sa-suspects", "sa-again"]) $(id).disabled = true;
  if (!ready) return draw({});
  try {
    const { classes } = await json(`/datasets/list?${query()}`);
    if (mine !== turn) return null;
    for (const id of ["sa-suspects", "sa-again"]) $(id).disabled = !classes.ok?.count;
    return draw(classes);
  } catch (err) {
    if (mine !== turn) return null;
    draw({});
    $("sa-none").hidden = true;
    const again = el("button", { type: "button", textContent: t("retry") });
    again.addEventListener("click", open);
    $("sa-trouble").replaceChildren(el("p", { textContent: err.message }), again);
    $("sa-trouble").hidden = false;
    return null;
  }
}

function draw(classes) {
  let all = 0;
  for (const label of LABELS) {
    const files = classes[label]?.files ?? [];
    all += files.length;
    for (const image of $(`sa-${label}`).querySelectorAll("img")) release(image);
    const rank = (name) => (suspects.has(name) && label === "ok" ? suspects.get(name).rank : Infinity);
    const sorted = [...files].sort((one, other) => rank(one) - rank(other) || 0);
    $(`sa-${label}-title`).textContent = files.length ? t(label === "ok" ? "saOk" : "saNg", { n: files.length }) : "";
    $(`sa-${label}`).replaceChildren(...sorted.map((name) => card(name, label)));
  }
  $("sa-none").hidden = all > 0;
}

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    load(entry.target).catch(() => entry.target.classList.add("missing"));
  }
}, { rootMargin: "300px" });

async function load(image) {
  const { label, name } = image.dataset;
  const response = await send(`/datasets/thumb?${query({ label, filename: name, size: 320 })}`, { quiet: true });
  image.src = URL.createObjectURL(await response.blob());
}

function card(name, label) {
  const image = el("img", { alt: name, data: { label, name } });
  seen.observe(image);
  const suspect = label === "ok" ? suspects.get(name) : null;
  const button = (key, work) => {
    const node = el("button", { type: "button", textContent: t(key) });
    node.setAttribute("aria-label", `${t(key)}: ${name}`);
    node.addEventListener("click", () => work().catch(complain));
    return node;
  };
  return el("li", { className: suspect ? "suspect" : "", data: { name } }, image,
    el("span", { className: "name", textContent: name }),
    suspect ? el("small", { textContent: suspect.why }) : null,
    el("div", { className: "row" },
      button(label === "ok" ? "saToNg" : "saToOk", () => relabel(name, label)),
      button("saDelete", () => remove(name, label))));
}

async function relabel(name, label) {
  const body = { role_id: model.role, roi_id: model.roi, filename: name, from: label, to: label === "ok" ? "ng" : "ok", ...(model.recipe ? { recipe_id: model.recipe } : {}) };
  await json("/datasets/relabel", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  suspects.delete(name);
  await open();
}

async function remove(name, label) {
  if (!(await ask(t("saDeleteTitle"), t("saDeleteText", { name }), t("saDelete")))) return;
  await send(`/datasets/file?${query({ label, filename: name })}`, { method: "DELETE" });
  suspects.delete(name);
  await open();
}

async function find() {
  $("sa-suspects").disabled = true;
  try {
    const found = await json(`/datasets/suspects?${query({ heatmap: false, limit: 50 })}`);
    const standing = found.suspects.filter((one) => one.stands_out);
    suspects = new Map(standing.map((one, rank) => [one.filename, { ...one, rank }]));
    await open();
    $("sa-said").textContent = [standing.length ? "" : t("saSuspectsNone"), ...found.warnings].filter(Boolean).join(" ");
  } finally {
    $("sa-suspects").disabled = false;
  }
}

async function learnAgain() {
  if (!(await ask(t("replaceTitle"), t("replaceText", { model: model.name }), t("fitReplace")))) return;
  $("sa-again").disabled = true;
  try {
    const form = formOf({ use_dataset: "true" });
    const result = await patiently(() => json("/fit_ok", { method: "POST", body: form, headers: { "X-Request-Id": newId() } }));
    suspects = new Map();
    await refreshState();
    await open();
    $("sa-said").textContent = [t("saAgainDone", { n: result.n_images }), ...(result.warnings ?? [])].join(" ");
  } finally {
    $("sa-again").disabled = false;
  }
}

export function show() {
  if (!$("samples").hidden) open();
}
