import { json, key, send } from "./api.js";
import { spread } from "./charts.js";
import { $, askNote, complain, el, facts, trouble } from "./dom.js";
import { brief, number, percent, t, whole } from "./i18n.js";
import { model, named, newsOf, onModel, queryOf, refreshState } from "./model.js";
import { posted, tracked } from "./progress.js";
import { author, release, verdictWord, when } from "./records.js";
import { sampleThumb } from "./samples.js";

const DAYS = 30;
const DAY = { dateStyle: "medium", timeStyle: "short" };

let turn = 0;
let working = false;
let started = false;

function start() {
  started = true;
  $("he-print").addEventListener("click", () => print());
  $("he-run").addEventListener("click", () => work($("he-golden-progress"), runGolden));
  $("he-certify").addEventListener("click", () => work($("he-certificate-progress"), certify));
  $("he-paper").addEventListener("click", openPaper);
  onModel(() => {
    clear();
    if (!$("health").hidden) open();
  });
}

/* Null where the service has no such thing: no certificate yet, no record of inspections, nothing fitted. */
async function ifThere(path, quiet = true) {
  try {
    return await json(path, { quiet });
  } catch (err) {
    if (err.status === 404) return null;
    throw err;
  }
}

/* Everything that is known of the model, each in its own panel; what cannot be had says so in its place. */
export async function open() {
  if (!started) start();
  const mine = (turn += 1);
  $("he-trouble").hidden = true;
  const ready = Boolean(model.role && model.roi);
  $("he-none").hidden = ready;
  $("he-all").hidden = !ready;
  if (!ready) return;
  $("he-title").textContent = t("heTitle", { model: [model.recipe, model.role, model.roi].filter(Boolean).join(" / ") });
  $("he-date").textContent = t("heDate", { time: when(Date.now(), { dateStyle: "full", timeStyle: "short" }) });
  try {
    const [manifest, versions, golden, drift, certificate, days] = await Promise.all([
      ifThere(`/manifest?${queryOf()}`, false), ifThere(`/versions?${queryOf()}`), ifThere(`/golden?${queryOf()}`),
      ifThere(`/drift?${queryOf()}`).catch((err) => ({ trouble: err.message })), ifThere(`/certificate?${queryOf()}`),
      scores(),
    ]);
    if (mine !== turn) return;
    if (!manifest?.memory_fitted) {
      $("he-none").hidden = false;
      $("he-all").hidden = true;
      return;
    }
    drawChecks(manifest, golden, drift, certificate);
    drawDrift(drift, days, manifest.calibration?.threshold ?? null);
    drawGolden(golden);
    drawCertificate(certificate);
    drawVersions(versions);
  } catch (err) {
    if (mine !== turn) return;
    $("he-all").hidden = true;
    trouble($("he-trouble"), err, open);
  }
}

/* The scores of the last days; by the hour while there are not three days of them yet. Null where none are recorded. */
async function scores(bucket = "day") {
  const tz = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const since = new Date(Date.now() - (bucket === "day" ? DAYS : 3) * 86400000).toISOString();
  try {
    const found = await ifThere(`/inspections/summary?${queryOf({ bucket, since, tz })}`);
    if (bucket === "day" && found && found.items.length < 3) return scores("hour");
    return found && { bucket, items: found.items.filter((item) => item.score) };
  } catch {
    return null; // no record of inspections: the chart stays away
  }
}

function clear() {
  $("he-said").textContent = "";
  $("he-compared").replaceChildren();
}

/* What an auditor asks first, one line each. */
function drawChecks(manifest, golden, drift, certificate) {
  const { memory, calibration, stale } = manifest;
  const line = (state, text) => el("li", { data: { state } }, text);
  const lines = [line("ok", t("heLearned", { version: memory.model_version ?? "–", n: memory.n_images, time: when(memory.created_utc, DAY), extractor: memory.extractor }))];
  if (!calibration) lines.push(line("warn", t("heNoThreshold")));
  else {
    const promise = calibration.false_reject;
    const words = [t("heThreshold", { value: number(calibration.threshold), ok: calibration.n_ok, ng: calibration.n_ng })];
    if (promise) words.push(t("calPromise", { bound: percent(promise.upper_bound), confidence: percent(promise.confidence) }));
    lines.push(line(stale.calibration ? "warn" : "ok", [...words, ...stale.reasons].join(" ")));
  }
  if (drift) lines.push(line({ drift: "bad", steady: "ok" }[drift.state] ?? "wait", driftWords(drift)));
  const last = golden?.last;
  if (!golden?.samples.length) lines.push(line("wait", t("heGoldenNone")));
  else if (!last) lines.push(line("wait", t("heGoldenUnrun", { n: golden.samples.length })));
  else lines.push(line(last.flips.length ? "bad" : last.n_right < last.n_total ? "warn" : "ok", t("heGoldenRun", { n: last.n_right, all: last.n_total, time: when(last.time, DAY) })));
  if (!certificate) lines.push(line("wait", t("heNoCertificateYet")));
  else lines.push(line(certificate.current ? "ok" : "warn", t(certificate.current ? "heCertified" : "heCertifiedFormer", { time: when(certificate.created_utc, DAY) })));
  $("he-checks").replaceChildren(...lines);
}

