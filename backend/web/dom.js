import { t } from "./i18n.js";

export const $ = (id) => document.getElementById(id);

export function el(tag, given = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name === "data") Object.assign(node.dataset, value);
    else if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

export function svg(tag, given = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(given)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export function chosen(name) {
  return document.querySelector(`input[name="${name}"]:checked`)?.value ?? "";
}

export function choose(name, value) {
  for (const input of document.querySelectorAll(`input[name="${name}"]`)) input.checked = input.value === String(value);
}

export function complain(error) {
  if (error?.name === "AbortError") return;
  const known = [...$("alerts").children].find((box) => box.dataset.text === error.message);
  known?.remove();
  const close = el("button", { type: "button", className: "quiet", textContent: t("close") });
  const id = error.requestId ? el("small", { textContent: t("request", { id: error.requestId }) }) : null;
  const box = el("div", { className: "notice bad", data: { text: error.message } }, el("p", {}, error.message, id), close);
  close.addEventListener("click", () => box.remove());
  $("alerts").prepend(box);
  while ($("alerts").children.length > 3) $("alerts").lastChild.remove();
}

export function calm() {
  $("alerts").replaceChildren();
}

const IMAGE = /\.(png|jpe?g|bmp|tiff?|webp)$/i;

export function images(list) {
  const files = [...list].filter((file) => file.type.startsWith("image/") || IMAGE.test(file.name));
  const others = [...list].filter((file) => !files.includes(file)).map((file) => file.name);
  if (others.length) setTimeout(() => complain(new Error(t("notImages", { names: others.slice(0, 3).join(", ") + (others.length > 3 ? "…" : "") }))));
  return files;
}

export function acceptFiles(input, take) {
  const zone = input.closest(".drop");
  input.addEventListener("change", () => {
    take(images(input.files));
    input.value = "";
  });
  for (const kind of ["dragenter", "dragover"]) zone.addEventListener(kind, (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  for (const kind of ["dragleave", "drop"]) zone.addEventListener(kind, () => zone.classList.remove("over"));
  zone.addEventListener("drop", async (event) => {
    event.preventDefault();
    take(images(await dropped(event.dataTransfer)));
  });
}

const HIDDEN = /^(\.|@eaDir$|Thumbs\.db$|desktop\.ini$)/i;

/* The files that were dropped, those of dropped folders included, in the order of their names. */
export async function dropped(transfer) {
  const plain = [...transfer.files];
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return plain;
  const found = [];
  for (const entry of entries) await collect(entry, found);
  return found;
}

async function collect(entry, found) {
  if (HIDDEN.test(entry.name)) return;
  if (entry.isFile) {
    found.push(await new Promise((done, failed) => entry.file(done, failed)));
    return;
  }
  const reader = entry.createReader();
  const inside = [];
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!some.length) break;
    inside.push(...some);
  }
  inside.sort((a, b) => a.name.localeCompare(b.name));
  for (const child of inside) await collect(child, found);
}

/* Asks a question in a dialog; true when the person agrees. */
export async function ask(title, text, yes) {
  return (await put(title, text, yes, false)) !== null;
}

/* The same with room for a note, which it gives; null when the person does not agree. */
export function askNote(title, text, yes) {
  return put(title, text, yes, true);
}

function put(title, text, yes, withNote) {
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-yes").textContent = yes;
  $("ask-note").value = "";
  $("ask-note-line").hidden = !withNote;
  $("ask").returnValue = "";
  $("ask").showModal();
  return new Promise((done) => $("ask").addEventListener("close", () => done($("ask").returnValue === "yes" ? $("ask-note").value.trim() : null), { once: true }));
}

/* Rows of a <dl>: [[name, value], …]. */
export function facts(list, rows) {
  list.replaceChildren(...rows.map(([name, value]) => el("div", {}, el("dt", { textContent: name }), el("dd", { textContent: value }))));
}

/* What is the matter with a view, and a way to try again. */
export function trouble(box, error, retry) {
  if (error.name === "AbortError") return;
  const again = el("button", { type: "button", textContent: t("retry") });
  again.addEventListener("click", () => {
    box.hidden = true;
    retry();
  });
  box.replaceChildren(el("p", { textContent: error.message }), again);
  box.hidden = false;
}

/* As the server reads it: EXIF rotation ignored. Null for what the browser cannot show, such as TIFF. */
export async function bitmapOf(blob, options = {}) {
  try {
    return await createImageBitmap(blob, { imageOrientation: "none", ...options });
  } catch {
    return null;
  }
}

/* Show a picture in a canvas; what was decoded of it is freed at once. False for what the browser cannot show. */
export async function paint(canvas, blob, options = {}) {
  const image = await bitmapOf(blob, options);
  if (!image) return false;
  drawInto(canvas, image);
  image.close();
  return true;
}

/* Draw an image in a canvas, `width` px wide; a canvas that has the size already keeps its memory. */
export function drawInto(canvas, image, width = image.width) {
  const height = Math.max(1, Math.round((image.height * width) / image.width));
  const context = canvas.getContext("2d");
  if (canvas.width === width && canvas.height === height) context.clearRect(0, 0, width, height);
  else Object.assign(canvas, { width, height });
  context.drawImage(image, 0, 0, width, height);
}

/* Put text in its place, unless it stands there. */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const shown = new WeakMap();

/* Whether a node is to show something else than it was last asked about. What is replaced under a pointer loses its click. */
export function differs(node, what) {
  const now = JSON.stringify(what);
  if (shown.get(node) === now) return false;
  shown.set(node, now);
  return true;
}

const filled = new WeakMap();

/* The children of a list: `make(item)` for each new `key(item)`, then `dress(node, item)`. The nodes of known keys stay. */
export function fill(list, items, key, make, dress = () => {}) {
  const before = filled.get(list) ?? new Map();
  const now = new Map(items.map((item) => [key(item), item]));
  for (const [name, node] of before) if (!now.has(name)) node.remove();
  const nodes = new Map([...now].map(([name, item]) => [name, before.get(name) ?? make(item)]));
  let at = list.firstElementChild;
  for (const [name, node] of nodes) {
    if (at && at.nextElementSibling === node) { // what stands here goes down: the others stay where they are
      list.append(at);
      at = node;
    }
    if (node === at) at = at.nextElementSibling;
    else list.insertBefore(node, at);
    dress(node, now.get(name));
  }
  filled.set(list, nodes);
}

export function close(box) {
  box.hidden = true;
  box.replaceChildren();
}

export function smallCanvas() {
  const canvas = el("canvas", { width: 1, height: 1, className: "thumb" });
  canvas.setAttribute("aria-hidden", "true");
  return canvas;
}

export async function thumbnail(file) {
  const canvas = smallCanvas();
  await paint(canvas, file, { resizeWidth: 168, resizeQuality: "medium" });
  return canvas;
}
