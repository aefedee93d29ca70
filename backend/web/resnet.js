import { json, newId, patiently, send } from "./api.js";
import { $, acceptFiles, bitmapOf, calm, chosen, complain, el, facts, thumbnail } from "./dom.js";
import { contourPath } from "./heat.js";
import { brief, counted, number, t } from "./i18n.js";
import { CONSOLE } from "./records.js";
import { Stage } from "./stage.js";
import { listParts, showGauge, showVerdict } from "./verdict.js";

const parts = [];
let stage = null;
let current = null;

export function startResnet() {
  stage = new Stage($("rn-stage"));
  acceptFiles($("rn-files"), addFiles);
  for (const input of document.querySelectorAll('input[name="rn-show"]')) input.addEventListener("change", show);
  for (const input of document.querySelectorAll('input[name="rn-mode"]')) input.addEventListener("change", again);
  $("rn-thr").addEventListener("change", again);
  show();
}

export async function addFiles(files) {
  calm();
  let first = null;
  for (const file of files) {
    const part = { id: newId(), name: file.name, file, thumb: await thumbnail(file), answer: null, error: null };
    first ??= part;
    parts.push(part);
    current = first;
    show();
    await predict(part);
  }
  config();
}

async function again() {
  for (const part of [current, ...parts.filter((other) => other !== current)]) if (part) await predict(part);
}

async function predict(part) {
  const turn = (part.turn = (part.turn ?? 0) + 1);
  const query = new URLSearchParams();
  if (chosen("rn-mode")) query.set("mode", chosen("rn-mode"));
  if ($("rn-thr").value !== "") query.set("thr", $("rn-thr").value);
  const form = new FormData();
  form.append("file", part.file, part.name);
  form.append("station_id", CONSOLE);
  try {
    const answer = await patiently(() => json(`/predict?${query}`, { method: "POST", body: form }));
    if (part.turn !== turn) return;
    part.answer = answer;
    part.pictures = {};
    part.error = null;
  } catch (err) {
    if (part.turn !== turn) return;
    part.error = err;
    part.answer = null;
    complain(err.status === 404 ? new Error(t("rnAbsent")) : named(err, part));
  }
  show();
}

/* The document's sentences about a file do not say which. */
function named(err, { name }) {
  if (err.status === 400) err.message = `${name}: ${err.message}`;
  return err;
}

export async function config() {
  const box = $("rn-config");
  let given;
  try {
    given = await json("/config");
  } catch (err) {
    box.replaceChildren(el("div", {}, el("dd", { textContent: err.status === 404 ? t("rnAbsent") : err.message })));
    return;
  }
  const rows = {
    status: t(`st_${given.status}`),
    embedding_version: given.embedding_version,
    rows: given.memory_bank.rows ? number(given.memory_bank.rows, 0) : "–",
    threshold: number(given.threshold),
    img_size: `${given.img_size} px`,
    knn_k: given.knn_k,
    ignore_border_pct: `${brief(given.ignore_border_pct)}\u00a0%`,
    ...(given.roi_path ? { roi_path: given.roi_path } : {}),
  };
  box.dataset.status = given.status;
  facts(box, Object.entries(rows).map(([name, value]) => [t(`c_${name}`), value]));
}

function decisionOf(part) {
  if (part.error) return "failed";
  if (!part.answer) return "busy";
  return part.answer.is_anomaly ? "ng" : "ok";
}

export function show() {
  listParts($("rn-list"), parts, (part) => ({ decision: decisionOf(part), selected: part === current }), (part) => {
    current = part;
    show();
  });
  const part = current;
  const decision = part ? decisionOf(part) : "none";
  const answer = part?.answer;
  showVerdict($("rn-verdict"), decision, part ? t(decision) : t("empty"));
  showGauge($("rn-gauge"), answer?.score ?? null, answer?.threshold ?? null);
  $("rn-found").textContent = answer ? [counted("polygons", answer.polygons.length), ...answer.warnings].join(". ") : part?.error?.message ?? "";
  $("rn-stage").setAttribute("aria-label", part ? t("stageLabel", { name: part.name, verdict: t(decision), score: answer ? number(answer.score) : "–" }) : t("stageEmpty"));
  picture(part);
}

/* The pictures need the key as any other request does, so they are fetched rather than linked. */
async function picture(part) {
  if (!part) return stage.show({ width: 0, layers: [], outlines: [] });
  const kind = chosen("rn-show");
  const url = part.answer?.[`${kind}_url`];
  const plain = kind === "outlines" || !url;
  part.image ??= await bitmapOf(part.file);
  if (!plain && !part.pictures[kind]) {
    try {
      part.pictures[kind] = await bitmapOf(await (await send(url)).blob());
    } catch (err) {
      complain(err);
    }
  }
  if (part !== current || kind !== chosen("rn-show")) return;
  const image = plain ? part.image : part.pictures[kind];
  const [width, height] = part.answer?.image_size ?? [part.image?.width ?? 0, part.image?.height ?? 0];
  stage.show({ width, height, layers: [{ image, alpha: 1 }], outlines: plain && part.answer ? outlines(part.answer) : [] });
}

function outlines({ polygons, img_size: side, image_size: [width, height] }) {
  const scaled = ([x, y]) => [(x * width) / side, (y * height) / side];
  return polygons.map((polygon) => ({ path: contourPath(polygon.map(scaled)) }));
}
