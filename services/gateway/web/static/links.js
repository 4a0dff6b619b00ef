// A reader's link, with a button that copies it.
export function linkRow(link) {
  const row = document.createElement("li");
  const name = document.createElement("strong");
  name.textContent = link.name;
  const address = document.createElement("input");
  address.readOnly = true;
  address.value = new URL(link.path, location.href).href;
  address.setAttribute("aria-label", `Link for ${link.name}`);
  address.addEventListener("focus", () => address.select());
  const copy = document.createElement("button");
  copy.type = "button";
  copy.className = "button";
  copy.textContent = "Copy";
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(address.value);
      copy.textContent = "Copied";
    } catch {
      address.focus(); // selected, to be copied by hand
    }
  });
  row.append(name, address, copy);
  return row;
}
