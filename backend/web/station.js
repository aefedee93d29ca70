import { json, listen } from "./api.js";
import { trend } from "./charts.js";
import { $, complain, el, paint, smallCanvas } from "./dom.js";
import { brief, number, t } from "./i18n.js";
import { decisionOf, modelOf, overlayOf, partOf, review, reviewer, verdictWord, when } from "./records.js";
import { go } from "./router.js";
import { showVerdict } from "./verdict.js";

const SHOWN = 20;
const TREND = 120;
const PICTURE_MS = 700;
const DRAW_MS = 200;
const IN_A_ROW = 3;

let on = false;
let stop = null;
let up;
let latest = null;
let recent = [];
let scores = [];
let counts = { n: 0, ok: 0, ng: 0 };
let inRow = 0;
let said = "";
let lastSeen = 0;
let pictureBusy = false;
let drawn = "";
let frame = 0;
let drawnAt = 0;
let filling = false;
let timers = [];
let audio = null;

const stationFilter = () => $("st-station").value.trim();
const filter = (more = {}) => new URLSearchParams({ ...(stationFilter() ? { station_id: stationFilter() } : {}), ...more });
const quietMinutes = () => Number($("st-quiet").value) || 0;

export function startStation() {
  $("st-station").value = localStorage.getItem("station") ?? "";
  $("st-quiet").value = localStorage.getItem("station-quiet") ?? "5";
  $("st-sound").checked = localStorage.getItem("station-sound") === "1";
  $("st-station").addEventListener("change", () => {
    localStorage.setItem("station", stationFilter());
    if (on) restart();
  });
  $("st-quiet").addEventListener("change", () => localStorage.setItem("station-quiet", $("st-quiet").value));
  $("st-sound").addEventListener("change", () => {
    localStorage.setItem("station-sound", $("st-sound").checked ? "1" : "0");
    if ($("st-sound").checked) beep();
  });
  $("st-full").addEventListener("click", () => (document.fullscreenElement ? document.exitFullscreen() : $("station").requestFullscreen()));
  $("st-confirm").addEventListener("click", () => say(true));
  $("st-overrule").addEventListener("click", () => say(false));
  $("st-detail").addEventListener("click", () => latest && go("history", [latest.inspection_id]));
  addEventListener("keydown", (event) => {
    if (!on || event.target.closest("input, select, textarea, dialog") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "c") say(true);
    if (event.key === "x") say(false);
  });
}

export function enter() {
  if (on) return;
  on = true;
  restart();
}

export function leave() {
  on = false;
  stop?.abort();
  for (const timer of timers) clearInterval(timer);
  timers = [];
}

function restart() {
  leave();
  on = true;
  clearPicture();
  counts = { n: 0, ok: 0, ng: 0 };
  [latest, recent, scores, inRow, drawn, lastSeen] = [null, [], [], 0, "", 0];
  stop = new AbortController();
  timers = [setInterval(draw, 5000), setInterval(countAgain, 60000)];
  draw();
  listen(`/inspections/stream?${filter()}`, stop.signal, arrived, (state) => {
    up = state;
    draw();
    if (state) catchUp();
  });
}

/* What came before the stream was open, at the start and after each break. */
async function catchUp() {
  try {
    const page = await json(`/inspections?${filter({ limit: TREND })}`, { quiet: true, signal: stop.signal });
    const live = new Set(scores.map((item) => item.inspection_id));
    scores = [...page.items.filter((item) => !live.has(item.inspection_id)), ...scores]
      .sort((one, other) => (one.time < other.time ? -1 : 1)).slice(-TREND);
    settle();
  } catch {
    /* the stream goes on; what was missed is in the history */
  }
  await countAgain();
}

async function countAgain() {
  const tz = Intl.DateTimeFormat().resolvedOptions().timeZone;
  try {
    const found = await json(`/inspections/summary?${filter({ bucket: "shift", tz })}`, { quiet: true, signal: stop.signal });
    const shift = found.items.at(-1);
    if (shift) counts = { n: shift.n, ok: shift.ok, ng: shift.ng, false_alarms: shift.false_alarms, misses: shift.misses };
    schedule();
  } catch {
    /* what was counted stays; the connection's state is shown by the stream */
  }
}

function arrived(item) {
  if (scores.some((one) => one.inspection_id === item.inspection_id)) return;
  scores = [...scores, item].slice(-TREND);
  counts.n += 1;
  if (item.decision in counts) counts[item.decision] += 1;
  settle();
  lastSeen = Date.now();
  if (item.decision === "ng" && $("st-sound").checked) beep(inRow >= IN_A_ROW ? 3 : 1);
}

/* What follows from the latest parts. */
function settle() {
  latest = scores.at(-1) ?? null;
  if (latest) lastSeen = Math.max(lastSeen, new Date(latest.time).getTime());
  inRow = 0;
  while (inRow < scores.length && scores[scores.length - 1 - inRow].decision === "ng") inRow += 1;
  const kept = scores.slice(-SHOWN);
  for (const item of recent) if (!kept.includes(item)) delete item.thumb;
  recent = kept;
  schedule();
}

/* However fast parts come, the page is drawn no more often than the eye follows. */
const schedule = () => {
  if (!frame) frame = setTimeout(draw, Math.max(0, drawnAt + DRAW_MS - performance.now()));
};

