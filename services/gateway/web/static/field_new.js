// The form of a field: its label map, a crop of each class, and its settings.
import { send } from "./api.js";
import { LabelMap, enlarged, shares } from "./label_map.js";
import { Painter } from "./painter.js";
import { base64, indexedPng } from "./png.js";
import { choose, showClasses, startCrops, startTools, widen } from "./studio_classes.js";
import { openSet } from "./studio_crops.js";
import { SAMPLING, at, form, guarded, models, state } from "./studio_state.js";

const TIMES = [2, 4, 8, 16]; // sides of painted maps, in sides of the model's images
const MOST_PAINTED = 256; // pixels a side that are painted; they are enlarged to the field's
let kind = "painted"; // where the map is from: painted, file, slide or sampled

function open() {
  state.model = models.find((item) => `${item.model}/${item.version}` === at("model").value);
  const { size, mpp, classes, sampling, student, regions } = state.model;
  state.colors = classes.map((item) => item.color);
  at("about").textContent = `at least ${size} × ${size} px at ${mpp} µm per pixel`;
  for (const name of SAMPLING) {
    form.elements[name].placeholder = sampling[name];
    form.elements[name].disabled = student && name !== "staining"; // a student was trained with fixed values
  }
  at("sampled").disabled = !state.model.layouts;
  if (kind === "sampled" && !state.model.layouts) kind = "painted";
  at("side").replaceChildren(...TIMES.map((times) => new Option(`${times * size} px`, times * size)));
  state.crops.clear();
  state.map = new LabelMap(Math.min(MOST_PAINTED, TIMES[0] * size));
  state.label = Math.min(1, classes.length - 1);
  widen(2 * Math.round(state.map.size / 20) + 1);
  showClasses();
  state.gallery.close();
  state.painter.show(state.map, state.colors);
  choose(state.label);
  show(kind);
  openSet(regions);
}

function changed() {
  const parts = shares(state.map.data, state.model.classes.length);
  for (const row of at("classes").children) {
    row.querySelector("output").value = kind === "painted" ? `${(100 * parts[row.dataset.label]).toFixed(0)} %` : "";
  }
  at("undo").disabled = !state.map.past.length;
  at("redo").disabled = !state.map.future.length;
  at("hint").hidden = state.map.data.some((index) => index);
}

function show(chosen) {
  kind = chosen;
  for (const part of document.querySelectorAll("[data-kind]")) part.hidden = part.dataset.kind !== kind;
  for (const button of document.querySelectorAll("[data-map]")) {
    button.setAttribute("aria-pressed", String(button.dataset.map === kind));
  }
  changed();
}

function step(way) {
  state.map[way]();
  state.painter.redraw();
  changed();
}

async function chosenMap() {
  if (kind === "slide") return { ...at("map-slide").selectedOptions[0].dataset };
  if (kind === "sampled") return { sampled: { width: Number(at("width").value), height: Number(at("height").value) } };
  if (kind === "painted") {
    const side = Number(at("side").value);
    return { labels: await base64(await indexedPng(side, enlarged(state.map, side), state.colors)) };
  }
  const [file] = at("map-file").files;
  if (!file) throw new Error("choose the PNG of the label map first");
  return { labels: await base64(file) };
}

const make = guarded(async () => {
  if (!form.reportValidity()) return;
  at("make").disabled = true;
  try {
    const present = new Set(state.map.data);
    const crops = [...state.crops].filter(([index]) => kind !== "painted" || present.has(index));
    const body = {
      field: form.elements.field.value,
      model: state.model.model,
      version: state.model.version,
      seed: Number(form.elements.seed.value),
      compression: form.elements.compression.value,
      ...await chosenMap(),
      crops: crops.map(([index, crop]) => ({ tissue: state.model.classes[index].name, ...crop.source })),
    };
    if (!crops.length) body.appearances = Number(form.elements.appearances.value);
    for (const name of SAMPLING) if (form.elements[name].value) body[name] = Number(form.elements[name].value);
    await send("POST", "/v1/fields", body);
    location.href = `/fields/${body.field}`;
  } finally {
    at("make").disabled = false;
  }
});

function start() {
  state.painter = new Painter(at("map"), at("guide"), changed);
  startCrops(null);
  startTools();
  const asked = new URLSearchParams(location.search).get("model");
  if (models.some((item) => `${item.model}/${item.version}` === asked)) at("model").value = asked;
  at("model").addEventListener("change", open);
  at("undo").addEventListener("click", () => step("undo"));
  at("redo").addEventListener("click", () => step("redo"));
  for (const button of document.querySelectorAll("[data-map]")) {
    button.addEventListener("click", () => show(button.dataset.map));
  }
  form.addEventListener("submit", (event) => { event.preventDefault(); make(); });
  open();
}

if (models.length) start();
