"""S4D, LRU and Mamba-2 against the authors' layers, against themselves in other forms, and at their
edges.
"""

import math

import numpy as np
import pytest
import torch
from conftest import ROOT
from reference_architectures import NAMES, array, from_reference

from ssm_poison_lib.architectures import LRU, S4D, Mamba2, SequenceModel
from ssm_poison_lib.architectures._input import check_input, check_state

ARRAYS = np.load(ROOT / "tests" / "reference" / "architectures.npz")
METHODS = {
    "s4d": ("convolution", "recurrence"),
    "lru": ("scan", "convolution", "recurrence"),
    "lru depthwise": ("scan", "convolution", "recurrence"),
    "mamba2": ("chunked", "quadratic", "recurrence"),
}


def layer(kind, channels=4, seed=1):
    make = {
        "s4d": lambda: S4D(channels, 6, dt_min=0.01, dt_max=0.5, seed=seed),
        "lru": lambda: LRU(channels, 5, seed=seed),
        "lru depthwise": lambda: LRU(channels, 5, depthwise=True, seed=seed),
        "mamba2": lambda: Mamba2(channels, 3, head_dim=4, chunk=4, seed=seed),
    }
    return make[kind]()


def sequences(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("kind", NAMES)
def test_output_and_every_gradient_are_the_authors(kind):
    ours = from_reference(kind, ARRAYS)
    x = torch.tensor(ARRAYS[f"{kind}/input"], requires_grad=True)
    y = ours(x)
    np.testing.assert_allclose(y.detach(), ARRAYS[f"{kind}/output"], rtol=0, atol=1e-10)
    y.square().sum().backward()
    np.testing.assert_allclose(x.grad, ARRAYS[f"{kind}/grad_input"], rtol=0, atol=1e-10)
    parameters = dict((ours.layer if kind == "s4d" else ours).named_parameters())
    assert set(parameters) == set(NAMES[kind])
    for name, theirs in NAMES[kind].items():
        wanted = array(kind, ARRAYS, theirs, "grad").reshape(parameters[name].shape)
        np.testing.assert_allclose(parameters[name].grad, wanted, rtol=0, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("method", METHODS["lru"])
def test_every_form_is_the_authors_too(method):
    x, wanted = torch.tensor(ARRAYS["lru/input"]), ARRAYS["lru/output"]
    np.testing.assert_allclose(
        from_reference("lru", ARRAYS)(x, method).detach(), wanted, atol=1e-12
    )
    other = {"scan": "chunked", "convolution": "quadratic"}.get(method, method)
    x, wanted = torch.tensor(ARRAYS["mamba2/input"]), ARRAYS["mamba2/output"]
    np.testing.assert_allclose(
        from_reference("mamba2", ARRAYS)(x, other).detach(), wanted, atol=1e-12
    )


def test_kernel_is_the_authors():
    kernel = from_reference("s4d", ARRAYS).layer.kernel(16).detach()
    np.testing.assert_allclose(kernel, ARRAYS["s4d/kernel"], rtol=0, atol=1e-12)


def test_names_without_prefix_do_as_well():
    bare = {name: array("lru", ARRAYS, name) for name in NAMES["lru"].values()}
    x = torch.tensor(ARRAYS["lru/input"])
    np.testing.assert_array_equal(
        from_reference("lru", bare)(x).detach(), from_reference("lru", ARRAYS)(x).detach()
    )
    with pytest.raises(KeyError, match="nu_log"):
        from_reference("lru", {})
    with pytest.raises(ValueError, match="kind must be one of s4d, lru, mamba2; got 'gru'"):
        from_reference("gru", ARRAYS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 17, 64])
@pytest.mark.parametrize("kind", METHODS)
def test_recurrence_and_parallel_forms_agree(kind, length, dtype):
    model = layer(kind).to(dtype)
    x = sequences(3, length, 4, dtype=dtype)
    first, *others = (model(x, method=method) for method in METHODS[kind])
    assert first.dtype == dtype
    for other in others:
        tolerance = 1e-12 if dtype == torch.float64 else 2e-5
        np.testing.assert_allclose(first.detach(), other.detach(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", METHODS)
def test_gradients_of_all_forms_agree(kind):
    x = sequences(2, 9, 4)
    found = []
    for method in METHODS[kind]:
        model = layer(kind).double()
        model(x, method=method).square().sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for other in found[1:]:
        for name, gradient in found[0].items():
            np.testing.assert_allclose(gradient, other[name], rtol=1e-9, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("kind", METHODS)
def test_steps_with_a_state_are_the_whole_sequence(kind):
    model, x = layer(kind).double(), sequences(2, 11, 4, seed=3)
    state, out = model.initial_state(2), []
    for t in range(x.shape[1]):
        y, state = model.step(x[:, t], state)
        out.append(y)
    np.testing.assert_allclose(torch.stack(out, 1).detach(), model(x).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", METHODS)
def test_gradcheck_first_and_second_order(kind):
    model, x = layer(kind, channels=2).double(), sequences(1, 5, 2, seed=5).requires_grad_()
    names, values = zip(*model.named_parameters(), strict=True)

    def output(x, *parameters):
        return torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (x,))

    values = tuple(value.detach().clone().requires_grad_() for value in values)
    assert torch.autograd.gradcheck(output, (x, *values), fast_mode=True)
    assert torch.autograd.gradgradcheck(output, (x, *values), fast_mode=True)


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_later_input_never_changes_an_earlier_output(kind, index):
    methods = METHODS[kind]
    model, x = layer(kind).double(), sequences(1, 13, 4, seed=7)
    for t in (1, 6, 12):
        changed = x.clone()
        changed[:, t:] += 1e3 * sequences(1, 13 - t, 4, seed=8)
        method = methods[index % len(methods)]
        before, after = model(x, method=method)[:, :t], model(changed, method=method)[:, :t]
        np.testing.assert_allclose(before.detach(), after.detach(), rtol=0, atol=1e-9)
        assert (model(changed)[:, t] - model(x)[:, t]).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("size", [-30.0, -8.0, 8.0, 30.0])
def test_no_nan_at_extreme_parameters(kind, size, dtype):
    x = sequences(2, 9, 4, dtype=dtype)
    every = [name for name, _ in layer(kind).named_parameters()]
    names = [name for name in every if "log" in name or "dt" in name or "imag" in name] or every
    for group in ([name] for name in names):
        model = layer(kind).to(dtype)
        for name, parameter in model.named_parameters():
            if name in group:
                parameter.data.fill_(size)
        for method in METHODS[kind]:
            model.zero_grad()
            y = model(x, method=method)
            y.sum().backward()
            assert torch.isfinite(y).all(), (group, method)
            for name, parameter in model.named_parameters():
                assert torch.isfinite(parameter.grad).all(), (group, method, name)


def test_poles_are_inside_the_unit_disc_and_starts_as_documented():
    model = LRU(3, 400, r_min=0.6, r_max=0.9, max_phase=0.3, seed=0)
    poles = model.poles().detach()
    assert 0.6 <= poles.abs().min() < 0.62
    assert 0.88 < poles.abs().max() <= 0.9
    assert 0 < poles.angle().min()
    assert poles.angle().max() <= 0.3
    np.testing.assert_allclose(model.gamma_log.exp().detach() ** 2, 1 - poles.abs() ** 2, rtol=1e-4)
    a, b = S4D(2, 8, seed=0).double().discretize()
    assert (a.abs() < 1).all()
    assert b.shape == (2, 4)
    dt = torch.nn.functional.softplus(Mamba2(64, 4, seed=0).dt_bias)
    assert 1e-3 <= dt.min() * (1 + 1e-4)
    assert dt.max() <= 0.1 * (1 + 1e-4)


def test_states_of_white_noise_have_the_same_size_whatever_the_pole():
    # The point of gamma: the variance of state n is that of row n of B x, for slow poles as for
    # fast ones.
    model = LRU(16, 64, r_min=0.5, r_max=0.98, seed=2).double()
    states = (
        model._scan(model._drive(sequences(8, 2000, 16)))[:, 500:].abs().square().mean(dim=(0, 1))
    )
    rows = (model.B_re.square() + model.B_im.square()).sum(dim=1)
    np.testing.assert_allclose((states / rows).detach(), 1.0, atol=0.15)


@pytest.mark.parametrize("kind", METHODS)
def test_a_seed_repeats_and_leaves_torchs_random_state_alone(kind):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two = layer(kind), layer(kind)
    assert torch.equal(torch.random.get_rng_state(), before)
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("kind", METHODS)
def test_bad_input_is_named(kind):
    model = layer(kind)
    good = sequences(2, 5, 4, dtype=torch.float32)
    bad = [
        (
            TypeError,
            "x must be a torch tensor of floating point numbers; got torch.int64",
            good.long(),
        ),
        (
            ValueError,
            r"x must have shape \(batch, length, 4\), no axis empty; got \(2, 5, 3\)",
            good[..., :3],
        ),
        (ValueError, r"got \(5, 4\)", good[0]),
        (ValueError, r"got \(2, 0, 4\)", good[:, :0]),
        (
            ValueError,
            "x must have the layer's dtype torch.float32; got torch.float64",
            good.double(),
        ),
        (ValueError, "x must be on the layer's device cpu; got meta", good.to("meta")),
        (ValueError, "x must be finite", torch.where(good > 1, math.nan, good)),
    ]
    for error, message, x in bad:
        with pytest.raises(error, match=message):
            model(x)
    with pytest.raises(
        TypeError, match="x must be a torch tensor of floating point numbers; got ndarray"
    ):
        check_input("x", good.numpy(), model, ("batch", "length", 4))
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 4\)"):
        model.step(good, model.initial_state(2))
    other = model.initial_state(3)
    one, name = (other, "state") if torch.is_tensor(other) else (other[0], r"state\[0\]")
    with pytest.raises(ValueError, match=rf"{name} must have shape \(2, .*; got \(3, "):
        model.step(good[:, 0], other)
    with pytest.raises(TypeError, match="state must be a torch tensor; got ndarray"):
        check_state("state", one.numpy(), one)
    with pytest.raises(ValueError, match=r"state must have dtype .* got torch.float16"):
        check_state("state", one.real.half(), one)
    right = model.initial_state(2)
    broken = right * math.nan if torch.is_tensor(right) else (right[0] * math.nan, right[1])
    with pytest.raises(ValueError, match=f"{name} must be finite"):
        model.step(good[:, 0], broken)
    huge = torch.full_like(good, 3e38)  # finite, though its sum is not
    assert check_input("x", huge, model, ("batch", "length", 4)) is huge
    with pytest.raises(ValueError, match="batch must be an integer >= 1; got 0"):
        model.initial_state(0)
    with pytest.raises(ValueError, match="method must be one of"):
        model(good, method="magic")
    with pytest.raises(ValueError, match="seed must be an integer from 0 to 4294967295; got -1"):
        layer(kind, seed=-1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: S4D(0), "channels must be an integer >= 1; got 0"),
        (lambda: S4D(4, 5), "state_dim must be even, for pairs of conjugate poles; got 5"),
        (lambda: S4D(4, dt_min=0.0), "dt_min must be a finite number > 0"),
        (lambda: S4D(4, dt_min=0.1, dt_max=0.01), "dt_max must be a finite number >= 0.1"),
        (lambda: S4D(4).kernel(0), "length must be an integer >= 1; got 0"),
        (lambda: LRU(4, 0), "state_dim must be an integer >= 1; got 0"),
        (lambda: LRU(4, r_min=0.9, r_max=0.5), "r_max must be a finite number > 0.9"),
        (lambda: LRU(4, r_max=1.5), "r_max must be at most 1"),
        (lambda: LRU(4, max_phase=0.0), "max_phase must be a finite number > 0"),
        (lambda: Mamba2(4, head_dim=3), "head_dim must divide expand \\* channels = 8; got 3"),
        (lambda: Mamba2(4, head_dim=4, chunk=0), "chunk must be an integer >= 1; got 0"),
        (lambda: Mamba2(4, head_dim=4, conv_width=0), "conv_width must be an integer >= 1"),
        (
            lambda: SequenceModel(1, 2, lambda i: S4D(4), channels=4, depth=0),
            "depth must be an integer >= 1",
        ),
        (
            lambda: SequenceModel(1, 2, lambda i: S4D(4), channels=4, pooling="max"),
            "pooling must be one of",
        ),
        (
            lambda: SequenceModel(1, 2, lambda i: S4D(4), channels=4, dropout=1.0),
            "dropout must be below 1",
        ),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_layer_must_be_a_function():
    with pytest.raises(TypeError, match="layer must be a function of the block's index; got S4D"):
        SequenceModel(1, 2, S4D(4, 4), channels=4)
    with pytest.raises(TypeError, match=r"layer\(0\) must be a Module; got int"):
        SequenceModel(1, 2, lambda i: i, channels=4)
    narrow = SequenceModel(1, 2, lambda i: torch.nn.Linear(4, 3), channels=4)
    with pytest.raises(
        ValueError, match=r"layer must map \(1, 6, 4\) to the same shape; got \(1, 6"
    ):
        narrow(sequences(1, 6, 1, dtype=torch.float32))


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("kind", METHODS)
def test_a_small_classifier_learns_which_sign_came_first(kind, pooling):
    torch.manual_seed(0)
    model = SequenceModel(
        1, 2, lambda i: layer(kind, channels=8), channels=8, depth=1, pooling=pooling
    )
    x = sequences(64, 12, 1, seed=11, dtype=torch.float32)
    label = (x[:, 0, 0] > 0).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    for _ in range(80):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), label)
        loss.backward()
        optimizer.step()
    accuracy = (model(x).argmax(1) == label).float().mean()
    assert accuracy > 0.9, accuracy
    assert model(x).shape == (64, 2)


def test_pooling_last_sees_the_last_step_and_mean_sees_all():
    x = sequences(1, 6, 1, dtype=torch.float32)
    for pooling in ("mean", "last"):
        model = SequenceModel(1, 1, lambda i: torch.nn.Identity(), channels=3, pooling=pooling)
        changed = x.clone()
        changed[:, 2] += 1.0
        assert torch.equal(model(changed), model(x)) == (pooling == "last")


@pytest.mark.parametrize("length", [1, 7, 40])
def test_mamba2_is_that_of_transformers(length):
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    torch.manual_seed(3)
    settings = Mamba2Config(
        hidden_size=16, num_heads=4, head_dim=8, state_size=6, n_groups=1, chunk_size=8, expand=2
    )
    theirs = Mamba2Mixer(settings, layer_idx=0).eval()
    with torch.no_grad():  # weights at which nothing is small, and norms are seen
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    ours = from_reference(
        "mamba2", {name: p.numpy() for name, p in theirs.state_dict().items()}
    ).float()
    x = sequences(2, length, 16, dtype=torch.float32)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    first, second = ours(a), theirs(b)
    np.testing.assert_allclose(first.detach(), second.detach(), rtol=0, atol=2e-5)
    first.square().sum().backward()
    second.square().sum().backward()
    np.testing.assert_allclose(a.grad, b.grad, rtol=0, atol=2e-4)
