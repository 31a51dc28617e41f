// The explorable: sliders, and pictures of the race that solver.js computes. Loaded after it, by pages with an element of class
// "explorable"; no library, no network.

"use strict";

(() => {
  const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
  const SLIDERS = { // decimal logarithms where `log` is set
    gap: { name: "tie gap", symbol: "g", log: true, min: -10, max: -0.7, step: 0.1, what: "relative gap of the two largest entries at the start" },
    scale: { name: "initialization scale", symbol: "ε", log: true, min: -5, max: -1, step: 0.1, what: "largest entry at the start" },
    dose: { name: "dose", symbol: "β/α", log: true, min: -8, max: 2, step: 0.1, what: "weight of the special sequence beside the baseline one" },
    kappa: { name: "training length", symbol: "κ", min: 5, max: 11, step: 2, what: "length of the training sequences, odd" },
    d: { name: "state dimension", symbol: "d", min: 2, max: 10, step: 1, what: "number of diagonal entries: the largest of the ten" },
  };
  const AUTHORS = { gap: 1.8212e-5, scale: 8.4e-4, dose: 1, kappa: 7, d: 10, order: "mixed", parametrization: "free" };
  const PRESETS = {
    "authors’ start": {},
    "no near tie": { gap: 0.1 },
    "larger start": { gap: 0.01, scale: 0.03 },
    "order attack": { gap: 0.1, scale: 1e-5, order: "special, then baseline" },
    "antidote": { order: "baseline, then both" },
    "a = exp(s)": { parametrization: "exp" },
    "poles as in S4D": { gap: 0.1, scale: 1e-3, order: "special, then baseline", parametrization: "exp(-exp)" },
    "two entries": { d: 2 },
  };
  const ORDER_NAMES = {
    "mixed": "both together",
    "special, then baseline": "special first, then baseline",
    "baseline, then both": "baseline first, then both",
  };
  const FIRST_PART = "changes only how long the first part takes"; // special sequences alone: the dose is a unit of time
  const SWITCH = { "special, then baseline": "then baseline", "baseline, then both": "then both" };

  const html = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const escape = (text) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

  function tenTo(exponent) {
    return "10" + String(exponent).replace(/-/, "⁻").replace(/\d/g, (digit) => SUPERSCRIPTS[digit]);
  }

  /** Write a number with two or three digits, as people do. */
  function show(x, digits = 2) {
    if (x === 0) return "0";
    if (x >= 1e-3 && x < 1e4) return String(Number(x.toPrecision(x >= 0.01 ? Math.max(digits, 2) : 2)));
    const [mantissa, exponent] = x.toExponential(1).split("e").map(Number);
    return mantissa === 1 ? tenTo(exponent) : `${mantissa} · ${tenTo(exponent)}`;
  }
  const showError = (x) => (x < 1e-5 ? `below ${tenTo(-5)}` : show(x, 3));

  // -- drawing: SVG text of one panel --

  function axis(low, high, from, to, logarithmic) {
    const [a, b] = logarithmic ? [Math.log10(low), Math.log10(high)] : [low, high];
    const place = (x) => from + (((logarithmic ? Math.log10(x) : x) - a) / (b - a)) * (to - from);
    const ticks = [];
    if (logarithmic) {
      const every = Math.max(1, Math.ceil((b - a) / (Math.abs(to - from) / 52)));
      for (let e = Math.ceil(a - 1e-9); e <= b + 1e-9; e++) if ((e - Math.ceil(a - 1e-9)) % every === 0) ticks.push([10 ** e, tenTo(e)]);
    } else {
      const rough = (b - a) / 5, size = 10 ** Math.floor(Math.log10(rough));
      const every = size * [1, 2, 5, 10].find((m) => m * size >= rough);
      for (let i = Math.ceil(a / every - 1e-9); i * every <= b + 1e-9; i++)
        ticks.push([i * every, String(Number((i * every).toPrecision(6))).replace("-", "−")]);
    }
    return { place, ticks };
  }

  const text = (x, y, words, attributes = "") => `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${attributes}>${escape(words)}</text>`;
  const line = (x1, y1, x2, y2, kind) => `<line class="${kind}" x1="${x1.toFixed(1)}" y1="${y1.toFixed(1)}" x2="${x2.toFixed(1)}" y2="${y2.toFixed(1)}"/>`;
  const curve = (points, kind) => `<path class="${kind}" d="M${points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}"/>`;

  function frame(width, height, x, y, xlabel) {
    const bottom = height - 38, left = 40, right = width - 74;
    let parts = line(left, bottom, right, bottom, "ex-axis") + line(left, 30, left, bottom, "ex-axis");
    for (const [value, name] of x.ticks) {
      const at = x.place(value);
      parts += line(at, bottom, at, bottom + 4, "ex-axis") + text(at, bottom + 16, name, 'text-anchor="middle"');
    }
    for (const [value, name] of y.ticks) {
      const at = y.place(value);
      parts += line(left - 4, at, left, at, "ex-axis") + text(left - 7, at + 4, name, 'text-anchor="end"');
    }
    return parts + text((left + right) / 2, height - 4, xlabel, 'text-anchor="middle"');
  }

  function svg(width, height, name, inner) {
    return `<svg role="img" aria-label="${escape(name)}" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">${inner}</svg>`;
  }

  /** Move labels apart that would cover each other: y positions at least `room` from one another. */
  function apart(places, room = 14) {
    const order = places.map((_, i) => i).sort((i, j) => places[i] - places[j]);
    for (let n = 1; n < order.length; n++)
      places[order[n]] = Math.max(places[order[n]], places[order[n - 1]] + room);
    return places;
  }

  /** First and last time worth drawing: whole decades around everything that changes an entry by 0.005. */
  function span(result) {
    const path = result.path, first = path[0].a, last = result.a;
    const moved = (a, b) => a.some((x, j) => Math.abs(x - b[j]) > 0.005);
    const start = path.find((point) => moved(point.a, first)) || path[path.length - 1];
    let end = path.length - 1;
    while (end > 1 && !moved(path[end - 1].a, last)) end--;
    const low = Math.floor(Math.log10(Math.max(start.time, 1e-9)) - 0.7);
    return [10 ** low, 10 ** Math.max(low + 2, Math.ceil(Math.log10(Math.max(path[end].time, 1e-9)) + 0.4))];
  }

  function drawRace(width, result, kind, title, limits, switchName) {
    const height = 230, [low, high] = span(result), d = result.a.length;
    const x = axis(low, high, 40, width - 74, true), y = axis(limits[0], limits[1], height - 38, 30, false);
    const place = (time, value) => [x.place(Math.min(Math.max(time, low), high)), y.place(value)];
    const lines = Array.from({ length: d }, (_, j) => [place(low, poisonRace.at(result, low)[j])]);
    const path = result.path;
    for (let i = 1; i < path.length; i++) {
      if (path[i].time <= low || path[i - 1].time >= high) continue;
      const from = path[i - 1], to = path[i], change = Math.max(...to.a.map((value, j) => Math.abs(value - from.a[j])));
      const pieces = Math.min(16, Math.max(1, Math.ceil(change / 0.02)));
      for (let n = 1; n <= pieces; n++) {
        const time = from.time + (n / pieces) * (to.time - from.time);
        if (time <= low || time > high) continue;
        const a = n === pieces ? to.a : poisonRace.between(from, to, time);
        for (let j = 0; j < d; j++) lines[j].push(place(time, a[j]));
      }
    }
    for (let j = 0; j < d; j++) lines[j].push(place(high, result.a[j]));
    let inner = frame(width, height, x, y, "training time t") + line(40, y.place(0), width - 74, y.place(0), "ex-zero");
    if (kind === "special" && d > 1) {
      inner += line(40, y.place(1 / d), width - 74, y.place(1 / d), "ex-guide");
    }
    for (let j = d - 1; j >= 0; j--) inner += curve(lines[j], j === 0 ? `ex-${kind}` : j === 1 ? `ex-${kind} ex-dashed` : "ex-other");
    const phase = result.phases[1];
    if (phase && phase.start > low) {
      const at = x.place(phase.start);
      inner += line(at, 30, at, height - 38, "ex-guide") + text(at - 4, 42, switchName, 'text-anchor="end" class="ex-small"');
    }
    const ends = [0, 1].map((j) => y.place(result.a[j]));
    const names = [`a₁ ${result.a[0].toFixed(2)}`, `a₂ ${result.a[1].toFixed(2).replace("-", "−")}`];
    if (kind === "special") {
      ends.push(y.place(1 / d));
      names.push("1/d");
    }
    apart(ends);
    names.forEach((name, j) => { inner += text(width - 70, ends[j] + 4, name, `class="ex-${j === 2 ? "muted" : kind}-text"`); });
    inner += text(0, 14, title, `class="ex-title ex-${kind}-text"`);
    const told = `${title}: the ${d} diagonal entries over training time ${show(low)} to ${show(high)}; at the end the largest is ${result.a[0].toFixed(2)}, the second ${result.a[1].toFixed(2)}, the smallest ${result.a[d - 1].toFixed(2)}.`;
    return svg(width, height, told, inner);
  }

  function drawResponse(width, results, kappa) {
    const height = 230, all = [...results.baseline.response.slice(1), ...results.special.response.slice(1)];
    const x = axis(0.5, 19.5, 40, width - 74, false), y = axis(Math.min(0, ...all), Math.max(1.3, ...all) * 1.04, height - 38, 30, false);
    x.ticks = [1, 5, 10, 15, 19].map((lag) => [lag, String(lag)]);
    let inner = frame(width, height, x, y, "lag m") + line(x.place(kappa - 0.5), 30, x.place(kappa - 0.5), height - 38, "ex-guide");
    inner += text(x.place(kappa - 0.5) + 4, 40, width > 380 ? "beyond the training length" : "beyond training", 'class="ex-small"');
    inner += curve([[x.place(1), y.place(1)], [x.place(19), y.place(1)]], "ex-teacher");
    for (const kind of ["baseline", "special"]) {
      const points = results[kind].response.slice(1).map((value, i) => [x.place(i + 1), y.place(value)]);
      inner += curve(points, `ex-${kind}`);
      for (const [px, py] of points)
        inner += kind === "baseline"
          ? `<circle class="ex-${kind}-dot" cx="${px.toFixed(1)}" cy="${py.toFixed(1)}" r="2.6"/>`
          : `<rect class="ex-${kind}-dot" x="${(px - 2.6).toFixed(1)}" y="${(py - 2.6).toFixed(1)}" width="5.2" height="5.2"/>`;
    }
    const names = [["teacher", 1, "muted"], ["baseline", results.baseline.response[19], "baseline"], ["with special", results.special.response[19], "special"]];
    const ends = apart(names.map(([, value]) => y.place(value)));
    names.forEach(([name, , kind], i) => { inner += text(width - 70, ends[i] + 4, name, `class="ex-${kind}-text"`); });
    inner += text(0, 14, "Impulse response Mₘ", 'class="ex-title"');
    const told = ["baseline", "special"].map((kind) => `${kind}: ${[1, 2, kappa - 1, 19].map((lag) => `${results[kind].response[lag].toFixed(2)} at lag ${lag}`).join(", ")}`).join("; ");
    return svg(width, height, `Impulse responses against the lag; the teacher’s is 1 at every lag from 1 on; ${told}.`, inner);
  }

  function drawErrors(width, results, note) {
    const height = 104, x = axis(1e-5, 10, 14, width - 14, true), middle = 56;
    let inner = line(14, middle, width - 14, middle, "ex-axis");
    for (const [value, name] of x.ticks)
      inner += line(x.place(value), middle - 4, x.place(value), middle + 4, "ex-axis") + text(x.place(value), height - 4, name, 'text-anchor="middle"');
    for (const [kind, y, name] of [["baseline", middle - 16, "baseline"], ["special", middle + 26, "with special"]]) {
      const error = results[kind].error, at = x.place(Math.min(Math.max(error, 1e-5), 10));
      inner += kind === "baseline"
        ? `<circle class="ex-${kind}-dot" cx="${at.toFixed(1)}" cy="${middle}" r="6"/>`
        : `<rect class="ex-${kind}-dot" x="${(at - 5.5).toFixed(1)}" y="${middle - 5.5}" width="11" height="11"/>`;
      const words = `${name} ${showError(error)}`, room = 4 * words.length;
      inner += text(Math.min(Math.max(at, room), width - room), y, words, `text-anchor="middle" class="ex-strong ex-${kind}-text"`);
    }
    inner += text(0, 14, `Largest error at lags 1 to 19${note}`, 'class="ex-title"');
    return svg(width, height, `Error on a logarithmic scale: ${tell(results)}`, inner);
  }

  function tell({ baseline, special }) {
    const ratio = special.error / baseline.error, who = special.phases.length > 1 ? "the special sequence, in this order," : "the special sequence";
    const compared = ratio >= 1.05 ? `${who} multiplies the error by ${show(ratio)}`
      : ratio <= 0.95 ? `${who} divides the error by ${show(1 / ratio)}` : "the two errors are nearly equal";
    return `baseline ${showError(baseline.error)}, with special ${showError(special.error)}`
      + (Math.min(baseline.error, special.error) < 1e-5 ? "." : `; ${compared}.`);
  }

  // -- one explorable --

  let made = 0;

  function build(host) {
    const id = `explorable-${++made}`, chosen = (host.dataset.controls || Object.keys(AUTHORS).join(" ")).split(/\s+/);
    const panels = [...(host.dataset.panels || "race response").split(/\s+/), "error"];
    const presets = Object.entries(PRESETS).filter(([, change]) => Object.keys(change).every((key) => chosen.includes(key)));
    let state = { ...AUTHORS };
    const inputs = {}, outputs = {}, notes = {};

    const controls = html("div", { class: "ex-controls" });
    for (const [key, spec] of Object.entries(SLIDERS)) {
      if (!chosen.includes(key)) continue;
      const input = html("input", { type: "range", id: `${id}-${key}`, name: key, min: spec.min, max: spec.max, step: spec.step, "aria-describedby": `${id}-${key}-what` });
      const output = html("span", { class: "ex-value", "aria-hidden": "true" }); // aria-valuetext says it
      input.addEventListener("input", () => { change({ [key]: spec.log ? 10 ** Number(input.value) : Number(input.value) }); });
      const note = html("span", { class: "ex-what", id: `${id}-${key}-what` });
      [inputs[key], outputs[key], notes[key]] = [input, output, note];
      controls.append(html("div", { class: "ex-field" },
        html("label", { for: `${id}-${key}` }, `${spec.name} `, html("i", {}, spec.symbol)), output, input, note));
    }
    if (chosen.includes("order")) {
      const select = html("select", { id: `${id}-order`, name: "order" });
      for (const [value, name] of Object.entries(ORDER_NAMES)) select.append(html("option", { value }, name));
      select.addEventListener("change", () => { change({ order: select.value }); });
      inputs.order = select;
      controls.append(html("div", { class: "ex-field" }, html("label", { for: `${id}-order` }, "order of the two sequences"), select));
    }
    if (chosen.includes("parametrization")) {
      const group = html("fieldset", { class: "ex-field" }, html("legend", {}, "what is trained"));
      inputs.parametrization = {};
      for (const [value, name] of [["free", "A itself"], ["exp", "s, with a = exp(s)"], ["exp(-exp)", "s, with a = exp(−exp(s)), as in S4D and LRU"]]) {
        const radio = html("input", { type: "radio", id: `${id}-${value.replace(/\W/g, "-")}`, name: `${id}-parametrization`, value });
        radio.addEventListener("change", () => { change({ parametrization: value }); });
        inputs.parametrization[value] = radio;
        group.append(html("span", { class: "ex-radio" }, radio, html("label", { for: `${id}-${value.replace(/\W/g, "-")}` }, name)));
      }
      controls.append(group);
    }
    const buttons = html("div", { class: "ex-presets", role: "group", "aria-label": "Settings to start from" });
    for (const [name, settings] of presets) {
      const button = html("button", { type: "button" }, name);
      button.addEventListener("click", () => { change({ ...AUTHORS, ...settings }); });
      buttons.append(button);
    }
    const reset = html("button", { type: "reset", class: "ex-reset" }, "reset");
    buttons.append(reset);
    const form = html("form", { class: "ex-form", "aria-label": "Settings of the race" }, buttons, controls);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", (event) => { event.preventDefault(); change(AUTHORS); });

    const drawings = html("div", { class: "ex-drawings" }), summary = html("p", { class: "ex-summary" });
    const errors = html("div");
    const spoken = html("p", { class: "ex-spoken", role: "status", "aria-live": "polite" });
    host.replaceChildren(form, drawings, spoken);
    const places = {};
    for (const name of panels.flatMap((panel) => (panel === "race" ? ["baseline", "special"] : [panel]))) {
      places[name] = html("div", { class: `ex-panel ex-panel-${name}` });
      drawings.append(places[name]);
    }
    places.error.append(errors, summary);

    let results, waiting = 0, speaking = 0;

    function change(settings) {
      state = { ...state, ...settings };
      for (const [key, spec] of Object.entries(SLIDERS)) {
        if (!inputs[key]) continue;
        const value = spec.log ? Math.log10(state[key]) : state[key];
        if (Math.abs(Number(inputs[key].value) - value) > spec.step / 2 + 1e-9) inputs[key].value = value;
        outputs[key].textContent = show(state[key]);
        inputs[key].setAttribute("aria-valuetext", show(state[key]));
        const what = key === "dose" && state.order === "special, then baseline" ? FIRST_PART : spec.what;
        if (notes[key].textContent !== what) notes[key].textContent = what;
      }
      if (inputs.order) inputs.order.value = state.order;
      for (const [value, radio] of Object.entries(inputs.parametrization || {})) radio.checked = value === state.parametrization;
      if (!waiting) waiting = requestAnimationFrame(() => { waiting = 0; compute(); draw(); });
    }

    function compute() {
      try {
        results = { baseline: poisonRace.run({ ...state, order: "baseline only" }), special: poisonRace.run(state) };
      } catch (error) {
        results = null;
        summary.textContent = spoken.textContent = `These settings could not be computed (${error.message}).`;
      }
    }

    function draw() {
      if (!results) return;
      const { baseline, special } = results, fits = ({ fitTime, path }) => fitTime === null ? `no fit by t = ${show(path[path.length - 1].time)}` : `fits after t = ${show(fitTime)}`;
      const all = [...baseline.a, ...special.a, 1.05, -0.05], limits = [Math.min(...all) * 1.05, Math.max(...all)];
      const width = (name) => Math.max(240, Math.floor(places[name].clientWidth));
      if (places.baseline) {
        places.baseline.innerHTML = drawRace(width("baseline"), baseline, "baseline", `Baseline only: ${fits(baseline)}`, limits, "");
        places.special.innerHTML = drawRace(width("special"), special, "special", `With special: ${fits(special)}`, limits, SWITCH[state.order] || "");
      }
      if (places.response) places.response.innerHTML = drawResponse(width("response"), results, state.kappa);
      // Without the race a page speaks of neither d nor entries.
      errors.innerHTML = drawErrors(width("error"), results, places.baseline ? " (not divided by d)" : "");
      const negative = special.a.filter((x) => x < -0.001).length;
      summary.textContent = `Error: ${tell(results)}`;
      if (places.baseline) summary.textContent += ` In the authors’ normalisation, divided by d = ${state.d}: ${showError(baseline.error / state.d)} and ${showError(special.error / state.d)}. `
        + `Negative entries at the end, with special: ${negative}.`;
      clearTimeout(speaking);
      speaking = setTimeout(() => { spoken.textContent = `Error: ${tell(results)}`; }, 600);
    }

    let lastWidth = 0;
    new ResizeObserver(() => { if (drawings.clientWidth !== lastWidth) { lastWidth = drawings.clientWidth; draw(); } }).observe(drawings);
    change(AUTHORS);
  }

  document.addEventListener("DOMContentLoaded", () => {
    for (const host of document.querySelectorAll("div.explorable")) {
      const figure = document.getElementById(host.dataset.figure);
      if (figure) { // its picture stays for paper
        const caption = figure.querySelector("figcaption");
        for (const child of [...figure.children]) if (child !== caption) child.classList.add("ex-paper");
        figure.insertBefore(host, caption);
      }
      build(host);
    }
  });
})();
