import { svg } from "./dom.js";

/* Scores over time as dots, each with the threshold it was judged by. `points`: {score, threshold, decision, chosen}. */
export function trend(points, { width = 600, height = 160, label = "" } = {}) {
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", class: "trend", role: "img", "aria-label": label });
  if (!points.length) return chart;
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
  if (line) chart.append(svg("path", { d: line, class: "limit" }));
  points.forEach((point, n) => {
    const spot = `M${x(n).toFixed(1)} ${y(point.score).toFixed(1)}h.01`; // a round line end stays round however the chart is stretched
    if (point.chosen) chart.append(svg("path", { d: spot, class: "ring" }));
    chart.append(svg("path", { d: spot, class: `dot ${point.decision ?? "none"}${point.chosen ? " chosen" : ""}` }));
  });
  return chart;
}
