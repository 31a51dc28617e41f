"""The book's figures: one style for light, dark and print, and figures used twice.

Every figure names its lines directly, takes its colours from `COLOURS`, and can tell its plotted
numbers in words (`summary`), which is how a stored figure is compared with a fresh one.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import is_color_like
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import MaxNLocator

from ssm_poison_lib._checks import (
    ArrayLike,
    as_array,
    as_choice,
    as_flag,
    as_instance,
    as_integer,
    as_mapping,
    as_scalar,
    as_text,
    shown,
)
from ssm_poison_lib.records import Curves, Record
from ssm_poison_lib.ssm import DiagonalSSM

__all__ = [
    "COLOURS",
    "Interactive",
    "convergence",
    "dynamics",
    "entries",
    "impulse_responses",
    "line_end_label",
    "medians",
    "new",
    "race",
    "scales",
    "summary",
    "to_svg",
    "use_style",
]

#: What a colour stands for in the whole book. Blue, vermillion, green, purple are from Okabe and
#: Ito's colour-blind-safe palette; "ink" and "muted" follow the page's theme.
COLOURS = {
    "baseline": "#0072b2",
    "with special": "#d55e00",
    "teacher": "#1b1b1b",
    "ink": "#1b1b1b",
    "muted": "#767676",
    "third": "#008060",
    "fourth": "#a3548a",
}

# In dark mode a browser swaps these, lighter for the same contrast (the hue, and so the meaning,
# stays).
_DARK = {
    "#0072b2": "#4aa8e0",
    "#d55e00": "#f08a3c",
    "#1b1b1b": "#e8e8e8",
    "#767676": "#9a9a9a",
    "#008060": "#3cb890",
    "#a3548a": "#d491bf",
}

# On top of Matplotlib's own defaults: a reader's matplotlibrc changes no figure of the book.
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

# Inches of a figure on a phone, where 342 pixels have to hold it: letters of 9 points are then 9.7
# pixels high. A panel among others is at most so high.
_PHONE_WIDTH = 4.4
_PHONE_PANEL = 2.6


def use_style() -> None:
    """Make figures the last line of a cell can display: as SVG that follows the page's theme, and
    in words.

    Call it once at the top of a chapter. It also goes back to Matplotlib's own defaults, whatever a
    matplotlibrc says; outside IPython it does only that.
    """
    import IPython  # a reader's script may run without it

    mpl.style.use("default")

    shell = IPython.get_ipython()
    if shell is not None:
        formatters = shell.display_formatter.formatters
        formatters["image/svg+xml"].for_type(Figure, _for_page)
        formatters["text/plain"].for_type(
            Figure, lambda figure, printer, _cycle: printer.text(summary(figure))
        )


def new(
    columns: int = 1, *, rows: int = 1, height: float = 2.9, width: float = 7.2
) -> tuple[Figure, list[Axes]]:
    """Return a figure in the book's style and its axes, row by row.

    Args:
        columns: grid of panels, at most 20 and 100
        rows: grid of panels, at most 20 and 100
        height: inches per row
        width: inches in all (each in 0 to 100), few enough for letters to be legible on a phone.

    Raises:
        ValueError: for others.
    """
    columns = as_integer("columns", columns, low=1, high=20)
    rows = as_integer("rows", rows, low=1, high=100)
    height = as_scalar("height", height, low=0.0, high=100.0, strict=True)
    width = as_scalar("width", width, low=0.0, high=100.0, strict=True)
    with mpl.style.context(["default", _STYLE]):
        figure = Figure(figsize=(width, rows * height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def to_svg(figure: Figure) -> str:
    """Return the figure as SVG text whose colours follow the reader's light or dark theme.

    Args:
        figure: a figure, best made by `new`
    """
    figure = as_instance("figure", figure, Figure)
    buffer = io.StringIO()
    with mpl.style.context(["default", _STYLE]):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    names = {light: f"--c{i}" for i, light in enumerate(_DARK)}
    for light, name in names.items():
        svg = svg.replace(light, f"var({name})")
    rules = [
        ";".join(f"{name}:{theme[light]}" for light, name in names.items())
        for theme in ({c: c for c in _DARK}, _DARK)
    ]
    style = (
        f"<style>:root{{{rules[0]}}}@media (prefers-color-scheme:"
        f" dark){{:root{{{rules[1]}}}}}</style>"
    )
    head, tail = svg.split("<defs>", 1)
    return f"{head}{style}<defs>{tail}"


@contextmanager
def _stacked(figure: Figure) -> Iterator[None]:
    """Put the panels of a figure one above the other, as wide as a phone; put them back at the
    end.
    """
    width, height = figure.get_size_inches()
    placed = [(ax, spec) for ax in figure.axes if (spec := ax.get_subplotspec()) is not None]
    cells = sorted({(spec.rowspan.start, spec.colspan.start) for _, spec in placed})
    rows = max((spec.get_gridspec().nrows for _, spec in placed), default=1)
    panel = height / rows if len(cells) < 2 else min(height / rows, _PHONE_PANEL)
    grid = GridSpec(max(len(cells), 1), 1, figure=figure)
    named: list[tuple[Axes, list[str]]] = []  # names that stood once, at the left of a row
    try:
        figure.set_size_inches(_PHONE_WIDTH, panel * max(len(cells), 1))
        first: dict[int, Axes] = {}
        for ax, spec in sorted(placed, key=lambda pair: pair[1].colspan.start):
            ax.set_subplotspec(grid[cells.index((spec.rowspan.start, spec.colspan.start))])
            left = first.setdefault(spec.rowspan.start, ax)
            names, own = ([label.get_text() for label in x.get_yticklabels()] for x in (left, ax))
            if len(names) == len(own) and any(names) and not any(own):
                named.append((ax, own))
                ax.set_yticklabels(names)
        yield
    finally:
        figure.set_size_inches(width, height)
        for ax, spec in placed:
            ax.set_subplotspec(spec)
        for ax, own in named:
            ax.set_yticklabels(own)


def _for_page(figure: Figure) -> str:
    """Return `to_svg`, and hidden in it, for a figure wider than a phone, a second drawing with the
    panels one above the other, which the pages show there (book/_ext/page.py parts the two).
    """
    desk = to_svg(figure)
    if figure.get_figwidth() <= _PHONE_WIDTH:
        return desk
    with _stacked(figure):
        phone = to_svg(figure)
    hidden = phone[phone.index("<svg ") :].replace("<svg ", '<svg class="phone" display="none" ', 1)
    return f"{desk.rstrip().removesuffix('</svg>')}{hidden}</svg>\n"


def _number(value: float, digits: int = 2) -> str:
    # What lies below is rounding noise of the processor at hand (a loss after a perfect fit, say),
    # not a result.
    return f"{value:.{digits}e}" if abs(value) >= 1e-20 else "below 1e-20"


def _describe(name: str, x: Any, y: Any) -> str:
    x, y = (np.asarray(v, dtype=float)[np.isfinite(np.asarray(v, dtype=float))] for v in (x, y))
    if x.size == 0 or y.size == 0:
        return f"{name}: empty"
    return (
        f"{name}: x {_number(x.min())} to {_number(x.max())}, y from {_number(y[0])} to"
        f" {_number(y[-1])}, least {_number(y.min())}, largest {_number(y.max())}, mean"
        f" {_number(y.mean(), 1)}"
    )


def summary(figure: Figure) -> str:
    """Return what the figure shows as rounded numbers: every line, point set, bar and image of
    every panel.

    Stored with the notebook and compared when it runs again, so that a figure drawn from other
    numbers is noticed.

    Args:
        figure: a figure, best made by `new`
    """
    figure = as_instance("figure", figure, Figure)
    rows = []
    for number, ax in enumerate(figure.axes, start=1):
        rows.append(
            f"panel {number}: {ax.get_title(loc='left') or ax.get_title()} [{ax.get_xlabel()} |"
            f" {ax.get_ylabel()}]"
        )
        for line in ax.get_lines():
            rows.append(
                "  " + _describe(f"line {line.get_label()}", line.get_xdata(), line.get_ydata())
            )
        for points in (c for c in ax.collections if isinstance(c, PathCollection)):
            offsets = np.asarray(points.get_offsets())
            rows.append(
                "  " + _describe(f"points {points.get_label()}", offsets[:, 0], offsets[:, 1])
            )
        if ax.patches:
            heights = [patch.get_height() for patch in ax.patches if hasattr(patch, "get_height")]
            rows.append("  " + _describe("bars", np.arange(len(heights)), heights))
        for image in [*ax.images, *(c for c in ax.collections if type(c).__name__ == "QuadMesh")]:
            values: np.ndarray = np.ma.filled(
                np.ma.asarray(image.get_array(), dtype=float), np.nan
            ).ravel()
            rows.append("  " + _describe("image", np.arange(values.size), values))
    return "\n".join(rows)


@dataclass(frozen=True, eq=False)
class Interactive:
    """A figure with one control more than paper has: Plotly with a slider, and a static figure
    wherever that cannot run.

    As the last line of a cell it shows itself: JupyterLab draws it with its Plotly extension, the
    pages with one local copy of plotly.js (book/_ext/interactive.py).

    Attributes:
        static: the same in Matplotlib, for paper, pages without JavaScript, and the compared
            summary.
        traces: Plotly's, as plain dictionaries.
        layout: Plotly's.
        frames: the slider's value in words -> for each trace what changes there; the figure opens
            at the first.
        slider: the name of what the slider changes.

    Raises:
        ValueError: if there is no frame, or a frame has not one entry for each trace.
        TypeError: for objects of other classes.
    """

    static: Figure
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    frames: Mapping[str, Sequence[Mapping[str, Any]]]
    slider: str

    def __post_init__(self) -> None:
        """Check that every frame fits the traces."""
        as_instance("static", self.static, Figure)
        as_mapping("layout", self.layout)
        as_text("slider", self.slider)
        for k, trace in enumerate(_sequence("traces", self.traces)):
            as_mapping(f"traces[{k}]", trace)
        if not as_mapping("frames", self.frames):
            raise ValueError("frames must hold at least one frame; got none")
        for name, changes in self.frames.items():
            for k, change in enumerate(_sequence(f"frames[{name!r}]", changes)):
                as_mapping(f"frames[{name!r}][{k}]", change)
            if len(changes) != len(self.traces):
                raise ValueError(
                    f"frames[{name!r}] must hold one entry for each of the {len(self.traces)}"
                    f" traces; got {len(changes)}"
                )

    def spec(self) -> dict[str, Any]:
        """Return Plotly's description of the figure, slider included."""
        first = next(iter(self.frames.values()))
        show = {
            "mode": "immediate",
            "frame": {"duration": 0, "redraw": True},
            "transition": {"duration": 0},
        }
        steps = [
            {"method": "animate", "label": name, "args": [[name], show]} for name in self.frames
        ]
        return {
            "data": [{**trace, **change} for trace, change in zip(self.traces, first, strict=True)],
            "layout": {
                "font": {"family": "system-ui, sans-serif", "size": 12},
                "margin": {"l": 60, "r": 20, "t": 30, "b": 50},
                "meta": {"dark": _DARK},  # for the pages; JupyterLab draws on white
                **self.layout,
                "sliders": [
                    {
                        "currentvalue": {"prefix": f"{self.slider}: "},
                        "pad": {"t": 40},
                        "steps": steps,
                    }
                ],
            },
            "frames": [
                {"name": name, "data": list(changes)} for name, changes in self.frames.items()
            ],
        }

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        return {
            "text/plain": f"{summary(self.static)}\nslider {self.slider}: {', '.join(self.frames)}",
            "image/svg+xml": _for_page(self.static),
            "application/vnd.plotly.v1+json": self.spec(),
        }


