"""Gradient descent and Adam for A, B, C and an MLP's weights: single runs that can be stopped, and many at once."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from os import PathLike

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


class DescentError(RuntimeError):
    """Training left the finite numbers, or a saved run is damaged or does not belong to this start, data and rule."""


@dataclass(frozen=True)
class Rule:
    """How to train. The defaults are plain full-batch gradient descent; every quirk of the authors is an option.

    learning_rate: the step size (its base where `normalized`). max_epochs: training ends here at the latest (at most 10^9).
    optimizer: "gradient descent" or "adam" (beta 0.9 and 0.999, epsilon 1e-7 added to the uncorrected root of the second
    moment, as in Keras). train: "ABC" (and the MLP), or "A" alone, the rest fixed.
    precision: "float64", or "float32" with sums (and the labels) as in the authors' program.

    The authors' options:
    normalized: the step in epoch t is learning_rate / (sqrt(m_t / (1 - 0.8^t)) + 1e-6), m_t = 0.8 m_{t-1} + 0.2 g_t, where
    g_t is the sum of the norms of the gradients, one norm per weight array.
    off_diagonal: in g_t, count the gradient of the full d x d matrix A, whose off-diagonal part moves nothing.
    reset_BC: set B and C to ones after every epoch (the first step still sees them as they start).
    stop_loss: note the first epoch after whose update (and before a reset) the loss is <= this; None to never stop.
    epochs_after_stop: how much longer to train then.

    Source: the authors' public code, as described in chapter "Every number of the paper beside ours".
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
        """Refuse values and combinations that mean nothing; keep Python's numbers, which JSON can hold."""
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
            raise ValueError(f"epochs_after_stop must be 0 without stop_loss; got {self.epochs_after_stop}")


