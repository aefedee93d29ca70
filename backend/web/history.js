import { json, later, send } from "./api.js";
import { trend } from "./charts.js";
import { $, bitmapOf, close, complain, el, facts, trouble } from "./dom.js";
import { brief, number, t } from "./i18n.js";
import { hideNearest, showNearest } from "./nearest.js";
import { decisionOf, localTimes, modelOf, partOf, pictureOf, release, review, reviewer, thumb, verdictWord, when } from "./records.js";
import { addressOf, go, place } from "./router.js";
import { showVerdict } from "./verdict.js";

const FIELDS = ["part_id", "batch_id", "station_id", "role_id", "roi_id", "decision", "reviewed", "since", "until", "min_score", "max_score", "order"];
const TIMES = new Set(["since", "until"]);
const PAGE = 50;
const AROUND = 30;

let turn = 0;
let painted = 0;
let asked = null;
let cursor = null;
let shown = null;
let seeking = false; // whoever presses Search goes on in what is found

export function startHistory() {
  $("hi-form").addEventListener("submit", (event) => {
    event.preventDefault();
    seeking = event.submitter !== null;
    asked = null; // what is looked for again is asked for again
    go("history", [], filtersOfForm());
  });
  $("hi-form").addEventListener("change", (event) => {
    if (event.target.matches("select, [type=datetime-local]")) $("hi-form").requestSubmit();
  });
  $("hi-reset").addEventListener("click", () => go("history"));
  $("hi-more").addEventListener("click", () => more().catch(failed));
  $("hi-export").addEventListener("click", () => save().catch(complain));
  $("hi-heat").addEventListener("change", () => picture().catch(complain));
  $("hi-back").addEventListener("click", () => go("history", [], place().filters));
  $("hi-review").addEventListener("submit", (event) => {
    event.preventDefault();
    judge(event.submitter?.value).catch(complain);
  });
}

/* Open what the address says: a search, or one inspection. */
export function open({ rest, filters }) {
  $("hi-list-view").hidden = Boolean(rest[0]);
  $("hi-detail").hidden = !rest[0];
  if (rest[0]) return detail(rest[0]).catch(failed);
  fillForm(filters);
  const query = filters.toString();
  if (asked === query && $("hi-list").children.length) return null;
  asked = query;
  return search().catch(failed);
}

function filtersOfForm() {
  const filters = new URLSearchParams();
  for (const name of FIELDS) {
    const value = $(`hi-${name}`).value.trim();
    if (value && !(name === "order" && value === "newest")) filters.set(name, TIMES.has(name) ? new Date(value).toISOString() : value);
  }
  return filters;
}

function fillForm(filters) {
  for (const name of FIELDS) {
    const value = filters.get(name) ?? (name === "order" ? "newest" : "");
    $(`hi-${name}`).value = TIMES.has(name) && value ? localTime(value) : value;
  }
}

/* A time as <input type=datetime-local> takes it. */
function localTime(iso) {
  const time = new Date(iso);
  if (Number.isNaN(time.getTime())) return "";
  return new Date(time.getTime() - time.getTimezoneOffset() * 60000).toISOString().slice(0, 19);
}

async function search() {
  cursor = null;
  for (const image of $("hi-list").querySelectorAll("img")) release(image);
  $("hi-list").replaceChildren();
  $("hi-none").hidden = true;
  $("hi-trouble").hidden = true;
  await more();
}

async function more() {
  const mine = (turn += 1);
  $("hi-more").disabled = true;
  const query = new URLSearchParams(asked);
  query.set("limit", PAGE);
  if (cursor) query.set("cursor", cursor);
  const found = await json(`/inspections?${query}`);
  if (mine !== turn) return;
  cursor = found.next_cursor;
  $("hi-list").append(...found.items.map(row));
  $("hi-more").hidden = !cursor;
  $("hi-more").disabled = false;
  $("hi-none").textContent = t(asked ? "hiNone" : "hiEmpty");
  $("hi-none").hidden = $("hi-list").children.length > 0;
  if (seeking) $("hi-list").querySelector("a")?.focus();
  seeking = false;
}

function failed(error) {
  $("hi-more").disabled = false;
  trouble($("hi-trouble"), error, () => {
    asked = null;
    open(place());
  });
}

