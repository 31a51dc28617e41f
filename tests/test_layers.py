"""One channel of each layer: its response, its gradient flow, and the sweeps over recipes and
selective data.
"""

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from ssm_poison_lib.architectures import LRU, S4D, Mamba2
from ssm_poison_lib.architectures.channel import (
    CHANNELS,
    default_start,
    near_zero_start,
    selective_output,
)
from ssm_poison_lib.architectures.flow import channel_flow, many_gradient_flows
from ssm_poison_lib.flow import FlowError, gradient_flow
from ssm_poison_lib.parametrizations import phase_limit
from ssm_poison_lib.sequences import TrainingSet
from ssm_poison_lib.ssm import theorem_teacher
from ssm_poison_lib.studies import layers

LAYERS = [name for name in CHANNELS if name != "free"]


@pytest.mark.parametrize("seed", [0, 3])
def test_responses_are_those_of_the_layers(seed):
    impulse = torch.zeros(1, 9, 1, dtype=torch.float64)
    impulse[0, 0] = 1.0
    found = CHANNELS["S4D"].response(default_start("S4D", 3, seed=seed), 9)
    layer = S4D(1, 6, seed=seed).double()
    np.testing.assert_allclose(found, layer.kernel(9)[0].detach(), rtol=0, atol=1e-12)
    found = CHANNELS["LRU"].response(default_start("LRU", 3, seed=seed), 9)
    layer = LRU(1, 3, seed=seed).double()
    wanted = layer(impulse)[0, :, 0] - layer.D * impulse[0, :, 0]
    np.testing.assert_allclose(found, wanted.detach(), rtol=0, atol=1e-12)


def ssd_of_the_layer(p, slope, x):
    """The selective SSM of `Mamba2` itself, one head for each pole, C and B of the attention set to
    one.
    """
    dt_bias, A_log, B, C = torch.as_tensor(p)
    layer = Mamba2(1, 1, head_dim=1, expand=len(B)).double()
    dt = torch.nn.functional.softplus(dt_bias + slope * x[..., None])  # (n, length, K)
    u = (x[..., None] * B)[..., None]  # (n, length, K, 1)
    ones = torch.ones(*x.shape, 1, dtype=torch.float64)
    y = layer._ssd(u, ones, ones, dt, -dt * A_log.exp(), 4)[..., 0]
    return (y * C).sum(dim=-1)[:, -1]


