import { follow, json, newId } from "./api.js";
import { el } from "./dom.js";
import { t } from "./i18n.js";

/* Long work that the service tells the progress of, shown in `box` while it lasts. */
export async function tracked(box, path, { headers, signal, ...options } = {}) {
  const id = newId();
  const watch = new AbortController();
  follow(`/progress/${id}`, watch.signal, (event) => watch.signal.aborted || drawProgress(box, event));
  drawProgress(box, { stage: options.body instanceof FormData ? "send" : "waiting" });
  try {
    return await json(path, { ...options, headers: { ...headers, "X-Request-Id": id }, signal });
  } finally {
    watch.abort();
    box.hidden = true;
  }
}

export const posted = (body) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

export function drawProgress(box, { stage, state = "running", done: n, total, eta_s: eta }) {
  if (state !== "running") return;
  if (!box.firstChild) box.append(el("span", { className: "stage-name" }), el("progress", { max: 1 }));
  const [name, bar] = box.children;
  const left = eta > 0.5 ? ` · ${t("stageLeft", { s: Math.ceil(eta) })}` : "";
  name.textContent = t(`stage_${stage}`).replace(/^stage_.*/, t("working")) + (total ? ` ${n}/${total}` : "") + left;
  bar.setAttribute("aria-label", name.textContent);
  if (total) bar.value = n / total;
  else bar.removeAttribute("value");
  box.hidden = false;
}
