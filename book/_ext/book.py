"""The book's own Sphinx extension: notebook pairs, the repository's address, pages that load
nothing from the network.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.fileutil import copy_asset

# Of MathJax (24 MB) the part that a page can load: the component, its fonts, TeX extensions, and
# speech in English.
MATHJAX = (
    "tex-chtml.js",
    "output/chtml",
    "input/tex/extensions",
    "a11y",
    "sre/mathmaps/base.json",
    "sre/mathmaps/en.json",
)
CLAIMS = {
    "claim-paper": "Claim of the paper",
    "claim-proved": "Proved in this book",
    "claim-measured": "Measured here",
}
LOGGER = logging.getLogger(__name__)
REPOSITORY_BUTTONS = ("use_repository_button", "use_edit_page_button", "use_issues_button")


def exclude_paired_texts(app: Sphinx, config: Config) -> None:
    """Leave out `X.md` where `X.ipynb` stands beside it: the page shows the notebook, which has the
    outputs.
    """
    root = Path(app.srcdir)
    pairs = (path.with_suffix(".md") for path in sorted((root / "book").glob("*.ipynb")))
    config["exclude_patterns"] = [
        *config["exclude_patterns"],
        *(text.relative_to(root).as_posix() for text in pairs if text.exists()),
    ]


def repository_url(config: Config) -> str:
    """Return the repository's address without a closing slash; empty while it is not set in
    _config.yml.
    """
    return str(config["html_theme_options"].get("repository_url") or "").rstrip("/")


def site_url(repository: str) -> str:
    """Return the address under which the workflow publishes the pages of a GitHub repository."""
    owner, name = urlsplit(repository).path.strip("/").split("/")
    return f"https://{owner.lower()}.github.io/{name}/"


def apply_repository_url(app: Sphinx, config: Config) -> None:
    """Switch on what depends on the repository's address, or take it away while there is none."""
    options, repository = config["html_theme_options"], repository_url(config)
    citation = (
        f"{config['author']}. *{config['project']}*. {config['copyright']}. Version"
        f" {version('ssm-poison-lib')}."
    )
    config["myst_substitutions"]["book_citation"] = (
        f"{citation} [{repository.removeprefix('https://')}]({repository})"
        if repository
        else citation
    )
    if not repository:
        options.pop("launch_buttons", None)  # the theme cannot build them without an address
        return
    options.update(dict.fromkeys(REPOSITORY_BUTTONS, True))
    config["html_baseurl"] = config["ogp_site_url"] = site_url(repository)
    config["ogp_site_name"] = config["ogp_image_alt"] = config["project"]
    config["ogp_description_length"] = 0  # page.py describes each page
    config["ogp_enable_meta_description"] = False
    config["ogp_image"] = f"{config['ogp_site_url']}_static/preview.png"
    config["ogp_social_cards"] = {"enable": False}
    branch = options["repository_branch"]
    config["html_context"].update(  # edit the text, never the notebook that is made from it
        edit_page_provider_name="GitHub",
        edit_page_url_template=(
            f"{repository}/edit/{branch}/{{{{ file_name | replace('.ipynb', '.md') }}}}"
        ),
    )


class BibTeX(SphinxDirective):
    """An entry to copy: of the book, made from _config.yml, or of a source of the bibliography, by
    its key.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the entry as a block of code."""
        key = self.arguments[0]
        entry = book_entry(self.config) if key == "book" else self.source_entry(key)
        return [nodes.literal_block(entry, entry, language="bibtex")]

    def source_entry(self, key: str) -> str:
        """Return an entry of references.bib as it is written there."""
        path = Path(self.env.srcdir) / "book" / "references.bib"
        self.env.note_dependency(str(path))
        found = re.search(
            rf"^@\w+{{{re.escape(key)},.*?^}}", path.read_text("utf-8"), re.MULTILINE | re.DOTALL
        )
        if found is None:
            raise self.error(f"{path.name} has no entry {key!r}")
        return found[0]


def book_entry(config: Config) -> str:
    """Return the BibTeX entry of the book; with the repository's address where that is set."""
    fields = {
        "author": f"{{{config['author']}}}",  # the inner braces keep the name whole
        "title": config["project"],
        "year": config["copyright"],
        "version": version("ssm-poison-lib"),
        "url": repository_url(config),
    }
    lines = (f"  {key:7} = {{{value}}}" for key, value in fields.items() if value)
    return "@software{ssmpoison" + config["copyright"] + ",\n" + ",\n".join(lines) + "\n}"


def clean_page(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Drop sphinx-thebe's files (its script names a CDN and fails on every page); mend the markup
    of citations.
    """
    for kind in ("script_files", "css_files"):
        context[kind] = [
            file
            for file in context[kind]
            if "thebe" not in f"{getattr(file, 'filename', file)}{getattr(file, 'attributes', '')}"
        ]
    if "body" in context:  # docutils nests a role that a list may not contain
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def name_claims(app: Sphinx, doctree: nodes.document) -> None:
    """Write the kind of a claim, in words, before the title of its box."""
    for box in doctree.findall(nodes.admonition):
        for kind in CLAIMS.keys() & set(box["classes"]):
            title = box.next_node(nodes.title)
            title.insert(
                0, [nodes.inline("", CLAIMS[kind], classes=["claim-kind"]), nodes.Text(" ")]
            )


def require_alt_text(app: Sphinx, doctree: nodes.document) -> None:
    """Warn, which fails the strict build, about a picture no screen reader could describe."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt"):
            LOGGER.warning("image without alt text: %s", image["uri"], location=image)


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Copy what the pages use of MathJax from its pip package into the built book."""
    if error or app.builder.format != "html":
        return
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise ExtensionError(
            "sphinx-mathjax-offline is not installed: pip install -r requirements.txt"
        )
    source, target = (
        Path(spec.origin).parent / "static" / "mathjax",
        Path(app.outdir) / "_static" / "mathjax",
    )
    for name in MATHJAX:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_dir():
            copy_asset(str(source / name), str(target / name))
        else:
            shutil.copyfile(source / name, target / name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the above to a Jupyter Book build."""
    app.config["mathjax_path"] = "mathjax/tex-chtml.js"
    app.config["html_context"].setdefault(
        "default_mode", "auto"
    )  # else the theme logs an error on every page
    if repository_url(app.config):
        app.setup_extension("sphinxext.opengraph")
    app.setup_extension("interactive")
    app.add_directive("bibtex", BibTeX)
    app.connect("config-inited", exclude_paired_texts)
    app.connect("config-inited", apply_repository_url)
    app.connect("html-page-context", clean_page, priority=900)
    app.connect("doctree-read", name_claims)
    app.connect("doctree-read", require_alt_text)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
