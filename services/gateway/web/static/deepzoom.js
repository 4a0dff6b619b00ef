// A slide in OpenSeadragon, as all pages show it.
const NEAR = 4; // screen pixels per slide pixel when a place was asked for, at most

export const tilesOf = (slide) => `/v1/slides/${slide}/deepzoom.dzi`;

export function deepZoom(element, options) {
  return window.OpenSeadragon({
    element,
    drawer: "canvas",
    showNavigationControl: false,
    showNavigator: true,
    navigatorPosition: "BOTTOM_RIGHT",
    navigatorSizeRatio: 0.16,
    maxZoomPixelRatio: NEAR,
    visibilityRatio: 0.3,
    animationTime: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.6,
    ...options,
  });
}

// Has the buttons of a toolbar zoom a viewer, as their `data-zoom` says.
export function zoomWith(toolbar, viewer) {
  toolbar.addEventListener("click", (event) => {
    const kind = event.target.dataset.zoom;
    if (kind === "home") viewer.viewport.goHome();
    else if (kind) viewer.viewport.zoomBy(kind === "in" ? 2 : 0.5).applyConstraints();
  });
}
