const TEXTS = {
  title: ["Inspección de piezas", "Part inspection"],
  skip: ["Ir al contenido", "Skip to content"],
  steps: ["Pasos", "Steps"],
  modelLabel: ["Modelo", "Model"],
  language: ["English", "Español"],
  themeAuto: ["Tema: automático", "Theme: automatic"],
  themeLight: ["Tema: claro", "Theme: light"],
  themeDark: ["Tema: oscuro", "Theme: dark"],
  role: ["Puesto (role_id)", "Role (role_id)"],
  roi: ["Zona (roi_id)", "ROI (roi_id)"],
  mm: ["mm por píxel", "mm per pixel"],
  recipe: ["Receta", "Recipe"],
  service_ok: ["Servicio listo", "Service ready"],
  service_warming: ["Cargando el modelo…", "Loading the model…"],
  service_degraded: ["Servicio degradado", "Degraded service"],
  service_failed: ["El modelo no arranca", "The model does not start"],
  service_down: ["Sin conexión con el servicio", "No connection to the service"],
  service_wait: ["Conectando…", "Connecting…"],
  service_key: ["Falta la clave", "Key needed"],
  noModel: ["Escribe un puesto y una zona", "Enter a role and an ROI"],
  badMm: ["Escribe los milímetros por píxel (mayor que 0).", "Enter the millimetres per pixel (above 0)."],
  fitted: ["Con memoria", "Fitted"],
  notFitted: ["Sin memoria: empieza por Aprender", "Not fitted: start with Learn"],
  calibrated: ["Calibrado", "Calibrated"],
  notCalibrated: ["Sin calibrar: aún no hay veredicto", "Not calibrated: no verdict yet"],
  stale: ["Calibración caducada", "Stale calibration"],
  degraded: ["Degradado", "Degraded"],
  unknownState: ["Estado: se verá al inspeccionar", "State: seen when you inspect"],
  working: ["Trabajando", "Working"],
  tabFit: ["Aprender", "Learn"],
  tabInspect: ["Inspeccionar", "Inspect"],
  tabCalibrate: ["Calibrar", "Calibrate"],
  fitTitle: ["Enséñale piezas buenas", "Show it good parts"],
  fitLead: [
    "Sólo piezas buenas, ya recortadas. Con diez funciona; con cincuenta conoce cómo varían.",
    "Good parts only, already cropped. Ten will do; with fifty it knows how they vary.",
  ],
  dropOk: ["Suelta aquí piezas buenas", "Drop good parts here"],
  dropHow: ["o pulsa para elegirlas, o pega con Ctrl+V", "or click to choose, or paste with Ctrl+V"],
  dropShort: ["o elige, o Ctrl+V", "or choose, or Ctrl+V"],
  fitImages: ["Imágenes para aprender", "Images to learn from"],
  images: ["imágenes", "images"],
  fitGo: ["Aprender", "Learn"],
  cancel: ["Cancelar", "Cancel"],
  clear: ["Vaciar", "Clear"],
  remove: ["Quitar {name}", "Remove {name}"],
  fitHintNone: ["Añade imágenes para empezar.", "Add images to begin."],
  fitHintFew: ["Con menos de diez la memoria sabe poco.", "With fewer than ten the memory knows little."],
  fitHintReplaces: ["Sustituye a la memoria anterior de {model}.", "Replaces the former memory of {model}."],
  stage_send: ["Enviando…", "Sending…"],
  stage_extract: ["Mirando las imágenes", "Looking at the images"],
  stage_coreset: ["Eligiendo qué recordar", "Choosing what to remember"],
  stage_store: ["Guardando", "Storing"],
  stageLeft: ["faltan {s} s", "{s} s left"],
  fitDone: [
    "Aprendido: {n} imágenes, {rows} de {all} vectores en la memoria, versión {version}, en {s} s.",
    "Learned: {n} images, {rows} of {all} vectors in the memory, version {version}, in {s} s.",
  ],
  fitNext: [
    "Ahora calibra con piezas buenas que no estén aquí.",
    "Now calibrate with good parts that are not among these.",
  ],
  fitCancelled: ["Cancelado: la memoria anterior sigue igual.", "Cancelled: the former memory is as it was."],
  goCalibrate: ["Calibrar", "Calibrate"],
  dropParts: ["Suelta piezas", "Drop parts"],
  parts: ["Piezas", "Parts"],
  heat: ["Calor", "Heat"],
  mask: ["Máscara", "Mask"],
  maskNone: ["Toda", "All"],
  maskRect: ["Rectángulo", "Rectangle"],
  maskCircle: ["Círculo", "Circle"],
  maskAnnulus: ["Corona", "Annulus"],
  maskHint: [
    "Arrastra sobre la pieza para dibujarla, o escribe los números (píxeles).",
    "Drag on the part to draw it, or type the numbers (pixels).",
  ],
  f_x: ["izquierda", "left"],
  f_y: ["arriba", "top"],
  f_w: ["ancho", "width"],
  f_h: ["alto", "height"],
  f_cx: ["centro x", "centre x"],
  f_cy: ["centro y", "centre y"],
  f_r: ["radio", "radius"],
  f_r_inner: ["radio interior", "inner radius"],
  threshold: ["Umbral", "Threshold"],
  mode: ["Exigencia", "Mode"],
  sensitive: ["Sensible", "Sensitive"],
  normal: ["Normal", "Normal"],
  strict: ["Estricto", "Strict"],
  changed: [
    "Umbral de prueba: sólo cambia lo que ves aquí. El calibrado es {value}.",
    "Trial threshold: it only changes what you see here. The calibrated one is {value}.",
  ],
  ok: ["Pieza buena", "Good part"],
  ng: ["Pieza defectuosa", "Bad part"],
  none: ["Sin veredicto", "No verdict"],
  noneWhy: ["Falta calibrar", "Calibrate first"],
  empty: ["Suelta una pieza para inspeccionarla", "Drop a part to inspect it"],
  busy: ["Inspeccionando…", "Inspecting…"],
  failed: ["No se pudo", "Failed"],
  score: ["Puntuación", "Score"],
  regions0: ["Ninguna zona sobre el umbral", "No region above the threshold"],
  regions1: ["1 zona", "1 region"],
  regionsN: ["{n} zonas", "{n} regions"],
  regionAt: ["en ({x}, {y})", "at ({x}, {y})"],
  total: ["{area} mm² en total", "{area} mm² in all"],
  truth: ["¿Qué es de verdad? (para calibrar)", "What is it really? (to calibrate)"],
  truthOk: ["Buena", "Good"],
  truthNg: ["Defectuosa", "Bad"],
  truthUnknown: ["No sé", "Unknown"],
  stageLabel: ["{name}: {verdict}, puntuación {score}", "{name}: {verdict}, score {score}"],
  stageEmpty: ["Todavía no hay ninguna pieza", "No part yet"],
  calTitle: ["Dónde acaba lo bueno", "Where good ends"],
  calLead: [
    "Piezas buenas que no se usaron para aprender y, si tienes, defectuosas. Mueve la línea para ver qué pasaría.",
    "Good parts that were not learned from and, if you have any, bad ones. Move the line to see what would happen.",
  ],
  dropCalOk: ["Suelta piezas buenas", "Drop good parts"],
  dropCalNg: ["Suelta piezas defectuosas", "Drop bad parts"],
  calCount: ["{n} puntuadas", "{n} scored"],
  calBusy: ["{n} puntuadas, faltan {left}", "{n} scored, {left} to go"],
  histTitle: ["Puntuaciones: buenas arriba, defectuosas abajo", "Scores: good above, bad below"],
  histLabel: ["{ok} piezas buenas y {ng} defectuosas por puntuación", "{ok} good and {ng} bad parts by score"],
  calEmpty: ["Aquí aparecerán las puntuaciones.", "The scores will appear here."],
  calLine: ["Línea del umbral", "Threshold line"],
  wouldReject: ["Buenas que rechazaría", "Good ones it would reject"],
  wouldMiss: ["Defectuosas que dejaría pasar", "Bad ones it would miss"],
  outOf: ["{n} de {all}", "{n} of {all}"],
  areaMin: ["Zona mínima (mm²)", "Smallest region (mm²)"],
  percentile: ["Percentil", "Percentile"],
  calGo: ["Calibrar", "Calibrate"],
  calDone: [
    "Calibrado: umbral {value}, con {ok} buenas y {ng} defectuosas.",
    "Calibrated: threshold {value}, from {ok} good and {ng} bad parts.",
  ],
  goInspect: ["Inspeccionar", "Inspect"],
  picture: ["Imagen", "Picture"],
  picOutlines: ["Contornos", "Outlines"],
  picOverlay: ["Superpuesta", "Overlay"],
  picHeat: ["Calor", "Heat"],
  picMask: ["Máscara", "Mask"],
  ownThreshold: ["Umbral propio", "Own threshold"],
  loaded: ["Cargado", "Loaded"],
  rnAbsent: ["Este servicio no tiene la API ResNet18.", "This service has no ResNet18 API."],
  polygons0: ["Sin contornos", "No outlines"],
  polygons1: ["1 contorno", "1 outline"],
  polygonsN: ["{n} contornos", "{n} outlines"],
  c_status: ["Estado", "State"],
  c_embedding_version: ["Método", "Method"],
  c_rows: ["Vectores", "Vectors"],
  c_threshold: ["Umbral base", "Base threshold"],
  c_img_size: ["Imagen", "Image"],
  c_knn_k: ["Vecinos", "Neighbours"],
  c_ignore_border_pct: ["Borde ignorado", "Ignored border"],
  c_roi_path: ["Máscara", "Mask"],
  st_absent: ["sin banco", "no bank"],
  st_idle: ["se cargará al primer uso", "loads at first use"],
  st_loading: ["cargando", "loading"],
  st_ready: ["listo", "ready"],
  st_failed: ["no arranca", "does not start"],
  keyTitle: ["Clave de API", "API key"],
  keyLead: [
    "Este servicio pide una clave. Se guarda sólo hasta cerrar la pestaña.",
    "This service asks for a key. It is kept only until the tab is closed.",
  ],
  key: ["Clave", "Key"],
  keyGo: ["Entrar", "Continue"],
  offline: [
    "No hay conexión con el servicio: comprueba que está en marcha y vuelve a intentarlo.",
    "There is no connection to the service: check that it is running and try again.",
  ],
  odd: [
    "El servicio ha contestado algo inesperado ({status}).",
    "The service answered something unexpected ({status}).",
  ],
  close: ["Cerrar", "Close"],
  notImages: ["Eso no son imágenes.", "Those are not images."],
  request: ["Petición {id}", "Request {id}"],
};

const kept = localStorage.getItem("language");
export let language = kept || (navigator.languages.find((tag) => /^(es|en)\b/i.test(tag)) || "es").slice(0, 2).toLowerCase();

export function t(key, values = {}) {
  const text = TEXTS[key]?.[language === "en" ? 1 : 0] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

export function counted(stem, n) {
  return t(stem + (n === 0 ? "0" : n === 1 ? "1" : "N"), { n });
}

export function number(value, digits = 3) {
  return new Intl.NumberFormat(language, { maximumFractionDigits: digits, minimumFractionDigits: Math.min(digits, 3) }).format(value);
}

export function brief(value) {
  return new Intl.NumberFormat(language, { maximumSignificantDigits: 3 }).format(value);
}

export function applyLanguage(next = language) {
  if (next !== language) localStorage.setItem("language", next);
  language = next;
  document.documentElement.lang = language;
  document.title = t("title");
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
  for (const node of document.querySelectorAll("[data-t-label]")) node.setAttribute("aria-label", t(node.dataset.tLabel));
}
