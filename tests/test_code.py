"""What the code of a function is, in packages whose modules import each other."""

import importlib
import sys
import textwrap

import pytest

from ssm_poison_lib._code import code_digests


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write the modules of a package in a folder of its own, and import it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(name, **modules):
        (tmp_path / name).mkdir()
        for module, text in modules.items():
            (tmp_path / name / f"{module}.py").write_text(textwrap.dedent(text), "utf-8")
        return importlib.import_module(name)

    yield write
    for name in [name for name in sys.modules if name.startswith("circle_")]:
        del sys.modules[name]


@pytest.mark.parametrize("origin", ["circle_a", "."])
def test_a_package_may_import_its_own_modules(package, origin):
    """`from PACKAGE import part` in the package's own __init__ names the same name again."""
    whole = package(
        "circle_a",
        __init__=f"""
            from {origin} import part

            def work():
                return part.helper()
        """,
        part="""
            def helper():
                return 1
        """,
    )
    assert code_digests(whole.work).keys() == {"circle_a:work", "circle_a.part:helper"}


def test_modules_that_pass_a_name_round_have_an_end(package):
    whole = package(
        "circle_b",
        __init__="""
            def work():
                from circle_b.one import name

                return name
        """,
        one="from circle_b.two import name",
        two="""
            try:
                from circle_b.one import name
            except ImportError:
                globals()["name"] = 1
        """,
    )
    assert whole.work() == 1
    assert code_digests(whole.work).keys() == {"circle_b:work"}
