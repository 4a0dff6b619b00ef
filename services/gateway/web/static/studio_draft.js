// The draft: kept while the browser's tab is open, and the start of a dataset.
import { LabelMap } from "./label_map.js";
import { SAMPLING, at, form, state } from "./studio_state.js";

const draftKey = () => `studio ${state.model.model}/${state.model.version}`;

export function keep() {
  const sources = [...state.crops].filter(([, crop]) => crop.source.region);
  const letters = Array.from(state.map.data, (index) => String.fromCharCode(index));
  sessionStorage.setItem(draftKey(), JSON.stringify({ labels: btoa(letters.join("")), crops: sources }));
}

export function restored() {
  const kept = JSON.parse(sessionStorage.getItem(draftKey()));
  if (!kept) return null;
  const data = Uint8Array.from(atob(kept.labels), (letter) => letter.charCodeAt(0));
  if (data.length !== state.model.size ** 2 || data.some((index) => index >= state.model.classes.length)) return null;
  for (const [index, crop] of kept.crops) state.crops.set(index, crop);
  return new LabelMap(state.model.size, data);
}

// Fills the form of a dataset: the same shares of tissue, the same sampling.
export function linkDataset(parts) {
  const tissue = state.model.classes.slice(state.model.first);
  const total = tissue.reduce((sum, item) => sum + parts[item.index], 0);
  const query = new URLSearchParams({ model: `${state.model.model}/${state.model.version}`, seed: form.elements.seed.value });
  for (const name of SAMPLING) if (form.elements[name].value) query.set(name, form.elements[name].value);
  if (total && state.map.data.some((index) => index)) {
    const wanted = tissue.map((item) => [item.name, Math.floor((1e4 * parts[item.index]) / total) / 1e4]);
    query.set("proportions", JSON.stringify(Object.fromEntries(wanted)));
  }
  at("dataset").href = `/datasets/new?${query}`;
}
