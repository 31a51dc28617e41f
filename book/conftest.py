"""How nbval compares the chapters: `pytest book`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import kernels
import outputs

kernels.use_plain_settings()

# Not compared: pixels and paths, whose last digits differ between processors. A figure is compared
# through the summary of its plotted numbers, which is its text/plain (tools/notebooks.py refuses a
# figure without one).
DRAWINGS = ("image/svg+xml", "image/png", "image/jpeg", "application/vnd.plotly.v1+json")


def pytest_collectstart(collector):
    """Tell nbval, when it opens a notebook, what to leave out of the comparison."""
    if hasattr(collector, "sanitize_patterns"):
        collector.skip_compare += DRAWINGS
        collector.sanitize_patterns[outputs.SECONDS] = "took (time)"
