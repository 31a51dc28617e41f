"""Gradient matching with its controls: a trial is one split of the data and one attacked model.

Every victim of a trial has the same number of steps, the same schedule, the same order of batches
and nearly the same training data: clean examples, the bases, and copies of the bases that differ
from them by nothing ("duplicates"), by the attack ("matched") or by one of its controls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.stats import t as student_t
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ssm_poison_lib._checks import (
    as_choice,
    as_instance,
    as_integer,
    as_mapping,
    as_scalar,
    as_seed,
)
from ssm_poison_lib._files import replacing
from ssm_poison_lib.architectures import LRU, S4D, Mamba2, SequenceModel
from ssm_poison_lib.attacks.datasets import Examples, cifar10, digits, mnist1d
from ssm_poison_lib.attacks.gradient_matching import gradient_matching, target_groups
from ssm_poison_lib.studies.store import Job, Study

__all__ = [
    "CONDITIONS",
    "KINDS",
    "LARGE",
    "SMALL",
    "STUDY",
    "Protocol",
    "build",
    "controls",
    "effect",
    "images",
    "interval",
    "large",
    "score",
    "train",
    "trial",
]

#: The models: three with a state space layer, and two without.
KINDS = ("s4d", "lru", "mamba2", "transformer", "cnn")

#: What the copies of the bases are, in the order of the figure; "clean" has no copies.
CONDITIONS = ("clean", "duplicates", "noise", "swapped", "flipped", "planted", "matched")


@dataclass(frozen=True)
class Protocol:
    """The sizes of a trial.

    Attributes:
        clean: number of clean training examples.
        bases: number of examples that the attacker may change.
        targets: number of examples whose loss the attacker raises.
        others: number of examples that are only tested.
        groups: as `sizes` of `target_groups`.
        channels: of the models.
        state_dim: of the models.
        depth: blocks of the models.
        dropout: of the models while they are trained.
        batch: examples in a step of training.
        steps: of every training.
        learning_rate: of AdamW; falls by a cosine to a hundredth.
        weight_decay: of AdamW.
        brew_steps: steps of the attack.
        brew_step: size of a step of the attack, in eps.
        restarts: of the attack, of which the best is kept.

    Raises:
        ValueError: for counts below 1, rates or sizes of steps that are not positive.
    """

    clean: int
    bases: int
    targets: int
    others: int
    groups: tuple[tuple[int, int, int], ...]
    channels: int
    state_dim: int
    depth: int
    dropout: float
    batch: int
    steps: int
    learning_rate: float
    weight_decay: float
    brew_steps: int
    brew_step: float
    restarts: int

    def __post_init__(self) -> None:
        for name in ("clean", "bases", "targets", "others", "channels", "state_dim", "depth"):
            as_integer(name, getattr(self, name), low=1)
        for name in ("batch", "steps", "brew_steps", "restarts"):
            as_integer(name, getattr(self, name), low=1)
        for name in ("learning_rate", "brew_step"):
            as_scalar(name, getattr(self, name), low=0.0, strict=True)
        as_scalar("weight_decay", self.weight_decay, low=0.0)
        if as_scalar("dropout", self.dropout, low=0.0) >= 1.0:
            raise ValueError(f"dropout must be below 1; got {self.dropout!r}")


#: What two cores do ten times in minutes; the groups are a tenth of the authors'.
SMALL = Protocol(
    clean=200,
    bases=200,
    targets=300,
    others=600,
    groups=((1, 50, 50), (5, 50, 30)),
    channels=24,
    state_dim=16,
    depth=1,
    dropout=0.0,
    batch=25,
    steps=500,
    learning_rate=0.02,
    weight_decay=0.01,
    brew_steps=25,
    brew_step=0.15,
    restarts=1,
)

#: The authors' numbers of images, groups, steps and restarts (their clean run's 100 epochs of 313).
LARGE = Protocol(
    clean=10_000,
    bases=10_000,
    targets=3_000,
    others=7_000,
    groups=((20, 50, 250), (40, 50, 125)),
    channels=128,
    state_dim=64,
    depth=4,
    dropout=0.1,
    batch=64,
    steps=31_300,
    learning_rate=0.01,
    weight_decay=0.01,
    brew_steps=250,
    brew_step=1.5,
    restarts=8,
)

# The authors' learning rate and weight decay by architecture; the other two kinds have LARGE's.
_RATES = {"s4d": (0.01, 0.01), "lru": (0.001, 0.05), "mamba2": (0.003, 0.05)}


def large(kind: str) -> Protocol:
    """Return LARGE with the authors' learning rate and weight decay for an architecture.

    Not kept: they train the poles and steps of S4 at .001 without decay, and their Mamba-2 reads 64
    tokens of a convolutional stem, where the one here reads every pixel.

    Args:
        kind: one of KINDS.
    """
    rate, decay = _RATES.get(
        as_choice("kind", kind, KINDS), (LARGE.learning_rate, LARGE.weight_decay)
    )
    return replace(LARGE, learning_rate=rate, weight_decay=decay)


class _Attention(nn.Module):
    """A Transformer's block: attention over all steps, then two dense layers, with learned
    positions.
    """

    def __init__(self, channels: int, length: int) -> None:
        super().__init__()
        self.position = nn.Parameter(0.1 * torch.randn(length, channels))
        self.attention = nn.MultiheadAttention(channels, 2, batch_first=True)
        self.dense = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, length, channels) of the same."""
        x = x + self.position
        # With weights asked for, attention is plain products: the fused one has no second
        # derivative.
        mixed = self.attention(x, x, x, average_attn_weights=False)[0]
        return mixed + self.dense(x + mixed)


