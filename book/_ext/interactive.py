"""Pages that react: scripts of our own, loaded by the pages that need them and by no other; one
local copy of plotly.js.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

# What a page must contain, and the styles and the scripts (in book/assets) that it then loads, in
# this order.
SCRIPTS = {
    'class="explorable"': ("explorable.css", "solver.js", "explorable.js"),
    'class="interactive-figure"': ("explorable.css", "interactive.js"),
    'class="race-animation"': ("explorable.css", "animation.js"),
}
ANIMATION = re.compile(r'(<div class="race-animation"[^>]*>)</div>')
PLOTLY = "application/vnd.plotly.v1+json"


def plotly_figures(notebook: Path) -> dict[str, dict[str, Any]]:
    """Return the Plotly figures of a chapter by the names of their figures."""
    found = {}
    for cell in json.loads(notebook.read_text("utf-8"))["cells"] if notebook.exists() else []:
        for output in cell.get("outputs", []):
            if PLOTLY in output.get("data", {}):
                found[cell["metadata"]["mystnb"]["figure"]["name"]] = output["data"][PLOTLY]
    return found


def load_scripts(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Add to a page the interactive figures of its notebook, as data, and the scripts of the parts
    that it contains.
    """
    if "body" not in context:
        return
    for name, spec in plotly_figures(Path(app.srcdir) / f"{page}.ipynb").items():
        data = json.dumps(spec, separators=(",", ":"), sort_keys=True).replace("</", "<\\/")
        context["body"] += (
            '<script type="application/json" class="interactive-figure"'
            f' data-figure="{name}">{data}</script>'
        )
    if ANIMATION.search(
        context["body"]
    ):  # within the page, where buttons can reach it; its own script is for the file alone
        picture = (Path(app.srcdir) / "book" / "assets" / "race.svg").read_text("utf-8")
        picture = re.sub(r"<script>.*?</script>", "", picture, flags=re.DOTALL)
        context["body"] = ANIMATION.sub(lambda found: f"{found[1]}{picture}</div>", context["body"])
    for mark, (styles, *scripts) in SCRIPTS.items():
        if mark in context["body"]:
            for script in scripts:
                app.add_js_file(script, loading_method="defer")
            app.add_css_file(styles)


def copy_plotly(app: Sphinx, error: Exception | None) -> None:
    """Copy plotly.js from its pip package into the built book if a chapter needs it."""
    if error or app.builder.format != "html":
        return
    if any(plotly_figures(path) for path in sorted((Path(app.srcdir) / "book").glob("*.ipynb"))):
        spec = importlib.util.find_spec("plotly")
        if spec is None or spec.origin is None:
            raise ExtensionError("plotly is not installed: pip install -r requirements.txt")
        shutil.copy(
            Path(spec.origin).parent / "package_data" / "plotly.min.js",
            Path(app.outdir) / "_static",
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the above to a Jupyter Book build."""
    # MyST-NB looks at every form of an output, this one included, before it takes the SVG.
    app.config.suppress_warnings.append("mystnb.unknown_mime_type")
    app.connect("html-page-context", load_scripts)
    app.connect("build-finished", copy_plotly)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
