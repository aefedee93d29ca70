import { json, send } from "./api.js";
import { el } from "./dom.js";
import { t, writer } from "./i18n.js";

/* What the record of inspections gives the views: words for a verdict, times, pictures. */

export const when = (time, options = { dateStyle: "short", timeStyle: "medium" }) =>
  writer(Intl.DateTimeFormat, options).format(new Date(time));

export const CONSOLE = "console"; // the station_id of what is inspected on these pages

/* A sentence of the service, its times as the clock beside the person has them. */
export const localTimes = (text) => text.replace(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z(?!\.?\w)/g, (time) => when(time));

/* "look": good, with a region that reaches the threshold all the same. */
export const decisionOf = (item) => (item.decision === "ok" && item.n_regions ? "look" : item.decision ?? "none");

export const modelOf = (item) =>
  [item.recipe_id && item.recipe_id !== "default" ? item.recipe_id : "", item.role_id, item.roi_id].filter(Boolean).join(" / ");

export const partOf = (item) => item.part_id || item.image?.filename || item.inspection_id;

/* A picture of the record, loaded with the key that an <img> cannot send. `format`: png, or jpeg, which is smaller. */
export async function overlayOf(id, width, { signal, format = "png" } = {}) {
  return (await send(`/inspections/${encodeURIComponent(id)}/overlay?${new URLSearchParams({ width, format })}`, { quiet: true, signal })).blob();
}

/* The address of such a picture. Free it with release(). */
export async function pictureOf(id, width, options) {
  return URL.createObjectURL(await overlayOf(id, width, options));
}

/* Free an image's picture, be it there already or still on its way. */
export function release(image) {
  if (!image) return;
  image.released = true;
  if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
}

/* An image of the record that fills itself in; it stays empty where there is none. */
export function thumb(item, width = 168) {
  const image = el("img", { alt: "", className: "thumb", width: 84, height: 64 });
  pictureOf(item.inspection_id, width, { format: "jpeg" }).then((src) => {
    if (image.released) URL.revokeObjectURL(src);
    else image.src = src;
  }).catch(() => image.classList.add("missing"));
  return image;
}

export function review(id, verdict, { note, defect, reviewer } = {}) {
  const body = { verdict, ...(note ? { note } : {}), ...(defect ? { defect } : {}), ...(reviewer ? { reviewer } : {}) };
  return json(`/inspections/${encodeURIComponent(id)}/review`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
}

/* Who reviews, as this browser remembers it. */
export const reviewer = {
  get name() { return localStorage.getItem("reviewer") ?? ""; },
  set name(text) { localStorage.setItem("reviewer", text.trim().slice(0, 128)); },
};

export const author = () => (reviewer.name ? { author: reviewer.name } : {});

export const verdictWord = (decision) => ({ ok: "OK", ng: "NG" })[decision] ?? t("undecided");
