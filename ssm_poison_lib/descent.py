"""Gradient descent and Adam for A, B, C and an MLP's weights: single runs, and many at once."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from ssm_poison_lib._checks import (
    MAX_COUNT,
    as_choice,
    as_flag,
    as_instance,
    as_integer,
    as_path,
    as_scalar,
    as_workers,
    contiguous,
)
from ssm_poison_lib._files import replacing
from ssm_poison_lib.networks import Network, as_network
from ssm_poison_lib.sequences import Teacher, TrainingSet
from ssm_poison_lib.ssm import DiagonalSSM

__all__ = ["Descent", "DescentError", "Log", "Rule", "train_many"]

# A chunk of epochs between two looks at a stop request; a few hundredths of a second.
_CHUNK = 5_000
# Rows of the compiled loops are padded to this many numbers, so that they fill vector registers.
_BLOCK = 8
# Of saved runs: to be counted up when what they hold changes.
_VERSION = 2


class DescentError(RuntimeError):
    """Training left the finite numbers, or a saved run is damaged or does not belong to this start,
    data and rule.
    """


@dataclass(frozen=True)
class Rule:
    """How to train. The defaults are plain full-batch gradient descent; every quirk of the authors
    is an option.

    The authors' options:

    Attributes:
        learning_rate: the step size (its base where `normalized`).
        max_epochs: training ends here at the latest (at most 10^9).
        optimizer: "gradient descent" or "adam" (beta 0.9 and 0.999, epsilon 1e-7 added to the
            uncorrected root of the second moment, as in Keras).
        train: "ABC" (and the MLP), or "A" alone, the rest fixed.
        precision: "float64", or "float32" with sums (and the labels) as in the authors' program.
        normalized: the step in epoch t is learning_rate / (sqrt(m_t / (1 - 0.8^t)) + 1e-6), m_t =
            0.8 m_{t-1} + 0.2 g_t, where g_t is the sum of the norms of the gradients, one norm per
            weight array.
        off_diagonal: in g_t, count the gradient of the full d x d matrix A, whose off-diagonal part
            moves nothing.
        reset_BC: set B and C to ones after every epoch (the first step still sees them as they
            start).
        stop_loss: note the first epoch after whose update (and before a reset) the loss is <= this;
            None to never stop.
        epochs_after_stop: how much longer to train then.

    Source: the authors' public code, as described in chapter "Every number of the paper beside
    ours".
    """

    learning_rate: float
    max_epochs: int
    optimizer: str = "gradient descent"
    train: str = "ABC"
    precision: str = "float64"
    normalized: bool = False
    off_diagonal: bool = False
    reset_BC: bool = False
    stop_loss: float | None = None
    epochs_after_stop: int = 0

    def __post_init__(self) -> None:
        """Refuse values and combinations that mean nothing; keep Python's numbers, which JSON can
        hold.
        """
        kept: dict[str, object] = {
            "learning_rate": as_scalar("learning_rate", self.learning_rate, low=0.0, strict=True),
            "max_epochs": as_integer("max_epochs", self.max_epochs, low=1, high=MAX_COUNT),
            "optimizer": str(as_choice("optimizer", self.optimizer, ("gradient descent", "adam"))),
            "train": str(as_choice("train", self.train, ("A", "ABC"))),
            "precision": str(as_choice("precision", self.precision, ("float32", "float64"))),
            "epochs_after_stop": as_integer(
                "epochs_after_stop", self.epochs_after_stop, low=0, high=MAX_COUNT
            ),
        }
        for flag in ("normalized", "off_diagonal", "reset_BC"):
            kept[flag] = as_flag(flag, getattr(self, flag))
        if self.stop_loss is not None:
            kept["stop_loss"] = as_scalar("stop_loss", self.stop_loss, low=0.0)
        for name, value in kept.items():
            object.__setattr__(self, name, value)
        if self.off_diagonal and not self.normalized:
            raise ValueError(
                "off_diagonal must be False unless normalized=True, which it belongs to; got True"
            )
        if self.epochs_after_stop and self.stop_loss is None:
            raise ValueError(
                f"epochs_after_stop must be 0 without stop_loss; got {self.epochs_after_stop}"
            )


@dataclass(frozen=True, eq=False)
class Log:
    """The weights at the epochs that were asked for. Everything else can be computed from them
    (`network`).

    Attributes:
        epochs: (L,) number of updates done
        loss: (L,) training loss
        weights: (L, P) all weights of all logged epochs
        d: state dimension
        width: of the MLP's layers, 0 without one.
    """

    epochs: Int[np.ndarray, " L"]
    loss: Float[np.ndarray, " L"]
    weights: Float[np.ndarray, "L P"]
    d: int
    width: int

    @property
    def A(self) -> Float[np.ndarray, "L d"]:
        """The diagonal of A at each logged epoch."""
        return self.weights[:, : self.d]

    def network(self, row: int) -> Network:
        """Return all weights at one logged epoch.

        Args:
            row: index into epochs; negative ones count from the end
        """
        return unflatten(self.weights[row], self.d, self.width)


def unflatten(weights: Float[np.ndarray, " P"], d: int, width: int) -> Network:
    """Return the Network of a flat array A, B, C, first, hidden, last without padding."""
    A, B, C = weights[: 3 * d].reshape(3, d)
    rest = weights[3 * d :]
    layers: tuple[np.ndarray, ...] = ()
    if width:
        layers = (rest[None, :width], rest[width:-width].reshape(width, width), rest[-width:, None])
    return Network(DiagonalSSM(A, B, C), layers)


def _width(network: Network) -> int:
    """Return the width of the MLP's layers, 0 without one."""
    return network.mlp[0].shape[1] if network.mlp else 0


