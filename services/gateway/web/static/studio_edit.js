// Editing a picture or a window of a slide: painting new tissue into it, or drawing it again.
import { ask, explain, list } from "./api.js";
import { LabelMap, shares } from "./label_map.js";
import { Painter } from "./painter.js";
import { base64, indexedPng } from "./png.js";
import { SlideView } from "./slide_crops.js";
import { choose, showClasses, startCrops, startTools, widen } from "./studio_classes.js";
import { openSet } from "./studio_crops.js";
import { make } from "./studio_images.js";
import { at, form, guarded, models, state } from "./studio_state.js";

const NUMBERS = ["seed", "steps", "border", "strength"];
const CLEAR = [0, 0, 0, 0];
let original = null; // the picture's PNG
let layers = {}; // LabelMaps: `painted`, which holds `none()` where nothing is, and what is `there`
let records = []; // of the ingested slides
let windows = null; // the SlideView that windows are taken from

const none = () => state.model.classes.length;
const windowModel = () => ({ ...state.model, crop: { least: state.model.size, most: state.model.size } });

function open() {
  state.model = models.find((item) => `${item.model}/${item.version}` === at("model").value);
  const { size, mpp, classes, first, regions, sampling, student } = state.model;
  state.colors = [...classes.map((item) => item.color), CLEAR];
  at("about").textContent = `${size} × ${size} px at ${mpp} µm per pixel`;
  form.elements.steps.placeholder = sampling.steps;
  form.elements.steps.disabled = student; // it was trained with fixed values
  at("shows").replaceChildren(...classes.map((item) => new Option(item.name, item.index)));
  at("shows").value = Math.max(1, first);
  state.crops.clear();
  state.label = Math.min(1, classes.length - 1);
  state.gallery.close();
  clear();
  widen(2 * Math.round(size / 10) + 1);
  showClasses();
  show(null);
  choose(state.label);
  changed();
  openSet(regions);
}

function clear() {
  const pixels = state.model.size ** 2;
  layers = {
    painted: new LabelMap(state.model.size, new Uint8Array(pixels).fill(none())),
    there: new LabelMap(state.model.size, new Uint8Array(pixels).fill(Number(at("shows").value))),
  };
  paint("painted");
}

function paint(layer) {
  state.map = layers[layer];
  state.painter.blank = layer === "painted" ? none() : 0;
  state.painter.show(state.map, state.colors);
  for (const button of document.querySelectorAll("[data-layer]")) {
    button.setAttribute("aria-pressed", String(button.dataset.layer === layer));
  }
}

// What the label map of the edited picture will be.
function labels() {
  if (form.elements.action.value !== "paint") return layers.there.data;
  return layers.painted.data.map((label, place) => (label === none() ? layers.there.data[place] : label));
}

function changed() {
  const action = form.elements.action.value;
  for (const row of form.querySelectorAll("[data-for]")) row.hidden = !row.dataset.for.includes(action);
  const parts = shares(labels(), none());
  for (const row of at("classes").children) row.querySelector("output").value = `${(100 * parts[row.dataset.label]).toFixed(0)} %`;
  at("undo").disabled = !state.map.past.length;
  at("redo").disabled = !state.map.future.length;
  at("map").style.opacity = at("overlay").value;
  at("generate").disabled = !original || Boolean(state.running);
}

// Shows a picture as the original, and begins anew; null: none.
function show(picture) {
  URL.revokeObjectURL(at("original").src);
  original = picture;
  at("original").hidden = at("map").hidden = !picture;
  at("hint").hidden = Boolean(picture);
  if (picture) Object.assign(at("original"), { src: URL.createObjectURL(picture), alt: "The original" });
  at("image").hidden = at("save-image").hidden = true;
  at("none").hidden = false;
  clear();
  changed();
}

const openWindows = guarded(async () => {
  if (!records.length) {
    records = (await list("/v1/slides")).map((item) => item.record).filter(Boolean);
    at("window-slides").replaceChildren(...records.map((item) => new Option(item.slide)));
  }
  if (!records.length) throw new Error("no slide has been ingested yet");
  at("window").showModal();
  showSlide();
});

