"""Gradient matching on models where the answer is known, and on the layers; the data it is tried
on.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ssm_poison_lib.architectures import S4D, SequenceModel
from ssm_poison_lib.attacks.datasets import Examples, cifar10, digits, mnist1d
from ssm_poison_lib.attacks.gradient_matching import Group, gradient_matching, target_groups


class Logistic(nn.Module):
    """Logits w . x of sequences (n, length, 1), labels 0 and 1: the gradient is (sigmoid - y) x."""

    def __init__(self, length, dropout=0.0):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1.0, 1.0, length, dtype=torch.float64))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.dropout(x[..., 0]) @ self.w


def logistic_loss(logits, y):
    return F.binary_cross_entropy_with_logits(logits, y.double())


def drawn(n, length=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, length, 1, generator=generator, dtype=torch.float64)
    return x, (torch.rand(n, generator=generator) < 0.5).long()


def brew(model=None, *, bases=8, targets=4, **options):
    x, y = drawn(bases)
    target_x, target_y = drawn(targets, seed=1)
    settings = {"eps": 0.5, "steps": 60, "restarts": 2, "loss": logistic_loss} | options
    return gradient_matching(model or Logistic(6), x, y, target_x, target_y, **settings), (
        x,
        y,
        target_x,
        target_y,
    )


def gradient(model, x, y):
    model.zero_grad()
    logistic_loss(model(x), y).backward()
    return model.w.grad.clone()


def test_distance_is_one_minus_the_cosine_of_the_two_gradients():
    model = Logistic(6)
    found, (x, y, target_x, target_y) = brew(model)
    poison, target = gradient(model, found.x, y), -gradient(model, target_x, target_y)
    wanted = 1 - float(F.cosine_similarity(poison, target, dim=0))
    np.testing.assert_allclose(found.distance, [wanted], rtol=1e-5)
    assert found.curves.shape == (1, 60)
    assert found.distance[0] < 0.05 < found.curves[0, 0]
    torch.testing.assert_close(found.x, x + found.delta, rtol=0, atol=0)


def test_a_step_on_the_poisons_raises_the_targets_loss_and_one_on_noise_does_not():
    model = Logistic(6)
    found, (x, y, target_x, target_y) = brew(model)
    signs = torch.randn(
        x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    ).sign()
    before = float(logistic_loss(model(target_x), target_y).detach())
    risen = {}
    for name, added in (("poison", found.x), ("noise", x + 0.5 * signs)):
        stepped = Logistic(6)
        stepped.w.data -= 0.1 * F.normalize(gradient(model, added, y), dim=0)
        risen[name] = float(logistic_loss(stepped(target_x), target_y).detach()) - before
    # a step straight up the targets' loss
    best = 0.1 * float(gradient(model, target_x, target_y).norm())
    assert 0.9 * best < risen["poison"]
    assert risen["noise"] < 0.5 * best


@given(eps=st.floats(1e-3, 2.0), seed=st.integers(0, 1000))
def test_changes_never_exceed_eps_and_seeds_repeat(eps, seed):
    first, _ = brew(eps=eps, seed=seed, steps=3, restarts=1)
    again, _ = brew(eps=eps, seed=seed, steps=3, restarts=1)
    assert float(first.delta.abs().max()) <= eps
    assert torch.equal(first.x, again.x)


def test_restarts_keep_the_best():
    one, _ = brew(steps=2, restarts=1, seed=4)
    many, _ = brew(steps=2, restarts=12, seed=4)
    assert many.distance[0] < one.distance[0]


def test_the_penalty_leaves_changes_to_the_last_positions():
    plain, _ = brew(bases=1, targets=2, eps=0.3)
    late, _ = brew(bases=1, targets=2, eps=0.3, tail=1e3)
    share = [(b.delta[:, -1:].abs().sum() / b.delta.abs().sum()).item() for b in (plain, late)]
    assert share[1] > 2 * share[0]
    # Early entries are pulled to zero whatever the gradient says; the last has no penalty.
    assert late.delta[0, -1].abs() == pytest.approx(0.3)


def test_groups_are_matched_one_by_one_with_bases_of_their_own():
    groups = [
        Group(torch.tensor([0, 1]), torch.tensor([5, 2])),
        Group(torch.tensor([3]), torch.tensor([0])),
    ]
    model = Logistic(6)
    found, (_, y, target_x, target_y) = brew(model, groups=groups)
    untouched = [1, 3, 4, 6, 7]
    assert (found.delta[untouched] == 0).all()
    for group, distance in zip(groups, found.distance, strict=True):
        poison = gradient(model, found.x[group.bases], y[group.bases])
        target = -gradient(model, target_x[group.targets], target_y[group.targets])
        assert 1 - float(F.cosine_similarity(poison, target, dim=0)) == pytest.approx(
            float(distance), rel=1e-5
        )


def test_dropout_is_off_while_brewing_and_the_model_is_left_as_it_was():
    model = Logistic(6, dropout=0.5).train()
    model.w.grad = torch.full_like(model.w, 7.0)
    before = model.w.detach().clone()
    found, _ = brew(model)
    assert model.training
    assert model.dropout.training
    assert torch.equal(model.w.detach(), before)
    assert (model.w.grad == 7).all()
    still, _ = brew(Logistic(6).eval())
    assert torch.equal(found.x, still.x)


def test_target_groups_take_the_hardest_correct_ones_first():
    loss = torch.tensor([5.0, 1.0, 4.0, 3.0, 2.0, 9.0])
    correct = torch.tensor([True, True, True, True, True, False])
    groups = target_groups(loss, correct, 20, sizes=((1, 3, 6), (3, 1, 4)), seed=0)
    assert groups[0].targets.tolist() == [0, 2, 3]
    assert sorted(t for g in groups[1:] for t in g.targets.tolist()) == [1, 4, 5]
    bases = torch.cat([g.bases for g in groups])
    assert len(bases.unique()) == len(bases) == 6 + 3 * 4
    other = target_groups(loss, correct, 20, sizes=((1, 3, 6), (3, 1, 4)), seed=1)
    assert [g.bases.tolist() for g in other] != [g.bases.tolist() for g in groups]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": ((1, 9, 1),)}, "sizes must ask for at most 6 targets; got 9"),
        ({"sizes": ((1, 6, 1),)}, "sizes must begin with at most 5 correct targets; got 6"),
        ({"sizes": ((2, 1, 11),)}, "sizes must ask for at most 20 bases; got 22"),
        ({"sizes": ()}, "sizes must be triples"),
        ({"sizes": ((0, 1, 1),)}, "each entry of sizes must be an integer >= 1; got 0"),
        ({"loss": torch.tensor([1.0, float("nan"), 1.0, 1.0, 1.0, 1.0])}, "loss must be finite"),
        ({"correct": torch.tensor([True])}, r"loss and correct must be \(m,\)"),
        ({"bases": 0}, "bases must be an integer >= 1"),
        ({"seed": -1}, "seed must be an integer >= 0; got -1"),
    ],
)
def test_target_groups_name_what_is_wrong(change, message):
    good = {
        "loss": torch.arange(6.0),
        "correct": torch.arange(6) > 0,
        "bases": 20,
        "sizes": ((1, 2, 3),),
        "seed": 0,
    }
    with pytest.raises(ValueError, match=message):
        target_groups(**good | change)


X, Y = drawn(4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"eps": 0.0}, ValueError, "eps must be a finite number > 0"),
        ({"eps": -0.1}, ValueError, "eps must be a finite number > 0; got -0.1"),
        ({"y": Y.to("meta")}, ValueError, "y must be on the device of x, cpu; got meta"),
        ({"steps": 0}, ValueError, "steps must be an integer >= 1"),
        ({"restarts": 0}, ValueError, "restarts must be an integer >= 1"),
        ({"step_size": -1.0}, ValueError, "step_size must be a finite number > 0"),
        ({"tail": -1.0}, ValueError, "tail must be a finite number >= 0"),
        ({"seed": -1}, ValueError, "seed must be an integer >= 0"),
        ({"x": X[..., 0]}, ValueError, r"x must be floating point \(n, length, channels\)"),
        ({"x": X[:0]}, ValueError, "x must be floating point"),
        ({"x": X.long()}, ValueError, "x must be floating point"),
        ({"x": torch.full_like(X, float("nan"))}, ValueError, "x must be finite"),
        ({"y": Y[:2]}, ValueError, r"y must have one label per example, 4; got shape \(2,\)"),
        ({"target_x": X[:, :3]}, ValueError, r"target_x must be like x: \(m, 6, 1\)"),
        ({"target_x": X.float()}, ValueError, "target_x must be like x"),
        ({"target_y": Y[:1]}, ValueError, "target_y must have one label per example"),
        ({"groups": []}, ValueError, "groups must hold at least one group"),
        (
            {"groups": [Group(torch.tensor([4]), torch.tensor([0]))]},
            ValueError,
            r"groups\[0\].targets must be from 0 to 3; got 4 to 4",
        ),
        (
            {"groups": [Group(torch.tensor([0]), torch.tensor([-1]))]},
            ValueError,
            r"groups\[0\].bases must be from 0 to 3",
        ),
        (
            {"groups": [Group(torch.tensor([0]), torch.tensor([1, 1]))]},
            ValueError,
            r"groups\[0\].bases must be in no group twice",
        ),
        (
            {"groups": [Group(torch.tensor([0.5]), torch.tensor([1]))]},
            ValueError,
            "must be indices",
        ),
        (
            {"target_x": torch.zeros_like(X)},
            ValueError,
            "targets of group 0 have a gradient of size 0",
        ),
    ],
)
def test_gradient_matching_names_what_is_wrong(change, error, message):
    good = {
        "model": Logistic(6),
        "x": X,
        "y": Y,
        "target_x": X,
        "target_y": Y,
        "eps": 0.1,
        "steps": 1,
    }
    with pytest.raises(error, match=message):
        gradient_matching(**good | {"restarts": 1, "loss": logistic_loss} | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": Y + 1}, "y must be from 0 to 1, the model's outputs; got 1 to 2"),
        ({"target_y": torch.full_like(Y, -100)}, "target_y must be from 0 to 1.* got -100 to -100"),
        ({"y": Y.double()}, r"y must be int64 \(n,\); got torch.float64"),
        (
            {"loss": lambda out, y: out[:, 0] - y},
            r"loss must return one number, a mean; got \(4,\)",
        ),
        ({"direction": lambda g: g[:1]}, "direction must return a tensor like each parameter"),
    ],
)
def test_labels_and_functions_that_do_not_fit_are_named(change, message):
    model = SequenceModel(1, 2, lambda i: S4D(4, 2, seed=i), channels=4).double()
    good = {"model": model, "x": X, "y": Y, "target_x": X, "target_y": Y, "eps": 0.1, "steps": 1}
    with pytest.raises(ValueError, match=message):
        gradient_matching(**good | {"restarts": 1} | change)


def test_data_of_one_class_have_nothing_to_match():
    model = SequenceModel(1, 1, lambda i: S4D(4, 2, seed=i), channels=4)
    x, y = X.float(), torch.zeros(len(X), dtype=torch.int64)
    with pytest.raises(
        ValueError, match="groups: the targets of group 0 have a gradient of size 0"
    ):
        gradient_matching(model, x, y, x, y, eps=0.1, steps=1, restarts=1)


def test_a_direction_takes_the_place_of_the_targets_gradient():
    turned, (_, y, target_x, target_y) = brew(direction=lambda g: [-t for t in g])
    model = Logistic(6)
    poison, target = gradient(model, turned.x, y), gradient(model, target_x, target_y)
    cosine = float(F.cosine_similarity(poison, target, dim=0))
    assert cosine > 0.8  # the other way round, and the distance is to what was asked for
    assert 1 - cosine == pytest.approx(float(turned.distance[0]), rel=1e-5)


def test_a_model_without_parameters_is_refused():
    model = Logistic(6)
    model.w.requires_grad_(False)
    with pytest.raises(ValueError, match="model must have parameters that require gradients"):
        brew(model)


def test_it_runs_on_a_classifier_with_a_state_space_layer():
    torch.manual_seed(0)
    model = SequenceModel(
        1, 3, lambda i: S4D(8, 4, dt_min=0.01, dt_max=0.5, seed=i), channels=8, dropout=0.1
    )
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(6, 20, 1, generator=generator), torch.arange(6) % 3
    found = gradient_matching(model, x, y, x.flip(0), y, eps=0.5, steps=15, restarts=1)
    assert found.distance[0] < found.curves[0, 0]
    assert torch.isfinite(found.x).all()


def test_mnist1d_is_made_here_and_leaves_random_states_alone():
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    before = np.random.get_state()[1].copy(), torch.random.get_rng_state()  # noqa: NPY002
    data = mnist1d(50, seed=1)
    assert np.array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), before[1])
    assert data.x.shape == (50, 40, 1)
    assert data.x.dtype == torch.float32
    assert data.y.bincount().tolist() == [5] * 10
    assert abs(float(data.x.mean())) < 1e-5
    assert torch.equal(data.x, mnist1d(50, seed=1).x)
    assert not torch.equal(data.x, mnist1d(50, seed=2).x)
    with pytest.raises(ValueError, match="count must be a multiple of 10"):
        mnist1d(15)


def test_digits_are_sequences_of_64_pixels():
    data = digits()
    assert data.x.shape == (1797, 64, 1)
    assert float(data.x.std()) == pytest.approx(1, rel=1e-3)
    assert data.y.bincount(minlength=10).min() > 170


def test_parts_are_disjoint_and_repeat():
    data = Examples(torch.arange(12.0).reshape(12, 1, 1), torch.arange(12))
    a, b = data.split(5, 4, seed=3)
    assert (len(a), len(b)) == (5, 4)
    assert not set(a.y.tolist()) & set(b.y.tolist())
    assert torch.equal(a.x[:, 0, 0].long(), a.y)
    assert torch.equal(data.split(5, 4, seed=3)[1].y, b.y)
    for counts in ((), (0,), (7, 6)):
        with pytest.raises(ValueError, match="counts"):
            data.split(*counts, seed=0)


def test_cifar10_reads_its_binary_format(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    labels = np.array([7, 0, 9], dtype=np.uint8)
    records = np.concatenate([labels[:, None], images.reshape(3, -1)], axis=1)
    records[:2].tofile(tmp_path / "data_batch_1.bin")
    records[2:].tofile(tmp_path / "test_batch.bin")
    data = cifar10([tmp_path / "data_batch_1.bin", str(tmp_path / "test_batch.bin")])
    assert data.y.tolist() == [7, 0, 9]
    assert data.x.shape == (3, 1024, 3)
    np.testing.assert_allclose(data.x[1, 5 * 32 + 7], images[1, :, 5, 7] / 255.0, rtol=1e-6)

    (tmp_path / "cut.bin").write_bytes(records.tobytes()[:-1])
    (tmp_path / "empty.bin").write_bytes(b"")
    records[0, 0] = 10
    records.tofile(tmp_path / "label.bin")
    for name, message in (
        ("cut.bin", "files must hold whole records of 3073 bytes; got 9218 bytes in .*cut.bin"),
        ("empty.bin", "whole records"),
        ("label.bin", "labels from 0 to 9; got 10 in .*label.bin"),
        ("missing.bin", "files must be readable; got .*missing.bin"),
    ):
        with pytest.raises(ValueError, match=message):
            cifar10([tmp_path / name])
    with pytest.raises(TypeError, match="files must be a list of paths; got the single path"):
        cifar10(str(tmp_path / "label.bin"))
    with pytest.raises(ValueError, match="files must name at least one file"):
        cifar10([])