def test_selective_output_is_that_of_mamba2():
    p = default_start("Mamba-2", 4, seed=2)
    rows, row = torch.as_tensor(p), torch.zeros(4, dtype=torch.float64)
    for wrong, message in (
        ((rows[:3], row, row[None]), r"parameters must be \(4, d\); got \(3, 4\)"),
        ((rows, row[:1], row[None]), r"slope must be \(4,\); got \(1,\)"),
        ((rows, row, row), r"x must be \(n, kappa\); got \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            selective_output(*wrong)
    rng = np.random.default_rng(0)
    x, slope = torch.as_tensor(rng.standard_normal((5, 9))), torch.as_tensor(rng.standard_normal(4))
    found = selective_output(torch.as_tensor(p), slope, x)
    np.testing.assert_allclose(found, ssd_of_the_layer(p, slope, x), rtol=0, atol=1e-14)
    found = selective_output(torch.as_tensor(p), 0 * slope, x)  # without selection: a convolution
    M = CHANNELS["Mamba-2"].response(p, 9)
    np.testing.assert_allclose(found, x.numpy()[:, ::-1] @ M, rtol=0, atol=1e-14)


@given(st.integers(0, 2**32 - 1))
def test_turning_the_signs_of_inputs_turns_the_slope(seed):
    # Why sign-symmetric data leave a slope of zero where it is.
    rng = np.random.default_rng(seed)
    p, slope, x = (torch.as_tensor(rng.standard_normal(shape)) for shape in ((4, 3), 3, (2, 6)))
    one, other = selective_output(p, slope, x), selective_output(p, -slope, -x)
    np.testing.assert_allclose(one, -other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("poles_only", [True, False])
@pytest.mark.parametrize("name", CHANNELS)
def test_the_flow_is_that_of_scipy(name, poles_only):
    channel = CHANNELS[name]
    own = name in ("LRU", "Mamba-2")
    start = default_start(name, 2, seed=1) if own else near_zero_start(name, 2, 0.6, seed=1)
    g, target = np.array([0.5, 0.0, 2.0, 1.0]), 0.9 ** np.arange(1, 5)
    place = [
        channel.rows.index(row) for row in (channel.poles_only if poles_only else channel.all_rows)
    ]

    def loss(y):
        p = start.copy()
        p[place] = y.reshape(len(place), -1)
        return (g * (target - channel.response(p, 5)[1:]) ** 2).sum() / 2

    def speed(_t, y):
        steps = 1e-6 * np.eye(len(y))
        return np.array([(loss(y - s) - loss(y + s)) / 2e-6 for s in steps])

    wanted = solve_ivp(
        speed, (0, 0.3), start[place].ravel(), method="DOP853", rtol=1e-5, atol=1e-6
    ).y[:, -1]
    end = channel_flow(
        channel, start[None], g[None], target, poles_only=poles_only, t_end=0.3, rtol=1e-7
    )
    np.testing.assert_allclose(end.parameters[0, place].ravel(), wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(end.loss[0], loss(wanted), rtol=1e-4)
    np.testing.assert_allclose(end.time, 0.3, rtol=1e-6)
    held = [i for i in range(len(channel.rows)) if i not in place]
    np.testing.assert_array_equal(end.parameters[0, held], start[held])


def test_mamba2_with_its_step_held_is_exp_minus_exp():
    # The theorem's two sequences, alone to their ends: the closed form of `phase_limit`, teacher 1.
    channel, p = CHANNELS["Mamba-2"], near_zero_start("Mamba-2", 4, 1e-2, seed=5)
    A = channel.poles_and_weights(p)[0].real
    for lag in (1, 6):
        g = np.eye(6)[[lag - 1]]
        end = channel_flow(channel, p[None], g, np.ones(6), poles_only=True, t_end=1e20, rtol=1e-7)
        assert end.loss[0] <= 1e-14
        A = phase_limit(A, "exp(-exp)", lag=lag)[0]
        p = end.parameters[0]
        np.testing.assert_allclose(channel.poles_and_weights(p)[0].real, A, rtol=0, atol=2e-5)


def test_a_gram_matrix_is_followed_as_gradient_flow_follows_it():
    x = np.random.default_rng(0).standard_normal((8, 5))
    data = TrainingSet(x, theorem_teacher(3))
    start = np.array([0.3, 0.2, 0.1])
    wanted = gradient_flow(
        start, (data.gram(), data.teacher.impulse_response(5)), parametrization="free", times=[0.4]
    ).A[0]
    p, seen = np.array([start, np.ones(3), np.ones(3)]), []
    end = channel_flow(
        CHANNELS["free"], p[None], data.gram()[None, 1:, 1:], np.ones(4), poles_only=True,
        t_end=0.4, rtol=1e-7, watch=lambda q, rows: seen.append((q, rows)),
    )  # fmt: skip
    np.testing.assert_allclose(end.parameters[0, 0], wanted, atol=1e-6)
    assert len(seen) > 5
    np.testing.assert_array_equal(seen[-1][0], end.parameters)
    assert all(rows.tolist() == [0] for _, rows in seen)


@pytest.mark.parametrize("name", ["S4D", "LRU", "Mamba-2"])
def test_weights_of_lags_are_a_diagonal_gram_matrix(name):
    channel, start = CHANNELS[name], default_start(name, 3, seed=0)[None]
    g, target = np.array([[0.5, 0.0, 2.0]]), 0.9 ** np.arange(1, 4)
    ends = [
        channel_flow(channel, start, weights, target, poles_only=False, t_end=10.0)
        for weights in (g, g[..., None] * np.eye(3))
    ]
    np.testing.assert_allclose(ends[0].parameters, ends[1].parameters, atol=1e-9)
    np.testing.assert_allclose(ends[0].loss, ends[1].loss)


def test_runs_side_by_side_do_not_touch_each_other():
    channel = CHANNELS["LRU"]
    starts = np.array([default_start("LRU", 3, seed=s) for s in range(3)])
    g, target = np.eye(4)[[0, 3, 2]], 0.9 ** np.arange(1, 5)
    together = channel_flow(channel, starts, g, target, poles_only=False, t_end=1e3)
    for i in range(3):
        alone = channel_flow(
            channel, starts[i : i + 1], g[i : i + 1], target, poles_only=False, t_end=1e3
        )
        np.testing.assert_allclose(together.parameters[i], alone.parameters[0], rtol=0, atol=1e-9)


def test_starts():
    for name in CHANNELS:
        poles, weights = CHANNELS[name].poles_and_weights(near_zero_start(name, 6, 1e-3, seed=4))
        assert np.abs(poles).max() < 1e-3
        assert (np.abs(np.angle(poles)) < 0.1001).all()
        if name != "S4D":
            np.testing.assert_allclose(weights, 1.0)
    p = near_zero_start("S4D", 1, 0.5, seed=0)
    p[1], p[2] = np.log(-np.log(0.9) / 0.1), 0.0
    np.testing.assert_allclose(CHANNELS["S4D"].response(p, 3), 0.9 ** np.arange(3))
    with pytest.raises(ValueError, match="channel must be one of"):
        default_start("free", 3, seed=0)
    with pytest.raises(ValueError, match="scale must be below 1; got 2"):
        near_zero_start("LRU", 3, 2.0, seed=0)


def points(**coordinates):
    return xr.Dataset(
        coords={k: np.atleast_1d(v) if np.ndim(v) else v for k, v in coordinates.items()}
    )


LAYER = {"start": 0, "trained": 0, "state_dim": 4, "length": 7, "scale": 1e-2, "seed": [0.0]}


def test_recipes():
    both = [
        i
        for i, r in enumerate(layers.RECIPES)
        if r.phases == ("both",) and r.lag == 1 and r.dose == 1
    ]
    order = [
        i
        for i, r in enumerate(layers.RECIPES)
        if r.phases == ("special", "baseline") and r.lag == 1
    ]
    found = layers.layer_errors(points(channel=3.0, recipe=[0.0, *both, *order], **LAYER))
    A = CHANNELS["Mamba-2"].poles_and_weights(near_zero_start("Mamba-2", 4, 1e-2, seed=0))[0].real
    assert found.sizes == {"recipe": 3, "seed": 1}
    assert found.loss.max() <= 1e-14
    error = found.error.values[:, 0]
    assert error[2] > 3 * error[0] > 3 * error[1]
    # The order's special phase ends at sum a_j = 0.9, the conserved quantity's curve of
    # `phase_limit`.
    assert len(A) == 4
    assert error[2] > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channel": 4.0}, "channel must be an integer from 0 to 3"),
        ({"start": 2}, "start must be an integer from 0 to 1"),
        ({"trained": 0.5}, "trained must be an integer from 0 to 1"),
        ({"recipe": [36.0]}, "recipe must be an integer from 0 to 35"),
        ({"length": 5}, "length must be at least 6; got 5"),
    ],
)
def test_bad_points_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        layers.layer_errors(points(**{"channel": 3.0, "recipe": [0.0], **LAYER, **change}))


def test_selective_errors():
    which = [list(layers.SELECTIVE).index(name) for name in ("e_1 and -e_1", "e_1")]
    grid = {"own_slope": 0.0, "seed": [0.0], "state_dim": 2, "scale": 0.4}
    found = layers.selective_errors(points(data=np.array(which, float), **grid)).isel(seed=0)
    assert found.loss.max() <= 1e-14
    assert abs(found.slope[0]) < 1e-12
    assert found.pole_at_2[0] == found.pole[0]
    assert found.slope[1] > 0.1
    assert found.pole_at_2[1] < found.pole[1] < found.pole_at_minus_2[1]
    assert found.gaussian[1] > 5 * found.gaussian[0]
    with pytest.raises(ValueError, match="data must be an integer from 0 to 8"):
        layers.selective_errors(points(data=[9.0], **grid))


def test_bad_arguments_of_a_flow_are_named():
    channel, start = CHANNELS["LRU"], default_start("LRU", 2, seed=0)[None]
    g, target = np.ones((1, 3)), np.ones(3)

    def flow(start=start, g=g, **change):
        return channel_flow(
            channel, start, g, target, **{"poles_only": True, "t_end": 1.0, **change}
        )

    with pytest.raises(ValueError, match="start must have 7 rows; got 6"):
        flow(start[:, :6])
    with pytest.raises(ValueError, match="weights must be >= 0; got -1 among them"):
        flow(g=-g)
    with pytest.raises(ValueError, match=r"weights must be of shape \(1, 3\); got \(1, 2\)"):
        flow(g=g[:, :2])
    with pytest.raises(ValueError, match=r"weights must be of shape \(1, 3, 3\); got \(1, 3, 2\)"):
        flow(g=np.ones((1, 3, 2)))
    with pytest.raises(ValueError, match="weights must be symmetric"):
        flow(g=np.triu(np.ones((1, 3, 3))))
    with pytest.raises(ValueError, match="positive semidefinite; got an eigenvalue -1 "):
        flow(g=np.diag([1.0, 2.0, -1.0])[None])
    with pytest.raises(ValueError, match="t_end must be a finite number > 0"):
        flow(t_end=0.0)
    with pytest.raises(ValueError, match="rtol"):
        flow(rtol=0.0)
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(FlowError, match="run 0 is not finite"),
    ):
        flow(np.where(np.arange(7)[:, None] > 1, 1e200, start))
    with pytest.raises(FlowError, match="no end after max_steps=2 steps: run 0"):
        many_gradient_flows(
            np.ones((1, 1)),
            lambda y, _: ((y**2).sum(axis=1), -2 * y),
            lambda _y, shift, _r: lambda right: right / (shift + 2)[:, None],
            t_end=1e9,
            max_steps=2,
        )
