import { svg } from "./dom.js";

/* Scores over time as dots, each with the threshold it was judged by. `points`: {score, threshold, decision, chosen}.
   `into`: an earlier chart, which is drawn anew with the nodes that it has. */
export function trend(points, { width = 600, height = 160, label = "", into = null } = {}) {
  const chart = into ?? svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", class: "trend", role: "img" });
  chart.setAttribute("aria-label", label);
  const paths = points.length ? trendPaths(points, width, height) : [];
  paths.forEach(([kind, d], n) => {
    const path = chart.children[n] ?? chart.appendChild(svg("path"));
    if (path.getAttribute("class") !== kind) path.setAttribute("class", kind);
    path.setAttribute("d", d);
  });
  while (chart.children.length > paths.length) chart.lastChild.remove();
  return chart;
}

/* The class and the shape of each path of a trend. */
function trendPaths(points, width, height) {
  const values = points.flatMap((point) => (point.threshold ? [point.score, point.threshold] : [point.score]));
  const low = Math.min(...values) * 0.9;
  const high = Math.max(...values) * 1.05 || 1;
  const x = (n) => 8 + (n * (width - 16)) / Math.max(1, points.length - 1);
  const y = (value) => height - 8 - ((value - low) * (height - 16)) / (high - low || 1);
  let line = "";
  points.forEach((point, n) => {
    if (!point.threshold) return;
    const joined = n && points[n - 1].threshold;
    line += `${joined ? "L" : "M"}${x(n).toFixed(1)} ${y(point.threshold).toFixed(1)}`;
  });
  const paths = line ? [["limit", line]] : [];
  points.forEach((point, n) => {
    const spot = `M${x(n).toFixed(1)} ${y(point.score).toFixed(1)}h.01`; // a round line end stays round however the chart is stretched
    if (point.chosen) paths.push(["ring", spot]);
    paths.push([`dot ${point.decision ?? "none"}${point.chosen ? " chosen" : ""}`, spot]);
  });
  return paths;
}

/* Scores by period: a band from p5 to p95, the median in it, and the threshold. `mark`: the time since when something is so. */
export function spread(items, { width = 600, height = 160, limit = null, mark = null, label = "" } = {}) {
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", class: "trend", role: "img", "aria-label": label });
  if (!items.length) return chart;
  if (items.length === 1) items = [items[0], { ...items[0], start: new Date(items[0].start).getTime() + 3600000 }]; // a point has no width
  const values = items.flatMap(({ score }) => [score.p5, score.p95]).concat(limit ?? []);
  const low = Math.min(...values) * 0.9;
  const high = Math.max(...values) * 1.05 || 1;
  const times = items.map((item) => new Date(item.start).getTime());
  const [first, last] = [times[0], times.at(-1)];
  const x = (time) => (last > first ? 12 + ((time - first) * (width - 24)) / (last - first) : width / 2);
  const y = (value) => height - 8 - ((value - low) * (height - 16)) / (high - low || 1);
  const at = (n, name) => `${x(times[n]).toFixed(1)} ${y(items[n].score[name]).toFixed(1)}`;
  const order = items.map((_, n) => n);
  const there = order.map((n) => at(n, "p95")).join("L");
  const back = order.toReversed().map((n) => at(n, "p5")).join("L");
  chart.append(svg("path", { d: `M${there}L${back}Z`, class: "band" }));
  chart.append(svg("path", { d: `M${order.map((n) => at(n, "p50")).join("L")}`, class: "middle" }));
  if (limit !== null) chart.append(svg("path", { d: `M8 ${y(limit).toFixed(1)}H${width - 8}`, class: "limit" }));
  if (mark !== null) {
    const place = Math.min(Math.max(x(new Date(mark).getTime()), 4), width - 4);
    chart.append(svg("path", { d: `M${place.toFixed(1)} 0V${height}`, class: "mark" }));
  }
  return chart;
}

/* Scores of good parts upwards and of bad ones downwards, and each part as a point. `open` hears of a point that is
   clicked, `place` of a click beside them, as a score. `points`: {score, truth, name}. */
export function histogram(points, { from, to, bins = 32, width = 640, height = 240, label = "", open, place }) {
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  const count = (truth) => {
    const counts = new Array(bins).fill(0);
    for (const point of points) if (point.truth === truth) counts[Math.min(bins - 1, Math.floor(((point.score - from) / (to - from)) * bins))] += 1;
    return counts;
  };
  const [above, below] = [count("ok"), count("ng")];
  const most = Math.max(...above, ...below, 1);
  const middle = height / 2;
  const wide = width / bins;
  for (let i = 0; i < bins; i += 1) {
    const [up, down] = [above[i], below[i]].map((n) => ((middle - 22) * n) / most);
    if (up) chart.append(svg("rect", { class: "bar ok", x: i * wide + 1, width: wide - 2, y: middle - up, height: up }));
    if (down) chart.append(svg("rect", { class: "bar ng", x: i * wide + 1, width: wide - 2, y: middle, height: down }));
  }
  chart.append(svg("line", { class: "axis", x1: 0, x2: width, y1: middle, y2: middle }));
  for (const point of points) {
    const x = ((point.score - from) / (to - from)) * width;
    const spot = svg("path", { d: `M${x.toFixed(1)} ${point.truth === "ok" ? 11 : height - 11}h.01`, class: `spot ${point.truth}` }, svg("title", {}, point.name));
    spot.addEventListener("click", (event) => {
      event.stopPropagation();
      open(point);
    });
    chart.append(spot);
  }
  chart.addEventListener("click", (event) => {
    const box = chart.getBoundingClientRect();
    place(from + ((event.clientX - box.left) / box.width) * (to - from));
  });
  return chart;
}
