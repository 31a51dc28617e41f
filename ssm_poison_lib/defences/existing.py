"""Detectors of other packages as baselines: ART, cleanlab, scikit-learn.

ART and cleanlab are packages of the checks (requirements.txt): only who asks for them needs them.
Each function returns which examples are clean, (n,) truth values in the order of the rows.

All but the isolation forest look for classes. For numbers as labels, `two_classes`,
`small_classifier` and `out_of_sample` make what they need.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn, optim

from ssm_poison_lib._checks import ArrayLike, as_array, as_instance, as_integer, as_scalar, as_seed
from ssm_poison_lib.architectures import S4D, SequenceModel
from ssm_poison_lib.defences import rules

__all__ = ["activation_clustering", "art_classifier", "isolation_forest", "label_issues",
           "out_of_sample", "roni", "small_classifier", "spectral_scores", "spectral_signatures",
           "two_classes"]  # fmt: skip

_STEPS = 60  # of the small classifier's training


def isolation_forest(
    x: ArrayLike, *, share: float | None = 0.1, seed: int = 0
) -> Bool[np.ndarray, " n"]:
    """Return which sequences scikit-learn's IsolationForest does not isolate.

    Args:
        x: (n, kappa) or (n, kappa, channels).
        share: in (0, 0.5], of the sequences to call unclean; None: those beyond the threshold of
            the forest's authors.
        seed: of the trees.
    """
    from sklearn.ensemble import IsolationForest

    rows = as_array("x", x, ndim=(2, 3)).reshape(len(np.asarray(x)), -1)
    if share is not None:
        share = as_scalar("share", share, low=0.0, high=0.5, strict=True)
    forest = IsolationForest(
        contamination="auto" if share is None else share,
        random_state=as_seed("seed", seed),
        n_jobs=1,
    )
    return np.asarray(forest.fit_predict(rows) == 1)


def label_issues(probabilities: ArrayLike, y: ArrayLike) -> Bool[np.ndarray, " n"]:
    """Return which examples cleanlab does not take for mislabelled.

    Args:
        probabilities: (n, classes), predicted out of sample (cross-validation), rows that sum to 1.
        y: (n,) class labels from 0. Clean-label poison has correct labels: nothing is to be
            expected.
    """
    from cleanlab.filter import find_label_issues

    predicted = as_array("probabilities", probabilities, ndim=2)
    labels = as_array("y", y, ndim=1, last=len(predicted)).astype(int)
    return ~np.asarray(find_label_issues(labels, predicted, n_jobs=1), dtype=bool)


def two_classes(y: ArrayLike) -> Int[np.ndarray, " n"] | None:
    """Return labels cut at their median, 0 and 1; None if one class has fewer than three rows.

    Args:
        y: (n,) numbers.
    """
    values = as_array("y", y, ndim=1)
    labels = (values > np.median(values)).astype(int)
    return labels if min(np.bincount(labels, minlength=2)) >= 3 else None


def small_classifier(x: ArrayLike, labels: ArrayLike, seed: int) -> SequenceModel:
    """Return a small S4D model trained on two classes, for ART's detectors to look into.

    Args:
        x: (n, kappa).
        labels: (n,) 0 or 1.
        seed: of weights and training.
    """
    rows = as_array("x", x, ndim=2)
    classes = as_array("labels", labels, ndim=1, last=len(rows)).astype(int)
    seed = as_seed("seed", seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SequenceModel(1, 2, lambda i: S4D(8, 4), channels=8)
        inputs = torch.tensor(rows[..., None], dtype=torch.float32)
        rules.fit(model, inputs, torch.tensor(classes), steps=_STEPS, batch=len(rows), seed=seed)
    return model


def out_of_sample(x: ArrayLike, labels: ArrayLike) -> Float[np.ndarray, "n classes"]:
    """Return probabilities for `label_issues`: of logistic regressions that did not see the row.

    Args:
        x: (n, kappa).
        labels: (n,) class labels from 0, each three times at least.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    rows = as_array("x", x, ndim=2)
    classes = as_array("labels", labels, ndim=1, last=len(rows)).astype(int)
    return np.asarray(
        cross_val_predict(LogisticRegression(), rows, classes, cv=3, method="predict_proba")
    )


@contextmanager
def _fixed_seed() -> Iterator[None]:
    """Seed what ART draws from, NumPy's global state, and leave it as it was."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


class _Features(nn.Module):
    """What a `SequenceModel` makes of sequences before its decoder."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, channels)."""
        kept: list[Tensor] = []
        hook = self.model.decoder.register_forward_pre_hook(
            lambda _module, inputs: kept.append(inputs[0])
        )
        try:
            self.model(x)
        finally:
            hook.remove()
        return kept[0]


def art_classifier(model: nn.Module, *, length: int, channels: int, classes: int) -> Any:
    """Return ART's PyTorchClassifier around a trained model of the library.

    Args:
        model: a `SequenceModel`; ART gets a copy. ART's detectors look at the last layer, its
            decoder: the scores of the classes.
        length: of the sequences.
        channels: of the sequences.
        classes: >= 2.
    """
    from art.estimators.classification import PyTorchClassifier

    model = deepcopy(as_instance("model", model, SequenceModel))
    decoder = deepcopy(
        model.decoder
    )  # ART finds a module by its name, and one that is in two places has only the first
    return PyTorchClassifier(
        model=nn.Sequential(_Features(model), decoder),
        loss=nn.CrossEntropyLoss(),
        optimizer=optim.Adam(model.parameters(), lr=1e-2),
        input_shape=(as_integer("length", length, low=1), as_integer("channels", channels, low=1)),
        nb_classes=as_integer("classes", classes, low=2),
        device_type="cpu",
    )


