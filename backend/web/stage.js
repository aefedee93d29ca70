import { brief } from "./i18n.js";

export const FIELDS = { rect: ["x", "y", "w", "h"], circle: ["cx", "cy", "r"], annulus: ["cx", "cy", "r", "r_inner"] };
const NEAR = 14;

const CLOSEST = 16;

/* A canvas that shows a part, the heat over it, outlines with their area, and a mask that can be drawn. The wheel, the
   keys +, - and 0 and the arrows look closer and elsewhere, and so does dragging where no mask is drawn. */
export class Stage {
  constructor(canvas) {
    this.canvas = canvas;
    this.scene = { width: 0, height: 0, layers: [], outlines: [], shape: null };
    this.onShape = null;
    this.kind = "";
    this.grip = null;
    this.look = { zoom: 1, x: 0.5, y: 0.5 }; // the middle of what is seen, in shares of the picture
    this.pan = null;
    new ResizeObserver(() => this.draw()).observe(canvas);
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => this.#up());
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("dblclick", () => this.kind || this.whole());
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  /* See it all again. */
  whole() {
    this.look = { zoom: 1, x: 0.5, y: 0.5 };
    this.draw();
  }

  /* Look closer by `factor`, around a place of the picture: the middle of what is seen without one. */
  closer(factor, place = null) {
    const { look, scene } = this;
    if (!scene.width) return;
    const zoom = Math.min(Math.max(look.zoom * factor, 1), CLOSEST);
    const held = place ?? [look.x * scene.width, look.y * scene.height];
    const kept = look.zoom / zoom;
    this.#see(zoom, held[0] / scene.width + (look.x - held[0] / scene.width) * kept, held[1] / scene.height + (look.y - held[1] / scene.height) * kept);
  }

  /* Look at a region, with as much around it as it is large. */
  goTo({ x, y, w, h }) {
    const { scene, canvas } = this;
    if (!scene.width || !canvas.clientWidth) return;
    const fit = Math.min(canvas.clientWidth / scene.width, canvas.clientHeight / scene.height);
    const wanted = Math.min(canvas.clientWidth / (3 * w), canvas.clientHeight / (3 * h));
    this.#see(Math.min(Math.max(wanted / fit, 1), CLOSEST), (x + w / 2) / scene.width, (y + h / 2) / scene.height);
  }

  /* No further than the picture's edge. */
  #see(zoom, x, y) {
    const { canvas, scene } = this;
    const fit = Math.min(canvas.clientWidth / scene.width, canvas.clientHeight / scene.height) * zoom;
    const inside = (place, seen) => Math.min(Math.max(place, Math.min(seen / 2, 0.5)), Math.max(1 - seen / 2, 0.5));
    this.look = { zoom, x: inside(x, canvas.clientWidth / (fit * scene.width)), y: inside(y, canvas.clientHeight / (fit * scene.height)) };
    this.draw();
  }

  #wheel(event) {
    if (!this.scene.width || event.ctrlKey) return;
    event.preventDefault();
    this.closer(event.deltaY < 0 ? 1.25 : 0.8, this.#point(event));
  }

