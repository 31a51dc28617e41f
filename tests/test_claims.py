"""The claims table of the results page: every claim has its columns filled and every link leads to
a label of the book.
"""

import re

import pytest
import yaml
from conftest import ROOT

PAGE = ROOT / "book" / "results.md"
LINK = re.compile(r"\{(prf:ref|ref|numref|eq)\}`(?:[^`<]*<)?([^`>]+)>?`")
# What a cell may say instead of a link: that there is nothing to link to.
WITHOUT_LINK = ("Not a number of the paper.",)


def pages():
    """The texts of the pages that are in the table of contents, joined."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    names = [
        toc["root"],
        *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"]),
    ]
    return "\n".join((ROOT / f"{name}.md").read_text("utf-8") for name in names)


def labels(text):
    """The labels that a text defines, by the roles that can refer to them."""
    headings = set(re.findall(r"^\(([\w-]+)\)=$", text, re.M))
    directives = re.findall(r"^:::+\{(prf:\w+|exercise)\}[^\n]*\n:label: ([\w-]+)$", text, re.M)
    return {
        "ref": headings | {name for kind, name in directives if kind == "exercise"},
        "numref": headings | set(re.findall(r"^ +name: (fig-[\w-]+)$", text, re.M)),
        "prf:ref": {name for kind, name in directives if kind != "exercise"},
        "eq": set(re.findall(r"^\$\$ \((eq-[\w-]+)\)$", text, re.M)),
    }


def claims(text):
    """The table under the heading of the claims: a header and one list of cells per claim."""
    section = text.split("(sec-results-claims)=")[1]
    rows = re.search(r"(?:^\|.*\|$\n)+", section, re.M).group().splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    return cells[0], cells[2:]


def faults(text, known):
    """What is wrong with the claims table, one line each."""
    header, rows = claims(text)
    found = []
    for row in rows:
        if len(row) != len(header):
            found.append(f"{len(row)} cells: {row[0]}")
            continue
        for column, cell in zip(header, row, strict=True):
            links = LINK.findall(cell)
            found += [
                f"no label {name} for {role}" for role, name in links if name not in known[role]
            ]
            if not cell:
                found.append(f"empty: {column} of {row[0]}")
            elif column not in ("claim", "the paper") and not links and cell not in WITHOUT_LINK:
                found.append(f"no link: {column} of {row[0]}")
            if cell.count("{") > len(links) + len(re.findall(r"\^\{|\\mathrm\{", cell)):
                found.append(f"a role that is not a link: {cell}")
    return found


@pytest.fixture(scope="module")
def text():
    return PAGE.read_text("utf-8")


@pytest.fixture(scope="module")
def known():
    return labels(pages())


def test_every_claim_is_linked_to_labels_that_exist(text, known):
    header, rows = claims(text)
    assert header == [
        "claim",
        "the paper",
        "proved here",
        "reproduced",
        "measured here",
        "where it fails",
    ]
    assert len(rows) >= 10
    assert faults(text, known) == []


def test_the_page_is_in_the_book(known):
    assert {"ch-results", "sec-results-claims"} <= known["ref"]


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("{prf:ref}`thm-separation`", "{prf:ref}`thm-separated`", "no label thm-separated"),
        ("{ref}`sec-special-order`", "{ref}`thm-separation`", "no label thm-separation for ref"),
        ("{prf:ref}`rem-network`", "the remark", "no link"),
        ("{prf:ref}`thm-separation`", "{prf:reef}`thm-separation`", "a role that is not a link"),
        ("| Not a number of the paper. |", "|  |", "empty"),
    ],
)
def test_a_spoiled_table_is_noticed(text, known, old, new, fault):
    assert old in text.split("(sec-results-claims)=")[1]
    head, section = text.split("(sec-results-claims)=")
    spoiled = head + "(sec-results-claims)=" + section.replace(old, new)
    assert any(fault in line for line in faults(spoiled, known))
