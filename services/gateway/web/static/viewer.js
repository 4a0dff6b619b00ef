// The viewer of a slide or a field: OpenSeadragon, overlays, scale bar.
import { deepZoom, zoomWith } from "./deepzoom.js";
import { paintSwatches } from "./swatches.js";

const SIDE = 254, OVERLAP = 1; // of the gateway's tiles

const element = document.getElementById("viewer");
const { kind, name: shownName, mpp, palette, run } = element.dataset;
const asked = new URLSearchParams(location.search);
const place = `/v1/${kind}s/${shownName}`;
const problem = document.getElementById("problem");

paintSwatches();

const viewer = deepZoom(element, {
  tileSources: `${place}/deepzoom.dzi`,
  gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
});
viewer.canvas.setAttribute("aria-label", `${kind === "slide" ? "Slide" : "Field"} ${shownName}: arrows move, plus and minus zoom, 0 shows all`);
viewer.addHandler("open-failed", () => { problem.textContent = `The ${kind} cannot be opened: its file is missing or damaged.`; });

zoomWith(document.querySelector(".tools"), viewer);

// Overlays
const shown = {}; // overlay -> its layer
let type = asked.get("type");

const address = {
  tissue: (tile) => `${place}/tissue/${tile}.png`,
  labels: (tile) => `${place}/labels/${tile}.png${palette ? `?cohort=${palette}` : ""}`,
  types: (tile) => `${place}/clusters/${run}/${tile}.png${type ? `?type=${type}` : ""}`,
};

function controls(name) {
  const row = document.querySelector(`[data-overlay=${name}]`);
  return { on: row?.querySelector("[type=checkbox]"), opacity: row?.querySelector("[type=range]") };
}

function lay(name) {
  const { on, opacity } = controls(name);
  if (!on) return;
  if (shown[name]) {
    shown[name].setOpacity(on.checked ? Number(opacity.value) : 0);
  } else if (on.checked) {
    const { x: width, y: height } = viewer.world.getItemAt(0).getContentSize();
    viewer.addTiledImage({
      tileSource: {
        width, height, tileSize: SIDE, tileOverlap: OVERLAP,
        getTileUrl: (level, column, row) => address[name](`${level}/${column}_${row}`),
        hasTransparency: () => true,
      },
      opacity: Number(opacity.value),
      success: ({ item }) => {
        shown[name] = item;
        lay(name); // what was changed meanwhile
      },
    });
  }
}

function remove(name) {
  if (shown[name]) viewer.world.removeItem(shown[name]);
  delete shown[name];
}

for (const name of Object.keys(address)) {
  const { on, opacity } = controls(name);
  on?.addEventListener("change", () => lay(name));
  opacity?.addEventListener("input", () => lay(name));
}

// Tissue types
const legend = document.getElementById("types");

function markType() {
  for (const button of legend?.querySelectorAll("button") ?? []) {
    button.setAttribute("aria-pressed", String(button.dataset.type === type));
  }
}

legend?.addEventListener("click", (event) => {
  const chosen = event.target.closest("button")?.dataset.type;
  if (!chosen) return;
  type = chosen === type ? null : chosen;
  markType();
  controls("types").on.checked = true;
  remove("types");
  lay("types");
});
document.getElementById("run")?.addEventListener("change", (event) => {
  location.search = new URLSearchParams({ run: event.target.value });
});
markType();

// Scale bar
const scale = document.getElementById("scale");

function measure() {
  if (!scale || !viewer.world.getItemCount()) return;
  const item = viewer.world.getItemAt(0);
  const pixels = item.viewportToImageZoom(viewer.viewport.getZoom(true)); // screen pixels per slide pixel
  const most = (140 / pixels) * Number(mpp);
  const power = 10 ** Math.floor(Math.log10(most));
  const length = [5, 2, 1].map((step) => step * power).find((step) => step <= most);
  const text = length >= 1000 ? `${length / 1000} mm` : `${length} µm`;
  scale.firstChild.nodeType === Node.TEXT_NODE ? (scale.firstChild.data = text) : scale.prepend(text);
  scale.setAttribute("aria-label", `Scale bar: ${text}`);
  scale.querySelector("span").style.width = `${(length / Number(mpp)) * pixels}px`;
}

viewer.addHandler("animation", measure);
viewer.addHandler("resize", measure);
viewer.addHandler("open", () => {
  for (const name of Object.keys(address)) lay(name);
  if (asked.has("x") && asked.has("y")) {
    const item = viewer.world.getItemAt(0);
    const spot = item.imageToViewportCoordinates(Number(asked.get("x")), Number(asked.get("y")));
    viewer.viewport.zoomTo(item.imageToViewportZoom(0.5), null, true).panTo(spot, true).applyConstraints(true);
  }
  measure();
  element.dataset.open = "";
});