def activation_clustering(model: nn.Module, x: ArrayLike, y: ArrayLike) -> Bool[np.ndarray, " n"]:
    """Return which examples ART's ActivationDefence finds clean: two clusters of activations in
    each class.

    Args:
        model: a trained `SequenceModel`.
        x: (n, length, channels).
        y: (n,) class labels from 0.

    Source: Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation
    Clustering" (2018).
    """
    from art.defences.detector.poison import ActivationDefence

    rows, labels, classifier = _for_art(model, x, y)
    with _fixed_seed(), torch.random.fork_rng(devices=[]):
        _, clean = ActivationDefence(
            classifier, rows, np.eye(classifier.nb_classes)[labels]
        ).detect_poison()
    return np.asarray(clean, dtype=bool)


def spectral_signatures(
    model: nn.Module, x: ArrayLike, y: ArrayLike, *, share: float = 0.1
) -> Bool[np.ndarray, " n"]:
    """Return which examples ART's SpectralSignatureDefense keeps: those with a small score along a
    class's main direction.

    Args:
        model: a trained `SequenceModel`.
        x: (n, length, channels).
        y: (n,) class labels from 0.
        share: in (0, 0.5], the share of poison that is expected; one and a half times as many are
            called unclean.

    Source: Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks" (NeurIPS 2018).
    """
    from art.defences.detector.poison import SpectralSignatureDefense

    share = as_scalar("share", share, low=0.0, high=0.5, strict=True)
    rows, labels, classifier = _for_art(model, x, y)
    one_hot = np.eye(classifier.nb_classes)[labels]
    _, clean = SpectralSignatureDefense(
        classifier, rows, one_hot, expected_pp_poison=share
    ).detect_poison()
    return np.asarray(clean, dtype=bool)


def spectral_scores(model: nn.Module, x: ArrayLike, y: ArrayLike) -> Float[np.ndarray, " n"]:
    """Return the scores by which ART's SpectralSignatureDefense sorts: squared projections on the
    main direction of a class's activations, over their mean in that class.

    Args:
        model: a trained `SequenceModel`.
        x: (n, length, channels).
        y: (n,) class labels from 0.

    Returns:
        scores >= 0 with mean 1 in each class; 0 where all activations of a class are equal.

    Source: as `spectral_signatures`.
    """
    from art.defences.detector.poison import SpectralSignatureDefense

    rows, labels, classifier = _for_art(model, x, y)
    features = classifier.get_activations(rows, layer=len(classifier.layer_names) - 1)
    scores = np.zeros(len(rows))
    for k in np.unique(labels):
        found = SpectralSignatureDefense.spectral_signature_scores(features[labels == k])[:, 0]
        scores[labels == k] = found / found.mean() if found.any() else found
    return scores


def roni(
    x: ArrayLike, y: ArrayLike, trusted_x: ArrayLike, trusted_y: ArrayLike, *, eps: float = 0.1
) -> Bool[np.ndarray, " n"]:
    """Return which examples ART's RONIDefense does not reject for their negative impact on a
    logistic regression.

    It trains once for each example: for a few hundred at most. ART's takes rows of features, so the
    model is no recurrent one.

    Args:
        x: (n, length, channels).
        y: (n,) class labels from 0.
        trusted_x: examples that are known to be clean.
        trusted_y: examples that are known to be clean.
        eps: largest loss of accuracy that is accepted.

    Source: Nelson et al., "Exploiting Machine Learning to Subvert Your Spam Filter" (LEET 2008).
    """
    from art.defences.detector.poison import RONIDefense
    from art.estimators.classification import SklearnClassifier
    from sklearn.linear_model import LogisticRegression

    rows, known = (
        as_array(name, value, ndim=(2, 3)).reshape(len(np.asarray(value)), -1)
        for name, value in (("x", x), ("trusted_x", trusted_x))
    )
    labels, known_labels = (
        as_array(name, value, ndim=1).astype(int)
        for name, value in (("y", y), ("trusted_y", trusted_y))
    )
    classes = int(max(labels.max(), known_labels.max())) + 1
    for name, there in (("y", labels), ("trusted_y", known_labels)):
        if len(np.unique(there)) < classes:
            raise ValueError(f"{name} must hold every class from 0 to {classes - 1}")

    def accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
        return float(np.mean(true.argmax(axis=1) == predicted.argmax(axis=1)))

    with _fixed_seed():
        defence = RONIDefense(
            SklearnClassifier(LogisticRegression(max_iter=200)), rows, np.eye(classes)[labels],
            known, np.eye(classes)[known_labels], perf_func=accuracy, eps=eps, calibrated=False,
        )  # fmt: skip
        _, clean = defence.detect_poison()
    return np.asarray(clean, dtype=bool)


def _for_art(model: nn.Module, x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray, Any]:
    rows = as_array("x", x, ndim=3).astype(np.float32)
    labels = as_array("y", y, ndim=1, last=len(rows)).astype(int)
    classes = int(labels.max()) + 1
    classifier = art_classifier(
        model, length=rows.shape[1], channels=rows.shape[2], classes=classes
    )
    return rows, labels, classifier
