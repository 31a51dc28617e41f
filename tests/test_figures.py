"""Figures draw the arrays they are given, name what they show, and follow the theme."""

import dataclasses
import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import plotly.graph_objects
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ssm_poison_lib import figures, flow, sequences, ssm
from ssm_poison_lib.records import Curves, Record
from ssm_poison_lib.studies import reproduce


@pytest.fixture(scope="module")
def run():
    data = sequences.TrainingSet(sequences.baseline_sequences(7), ssm.theorem_teacher(3))
    start = ssm.DiagonalSSM.ones([0.1, 0.05, -0.02])
    return flow.gradient_flow(start, data, t_end=1e6, rtol=1e-8)


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def test_race_draws_the_trajectory(run):
    figure = figures.race({"baseline": run, "with special": run}, start=1.0)
    late = run.times >= 1.0
    for ax in figure.axes:
        for j in range(3):
            line = lines(ax)[f"a_{j + 1}"]
            assert_array_equal(line.get_xdata(), run.times[late])
            assert_array_equal(line.get_ydata(), run.A[late, j])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["baseline", "with special"]
    colours = [lines(ax)["a_1"].get_color() for ax in figure.axes]
    assert colours == [figures.COLOURS["baseline"], figures.COLOURS["with special"]]


def test_race_can_show_the_largest_few_on_a_logarithmic_axis(run):
    (ax,) = figures.race({"baseline": run}, shown=2, logarithmic=True).axes
    assert set(lines(ax)) == {"a_1", "a_2"}
    assert ax.get_yscale() == "log"
    assert (lines(ax)["a_2"].get_ydata() > 0).all()


def test_impulse_responses_draw_the_response():
    teacher, other = ssm.theorem_teacher(3), ssm.DiagonalSSM([0.9], [1.0], [1.0])
    (ax,) = figures.impulse_responses(
        {"teacher": teacher, "odd one": other}, length=8, training_length=5, first_lag=1
    ).axes
    assert_array_equal(lines(ax)["odd one"].get_ydata(), other.impulse_response(8)[1:])
    assert_array_equal(lines(ax)["teacher"].get_xdata(), np.arange(1, 8))
    assert_array_equal(lines(ax)["training length"].get_xdata(), [4.5, 4.5])


def test_summary_tells_an_altered_array(run):
    before = figures.summary(figures.race({"baseline": run}))
    figure = figures.race({"baseline": run})
    line = figure.axes[0].get_lines()[0]
    line.set_ydata(np.asarray(line.get_ydata()) * 1.02)
    assert figures.summary(figure) != before
    assert figures.summary(figures.race({"baseline": run})) == before


def test_summary_covers_points_bars_and_images():
    figure, axes = figures.new(3)
    axes[0].scatter([1, 2], [3, 5], label="dots")
    axes[1].bar([0, 1], [7.0, 9.0])
    axes[2].pcolormesh(np.array([[1.0, 2.0], [3.0, np.nan]]))
    axes[0].plot([], [], label="nothing")
    text = figures.summary(figure)
    assert "points dots: x 1.00e+00 to 2.00e+00, y from 3.00e+00 to 5.00e+00" in text
    assert "bars: x below 1e-20 to 1.00e+00, y from 7.00e+00 to 9.00e+00" in text
    assert "largest 3.00e+00" in text
    assert "line nothing: empty" in text


def test_svg_is_valid_stable_and_follows_the_theme(run):
    first, second = (figures.to_svg(figures.race({"baseline": run})) for _ in range(2))
    assert first == second
    ET.fromstring(first)
    assert "prefers-color-scheme: dark" in first
    body = first.split("</style>", 1)[1]
    for colour in figures.COLOURS.values():
        assert colour not in body.lower(), "a colour that does not follow the theme"


def phone_drawing(svg):
    """Return the drawing for phones that is hidden in a page's SVG, and the widths of both."""
    root = ET.fromstring(svg)
    (phone,) = root.findall("{http://www.w3.org/2000/svg}svg[@class='phone']")
    assert phone.get("display") == "none"
    return phone, [float(drawing.get("width").removesuffix("pt")) for drawing in (root, phone)]