const about = (item, review) => [modelOf(item), review ? `${t("hiReviews")}: ${t(`review_${review}`)}` : ""].filter(Boolean).join(" · ");

function row(item) {
  const link = el("a", { href: addressOf("history", [item.inspection_id], place().filters), className: "record", data: { decision: decisionOf(item), id: item.inspection_id } },
    thumb(item),
    el("b", { textContent: verdictWord(item.decision) }),
    el("span", { className: "name" }, el("strong", { textContent: partOf(item) }), el("small", { textContent: about(item, item.review) })),
    el("span", { className: "score", textContent: `${number(item.score)}${item.threshold ? ` / ${number(item.threshold)}` : ""}` }),
    el("span", { className: "place", textContent: [item.station_id, item.batch_id].filter(Boolean).join(" · ") }),
    el("time", { dateTime: item.time, textContent: when(item.time) }));
  return el("li", {}, link);
}

async function detail(id) {
  const mine = (turn += 1);
  $("hi-trouble").hidden = true;
  release($("hi-picture"));
  $("hi-picture").removeAttribute("src");
  shown = null;
  $("hi-about").inert = true; // what stands there is of another part until this one is known
  const found = await json(`/inspections/${encodeURIComponent(id)}`);
  if (mine !== turn) return;
  shown = found;
  $("hi-about").inert = false;
  drawDetail(found);
  if ($("hi-list").children.length && document.activeElement === document.body) $("hi-title").focus({ preventScroll: true });
  picture().catch(complain);
  await neighbours(found, mine);
}

/* The part with its heatmap, or as it came. */
async function picture() {
  if (!shown) return;
  const mine = (painted += 1);
  const { inspection_id: id } = shown;
  const width = Math.min(1600, Math.ceil($("hi-picture").parentElement.clientWidth * devicePixelRatio) || 800);
  const plain = shown.image.kept && !$("hi-heat").checked;
  const image = plain ? await imageOf(id) : null;
  const known = image && (await bitmapOf(image));
  known?.close();
  const src = known ? URL.createObjectURL(image) : await pictureOf(id, width);
  if (mine !== painted || shown?.inspection_id !== id) return void URL.revokeObjectURL(src);
  URL.revokeObjectURL($("hi-picture").src);
  $("hi-picture").src = src;
  $("hi-picture").alt = known ? t("hiPart", { part: partOf(shown) }) : t("stPicture", { part: partOf(shown) });
  $("hi-unseen").hidden = !image || Boolean(known);
}

const imageOf = async (id) => (await send(`/inspections/${encodeURIComponent(id)}/image`)).blob();

function drawDetail(item) {
  showVerdict($("hi-verdict"), decisionOf(item), `${number(item.score)}${item.threshold ? ` / ${number(item.threshold)}` : ""}`);
  $("hi-title").textContent = t("hiPart", { part: partOf(item) });
  $("hi-reasons").replaceChildren(...item.reasons.map((text) => el("li", { textContent: localTimes(text) })));
  const known = [
    ["hiTime", when(item.time, { dateStyle: "full", timeStyle: "medium" })],
    ["hiModel", modelOf(item)],
    ["hiVersion", item.model_version],
    ["hiCalibrated", item.calibration?.created_utc ? when(item.calibration.created_utc) : ""],
    ["hiPartId", item.part_id],
    ["hiBatch", item.batch_id],
    ["hiStation", item.station_id],
    ["hiOperator", item.operator],
    ["hiFile", item.image.filename],
    ["hiName", item.inspection_id],
  ].filter(([, value]) => value);
  facts($("hi-facts"), known.map(([key, value]) => [t(key), value]));
  hideNearest($("hi-nearest"));
  $("hi-regions").replaceChildren(...item.regions.map((region) => {
    const button = el("button", { type: "button", className: "quiet", disabled: !item.image.kept }, el("strong", { textContent: `${brief(region.area_mm2)} mm²` }), " ", t("regionAt", region));
    button.addEventListener("click", () => beside(item, region).catch(complain));
    return el("li", {}, button);
  }));
  $("hi-regions-title").textContent = t("hiRegions", { n: item.regions.length });
  drawReviews(item.reviews);
  $("hi-reviewer").value = reviewer.name;
  const alike = new URLSearchParams({ role_id: item.role_id, roi_id: item.roi_id, decision: "ok", min_score: item.score, order: "oldest" });
  $("hi-alike").href = addressOf("history", [], alike);
  $("hi-alike").hidden = item.decision === null || item.decision === undefined;
  for (const label of ["ok", "ng"]) $(`hi-sample-${label}`).onclick = () => sample(label).catch(complain);
  $("hi-sample").hidden = !item.image.kept;
  $("hi-unkept").hidden = item.image.kept;
  $("hi-heat").disabled = !item.image.kept;
  $("hi-teach").hidden = !item.image.kept || item.decision !== "ng";
  $("hi-teach").onclick = () => later("./teach.js").then(({ rehearse }) => rehearse($("hi-lesson"), item)).catch(complain);
  close($("hi-lesson"));
  $("hi-judged").textContent = $("hi-sampled").textContent = "";
}

