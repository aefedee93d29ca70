import { json, send } from "./api.js";
import { $, ask, calm, complain, dropped, el } from "./dom.js";
import { t } from "./i18n.js";
import { learn, model, onModel, onState, refreshState } from "./model.js";

/* One model as one file: what goes to another station, and what comes from one. */
export function startMoving() {
  $("pack-go").addEventListener("click", () => pack().catch(complain));
  const input = $("unpack-file");
  const zone = input.closest(".drop");
  input.addEventListener("change", () => {
    const [file] = input.files;
    input.value = "";
    if (file) unpack(file).catch(complain);
  });
  zone.addEventListener("dragover", (event) => event.preventDefault());
  zone.addEventListener("drop", async (event) => {
    event.preventDefault();
    const [file] = await dropped(event.dataTransfer);
    if (file) unpack(file).catch(complain);
  });
  onModel(() => $("moving-said").replaceChildren());
  onState(show);
  show();
}

export function show() {
  $("pack-go").disabled = !model.fitted;
}

const ids = () => ({ role_id: model.role, roi_id: model.roi, ...(model.recipe ? { recipe_id: model.recipe } : {}) });

async function pack() {
  calm();
  const file = await (await send(`/models/pack?${new URLSearchParams(ids())}`)).blob();
  const address = URL.createObjectURL(file);
  el("a", { href: address, download: `${model.role}_${model.roi}.bdim` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

/* Under the name that it was packed with, or under the one that is written above. */
async function unpack(file) {
  calm();
  const form = new FormData();
  form.append("file", file, file.name);
  if ($("unpack-here").checked) for (const [name, value] of Object.entries(ids())) form.append(name, value);
  $("moving-said").replaceChildren(el("p", { textContent: t("unpacking") }));
  try {
    arrived(await put(form));
  } catch (err) {
    $("moving-said").replaceChildren();
    throw err;
  }
}

async function put(form) {
  try {
    return await json("/models/unpack", { method: "POST", body: form });
  } catch (err) {
    if (err.code !== "model_exists" || !(await ask(t("unpackReplaceTitle"), err.message, t("unpackReplace")))) throw err;
  }
  form.append("replace", "true");
  return json("/models/unpack", { method: "POST", body: form });
}

function arrived(answer) {
  const name = `${answer.role_id}/${answer.roi_id}`;
  $("role").value = answer.role_id;
  $("roi").value = answer.roi_id;
  $("recipe").value = answer.recipe_id === "default" ? "" : answer.recipe_id;
  $("roi").dispatchEvent(new Event("change"));
  learn({ fitted: true, usable: true, calibrated: answer.calib_present });
  refreshState();
  const more = [answer.golden?.says, ...answer.warnings].filter(Boolean).map((text) => el("p", { textContent: text }));
  const words = el("p", {}, t("unpacked", { name, version: answer.model_version }));
  $("moving-said").replaceChildren(el("div", { className: "notice", data: { state: "ok" } }, words, ...more));
}
