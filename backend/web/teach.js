import { json } from "./api.js";
import { close, complain, el } from "./dom.js";
import { number, percent, t } from "./i18n.js";
import { newsOf, refreshState } from "./model.js";
import { posted, tracked } from "./progress.js";
import { author, verdictWord } from "./records.js";
import { addressOf } from "./router.js";

/* Teach a false alarm: first what would come of it is shown, and only then it is done. It can be taken back. */
export async function rehearse(box, item) {
  const key = { role_id: item.role_id, roi_id: item.roi_id, recipe_id: item.recipe_id };
  const progress = el("div", { className: "progress", hidden: true });
  box.hidden = false;
  box.replaceChildren(progress);
  const teach = (more) => tracked(progress, "/teach", posted({ ...key, inspection_ids: [item.inspection_id], ...author(), ...more }));
  try {
    const found = await teach({ dry_run: true });
    const go = button(found.allowed ? "teachGo" : "teachForce", found.allowed ? "primary" : "", async () => {
      box.replaceChildren(progress);
      done(box, key, await teach(found.allowed ? {} : { force: true }));
    });
    const no = button("cancel", "", () => close(box));
    box.replaceChildren(...told(found), el("div", { className: "row" }, go, no), progress);
    go.focus({ preventScroll: true });
    box.scrollIntoView({ block: "nearest" });
  } catch (err) {
    close(box);
    complain(err);
  }

  function button(name, className, work) {
    const node = el("button", { type: "button", className, textContent: t(name) });
    node.addEventListener("click", async () => {
      node.disabled = true;
      try {
        await work();
      } catch (err) {
        close(box);
        complain(err);
      }
    });
    return node;
  }
}

const line = (text, state) => el("li", { textContent: text, data: { state } });

const scores = (one) => t("teachScores", { before: `${verdictWord(one.decision)} ${number(one.score ?? 0)}`, after: `${verdictWord(one.decision_after)} ${number(one.score_after ?? 0)}` });

/* What a rehearsal found: the parts that are taught, what else changes, what the model promises then. */
function told(found) {
  const taught = found.taught.flatMap((one) => [
    line(one.error ?? `${t("teachThis")} ${scores(one)}`, one.decision_after === "ok" ? "ok" : "warn"),
    ...(one.doubts ?? []).map((text) => line(text, "bad")),
  ]);
  const changes = found.changes.map((one) => line(`${one.filename ?? one.inspection_id}: ${scores(one)}`, one.lost ? "bad" : "ok"));
  const promise = ({ threshold, false_reject: reject, misses }) => [
    t("teachThreshold", { value: number(threshold) }),
    reject ? t("calPromise", { bound: percent(reject.upper_bound), confidence: percent(reject.confidence) }) : "",
    misses ? t("calMisses", { estimate: percent(misses.estimate), low: percent(misses.lower_bound), high: percent(misses.upper_bound), n: misses.n_ng }) : "",
  ].filter(Boolean).join(" ");
  return [
    el("h2", { textContent: t(found.allowed ? "teachTitle" : "teachBad") }),
    el("ul", { className: "checks" }, ...taught, ...(found.objections ?? []).map((text) => line(text, "bad")), line(t("teachKnown", { n: found.n_known, changed: found.changes.length }), found.changes.some((one) => one.lost) ? "bad" : "ok"), ...changes),
    el("dl", { className: "config" }, ...[["teachBefore", found.before], ["teachAfter", found.after]].map(([name, side]) => el("div", {}, el("dt", { textContent: t(name) }), el("dd", { textContent: promise(side) })))),
    ...newsOf(found).map((text) => el("p", { className: "hint", textContent: text })),
  ];
}

/* It is taught; the version before it can be had back at once. */
function done(box, key, result) {
  const back = el("button", { type: "button", textContent: t("teachBack") });
  back.addEventListener("click", async () => {
    back.disabled = true;
    try {
      const { versions } = await json(`/versions?${new URLSearchParams(key)}`);
      await json(`/versions/${encodeURIComponent(versions[0].version)}/restore`, posted({ ...key, ...author() }));
      box.replaceChildren(el("p", { className: "notice", textContent: t("teachUndone") }));
      refreshState();
    } catch (err) {
      complain(err);
    }
  });
  const { recipe_id: recipe, ...named } = key;
  const where = `?${new URLSearchParams(recipe && recipe !== "default" ? key : named)}${addressOf("health")}`;
  box.replaceChildren(el("div", { className: "notice", data: { state: "ok" } },
    el("p", { textContent: t("teachDone", { version: result.model_version ?? "" }) }),
    ...newsOf(result).map((text) => el("p", { textContent: text })),
    el("p", {}, el("a", { href: where, textContent: t("teachLater") })), back));
  box.scrollIntoView({ block: "nearest" });
  refreshState();
}