def line_end_label(
    ax: Axes, text: str, x: float, y: float, colour: str, *, dx: float = 4.0, dy: float = 0.0
) -> None:
    """Write a label beside the data point (x, y), shifted by (dx, dy) points: instead of a legend.

    Args:
        ax: where
        text: the label
        x: of the data point
        y: of the data point
        colour: of the text
        dx: points to the right
        dy: points up
    """
    as_instance("ax", ax, Axes)
    text = as_text("text", text)
    if not isinstance(colour, str) or not is_color_like(colour):
        raise ValueError(f"colour must be a colour of Matplotlib; got {shown(colour)}")
    ax.annotate(
        text,
        (as_scalar("x", x), as_scalar("y", y)),
        (as_scalar("dx", dx), as_scalar("dy", dy)),
        textcoords="offset points",
        color=colour,
        va="center",
        fontsize=9.5,
        annotation_clip=False,
    )


def _sequence(name: str, value: Any) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a list; got {shown(value)}")
    return value


def _filled(name: str, value: Any, what: str) -> Mapping[Any, Any]:
    """Return a mapping that holds something to draw."""
    if not as_mapping(name, value):
        raise ValueError(f"{name} must hold at least one {what}; got none")
    return value


def _part(name: str, source: Any, key: str) -> Any:
    """Return source[key] of a mapping, source.key of another object; a TypeError says what is
    missing where.
    """
    try:
        return source[key] if isinstance(source, Mapping) else getattr(source, key)
    except (AttributeError, KeyError):
        raise TypeError(
            f"{name} must have {key!r}; got {type(source).__name__} without it"
        ) from None


