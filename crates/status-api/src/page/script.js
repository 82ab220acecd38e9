
"use strict";
// Everything that arrives is shown by textContent and nothing else: a pod named
// like markup stays text. The policy of the page enforces it.

const $ = (id) => document.getElementById(id);
const NONE = "–";

// ---- Words ----------------------------------------------------------------

const number = new Intl.NumberFormat("en");

function duration(seconds) {
  seconds = Math.max(0, seconds);
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${(Math.floor(seconds * 10) / 10).toFixed(1)} s`;
  return elapsed(seconds);
}

/** As `duration`, for what goes on and is shown once a second. */
function elapsed(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s % 3600 / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s % 86400 / 3600)} h`;
}

function memory(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
  return `${bytes >= 100 || Number.isInteger(bytes) ? Math.round(bytes) : bytes.toFixed(1)} ${units[unit]}`;
}

function cores(count) {
  return number.format(count >= 10 ? Math.round(count) : Math.round(count * 1000) / 1000);
}

const PHASES = { RUNNING: "Running", SCALED_DOWN: "Scaled down", STOPPING: "Stopping" };
const moment = (time) => new Date(time).toLocaleString();

// ---- State ----------------------------------------------------------------

/** Rows by key: { data, at, key, search, tr, cells }. `at` is when data was true. */
const rows = new Map();
let degraded = [];
/** What to add to this machine's clock to have the node's. */
let clock = 0;
let sort = { column: "name", descending: false };

const keyOf = (c) => `${c.namespace}/${c.pod}/${c.container}`;
const nodeNow = () => Date.now() + clock;

const failures = (c) => c.checkpoint_failures + c.restore_failures;
const age = (row, now) => row.data.since === null ? null : (now - Date.parse(row.data.since)) / 1000;
const scaledDown = (row, now) => row.data.scaled_down_seconds
  + (row.data.phase === "SCALED_DOWN" ? Math.max(0, now - row.at) / 1000 : 0);

// Text of each column, its value to sort by, and what to say on hovering.
const COLUMNS = [
  { id: "name", label: "Pod", css: "", value: (r) => r.key },
  { id: "container", label: "Container", css: "", text: (r) => r.data.container, value: (r) => r.data.container },
  { id: "phase", label: "Phase", css: "", value: (r) => r.data.phase },
  { id: "for", label: "For", hint: "How long it has been in this phase", css: "number", ticks: true, value: (r, now) => age(r, now),
    text: (r, now) => { const a = age(r, now); return a === null ? NONE : elapsed(a); },
    title: (r) => r.data.since === null ? "Since before the manager started" : `Since ${moment(r.data.since)}` },
  { id: "checkpoint", label: "Checkpoint", hint: "How long the last checkpoint took", css: "number", ...operation("last_checkpoint") },
  { id: "restore", label: "Restore", hint: "How long the last restore took", css: "number", ...operation("last_restore") },
  { id: "wake-ups", label: "Wake-ups", css: "number", value: (r) => r.data.wake_ups, text: (r) => number.format(r.data.wake_ups) },
  { id: "down", label: "Total down", hint: "Time scaled down since the manager started", css: "number", ticks: true, value: scaledDown,
    text: (r, now) => { const a = scaledDown(r, now); return a === 0 ? NONE : elapsed(a); } },
  { id: "gives-back", label: "Gives back", hint: "What the pod requests less while scaled down", css: "number", value: (r) => r.data.gives_back ? r.data.gives_back.cpu_cores + r.data.gives_back.memory_bytes / 2 ** 32 : null,
    text: (r) => r.data.gives_back ? given(r.data.gives_back) : NONE },
];

function operation(field) {
  return {
    value: (r) => r.data[field] ? r.data[field].seconds : null,
    text: (r) => r.data[field] ? duration(r.data[field].seconds) : NONE,
    title: (r) => r.data[field] ? `Ended ${moment(r.data[field].ended)}` : "",
  };
}

