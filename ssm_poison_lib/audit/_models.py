"""Which networks an audit knows, and what a trial of one says: what needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["MODELS", "STEPS", "ModelResult"]

#: Models that the audit knows by name; "free" is the small linear student alone.
MODELS = ("free", "s4d", "lru", "mamba2")

#: Steps of each training, unless somebody says otherwise: at least, at most.
STEPS = (20, 200)


@dataclass(frozen=True)
class ModelResult:
    """What a network did on a sample.

    Attributes:
        name: of the model.
        sample: sequences it trained on.
        steps: of each training.
        score: accuracy, or R2, on what it trained on; median of the restarts.
        restarts_differ: relative difference of the restarts' outputs on training sequences.
        restarts_differ_beyond: the same on sequences of twice the length (two training sequences in
            a row).
        without_them: relative difference on training sequences when what stands out is left out;
            None: nothing does.
        ordered: the same when it is trained in phases: the given order, or short lags first.
    """

    name: str
    sample: int
    steps: int
    score: float
    restarts_differ: float
    restarts_differ_beyond: float
    without_them: float | None
    ordered: float

    @property
    def fits(self) -> bool:
        """Whether the score is at least 0.9: what a model does that does not fit says little."""
        return self.score >= 0.9

    def __str__(self) -> str:
        said = (
            f"{self.name}: score {self.score:.2g} on {self.sample} sequences after {self.steps}"
            f" steps; restarts differ by {self.restarts_differ:.2g} on them and by"
            f" {self.restarts_differ_beyond:.2g} on sequences twice as long, trained in phases by"
            f" {self.ordered:.2g}"
        )
        if self.without_them is not None:
            said += f", without what stands out by {self.without_them:.2g}"
        return said + (
            "." if self.fits else ": it does not fit yet, so this says little; try more --steps."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)
