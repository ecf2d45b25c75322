// Light, dark, or as the system is. Not a module: it has to run before the first paint.
(() => {
  const KEY = "vllmd.theme";
  const NEXT = { system: "light", light: "dark", dark: "system" };
  const SAID = { system: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };
  const root = document.documentElement;

  function kept() {
    try {
      return localStorage.getItem(KEY) in NEXT ? localStorage.getItem(KEY) : "system";
    } catch {
      return "system"; // a browser that keeps nothing
    }
  }

  function show(theme) {
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
  }

  let theme = kept();
  show(theme);
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const name = () => {
      button.setAttribute("aria-label", SAID[theme]);
      button.title = SAID[theme];
    };
    name();
    button.addEventListener("click", () => {
      theme = NEXT[theme];
      show(theme);
      name();
      try {
        localStorage.setItem(KEY, theme);
      } catch {
        // then it lasts as long as the page
      }
    });
  });
})();