class _Convolution(nn.Module):
    """Two convolutions of width 7 over time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv1d(channels, channels, 7, padding=3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, length, channels) of the same."""
        return self.second(F.gelu(self.first(x.mT))).mT


def build(kind: str, data: Examples, protocol: Protocol, *, seed: int) -> SequenceModel:
    """Return an untrained classifier for sequences like these.

    Args:
        kind: one of KINDS. "lru" is followed by a gated linear unit, as in its published block;
            "transformer" and "cnn" are controls without a state.
        data: examples; their length, channels and classes count.
        protocol: channels, state_dim, depth and dropout count.
        seed: of the starting weights.

    Raises:
        ValueError: for other kinds, or data of one class.
    """
    kind = as_choice("kind", kind, KINDS)
    length, inputs = as_instance("data", data, Examples).x.shape[1:]
    protocol = as_instance("protocol", protocol, Protocol)
    if not len(data) or int(data.y.max()) < 1:
        raise ValueError(
            f"data must have two classes or more; got {len(data)} examples without a second one"
        )
    H, N = protocol.channels, protocol.state_dim

    def layer(_index: int) -> nn.Module:
        if kind == "s4d":  # time scales from a few steps to the whole sequence
            return S4D(H, N, dt_min=min(0.01, 1 / length), dt_max=min(0.5, 100 / length))
        if kind == "lru":
            low = max(0.0, 1 - 100 / length)
            return nn.Sequential(LRU(H, N, r_min=low), nn.GELU(), nn.Linear(H, 2 * H), nn.GLU())
        if kind == "mamba2":
            return Mamba2(H, N, head_dim=min(2 * H, 64), chunk=min(length, 64))
        return _Attention(H, length) if kind == "transformer" else _Convolution(H)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(as_seed("seed", seed))
        return SequenceModel(
            inputs,
            int(data.y.max()) + 1,
            layer,
            channels=H,
            depth=protocol.depth,
            dropout=protocol.dropout,
        )


def score(model: nn.Module, data: Examples) -> tuple[Tensor, Tensor]:
    """Return the loss of every example, and whether it is classified correctly, (n,) each.

    Args:
        model: used in evaluation mode, and left in it.
        data: examples on the model's device.
    """
    model.eval()
    with torch.no_grad():
        outputs = torch.cat([model(x) for x in data.x.split(100)])
    return F.cross_entropy(outputs, data.y, reduction="none"), outputs.argmax(dim=1) == data.y


