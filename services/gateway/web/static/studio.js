// The studio: paint a label map, pick crops, see the image.
import { ask, explain, list } from "./api.js";
import { Cutting } from "./cutting.js";
import { Gallery } from "./gallery.js";
import { LabelMap, draw, shares } from "./label_map.js";
import { Painter } from "./painter.js";
import { base64, indexedPng } from "./png.js";
import { Patches, SlideView, readAtlas } from "./slide_crops.js";

const at = (id) => document.getElementById(id);
const MOST_RESULTS = 24;
const SAMPLING = ["steps", "guidance_map", "guidance_crops", "staining"];
const TOOLS = { b: "brush", p: "polygon", f: "fill", e: "eraser" };

const models = at("models") ? JSON.parse(at("models").textContent) : [];
const form = at("sampling");
const crops = new Map(); // class index → { source, address, title, square }: source as the API takes it
let model = null;
let colors = [];
let map = null;
let painter = null;
let gallery = null;
let lost = ""; // the region set that is not there any more
let slides = []; // records of those that are ingested
let view = null;
let patches = null;
let from = "regions"; // where crops are picked
let cutting = null;
let label = 0; // that is painted, and that crops are picked for
let results = [];
let shown = null;
let running = null; // the AbortController of what is being made

const problem = (error) => { at("problem").textContent = error ? explain(error) : ""; };
const guarded = (work) => async (...given) => {
  problem(null);
  try {
    return await work(...given);
  } catch (error) {
    if (error.name !== "AbortError") problem(error);
  }
};

// The model, its classes, and the draft.

function open() {
  const next = models.find((item) => `${item.model}/${item.version}` === at("model").value);
  const alike = model && next.size === model.size && JSON.stringify(next.classes) === JSON.stringify(model.classes);
  model = next;
  colors = model.classes.map((item) => item.color);
  at("about").textContent = `${model.size} × ${model.size} px at ${model.mpp} µm per pixel`;
  for (const name of SAMPLING) {
    form.elements[name].placeholder = model.sampling[name];
    form.elements[name].disabled = model.student && name !== "staining"; // it learnt one way
  }
  if (!alike) {
    crops.clear();
    map = restored() ?? new LabelMap(model.size);
    label = Math.min(1, model.classes.length - 1);
    widen(2 * Math.round(model.size / 20) + 1);
    showClasses();
  }
  gallery.close();
  painter.show(map, colors);
  choose(label);
  changed();
  openSet(model.regions);
}

const draft = () => `studio ${model.model}/${model.version}`;

function keep() {
  const sources = [...crops].filter(([, crop]) => crop.source.region);
  const letters = Array.from(map.data, (index) => String.fromCharCode(index));
  sessionStorage.setItem(draft(), JSON.stringify({ labels: btoa(letters.join("")), crops: sources }));
}

function restored() {
  const kept = JSON.parse(sessionStorage.getItem(draft()));
  if (!kept) return null;
  const data = Uint8Array.from(atob(kept.labels), (letter) => letter.charCodeAt(0));
  if (data.length !== model.size ** 2 || data.some((index) => index >= model.classes.length)) return null;
  for (const [index, crop] of kept.crops) crops.set(index, crop);
  return new LabelMap(model.size, data);
}

function changed() {
  const parts = shares(map.data, model.classes.length);
  for (const row of at("classes").children) {
    row.querySelector("output").value = `${(100 * parts[row.dataset.label]).toFixed(0)} %`;
  }
  at("undo").disabled = !map.past.length;
  at("redo").disabled = !map.future.length;
  at("hint").hidden = map.data.some((index) => index);
  if (!shown) over(map.data);
  like(parts);
  keep();
}

