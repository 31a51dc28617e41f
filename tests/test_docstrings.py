"""What the reference pages say: every argument of every public function has its line."""

import importlib
import inspect
import re
from typing import Any

import pytest
from conftest import public_modules

SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")


def entries(text: str) -> set[str]:
    """Return the names that have a line under Args or Attributes."""
    found: set[str] = set()
    section = ""
    for line in inspect.cleandoc(text).splitlines():
        if line and not line.startswith(" "):
            section = line.removesuffix(":")
        elif section in ("Args", "Attributes") and (name := re.match(r"    (\w+): \S", line)):
            found.add(name[1])
    return found


def arguments(thing: Any) -> set[str]:
    if inspect.isclass(thing) and (issubclass(thing, Exception) or hasattr(thing, "__members__")):
        return set()
    return set(inspect.signature(thing).parameters) - {"self", "args", "kwargs"}


def described(module: Any) -> dict[str, Any]:
    """Return name -> object of what a module makes public: functions, classes, their methods."""
    found = {}
    for name in module.__all__:
        thing = getattr(module, name)
        if thing.__class__.__module__ == "typing" or not callable(thing):
            continue
        found[name] = thing
        if inspect.isclass(thing):
            # a function may be a field's default
            fields = getattr(thing, "__dataclass_fields__", {})
            for key, member in vars(thing).items():
                if not key.startswith("_") and inspect.isfunction(member) and key not in fields:
                    found[f"{name}.{key}"] = member
    return found


@pytest.mark.parametrize("name", public_modules())
def test_every_argument_has_a_line_of_its_own(name):
    module = importlib.import_module(f"ssm_poison_lib.{name}")
    lacking = {}
    for path, thing in described(module).items():
        if inspect.isclass(thing) and getattr(thing, "_is_protocol", False):
            continue
        texts = [
            kind.__doc__ or ""
            for kind in (inspect.getmro(thing) if inspect.isclass(thing) else [thing])
        ]
        if missing := arguments(thing).difference(*map(entries, texts)):
            lacking[path] = sorted(missing)
    assert lacking == {}


@pytest.mark.parametrize("name", public_modules())
def test_a_docstring_begins_with_a_sentence_and_has_known_sections(name):
    module = importlib.import_module(f"ssm_poison_lib.{name}")
    for path, thing in described(module).items():
        text = inspect.cleandoc(thing.__doc__ or "")
        assert re.match(r"[A-Z`\d(].*?[.:;]", text, re.DOTALL), (
            f"{path}: a docstring begins with a sentence, a capital letter first; got {text[:40]!r}"
        )
        heads = re.findall(r"^([A-Z]\w+):$", text, re.MULTILINE)
        assert set(heads) <= set(SECTIONS), path


def test_a_missing_line_is_noticed():
    text = """Return something.

    Args:
        one: (d,) a meaning
            that goes on: here.

    Raises:
        two: not an argument.
    """
    assert entries(text) == {"one"}
