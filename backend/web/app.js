import { json, key, later, onKeyNeeded, whenInTrouble } from "./api.js";
import * as calibrate from "./calibrate.js";
import { $, calm, complain, images, trouble, write } from "./dom.js";
import * as fit from "./fit.js";
import { applyLanguage, language, t } from "./i18n.js";
import * as past from "./history.js";
import * as inspect from "./inspect.js";
import { learn, offerModels, refreshState, showState, startModel } from "./model.js";
import * as moving from "./moving.js";
import { addParts, parts, retry } from "./parts.js";
import * as resnet from "./resnet.js";
import { go, onPlace, place } from "./router.js";
import * as samples from "./samples.js";
import * as station from "./station.js";

const TABS = ["fit", "calibrate", "inspect", "samples", "health", "station", "history", "resnet"];
const WITH_MODEL = new Set(["fit", "calibrate", "inspect", "samples", "health"]);
const PAGES = [fit, inspect, calibrate, samples, { show: () => open === "health" && openHealth() }, station, past, resnet];
const THEMES = ["auto", "light", "dark"];
const PASTE = {
  fit: (files) => fit.addFiles(files),
  inspect: (files) => inspect.inspectFiles(files),
  calibrate: (files) => addParts(files, "ok"),
  resnet: (files) => resnet.addFiles(files),
};
let open = "inspect";
let service = { status: "wait" };

const offered = () => TABS.filter((tab) => $(`tab-${tab}`).offsetParent);

function goTo(name, focus = false) {
  go(TABS.includes(name) ? name : "inspect");
  if (focus) $(`tab-${open}`).focus();
}

/* Show the view that the address names. */
function showPlace(where) {
  const view = TABS.includes(where.view) ? where.view : "inspect";
  if (view !== open && $("alerts").firstChild) {
    calm(); // what went wrong in a view is no matter of the next one
    inspect.show(); // which says it beside the part
  }
  open = view;
  for (const tab of TABS) {
    const on = tab === open;
    $(tab).hidden = !on;
    $(`tab-${tab}`).setAttribute("aria-selected", on);
    $(`tab-${tab}`).tabIndex = on ? 0 : -1;
  }
  $("model").hidden = !WITH_MODEL.has(open);
  if (open === "resnet") resnet.config();
  if (open === "samples") samples.open();
  else samples.leave();
  if (open === "health") openHealth();
  if (open === "history") past.open(where);
  if (open === "station") station.enter();
  else station.leave();
}

async function openHealth() {
  try {
    (await later("./health.js")).open();
  } catch (err) {
    trouble($("he-trouble"), err, openHealth);
  }
}

function startTabs() {
  for (const tab of TABS) $(`tab-${tab}`).addEventListener("click", () => goTo(tab));
  document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
    const tabs = offered();
    const at = tabs.indexOf(open);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1 + tabs.length, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    goTo(tabs[to % tabs.length], true);
  });
  onPlace(showPlace);
}

function showHealth() {
  $("service").dataset.state = { ok: "ok", degraded: "warn", failed: "bad", down: "bad", key: "warn" }[service.status] ?? "wait";
  $("service-text").textContent = t(`service_${service.status}`);
  const reads = service.may_change === false;
  document.documentElement.dataset.may = reads ? "read" : "all";
  $("reader").hidden = !reads;
  $("key-change").hidden = !key.value && service.status !== "key";
  if (reads && open === "fit") goTo("inspect");
  write($("service-reason"), service.reason ?? "");
  $("service-why").hidden = !service.reason;
  explain(Boolean(service.reason) && !$("service-reason").hidden);
  $("service").title = service.reason ?? [service.model, service.device, service.version].filter(Boolean).join(" · ");
}

/* Why the service is not as it should be, when asked for: a title is for a mouse alone. */
function explain(told) {
  $("service-reason").hidden = !told;
  $("service-why").setAttribute("aria-expanded", told);
}

let watching = 0;
let gone = false;

/* The service answers again: what could not be had is asked for once more. */
function recover() {
  calm();
  for (const page of PAGES) page.show();
  retry(parts.filter((part) => part.error?.code === "offline"));
  refreshState();
  offerModels();
}

async function watchHealth() {
  clearTimeout(watching);
  try {
    service = await json("/health", { quiet: true });
  } catch (err) {
    service = { status: err.status === 401 ? "key" : "down" };
  }
  showHealth();
  const reached = !["down", "key"].includes(service.status);
  if (reached && gone) recover();
  gone = !reached;
  learn({ reached, degraded: service.status === "degraded" ? service.reason ?? "degraded" : "" });
  if (reached) offerResnet();
  watching = setTimeout(watchHealth, service.status === "ok" || service.status === "degraded" ? 20000 : 2000);
}

let asked = false;

/* The second product has a tab where there is a bank for it. */
async function offerResnet() {
  if (asked) return;
  asked = true;
  try {
    $("tab-resnet").hidden = (await json("/config", { quiet: true })).status === "absent";
  } catch (err) {
    asked = err.status === 404; // there is no such product here; after anything else it is asked again
  }
}

function setTheme(theme) {
  localStorage.setItem("theme", theme);
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = t(`theme${theme[0].toUpperCase()}${theme.slice(1)}`);
}

const theme = () => localStorage.getItem("theme") ?? "auto";

function speak(next) {
  applyLanguage(next);
  $("language").textContent = t("language");
  $("language").lang = language === "es" ? "en" : "es";
  $("model").setAttribute("aria-label", t("modelLabel"));
  setTheme(theme());
  showHealth();
  showState();
}

function startPrefs() {
  $("service-why").addEventListener("click", () => explain($("service-reason").hidden));
  $("language").addEventListener("click", () => {
    speak(language === "es" ? "en" : "es");
    inspect.renumber();
    for (const page of PAGES) page.show();
    if (open === "resnet") resnet.config();
    offerModels();
    watchHealth();
  });
  $("theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length]));
}

/* What the person types; null when they do not. */
function askForKey(refused) {
  $("key-value").value = "";
  $("key-refused").hidden = !refused;
  $("key-forget").hidden = !key.value;
  $("key").returnValue = "";
  if (!$("key").open) $("key").showModal();
  return new Promise((done) => {
    $("key").addEventListener("close", () => done($("key").returnValue === "ok" ? $("key-value").value.trim() : null), { once: true });
  });
}

function startKey() {
  onKeyNeeded(askForKey);
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    $("key").close("ok");
  });
  $("key-no").addEventListener("click", () => $("key").close(""));
  $("key-change").addEventListener("click", async () => {
    const typed = await askForKey(false);
    if (typed === null) return;
    key.value = typed;
    location.reload();
  });
  $("key-forget").addEventListener("click", () => {
    key.value = "";
    location.reload();
  });
}

function startPaste() {
  addEventListener("paste", (event) => {
    if (!event.clipboardData?.files.length) return;
    event.preventDefault();
    PASTE[open]?.(images(event.clipboardData.files));
  });
  for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => {
    if (!event.defaultPrevented) event.preventDefault();
  });
}

speak();
startKey();
whenInTrouble(watchHealth);
startTabs();
startPrefs();
startPaste();
fit.startFit(goTo);
moving.startMoving();
inspect.startInspect();
calibrate.startCalibrate(goTo);
resnet.startResnet();
samples.startSamples();
station.startStation();
past.startHistory();
const wanted = place().view;
go(TABS.includes(wanted) ? wanted : "inspect", place().rest, place().filters, { replace: true });
watchHealth();
startModel().then((known) => known.length || wanted || goTo("fit")).catch(complain);
addEventListener("focus", () => {
  refreshState();
  offerModels();
});
