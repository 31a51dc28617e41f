"""Gradient matching: small changes of training examples, labels kept, that raise a target's loss.

A training step on the poisons moves the weights along minus their gradient. If that gradient is
parallel to *minus* the gradient of the loss on target examples, the step raises the targets' loss.
So the attack looks for changes delta, at most eps in size, that make the two gradients parallel:

    minimize  1 - <g_poison, g_target> / (|g_poison| |g_target|),
    g_poison = grad of mean loss(x + delta, y),  g_target = -grad of mean loss(targets).

Source: Geiping et al., "Witches' Brew: Industrial Scale Data Poisoning via Gradient Matching" (ICLR
2021); groups, signed Adam, restarts and the weight on positions as in the poisoning paper's code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from ssm_poison_lib._checks import as_flag, as_function, as_instance, as_integer, as_scalar

__all__ = ["Brew", "Group", "gradient_matching", "target_groups"]

Loss = Callable[[Tensor, Tensor], Tensor]
Direction = Callable[[list[Tensor]], list[Tensor]]


@dataclass(frozen=True, eq=False)
class Group:
    """Targets whose loss is to grow, and the bases that are changed for them; indices into the two
    sets.

    Attributes:
        targets: (m,) rows of the target examples.
        bases: (k,) rows of the base examples.
    """

    targets: Tensor
    bases: Tensor


@dataclass(frozen=True, eq=False)
class Brew:
    """What `gradient_matching` returns.

    Attributes:
        x: (n, length, channels) the poisons, base examples plus delta; their labels are those of
            the bases.
        delta: (n, length, channels) the changes, at most eps in size.
        distance: (groups,) 1 - cosine similarity at the end, of the restart that was kept.
        curves: (groups, steps) the same along its steps, each measured before the step.
    """

    x: Float[Tensor, "n length channels"]
    delta: Float[Tensor, "n length channels"]
    distance: Float[Tensor, " groups"]
    curves: Float[Tensor, "groups steps"]


def target_groups(
    loss: Tensor, correct: Tensor, bases: int, *, sizes: Sequence[tuple[int, int, int]], seed: int
) -> list[Group]:
    """Return disjoint groups of targets with bases of their own: correctly classified ones of
    highest loss first.

    Args:
        loss: (m,) of the target examples under the model that is attacked.
        correct: (m,) of the target examples under the model that is attacked.
        bases: how many base examples there are.
        sizes: (groups, targets in each, bases in each), in order; the first entry takes the
            correctly classified targets of highest loss, each later one what is left, in random
            order.
        seed: of the random order of bases and of later targets.

    Raises:
        ValueError: if there are not enough targets, correctly classified targets or bases.

    Source: the attack of the poisoning paper's code, there sizes = ((20, 50, 250), (40, 50, 125)).
    """
    loss, correct = as_instance("loss", loss, Tensor), as_instance("correct", correct, Tensor)
    if loss.ndim != 1 or loss.shape != correct.shape or not len(loss):
        raise ValueError(
            f"loss and correct must be (m,); got {tuple(loss.shape)} and {tuple(correct.shape)}"
        )
    if not torch.isfinite(loss).all():
        raise ValueError("loss must be finite; got NaN or infinity among its entries")
    bases = as_integer("bases", bases, low=1)
    generator = torch.Generator().manual_seed(as_integer("seed", seed, low=0))
    if not sizes or any(not isinstance(s, Sequence) or len(s) != 3 for s in sizes):
        raise ValueError(f"sizes must be triples (groups, targets, bases); got {sizes!r}")
    counts = [tuple(as_integer("each entry of sizes", n, low=1) for n in size) for size in sizes]
    first = counts[0][0] * counts[0][1]
    wanted, spent = sum(c * t for c, t, _ in counts), sum(c * b for c, _, b in counts)
    if wanted > len(loss):
        raise ValueError(f"sizes must ask for at most {len(loss)} targets; got {wanted}")
    if first > int(correct.sum()):
        raise ValueError(
            f"sizes must begin with at most {int(correct.sum())} correct targets; got {first}"
        )
    if spent > bases:
        raise ValueError(f"sizes must ask for at most {bases} bases; got {spent}")
    hardest = torch.where(correct.bool(), loss, -torch.inf).argsort(descending=True)[:first].cpu()
    others = torch.ones(len(loss), dtype=torch.bool)
    others[hardest] = False
    left = others.nonzero()[:, 0]
    left = left[torch.randperm(len(left), generator=generator)]
    order, pool = torch.cat([hardest, left]), torch.randperm(bases, generator=generator)
    groups = []
    for count, t, b in counts:
        for _ in range(count):
            groups.append(Group(order[:t], pool[:b]))
            order, pool = order[t:], pool[b:]
    return groups


@contextmanager
def _frozen(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """The model in evaluation mode, and its trainable parameters; afterwards as it was, gradients
    included.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield [p for p in model.parameters() if p.requires_grad]
    finally:
        for module, mode in modes:
            module.training = mode


