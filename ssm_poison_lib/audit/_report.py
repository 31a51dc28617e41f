"""The report of an audit: JSON for machines, one HTML page for people, the data's text escaped."""

from __future__ import annotations

import html
import math
import platform
import re
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import numpy as np
import scipy
from matplotlib.figure import Figure

from ssm_poison_lib import figures

__all__ = ["BLIND", "as_html", "as_json"]

#: What an audit cannot see, as the report says it.
BLIND = (
    "Poison spread over all lags, or hidden in sequences that show everything else as well.",
    "Copies that were changed by more than the distance between neighbours (gradient matching with a large budget).",
    "Whether labels are right.",
    "What another model, another start, or a longer training does: the small student is a linear one.",
    "Whether later data look like these.",
)

_STYLE = """
:root{color-scheme:light dark;--back:#fff;--ink:#1b1b1b;--quiet:#565656;--line:#c9c9c9;--link:#005a8c;--box:#f3f5f7}
@media (prefers-color-scheme:dark){:root{--back:#121417;--ink:#e8e8e8;--quiet:#b4b4b4;--line:#45494f;
--link:#7cc4f0;--box:#1d2126}}
body{background:var(--back);color:var(--ink);font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:0 auto;padding:1rem}
a{color:var(--link)}h1{font-size:1.5rem;margin:.5rem 0}h2{font-size:1.2rem;margin:2rem 0 .5rem}
.verdict{background:var(--box);border-left:.4rem solid var(--link);padding:.8rem 1rem}.verdict strong{font-size:1.2rem}
figure{margin:1rem 0}figure svg{max-width:100%;height:auto;display:block}figcaption,.quiet{color:var(--quiet);font-size:.9rem}
.wide{overflow-x:auto}table{border-collapse:collapse}th,td{padding:.25rem .6rem;text-align:left}
th,td{border-bottom:1px solid var(--line)}
td.number{text-align:right;font-variant-numeric:tabular-nums}li{overflow-wrap:anywhere}p,td{overflow-wrap:break-word}
"""

_CHAPTERS = {
    "order-sensitive": ("Does the order of the data matter?", "order.html"),
    "contains special sequences": (
        "What helps, and what an attacker does about it",
        "defences.html",
    ),
    "underdetermined": ("Why does it generalize?", "greedy_learning.html"),
    "undecided": ("Is my model at risk?", "at_risk.html"),
    "no evidence of risk": ("Is my model at risk?", "at_risk.html"),
}

_ADVICE = {
    "order-sensitive": "Shuffle, or train on the sequences with long lags first and on all of them afterwards.",
    "contains special sequences": "Look at the rows named here. Train without them, or with several starts and orders.",
    "underdetermined": "Add sequences that excite the open lags, or compare restarts on inputs that do.",
    "undecided": "Look at the numbers below, and try your own model with --model.",
    "no evidence of risk": "Nothing to do. What an audit cannot see is listed below.",
}


def as_json(audit: Any) -> dict[str, Any]:
    """Return everything as numbers, text, lists and mappings."""
    plain = {
        "schema": 1,
        "verdict": audit.verdict,
        "status": audit.status,
        "findings": [
            {"verdict": f.verdict, "text": f.text, "rows": list(f.rows), "count": f.count} for f in audit.findings
        ],
        "basis": list(audit.basis),
        "data": {
            "files": list(audit.names), "count": audit.count, "length": audit.length, "channels": audit.channels,
            "outputs": audit.outputs, "classes": list(audit.classes), "steps averaged": audit.pooled,
        },
        "lags": {
            "fixed": audit.lags.fixed, "rank": audit.lags.rank, "excitation": audit.lags.excitation,
            "energy": audit.lags.energy, "effective rank": audit.lags.effective_rank, "gaps": [list(g) for g in audit.gaps],
        },
        "standing out": list(audit.standing_out),
        "student": audit.student,
        "responses": audit.responses,
        "theory": list(audit.theory),
        "model": None if audit.model is None else audit.model.as_dict(),
        "not seen": list(BLIND),
        "versions": {
            "python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__, "torch": version("torch"),
        },
    }  # fmt: skip
    return dict(_plain(plain))


