// A run's page: sample sheets over time, cancelling and going on.
import { send, explain } from "./api.js";
import "./refresh.js";

const slider = document.getElementById("sample");
slider?.addEventListener("input", () => {
  const sheet = slider.dataset.samples.split(" ")[slider.value];
  document.getElementById("sheet").src = `/v1/runs/${slider.dataset.run}/samples/${sheet}`;
  document.getElementById("step").value = Number.parseInt(sheet, 10);
});

document.addEventListener("click", async (event) => {
  const { act, job } = event.target.dataset ?? {};
  if (!act) return;
  try {
    await send("POST", `/v1/jobs/${job}/${act}`);
    location.reload();
  } catch (error) {
    document.getElementById("problem").textContent = explain(error);
  }
});
