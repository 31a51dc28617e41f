"""Detectors of other packages, along the way, and of other layers, on the data of another study.

Data and seeds are those of `studies.defences`. What looks for classes gets two
(`defences.existing`), and
needs the packages of `pip install "ssm-poison-lib[detectors]"`.

S4D, LRU and Mamba-2 are one channel as in `studies.layers`: the teacher's response is 0.9^m and
everything is trained. The first input of the rows that show the longest lag alone takes turns at
the first three positions: one lag cannot tell a pole from its weight. Lag 0 is left to the skip.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ssm_poison_lib._checks import as_choice, as_seed
from ssm_poison_lib.architectures.channel import CHANNELS, default_start, near_zero_start
from ssm_poison_lib.architectures.flow import channel_flow
from ssm_poison_lib.defences import after, during, existing
from ssm_poison_lib.flow import FlowError, gradient_flow
from ssm_poison_lib.metrics import effective_rank
from ssm_poison_lib.sequences import TrainingSet
from ssm_poison_lib.ssm import DiagonalSSM, theorem_teacher
from ssm_poison_lib.studies import benchmark, layers
from ssm_poison_lib.studies.benchmark import _late, _long, _together
from ssm_poison_lib.studies.defences import _DIM, _LENGTH, _RESTARTS, HARMLESS, KINDS, SEEDS, _start
from ssm_poison_lib.studies.store import Job, Study

__all__ = [
    "DETECTORS",
    "LAYERS",
    "LAYER_DETECTORS",
    "LAYER_KINDS",
    "MIXTURES",
    "STUDY",
    "compute",
    "layer_runs",
    "path",
]

#: What a detector's score is: name -> words. Larger means more suspicious.
DETECTORS = {
    "common share along the way": "share of each step that moves all poles alike, mean",
    "sudden fits": "how much more suddenly than the median row the most sudden one is learnt",
    "isolation forest": "share of rows beyond its threshold",
    "activation clustering": "share of rows that it does not call clean",
    "spectral signatures": "the largest score of a row, over its class's mean",
    "RONI": "share of rows that it rejects",
    "cleanlab": "share of labels that it takes for wrong",
}
#: Those that a layer is measured with: the data alone are what they are, whatever is trained on.
LAYER_DETECTORS = (
    "common share at the start",
    "common share along the way",
    "sudden fits",
    "effective rank",
    "restarts disagree",
)
#: The layers.
LAYERS = ("S4D", "LRU", "Mamba-2")
#: (layer, start) -> lag and dose of the mixture that harms most in the search of `studies.layers`.
MIXTURES = {
    ("S4D", "near zero"): (2, 1e-4),
    ("LRU", "near zero"): (3, 1.0),
    ("Mamba-2", "near zero"): (2, 1e-4),
    ("S4D", "the layer's own"): (5, 1e-4),
    ("LRU", "the layer's own"): (3, 1e-4),
    ("Mamba-2", "the layer's own"): (5, 1.0),
}
#: Kinds of data for layers; the strongest order of that search is "special first".
LAYER_KINDS = ("strongest mixture", *KINDS)
_PARTS = 50  # of the way
_CHUNK = {"free": 10, "layer": 25}  # seeds of a job: layers go side by side
_TEACHER = DiagonalSSM([layers._POLE], [1.0], [1.0])
_SCALE = 1e-3  # of starts near zero
# The layers' own starts move at once, and then creep; a start near zero is left after 1e13.
_T_END = {"near zero": 1e20, "the layer's own": 1e9}
_RTOL, _MAX_STEPS = 1e-4, 20_000


def path(
    x: Float[np.ndarray, "n kappa"],
    phases: tuple[np.ndarray, ...],
    start: Float[np.ndarray, " d"],
    gaps: Float[np.ndarray, " gaps"],
) -> Float[np.ndarray, "points d"]:
    """Return a student's poles at 51 points of its way through phases of training, equally far from
    each other along it: flow time spends nearly all of itself at the start.

    Args:
        x: sequences; the teacher is the theorem's.
        phases: rows of each phase.
        start: poles, descending.
        gaps: their exact gaps.

    Raises:
        FlowError: if a phase cannot be followed.
    """
    teacher = theorem_teacher(_DIM)
    target = teacher.impulse_response(x.shape[1])
    way = [start[None]]
    for rows in phases:
        gram = TrainingSet(x[rows], teacher).gram()
        one_lag = bool(np.count_nonzero(np.diag(gram)) == 1)
        end = benchmark._T_END["free"][one_lag]
        run = gradient_flow(
            start, (gram, target), t_end=end, gaps=gaps, rtol=1e-8, max_steps=20_000,
            loss_tol=1e-16, stop_at_loss=True,
        )  # fmt: skip
        start = run.A[-1]
        gaps = -np.diff(start)  # by now large enough to be found by subtraction
        way.append(run.A)
    points = np.concatenate(way)
    return _cut(points, points)


def _cut(
    points: Float[np.ndarray, "steps d"], values: Float[np.ndarray, "steps k"]
) -> Float[np.ndarray, "parts k"]:
    """Return values at points equally far from each other along a way."""
    far = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1)))
    at = np.linspace(0.0, far[-1], _PARTS + 1)
    return np.stack([np.interp(at, far, column) for column in values.T], axis=1)


def _layer_data(
    model: str, start: str, kind: str, seed: int
) -> tuple[Float[np.ndarray, "n kappa"], tuple[np.ndarray, ...]]:
    """Return sequences and the rows of each phase."""
    rng = np.random.default_rng([seed, 1])
    if kind == "strongest mixture":
        lag, dose = MIXTURES[model, start]
        size = np.sqrt(dose * 8 / 3)  # eight rows share the three longest lags
        x, _, phases = _together(_long(_LENGTH, rng), _late(_LENGTH, rng, lag=lag, size=size), rng)
    else:
        x, _, phases = KINDS[kind](_LENGTH, rng)
    if kind not in HARMLESS or kind == "longest lag":
        rows = np.arange(len(x))
        x = x.copy()
        x[rows, 0], x[rows, rows % 3] = x[rows, rows % 3], x[rows, 0].copy()
    return x, phases


def layer_runs(*, model: str, start: str, kind: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Return errors and scores of a layer, trained on one kind of data from four starts a seed.

    Along the way the poles' sizes are looked at, and at the start the gradient of the parameter
    that makes them, as `defences.during.model_common_share` does. The effective rank is that of
    abs(w_j a_j), each pole's part of the response at lag 1.

    Args:
        model: a name in LAYERS.
        start: a name in `studies.layers.STARTS`.
        kind: a name in LAYER_KINDS.
        seeds: of the data; the starts have others.

    Returns:
        "error" (n,), the largest over lags 1 .. 19, and "scores" (detector -> (n,)).

    Raises:
        FlowError: if a flow fails.
    """
    as_choice("model", model, LAYERS)
    as_choice("start", start, layers.STARTS)
    as_choice("kind", kind, LAYER_KINDS)
    channel, n = CHANNELS[model], len(seeds)
    size_row = next(channel.rows.index(r) for r in channel.rows if r in during._POLE_PARAMETERS)
    data = [_layer_data(model, start, kind, as_seed("seeds", seed)) for seed in seeds]
    target = layers._POLE ** np.arange(1, _LENGTH)

    def begun(seed: int) -> np.ndarray:
        if start == "near zero":
            return near_zero_start(model, _DIM, _SCALE, seed=seed)
        return default_start(model, _DIM, seed=seed)

    # all first starts, then all second ones, ...
    p = np.array([begun(seed + 1000 * (k + 1)) for k in range(_RESTARTS) for seed in seeds])
    ways: list[list[np.ndarray]] = [[q] for q in p[:n]]

    def watch(parameters: np.ndarray, rows: np.ndarray) -> None:
        for q, row in zip(parameters[rows < n], rows[rows < n], strict=True):
            ways[row].append(q)

    for k in range(len(data[0][1])):
        gram = np.array([TrainingSet(x[phases[k]], _TEACHER).gram()[1:, 1:] for x, phases in data])
        p = channel_flow(
            channel, p, np.tile(gram, (_RESTARTS, 1, 1)), target, poles_only=False,
            t_end=_T_END[start], rtol=_RTOL, max_steps=_MAX_STEPS, watch=watch,
        ).parameters  # fmt: skip
    scores: dict[str, list[float]] = {name: [] for name in LAYER_DETECTORS}
    M = channel.response(p, 4 * _LENGTH).reshape(_RESTARTS, n, -1)
    for i, (x, _) in enumerate(data):
        way = np.array(ways[i])
        sizes = np.abs(channel.poles_and_weights(way)[0])
        cut = _cut(sizes, np.concatenate([sizes, channel.response(way, _LENGTH)], axis=1))
        off = (cut[:, _DIM + 1 :] - target) @ x[:, -2::-1].T
        sudden = during.sudden_fits(off**2)
        poles, weights = channel.poles_and_weights(p[i])
        first = way[1, size_row] - way[0, size_row]
        found = (
            during.common_share(first),
            during.common_share(np.diff(cut[:, :_DIM], axis=0)).mean(),
            sudden.max() - np.median(sudden),
            effective_rank(np.abs(weights * poles)),
            after.restart_disagreement(M[:, i, _LENGTH:]).relative,
        )
        for name, score in zip(LAYER_DETECTORS, found, strict=True):
            scores[name].append(float(score))
    lags = np.arange(1, layers._ERROR_LAGS)
    error = np.abs(M[0, :, lags] - layers._POLE ** lags[:, None]).max(axis=0)
    return {"error": error.tolist(), "scores": scores}