async function save(name, size, data, own) {
  const address = URL.createObjectURL(await indexedPng(size, data, own));
  Object.assign(document.createElement("a"), { href: address, download: `${name}.mask.png` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000); // when it is long written
}

// The form of a dataset, filled: as much of each tissue, sampled alike.
function like(parts) {
  const tissue = model.classes.slice(model.first);
  const total = tissue.reduce((sum, item) => sum + parts[item.index], 0);
  const query = new URLSearchParams({ model: `${model.model}/${model.version}`, seed: form.elements.seed.value });
  for (const name of SAMPLING) if (form.elements[name].value) query.set(name, form.elements[name].value);
  if (total && map.data.some((index) => index)) {
    const wanted = tissue.map((item) => [item.name, Math.floor((1e4 * parts[item.index]) / total) / 1e4]);
    query.set("proportions", JSON.stringify(Object.fromEntries(wanted)));
  }
  at("dataset").href = `/datasets/new?${query}`;
}

function showClasses() {
  at("classes").replaceChildren(...model.classes.map((item) => {
    const row = document.createElement("div");
    row.dataset.label = item.index;
    const name = document.createElement("label");
    const radio = Object.assign(document.createElement("input"), { type: "radio", name: "class", value: item.index });
    radio.addEventListener("change", () => choose(item.index));
    const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
    swatch.style.background = `rgb(${item.color})`;
    const text = Object.assign(document.createElement("span"), { className: "name", textContent: item.name });
    name.append(radio, swatch, text, document.createElement("output"));
    row.append(name);
    if (item.index >= model.first) {
      const drop = Object.assign(document.createElement("button"), { type: "button", className: "chosen", hidden: true });
      drop.setAttribute("aria-label", `Drop the crop of ${item.name}`);
      drop.append(new Image());
      drop.addEventListener("click", () => { crops.delete(item.index); showCrops(); });
      row.append(drop);
    }
    return row;
  }));
  showCrops();
}

function showCrops() {
  for (const row of at("classes").children) {
    const crop = crops.get(Number(row.dataset.label));
    const button = row.querySelector(".chosen");
    if (!button) continue;
    button.hidden = !crop;
    if (crop) Object.assign(button.firstChild, { src: crop.address, alt: "" });
    button.title = crop ? `${crop.title}; click to drop it` : "";
  }
  markCrop();
  keep();
}

function markCrop() {
  const crop = crops.get(label);
  gallery.mark(crop?.source.region);
  view.mark(crop?.square);
  patches.mark(crop?.square);
}

function choose(index) {
  if (!model.classes[index]) return;
  label = index;
  painter.label = index;
  at("classes").children[index].querySelector("input").checked = true;
  showPicking();
}

// Crops.

const note = (text) => { at("picking-note").textContent = text; };

const showPicking = guarded(async () => {
  const tissue = label >= model.first;
  at("of").textContent = model.classes[label].name;
  at("open").disabled = !tissue;
  at("picking").hidden = !tissue;
  for (const part of document.querySelectorAll("[data-source]")) part.hidden = part.dataset.source !== from;
  for (const button of document.querySelectorAll("[data-from]")) {
    button.setAttribute("aria-pressed", String(button.dataset.from === from));
  }
  note(tissue ? "" : `${model.classes[label].name} is no tissue: it takes no crop.`);
  if (tissue) await { regions: showGallery, slide: showSlide, atlas: showAtlas }[from]();
});

const openSet = guarded(async (name) => {
  if (!at("sets").length) at("sets").replaceChildren(...(await list("/v1/regions")).map((item) => new Option(item)));
  at("sets").value = name;
  lost = at("sets").value === name ? "" : name;
  if (!lost) await gallery.open(name, model);
  await showPicking();
});

async function showGallery(more = false) {
  at("more").hidden = true;
  if (lost) note(`The region set ${lost}, which the model learnt from, is not here any more.`);
  if (!gallery.record) return;
  const asked = label;
  const rest = await gallery.show(label, more);
  if (from !== "regions") return;
  if (asked !== label) return showPicking(); // the tiles may be of the class before
  at("more").hidden = !rest;
  note(at("gallery").children.length ? "" : "No region of this set holds it.");
  markCrop();
}

async function showSlide() {
  const asked = label;
  if (!at("slides").length) {
    slides = (await list("/v1/slides")).map((item) => item.record).filter(Boolean);
    at("slides").replaceChildren(...slides.map((item) => new Option(item.slide)));
  }
  if (from !== "slide" || asked !== label) return; // what was chosen meanwhile is shown already
  const record = slides.find((item) => item.slide === at("slides").value);
  note(record ? "Click the slide; or move it with the arrows, and press Enter." : "No slide has been ingested yet.");
  at("view").parentElement.hidden = !record;
  if (record) view.open(record, model);
  markCrop();
}

async function showAtlas() {
  const asked = label;
  if (!at("runs").length) at("runs").replaceChildren(...(await list("/v1/clusters")).map((item) => new Option(item)));
  const run = at("runs").value;
  const opened = run && run !== patches.run ? await readAtlas(run) : null;
  if (from !== "atlas" || asked !== label || run !== at("runs").value) return;
  if (!run) return note("No clustering has found tissue types yet.");
  if (run !== patches.run) { // else it was opened meanwhile, and a type may have been chosen
    Object.assign(patches, opened);
    at("types").replaceChildren(...patches.types.map((item) => new Option(item.type.name, item.label)));
  }
  note("Choose a patch: these are the nearest to the type’s centre, of one slide after the other.");
  const alike = patches.types.find((item) => item.type.name === model.classes[label].name);
  if (alike) at("types").value = alike.label;
  await showType();
}

const showType = guarded(async () => {
  await patches.show(at("types").value, model);
  markCrop();
});

async function cutOut(square) {
  const [own, index] = [model, label];
  try {
    const answer = await ask("GET", square.address);
    const png = await base64(await answer.blob());
    if (own !== model) return;
    const title = `Cut from slide ${square.slide} at ${square.x}, ${square.y}`;
    crops.set(index, { source: { png }, address: square.address, title, square });
    showCrops();
    note(`${title}: ${square.side} × ${square.side} px at the model’s ${model.mpp} µm per pixel.`);
  } catch (error) {
    note(explain(error)); // here, as the page's own place for problems may be scrolled away
  }
}

function cropOf(row) {
  return { source: { regions: gallery.record.name, region: row.key }, address: gallery.address(row), title: `Cut from region ${row.key}` };
}

const pick = guarded(async () => {
  for (const item of model.classes.slice(model.first)) {
    const rows = await gallery.holding(item.index, 12);
    const most = Math.max(...rows.map((row) => gallery.share(row, item.index)));
    const rich = rows.filter((row) => gallery.share(row, item.index) >= most / 2);
    if (rich.length) crops.set(item.index, cropOf(rich[Math.floor(Math.random() * rich.length)]));
  }
  showCrops();
});

// Images.

async function make(body, signal, jobs) {
  let answer = await ask("POST", "/v1/images", body, { signal, headers: { Prefer: "wait=1" } });
  while (answer.status === 202) {
    const place = answer.headers.get("Location");
    jobs.add(place.split("/").pop());
    answer = await ask("GET", place, undefined, { signal, headers: { Prefer: "wait=20" } });
  }
  return answer.blob();
}

async function request() {
  const present = new Set(map.data);
  const body = {
    model: model.model,
    version: model.version,
    labels: await base64(await indexedPng(map.size, map.data, colors)),
    crops: [...crops].filter(([index]) => present.has(index))
      .map(([index, crop]) => ({ tissue: model.classes[index].name, ...crop.source })),
  };
  for (const name of SAMPLING) if (form.elements[name].value) body[name] = Number(form.elements[name].value);
  return body;
}

const generate = guarded(async () => {
  if (running || !form.reportValidity()) return;
  const control = new AbortController();
  const jobs = new Set();
  const started = performance.now();
  const seed = Number(form.elements.seed.value);
  const count = Number(form.elements.count.value);
  const tell = () => { at("doing").textContent = `Making … ${Math.round((performance.now() - started) / 1000)} s`; };
  running = control;
  busy(true);
  tell();
  const clock = setInterval(tell, 1000);
  try {
    const body = await request();
    const made = { data: map.data.slice(), size: map.size, colors, model: model.model };
    const before = at("results").firstChild; // newest first, and variations in their order
    const all = Array.from({ length: count }, (_, number) => make({ ...body, seed: seed + number }, control.signal, jobs));
    Promise.all(all).catch(() => {}); // said below, of the first that fails
    for (const [number, picture] of all.entries()) {
      add({ ...made, seed: seed + number, address: URL.createObjectURL(await picture) }, before);
      if (!number) look(results.at(-1));
    }
    at("doing").textContent = `Made in ${((performance.now() - started) / 1000).toFixed(1)} s`;
  } catch (error) {
    control.abort();
    for (const job of jobs) ask("POST", `/v1/jobs/${job}/cancel`).catch(() => {}); // it may have ended
    at("doing").textContent = error.name === "AbortError" ? "Stopped" : "";
    throw error;
  } finally {
    clearInterval(clock);
    running = null;
    busy(false);
  }
});

function busy(is) {
  at("generate").disabled = is;
  at("stop").hidden = !is;
}

function add(result, before) {
  results.push(result);
  for (const old of results.splice(0, results.length - MOST_RESULTS)) {
    URL.revokeObjectURL(old.address);
    old.tile.remove();
  }
  result.tile = document.createElement("li");
  const button = Object.assign(document.createElement("button"), { type: "button", className: "tile" });
  button.append(Object.assign(new Image(), { src: result.address, alt: `Image of seed ${result.seed}` }));
  button.addEventListener("click", () => look(result));
  result.tile.append(button, Object.assign(document.createElement("small"), { textContent: result.seed }));
  at("results").insertBefore(result.tile, before);
}

function look(result) {
  shown = result;
  at("image").src = result.address;
  at("image").alt = `Synthetic image of seed ${result.seed}`;
  at("image").hidden = false;
  at("none").hidden = true;
  over(result.data, result.size, result.colors);
  at("save-image").hidden = at("save-its-map").hidden = false;
  at("save-image").href = result.address;
  at("save-image").download = `${result.model}-${result.seed}.png`;
  for (const each of results) each.tile.firstChild.setAttribute("aria-pressed", String(each === result));
}

function over(data, size = map.size, own = colors) {
  draw(at("over"), size, data, own);
  at("over").style.opacity = at("overlay").value;
}

// Tools and keys.

function take(tool) {
  painter.take(tool);
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
  }
}

