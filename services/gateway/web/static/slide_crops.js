// Crops cut out of slides: around a click, or where a clustering has patches of a tissue type.
import { send } from "./api.js";
import { deepZoom, tilesOf, zoomWith } from "./deepzoom.js";

const TILES_AT_ONCE = 24;
const MOVING = /^(Arrow|[-+=_])/; // keys of the viewer's; letters and digits are the studio's
const STILL = { clickToZoom: false, dblClickToZoom: false };

// The square that the API cuts for a crop of `side` of the model's pixels, or as near to that as
// crops may be; its middle is at (x, y), in level-0 pixels, unless the slide ends there.
function square({ mpp, crop }, record, x, y, side = crop.most) {
  const sizes = [record.width, record.height];
  const scales = [record.mpp, record.mpp_y];
  const room = Math.floor(Math.min(...sizes.map((size, axis) => (size * scales[axis]) / mpp)));
  side = Math.max(crop.least, Math.min(crop.most, room, Math.round(side)));
  const spans = scales.map((scale) => (side * mpp) / scale);
  const [left, top] = [x, y].map((middle, axis) => {
    const corner = Math.min(Math.round(middle - spans[axis] / 2), Math.floor(sizes[axis] - spans[axis]));
    return Math.max(0, corner);
  });
  const query = new URLSearchParams({ x: left, y: top, side, mpp });
  return { slide: record.slide, x: left, y: top, side, spans, address: `/v1/slides/${record.slide}/crop.png?${query}` };
}

export class SlideView {
  // `take` is called with the square that was clicked, or that lies in the middle at Enter.
  constructor(element, toolbar, take) {
    Object.assign(this, { element, toolbar, take });
    [this.aim, this.taken] = ["aim", "taken"].map((className) => Object.assign(document.createElement("div"), { className }));
  }

  open(record, model) {
    this.viewer ??= this.made();
    const other = this.record !== record;
    Object.assign(this, { record, model });
    if (!other) return this.point();
    delete this.element.dataset.open;
    this.viewer.canvas.setAttribute("aria-label", `Slide ${record.slide}: arrows move, plus and minus zoom, Enter takes the square`);
    this.viewer.open(tilesOf(record.slide));
  }

  made() {
    const viewer = deepZoom(this.element, { gestureSettingsMouse: STILL, gestureSettingsTouch: STILL, gestureSettingsPen: STILL });
    zoomWith(this.toolbar, viewer);
    viewer.addHandler("open", () => {
      this.mark(this.square);
      this.point();
      this.element.dataset.open = "";
    });
    viewer.addHandler("canvas-click", ({ quick, position }) => {
      if (!quick) return; // it was dragged
      this.point(position);
      this.take(this.aimed);
    });
    viewer.addHandler("canvas-key", (event) => {
      const { key } = event.originalEvent;
      event.preventDefaultAction = !MOVING.test(key);
      if (key === "Enter") this.take(this.aimed);
      else if (!event.preventDefaultAction) this.point();
    });
    viewer.addHandler("animation", () => this.point(this.spot));
    this.element.addEventListener("pointermove", ({ clientX, clientY }) => {
      const box = this.element.getBoundingClientRect();
      this.point(new window.OpenSeadragon.Point(clientX - box.left, clientY - box.top));
    });
    this.element.addEventListener("pointerleave", () => this.point());
    return viewer;
  }

  // Aims at a spot of the screen, or at the middle.
  point(spot = null) {
    const item = this.viewer.world.getItemAt(0);
    if (!item) return;
    this.spot = spot;
    const { x: width, y: height } = this.viewer.viewport.getContainerSize();
    const { x, y } = item.viewerElementToImageCoordinates(spot ?? new window.OpenSeadragon.Point(width / 2, height / 2));
    this.aimed = square(this.model, this.record, x, y);
    this.outline(this.aim, this.aimed);
  }

  // Marks the square that a crop was cut from, if it is of this slide.
  mark(found) {
    this.square = found;
    if (!this.viewer?.world.getItemCount()) return;
    if (found && found.slide === this.record.slide) this.outline(this.taken, found);
    else this.viewer.removeOverlay(this.taken);
  }

  outline(element, { x, y, spans }) {
    const box = this.viewer.world.getItemAt(0).imageToViewportRectangle(x, y, ...spans);
    if (this.viewer.getOverlayById(element)) this.viewer.updateOverlay(element, box);
    else this.viewer.addOverlay(element, box);
  }
}

// What `Patches` show of a clustering: its types, and how many µm long a patch is.
export async function readAtlas(run) {
  const { cohort, types } = await send("GET", `/v1/clusters/${run}`);
  const { patches } = await send("GET", `/v1/cohorts/${cohort}`);
  return { run, types: types.filter((item) => item.patches), length: patches.size * patches.mpp };
}

export class Patches {
  // `list` holds the tiles; `take` is called with the square of the patch that was chosen.
  constructor(list, take) {
    Object.assign(this, { list, take });
  }

  // Shows the patches nearest to a type's centre; slides take turns.
  async show(type, model) {
    const asked = (this.asked = {});
    const { items } = await send("GET", `/v1/clusters/${this.run}/types/${type}/slides?limit=${TILES_AT_ONCE}`);
    const squares = await Promise.all(items.map(async ({ slide, nearest }) => {
      const found = await send("GET", `/v1/slides/${slide}`).catch(() => null); // it may have been deleted
      const record = found?.record;
      return record ? nearest.map(([x, y]) => {
        const [dx, dy] = [record.mpp, record.mpp_y].map((mpp) => this.length / mpp / 2);
        return square(model, record, x + dx, y + dy, this.length / model.mpp);
      }) : [];
    }));
    if (asked !== this.asked) return; // another was asked for meanwhile
    const turns = squares.flatMap((own) => own.map((item, turn) => ({ item, turn }))).sort((one, other) => one.turn - other.turn);
    this.list.replaceChildren(...turns.slice(0, TILES_AT_ONCE).map(({ item }) => this.tile(item)));
  }

  tile(found) {
    const tile = Object.assign(document.createElement("li"), { title: `${found.slide} at ${found.x}, ${found.y}` });
    const take = Object.assign(document.createElement("button"), { type: "button", className: "tile" });
    take.dataset.address = found.address;
    take.append(Object.assign(new Image(), { src: found.address, alt: `Patch of ${tile.title}`, loading: "lazy" }));
    take.addEventListener("click", () => this.take(found));
    tile.append(take);
    return tile;
  }

  mark(found) {
    for (const { firstChild: take } of this.list.children) take.setAttribute("aria-pressed", String(take.dataset.address === found?.address));
  }
}
