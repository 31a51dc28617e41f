"""How the library is built: layers, no circle, no arrow upwards, a sentence for each module."""

import graphlib
import re
import xml.etree.ElementTree as ElementTree

import modules
import pytest

ORDER = list(modules.LAYERS)


def test_no_import_goes_in_a_circle():
    graphlib.TopologicalSorter(modules.imports()).prepare()


def upwards() -> list[str]:
    return [
        f"{name} ({modules.layer(name)}) imports {target} ({modules.layer(target)})"
        for name, targets in modules.imports().items()
        for target in targets
        if ORDER.index(modules.layer(target)) > ORDER.index(modules.layer(name))
    ]


def test_no_import_goes_up():
    assert upwards() == []


def test_no_public_module_imports_a_study():
    own = ("studies", "command line")
    users = {
        name: [target for target in targets if modules.layer(target) == "studies"]
        for name, targets in modules.imports().items()
        if modules.layer(name) not in own
    }
    assert {name: found for name, found in users.items() if found} == {}


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Lay out a library of four modules; afterwards the caches are the book's own again."""
    sources = {
        "_checks.py": '"""Checks."""\n',
        "ssm.py": '"""Models."""\nfrom ssm_poison_lib import _checks\n',
        "flow.py": (
            '"""Flows."""\nfrom ssm_poison_lib.ssm import x\n\ndef f():\n    from ssm_poison_lib'
            " import paper\n"
        ),
        "paper.py": '"""Settings."""\nimport ssm_poison_lib.flow\n',
        "__init__.py": "",
    }
    for name, source in sources.items():
        (tmp_path / name).write_text(source, "utf-8")
    monkeypatch.setattr(modules, "LIBRARY", tmp_path)
    caches = (modules.modules, modules.imports)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def test_an_arrow_upwards_and_a_circle_are_noticed_also_inside_a_function(library):
    assert modules.imports() == {
        "_checks": (), "flow": ("paper", "ssm"), "paper": ("flow",), "ssm": ("_checks",)
    }  # fmt: skip
    assert upwards() == ["flow (training) imports paper (the paper's settings)"]
    with pytest.raises(graphlib.CycleError):
        test_no_import_goes_in_a_circle()


def test_a_module_on_no_layer_is_noticed(library):
    (library / "new.py").write_text("", "utf-8")
    with pytest.raises(
        ValueError, match=r"new must stand on one layer of LAYERS in tools/modules\.py"
    ):
        modules.layer("new")


@pytest.mark.parametrize("name", modules.modules())
def test_the_first_line_says_in_one_sentence_what_a_module_is(name):
    line = modules.sentence(name)
    assert re.fullmatch(r"[A-Z`\d].*[.?]", line), line
    assert (
        len(
            re.findall(
                r"[.?!](?= |$)", line.replace("...", "").replace("i.e.", "").replace("e.g.", "")
            )
        )
        == 1
    ), line
    assert len(line) <= 97


def test_the_picture_shows_every_module_and_the_arrows_between_them():
    assert modules.PICTURE.read_text("utf-8") == modules.drawing()  # else: python tools/readme.py
    drawn = ElementTree.fromstring(modules.drawing())
    space = "{http://www.w3.org/2000/svg}"
    words = {text.text for text in drawn.iter(f"{space}text")}
    assert set(modules.modules()) <= words
    arrows = [path for path in drawn.iter(f"{space}path") if path.get("class") == "arrow"]
    shown = [
        pair
        for pair in modules.direct(modules.imports())
        if modules.layer(pair[1]) != modules.GROUND
    ]
    assert len(arrows) == len(shown) > 20
