import { json, patiently, send } from "./api.js";
import { $, ask, complain, el, trouble } from "./dom.js";
import { decodeHeat, paintHeat } from "./heat.js";
import { t } from "./i18n.js";
import { formOf, model, named, onModel, queryOf, refreshState } from "./model.js";
import { posted, tracked } from "./progress.js";
import { author, release, verdictWord } from "./records.js";

const LABELS = ["ok", "ng"];
const UNDO_MS = 8000;
let turn = 0;
let suspects = new Map();
let golden = new Set();
const doomed = new Map(); // samples whose deletion can still be taken back: name -> how to do it now, how to undo it

export function startSamples() {
  $("sa-suspects").addEventListener("click", () => find().catch(complain));
  $("sa-again").addEventListener("click", () => learnAgain().catch(complain));
  onModel(() => {
    suspects = new Map();
    settle();
    if (!$("samples").hidden) open();
  });
  addEventListener("pagehide", settle);
}

/* What is stored for the model, suspects first. */
export async function open() {
  const mine = (turn += 1);
  $("sa-trouble").hidden = true;
  $("sa-said").textContent = "";
  const ready = Boolean(model.role && model.roi);
  for (const id of ["sa-suspects", "sa-again"]) $(id).disabled = true;
  $("sa-known").textContent = "";
  $("sa-none").textContent = t(ready ? "saNone" : "heNone");
  if (!ready) return draw({});
  try {
    const [{ classes }, marked] = await Promise.all([json(`/datasets/list?${queryOf()}`), json(`/golden?${queryOf()}`, { quiet: true }).catch(() => ({ samples: [] }))]);
    if (mine !== turn) return null;
    golden = new Set(marked.samples.map((sample) => sample.filename));
    for (const id of ["sa-suspects", "sa-again"]) $(id).disabled = !classes.ok?.count;
    draw(classes);
    const found = await json(`/manifest?${queryOf()}`, { quiet: true }).catch(() => null);
    if (mine === turn && found?.memory_fitted) $("sa-known").textContent = t("saKnown", { n: found.samples.ok_in_memory, left: found.samples.ok_not_in_memory });
    return null;
  } catch (err) {
    if (mine !== turn) return null;
    draw({});
    $("sa-none").hidden = true;
    trouble($("sa-trouble"), err, open);
    return null;
  }
}

/* The view is left: what was to be deleted is deleted now. */
export function leave() {
  settle();
}

