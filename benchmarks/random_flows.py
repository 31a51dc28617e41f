"""Random gradient flows of every setting, and their final errors by two references: the single-run
solver, the closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssm_poison_lib import flow, sequences, ssm
from ssm_poison_lib.flows import Trajectory, many_flows

KINDS = ("baseline", "theorem", "teacher", "weights")
LAGS = 20


@dataclass(frozen=True)
class Case:
    kind: str
    A0: np.ndarray
    w: np.ndarray
    training_set: sequences.TrainingSet
    t_end: float


def random_case(kind: str, seed: int) -> Case:
    """Half of the cases have a near tie of 1e-8 of the scale, a third a negative entry.

    baseline, theorem: d = 2..12, kappa = 5, 7, 9, scale 1e-3..1e-1, dose beta/alpha 1e-6..1e6.
    teacher: Gaussian inputs of any size and support, kappa = 3..10, teachers of dimension 1..4.
    weights: the same with random fixed weights b_j c_j.
    """
    rng = np.random.default_rng([KINDS.index(kind), seed])
    d = int(rng.integers(2, 13))
    w = np.ones(d)
    scale = 10 ** rng.uniform(-3, -1)
    A0 = -np.sort(-rng.random(d)) * scale
    if kind in ("baseline", "theorem"):
        length = int(rng.choice([5, 7, 9]))
        x = sequences.baseline_sequences(length)
        t_end = 10 ** rng.uniform(2, 4) * scale ** -(length - 3.0)
        if kind == "theorem":
            dose = 10 ** rng.uniform(-6, 6)
            x = np.concatenate([x, sequences.special_sequences(length, np.sqrt(dose))])
            t_end = max(t_end, 1e4 / min(dose, 1.0))
        teacher = ssm.theorem_teacher(d)
    else:
        length = int(rng.integers(3, 11))
        x = rng.normal(size=(int(rng.integers(1, length + 3)), length))
        if rng.random() < 0.5:
            x[:, int(rng.integers(1, length)) :] = 0.0
        teacher = ssm.teacher(f"dim={rng.integers(1, 5)}")
        t_end = 10 ** rng.uniform(0, 6)
        if kind == "weights":
            w = rng.normal(size=d)
    if rng.random() < 0.5:
        A0[1] = A0[0] - 1e-8 * scale
        if kind == "weights" and rng.random() < 0.5:
            w[1] = w[0]
    if rng.random() < 0.33:
        A0[-1] = -A0[-1]
    return Case(kind, A0, w, sequences.TrainingSet(x, teacher), t_end)


def run(case: Case, **options: object) -> Trajectory:
    data = case.training_set
    target = data.teacher.impulse_response(data.length)
    return many_flows(case.A0, (data.gram(), target), w=case.w, t_end=case.t_end, **options)


def final_errors(case: Case, batch: Trajectory, *, rtol: float = 1e-12) -> tuple[float, float]:
    """Return Gen_20 (lag 0, which A cannot change, left out) of a batch of one run, and of the
    reference.
    """
    start = ssm.DiagonalSSM(case.A0, case.w, np.ones(len(case.A0)))
    reference = flow.gradient_flow(start, case.training_set, t_end=case.t_end, rtol=rtol)
    target = case.training_set.teacher.impulse_response(LAGS)
    error = np.abs(reference.student().impulse_response(LAGS) - target)[1:].max()
    return float(batch.generalization_errors(target, first_lag=1)[0]), float(error)


def exact_error(case: Case) -> float:
    """Return Gen_20 of the limit of a "baseline" case by its closed form, lag 0 left out.

    kappa is odd in these cases, so entries keep their signs and their magnitudes follow the closed
    form of positive starts (proposition "If the largest magnitude is negative" of chapter
    "Proofs"). No integration, so no error of one.
    """
    if case.kind != "baseline":
        raise ValueError(
            f"case must be of kind 'baseline', which alone has a closed form; got {case.kind!r}"
        )
    limit = np.sign(case.A0) * flow.baseline_limit(np.abs(case.A0), case.training_set.length)
    return float(max(abs((limit**k).sum() - 1.0) for k in range(1, LAGS)))
