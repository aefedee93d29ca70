import { json, send } from "./api.js";
import { bitmapOf, close, el } from "./dom.js";
import { number, t } from "./i18n.js";

const MARGIN = 0.6; // of a region's sides, which is shown around it
const SIDE = 240;
const turns = new WeakMap();

/* Beside a region of `file`, in `box`: what good parts look like there. `fields`: role_id, roi_id, mm_per_px and so on. */
export async function showNearest(box, file, region, fields) {
  const turn = (turns.get(box) ?? 0) + 1;
  turns.set(box, turn);
  box.hidden = false;
  box.replaceChildren(el("p", { className: "hint", textContent: t("nearestBusy") }));
  const form = new FormData();
  for (const [name, value] of Object.entries({ ...fields, x: region.x, y: region.y, w: region.w, h: region.h })) form.append(name, value);
  form.append("image", file, file.name ?? "image");
  try {
    const { nearest, warnings } = await json("/nearest", { method: "POST", body: form });
    if (turns.get(box) !== turn) return;
    const own = await crop(file, region, t("nearestThis"));
    if (!nearest) return void box.replaceChildren(el("p", { className: "hint", textContent: warnings.at(-1) ?? "" }));
    const { mm_per_px: _, ...model } = fields;
    const query = new URLSearchParams({ role_id: model.role_id, roi_id: model.roi_id, ...(model.recipe_id ? { recipe_id: model.recipe_id } : {}), label: nearest.label, filename: nearest.filename });
    const good = await crop(await (await send(`/datasets/file?${query}`)).blob(), nearest, t("nearestGood"));
    if (turns.get(box) !== turn) return;
    good.title = nearest.filename;
    box.replaceChildren(own, good, el("p", { className: "hint", textContent: t("nearestAway", { distance: number(nearest.distance) }) }));
  } catch (err) {
    if (turns.get(box) === turn) box.replaceChildren(el("p", { className: "hint", textContent: err.message }));
  }
}

export function hideNearest(box) {
  turns.set(box, (turns.get(box) ?? 0) + 1);
  close(box);
}

/* A place of a picture and a little around it, with a frame around the place. */
async function crop(blob, { x, y, w, h }, caption) {
  const canvas = el("canvas", { width: SIDE, height: SIDE, role: "img" });
  canvas.setAttribute("aria-label", caption);
  const image = await bitmapOf(blob);
  if (image) {
    const side = Math.max(w, h) * (1 + 2 * MARGIN);
    const scale = SIDE / side;
    const [left, top] = [x + w / 2 - side / 2, y + h / 2 - side / 2];
    const context = canvas.getContext("2d");
    context.drawImage(image, -left * scale, -top * scale, image.width * scale, image.height * scale);
    for (const [colour, thickness] of [["#000", 4], ["#fff", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = thickness;
      context.strokeRect((x - left) * scale, (y - top) * scale, w * scale, h * scale);
    }
    image.close();
  }
  return el("figure", {}, canvas, el("figcaption", { textContent: caption }));
}
