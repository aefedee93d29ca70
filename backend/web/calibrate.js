import { json } from "./api.js";
import { histogram } from "./charts.js";
import { $, acceptFiles, calm, complain, differs, el } from "./dom.js";
import { language, number, percent, t } from "./i18n.js";
import { learn, model, named, newsOf, onModel, onState, refreshState, requireModel } from "./model.js";
import { posted, tracked } from "./progress.js";
import { addParts, again, onParts, parts, view } from "./parts.js";
import { select, setThreshold } from "./inspect.js";
import { listParts } from "./verdict.js";

const MOST = 60;
let look = () => {};
let line = null;
let dragged = false;

export function startCalibrate(goTo) {
  acceptFiles($("cal-ok"), (files) => addParts(files, "ok"));
  acceptFiles($("cal-ng"), (files) => addParts(files, "ng"));
  look = (part) => {
    goTo("inspect");
    select(part);
  };
  $("cal-line").addEventListener("input", () => pull(Number($("cal-line").value)));
  $("cal-target").addEventListener("change", () => {
    dragged = false;
    if (view.threshold !== null) line = view.threshold;
    show();
  });
  $("cal-go").addEventListener("click", () => calibrate(goTo));
  $("cal-stored").addEventListener("click", () => calibrateStored(goTo));
  onParts(() => {
    if (view.threshold !== null && !dragged) line = view.threshold;
    show();
  });
  onModel(() => {
    line = null;
    dragged = false;
    $("cal-result").replaceChildren();
    show();
  });
  onState(() => outcome(scored("ok"), scored("ng")));
  show();
}

function pull(to) {
  line = to;
  dragged = true;
  if (view.calibrated !== null) setThreshold(line);
  else show();
}

const target = () => Number($("cal-target").value);

const judged = () => parts.filter((part) => part.truth && part.result);

const scored = (truth) => judged().filter((part) => part.truth === truth).map((part) => part.result.score);

export function show() {
  for (const option of $("cal-target").options) if (option.value) option.textContent = percent(Number(option.value));
  const [ok, ng] = [scored("ok"), scored("ng")];
  for (const truth of ["ok", "ng"]) {
    const left = parts.filter((part) => part.truth === truth && !part.fresh).length;
    const n = parts.filter((part) => part.truth === truth && part.fresh && part.result).length;
    $(`cal-${truth}-n`).textContent = left ? t("calBusy", { n, left }) : t("calCount", { n });
  }
  const any = ok.length + ng.length > 0;
  $("cal-empty").hidden = any;
  $("cal-go").disabled = !ok.length || parts.some((part) => part.truth && !part.fresh);
  $("cal-line").disabled = !any;
  if (any) draw(ok, ng);
  else if (differs($("histogram"), null)) $("histogram").replaceChildren();
  outcome(ok, ng);
  wrong();
}

function outcome(ok, ng) {
  const known = line !== null && ok.length + ng.length > 0;
  const part = (n, all) => (known && all ? `${t("outOf", { n, all })} (${number((100 * n) / all, 0)} %)` : "–");
  const set = known ? line : model.threshold;
  $("cal-value").textContent = set === null ? "–" : number(set);
  $("cal-go").textContent = t(dragged && known ? "calGoLine" : "calGo", { value: known ? number(line) : "" });
  $("cal-reject").textContent = part(ok.filter((score) => score > line).length, ok.length);
  $("cal-miss").textContent = part(ng.filter((score) => score <= line).length, ng.length);
}

function draw(ok, ng) {
  const all = [...ok, ...ng];
  const low = Math.min(...all, view.calibrated ?? Infinity);
  const high = Math.max(...all, view.calibrated ?? 0);
  const edge = (high - low || high || 1) * 0.08;
  const [from, to] = [Math.max(0, low - edge), high + edge];
  if (line === null || (!dragged && view.threshold === null)) line = Math.max(...(ok.length ? ok : all)); // until one is set it stands where good ends
  Object.assign($("cal-line"), { min: from, max: to, step: (to - from) / 1000 });
  $("cal-line").value = line;
  if (!differs($("histogram"), [language, from, to, judged().map((part) => [part.id, part.truth, part.result.score])])) return;
  const point = (part) => ({ score: part.result.score, truth: part.truth, name: part.name, part });
  const picture = histogram(judged().map(point), { from, to, label: t("histLabel", { ok: ok.length, ng: ng.length }), open: ({ part }) => look(part), place: pull });
  const ticks = el("div", { className: "ticks" }, ...[0, 0.25, 0.5, 0.75, 1].map((f) => el("span", { textContent: number(from + f * (to - from)) })));
  ticks.setAttribute("aria-hidden", "true");
  $("histogram").replaceChildren(picture, ticks);
}