function given(g) {
  const parts = [];
  if (g.cpu_cores > 0) parts.push(`${cores(g.cpu_cores)} CPU`);
  if (g.memory_bytes > 0) parts.push(memory(g.memory_bytes));
  return parts.length ? parts.join(" · ") : NONE;
}

// ---- Rows -----------------------------------------------------------------

function put(data, at) {
  const key = keyOf(data);
  let row = rows.get(key);
  if (!row) {
    row = makeRow(key, data);
    rows.set(key, row);
    stale.order = true;
  }
  const before = row.data;
  row.data = data;
  row.at = at;
  const changed = before && before.phase !== data.phase;
  if (changed) flash(row);
  stale.rows.add(row);
  stale.order = true;
}

function makeRow(key, data) {
  const tr = element("tr", { role: "row" });
  const cells = new Map();
  for (const column of COLUMNS) {
    const td = element("td", { role: "cell", class: `${column.id} ${column.css}`, "data-label": column.label });
    if (column.id === "name") {
      const namespace = element("span", { class: "namespace" });
      const pod = element("span", { class: "pod" });
      namespace.textContent = data.namespace;
      const slash = element("span", { class: "slash" });
      slash.textContent = "/";
      const rest = element("span", { class: "rest" });
      rest.textContent = ` / ${data.container}`;
      namespace.append(slash, rest);
      pod.textContent = data.pod;
      td.title = `${data.namespace}/${data.pod}`;
      td.append(namespace, pod);
    } else if (column.id === "phase") {
      td.append(element("span", { class: "phase" }), element("span", { class: "failed" }));
    }
    cells.set(column.id, td);
    tr.append(td);
  }
  return { key, search: key.toLowerCase(), tr, cells, data: null, at: 0 };
}

function paintRow(row, now) {
  const { data, tr, cells } = row;
  if (tr.dataset.phase !== data.phase) tr.dataset.phase = data.phase;
  const [phase, failed] = cells.get("phase").children;
  setText(phase, PHASES[data.phase] || data.phase);
  const count = failures(data);
  setText(failed, count === 0 ? "" : `${number.format(count)} failed`);
  if (count > 0) failed.title = `${data.checkpoint_failures} checkpoints and ${data.restore_failures} restores failed`;
  for (const column of COLUMNS) {
    if (!column.text) continue;
    const cell = cells.get(column.id);
    const text = column.text(row, now);
    setText(cell, text);
    if (column.css === "number") cell.classList.toggle("none", text === NONE);
    if (column.title) cell.title = column.title(row);
  }
}

function tickRow(row, now) {
  for (const column of COLUMNS) {
    if (column.ticks) setText(row.cells.get(column.id), column.text(row, now));
  }
}

function flash(row) {
  row.tr.classList.remove("fresh");
  requestAnimationFrame(() => row.tr.classList.add("fresh"));
}

// ---- Painting, at most once a frame ---------------------------------------

const stale = { rows: new Set(), order: false, queued: false };

function repaint() {
  if (stale.queued) return;
  stale.queued = true;
  // A hidden page gets no frames, and must not pile up work either.
  if (document.hidden) setTimeout(paint, 250); else requestAnimationFrame(paint);
}

function paint() {
  stale.queued = false;
  const now = nodeNow();
  for (const row of stale.rows) paintRow(row, now);
  stale.rows.clear();
  if (stale.order) { stale.order = false; arrange(now); }
  paintTotals();
}