function widen(width) {
  at("size").max = 2 * Math.floor(model.size / 4) + 1;
  at("size").value = width;
  painter.width = Number(at("size").value);
  at("size-px").value = `${painter.width} px`;
}

function step(way) {
  map[way]();
  painter.redraw();
  changed();
}

function replace(data) {
  if (!map.replace(data)) return;
  painter.redraw();
  changed();
}

function pressed(event) {
  const { target, key } = event;
  const typing = target.matches("input:not([type=radio], [type=range]), select, textarea");
  if (typing || event.altKey || document.querySelector("dialog[open]")) return;
  const command = event.ctrlKey || event.metaKey;
  if (command && key.toLowerCase() !== "z") return;
  if (key === "z") step(command && event.shiftKey ? "redo" : "undo");
  else if (key === "Z") step("redo");
  else if (TOOLS[key]) take(TOOLS[key]);
  else if (key === "[") widen(painter.width - 2);
  else if (key === "]") widen(painter.width + 2);
  else if (/^[0-9]$/.test(key)) choose(Number(key));
  else if (key === "g") generate();
  else if (key === "?") at("keys").showModal();
  else if (key === "Escape" && painter.corners.length) painter.drop();
  else if (key === "Enter" && painter.corners.length) painter.close();
  else return;
  event.preventDefault();
}

