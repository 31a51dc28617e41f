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

// A phone: nothing but code scrolls sideways. Formulas wider than the column are broken where a printer would break them: at the
// space between two formulas, before a relation, before a plus or minus outside all brackets; then letters shrink, at most to SMALL.
const PHONE = "(max-width: 600px)";  // as in page.py and book.css
const SMALL = 0.6;
const BREAKS = [/^\\qquad(?![a-zA-Z])|^\\quad(?![a-zA-Z])/,
  /^(?:=|<|>|:=|\\(?:le|ge|ne|approx|sim|ll|gg|to|mapsto|iff|implies|Leftrightarrow|Longrightarrow|Rightarrow|propto|equiv)(?![a-zA-Z]))/,
  /^(?:[+-]|\\(?:cdot|times|pm)(?![a-zA-Z]))/];
const topLevel = (tex, pattern) => {  // the pieces of a formula between the places outside brackets where the pattern begins
  const pieces = [""];
  let depth = 0;
  let inBars = false;
  for (let at = 0; at < tex.length;) {
    const rest = tex.slice(at);
    const found = depth === 0 && pattern.exec(rest);
    const sign = found ? found[0] : /^\\(?:[a-zA-Z]+|[^])|^[^]/.exec(rest)[0];
    if (/^(?:[{([]|\\[{]|\\begin|\\left)$/.test(sign)) depth += 1;
    if (/^(?:[})\]]|\\[}]|\\end|\\right)$/.test(sign)) depth -= 1;
    if (sign === "|") {
      inBars = !inBars;
      depth += inBars ? 1 : -1;
    }
    // \left( counts once, \begin{name} does not count its braces
    const whole = /^\\(?:left|right)$/.test(sign) ? sign + /^\s*(?:\\[a-zA-Z]+|\\?[^])/.exec(rest.slice(sign.length))[0] : sign;
    if (found) pieces.push("");
    pieces[pieces.length - 1] += whole;
    at += whole.length;
  }
  return pieces;
};
// How wide a piece is, in signs: what of it is drawn says how wide one is (page.py guesses the room of whole formulas before that).
const breadth = (tex) => tex.replace(/\\[a-zA-Z]+/g, "x").replace(/[{}\s^_&\\]/g, "").length;
const rowsOf = (tex, room, level = 0) => {  // a formula in rows that are about as wide as the room
  if (breadth(tex) <= room || level === BREAKS.length) return [tex];
  const rows = [];
  for (const piece of topLevel(tex, BREAKS[level])) {
    const last = rows[rows.length - 1];
    if (level > 0 && last !== undefined && (breadth(last + piece) <= room || breadth(last) < 5)) rows[rows.length - 1] = last + piece;
    else if (piece.trim()) rows.push(level > 0 ? piece : piece.replace(BREAKS[0], ""));
  }
  return rows.flatMap((row) => rowsOf(row, room, level + 1));
};
const indented = (row, k) => (k && (BREAKS[1].test(row.trim()) || BREAKS[2].test(row.trim())) ? `\\quad{}${row.trim()}` : row.trim());
const ROWS = /^\s*\\begin\{(split|aligned|gathered|align\*?)\}([^]*)\\end\{\1\}\s*$/;  // Sphinx puts one into another
const NEXT = /^\\\\(?:\[[^\]]*\])?/;
const broken = (tex, room) => {  // a displayed formula's TeX, in rows
  const inner = ROWS.exec(tex);
  if (inner && ROWS.test(inner[2])) return broken(inner[2], room);
  const given = inner ? topLevel(inner[2], NEXT).map((row) => row.replace(NEXT, "")) : [tex];
  const rows = given.filter((row) => row.trim()).flatMap((row, k) => rowsOf(topLevel(row, /^&/).map((part) => part.replace(/^&/, "")).join(""), room).map((part, n) => indented(part, k + n)));
  return `\\begin{aligned}${rows.map((row) => `&${row}`).join("\\\\")}\\end{aligned}`;
};
const fitFormulas = async () => {
  const within = (place) => {  // the width that a formula may have
    const block = place.closest("p, li, dd, td, th, figcaption, .math, div") ?? place;
    const style = getComputedStyle(block);
    return block.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  };
  const wide = () => MathJax.startup.document.getMathItemsWithin(document.querySelector(".bd-article"))
    .filter((item) => item.typesetRoot?.isConnected && !item.typesetRoot.closest("table, .highlight"))
    .map((item) => {
      const root = item.typesetRoot;
      const drawn = item.display ? root.scrollWidth : root.getBoundingClientRect().width;
      return { item, root, drawn, room: item.display ? root.clientWidth : within(root.parentElement.parentElement) };
    })
    .filter(({ drawn, room }) => room > 0 && drawn > room + 1);
  for (const share of [1, 0.8]) {  // the second time with a more careful guess of the widths
    const places = new Set();
    for (const { item, root, drawn, room } of wide()) {
      const place = root.closest(".math");
      const tex = place && (place.dataset.tex ??= item.math);
      if (!tex) continue;
      const letters = share * room / (drawn / (place.dataset.letters ??= breadth(item.math)));
      places.add([place, root, item.display, item.display ? broken(tex, letters) : rowsOf(tex, letters)]);
    }
    for (const [place, root, display, parts] of places) {
      MathJax.typesetClear([place]);
      for (const old of place.querySelectorAll("mjx-container")) old.remove();
      place.append(display ? `\\[${parts}\\]` : parts.map((part, k) => `\\(${k ? "{}" : ""}${part.trim()}\\)`).join(" "));
    }
    if (places.size) await MathJax.typesetPromise([...places].map(([place]) => place));
  }
  for (const { root } of wide()) root.closest(".math")?.classList.add("wide");  // its number on a line of its own
  for (const { root, drawn, room } of wide()) {
    const size = parseFloat(getComputedStyle(root).fontSize);
    root.style.fontSize = `${size * Math.max(SMALL, 0.99 * room / drawn)}px`;
  }
};
// Tables wider than the column: lists may break, letters shrink; what is wider still has a row's cells below one another, each after
// its column's name.
const fitTables = () => {
  for (const table of document.querySelectorAll(".bd-article table:not(.cards)")) {
    const box = table.parentElement;
    const over = () => box.clientWidth > 0 && Math.max(table.scrollWidth, box.scrollWidth) > box.clientWidth + 1;
    if (!over()) continue;
    const texts = document.createTreeWalker(table, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replaceAll("\u00a0", " ");
    const size = parseFloat(getComputedStyle(table).fontSize);
    const share = box.clientWidth / table.scrollWidth;
    if (over()) table.style.fontSize = `${size * Math.max(0.78, 0.95 * share)}px`;
    if (!over()) continue;
    const heads = table.tHead?.rows.length === 1 ? [...table.tHead.rows[0].cells] : [];
    if (!heads.length) continue;
    table.style.fontSize = "";
    table.classList.add("cards");
    table.setAttribute("role", "table");
    for (const row of table.tBodies[0].rows) {
      row.setAttribute("role", "row");
      [...row.cells].forEach((cell, k) => {
        cell.setAttribute("role", "cell");
        if (!cell.textContent.trim()) return;
        const label = Object.assign(document.createElement("span"), { className: "column" });
        label.append(...(heads[k]?.cloneNode(true).childNodes ?? []));
        for (const named of label.querySelectorAll("[id]")) named.removeAttribute("id");
        cell.prepend(label);
      });
    }
  }
};
// Before the first picture of the page, as far as widths are known then, and again with its mathematics.
if (matchMedia(PHONE).matches) {
  document.documentElement.classList.add("fitting");  // until then tables are not shown
  document.addEventListener("DOMContentLoaded", () => {
    fitTables();
    document.documentElement.classList.remove("fitting");
  });
}

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
      if (start === 0 && matchMedia(PHONE).matches) await fitFormulas();  // before they are painted, so that little moves
      if (start === 0) performance.mark("mathematics in view");
      await pause(0);
    }
    if (matchMedia(PHONE).matches) await fitFormulas();
    root.classList.remove("typesetting");
    if (matchMedia(PHONE).matches) fitTables();
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
