/* The absolute heatmap: 8-bit grey whose 0 and 255 stand for the distances of heatmap_range. */

export async function decodeHeat(base64, [low, high]) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }), { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
  const grey = new Uint8Array(bitmap.width * bitmap.height);
  for (let i = 0; i < grey.length; i += 1) grey[i] = rgba[4 * i];
  return { grey, width: bitmap.width, height: bitmap.height, low, high };
}

const STOPS = [
  [0.0, 40, 110, 230, 0],
  [0.35, 40, 130, 230, 70],
  [0.7, 245, 220, 70, 130],
  [1.0, 255, 130, 0, 215],
  [1.4, 225, 20, 40, 245],
  [2.0, 150, 0, 90, 255],
];

function colours(heat, usual, limit) {
  const table = new Uint8ClampedArray(1024);
  for (let grey = 0; grey < 256; grey += 1) {
    const distance = heat.low + ((heat.high - heat.low) * grey) / 255;
    const ratio = Math.min(Math.max((distance - usual) / Math.max(limit - usual, 1e-6), 0), 2);
    const above = STOPS.findIndex((stop) => stop[0] >= ratio);
    const b = STOPS[Math.max(above, 1)];
    const a = STOPS[Math.max(above, 1) - 1];
    const part = (ratio - a[0]) / (b[0] - a[0]);
    for (let c = 0; c < 4; c += 1) table[4 * grey + c] = a[c + 1] + (b[c + 1] - a[c + 1]) * part;
  }
  return table;
}

/* The heat as a canvas: clear up to what is usual in the image, and turning red above `limit`. */
export function paintHeat(heat, usual, limit) {
  const table = colours(heat, usual, limit);
  const canvas = new OffscreenCanvas(heat.width, heat.height);
  const context = canvas.getContext("2d");
  const picture = context.createImageData(heat.width, heat.height);
  const words = new Uint32Array(picture.data.buffer);
  const byGrey = new Uint32Array(table.buffer);
  for (let i = 0; i < words.length; i += 1) words[i] = byGrey[heat.grey[i]];
  context.putImageData(picture, 0, 0);
  return canvas;
}

/* The colours of paintHeat from what is usual (left) over the limit (in the middle) to as far again (right). */
export function paintLegend(canvas) {
  const heat = { grey: Uint8Array.from({ length: 256 }, (_, grey) => grey), width: 256, height: 1, low: 0, high: 2 };
  Object.assign(canvas, { width: 256, height: 1 });
  canvas.getContext("2d").drawImage(paintHeat(heat, 0, 1), 0, 0);
}

/* Connected areas (8 neighbours) at or above `threshold`, largest first, as the server finds them. */
export function regionsOf(heat, threshold, mmPerPx, areaMin) {
  const { grey, width, height } = heat;
  const limit = ((threshold - heat.low) / (heat.high - heat.low)) * 255;
  const label = new Int32Array(grey.length);
  const stack = new Int32Array(grey.length);
  const found = [];
  for (let start = 0; start < grey.length; start += 1) {
    if (grey[start] < limit || grey[start] === 0 || label[start]) continue;
    const region = flood(grey, label, stack, width, height, start, limit, found.length + 1);
    found.push({ ...region, area_mm2: region.area_px * mmPerPx * mmPerPx });
  }
  const kept = found.filter((region) => region.area_mm2 >= areaMin);
  for (const region of kept) region.edges = edgesOf(label, width, height, region);
  return kept.sort((a, b) => b.area_px - a.area_px);
}

function flood(grey, label, stack, width, height, start, limit, id) {
  let top = 0;
  let area = 0;
  let [left, up, right, down] = [width, height, 0, 0];
  stack[top++] = start;
  label[start] = id;
  while (top) {
    const at = stack[--top];
    const x = at % width;
    const y = (at - x) / width;
    area += 1;
    if (x < left) left = x;
    if (x > right) right = x;
    if (y < up) up = y;
    if (y > down) down = y;
    for (let ny = Math.max(0, y - 1); ny <= Math.min(height - 1, y + 1); ny += 1) {
      for (let nx = Math.max(0, x - 1); nx <= Math.min(width - 1, x + 1); nx += 1) {
        const next = ny * width + nx;
        if (!label[next] && grey[next] >= limit && grey[next] > 0) {
          label[next] = id;
          stack[top++] = next;
        }
      }
    }
  }
  return { id, x: left, y: up, w: right - left + 1, h: down - up + 1, area_px: area };
}

/* The outline as a path along the pixels' own edges. */
function edgesOf(label, width, height, { id, x, y, w, h }) {
  const path = new Path2D();
  const inside = (px, py) => px >= 0 && py >= 0 && px < width && py < height && label[py * width + px] === id;
  for (let py = y; py <= y + h; py += 1) {
    for (let px = x, run = -1; px <= x + w; px += 1) {
      const edge = px < x + w && inside(px, py) !== inside(px, py - 1);
      if (edge && run < 0) run = px;
      if (!edge && run >= 0) {
        path.moveTo(run, py);
        path.lineTo(px, py);
        run = -1;
      }
    }
  }
  for (let px = x; px <= x + w; px += 1) {
    for (let py = y, run = -1; py <= y + h; py += 1) {
      const edge = py < y + h && inside(px, py) !== inside(px - 1, py);
      if (edge && run < 0) run = py;
      if (!edge && run >= 0) {
        path.moveTo(px, run);
        path.lineTo(px, py);
        run = -1;
      }
    }
  }
  return path;
}

/* The server's own outline. */
export function contourPath(points) {
  const path = new Path2D();
  points.forEach(([x, y], i) => (i ? path.lineTo(x + 0.5, y + 0.5) : path.moveTo(x + 0.5, y + 0.5)));
  path.closePath();
  return path;
}