class _Together:
    """Models of one form side by side, each with weights and data of its own.

    One model runs as it is. Several are one pass over their stacked weights: equal up to rounding,
    and for small models up to twice as fast as one after the other.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.models = models
        named: list[dict[str, Tensor]] = [dict(model.named_parameters()) for model in models]
        self.weights = named[0]
        if len(models) > 1:
            self.weights = {
                name: torch.stack([each[name].detach() for each in named]).requires_grad_()
                for name in named[0]
            }

    def __call__(self, x: Tensor) -> Tensor:
        """Return (models, n, classes) of (models, n, length, channels)."""
        if len(self.models) == 1:
            return self.models[0](x[0])[None]

        def one(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(self.models[0], weights, (x,))

        return vmap(one, randomness="different")(self.weights, x)

    def write_back(self) -> None:
        """Give every model its weights."""
        if len(self.models) > 1:
            for k, model in enumerate(self.models):
                for name, weight in model.named_parameters():
                    weight.data.copy_(self.weights[name][k])


def train(
    models: Sequence[nn.Module],
    datasets: Sequence[Examples],
    protocol: Protocol,
    *,
    seed: int,
    steps: int | None = None,
    horizon: int | None = None,
    stop_loss: float | None = None,
    watched: Mapping[str, Examples] | None = None,
    checkpoint: Path | None = None,
) -> list[list[dict[str, float | int]]]:
    """Train classifiers by AdamW in place, side by side; return what was seen on the way of each,
    the end last.

    Args:
        models: in, trained; of one form. With others beside it a model ends where it ends alone, up
            to rounding (and to other draws of dropout).
        datasets: the examples of each model, on its device; equally many in all.
        protocol: batch, steps, learning_rate and weight_decay count.
        seed: of the order of batches, the same for all (and of dropout).
        steps: in place of the protocol's.
        horizon: steps after which the cosine of the learning rate is at its end; None: `steps`.
        stop_loss: go on after `steps`, to `horizon` at most, until every model's mean training loss
            of the last epoch, as met on the way, is at most this; None: stop at `steps`.
        watched: names -> examples whose share of correct answers is kept, at three moments of the
            second half and at the end.
        checkpoint: file that keeps the state once in an epoch; an interrupted training goes on from
            there, with the same numbers on the same machine.

    Returns:
        For each model a record for each moment: "step", "loss" (of the training data, evaluated),
        "running" (as met in the last epoch), and the watched shares.

    Raises:
        ValueError: if there are no models, not one set of data for each, or sets without examples
            or of different sizes.
    """
    if not models or len(models) != len(datasets):
        raise ValueError(
            f"datasets must be one for each of one or more models; got {len(datasets)} for"
            f" {len(models)}"
        )
    sizes = {len(data) for data in datasets}
    if len(sizes) > 1 or 0 in sizes:
        raise ValueError(f"datasets must have equally many examples, one or more; got {sizes}")
    [size] = sizes
    steps = protocol.steps if steps is None else as_integer("steps", steps, low=1)
    horizon = steps if horizon is None else as_integer("horizon", horizon, low=steps)
    epoch = math.ceil(size / protocol.batch)
    marks = {math.ceil(steps * k) for k in (0.55, 0.7, 0.85)}
    device = datasets[0].x.device
    generator = torch.Generator().manual_seed(as_seed("seed", seed))
    seen: list[list[dict[str, float | int]]] = [[] for _ in models]
    step, losses = 0, torch.zeros(len(models), epoch, device=device)
    order = torch.empty(0, dtype=torch.int64)
    forked = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=forked):
        torch.manual_seed(seed)
        kept = None
        if checkpoint is not None and checkpoint.exists():
            kept = torch.load(checkpoint, map_location=device, weights_only=True)
            for model, state in zip(models, kept["models"], strict=True):
                model.load_state_dict(state)
            generator.set_state(kept["generator"].cpu())
            torch.set_rng_state(kept["random"].cpu())
            if forked:
                torch.cuda.set_rng_state(kept["random_device"].cpu(), device)
            step, seen, losses = kept["step"], kept["seen"], kept["losses"]
        together = _Together(models)
        optimizer = torch.optim.AdamW(
            together.weights.values(),
            lr=protocol.learning_rate,
            weight_decay=protocol.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )
        if kept is not None:
            optimizer.load_state_dict(kept["optimizer"])

        def look() -> None:
            together.write_back()
            for model, data, met, path in zip(models, datasets, losses, seen, strict=True):
                path.append(_moment(model, data, step, met, watched or {}))
                model.train()

        for model in models:
            model.train()
        while step < steps or (
            stop_loss is not None and step < horizon and float(losses.mean(1).max()) > stop_loss
        ):
            place = step % epoch
            if place == 0:
                if checkpoint is not None and step:
                    together.write_back()
                    state = {
                        "models": [model.state_dict() for model in models],
                        "optimizer": optimizer.state_dict(),
                        "generator": generator.get_state(),
                        "random": torch.get_rng_state(),
                        "step": step,
                        "seen": seen,
                        "losses": losses,
                    }
                    if forked:
                        state["random_device"] = torch.cuda.get_rng_state(device)
                    with replacing(checkpoint) as file:
                        torch.save(state, file)
                order = torch.randperm(size, generator=generator).to(device)
            rows = order[place * protocol.batch : (place + 1) * protocol.batch]
            for group in optimizer.param_groups:
                cosine = (1 + math.cos(math.pi * step / horizon)) / 2
                group["lr"] = protocol.learning_rate * (0.01 + 0.99 * cosine)
            optimizer.zero_grad()
            outputs = together(torch.stack([data.x[rows] for data in datasets]))
            labels = torch.stack([data.y[rows] for data in datasets])
            each = F.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="none")
            loss = each.view(labels.shape).mean(dim=1)  # (models,)
            loss.sum().backward()
            optimizer.step()
            losses[:, place] = loss.detach()
            step += 1
            if step in marks or step == steps:
                look()
        if seen[0][-1]["step"] != step:
            look()
    for model in models:
        model.eval()
    return seen


def _moment(
    model: nn.Module, data: Examples, step: int, losses: Tensor, watched: Mapping[str, Examples]
) -> dict[str, float | int]:
    shares = {
        name: _rounded(score(model, part)[1].float().mean()) for name, part in watched.items()
    }
    loss = score(model, data)[0].mean()
    return {"step": step, "loss": _rounded(loss), "running": _rounded(losses.mean()), **shares}


def _rounded(value: Tensor | float) -> float:
    return float(f"{float(value):.5g}")


def joined(*parts: Examples) -> Examples:
    """Return examples one after the other."""
    return Examples(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]))


def controls(delta: Tensor, *, seed: int) -> dict[str, Tensor]:
    """Return changes of the same size as those of an attack that should not do what it does.

    Args:
        delta: (n, length, channels) the attack's changes, n >= 2.
        seed: of the random signs and of the exchange.

    Returns:
        "noise": every entry with a random sign; "swapped": every example has the changes of
        another one; "flipped": all signs turned.

    Raises:
        ValueError: for fewer than two examples, NaN or infinity.
    """
    if len(delta) < 2 or not torch.isfinite(delta).all():
        raise ValueError(
            f"delta must be finite changes of two examples or more; got {len(delta)} of them"
        )
    generator = torch.Generator().manual_seed(as_seed("seed", seed))
    signs = torch.randint(2, delta.shape, generator=generator).to(delta) * 2 - 1
    order = torch.randperm(len(delta), generator=generator)
    swapped = torch.empty_like(delta)
    swapped[order] = delta[order.roll(1)]  # along one cycle: nobody keeps its own
    return {"noise": delta * signs, "swapped": swapped, "flipped": -delta}


def _noise_like(gradient: list[Tensor], seed: int) -> list[Tensor]:
    """Return Gaussian noise, of each tensor's size."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for g in gradient:
        noise = torch.randn(g.shape, generator=generator).to(g)
        made.append(noise * (g.norm() / noise.norm()))
    return made


