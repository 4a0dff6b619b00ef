// Swatches in their colours, which a strict policy keeps out of the markup.
export function paintSwatches() {
  for (const swatch of document.querySelectorAll("[data-color]")) {
    swatch.style.backgroundColor = `rgb(${swatch.dataset.color})`;
  }
}
