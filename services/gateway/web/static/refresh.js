// Parts of a page that renew themselves: <div id="…" data-refresh="seconds">.
for (const { id, dataset } of document.querySelectorAll("[data-refresh]")) {
  setInterval(async () => {
    const part = document.getElementById(id);
    if (document.hidden || part.contains(document.activeElement)) return;
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } }).catch(() => null);
    if (!answer?.ok) return; // the next one may succeed
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById(id);
    if (fresh && fresh.innerHTML !== part.innerHTML) part.replaceChildren(...fresh.childNodes);
  }, 1000 * Number(dataset.refresh));
}
