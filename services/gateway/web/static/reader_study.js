// A study's page: progress by itself, new links, deletion.
import { send, explain } from "./api.js";
import { linkRow } from "./links.js";
import "./refresh.js";

const problem = document.getElementById("problem");

document.addEventListener("click", async (event) => {
  const { renew, study } = event.target.dataset ?? {};
  if (!renew) return;
  if (!confirm("Make a new link? The one that this reader has will no longer open the study.")) return;
  try {
    const link = await send("POST", `/v1/reader-studies/${study}/readers/${renew}/link`);
    document.getElementById("links").replaceChildren(linkRow(link));
    document.getElementById("renewed").showModal();
  } catch (error) {
    problem.textContent = explain(error);
  }
});

document.getElementById("delete").addEventListener("click", async (event) => {
  const { study } = event.target.dataset;
  if (!confirm(`Delete study ${study} with its pictures and all answers?`)) return;
  try {
    await send("DELETE", `/v1/reader-studies/${study}`);
    location.href = "/reader-studies";
  } catch (error) {
    problem.textContent = explain(error);
  }
});
