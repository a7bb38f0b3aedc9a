// The page of `labelwright review`: a grid of which only what is seen is in the document, answers that are sent one
// after the other and shown as saved when the server has them on the disk.
"use strict";

const $ = (id) => document.getElementById(id);
const HEIGHT = 176, LEAST_WIDTH = 120; // px of a tile with its gap
const PER_PAGE = 200, PICTURES = 4; // images told of at once; pictures on their way at once, so that answers never wait
const grid = $("grid"), sheet = $("sheet");
let state = null, order = null, view = "next", here = 0, anchor = 0, columns = 1;
let width = LEAST_WIDTH, items = new Map(), asked = new Set(), selected = new Set(), tiles = new Map(), pinned = [];
const queue = [];
let shown = null; // version of the classes that numbers on the page mean
let isSending = false, trouble = ""; // why the first of the queue is not saved

async function call(path, content) {
  const how = content === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content),
  };
  const answer = await fetch(path, { cache: "no-store", ...how });
  const found = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(found.error || answer.statusText), { status: answer.status });
  return found;
}

// ---- answers: one at a time, in order; what the server could not be told is told again ---------------------------

function tell(path, content, then) {
  queue.push({ path, content, key: crypto.randomUUID(), then });
  told();
  send();
}

async function send() {
  if (isSending) return;
  isSending = true;
  while (queue.length) {
    const { path, content, key, then } = queue[0];
    const said = typeof content === "function" ? content() : content; // what undo takes back is known when it is sent
    if (!said) { queue.shift(); continue; }
    if (typeof content === "function") queue[0].content = said;
    try {
      const found = await call(path, { ...said, key });
      queue.shift();
      trouble = "";
      if (found.undoable) Object.assign(state, found);
      if (then) then(found);
    } catch (error) {
      if ([400, 413, 415].includes(error.status)) { // refused for good
        queue.shift();
        trouble = "";
        await load();
        notice(error.message);
      } else {
        trouble = error.message;
        told();
        await new Promise((resolve) => setTimeout(resolve, 1500));
      }
    }
  }
  isSending = false;
  told();
}

function told() {
  const words = $("saved");
  words.className = trouble ? "bad" : "";
  if (trouble) words.textContent = `${queue.length} not saved yet: ${trouble}. Is labelwright review still running?`;
  else if (queue.length) words.textContent = `saving ${queue.length} …`;
  else words.textContent = `${state.n_answered.toLocaleString("en")} of ${state.n.toLocaleString("en")} images answered, all saved`;
  $("undo").disabled = !state.undoable.length;
  $("apply").disabled = !state.n_answered || state.work.state === "running";
}

function notice(words) {
  $("notice").textContent = words;
  $("notice").hidden = !words;
}

addEventListener("beforeunload", (event) => { if (queue.length) event.preventDefault(); });

function chosen() {
  return selected.size ? [...selected].sort((a, b) => a - b) : order && here < order.n ? [here] : [];
}

function answer(kind, label) {
  const places = chosen();
  if (!places.length) return;
  const missing = places.filter((place) => !items.has(place));
  if (missing.length) { // read what they are called first; pages that are on their way already come in a moment
    const of = order;
    fetchPages(missing).then((isRead) => { if (isRead && of === order) setTimeout(() => answer(kind, label), 50); });
    return;
  }
  const rows = places.map((place) => items.get(place).row);
  const seen = places.map((place) => items.get(place)).map((item) => (item.answer === null ? item.label : item.answer));
  places.forEach((place, i) => {
    items.get(place).answer = kind === "assign" ? label : kind === "stranger" ? -1 : seen[i];
  });
  working(); // a notice about the answer before is over
  if (label !== undefined) pin(label);
  tell("api/answer", { kind, rows, seen, label: label === undefined ? null : label, version: order.version });
  const last = places[places.length - 1];
  selected.clear();
  go(Math.min(last + 1, order.n - 1));
}

function undo() {
  const last = () => (state.undoable.length ? { number: state.undoable[state.undoable.length - 1] } : null);
  tell("api/undo", last, (found) => {
    if (!found.items) { watch(); return; } // a change of classes
    const back = new Map(found.items.map((item) => [item.row, item]));
    let first = null;
    for (const [place, item] of items) {
      if (back.has(item.row)) { items.set(place, back.get(item.row)); first = first === null ? place : Math.min(first, place); }
    }
    if (first !== null) go(first); else show();
  });
}