def _free(kind: str, seed: int) -> dict[str, float | None]:
    """Return the scores for the book's model, one kind of data and one seed."""
    make, seed = KINDS[as_choice("kind", kind, KINDS)], as_seed("seeds", seed)
    x, _, phases = make(_LENGTH, np.random.default_rng([seed, 1]))
    data = TrainingSet(x, theorem_teacher(_DIM))
    scores: dict[str, float | None] = dict.fromkeys(DETECTORS)
    try:
        way = path(data.x, phases, *_start(True, seed + 1000))
        responses = (way[:, None] ** np.arange(_LENGTH)[:, None]).sum(axis=2)
        off = responses @ data.x[:, ::-1].T - data.y
        sudden = during.sudden_fits(off**2)
        scores["common share along the way"] = float(
            during.common_share(np.diff(way, axis=0)).mean()
        )
        scores["sudden fits"] = float(sudden.max() - np.median(sudden))
    except FlowError:
        pass
    forest = existing.isolation_forest(data.x, share=None, seed=seed)
    scores["isolation forest"] = float(np.mean(~forest))
    labels = existing.two_classes(data.y)
    known_x, harmful, _ = make(_LENGTH, np.random.default_rng([seed, 4]))
    known = TrainingSet(known_x[~harmful], theorem_teacher(_DIM))
    known_labels = existing.two_classes(known.y)
    if labels is None or known_labels is None:
        return scores
    inputs, model = data.x[..., None], existing.small_classifier(data.x, labels, seed)
    clusters = existing.activation_clustering(model, inputs, labels)
    issues = existing.label_issues(existing.out_of_sample(data.x, labels), labels)
    kept = existing.roni(inputs, labels, known.x[..., None], known_labels)
    scores |= {
        "activation clustering": float(np.mean(~clusters)),
        "spectral signatures": float(existing.spectral_scores(model, inputs, labels).max()),
        "RONI": float(np.mean(~kept)),
        "cleanlab": float(np.mean(~issues)),
    }
    return scores