def _numbers(name: str, source: Any, key: str, ndim: int = 1) -> np.ndarray:
    """Return `_part` as an array of floats with `ndim` axes (NaN marks what is not drawn)."""
    value = _part(name, source, key)
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: {key!r} must be numbers; got {shown(value)}") from None
    if array.ndim != ndim or array.size == 0:
        raise ValueError(
            f"{name}: {key!r} must have {ndim} axes and values; got shape {array.shape}"
        )
    return array


def _drawn_from(start: Any, times: np.ndarray, share: float) -> np.ndarray:
    """Return which of the times are drawn: those from `start` on, by default from a share of the
    last.
    """
    first = share * times[-1] if start is None else as_scalar("start", start)
    if not (times >= first).any():
        raise ValueError(f"start must be at most the last time, {times[-1]:g}; got {first:g}")
    return np.asarray(times >= first)


def _share_vertical(axes: Sequence[Axes]) -> None:
    """Give panels one vertical axis, which holds what any of them draws."""
    for ax in axes[1:]:
        ax.sharey(axes[0])
    axes[0].autoscale_view(scalex=False)


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

    Args:
        trajectories: name -> object with times (T,) and A (T, d), such as a flow's Trajectory;
            "baseline" and "with special" take their colours.
        shown: draw only this many entries, those that end largest in size.
        logarithmic: draw abs(a_j) on a logarithmic axis.
        start: first time drawn (the time axis is logarithmic; by default 1e-4 of the end).

    Raises:
        ValueError: if there is nothing to draw or `shown` is not 1..d.
        TypeError: for objects without times and A.
    """
    logarithmic = as_flag("logarithmic", logarithmic)
    figure, axes = new(len(_filled("trajectories", trajectories, "trajectory")))
    for ax, (name, trajectory) in zip(axes, trajectories.items(), strict=True):
        times = _numbers(f"trajectories[{name!r}]", trajectory, "times")
        entries = _numbers(f"trajectories[{name!r}]", trajectory, "A", ndim=2)
        d = entries.shape[1]
        count = d if shown is None else as_integer("shown", shown, low=1, high=d)
        order = np.argsort(-np.abs(entries[-1]), kind="stable")[:count]
        late = _drawn_from(start, times, 1e-4)
        times, entries = times[late], entries[late]
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
    axes[0].set_ylabel(
        "diagonal entries $|a_j(t)|$" if logarithmic else "diagonal entries $a_j(t)$"
    )
    return figure


def impulse_responses(
    systems: Mapping[str, DiagonalSSM],
    *,
    length: int,
    training_length: int | None = None,
    first_lag: int = 0,
) -> Figure:
    """Draw impulse responses M_m against the lag m.

    Args:
        systems: name -> SSM; "teacher", "baseline", "with special" take their colours.
        length: lags 0 .. length-1.
        training_length: kappa; lags beyond kappa-1 are then marked as beyond the training length.
        first_lag: first lag drawn.

    Raises:
        ValueError: for no system, or lags outside 0 .. length-1 (length at most 100,000).
        TypeError: for another class.
    """
    for name, system in _filled("systems", systems, "SSM").items():
        as_instance(f"systems[{name!r}]", system, DiagonalSSM)
    length = as_integer("length", length, low=1, high=100_000)
    if training_length is not None:
        training_length = as_integer("training_length", training_length, low=1, high=100_000)
    first_lag = as_integer("first_lag", first_lag, low=0, high=length - 1)
    figure, (ax,) = new()
    lags = np.arange(first_lag, length)
    # Drawn by hand: a thick pale line for the teacher, so that students lie visibly on it or off
    # it.
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


def _mark_stop(ax: Axes, name: str, record: Record, height: float = 1.0) -> None:
    if record.stop_epoch is not None:
        ax.axvline(
            record.stop_epoch,
            ymax=height,
            color=_colour(name),
            linestyle=":",
            linewidth=1,
            label=f"{name}, stop",
        )


def _draw_entries(
    ax: Axes, name: str, where: str, record: Any, stop_height: float = 1.0
) -> tuple[Curves, np.ndarray]:
    """Draw a run's largest abs(a_j) and its stop; return its curves, and which epochs are drawn."""
    curves = as_instance(where, record, Record).curves
    if curves is None:
        raise ValueError(f"{where} must have curves; got None")
    drawn = np.array(curves.at) >= 1
    largest = np.array(curves.largest_abs_a)[drawn]
    for rank in range(largest.shape[1]):
        ax.plot(
            np.array(curves.at)[drawn],
            largest[:, rank],
            color=_colour(name),
            linestyle="--" if rank == 1 else "-",
            linewidth=(1.8, 1.5)[rank] if rank < 2 else 0.7,
            label=f"{name}, {rank + 1}. largest",
        )
    _mark_stop(ax, name, record, stop_height)
    return curves, drawn


