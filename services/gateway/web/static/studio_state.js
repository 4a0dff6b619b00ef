// What the modules of the studio share: the page's elements, and the state of the draft.
import { explain } from "./api.js";

export const at = (id) => document.getElementById(id);
export const SAMPLING = ["steps", "guidance_map", "guidance_crops", "staining"];
export const models = at("models") ? JSON.parse(at("models").textContent) : [];
export const form = at("sampling");

export const state = {
  model: null,
  colors: [], // of the model's classes
  map: null, // the LabelMap that is painted
  label: 0, // the class that is painted, and that crops are picked for
  crops: new Map(), // class index → { source, address, title, square }: source as the API takes it
  source: "regions", // where crops are picked: regions, slide or atlas
  lostSet: "", // name of the model's region set if it is not in the store
  slides: [], // records of the ingested slides
  keep: () => {}, // keeps the draft, where a page has one
  painter: null,
  gallery: null,
  view: null,
  patches: null,
  cutting: null,
  results: [],
  shown: null, // the result that is shown
  running: null, // the AbortController of the images in the making
};

export const problem = (error) => { at("problem").textContent = error ? explain(error) : ""; };
export const guarded = (work) => async (...given) => {
  problem(null);
  try {
    return await work(...given);
  } catch (error) {
    if (error.name !== "AbortError") problem(error);
  }
};
