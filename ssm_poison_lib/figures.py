"""The book's figures: one style that works in light, dark and print and for colour-blind readers, and figures used twice.

Every figure names its lines directly, takes its colours from `COLOURS`, and can tell its plotted numbers in words
(`summary`), which is how a stored figure is compared with a fresh one.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ssm_poison_lib._checks import as_array, as_choice, as_integer
from ssm_poison_lib.ssm import DiagonalSSM

__all__ = [
    "COLOURS",
    "Interactive",
    "convergence",
    "dynamics",
    "errors",
    "impulse_responses",
    "line_end_label",
    "loss",
    "medians",
    "new",
    "race",
    "summary",
    "to_svg",
    "use_style",
]

#: What a colour stands for in the whole book. Blue, vermillion, green, purple are from Okabe and Ito's colour-blind-safe
#: palette; "ink" and "muted" follow the page's theme.
COLOURS = {
    "baseline": "#0072b2",
    "with special": "#d55e00",
    "teacher": "#1b1b1b",
    "ink": "#1b1b1b",
    "muted": "#767676",
    "third": "#008060",
    "fourth": "#a3548a",
}

# In dark mode a browser swaps these, lighter for the same contrast (the hue, and so the meaning, stays).
_DARK = {
    "#0072b2": "#4aa8e0",
    "#d55e00": "#f08a3c",
    "#1b1b1b": "#e8e8e8",
    "#767676": "#9a9a9a",
    "#008060": "#3cb890",
    "#a3548a": "#d491bf",
}

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.titlesize": 11,
    "axes.labelsize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 10,
    "grid.color": COLOURS["muted"],
    "lines.linewidth": 1.8,
    "savefig.facecolor": "none",
    "svg.fonttype": "path",
    "svg.hashsalt": "ssm_poison_lib",  # the same figure gives the same bytes
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["ink"],
    "ytick.color": COLOURS["ink"],
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


def use_style() -> None:
    """Make figures the last line of a cell can display: as SVG that follows the page's theme, and in words.

    Call it once at the top of a chapter. Outside IPython it does nothing.
    """
    import IPython  # a reader's script may run without it

    shell = IPython.get_ipython()
    if shell is not None:
        formatters = shell.display_formatter.formatters
        formatters["image/svg+xml"].for_type(Figure, to_svg)
        formatters["text/plain"].for_type(
            Figure, lambda figure, printer, _cycle: printer.text(summary(figure))
        )


def new(
    columns: int = 1, *, rows: int = 1, height: float = 2.9, width: float = 7.2
) -> tuple[Figure, list[Axes]]:
    """Return a figure in the book's style and its axes, row by row.

    columns, rows: grid of panels, each >= 1; height: inches per row; width: inches in all, few enough for letters to be
    legible on a phone.
    """
    columns, rows = as_integer("columns", columns, low=1), as_integer("rows", rows, low=1)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, rows * height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def to_svg(figure: Figure) -> str:
    """Return the figure as SVG text whose colours follow the reader's light or dark theme."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    names = {light: f"--c{i}" for i, light in enumerate(_DARK)}
    for light, name in names.items():
        svg = svg.replace(light, f"var({name})")
    rules = [
        ";".join(f"{name}:{theme[light]}" for light, name in names.items())
        for theme in ({c: c for c in _DARK}, _DARK)
    ]
    style = f"<style>:root{{{rules[0]}}}@media (prefers-color-scheme: dark){{:root{{{rules[1]}}}}}</style>"
    head, tail = svg.split("<defs>", 1)
    return f"{head}{style}<defs>{tail}"


def _number(value: float, digits: int = 2) -> str:
    # What lies below is rounding noise of the processor at hand (a loss after a perfect fit, say), not a result.
    return f"{value:.{digits}e}" if abs(value) >= 1e-20 else "below 1e-20"


def _describe(name: str, x: Any, y: Any) -> str:
    x, y = (np.asarray(v, dtype=float)[np.isfinite(np.asarray(v, dtype=float))] for v in (x, y))
    if x.size == 0 or y.size == 0:
        return f"{name}: empty"
    return (
        f"{name}: x {_number(x.min())} to {_number(x.max())}, y from {_number(y[0])} to {_number(y[-1])},"
        f" least {_number(y.min())}, largest {_number(y.max())}, mean {_number(y.mean(), 1)}"
    )