def dynamics(records: Mapping[str, Record]) -> Figure:
    """Draw how runs train: their largest abs(a_j), effective rank and gamma_0 against the epoch.

    The epoch axis is logarithmic and leaves out the start; a dotted line marks the stop epoch.

    Args:
        records: "baseline" and "with special" (or one of them) -> a run's record, with its curves.

    Raises:
        ValueError: for no run, or a record without curves.
        TypeError: for something that is no record.
    """
    figure, axes = new(3, height=2.7)
    for name, record in _filled("records", records, "run").items():
        curves, drawn = _draw_entries(axes[0], name, f"records[{name!r}]", record)
        for ax, values in zip(axes[1:], (curves.effective_rank, curves.gamma0), strict=True):
            ax.plot(
                np.array(curves.at)[drawn], np.array(values)[drawn], color=_colour(name), label=name
            )
            _mark_stop(ax, name, record)
    for ax, title in zip(
        axes, ("largest $|a_j|$", "effective rank of $A$", r"$\gamma^{(0)}$"), strict=True
    ):
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


def entries(cases: Mapping[str, Mapping[str, Record]], *, columns: int = 2) -> Figure:
    """Draw the largest abs(a_j) of many pairs of runs, one panel for each pair.

    The panels share their vertical axis and say the effective rank at the logged epoch. The epoch
    axis is logarithmic and leaves out the start; a dotted line marks the stop epoch.

    Args:
        cases: title -> "baseline" and "with special" (or one of them) -> a run's record, with its
            curves.
        columns: panels in a row.

    Raises:
        ValueError: for no pair, a pair without a run, or a record without curves.
        TypeError: for something that is no record.
    """
    _filled("cases", cases, "pair of runs")
    columns = min(as_integer("columns", columns, low=1, high=20), len(cases))
    # Narrow panels: on a phone the figure shrinks less, so its letters stay legible.
    figure, axes = new(columns, rows=-(-len(cases) // columns), height=1.9, width=2.6 * columns)
    for ax in axes[len(cases) :]:
        ax.remove()
    axes = axes[: len(cases)]
    for place, (ax, (title, records)) in enumerate(zip(axes, cases.items(), strict=True)):
        where = f"cases[{title!r}]"
        for row, (name, record) in enumerate(_filled(where, records, "run").items()):
            _draw_entries(ax, name, f"{where}[{name!r}]", record, stop_height=0.7)
            ax.annotate(
                f"{name}: rank {record.effective_rank:.1f}",
                (0.03, 0.97 - 0.14 * row),
                xycoords="axes fraction",
                color=_colour(name),
                fontsize=9,
                va="top",
            )
        ax.set(xscale="log")
        ax.set_title(title, loc="left", fontsize=9.5)
        if place % columns == 0:
            ax.set_ylabel("largest $|a_j|$")
        if place + columns >= len(cases):
            ax.set_xlabel("epoch")
    top = 1.65 * max(ax.dataLim.y1 for ax in axes)  # the words stand above the curves
    for ax in axes:
        ax.set_ylim(0, top)
    return figure


def convergence(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    ylabel: str,
    marks: Mapping[str, Sequence[int]] | None = None,
    xlabel: str = "epoch",
) -> Figure:
    """Draw the error of runs against the epoch and against their training loss, all axes
    logarithmic.

    Args:
        runs: name -> one mapping for each run, with lists "epoch", "loss", "error".
        ylabel: the error's name.
        marks: name -> an epoch for each run, drawn as a circle at the first logged epoch not before
            it.
        xlabel: what "epoch" holds, if it is another measure of time. Training goes to the right in
            both panels.

    Raises:
        ValueError: if there is nothing to draw, or the marks do not belong to the runs.
        TypeError: for runs that are no lists of mappings.
    """
    groups = [
        _sequence(f"runs[{name!r}]", group) for name, group in as_mapping("runs", runs).items()
    ]
    if not any(len(group) for group in groups):
        raise ValueError("runs must hold at least one run; got none")
    ylabel, xlabel = as_text("ylabel", ylabel), as_text("xlabel", xlabel)
    marks = {} if marks is None else as_mapping("marks", marks)
    for name, epochs in marks.items():
        if len(_sequence(f"marks[{name!r}]", epochs)) != len(runs.get(name, ())):
            raise ValueError(
                f"marks must hold one epoch for each run; got {len(epochs)} for {name!r}"
            )
    figure, axes = new(2)
    for name, group in runs.items():
        colour, width = _colour(name), 1.8 if len(group) == 1 else 0.9
        for number, run in enumerate(group):
            x, loss_values, error = (
                _numbers(f"runs[{name!r}]", run, key) for key in ("epoch", "loss", "error")
            )
            drawn = x > 0
            for ax, values in zip(axes, (x, loss_values), strict=True):
                # The loss need not fall: joined points would cross the panel to and fro.
                style = (
                    {"linewidth": width}
                    if ax is axes[0]
                    else {"linestyle": "", "marker": ".", "markersize": 3}
                )
                ax.plot(
                    values[drawn], error[drawn], color=colour, label=f"{name} {number}", **style
                )
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
    _share_vertical(axes)
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


def medians(cells: Mapping[str, Any], *, against: str, ylabel: str, columns: int = 3) -> Figure:
    """Draw the median error of many seeds, a band from the lower to the upper quartile, one panel
    for each cell of a study.

    The panels share their vertical axis. Dotted lines: the medians at the stop of the authors'
    rule, over the seeds whose two runs reach it, if these are at least half.

    Args:
        cells: title -> result of a cell, as `studies.convergence.summarize` returns it.
        against: "epoch" (equal epochs, or equal time of a flow) or "loss" (where each seed first
            reaches a training loss; losses that fewer than half of the seeds reach are left out;
            training goes to the right).
        ylabel: the error's name.
        columns: panels in a row.

    Raises:
        ValueError: if there is nothing to draw, or for another `against`.
        TypeError: for anything but summaries.
    """
    _filled("cells", cells, "cell of a study")
    against = as_choice("against", against, ("epoch", "loss"))
    ylabel = as_text("ylabel", ylabel)
    columns = min(as_integer("columns", columns, low=1, high=20), len(cells))
    figure, axes = new(columns, rows=-(-len(cells) // columns), height=2.5)
    for ax in axes[len(cells) :]:
        ax.remove()
    axes = axes[: len(cells)]
    for place, (ax, (title, cell)) in enumerate(zip(axes, cells.items(), strict=True)):
        where = f"cells[{title!r}]"
        outcomes = _part(where, cell, "outcomes")
        at_stop = {
            name: _part(where, _part(where, outcomes, name), "at_stop")
            for name in ("baseline", "with special")
        }
        stopped = [pair for pair in zip(*at_stop.values(), strict=True) if None not in pair]
        for column, name in enumerate(at_stop):
            outcome = _part(where, outcomes, name)
            spreads = _part(where, outcome, "by_epoch" if against == "epoch" else "by_loss")
            marks = _part(where, cell, "grid" if against == "epoch" else "losses")
            seeds = _part(where, cell, "seeds")
            drawn = [k for k, s in enumerate(spreads) if 2 * _part(where, s, "n") >= len(seeds)]
            x = [marks[k] for k in drawn]
            lower, middle, upper = (
                [_part(where, spreads[k], key) for k in drawn] for key in ("q25", "median", "q75")
            )
            colour = _colour(name)
            ax.plot(x, middle, color=colour, label=f"{name}, median")
            for edge, values in (("lower", lower), ("upper", upper)):
                ax.plot(x, values, color=colour, linewidth=0.5, label=f"{name}, {edge} quartile")
            ax.fill_between(x, lower, upper, color=colour, alpha=0.15, linewidth=0)
            if 2 * len(stopped) >= len(seeds):
                ax.axhline(
                    float(np.median([pair[column] for pair in stopped])),
                    color=colour,
                    linestyle=":",
                    linewidth=1.2,
                    label=f"{name}, at the stop",
                )
        ax.set(xscale="log", yscale="log")
        ax.set_title(title, loc="left", fontsize=9.5)
        if against == "loss":
            ax.invert_xaxis()
            ax.set_xlabel("training loss")
        else:
            ax.set_xlabel(
                "time $t$" if _part(where, cell, "method") == "gradient flow" else "epoch"
            )
        if place % columns == 0:
            ax.set_ylabel(ylabel)
    _share_vertical(axes)
    return figure


def scales(
    scale: ArrayLike, cases: Mapping[str, Mapping[str, ArrayLike]], *, factor: float = 10.0
) -> Figure:
    """Draw the errors of many starts against their scale: a panel for each case, and last how often
    special sequences harm.

    Args:
        scale: (m,) epsilon > 0.
        cases: title -> {"baseline": (m, n) errors, "with special": (m, n) errors from the same n
            starts}.
        factor: a start counts as harmed if its error with special sequences is more than this many
            times its baseline error. Lines are medians, bands reach from the smallest error to the
            largest.

    Raises:
        ValueError: for no case, or errors of another shape.
        TypeError: for anything but mappings.
    """
    scale = as_array("scale", scale, ndim=1)
    factor = as_scalar("factor", factor, low=0.0, strict=True)
    if (scale <= 0).any():
        raise ValueError(f"scale must be > 0; got {scale.min():g}")
    _filled("cases", cases, "case")
    figure, axes = new(2, rows=len(cases) // 2 + 1, height=2.5)
    share = axes[len(cases)]
    for ax in axes[len(cases) + 1 :]:
        ax.remove()
    for k, (title, pair) in enumerate(cases.items()):
        ax, drawn = axes[k], {}
        for name, marker in (("baseline", "o"), ("with special", "s")):
            where = f"cases[{title!r}][{name!r}]"
            e = drawn[name] = as_array(where, _part(f"cases[{title!r}]", pair, name), ndim=2)
            if e.shape[0] != len(scale) or e.shape != drawn["baseline"].shape:
                raise ValueError(
                    f"{where} must have a row per scale and a column per start; got {e.shape}"
                )
            colour, middle = COLOURS[name], np.median(e, axis=1)
            ax.fill_between(
                scale, e.min(axis=1), e.max(axis=1), color=colour, alpha=0.18, linewidth=0
            )
            ax.plot(scale, middle, color=colour, marker=marker, markersize=3.5, label=name)
            if k == 0:
                at, dy = (
                    (len(scale) // 3, -9.0) if name == "baseline" else (0, 8.0)
                )  # where neither line is near
                line_end_label(ax, name, scale[at], middle[at], colour, dx=6.0, dy=dy)
        ax.set(xscale="log", yscale="log", xlabel="scale $\\varepsilon$", ylabel="error Gen$_{20}$")
        ax.set_title(title, loc="left")
        harmed = np.mean(drawn["with special"] > factor * drawn["baseline"], axis=1)
        share.plot(
            scale,
            harmed,
            color=COLOURS["ink"],
            linestyle=("-", "--", ":", "-.")[k % 4],
            label=title,
        )
        level = 0.4  # where falling lines are far apart
        at_level = 10 ** np.interp(level, harmed[::-1], np.log10(scale[::-1]))
        dx = 7.0 if k < len(cases) - 1 else -38.0  # the last line has its room to the left
        line_end_label(share, title, float(at_level), level, COLOURS["ink"], dx=dx)
    _share_vertical(axes[: len(cases)])
    share.set(
        xscale="log",
        ylim=(-0.03, 1.08),
        xlabel="scale $\\varepsilon$",
        ylabel="share of the starts",
    )
    share.set_title(f"error more than {factor:g} times larger", loc="left")
    return figure