def _gradient(
    loss: Tensor, parameters: list[nn.Parameter], *, create_graph: bool = False
) -> list[Tensor]:
    found = torch.autograd.grad(loss, parameters, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def _norm(gradient: list[Tensor]) -> Tensor:
    return torch.stack([g.square().sum() for g in gradient]).sum().sqrt()


def gradient_matching(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    target_x: Tensor,
    target_y: Tensor,
    *,
    eps: float,
    groups: Sequence[Group] | None = None,
    steps: int = 250,
    step_size: float | None = None,
    restarts: int = 8,
    tail: float = 0.0,
    seed: int = 0,
    loss: Loss = F.cross_entropy,
    direction: Direction | None = None,
    progress: bool = False,
) -> Brew:
    """Return poisons whose mean gradient is parallel to minus the mean gradient of the targets,
    group by group.

    Args:
        model: any torch module that maps (n, length, channels) to what `loss` takes. It is used in
            evaluation mode (dropout off, statistics of batch norms fixed) whatever its mode is, and
            left as it was.
        x: base examples (n, length, channels) and their labels (n,), which do not change.
        y: base examples (n, length, channels) and their labels (n,), which do not change.
        target_x: target examples and their labels, whose loss is to grow.
        target_y: target examples and their labels, whose loss is to grow.
        eps: > 0, the largest change of an entry, in the data's units.
        groups: see `target_groups`; None: one group of all.
        steps: of signed Adam, >= 1, for each restart.
        step_size: > 0; None: 1.5 eps, which is about what the authors use.
        restarts: >= 1; the one with the smallest distance at its end is kept.
        tail: >= 0, weight of the penalty sum_t (length - t) delta_t^2, t = 1 .. length, which
            leaves changes to the last positions; its gradient is added before the sign is taken.
        seed: of the starting changes, apart from every seed of model and data.
        loss: (outputs, labels) -> mean loss.
        direction: maps minus a group's gradient, a tensor for each parameter, to what is matched in
            its place; for controls, such as noise of the same sizes. None: itself.
        progress: a bar over groups and restarts.

    Raises:
        TypeError: or ValueError for other types, shapes, dtypes, devices, values that are not
            finite, labels that the model has no output for (with cross-entropy), indices outside
            the sets, bases in two groups, or targets whose gradient is zero.
    """
    model = as_instance("model", model, nn.Module)
    _check_examples("x", x, "y", y)
    _check_examples("target_x", target_x, "target_y", target_y)
    if (
        target_x.shape[1:] != x.shape[1:]
        or target_x.dtype != x.dtype
        or target_x.device != x.device
    ):
        raise ValueError(
            f"target_x must be like x: (m, {x.shape[1]}, {x.shape[2]}), {x.dtype}, {x.device};"
            f" got {tuple(target_x.shape)}, {target_x.dtype}, {target_x.device}"
        )
    eps = as_scalar("eps", eps, low=0.0, strict=True)
    steps, restarts = as_integer("steps", steps, low=1), as_integer("restarts", restarts, low=1)
    size = (
        1.5 * eps if step_size is None else as_scalar("step_size", step_size, low=0.0, strict=True)
    )
    tail = as_scalar("tail", tail, low=0.0)
    progress, loss = as_flag("progress", progress), as_function("loss", loss)
    if direction is not None:
        direction = as_function("direction", direction)
    generator = torch.Generator().manual_seed(as_integer("seed", seed, low=0))
    if groups is None:
        groups = [Group(torch.arange(len(target_x)), torch.arange(len(x)))]
    _check_groups(groups, len(target_x), len(x))
    length = x.shape[1]
    early = torch.arange(length - 1, -1, -1, dtype=x.dtype, device=x.device)[
        :, None
    ]  # length - t, t = 1 .. length

    delta, distances, curves = torch.zeros_like(x), [], []
    with (
        _frozen(model) as parameters,
        tqdm(total=len(groups) * restarts, disable=not progress, unit="restart") as bar,
    ):
        if not parameters:
            raise ValueError("model must have parameters that require gradients")
        if loss is F.cross_entropy:
            with torch.no_grad():
                classes = model(x[:1]).shape[-1]
            _check_labels("y", y, classes)
            _check_labels("target_y", target_y, classes)
        for index, group in enumerate(groups):
            bases, labels = x[group.bases], y[group.bases]
            at_targets = loss(model(target_x[group.targets]), target_y[group.targets])
            if not isinstance(at_targets, Tensor) or at_targets.ndim:
                got = tuple(at_targets.shape) if isinstance(at_targets, Tensor) else at_targets
                raise ValueError(f"loss must return one number, a mean; got {got}")
            wanted = [-g for g in _gradient(at_targets, parameters)]
            if direction is not None:
                wanted = direction(wanted)
                if [g.shape for g in wanted] != [p.shape for p in parameters]:
                    raise ValueError("direction must return a tensor like each parameter")
            target_size = _norm(wanted)
            if not target_size > 0 or not torch.isfinite(target_size):
                raise ValueError(
                    f"groups: the targets of group {index} have a gradient of size"
                    f" {float(target_size):g}"
                )

            def distance(change: Tensor, *, graph: bool) -> Tensor:
                poison = _gradient(
                    loss(model(bases + change), labels),  # noqa: B023
                    parameters,
                    create_graph=graph,
                )
                terms = [(a * b).sum() for a, b in zip(poison, wanted, strict=True)]  # noqa: B023
                inner = torch.stack(terms).sum()
                return 1 - inner / (_norm(poison) * target_size).clamp_min(1e-30)  # noqa: B023

            best = None
            for _ in range(restarts):
                start = eps * (2 * torch.rand(bases.shape, generator=generator, dtype=x.dtype) - 1)
                change = start.to(x.device).requires_grad_()
                optimizer, curve = torch.optim.Adam([change], lr=size), []
                for _ in range(steps):
                    now = distance(change, graph=True)
                    curve.append(float(now.detach()))
                    (slope,) = torch.autograd.grad(now, change)
                    change.grad = (slope + 2 * tail * early * change.detach()).sign()
                    optimizer.step()
                    with torch.no_grad():
                        change.clamp_(-eps, eps)
                end = float(distance(change, graph=False).detach())
                if best is None or end < best[0]:
                    best = (end, change.detach(), curve)
                bar.update()
            assert best is not None
            distances.append(best[0])
            delta[group.bases] = best[1]
            curves.append(best[2])
    return Brew(x + delta, delta, torch.tensor(distances), torch.tensor(curves))


def _check_examples(name: str, x: Tensor, label: str, y: Tensor) -> None:
    x, y = as_instance(name, x, Tensor), as_instance(label, y, Tensor)
    if x.ndim != 3 or 0 in x.shape or not x.dtype.is_floating_point:
        raise ValueError(
            f"{name} must be floating point (n, length, channels), no axis empty; got {x.dtype}"
            f" {tuple(x.shape)}"
        )
    if not torch.isfinite(x).all():
        raise ValueError(f"{name} must be finite; got NaN or infinity among its entries")
    if y.ndim < 1 or len(y) != len(x):
        raise ValueError(
            f"{label} must have one label per example, {len(x)}; got shape {tuple(y.shape)}"
        )
    if y.device != x.device:
        raise ValueError(f"{label} must be on the device of {name}, {x.device}; got {y.device}")


def _check_labels(name: str, y: Tensor, classes: int) -> None:
    """Refuse what cross-entropy takes for no label at all (-100) or fails on without a name."""
    if y.ndim != 1 or y.dtype != torch.int64:
        raise ValueError(f"{name} must be int64 (n,); got {y.dtype} {tuple(y.shape)}")
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(
            f"{name} must be from 0 to {classes - 1}, the model's outputs; got {int(y.min())} to"
            f" {int(y.max())}"
        )


def _check_groups(groups: Sequence[Group], targets: int, bases: int) -> None:
    if not groups:
        raise ValueError("groups must hold at least one group")
    used = torch.zeros(bases, dtype=torch.bool)
    for index, group in enumerate(groups):
        as_instance(f"groups[{index}]", group, Group)
        for name, rows, count in (
            ("targets", group.targets, targets),
            ("bases", group.bases, bases),
        ):
            rows = as_instance(f"groups[{index}].{name}", rows, Tensor)
            if rows.ndim != 1 or rows.dtype != torch.int64 or not len(rows):
                raise ValueError(
                    f"groups[{index}].{name} must be indices (k,), k >= 1; got {tuple(rows.shape)}"
                    f" {rows.dtype}"
                )
            if rows.min() < 0 or rows.max() >= count:
                raise ValueError(
                    f"groups[{index}].{name} must be from 0 to {count - 1}; got {int(rows.min())}"
                    f" to {int(rows.max())}"
                )
        rows = group.bases.cpu()
        if len(rows.unique()) < len(rows) or used[rows].any():
            raise ValueError(f"groups[{index}].bases must be in no group twice")
        used[rows] = True
