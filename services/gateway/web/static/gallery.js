// Regions of a set, to take crops and label maps from.
import { ask, send } from "./api.js";
import { pixels } from "./png.js";

const TILES_AT_ONCE = 24;
const MAX_OF_ONE_SLIDE = 4; // tiles, so that many slides are seen
const SLIDES = 6; // whose regions are asked for together
const MIN_SHARE = 0.05; // of the class in a region that is offered

export class Gallery {
  // `list` holds the tiles; `crop` and `map` are called with the region that was chosen.
  constructor(list, crop, map) {
    Object.assign(this, { list, crop, map, tiles: new Map() });
  }

  close() {
    this.record = null;
    this.tiles.clear();
    this.list.replaceChildren();
  }

  async open(name, model) {
    this.close();
    const record = await send("GET", `/v1/regions/${name}`);
    const names = record.classes.items.map((item) => item.name);
    const known = model.classes.map((item) => item.name);
    const alien = names.slice(1).filter((item) => !known.includes(item));
    if (alien.length) throw new Error(`region set ${name} has classes that the model does not know: ${alien.join(", ")}`);
    if (record.classes.exhaustive !== (model.first === 0)) {
      throw new Error(`class 0 of region set ${name} means something else to the model`);
    }
    const full = record.slides.filter((slide) => slide.regions);
    const train = full.filter((slide) => slide.split === "train");
    Object.assign(this, { record, model, names, table: names.map((item, label) => (label ? known.indexOf(item) : 0)) });
    this.slides = (train.length ? train : full).map((slide) => slide.slide);
    this.rows = [];
  }

  address(row) {
    return `/v1/regions/${this.record.name}/${row.slide}/${row.key}.png`;
  }

  share(row, label) {
    return row.fractions[this.table.indexOf(label)] ?? 0;
  }

  // Regions that hold a class, some of each slide; asks for more slides until there are enough.
  async holding(label, count) {
    const { rows, slides } = this;
    const found = () => {
      const seen = {};
      return rows.filter((row) => {
        if (this.share(row, label) < MIN_SHARE) return false;
        seen[row.slide] = (seen[row.slide] ?? 0) + 1;
        return seen[row.slide] <= MAX_OF_ONE_SLIDE;
      });
    };
    while (found().length < count && slides.length) {
      const pages = slides.splice(0, SLIDES).map((slide) => send("GET", `/v1/regions/${this.record.name}/${slide}?limit=100`));
      for (const page of await Promise.all(pages)) rows.push(...page.items);
    }
    return found();
  }

  // Shows regions that hold a class; says whether there may be more.
  async show(label, more = false) {
    const { record } = this;
    const count = TILES_AT_ONCE + (more ? this.list.children.length : 0);
    const rows = (await this.holding(label, count)).slice(0, count);
    if (record !== this.record) return false; // another set was opened meanwhile
    this.list.replaceChildren(...rows.map((row) => this.tile(row, label)));
    return rows.length === count;
  }

  tile(row, label) {
    if (!this.tiles.has(row.key)) {
      const tile = document.createElement("li");
      const picture = Object.assign(new Image(), { src: this.address(row), alt: `Region ${row.key}`, loading: "lazy" });
      const take = Object.assign(document.createElement("button"), { type: "button", className: "tile" });
      take.dataset.region = row.key;
      take.append(picture);
      take.addEventListener("click", () => this.crop(row));
      const map = Object.assign(document.createElement("button"), { type: "button", className: "button small", textContent: "Take map" });
      map.setAttribute("aria-label", `Take the map of region ${row.key}`);
      map.addEventListener("click", () => this.map(row));
      tile.append(take, ...(this.map ? [map] : []));
      this.tiles.set(row.key, tile);
    }
    const tile = this.tiles.get(row.key);
    tile.title = `${row.key}: ${Math.round(100 * this.share(row, label))} % ${this.model.classes[label].name}`;
    return tile;
  }

  mark(region) {
    for (const [key, tile] of this.tiles) tile.firstChild.setAttribute("aria-pressed", String(key === region));
  }

  // The middle of a region's label map, in the model's indices.
  async labels(row) {
    const answer = await ask("GET", `${this.address(row)}?show=labels`);
    const found = await pixels(await answer.blob());
    const { size } = this.model;
    if (found.width < size || found.height < size) {
      throw new Error(`region ${row.key} is ${found.width} × ${found.height} px, and the map ${size} × ${size} px: take a set of larger regions`);
    }
    const [left, top] = [found.width - size, found.height - size].map((rest) => Math.floor(rest / 2));
    return Uint8Array.from({ length: size * size }, (_, place) => {
      const [x, y] = [left + (place % size), top + Math.floor(place / size)];
      return this.table[found.data[4 * (y * found.width + x)]];
    });
  }
}
