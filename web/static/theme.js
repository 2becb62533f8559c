// Purpose: light or dark, before the first paint (a classic script in the head, so that nothing flashes).
// The choice is `auto` (what the system says), `light` or `dark`, and is kept by the browser.
// A change is announced on the document as a `themechange` event: canvases redraw themselves in new colours.
(() => {
  "use strict";
  const choices = ["auto", "light", "dark"];
  const stored = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null; // storage may be blocked: the choice then lasts for one page
    }
  };
  let choice = choices.includes(stored()) ? stored() : "auto";

  function apply() {
    const root = document.documentElement;
    if (choice === "auto") delete root.dataset.theme;
    else root.dataset.theme = choice;
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${choice}`;
    document.dispatchEvent(new Event("themechange"));
  }

  function next() {
    choice = choices[(choices.indexOf(choice) + 1) % choices.length];
    try {
      localStorage.setItem("theme", choice);
    } catch {
      return apply();
    }
    return apply();
  }

  apply();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
  document.addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme")?.addEventListener("click", next);
  });
})();
