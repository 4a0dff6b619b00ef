// Deployment versions.
import { send, explain } from "./api.js";

const problem = document.getElementById("problem");

document.addEventListener("click", async (event) => {
  const version = event.target.dataset?.deploy;
  if (!version || !confirm(`Serve ${version} on Triton from now on?`)) return;
  event.target.disabled = true;
  try {
    const job = await send("POST", `/v1/models/${version}/deploy`, {});
    event.target.textContent = "Deployment …";
    const events = new EventSource(`/v1/jobs/${job.job}/events`);
    events.addEventListener("status", (message) => {
      const status = JSON.parse(message.data);
      if (status.state === "done") location.reload();
      else if (["failed", "partial", "cancelled"].includes(status.state)) {
        events.close();
        event.target.textContent = "Deploy";
        event.target.disabled = false;
        problem.textContent = Object.values(status.failed).join("; ") || `the job is ${status.state}`;
      }
    });
  } catch (error) {
    problem.textContent = explain(error);
    event.target.disabled = false;
  }
});
