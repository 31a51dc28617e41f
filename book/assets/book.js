// Paper is light: print a dark page in the light theme.
(() => {
  const root = document.documentElement;
  let theme;
  window.addEventListener("beforeprint", () => { theme = root.dataset.theme; root.dataset.theme = "light"; });
  window.addEventListener("afterprint", () => { root.dataset.theme = theme; });
})();

// The theme leaves the book's title outside every landmark: name the region for screen readers.
document.addEventListener("DOMContentLoaded", () => {
  const logo = document.querySelector(".navbar-brand.logo")?.parentElement;
  logo?.setAttribute("role", "navigation");
  logo?.setAttribute("aria-label", "Book title");
});