def summary(figure: Figure) -> str:
    """Return what the figure shows as rounded numbers: every line, point set, bar and image of every panel.

    Stored with the notebook and compared when it runs again, so that a figure drawn from other numbers is noticed.
    """
    rows = []
    for number, ax in enumerate(figure.axes, start=1):
        rows.append(
            f"panel {number}: {ax.get_title(loc='left') or ax.get_title()} [{ax.get_xlabel()} | {ax.get_ylabel()}]"
        )
        for line in ax.get_lines():
            rows.append("  " + _describe(f"line {line.get_label()}", line.get_xdata(), line.get_ydata()))
        for points in (c for c in ax.collections if isinstance(c, PathCollection)):
            offsets = np.asarray(points.get_offsets())
            rows.append("  " + _describe(f"points {points.get_label()}", offsets[:, 0], offsets[:, 1]))
        if ax.patches:
            heights = [patch.get_height() for patch in ax.patches if hasattr(patch, "get_height")]
            rows.append("  " + _describe("bars", np.arange(len(heights)), heights))
        for image in [*ax.images, *(c for c in ax.collections if type(c).__name__ == "QuadMesh")]:
            values: np.ndarray = np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), np.nan).ravel()
            rows.append("  " + _describe("image", np.arange(values.size), values))
    return "\n".join(rows)


@dataclass(frozen=True, eq=False)
class Interactive:
    """A figure with one control more than paper has: Plotly with a slider, and a static figure wherever that cannot run.

    static: the same in Matplotlib, for paper, pages without JavaScript, and the compared summary. traces: Plotly's, as plain
    dictionaries. layout: Plotly's. frames: the slider's value in words -> for each trace what changes there; the figure opens
    at the first. slider: the name of what the slider changes.

    As the last line of a cell it shows itself: JupyterLab draws it with its Plotly extension, the pages with one local copy
    of plotly.js (book/_ext/interactive.py).

    Raises ValueError if there is no frame, or a frame has not one entry for each trace.
    """

    static: Figure
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    frames: Mapping[str, Sequence[Mapping[str, Any]]]
    slider: str

    def __post_init__(self) -> None:
        """Check that every frame fits the traces."""
        if not self.frames:
            raise ValueError("frames must hold at least one frame; got none")
        for name, changes in self.frames.items():
            if len(changes) != len(self.traces):
                raise ValueError(
                    f"frames[{name!r}] must hold one entry for each of the {len(self.traces)} traces; got {len(changes)}"
                )

    def spec(self) -> dict[str, Any]:
        """Return Plotly's description of the figure, slider included."""
        first = next(iter(self.frames.values()))
        show = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
        steps = [{"method": "animate", "label": name, "args": [[name], show]} for name in self.frames]
        return {
            "data": [{**trace, **change} for trace, change in zip(self.traces, first, strict=True)],
            "layout": {
                "font": {"family": "system-ui, sans-serif", "size": 12},
                "margin": {"l": 60, "r": 20, "t": 30, "b": 50},
                "meta": {"dark": _DARK},  # for the pages; JupyterLab draws on white
                **self.layout,
                "sliders": [
                    {"currentvalue": {"prefix": f"{self.slider}: "}, "pad": {"t": 40}, "steps": steps}
                ],
            },
            "frames": [{"name": name, "data": list(changes)} for name, changes in self.frames.items()],
        }

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        return {
            "text/plain": f"{summary(self.static)}\nslider {self.slider}: {', '.join(self.frames)}",
            "image/svg+xml": to_svg(self.static),
            "application/vnd.plotly.v1+json": self.spec(),
        }


def line_end_label(
    ax: Axes, text: str, x: float, y: float, colour: str, *, dx: float = 4.0, dy: float = 0.0
) -> None:
    """Write a label beside the data point (x, y), shifted by (dx, dy) points: instead of a legend."""
    ax.annotate(
        text,
        (x, y),
        (dx, dy),
        textcoords="offset points",
        color=colour,
        va="center",
        fontsize=9.5,
        annotation_clip=False,
    )


def _colour(name: str) -> str:
    return COLOURS.get(name, COLOURS["third"])


