"""A chapter that runs again and gives the same leaves its file as it is: times, names and last
digits in drawings apart.
"""

import copy
import re
import shutil
import subprocess

import matplotlib as mpl
import nbformat
import outputs
import pytest
from conftest import ROOT, make
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook, new_output

from ssm_poison_lib import figures


def drawn(*values: float, label: str = "loss") -> str:
    """Return a figure with points and a clipped line, whose names Matplotlib makes from their
    coordinates.
    """
    figure, (ax,) = figures.new()
    ax.plot(values, marker="o")
    ax.set(xlabel=label)
    return figures.to_svg(figure)


DRAWING = drawn(1.0, 2.0, 5.0)


def test_a_figure_drawn_twice_has_the_same_bytes_whenever_it_is_drawn(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    with mpl.rc_context({"svg.hashsalt": None}):
        assert drawn(1.0, 2.0, 5.0) == DRAWING


def test_a_drawing_with_other_last_digits_and_names_is_the_same_and_one_with_another_point_is_not():
    noise = drawn(1.0, 2.0 * (1 + 1e-6), 5.0)
    assert noise != DRAWING
    assert re.findall(r'id="(m[0-9a-f]+)"', noise) != []
    assert outputs.same(DRAWING, noise)
    assert not outputs.same(DRAWING, drawn(1.0, 2.001, 5.0))
    assert not outputs.same(DRAWING, drawn(1.0, 2.0, 5.0, 6.0))
    assert not outputs.same(DRAWING, drawn(1.0, 2.0, 5.0, label="lose"))
    assert not outputs.same(DRAWING, DRAWING.replace("#0072b2", "#0072b3"))


def test_the_same_names_in_another_place_are_another_drawing():
    one = '<svg><path id="a"/><path id="b"/><use xlink:href="#a"/></svg>'
    assert outputs.same(one, one.replace('"a"', '"c"').replace("#a", "#c"))
    assert not outputs.same(one, one.replace("#a", "#b"))


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("took 1.5 s", "took 22 s", True),
        ("took 1.5 s", "took 1.5 hours", False),
        ("error 0.012", "error 0.013", False),
        ({"x": [1.0, 2.0]}, {"x": [1.0, 2.0 + 1e-9]}, True),
        ({"x": [1.0, 2.0]}, {"x": [1.0, 2.1]}, False),
        ({"x": [1.0]}, {"x": [1.0, 2.0]}, False),
        ({"x": 1}, {"y": 1}, False),
        (float("inf"), float("inf"), True),
        (1, True, True),
        (None, [], False),
    ],
)
def test_what_counts_as_the_same(one, other, equal):
    assert outputs.same(one, other) is equal
    assert outputs.same(other, one) is equal


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_everything_is_the_same_as_its_copy(value):
    assert outputs.same(value, copy.deepcopy(value))


def notebook(*printed: str, tags: tuple[str, ...] = ()) -> nbformat.NotebookNode:
    """Return a notebook of cells that printed this, the last one with these tags."""
    cells = [
        new_code_cell(f"cell_{k}()", id=f"cell-{k}", outputs=[new_output("stream", text=text)])
        for k, text in enumerate(printed)
    ]
    cells[-1].metadata["tags"] = list(tags)
    return new_notebook(cells=cells)


def texts(settled: nbformat.NotebookNode) -> list[str]:
    return [cell.outputs[0].text for cell in settled.cells]


def test_a_time_alone_does_not_change_a_cell_and_a_result_changes_its_own_cell_only():
    stored = notebook("took 1.0 s", "0.5", "took 2.0 s")
    new = notebook("took 3.0 s", "0.6", "took 4.0 s")
    outputs.settle(new, stored)
    assert texts(new) == ["took 1.0 s", "0.6", "took 2.0 s"]


@pytest.mark.parametrize(("result", "kept"), [("0.5", True), ("0.6", False)])
def test_what_is_not_compared_stays_as_long_as_everything_else_does(result, kept):
    tags = (outputs.UNCOMPARED,)
    new = notebook(result, "a measured value: 7", tags=tags)
    outputs.settle(new, notebook("0.5", "a measured value: 6", tags=tags))
    assert texts(new)[1].endswith("6" if kept else "7")


def test_another_cell_keeps_its_own_output():
    stored, new = notebook("1"), notebook("1", "2")
    outputs.settle(new, stored)
    assert texts(new) == ["1", "2"]


def test_a_diff_shows_texts_and_numbers_and_one_line_for_a_drawing(tmp_path):
    (tmp_path / "tools").mkdir()
    for name in (".gitattributes", "Makefile", "tools/outputs.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    path = tmp_path / "chapter.ipynb"

    def write(result: str, drawing: str) -> None:
        data = {"image/svg+xml": drawing, "text/plain": f"line: {result}"}
        cell = new_code_cell("draw()", id="draw", outputs=[new_output("display_data", data=data)])
        nbformat.write(new_notebook(cells=[cell]), path)

    write("0.012", DRAWING)
    subprocess.run(["git", "init", "-q", "."], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    write("0.49", drawn(1.0, 2.0, 3.0))
    changes = [line for line in make(tmp_path, "diff").splitlines() if re.match(r"[-+][^-+]", line)]
    digest = "image/svg\\+xml, digest [0-9a-f]{8}"
    shapes = [f"->>>> {digest}", f"\\+>>>> {digest}", "-line: 0\\.012", "\\+line: 0\\.49"]
    assert len(changes) == 4
    assert all(re.fullmatch(shape, line) for shape, line in zip(shapes, changes, strict=True)), (
        changes
    )
