// A label map: class indices in a typed array, painted pixel by pixel, with undo.
const MAX_UNDO_STEPS = 100;

export class LabelMap {
  constructor(size, data = new Uint8Array(size * size)) {
    this.size = size;
    this.data = data;
    this.past = [];
    this.future = [];
    this.before = null; // what the map was when the stroke began
  }

  begin() {
    this.before = this.data.slice();
  }

  // Ends a stroke, as one step of undo; says whether it changed anything.
  end() {
    const before = this.before;
    this.before = null;
    if (!before || before.every((label, place) => label === this.data[place])) return false;
    this.past.push(before);
    if (this.past.length > MAX_UNDO_STEPS) this.past.shift();
    this.future = [];
    return true;
  }

  replace(data) {
    this.begin();
    this.data.set(data);
    return this.end();
  }

  undo() {
    this.step(this.past, this.future);
  }

  redo() {
    this.step(this.future, this.past);
  }

  step(from, to) {
    if (!from.length) return;
    to.push(this.data);
    this.data = from.pop();
  }

  // Paints all pixels whose centre is within half of `width` (odd) of a line between two pixels.
  line([x0, y0], [x1, y1], width, label) {
    const radius = width / 2;
    const [dx, dy] = [x1 - x0, y1 - y0];
    const length = dx * dx + dy * dy;
    const low = (a, b) => Math.max(0, Math.ceil(Math.min(a, b) - radius));
    const high = (a, b) => Math.min(this.size - 1, Math.floor(Math.max(a, b) + radius));
    for (let y = low(y0, y1); y <= high(y0, y1); y++) {
      for (let x = low(x0, x1); x <= high(x0, x1); x++) {
        const along = length ? ((x - x0) * dx + (y - y0) * dy) / length : 0;
        const near = Math.min(1, Math.max(0, along));
        const distance = Math.hypot(x - x0 - near * dx, y - y0 - near * dy);
        if (distance <= radius) this.data[y * this.size + x] = label;
      }
    }
  }

  // Paints all pixels whose centre is inside (even-odd); corners are between pixels.
  polygon(corners, label) {
    for (let y = 0; y < this.size; y++) {
      const crossings = [];
      corners.forEach(([x0, y0], number) => {
        const [x1, y1] = corners[(number + 1) % corners.length];
        const middle = y + 0.5;
        if (y0 <= middle !== y1 <= middle) crossings.push(x0 + ((middle - y0) * (x1 - x0)) / (y1 - y0));
      });
      crossings.sort((a, b) => a - b);
      for (let pair = 0; pair + 1 < crossings.length; pair += 2) {
        const [start, end] = [crossings[pair], crossings[pair + 1]].map((x) => Math.min(this.size, Math.max(0, Math.ceil(x - 0.5))));
        this.data.fill(label, y * this.size + start, y * this.size + end);
      }
    }
  }

  // Paints the area of one class around a pixel.
  fill([x, y], label) {
    const { size, data } = this;
    const old = data[y * size + x];
    if (old === label) return;
    const open = [y * size + x];
    while (open.length) {
      const place = open.pop();
      if (data[place] !== old) continue;
      data[place] = label;
      const column = place % size;
      if (column > 0) open.push(place - 1);
      if (column < size - 1) open.push(place + 1);
      if (place >= size) open.push(place - size);
      if (place < size * (size - 1)) open.push(place + size);
    }
  }
}

// Shares of the classes in a map, by index.
export function shares(data, classes) {
  const counts = new Array(classes).fill(0);
  for (const label of data) counts[label] += 1;
  return counts.map((count) => count / data.length);
}

// Draws indices in the colours of their classes; a colour may have an alpha.
export function draw(canvas, size, data, colors) {
  canvas.width = canvas.height = size;
  const picture = new ImageData(size, size);
  data.forEach((label, place) => picture.data.set([...colors[label], 255].slice(0, 4), 4 * place));
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

// The indices of a map that has `side` pixels a side: each is that of the nearest pixel.
export function enlarged({ size, data }, side) {
  const found = new Uint8Array(side * side);
  const places = Uint32Array.from({ length: side }, (_, place) => Math.floor((place * size) / side));
  for (let y = 0; y < side; y++) {
    const row = places[y] * size;
    for (let x = 0; x < side; x++) found[y * side + x] = data[row + places[x]];
  }
  return found;
}