function arrange(now) {
  const words = $("filter").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const show = document.forms.tools.elements.show.value;
  const wanted = (row) => words.every((word) => row.search.includes(word))
    && (show === "all" || (show === "failures" ? failures(row.data) > 0 : row.data.phase === show));
  const column = COLUMNS.find((c) => c.id === sort.column);
  const sorted = [];
  for (const row of rows.values()) {
    if (wanted(row)) sorted.push([column.value(row, now), row]);
  }
  const sign = sort.descending ? -1 : 1;
  sorted.sort(([a, x], [b, y]) => {
    // What is not known comes last, whatever the direction.
    if (a === null || b === null) return (a === null) - (b === null) || order(x.key, y.key);
    return sign * order(a, b) || order(x.key, y.key);
  });
  // Only what moved is touched: focus, selection and scroll stay.
  const body = $("rows");
  let place = body.firstElementChild;
  for (const [, { tr }] of sorted) {
    if (tr === place) place = place.nextElementSibling; else body.insertBefore(tr, place);
  }
  while (place) { const next = place.nextElementSibling; place.remove(); place = next; }

  setText($("count"), sorted.length === rows.size ? "" : `${number.format(sorted.length)} of ${number.format(rows.size)}`);
  const empty = $("empty");
  empty.hidden = sorted.length > 0 || !loaded;
  setText(empty, rows.size === 0 ? "No zeropod containers on this node." : "No container matches.");
  $("table").hidden = sorted.length === 0;
}

const order = (a, b) => a < b ? -1 : a > b ? 1 : 0;

function paintTotals() {
  if (!loaded) return;
  const total = { running: 0, down: 0, wakes: 0, failed: 0, failing: 0, cpu: 0, memory: 0 };
  for (const { data } of rows.values()) {
    total.running += data.phase === "RUNNING";
    total.down += data.phase === "SCALED_DOWN";
    total.wakes += data.wake_ups;
    total.failed += failures(data);
    total.failing += failures(data) > 0;
    if (data.gives_back) {
      total.cpu += data.gives_back.cpu_cores;
      total.memory += data.gives_back.memory_bytes;
    }
  }
  setText($("total-containers"), number.format(rows.size));
  setText($("total-scaled-down"), number.format(total.down));
  $("total-bar").style.width = rows.size ? `${100 * total.down / rows.size}%` : "0";
  setText($("total-cpu"), total.cpu > 0 ? `${cores(total.cpu)} ${total.cpu === 1 ? "core" : "cores"}` : NONE);
  setText($("total-memory"), total.memory > 0 ? memory(total.memory) : NONE);
  setText($("show-all"), number.format(rows.size));
  setText($("show-running"), number.format(total.running));
  setText($("show-scaled-down"), number.format(total.down));
  setText($("show-failures"), number.format(total.failing));
  setText($("total-wake-ups"), number.format(total.wakes));
  setText($("total-failures"), number.format(total.failed));
  $("total-failures").classList.toggle("alarm", total.failed > 0);
}

/** Details shown of one kind of trouble: a node can have hundreds of each. */
const DETAILS = 3;

function paintDegraded() {
  const kinds = new Map();
  for (const trouble of degraded) {
    if (!kinds.has(trouble.name)) kinds.set(trouble.name, []);
    kinds.get(trouble.name).push(trouble);
  }
  const section = $("degraded");
  section.hidden = kinds.size === 0;
  section.replaceChildren(...[...kinds].map(([name, all]) => {
    const unready = all.some((trouble) => trouble.unready);
    const line = element("div", { class: unready ? "trouble unready" : "trouble" });
    const strong = element("strong", {});
    const times = all.length > 1 ? ` × ${number.format(all.length)}` : "";
    strong.textContent = `${unready ? "Not ready: " : ""}${name}${times}`;
    line.append(strong);
    const details = all.slice(0, DETAILS).map((trouble) => trouble.detail);
    if (all.length > DETAILS) details.push(`and ${number.format(all.length - DETAILS)} more`);
    for (const detail of details) {
      const text = element("span", {});
      text.textContent = detail;
      line.append(text);
    }
    return line;
  }));
}

// ---- The stream -----------------------------------------------------------

/** Beats come every ten seconds; after this silence the connection is dead. */
const SILENCE = 35000;
const RETRY = { first: 500, most: 15000 };

let loaded = false;
let source = null;
let attempts = 0;
let watchdog = 0;
let countdown = 0;

function connect() {
  clearInterval(countdown);
  if (attempts === 0) say("connecting", "Connecting"); else say("lost", "Connection lost, retrying");
  source = new EventSource("api/v1/stream");
  hear();
  source.onerror = lose;
  for (const [event, take] of Object.entries(MESSAGES)) {
    source.addEventListener(event, (message) => {
      hear();
      take(JSON.parse(message.data));
    });
  }
}