def race(
    trajectories: Mapping[str, Any],
    *,
    shown: int | None = None,
    logarithmic: bool = False,
    start: float | None = None,
) -> Figure:
    """Draw how the diagonal entries a_1..a_d move, one panel for each training set.

    trajectories: name -> object with times (T,) and A (T, d), such as a flow's Trajectory; "baseline" and "with
    special" take their colours. shown: draw only this many entries, those that end largest in size. logarithmic: draw
    abs(a_j) on a logarithmic axis. start: first time drawn (the time axis is logarithmic; by default 1e-4 of the end).

    Raises ValueError if there is nothing to draw or `shown` is not 1..d.
    """
    if not trajectories:
        raise ValueError("trajectories must hold at least one trajectory; got none")
    figure, axes = new(len(trajectories))
    for ax, (name, trajectory) in zip(axes, trajectories.items(), strict=True):
        d = trajectory.A.shape[1]
        count = d if shown is None else as_integer("shown", shown, low=1, high=d)
        order = np.argsort(-np.abs(trajectory.A[-1]), kind="stable")[:count]
        first = 1e-4 * trajectory.times[-1] if start is None else start
        late = trajectory.times >= first
        times, entries = trajectory.times[late], trajectory.A[late]
        for rank, j in enumerate(order):
            values = np.abs(entries[:, j]) if logarithmic else entries[:, j]
            lead = rank < 2
            ax.plot(
                times,
                values,
                color=_colour(name) if lead else COLOURS["muted"],
                linestyle="--" if rank == 1 else "-",
                linewidth=1.8 if lead else 0.9,
                label=f"a_{j + 1}",
                zorder=3 if lead else 2,
            )
            if lead:
                line_end_label(ax, f"$a_{{{j + 1}}}$", times[-1], values[-1], _colour(name))
        ax.set(xscale="log", xlabel="training time $t$")
        ax.set_title(name, loc="left")
        if logarithmic:
            ax.set(yscale="log")
        else:
            ax.axhline(0, color=COLOURS["muted"], linewidth=0.6, label="zero")
    axes[0].set_ylabel("diagonal entries $|a_j(t)|$" if logarithmic else "diagonal entries $a_j(t)$")
    return figure


def impulse_responses(
    systems: Mapping[str, DiagonalSSM], *, length: int, training_length: int | None = None, first_lag: int = 0
) -> Figure:
    """Draw impulse responses M_m against the lag m.

    systems: name -> SSM; "teacher", "baseline", "with special" take their colours. length: lags 0 .. length-1.
    training_length: kappa; lags beyond kappa-1 are then marked as beyond the training length. first_lag: first lag drawn.
    """
    if not systems:
        raise ValueError("systems must hold at least one SSM; got none")
    first_lag = as_integer("first_lag", first_lag, low=0, high=length - 1)
    figure, (ax,) = new()
    lags = np.arange(first_lag, length)
    # Drawn by hand: a thick pale line for the teacher, so that students lie visibly on it or off it.
    taken: list[float] = []
    top = 0.0
    for k, (name, system) in enumerate(systems.items()):
        response = system.impulse_response(length)[first_lag:]
        top = max(top, float(np.abs(response).max()))
        style = (
            {"linewidth": 6, "alpha": 0.25}
            if name == "teacher"
            else {"marker": "os^D"[k % 4], "markersize": 4}
        )
        ax.plot(lags, response, color=_colour(name), label=name, **style)
    for name, system in systems.items():
        y = float(system.impulse_response(length)[-1])
        close = sum(abs(y - other) < 0.08 * max(top, 1e-12) for other in taken)
        line_end_label(ax, name, float(lags[-1]), y, _colour(name), dx=7.0, dy=-12.0 * float(close))
        taken.append(y)
    if training_length is not None:
        ax.axvline(
            training_length - 0.5,
            color=COLOURS["muted"],
            linewidth=0.8,
            linestyle=":",
            label="training length",
        )
        ax.annotate(
            " beyond the training length",
            (training_length - 0.5, 1),
            xycoords=("data", "axes fraction"),
            va="top",
            fontsize=9,
            color=COLOURS["muted"],
        )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="lag $m$", ylabel="impulse response $M_m$")
    return figure


def loss(trajectories: Mapping[str, Any], *, start: float | None = None) -> Figure:
    """Draw the training loss against time, both on logarithmic axes.

    trajectories: name -> object with times (T,) and loss (T,). start: first time drawn (by default 1e-8 of the end).
    A loss of exactly zero cannot be drawn on this axis; its point is left out.
    """
    if not trajectories:
        raise ValueError("trajectories must hold at least one trajectory; got none")
    figure, (ax,) = new()
    for name, trajectory in trajectories.items():
        first = 1e-8 * trajectory.times[-1] if start is None else start
        drawn = (trajectory.times >= first) & (trajectory.loss > 0)
        ax.plot(trajectory.times[drawn], trajectory.loss[drawn], color=_colour(name), label=name)
        line_end_label(ax, name, trajectory.times[drawn][-1], trajectory.loss[drawn][-1], _colour(name))
    ax.set(xscale="log", yscale="log", xlabel="training time $t$", ylabel="training loss")
    return figure


