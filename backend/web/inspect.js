import { $, acceptFiles, bitmapOf, calm, choose, el, fill } from "./dom.js";
import { contourPath, decodeHeat, paintHeat, paintLegend, regionsOf } from "./heat.js";
import { brief, counted, language, number, t } from "./i18n.js";
import { keep, model, named, onModel, recall } from "./model.js";
import { hideNearest, showNearest } from "./nearest.js";
import { addParts, again, clearParts, decisionOf, onParts, parts, retry, tell, view } from "./parts.js";
import { localTimes } from "./records.js";
import { FIELDS, Stage } from "./stage.js";
import { listParts, showGauge, showVerdict } from "./verdict.js";

let stage = null;
let current = null;
let drawn = 0;
let pending = 0;
let told = null;
let surveyed = 0;

export function startInspect() {
  stage = new Stage($("stage"));
  stage.onShape = (shape, settled) => setShape(shape, settled);
  acceptFiles($("parts-files"), (files) => inspectFiles(files));
  $("parts-clear").addEventListener("click", clearParts);
  $("opacity").addEventListener("input", redraw);
  $("threshold").addEventListener("input", () => setThreshold(Number($("threshold").value)));
  for (const input of document.querySelectorAll('input[name="mode"]'))
    input.addEventListener("change", () => setThreshold(stepped(Number(input.value))));
  for (const input of document.querySelectorAll('input[name="kind"]')) input.addEventListener("change", () => pickKind(input.value));
  for (const input of document.querySelectorAll('input[name="truth"]'))
    input.addEventListener("change", () => {
      if (current) current.truth = input.value;
      tell();
    });
  $("parts").addEventListener("keydown", moveInList);
  for (const id of ["parts-order", "parts-only"]) $(id).addEventListener("change", list);
  $("closer").addEventListener("click", () => stage.closer(1.5));
  $("farther").addEventListener("click", () => stage.closer(1 / 1.5));
  $("whole").addEventListener("click", () => stage.whole());
  $("retry").addEventListener("click", () => retry(parts.filter((part) => part.error)));
  $("alerts").addEventListener("click", redraw); // a sentence that is closed there is said beside its part
  paintLegend($("legend-colours"));
  onParts((part) => {
    if (current && !parts.includes(current)) current = null;
    current ??= parts[0] ?? null;
    if (part === null || part === current) show();
    else list();
  });
  onModel(() => {
    Object.assign(view, { threshold: null, calibrated: null, shape: recall("shape", null) });
    choose("kind", view.shape?.kind ?? "");
    numbers();
    for (const part of parts) part.result = part.decoded = part.error = null;
    show();
    if (model.ready) again(current);
  });
  show();
}

export async function inspectFiles(files) {
  if (files.length) calm();
  const [first] = await addParts(files);
  if (first) select(first);
}

