"""Examples in docstrings, which the reference pages show, give what they say."""

import doctest
import importlib

import pytest
from conftest import public_modules

WITH_EXAMPLES = [
    name for name, path in public_modules().items() if ">>> " in path.read_text("utf-8")
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_give_what_they_say(name):
    result = doctest.testmod(importlib.import_module(f"ssm_poison_lib.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
