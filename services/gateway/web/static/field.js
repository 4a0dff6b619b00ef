// The page of a field that is not finished: its progress by server-sent events.
import { explain, send } from "./api.js";

const at = (id) => document.getElementById(id);
const { job } = at("field").dataset;
const ENDED = ["done", "partial", "failed", "cancelled"];

function tell(status) {
  at("state").textContent = status.state;
  at("state").className = `state ${status.state}`;
  at("bar").max = status.total || 1;
  at("bar").value = status.done;
  at("live").textContent = status.total ? `${status.done} of ${status.total} shards` : "";
  at("problem").textContent = Object.values(status.failed).join("; ");
  if (at("cancel")) at("cancel").hidden = ENDED.includes(status.state);
}

at("cancel")?.addEventListener("click", async () => {
  try {
    tell(await send("POST", `/v1/jobs/${job}/cancel`));
  } catch (error) {
    at("problem").textContent = explain(error);
  }
});

const events = new EventSource(`/v1/jobs/${job}/events`);
events.addEventListener("status", (event) => {
  const status = JSON.parse(event.data);
  tell(status);
  if (!ENDED.includes(status.state)) return;
  events.close();
  if (status.state === "done") location.reload(); // now it can be seen
});