def panels(drawing):
    return [g.get("id") for g in drawing.iter() if (g.get("id") or "").startswith("axes_")]


@pytest.mark.parametrize(("columns", "rows", "removed"), [(1, 1, 0), (2, 1, 0), (3, 2, 1)])
def test_a_wide_figure_carries_a_narrow_one_with_its_panels_in_a_column(columns, rows, removed):
    def drawn():
        figure, axes = figures.new(columns, rows=rows)
        for k, ax in enumerate(axes):
            ax.plot([0, 1], [0, k])
        for ax in axes[len(axes) - removed :]:
            ax.remove()
        return figure

    figure = drawn()
    places = [ax.get_subplotspec() for ax in figure.axes]
    svg = figures._for_page(figure)
    assert svg == figures._for_page(drawn())
    phone, (wide, narrow) = phone_drawing(svg)
    assert wide == pytest.approx(72 * 7.2)
    assert narrow == pytest.approx(72 * 4.4)
    assert len(panels(phone)) == columns * rows - removed
    heights = [
        float(place)
        for place in re.findall(
            r"axes_\d+\">\s*<g id=\"patch_\d+\">\s*<path d=\"M [\d.]+ ([\d.]+)", svg
        )
    ]
    below = heights[len(figure.axes) :]
    assert below == sorted(set(below))  # each below the one before
    assert tuple(figure.get_size_inches()) == (pytest.approx(7.2), pytest.approx(2.9 * rows))
    assert [ax.get_subplotspec() for ax in figure.axes] == places


def test_on_a_phone_every_panel_names_its_rows():
    def drawn(right):
        figure, axes = figures.new(2)
        for ax, names in zip(axes, (["one", "two"], right), strict=True):
            ax.set_yticks([0, 1], names)
        return figure

    figure = drawn(["", ""])
    words = re.findall(r"<!-- (one|two|three) -->", figures._for_page(figure))
    assert words == ["one", "two"] * 3  # once for a desk, twice for a phone
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["", ""]
    words = re.findall(r"<!-- (one|two|three) -->", figures._for_page(drawn(["three", ""])))
    assert words == ["one", "two", "three"] * 2  # names of its own are kept


def test_a_figure_that_fits_a_phone_carries_no_other():
    figure, _ = figures.new(width=4.4)
    assert figures._for_page(figure) == figures.to_svg(figure)
    figure = figures.Figure(figsize=(6, 3))  # by hand, without panels
    phone, (_, narrow) = phone_drawing(figures._for_page(figure))
    assert panels(phone) == []
    assert narrow == pytest.approx(72 * 4.4)


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", sorted(set(figures.COLOURS.values())))
def test_colours_have_contrast_on_paper_and_in_the_dark(colour):
    """WCAG asks 3:1 of graphics; our labels are written in the same colours, so more is kept."""
    on_white = 1.05 / (luminance(colour) + 0.05)
    on_dark = (luminance(figures._DARK[colour]) + 0.05) / (luminance("#121212") + 0.05)
    assert on_white >= 3.8
    assert on_dark >= 4.5


def test_use_style_registers_both_formats(monkeypatch):
    class Formatter(dict):
        def for_type(self, kind, function):
            self[kind] = function

    class Printer:
        def text(self, value):
            self.value = value

    formatters = {"image/svg+xml": Formatter(), "text/plain": Formatter()}
    shell = type("Shell", (), {"display_formatter": type("D", (), {"formatters": formatters})})
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    figures.use_style()
    figure, _ = figures.new()
    assert re.match(r"<\?xml", formatters["image/svg+xml"][figures.Figure](figure))
    printer = Printer()
    formatters["text/plain"][figures.Figure](figure, printer, False)
    assert printer.value == figures.summary(figure)


def test_use_style_needs_no_ipython(monkeypatch):
    monkeypatch.setattr("IPython.get_ipython", lambda: None)
    figures.use_style()


def test_new_makes_a_grid():
    figure, axes = figures.new(2, rows=2, height=2.0, width=6.0)
    assert len(axes) == 4
    assert_allclose(figure.get_size_inches(), [6.0, 4.0])


