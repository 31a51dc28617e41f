// The animated race (tools/animation.py) with buttons. Nothing moves until a reader asks for it; the slider goes to any moment.

"use strict";

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("div.race-animation").forEach((host, number) => {
    const svg = host.querySelector("svg"), figure = document.getElementById(host.dataset.figure), id = `animation-${number}`;
    const length = parseFloat(svg.querySelector("animate").getAttribute("dur"));
    const controls = document.createElement("div");
    controls.className = "explorable ex-player";
    controls.innerHTML = `<button type="button">Play</button>
      <label for="${id}">moment</label><input type="range" id="${id}" min="0" max="${length}" step="0.1" value="${length}">`;
    const button = controls.querySelector("button"), slider = controls.querySelector("input");
    host.append(controls);
    if (figure) { // its picture stays for paper
      const caption = figure.querySelector("figcaption");
      for (const child of [...figure.children]) if (child !== caption) child.classList.add("ex-paper");
      figure.insertBefore(host, caption);
    }
    host.hidden = false;

    const [width, height] = svg.getAttribute("viewBox").split(" ").slice(2).map(Number), second = svg.querySelectorAll(":scope > g")[1];
    const beside = second.getAttribute("transform");
    new ResizeObserver(() => { // on a phone one panel above the other, so that words stay legible
      const narrow = host.clientWidth < 560, half = (width - 20) / 2;
      const box = narrow ? [half, 2 * height] : [width, height];
      svg.setAttribute("viewBox", `0 0 ${box.join(" ")}`);
      svg.setAttribute("width", box[0]);
      svg.setAttribute("height", box[1]);
      second.setAttribute("transform", narrow ? `translate(0 ${height})` : beside);
    }).observe(host);

    let playing = false;
    const start = svg.getCurrentTime();
    svg.querySelectorAll("animate").forEach((part) => part.beginElement());
    function go(seconds) {
      svg.setCurrentTime(start + seconds);
      slider.value = seconds;
      slider.setAttribute("aria-valuetext", `${Number(slider.value).toFixed(1)} of ${length} seconds`);
    }
    function turn(on) {
      playing = on;
      button.textContent = on ? "Pause" : "Play";
      if (!on) return svg.pauseAnimations();
      if (Number(slider.value) >= length) go(0);
      svg.unpauseAnimations();
      requestAnimationFrame(follow);
    }
    function follow() {
      if (!playing) return;
      const seconds = Math.min(svg.getCurrentTime() - start, length);
      slider.value = seconds;
      if (seconds >= length) turn(false); else requestAnimationFrame(follow);
    }
    button.addEventListener("click", () => turn(!playing));
    slider.addEventListener("input", () => { turn(false); go(Number(slider.value)); });
    svg.pauseAnimations();
    go(length);
  });
});
