"""Examples that the reference pages show, in docstrings and on their first page, give what they
say.
"""

import doctest
import importlib
import re

import pytest
from conftest import ROOT, public_modules

WITH_EXAMPLES = [
    name for name, path in public_modules().items() if ">>> " in path.read_text("utf-8")
]
RECIPES = re.findall(
    r"\*\*Your own (.*?)\.\*\*.*?```python\n(.*?)```\n\n```text\n(.*?)```",
    (ROOT / "book/api.md").read_text("utf-8"),
    flags=re.DOTALL,
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_give_what_they_say(name):
    result = doctest.testmod(importlib.import_module(f"ssm_poison_lib.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_the_librarys_page_begins_with_three_recipes():
    assert [name for name, _, _ in RECIPES] == ["sequences", "teacher", "architecture"]
    for _, code, _ in RECIPES:
        lines = [line for line in code.splitlines() if line]
        assert len(lines) <= 14
        assert max(map(len, lines)) <= 83  # what the page's column holds


@pytest.mark.parametrize(("name", "code", "shown"), RECIPES, ids=[name for name, *_ in RECIPES])
def test_recipes_print_what_is_shown(name, code, shown, capsys):
    exec(compile(code, f"recipe: {name}", "exec"), {})
    assert capsys.readouterr().out == shown
