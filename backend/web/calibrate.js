import { json } from "./api.js";
import { $, acceptFiles, calm, complain, el, svg } from "./dom.js";
import { number, t } from "./i18n.js";
import { learn, model, onModel, refreshState, requireModel } from "./model.js";
import { addParts, again, onParts, parts, view } from "./parts.js";
import { setThreshold } from "./inspect.js";

const BINS = 32;
let line = null;
let dragged = false;

export function startCalibrate(goTo) {
  acceptFiles($("cal-ok"), (files) => addParts(files, "ok"));
  acceptFiles($("cal-ng"), (files) => addParts(files, "ng"));
  $("cal-line").addEventListener("input", () => {
    line = Number($("cal-line").value);
    dragged = true;
    if (view.calibrated !== null) setThreshold(line);
    else show();
  });
  $("cal-target").addEventListener("change", () => {
    dragged = false;
    if (view.threshold !== null) line = view.threshold;
    show();
  });
  $("cal-go").addEventListener("click", () => calibrate(goTo));
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
  show();
}

const target = () => Number($("cal-target").value);

const scored = (truth) => parts.filter((part) => part.truth === truth && part.result).map((part) => part.result.score);

export function show() {
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
  if (any) histogram(ok, ng);
  else $("histogram").replaceChildren();
  outcome(ok, ng);
}

function outcome(ok, ng) {
  const known = line !== null && ok.length + ng.length > 0;
  const part = (n, all) => (known && all ? `${t("outOf", { n, all })} (${number((100 * n) / all, 0)} %)` : "–");
  $("cal-value").textContent = known ? number(line) : "–";
  $("cal-go").textContent = t(dragged && known ? "calGoLine" : "calGo", { value: known ? number(line) : "" });
  $("cal-reject").textContent = part(ok.filter((score) => score > line).length, ok.length);
  $("cal-miss").textContent = part(ng.filter((score) => score <= line).length, ng.length);
}

function histogram(ok, ng) {
  const all = [...ok, ...ng];
  const low = Math.min(...all, view.calibrated ?? Infinity);
  const high = Math.max(...all, view.calibrated ?? 0);
  const edge = (high - low || high || 1) * 0.08;
  const [from, to] = [Math.max(0, low - edge), high + edge];
  line ??= Math.max(...(ok.length ? ok : all));
  Object.assign($("cal-line"), { min: from, max: to, step: (to - from) / 1000 });
  $("cal-line").value = line;
  const bins = (scores) => {
    const counts = new Array(BINS).fill(0);
    for (const score of scores) counts[Math.min(BINS - 1, Math.floor(((score - from) / (to - from)) * BINS))] += 1;
    return counts;
  };
  const [above, below] = [bins(ok), bins(ng)];
  const most = Math.max(...above, ...below, 1);
  const picture = svg("svg", { viewBox: "0 0 640 240", preserveAspectRatio: "none", role: "img", "aria-label": t("histLabel", { ok: ok.length, ng: ng.length }) });
  const width = 640 / BINS;
  for (let i = 0; i < BINS; i += 1) {
    const [up, down] = [(100 * above[i]) / most, (100 * below[i]) / most];
    if (up) picture.append(svg("rect", { class: "bar ok", x: i * width + 1, width: width - 2, y: 120 - up, height: up }));
    if (down) picture.append(svg("rect", { class: "bar ng", x: i * width + 1, width: width - 2, y: 120, height: down }));
  }
  picture.append(svg("line", { class: "axis", x1: 0, x2: 640, y1: 120, y2: 120 }));
  const ticks = el("div", { className: "ticks" }, ...[0, 0.25, 0.5, 0.75, 1].map((f) => el("span", { textContent: number(from + f * (to - from)) })));
  ticks.setAttribute("aria-hidden", "true");
  $("histogram").replaceChildren(picture, ticks);
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
    done(result, ok.length, ng.length, goTo);
  } catch (err) {
    complain(err);
  } finally {
    show();
  }
}

function done(result, ok, ng, goTo) {
  const next = el("button", { type: "button", className: "primary", textContent: t("goInspect") });
  next.addEventListener("click", () => goTo("inspect"));
  const warnings = (result.warnings ?? []).map((text) => el("p", { className: "warn", textContent: text }));
  const promise = result.false_reject ? el("p", { className: "promise", textContent: promised(result.false_reject) }) : null;
  const misses = result.misses ? el("p", { textContent: missed(result.misses) }) : null;
  const words = t("calDone", { value: number(result.threshold), ok, ng });
  $("cal-result").replaceChildren(el("div", { className: "notice", data: { state: "ok", threshold: result.threshold } }, ...[el("p", {}, words), promise, misses].filter(Boolean), ...warnings, next));
  learn({ calibrated: true, stale: "" });
  dragged = false;
  line = view.calibrated = view.threshold = result.threshold;
  again();
  refreshState();
}

const percent = (share) => `${number(100 * share, 1)} %`;

/* What a threshold promises about good parts, in words. */
function promised({ upper_bound: bound, confidence, n_ok: n, n_ok_needed: needed }) {
  const promise = t("calPromise", { bound: percent(bound), confidence: percent(confidence) });
  return needed > n ? `${promise} ${t("calNeeded", { n: needed - n })}` : promise;
}

function missed({ estimate, lower_bound: low, upper_bound: high, n_ng: n }) {
  return t("calMisses", { estimate: percent(estimate), low: percent(low), high: percent(high), n });
}
