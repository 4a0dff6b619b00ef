// Makes a reader study, and shows its links once.
import { send, explain } from "./api.js";
import { linkRow } from "./links.js";

const form = document.getElementById("study");

function body() {
  const data = new FormData(form);
  const seed = data.get("seed").trim();
  return {
    study: data.get("study"),
    real: [{ regions: data.get("regions"), splits: data.getAll("split") }],
    synthetic: data.getAll("dataset"),
    images: Number(data.get("images")),
    readers: data.get("readers").split("\n").map((name) => name.trim()).filter(Boolean),
    // Seeds may be beyond the numbers that JavaScript holds exactly.
    ...(seed ? { seed: JSON.rawJSON ? JSON.rawJSON(seed) : Number(seed) } : {}),
  };
}

form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const problem = document.getElementById("problem");
  const button = form.querySelector("[type=submit]");
  problem.textContent = "";
  button.disabled = true;
  try {
    const made = await send("POST", "/v1/reader-studies", body());
    document.getElementById("links").replaceChildren(...made.links.map(linkRow));
    document.getElementById("go").href = `/reader-studies/${made.status.study}`;
    form.hidden = true;
    const section = document.getElementById("made");
    section.hidden = false;
    section.focus();
  } catch (error) {
    problem.textContent = explain(error);
  } finally {
    button.disabled = false;
  }
});
