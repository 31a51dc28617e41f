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

__all__ = ["BLIND", "advice", "as_html", "as_json", "named", "runs", "targets"]

#: What an audit cannot see, as the report says it.
BLIND = (
    "Poison spread over all lags, or hidden in sequences that show everything else as well.",
    "Special sequences where the lags that nothing shows are so few that chance leaves as many: one or two.",
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
td.number{text-align:right;font-variant-numeric:tabular-nums}li,dd{overflow-wrap:anywhere}p,td{overflow-wrap:break-word}
dt{font-weight:600;margin-top:.6rem}dd{margin:0}
@media print{:root{color-scheme:light;--back:#fff;--ink:#000;--quiet:#444;--line:#999;--link:#004;--box:#eee}
figure,tr,dt{break-inside:avoid}h2,dt{break-after:avoid}}
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
    "contains special sequences": "Look at the sequences named here. Train without them, or with several starts and orders.",
    "underdetermined": "Add sequences that show the open lags, or compare restarts of your model on inputs that do.",
    "undecided": "Too little was seen to say that there is no risk.",
    "no evidence of risk": "Nothing to change in the data.",
}

#: Words of the report, as its last section explains them.
_WORDS = {
    "Lag": "how many steps before the end of a sequence; lag 0 is its last step.",
    "Response, impulse response": "what a model answers to a single 1, by the number of steps since: a linear model is its response.",
    "Decided, fixed, open": "a lag is decided if all linear models that fit all labels have the same response there; else it is open.",
    "Implicit bias": "what training prefers where the data leave several answers.",
    "Small student": "a linear state space model that the audit trains on these data. It stands for simple models, not for yours:"
    " --model tries yours.",
    "Restarts": "the same training from other random numbers. Differences are relative: 0 for models that agree, 1.4 for models that"
    " have nothing in common.",
    "Energy": "the sum of squares of a sequence's numbers.",
    "Special sequence": "one with nearly all energy in its last steps, where the others have none. Its label may be correct and it may"
    " lead training astray all the same.",
    "Leverage": "from 0 to 1; 1 for a sequence that alone shows some combination of lags.",
    "Mean lag": "where in a sequence its energy is, on average.",
    "Rank, excitation": "how many combinations of lags (and channels) the data show, and how strongly the weakest of them.",
}


def advice(audit: Any) -> str:
    """Return what to do next, in words."""
    told = [_ADVICE[audit.verdict]]
    still_open = audit.lags.fixed < 0.9
    if not audit.status and still_open.any():
        told.append(
            f"{int(still_open.sum())} of {len(still_open)} lags are open ({runs(still_open)}), too few for a finding: the data do not"
            " say what a model answers there."
        )
    if not audit.outputs:
        told.append("Without labels only the inputs were looked at: name them with --label.")
    elif not audit.student["trained"]:
        told.append("Labels that are all the same teach nothing: give those that differ.")
    elif audit.model is None:
        if not audit.student["fits"] and audit.verdict != "undecided":
            told.append(
                "The small student does not fit these labels, so only the inputs were looked at."
            )
        told.append("Try your own model on them: --model module:factory.")
    return " ".join(told)


def as_json(audit: Any) -> dict[str, Any]:
    """Return everything as numbers, text, lists and mappings."""
    plain = {
        "schema": 1,
        "verdict": audit.verdict,
        "status": audit.status,
        "findings": [
            {"verdict": f.verdict, "text": f.text, "rows": list(f.rows), "where": list(map(audit.where, f.rows)), "count": f.count}
            for f in audit.findings
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
            "python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__,
            **({} if audit.model is None else {"torch": version("torch")}),
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
        f" {audit.channels} {'channel' if audit.channels == 1 else 'channels'}, {targets(audit)}.</p>",
        f'<div class="verdict"><p><strong>{_text(_upper(audit.verdict))}.</strong> {_text(advice(audit))}</p></div>',
        '<p class="quiet">Words such as lag, restart and small student are explained <a href="#words">at the end</a>.</p>',
        "<h2>What was found</h2>",
        _list(_finding(audit, f, book) for f in audit.findings)
        or f"<p>Nothing that speaks of risk. That is not a proof of safety. {_link(audit.verdict, book)}</p>",
        "<h2>What the verdict rests on</h2>",
        _list(map(_text, audit.basis)),
        "<h2>Which lags the data fix</h2>",
        _figure(_lag_figure(audit), _lag_words(audit), "Lag 0 is the last step. Blue: how far the data decide the response"
                " at this lag, 1 entirely. Line: the energy there, relative to the largest."),
    ]  # fmt: skip
    body += ["<h2>Which sequences stand out</h2>", _rows(audit)]
    body += ["<h2>What the small student learns</h2>"]
    if audit.responses:
        body += [
            _figure(_response_figure(audit), _response_words(audit), "Impulse responses by lags, median of the restarts, root"
                    " mean square over channels and outputs. Lines apart: the order, or what is left out, changes what is"
                    " learnt. " + ("Right of the dotted line: lags beyond the training length."
                    if _last_lag(audit) >= len(audit.lags.fixed) else "Farther right all are below 1 percent of the largest.")),
        ]  # fmt: skip
    else:
        body += ["<p>No student was trained: there are no labels, or all are the same.</p>"]
    if audit.model is not None:
        body += [f"<h2>What {_text(audit.model.name)} learns</h2>", _model(audit)]
    body += ["<h2>What the theory says</h2>", _list(map(_text, audit.theory))]
    body += ["<h2>What this cannot see</h2>", _list(map(_text, BLIND))]
    words = "".join(
        f"<dt>{_text(word)}</dt><dd>{_text(_upper(said))}</dd>" for word, said in _WORDS.items()
    )
    body += [f'<h2 id="words">Words used here</h2><dl>{words}</dl>', "</main>"]
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


def targets(audit: Any) -> str:
    """Return what the labels are, in words."""
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
        return f"More: chapter “{_text(title)}” of the book."
    return f'More: chapter <a href="{html.escape(book.rstrip("/"))}/{page}">{_text(title)}</a>.'


def named(audit: Any, found: Any) -> str:
    """Return which sequences a finding is about, empty if it is about all."""
    if not found.rows:
        return ""
    shown = ", ".join(map(audit.where, found.rows))
    more = found.count - len(found.rows)
    return f"{audit.unit}{'s' * (found.count > 1)} {shown}" + (
        f" and {more:,} more" if more else ""
    )


def _finding(audit: Any, found: Any, book: str) -> str:
    rows = named(audit, found)
    return (
        f"<strong>{_text(_upper(found.verdict))}</strong>: {_text(found.text)}."
        f"{f' {_text(_upper(rows))}.' if rows else ''} {_link(found.verdict, book)}"
    )


def _rows(audit: Any) -> str:
    if not audit.standing_out:
        return "<p>None.</p>"
    lines = "".join(
        f"<tr><td>{_text(audit.where(r['row']))}</td><td>{_text(r['reason'])}</td>"
        f'<td class="number">{r["leverage"]:.2f}</td><td class="number">{r["mean lag"]:.1f}</td></tr>'
        for r in audit.standing_out
    )
    unit = _text(_upper(audit.unit))
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Sequences that stand out"><table><thead><tr>'
        f'<th scope="col">{unit}</th><th scope="col">Why</th><th scope="col">Leverage</th><th scope="col">Mean lag</th></tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
        + (
            '<p class="quiet">Rows count from 0, without the line of names.</p>'
            if audit.unit == "row"
            else ""
        )
    )


def _model(audit: Any) -> str:
    m = audit.model
    assert m is not None

    def beside_restarts(difference: float) -> str:
        more = "more" if difference > 2 * m.restarts_differ else "less"
        return f"{difference:.2f}" + (
            f", {more} than twice what restarts differ by anyway" if m.fits else ""
        )

    told = [
        f"Trained three times on {m.sample:,} sequences, {m.steps} steps each: {'accuracy' if audit.classes else 'R2'}"
        f" {m.score:.2f} on them.",
        *(
            ()
            if m.fits
            else ("It does not fit yet, so what follows says little: ask for more --steps.",)
        ),
        f"Restarts: the answers differ by {m.restarts_differ:.2f} on training sequences and by {m.restarts_differ_beyond:.2f} on"
        " sequences twice as long (0 agreement, 1.4 nothing in common).",
        f"Order: trained in phases instead of shuffled, the answers differ by {beside_restarts(m.ordered)}.",
    ]
    if m.without_them is not None:
        told.append(
            f"Without the sequences that stand out the answers differ by {beside_restarts(m.without_them)}."
        )
    return _list(map(_text, told))


def _figure(figure: Figure, words: str, caption: str) -> str:
    svg = figures.to_svg(figure)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{_text(words)}"', 1)
    return f"<figure>{svg}<figcaption>{_text(caption)}</figcaption></figure>"


def _lag_figure(audit: Any) -> Figure:
    fixed, energy = audit.lags.fixed, audit.lags.energy
    lags = np.arange(len(fixed))
    figure, (ax,) = figures.new(1, height=2.6, width=_WIDTH)
    blue, few = figures.COLOURS["baseline"], len(lags) < 60
    if few:
        ax.bar(lags, fixed, width=0.7, color=blue, label="decided")
    else:
        ax.fill_between(lags, 0, fixed, step="mid", color=blue, alpha=0.5, lw=0, label="decided")
    relative = energy / energy.max()
    ax.plot(
        lags, relative, ".-" if few else "-", color=figures.COLOURS["with special"], label="energy"
    )
    ax.set(xlabel="lag", ylim=(0, 1.05))
    ax.legend(
        frameon=False,
        labelcolor=figures.COLOURS["ink"],
        ncols=2,
        loc="lower right",
        bbox_to_anchor=(1, 1),
    )
    return figure


def _lag_words(audit: Any) -> str:
    fixed = audit.lags.fixed >= 0.9
    largest = int(audit.lags.energy.argmax())
    return (
        f"Bars over lags 0 to {len(fixed) - 1}: {int(fixed.sum())} of {len(fixed)} are decided by the data"
        + (f", the open ones {runs(~fixed)}" if not fixed.all() else "")
        + f". Most energy is at lag {largest}."
    )


def runs(which: np.ndarray) -> str:
    """Return runs of True in words, the first few."""
    at = np.flatnonzero(which)
    runs = np.split(at, np.flatnonzero(np.diff(at) > 1) + 1)
    told = [f"{r[0]} to {r[-1]}" if len(r) > 1 else str(r[0]) for r in runs[:5]]
    return ", ".join(told) + (f" and {len(runs) - 5} more runs" if len(runs) > 5 else "")


_WIDTH = 4.6  # inches of a figure: its letters stay legible on a phone
_LINES = {
    "all together": ("baseline", "-"),
    "without them": ("third", "--"),
    "in the given order": ("with special", "-."),
    "short lags first": ("with special", "-."),
}


def _last_lag(audit: Any) -> int:
    """Return the last lag that is drawn: that of all, or where all fade away before the dotted line."""
    values, trained = np.array(list(audit.responses.values())), len(audit.lags.fixed)
    seen = np.flatnonzero((values > 0.01 * values[:, :trained].max()).any(axis=0))
    last = max(20, 2 * int(seen.max(initial=0)))
    return last if last < trained else values.shape[1] - 1


def _response_figure(audit: Any) -> Figure:
    figure, (ax,) = figures.new(1, height=2.8, width=_WIDTH)
    last = _last_lag(audit)
    for name, values in audit.responses.items():
        colour, style = _LINES[name]
        ax.plot(values[: last + 1], style, color=figures.COLOURS[colour], label=name)
    trained = len(audit.lags.fixed)
    if last >= trained:
        ax.axvline(trained - 0.5, color=figures.COLOURS["muted"], ls=":", lw=1)
    most = max(float(values[:trained].max()) for values in audit.responses.values())
    ax.set(xlabel="lag", ylabel="response", ylim=(0, 2 * most if most > 0 else 1))
    ax.legend(frameon=False, labelcolor=figures.COLOURS["ink"])
    return figure


def _response_words(audit: Any) -> str:
    told = [
        f"{name}: {values[0]:.2g} at lag 0, {values[len(values) // 2 - 1]:.2g} at the longest lag trained on,"
        f" {values[-1]:.2g} at lag {len(values) - 1}"
        for name, values in audit.responses.items()
    ]
    return "Lines over lags. " + "; ".join(told) + "."