// ---- orders and pages ------------------------------------------------------------------------------------------------

async function load() {
  const only = $("only"), was = only.selectedOptions[0] && only.selectedOptions[0].dataset.name;
  try {
    state = await call("api/state");
  } catch (error) {
    $("saved").textContent = error.message;
    return;
  }
  if (shown !== state.version) { // classes have other numbers now
    order = null;
    pinned = [];
    shown = state.version;
  }
  $("title").textContent = `Review of ${state.run}`;
  document.title = `Review of ${state.run}`;
  $("edit").hidden = !state.classes.some((each) => each.discovered);
  if (!pinned.length) {
    const byNumber = state.classes.map((_, c) => c);
    pinned = byNumber.length <= 9 ? byNumber
      : byNumber.sort((a, b) => state.classes[b].n - state.classes[a].n).slice(0, 9);
  }
  const views = $("views");
  views.replaceChildren(...state.views.map((each) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = each.title;
    button.title = each.missing || each.says;
    button.disabled = Boolean(each.missing);
    button.setAttribute("aria-pressed", String(each.key === view));
    button.addEventListener("click", () => { view = each.key; begin(); });
    return button;
  }));
  only.replaceChildren(new Option("all", ""), ...state.classes.map((each, c) => {
    const option = new Option(`${each.name} (${each.n})`, c);
    option.dataset.name = each.name;
    return option;
  }));
  const at = state.classes.findIndex((each) => each.name === was);
  only.value = at < 0 ? "" : at;
  choices();
  working();
  told();
  if (!order) await begin();
}

async function begin() {
  const query = new URLSearchParams({ view, label: $("only").value, open: $("open").checked ? "1" : "0" });
  const found = await call(`api/order?${query}`);
  if (found.version !== state.version) { await load(); return; } // which begins anew
  order = found;
  items = new Map();
  asked = new Set();
  selected.clear();
  for (const tile of tiles.values()) tile.remove();
  tiles = new Map();
  state.views.forEach((each, i) => $("views").children[i].setAttribute("aria-pressed", String(each.key === view)));
  const about = state.views.find((each) => each.key === view);
  $("says").textContent = `${order.n.toLocaleString("en")} images: ${about.says}` +
    (order.coming ? " (features are being read; until then by doubt alone)" : "");
  grid.scrollTop = 0;
  here = anchor = 0;
  layout();
  if (order.coming) setTimeout(better, 500);
}

async function better() { // the suggested order is ready: take it, unless somebody has begun on the one before
  if (view !== "next" || !order || !order.coming) return;
  const query = new URLSearchParams({ view, label: $("only").value, open: $("open").checked ? "1" : "0" });
  const found = await call(`api/order?${query}`).catch(() => null);
  if (!found) return;
  if (found.coming) { setTimeout(better, 500); return; }
  if (state.n_answered || selected.size || here) { // somebody has begun: from the next time on
    $("says").textContent = "The order of what teaches most is ready: Suggested again shows it.";
    await load();
    return;
  }
  order = null;
  await load();
}

async function fetchPages(places) {
  const of = order;
  const pages = [...new Set(places.map((place) => Math.floor(place / PER_PAGE)))].filter((page) => !asked.has(page));
  for (const page of pages) asked.add(page);
  for (const page of pages) { // one after the other: answers share the way
    try {
      const found = await call(`api/page?order=${of.order}&first=${page * PER_PAGE}&n=${PER_PAGE}`);
      if (of !== order) return false;
      found.items.forEach((item, i) => items.set(page * PER_PAGE + i, item));
      if (pages.length < 9) show();
    } catch (error) {
      asked.delete(page);
      notice(error.message);
      return false;
    }
  }
  show();
  return true;
}

// ---- the grid --------------------------------------------------------------------------------------------------------

function layout() {
  columns = Math.max(1, Math.floor(grid.clientWidth / LEAST_WIDTH));
  if (grid.clientWidth > 700) columns = Math.floor(grid.clientWidth / (LEAST_WIDTH + 16));
  width = Math.floor(grid.clientWidth / columns);
  sheet.style.height = `${Math.ceil(order.n / columns) * HEIGHT}px`;
  for (const tile of tiles.values()) tile.remove();
  tiles = new Map();
  show();
}