const MESSAGES = {
  snapshot(status) {
    attempts = 0;
    loaded = true;
    say("live", "Live");
    setClock(status.at);
    setText($("node"), status.node);
    document.title = status.node ? `${status.node} · zeropod` : "zeropod";
    setText($("version"), status.version);
    degraded = status.degraded;
    paintDegraded();
    const present = new Set(status.containers.map(keyOf));
    for (const key of rows.keys()) if (!present.has(key)) rows.delete(key);
    for (const container of status.containers) put(container, Date.parse(status.at));
    stale.order = true;
    repaint();
  },
  change({ at, container }) {
    setClock(at);
    put(container, Date.parse(at));
    repaint();
  },
  removed(container) {
    rows.delete(keyOf(container));
    stale.order = true;
    repaint();
  },
  degraded(list) {
    degraded = list;
    paintDegraded();
  },
  beat({ at }) { setClock(at); },
};

function setClock(at) { clock = Date.parse(at) - Date.now(); }

function hear() {
  clearTimeout(watchdog);
  watchdog = setTimeout(lose, SILENCE);
}

function lose() {
  clearTimeout(watchdog);
  clearInterval(countdown);
  if (source) source.close();
  source = null;
  const most = Math.min(RETRY.most, RETRY.first * 2 ** attempts);
  // Spread, so that the pages of a room do not come back all at once.
  const at = Date.now() + most * (0.5 + Math.random() / 2);
  attempts += 1;
  const wait = () => {
    const left = Math.ceil((at - Date.now()) / 1000);
    if (left <= 0) connect(); else say("lost", `Connection lost, retrying in ${left} s`);
  };
  wait();
  if (!source) countdown = setInterval(wait, 250);
}

function say(state, text) {
  const box = $("connection");
  if (box.dataset.state !== state) box.dataset.state = state;
  document.body.classList.toggle("lost", state === "lost");
  setText($("connection-text"), text);
}

// A laptop that wakes up should not wait for the watchdog or the backoff.
window.addEventListener("online", () => { if (!source) connect(); });
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  if (!source) connect();
  tick();
});

// ---- Controls -------------------------------------------------------------

for (const column of COLUMNS) {
  const th = element("th", { role: "columnheader", scope: "col", class: `${column.id} ${column.css}`, title: column.hint || "" });
  const button = element("button", { type: "button" });
  button.textContent = column.label;
  button.addEventListener("click", () => {
    const again = sort.column === column.id;
    // Names from a to z; of figures the large ones are of interest.
    sortBy(column.id, again ? !sort.descending : column.css === "number");
  });
  th.append(button);
  th.dataset.column = column.id;
  $("head").append(th);
  const option = element("option", { value: column.id });
  option.textContent = column.label;
  $("sort").append(option);
}

function sortBy(id, descending) {
  sort = { column: id, descending };
  for (const th of $("head").children) {
    if (th.dataset.column === id) th.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else th.removeAttribute("aria-sort");
  }
  $("sort").value = id;
  stale.order = true;
  repaint();
}

$("sort").addEventListener("change", (event) => {
  const column = COLUMNS.find((c) => c.id === event.target.value);
  sortBy(column.id, column.css === "number");
});
document.forms.tools.addEventListener("input", () => { stale.order = true; repaint(); });
document.forms.tools.addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLInputElement && event.target.type === "search";
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    $("filter").focus();
  } else if (event.key === "Escape" && typing) {
    $("filter").value = "";
    stale.order = true;
    repaint();
  }
});

// ---- Small things ---------------------------------------------------------

function element(name, attributes) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== "") made.setAttribute(key, value);
  return made;
}

function setText(where, text) {
  if (where.textContent !== text) where.textContent = text;
}

function tick() {
  if (document.hidden || !source) return;
  const now = nodeNow();
  for (const row of rows.values()) if (row.tr.isConnected) tickRow(row, now);
}

sortBy("name", false);
setInterval(tick, 1000);
connect();
