// The form of a dataset request: shares that add up to 1, and an estimate before sending.
// It is filled from the query: names are those of the request, proportions is an object in JSON.
import { send, explain } from "./api.js";

const form = document.getElementById("dataset");
const shares = document.getElementById("shares");
const estimate = document.getElementById("estimate");
const problem = document.getElementById("problem");
const SAMPLING = ["steps", "guidance_map", "guidance_crops", "staining"];
const models = JSON.parse(document.getElementById("models").textContent);
const WAIT = 400; // milliseconds without a change before an estimate is asked for
let timer = 0;
let asked = 0;

function chosen() {
  return models.find((item) => `${item.model}/${item.version}` === form.elements.model.value);
}

function sliders() {
  return [...shares.querySelectorAll("input")];
}

function fill(model, wanted) {
  document.getElementById("about").textContent =
    `${model.size} × ${model.size} px at ${model.mpp} µm per pixel`;
  for (const name of SAMPLING) {
    form.elements[name].placeholder = model.sampling[name];
    form.elements[name].disabled = model.student && name !== "staining"; // it learnt one way
  }
  shares.replaceChildren(...model.classes.map((item) => {
    const label = document.createElement("label");
    const name = document.createElement("span");
    name.textContent = item.name;
    const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    swatch.setAttribute("class", "swatch");
    const square = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const side of ["width", "height"]) square.setAttribute(side, "100%");
    square.setAttribute("fill", `rgb(${item.color})`);
    swatch.append(square);
    const slider = Object.assign(document.createElement("input"), {
      type: "range", min: 0, max: 1, step: 0.005, value: wanted?.[item.name] ?? (wanted ? 0 : 1 / model.classes.length),
    });
    slider.dataset.tissue = item.name;
    label.append(swatch, name, slider, document.createElement("output"));
    return label;
  }));
  tell();
}

function tell() {
  for (const slider of sliders()) {
    slider.nextElementSibling.value = `${(100 * slider.value).toFixed(1)} %`;
  }
}

function balance(moved) {
  const others = sliders().filter((item) => item !== moved);
  const left = 1 - Number(moved.value);
  const sum = others.reduce((total, item) => total + Number(item.value), 0);
  for (const item of others) {
    item.value = sum ? (Number(item.value) * left) / sum : left / others.length;
  }
  tell();
}

function proportions() {
  if (form.elements.mix.value === "maps") return {};
  const values = sliders().map((item) => [item.dataset.tissue, Number(item.value)]);
  const sum = values.reduce((total, [, value]) => total + value, 0) || 1;
  return Object.fromEntries(values.map(([name, value]) => [name, Math.floor((1e6 * value) / sum) / 1e6]));
}

function request() {
  const data = new FormData(form);
  const [model, version] = data.get("model").split("/");
  const split = [data.get("split")];
  const body = {
    dataset: data.get("dataset"),
    model,
    version,
    images: Number(data.get("images")),
    proportions: proportions(),
    maps: { splits: split },
    crops: { splits: split, slide: data.get("slide") },
    seed: Number(data.get("seed")),
    exports: data.getAll("exports"),
  };
  for (const name of [...SAMPLING, "max_copied"]) {
    if (data.get(name)) body[name] = Number(data.get(name));
  }
  return body;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toLocaleString(undefined, { maximumFractionDigits: 1 })} h`;
}

function size(bytes) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, bytes)) / 3));
  return `${(bytes / 1000 ** power).toPrecision(3)} ${units[power]}`;
}

async function guess() {
  const mine = ++asked;
  if (!form.elements.images.checkValidity()) return;
  try {
    const found = await send("POST", "/v1/datasets/estimate", { ...request(), dataset: "estimate" });
    if (mine !== asked) return; // another was asked for meanwhile
    problem.textContent = "";
    estimate.textContent = found.seconds === null
      ? "This model has made no dataset yet, so there is nothing to derive an estimate from."
      : `About ${duration(found.seconds)} of one worker and ${size(found.bytes)} without exports: ` +
        `derived from ${found.measured_images.toLocaleString()} images of ` +
        `${found.measured_datasets} earlier dataset${found.measured_datasets > 1 ? "s" : ""} of this model.`;
  } catch (error) {
    if (mine !== asked) return;
    estimate.textContent = "";
    problem.textContent = explain(error);
  }
}

function changed() {
  shares.hidden = form.elements.mix.value !== "own";
  clearTimeout(timer);
  timer = setTimeout(guess, WAIT);
}

function fillFromQuery() {
  const query = new URLSearchParams(location.search);
  if (query.has("model")) {
    const name = query.get("model");
    const versions = models.filter((item) => item.model === name).map((item) => item.version);
    const newest = versions.sort((one, other) => one.localeCompare(other, "en", { numeric: true })).at(-1);
    form.elements.model.value = name.includes("/") ? name : `${name}/${query.get("version") ?? newest}`;
    if (!form.elements.model.value) form.elements.model.selectedIndex = 0;
  }
  for (const name of ["dataset", "images", ...SAMPLING, "seed", "max_copied", "split", "slide"]) {
    if (query.has(name)) form.elements[name].value = query.get(name);
  }
  for (const box of form.querySelectorAll("[name=exports]")) {
    box.checked = query.getAll("exports").includes(box.value);
  }
  try {
    const wanted = JSON.parse(query.get("proportions") ?? "null");
    if (wanted) form.elements.mix.value = "own";
    return wanted;
  } catch {
    return null;
  }
}

if (form) {
  fill(chosen(), fillFromQuery());
  changed();
  form.addEventListener("input", (event) => {
    if (event.target.dataset.tissue) balance(event.target);
    if (event.target.name === "model") fill(chosen());
    changed();
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("[type=submit]");
    button.disabled = true;
    problem.textContent = "";
    try {
      const made = await send("POST", "/v1/datasets", request(), { "Idempotency-Key": crypto.randomUUID() });
      location.href = `/datasets/${made.dataset}`;
    } catch (error) {
      problem.textContent = explain(error);
      button.disabled = false;
    }
  });
}
