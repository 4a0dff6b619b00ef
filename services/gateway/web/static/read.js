// The reading page: one image at a time, answered by keyboard or touch.
// The link's token is behind # in the address, and is sent as a bearer token alone.

const token = location.hash.slice(1);
const at = (id) => document.getElementById(id);
const form = at("answer");
const picture = at("picture");
const sections = ["intro", "reading", "end", "thanks", "refused"];
const pictures = new Map(); // image → promise of the address of its bytes

let series = null; // what GET /v1/reading answers
let place = 0; // of the image that is shown
let seen = 0; // milliseconds that it has been looked at
let since = null; // when looking began; null while the page is hidden or the image not there
let busy = false;

async function ask(path, options = {}) {
  const headers = { Authorization: `Bearer ${token}`, ...options.headers };
  const answer = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  const error = new Error(problem.detail ?? `the server answered ${answer.status}`);
  error.status = answer.status;
  throw error;
}

function show(name) {
  for (const section of sections) at(section).hidden = section !== name;
  at(name).querySelector("[data-first]")?.focus(); // never the button that submits
}

function load(image) {
  if (!pictures.has(image)) {
    const address = ask(`/v1/reading/images/${image}`)
      .then((answer) => answer.blob())
      .then((blob) => URL.createObjectURL(blob));
    address.catch(() => pictures.delete(image)); // so that it is tried again
    pictures.set(image, address);
  }
  return pictures.get(image);
}

function keepNear() {
  const near = series.images.slice(Math.max(0, place - 2), place + 3).map((item) => item.image);
  for (const [image, address] of pictures) {
    if (!near.includes(image)) {
      pictures.delete(image);
      address.then(URL.revokeObjectURL, () => {});
    }
  }
}

function count() {
  const answered = series.images.filter((item) => item.answer).length;
  at("progress").max = series.images.length;
  at("progress").value = answered;
  at("count").textContent = at("reading").hidden
    ? `${answered} of ${series.images.length} answered`
    : `${place + 1} of ${series.images.length}`;
}

async function turnTo(next) {
  place = next;
  seen = 0;
  since = null;
  picture.removeAttribute("src");
  form.reset();
  const { image, answer } = series.images[place];
  if (answer) {
    form.elements.answer.value = answer.answer;
    form.elements.quality.value = String(answer.quality);
    form.elements.note.value = answer.note;
  }
  at("back").disabled = place === 0;
  if (at("reading").hidden) show("reading");
  complete();
  count();
  try {
    const address = await load(image);
    if (series.images[place].image !== image) return; // turned on meanwhile
    picture.src = address;
    await picture.decode();
    if (!document.hidden) since = performance.now();
    at("trouble").textContent = "";
  } catch (error) {
    trouble(error, "The image did not arrive");
  }
  keepNear();
  if (place + 1 < series.images.length) load(series.images[place + 1].image).catch(() => {});
}

function complete() {
  const ready = Boolean(form.elements.answer.value && form.elements.quality.value);
  at("next").disabled = !ready;
  return ready;
}

function trouble(error, what) {
  at("trouble").textContent = `${what}: ${error.message}. Try again in a moment.`;
}

async function keep() {
  if (!complete() || busy || !picture.src) return;
  const item = series.images[place];
  const looked = seen + (since === null ? 0 : performance.now() - since);
  const body = {
    answer: form.elements.answer.value,
    quality: Number(form.elements.quality.value),
    note: form.elements.note.value,
    seconds: Math.min(86400, Math.round(looked) / 1000),
  };
  busy = true;
  try {
    const kept = await ask(`/v1/reading/answers/${item.image}`, {
      method: "PUT",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    item.answer = await kept.json();
    at("trouble").textContent = "";
    form.elements.note.blur();
    forward();
  } catch (error) {
    trouble(error, "The answer was not kept");
  } finally {
    busy = false;
  }
}

function forward() {
  const open = series.images.findIndex((item) => !item.answer);
  if (place + 1 < series.images.length) turnTo(place + 1);
  else if (open >= 0) turnTo(open);
  else finish();
}

function finish() {
  show("end");
  count();
}

async function submit() {
  try {
    await ask("/v1/reading/submit", { method: "POST" });
    at("trouble").textContent = "";
    series.submitted = true;
    show("thanks");
  } catch (error) {
    trouble(error, "The answers were not submitted");
  }
}

function pressed(event) {
  if (at("reading").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const note = form.elements.note;
  if (event.target === note) {
    if (event.key === "Escape") note.blur();
    if (event.key !== "Enter" || event.shiftKey) return;
  }
  const key = event.key.toLowerCase();
  if (key === "r") form.elements.answer.value = "real";
  else if (key === "s") form.elements.answer.value = "synthetic";
  else if (/^[1-5]$/.test(key)) form.elements.quality.value = key;
  else if (key === "n") note.focus();
  else if (key === "arrowleft") { if (place > 0) turnTo(place - 1); }
  else if (key === "arrowright") { if (series.images[place].answer) forward(); }
  else if (key === "enter") { if (event.target !== at("back")) keep(); else return; }
  else return;
  event.preventDefault();
  complete();
}

function looking() {
  if (since !== null) seen += performance.now() - since;
  since = document.hidden || !picture.src ? null : performance.now();
}

form.addEventListener("change", complete);
form.addEventListener("submit", (event) => { event.preventDefault(); keep(); });
at("back").addEventListener("click", () => turnTo(place - 1));
at("start").addEventListener("click", () => turnTo(Math.max(0, series.images.findIndex((item) => !item.answer))));
at("review").addEventListener("click", () => turnTo(series.images.length - 1));
at("submit").addEventListener("click", submit);
document.addEventListener("keydown", pressed);
document.addEventListener("visibilitychange", looking);
addEventListener("hashchange", () => location.reload());

try {
  series = await (await ask("/v1/reading")).json();
  at("who").textContent = series.reader;
  at("total").textContent = series.images.length;
  const answered = series.images.filter((item) => item.answer).length;
  if (answered) at("start").textContent = "Go on";
  count();
  if (series.submitted) show("thanks");
  else if (answered === series.images.length) finish();
  else show("intro");
} catch (error) {
  at("why").textContent = error.status === 401
    ? "Open the link as it was sent to you, or ask for a new one."
    : `${error.message}. Try again in a moment.`;
  show("refused");
}
