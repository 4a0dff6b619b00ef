// A square cut by hand from a picture of the user's, which stays on this machine.
const MAX_SHOWN_SIDE = 1024; // pixels of the longer side on the screen
const MAX_ENLARGEMENT = 8;

export class Cutting {
  // `done` is called with the class, the square's PNG, and the picture's name.
  constructor(dialog, done) {
    Object.assign(this, { dialog, done });
    this.at = (id) => dialog.querySelector(`#${id}`);
    this.canvas = this.at("cut");
    this.at("file").addEventListener("change", () => this.load());
    this.at("picture-mpp").addEventListener("input", () => { this.square = null; this.redraw(); });
    this.canvas.addEventListener("pointerdown", (event) => {
      if (!event.isPrimary || event.button !== 0) return;
      this.canvas.setPointerCapture(event.pointerId);
      this.start = this.place(event);
      this.drag(event);
    });
    this.canvas.addEventListener("pointermove", (event) => { if (this.start) this.drag(event); });
    for (const end of ["pointerup", "pointercancel"]) this.canvas.addEventListener(end, () => { this.start = null; });
    this.at("use").addEventListener("click", async () => {
      const crop = await this.cut();
      dialog.close();
      this.done(this.label, crop, this.at("file").files[0].name);
    });
  }

  // Opens the dialog for a crop of a class; of none, if `label` is null.
  open(model, label) {
    if (!this.at("picture-mpp").value || this.model?.mpp !== model.mpp) this.at("picture-mpp").value = model.mpp;
    Object.assign(this, { model, label, square: null });
    this.at("picture-title").textContent = label === null ? "A part of a picture" : `A crop of ${model.classes[label].name}`;
    this.redraw();
    this.dialog.showModal();
  }

  async load() {
    const [file] = this.at("file").files;
    this.picture?.close();
    this.picture = this.square = null;
    this.at("cut-note").textContent = "";
    if (file) {
      try {
        this.picture = await createImageBitmap(file);
      } catch {
        this.at("cut-note").textContent = `${file.name} cannot be read: open a PNG, JPEG or WebP.`;
      }
    }
    this.redraw();
  }

  // Pixels of the picture for each of the model's.
  get scale() {
    return this.model.mpp / (Number(this.at("picture-mpp").value) || this.model.mpp);
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.picture.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  drag(event) {
    const { least, most } = this.model.crop;
    const here = this.place(event);
    const [dx, dy] = [here[0] - this.start[0], here[1] - this.start[1]];
    const room = Math.min(most, Math.floor(Math.min(this.picture.width, this.picture.height) / this.scale));
    if (room < least) {
      this.at("cut-note").textContent = `The picture is too small: it must be at least ${least} px wide at the model’s ${this.model.mpp} µm per pixel.`;
      return;
    }
    const side = Math.min(room, Math.max(least, Math.round(Math.max(Math.abs(dx), Math.abs(dy)) / this.scale)));
    const span = side * this.scale;
    const corner = (start, way, whole) => Math.min(whole - span, Math.max(0, way < 0 ? start - span : start));
    this.square = {
      x: corner(this.start[0], dx, this.picture.width),
      y: corner(this.start[1], dy, this.picture.height),
      span,
      side,
    };
    this.redraw();
  }

  redraw() {
    const { picture, square, canvas } = this;
    canvas.parentElement.hidden = !picture;
    this.at("use").disabled = !square;
    if (!picture) return;
    const zoom = Math.min(MAX_ENLARGEMENT, MAX_SHOWN_SIDE / Math.max(picture.width, picture.height));
    canvas.width = Math.max(1, Math.round(picture.width * zoom));
    canvas.height = Math.max(1, Math.round(picture.height * zoom));
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = zoom < 1;
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    if (!square) return;
    this.at("cut-note").textContent = `${square.side} × ${square.side} px at the model’s ${this.model.mpp} µm per pixel`;
    const [x, y, span] = [square.x, square.y, square.span].map((part) => part * zoom);
    context.lineWidth = 3;
    context.strokeStyle = "#000";
    context.strokeRect(x, y, span, span);
    context.lineWidth = 1.5;
    context.strokeStyle = "#fff";
    context.strokeRect(x, y, span, span);
  }

  cut() {
    const { x, y, span, side } = this.square;
    const canvas = new OffscreenCanvas(side, side);
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(this.picture, x, y, span, span, 0, 0, side, side);
    return canvas.convertToBlob({ type: "image/png" });
  }
}
