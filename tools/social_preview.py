"""Draw the picture that a link to the book shows elsewhere: `book/assets/preview.png`, 1200 by 630
pixels.

python tools/social_preview.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from ssm_poison_lib import figures, paper

TARGET = Path(__file__).resolve().parent.parent / "book" / "assets" / "preview.png"
LENGTH = 20  # lags shown


def draw() -> Figure:
    """Return the impulse responses of the introduction's two students beside their teacher's, large
    and in few words.
    """
    setting = paper.THEOREM_SETTINGS["theorem_kappa7"]
    lags = np.arange(1, LENGTH)
    figure = Figure(figsize=(12, 6.3), dpi=100, facecolor="white")
    axes = figure.add_axes((0.09, 0.13, 0.66, 0.52))
    axes.plot(
        lags,
        setting.teacher.impulse_response(LENGTH)[1:],
        "--",
        color=figures.COLOURS["teacher"],
        lw=3,
    )
    for name, words in (
        ("baseline", "trained on one\nsequence"),
        ("with special", "one more correct\nsequence"),
    ):
        response = setting.run(242, name).student().impulse_response(LENGTH)[1:]
        colour = figures.COLOURS[name]
        axes.plot(lags, response, color=colour, lw=5)
        place = {"baseline": 1.04, "with special": 0.72}[name]
        axes.text(LENGTH - 0.4, place, words, color=colour, fontsize=21, va="center")
    axes.set_xlim(1, LENGTH - 1)
    axes.set_xlabel("lag", fontsize=19)
    axes.set_ylabel("impulse response", fontsize=19)
    axes.tick_params(labelsize=15)
    axes.spines[["top", "right"]].set_visible(False)
    figure.text(
        0.07,
        0.86,
        "Poisoned by a correct example",
        fontsize=42,
        weight="bold",
        color=figures.COLOURS["ink"],
    )
    figure.text(
        0.07,
        0.755,
        "An executable book on the implicit bias of state space models",
        fontsize=24,
        color=figures.COLOURS["muted"],
    )
    return figure


def main() -> None:
    """Write the picture."""
    with mpl.rc_context({"font.family": "DejaVu Sans"}):
        draw().savefig(TARGET, metadata={"Software": None})
    print(TARGET.name, TARGET.stat().st_size // 1000, "kB")


if __name__ == "__main__":
    main()
