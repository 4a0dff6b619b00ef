// Images: asking for them, and showing those that were made.
import { ask } from "./api.js";
import { draw } from "./label_map.js";
import { base64, indexedPng } from "./png.js";
import { SAMPLING, at, form, guarded, state } from "./studio_state.js";

const MAX_RESULTS = 24;

// Asks for an image at `place`, and waits for it; `jobs` gets its job.
export async function make(place, body, signal, jobs) {
  let answer = await ask("POST", place, body, { signal, headers: { Prefer: "wait=1" } });
  while (answer.status === 202) {
    const image = answer.headers.get("Location");
    jobs.add(image.split("/").pop());
    answer = await ask("GET", image, undefined, { signal, headers: { Prefer: "wait=20" } });
  }
  return answer.blob();
}

async function request() {
  const present = new Set(state.map.data);
  const body = {
    model: state.model.model,
    version: state.model.version,
    labels: await base64(await indexedPng(state.map.size, state.map.data, state.colors)),
    crops: [...state.crops].filter(([index]) => present.has(index))
      .map(([index, crop]) => ({ tissue: state.model.classes[index].name, ...crop.source })),
  };
  for (const name of SAMPLING) if (form.elements[name].value) body[name] = Number(form.elements[name].value);
  return body;
}

export const generate = guarded(async () => {
  if (state.running || !form.reportValidity()) return;
  const control = new AbortController();
  const jobs = new Set();
  const started = performance.now();
  const seed = Number(form.elements.seed.value);
  const count = Number(form.elements.count.value);
  const tell = () => { at("doing").textContent = `Making … ${Math.round((performance.now() - started) / 1000)} s`; };
  state.running = control;
  busy(true);
  tell();
  const clock = setInterval(tell, 1000);
  try {
    const body = await request();
    const made = { data: state.map.data.slice(), size: state.map.size, colors: state.colors, model: state.model.model };
    const before = at("results").firstChild; // newest first, and variations in their order
    const all = Array.from({ length: count }, (_, number) => make("/v1/images", { ...body, seed: seed + number }, control.signal, jobs));
    Promise.all(all).catch(() => {}); // the loop below reports the first that fails
    for (const [number, picture] of all.entries()) {
      add({ ...made, seed: seed + number, address: URL.createObjectURL(await picture) }, before);
      if (!number) look(state.results.at(-1));
    }
    at("doing").textContent = `Made in ${((performance.now() - started) / 1000).toFixed(1)} s`;
  } catch (error) {
    control.abort();
    for (const job of jobs) ask("POST", `/v1/jobs/${job}/cancel`).catch(() => {}); // it may have ended
    at("doing").textContent = error.name === "AbortError" ? "Stopped" : "";
    throw error;
  } finally {
    clearInterval(clock);
    state.running = null;
    busy(false);
  }
});

function busy(is) {
  at("generate").disabled = is;
  at("stop").hidden = !is;
}

function add(result, before) {
  state.results.push(result);
  for (const old of state.results.splice(0, state.results.length - MAX_RESULTS)) {
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
  state.shown = result;
  at("image").src = result.address;
  at("image").alt = `Synthetic image of seed ${result.seed}`;
  at("image").hidden = false;
  at("none").hidden = true;
  showOverlay(result.data, result.size, result.colors);
  at("save-image").hidden = at("save-its-map").hidden = false;
  at("save-image").href = result.address;
  at("save-image").download = `${result.model}-${result.seed}.png`;
  for (const each of state.results) each.tile.firstChild.setAttribute("aria-pressed", String(each === result));
}

export function showOverlay(data, size = state.map.size, own = state.colors) {
  draw(at("over"), size, data, own);
  at("over").style.opacity = at("overlay").value;
}