@pytest.fixture
def curves():
    rng = np.random.default_rng(0)
    return Curves(
        unit="epoch",
        at=(0, 1, 10, 100),
        largest_abs_a=tuple(map(tuple, rng.random((4, 3)).tolist())),
        effective_rank=tuple(rng.random(4).tolist()),
        gamma0=tuple(rng.normal(size=4).tolist()),
        loss=(1.0, 0.5, 0.1, 0.01),
        error=(4.0, 3.0, 2.0, 1.0),
        error_from_lag_1=None,
    )


def test_dynamics_draws_entries_rank_and_gamma(curves):
    record = Record(
        start="drawn",
        precision="float64",
        trained=True,
        stop_epoch=37,
        epochs=100,
        end_time=None,
        logged_epoch=100,
        logged_error=1.0,
        logged_error_from_lag_1=None,
        worst_lag=None,
        logged_train_loss=0.01,
        error_at_stop=None,
        effective_rank=1.0,
        largest_abs_a=(1.0,),
        max_abs_gamma0=0.0,
        seconds=1.0,
        curves=curves,
    )
    never = dataclasses.replace(record, stop_epoch=None)
    entries, rank, gamma = figures.dynamics({"baseline": record, "with special": never}).axes
    for k in range(3):
        line = lines(entries)[f"with special, {k + 1}. largest"]
        assert_array_equal(line.get_xdata(), [1, 10, 100])
        assert_array_equal(line.get_ydata(), np.array(curves.largest_abs_a)[1:, k])
    for ax, values in ((rank, curves.effective_rank), (gamma, curves.gamma0)):
        assert_array_equal(lines(ax)["baseline"].get_ydata(), values[1:])
        assert lines(ax)["baseline"].get_color() == figures.COLOURS["baseline"]
        assert_array_equal(lines(ax)["baseline, stop"].get_xdata(), [37, 37])
        assert "with special, stop" not in lines(ax)
    with pytest.raises(ValueError, match=r"records\['baseline'\] must have curves; got None"):
        figures.dynamics({"baseline": dataclasses.replace(record, curves=None)})


def test_entries_draws_a_panel_a_pair_on_one_axis(curves):
    pair = reproduce.pair(reproduce.load_summary("reproduced")[0], "ssm_in_nn_dynamics__s0")
    half = {
        "with special": dataclasses.replace(pair["with special"], stop_epoch=None, curves=curves)
    }
    full, rest = figures.entries({"both": pair, "half": half}).axes
    stored = pair["baseline"].curves
    at = np.array(stored.at)
    assert_array_equal(lines(full)["baseline, 1. largest"].get_xdata(), at[at >= 1])
    assert_array_equal(
        lines(full)["baseline, 1. largest"].get_ydata(), np.array(stored.largest_abs_a)[at >= 1, 0]
    )
    assert_array_equal(lines(full)["baseline, stop"].get_xdata(), [pair["baseline"].stop_epoch] * 2)
    assert not any("stop" in label or "baseline" in label for label in lines(rest))
    assert [text.get_text() for text in full.texts] == [
        f"{name}: rank {record.effective_rank:.1f}" for name, record in pair.items()
    ]
    assert full.get_ylim() == rest.get_ylim()
    assert full.get_ylim()[1] > max(map(max, stored.largest_abs_a))
    assert len(figures.entries({str(k): pair for k in range(3)}).axes) == 3
    with pytest.raises(ValueError, match="cases must hold"):
        figures.entries({})
    with pytest.raises(ValueError, match=r"cases\['a'\]\['baseline'\] must have curves; got None"):
        figures.entries({"a": {"baseline": dataclasses.replace(pair["baseline"], curves=None)}})


@pytest.fixture
def logged():
    return {"epoch": [0, 1, 10, 100], "loss": [1.0, 0.5, 0.1, 0.01], "error": [4.0, 3.0, 2.0, 1.0]}


