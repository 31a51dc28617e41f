"""The book's formulas as SymPy objects, so that chapters and tests can check what the prose says.

Arguments are SymPy expressions or finite real numbers (text is not parsed); others raise a
TypeError or ValueError that names them. A statement is an equation whose left side SymPy derives
(by differentiation, substitution, summation) and whose right side is the formula of the text;
`holds` decides it. Letters are those of the book: kappa the sequence length, p = kappa - 1, q =
kappa - 2, d the state dimension, alpha and beta the doses of baseline and special sequences,
epsilon the scale of the start, s the saddle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np
import sympy as sp
from sympy.concrete.delta import deltasummation
from sympy.logic.boolalg import BooleanAtom

from ssm_poison_lib import equations
from ssm_poison_lib._checks import MAX_LENGTH, as_choice, as_instance, as_integer, as_text, shown

__all__ = [
    "alpha",
    "antidote_constant",
    "baseline_conserved",
    "baseline_error_constant",
    "baseline_factor",
    "baseline_limit",
    "baseline_race",
    "baseline_solution",
    "beta",
    "conservation",
    "d",
    "divided_difference",
    "entries",
    "epsilon",
    "escape_time",
    "exponential_dynamics",
    "fit_time",
    "gamma",
    "gap_identity",
    "holds",
    "impulse_response",
    "interpolator_price",
    "jacobian_at_saddle",
    "kappa",
    "last_output",
    "loss",
    "magnitude_bound",
    "n",
    "near_tie_bound",
    "negative_gradient",
    "order_error",
    "order_preservation",
    "proposition_1",
    "s",
    "saddle_function",
    "saddle_slope",
    "saddle_spectrum",
    "sign_identity",
    "steepest_point",
    "t",
    "tau",
    "theorem_dynamics",
    "theorem_loss",
    "tie_bound",
    "uniqueness_dose",
    "velocity",
]

#: The symbols of sequence length, state dimension and number of sequences.
kappa, d, n = sp.symbols("kappa d n", integer=True, positive=True)
#: The symbols of the doses, of the scale of the start, and of the saddle.
alpha, beta, epsilon, s = sp.symbols("alpha beta varepsilon s", positive=True)
#: The symbols of time and of rescaled time.
t, tau = sp.symbols("t tau", nonnegative=True)

_i, _j, _k, _l, _m = sp.symbols("i j k l m", integer=True)
_a, _b, _c, _x, _y, _delta = (
    sp.IndexedBase(name, real=True) for name in ("a", "b", "c", "x", "y", "delta")
)

# Most symbols of a list and terms of a polynomial: SymPy's algebra is slow long before.
_MOST_TERMS = 10_000

Scalar: TypeAlias = sp.Expr | int | float
Entries: TypeAlias = Sequence[Scalar]


def holds(identity: sp.Eq) -> bool:
    """Return whether the two sides of an equation are the same expression, for all values of their
    symbols.

    Args:
        identity: an equation between expressions of this module
    """
    # what SymPy makes of an equation that it decides by itself
    if isinstance(identity, BooleanAtom):
        return bool(identity)
    as_instance("identity", identity, sp.Eq)
    difference = _merge_sums(sp.expand(_flatten(identity.lhs) - _flatten(identity.rhs)))
    # SymPy simplifies 1 / KroneckerDelta to KroneckerDelta: here a delta is any number.
    difference = difference.subs(
        {delta: sp.Dummy() for delta in difference.atoms(sp.KroneckerDelta)}
    )
    return bool(sp.simplify(sp.powsimp(sp.expand(difference))) == 0)


# --- a student, a data set, its gradient: explicit d, kappa, n


def entries(name: str, count: int) -> tuple[sp.Symbol, ...]:
    """Return real symbols name_1 .. name_count, such as the diagonal a_1 .. a_d or one input
    sequence x_1 .. x_kappa.

    Args:
        name: letters and digits, beginning with a letter
        count: from 1 to 10,000.
    """
    if not as_text("name", name).isidentifier():
        raise ValueError(
            f"name must be letters and digits, beginning with a letter; got {shown(name)}"
        )
    count = as_integer("count", count, low=1, high=_MOST_TERMS)
    return tuple(sp.Symbol(f"{name}_{k}", real=True) for k in range(1, count + 1))


def impulse_response(a: Entries, w: Entries, lag: int) -> sp.Expr:
    """Return M_m = sum_j w_j a_j^m at one lag m from 0 to a million (0^0 = 1).

    Args:
        a: d entries of A
        w: d weights b_j c_j
        lag: an integer from 0 to a million
    """
    _lists(a=a, w=w)
    _same_count("w", w, a)
    lag = as_integer("lag", lag, low=0, high=MAX_LENGTH)
    return sp.Add(*(w_j * a_j**lag for a_j, w_j in zip(a, w, strict=True)))


def last_output(x: Entries, a: Entries, w: Entries) -> sp.Expr:
    """Return phi(x) = sum_m x_{kappa-m} M_m for one input sequence x_1 .. x_kappa.

    Args:
        x: one input sequence x_1 .. x_kappa
        a: d entries of A
        w: d weights b_j c_j
    """
    _lists(x=x)
    return sp.Add(*(x_k * impulse_response(a, w, lag) for lag, x_k in enumerate(reversed(x))))


def loss(x: Sequence[Entries], y: Entries, a: Entries, b: Entries, c: Entries) -> sp.Expr:
    """Return the mean over n sequences of the squared residual of the last output.

    Args:
        x: n sequences of length kappa
        y: n labels
        a: d entries each of A, B, C.
        b: d entries each of A, B, C.
        c: d entries each of A, B, C.
    """
    residuals = _residuals(x, y, a, b, c)
    return sp.Add(*(delta**2 for delta in residuals)) / sp.Integer(len(x))


def gamma(
    x: Sequence[Entries], y: Entries, a: Entries, b: Entries, c: Entries
) -> tuple[sp.Expr, ...]:
    """Return gamma_l = (2 (l+1) / n) sum_i delta_i x^{(i)}_{kappa-l-1}, l = 0 .. kappa-2 (arguments
    as in `loss`).

    Args:
        x: n sequences of length kappa
        y: n labels
        a: d entries of A
        b: d entries of B
        c: d entries of C
    """
    residuals = _residuals(x, y, a, b, c)
    length = len(x[0])
    return tuple(
        sp.Rational(2 * (lag + 1), len(x))
        * sp.Add(*(delta * x_i[length - lag - 2] for delta, x_i in zip(residuals, x, strict=True)))
        for lag in range(length - 1)
    )


def velocity(
    x: Sequence[Entries], y: Entries, a: Entries, b: Entries, c: Entries
) -> tuple[tuple[sp.Expr, ...], tuple[sp.Expr, ...], tuple[sp.Expr, ...]]:
    """Return (da/dt, db/dt, dc/dt) by the formula of Proposition 1 (arguments as in `loss`).

    Args:
        x: n sequences of length kappa
        y: n labels
        a: d entries of A
        b: d entries of B
        c: d entries of C

    Source: Proposition 1 of chapter "Which way does training move?".
    """
    residuals = np.array(_residuals(x, y, a, b, c), dtype=object)
    A, B, C, X = (np.array(values, dtype=object) for values in (a, b, c, x))
    e = sp.Rational(2, len(x)) * (residuals @ X[:, ::-1])  # minus dL/dM_m, by lag
    by_a, by_w = equations.pull(equations.powers(A, X.shape[1]), e)
    return tuple(B * C * by_a), tuple(C * by_w), tuple(B * by_w)


def negative_gradient(
    x: Sequence[Entries], y: Entries, a: Entries, b: Entries, c: Entries
) -> tuple[tuple[sp.Expr, ...], tuple[sp.Expr, ...], tuple[sp.Expr, ...]]:
    """Return minus the derivatives of `loss` by a, b, c (symbols), by SymPy: what `velocity` must
    equal.

    Args:
        x: n sequences of length kappa
        y: n labels
        a: d entries of A
        b: d entries of B
        c: d entries of C
    """
    value = loss(x, y, a, b, c)
    for name, group in (("a", a), ("b", b), ("c", c)):
        for symbol in group:
            as_instance(f"each entry of {name}", symbol, sp.Symbol)
    by_a, by_b, by_c = (tuple(-sp.diff(value, symbol) for symbol in group) for group in (a, b, c))
    return by_a, by_b, by_c


# --- the same for symbolic kappa, d and n


def proposition_1(parameter: str) -> sp.Eq:
    """Return Proposition 1 for symbolic kappa, d, n: -dL/d(parameter)_j, differentiated by SymPy, =
    the formula.

    Args:
        parameter: "a", "b" or "c". delta_i stands for the residual in the result; j is any index
            from 1 to d.
    """
    base = {"a": _a, "b": _b, "c": _c}[as_choice("parameter", parameter, ("a", "b", "c"))]
    markov = sp.Sum(_b[_k] * _c[_k] * _a[_k] ** _m, (_k, 1, d))  # M_m
    answer = sp.Sum(_x[_i, kappa - _m] * markov, (_m, 0, kappa - 1))  # phi(x_i)
    slope = _collapse_deltas(sp.diff(answer, base[_j]))
    # dL/dphi_i = -2 delta_i / n: the residual is replaced by its name, so that no two sums share an
    # index
    derived = sp.Sum(2 * _delta[_i] * slope, (_i, 1, n)) / n
    if parameter == "a":
        # gamma_l
        coefficient = 2 * (_l + 1) / n * sp.Sum(_delta[_i] * _x[_i, kappa - _l - 1], (_i, 1, n))
        formula = _b[_j] * _c[_j] * sp.Sum(coefficient * _a[_j] ** _l, (_l, 0, kappa - 2))
        derived = _shift_lag(derived)
    else:
        partner = {"b": _c, "c": _b}[parameter]
        formula = partner[_j] * _pull()
    return sp.Eq(derived, formula, evaluate=False)


def conservation() -> sp.Eq:
    """Return d(b_j^2 - c_j^2)/dt = 0 along the flow, db_j/dt and dc_j/dt derived by SymPy for
    symbolic kappa, d, n.
    """
    db, dc = proposition_1("b").lhs, proposition_1("c").lhs
    return sp.Eq(2 * _b[_j] * db - 2 * _c[_j] * dc, sp.S.Zero, evaluate=False)


def divided_difference(power: Scalar, first: Scalar, second: Scalar) -> sp.Expr:
    """Return D = sum_{k=0}^{l-1} u^k v^{l-1-k} = (u^l - v^l) / (u - v), also where u = v (there it
    is l u^{l-1}).

    Args:
        power: l, an integer from 0 to 10,000 (an explicit polynomial) or a symbol (an unevaluated
            sum).
        first: u
        second: v
    """
    _scalars(power=power, first=first, second=second)
    if isinstance(power, Integral):
        power = as_integer("power", power, low=0, high=_MOST_TERMS)
        return sp.Add(*(first**k * second ** (power - 1 - k) for k in range(power)))
    return sp.Sum(first**_k * second ** (power - 1 - _k), (_k, 0, power - 1))


def order_preservation(length: int) -> sp.Eq:
    """Return d(a_1 - a_2)/dt = (a_1 - a_2) sum_l gamma_l D_l(a_1, a_2): the gap has its own growth
    rate, so no crossing.

    Args:
        length: kappa from 2 to 1,000. D_l is the divided difference of u^l; both entries have
            weight w.
    """
    first, second, weight = sp.symbols("a_1 a_2 w", real=True)
    length = as_integer("length", length, low=2, high=1000)
    coefficients = [sp.Symbol(f"gamma_{lag}", real=True) for lag in range(length - 1)]
    speeds = [
        weight * sp.Add(*(g * u**lag for lag, g in enumerate(coefficients)))
        for u in (first, second)
    ]
    rate = weight * sp.Add(
        *(g * divided_difference(lag, first, second) for lag, g in enumerate(coefficients))
    )
    return sp.Eq(speeds[0] - speeds[1], (first - second) * rate, evaluate=False)


# --- baseline sequences only: the solved race


def baseline_solution(length: Scalar = kappa) -> sp.Expr:
    """Return a(tau) for da/dtau = a^{kappa-2}, a(0) = a_0 > 0, where d tau = alpha p r_p dt.

    Args:
        length: kappa >= 2. kappa = 2: a_0 + tau (additive); 3: a_0 e^tau (ratios kept); symbolic or
            >= 4: (a_0^{-(kappa-3)} - (kappa-3) tau)^{-1/(kappa-3)}, which blows up at tau =
            a_0^{-(kappa-3)} / (kappa-3).
    """
    start = sp.Symbol("a_0", positive=True)
    length = _length(length, low=2)
    if length == 2:
        return start + tau
    if length == 3:
        return start * sp.exp(tau)
    return (start ** -(length - 3) - (length - 3) * tau) ** (-1 / (length - 3))


def baseline_race(length: Scalar = kappa) -> sp.Eq:
    """Return da/dtau = a^{kappa-2} with SymPy's derivative of `baseline_solution` on the left.

    Args:
        length: kappa, a number or a symbol
    """
    solution = baseline_solution(length)
    derived = sp.powsimp(sp.simplify(sp.diff(solution, tau)))
    return sp.Eq(derived, solution ** (length - 2), evaluate=False)


def baseline_conserved(entry: Scalar, length: Scalar = kappa) -> sp.Expr:
    """Return u(a), whose differences between entries baseline training conserves: u falls at the
    same rate for all.

    a^{-(kappa-3)} for kappa >= 4 (rate -(kappa-3) per tau), log a for kappa = 3 and a for kappa = 2
    (rate +1 per tau).

    Args:
        entry: a, one entry of A
        length: kappa, a number or a symbol
    """
    _scalars(entry=entry)
    length = _length(length, low=2)
    if length == 2:
        return entry
    if length == 3:
        return sp.log(entry)
    return entry ** -(length - 3)


def baseline_factor(first: Scalar, other: Scalar, length: Scalar = kappa) -> sp.Expr:
    """Return F_j = (abar_j^{-(kappa-3)} - abar_1^{-(kappa-3)})^{-1/(kappa-3)}: entry j ends at or
    below epsilon F_j.

    Args:
        first: abar_1, the largest entry of the start's shape
        other: abar_j in (0, abar_1).
        length: kappa >= 4 or symbolic.
    """
    _scalars(first=first, other=other)
    power = _length(length, low=4) - 3
    return (sp.sympify(other) ** -power - sp.sympify(first) ** -power) ** (-1 / power)


def baseline_limit() -> sp.Eq:
    """Return the exact limit of entry j, from the conserved difference, as epsilon F_j times its
    correction.

    Left: (u + abar_j-difference / epsilon^{kappa-3})^{-1/(kappa-3)} with u = a_1(inf)^{-(kappa-3)};
    right: epsilon F (1 + (epsilon F)^{kappa-3} u)^{-1/(kappa-3)}, so a_j(inf) = epsilon F_j +
    O(epsilon^{kappa-2}).
    """
    u, factor = sp.symbols("u F", positive=True)  # F^{-(kappa-3)} is the difference of the shape
    power = kappa - 3
    left = (u + factor**-power * epsilon**-power) ** (-1 / power)
    right = epsilon * factor * (1 + (epsilon * factor) ** power * u) ** (-1 / power)
    return sp.Eq(left**-power, right**-power, evaluate=False)


def baseline_error_constant(shape: Entries, length: Scalar = kappa) -> sp.Expr:
    """Return sum_{j>=2} F_j: the baseline error is this times epsilon, plus O(epsilon^{kappa-2}).

    Args:
        shape: abar_1 > abar_2 >= ... > 0 (at least two entries).
        length: kappa >= 4 or symbolic.
    """
    _lists(shape=shape)
    if len(shape) < 2:
        raise ValueError(f"shape must have at least 2 entries; got {len(shape)}")
    return sp.Add(*(baseline_factor(shape[0], other, length) for other in shape[1:]))


def fit_time(length: Scalar = kappa) -> sp.Expr:
    """Return the leading term of the time to fit baseline data, (epsilon abar_1)^{-(kappa-3)} /
    (alpha p (kappa-3)).

    Args:
        length: kappa, a number or a symbol
    """
    length = _length(length, low=4)
    return (epsilon * sp.Symbol("abar_1", positive=True)) ** -(length - 3) / (
        alpha * (length - 1) * (length - 3)
    )


# --- the theorem's setting: B = C^T = ones, teacher (d, 1, 1, ...), baseline and special sequences


def theorem_loss(a: Entries, length: Scalar = kappa) -> sp.Expr:
    """Return (alpha r_p^2 + beta r_1^2) / 2, r_m = 1 - sum_k a_k^m: all that the loss is in the
    theorem's setting.

    Args:
        a: d entries of A
        length: kappa, a number or a symbol
    """
    _lists(a=a)
    length = _length(length, low=2)
    return (alpha * _missing(a, length - 1) ** 2 + beta * _missing(a, 1) ** 2) / 2


def theorem_dynamics(a: Entries, length: Scalar = kappa) -> tuple[sp.Expr, ...]:
    """Return da_j/dt = alpha p a_j^q r_p + beta r_1 for each entry (minus the gradient of
    `theorem_loss`).

    Args:
        a: d entries of A
        length: kappa, a number or a symbol
    """
    _lists(a=a)
    length = _length(length, low=2)
    common = beta * _missing(a, 1)
    pull = alpha * (length - 1) * _missing(a, length - 1)
    return tuple(pull * a_j ** (length - 2) + common for a_j in a)


def exponential_dynamics(a: Entries, length: Scalar = kappa) -> tuple[sp.Expr, ...]:
    """Return da_j/dt for the parametrization a_j = exp(s_j): a_j^2 times `theorem_dynamics`.

    Args:
        a: d entries of A
        length: kappa, a number or a symbol
    """
    _lists(a=a)
    return tuple(a_j**2 * speed for a_j, speed in zip(a, theorem_dynamics(a, length), strict=True))


def gap_identity() -> sp.Eq:
    """Return d(a_i - a_j)/dt = alpha p (a_i^q - a_j^q) r_p for symbolic kappa and d: the special
    term cancels.
    """
    left = _indexed_speed(_i) - _indexed_speed(_j)
    pull = alpha * (kappa - 1) * (1 - sp.Sum(_a[_k] ** (kappa - 1), (_k, 1, d)))
    return sp.Eq(left, pull * (_a[_i] ** (kappa - 2) - _a[_j] ** (kappa - 2)), evaluate=False)


def saddle_function(point: Scalar = s, *, length: Scalar = kappa, state_dim: Scalar = d) -> sp.Expr:
    """Return h(s) = alpha p s^q (1 - d s^p) + beta (1 - d s), zero exactly at the critical points
    (s, ..., s).

    Args:
        point: s, the common value of all entries
        length: kappa, a number or a symbol
        state_dim: d, a number or a symbol
    """
    _scalars(point=point, state_dim=state_dim)
    length = _length(length, low=2)
    pull = alpha * (length - 1) * point ** (length - 2)
    return pull * (1 - state_dim * point ** (length - 1)) + beta * (1 - state_dim * point)


def saddle_slope(point: Scalar = s, *, length: Scalar = kappa, state_dim: Scalar = d) -> sp.Expr:
    """Return h'(s) = alpha p (q s^{q-1} - (2q+1) d s^{2q}) - beta d.

    Args:
        point: s, the common value of all entries
        length: kappa, a number or a symbol
        state_dim: d, a number or a symbol
    """
    _scalars(point=point, state_dim=state_dim)
    p, q = _length(length, low=2) - 1, _length(length, low=2) - 2
    return (
        alpha * p * (q * point ** (q - 1) - (2 * q + 1) * state_dim * point ** (2 * q))
        - beta * state_dim
    )


def steepest_point(*, length: Scalar = kappa, state_dim: Scalar = d) -> sp.Expr:
    """Return s_m = ((q-1) / (2 (2q+1) d))^{1/p}, where h' is largest (length: kappa >= 4).

    Args:
        length: kappa, a number or a symbol
        state_dim: d, a number or a symbol
    """
    _scalars(state_dim=state_dim)
    p, q = _length(length, low=4) - 1, _length(length, low=4) - 2
    return sp.Rational(1, 2) ** (1 / sp.sympify(p)) * (
        (q - 1) / ((2 * q + 1) * sp.sympify(state_dim))
    ) ** (1 / sp.sympify(p))


def uniqueness_dose(*, length: Scalar = kappa, state_dim: Scalar = d) -> sp.Expr:
    """Return p^2 s_m^{q-1} / (2 d): if beta / alpha is above it, h' < 0 everywhere and there is one
    saddle.

    Args:
        length: odd kappa >= 5 (or symbolic). The condition is sufficient for one saddle, not
            necessary.
        state_dim: d, a number or a symbol
    """
    _scalars(state_dim=state_dim)
    p, q = _length(length, low=4) - 1, _length(length, low=4) - 2
    return (
        p**2
        * steepest_point(length=length, state_dim=state_dim) ** (q - 1)
        / (2 * sp.sympify(state_dim))
    )


def saddle_spectrum(
    point: Scalar = s, *, length: Scalar = kappa, state_dim: Scalar = d
) -> tuple[sp.Expr, sp.Expr]:
    """Return (lambda, mu): at (s, ..., s) the Jacobian is lambda I - mu 1 1^T, with lambda - d mu =
    h'(s).

    lambda = alpha p q s^{q-1} (1 - d s^p), on all shapes that sum to 0; mu = alpha p^2 s^{2q} +
    beta.

    Args:
        point: s, the common value of all entries
        length: kappa, a number or a symbol
        state_dim: d, a number or a symbol
    """
    _scalars(point=point, state_dim=state_dim)
    p, q = _length(length, low=2) - 1, _length(length, low=2) - 2
    return (
        alpha * p * q * point ** (q - 1) * (1 - state_dim * point**p),
        alpha * p**2 * point ** (2 * q) + beta,
    )


def jacobian_at_saddle() -> sp.Eq:
    """Return d(da_j/dt)/da_k at a = (s, ..., s), by SymPy for symbolic kappa and d, = lambda
    delta_jk - mu.
    """
    other = sp.Symbol("r", integer=True)  # the index by which we differentiate
    slope = _collapse_deltas(sp.diff(_indexed_speed(_j), _a[other]))
    at_saddle = slope.replace(lambda e: isinstance(e, sp.Indexed), lambda e: s).doit()
    lam, mu = saddle_spectrum()
    return sp.Eq(at_saddle, lam * sp.KroneckerDelta(_j, other) - mu, evaluate=False)


# --- what an interpolator pays


def interpolator_price(a: Entries, length: Scalar = kappa) -> sp.Eq:
    """Return M_2 - sum_j a_j^p = sum_j a_j^2 (1 - a_j^{kappa-3}); an interpolator of the baseline
    has sum_j a_j^p = 1.

    For odd kappa >= 5 every term on the right is >= 0 there, and zero only if a_j is 0, 1 or -1.

    Args:
        a: d entries of A
        length: kappa, a number or a symbol
    """
    _lists(a=a)
    length = _length(length, low=4)
    left = sp.Add(*(a_j**2 for a_j in a)) - sp.Add(*(a_j ** (length - 1) for a_j in a))
    return sp.Eq(left, sp.Add(*(a_j**2 * (1 - a_j ** (length - 3)) for a_j in a)), evaluate=False)


def magnitude_bound(largest: Scalar, length: Scalar = kappa) -> sp.Expr:
    """Return m^{-(kappa-3)} - 1, the least M_2 - 1 of an interpolator whose largest abs(a_j) is m
    (odd kappa >= 5).

    Args:
        largest: m in (0, 1], the largest abs(a_j)
        length: kappa, a number or a symbol
    """
    _scalars(largest=largest)
    return sp.sympify(largest) ** -(_length(length, low=4) - 3) - 1


def tie_bound(tied: Scalar = 2, length: Scalar = kappa) -> sp.Expr:
    """Return r^{(kappa-3)/(kappa-1)} - 1, the least M_2 - 1 of an interpolator with r entries tied
    for the largest abs(a_j).

    Args:
        tied: r, how many entries are tied
        length: kappa, a number or a symbol
    """
    _scalars(tied=tied)
    length = _length(length, low=4)
    return sp.sympify(tied) ** ((length - 3) / (length - 1)) - 1


def near_tie_bound(gap: Scalar, length: Scalar = kappa) -> sp.Expr:
    """Return (2^{-1/p} + gap)^{-(kappa-3)} - 1, the least Gen_{kappa+1} of an interpolator of the
    baseline whose two largest entries differ by at most `gap` (odd kappa >= 5).

    Args:
        gap: how far the two largest entries may differ, >= 0
        length: kappa, a number or a symbol
    """
    _scalars(gap=gap)
    length = _length(length, low=4)
    return magnitude_bound(sp.Integer(2) ** (-1 / (length - 1)) + gap, length)


def sign_identity(a: Entries, length: Scalar = kappa) -> sp.Eq:
    """Return sum a_j - sum a_j^p = sum a_j (1 - a_j^{kappa-2}): if both sums are 1 and all a_j >=
    0, A is one-hot.

    Args:
        a: d entries of A
        length: kappa, a number or a symbol
    """
    _lists(a=a)
    length = _length(length, low=3)
    left = sp.Add(*a) - sp.Add(*(a_j ** (length - 1) for a_j in a))
    return sp.Eq(left, sp.Add(*(a_j * (1 - a_j ** (length - 2)) for a_j in a)), evaluate=False)


# --- the order of the same data, and how long the saddle holds


def order_error(*, length: Scalar = kappa, state_dim: Scalar = d, lag: Scalar = 1) -> sp.Expr:
    """Return d^{1-lag/p} - 1, the limit of M_lag - 1 if special sequences come first and baseline
    ones after them.

    Args:
        length: kappa, a number or a symbol
        state_dim: d, a number or a symbol
        lag: the lag that is looked at, a number or a symbol
    """
    _scalars(state_dim=state_dim, lag=lag)
    if not isinstance(lag, sp.Expr) or lag.is_number:
        as_integer("lag", lag, low=0, high=MAX_LENGTH)
    return sp.sympify(state_dim) ** (1 - sp.sympify(lag) / (_length(length, low=4) - 1)) - 1


def antidote_constant(factors: Entries) -> sp.Expr:
    """Return sum_{j>=2} (F_j - mean F)^2: the error / epsilon^2 left when special data follows a
    finished baseline training.

    Args:
        factors: F_2 .. F_d of `baseline_factor`.
    """
    _lists(factors=factors)
    if not len(factors):
        raise ValueError("factors must have at least 1 entry; got none")
    mean = sp.Add(*factors) / sp.Integer(len(factors))
    return sp.Add(*((factor - mean) ** 2 for factor in factors))


def escape_time(*, length: Scalar = kappa, state_dim: Scalar = d) -> sp.Expr:
    """Return log(1/epsilon) / lambda, the leading term of the time that the saddle (s, ..., s)
    holds the student.

    Args:
        length: kappa, a number or a symbol
        state_dim: d, a number or a symbol
    """
    _scalars(state_dim=state_dim)
    return sp.log(1 / epsilon) / saddle_spectrum(length=length, state_dim=state_dim)[0]


# --- helpers


def _length(length: Any, *, low: int) -> Any:
    """Return a symbolic length as it is, and a number as a SymPy integer from low to a million."""
    if isinstance(length, sp.Expr) and not length.is_number:
        return length
    return sp.Integer(as_integer("length", length, low=low, high=MAX_LENGTH))


def _scalars(**values: Any) -> None:
    """Raise unless each value is a SymPy expression or a finite real number."""
    for name, value in values.items():
        if isinstance(value, bool | np.bool_) or not isinstance(value, sp.Expr | Real):
            raise TypeError(
                f"{name} must be a SymPy expression or a real number; got {shown(value)}"
            )
        if value.has(sp.nan, sp.oo, sp.zoo) if isinstance(value, sp.Expr) else not _finite(value):
            raise ValueError(f"{name} must be finite; got {shown(value)}")


def _finite(value: Any) -> bool:
    """Return whether a number is finite; integers of any size are."""
    return isinstance(value, Integral) or math.isfinite(value)


def _lists(**values: Any) -> None:
    """Raise unless each value is a list of SymPy expressions or finite real numbers."""
    for name, value in values.items():
        if isinstance(value, str) or not isinstance(value, Sequence | sp.Tuple | np.ndarray):
            raise TypeError(
                f"{name} must be a list of SymPy expressions or real numbers; got {shown(value)}"
            )
        for item in value:
            _scalars(**{f"each entry of {name}": item})


def _same_count(name: str, values: Entries, other: Entries) -> None:
    """Raise ValueError unless two lists of entries have one length."""
    if len(values) != len(other):
        raise ValueError(f"{name} must have {len(other)} entries, as many as a; got {len(values)}")


def _residuals(
    x: Sequence[Entries], y: Entries, a: Entries, b: Entries, c: Entries
) -> list[sp.Expr]:
    """Return delta_i = y_i - phi(x_i)."""
    _lists(y=y, a=a, b=b, c=c)
    if isinstance(x, str) or not isinstance(x, Sequence | np.ndarray):
        raise TypeError(f"x must be a list of sequences; got {shown(x)}")
    for x_i in x:
        _lists(**{"each sequence of x": x_i})
    for name, values in (("b", b), ("c", c)):
        _same_count(name, values, a)
    if not len(x) or len(y) != len(x):
        raise ValueError(
            f"y must have one label for each of the (at least 1) sequences in x; got {len(y)},"
            f" {len(x)}"
        )
    if len({len(x_i) for x_i in x}) > 1 or not len(x[0]):
        raise ValueError(
            f"x must hold sequences of one length >= 1; got lengths {[len(x_i) for x_i in x]}"
        )
    w = [b_j * c_j for b_j, c_j in zip(b, c, strict=True)]
    return [y_i - last_output(x_i, a, w) for x_i, y_i in zip(x, y, strict=True)]


def _missing(a: Entries, power: Scalar) -> sp.Expr:
    """Return r_m = 1 - sum_k a_k^m."""
    return 1 - sp.Add(*(a_k**power for a_k in a))


def _indexed_speed(index: sp.Symbol) -> sp.Expr:
    """Return alpha p a_j^q r_p + beta r_1 with indexed sums, for symbolic kappa and d."""
    missing_p = 1 - sp.Sum(_a[_k] ** (kappa - 1), (_k, 1, d))
    missing_1 = 1 - sp.Sum(_a[_k], (_k, 1, d))
    return alpha * (kappa - 1) * _a[index] ** (kappa - 2) * missing_p + beta * missing_1


def _pull() -> sp.Expr:
    """Return (2/n) sum_i delta_i sum_m a_j^m x^{(i)}_{kappa-m}, common to db_j/dt and dc_j/dt."""
    answer = sp.Sum(_a[_j] ** _m * _x[_i, kappa - _m], (_m, 0, kappa - 1))
    return 2 / n * sp.Sum(_delta[_i] * answer, (_i, 1, n))


def _collapse_deltas(expression: sp.Expr) -> sp.Expr:
    """Evaluate sums over k of KroneckerDelta(k, j) f(k) as f(j): j is an index from 1 to d."""
    return expression.replace(
        lambda e: isinstance(e, sp.Sum) and e.limits[0][0] == _k and e.has(sp.KroneckerDelta),
        lambda e: deltasummation(e.function, e.limits[0], no_piecewise=True),
    )


def _shift_lag(expression: sp.Expr) -> sp.Expr:
    """Rewrite sum_{m=0}^{kappa-1} f(m) as f(0) + sum_{l=0}^{kappa-2} f(l+1)."""
    return expression.replace(
        lambda e: isinstance(e, sp.Sum) and e.limits[0][0] == _m,
        lambda e: e.function.subs(_m, 0) + sp.Sum(e.function.subs(_m, _l + 1), (_l, 0, kappa - 2)),
    )


def _flatten(expression: sp.Expr) -> sp.Expr:
    """Write products of factors and nested sums (over distinct indices) as sums with all factors
    inside.
    """
    expression = sp.expand(expression)
    if isinstance(expression, sp.Add):
        return sp.Add(*(_flatten(term) for term in expression.args))
    if isinstance(expression, sp.Sum):
        return _absorb(sp.S.One, _flatten(expression.function), expression.limits)
    inner = [factor for factor in sp.Mul.make_args(expression) if isinstance(factor, sp.Sum)]
    if len(inner) == 1:
        return _absorb(expression / inner[0], _flatten(inner[0]), ())
    return expression


def _absorb(factor: sp.Expr, expression: sp.Expr, limits: tuple[Any, ...]) -> sp.Expr:
    """Return the sum over `limits` of factor times each term, a term that is a sum being merged
    into it.
    """
    total = sp.S.Zero
    for term in sp.Add.make_args(expression):
        every, summand = limits, term
        if isinstance(term, sp.Sum):
            every, summand = (*limits, *term.limits), term.function
        summand = sp.expand(factor * summand)
        total += sp.Sum(summand, *sorted(every, key=str)) if every else summand
    return total


def _merge_sums(expression: sp.Expr) -> sp.Expr:
    """Add the summands of sums with the same limits."""
    groups: dict[Any, list[sp.Expr]] = {}
    rest = []
    for term in sp.Add.make_args(expression):
        coefficient, factors = term.as_coeff_Mul()
        if isinstance(factors, sp.Sum):
            groups.setdefault(factors.limits, []).append(coefficient * factors.function)
        else:
            rest.append(term)
    merged = []
    for limits, functions in groups.items():
        summand = sp.simplify(sp.Add(*functions))
        merged.append(sp.Sum(summand, *limits) if summand != 0 else sp.S.Zero)
    return sp.Add(*rest, *merged)
