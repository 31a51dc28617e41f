"""Detectors of other packages, and what is seen along the way, on the data of `studies.defences`.

ART's activation clustering, spectral signatures and RONI and cleanlab look for classes: the labels
are cut at their median, and a small S4D model is trained on the two classes. Needs the packages of
`pip install "ssm-poison-lib[detectors]"`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ssm_poison_lib._checks import as_choice, as_seed
from ssm_poison_lib.architectures import S4D, SequenceModel
from ssm_poison_lib.defences import during, existing, rules
from ssm_poison_lib.flow import FlowError, gradient_flow
from ssm_poison_lib.sequences import TrainingSet
from ssm_poison_lib.ssm import theorem_teacher
from ssm_poison_lib.studies import benchmark
from ssm_poison_lib.studies.defences import _DIM, _LENGTH, KINDS, _start
from ssm_poison_lib.studies.store import Job, Study

__all__ = ["DETECTORS", "SEEDS", "STUDY", "compute", "path"]

#: Seeds of the stored runs, the first of those of `studies.defences`.
SEEDS = tuple(range(100, 110))
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
_PARTS = 50  # of the way
_STEPS = 60  # of training


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
    target = theorem_teacher(_DIM).impulse_response(x.shape[1])
    way = [start[None]]
    for rows in phases:
        lagged = x[rows][:, ::-1]
        gram = 2 / len(lagged) * lagged.T @ lagged
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
    far = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1)))
    at = np.linspace(0.0, far[-1], _PARTS + 1)
    return np.stack([np.interp(at, far, pole) for pole in points.T], axis=1)


def _classified(x: np.ndarray, labels: np.ndarray, seed: int) -> SequenceModel:
    """Return a small S4D model trained on two classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SequenceModel(1, 2, lambda i: S4D(8, 4), channels=8)
        inputs = torch.tensor(x[..., None], dtype=torch.float32)
        rules.fit(model, inputs, torch.tensor(labels), steps=_STEPS, batch=len(x), seed=seed)
    return model


def compute(*, kind: str, seed: int) -> dict[str, Any]:
    """Return the scores for one kind of data and one seed, from a start with a near tie.

    Args:
        kind: a name in `studies.defences.KINDS`.
        seed: of the data, as there.

    Returns:
        "scores" (detector -> score; None where training could not be followed, or a class has fewer
        than three rows).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    make, seed = KINDS[as_choice("kind", kind, KINDS)], as_seed("seed", seed)
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
    labels = (data.y > np.median(data.y)).astype(int)
    known_x, harmful, _ = make(_LENGTH, np.random.default_rng([seed, 4]))
    known = TrainingSet(known_x[~harmful], theorem_teacher(_DIM))
    known_labels = (known.y > np.median(known.y)).astype(int)
    if min(*np.bincount(labels, minlength=2), *np.bincount(known_labels, minlength=2)) < 3:
        return {"scores": _short(scores)}
    inputs, model = data.x[..., None], _classified(data.x, labels, seed)
    clusters = existing.activation_clustering(model, inputs, labels)
    probabilities = cross_val_predict(
        LogisticRegression(), data.x, labels, cv=3, method="predict_proba"
    )
    kept = existing.roni(inputs, labels, known.x[..., None], known_labels)
    scores |= {
        "activation clustering": float(np.mean(~clusters)),
        "spectral signatures": float(existing.spectral_scores(model, inputs, labels).max()),
        "RONI": float(np.mean(~kept)),
        "cleanlab": float(np.mean(~existing.label_issues(probabilities, labels))),
    }
    return {"scores": _short(scores)}


def _short(scores: dict[str, float | None]) -> dict[str, float | None]:
    """Four digits, and no rounding errors for zero."""
    return {
        name: None if s is None else float(f"{s:.4g}") if abs(s) > 1e-12 else 0.0
        for name, s in scores.items()
    }


#: The study.
STUDY = Study(
    name="detectors",
    function=compute,
    jobs=tuple(
        Job(f"{kind}/{seed}", {"kind": kind, "seed": seed}) for seed in SEEDS for kind in KINDS
    ),
    scheduler="processes",  # training and ART draw from the process's random numbers
)
