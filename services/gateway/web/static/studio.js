// The studio: paint a label map, pick crops, see the image.
import { LabelMap, shares } from "./label_map.js";
import { Painter } from "./painter.js";
import { indexedPng } from "./png.js";
import { TOOLS, choose, showClasses, startCrops, startTools, take, widen } from "./studio_classes.js";
import { openSet } from "./studio_crops.js";
import { keep, linkDataset, restored } from "./studio_draft.js";
import { generate, showOverlay } from "./studio_images.js";
import { SAMPLING, at, form, guarded, models, state } from "./studio_state.js";

// The model, its classes, and the draft.

function open() {
  const next = models.find((item) => `${item.model}/${item.version}` === at("model").value);
  const alike = state.model && next.size === state.model.size && JSON.stringify(next.classes) === JSON.stringify(state.model.classes);
  state.model = next;
  state.colors = state.model.classes.map((item) => item.color);
  at("about").textContent = `${state.model.size} × ${state.model.size} px at ${state.model.mpp} µm per pixel`;
  for (const name of SAMPLING) {
    form.elements[name].placeholder = state.model.sampling[name];
    form.elements[name].disabled = state.model.student && name !== "staining"; // a student was trained with fixed values
  }
  if (!alike) {
    state.crops.clear();
    state.map = restored() ?? new LabelMap(state.model.size);
    state.label = Math.min(1, state.model.classes.length - 1);
    widen(2 * Math.round(state.model.size / 20) + 1);
    showClasses();
  }
  state.gallery.close();
  state.painter.show(state.map, state.colors);
  choose(state.label);
  changed();
  openSet(state.model.regions);
}

function changed() {
  const parts = shares(state.map.data, state.model.classes.length);
  for (const row of at("classes").children) {
    row.querySelector("output").value = `${(100 * parts[row.dataset.label]).toFixed(0)} %`;
  }
  at("undo").disabled = !state.map.past.length;
  at("redo").disabled = !state.map.future.length;
  at("hint").hidden = state.map.data.some((index) => index);
  if (!state.shown) showOverlay(state.map.data);
  linkDataset(parts);
  keep();
}

async function save(name, size, data, own) {
  const address = URL.createObjectURL(await indexedPng(size, data, own));
  Object.assign(document.createElement("a"), { href: address, download: `${name}.mask.png` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000); // when it is surely written
}

// Tools and keys.

function step(way) {
  state.map[way]();
  state.painter.redraw();
  changed();
}

function replace(data) {
  if (!state.map.replace(data)) return;
  state.painter.redraw();
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
  else if (key === "[") widen(state.painter.width - 2);
  else if (key === "]") widen(state.painter.width + 2);
  else if (/^[0-9]$/.test(key)) choose(Number(key));
  else if (key === "g") generate();
  else if (key === "?") at("keys").showModal();
  else if (key === "Escape" && state.painter.corners.length) state.painter.drop();
  else if (key === "Enter" && state.painter.corners.length) state.painter.close();
  else return;
  event.preventDefault();
}

function start() {
  state.keep = keep;
  state.painter = new Painter(at("map"), at("guide"), changed);
  startCrops(guarded(async (row) => replace(await state.gallery.labels(row))));
  startTools();
  const asked = new URLSearchParams(location.search).get("model");
  if (models.some((item) => `${item.model}/${item.version}` === asked)) at("model").value = asked;

  at("model").addEventListener("change", open);
  at("undo").addEventListener("click", () => step("undo"));
  at("redo").addEventListener("click", () => step("redo"));
  at("clear").addEventListener("click", () => replace(new Uint8Array(state.map.data.length)));
  at("save-map").addEventListener("click", () => save(state.model.model, state.map.size, state.map.data, state.colors));
  at("save-its-map").addEventListener("click", () => save(`${state.shown.model}-${state.shown.seed}`, state.shown.size, state.shown.data, state.shown.colors));
  at("overlay").addEventListener("input", () => { at("over").style.opacity = at("overlay").value; });
  at("dice").addEventListener("click", () => {
    form.elements.seed.value = crypto.getRandomValues(new Uint32Array(1))[0];
    changed();
  });
  at("stop").addEventListener("click", () => state.running?.abort());
  at("help").addEventListener("click", () => at("keys").showModal());
  form.addEventListener("input", changed);
  form.addEventListener("submit", (event) => { event.preventDefault(); generate(); });
  document.addEventListener("keydown", pressed);
  open();
}

if (models.length) start();