function start() {
  painter = new Painter(at("map"), at("guide"), changed);
  gallery = new Gallery(
    at("gallery"),
    (row) => { crops.set(label, cropOf(row)); showCrops(); },
    guarded(async (row) => replace(await gallery.labels(row))),
  );
  view = new SlideView(at("view"), at("zoom"), cutOut);
  patches = new Patches(at("patches"), cutOut);
  cutting = new Cutting(at("picture"), async (index, picture, name) => {
    crops.set(index, { source: { png: await base64(picture) }, address: URL.createObjectURL(picture), title: `Cut from ${name}` });
    showCrops();
  });
  const asked = new URLSearchParams(location.search).get("model");
  if (models.some((item) => `${item.model}/${item.version}` === asked)) at("model").value = asked;

  at("model").addEventListener("change", open);
  at("sets").addEventListener("change", () => openSet(at("sets").value));
  at("more").addEventListener("click", guarded(() => showGallery(true)));
  at("slides").addEventListener("change", showPicking);
  at("runs").addEventListener("change", showPicking);
  at("types").addEventListener("change", showType);
  at("pick").addEventListener("click", pick);
  at("open").addEventListener("click", () => cutting.open(model, label));
  at("size").addEventListener("input", () => widen(Number(at("size").value)));
  at("undo").addEventListener("click", () => step("undo"));
  at("redo").addEventListener("click", () => step("redo"));
  at("clear").addEventListener("click", () => replace(new Uint8Array(map.data.length)));
  at("save-map").addEventListener("click", () => save(model.model, map.size, map.data, colors));
  at("save-its-map").addEventListener("click", () => save(`${shown.model}-${shown.seed}`, shown.size, shown.data, shown.colors));
  at("overlay").addEventListener("input", () => { at("over").style.opacity = at("overlay").value; });
  at("dice").addEventListener("click", () => {
    form.elements.seed.value = crypto.getRandomValues(new Uint32Array(1))[0];
    changed();
  });
  at("stop").addEventListener("click", () => running?.abort());
  at("help").addEventListener("click", () => at("keys").showModal());
  form.addEventListener("input", changed);
  form.addEventListener("submit", (event) => { event.preventDefault(); generate(); });
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.addEventListener("click", () => take(button.dataset.tool));
  }
  for (const button of document.querySelectorAll("[data-from]")) {
    button.addEventListener("click", () => { from = button.dataset.from; showPicking(); });
  }
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  document.addEventListener("keydown", pressed);
  open();
}

if (models.length) start();
