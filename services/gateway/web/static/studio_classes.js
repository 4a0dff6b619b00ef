// The classes of a model, a crop of each, and the tools that paint them: what the studio's pages share.
import { Cutting } from "./cutting.js";
import { Gallery } from "./gallery.js";
import { base64 } from "./png.js";
import { Patches, SlideView } from "./slide_crops.js";
import { cropOf, cutOut, openSet, pick, showCrops, showGallery, showPicking, showType } from "./studio_crops.js";
import { at, guarded, state } from "./studio_state.js";

export const TOOLS = { b: "brush", p: "polygon", f: "fill", e: "eraser" };

export function showClasses() {
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

export function choose(index) {
  if (!state.model.classes[index]) return;
  state.label = index;
  state.painter.label = index;
  at("classes").children[index].querySelector("input").checked = true;
  showPicking();
}

export function take(tool) {
  state.painter.take(tool);
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
  }
}

export function widen(width) {
  at("size").max = 2 * Math.floor(state.map.size / 4) + 1;
  at("size").value = width;
  state.painter.width = Number(at("size").value);
  at("size-px").value = `${state.painter.width} px`;
}

export function startTools() {
  at("size").addEventListener("input", () => widen(Number(at("size").value)));
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.addEventListener("click", () => take(button.dataset.tool));
  }
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
}

// `takeMap` is called with the region whose map is taken.
export function startCrops(takeMap) {
  state.gallery = new Gallery(at("gallery"), (row) => { state.crops.set(state.label, cropOf(row)); showCrops(); }, takeMap);
  state.view = new SlideView(at("view"), at("zoom"), cutOut);
  state.patches = new Patches(at("patches"), cutOut);
  state.cutting = new Cutting(at("picture"), async (index, picture, name) => {
    state.crops.set(index, { source: { png: await base64(picture) }, address: URL.createObjectURL(picture), title: `Cut from ${name}` });
    showCrops();
  });
  at("sets").addEventListener("change", () => openSet(at("sets").value));
  at("more").addEventListener("click", guarded(() => showGallery(true)));
  at("slides").addEventListener("change", showPicking);
  at("runs").addEventListener("change", showPicking);
  at("types").addEventListener("change", showType);
  at("pick").addEventListener("click", pick);
  at("open").addEventListener("click", () => state.cutting.open(state.model, state.label));
  for (const button of document.querySelectorAll("[data-from]")) {
    button.addEventListener("click", () => { state.source = button.dataset.from; showPicking(); });
  }
}
