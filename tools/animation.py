"""Draw the race with and without poison as an animated picture that stands alone: `python
tools/animation.py [FILE]`.

The file (by default book/assets/race.svg) opens in any browser, plays once, and pauses at a click
or the space bar; with reduced motion asked for it waits for a click. The introduction shows the
same picture with buttons; where nothing can move it shows the end of the race.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from ssm_poison_lib import figures, flow, metrics, paper

ROOT = Path(__file__).resolve().parent.parent
SEED, SECONDS, FRAMES = 242, 12, 121
WIDTH, HEIGHT, TOP, BOTTOM = 340, 250, 46, 200  # of a panel, in pixels
LEFT, RIGHT = 34, 296
LOW, HIGH = -0.15, 1.08  # entries shown
SCRIPT = """
const svg = document.documentElement, \
still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const turn = () => svg.animationsPaused() ? svg.unpauseAnimations() : svg.pauseAnimations();
svg.querySelectorAll("animate").forEach((part) => part.beginElement());
if (still) { svg.pauseAnimations(); svg.setCurrentTime(0); }
addEventListener("click", turn);
addEventListener("keydown", (event) => { if (event.key === " ") turn(); });
"""


def frames(run: flow.Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """Return times (FRAMES,) and entries (FRAMES, d), three decades or more up to the fit.

    Their steps are equal in progress: half by the decades of time, half by the way that the entries
    go.
    """
    last = int(np.argmax(run.loss < 1e-8))
    moved = int((np.abs(run.A - run.A[0]).max(axis=1) > 1e-3).argmax()) - 1
    first = max(min(moved, int(np.searchsorted(run.times, 1e-3 * run.times[last]))), 1)
    times, A = np.log10(run.times[first : last + 1]), run.A[first : last + 1]
    way = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(A, axis=0)).max(axis=1))])
    progress = (times - times[0]) / (times[-1] - times[0]) / 2 + way / way[-1] / 2
    at = np.linspace(0, 1, FRAMES)
    return 10 ** np.interp(at, progress, times), np.stack(
        [np.interp(at, progress, a) for a in A.T], axis=1
    )


def panel(name: str, title: str, run: flow.Trajectory, error: float, left: int) -> str:
    """Return one race: its lines, uncovered from left to right, a dot at the head of each, and the
    time.
    """
    times, A = frames(run)
    x = np.linspace(LEFT, RIGHT, FRAMES)
    y = BOTTOM - (A - LOW) / (HIGH - LOW) * (BOTTOM - TOP)
    kind = "baseline" if name == "baseline" else "special"
    timing = f'dur="{SECONDS}s" begin="indefinite" fill="freeze"'
    parts = [
        (
            f'<g transform="translate({left} 0)"><text class="{kind} title" x="0"'
            f' y="16">{title}</text>'
        ),
        (
            f'<clipPath id="race-{kind}"><rect x="0" y="0" height="{HEIGHT}"'
            f' width="{RIGHT + 1}"><animate attributeName="width" values="{LEFT};{RIGHT + 1}"'
            f" {timing}/></rect></clipPath>"
        ),
    ]
    for value in (0, 0.5, 1):
        at = BOTTOM - (value - LOW) / (HIGH - LOW) * (BOTTOM - TOP)
        parts.append(
            f'<text class="small" x="{LEFT - 6}" y="{at + 4:.1f}"'
            f' text-anchor="end">{value:g}</text>'
        )
        parts.append(f'<path class="guide" d="M{LEFT} {at:.1f}H{RIGHT}"/>')
    exponents = np.log10(times)
    for e in range(int(np.ceil(exponents[0])), int(exponents[-1]) + 1):
        at = np.interp(e, exponents, x)
        label = e % 2 == 0 or exponents[-1] - exponents[0] < 4
        parts.append(f'<path class="axis" d="M{at:.1f} {BOTTOM}v5"/>')
        if label:
            parts.append(
                f'<text class="small" x="{at:.1f}" y="{BOTTOM + 18}" text-anchor="middle">'
                f'10<tspan class="tiny" dy="-5">{e}</tspan></text>'
            )
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/>')
    parts.append(
        f'<text class="small" x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 34}" text-anchor="middle">'
        "training time t (stretched where entries move)</text>"
    )
    for j in reversed(range(A.shape[1])):
        look = kind if j == 0 else f"{kind} second" if j == 1 else "other"
        points = "L".join(f"{u:.1f} {v:.1f}" for u, v in zip(x, y[:, j], strict=True))
        heights = ";".join(f"{v:.1f}" for v in y[:, j])
        parts.append(f'<path class="line {look}" clip-path="url(#race-{kind})" d="M{points}"/>')
        parts.append(
            f'<circle class="dot {look}" r="{4 if j < 2 else 2.5}" cx="{RIGHT}"'
            f' cy="{y[-1, j]:.1f}"><animate attributeName="cx" values="{LEFT};{RIGHT}"'
            f' {timing}/><animate attributeName="cy" values="{heights}" {timing}/></circle>'
        )
    for j in range(2):
        parts.append(
            f'<text class="{kind}" x="{RIGHT + 7}" y="{y[-1, j] + 4:.1f}">a<tspan class="tiny"'
            f' dy="4">{j + 1}</tspan></text>'
        )
    parts.append(
        f'<text class="{kind}" x="{LEFT + 8}" y="36">fits, then errs by {error:.2g}</text></g>'
    )
    return "".join(parts)


def make() -> str:
    """Return the animated picture as SVG text."""
    setting = paper.THEOREM_SETTINGS["theorem_kappa7"]
    panels = []
    titles = {"baseline": "One example", "with special": "One correct example more"}
    for k, (name, title) in enumerate(titles.items()):
        run = setting.run(SEED, name)
        error = metrics.generalization_error(run.student(), setting.teacher, 20)
        panels.append(panel(name, title, run, error, k * (WIDTH + 20)))
    colours: dict[str, Any] = {
        theme: ";".join(
            f"--{key}:{table.get(figures.COLOURS[name], figures.COLOURS[name])}"
            for key, name in (
                ("baseline", "baseline"),
                ("special", "with special"),
                ("ink", "ink"),
                ("muted", "muted"),
            )
        )
        for theme, table in (("light", {}), ("dark", figures._DARK))
    }
    light, dark = colours["light"], colours["dark"]
    style = (
        f"svg.race{{{light};font:13px system-ui,sans-serif;fill:var(--ink)}}"
        f"@media(prefers-color-scheme:dark){{svg.race{{{dark}}}}}"
        f"html[data-theme=light] svg.race{{{light}}}html[data-theme=dark] svg.race{{{dark}}}"
        ".race .title{font-weight:600;font-size:14px}.race .small{font-size:11px}"
        ".race .tiny{font-size:9px}"
        ".race .axis,.race .guide,.race .line{fill:none;stroke:var(--muted)}"
        ".race .guide{stroke-width:.5}"
        ".race text.baseline,.race .dot.baseline{fill:var(--baseline)}"
        ".race text.special,.race .dot.special{fill:var(--special)}"
        ".race .line.baseline{stroke:var(--baseline);stroke-width:2}"
        ".race .line.special{stroke:var(--special);stroke-width:2}"
        ".race .line.second{stroke-dasharray:6 4}.race .dot.other{fill:var(--muted)}"
    )
    words = (
        "Two races of ten entries from one start. With one example, one entry rises to 1 and the"
        " others stay near 0. With one correct example more, all ten rise together to 0.1, wait,"
        " and then two of them grow, to 0.98 and 0.69."
    )
    return (
        f'<svg class="race" xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{words}"'
        f' viewBox="0 0 {2 * WIDTH + 20} {HEIGHT}" width="{2 * WIDTH + 20}" height="{HEIGHT}">'
        f"<style>{style}</style>{''.join(panels)}<script>{SCRIPT}</script></svg>\n"
    )


def main(arguments: list[str]) -> None:
    target = Path(arguments[0]) if arguments else ROOT / "book" / "assets" / "race.svg"
    target.write_text(make(), "utf-8")
    print(f"{target.name}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