export function select(part) {
  current = part;
  show();
  $("parts").querySelector("[aria-pressed=true]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

/* One step is how far the highest good scores of the calibration lie above their mean. */
function stepped(steps) {
  const spread = model.okTop - model.okMean;
  const step = model.okMean !== null && spread > 0 ? spread : 0.1 * view.calibrated;
  return Math.max(0, view.calibrated + steps * step);
}

export function setThreshold(value) {
  view.threshold = value;
  tell();
  clearTimeout(surveyed);
  surveyed = setTimeout(survey, 150);
}

/* Finds the regions of the parts that are not shown, too, after the threshold was moved; the list tells of them. */
async function survey() {
  const { threshold } = view;
  for (const part of parts) {
    const { result } = part;
    if (!result || part.decoded || result.score > threshold || !(result.stats?.max >= threshold)) continue;
    const heat = await decodeHeat(result.heatmap_png_base64, result.heatmap_range);
    if (view.threshold !== threshold) return;
    movedRegions(result, heat);
  }
  list();
}

export function show() {
  list();
  controls();
  redraw();
}

/* The parts as the person wants them listed. */
function listed() {
  const only = $("parts-only").value;
  const score = (part) => part.result?.score ?? -1;
  const orders = { score: (one, other) => score(other) - score(one), name: (one, other) => one.name.localeCompare(other.name, undefined, { numeric: true }) };
  const chosen = only ? parts.filter((part) => decisionOf(part) === only || part === current) : parts;
  return orders[$("parts-order").value] ? chosen.toSorted(orders[$("parts-order").value]) : chosen;
}

function list() {
  $("parts-sort").hidden = parts.length < 2;
  listParts($("parts"), listed(), (part) => ({ decision: decisionOf(part), selected: part === current }), select);
  const failed = parts.filter((other) => other.error).length;
  $("retry").hidden = !failed;
  $("retry").textContent = failed === 1 && current?.error ? t("retry") : t("retryAll", { n: failed });
  $("parts-clear").hidden = !parts.length;
}

function moveInList(event) {
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  const shown = listed();
  const next = shown[shown.indexOf(current) + (step ?? NaN)];
  if (!next) return;
  event.preventDefault();
  select(next);
  $("parts").querySelector("[aria-pressed=true]").focus();
}

/* Where the gauge ends; the same for all parts, so that bars compare. */
function scaleTop() {
  return Math.max(2 * (view.calibrated ?? 0), ...parts.map((part) => (part.result?.score ?? 0) * 1.1));
}

function controls() {
  const known = view.calibrated !== null;
  for (const input of [...document.querySelectorAll('input[name="mode"]'), $("threshold")]) input.disabled = !known;
  choose("truth", current?.truth ?? "");
  if (!known) {
    $("changed").hidden = true;
    return;
  }
  const top = scaleTop();
  Object.assign($("threshold"), { max: top, step: top / 2000 });
  $("threshold").value = view.threshold;
  const steps = [-1, 0, 1].find((n) => Math.abs(view.threshold - stepped(n)) < 1e-9 * top);
  choose("mode", steps ?? "other");
  $("changed").hidden = steps === 0;
  $("changed").textContent = t("changed", { value: number(view.calibrated) });
}

/* At the calibrated threshold the regions are the server's own; elsewhere they are found again in the heatmap. */
function regionsNow(part) {
  const { result, decoded } = part;
  if (view.threshold === null) return [];
  if (view.threshold === result.threshold) return result.regions.map((region) => ({ ...region, path: contourPath(region.contour) }));
  if (!decoded) return [];
  return movedRegions(result, decoded.heat);
}

function movedRegions(result, heat) {
  const found = regionsOf(heat, view.threshold, result.params.mm_per_px, result.params.area_mm2_thr);
  result.moved = { threshold: view.threshold, regions: found.map((region) => ({ ...region, path: region.edges })) };
  return result.moved.regions;
}

async function redraw() {
  const turn = (drawn += 1);
  const part = current;
  $("opacity-out").textContent = `${$("opacity").value} %`;
  if (part?.result && !part.decoded) {
    const image = part.image ?? (part.image = await bitmapOf(part.file));
    const heat = await decodeHeat(part.result.heatmap_png_base64, part.result.heatmap_range);
    part.decoded = { image, heat };
    for (const other of parts) if (other !== part && other !== current) other.decoded = null;
    if (turn !== drawn) return redraw();
  }
  panel(part);
  scene(part);
}

async function scene(part) {
  const decision = part ? decisionOf(part) : "none";
  const score = part?.result ? number(part.result.score) : "–";
  $("stage").setAttribute("aria-label", part ? t("stageLabel", { name: part.name, verdict: decision === "look" ? counted("look", part.regions.length) : t(decision), score }) : t("stageEmpty"));
  if (!part) {
    $("legend").hidden = true;
    return stage.show({ width: 0, outlines: [], layers: [] });
  }
  part.image ??= await bitmapOf(part.file);
  if (part !== current) return;
  const heat = part.decoded?.heat;
  const { width, height } = heat ?? part.image ?? { width: 0, height: 0 };
  const layers = [{ image: part.image, alpha: 1 }];
  if (heat) {
    const { median = 0, max = heat.high } = part.result.stats ?? {};
    const limit = view.threshold || max;
    $("legend-usual").textContent = number(median);
    $("legend-limit").textContent = number(limit);
    $("legend-far").textContent = number(Math.max(limit, 2 * limit - median));
    layers.push({ image: paintHeat(heat, median, limit), alpha: Number($("opacity").value) / 100 });
  }
  $("legend").hidden = !heat;
  stage.show({ width, height, layers, outlines: part.regions ?? [], shape: view.shape });
}

function panel(part) {
  const listedAs = part ? decisionOf(part) : "none";
  const found = part?.result ? regionsNow(part) : [];
  if (part) part.regions = found;
  if (told !== part?.result) hideNearest($("nearest"));
  told = part?.result;
  const decision = part ? decisionOf(part) : "none";
  if (decision !== listedAs) list();
  const why = !part ? t("empty") : decision === "none" ? t("noneWhy") : decision === "look" ? counted("look", found.length) : t(decision);
  showVerdict($("verdict"), decision, why);
  showGauge($("gauge"), part?.result?.score ?? null, view.threshold, scaleTop());
  const whole = found.reduce((sum, region) => sum + region.area_mm2, 0);
  const some = part?.result && view.threshold !== null;
  $("regions-title").textContent = some ? counted("regions", found.length) + (found.length ? ` · ${t("total", { area: brief(whole) })}` : "") : "";
  const place = ({ x, y, w, h, area_mm2: area }) => [language, part.id, part.turn, x, y, w, h, area].join();
  fill($("regions"), found.slice(0, 50), place, (region) => {
    const button = el("button", { type: "button", className: "quiet" }, el("strong", { textContent: `${brief(region.area_mm2)} mm²` }), " ", t("regionAt", { x: region.x, y: region.y }));
    button.addEventListener("click", () => {
      stage.goTo(region);
      showNearest($("nearest"), part.file, region, named({ mm_per_px: model.mm, ...(view.shape ? { shape: JSON.stringify(view.shape) } : {}) }));
    });
    return el("li", { data: { area: region.area_mm2 } }, button);
  });
  const unseen = part?.result && !part.image ? t("unseen") : "";
  const said = [...$("alerts").children].some((box) => box.dataset.text === part?.error?.message);
  const notes = [said ? "" : part?.error?.message, unseen, ...(part?.result?.warnings ?? [])].filter(Boolean);
  $("warnings").replaceChildren(...notes.map((text) => el("li", { textContent: localTimes(text) })));
}

function pickKind(kind) {
  stage.kind = kind;
  const heat = current?.decoded?.heat ?? current?.image;
  const [w, h] = heat ? [heat.width, heat.height] : [400, 400];
  const r = Math.round(Math.min(w, h) * 0.45);
  const middle = { cx: Math.round(w / 2), cy: Math.round(h / 2) };
  const first = {
    rect: { kind, x: Math.round(w * 0.1), y: Math.round(h * 0.1), w: Math.round(w * 0.8), h: Math.round(h * 0.8) },
    circle: { kind, ...middle, r },
    annulus: { kind, ...middle, r, r_inner: Math.round(r / 2) },
  };
  setShape(kind ? first[kind] : null, true);
}

function setShape(shape, settled) {
  view.shape = shape;
  stage.kind = shape?.kind ?? "";
  numbers();
  stage.show({ shape });
  if (!settled) return;
  keep("shape", shape);
  clearTimeout(pending);
  pending = setTimeout(() => again(current), 150);
}

function numbers() {
  const shape = view.shape;
  stage.kind = shape?.kind ?? "";
  $("shape-hint").hidden = !shape;
  const box = $("shape-numbers");
  if (box.dataset.kind === (shape?.kind ?? "") && shape && box.children.length) {
    for (const input of box.querySelectorAll("input")) if (input !== document.activeElement) input.value = shape[input.name];
    return;
  }
  box.dataset.kind = shape?.kind ?? "";
  box.replaceChildren(...(shape ? FIELDS[shape.kind] : []).map((name) => {
    const input = el("input", { type: "number", name, id: `shape-${name}`, step: "any", value: shape[name] });
    input.addEventListener("change", () => {
      const value = Number(input.value);
      if (input.value !== "" && Number.isFinite(value)) setShape({ ...view.shape, [name]: value }, true);
    });
    return el("label", {}, el("span", { textContent: t(`f_${name}`) }), input);
  }));
}

export function renumber() {
  $("shape-numbers").replaceChildren();
  numbers();
}