def errors(
    groups: Mapping[str, Sequence[float] | Float[np.ndarray, " n"]],
    *,
    reference: Mapping[str, Sequence[float] | Float[np.ndarray, " n"]] | None = None,
    ylabel: str,
    scale: str = "log",
) -> Figure:
    """Draw one point per seed for each group, with a bar from the lowest to the highest and a tick at the median.

    groups: name -> errors, one per seed; reference: name -> values drawn as open circles beside ours (the authors').
    ylabel: the error's name, with its normalisation. scale: "log" or "linear".

    Raises ValueError for an empty group, a reference for a group that is not there, or another scale.
    """
    if not groups:
        raise ValueError("groups must hold at least one group of errors; got none")
    scale = as_choice("scale", scale, ("log", "linear"))
    reference = reference or {}
    if not set(reference) <= set(groups):
        raise ValueError(f"reference must name groups among {list(groups)}; got {list(reference)}")
    figure, (ax,) = new()
    for k, (name, values) in enumerate(groups.items()):
        ours = as_array(f"groups[{name!r}]", values, ndim=1)
        colour = _colour(name)
        ax.plot([k, k], [ours.min(), ours.max()], color=colour, linewidth=1.2, label=f"{name} range")
        ax.plot(
            [k - 0.07, k + 0.07], [np.median(ours)] * 2, color=colour, linewidth=2.4, label=f"{name} median"
        )
        ax.scatter(k + 0.12 + np.zeros(len(ours)), ours, color=colour, s=26, label=f"{name}, ours", zorder=3)
        if name in reference:
            theirs = as_array(f"reference[{name!r}]", reference[name], ndim=1)
            ax.scatter(
                k + 0.24 + np.zeros(len(theirs)),
                theirs,
                s=26,
                facecolors="none",
                edgecolors=COLOURS["ink"],
                label=f"{name}, authors",
            )
    ax.set_xticks(range(len(groups)), list(groups))
    ax.set_xlim(-0.5, len(groups) - 0.3)
    ax.set(yscale=scale, ylabel=ylabel)
    return figure


