"""One channel of each layer: from its parameters to its impulse response, and its starts.

The book's model, and what is left of a layer where nothing mixes channels: S4D without the skip D
and the gated unit, LRU with one input and one output, Mamba-2 with d heads of one entry each and
without convolution, gate and norm. Parameters are one array of named rows, (rows, d), a column for
each pole. Poles and weights are formulas, from which SymPy makes all derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import sympy as sp
import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor

from ssm_poison_lib._checks import ArrayLike, as_array, as_choice, as_integer, as_scalar, as_seed
from ssm_poison_lib.architectures.lru import LRU
from ssm_poison_lib.architectures.mamba2 import Mamba2
from ssm_poison_lib.architectures.s4d import S4D

__all__ = ["CHANNELS", "Channel", "default_start", "near_zero_start", "selective_output"]

_STEP = 0.1  # Delta at starts near zero: the largest of the layers' own starting steps
_SMALL_ANGLE = 0.1  # of complex poles at starts near zero
# the pole that has weight 1 at S4D's start near zero, where weights move with poles
_UNIT_POLE = 0.9


@dataclass(frozen=True, eq=False)
class Channel:
    """One channel of a layer: M_m = Re sum_j w_j exp(m z_j), column by column of the parameters.

    Attributes:
        log_pole: formula of z, the pole's logarithm, in the rows' names.
        weight: formula of w.
        poles_only: the rows that are trained where B and C are fixed.
        all_rows: the rows that are trained otherwise.
        held: the rows that are never trained here.
    """

    log_pole: sp.Expr
    weight: sp.Expr
    poles_only: tuple[str, ...]
    all_rows: tuple[str, ...]
    held: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[str, ...]:
        """The names of all rows, those never trained first."""
        return self.held + self.all_rows

    @cached_property
    def _values(self) -> Callable[..., list[np.ndarray]]:
        return sp.lambdify(sp.symbols(self.rows, real=True), [self.log_pole, self.weight], cse=True)

    def poles_and_weights(
        self, parameters: ArrayLike
    ) -> tuple[Complex[np.ndarray, "..."], Complex[np.ndarray, "..."]]:
        """Return the poles a_j and their weights w_j, (..., d) each.

        Args:
            parameters: (..., rows, d).

        Returns:
            Two complex arrays.

        Raises:
            ValueError: if there are not as many rows as `rows` names.
        """
        p = np.asarray(parameters, dtype=float)
        if p.ndim < 2 or p.shape[-2] != len(self.rows):
            raise ValueError(f"parameters must have {len(self.rows)} rows; got shape {p.shape}")
        z, w = self._values(*np.moveaxis(p + 0j, -2, 0))  # complex: a free pole may be negative
        like = np.zeros(p.shape[:-2] + p.shape[-1:], dtype=complex)
        return np.exp(z + like), w + like

    def response(self, parameters: ArrayLike, length: int) -> Float[np.ndarray, "..."]:
        """Return the impulse response M_0 .. M_(length-1).

        Args:
            parameters: (..., rows, d).
            length: number of lags, >= 1.

        Returns:
            (..., length).

        Raises:
            ValueError: if an argument is out of range.
        """
        m = np.arange(as_integer("length", length, low=1))
        poles, weights = self.poles_and_weights(parameters)
        return np.asarray(
            (weights[..., None, :] * poles[..., None, :] ** m[:, None]).real.sum(axis=-1)
        )

    def derivatives(self, *, poles_only: bool) -> Callable[..., list[np.ndarray]]:
        """Return a function of the rows that gives z, w and their derivatives by the rows that are
        trained.

        Args:
            poles_only: whether B, C and the step are fixed.

        Returns:
            A function of the rows, in their order, to a list: z, w, then dz and dw row by row, then
            the second
            derivatives of z and of w by all pairs i <= j of rows.
        """
        names = sp.symbols(self.rows, real=True)
        by = sp.symbols(self.poles_only if poles_only else self.all_rows, real=True)
        pairs = [(p, q) for i, p in enumerate(by) for q in by[i:]]
        parts = [self.log_pole, self.weight]
        parts += [sp.diff(f, p) for f in (self.log_pole, self.weight) for p in by]
        parts += [sp.diff(f, p, q) for f in (self.log_pole, self.weight) for p, q in pairs]
        return sp.lambdify(names, parts, cse=True)


def _channels() -> dict[str, Channel]:
    names = (
        "A log_dt log_A_real A_imag C_re C_im nu_log theta_log gamma_log B_re B_im dt_bias"
        " A_log B C"
    )
    a, log_dt, alpha, omega, C_re, C_im, nu, theta, gamma, B_re, B_im, bias, A_log, B, C = (
        sp.symbols(names, real=True)
    )
    A, dt = -sp.exp(alpha) + sp.I * omega, sp.exp(log_dt)
    softplus = sp.log(1 + sp.exp(bias))
    return {
        "free": Channel(
            log_pole=sp.log(a), weight=B * C, poles_only=("A",), all_rows=("A", "B", "C")
        ),
        # A pole stands for itself and its conjugate, which doubles the real part.
        "S4D": Channel(
            log_pole=dt * A,
            weight=2 * (C_re + sp.I * C_im) * (sp.exp(dt * A) - 1) / A,
            held=("log_dt",),
            poles_only=("log_A_real", "A_imag"),
            all_rows=("log_A_real", "A_imag", "C_re", "C_im"),
        ),
        "LRU": Channel(
            log_pole=-sp.exp(nu) + sp.I * sp.exp(theta),
            weight=sp.exp(gamma) * (B_re + sp.I * B_im) * (C_re + sp.I * C_im),
            poles_only=("nu_log", "theta_log"),
            all_rows=("nu_log", "theta_log", "gamma_log", "B_re", "B_im", "C_re", "C_im"),
        ),
        "Mamba-2": Channel(
            log_pole=-softplus * sp.exp(A_log),
            weight=softplus * B * C,
            poles_only=("A_log",),
            all_rows=("dt_bias", "A_log", "B", "C"),
        ),
    }


#: The channels by name: the book's model ("free") and three layers. S4D's step Delta is held: it
#: multiplies rates that are all trained themselves.
CHANNELS = _channels()


def selective_output(parameters: Tensor, slope: Tensor, x: Tensor) -> Float[Tensor, " n"]:
    """Return the last output of a Mamba-2 channel whose steps depend on the input.

    Step t is Delta_t = softplus(dt_bias + slope x_t), head by head; it makes both the decay
    exp(-Delta_t exp(A_log)) and the weight Delta_t of the input. B and C do not depend on the
    input: a Mamba-2 layer with C read off the input returns zero wherever its last input is zero.

    Args:
        parameters: (4, d), rows as in `CHANNELS`.
        slope: (d,).
        x: (n, kappa) sequences.

    Returns:
        (n,) last outputs.

    Raises:
        ValueError: for other shapes.

    Source: `Mamba2`, its equation for h_t with B and C constant.
    """
    if parameters.ndim != 2 or len(parameters) != 4:
        raise ValueError(f"parameters must be (4, d); got {tuple(parameters.shape)}")
    if slope.shape != parameters.shape[1:]:
        raise ValueError(f"slope must be {tuple(parameters.shape[1:])}; got {tuple(slope.shape)}")
    if x.ndim != 2:
        raise ValueError(f"x must be (n, kappa); got {tuple(x.shape)}")
    dt_bias, A_log, B, C = parameters
    dt = F.softplus(dt_bias + slope * x[..., None])  # (n, kappa, d)
    later = dt.flip(1).cumsum(dim=1).flip(1) - dt  # (n, kappa, d), the steps after t
    return ((-later * A_log.exp()).exp() * dt * x[..., None] * (B * C)).sum(dim=(1, 2))


def near_zero_start(
    channel: str, d: int, scale: float, *, seed: int
) -> Float[np.ndarray, "rows d"]:
    """Return parameters with poles near zero, as in the theorem's setting.

    Moduli: scale times uniform draws in [0, 1), largest first; angles of complex poles: uniform in
    (0, 0.1); weights w_j = 1, but for S4D, whose weights move with the poles (a zero-order hold):
    there a pole at 0.9 would have weight 1. Steps: 0.1.

    Args:
        channel: a name in `CHANNELS`.
        d: number of poles, >= 1.
        scale: epsilon, between 0 and 1.
        seed: of the draws.

    Returns:
        (rows, d) parameters.

    Raises:
        ValueError: if an argument is out of range.
    """
    as_choice("channel", channel, CHANNELS)
    d = as_integer("d", d, low=1)
    scale = as_scalar("scale", scale, low=0.0, strict=True)
    if scale >= 1.0:
        raise ValueError(f"scale must be below 1; got {scale:g}")
    rng = np.random.default_rng(as_seed("seed", seed))
    rate = -np.log(scale * -np.sort(-rng.random(d)))
    angle, one, none = _SMALL_ANGLE * rng.random(d), np.ones(d), np.zeros(d)
    dt = _STEP * one
    if channel == "free":
        return np.array([np.exp(-rate), one, one])
    if channel == "S4D":
        unit = -np.log(_UNIT_POLE) / _STEP / (1 - _UNIT_POLE) / 2 * one
        return np.array([np.log(dt), np.log(rate / dt), angle / dt, unit, none])
    if channel == "LRU":
        return np.array([np.log(rate), np.log(angle), none, one, none, one, none])
    return np.array([np.log(np.expm1(dt)), np.log(rate / dt), one, one / dt])


def default_start(channel: str, d: int, *, seed: int) -> Float[np.ndarray, "rows d"]:
    """Return the parameters with which the layer itself starts ("free" has no start of its own).

    `S4D(1, 2 d)`, `LRU(1, d)` and `Mamba2(1, 1, head_dim=1, expand=d)` of this seed. B and C of
    Mamba-2 are its projections' entries for the input and the output.

    Args:
        channel: a name in `CHANNELS`.
        d: number of poles, >= 1.
        seed: of the layer's weights.

    Returns:
        (rows, d) parameters.

    Raises:
        ValueError: if an argument is out of range.
    """
    as_choice("channel", channel, CHANNELS.keys() - {"free"})
    d = as_integer("d", d, low=1)
    seed = as_seed("seed", seed)
    if channel == "S4D":
        s4d = S4D(1, 2 * d, seed=seed)
        C = s4d.C[0]
        found = [s4d.log_dt.expand(d), s4d.log_A_real[0], s4d.A_imag[0], C[:, 0], C[:, 1]]
    elif channel == "LRU":
        lru = LRU(1, d, seed=seed)
        found = [lru.nu_log, lru.theta_log, lru.gamma_log]
        found += [lru.B_re[:, 0], lru.B_im[:, 0], lru.C_re[0], lru.C_im[0]]
    else:
        mamba = Mamba2(1, 1, head_dim=1, expand=d, seed=seed)
        B = mamba.in_proj.weight[d : 2 * d, 0]  # rows of the projection: z, x, B and C, dt
        found = [mamba.dt_bias, mamba.A_log, B, mamba.out_proj.weight[0]]
    return as_array("start", torch.stack(found).detach().double().numpy(), ndim=2)