def _padded(d: int, width: int) -> tuple[int, int]:
    """Return d and width as the compiled loop by sequence wants them: whole vector registers."""
    return -(-d // _BLOCK) * _BLOCK, -(-width // _BLOCK) * _BLOCK


def _positions(d: int, width: int, wide_d: int, wide: int) -> Int[np.ndarray, " P"]:
    """Return where each weight sits in an array that is padded to wide_d and wide."""
    rows = np.arange(d)
    parts = [rows, wide_d + rows, 2 * wide_d + rows]
    if width:
        units = np.arange(width)
        base = 3 * wide_d
        square = (units[:, None] * wide + units[None, :]).ravel()
        parts += [base + units, base + wide + square, base + wide + wide * wide + units]
    return np.concatenate(parts)


def _check_mlp(name: str, network: Network) -> None:
    """Refuse an MLP that the compiled loops do not know."""
    if network.mlp and (len(network.mlp) != 3 or len({*network.mlp[1].shape}) > 1):
        shapes = ", ".join(str(layer.shape) for layer in network.mlp)
        raise ValueError(f"{name} must have no MLP or two hidden layers of one width; got {shapes}")


def flatten(network: Network) -> Float[np.ndarray, " P"]:
    """Return all weights of a network in one array: A, B, C, first, hidden, last."""
    parts = [network.ssm.A, network.ssm.B, network.ssm.C, *(layer.ravel() for layer in network.mlp)]
    return np.concatenate(parts)


def _epochs(name: str, value: Sequence[int]) -> Sequence[int]:
    """Return increasing numbers of updates, a range as it is."""
    if not isinstance(value, range):
        try:
            value = [
                as_integer(f"each entry of {name}", epoch, low=0, high=MAX_COUNT) for epoch in value
            ]
        except TypeError:
            raise ValueError(f"{name} must be increasing integers >= 0; got {value!r}") from None
    if any(b <= a for a, b in itertools.pairwise(value[:2] if isinstance(value, range) else value)):
        raise ValueError(f"{name} must be increasing integers >= 0; got {value!r}")
    if len(value) and value[0] < 0:
        raise ValueError(f"{name} must be increasing integers >= 0; got {value!r}")
    return value


def as_losses(name: str, value: Sequence[float]) -> list[float]:
    """Return losses >= 0 from large to small."""
    try:
        losses = [as_scalar(f"each entry of {name}", loss, low=0.0) for loss in value]
    except TypeError:
        raise ValueError(f"{name} must be decreasing losses; got {value!r}") from None
    if any(b >= a for a, b in itertools.pairwise(losses)):
        raise ValueError(f"{name} must be decreasing; got {value!r}")
    return losses


def _outputs(teacher: Teacher, x: np.ndarray) -> np.ndarray:
    """Return a teacher's outputs in the precision of x: in float32, the labels of the authors'
    teacher.
    """
    from ssm_poison_lib._engines import epochs  # here, not above: Numba takes a second to load

    network = as_network("teacher", teacher)
    _check_mlp("teacher", network)
    d, width = network.ssm.state_dim, _width(network)
    padded = _padded(d, width)
    theta = np.zeros(3 * padded[0] + padded[1] * (padded[1] + 2), x.dtype)
    theta[_positions(d, width, *padded)] = flatten(network)
    problem = epochs.sequences(x, np.zeros(len(x), x.dtype), d, width, padded, full=False)
    return np.asarray(epochs.network_outputs(theta, problem))


class _Schedule:
    """Which epochs are logged: some counted from the start, after the stop others from there."""

    def __init__(self, log_at: Sequence[int], log_after_stop: Sequence[int]) -> None:
        self._before = _epochs("log_at", log_at)
        self._after = _epochs("log_after_stop", log_after_stop)

    def _from(self, stop_epoch: int | None) -> tuple[Sequence[int], int]:
        return (self._before, 0) if stop_epoch is None else (self._after, stop_epoch)

    def holds(self, epoch: int, stop_epoch: int | None) -> bool:
        epochs, origin = self._from(stop_epoch)
        place = bisect_left(epochs, epoch - origin)
        return place < len(epochs) and epochs[place] == epoch - origin

    def following(self, epoch: int, stop_epoch: int | None, end: int) -> int:
        """Return the next epoch after this one that is logged, or the end if none is before it."""
        epochs, origin = self._from(stop_epoch)
        place = bisect_right(epochs, epoch - origin)
        return min(end, origin + epochs[place]) if place < len(epochs) else end


def _loss_by(network: Network, data: TrainingSet, rule: Rule) -> str:
    """Return by what the compiled loop takes the loss: "lags", "gains" or "sequences"."""
    if rule.precision == "float32":
        return "sequences"
    if network.mlp:
        return "gains"
    return "lags" if isinstance(data.teacher, DiagonalSSM) else "sequences"


class _Weights:
    """The weights of a run, and the compiled loop that moves them."""

    def __init__(self, network: Network, data: TrainingSet, rule: Rule) -> None:
        # here, not above: Numba takes a second to load
        from ssm_poison_lib._engines import epochs, gains
        from ssm_poison_lib._engines.sums import aligned

        self._train = epochs.train
        self.d, self.width = network.ssm.state_dim, _width(network)
        by = _loss_by(network, data, rule)
        d, width = _padded(self.d, self.width) if by == "sequences" else (self.d, self.width)
        x = np.array(data.x, dtype=rule.precision, order="C")
        y = contiguous(data.y) if rule.precision == "float64" else _outputs(data.teacher, x)
        # Of by_lag, by_gain and by_sequence, one.
        self._losses: tuple[Any, Any, Any]
        if by == "lags":
            target = data.teacher.impulse_response(data.length)  # type: ignore[attr-defined]
            gram = contiguous(data.gram())
            self._losses = (epochs.lags(gram, contiguous(target), d), None, None)
        elif by == "gains":
            by_lag = np.ascontiguousarray(x[:, ::-1].T)
            self._losses = (None, gains.gains(by_lag, y, d, width), None)
        else:
            full = rule.normalized and rule.off_diagonal
            sizes = (self.d, self.width, (d, width))
            self._losses = (None, None, epochs.sequences(x, y, *sizes, full=full))
        self._where = _positions(self.d, self.width, d, width)
        self._ends = np.cumsum([0, d, d, d, *((width, width * width, width) if width else ())])
        self._rule = rule
        flat = flatten(network)
        size = int(self._ends[-1])
        self._theta = aligned((size,), rule.precision)
        self._theta[self._where] = flat
        self._moments = aligned((2, size), rule.precision)
        self._velocity = aligned((size,), rule.precision)
        self._mean_norm = 0.0
        text = json.dumps(asdict(rule), sort_keys=True).encode()
        content = text + flat.tobytes() + x.tobytes() + y.tobytes()
        #: What a saved run must share with this one: the start, the data and the rule.
        self.fingerprint = hashlib.sha256(content).hexdigest()

    def now(self) -> Float[np.ndarray, " P"]:
        """Return a copy of all weights, without padding."""
        return np.asarray(self._theta[self._where])

    def train(self, epoch: int, count: int, stop_loss: float) -> tuple[int, float, float]:
        """Do `count` epochs at most; return the epochs done, the loss, the loss before a reset."""
        from ssm_poison_lib._engines.epochs import Quirks

        rule = self._rule
        quirks = Quirks(
            rule.learning_rate,
            rule.optimizer == "adam",
            rule.normalized,
            rule.off_diagonal,
            len(self._ends) - 1 if rule.train == "ABC" else 1,
            rule.reset_BC,
            stop_loss,
        )
        arrays = (self._theta, self._moments, self._velocity)
        state = (self._mean_norm, epoch, count, self.d, self._ends)
        done, self._mean_norm, loss, judged = self._train(*arrays, *state, quirks, *self._losses)
        return int(done), float(loss), float(judged)

    def state(self) -> dict[str, np.ndarray]:
        """Return the arrays that `restore` takes."""
        mean_norm = np.array(self._mean_norm)
        return {"theta": self._theta, "moments": self._moments, "mean_norm": mean_norm}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self._theta[:], self._moments[:] = state["theta"], state["moments"]
        self._mean_norm = float(state["mean_norm"])


class Descent:
    """One training run: advance it, look at it, save it, continue it.

    Continuing a run gives the same digits as never having stopped. After `advance` look at
    `finished`, `stop_epoch` (None: the loss never reached stop_loss), `loss`, `network` and `log`.

    In float64 a linear student is trained through the Gram matrix of the data, at a cost that does
    not depend on the number of sequences, and a network through its two gains; everything else
    sequence by sequence.

    Args:
        start: the weights at the start: a `DiagonalSSM`, or a `Network` whose MLP is empty or has
            two hidden layers of one width.
        data: the training set.
        rule: how to train.
        log_at: epochs (numbers of updates, increasing) whose weights are kept, beside those of the
            stop. A range is fine.
        log_after_stop: the same, counted from the stop, from which on log_at no longer counts.
        log_at_loss: losses, from large to small; the first epoch at or below each is logged too,
            and kept in `reached`.
    """

    def __init__(
        self,
        start: DiagonalSSM | Network,
        data: TrainingSet,
        rule: Rule,
        *,
        log_at: Sequence[int] = (),
        log_after_stop: Sequence[int] = (),
        log_at_loss: Sequence[float] = (),
    ) -> None:
        network = as_network("start", start)
        as_instance("data", data, TrainingSet)
        as_instance("rule", rule, Rule)
        _check_mlp("start", network)
        self.rule, self.data = rule, data
        self._schedule = _Schedule(log_at, log_after_stop)
        self._marks = as_losses("log_at_loss", log_at_loss)
        self._weights = _Weights(network, data, rule)
        self.epoch = 0
        self.stop_epoch: int | None = None
        self.reached: dict[float, int] = {}
        self._logged: list[tuple[int, float, np.ndarray]] = []
        _, self.loss, _ = self._weights.train(0, 0, -1.0)
        self._note()

    @property
    def finished(self) -> bool:
        """Whether training has reached its end: epochs_after_stop past the stop, or max_epochs."""
        return self.epoch >= self._end

    @property
    def _end(self) -> int:
        if self.stop_epoch is None:
            return self.rule.max_epochs
        return min(self.stop_epoch + self.rule.epochs_after_stop, self.rule.max_epochs)

    @property
    def network(self) -> Network:
        """The present weights (float64 copies)."""
        weights = self._weights
        return unflatten(weights.now().astype(np.float64), weights.d, weights.width)

    @property
    def log(self) -> Log:
        """The weights and losses logged so far."""
        weights = self._weights
        return Log(
            np.array([epoch for epoch, _, _ in self._logged], dtype=np.int64),
            np.array([loss for _, loss, _ in self._logged], dtype=np.float64),
            np.array([w for _, _, w in self._logged], dtype=np.float64).reshape(
                -1, len(weights.now())
            ),
            weights.d,
            weights.width,
        )

    def advance(
        self, epochs: int | None = None, *, interrupt: threading.Event | None = None
    ) -> Descent:
        """Train on; return self.

        Args:
            epochs: how many epochs; None: to the end.
            interrupt: an event that, once set, ends the call early.

        Raises:
            DescentError: when the loss is no longer finite (the step size was too large).
        """
        goal = (
            math.inf
            if epochs is None
            else self.epoch + as_integer("epochs", epochs, low=0, high=MAX_COUNT)
        )
        if interrupt is not None:
            as_instance("interrupt", interrupt, threading.Event)
        while self.epoch < min(goal, self._end) and not (
            interrupt is not None and interrupt.is_set()
        ):
            stop = self.rule.stop_loss if self.stop_epoch is None else None
            marks = [mark for mark in self._marks if mark not in self.reached]
            watch = max([-1.0, *marks[:1], *([] if stop is None else [stop])])
            following = self._schedule.following(self.epoch, self.stop_epoch, self._end)
            until = min(goal, following, self.epoch + _CHUNK)
            done, self.loss, judged = self._weights.train(
                self.epoch, int(until) - self.epoch, watch
            )
            self.epoch += done
            if not math.isfinite(self.loss):
                raise DescentError(
                    f"the loss is {self.loss} after epoch {self.epoch}:"
                    f" learning_rate={self.rule.learning_rate:g} is too large"
                )
            if stop is not None and judged <= stop:
                self.stop_epoch = self.epoch
            self.reached.update({mark: self.epoch for mark in marks if judged <= mark})
            self._note()
        return self

    def _note(self) -> None:
        """Keep the present weights if this epoch is to be logged."""
        wanted = self._schedule.holds(self.epoch, self.stop_epoch)
        wanted = wanted or self.epoch == self.stop_epoch or self.epoch in self.reached.values()
        if wanted and not (self._logged and self._logged[-1][0] == self.epoch):
            self._logged.append((self.epoch, self.loss, self._weights.now()))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the state of the run to an .npz file, at once or not at all.

        Args:
            path: of the file.

        Raises:
            OSError: with the file's name, if it cannot be written.
        """
        log = self.log
        content: dict[str, Any] = {
            "version": _VERSION,
            "fingerprint": self._weights.fingerprint,
            **self._weights.state(),
            "loss": self.loss,
            "counts": np.array([self.epoch, -1 if self.stop_epoch is None else self.stop_epoch]),
            "reached": np.array(list(self.reached.items()), dtype=np.float64).reshape(-1, 2),
            "log_epochs": log.epochs,
            "log_loss": log.loss,
            "log_weights": log.weights,
        }
        with replacing(as_path("path", path)) as file:
            np.savez(file, **content)

    def restore(self, path: str | PathLike[str]) -> Descent:
        """Continue from a file that `save` wrote for the same start, data and rule; return self.

        Args:
            path: of the file.

        Raises:
            DescentError: if the file belongs to another run, is damaged, or was written by another
                version of the library; the run then stays as it was.
            OSError: if the file cannot be read.
        """
        path = as_path("path", path)
        try:
            saved = _read(path, self._weights.fingerprint)
            loss, (epoch, stop) = float(saved["loss"]), (int(value) for value in saved["counts"])
            reached = {float(mark): int(at) for mark, at in saved["reached"]}
            rows = zip(saved["log_epochs"], saved["log_loss"], saved["log_weights"], strict=True)
            precision = self.rule.precision
            logged = [(int(at), float(value), row.astype(precision)) for at, value, row in rows]
            self._weights.restore(saved)
        except (OSError, DescentError):
            raise
        except Exception as error:  # a damaged archive shows as almost any error
            raise DescentError(f"{path} is damaged: not a complete saved run ({error!r})") from None
        self.loss, self.epoch, self.stop_epoch = loss, epoch, None if stop < 0 else stop
        self.reached, self._logged = reached, logged
        return self


def _read(path: Path, fingerprint: str) -> dict[str, np.ndarray]:
    """Return what a saved run holds; DescentError if it is not that of `fingerprint`."""
    with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
        # each with the checksum that .npz files hold
        saved = {name: file[name] for name in file.files}
    version = int(saved.get("version", 1))
    if version != _VERSION:
        raise DescentError(
            f"{path} was saved in layout {version} of such files; this library reads {_VERSION}"
        )
    if str(saved["fingerprint"]) != fingerprint:
        raise DescentError(f"{path} was saved by a run with another start, training set or rule")
    return saved


def train_many(
    runs: Iterable[Descent], *, threads: int | None = None, progress: bool = False
) -> list[Descent]:
    """Train many runs (seeds x training sets) to their ends, several at a time; return them in
    order.

    Args:
        runs: each once.
        threads: how many at once (the compiled loops leave Python free), by default the number of
            cores; the results do not depend on it.
        progress: show a bar. Ctrl-C stops all runs where they are, to be continued by another call.

    Raises:
        DescentError: as `Descent.advance` does, after the other runs have ended.
    """
    runs = [
        as_instance("each of runs", run, Descent)
        for run in as_instance("runs", runs, Iterable)  # type: ignore[type-abstract]
    ]
    if len({id(run) for run in runs}) < len(runs):
        raise ValueError("runs must hold each run once: two threads cannot advance the same one")
    threads, progress = as_workers("threads", threads), as_flag("progress", progress)
    interrupt = threading.Event()
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(runs), disable=not progress, unit="run") as bar,
    ):
        futures = [pool.submit(run.advance, interrupt=interrupt) for run in runs]
        for future in futures:
            future.add_done_callback(lambda _: bar.update())
        try:
            for future in futures:
                future.exception()  # waits
        except BaseException:
            interrupt.set()
            raise
    return [future.result() for future in futures]