function show() {
  if (!order) return;
  const first = Math.max(0, Math.floor(grid.scrollTop / HEIGHT) - 2) * columns;
  const last = Math.min(order.n, (Math.ceil((grid.scrollTop + grid.clientHeight) / HEIGHT) + 2) * columns);
  for (const [place, tile] of tiles) {
    if (place < first || place >= last) { tile.remove(); tiles.delete(place); }
  }
  const wanted = [];
  for (let place = first; place < last; place++) {
    if (!items.has(place)) wanted.push(place);
    if (!tiles.has(place)) tiles.set(place, sheet.appendChild(tileAt(place)));
    paint(place);
  }
  if (wanted.some((place) => !asked.has(Math.floor(place / PER_PAGE)))) fetchPages(wanted);
  grid.setAttribute("aria-activedescendant", `tile-${here}`);
  about();
}

function tileAt(place) {
  const tile = document.createElement("div");
  tile.id = `tile-${place}`;
  tile.setAttribute("role", "option");
  tile.setAttribute("aria-setsize", order.n);
  tile.setAttribute("aria-posinset", place + 1);
  tile.style.left = `${(place % columns) * width + 2}px`;
  tile.style.width = `${width - 4}px`;
  tile.style.top = `${Math.floor(place / columns) * HEIGHT + 2}px`;
  tile.addEventListener("click", (event) => {
    if (event.shiftKey) reach(place);
    else if (event.ctrlKey || event.metaKey) { toggle(place); anchor = place; }
    else { selected.clear(); anchor = place; }
    go(place, true);
  });
  tile.addEventListener("dblclick", () => { go(place); large(); });
  return tile;
}

function nameOf(c) { return c < 0 ? "no class" : state.classes[c].name; }

function wordsOf(item) {
  if (item.answer !== null) {
    if (item.answer < 0) return ["no class", "answered"];
    return [nameOf(item.answer), item.answer === item.label ? "confirmed" : `was ${nameOf(item.label)}`];
  }
  const chance = `${Math.round(100 * item.trust)}%`;
  return [nameOf(item.label), item.given ? `given, ${chance}` : `${chance}, or ${nameOf(item.rather)}`];
}

function paint(place) {
  const tile = tiles.get(place), item = items.get(place);
  tile.className = "tile" + (place === here ? " here" : "") +
    (item && item.answer !== null ? (item.answer < 0 ? " out" : " done") : "");
  tile.setAttribute("aria-selected", String(selected.has(place)));
  if (!item) return;
  const [name, more] = wordsOf(item);
  tile.setAttribute("aria-label", `${name}, ${more}, ${item.id}`);
  if (!tile.firstChild) {
    const picture = document.createElement("img");
    picture.alt = "";
    picture.decoding = "async";
    const words = document.createElement("span");
    words.className = "words";
    words.append(document.createElement("b"), document.createElement("br"), document.createElement("span"));
    tile.append(picture, words);
    waiting.push([picture, item]);
    fetchPictures();
  }
  const words = tile.lastChild;
  const shown = item.answer === null || item.answer < 0 ? name : `✓ ${name}`;
  if (words.firstChild.textContent !== shown) words.firstChild.textContent = shown;
  if (words.lastChild.textContent !== more) words.lastChild.textContent = more;
}

const waiting = [];
let nUnderWay = 0;
function fetchPictures() {
  while (nUnderWay < PICTURES && waiting.length) {
    const [picture, item] = waiting.shift();
    if (!picture.isConnected) continue; // scrolled out of sight
    if (state.no_pictures) { nameInstead(picture, item); continue; }
    nUnderWay++;
    picture.addEventListener("load", () => { nUnderWay--; fetchPictures(); });
    picture.addEventListener("error", async () => {
      nameInstead(picture, item);
      if (!queue.length) state.no_pictures = (await call("api/state").catch(() => state)).no_pictures;
      nUnderWay--;
      fetchPictures();
    });
    picture.src = `small/${item.row}`;
  }
}

function nameInstead(picture, item) {
  const none = document.createElement("span");
  none.className = "none";
  none.textContent = item.id;
  picture.replaceWith(none);
}

function about() {
  const item = items.get(here);
  const many = selected.size ? `${selected.size.toLocaleString("en")} selected. ` : "";
  $("about").textContent = item ? `${many}${item.id}: ${wordsOf(item).join(", ")}` : many || (order && !order.n ? "No image here." : "");
  if ($("large").open) enlarge();
}