function draw(classes) {
  let all = 0;
  for (const label of LABELS) {
    const files = (classes[label]?.files ?? []).filter((name) => !doomed.get(name)?.gone);
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
  const response = await send(`/datasets/thumb?${queryOf({ label, filename: name, size: 320 })}`, { quiet: true });
  const src = URL.createObjectURL(await response.blob());
  if (image.released) URL.revokeObjectURL(src);
  else image.src = src;
}

/* A stored sample that is loaded once it is nearly in sight. */
export function sampleThumb(label, name) {
  const image = el("img", { alt: "", className: "thumb", data: { label, name } });
  seen.observe(image);
  return image;
}

function card(name, label) {
  const image = sampleThumb(label, name);
  const suspect = label === "ok" ? suspects.get(name) : null;
  const button = (key, work) => {
    const node = el("button", { type: "button", textContent: t(key), data: { changes: "" } });
    node.setAttribute("aria-label", `${t(key)}: ${name}`);
    node.addEventListener("click", () => work().catch(complain));
    return node;
  };
  const marked = golden.has(name);
  const picture = el("div", { className: "pic" }, image, suspect ? heatOf(suspect) : null);
  const item = el("li", { className: [suspect ? "suspect" : "", marked ? "marked" : ""].join(" ").trim(), data: { name } }, picture,
    el("span", { className: "name", textContent: name }),
    marked ? el("small", { className: "tag", textContent: t("saGolden", { verdict: verdictWord(label) }) }) : null,
    suspect ? el("small", { textContent: suspect.why }) : null);
  const buttons = el("div", { className: "row" },
    button(label === "ok" ? "saToNg" : "saToOk", () => relabel(name, label)),
    button(marked ? "heUnmark" : "saMark", () => mark(name, !marked)),
    button("saDelete", () => doom(item, name, label)));
  item.append(buttons);
  if (doomed.has(name)) showDoomed(item, name);
  return item;
}

/* What sets a suspect apart from the others, over its picture. */
function heatOf(suspect) {
  const canvas = el("canvas", { className: "heat", width: 1, height: 1 });
  canvas.setAttribute("aria-hidden", "true");
  if (suspect.heatmap_png_base64) decodeHeat(suspect.heatmap_png_base64, suspect.heatmap_range).then((heat) => {
    const [low, high] = suspect.heatmap_range;
    Object.assign(canvas, { width: heat.width, height: heat.height });
    canvas.getContext("2d").drawImage(paintHeat(heat, low, low + 0.6 * (high - low)), 0, 0);
  }).catch(complain);
  return canvas;
}

async function relabel(name, label) {
  await json("/datasets/relabel", posted(named({ filename: name, from: label, to: label === "ok" ? "ng" : "ok" })));
  suspects.delete(name);
  await open();
}

async function mark(name, wanted) {
  const run = await json("/datasets/golden", posted(named({ filename: name, golden: wanted, ...author() })));
  await open();
  $("sa-said").textContent = [t(wanted ? "saMarked" : "saUnmarked", { name }), ...run.warnings].join(" ");
}

/* Delete a sample a little later, so that it can be taken back; leaving the view or the page does it at once. */
async function doom(item, name, label) {
  const query = queryOf({ label, filename: name });
  const key = model.key;
  const timer = setTimeout(() => doomed.get(name)?.now(), UNDO_MS);
  const now = async () => {
    clearTimeout(timer);
    doomed.get(name).gone = true;
    try {
      await send(`/datasets/file?${query}`, { method: "DELETE", keepalive: true });
      suspects.delete(name);
    } catch (err) {
      complain(err);
    }
    doomed.delete(name);
    if (!$("samples").hidden && key === model.key && !doomed.size) await open();
  };
  const undo = () => {
    clearTimeout(timer);
    doomed.delete(name);
    open();
  };
  doomed.set(name, { now, undo, gone: false });
  showDoomed(item, name);
}

function showDoomed(item, name) {
  const undo = el("button", { type: "button", className: "undo", textContent: t("saUndo") });
  undo.setAttribute("aria-label", `${t("saUndo")}: ${name}`);
  undo.addEventListener("click", () => doomed.get(name)?.undo());
  item.classList.add("doomed");
  item.querySelector(".row").replaceChildren(el("span", { textContent: t("saDeleting") }), undo);
  if (!$("samples").hidden) undo.focus({ preventScroll: true });
}

function settle() {
  for (const one of [...doomed.values()]) if (!one.gone) one.now();
}

async function find() {
  $("sa-suspects").disabled = true;
  try {
    const found = await tracked($("sa-progress"), `/datasets/suspects?${queryOf({ limit: 50 })}`);
    const standing = found.suspects.filter((one) => one.stands_out);
    suspects = new Map(standing.map((one, rank) => [one.filename, { ...one, rank }]));
    await open();
    $("sa-said").textContent = [standing.length ? t("saSuspectsFound", { n: standing.length }) : t("saSuspectsNone"), ...found.warnings].filter(Boolean).join(" ");
  } finally {
    $("sa-suspects").disabled = false;
  }
}

async function learnAgain() {
  if (!(await ask(t("replaceTitle"), t("replaceText", { model: model.name }), t("fitReplace")))) return;
  $("sa-again").disabled = true;
  settle();
  try {
    const result = await patiently(() => tracked($("sa-progress"), "/fit_ok", { method: "POST", body: formOf({ use_dataset: "true" }) }));
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
