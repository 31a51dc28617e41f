"""The explorable: its script's numbers are the library's, and its controls change what the page
shows.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator
from typing import Any

import animation
import nbformat
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import ROOT, build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from playwright.sync_api import Browser, Page, sync_playwright

from ssm_poison_lib import equations, figures, paper, sequences, ssm
from ssm_poison_lib.flow import gradient_flow
from ssm_poison_lib.flows import near_tie_starts, theorem_flows
from ssm_poison_lib.parametrizations import PARAMETRIZATIONS, phase_limit

pytestmark = pytest.mark.browser

ASSETS = ROOT / "book" / "assets"
# Plotting accuracy: entries and errors, absolute. A curve may be off by this much in height or by
# 0.2 percent in time.
TOLERANCE, TIMING = 2e-3, 2e-3
WEIGHTS = {  # order -> (alpha, beta / dose) of each phase, one sequence of each kind
    "baseline only": [(2, 0)],
    "mixed": [(1, 1)],
    "special, then baseline": [(0, 2), (2, 0)],
    "baseline, then both": [(2, 0), (1, 1)],
}
FOREVER = 1e60


@pytest.fixture(scope="module")
def browser(chromium) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


# ---- numbers -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script(browser) -> Iterator[Page]:
    page = browser.new_page()
    page.add_script_tag(path=ASSETS / "solver.js")
    yield page
    page.close()


def in_page(
    script: Page, settings: list[dict[str, Any]], times: list[float] | None = None
) -> list[dict[str, Any]]:
    """Run settings in the page; with times (one for each): up to there, and the entries that the
    full run has there.
    """
    return script.evaluate(
        """([all, times]) => all.map((settings, i) => {
          const end = times ? times[i] : undefined, result = poisonRace.run({ ...settings, end });
          const drawn = times ? poisonRace.at(poisonRace.run(settings), end) : null;
          const { a, response, error, phases } = result;
          const starts = phases.map(({ start }) => start);
          return { a: Array.from(a), response, error, drawn, starts };
        })""",
        [settings, times],
    )


def grid(**axes: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def shape(d: int) -> np.ndarray:
    start = paper.THEOREM_SETTINGS["theorem_kappa7"].start(242).A
    return (start / start[0])[:d]


def by_library(settings: list[dict[str, Any]], times: np.ndarray | None = None) -> np.ndarray:
    """Return the entries at the end (or at times) of free flows with equal kappa, d and order."""
    kappa, d, order = (settings[0][key] for key in ("kappa", "d", "order"))
    scale, gap, dose = (
        np.array([case[key] for case in settings]) for key in ("scale", "gap", "dose")
    )
    A, gaps = near_tie_starts(shape(d), scale, gap)
    for alpha, beta in WEIGHTS[order]:
        end = FOREVER if times is None else times
        batch = theorem_flows(
            A,
            gaps=gaps,
            length=kappa,
            alpha=alpha,
            beta=beta * dose,
            t_end=end,
            rtol=1e-8,
            workers=1,
        )
        A, gaps = batch.A, np.nan_to_num(np.exp(batch.log_gap[:, 1:]), nan=0.0)
    return A


def error(A: np.ndarray, d: int) -> np.ndarray:
    powers = A[:, None, :] ** np.arange(1, 20)[:, None]
    return np.abs(powers.sum(axis=2) - ssm.theorem_teacher(d).impulse_response(20)[1:]).max(axis=1)


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 10_000),
    kappa=st.sampled_from([5, 7, 9, 11]),
    d=st.integers(2, 6),
    parametrization=st.sampled_from(["free", "exp", "exp(-exp)"]),
)
def test_velocity_is_the_librarys(script, seed, kappa, d, parametrization):
    """The script follows (first entry or s, logarithms of gaps); its Jacobian is the slope of its
    velocity.
    """
    rng, p = np.random.default_rng(seed), kappa - 1
    kind, (alpha, beta) = PARAMETRIZATIONS[parametrization], rng.uniform(0, 2, 2)
    A = np.linspace(0.9, 0.1, d) - rng.uniform(0, 0.05, d)
    double = parametrization == "exp(-exp)"
    powers = {"free": (kappa - 2, 0), "exp": (kappa, 2), "exp(-exp)": (kappa - 2, 0)}[
        parametrization
    ]
    phase = {
        "high": powers[0],
        "low": powers[1],
        "p": p,
        "alpha": alpha,
        "beta": beta,
        "double": double,
    }
    followed = kind.parameter(A) if double else A
    theta = np.r_[followed[0], np.log(np.abs(np.diff(followed)))]
    shifts = 1e-6 * np.eye(d)
    moved, J = script.evaluate(
        """([thetas, phase]) => {
          const d = thetas[0].length, vector = (n) => new Float64Array(n), J = vector(d * d);
          Object.assign(phase, { psi: vector(d), quotient: vector(d) });
          const moved = thetas.map((theta, i) => {
            const out = vector(d);
            poisonRace.velocity(Float64Array.from(theta), phase, vector(d), out, i ? null : J);
            return Array.from(out);
          });
          return [moved, Array.from(J)];
        }""",
        [[theta.tolist(), *(theta + shifts).tolist(), *(theta - shifts).tolist()], phase],
    )
    G, target = np.zeros((kappa, kappa)), np.ones(kappa)
    G[-1, -1], G[1, 1], target[0] = alpha, beta, d
    ones, slope = np.ones(d), kind.slope(A)
    moving = equations.velocity(A, ones, ones, G, target, slope=slope)[0]  # ds/dt
    if not double:
        moving = slope * moving  # da/dt
    gaps = np.diff(moving) / np.diff(followed)
    assert_allclose(moved[0], np.r_[moving[0], gaps], rtol=1e-9, atol=1e-10)
    numeric = (np.array(moved[1 : d + 1]) - moved[d + 1 :]).T / 2e-6
    assert_allclose(
        np.reshape(J, (d, d)), numeric, rtol=0, atol=1e-6 * max(1.0, np.abs(numeric).max())
    )
    if parametrization == "free":
        ours = equations.gap_velocity(theta, ones, 1.0, G, target, with_jacobian=True)
        assert_allclose(moved[0], ours[0], rtol=1e-9, atol=1e-12)
        assert_allclose(np.reshape(J, (d, d)), ours[1], rtol=1e-9, atol=1e-9)


@pytest.mark.untyped
@pytest.mark.parametrize("order", WEIGHTS)
@pytest.mark.parametrize("kappa", [5, 7, 9, 11])
@pytest.mark.parametrize("d", [2, 3, 10])
def test_free_ends_are_the_librarys(script, d, kappa, order):
    axes = {
        "gap": (1e-8, 2e-5, 1e-3, 0.1),
        "scale": (1e-4, 1e-2, 0.1),
        "dose": (1e-6, 1e-2, 1.0, 1e3),
    }
    if order == "baseline only":
        axes["dose"] = (1.0,)
    settings = [case | {"kappa": kappa, "d": d, "order": order} for case in grid(**axes)]
    seen = in_page(script, settings)
    A = by_library(settings)
    assert_allclose([run["a"] for run in seen], A, rtol=0, atol=TOLERANCE)
    assert_allclose([run["error"] for run in seen], error(A, d), rtol=0, atol=TOLERANCE)
    responses = [run["response"] for run in seen]
    assert_allclose(
        responses,
        (A[:, None, :] ** np.arange(20)[:, None]).sum(axis=2),
        rtol=0,
        atol=10 * TOLERANCE,
    )


@pytest.mark.untyped
@pytest.mark.parametrize("kappa", [5, 7, 9, 11])
@pytest.mark.parametrize("order", ["baseline only", "mixed"])
def test_curves_are_the_librarys(script, kappa, order):
    cases = grid(
        gap=(1e-6, 1e-2),
        scale=(1e-3, 1e-2),
        dose=(1e-3, 1.0),
        kappa=(kappa,),
        d=(10,),
        order=(order,),
    )
    settings = [case for case in cases for _ in range(12)]
    fits = script.evaluate(
        "all => all.map((settings) => poisonRace.run(settings).fitTime)", settings
    )
    # From long before the fit to beyond it, densest where the race is run.
    times = np.array(fits) * np.tile(
        [1e-6, 1e-4, 1e-2, 0.1, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1.01, 3], len(cases)
    )
    seen = in_page(script, settings, times.tolist())
    near = [by_library(settings, times * factor) for factor in (1 - TIMING, 1, 1 + TIMING)]
    for key in ("a", "drawn"):
        entries = np.array([run[key] for run in seen])
        assert (entries >= np.min(near, axis=0) - TOLERANCE).all()
        assert (entries <= np.max(near, axis=0) + TOLERANCE).all()


@pytest.mark.untyped
@pytest.mark.parametrize("order", WEIGHTS)
@pytest.mark.parametrize("kappa", [5, 7])
@pytest.mark.parametrize("parametrization", ["exp", "exp(-exp)"])
def test_exponential_entries_are_the_librarys(script, parametrization, kappa, order):
    settings = grid(
        gap=(1e-5, 0.1),
        scale=(3e-3, 3e-2),
        dose=(1e-2, 10.0),
        kappa=(kappa,),
        d=(10,),
        order=(order,),
        parametrization=(parametrization,),
    )
    seen = in_page(script, settings, [1e5] * len(settings))
    for case, run in zip(settings, seen, strict=True):
        A = near_tie_starts(shape(10), case["scale"], case["gap"])[0][0]
        ends = [*run["starts"][1:], 1e5]
        for (alpha, beta), start, end in zip(WEIGHTS[order], run["starts"], ends, strict=False):
            if end <= start:
                continue
            G = np.zeros((kappa, kappa))
            G[-1, -1], G[1, 1] = alpha, beta * case["dose"]
            target = ssm.theorem_teacher(10).impulse_response(kappa)
            A = gradient_flow(
                A, (G, target), parametrization=parametrization, times=[end - start], rtol=1e-7
            ).A[-1]
        assert_allclose(run["a"], A, rtol=0, atol=TOLERANCE, err_msg=str(case))
        assert_allclose(
            run["error"], error(A[None], 10)[0], rtol=0, atol=TOLERANCE, err_msg=str(case)
        )


@pytest.mark.untyped
@pytest.mark.parametrize("order", ["baseline only", "special, then baseline"])
@pytest.mark.parametrize("kappa", [5, 7, 11])
@pytest.mark.parametrize("d", [2, 10])
def test_double_exponential_entries_end_where_the_phases_end(script, d, kappa, order):
    axes = {"gap": (1e-10, 1e-8, 1e-5, 1e-3, 0.2), "scale": (1e-5, 1e-3, 0.1)}
    fixed = {"kappa": kappa, "d": d, "order": order, "parametrization": "exp(-exp)"}
    settings = [case | fixed for case in grid(**axes)]
    seen = in_page(script, settings)
    scale, gap = (np.array([case[key] for case in settings]) for key in ("scale", "gap"))
    A, gaps = near_tie_starts(shape(d), scale, gap)
    if order != "baseline only":
        A, gaps = phase_limit(A, "exp(-exp)", lag=1, gaps=gaps), None
    A = phase_limit(A, "exp(-exp)", lag=kappa - 1, gaps=gaps)
    assert_allclose([run["a"] for run in seen], A, rtol=0, atol=TOLERANCE / 10)
    assert_allclose([run["error"] for run in seen], error(A, d), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("order", ["mixed", "baseline, then both"])
def test_double_exponential_entries_generalize_from_a_mixture(script, order):
    settings = grid(
        gap=(1e-10, 1e-3, 0.2),
        scale=(1e-5, 1e-3, 0.1),
        dose=(1e-4, 1.0, 100.0),
        kappa=(5, 11),
        parametrization=("exp(-exp)",),
        order=(order,),
    )
    assert max(run["error"] for run in in_page(script, settings)) < TOLERANCE


def test_exponential_entries_generalize(script):
    axes = {
        "gap": (1e-10, 1e-3),
        "scale": (1e-5, 0.1),
        "kappa": (5, 11),
        "d": (10,),
        "parametrization": ("exp",),
    }
    settings = grid(dose=(1e-8, 1e-4, 1.0, 100.0), **axes)
    assert max(run["error"] for run in in_page(script, settings)) < TOLERANCE
    fits = script.evaluate(
        "all => all.map((settings) => poisonRace.run(settings).fitTime)", settings
    )
    # At the least dose the forces on a_1 cancel to the last digits before the residuals are small:
    # no fit is claimed.
    assert {case["dose"] for case, fit in zip(settings, fits, strict=True) if fit is None} == {1e-8}


def test_the_authors_start_is_the_authors(script):
    settings = {"gap": 1.8212e-5, "scale": 8.4e-4}
    for order, data in (("baseline only", "baseline"), ("mixed", "with special")):
        (seen,) = in_page(script, [settings | {"order": order}])
        theirs = paper.THEOREM_SETTINGS["theorem_kappa7"].authors_value(242, data)
        assert_allclose(seen["error"] / 10, theirs, rtol=0.01)
    known = script.evaluate("poisonRace.SHAPE")
    assert_allclose(known[2:], shape(10)[2:], atol=5e-6)
    start = paper.THEOREM_SETTINGS["theorem_kappa7"].start(242).A
    assert_allclose(
        [start[0], (start[0] - start[1]) / start[0]],
        [settings["scale"], settings["gap"]],
        rtol=2e-3,
    )


@pytest.mark.parametrize("order", WEIGHTS)
def test_phases_have_the_weights_of_their_sequences(script, order):
    settings = {"gap": 0.1, "scale": 0.01, "dose": 3, "order": order}
    seen = script.evaluate(
        "s => poisonRace.run(s).phases.map(({ alpha, beta }) => [alpha, beta])", settings
    )
    assert seen == [[alpha, 3 * beta] for alpha, beta in WEIGHTS[order]]


def test_a_phase_weighs_its_sequences_as_a_training_set_does():
    teacher = ssm.theorem_teacher(3)
    baseline, special = (
        sequences.TrainingSet(x, teacher)
        for x in (sequences.baseline_sequences(7), sequences.special_sequences(7))
    )
    assert (baseline.gram()[6, 6], special.gram()[1, 1]) == (2, 2)
    both = sequences.concatenate(baseline, special).gram()
    assert (both[6, 6], both[1, 1]) == (1, 1)


# ---- the page ------------------------------------------------------------------------------------

TEXT = """# A page

