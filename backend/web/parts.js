/* The parts on the page, shared by Inspect and Calibrate: inspected in turn, two at a time. */
import { json, patiently } from "./api.js";
import { calm, complain, thumbnail } from "./dom.js";
import { formOf, learn, model, requireModel } from "./model.js";
import { CONSOLE } from "./records.js";

export const parts = [];
export const view = { threshold: null, calibrated: null, shape: null };
const listeners = [];
const waiting = [];
let running = 0;
let count = 0;

export function onParts(listener) {
  listeners.push(listener);
}

export function tell(part = null) {
  for (const listener of listeners) listener(part);
}

/* At a threshold that was dragged, the highest value of a part's map tells whether there are regions until they are found. */
export function decisionOf(part) {
  if (part.error) return "failed";
  if (!part.result) return "busy";
  if (view.threshold === null) return "none";
  if (part.result.score > view.threshold) return "ng";
  const found = regionsAt(part);
  return (found ? found.length > 0 : part.result.stats?.max >= view.threshold) ? "look" : "ok";
}

/* The regions above the threshold on the page; null while those of a moved one are not found yet. */
function regionsAt({ result }) {
  if (view.threshold === result.threshold) return result.regions;
  return result.moved?.threshold === view.threshold ? result.moved.regions : null;
}

export async function addParts(files, truth = "") {
  try {
    requireModel();
  } catch (err) {
    complain(err);
    return [];
  }
  const added = [];
  for (const file of files) {
    const part = { id: (count += 1), name: file.name, file, truth, result: null, error: null, thumb: await thumbnail(file) };
    parts.push(part);
    added.push(part);
    tell();
    enqueue(part);
  }
  return added;
}

export function clearParts() {
  parts.length = 0;
  waiting.length = 0;
  tell();
}

/* Everything again, `first` before the others: after another mask, model or calibration. */
export function again(first = null) {
  waiting.length = 0;
  calm();
  const order = first ? [first, ...parts.filter((part) => part !== first)] : parts;
  for (const part of order) enqueue(part);
  tell();
}

/* Those that failed once more. */
export function retry(failed) {
  calm();
  for (const part of failed) {
    part.error = null;
    enqueue(part);
  }
  tell();
}

export function enqueue(part) {
  part.turn = (part.turn ?? 0) + 1;
  part.fresh = false;
  if (!waiting.includes(part)) waiting.push(part);
  work();
}

async function work() {
  while (running < 2 && waiting.length) {
    running += 1;
    const part = waiting.shift();
    inspect(part).finally(() => {
      running -= 1;
      work();
    });
  }
}

async function inspect(part) {
  const turn = part.turn;
  const key = model.key;
  const form = formOf({ heatmap: "absolute", station_id: CONSOLE, ...(view.shape ? { shape: JSON.stringify(view.shape) } : {}) });
  form.append("image", part.file, part.name);
  try {
    const result = await patiently(() => json("/infer", { method: "POST", body: form }));
    if (part.turn !== turn || key !== model.key) return;
    part.result = result;
    part.fresh = true;
    part.error = null;
    part.decoded = null;
    learn({ fitted: true, calibrated: result.threshold !== null });
    if (result.threshold !== view.calibrated) {
      view.calibrated = result.threshold;
      view.threshold = result.threshold;
    }
  } catch (err) {
    if (part.turn !== turn) return;
    part.error = err;
    part.fresh = true;
    part.result = part.decoded = null;
    if (err.code === "memory_not_found") learn({ fitted: false, calibrated: false });
    complain(err);
  }
  tell(part);
}
