import { json, listen } from "./api.js";
import { trend } from "./charts.js";
import { $, bitmapOf, complain, drawInto, el, smallCanvas, write } from "./dom.js";
import { number, percent, t, whole } from "./i18n.js";
import { CONSOLE, decisionOf, modelOf, overlayOf, partOf, review, reviewer, when } from "./records.js";
import { addressOf, go } from "./router.js";
import { WORDS, showVerdict } from "./verdict.js";

const SHOWN = 20;
const TREND = 120;
const SMALL = 168; // px
const LARGE_MS = 1000; // from one large picture to the next, however fast parts come
const REST_MS = 200; // between pictures while parts come
const DRAW_MS = 200;
const TREND_MS = 1000;
const RECOUNT_MS = 2000; // after the last part: the service and the stream may both have told of one
const SHIFT_MS = 8 * 3600000;
const NONE = { n: 0, ok: 0, ng: 0, undecided: 0 };

let on = false;
let stop = null;
let up;
let latest = null;
let recent = [];
let listed = []; // those of them that stand on the page
let scores = [];
let counts = { ...NONE };
let inRow = 0;
let said = "";
let lastSeen = 0;
let drifting = []; // [model, cause] of the models whose parts drift
let came = 0;
let frame = 0;
let drawnAt = 0;
let charting = 0;
let chartedAt = -Infinity;
let large = { id: "", at: -Infinity };
let looked = new Set(); // of the latest parts, those whose small picture was asked for
let fetching = false;
let timers = [];
let recount = 0;
let audio = null;

const stationFilter = () => $("st-station").value.trim();
const filter = (more = {}) => new URLSearchParams({ [stationFilter() ? "station_id" : "except_station_id"]: stationFilter() || CONSOLE, ...more });
const quietMinutes = () => Number($("st-quiet").value) || 0;
const rowOf = () => Number($("st-row").value) || Infinity; // NG in a row that are an alarm

export function startStation() {
  $("st-station").value = localStorage.getItem("station") ?? "";
  $("st-quiet").value = localStorage.getItem("station-quiet") ?? "5";
  $("st-sound").checked = localStorage.getItem("station-sound") === "1";
  $("st-station").addEventListener("change", () => {
    localStorage.setItem("station", stationFilter());
    if (on) restart();
  });
  $("st-row").value = localStorage.getItem("station-row") ?? "3";
  for (const name of ["quiet", "row"]) $(`st-${name}`).addEventListener("change", () => {
    localStorage.setItem(`station-${name}`, $(`st-${name}`).value);
    draw();
  });
  $("st-sound").addEventListener("change", () => {
    localStorage.setItem("station-sound", $("st-sound").checked ? "1" : "0");
    if ($("st-sound").checked) beep();
  });
  $("st-full").addEventListener("click", () => (document.fullscreenElement ? document.exitFullscreen() : $("station").requestFullscreen()));
  $("st-confirm").addEventListener("click", () => say(true));
  $("st-overrule").addEventListener("click", () => say(false));
  $("st-detail").addEventListener("click", () => latest && go("history", [latest.inspection_id]));
  $("st-recent").addEventListener("click", (event) => {
    const part = event.target.closest("li");
    if (part) go("history", [part.dataset.id]);
  });
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
  clearTimeout(recount);
  for (const timer of timers) clearInterval(timer);
  timers = [];
}

function restart() {
  leave();
  on = true;
  clearPicture();
  counts = { ...NONE };
  large = { id: "", at: -Infinity };
  [latest, recent, listed, scores, inRow, lastSeen, drifting, looked] = [null, [], [], [], 0, 0, [], new Set()];
  stop = new AbortController();
  timers = [setInterval(draw, 5000), setInterval(lookAgain, 60000)];
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
  await lookAgain();
}

/* What the stream does not tell. */
const lookAgain = () => Promise.all([countAgain(), watchDrift()]);

