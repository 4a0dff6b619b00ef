// Uploading slides with their annotations, and ingesting them.
import { send, explain } from "./api.js";

const at = (id) => document.getElementById(id);
const dialog = at("upload");
const list = at("sending");
const annotations = list?.dataset.annotations.split(",") ?? [];
const own = list?.dataset.own.split(",") ?? []; // suffixes that no slide has
let waiting = [];

const masks = /[_.-](masks?|labels|labell?ed|labelmap|anno|annotations?|seg|segmentation|ground_?truth|gt)$/i;

// A slide's files share a stem: a.svs, a.geojson, a_mask.tiff.
function plan(files) {
  const stem = (file) => file.name.replace(/\.[^.]+(\.gz)?$/i, "");
  const suffix = (file) => file.name.slice(stem(file).length).toLowerCase();
  return [...files].map((file) => {
    const base = stem(file).replace(masks, "");
    const others = [...files].some((other) => other !== file && stem(other) === base);
    const annotation = own.includes(suffix(file)) || (stem(file) !== base && others);
    const owner = [...files].find((other) => other.name === base); // a.svs.geojson is of a.svs
    const name = owner ? stem(owner) : annotation ? base : stem(file);
    const slide = name.replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "");
    const kind = annotation && annotations.includes(suffix(file)) ? "annotation" : "source";
    return { file, slide, kind };
  });
}

function row({ file, slide, kind }) {
  const item = document.createElement("li");
  const name = document.createElement("span");
  name.textContent = `${file.name} → ${slide}`;
  const about = document.createElement("small");
  about.textContent = `${kind === "annotation" ? "annotation, " : ""}${(file.size / 1e6).toFixed(1)} MB`;
  const bar = document.createElement("progress");
  bar.max = 1;
  bar.value = 0;
  bar.setAttribute("aria-label", `Upload of ${file.name}`);
  item.append(name, about, bar);
  return { item, bar };
}

function upload({ file, slide, kind, bar }) { // fetch does not tell how far an upload is
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", `/v1/slides/${encodeURIComponent(slide)}/${kind}/${encodeURIComponent(file.name)}`);
    request.responseType = "json";
    request.upload.addEventListener("progress", (event) => { bar.value = event.loaded / Math.max(1, event.total); });
    request.addEventListener("load", () => {
      if (request.status < 300) {
        bar.value = 1;
        resolve();
      } else {
        const error = new Error(`${file.name}: ${request.response?.detail ?? `the server answered ${request.status}`}`);
        error.problem = request.response;
        reject(error);
      }
    });
    request.addEventListener("error", () => reject(new Error(`${file.name}: the connection broke off; try again`)));
    request.send(file);
  });
}

at("bring")?.addEventListener("click", () => dialog.showModal());
at("close")?.addEventListener("click", () => dialog.close());
at("files")?.addEventListener("change", (event) => {
  waiting = plan(event.target.files).map((each) => ({ ...each, ...row(each) }));
  list.replaceChildren(...waiting.map((each) => each.item));
});
at("send")?.addEventListener("click", async (event) => {
  if (!at("files").reportValidity()) return;
  event.target.disabled = true;
  at("upload-problem").textContent = "";
  try {
    while (waiting.length) {
      await upload(waiting[0]);
      waiting.shift(); // what failed is tried again by the next click
    }
    location.assign("/slides");
  } catch (error) {
    at("upload-problem").textContent = explain(error);
    event.target.disabled = false;
  }
});

at("ingest")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const ticked = [...document.querySelectorAll("[name=slide]:checked")];
  at("problem").textContent = "";
  at("ingesting").textContent = ticked.length ? "" : "Tick at least one slide in the list.";
  if (!ticked.length) return;
  const { cohort, classes, mpp } = Object.fromEntries(new FormData(event.target));
  const names = classes.split(",").map((name) => name.trim()).filter(Boolean);
  const slides = ticked.map(({ value, dataset }) => ({
    slide: value,
    source: dataset.source,
    labels: names.length && dataset.labels ? dataset.labels : null,
    mpp: mpp ? Number(mpp) : null,
  }));
  const body = { cohort, slides };
  if (names.length) {
    const colors = JSON.parse(event.target.dataset.colors);
    body.classes = { items: ["background", ...names].map((name, index) => ({ index, name, color: colors[index] })) };
  }
  try {
    const job = await send("POST", "/v1/ingest", body);
    const events = new EventSource(`/v1/jobs/${job.job}/events`);
    events.addEventListener("status", (message) => {
      const status = JSON.parse(message.data);
      at("ingesting").textContent = `Ingesting ${cohort}: ${status.state}`;
      if (!["done", "partial", "failed", "cancelled"].includes(status.state)) return;
      events.close();
      if (status.state === "done") location.reload();
      else at("problem").textContent = Object.entries(status.failed).map(([slide, why]) => `${slide}: ${why}`).join("; ") || `the job is ${status.state}`;
    });
  } catch (error) {
    at("problem").textContent = explain(error);
  }
});