def dynamics(records: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw how runs of an experiment train: their largest abs(a_j), effective rank and gamma_0 against the epoch.

    records: "baseline" and "with special" (or one of them) -> a run's record, with "curves" and "stop_epoch" as in
    `results.RECORD`. The epoch axis is logarithmic and leaves out the start; a dotted line marks the stop epoch.
    """
    if not records:
        raise ValueError("records must hold at least one run; got none")
    figure, axes = new(3, height=2.7)
    for name, record in records.items():
        curves, colour = record["curves"], _colour(name)
        epochs = np.asarray(curves["epoch"])
        drawn = epochs >= 1
        entries = np.asarray(curves["largest_abs_a"])[drawn]
        for rank in range(entries.shape[1]):
            axes[0].plot(
                epochs[drawn],
                entries[:, rank],
                color=colour,
                linestyle="--" if rank == 1 else "-",
                linewidth=(1.8, 1.5)[rank] if rank < 2 else 0.7,
                label=f"{name}, {rank + 1}. largest",
            )
        for ax, key in zip(axes[1:], ("effective_rank", "gamma0"), strict=True):
            ax.plot(epochs[drawn], np.asarray(curves[key])[drawn], color=colour, label=name)
        if record["stop_epoch"] is not None:
            for ax in axes:
                ax.axvline(
                    record["stop_epoch"], color=colour, linestyle=":", linewidth=1, label=f"{name}, stop"
                )
    for ax, title in zip(axes, ("largest $|a_j|$", "effective rank of $A$", r"$\gamma^{(0)}$"), strict=True):
        ax.set(xscale="log", xlabel="epoch")
        ax.set_title(title, loc="left")
    for row, name in enumerate(records):
        axes[1].annotate(
            name,
            (0.03, 0.02 + 0.1 * row),
            xycoords="axes fraction",
            color=_colour(name),
            fontsize=9,
            va="bottom",
        )
    axes[1].set_ylim(bottom=0)
    return figure


def convergence(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    ylabel: str,
    marks: Mapping[str, Sequence[int]] | None = None,
    xlabel: str = "epoch",
) -> Figure:
    """Draw the error of runs against the epoch and against their training loss, all axes logarithmic.

    runs: name -> one mapping for each run, with lists "epoch", "loss", "error". ylabel: the error's name.
    marks: name -> an epoch for each run, drawn as a circle at the first logged epoch not before it.
    xlabel: what "epoch" holds, if it is another measure of time. Training goes to the right in both panels.

    Raises ValueError if there is nothing to draw, or the marks do not belong to the runs.
    """
    if not any(len(group) for group in runs.values()):
        raise ValueError("runs must hold at least one run; got none")
    marks = marks or {}
    for name, epochs in marks.items():
        if name not in runs or len(epochs) != len(runs[name]):
            raise ValueError(f"marks must hold one epoch for each run; got {len(epochs)} for {name!r}")
    figure, axes = new(2)
    for name, group in runs.items():
        colour, width = _colour(name), 1.8 if len(group) == 1 else 0.9
        for number, run in enumerate(group):
            x, loss_values, error = (np.asarray(run[key], dtype=float) for key in ("epoch", "loss", "error"))
            drawn = x > 0
            for ax, values in zip(axes, (x, loss_values), strict=True):
                # The loss need not fall: joined points would cross the panel to and fro.
                style = (
                    {"linewidth": width}
                    if ax is axes[0]
                    else {"linestyle": "", "marker": ".", "markersize": 3}
                )
                ax.plot(values[drawn], error[drawn], color=colour, label=f"{name} {number}", **style)
                if name in marks:
                    row = min(int(np.searchsorted(x, marks[name][number])), len(x) - 1)
                    ax.scatter(
                        values[row : row + 1],
                        error[row : row + 1],
                        s=26,
                        facecolors="none",
                        edgecolors=colour,
                        label=f"{name} {number}, marked",
                        zorder=3,
                    )
    for ax in axes:
        ax.set(xscale="log", yscale="log")
    axes[0].set(xlabel=xlabel, ylabel=ylabel)
    axes[1].set(xlabel="training loss (falls to the right)")
    axes[1].invert_xaxis()
    for column, name in enumerate(runs):
        axes[0].annotate(
            name,
            (0.02 + 0.3 * column, 1.02),
            xycoords="axes fraction",
            color=_colour(name),
            fontsize=9.5,
            va="bottom",
        )
    return figure


def medians(cells: Mapping[str, Mapping[str, Any]], *, against: str, ylabel: str, columns: int = 3) -> Figure:
    """Draw the median error of many seeds, a band from the lower to the upper quartile, one panel for each cell of a study.

    cells: title -> summary of a cell, as `convergence.summarize` returns it. against: "epoch" (equal epochs, or equal
    time of a flow) or "loss" (where each seed first reaches a training loss; losses that fewer than half of the seeds
    reach are left out; training goes to the right). ylabel: the error's name. columns: panels in a row.

    Raises ValueError if there is nothing to draw, or for another `against`.
    """
    if not cells:
        raise ValueError("cells must hold at least one cell of a study; got none")
    against = as_choice("against", against, ("epoch", "loss"))
    columns = min(as_integer("columns", columns, low=1), len(cells))
    figure, axes = new(columns, rows=-(-len(cells) // columns), height=2.5)
    for ax in axes[len(cells) :]:
        ax.remove()
    for place, (ax, (title, cell)) in enumerate(zip(axes, cells.items(), strict=False)):
        for name in ("baseline", "with special"):
            spreads = cell[name]["by_epoch" if against == "epoch" else "by_loss"]
            marks = cell["grid" if against == "epoch" else "losses"]
            drawn = [k for k, s in enumerate(spreads) if 2 * s["n"] >= len(cell["seeds"])]
            x = [marks[k] for k in drawn]
            lower, middle, upper = ([spreads[k][key] for k in drawn] for key in ("q25", "median", "q75"))
            colour = _colour(name)
            ax.plot(x, middle, color=colour, label=f"{name}, median")
            for edge, values in (("lower", lower), ("upper", upper)):
                ax.plot(x, values, color=colour, linewidth=0.5, label=f"{name}, {edge} quartile")
            ax.fill_between(x, lower, upper, color=colour, alpha=0.15, linewidth=0)
        ax.set(xscale="log", yscale="log")
        ax.set_title(title, loc="left", fontsize=9.5)
        if against == "loss":
            ax.invert_xaxis()
            ax.set_xlabel("training loss")
        else:
            ax.set_xlabel("time $t$" if cell["method"] == "gradient flow" else "epoch")
        if place % columns == 0:
            ax.set_ylabel(ylabel)
    return figure
