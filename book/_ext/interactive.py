"""Pages that react: scripts of our own, loaded by the pages that need them and by no other."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

# What a page must contain, and the script and the styles (in book/assets) that it then loads.
SCRIPTS = {'class="explorable"': ("explorable.js", "explorable.css")}


def load_scripts(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Add to a page the scripts of the interactive parts that it contains."""
    for mark, (script, styles) in SCRIPTS.items():
        if mark in context.get("body", ""):
            app.add_js_file(script, loading_method="defer")
            app.add_css_file(styles)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the above to a Jupyter Book build."""
    app.connect("html-page-context", load_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