def test_convergence_draws_error_against_epoch_and_loss(logged):
    runs = {"baseline": [logged], "with special": [logged] * 2}
    by_epoch, by_loss = figures.convergence(
        runs, ylabel="error", marks={"with special": [0, 37]}
    ).axes
    for ax, x in ((by_epoch, [1, 10, 100]), (by_loss, [0.5, 0.1, 0.01])):
        assert_array_equal(lines(ax)["with special 1"].get_xdata(), x)
        assert_array_equal(lines(ax)["with special 1"].get_ydata(), [3.0, 2.0, 1.0])
        points = {c.get_label(): np.asarray(c.get_offsets())[0] for c in ax.collections}
        assert_array_equal(points["with special 1, marked"], [x[-1], 1.0])
    assert by_loss.xaxis_inverted()


@pytest.mark.parametrize("marks", [{"baseline": [1, 2]}, {"other": [1]}])
def test_convergence_refuses_marks_without_a_run(logged, marks):
    with pytest.raises(ValueError, match="marks must hold one epoch for each run"):
        figures.convergence({"baseline": [logged]}, ylabel="error", marks=marks)


def test_dynamics_and_convergence_refuse_nothing():
    with pytest.raises(ValueError, match="records must hold"):
        figures.dynamics({})
    with pytest.raises(ValueError, match="runs must hold"):
        figures.convergence({"baseline": []}, ylabel="error")


@pytest.fixture
def cell():
    def spread(n, k):
        return {"n": n, "median": 2.0 + k, "q25": 1.0 + k, "q75": 3.0 + k}

    def column(k, at_stop):
        return {
            "at_stop": at_stop,
            "by_epoch": [spread(4, k), spread(4, k + 1)],
            "by_loss": [spread(4, k), spread(2, k + 1), spread(1, k + 2)],
        }

    both = {
        "baseline": column(0, [1.0, 2.0, None, 9.0]),
        "with special": column(10, [11.0, 14.0, 15.0, None]),
    }
    return {
        "seeds": [1, 2, 3, 4],
        "method": "adam",
        "grid": [10.0, 100.0],
        "losses": [1.0, 0.1, 0.01],
        "outcomes": both,
    }


def test_medians_draw_median_and_quartiles_of_every_cell(cell):
    flow_cell = {**cell, "method": "gradient flow"}
    figure = figures.medians({"one": cell, "two": flow_cell}, against="epoch", ylabel="error")
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["one", "two"]
    assert [ax.get_xlabel() for ax in figure.axes] == ["epoch", "time $t$"]
    drawn = lines(figure.axes[0])
    assert_array_equal(drawn["baseline, median"].get_xdata(), [10, 100])
    assert_array_equal(drawn["with special, median"].get_ydata(), [12, 13])
    assert_array_equal(drawn["with special, lower quartile"].get_ydata(), [11, 12])
    assert_array_equal(drawn["with special, upper quartile"].get_ydata(), [13, 14])
    assert drawn["with special, median"].get_color() == figures.COLOURS["with special"]
    assert set(drawn["baseline, at the stop"].get_ydata()) == {1.5}  # two seeds have both
    assert set(drawn["with special, at the stop"].get_ydata()) == {12.5}


def test_medians_share_an_axis_that_holds_all_and_leave_out_a_stop_of_few(cell):
    few = {**cell, "outcomes": {k: {**v} for k, v in cell["outcomes"].items()}}
    few["outcomes"]["with special"]["at_stop"] = [11.0, None, None, None]
    large = {"n": 4, "median": 500.0, "q25": 400.0, "q75": 600.0}
    few["outcomes"]["with special"]["by_epoch"] = [large, large]
    first, second = figures.medians({"one": cell, "two": few}, against="epoch", ylabel="error").axes
    assert first.get_ylim() == second.get_ylim()
    assert first.get_ylim()[0] < 1 < 600 < first.get_ylim()[1]
    assert "baseline, at the stop" in lines(first)
    assert "baseline, at the stop" not in lines(second)


def test_medians_against_the_loss_leave_out_what_few_seeds_reach(cell):
    (ax,) = figures.medians({"one": cell}, against="loss", ylabel="error").axes
    assert_array_equal(lines(ax)["baseline, median"].get_xdata(), [1.0, 0.1])
    assert_array_equal(lines(ax)["baseline, median"].get_ydata(), [2.0, 3.0])
    assert ax.xaxis_inverted()


