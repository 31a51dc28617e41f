// Plotly figures of a page (book/_ext/interactive.py puts them in as data): drawn when they come into sight, from one local
// copy of plotly.js, with a native slider instead of Plotly's, which a keyboard cannot reach. The picture stays for paper.

"use strict";

(() => {
  const library = new URL("plotly.min.js", document.currentScript.src).href;
  let loading;

  function load() {
    loading ??= new Promise((done, failed) => {
      const script = document.createElement("script");
      script.src = library;
      script.onload = done;
      script.onerror = () => failed(new Error("plotly.js could not be loaded"));
      document.head.append(script);
    });
    return loading;
  }

  function themed(layout) {
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--pst-color-text-base").trim(), line = style.getPropertyValue("--pst-color-border").trim();
    const axis = (given) => ({ ...given, color: ink, gridcolor: line, zerolinecolor: line, linecolor: ink, automargin: true });
    const clear = "rgba(0,0,0,0)";
    return { ...layout, sliders: [], paper_bgcolor: clear, plot_bgcolor: clear, font: { ...layout.font, color: ink }, xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis), autosize: true };
  }

  // The palette's lighter colours for lines and points on a dark page, as in the pictures.
  function recoloured(trace, dark) {
    const shown = { ...trace };
    for (const part of ["line", "marker"]) if (shown[part]) shown[part] = { ...shown[part], color: dark[shown[part].color] ?? shown[part].color };
    return shown;
  }

  async function draw(figure, spec, number) {
    await load();
    const host = document.createElement("div"), plot = document.createElement("div"), controls = document.createElement("div");
    const picture = figure.querySelector("img"), caption = figure.querySelector("figcaption");
    const [slider] = spec.layout.sliders, id = `interactive-${number}`;
    host.className = "explorable interactive";
    plot.className = "interactive-plot";
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", picture.alt);
    controls.className = "ex-field";
    controls.innerHTML = `<label for="${id}"></label><span class="ex-value" aria-hidden="true"></span><input type="range" id="${id}" min="0" max="${spec.frames.length - 1}" step="1" value="0">`;
    const [label, value, input] = controls.children;
    label.textContent = slider.currentvalue.prefix.replace(/: $/, "");
    host.append(controls, plot);
    for (const child of [...figure.children]) if (child !== caption) child.classList.add("ex-paper");
    figure.insertBefore(host, caption);

    const show = () => {
      const frame = spec.frames[Number(input.value)];
      value.textContent = frame.name;
      input.setAttribute("aria-valuetext", frame.name);
      const dark = document.documentElement.dataset.theme === "dark" && spec.layout.meta?.dark || {};
      const data = spec.data.map((trace, i) => recoloured({ ...trace, ...frame.data[i] }, dark));
      return Plotly.react(plot, data, themed(spec.layout), { displayModeBar: false, responsive: true });
    };
    input.addEventListener("input", show);
    new MutationObserver(show).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    await show();
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("script.interactive-figure").forEach((source, number) => {
      const figure = document.getElementById(source.dataset.figure);
      const watch = new IntersectionObserver((entries) => {
        if (!entries.some((entry) => entry.isIntersecting)) return;
        watch.disconnect();
        draw(figure, JSON.parse(source.textContent), number);
      }, { rootMargin: "200px" });
      watch.observe(figure);
    });
  });
})();