/* The parts that the line judges wrongly, those farthest from it first; each opens where it is inspected. */
function wrong() {
  const known = line === null ? [] : judged().filter(({ truth, result }) => (truth === "ok") === result.score > line);
  const away = ({ result }) => Math.abs(result.score - line);
  $("cal-wrong-title").textContent = known.length ? t("calWrong", { n: known.length }) : "";
  const of = ({ truth, name, result }) => ({ decision: truth === "ok" ? "ng" : "ok", said: t(truth === "ok" ? "calWrongOk" : "calWrongNg", { name, score: number(result.score) }) });
  listParts($("cal-wrong"), known.toSorted((one, other) => away(other) - away(one)).slice(0, MOST), of, look);
}

async function calibrate(goTo) {
  calm();
  $("cal-go").disabled = true;
  try {
    requireModel();
    const [ok, ng] = [scored("ok"), scored("ng")];
    const body = {
      role_id: model.role,
      roi_id: model.roi,
      mm_per_px: model.mm,
      ok_scores: ok,
      ng_scores: ng,
      area_mm2_thr: Number($("cal-area").value),
      score_percentile: Number($("cal-percentile").value),
      ...(dragged ? { threshold: line } : target() ? { max_false_reject: target() } : {}),
      ...(model.recipe ? { recipe_id: model.recipe } : {}),
    };
    const result = await json("/calibrate_ng", { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
    done(result, ok.length, ng.length, dragged ? 0 : target(), goTo);
  } catch (err) {
    complain(err);
  } finally {
    show();
  }
}

/* With the samples that are stored, each scored as if it had not been learned from. */
async function calibrateStored(goTo) {
  calm();
  $("cal-result").replaceChildren();
  $("cal-stored").disabled = true;
  try {
    requireModel();
    const asked = named({ area_mm2_thr: Number($("cal-area").value), score_percentile: Number($("cal-percentile").value), ...(target() ? { max_false_reject: target() } : {}) });
    const result = await tracked($("cal-progress"), "/calibrate_dataset", posted(asked));
    done(result, result.n_ok, result.n_ng, target(), goTo, "calNeededStored");
  } catch (err) {
    complain(err);
  } finally {
    $("cal-stored").disabled = false;
    show();
  }
}

function done(result, ok, ng, asked, goTo, needed = "calNeeded") {
  const next = el("button", { type: "button", className: "primary", textContent: t("goInspect") });
  next.addEventListener("click", () => goTo("inspect"));
  const warnings = newsOf(result).map((text) => el("p", { className: "warn", textContent: text }));
  const promise = result.false_reject ? el("p", { className: "promise", textContent: promised(result.false_reject, asked, needed) }) : null;
  const misses = result.misses ? el("p", { textContent: missed(result.misses) }) : null;
  const words = t("calDone", { value: number(result.threshold), ok, ng });
  $("cal-result").replaceChildren(el("div", { className: "notice", data: { state: "ok", threshold: result.threshold } }, ...[el("p", {}, words), promise, misses].filter(Boolean), ...warnings, next));
  $("cal-result").firstChild.scrollIntoView({ block: "nearest" });
  learn({ calibrated: true, stale: "", threshold: result.threshold });
  dragged = false;
  line = view.calibrated = view.threshold = result.threshold;
  again();
  refreshState();
}

/* What a threshold promises about good parts, in words. */
function promised({ upper_bound: bound, confidence, n_ok: n, n_ok_needed: wanted }, asked, needed) {
  const promise = t("calPromise", { bound: percent(bound), confidence: percent(confidence) });
  return asked && wanted > n ? `${promise} ${t(needed, { n: wanted - n })}` : promise;
}

function missed({ estimate, lower_bound: low, upper_bound: high, n_ng: n }) {
  return t("calMisses", { estimate: percent(estimate), low: percent(low), high: percent(high), n });
}
