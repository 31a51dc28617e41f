"""The built pages: strict, with nothing that depends on the repository's address until that is set, and then all of it."""

import html
import importlib
import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, build

ADDRESS = "https://github.com/someone/ssm-poison"
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))


def copy_sources(folder: Path, address: str) -> Path:
    """Copy what a build reads and set the repository's address in the copy."""
    shutil.copytree(ROOT / "book", folder / "book", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "_toc.yml", folder)
    text = (ROOT / "_config.yml").read_text("utf-8")
    text, count = re.subn(r"(?m)^  url: .*$", f'  url: "{address}"', text)
    assert count == 1
    (folder / "_config.yml").write_text(text, "utf-8")
    return folder


def chapters() -> list[str]:
    return sorted(path.stem for path in (ROOT / "book").glob("*.ipynb"))


@pytest.fixture(scope="module")
def without_address(tmp_path_factory) -> dict[str, str]:
    return build(copy_sources(tmp_path_factory.mktemp("without"), ""))


@pytest.fixture(scope="module")
def with_address(tmp_path_factory) -> dict[str, str]:
    return build(copy_sources(tmp_path_factory.mktemp("with"), ADDRESS))


def links(page: str) -> set[str]:
    return set(re.findall(r'href="(https?://[^"]*)"', page))


def test_without_an_address_nothing_that_depends_on_it_is_there(without_address):
    for name, page in without_address.items():
        for word in (
            "og:",
            "twitter:",
            "mybinder",
            "colab",
            "source-buttons",
            "launch-buttons",
            'rel="canonical"',
        ):
            assert word not in page.split("<article")[0], f"{word} on {name}"
    assert "someone" not in without_address["bibliography"]


@pytest.mark.parametrize("name", chapters())
def test_with_an_address_the_buttons_lead_to_the_chapter(with_address, name):
    found = links(with_address[name])
    assert {
        ADDRESS,
        f"{ADDRESS}/edit/main/book/{name}.md",
        f"https://mybinder.org/v2/gh/someone/ssm-poison/main?urlpath=lab/tree/book/{name}.ipynb",
        f"https://colab.research.google.com/github/someone/ssm-poison/blob/main/book/{name}.ipynb",
    } <= found
    assert any(link.startswith(f"{ADDRESS}/issues/new?title=") for link in found)


def test_with_an_address_a_page_without_code_can_be_edited_and_not_launched(with_address):
    page = with_address["bibliography"]
    assert f"{ADDRESS}/edit/main/book/bibliography.md" in links(page)
    assert "mybinder" not in page
    assert "colab" not in page


def test_with_an_address_social_tags_and_citation_name_it(with_address):
    page = with_address["bibliography"]
    own = "https://someone.github.io/ssm-poison/book/bibliography.html"
    assert f'<meta property="og:url" content="{own}"' in page
    assert f'<link rel="canonical" href="{own}"' in page
    assert re.search(
        r'<meta property="og:image" content="https://someone.github.io/ssm-poison/[^"]*\.png"', page
    )
    assert f"Version {CITATION['version']}." in page
    assert f'<a class="reference external" href="{ADDRESS}">github.com/someone/ssm-poison</a>' in page


def test_the_citation_file_names_the_address_title_and_version_of_the_book():
    assert CITATION.get("repository-code", "") == CONFIG["repository"]["url"]
    assert CITATION["title"] == CONFIG["title"]
    assert [author["name"] for author in CITATION["authors"]] == [CONFIG["author"]]
    assert f'version = "{CITATION["version"]}"' in (ROOT / "pyproject.toml").read_text("utf-8")


BROKEN = {
    "image_without_alt_text": "![](assets/dot.svg)",
    "unknown_reference": "{ref}`nowhere`",
    "unknown_source": "{cite:p}`nobody1900`",
    "unknown_directive": "```{no-such-directive}\n```",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> str:
    """Build a book of one page per fault, and one without; return what the failing build said."""
    folder = tmp_path_factory.mktemp("broken")
    shutil.copytree(ROOT / "book" / "_ext", folder / "book" / "_ext")
    shutil.copytree(ROOT / "book" / "assets", folder / "book" / "assets")
    shutil.copy(ROOT / "book" / "references.bib", folder / "book")
    shutil.copy(ROOT / "_config.yml", folder)
    (folder / "book" / "assets" / "dot.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>', "utf-8")
    pages = {"good": "```{bibliography}\n:all:\n```"} | BROKEN
    for name, text in pages.items():
        (folder / "book" / f"{name}.md").write_text(f"# Page\n\n{text}\n", "utf-8")
    listed = "".join(f"- file: book/{name}\n" for name in BROKEN)
    (folder / "_toc.yml").write_text(f"format: jb-book\nroot: book/good\nchapters:\n{listed}", "utf-8")
    with pytest.raises(AssertionError) as failure:
        build(folder)
    return str(failure.value)


@pytest.mark.parametrize("fault", BROKEN)
def test_a_build_fails_and_names_the_page(report, fault):
    assert re.search(rf"{fault}\.md:.*WARNING", report)


def test_a_build_objects_to_nothing_else(report):
    assert not re.search(r"good\.md:.*WARNING", report)


MODULES = sorted(
    path.stem for path in (ROOT / "ssm_poison_lib").glob("*.py") if not path.stem.startswith("_")
)


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_of_a_module_is_described(without_address, name):
    module = importlib.import_module(f"ssm_poison_lib.{name}")
    pages = "".join(page for title, page in without_address.items() if title.startswith("api"))
    described = set(re.findall(r'id="ssm_poison_lib\.([\w.]+)"', pages))
    assert {f"{name}.{public}" for public in module.__all__} - described == set()


def test_a_description_has_shapes_arguments_errors_source_and_uses(without_address):
    page = without_address["api_model"]
    words = " ".join(html.unescape(re.sub(r"<[^>]+>", "", page)).split())
    text = words[words.index("impulse_response( A: Float") :]
    assert text.startswith(
        "impulse_response( A: Float[ndarray, 'd'], w: Float[ndarray, 'd'], length: int, ) → Float[ndarray, 'length']"
    )
    assert re.search(
        r"Parameters: A – \(d,\) diagonal .* w – .* length – .* Raises: ValueError – if", text[:700]
    )
    assert "Source: the model of the paper; chapter What is a state space model?" in words
    assert re.search(r'<em>Used in</em> <a class="reference internal" href="\w+\.html#ch-', page)


def test_names_in_prose_and_in_code_lead_to_their_descriptions(without_address):
    page = without_address["gradient_flow"]
    assert re.search(r'href="api_training.html#ssm_poison_lib.flow.gradient_flow"[^>]*><code', page)
    in_code = 'class="api" href="api_model.html#ssm_poison_lib.metrics.gamma"'
    assert in_code in page
    pages = {name: set(re.findall(r' id="([^"]+)"', text)) for name, text in without_address.items()}
    links = [
        link for text in without_address.values() for link in re.findall(r'"(api\w*)\.html#([^"]+)"', text)
    ]
    assert len(links) > 500
    assert [link for link in links if link[1] not in pages[link[0]]] == []