function driftWords(drift) {
  if (drift.trouble) return drift.trouble;
  if (drift.state === "drift") return t("heDrift", { cause: t(`heCause_${drift.cause}`), since: when(drift.since, DAY) });
  return drift.wanted ? t("heLearning", { n: drift.learnt, all: drift.wanted }) : t("heSteady");
}

function drawDrift(drift, days, limit) {
  const drifting = drift?.state === "drift";
  const more = [drift?.where ? t("heWhere", { where: drift.where }) : "", drift?.advice ?? "", drift?.wanted && !drifting ? t("heLearningHow", { all: drift.wanted }) : ""].filter(Boolean).join(" ");
  $("he-drift").dataset.state = drifting ? "bad" : "wait";
  $("he-drift").textContent = more;
  $("he-drift").hidden = !more;
  const { charts, parts, ...measured } = drift?.evidence ?? {};
  const unit = (name) => (name.endsWith("_deg") ? "°" : " %");
  const rows = Object.entries(measured).map(([name, value]) => [t(`heEv_${name}`), `${value > 0 ? "+" : ""}${brief(value)}${unit(name)}`]);
  facts($("he-evidence"), parts && !drift.wanted ? [[t("heCompared"), whole(parts)], ...rows, [t("heReach"), `${brief(100 * charts)} %`]] : []);
  const items = days?.items ?? [];
  const title = t(days?.bucket === "hour" ? "heHour" : "heDay");
  $("he-days-title").textContent = title;
  $("he-days-figure").hidden = !items.length;
  $("he-days").replaceChildren(spread(items, { limit, mark: drifting ? drift.since : null, label: title }));
  const ends = items.length ? [items[0].start, items.at(-1).start].map((time) => when(time, days.bucket === "hour" ? DAY : { dateStyle: "medium" })) : [];
  $("he-days-ends").replaceChildren(...[...new Set(ends)].map((text) => el("span", { textContent: text })));
}

function drawGolden(golden) {
  const items = new Map((golden?.last?.items ?? []).map((item) => [item.filename, item]));
  const flips = new Set((golden?.last?.flips ?? []).map((item) => item.filename));
  const samples = (golden?.samples ?? []).toSorted((one, other) => flips.has(other.filename) - flips.has(one.filename));
  $("he-run").disabled = working || !samples.length;
  $("he-golden-none").hidden = samples.length > 0;
  for (const image of $("he-golden").querySelectorAll("img")) release(image);
  $("he-golden").replaceChildren(...samples.map((sample) => {
    const item = items.get(sample.filename);
    const remove = el("button", { type: "button", textContent: t("heUnmark"), data: { changes: "" } });
    remove.setAttribute("aria-label", `${t("heUnmark")}: ${sample.filename}`);
    remove.addEventListener("click", () => unmark(sample.filename).catch(complain));
    const state = !item ? "wait" : item.right ? "ok" : "bad";
    const got = !item ? t("heUnscored") : item.error ?? t(item.right ? "heKeeps" : "heLost", { got: verdictWord(item.decision), score: number(item.score ?? 0) });
    return el("li", { data: { state, name: sample.filename } }, sampleThumb(sample.expected, sample.filename),
      el("span", { className: "name" }, el("strong", { textContent: t("heMust", { verdict: verdictWord(sample.expected) }) }), el("small", { textContent: sample.filename }),
        el("small", { textContent: [sample.author, sample.note].filter(Boolean).join(" · ") })),
      el("span", { textContent: got }), remove);
  }));
}

function drawCertificate(made) {
  $("he-paper").hidden = !made;
  $("he-paper").href = `/certificate?${queryOf({ format: "html", lang: document.documentElement.lang })}`;
  const { parts, calibration, warnings = [] } = made ?? {};
  facts($("he-certificate"), made ? [
    [t("heMade"), when(made.created_utc, DAY)],
    [t("heOfThis"), t(made.current ? "yes" : "heNotCurrent")],
    [t("heTried"), whole(parts.n)],
    [t("heRejected"), t("outOf", { n: parts.n_rejected, all: parts.n })],
    [t("heBound"), `${percent(parts.upper_bound)} (${percent(parts.confidence)})`],
    ...(calibration.misses ? [[t("heMisses"), percent(calibration.misses.upper_bound)]] : []),
  ] : []);
  $("he-certificate-said").textContent = made ? newsOf({ warnings }).join(" ") : t("heNoCertificate");
  $("he-certify").textContent = t(made ? "heCertifyAgain" : "heCertify");
}

