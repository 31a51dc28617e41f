"""What the pages ask of their readers stays within budgets that only shrink; cells that only check
are folded and counted.
"""

import sys
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "book" / "_ext")]

import budgets  # noqa: E402
import checks  # noqa: E402

PAGE = """---
jupytext:
  text_representation: {extension: .md, format_name: myst}
kernelspec: {name: python3, display_name: Python 3}
---

# Two words

The error is $x_1 = 3$, or 0.5, see {ref}`ch-intro`.

```{code-cell}
---
mystnb:
  figure:
    caption: |
      Three more words.
---
print(1)
assert True
```

```{code-cell}
:tags: [checks]

assert 1 == 1
for k in range(2):
    assert k < 2
```
"""


def test_no_page_is_over_its_budget():
    assert budgets.over(budgets.counts(), budgets.budgets()) == []


def test_a_page_is_counted_as_its_reader_sees_it():
    found = budgets.count(jupytext.reads(PAGE, fmt="md:myst"))
    # "Two words", "The error is", "or", "see"; "Three more words"
    assert found == {"words": 10, "numbers": 2, "cells": 1, "asserts": 1, "prints": 1}


def test_budgets_shrink_and_never_grow():
    row = dict.fromkeys(budgets.COUNTS, 5)
    assert budgets.over({"a": row}, {"a": row}) == []
    assert budgets.over({"a": row | {"prints": 6}}, {"a": row}) == ["a: 6 prints, budget 5"]
    assert budgets.over({"a": row}, {}) == ["a has no budget: python tools/budgets.py shrink"]
    assert budgets.shrunk(
        {"a": row | {"words": 4, "prints": 6}, "b": row}, {"a": row, "gone": row}
    ) == {
        "a": row | {"words": 4},
        "b": row,
    }


def cells(source, tags):
    return {"cells": [{"cell_type": "code", "source": source, "metadata": {"tags": list(tags)}}]}


def test_cells_that_check_are_folded_under_their_number():
    notebook = cells(["assert 1\n", "assert 2"], ["checks"])
    assert checks.fold(notebook)
    (cell,) = notebook["cells"]
    assert cell["metadata"]["tags"] == ["checks", "hide-input"]
    assert cell["metadata"]["mystnb"]["code_prompt_show"] == "2 checks of this section"
    printed = cells("assert 1", ["checks"])
    assert checks.fold(printed, drop=True)
    assert printed["cells"][0]["metadata"]["tags"] == ["checks", "remove-cell"]
    assert not checks.fold(cells("assert 1", ["hide-input"]))


def test_a_cell_that_claims_to_check_must():
    with pytest.raises(ValueError, match="must hold an assert; got 'x = 1'"):
        checks.fold(cells("x = 1", ["checks"]))
