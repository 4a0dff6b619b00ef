// Crops: those that are chosen, and the places where they are picked.
import { ask, explain, list } from "./api.js";
import { base64 } from "./png.js";
import { readAtlas } from "./slide_crops.js";
import { at, guarded, state } from "./studio_state.js";

export function showCrops() {
  for (const row of at("classes").children) {
    const crop = state.crops.get(Number(row.dataset.label));
    const button = row.querySelector(".chosen");
    if (!button) continue;
    button.hidden = !crop;
    if (crop) Object.assign(button.firstChild, { src: crop.address, alt: "" });
    button.title = crop ? `${crop.title}; click to drop it` : "";
  }
  markCrop();
  state.keep();
}

function markCrop() {
  const crop = state.crops.get(state.label);
  state.gallery.mark(crop?.source.region);
  state.view.mark(crop?.square);
  state.patches.mark(crop?.square);
}

const note = (text) => { at("picking-note").textContent = text; };

export const showPicking = guarded(async () => {
  const tissue = state.label >= state.model.first;
  at("of").textContent = state.model.classes[state.label].name;
  at("open").disabled = !tissue;
  at("picking").hidden = !tissue;
  for (const part of document.querySelectorAll("[data-source]")) part.hidden = part.dataset.source !== state.source;
  for (const button of document.querySelectorAll("[data-from]")) {
    button.setAttribute("aria-pressed", String(button.dataset.from === state.source));
  }
  note(tissue ? "" : `${state.model.classes[state.label].name} is no tissue: it takes no crop.`);
  if (tissue) await { regions: showGallery, slide: showSlide, atlas: showAtlas }[state.source]();
});

export const openSet = guarded(async (name) => {
  if (!at("sets").length) at("sets").replaceChildren(...(await list("/v1/regions")).map((item) => new Option(item)));
  at("sets").value = name;
  state.lostSet = at("sets").value === name ? "" : name;
  if (!state.lostSet) await state.gallery.open(name, state.model);
  await showPicking();
});

export async function showGallery(more = false) {
  at("more").hidden = true;
  if (state.lostSet) note(`The region set ${state.lostSet}, which the model learnt from, is not here any more.`);
  if (!state.gallery.record) return;
  const asked = state.label;
  const rest = await state.gallery.show(state.label, more);
  if (state.source !== "regions") return;
  if (asked !== state.label) return showPicking(); // the tiles may be of the class before
  at("more").hidden = !rest;
  note(at("gallery").children.length ? "" : "No region of this set holds it.");
  markCrop();
}

async function showSlide() {
  const asked = state.label;
  if (!at("slides").length) {
    state.slides = (await list("/v1/slides")).map((item) => item.record).filter(Boolean);
    at("slides").replaceChildren(...state.slides.map((item) => new Option(item.slide)));
  }
  if (state.source !== "slide" || asked !== state.label) return; // what was chosen meanwhile is shown already
  const record = state.slides.find((item) => item.slide === at("slides").value);
  note(record ? "Click the slide; or move it with the arrows, and press Enter." : "No slide has been ingested yet.");
  at("view").parentElement.hidden = !record;
  if (record) state.view.open(record, state.model);
  markCrop();
}

async function showAtlas() {
  const asked = state.label;
  if (!at("runs").length) at("runs").replaceChildren(...(await list("/v1/clusters")).map((item) => new Option(item)));
  const run = at("runs").value;
  const opened = run && run !== state.patches.run ? await readAtlas(run) : null;
  if (state.source !== "atlas" || asked !== state.label || run !== at("runs").value) return;
  if (!run) return note("No clustering has found tissue types yet.");
  if (run !== state.patches.run) { // else it was opened meanwhile, and a type may have been chosen
    Object.assign(state.patches, opened);
    at("types").replaceChildren(...state.patches.types.map((item) => new Option(item.type.name, item.label)));
  }
  note("Choose a patch: these are the nearest to the type’s centre, of one slide after the other.");
  const alike = state.patches.types.find((item) => item.type.name === state.model.classes[state.label].name);
  if (alike) at("types").value = alike.label;
  await showType();
}

export const showType = guarded(async () => {
  await state.patches.show(at("types").value, state.model);
  markCrop();
});

export async function cutOut(square) {
  const [own, index] = [state.model, state.label];
  try {
    const answer = await ask("GET", square.address);
    const png = await base64(await answer.blob());
    if (own !== state.model) return;
    const title = `Cut from slide ${square.slide} at ${square.x}, ${square.y}`;
    state.crops.set(index, { source: { png }, address: square.address, title, square });
    showCrops();
    note(`${title}: ${square.side} × ${square.side} px at the model’s ${state.model.mpp} µm per pixel.`);
  } catch (error) {
    note(explain(error)); // here, as the page's own place for problems may be scrolled away
  }
}

export function cropOf(row) {
  return { source: { regions: state.gallery.record.name, region: row.key }, address: state.gallery.address(row), title: `Cut from region ${row.key}` };
}

export const pick = guarded(async () => {
  for (const item of state.model.classes.slice(state.model.first)) {
    const rows = await state.gallery.holding(item.index, 12);
    const most = Math.max(...rows.map((row) => state.gallery.share(row, item.index)));
    const rich = rows.filter((row) => state.gallery.share(row, item.index) >= most / 2);
    if (rich.length) state.crops.set(item.index, cropOf(rich[Math.floor(Math.random() * rich.length)]));
  }
  showCrops();
});