function drawVersions(found) {
  const current = found?.current;
  $("he-versions").replaceChildren(...(current ? [version(current, true)] : []), ...(found?.versions ?? []).map((one) => version(one, false)));
}

/* Who changed a model: a name, or the key that was used. */
const who = (author) => author?.replace(/^key (?=[0-9a-f]{8}$)/, `${t("key")} `);

function version(one, current) {
  const event = one.replaced_by?.event;
  const rows = [
    [t("heWhen"), when(one.created_utc, DAY)],
    [t("heImages"), one.n_images],
    [t("threshold"), one.calibration?.threshold === undefined ? t("notCalibratedShort") : number(one.calibration.threshold)],
    [t("heAuthor"), who(one.author)], [t("hiNote"), one.note],
    [t("heReplaced"), one.replaced_utc ? [when(one.replaced_utc, DAY), event ? t(`heBy_${event}`) : "", who(one.replaced_by?.author), one.replaced_by?.note].filter(Boolean).join(" · ") : ""],
  ].filter(([, value]) => value);
  const dl = el("dl", { className: "config" });
  facts(dl, rows);
  const item = el("li", { data: { version: one.version ?? "current", state: current ? "ok" : "wait" } }, el("h3", { textContent: `${one.model_version ?? one.generation?.slice(0, 8)}${current ? ` · ${t("heInUse")}` : ""}` }), dl);
  if (current) return item;
  const compare = el("button", { type: "button", textContent: t("heCompare") });
  compare.addEventListener("click", () => work($("he-versions-progress"), (box) => compareWith(box, one)));
  const restore = el("button", { type: "button", textContent: t("heRestore"), disabled: !one.restorable, data: { changes: "" } });
  restore.title = one.restorable ? "" : t("heOther");
  restore.addEventListener("click", () => bringBack(one).catch(complain));
  item.append(el("div", { className: "row" }, compare, restore));
  return item;
}

/* One long thing at a time. */
async function work(box, task) {
  if (working) return;
  working = true;
  for (const button of $("health").querySelectorAll("button")) button.disabled = true;
  try {
    await task(box);
  } catch (err) {
    complain(err);
  } finally {
    working = false;
    for (const id of ["he-print", "he-certify"]) $(id).disabled = false;
    await open();
  }
}

const runGolden = async (box) => {
  const run = await tracked(box, "/golden/run", posted(named()));
  $("he-said").textContent = newsOf(run).join(" ");
};

const certify = async (box) => {
  const made = await tracked(box, "/certify", posted(named()));
  $("he-said").textContent = newsOf(made).join(" ");
};

async function unmark(filename) {
  const said = await json("/datasets/golden", posted(named({ filename, golden: false, ...author() })));
  $("he-said").textContent = newsOf(said).join(" ");
  await open();
}

async function compareWith(box, one) {
  const found = await tracked(box, `/versions/compare?${queryOf({ one: one.version })}`);
  const said = (side) => side.error ?? `${verdictWord(side.decision)} (${number(side.score ?? 0)})`;
  const rows = found.differ.map((item) => el("li", { data: { name: item.filename } }, sampleThumb(item.label, item.filename),
    el("span", { className: "name" }, el("strong", { textContent: t("heStored", { verdict: verdictWord(item.label) }) }), el("small", { textContent: item.filename })),
    el("span", { textContent: t("heThen", { verdict: said(item.one) }) }), el("span", { textContent: t("heNow", { verdict: said(item.other) }) })));
  $("he-compared").replaceChildren(
    el("p", { textContent: t("heDiffer", { version: one.model_version ?? one.version, n: found.differ.length, all: found.n_total, scores: found.n_scores_differ }) }),
    el("ul", { className: "golden" }, ...rows));
}

async function bringBack(one) {
  const note = await askNote(t("heRestoreTitle", { version: one.model_version ?? one.version }), t("heRestoreText", { time: when(one.created_utc, DAY) }), t("heRestore"));
  if (note === null) return;
  const done = await json(`/versions/${encodeURIComponent(one.version)}/restore`, posted(named({ ...(note ? { note } : {}), ...author() })));
  clear();
  await refreshState();
  await open();
  $("he-said").textContent = [t("heRestored", { version: done.model_version ?? done.restored }), ...newsOf(done)].join(" ");
  $("he-said").scrollIntoView({ block: "center" });
}

/* A link sends no key: with one, the page is fetched and saved as a file. */
async function openPaper(event) {
  if (!key.value) return;
  event.preventDefault();
  try {
    const response = await send($("he-paper").getAttribute("href"));
    const address = URL.createObjectURL(await response.blob());
    const name = `${model.role}_${model.roi}.html`;
    el("a", { href: address, download: name }).click();
    $("he-certificate-said").textContent = t("heSaved", { name });
    setTimeout(() => URL.revokeObjectURL(address), 60000);
  } catch (err) {
    complain(err);
  }
}
