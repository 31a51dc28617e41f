"""The parts of README.md that are made from other files: badges (from _config.yml) and the table of
modules.

python tools/readme.py    write them, and draw the imports (book/assets/imports.svg)
"""

from __future__ import annotations

import re
from urllib.parse import quote

import modules
import yaml

README = modules.ROOT / "README.md"


def badge(words: str, picture: str, address: str) -> str:
    return f"[![{words}]({picture})]({address})"


def badges(repository: dict[str, str], title: str) -> str:
    """Return links to the checks, the published pages and live notebooks; nothing while no address
    is set.
    """
    address, branch = str(repository.get("url") or "").rstrip("/"), repository["branch"]
    if not address:
        return ""
    owner, name = address.rsplit("/", 2)[1:]
    checks = f"{address}/actions/workflows/book.yml"
    notebook = "book/intro.ipynb"
    return "\n".join(
        [
            badge("checks", f"{checks}/badge.svg?branch={branch}", checks),
            badge(
                f"read: {title}",
                "https://img.shields.io/badge/read-the_book-0072b2",
                f"https://{owner.lower()}.github.io/{name}/",
            ),
            badge(
                "run on Binder",
                "https://mybinder.org/badge_logo.svg",
                f"https://mybinder.org/v2/gh/{owner}/{name}/{branch}"
                f"?urlpath={quote('lab/tree/' + notebook, safe='')}",
            ),
            badge(
                "run in Colab",
                "https://colab.research.google.com/assets/colab-badge.svg",
                f"https://colab.research.google.com/github/{owner}/{name}/blob/{branch}/{notebook}",
            ),
            "",
        ]
    )


def written(text: str) -> str:
    """Return the text of README.md with its parts made anew."""
    config = yaml.safe_load((modules.ROOT / "_config.yml").read_text("utf-8"))
    parts = {"badges": badges(config["repository"], config["title"]), "modules": modules.table()}
    for name, part in parts.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        text, count = place.subn(lambda found, part=part: found[1] + part + found[2], text)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"README.md must have one place for {name}; it has {count}")
    return text


if __name__ == "__main__":
    README.write_text(written(README.read_text("utf-8")), "utf-8")
    modules.PICTURE.write_text(modules.drawing(), "utf-8")
