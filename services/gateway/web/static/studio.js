// The studio: paint a label map, pick crops, see the image.
import { Cutting } from "./cutting.js";
import { Gallery } from "./gallery.js";
import { LabelMap, shares } from "./label_map.js";
import { Painter } from "./painter.js";
import { base64, indexedPng } from "./png.js";
import { Patches, SlideView } from "./slide_crops.js";
import { cropOf, cutOut, openSet, pick, showCrops, showGallery, showPicking, showType } from "./studio_crops.js";
import { keep, linkDataset, restored } from "./studio_draft.js";
import { generate, showOverlay } from "./studio_images.js";
import { SAMPLING, at, form, guarded, models, state } from "./studio_state.js";

const TOOLS = { b: "brush", p: "polygon", f: "fill", e: "eraser" };

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

function showClasses() {
  at("classes").replaceChildren(...state.model.classes.map((item) => {
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
    if (item.index >= state.model.first) {
      const drop = Object.assign(document.createElement("button"), { type: "button", className: "chosen", hidden: true });
      drop.setAttribute("aria-label", `Drop the crop of ${item.name}`);
      drop.append(new Image());
      drop.addEventListener("click", () => { state.crops.delete(item.index); showCrops(); });
      row.append(drop);
    }
    return row;
  }));
  showCrops();
}

function choose(index) {
  if (!state.model.classes[index]) return;
  state.label = index;
  state.painter.label = index;
  at("classes").children[index].querySelector("input").checked = true;
  showPicking();
}

// Tools and keys.

function take(tool) {
  state.painter.take(tool);
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
  }
}

function widen(width) {
  at("size").max = 2 * Math.floor(state.model.size / 4) + 1;
  at("size").value = width;
  state.painter.width = Number(at("size").value);
  at("size-px").value = `${state.painter.width} px`;
}

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
  state.painter = new Painter(at("map"), at("guide"), changed);
  state.gallery = new Gallery(
    at("gallery"),
    (row) => { state.crops.set(state.label, cropOf(row)); showCrops(); },
    guarded(async (row) => replace(await state.gallery.labels(row))),
  );
  state.view = new SlideView(at("view"), at("zoom"), cutOut);
  state.patches = new Patches(at("patches"), cutOut);
  state.cutting = new Cutting(at("picture"), async (index, picture, name) => {
    state.crops.set(index, { source: { png: await base64(picture) }, address: URL.createObjectURL(picture), title: `Cut from ${name}` });
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
  at("open").addEventListener("click", () => state.cutting.open(state.model, state.label));
  at("size").addEventListener("input", () => widen(Number(at("size").value)));
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
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.addEventListener("click", () => take(button.dataset.tool));
  }
  for (const button of document.querySelectorAll("[data-from]")) {
    button.addEventListener("click", () => { state.source = button.dataset.from; showPicking(); });
  }
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  document.addEventListener("keydown", pressed);
  open();
}

if (models.length) start();
