// A dataset's page: live progress by server-sent events, previews, shards.
import { send, explain } from "./api.js";

const at = (id) => document.getElementById(id);
const { dataset, state } = at("dataset").dataset;
const place = `/v1/datasets/${dataset}`;
const ENDED = ["done", "partial", "failed", "cancelled"];
let shown = -1; // finished shards when preview and list were loaded

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function tell(status) {
  at("state").textContent = status.state;
  at("state").className = `state ${status.state}`;
  at("bar").max = status.images;
  at("bar").value = status.made;
  const parts = [`${status.made.toLocaleString()} of ${status.images.toLocaleString()} images`];
  if (status.shards) parts.push(`${status.shards_done} of ${status.shards} shards`);
  if (status.images_per_second) parts.push(`${status.images_per_second.toPrecision(3)} images/s`);
  if (status.seconds_left) parts.push(`about ${duration(status.seconds_left)} left`);
  at("live").textContent = parts.join(" · ");
  const failures = Object.entries(status.failed);
  at("failed").hidden = !failures.length;
  at("failures").replaceChildren(...failures.map(([shard, why]) => {
    const row = document.createElement("li");
    row.textContent = `${shard}: ${why}`;
    return row;
  }));
  const ended = ENDED.includes(status.state);
  if (at("cancel")) at("cancel").hidden = ended;
  at("download").hidden = !["done", "partial"].includes(status.state);
  const version = ended ? -2 : status.shards_done;
  if (status.shards_done && version !== shown) {
    shown = version;
    at("sheet").src = `${place}/preview?shards=${status.shards_done}`;
    listShards().catch((error) => { at("problem").textContent = explain(error); });
  }
}

at("sheet").addEventListener("load", () => { at("preview").hidden = false; });

async function listShards() {
  const { items } = await send("GET", `${place}/shards?limit=200`);
  at("shards").hidden = !items.length;
  at("links").replaceChildren(...items.map((item) => {
    const row = document.createElement("tr");
    const link = Object.assign(document.createElement("a"), { href: item.url, textContent: item.shard, download: item.shard });
    const code = Object.assign(document.createElement("code"), { textContent: item.sha256.slice(0, 16) });
    code.title = item.sha256;
    for (const content of [link, `${(item.bytes / 1e6).toFixed(1)} MB`, code]) {
      const cell = document.createElement("td");
      cell.append(content);
      row.append(cell);
    }
    return row;
  }));
}

at("cancel")?.addEventListener("click", async () => {
  try {
    tell(await send("POST", `${place}/cancel`));
  } catch (error) {
    at("problem").textContent = explain(error);
  }
});

if (ENDED.includes(state)) {
  tell(await send("GET", place));
} else {
  const events = new EventSource(`${place}/events`);
  events.addEventListener("status", (event) => {
    const status = JSON.parse(event.data);
    tell(status);
    if (ENDED.includes(status.state)) events.close();
  });
}
