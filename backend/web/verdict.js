import { drawInto, el, fill, smallCanvas, write } from "./dom.js";
import { brief, number, t } from "./i18n.js";

const MARKS = { ok: "✓", look: "✓", ng: "✕", none: "?", busy: "…", failed: "!" };
export const WORDS = { ok: "OK", look: "OK", ng: "NG", none: "?", busy: "…", failed: "!" };

/* The big block: a colour, a sign and words. */
export function showVerdict(box, decision, detail = "") {
  if (box.dataset.decision === decision && box.firstChild) {
    write(box.lastChild.lastChild, detail || t(decision));
    return;
  }
  box.dataset.decision = decision;
  const sign = el("span", { className: "sign", textContent: MARKS[decision] });
  sign.setAttribute("aria-hidden", "true");
  const word = ["ok", "look", "ng"].includes(decision) ? el("strong", { textContent: WORDS[decision] }) : null;
  box.replaceChildren(sign, el("div", {}, word, el("span", { textContent: detail || t(decision) })));
}

/* The score as a bar from 0, the threshold as a post on the same scale. */
export function showGauge(box, score, threshold, end = 0) {
  if (score === null) {
    box.replaceChildren();
    return;
  }
  const top = end || Math.max(score * 1.1, threshold ? threshold * 2 : 0) || 1;
  const over = threshold !== null && score > threshold;
  const fill = el("div", { className: "fill" });
  fill.style.width = `${Math.min(100, (100 * score) / top)}%`;
  const track = el("div", { className: "track" }, fill);
  if (threshold !== null) {
    const post = el("div", { className: "post" });
    post.style.left = `${(100 * threshold) / top}%`;
    track.append(post);
  }
  track.setAttribute("aria-hidden", "true");
  box.dataset.over = threshold === null ? "unknown" : over;
  const line = (key, value, name) =>
    el("div", {}, el("dt", { textContent: t(key) }), el("dd", { className: name, textContent: value === null ? "–" : number(value), data: { value: value ?? "" } }));
  const away = threshold ? Math.round((1000 * (score - threshold)) / threshold) / 10 : 0;
  const words = threshold ? el("p", { textContent: t(over ? "above" : "below", { n: brief(Math.abs(away)) }) }) : "";
  box.replaceChildren(el("dl", {}, line("score", score, "score"), line("threshold", threshold, "limit")), track, words);
}

/* A list of parts, a button for each; `of(part)`: its decision, whether it is selected, and what is to be said of it. */
export function listParts(list, parts, of, choose) {
  fill(list, parts, ({ id }) => id, (part) => item(part, choose), ({ firstElementChild: button }, part) => {
    const { decision, selected = false, said = "" } = of(part);
    button.dataset.decision = decision;
    button.setAttribute("aria-pressed", selected);
    button.title = said;
    write(button.querySelector("b"), decision === "look" ? t("lookMark") : WORDS[decision]);
    write(button.querySelector("small"), said);
  });
}

function item(part, choose) {
  const thumb = smallCanvas();
  drawInto(thumb, part.thumb);
  const button = el("button", { type: "button", className: "part", data: { id: part.id } }, thumb, el("span", { className: "name", textContent: part.name }), el("b"), el("small"));
  button.addEventListener("click", () => choose(part));
  return el("li", {}, button);
}
