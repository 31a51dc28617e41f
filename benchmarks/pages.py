"""Weight and speed of the built pages in a slow browser, against the book's budgets; fails over
budget.

    python benchmarks/pages.py [PAGE ...] [--html _build/html] [--repeats 3]

Serves the pages gzipped and loads each in headless Chromium as on a slow phone: a processor four
times slower, 1.6 Mbit/s, 150 ms round trip, an empty cache. Prints, per page, the best of the
repeats: seconds until the first text, until the mathematics near the screen is typeset and until
all of it is, the layout shift on the way, and the compressed size of all that was loaded; then the
size of the site.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import http.server
import os
import shutil
import sys
import threading
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
).split()
# seconds, megabytes
BUDGET = {"text": 3.0, "mathematics": 8.0, "shift": 0.1, "page": 1.5, "site": 40.0}
ROUND_TRIP, BITS, SLOWDOWN = 150, 1.6e6, 4  # milliseconds, per second, processor
COMPRESSED = (".html", ".css", ".js", ".svg", ".json", ".txt", ".ipynb")

OBSERVE = """
window.shift = 0;
new PerformanceObserver(list => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shift += entry.value;
}).observe({type: "layout-shift", buffered: true});
"""
MEASURE = """async () => {
  if (window.MathJax?.startup) await MathJax.startup.promise;
  const mathematics = performance.now() / 1000;
  const view = (performance.getEntriesByName("mathematics in view")[0]?.startTime
    ?? 1000 * mathematics) / 1000;
  await document.fonts.ready;
  await new Promise(done => setTimeout(done, 500));
  const text = performance.getEntriesByName("first-contentful-paint")[0]?.startTime / 1000;
  const bytes = performance.getEntriesByType("navigation")
    .concat(performance.getEntriesByType("resource"))
    .reduce((sum, entry) => sum + entry.transferSize, 0);
  return {text, view, mathematics, shift: window.shift, page: bytes / 1e6};
}"""


class Gzipped(http.server.SimpleHTTPRequestHandler):
    """Serves files as a web host does: text compressed, connections kept."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        path = path / "index.html" if path.is_dir() else path
        if not path.is_file():
            return self.send_error(404)
        body, squeezed = compressed(path)
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Length", str(len(body)))
        if squeezed:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@functools.cache
def compressed(path: Path) -> tuple[bytes, bool]:
    """Return what a host sends for a file, and whether that is compressed."""
    body = path.read_bytes()
    return (gzip.compress(body, 6), True) if path.suffix in COMPRESSED else (body, False)


def measure(browser: Browser, address: str, *, slow: bool = True) -> dict[str, float]:
    """Load a page into an empty cache; return seconds, layout shift and megabytes."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.add_init_script(OBSERVE)
    if slow:
        session = context.new_cdp_session(page)
        session.send("Network.enable")
        speed = {"downloadThroughput": BITS / 8, "uploadThroughput": BITS / 8}
        session.send(
            "Network.emulateNetworkConditions", {"offline": False, "latency": ROUND_TRIP} | speed
        )
        session.send("Emulation.setCPUThrottlingRate", {"rate": SLOWDOWN})
    page.goto(address, wait_until="load", timeout=120_000)
    seen = page.evaluate(MEASURE)
    context.close()
    return seen


def over_budget(name: str, seen: dict[str, float]) -> list[str]:
    return [
        f"{name}: {key} {seen[key]:.2f}, budget {limit}"
        for key, limit in BUDGET.items()
        if key in seen and seen[key] > limit
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="such as proofs; all without one")
    parser.add_argument("--html", type=Path, default=ROOT / "_build" / "html")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    chromium = (
        os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    )
    if chromium is None:
        sys.exit("no Chromium found: install the package chromium, or set CHROMIUM to its path")
    names = options.pages or sorted(page.stem for page in (options.html / "book").glob("*.html"))
    if not names:
        sys.exit(f"no pages in {options.html}: make book")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Gzipped, directory=options.html)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    over = []
    print(
        f"{'page':20}{'text, s':>10}{'in view, s':>12}{'mathematics, s':>16}{'shift':>8}{'MB':>8}"
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for name in names:
            address = f"http://127.0.0.1:{server.server_port}/book/{name}.html"
            runs = [measure(browser, address) for _ in range(options.repeats)]
            best = {key: min(run[key] for run in runs) for key in runs[0]}
            print(
                f"{name:20}{best['text']:10.2f}{best['view']:12.2f}{best['mathematics']:16.2f}"
                f"{best['shift']:8.3f}{best['page']:8.2f}",
                flush=True,
            )
            over += over_budget(name, best)
        browser.close()
    server.shutdown()
    site = sum(path.stat().st_size for path in options.html.rglob("*") if path.is_file()) / 1e6
    print(f"whole site: {site:.1f} MB")
    over += over_budget("site", {"site": site})
    print(*(over or ["within every budget"]), sep="\n")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