function draw() {
  clearTimeout(frame);
  frame = 0;
  drawnAt = performance.now();
  if (!on) return;
  drawAlarms();
  drawCounts();
  const empty = !latest;
  $("st-empty").hidden = !empty || up === null;
  $("st-off").hidden = up !== null || !empty;
  for (const id of ["st-confirm", "st-overrule", "st-detail"]) $(id).disabled = empty || (id !== "st-detail" && !latest.decision);
  showVerdict($("st-verdict"), empty ? "none" : decisionOf(latest), empty ? t("stNone") : `${number(latest.score)}${latest.threshold ? ` / ${number(latest.threshold)}` : ""}`);
  $("st-part").textContent = empty ? "" : [partOf(latest), modelOf(latest), when(latest.time, { timeStyle: "medium" })].join(" · ");
  $("st-trend").replaceChildren(trend(scores.map((item) => ({ ...item, decision: decisionOf(item) })), { label: t("stTrend") }));
  drawRecent();
  drawPicture();
}

function drawAlarms() {
  const minutes = lastSeen ? (Date.now() - lastSeen) / 60000 : 0;
  const alarms = [
    up === false ? t("stLost") : "",
    inRow >= IN_A_ROW ? t("stRow", { n: inRow }) : "",
    quietMinutes() && minutes >= quietMinutes() ? t("stSilent", { n: Math.floor(minutes) }) : "",
  ].filter(Boolean);
  $("st-alarm").hidden = !alarms.length;
  const text = alarms.join(" ");
  if ($("st-alarm").textContent !== text) $("st-alarm").textContent = text;
  if (text && text !== said && up === false && $("st-sound").checked) beep(2);
  said = text;
}

function drawCounts() {
  const judged = counts.ok + counts.ng;
  const fact = (key, value, kind = "") => el("div", { className: kind }, el("dt", { textContent: t(key) }), el("dd", { textContent: value }));
  $("st-counts").replaceChildren(
    fact("stParts", brief(counts.n)),
    fact("stOk", brief(counts.ok), "ok"),
    fact("stNg", brief(counts.ng), "ng"),
    fact("stYield", judged ? `${brief((100 * counts.ok) / judged)} %` : "–"),
  );
}

function drawRecent() {
  const list = $("st-recent");
  const wanted = recent.slice().reverse();
  const have = new Map([...list.children].map((node) => [node.dataset.id, node]));
  list.replaceChildren(...wanted.map((item) => have.get(item.inspection_id) ?? entry(item)));
  fillRecent();
}

/* Their pictures one after the other, the newest first: those that have gone by meanwhile are never asked for. */
async function fillRecent() {
  if (filling) return;
  filling = true;
  for (;;) {
    const next = on ? recent.findLast((item) => item.thumb && !item.thumb.asked) : null;
    if (!next) break;
    next.thumb.asked = true;
    try {
      await paint(next.thumb, await overlayOf(next.inspection_id, 168, stop.signal));
    } catch {
      /* the picture of a part that is not kept stays empty */
    }
  }
  filling = false;
}

function entry(item) {
  item.thumb ??= smallCanvas();
  const button = el("button", { type: "button", className: "part", data: { decision: decisionOf(item) } }, item.thumb,
    el("span", { className: "name", textContent: partOf(item) }), el("b", { textContent: verdictWord(item.decision) }));
  button.addEventListener("click", () => go("history", [item.inspection_id]));
  return el("li", { data: { id: item.inspection_id } }, button);
}

/* The large picture: one request at a time, and never more often than the eye follows. */
async function drawPicture() {
  if (!latest || pictureBusy || drawn === latest.inspection_id) return;
  pictureBusy = true;
  const item = latest;
  try {
    const wide = Math.min(1600, Math.ceil($("st-picture").clientWidth * devicePixelRatio) || 800);
    await paint($("st-picture"), await overlayOf(item.inspection_id, wide, stop.signal));
    $("st-picture").setAttribute("aria-label", t("stPicture", { part: partOf(item) }));
    $("st-picture").dataset.id = item.inspection_id;
  } catch {
    clearPicture();
  }
  drawn = item.inspection_id;
  await new Promise((done) => setTimeout(done, PICTURE_MS));
  pictureBusy = false;
  if (on && latest && latest.inspection_id !== drawn) drawPicture();
}

function clearPicture() {
  Object.assign($("st-picture"), { width: 1, height: 1 });
  $("st-picture").setAttribute("aria-label", t("stNone"));
  delete $("st-picture").dataset.id;
}

async function say(agrees) {
  const item = latest;
  if (!item?.decision) return;
  const bad = (item.decision === "ng") === agrees;
  try {
    await review(item.inspection_id, bad ? "bad" : "good", { reviewer: reviewer.name });
    $("st-said").textContent = t(agrees ? "stConfirmed" : "stOverruled", { part: partOf(item) });
  } catch (err) {
    complain(err);
  }
}

function beep(times = 1) {
  audio ??= new AudioContext();
  for (let n = 0; n < times; n += 1) {
    const tone = audio.createOscillator();
    const volume = audio.createGain();
    tone.frequency.value = 880;
    volume.gain.value = 0.15;
    tone.connect(volume).connect(audio.destination);
    tone.start(audio.currentTime + n * 0.3);
    tone.stop(audio.currentTime + n * 0.3 + 0.18);
  }
}

export function show() {
  if (on) {
    $("st-recent").replaceChildren();
    draw();
  }
}