function showSlide() {
  at("window-note").textContent = "Click the slide; or move it with the arrows, and press Enter.";
  windows ??= new SlideView(at("window-view"), at("window-zoom"), takeWindow);
  windows.open(records.find((item) => item.slide === at("window-slides").value), windowModel());
}

async function takeWindow(square) {
  try {
    if (square.side !== state.model.size) throw new Error(`slide ${square.slide} is smaller than the model’s images`);
    show(await (await ask("GET", square.address)).blob());
    at("window").close();
  } catch (error) {
    at("window-note").textContent = explain(error); // the page's own place lies behind the dialog
  }
}

async function request() {
  const { size, classes, model, version } = state.model;
  const action = form.elements.action.value;
  const map = labels();
  const present = new Set(map);
  const colors = classes.map((item) => item.color);
  const body = {
    action, model, version,
    image: await base64(original),
    labels: await base64(await indexedPng(size, map, colors)),
    crops: [...state.crops].filter(([index]) => present.has(index))
      .map(([index, crop]) => ({ tissue: classes[index].name, ...crop.source })),
  };
  for (const name of NUMBERS) {
    const { value, disabled } = form.elements[name];
    if (value && !disabled && !form.elements[name].closest("[hidden]")) body[name] = Number(value);
  }
  if (action === "paint") {
    const area = layers.painted.data.map((label) => Number(label !== none()));
    body.area = await base64(await indexedPng(size, area, [[0, 0, 0], [255, 255, 255]]));
  }
  return body;
}

const edit = guarded(async () => {
  if (state.running || !original || !form.reportValidity()) return;
  const jobs = new Set();
  const asked = original;
  const started = performance.now();
  state.running = new AbortController();
  at("stop").hidden = false;
  at("doing").textContent = "Making …";
  changed();
  try {
    const body = await request();
    const picture = await make("/v1/edits", body, state.running.signal, jobs);
    if (asked !== original) return; // another was opened meanwhile
    URL.revokeObjectURL(at("image").src);
    Object.assign(at("image"), { src: URL.createObjectURL(picture), alt: "The edited picture", hidden: false });
    Object.assign(at("save-image"), { href: at("image").src, download: `${body.action}-${body.seed}.png`, hidden: false });
    at("none").hidden = true;
    at("doing").textContent = `Made in ${((performance.now() - started) / 1000).toFixed(1)} s`;
  } catch (error) {
    for (const job of jobs) ask("POST", `/v1/jobs/${job}/cancel`).catch(() => {}); // it may have ended
    at("doing").textContent = error.name === "AbortError" ? "Stopped" : "";
    throw error;
  } finally {
    state.running = null;
    at("stop").hidden = true;
    changed();
  }
});

function step(way) {
  state.map[way]();
  state.painter.redraw();
  changed();
}

function start() {
  state.painter = new Painter(at("map"), at("guide"), changed);
  startCrops(null);
  startTools();
  const cut = state.cutting.done;
  state.cutting.done = (index, picture, name) => (index === null ? show(picture) : cut(index, picture, name));
  at("model").addEventListener("change", open);
  at("from-slide").addEventListener("click", openWindows);
  at("window-slides").addEventListener("change", showSlide);
  at("from-picture").addEventListener("click", () => state.cutting.open(windowModel(), null));
  at("undo").addEventListener("click", () => step("undo"));
  at("redo").addEventListener("click", () => step("redo"));
  at("overlay").addEventListener("input", changed);
  at("stop").addEventListener("click", () => state.running?.abort());
  at("shows").addEventListener("change", () => {
    layers.there.replace(new Uint8Array(state.model.size ** 2).fill(Number(at("shows").value)));
    state.painter.redraw();
    changed();
  });
  for (const button of document.querySelectorAll("[data-layer]")) {
    button.addEventListener("click", () => { paint(button.dataset.layer); changed(); });
  }
  form.addEventListener("input", changed);
  form.addEventListener("submit", (event) => { event.preventDefault(); edit(); });
  open();
}

if (models.length) start();