  #key(event) {
    const { look } = this;
    const step = 0.15 / look.zoom;
    const keys = {
      "+": () => this.closer(1.25),
      "-": () => this.closer(0.8),
      0: () => this.whole(),
      ArrowLeft: () => this.#see(look.zoom, look.x - step, look.y),
      ArrowRight: () => this.#see(look.zoom, look.x + step, look.y),
      ArrowUp: () => this.#see(look.zoom, look.x, look.y - step),
      ArrowDown: () => this.#see(look.zoom, look.x, look.y + step),
    };
    const act = this.scene.width && !event.ctrlKey && !event.metaKey && keys[event.key];
    if (!act || (event.key.startsWith("Arrow") && look.zoom === 1)) return;
    event.preventDefault();
    act();
  }

  show(scene) {
    const other = scene.width !== undefined && (scene.width !== this.scene.width || scene.height !== this.scene.height);
    if (other) this.look = { zoom: 1, x: 0.5, y: 0.5 };
    this.scene = { ...this.scene, ...scene };
    this.draw();
  }

  draw() {
    const { canvas, scene } = this;
    const ratio = devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (!width || !height) return;
    if (canvas.width !== width) canvas.width = width;
    if (canvas.height !== height) canvas.height = height;
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    if (!scene.width) return;
    const scale = Math.min(width / scene.width, height / scene.height) * this.look.zoom;
    this.view = { scale, left: width / 2 - this.look.x * scene.width * scale, top: height / 2 - this.look.y * scene.height * scale, ratio };
    canvas.dataset.zoom = this.look.zoom.toFixed(2);
    context.setTransform(scale, 0, 0, scale, this.view.left, this.view.top);
    for (const { image, alpha } of scene.layers) {
      if (!image) continue;
      context.globalAlpha = alpha;
      context.drawImage(image, 0, 0, scene.width, scene.height);
    }
    context.globalAlpha = 1;
    const pen = ratio * Math.max(1, parseFloat(getComputedStyle(document.documentElement).fontSize) / 18); // as large as the page's letters
    this.#shape(context, scale, pen);
    this.#outlines(context, scale, pen);
  }

  #outlines(context, scale, pen) {
    const { outlines } = this.scene;
    context.lineJoin = "round";
    for (const [colour, thickness] of [["#000", 5], ["#fff", 2.5]]) {
      context.strokeStyle = colour;
      for (const { path, zoom = 1 } of outlines) {
        context.save();
        context.scale(zoom, zoom);
        context.lineWidth = (thickness * pen) / scale / zoom;
        context.stroke(path);
        context.restore();
      }
    }
    const size = (15 * pen) / scale;
    context.font = `700 ${size}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    const taken = outlines.map(({ x, y, w, h }) => [x, y, w, h]);
    outlines.forEach((outline, i) => outline.area_mm2 !== undefined && this.#tag(context, outline, i, size, taken));
  }

  /* The area beside its region, where there is room for it: first come the largest. */
  #tag(context, { x, y, w, h, area_mm2: area }, i, size, taken) {
    const text = `${i + 1} · ${brief(area)} mm²`;
    const [width, height, gap] = [context.measureText(text).width + size, size * 1.6, size * 0.4];
    const [middle, centre] = [x + w / 2 - width / 2, y + h / 2 - height / 2];
    const places = [[middle, y - height - gap], [middle, y + h + gap], [x + w + gap, centre], [x - width - gap, centre]];
    const [right, bottom] = [Math.max(0, this.scene.width - width), Math.max(0, this.scene.height - height)];
    const inside = places.map(([px, py]) => [Math.min(Math.max(px, 0), right), Math.min(Math.max(py, 0), bottom)]);
    const free = inside.find(([px, py]) => taken.every((t) => px + width < t[0] || t[0] + t[2] < px || py + height < t[1] || t[1] + t[3] < py));
    if (!free) return;
    taken.push([...free, width, height]);
    context.fillStyle = "#000d";
    context.beginPath();
    context.roundRect(...free, width, height, size * 0.25);
    context.fill();
    context.fillStyle = "#fff";
    context.fillText(text, free[0] + size / 2, free[1] + size * 0.84);
  }

  #shape(context, scale, pen) {
    const { shape, width, height } = this.scene;
    if (!shape) return;
    const part = shapePath(shape);
    const outside = new Path2D();
    outside.rect(0, 0, width, height);
    outside.addPath(part);
    context.fillStyle = "#0009";
    context.fill(outside, "evenodd");
    for (const [colour, dash] of [["#000", []], ["#4dd8ff", [8, 6]]]) {
      context.strokeStyle = colour;
      context.lineWidth = (3 * pen) / scale;
      context.setLineDash(dash.map((n) => (n * pen) / scale));
      context.stroke(part);
    }
    context.setLineDash([]);
    context.fillStyle = "#4dd8ff";
    for (const [x, y] of Object.values(grips(shape))) {
      context.beginPath();
      context.arc(x, y, (6 * pen) / scale, 0, 7);
      context.fill();
    }
  }

  #point(event) {
    const { scale, left, top, ratio } = this.view;
    return [(event.offsetX * ratio - left) / scale, (event.offsetY * ratio - top) / scale];
  }

  #down(event) {
    if (!this.scene.width) return;
    if (!this.kind || !this.onShape) {
      if (this.look.zoom === 1) return;
      this.pan = { at: [event.offsetX, event.offsetY], look: this.look };
      this.canvas.setPointerCapture(event.pointerId);
      return;
    }
    const at = this.#point(event);
    const reach = (NEAR * this.view.ratio) / this.view.scale;
    const { shape } = this.scene;
    const near = shape && Object.entries(grips(shape)).find(([, grip]) => Math.hypot(grip[0] - at[0], grip[1] - at[1]) < reach);
    this.grip = near ? near[0] : "new";
    this.from = at;
    this.before = shape;
    this.canvas.setPointerCapture(event.pointerId);
    event.preventDefault();
  }

  #move(event) {
    this.canvas.classList.toggle("draws", Boolean(this.kind));
    this.canvas.classList.toggle("pans", !this.kind && this.look.zoom > 1);
    if (this.pan) {
      const { at, look } = this.pan;
      const { scale, ratio } = this.view;
      const moved = [event.offsetX - at[0], event.offsetY - at[1]].map((way) => (way * ratio) / scale);
      this.#see(look.zoom, look.x - moved[0] / this.scene.width, look.y - moved[1] / this.scene.height);
    }
    if (!this.grip) return;
    const at = this.#point(event);
    const drawn = this.grip === "new" ? drawnShape(this.kind, this.from, at) : moved(this.before, this.grip, at);
    if (drawn) {
      this.show({ shape: drawn });
      this.onShape(drawn, false);
    }
  }

  #up() {
    this.pan = null;
    if (!this.grip) return;
    this.grip = null;
    if (this.scene.shape && this.scene.shape !== this.before) this.onShape(this.scene.shape, true);
  }
}

function shapePath(shape) {
  const path = new Path2D();
  if (shape.kind === "rect") path.rect(shape.x, shape.y, shape.w, shape.h);
  else path.arc(shape.cx, shape.cy, shape.r, 0, 2 * Math.PI);
  if (shape.kind === "annulus") {
    path.moveTo(shape.cx + shape.r_inner, shape.cy);
    path.arc(shape.cx, shape.cy, shape.r_inner, 0, 2 * Math.PI, true);
  }
  return path;
}

function grips(shape) {
  if (shape.kind === "rect") {
    const { x, y, w, h } = shape;
    return { nw: [x, y], se: [x + w, y + h], middle: [x + w / 2, y + h / 2] };
  }
  const { cx, cy, r, r_inner: inner } = shape;
  return { middle: [cx, cy], r: [cx + r, cy], ...(inner ? { r_inner: [cx, cy + inner] } : {}) };
}

function rounded(shape) {
  return Object.fromEntries(Object.entries(shape).map(([k, v]) => [k, typeof v === "number" ? Math.round(v * 10) / 10 : v]));
}

function drawnShape(kind, [x0, y0], [x, y]) {
  if (kind === "rect") {
    const [w, h] = [Math.abs(x - x0), Math.abs(y - y0)];
    return w < 2 || h < 2 ? null : rounded({ kind, x: Math.min(x, x0), y: Math.min(y, y0), w, h });
  }
  const r = Math.hypot(x - x0, y - y0);
  if (r < 3) return null;
  return rounded({ kind, cx: x0, cy: y0, r, ...(kind === "annulus" ? { r_inner: r * 0.5 } : {}) });
}

function moved(shape, grip, [x, y]) {
  const next = { ...shape };
  if (shape.kind === "rect") {
    if (grip === "middle") [next.x, next.y] = [x - shape.w / 2, y - shape.h / 2];
    if (grip === "se") [next.w, next.h] = [Math.max(2, x - shape.x), Math.max(2, y - shape.y)];
    if (grip === "nw") {
      [next.w, next.h] = [Math.max(2, shape.x + shape.w - x), Math.max(2, shape.y + shape.h - y)];
      [next.x, next.y] = [shape.x + shape.w - next.w, shape.y + shape.h - next.h];
    }
    return rounded(next);
  }
  const distance = Math.hypot(x - shape.cx, y - shape.cy);
  if (grip === "middle") [next.cx, next.cy] = [x, y];
  if (grip === "r") next.r = Math.max(distance, (shape.r_inner ?? 0) + 2, 3);
  if (grip === "r_inner") next.r_inner = Math.max(1, Math.min(distance, shape.r - 2));
  return rounded(next);
}