function go(place, keepsAnchor) {
  if (!order || !order.n) { show(); return; }
  here = Math.max(0, Math.min(order.n - 1, place));
  if (!keepsAnchor) anchor = here;
  const top = Math.floor(here / columns) * HEIGHT;
  if (top < grid.scrollTop) grid.scrollTop = top;
  else if (top + HEIGHT > grid.scrollTop + grid.clientHeight) grid.scrollTop = top + HEIGHT - grid.clientHeight;
  show();
}

function toggle(place) {
  if (!selected.delete(place)) selected.add(place);
}

function reach(place) {
  selected.clear();
  for (let i = Math.min(anchor, place); i <= Math.max(anchor, place); i++) selected.add(i);
}

// ---- classes ---------------------------------------------------------------------------------------------------------

function choices() {
  $("choices").replaceChildren(...pinned.map((c, i) => {
    const button = document.createElement("button"), key = document.createElement("kbd");
    button.type = "button";
    key.textContent = i + 1;
    button.append(key, state.classes[c].name);
    button.title = state.classes[c].name;
    button.addEventListener("click", () => answer("assign", c));
    return button;
  }));
}

let uses = 0;
const lastUse = new Map();
function pin(c) { // a class that was looked up takes the number that was not used for the longest time
  lastUse.set(c, ++uses);
  if (pinned.includes(c)) return;
  let oldest = 0;
  pinned.forEach((each, i) => { if ((lastUse.get(each) || 0) < (lastUse.get(pinned[oldest]) || 0)) oldest = i; });
  if (pinned.length < 9) pinned.push(c); else pinned[oldest] = c;
  choices();
}

let fits = [], best = 0;
function choose() {
  if (!chosen().length) return;
  $("typed").value = "";
  find();
  $("chooser").showModal();
  $("typed").focus();
}

function find() {
  const typed = $("typed").value.trim().toLowerCase();
  const item = items.get(here);
  const rank = (name) => (name === typed ? 0 : name.startsWith(typed) ? 1 : 2);
  fits = state.classes.map((each, c) => [each.name.toLowerCase(), c]).filter(([name]) => name.includes(typed));
  fits.sort((a, b) => rank(a[0]) - rank(b[0]) || (typed === "" && item ? (b[1] === item.rather) - (a[1] === item.rather) : 0) || a[1] - b[1]);
  fits = fits.slice(0, 50).map(([, c]) => c);
  best = 0;
  mark();
}

function mark() {
  $("found").replaceChildren(...fits.map((c, i) => {
    const line = document.createElement("li");
    line.id = `fit-${i}`;
    line.setAttribute("role", "option");
    line.setAttribute("aria-selected", String(i === best));
    line.textContent = state.classes[c].name;
    line.addEventListener("click", () => { best = i; take(); });
    return line;
  }));
  $("typed").setAttribute("aria-activedescendant", fits.length ? `fit-${best}` : "");
  const line = $(`fit-${best}`);
  if (line) line.scrollIntoView({ block: "nearest" });
}

function take() {
  if (!fits.length) return;
  $("chooser").close();
  answer("assign", fits[best]);
}

function discovered() {
  const others = state.classes.filter((each) => each.discovered);
  if (!others.length) return;
  $("discovered").replaceChildren(...others.map((each) => {
    const form = document.createElement("form"), name = document.createElement("input"), into = document.createElement("select");
    const label = document.createElement("span"), rename = document.createElement("button"), join = document.createElement("button");
    label.textContent = `${each.name}, ${each.n} images`;
    name.type = "text";
    name.setAttribute("aria-label", `New name of ${each.name}`);
    into.setAttribute("aria-label", `Class that ${each.name} joins`);
    into.append(new Option("…", ""), ...state.classes.filter((other) => other !== each).map((other) => new Option(other.name, other.name)));
    rename.textContent = "Name";
    join.type = "button";
    join.textContent = "Join";
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (name.value.trim()) reclass("rename", [each.name, name.value.trim()]);
    });
    join.addEventListener("click", () => { if (into.value) reclass("merge", [into.value, each.name]); });
    form.append(label, name, rename, into, join);
    return form;
  }));
  $("classes").showModal();
}

function reclass(action, names) {
  $("classes").close();
  tell("api/classes", { action, names }, watch);
}

// ---- what takes longer -----------------------------------------------------------------------------------------------