@dataclass(frozen=True, eq=False)
class _Trial:
    """One attacked model with its data, and where intermediate states are kept (None: nowhere)."""

    kind: str
    clean: Examples
    bases: Examples
    targets: Examples
    others: Examples
    protocol: Protocol
    seed: int
    folder: Path | None = None

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make` returns, from a file if it was made before."""
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.pt"
        if not path.exists():
            made = make()
            with replacing(path) as file:
                torch.save(made, file)
        return torch.load(path, map_location=self.bases.x.device, weights_only=True)

    def trained(
        self,
        name: str,
        datasets: Sequence[Examples],
        *,
        kind: str | None = None,
        start: str = "same",
        order: int = 0,
        **options: Any,
    ) -> tuple[list[SequenceModel], list[list[dict[str, float | int]]]]:
        """Return a trained model for each of the datasets, all with one start, and what was seen;
        order 0 is the attacker's order of batches.
        """
        seed = 1000 * self.seed + (1 if start == "same" else 2)
        models = [
            build(kind or self.kind, self.bases, self.protocol, seed=seed).to(self.bases.x.device)
            for _ in datasets
        ]
        checkpoint = None if self.folder is None else self.folder / f"{name}.part.pt"

        def make() -> dict[str, Any]:
            seen = train(
                models,
                datasets,
                self.protocol,
                seed=10 * seed + order,
                watched={"attacked": self.targets, "others": self.others},
                checkpoint=checkpoint,
                **options,
            )
            return {"seen": seen, "models": [model.state_dict() for model in models]}

        found = self.kept(name, make)
        for model, weights in zip(models, found["models"], strict=True):
            model.load_state_dict(weights)
            model.eval()
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
        return models, found["seen"]

    def brewed(
        self,
        name: str,
        model: SequenceModel,
        eps: float,
        *,
        tail: float = 0.0,
        planted: bool = False,
        step: float | None = None,
    ) -> dict[str, Tensor]:
        """Return the changes of all bases, group by group, and the distances (see `Brew`)."""
        p = self.protocol
        loss, correct = score(model, self.targets)
        groups = target_groups(loss, correct, len(self.bases), sizes=p.groups, seed=self.seed)
        delta, distances = torch.zeros_like(self.bases.x), []
        for index, group in enumerate(groups):
            seed = 1000 * self.seed + index

            def make(group: Any = group, seed: int = seed) -> dict[str, Tensor]:
                brew = gradient_matching(
                    model,
                    self.bases.x,
                    self.bases.y,
                    self.targets.x,
                    self.targets.y,
                    eps=eps,
                    groups=[group],
                    steps=p.brew_steps,
                    step_size=eps * (step or p.brew_step),
                    restarts=p.restarts,
                    tail=tail,
                    seed=seed,
                    direction=(lambda g: _noise_like(g, seed)) if planted else None,
                )
                rows = group.bases.to(brew.delta.device)
                return {"delta": brew.delta[rows], "distance": brew.distance}

            found = self.kept(f"{name}-{index}", make)
            delta[group.bases] = found["delta"]
            distances.append(found["distance"])
        return {"delta": delta, "distance": torch.cat(distances).cpu()}

    def poisoned(self, delta: Tensor) -> Examples:
        """Return the training data: clean examples, bases, changed copies."""
        return joined(self.clean, self.bases, Examples(self.bases.x + delta, self.bases.y))


#: Weight of the penalty on early positions in the condition "tail": it halves the square of the
#: changes.
TAIL = 1e-4
#: Sizes of the changes, in standard deviations of the data: about the authors' ratio, and four
#: times as much.
EPS = (0.25, 1.0)


def _attack(case: _Trial, eps: Sequence[float], conditions: Iterable[str]) -> tuple[Any, ...]:
    """Return the attacked model, what was seen of it, changes by (condition, eps), and brews."""
    conditions = set(conditions)
    [model], [seen] = case.trained("attacked", [joined(case.clean, case.bases)])
    right, first = int(score(model, case.targets)[1].sum()), case.protocol.groups[0]
    if right < first[0] * first[1]:
        raise ValueError(
            f"the first groups of targets need {first[0] * first[1]} that the attacked model"
            f" classifies correctly, and {case.kind} does so with {right} of {len(case.targets)}"
            f" after {case.protocol.steps} steps at training loss {seen[-1]['loss']:.3g}: it must"
            " be trained longer (steps) or at another learning_rate, or the groups must be smaller"
        )
    changes: dict[tuple[str, float], Tensor] = {}
    brews: dict[tuple[str, float], dict[str, Tensor]] = {}
    for size in eps:
        for name in ("matched", "planted", "tail", "authors' step"):
            if name in conditions and (name in CONDITIONS or size == max(eps)):
                brews[name, size] = case.brewed(
                    f"{name}-{size}",
                    model,
                    size,
                    tail=TAIL if name == "tail" else 0.0,
                    planted=name == "planted",
                    step=LARGE.brew_step if name == "authors' step" else None,
                )
                changes[name, size] = brews[name, size]["delta"]
        matched = changes["matched", size]
        changes |= {
            (name, size): delta
            for name, delta in controls(matched, seed=case.seed).items()
            if name in conditions
        }
        if ("tail", size) in changes:
            tail = changes["tail", size]
            changes["tail noise", size] = controls(tail, seed=case.seed)["noise"]
            norm = [d.flatten(1).norm(dim=1)[:, None, None] for d in (tail, matched)]
            changes["matched, tail's size", size] = matched * (norm[0] / norm[1])
    return model, seen, changes, brews


def _record(victim: str, condition: str, eps: float, start: str, seen: list[Any]) -> dict[str, Any]:
    end = seen[-1]
    path = [[m[k] for k in ("step", "loss", "attacked", "others")] for m in seen]
    return {
        "victim": victim,
        "condition": condition,
        "eps": eps,
        "start": start,
        "attacked": end["attacked"],
        "others": end["others"],
        "loss": end["loss"],
        "path": path,
    }


def _brew_record(brew: dict[str, Tensor]) -> dict[str, float | int]:
    delta = brew["delta"]
    early = delta[:, : delta.shape[1] // 2].square().sum() / delta.square().sum()
    return {
        "distance": _rounded(brew["distance"].mean()),
        "size": _rounded(delta.square().mean().sqrt()),
        "first_half": _rounded(early),
    }


_CACHE: dict[str, Examples] = {}


def _data(name: str) -> Examples:
    if name not in _CACHE:
        as_choice("data", name, ("mnist1d", "digits"))
        _CACHE[name] = mnist1d() if name == "mnist1d" else digits()
    return _CACHE[name]


def trial(
    *,
    data: str,
    kind: str,
    seed: int,
    eps: Sequence[float] = EPS,
    part: str = "all",
    protocol: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Attack one model and train all victims: one job of the stored study.

    Three seeds go apart: of the split of the data and of the brew (`seed`), of the attacked model
    and of the victims with the same start (1000 seed + 1), of victims with a new start (1000 seed +
    2).

    Args:
        data: "mnist1d" or "digits".
        kind: of the attacked model, one of KINDS.
        seed: 0 to 1,000,000.
        eps: sizes of the changes.
        part: "all"; "core" leaves out new starts, tail, schedules and other victims.
        protocol: fields in place of those of SMALL.

    Returns:
        "runs", a record for each victim ("victim", "condition", "eps", "start", shares of correct
        answers on "attacked" and "others", training "loss", and "path": step, loss and both shares
        on the way), and "brews" by condition and eps ("distance", root mean square "size" of the
        changes, share of their square in the "first_half" of the positions).
    """
    kind = as_choice("kind", kind, KINDS)
    part = as_choice("part", part, ("all", "core"))
    seed = as_integer("seed", seed, low=0, high=1_000_000)
    eps = [as_scalar("each of eps", e, low=0.0, strict=True) for e in eps]
    changed = {} if protocol is None else as_mapping("protocol", protocol)
    for name in changed:
        as_choice("each name in protocol", name, Protocol.__dataclass_fields__)
    p = replace(SMALL, **changed)
    clean, bases, targets, others = _data(data).split(
        p.clean, p.bases, p.targets, p.others, seed=seed
    )
    case = _Trial(kind, clean, bases, targets, others, p, seed)
    full = part == "all"
    wanted = [*CONDITIONS, "tail", "authors' step"] if full else CONDITIONS
    _, attacked_seen, changes, brews = _attack(case, eps, wanted)
    clean = joined(clean, bases)
    zero = torch.zeros_like(case.bases.x)
    runs = []

    def victims(wanted: Sequence[tuple[str, float]], start: str, of: str = kind) -> None:
        """Train those whose data are unlike each other in the copies only, side by side."""
        datasets = [case.poisoned(changes.get(key, zero)) for key in wanted]
        seen = case.trained("", datasets, kind=of, start=start, order=1)[1]
        for (condition, size), path in zip(wanted, seen, strict=True):
            runs.append(_record(of, condition, size, start, path))

    _, [seen] = case.trained("", [clean], order=1)
    runs.append(_record(kind, "clean", 0.0, "same", seen))
    victims([("duplicates", 0.0), *changes], "same")
    again = [key for key in changes if key[0] in ("noise", "matched")]
    if full:
        victims([("duplicates", 0.0), *again], "new")
    if full and kind in KINDS[:3]:
        carried = [key for key in again if key[1] == max(eps)]
        for of in KINDS:
            if of != kind:
                victims(carried, "new", of)
        runs += _schedules(case, clean, attacked_seen)
    return {"runs": runs, "brews": {f"{c}, {e}": _brew_record(b) for (c, e), b in brews.items()}}


def _schedules(
    case: _Trial, clean: Examples, seen: list[dict[str, float | int]]
) -> list[dict[str, Any]]:
    """Return runs without any poison under the authors' schedule of retraining.

    They retrain with a cosine three times as long, and stop at the first epoch after the clean
    run's last whose running loss is at most that run's + 0.001. "slow" is the same cosine, cut
    where the clean run ended.
    """
    steps, bound = case.protocol.steps, seen[-1]["running"] + 1e-3
    _, [way] = case.trained("", [clean], order=1, horizon=3 * steps)
    runs = [_record(case.kind, "clean, slow", 0.0, "same", way)]
    unchanged = case.poisoned(torch.zeros_like(case.bases.x))
    first = steps * len(unchanged) // len(clean)  # equal epochs, as theirs
    _, [way] = case.trained(
        "", [unchanged], order=1, steps=first, horizon=3 * first, stop_loss=bound
    )
    return [*runs, _record(case.kind, "duplicates, authors' rule", 0.0, "same", way)]


def _jobs(seeds: int) -> tuple[Job, ...]:
    """Return `trial` on MNIST-1D for every kind, and on digits at 1 std for one."""
    everywhere: list[dict[str, Any]] = [{"data": "mnist1d", "kind": kind} for kind in KINDS]
    once: dict[str, Any] = {"data": "digits", "kind": "lru", "eps": [1.0], "part": "core"}
    return tuple(
        Job(f"{arguments['data']} {arguments['kind']}/{seed}", {**arguments, "seed": seed})
        for arguments in (*everywhere, once)
        for seed in range(seeds)
    )


def images(
    train_files: Sequence[str | Path],
    test_files: Sequence[str | Path],
    *,
    kind: str,
    seed: int = 0,
    eps: float = 0.25,
    protocol: Protocol | None = None,
    device: str = "cpu",
    precision: str = "float32",
    folder: Path,
) -> dict[str, Any]:
    """Attack one model at the authors' sizes, on image files in CIFAR-10's binary format.

    Every training keeps its state once an epoch and every group its poisons as files of `folder`:
    the same call goes on where an interrupted one stopped.

    Args:
        train_files: clean examples and bases come from the first, targets and others from the
            second.
        test_files: clean examples and bases come from the first, targets and others from the
            second.
        kind: one of KINDS.
        seed: of split, brew and starts.
        eps: size of the changes in standard deviations of the pixels; the authors' 16/255 is about
            .25.
        protocol: sizes; None: `large(kind)`.
        device: as torch names it, such as "cuda".
        precision: "float32"; "tf32", the same with faster products on a GPU; or "float64".
        folder: for intermediate states.

    Returns:
        "runs" and "brews" as `trial` returns them.

    Raises:
        ValueError: also if the trained model classifies too few targets correctly for the groups to
            choose from, which no choice of targets can mend: it has to be trained longer, or at
            another rate. (A Mamba-2 on 1,024 pixels needs more than 2,000 steps.)
    """
    kind = as_choice("kind", kind, KINDS)
    as_choice("precision", precision, ("float32", "tf32", "float64"))
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device must be one that torch has here; got {device!r}: {error}"
        ) from None
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    learning, testing = cifar10(train_files), cifar10(test_files)
    mean, std = learning.x.mean(), learning.x.std()
    dtype = torch.float64 if precision == "float64" else torch.float32

    def ready(part: Examples) -> Examples:
        return Examples(((part.x - mean) / std).to(device, dtype), part.y.to(device))

    p = large(kind) if protocol is None else as_instance("protocol", protocol, Protocol)
    clean, bases = (ready(e) for e in learning.split(p.clean, p.bases, seed=seed))
    targets, others = (ready(e) for e in testing.split(p.targets, p.others, seed=seed))
    case = _Trial(kind, clean, bases, targets, others, p, seed, folder)
    _, seen, changes, brews = _attack(case, [eps], ("noise", "matched"))
    runs = [_record(kind, "clean", 0.0, "same", seen)]
    changes = {("duplicates", 0.0): torch.zeros_like(bases.x), **changes}
    for (condition, size), delta in changes.items():
        _, [seen] = case.trained(f"{condition}-{size}", [case.poisoned(delta)], order=1)
        runs.append(_record(kind, condition, size, "same", seen))
    return {
        "kind": kind,
        "seed": seed,
        "protocol": asdict(p),
        "runs": runs,
        "brews": {f"{c}, {e}": _brew_record(b) for (c, e), b in brews.items()},
    }


# --- reading the results


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Return mean and 95 percent t-interval of independent values.

    Args:
        values: (n,) n >= 2, such as paired differences, one for each split of the data.

    Returns:
        Mean, lower and upper end.

    Raises:
        ValueError: for fewer values or such as are not finite.
    """
    found = np.asarray(values, dtype=float)
    if found.ndim != 1 or len(found) < 2 or not np.isfinite(found).all():
        raise ValueError(f"values must be at least two finite numbers; got {values!r}")
    half = student_t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found))
    return float(found.mean()), float(found.mean() - half), float(found.mean() + half)


def effect(
    trials: Sequence[Mapping[str, Any]],
    condition: str,
    against: str,
    on: str,
    *,
    eps: float = 1.0,
    kinds: Sequence[str] = KINDS,
    victim: str | None = None,
    start: str = "same",
    data: str = "mnist1d",
    equal_loss: bool = False,
) -> Float[np.ndarray, " seeds"]:
    """Return what a condition changes against another, paired by split, in percentage points.

    Models that share a split are not independent: their differences are averaged first.

    Args:
        trials: rows of the stored study.
        condition: see CONDITIONS; beyond them the runs know "tail", "tail noise", "matched, tail's
            size", "authors' step", "clean, slow" and "duplicates, authors' rule".
        against: see CONDITIONS; beyond them the runs know "tail", "tail noise", "matched, tail's
            size", "authors' step", "clean, slow" and "duplicates, authors' rule".
        on: "attacked" or "others".
        eps: size of the changes, where there are any.
        kinds: of attacked models, averaged.
        victim: kind of the victims; None: that of the attacked model.
        start: "same" as the attacked model's, or "new".
        data: "mnist1d" or "digits".
        equal_loss: compare where both training losses were last equal, on straight lines between
            the moments that were kept, in place of the end.

    Returns:
        Share of correct answers under `condition` less that under `against`, one for each split.

    Raises:
        ValueError: if the study has no such runs.
    """
    on = as_choice("on", on, ("attacked", "others"))
    found: dict[int, list[float]] = {}
    for row in trials:
        if row["data"] != data or row["kind"] not in kinds:
            continue
        pair = []
        for name in (condition, against):
            size = 0.0 if name.startswith(("clean", "duplicates")) else eps
            wanted = (victim or row["kind"], name, size, start)
            keys = ("victim", "condition", "eps", "start")
            pair += [r for r in row["runs"] if tuple(r[key] for key in keys) == wanted]
        if len(pair) != 2:
            raise ValueError(
                f"no runs of {condition!r} and {against!r} in {row['kind']}, {row['seed']}"
            )
        if equal_loss:
            level = max(run["loss"] for run in pair)
            values = [_at_loss(run, level, on) for run in pair]
        else:
            values = [run[on] for run in pair]
        found.setdefault(row["seed"], []).append(100 * (values[0] - values[1]))
    if not found:
        raise ValueError(f"no trials of {data!r} with {kinds!r}")
    return np.array([np.mean(found[seed]) for seed in sorted(found)])


def _at_loss(run: Mapping[str, Any], level: float, on: str) -> float:
    path = np.array(sorted((m[1], m[2 if on == "attacked" else 3]) for m in run["path"]))
    return float(np.interp(level, path[:, 0], path[:, 1]))


#: `python -m ssm_poison_lib study gradient_matching` runs it.
STUDY = Study("gradient_matching", trial, _jobs(10), scheduler="processes")