def compute(*, model: str, start: str, kind: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Return the scores for one model, one kind of data and some seeds.

    Args:
        model: "free", the book's model, or a name in LAYERS.
        start: for "free" "near tie", as in `studies.defences`; else a name in
            `studies.layers.STARTS`.
        kind: a name in `studies.defences.KINDS`; for layers in LAYER_KINDS.
        seeds: of the data.

    Returns:
        "scores" (detector -> (n,); None where training could not be followed, or a class has fewer
        than three rows) and for layers "error" (n,).
    """
    if as_choice("model", model, ("free", *LAYERS)) != "free":
        found = layer_runs(model=model, start=start, kind=kind, seeds=seeds)
        return {
            "error": [_short(value) for value in found["error"]],
            "scores": {k: [_short(value) for value in v] for k, v in found["scores"].items()},
        }
    as_choice("start", start, ("near tie",))
    runs = [_free(kind, seed) for seed in seeds]
    return {"scores": {name: [_short(run[name]) for run in runs] for name in DETECTORS}}


def _short(score: float | None) -> float | None:
    """Four digits, and no rounding errors for zero."""
    return None if score is None else float(f"{score:.4g}") if abs(score) > 1e-12 else 0.0


def _collect(study: Study, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a row for each model, start and kind, with a list over seeds of each number."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for job, result in zip(study.jobs, results, strict=True):
        model, start, kind = (job.arguments[name] for name in ("model", "start", "kind"))
        row = rows.setdefault(
            (model, start, kind),
            {"model": model, "start": start, "kind": kind, "seeds": [], "error": [], "scores": {}},
        )
        row["seeds"] += job.arguments["seeds"]
        row["error"] += result.get("error", [])
        for name, values in result["scores"].items():
            row["scores"].setdefault(name, []).extend(values)
    return {"runs": list(rows.values())}


def _jobs(model: str, start: str, kinds: Iterable[str]) -> Iterator[Job]:
    """Give the jobs of a model and a start: the seeds of each kind, some at a time."""
    size = _CHUNK["free" if model == "free" else "layer"]
    for k in range(0, len(SEEDS), size):
        for kind in kinds:
            yield Job(
                f"{model}/{start}/{kind}/{SEEDS[k]}",
                {"model": model, "start": start, "kind": kind, "seeds": list(SEEDS[k : k + size])},
            )


#: The study.
STUDY = Study(
    name="detectors",
    function=compute,
    jobs=(
        *_jobs("free", "near tie", KINDS),
        *(
            job
            for model in LAYERS
            for start in layers.STARTS
            for job in _jobs(model, start, LAYER_KINDS)
        ),
    ),
    collect=_collect,
    scheduler="processes",  # training and ART draw from the process's random numbers
)
