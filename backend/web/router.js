/* The address says what is open: #/view/detail?filters. Reload, back and a link that was sent show the same again. */

let listener = () => {};

export function place() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [view, ...rest] = path.split("/").map(decodeURIComponent);
  return { view, rest, filters: new URLSearchParams(query) };
}

export function addressOf(view, rest = [], filters = new URLSearchParams()) {
  const query = filters.toString();
  return `#/${[view, ...rest].map(encodeURIComponent).join("/")}${query ? `?${query}` : ""}`;
}

/* Open something as a person would: with a step in the browser's history unless it replaces the present one. */
export function go(view, rest = [], filters = new URLSearchParams(), { replace = false } = {}) {
  const address = addressOf(view, rest, filters);
  if (address !== location.hash) history[replace ? "replaceState" : "pushState"](null, "", address);
  listener(place());
}

export function onPlace(tell) {
  listener = tell;
  addEventListener("hashchange", () => tell(place()));
}
