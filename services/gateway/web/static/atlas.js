// The atlas of a clustering: naming, colouring and merging its tissue types.
import { send, explain } from "./api.js";

const at = (id) => document.getElementById(id);
const list = at("types");
const { run } = list.dataset;
const place = `/v1/clusters/${run}`;
const cards = [...list.children];
const nameOf = (card) => card.querySelector(".name").value.trim();
const byLabel = (label) => cards.find((card) => card.dataset.label === label);
let tag = list.dataset.tag;
let changed = false;

function say(text) {
  at("status").textContent = text;
}

function show() {
  for (const card of cards) {
    const into = byLabel(card.dataset.merge);
    const note = card.querySelector(".merged");
    note.textContent = into ? `merged into ${into.dataset.label}, ${nameOf(into)}` : "";
    note.hidden = !into;
    card.classList.toggle("is-merged", Boolean(into));
    const separate = card.querySelector(".separate");
    if (separate) separate.hidden = !into;
  }
}

function ticked() {
  return cards.filter((card) => card.querySelector("[type=checkbox]")?.checked);
}

function change() {
  changed = true;
  at("save").disabled = false;
  say("Changes are not saved yet.");
  show();
}

function rgb(hex) {
  return [1, 3, 5].map((start) => Number.parseInt(hex.slice(start, start + 2), 16));
}

list.addEventListener("input", (event) => {
  if (event.target.type === "checkbox") at("merge").disabled = ticked().length < 2;
  else change();
});

list.addEventListener("click", (event) => {
  if (!event.target.classList.contains("separate")) return;
  event.target.closest(".type").dataset.merge = "";
  change();
});

list.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.classList.contains("name")) at("save")?.click();
});

at("merge")?.addEventListener("click", () => {
  const [first, ...others] = ticked();
  for (const card of others) card.dataset.merge = first.dataset.label;
  first.dataset.merge = "";
  for (const card of [first, ...others]) card.querySelector("[type=checkbox]").checked = false;
  at("merge").disabled = true;
  change();
});

async function save() {
  const types = Object.fromEntries(cards.map((card) => [card.dataset.label, {
    name: nameOf(card),
    color: rgb(card.querySelector("[type=color]").value),
    merge: card.dataset.merge ? Number(card.dataset.merge) : null,
  }]));
  await send("PUT", `${place}/types`, types, { "If-Match": tag });
  tag = (await fetch(place)).headers.get("ETag");
  changed = false;
  at("save").disabled = true;
}

async function attempt(act) {
  at("problem").textContent = "";
  try {
    await act();
  } catch (error) {
    at("problem").textContent = explain(error);
  }
}

at("save")?.addEventListener("click", () => attempt(async () => {
  const empty = cards.find((card) => !nameOf(card));
  if (empty) {
    empty.querySelector(".name").reportValidity();
    return;
  }
  await save();
  say("Saved. Apply makes regions by these types.");
}));

at("apply")?.addEventListener("click", () => attempt(async () => {
  if (changed) await save();
  const job = await send("POST", `${place}/apply`);
  const events = new EventSource(`/v1/jobs/${job.job}/events`);
  events.addEventListener("status", (message) => {
    const status = JSON.parse(message.data);
    say(status.state === "done" ? "Applied: regions and galleries are made again." : `Applying: ${status.state}`);
    if (!["done", "partial", "failed", "cancelled"].includes(status.state)) return;
    events.close();
    at("problem").textContent = Object.values(status.failed).join("; ");
  });
}));

at("filter").addEventListener("input", (event) => {
  const wanted = event.target.value.trim().toLowerCase();
  for (const card of cards) card.hidden = !`${card.dataset.label} ${nameOf(card)}`.toLowerCase().includes(wanted);
});

const ORDERS = {
  label: (one, other) => one.dataset.label - other.dataset.label,
  patches: (one, other) => other.dataset.patches - one.dataset.patches,
  name: (one, other) => nameOf(one).localeCompare(nameOf(other)),
};
at("sort").addEventListener("change", (event) => list.replaceChildren(...[...cards].sort(ORDERS[event.target.value])));

list.addEventListener("toggle", (event) => {
  const places = event.target.querySelector(".places");
  if (!event.target.open || places.children.length) return;
  const { label } = event.target.closest(".type").dataset;
  attempt(async () => {
    const { items, next } = await send("GET", `${place}/types/${label}/slides`);
    const rows = items.map((item) => {
      const query = new URLSearchParams({ run, type: label, x: item.x, y: item.y });
      const link = Object.assign(document.createElement("a"), { href: `/slides/${item.slide}?${query}`, textContent: item.slide });
      const entry = document.createElement("li");
      entry.append(link, ` ${item.patches.toLocaleString()} patches`);
      return entry;
    });
    if (next) rows.push(Object.assign(document.createElement("li"), { textContent: "and more slides" }));
    places.replaceChildren(...rows);
  });
}, true);

addEventListener("beforeunload", (event) => { if (changed) event.preventDefault(); });
show();