/* What good parts look like where this one differs. */
async function beside(item, region) {
  const image = await imageOf(item.inspection_id);
  const { role_id, roi_id, recipe_id, mm_per_px = 1, shape } = item;
  await showNearest($("hi-nearest"), image, region, { role_id, roi_id, recipe_id, mm_per_px, ...(shape ? { shape: JSON.stringify(shape) } : {}) });
}

function drawReviews(reviews) {
  $("hi-reviews").replaceChildren(...reviews.map((one) =>
    el("li", { data: { verdict: one.verdict } },
      el("strong", { textContent: t(`review_${one.verdict}`) }),
      el("span", { textContent: ["", one.defect, one.note].filter((text, n) => !n || text).join(" · ") }),
      el("small", { textContent: [one.reviewer, one.time ? when(one.time) : ""].filter(Boolean).join(" · ") }))));
}

async function neighbours(item, mine) {
  const same = { role_id: item.role_id, roi_id: item.roi_id, recipe_id: item.recipe_id, limit: AROUND };
  const [before, after] = await Promise.all([
    json(`/inspections?${new URLSearchParams({ ...same, until: item.time })}`),
    json(`/inspections?${new URLSearchParams({ ...same, since: item.time, order: "oldest" })}`),
  ]);
  if (mine !== turn) return;
  const later = after.items.filter((one) => one.inspection_id !== item.inspection_id);
  const all = [...before.items.reverse(), item, ...later];
  const label = t("hiAround");
  $("hi-trend").replaceChildren(trend(all.map((one) => ({ score: one.score, threshold: one.threshold, decision: decisionOf(one), chosen: one === item })), { label }));
  const step = (link, other) => {
    link.hidden = !other;
    if (other) link.href = addressOf("history", [other.inspection_id], place().filters);
  };
  step($("hi-previous"), all[all.indexOf(item) - 1]);
  step($("hi-next"), all[all.indexOf(item) + 1]);
}

async function judge(verdict) {
  if (!verdict || !shown) return;
  reviewer.name = $("hi-reviewer").value;
  const found = await review(shown.inspection_id, verdict, { note: $("hi-note").value.trim(), defect: $("hi-defect").value.trim(), reviewer: reviewer.name });
  drawReviews(found.reviews);
  const listed = $("hi-list").querySelector(`[data-id="${CSS.escape(shown.inspection_id)}"] small`);
  if (listed) listed.textContent = about(shown, verdict);
  $("hi-judged").textContent = t(verdict === "good" && !$("hi-teach").hidden ? "hiJudgedGood" : "hiJudged");
  $("hi-note").value = "";
  $("hi-defect").value = "";
}

async function sample(label) {
  const found = await json(`/inspections/${encodeURIComponent(shown.inspection_id)}/sample`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ label }),
  });
  $("hi-sampled").textContent = [t("hiSampled", { name: found.files[0] }), ...found.warnings].join(" ");
}

/* The search as CSV, written as it arrives where the browser can. */
async function save() {
  const response = await send(`/inspections/export?${asked}`);
  const address = URL.createObjectURL(await response.blob());
  el("a", { href: address, download: "inspections.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}

export function show() {
  asked = null;
  if (!$("history").hidden) open(place());
}