@dataclass(frozen=True, eq=False)
class Log:
    """The weights at the epochs that were asked for. Everything else can be computed from them (`network`).

    epochs: (L,) number of updates done; loss: (L,) training loss; weights: (L, P) all weights of all logged epochs;
    d: state dimension; width: of the MLP's layers, 0 without one.
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
        """Return all weights at one logged epoch."""
        return unflatten(self.weights[row], self.d, self.width)


def unflatten(weights: Float[np.ndarray, " P"], d: int, width: int) -> Network:
    """Return the Network of a flat array A, B, C, first, hidden, last without padding."""
    A, B, C = weights[: 3 * d].reshape(3, d)
    rest = weights[3 * d :]
    layers: tuple[np.ndarray, ...] = ()
    if width:
        layers = (rest[None, :width], rest[width:-width].reshape(width, width), rest[-width:, None])
    return Network(DiagonalSSM(A, B, C), layers)


def _positions(d: int, width: int) -> tuple[Int[np.ndarray, " P"], int, int]:
    """Return where each weight sits in the padded array of the compiled loop, and the padded d and width."""
    wide_d, wide = (-(-size // _BLOCK) * _BLOCK for size in (d, width))
    rows = np.arange(d)
    parts = [rows, wide_d + rows, 2 * wide_d + rows]
    if width:
        units = np.arange(width)
        base = 3 * wide_d
        square = (units[:, None] * wide + units[None, :]).ravel()
        parts += [base + units, base + wide + square, base + wide + wide * wide + units]
    return np.concatenate(parts), wide_d, wide


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
            value = [as_integer(f"each entry of {name}", epoch, low=0, high=MAX_COUNT) for epoch in value]
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
    """Return a teacher's outputs computed in the precision of x: in float32, the labels that the authors' teacher gives."""
    network = as_network("teacher", teacher)
    _check_mlp("teacher", network)
    d, width = network.ssm.state_dim, network.mlp[0].shape[1] if network.mlp else 0
    where, wide_d, wide = _positions(d, width)
    theta = np.zeros(3 * wide_d + wide * (wide + 2), x.dtype)
    theta[where] = flatten(network)
    from ssm_poison_lib import _compiled  # here, not above: Numba takes a second to load

    return np.asarray(_compiled.network_outputs(theta, (d, width), wide_d, wide, x))


class Descent:
    """One training run: advance it, look at it, save it, continue it.

    start: the weights at the start (a `DiagonalSSM`, or a `Network` whose MLP is empty or has two hidden layers of one width).
    data: the training set. rule: how to train. log_at: epochs (numbers of updates, sorted) whose weights are kept, beside
    those of the stop; log_after_stop: the same, counted from the stop, from which on log_at no longer counts. Ranges are fine.
    log_at_loss: losses, from large to small; the first epoch at or below each is logged too, and kept in `reached`.

    Continuing a run gives the same digits as never having stopped. After `advance` look at `finished`, `stop_epoch`
    (None: the loss never reached stop_loss), `loss`, `network` and `log`.

    In float64 a linear student is trained through the Gram matrix of the data, at a cost that does not depend on the
    number of sequences, and a network through its two gains (see `_gains`); everything else sequence by sequence.
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
        self.d = network.ssm.state_dim
        self.width = network.mlp[0].shape[1] if network.mlp else 0
        self._log_at, self._log_after_stop = (
            _epochs("log_at", log_at),
            _epochs("log_after_stop", log_after_stop),
        )
        self._log_at_loss = as_losses("log_at_loss", log_at_loss)
        self._where, self._wide_d, self._wide = _positions(self.d, self.width)
        self._in_lags = (
            not self.width and rule.precision == "float64" and isinstance(data.teacher, DiagonalSSM)
        )
        self._in_gains = self.width > 0 and rule.precision == "float64"
        flat = flatten(network)
        if self._in_lags:
            self._G = contiguous(data.gram())
            self._target = contiguous(data.teacher.impulse_response(data.length))  # type: ignore[attr-defined]
        if self._in_lags or self._in_gains:
            self._where = np.arange(len(flat))
            size = len(flat)
        else:
            size = 3 * self._wide_d + self._wide * (self._wide + 2)
        self._x = np.array(data.x, dtype=rule.precision, order="C")
        self._y = contiguous(data.y) if rule.precision == "float64" else _outputs(data.teacher, self._x)
        self._x_by_lag = np.ascontiguousarray(self._x[:, ::-1].T)
        self._theta = np.zeros(size, rule.precision)
        self._theta[self._where] = flat
        self._moments = np.zeros((2, size), rule.precision)
        self._mean_norm = 0.0
        self.epoch = 0
        self.stop_epoch: int | None = None
        self.reached: dict[float, int] = {}
        self._logged: list[tuple[int, float, np.ndarray]] = []
        self._fingerprint = self._hash(flat)
        self.loss = self._run(0, -1.0)[1]
        self._note()

    def _hash(self, flat: np.ndarray) -> str:
        """Return what a saved run must share with this one: the start, the data and the rule."""
        text = json.dumps(asdict(self.rule), sort_keys=True).encode()
        return hashlib.sha256(text + flat.tobytes() + self._x.tobytes() + self._y.tobytes()).hexdigest()

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
        return unflatten(self._theta[self._where].astype(np.float64), self.d, self.width)

    @property
    def log(self) -> Log:
        """The weights and losses logged so far."""
        return Log(
            np.array([epoch for epoch, _, _ in self._logged], dtype=np.int64),
            np.array([loss for _, loss, _ in self._logged], dtype=np.float64),
            np.array([w for _, _, w in self._logged], dtype=np.float64).reshape(-1, len(self._where)),
            self.d,
            self.width,
        )

    def advance(self, epochs: int | None = None, *, interrupt: threading.Event | None = None) -> Descent:
        """Train on, by `epochs` or to the end; return self. interrupt: an event that, once set, ends the call early.

        Raises DescentError when the loss is no longer finite (the step size was too large).
        """
        goal = (
            math.inf if epochs is None else self.epoch + as_integer("epochs", epochs, low=0, high=MAX_COUNT)
        )
        if interrupt is not None:
            as_instance("interrupt", interrupt, threading.Event)
        while self.epoch < min(goal, self._end) and not (interrupt is not None and interrupt.is_set()):
            stop = self.rule.stop_loss if self.stop_epoch is None else None
            marks = [mark for mark in self._log_at_loss if mark not in self.reached]
            watch = max([-1.0, *marks[:1], *([] if stop is None else [stop])])
            until = min(goal, self._end, self._next_log(), self.epoch + _CHUNK)
            done, self.loss, judged = self._run(int(until) - self.epoch, watch)
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

    def _next_log(self) -> int:
        """Return the next epoch after this one that must be logged (or the end)."""
        epochs, origin = self._schedule
        following = bisect_right(epochs, self.epoch - origin)
        return min(self._end, origin + epochs[following]) if following < len(epochs) else self._end

    @property
    def _schedule(self) -> tuple[Sequence[int], int]:
        """The epochs to be logged at present, and the epoch from which they count."""
        if self.stop_epoch is None:
            return self._log_at, 0
        return self._log_after_stop, self.stop_epoch

    def _note(self) -> None:
        """Keep the present weights if this epoch is to be logged."""
        epochs, origin = self._schedule
        place = bisect_left(epochs, self.epoch - origin)
        wanted = place < len(epochs) and epochs[place] == self.epoch - origin
        if (wanted or self.epoch == self.stop_epoch or self.epoch in self.reached.values()) and not (
            self._logged and self._logged[-1][0] == self.epoch
        ):
            self._logged.append((self.epoch, self.loss, self._theta[self._where].copy()))

    def _run(self, count: int, stop_loss: float) -> tuple[int, float, float]:
        """Let the compiled loop do `count` epochs; return the epochs done, the loss, and the loss before a reset."""
        from ssm_poison_lib import _compiled, _gains  # here, not above: Numba takes a second to load

        rule = self.rule
        options = (
            rule.learning_rate,
            rule.optimizer == "adam",
            rule.normalized,
            rule.off_diagonal,
            rule.train == "ABC",
            rule.reset_BC,
            stop_loss,
        )
        state = (self._mean_norm, self.epoch, count)
        if self._in_lags:
            theta, moments = self._theta.reshape(3, -1), self._moments.reshape(2, 3, -1)
            result = _compiled.linear_epochs(theta, moments, *state, self._G, self._target, *options)
        elif self._in_gains:
            place = (self.d, self.width, self._x_by_lag, self._y)
            result = _gains.gain_epochs(self._theta, self._moments, *state, *place, *options)
        else:
            sizes = ((self.d, self.width), self._wide_d, self._wide)
            result = _compiled.sequence_epochs(
                self._theta, self._moments, *state, *sizes, self._x, self._y, *options
            )
        done, self._mean_norm, loss, judged = result
        return int(done), float(loss), float(judged)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the state of the run to an .npz file, at once or not at all.

        Raises OSError with the file's name if it cannot be written.
        """
        log = self.log
        with replacing(as_path("path", path)) as file:
            np.savez(
                file,
                fingerprint=self._fingerprint,
                theta=self._theta,
                moments=self._moments,
                scalars=np.array([self._mean_norm, self.loss]),
                counts=np.array([self.epoch, -1 if self.stop_epoch is None else self.stop_epoch]),
                reached=np.array(list(self.reached.items()), dtype=np.float64).reshape(-1, 2),
                log_epochs=log.epochs,
                log_loss=log.loss,
                log_weights=log.weights,
            )

    def restore(self, path: str | PathLike[str]) -> Descent:
        """Continue from a file that `save` wrote for the same start, data and rule; return self.

        Raises DescentError if the file belongs to another run or is damaged, OSError if it cannot be read; the run then stays
        as it was.
        """
        path = as_path("path", path)
        try:
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                saved = {
                    name: file[name] for name in file.files
                }  # each with the checksum that .npz files hold
            if str(saved["fingerprint"]) != self._fingerprint:
                raise DescentError(f"{path} was saved by a run with another start, training set or rule")
            mean_norm, loss = (float(value) for value in saved["scalars"])
            epoch, stop = (int(value) for value in saved["counts"])
            reached = {float(mark): int(at) for mark, at in saved["reached"]}
            rows = zip(saved["log_epochs"], saved["log_loss"], saved["log_weights"], strict=True)
            logged = [(int(at), float(value), row.astype(self.rule.precision)) for at, value, row in rows]
            theta, moments = saved["theta"], saved["moments"]
        except (OSError, DescentError):
            raise
        except Exception as error:  # a damaged archive shows as almost any error
            raise DescentError(f"{path} is damaged: not a complete saved run ({error!r})") from None
        self._theta, self._moments, self._mean_norm = theta, moments, mean_norm
        self.loss, self.epoch, self.stop_epoch = loss, epoch, None if stop < 0 else stop
        self.reached, self._logged = reached, logged
        return self


def train_many(
    runs: Iterable[Descent], *, threads: int | None = None, progress: bool = False
) -> list[Descent]:
    """Train many runs (seeds x training sets) to their ends, several at a time; return them in order.

    runs: each once. threads: how many at once (the compiled loops leave Python free), by default the number of cores; the
    results do not depend on it. progress: show a bar. Ctrl-C stops all runs where they are, to be continued by another call.
    Raises DescentError as `Descent.advance` does, after the other runs have ended.
    """
    runs = [as_instance("each of runs", run, Descent) for run in as_instance("runs", runs, Iterable)]  # type: ignore[type-abstract]
    if len({id(run) for run in runs}) < len(runs):
        raise ValueError("runs must hold each run once: two threads cannot advance the same one")
    threads, progress = as_workers("threads", threads), as_flag("progress", progress)
    interrupt = threading.Event()
    with ThreadPoolExecutor(threads) as pool, tqdm(total=len(runs), disable=not progress, unit="run") as bar:
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