def test_medians_refuse_nothing_and_another_axis(cell):
    with pytest.raises(ValueError, match="cells must hold"):
        figures.medians({}, against="loss", ylabel="error")
    with pytest.raises(ValueError, match="against must be one of"):
        figures.medians({"one": cell}, against="seed", ylabel="error")


def interactive(frames=None):
    figure, (ax,) = figures.new()
    ax.plot([0, 1], [2, 3], label="a line")
    frames = {"1": [{"y": [2, 3]}], "10": [{"y": [4, 5]}]} if frames is None else frames
    return figures.Interactive(
        figure, [{"type": "scatter", "x": [0, 1]}], {"height": 300}, frames, "dose"
    )


def test_an_interactive_figure_is_valid_for_plotly_and_says_what_it_shows():
    bundle = interactive()._repr_mimebundle_()
    spec = bundle["application/vnd.plotly.v1+json"]
    drawn = plotly.graph_objects.Figure(spec)  # which refuses what Plotly does not know
    assert list(drawn.data[0].y) == [2, 3]
    assert [list(frame.data[0].y) for frame in drawn.frames] == [[2, 3], [4, 5]]
    assert [step.label for step in drawn.layout.sliders[0].steps] == ["1", "10"]
    assert drawn.layout.height == 300
    # On a clear one the dark theme of JupyterLab would lie behind dark letters.
    assert drawn.layout.paper_bgcolor is None
    assert set(drawn.layout.meta["dark"]) == set(figures.COLOURS.values())
    assert "line a line" in bundle["text/plain"]
    assert "slider dose: 1, 10" in bundle["text/plain"]
    assert bundle["image/svg+xml"].startswith("<?xml")


@pytest.mark.parametrize("frames", [{}, {"1": []}, {"1": [{}], "2": [{}, {}]}])
def test_frames_fit_the_traces(frames):
    with pytest.raises(ValueError, match="frames"):
        interactive(frames)


def test_scales_draw_medians_and_the_share_harmed():
    scale = [1e-4, 1e-3, 1e-2]
    clean = np.array([[1e-4, 2e-4, 4e-4], [1e-3, 2e-3, 4e-3], [1e-2, 2e-2, 4e-2]])
    cases = {
        "$d = 3$": {"baseline": clean, "with special": np.full((3, 3), 0.03)},
        "$d = 10$": {"baseline": clean, "with special": 2.0 * clean},
    }
    first, second, share = figures.scales(scale, cases).axes
    assert_array_equal(lines(first)["baseline"].get_ydata(), clean[:, 1])
    assert_array_equal(lines(second)["with special"].get_ydata(), 2.0 * clean[:, 1])
    assert_allclose(lines(share)["$d = 3$"].get_ydata(), [1.0, 2 / 3, 0.0])  # 0.03 > 10 e
    assert_array_equal(lines(share)["$d = 10$"].get_ydata(), np.zeros(3))
    assert [ax.get_title(loc="left") for ax in (first, second)] == list(cases)
    short = {"a": {"baseline": clean[:2], "with special": clean}}
    with pytest.raises(ValueError, match=r"cases\['a'\]\['baseline'\] must have a row per scale"):
        figures.scales(scale, short)
    with pytest.raises(TypeError, match=r"cases\['a'\] must have 'with special'"):
        figures.scales(scale, {"a": {"baseline": clean}})


@pytest.mark.parametrize(
    "setting", ["lines.linewidth", "font.size", "axes.grid", "savefig.dpi", "figure.figsize"]
)
def test_a_readers_own_settings_change_no_figure(run, setting):
    """A matplotlibrc of theirs is what `rcParams` hold when a chapter begins."""
    theirs = {
        "lines.linewidth": 9.0,
        "font.size": 30.0,
        "axes.grid": True,
        "savefig.dpi": 30,
        "figure.figsize": [3.0, 3.0],
    }
    with mpl.rc_context():
        figures.use_style()
        expected = figures.to_svg(figures.race({"baseline": run}))
    with mpl.rc_context({setting: theirs[setting]}):
        figures.use_style()
        assert figures.to_svg(figures.race({"baseline": run})) == expected
        # what a chapter draws by itself follows too
        assert mpl.rcParams[setting] != theirs[setting]