function working() {
  const work = state.work;
  $("notice").classList.toggle("good", work.state === "done");
  if (work.state === "running") notice(work.name === "apply" ? "Learning from your answers …" : "Changing the classes …");
  else if (work.state === "failed") notice(`That did not work: ${work.says}`);
  else notice(work.state === "done" ? work.says : state.no_pictures ? `No pictures: ${state.no_pictures}` : "");
}

async function watch() {
  do {
    await new Promise((resolve) => setTimeout(resolve, 400));
    state = await call("api/state").catch(() => state);
    working();
    told();
  } while (state.work.state === "running");
  if (state.work.name !== "apply") { order = null; pinned = []; await load(); }
}

// ---- keys and buttons ------------------------------------------------------------------------------------------------

function enlarge() {
  const item = items.get(here);
  if (!item) return;
  const picture = $("large-image");
  if (picture.dataset.row !== String(item.row)) {
    picture.dataset.row = item.row;
    picture.src = `large/${item.row}`;
  }
  picture.alt = `${wordsOf(item)[0]}, ${item.id}`;
  $("large-title").textContent = `${item.id}: ${wordsOf(item).join(", ")}`;
}

function large() {
  if (!items.has(here)) return;
  enlarge();
  $("large").showModal();
}

function turn(by) {
  const usable = state.views.filter((each) => !each.missing);
  const at = usable.findIndex((each) => each.key === view);
  view = usable[(at + by + usable.length) % usable.length].key;
  begin();
}

const perScreen = () => Math.max(1, Math.floor(grid.clientHeight / HEIGHT)) * columns;
const MOVES = {
  ArrowLeft: () => -1, ArrowRight: () => 1, ArrowUp: () => -columns, ArrowDown: () => columns,
  PageUp: () => -perScreen(), PageDown: perScreen, Home: () => -here, End: () => order.n - 1 - here,
};
const KEYS = {
  Enter: () => answer("confirm"), x: () => answer("stranger"), u: undo, v: () => ($("large").open ? $("large").close() : large()),
  "/": choose, c: choose, "?": () => $("keys").showModal(), m: discovered, "[": () => turn(-1), "]": () => turn(1),
  " ": () => { toggle(here); anchor = here; show(); }, Escape: () => { selected.clear(); show(); },
};

document.addEventListener("keydown", (event) => {
  if (!order || ["INPUT", "SELECT"].includes(event.target.tagName) || event.altKey) return;
  const dialog = document.querySelector("dialog[open]");
  if (dialog && dialog.id !== "large") return;
  if (event.target.tagName === "BUTTON" && (event.key === "Enter" || event.key === " ")) return;
  if ((event.ctrlKey || event.metaKey) && event.key === "a") {
    for (let place = 0; place < order.n; place++) selected.add(place);
    show();
  } else if (event.ctrlKey || event.metaKey) return;
  else if (MOVES[event.key]) {
    const place = Math.max(0, Math.min(order.n - 1, here + MOVES[event.key]()));
    if (event.shiftKey) reach(place);
    go(place, event.shiftKey);
  } else if (dialog && event.key === "Escape") return;
  else if (KEYS[event.key]) KEYS[event.key]();
  else if (/^[1-9]$/.test(event.key) && pinned[event.key - 1] !== undefined) answer("assign", pinned[event.key - 1]);
  else return;
  event.preventDefault();
});

$("typed").addEventListener("input", find);
$("typed").addEventListener("keydown", (event) => {
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (by && fits.length) { best = (best + by + fits.length) % fits.length; mark(); }
  else if (event.key === "Enter") take();
  else return;
  event.preventDefault();
});
for (const button of document.querySelectorAll("[data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
for (const dialog of document.querySelectorAll("dialog")) dialog.addEventListener("close", () => grid.focus());
for (const [id, act] of Object.entries({
  undo, edit: discovered, help: () => $("keys").showModal(), confirm: () => answer("confirm"),
  stranger: () => answer("stranger"), choose, look: large, apply: () => tell("api/apply", {}, watch),
})) $(id).addEventListener("click", act);
addEventListener("click", (event) => { // a mouse leaves the keys with the images
  if (event.detail && event.target.closest("footer, header, nav button") && !document.querySelector("dialog[open]")) grid.focus();
});
$("only").addEventListener("change", begin);
$("open").addEventListener("change", begin);
let isDue = false;
grid.addEventListener("scroll", () => {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => { isDue = false; show(); });
});
addEventListener("resize", () => { if (order) { layout(); go(here, true); } });
load().then(() => grid.focus());
