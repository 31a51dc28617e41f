"""Sweeps over the order of the data: against flows run phase by phase, and complex poles against
autograd.
"""

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.testing import assert_allclose

from ssm_poison_lib import flows
from ssm_poison_lib.flow import gradient_flow
from ssm_poison_lib.parametrizations import PARAMETRIZATIONS
from ssm_poison_lib.studies import order

NAMES = list(PARAMETRIZATIONS)
FIXED = {"scale": 3e-2, "state_dim": 3, "length": 5}


def run(function, **coords):
    return function(xr.Dataset(coords=coords))


def gram(alpha, beta, length=5):
    G = np.zeros((length, length))
    G[1, 1], G[-1, -1] = beta, alpha
    return G


def error(a):
    return np.abs((a[:, None] ** np.arange(1, 20)).sum(axis=0) - 1).max()


@pytest.mark.untyped
@pytest.mark.parametrize("number", range(4))
def test_orders_are_flows_phase_by_phase(number):
    start = FIXED["scale"] * -np.sort(-np.random.default_rng(4).random(3))
    target = np.r_[3.0, np.ones(4)]

    def follow(a, alpha, beta, t):
        return gradient_flow(
            a, (gram(alpha, beta), target), parametrization=NAMES[number], times=[t]
        ).A[0]

    result = run(
        order.parametrized_order_errors,
        order=[0, 1, 2, 3, 4],
        parametrization=number,
        seed=4,
        t_end=1e4,
        **FIXED,
    ).error.values
    baseline, special = follow(start, 2, 0, 1e16), follow(start, 0, 2, 1e8)
    second = follow(special, 2, 0, 1e16)
    wanted = [error(a) for a in (baseline, second, follow(start, 1, 1, 1e4))]
    wanted += [error(follow(a, 1, 1, 1e4)) for a in (baseline, second)]
    assert_allclose(result, wanted, atol=2e-5)


def test_a_phase_may_end_early():
    start = FIXED["scale"] * -np.sort(-np.random.default_rng(4).random(3))
    phases = [0.1, 5.0]
    for number, name in enumerate(NAMES):
        result = run(
            order.parametrized_order_errors,
            phase=phases,
            order=1,
            parametrization=number,
            seed=4,
            **FIXED,
        )
        for length, seen in zip(phases, result.error.values, strict=True):
            middle = gradient_flow(
                start, (gram(0, 2), np.r_[3.0, np.ones(4)]), parametrization=name, times=[length]
            ).A[0]
            end = gradient_flow(
                middle, (gram(2, 0), np.r_[3.0, np.ones(4)]), parametrization=name, times=[1e16]
            ).A[0]
            assert_allclose(seen, error(end), atol=2e-5)


def test_a_tie_gap_is_that_of_the_other_sweeps():
    result = run(
        order.parametrized_order_errors,
        tie_gap=[1e-6, 0.1],
        order=0,
        parametrization=0,
        seed=1,
        scale=1e-2,
        state_dim=4,
        length=7,
    )
    for g, seen in zip((1e-6, 0.1), result.error.values, strict=True):
        rest = -np.sort(-np.random.default_rng(1).random(2)) * (1 - g)
        A0, gaps = flows.near_tie_starts(np.r_[1.0, 1.0, rest], 1e-2, g)
        batch = flows.theorem_flows(A0, gaps=gaps, length=7, alpha=2.0, beta=0.0, t_end=1e30)
        assert_allclose(seen, error(batch.A[0]), atol=1e-7)


@pytest.mark.parametrize("train_bc", [False, True])
def test_complex_velocity_is_minus_the_gradient(train_bc):
    rng = np.random.default_rng(3)
    y = rng.standard_normal((6, 4)) * 0.5
    rows = torch.tensor(y, requires_grad=True)
    log_a = torch.complex(-rows[0].exp(), rows[1])
    w = torch.complex(rows[2], rows[3]) * torch.complex(rows[4], rows[5])
    loss = sum(
        weight * (1 - (w * (lag * log_a).exp()).real.sum()) ** 2 / 2
        for weight, lag in ((0.7, 5), (1.3, 1))
    )
    loss.backward()
    wanted = -rows.grad.numpy()
    if not train_bc:
        wanted[2:] = 0.0
    assert_allclose(
        order._complex_velocity(y, (0.7, 1.3), 5, train_bc), wanted, rtol=1e-12, atol=1e-14
    )
    assert_allclose(
        1 - order._complex_response(y, 5), float(1 - (w * (5 * log_a).exp()).real.sum().detach())
    )


def test_complex_poles_without_phases_are_real_ones():
    fixed = FIXED | {"scale": 0.1}
    seen = run(
        order.complex_order_errors, order=[0, 1, 2], trained=0, spread=0.0, seed=[0, 2], **fixed
    )
    real = run(
        order.parametrized_order_errors, order=[0, 1, 2], parametrization=2, seed=[0, 2], **fixed
    )
    assert_allclose(seen.error, real.error, atol=5e-4)
    assert seen.loss_shown.max() < 2e-14


@pytest.mark.parametrize(
    ("function", "change", "message"),
    [
        ("parametrized", {"order": 5}, "order must be an integer from 0 to 4"),
        (
            "parametrized",
            {"parametrization": 0.5},
            "parametrization must be an integer from 0 to 3",
        ),
        ("parametrized", {"phase": 0.0}, "phase must be > 0"),
        ("parametrized", {"scale": -1.0}, "scale must be > 0"),
        ("parametrized", {"dose": 1.0}, "points must not have the coordinate 'dose'"),
        ("complex", {"trained": 2}, "trained must be 0 or 1"),
        ("complex", {"spread": 4.0}, "spread must be from 0 to pi"),
        ("complex", {"scale": 1.0}, "scale must be between 0 and 1"),
    ],
)
def test_bad_points(function, change, message):
    good = {"order": 0, "seed": [0], **FIXED}
    good |= {"parametrization": 0} if function == "parametrized" else {"trained": 0, "spread": 0.0}
    with pytest.raises(ValueError, match=message):
        run(getattr(order, f"{function}_order_errors"), **(good | change))
