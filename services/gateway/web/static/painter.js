// Painting a label map by mouse, pen or touch.
import { draw } from "./label_map.js";

const SVG = "http://www.w3.org/2000/svg";
const PEN_ERASER = 32; // of a pointer's buttons
const NEAR = 12; // CSS pixels from the first corner within which a click closes a polygon

export class Painter {
  // `changed` is called after every stroke.
  constructor(canvas, guide, changed) {
    Object.assign(this, { canvas, guide, changed, tool: "brush", label: 1, blank: 0, width: 1, corners: [], last: null });
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerleave", () => this.outline(null));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => this.up());
    canvas.addEventListener("dblclick", () => this.close());
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  show(map, colors) {
    Object.assign(this, { map, colors, corners: [] });
    this.guide.setAttribute("viewBox", `0 0 ${map.size} ${map.size}`);
    this.redraw();
  }

  take(tool) {
    this.tool = tool;
    this.drop();
  }

  redraw() {
    draw(this.canvas, this.map.size, this.map.data, this.colors);
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.map.size / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  pixel(event) {
    return this.at(event).map((part) => Math.floor(part));
  }

  inside([x, y]) {
    return x >= 0 && y >= 0 && x < this.map.size && y < this.map.size;
  }

  down(event) {
    const erasing = Boolean(event.buttons & PEN_ERASER);
    if (!event.isPrimary || (event.button !== 0 && !erasing)) return;
    this.canvas.setPointerCapture(event.pointerId);
    if (this.tool === "polygon" && !erasing) return this.corner(event);
    this.map.begin();
    const place = this.pixel(event);
    if (this.tool === "fill" && !erasing) {
      if (this.inside(place)) this.map.fill(place, this.label);
      return this.finish();
    }
    this.last = place;
    this.painted = erasing || this.tool === "eraser" ? this.blank : this.label;
    this.stroke(place);
  }

  move(event) {
    this.outline(event);
    if (!this.last) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) this.stroke(this.pixel(each));
  }

  stroke(place) {
    this.map.line(this.last, place, this.width, this.painted);
    this.last = place;
    this.redraw();
  }

  up() {
    if (this.last) this.finish();
  }

  finish() {
    this.last = null;
    if (this.map.end()) this.changed();
    this.redraw();
  }

  corner(event) {
    const place = this.at(event);
    const [first] = this.corners;
    const scale = this.canvas.getBoundingClientRect().width / this.map.size;
    const near = first && scale * Math.hypot(place[0] - first[0], place[1] - first[1]) < NEAR;
    if (near && this.corners.length > 2) return this.close();
    this.corners.push(place);
    this.outline(event);
  }

  close() {
    if (this.corners.length < 3) return;
    this.map.begin();
    this.map.polygon(this.corners, this.label);
    this.finish();
    this.drop();
  }

  drop() {
    this.corners = [];
    this.outline(null);
  }

  // Shows what a click would do: the brush's rim, or the polygon so far.
  outline(event) {
    const shapes = [];
    const add = (kind, attributes) => {
      for (const line of ["under", "over"]) { // dark and light, to be seen on any colour
        const shape = document.createElementNS(SVG, kind);
        for (const [name, value] of Object.entries({ ...attributes, class: line })) shape.setAttribute(name, value);
        shapes.push(shape);
      }
    };
    const unit = this.map.size / this.canvas.getBoundingClientRect().width;
    if (this.tool === "polygon" && this.corners.length) {
      const here = event ? [this.at(event)] : [];
      add("polyline", { points: [...this.corners, ...here].join(" ") });
      add("circle", { cx: this.corners[0][0], cy: this.corners[0][1], r: (NEAR / 2) * unit });
    } else if (event && event.pointerType !== "touch" && ["brush", "eraser"].includes(this.tool)) {
      const [x, y] = this.pixel(event);
      add("circle", { cx: x + 0.5, cy: y + 0.5, r: this.width / 2 });
    }
    this.guide.replaceChildren(...shapes);
  }
}