:::{figure} picture.svg
:name: fig-page
:alt: What paper shows
The caption stays.
:::

<div class="explorable" data-figure="fig-page"></div>

:::{figure} picture.svg
:name: fig-race
:alt: The race on paper
The race.
:::

<div class="race-animation" data-figure="fig-race" hidden></div>
"""
FRAMES = {"1": [{"y": [1, 2]}, {}], "100": [{"y": [30, 40]}, {}]}
PICTURE = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="300" height="100"><rect width="300"'
    ' height="100"/></svg>'
)


def notebook() -> nbformat.NotebookNode:
    """Return a page with an interactive figure a long way down."""
    figure, (ax,) = figures.new()
    ax.plot([0, 1], [1, 2], label="a line")
    blue = figures.COLOURS["baseline"]
    moving = {"type": "scatter", "x": [0, 1], "line": {"color": blue}, "marker": {"color": blue}}
    fixed = {"type": "scatter", "x": [0, 1], "y": [5, 6], "line": {"color": "#123456", "width": 8}}
    shown = figures.Interactive(
        figure, [moving, fixed], {"xaxis": {"title": {"text": "x"}}}, FRAMES, "dose"
    )
    output = nbformat.v4.new_output("execute_result", shown._repr_mimebundle_(), execution_count=1)
    options = {
        "figure": {"name": "fig-drawn", "caption": "The caption stays."},
        "image": {"alt": "A line"},
    }
    cell = nbformat.v4.new_code_cell(
        "1", outputs=[output], execution_count=1, metadata={"mystnb": options}
    )
    text = "# Drawn\n\n" + "A paragraph.\n\n" * 100
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell(text), cell], metadata=metadata
    )


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """Build a book of two pages, one of them with an explorable; return the folder of its pages."""
    root = tmp_path_factory.mktemp("explorable")
    (root / "book").mkdir()
    for name in ("_ext", "assets"):
        shutil.copytree(
            ROOT / "book" / name, root / "book" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("_config.yml", "book/references.bib"):
        shutil.copy(ROOT / name, root / name)
    (root / "_toc.yml").write_text(
        "format: jb-book\nroot: book/page\nchapters:\n  - file: book/plain\n  - file: book/drawn\n",
        "utf-8",
    )
    (root / "book" / "page.md").write_text(TEXT, "utf-8")
    (root / "book" / "plain.md").write_text("# Another page\n\nNothing to drag.\n", "utf-8")
    (root / "book" / "picture.svg").write_text(PICTURE, "utf-8")
    nbformat.write(notebook(), root / "book" / "drawn.ipynb")
    (root / "book" / "drawn.md").write_text("The text of it.\n", "utf-8")
    (root / "book" / "status.json").write_text("{}", "utf-8")
    pages = build(root)
    assert 0 < pages["page"].index("solver.js") < pages["page"].index("explorable.js")
    assert "explorable" not in pages["plain"]
    assert "interactive" not in pages["plain"] + pages["page"]
    return (root / "_build" / "html" / "book").as_uri()


def open_page(browser: Browser, address: str, **options: Any) -> Page:
    page = browser.new_page(**({"viewport": {"width": 1440, "height": 900}} | options))
    page.set_default_timeout(20_000)
    page.goto(f"{address}/page.html")
    return page


@pytest.fixture
def page(browser, address) -> Iterator[Page]:
    page = open_page(browser, address)
    page.wait_for_selector(".ex-panel-special svg")
    yield page
    page.close()


def shown(page: Page) -> dict[str, str]:
    """Return the summary and the drawings as they are after the next frame."""
    page.evaluate(
        "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )
    return page.evaluate("""() => Object.fromEntries([
          ["summary", document.querySelector(".ex-summary").textContent],
          ...[...document.querySelectorAll(".ex-panel")].map(
            e => [e.className.split("-").pop(), e.querySelector("svg").outerHTML]),
        ])""")


def test_the_first_setting_is_the_authors(page):
    assert "baseline 0.0118, with special 0.492" in shown(page)["summary"]
    assert "0.0492" in shown(page)["summary"]  # divided by d


@pytest.mark.parametrize(
    "name", ["tie gap", "initialization scale", "dose", "training length", "state dimension"]
)
def test_a_slider_moves_by_keyboard_and_by_pointer(page, name):
    slider = page.get_by_role("slider", name=name)
    value, before = slider.get_attribute("aria-valuetext"), shown(page)
    slider.focus()
    page.keyboard.press("ArrowLeft")
    by_keys = shown(page)
    assert slider.get_attribute("aria-valuetext") != value
    output = page.locator(f".ex-field:has(#{slider.get_attribute('id')}) .ex-value")
    assert output.inner_text() == slider.get_attribute("aria-valuetext")
    assert by_keys["special"] != before["special"]
    box = slider.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    by_pointer = shown(page)
    assert output.inner_text() == slider.get_attribute("aria-valuetext")
    for panel in ("summary", "special", "response", "error"):
        assert by_pointer[panel] != by_keys[panel], panel


def test_order_and_parametrization_change_the_outcome(page):
    page.get_by_label("order of the two sequences").select_option("special, then baseline")
    error = re.search(r"with special ([\d.]+)", shown(page)["summary"])
    assert float(error[1]) > 2
    page.get_by_label("order of the two sequences").focus()
    page.keyboard.press("ArrowUp")  # back to both together
    assert "with special 0.492" in shown(page)["summary"]
    page.get_by_role("radio", name="A itself").focus()
    page.keyboard.press("ArrowDown")
    assert page.get_by_role("radio", name="a = exp(s)").is_checked()
    assert "Negative entries at the end, with special: 0." in shown(page)["summary"]
    page.keyboard.press("ArrowDown")
    assert page.get_by_role("radio", name="exp(−exp(s))").is_checked()
    mixed = re.search(r"with special (\S+)", shown(page)["summary"])[1]
    page.get_by_label("order of the two sequences").select_option("special, then baseline")
    first = float(re.search(r"with special ([\d.]+)", shown(page)["summary"])[1])
    assert mixed != str(first)
    assert first > 0.8


def test_the_dose_says_when_it_is_only_a_time(page):
    dose = page.get_by_role("slider", name="dose")
    note = page.locator(f"#{dose.get_attribute('aria-describedby')}")
    mixed = note.inner_text()
    order = page.get_by_label("order of the two sequences")
    order.select_option("special, then baseline")
    assert note.inner_text() == "changes only how long the first part takes"
    before = shown(page)
    dose.focus()
    page.keyboard.press("ArrowLeft")
    after = shown(page)
    assert after["summary"] == before["summary"]
    assert after["special"] != before["special"]
    order.select_option("baseline, then both")
    assert note.inner_text() == mixed


def test_presets_and_reset(page):
    first = shown(page)
    seen = {}
    for button in page.locator(".ex-presets button[type=button]").all():
        button.click()
        seen[button.inner_text()] = shown(page)["summary"]
    assert len(seen) == 8
    assert len(set(seen.values())) == 8
    assert "with special 5.73" in seen["order attack"]
    assert "with special 0.677" in seen["poles as in S4D"]
    assert "Negative entries at the end, with special: 0." in seen["poles as in S4D"]
    # the same data in another order is no statement about the sequence
    for name, summary in seen.items():
        assert ("the special sequence, in this order," in summary) == (
            name in ("order attack", "antidote", "poles as in S4D")
        ), name
    assert "divided by d = 2: " in seen["two entries"]
    assert "below 10⁻⁵" in seen["two entries"]
    page.get_by_role("button", name="reset").click()
    assert shown(page) == first


def test_the_error_is_spoken_once_the_hand_rests(page):
    spoken = page.get_by_role("status")
    page.get_by_role("button", name="no near tie").click()
    words = shown(page)["summary"].split(" In the authors")[0]
    page.wait_for_function(
        "words => document.querySelector('[role=status]').textContent === words", arg=words
    )
    assert spoken.get_attribute("aria-live") == "polite"


@pytest.mark.parametrize("width", [1440, 390])
def test_it_follows_the_theme_and_fits_the_window(browser, address, width):
    colours = {}
    for theme in ("light", "dark"):
        page = open_page(
            browser, address, viewport={"width": width, "height": 900}, color_scheme=theme
        )
        page.wait_for_selector(".ex-panel-special svg")
        colours[theme] = page.evaluate(
            """() => ["baseline", "special"].map(kind =>
              getComputedStyle(document.querySelector(`path.ex-${kind}`)).stroke)"""
        )
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        drawn = page.evaluate("""() => [...document.querySelectorAll(".ex-panel svg text")]
              .filter(t => t.getBoundingClientRect().right > innerWidth).length""")
        assert drawn == 0
        broken = Axe().run(page, {"include": [[".explorable"]]}).response["violations"]
        assert [
            f"{rule['id']}: {node['html'][:200]}" for rule in broken for node in rule["nodes"]
        ] == []
        page.close()
    wanted = [figures.COLOURS["baseline"], figures.COLOURS["with special"]]
    for theme, palette in (
        ("light", wanted),
        ("dark", [figures._DARK[colour] for colour in wanted]),
    ):
        assert colours[theme] == [
            f"rgb({', '.join(str(int(c[i : i + 2], 16)) for i in (1, 3, 5))})" for c in palette
        ]


def test_paper_and_a_page_without_scripts_show_the_picture(browser, address, page):
    picture = "img[alt='What paper shows']"
    assert not page.locator(picture).is_visible()
    assert page.get_by_text("The caption stays.").is_visible()
    page.emulate_media(media="print")
    assert page.locator(picture).is_visible()
    assert page.locator("img[alt='The race on paper']").is_visible()
    for part in page.locator(".explorable, .race-animation").all():
        assert not part.is_visible()
    plain = browser.new_context(java_script_enabled=False).new_page()
    plain.goto(f"{address}/page.html")
    assert plain.locator(picture).is_visible()
    assert plain.locator("img[alt='The race on paper']").is_visible()
    assert plain.locator(".explorable").bounding_box()["height"] == 0
    assert not plain.locator(".race-animation").is_visible()
    plain.context.close()


# ---- the animated race ---------------------------------------------------------------------------


def test_the_stored_animation_is_the_one_that_the_command_makes():
    number = re.compile(r"-?\d+\.?\d*")
    stored, made = (ASSETS / "race.svg").read_text("utf-8"), animation.make()
    assert number.sub("#", stored) == number.sub("#", made)
    # Pixels: another processor may round a last digit differently.
    seen, wanted = (np.array([float(x) for x in number.findall(text)]) for text in (stored, made))
    assert_allclose(seen, wanted, rtol=0, atol=0.11)
    assert len(stored) < 1e6


def test_the_animation_shows_the_race():
    setting = paper.THEOREM_SETTINGS["theorem_kappa7"]
    run = setting.run(242, "with special")
    times, A = animation.frames(run)
    assert (np.diff(times) >= 0).all()
    assert times[-1] / times[0] > 1e3
    assert_allclose(A[-1], run.A[-1], atol=1e-3)
    assert_allclose(A[0], run.A[0], atol=2e-3)
    for k in range(0, animation.FRAMES, 20):
        there = [np.interp(np.log(times[k]), np.log(run.times[1:]), a[1:]) for a in run.A.T]
        assert_allclose(A[k], there, atol=1e-2)


def test_the_animation_plays_only_when_asked_and_pauses(page):
    player = page.locator("#fig-race")
    button, slider = player.get_by_role("button"), player.get_by_role("slider", name="moment")
    assert not player.locator("img").is_visible()
    dots = "[...document.querySelectorAll('.race circle')].map(dot => dot.cx.animVal.value).join()"
    end = page.evaluate(dots)
    page.wait_for_timeout(400)
    assert (button.inner_text(), page.evaluate(dots)) == ("Play", end)
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function(f"{dots} !== '{end}'")
    assert button.inner_text() == "Pause"
    page.keyboard.press("Enter")
    paused = page.evaluate(dots)
    page.wait_for_timeout(400)
    assert (button.inner_text(), page.evaluate(dots)) == ("Play", paused)
    slider.focus()
    page.keyboard.press("Home")
    page.wait_for_function(
        "Math.abs(document.querySelector('.race circle').cx.animVal.value - 34) < 1"
    )
    page.keyboard.press("End")
    page.wait_for_function(f"{dots} === '{end}'")
    broken = Axe().run(page, {"include": [["#fig-race"]]}).response["violations"]
    assert [rule["id"] for rule in broken] == []


# ---- Plotly --------------------------------------------------------------------------------------


def test_an_interactive_figure_is_drawn_when_it_comes_into_sight(browser, address):
    page = browser.new_page(viewport={"width": 390, "height": 900}, color_scheme="light")
    page.set_default_timeout(60_000)
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on(
        "console",
        lambda message: message.type in ("error", "warning") and complaints.append(message.text),
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{address}/drawn.html")
    page.wait_for_timeout(300)
    assert not [
        url for url in requests if "plotly" in url
    ]  # 1.5 MB that a reader of the first screen does not need
    page.locator("#fig-drawn").scroll_into_view_if_needed()
    page.wait_for_selector("#fig-drawn .main-svg")
    assert sum("plotly.min.js" in url for url in requests) == 1
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)
    assert not page.get_by_role("img", name="A line").locator("xpath=self::img").is_visible()

    y = "document.querySelector('.interactive-plot').data[0].y.join()"
    looks = (
        "document.querySelector('.interactive-plot').data.flatMap(t => [t.line.color,"
        " t.marker?.color])"
    )
    blue, back = (
        figures.COLOURS["baseline"],
        "document.querySelector('.interactive-plot').layout.paper_bgcolor",
    )
    ink = "document.querySelector('.interactive-plot').layout.font.color"
    assert page.evaluate(y) == "1,2"
    assert page.evaluate(looks) == [blue, blue, "#123456", None]
    assert page.evaluate(back) == "rgba(0,0,0,0)"  # the page's
    slider = page.get_by_role("slider", name="dose")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"{y} === '30,40'")
    assert page.evaluate("document.querySelector('.interactive-plot').data[1].y.join()") == "5,6"
    assert slider.get_attribute("aria-valuetext") == "100"
    box = slider.bounding_box()
    page.mouse.click(box["x"] + 4, box["y"] + box["height"] / 2)
    page.wait_for_function(f"{y} === '1,2'")

    light = page.evaluate(ink)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{ink} !== '{light}'")
    lighter = figures._DARK[blue]
    assert page.evaluate(looks) == [lighter, lighter, "#123456", None]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert complaints == []
    broken = Axe().run(page, {"include": [["#fig-drawn"]]}).response["violations"]
    assert [rule["id"] for rule in broken] == []
    page.emulate_media(media="print")
    assert page.locator("#fig-drawn img").is_visible()
    assert not page.locator(".interactive").is_visible()
    page.close()