def _plain(value: Any) -> Any:
    """Return a value that JSON has: no NumPy numbers, no NaN or infinity."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def as_html(audit: Any, book: str) -> str:
    """Return the page."""
    title = f"Audit: {audit.verdict}"
    body = [
        "<main>",
        "<h1>Audit of a training set</h1>",
        f'<p class="quiet">{_text(", ".join(audit.names))}: {audit.count:,} sequences of length {audit.length:,},'
        f" {audit.channels} {'channel' if audit.channels == 1 else 'channels'}, {_targets(audit)}.</p>",
        f'<div class="verdict"><p><strong>{_text(_upper(audit.verdict))}.</strong> {_text(_ADVICE[audit.verdict])}</p></div>',
        "<h2>What was found</h2>",
        _list(_finding(f, book) for f in audit.findings)
        or f"<p>Nothing that speaks of risk. That is not a proof of safety. {_link(audit.verdict, book)}</p>",
        "<h2>What the verdict rests on</h2>",
        _list(map(_text, audit.basis)),
        "<h2>Which lags the data fix</h2>",
        _figure(_lag_figure(audit), _lag_words(audit), "Lag 0 is the last step. Bars: how far the data decide the response"
                " at this lag, 1 entirely; line: share of all energy there, of the largest."),
    ]  # fmt: skip
    body += ["<h2>Which sequences stand out</h2>", _rows(audit)]
    body += ["<h2>What the small student learns</h2>"]
    if audit.responses:
        body += [
            _figure(_response_figure(audit), _response_words(audit), "Impulse responses by lags, median of the restarts, root"
                    " mean square over channels and outputs. Right of the dotted line: lags beyond the training length."),
        ]  # fmt: skip
    else:
        body += ["<p>No student was trained: there are no labels, or all are the same.</p>"]
    if audit.model is not None:
        body += [f"<h2>What {_text(audit.model.name)} learns</h2>", _model(audit)]
    body += ["<h2>What the theory says</h2>", _list(map(_text, audit.theory))]
    body += ["<h2>What this cannot see</h2>", _list(map(_text, BLIND)), "</main>"]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _text(value: object) -> str:
    """Return escaped text, characters that no page shows replaced."""
    return html.escape(
        re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", str(value))
    )


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def _targets(audit: Any) -> str:
    if audit.classes:
        return f"{audit.outputs} classes"
    return (
        f"{audit.outputs} {'number' if audit.outputs == 1 else 'numbers'} as label"
        if audit.outputs
        else "no labels"
    )


def _list(items: Iterable[str]) -> str:
    found = "".join(f"<li>{item}</li>" for item in items)
    return f"<ul>{found}</ul>" if found else ""


def _link(verdict: str, book: str) -> str:
    title, page = _CHAPTERS[verdict]
    if not book:
        return f"Chapter “{_text(title)}”."
    return f'Chapter <a href="{html.escape(book.rstrip("/"))}/{page}">{_text(title)}</a>.'


def _finding(found: Any, book: str) -> str:
    rows = ""
    if found.rows:
        more = (
            f" and {found.count - len(found.rows):,} more" if found.count > len(found.rows) else ""
        )
        rows = f" Rows {', '.join(map(str, found.rows))}{more}."
    return f"<strong>{_text(_upper(found.verdict))}</strong>: {_text(found.text)}.{rows} {_link(found.verdict, book)}"


def _rows(audit: Any) -> str:
    if not audit.standing_out:
        return "<p>None.</p>"
    lines = "".join(
        f'<tr><td class="number">{r["row"]}</td><td>{_text(r["reason"])}</td><td class="number">{r["leverage"]:.2f}</td>'
        f'<td class="number">{r["mean lag"]:.1f}</td></tr>'
        for r in audit.standing_out
    )
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Sequences that stand out"><table><thead><tr>'
        '<th scope="col">Row</th><th scope="col">Why</th><th scope="col">Leverage</th><th scope="col">Mean lag</th></tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
        '<p class="quiet">Rows count from 0. Leverage: 1 for a sequence that alone shows some direction of lags.</p>'
    )


def _model(audit: Any) -> str:
    m = audit.model
    assert m is not None
    told = [
        f"Trained on {m.sample:,} sequences, {m.steps} steps: {'accuracy' if audit.classes else 'R2'} {m.score:.2f} on them.",
        f"Restarts differ by {m.restarts_differ:.2f} on training sequences and by {m.restarts_differ_beyond:.2f} on sequences"
        " twice as long (0 agreement, 1.4 unrelated).",
        *(() if m.fits else ("It does not fit yet, so this says little: try more --steps.",)),
        f"In phases instead of shuffled its outputs differ by {m.ordered:.2f}.",
    ]
    if m.without_them is not None:
        told.append(
            f"Without the sequences that stand out its outputs differ by {m.without_them:.2f}."
        )
    return (
        _list(map(_text, told))
        + "<p>Compare the last numbers with what restarts differ anyway.</p>"
    )


def _figure(figure: Figure, words: str, caption: str) -> str:
    svg = figures.to_svg(figure)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{_text(words)}"', 1)
    return f"<figure>{svg}<figcaption>{_text(caption)}</figcaption></figure>"


def _lag_figure(audit: Any) -> Figure:
    fixed, energy = audit.lags.fixed, audit.lags.energy
    lags = np.arange(len(fixed))
    figure, (ax,) = figures.new(1, height=2.4, width=5.6)
    ax.fill_between(lags, 0, fixed, step="mid", color=figures.COLOURS["baseline"], alpha=0.5, lw=0)
    if len(lags) < 60:
        ax.bar(lags, fixed, width=0.7, color=figures.COLOURS["baseline"])
        ax.collections[0].remove()
    ax.plot(
        lags,
        energy / energy.max(),
        ".-" if len(lags) < 60 else "-",
        color=figures.COLOURS["with special"],
    )
    ax.set(xlabel="lag $m$", ylabel="decided; energy", ylim=(0, 1.05))
    return figure


def _lag_words(audit: Any) -> str:
    fixed = audit.lags.fixed >= 0.9
    largest = int(audit.lags.energy.argmax())
    return (
        f"Bars over lags 0 to {len(fixed) - 1}: {int(fixed.sum())} of {len(fixed)} are decided by the data"
        + (f", the open ones {_runs(~fixed)}" if not fixed.all() else "")
        + f". Most energy is at lag {largest}."
    )


def _runs(which: np.ndarray) -> str:
    """Return runs of True in words, the first few."""
    at = np.flatnonzero(which)
    runs = np.split(at, np.flatnonzero(np.diff(at) > 1) + 1)
    told = [f"{r[0]} to {r[-1]}" if len(r) > 1 else str(r[0]) for r in runs[:5]]
    return ", ".join(told) + (f" and {len(runs) - 5} more runs" if len(runs) > 5 else "")


_LINES = {
    "all together": ("baseline", "-"),
    "without them": ("third", "--"),
    "in the given order": ("with special", "-."),
    "short lags first": ("with special", "-."),
}


def _response_figure(audit: Any) -> Figure:
    figure, (ax,) = figures.new(1, height=2.8, width=5.6)
    for name, values in audit.responses.items():
        colour, style = _LINES[name]
        ax.plot(values, style, color=figures.COLOURS[colour], label=name)
    ax.axvline(len(audit.lags.fixed) - 0.5, color=figures.COLOURS["muted"], ls=":", lw=1)
    most = max(float(values[: len(audit.lags.fixed)].max()) for values in audit.responses.values())
    ax.set(xlabel="lag $m$", ylabel="response", ylim=(0, 2 * most if most > 0 else 1))
    ax.legend(frameon=False, labelcolor=figures.COLOURS["ink"])
    return figure


def _response_words(audit: Any) -> str:
    told = [
        f"{name}: {values[0]:.2g} at lag 0, {values[len(values) // 2 - 1]:.2g} at the longest lag trained on,"
        f" {values[-1]:.2g} at lag {len(values) - 1}"
        for name, values in audit.responses.items()
    ]
    return "Lines over lags. " + "; ".join(told) + "."
