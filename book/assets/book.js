// Paper is light, and whole: print a dark page in the light theme, with the pictures that nobody has scrolled to.
(() => {
  const root = document.documentElement;
  let theme;
  window.addEventListener("beforeprint", () => {
    theme = root.dataset.theme;
    root.dataset.theme = "light";
    for (const image of document.images) image.loading = "eager";
  });
  window.addEventListener("afterprint", () => { root.dataset.theme = theme; });
})();

// The theme leaves the book's title outside every landmark: name the region for screen readers.
document.addEventListener("DOMContentLoaded", () => {
  const logo = document.querySelector(".navbar-brand.logo")?.parentElement;
  logo?.setAttribute("role", "navigation");
  logo?.setAttribute("aria-label", "Book title");
});

// Mathematics: what the reader sees first, then the rest from the top, with a pause after every two hundred formulas in which the
// page answers. (This script runs before MathJax, which finds its settings here.)
if (window.MathJax) {
  const root = document.documentElement;
  root.classList.add("typesetting");  // until then a formula is a blank about as wide as it will be
  addEventListener("load", () => { if (!MathJax.typesetPromise) root.classList.remove("typesetting"); });
  const pause = (milliseconds) => new Promise((resume) => setTimeout(resume, milliseconds));
  const frame = () => new Promise((resume) => requestAnimationFrame(() => requestAnimationFrame(resume)));
  const near = (box) => box.bottom > -innerHeight && box.top < 2 * innerHeight;
  const typeset = async () => {
    await Promise.race([frame(), pause(300)]);  // a page that was shown has its heights; a hidden tab shows nothing
    const found = [...document.querySelectorAll(".math, .tex2jax_process, .output_area")]
      .filter((place) => !place.parentElement.closest(".math, .tex2jax_process, .output_area"));
    const boxes = found.map((place) => place.getBoundingClientRect());
    const first = boxes.filter(near).length;
    const queue = [...found.filter((_, i) => near(boxes[i])), ...found.filter((_, i) => !near(boxes[i]))];
    if (queue.length > 100) {
      const blocks = [...document.querySelectorAll(".bd-article section section > :is(p, ul, ol, .cell, .admonition)")];
      // (Not the class "far", which is a font of icons.)
      const far = blocks.map((block) => !near(block.getBoundingClientRect()));
      blocks.forEach((block, i) => block.classList.toggle("laid-out-late", far[i]));
    }
    for (let start = 0, end = first; start < queue.length; start = end, end += 200) {
      if (end > start) await MathJax.typesetPromise(queue.slice(start, end));
      if (start === 0) performance.mark("mathematics in view");
      await pause(0);
    }
    root.classList.remove("typesetting");
  };
  MathJax.startup = {
    typeset: false,
    ready() {
      MathJax.startup.defaultReady();
      MathJax.startup.promise = MathJax.startup.promise.then(typeset);
    },
  };
}

// Symbols and terms: their meaning beside them, on hover and on focus. Without this script they are links to the same words.
document.addEventListener("DOMContentLoaded", () => {
  const tip = Object.assign(document.createElement("div"), { id: "meaning", className: "meaning-tip", hidden: true });
  tip.setAttribute("role", "tooltip");
  let shown = null;
  let leaving;
  const meaning = (place) => {
    const key = [...place.classList].find((name) => /^(symbol|term)-/.test(name));
    return key && document.getElementById(`meaning-${key}`);
  };
  const hide = () => {
    shown?.removeAttribute("aria-describedby");
    shown = null;
    tip.hidden = true;
  };
  const put = (place) => {
    const box = place.getBoundingClientRect();
    const left = Math.min(Math.max(8, box.left), document.documentElement.clientWidth - tip.offsetWidth - 8);
    const below = box.bottom + tip.offsetHeight + 8 < innerHeight;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${(below ? box.bottom + 4 : box.top - tip.offsetHeight - 4) + scrollY}px`;
  };
  const show = async (place) => {
    const source = meaning(place);
    clearTimeout(leaving);
    if (!source || place === shown) return;
    hide();
    shown = place;
    window.MathJax?.typesetClear?.([tip]);
    tip.replaceChildren(source.content.cloneNode(true));
    tip.hidden = false;
    place.setAttribute("aria-describedby", tip.id);
    put(place);
    await window.MathJax?.typesetPromise?.([tip]);
    if (place === shown) put(place);
  };
  if (!document.querySelector("template.meaning")) return;
  document.body.append(tip);
  const place = (event) => event.target.closest?.(".term");
  document.addEventListener("mouseover", (event) => {
    if (place(event)) show(place(event));
    else if (shown && event.target.closest?.("#meaning")) clearTimeout(leaving);
    else if (shown && !tip.hidden) { clearTimeout(leaving); leaving = setTimeout(hide, 250); }
  });
  document.addEventListener("focusin", (event) => { if (place(event)) show(place(event)); });
  document.addEventListener("focusout", (event) => { if (place(event)) hide(); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
});