async function countAgain() {
  const tz = Intl.DateTimeFormat().resolvedOptions().timeZone;
  try {
    const found = await json(`/inspections/summary?${filter({ bucket: "shift", tz })}`, { quiet: true, signal: stop.signal });
    const shift = found.items.findLast((one) => Date.now() < Date.parse(one.start) + SHIFT_MS);
    counts = shift ? { n: shift.n, ok: shift.ok, ng: shift.ng, undecided: shift.undecided } : { ...NONE };
    schedule();
  } catch {
    /* what was counted stays; the connection's state is shown by the stream */
  }
}

/* Whether the parts of the models that are seen here drift. */
async function watchDrift() {
  const models = new Map(scores.map((item) => [modelOf(item), item]));
  const found = await Promise.all([...models].map(async ([model, { role_id, roi_id, recipe_id }]) => {
    const query = new URLSearchParams({ role_id, roi_id, ...(recipe_id ? { recipe_id } : {}) });
    const { state, cause } = await json(`/drift?${query}`, { quiet: true, signal: stop.signal }).catch(() => ({}));
    return state === "drift" ? [model, cause] : null;
  }));
  drifting = found.filter(Boolean);
  schedule();
}

function arrived(item) {
  if (scores.some((one) => one.inspection_id === item.inspection_id)) return;
  scores = [...scores, item].slice(-TREND);
  counts.n += 1;
  counts[item.decision ?? "undecided"] += 1;
  came += 1;
  settle();
  clearTimeout(recount);
  recount = setTimeout(countAgain, RECOUNT_MS);
  lastSeen = Date.now();
  if (item.decision === "ng" && $("st-sound").checked) beep(inRow >= rowOf() ? 3 : 1);
}

/* What follows from the latest parts. */
function settle() {
  latest = scores.at(-1) ?? null;
  if (latest) lastSeen = Math.max(lastSeen, new Date(latest.time).getTime());
  inRow = 0;
  while (inRow < scores.length && scores[scores.length - 1 - inRow].decision === "ng") inRow += 1;
  recent = scores.slice(-SHOWN);
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
  $("st-unkept").hidden = empty || latest.image?.kept !== false;
  write($("st-part"), empty ? "" : [partOf(latest), modelOf(latest), when(latest.time, { timeStyle: "medium" })].join(" · "));
  if (!charting) charting = setTimeout(drawTrend, Math.max(0, chartedAt + TREND_MS - performance.now()));
  drawRecent();
  fetchPictures();
}

/* A chart of so many points costs more than all else, so it is drawn less often. */
function drawTrend() {
  charting = 0;
  chartedAt = performance.now();
  const points = scores.map((item) => ({ score: item.score, threshold: item.threshold, decision: decisionOf(item) }));
  const chart = trend(points, { label: t("stTrend"), into: $("st-trend").firstChild });
  if (!chart.parentNode) $("st-trend").append(chart);
}

function drawAlarms() {
  const minutes = lastSeen ? (Date.now() - lastSeen) / 60000 : 0;
  const alarms = [
    up === false ? t("stLost") : "",
    inRow >= rowOf() ? t("stRow", { n: inRow }) : "",
    ...drifting.map(([model, cause]) => t("stDrift", { model, cause: t(`heCause_${cause}`) })),
    quietMinutes() && minutes >= quietMinutes() ? t("stSilent", { n: Math.floor(minutes) }) : "",
  ].filter(Boolean);
  $("st-alarm").hidden = !alarms.length;
  const text = alarms.join(" ");
  write($("st-alarm"), text);
  const kinds = alarms.map((one) => one.replace(/\d+/g, "")).join(" "); // a number that grows is no new alarm
  if (kinds && kinds !== said && inRow < rowOf() && $("st-sound").checked) beep(2);
  said = kinds;
}

/* How many passed: 100 % only where all did. */
const yieldOf = ({ ok, ng }) => (ok + ng ? percent(Math.floor((1000 * ok) / (ok + ng)) / 1000) : "–");

function drawCounts() {
  const list = $("st-counts");
  const facts = [["stParts", "", whole(counts.n)], ["stOk", "ok", whole(counts.ok)], ["stNg", "ng", whole(counts.ng)], ["stUndecided", "", whole(counts.undecided)], ["stYield", "", yieldOf(counts)]];
  if (!list.firstChild) list.append(...facts.map(([, className]) => el("div", { className }, el("dt"), el("dd"))));
  facts.forEach(([key, , value], n) => {
    const box = list.children[n];
    write(box.firstChild, t(key));
    write(box.lastChild, value);
    box.hidden = key === "stUndecided" && !counts.undecided;
  });
}

