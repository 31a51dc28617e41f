"""What is kept of a training run: typed records, and their form in JSON files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from ssm_poison_lib._checks import as_mapping

__all__ = ["AuthorsRun", "Curves", "Record", "RunValues"]

Row = tuple[float, ...]
T = TypeVar("T", bound="_Typed")


def _frozen(value: Any) -> Any:
    """Return lists as tuples, however deep."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


class _Typed:
    """Frozen dataclasses that become dicts of JSON's types, and come back from them."""

    # Fields that hold another such dataclass.
    _parts: ClassVar[dict[str, type[_Typed]]] = {}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, nested ones as dicts too; `from_dict` takes them back."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls: type[T], values: Any) -> T:
        """Return the object whose `to_dict` these values are.

        Args:
            values: a mapping with a key for each field, no more and no fewer; lists become tuples.

        Raises:
            TypeError: if it is no mapping.
            ValueError: if keys are missing or unknown; the message names them.
        """
        what = f"the values of a {cls.__name__}"
        given = as_mapping(what, values)
        names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        missing = [name for name in names if name not in given]
        unknown = [str(name) for name in given if name not in names]
        if missing or unknown:
            found = [f"missing {', '.join(missing)}"] if missing else []
            found += [f"unknown {', '.join(unknown)}"] if unknown else []
            raise ValueError(f"{what} must have exactly its fields as keys; {'; '.join(found)}")
        return cls(
            **{
                name: cls._parts[name].from_dict(value)
                if name in cls._parts and value is not None
                else _frozen(value)
                for name, value in given.items()
            }
        )


@dataclass(frozen=True)
class Curves(_Typed):
    """How one run went: T of its logged epochs, or of its flow's steps.

    Attributes:
        unit: "epoch" (number of updates) or "time" (of the flow); what `at` holds.
        at: (T,) increasing.
        loss: (T,) training loss there.
        largest_abs_a: (T, up to 7) the largest absolute values on the diagonal of A.
        effective_rank: (T,) of the diagonal of A.
        gamma0: (T,) gamma_0, with the factor xi for a network.
        error: (T,) the setting's `error`.
        error_from_lag_1: (T,) the same over lags k >= 1; None for a network.
    """

    unit: str
    at: tuple[int, ...] | Row
    loss: Row
    largest_abs_a: tuple[Row, ...]
    effective_rank: Row
    gamma0: Row
    error: Row
    error_from_lag_1: Row | None


@dataclass(frozen=True)
class Record(_Typed):
    """What is kept of one training run of the paper; None where a run has no such number.

    Attributes:
        start: "stored" (the authors' own starting weights) or "drawn" (as their program draws
            them).
        precision: "float32" or "float64".
        trained: whether the training loss came down to the threshold (flow: ended at most at
            1e-12).
        stop_epoch: number of updates when the loss is first at or below the threshold.
        epochs: number of updates done; None for gradient flow.
        end_time: at which gradient flow ended; None for descent.
        logged_epoch: at which the logged values are taken, the last that the authors log; None for
            gradient flow, where they are those of its end.
        logged_error: the authors' extrapolation loss (linear: normalised, from lag 0; network:
            relative L2).
        logged_error_from_lag_1: the same over lags k >= 1; None for networks.
        worst_lag: the lag with the largest error; None for networks.
        logged_train_loss: training loss there.
        error_at_stop: as logged_error, at the stop epoch; None for gradient flow.
        effective_rank: of the diagonal of A, at the end.
        largest_abs_a: the 7 largest absolute values on the diagonal of A, at the end.
        max_abs_gamma0: largest abs(gamma_0) at the authors' logged epochs (flow: at its steps).
        seconds: wall-clock time of training.
        curves: how it went; None where that is not kept.
    """

    start: str
    precision: str
    trained: bool
    stop_epoch: int | None
    epochs: int | None
    end_time: float | None
    logged_epoch: int | None
    logged_error: float
    logged_error_from_lag_1: float | None
    worst_lag: int | None
    logged_train_loss: float
    error_at_stop: float | None
    effective_rank: float
    largest_abs_a: Row
    max_abs_gamma0: float
    seconds: float
    curves: Curves | None

    _parts: ClassVar[dict[str, type[_Typed]]] = {"curves": Curves}


@dataclass(frozen=True)
class RunValues(_Typed):
    """Numbers of one run by somebody else's program, as in `Record`; None where not known.

    Attributes:
        logged_error: the authors' extrapolation loss at their last logged epoch.
        stop_epoch: number of updates when the loss is first at or below the threshold.
        logged_train_loss: training loss at their last logged epoch.
        error_at_stop: as logged_error, at the stop epoch.
        effective_rank: of the diagonal of A, at the end.
        largest_abs_a: the largest absolute values on the diagonal of A, at the end.
        max_abs_gamma0: largest abs(gamma_0) at the logged epochs.
        seconds: wall-clock time of training.
    """

    logged_error: float | None
    stop_epoch: int | None
    logged_train_loss: float | None
    error_at_stop: float | None
    effective_rank: float | None
    largest_abs_a: Row | None
    max_abs_gamma0: float | None
    seconds: float | None


@dataclass(frozen=True)
class AuthorsRun(_Typed):
    """Everything known of one run of the authors; None for what is not known.

    Attributes:
        setting: the name of the setting.
        training_set: "baseline" or "with special".
        seed: the authors' seed.
        authors: of their own code (TensorFlow 2.4.1, one thread); of the theorem's settings the
            error that is stored in their notebook (SciPy's odeint at default tolerances).
        replica_f32: of a re-implementation in float32 from the same start.
        replica_f64: the same in float64.
        rounding_band: smallest and largest logged_error of the float32 re-implementation over 15
            starts perturbed by one unit in the last place.
        stored: numbers stored in the authors' notebooks.
    """

    setting: str
    training_set: str
    seed: int
    authors: RunValues | None
    replica_f32: RunValues | None
    replica_f64: RunValues | None
    rounding_band: tuple[float, float] | None
    stored: RunValues | None

    _parts: ClassVar[dict[str, type[_Typed]]] = dict.fromkeys(
        ("authors", "replica_f32", "replica_f64", "stored"), RunValues
    )