/* The latest parts, the newest first. Those that have gone by leave their place, canvas included, to new ones. */
function drawRecent() {
  const list = $("st-recent");
  const wanted = new Set(recent.map((item) => item.inspection_id));
  const free = [...list.children].filter((node) => !wanted.has(node.dataset.id));
  const here = new Map([...list.children].map((node) => [node.dataset.id, node]));
  looked = new Set([...looked].filter((id) => wanted.has(id)));
  recent.toReversed().forEach((item, n) => {
    const node = here.get(item.inspection_id) ?? label(free.pop() ?? blank(), item);
    if (list.children[n] !== node) list.insertBefore(node, list.children[n] ?? null);
  });
  for (const node of free) node.remove();
  listed = recent;
}

const blank = () =>
  el("li", {}, el("button", { type: "button", className: "part" }, smallCanvas(), el("span", { className: "name" }), el("b")));

function label(node, item) {
  const button = node.firstChild;
  const [canvas, name, word] = button.children;
  node.dataset.id = item.inspection_id;
  button.dataset.decision = decisionOf(item);
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  write(name, partOf(item));
  write(word, WORDS[item.decision ?? "none"]);
  return node;
}

/* Pictures one at a time, after what is said in words: the large one, then the small ones, the newest first. Those of
   parts that have gone by meanwhile are never asked for, and while parts come the service has rests for them. */
async function fetchPictures() {
  if (fetching) return;
  fetching = true;
  try {
    for (let [item, width] = wantedPicture(); item; [item, width] = wantedPicture()) {
      const before = came;
      if (!(await fetchPicture(item, width))) return;
      await new Promise((done) => setTimeout(done, came > before ? REST_MS : 0));
    }
  } finally {
    fetching = false;
  }
}

/* Which picture is to be had next, and its width; none for now: []. */
function wantedPicture() {
  const last = listed.at(-1);
  if (!on || !last) return [];
  if (large.id !== last.inspection_id && performance.now() >= large.at + LARGE_MS) {
    return [last, Math.min(1600, Math.ceil($("st-picture").clientWidth * devicePixelRatio) || 800)];
  }
  const small = listed.findLast((item) => !looked.has(item.inspection_id) && (item !== last || large.id === item.inspection_id));
  return small ? [small, SMALL] : [];
}

/* False where the service cannot be reached: it is asked again when it is back. */
async function fetchPicture(item, width) {
  const id = item.inspection_id;
  const { signal } = stop;
  let image = null;
  try {
    image = await bitmapOf(await overlayOf(id, width, { signal, format: "jpeg" }));
  } catch (err) {
    if (err.code === "offline") return false; // the picture of a part that is not kept stays empty
  }
  if (!signal.aborted) {
    if (width !== SMALL) showLarge(item, image);
    looked.add(id);
    const canvas = [...$("st-recent").children].find((node) => node.dataset.id === id)?.querySelector("canvas");
    if (image && canvas) drawInto(canvas, image, Math.min(SMALL, image.width));
  }
  image?.close();
  return true;
}

function showLarge(item, image) {
  large = { id: item.inspection_id, at: performance.now() };
  setTimeout(fetchPictures, LARGE_MS + 10);
  if (!image) return clearPicture();
  drawInto($("st-picture"), image);
  $("st-picture").setAttribute("aria-label", t("stPicture", { part: partOf(item) }));
  $("st-picture").dataset.id = item.inspection_id;
  return undefined;
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
    const teach = item.decision === "ng" && !bad ? el("a", { href: addressOf("history", [item.inspection_id]), textContent: t("stTeach") }) : "";
    $("st-said").replaceChildren(t(agrees ? "stConfirmed" : "stOverruled", { part: partOf(item) }), " ", teach);
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
    looked = new Set();
    draw();
  }
}
