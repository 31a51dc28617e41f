"""The book's formulas: each identity holds, stops holding when altered, and agrees with the
numerical library.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from ssm_poison_lib import algebra, flow, metrics, sequences
from ssm_poison_lib.algebra import alpha, beta, d, epsilon, holds, kappa, n, s, tau
from ssm_poison_lib.ssm import DiagonalSSM, theorem_teacher

IDENTITIES = {
    "proposition 1, a": lambda: algebra.proposition_1("a"),
    "proposition 1, b": lambda: algebra.proposition_1("b"),
    "proposition 1, c": lambda: algebra.proposition_1("c"),
    "order": lambda: algebra.order_preservation(6),
    "race, any kappa": algebra.baseline_race,
    "race, kappa = 2": lambda: algebra.baseline_race(2),
    "race, kappa = 3": lambda: algebra.baseline_race(3),
    "race, kappa = 7": lambda: algebra.baseline_race(7),
    "limit": algebra.baseline_limit,
    "gap": algebra.gap_identity,
    "jacobian": algebra.jacobian_at_saddle,
    "price": lambda: algebra.interpolator_price(algebra.entries("a", 3)),
    "price, kappa = 7": lambda: algebra.interpolator_price(algebra.entries("a", 2), 7),
    "sign": lambda: algebra.sign_identity(algebra.entries("a", 3)),
    "sign, kappa = 3": lambda: algebra.sign_identity(algebra.entries("a", 2), 3),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_identity_holds(name):
    assert holds(IDENTITIES[name]())


@pytest.mark.parametrize("name", IDENTITIES)
@pytest.mark.parametrize(
    "alter",
    [
        lambda right: -right,
        lambda right: right * sp.Rational(8, 7),
        lambda right: right + sp.Symbol("z"),
        lambda right: right * (1 + epsilon),
    ],
    ids=["sign", "factor", "summand", "epsilon"],
)
def test_altered_identity_is_refused(name, alter):
    identity = IDENTITIES[name]()
    assert not holds(sp.Eq(identity.lhs, alter(identity.rhs), evaluate=False))


@pytest.mark.parametrize(
    "name", ["proposition 1, a", "race, any kappa", "gap", "jacobian", "price", "sign"]
)
def test_another_power_is_refused(name):
    identity = IDENTITIES[name]()
    assert not holds(sp.Eq(identity.lhs, identity.rhs.subs(kappa, kappa + 1), evaluate=False))


@pytest.mark.parametrize("parameter", ["a", "b", "c"])
def test_shifted_input_position_is_refused(parameter):
    identity = algebra.proposition_1(parameter)
    shifted = identity.rhs.replace(
        lambda e: isinstance(e, sp.Indexed) and len(e.indices) == 2,
        lambda e: e.base[e.indices[0], e.indices[1] + 1],
    )
    assert shifted != identity.rhs
    assert not holds(sp.Eq(identity.lhs, shifted, evaluate=False))


def test_order_preservation_has_one_coefficient_per_lag():
    for length in (2, 3, 6):
        names = {str(symbol) for symbol in algebra.order_preservation(length).lhs.free_symbols}
        # gamma_0 cancels from the gap
        assert names >= {f"gamma_{lag}" for lag in range(1, length - 1)}
        assert f"gamma_{length - 1}" not in names


def test_sums_are_merged_without_changing_their_value():
    i, k = sp.symbols("i k", integer=True)
    x, a = sp.IndexedBase("x"), sp.IndexedBase("a")
    inner, outer = sp.Sum(a[k] ** 2 + k, (k, 0, 2)), sp.Sum(x[i], (i, 1, 2))
    nested = sp.Sum(x[i] * inner, (i, 1, 2))
    for expression in (outer, nested, 3 * nested, a[7] * inner + x[1] * outer, inner * inner):
        merged = algebra._merge_sums(sp.expand(algebra._flatten(expression)))
        assert sp.expand(merged.doit() - expression.doit()) == 0


def test_conservation_needs_the_difference_of_squares():
    identity = algebra.conservation()
    assert holds(identity)
    assert identity.lhs != 0  # not cancelled before it was checked
    # b^2 + c^2 is not conserved: its rate differs by twice the rate of c^2, 4 b c times the pull
    db, dc = algebra.proposition_1("b").rhs, algebra.proposition_1("c").rhs
    b, c = (sp.IndexedBase(name, real=True)[sp.Symbol("j", integer=True)] for name in "bc")
    assert not holds(sp.Eq(2 * b * db + 2 * c * dc, sp.S.Zero, evaluate=False))
    assert not holds(sp.Eq(2 * b * db - c * dc, sp.S.Zero, evaluate=False))


# --- explicit students


@pytest.mark.parametrize(
    ("state_dim", "length", "size"), [(1, 1, 1), (1, 3, 2), (2, 2, 1), (2, 4, 2), (3, 5, 1)]
)
def test_gradient_of_explicit_student(state_dim, length, size):
    a, b, c = (algebra.entries(name, state_dim) for name in "abc")
    x = [algebra.entries(f"x{i}", length) for i in range(size)]
    y = algebra.entries("y", size)
    formula = algebra.velocity(x, y, a, b, c)
    derived = algebra.negative_gradient(x, y, a, b, c)
    for by_formula, by_sympy in zip(formula, derived, strict=True):
        assert len(by_formula) == len(by_sympy) == state_dim
        for left, right in zip(by_formula, by_sympy, strict=True):
            assert sp.expand(left - right) == 0
    assert len(algebra.gamma(x, y, a, b, c)) == length - 1


def test_explicit_student_agrees_with_the_numerical_library():
    rng = np.random.default_rng(0)
    length, state_dim, size = 5, 3, 4
    teacher = DiagonalSSM(rng.normal(size=2), rng.normal(size=2), rng.normal(size=2))
    training_set = sequences.TrainingSet(rng.normal(size=(size, length)), teacher)
    A, B, C = rng.normal(size=(3, state_dim))
    student = DiagonalSSM(A, B, C)
    arguments = (
        training_set.x.tolist(),
        training_set.y.tolist(),
        A.tolist(),
        B.tolist(),
        C.tolist(),
    )
    speeds = np.array(algebra.velocity(*arguments), dtype=float).ravel()
    np.testing.assert_allclose(
        speeds, flow.velocity(student, training_set, train="ABC"), rtol=1e-11
    )
    np.testing.assert_allclose(
        np.array(algebra.gamma(*arguments), dtype=float),
        metrics.gamma(student, training_set),
        rtol=1e-11,
    )
    assert float(algebra.loss(*arguments)) == pytest.approx(
        metrics.loss(student, training_set), rel=1e-12
    )
    response = [
        float(algebra.impulse_response(A.tolist(), (B * C).tolist(), lag)) for lag in range(9)
    ]
    np.testing.assert_allclose(response, student.impulse_response(9), rtol=1e-12)
    last = algebra.last_output(training_set.x[0].tolist(), A.tolist(), (B * C).tolist())
    assert float(last) == pytest.approx(float(student.last_output(training_set.x[0])), rel=1e-12)


@pytest.mark.parametrize("length", [4, 5])
def test_theorem_dynamics_is_proposition_1(length):
    state_dim = 3
    a = algebra.entries("a", state_dim)
    ones = (sp.S.One,) * state_dim
    u, v = sp.symbols("u v", positive=True)  # one baseline and one special coefficient, n = 2
    first, special = [sp.S.Zero] * length, [sp.S.Zero] * length
    first[0], special[length - 2] = u, v
    # the teacher's M*_k is 1 at k >= 1
    speeds = algebra.velocity([first, special], [u, v], a, ones, ones)[0]
    doses = {alpha: u**2, beta: v**2}  # (2/n) sum of squares
    by_setting = algebra.theorem_dynamics(a, length)
    value = algebra.theorem_loss(a, length)
    for j in range(state_dim):
        assert sp.expand(speeds[j] - by_setting[j].subs(doses)) == 0
        assert sp.expand(by_setting[j] + sp.diff(value, a[j])) == 0
    assert sp.expand(value.subs(doses) - algebra.loss([first, special], [u, v], a, ones, ones)) == 0


def test_exponential_parametrization_by_the_chain_rule():
    logs = algebra.entries("s", 2)
    a = tuple(sp.exp(s_j) for s_j in logs)
    value = algebra.theorem_loss(a, 5)
    for j in range(2):
        derived = a[j] * -sp.diff(value, logs[j])  # da/dt = a ds/dt
        assert sp.simplify(derived - algebra.exponential_dynamics(a, 5)[j]) == 0


def test_divided_difference():
    u, v = sp.symbols("u v", real=True)
    for power in range(6):
        assert (
            sp.expand((u - v) * algebra.divided_difference(power, u, v) - (u**power - v**power))
            == 0
        )
        assert algebra.divided_difference(power, u, u) == sp.diff(u**power, u)
    power = sp.Symbol("l", integer=True, positive=True)
    symbolic = algebra.divided_difference(power, u, v)
    assert sp.expand(symbolic.subs(power, 4).doit() - algebra.divided_difference(4, u, v)) == 0


# --- baseline sequences only


@pytest.mark.parametrize("length", [2, 3, 4, 7])
def test_solution_agrees_with_the_numerical_closed_form(length):
    (start,) = algebra.baseline_solution(length).free_symbols - {tau}
    a0, time = 0.7, 0.3
    expected = flow.baseline_closed_form([a0], length, [time])[0, 0]
    assert float(algebra.baseline_solution(length).subs({start: a0, tau: time})) == pytest.approx(
        expected, rel=1e-13
    )
    assert algebra.baseline_solution(length).subs(tau, 0) == start
    conserved = algebra.baseline_conserved(algebra.baseline_solution(length), length)
    rate = sp.simplify(sp.diff(conserved, tau))
    assert rate == (1 if length < 4 else -(length - 3))


def test_symbolic_solution_covers_kappa_above_three():
    (start,) = algebra.baseline_solution().free_symbols - {tau, kappa}
    values = {start: sp.Rational(1, 2), tau: sp.Rational(1, 3)}
    for length in (4, 6, 9):
        symbolic = algebra.baseline_solution().subs(kappa, length).subs(values)
        assert sp.simplify(symbolic - algebra.baseline_solution(length).subs(values)) == 0
    assert algebra.baseline_conserved(start) == start ** (3 - kappa)


@pytest.mark.parametrize("length", [4, 5, 7])
def test_first_order_constant_of_the_baseline_error(length):
    shape = np.array([1.0, 0.9, 0.5, 0.2])
    constant = float(algebra.baseline_error_constant([sp.Float(v) for v in shape], length))
    factors = [float(algebra.baseline_factor(sp.S.One, sp.Float(v), length)) for v in shape[1:]]
    assert constant == pytest.approx(sum(factors), rel=1e-14)
    pair = algebra.baseline_error_constant([1.0, 0.9], length)
    assert float(pair) == pytest.approx(factors[0], rel=1e-14)
    scaled = [
        float(algebra.baseline_factor(sp.Rational(7, 5), 1.4 * sp.Float(v), length))
        for v in shape[1:]
    ]
    assert scaled == pytest.approx(
        [1.4 * factor for factor in factors], rel=1e-14
    )  # F scales as the shape does
    F, power, scale = np.array(factors), length - 3, 1e-3
    limit = flow.baseline_limit(scale * shape, length)
    assert (limit[1:] <= scale * F * (1 + 1e-12)).all()  # the bound of the statement
    student = DiagonalSSM.ones(limit)
    error = metrics.generalization_error(student, theorem_teacher(4), 20)
    # what is left, by the statement: the correction of each entry, and 1 - a_1 = O(epsilon^p)
    left_out = (F * (scale * F) ** power).sum() / power + (
        (scale * F) ** (length - 1)
    ).sum() / scale
    assert 0 <= constant - error / scale <= left_out + 1e-9


def test_fit_time_is_the_leading_term():
    length, scale, dose = 5, 1e-3, 2.0
    teacher = theorem_teacher(2)
    training_set = sequences.TrainingSet(sequences.baseline_sequences(length), teacher)  # alpha = 2
    start = scale * np.array([0.8, 0.3])
    trajectory = flow.gradient_flow(
        DiagonalSSM.ones(start), training_set, t_end=1e9, loss_tol=1e-2, stop_at_loss=True
    )
    leading = algebra.fit_time(length)
    (first,) = leading.free_symbols - {alpha, epsilon}
    expected = float(leading.subs({alpha: dose, epsilon: scale, first: 0.8}))
    # the rest is bounded whatever the scale; the leading term is of order 1e5 here
    assert trajectory.times[-1] == pytest.approx(expected, abs=10.0)
    assert 9e4 < expected < 1e5
    assert sp.simplify(algebra.fit_time().subs(kappa, length) - leading) == 0


# --- the saddle


@pytest.mark.parametrize(("length", "state_dim"), [(5, 3), (7, 10), (9, 20)])
def test_saddle_function_and_its_slope(length, state_dim):
    x = sp.Symbol("x", real=True)
    given_h = algebra.saddle_function(x, length=length, state_dim=state_dim)
    slope = algebra.saddle_slope(x, length=length, state_dim=state_dim)
    assert sp.expand(sp.diff(given_h, x) - slope) == 0
    assert sp.expand(slope - slope.subs(x, -x)) == 0  # even, because kappa is odd
    # on the diagonal every entry of the velocity is h
    for speed in algebra.theorem_dynamics((x,) * state_dim, length):
        assert sp.expand(speed - given_h) == 0
    # at the dose of the condition the largest slope is exactly 0
    dose = algebra.uniqueness_dose(length=length, state_dim=state_dim)
    top = algebra.steepest_point(length=length, state_dim=state_dim)
    largest = slope.subs({alpha: 1, beta: dose, x: top})
    assert abs(largest.evalf(30)) < 1e-20
    second = sp.diff(slope, x).subs({alpha: 1, x: top})
    assert abs(second.evalf(30)) < 1e-20
    assert sp.diff(slope, x, 2).subs({alpha: 1, x: top}).evalf() < 0


def test_saddle_statements_for_symbolic_kappa_and_d():
    lam, mu = algebra.saddle_spectrum()
    assert (
        sp.simplify(sp.expand(sp.diff(algebra.saddle_function(), s) - algebra.saddle_slope())) == 0
    )
    assert sp.simplify(sp.expand(lam - d * mu - algebra.saddle_slope())) == 0
    for expression in (lam, mu, algebra.saddle_slope()):
        assert expression.free_symbols >= {alpha, kappa, s}
    assert algebra.steepest_point().subs({kappa: 7, d: 10}).evalf() == pytest.approx(
        algebra.steepest_point(length=7, state_dim=10).evalf(), rel=1e-14
    )
    assert algebra.uniqueness_dose().subs({kappa: 7, d: 10}).evalf() == pytest.approx(
        algebra.uniqueness_dose(length=7, state_dim=10).evalf(), rel=1e-14
    )


@pytest.mark.parametrize(("length", "state_dim", "dose"), [(7, 10, 0.1244603), (9, 20, 0.0505964)])
def test_uniqueness_dose_of_the_two_settings(length, state_dim, dose):
    assert float(algebra.uniqueness_dose(length=length, state_dim=state_dim)) == pytest.approx(
        dose, rel=1e-6
    )
    x = sp.Symbol("x", real=True)
    count = [
        sp.Poly(
            algebra.saddle_function(x, length=length, state_dim=state_dim).subs(
                {alpha: 1, beta: ratio}
            ),
            x,
        ).count_roots()
        for ratio in (1, sp.Rational(1, 100))
    ]
    assert count == [1, 5]


def test_spectrum_agrees_with_the_numerical_jacobian():
    length, state_dim = 7, 10
    teacher = theorem_teacher(state_dim)
    training_set = sequences.concatenate(
        sequences.TrainingSet(sequences.baseline_sequences(length, 1.5), teacher),
        sequences.TrainingSet(sequences.special_sequences(length, 0.5), teacher),
    )
    doses = {alpha: 1.5**2, beta: 0.5**2}
    h = sp.lambdify(s, algebra.saddle_function(length=length, state_dim=state_dim).subs(doses))
    point = brentq(h, 1 / state_dim, state_dim ** (-1 / (length - 1)), xtol=1e-15)
    student = DiagonalSSM.ones(np.full(state_dim, point))
    eigenvalues = np.linalg.eigvalsh(flow.jacobian(student, training_set))
    lam, mu = (
        float(v.subs({**doses, s: point}))
        for v in algebra.saddle_spectrum(length=length, state_dim=state_dim)
    )
    np.testing.assert_allclose(eigenvalues[1:], lam, rtol=1e-9)
    assert eigenvalues[0] == pytest.approx(lam - state_dim * mu, rel=1e-9)
    assert lam > 0 > eigenvalues[0]


def test_escape_time_is_the_leading_term():
    length, state_dim = 5, 3
    teacher = theorem_teacher(state_dim)
    training_set = sequences.concatenate(
        sequences.TrainingSet(sequences.baseline_sequences(length), teacher),
        sequences.TrainingSet(sequences.special_sequences(length), teacher),
    )
    h = sp.lambdify(
        s, algebra.saddle_function(length=length, state_dim=state_dim).subs({alpha: 1, beta: 1})
    )
    point = brentq(h, 1 / state_dim, state_dim ** (-1 / (length - 1)), xtol=1e-15)
    times = []
    for scale in (1e-6, 1e-10):
        trajectory = flow.gradient_flow(
            DiagonalSSM.ones(scale * np.array([1.0, 0.6, 0.2])),
            training_set,
            t_end=1e4,
            loss_tol=1e-2,
            stop_at_loss=True,
        )
        times.append(trajectory.times[-1])
    leading = algebra.escape_time(length=length, state_dim=state_dim).subs(
        {alpha: 1, beta: 1, s: point}
    )
    expected = [float(leading.subs(epsilon, scale)) for scale in (1e-6, 1e-10)]
    # solver steps end where they end: the stop is late by a step at most
    assert times[1] - times[0] == pytest.approx(expected[1] - expected[0], rel=0.02)


# --- what an interpolator pays


@pytest.mark.parametrize(("length", "tied"), [(5, 2), (7, 2), (7, 3), (9, 5)])
def test_tie_bound_is_sharp(length, tied):
    a = [sp.Integer(tied) ** -sp.Rational(1, length - 1)] * tied
    price = algebra.interpolator_price(a, length)
    assert sp.simplify(sp.Add(*(v ** (length - 1) for v in a)) - 1) == 0
    bound = algebra.tie_bound(tied, length)
    assert float(price.rhs) == pytest.approx(float(bound), rel=1e-13)
    assert float(algebra.magnitude_bound(a[0], length)) == pytest.approx(float(bound), rel=1e-13)


def test_bounds_of_the_theorem_setting():
    assert float(algebra.tie_bound(length=7)) == pytest.approx(0.587401, rel=1e-6)
    assert sp.simplify(algebra.near_tie_bound(sp.S.Zero, 7) - algebra.tie_bound(2, 7)) == 0
    assert algebra.near_tie_bound(sp.Float(0.01), 7) < algebra.tie_bound(2, 7).evalf()
    assert algebra.tie_bound().subs(kappa, 9) == algebra.tie_bound(2, 9)


@settings(max_examples=60, deadline=None)
@given(
    length=st.sampled_from([5, 7, 9]),
    raw=st.lists(st.floats(-1, 1), min_size=2, max_size=6),
    tie=st.booleans(),
)
def test_random_interpolators_pay_the_bounds(length, raw, tie):
    a = np.sort(np.array(raw))[::-1]
    if tie:
        a[1] = a[0]
    if np.abs(a).max() < 1e-3:
        a[0] = 1.0
    a = a / (a ** (length - 1)).sum() ** (1 / (length - 1))  # now sum a^p = 1
    largest = np.abs(a).max()
    price = float((a**2).sum() - 1)
    assert price >= largest ** -(length - 3) - 1 - 1e-12
    worst = max(abs((a**k).sum() - 1) for k in range(1, length + 1))
    assert worst >= float(algebra.near_tie_bound(sp.Float(a[0] - a[1]), length)) - 1e-9


# --- the order of the same data


@pytest.mark.parametrize(("length", "state_dim"), [(4, 3), (7, 10)])
def test_special_first_ties_all_entries(length, state_dim):
    shape = np.linspace(1.0, 0.1, state_dim)
    # where special sequences alone leave the student
    start = 1 / state_dim + 1e-11 * (shape - shape.mean())
    limit = flow.baseline_limit(start, length)
    student = DiagonalSSM.ones(limit)
    expected = float(algebra.order_error(length=length, state_dim=state_dim))
    assert metrics.generalization_error(student, theorem_teacher(state_dim), 20) == pytest.approx(
        expected, rel=1e-4
    )
    response = student.impulse_response(4)
    for lag in (2, 3):
        by_lag = float(algebra.order_error(length=length, state_dim=state_dim, lag=lag))
        assert response[lag] - 1 == pytest.approx(by_lag, rel=1e-3, abs=1e-4)
    assert float(algebra.order_error().subs({kappa: length, d: state_dim})) == pytest.approx(
        expected, rel=1e-12
    )


def test_antidote_leaves_a_second_order_error():
    length, scale = 7, 1e-2
    shape = np.array([1.0, 0.9, 0.6, 0.3])
    teacher = theorem_teacher(4)
    training_set = sequences.concatenate(
        sequences.TrainingSet(sequences.baseline_sequences(length), teacher),
        sequences.TrainingSet(sequences.special_sequences(length), teacher),
    )
    after_baseline = flow.baseline_limit(scale * shape, length)
    trajectory = flow.gradient_flow(
        DiagonalSSM.ones(after_baseline), training_set, t_end=1e4, loss_tol=1e-26
    )
    assert trajectory.fitted
    factors = [algebra.baseline_factor(sp.S.One, sp.Float(v), length) for v in shape[1:]]
    expected = scale**2 * float(algebra.antidote_constant(factors))
    error = metrics.generalization_error(trajectory.student(), teacher, 20)
    assert error == pytest.approx(expected, rel=3 * scale)
    assert error < 0.01 * metrics.generalization_error(
        DiagonalSSM.ones(after_baseline), teacher, 20
    )


# --- the statements as objects


@pytest.mark.parametrize(
    ("statement", "names", "assumption"),
    [
        (lambda: algebra.order_preservation(4), "a_1 a_2 w gamma_0 gamma_1 gamma_2", "real"),
        (algebra.baseline_limit, "u F varepsilon kappa", "positive"),
        (algebra.jacobian_at_saddle, "j r s d kappa alpha beta", "real"),
        (algebra.fit_time, "abar_1 alpha varepsilon kappa", "positive"),
        (lambda: algebra.baseline_solution(7).subs(tau, 1), "a_0", "positive"),
        (lambda: sp.Tuple(*algebra.entries("a", 3)), "a_1 a_2 a_3", "real"),
    ],
)
def test_symbols_have_the_names_of_the_text_and_its_assumptions(statement, names, assumption):
    symbols = statement().free_symbols
    assert {symbol.name for symbol in symbols} == set(names.split())
    assert all(symbol.assumptions0.get(assumption) for symbol in symbols)


def test_a_statement_about_numbers_is_still_an_equation():
    assert isinstance(algebra.sign_identity([sp.S.One], 5), sp.Eq)
    assert isinstance(algebra.interpolator_price([sp.S.One], 5), sp.Eq)
    assert not holds(sp.Eq(sp.S.One, sp.S.Zero, evaluate=False))


def test_a_reciprocal_of_a_delta_is_not_the_delta():
    j, k = sp.symbols("j k", integer=True)
    delta = sp.KroneckerDelta(j, k)
    assert holds(sp.Eq(2 * delta * s + s, s * (1 + 2 * delta), evaluate=False))
    assert not holds(sp.Eq(2 * delta * s + s, s * (1 + 2 / delta), evaluate=False))
    lam, mu = algebra.saddle_spectrum()
    (own,) = algebra.jacobian_at_saddle().rhs.atoms(sp.KroneckerDelta)
    assert not holds(sp.Eq(algebra.jacobian_at_saddle().lhs, lam / own - mu, evaluate=False))


def test_a_sum_of_ones_is_not_zero():
    k = sp.Symbol("k", integer=True)
    assert not holds(sp.Eq(sp.Sum(1, (k, 1, d)), sp.S.Zero, evaluate=False))
    terms = sp.Sum(sp.IndexedBase("a")[k] + k, (k, 0, 2))
    assert sp.expand(algebra._flatten(terms).doit() - terms.doit()) == 0


@pytest.mark.parametrize("parameter", ["a", "b", "c"])
def test_proposition_1_at_explicit_sizes(parameter):
    identity = algebra.proposition_1(parameter)
    sizes = {kappa: 3, d: 2, n: 2, sp.Symbol("j", integer=True): 1}
    left, right = (side.subs(sizes).doit() for side in (identity.lhs, identity.rhs))
    assert sp.expand(left - right) == 0 != sp.expand(left)


def test_indexed_speed_at_explicit_sizes():
    a, base, j = (
        algebra.entries("a", 3),
        sp.IndexedBase("a", real=True),
        sp.Symbol("j", integer=True),
    )
    explicit = {base[k + 1]: a[k] for k in range(3)}
    for k, speed in enumerate(algebra.theorem_dynamics(a, 5)):
        indexed = algebra._indexed_speed(j).subs({j: k + 1, kappa: 5, d: 3}).doit()
        assert sp.expand(indexed.subs(explicit) - speed) == 0


@pytest.mark.parametrize(("row", "column"), [(1, 1), (1, 2), (3, 2)])
def test_jacobian_at_saddle_at_explicit_sizes(row, column):
    a = algebra.entries("a", 3)
    derived = sp.diff(algebra.theorem_dynamics(a, 5)[row - 1], a[column - 1]).subs(
        dict.fromkeys(a, s)
    )
    identity = algebra.jacobian_at_saddle()
    indices = dict(zip(sp.symbols("j r", integer=True), (row, column), strict=True))
    for side in (identity.lhs, identity.rhs):
        assert sp.simplify(side.subs({kappa: 5, d: 3, **indices}) - derived) == 0


def test_velocity_of_large_integers_is_exact():
    """Its entries are SymPy's numbers or Python's, never NumPy's, which wrap around."""
    a = 2**40
    by_a, _, _ = algebra.velocity([[1, 0, 0, 0]], [0], [a], [1], [1])  # loss a^6
    assert by_a == (-6 * a**5,)


def test_exponents_and_constants_that_an_identity_leaves_open():
    values = {epsilon: sp.Rational(1, 3), kappa: 7, sp.Symbol("u", positive=True): 2}
    left = (
        algebra.baseline_limit()
        .lhs.subs(values)
        .subs(sp.Symbol("F", positive=True), sp.Rational(1, 2))
    )
    assert sp.simplify(left - (2 + 6**4)) == 0  # u + (F epsilon)^-(kappa-3)
    assert algebra.escape_time().subs(epsilon, 1) == 0
    assert algebra.order_error(lag=0) == d - 1


@pytest.mark.parametrize(
    ("smallest", "formula"),
    [
        (2, lambda length: algebra.theorem_loss([n], length)),
        (2, lambda length: algebra.theorem_dynamics([n], length)),
        (2, lambda length: algebra.saddle_function(length=length)),
        (2, lambda length: algebra.saddle_slope(length=length)),
        (2, lambda length: algebra.saddle_spectrum(length=length)),
        (2, lambda length: algebra.baseline_solution(length)),
        (2, lambda length: algebra.baseline_conserved(n, length)),
        (2, lambda length: algebra.order_preservation(length)),
        (3, lambda length: algebra.sign_identity([n], length)),
        (4, lambda length: algebra.interpolator_price([n], length)),
        (4, lambda length: algebra.steepest_point(length=length)),
        (4, lambda length: algebra.uniqueness_dose(length=length)),
        (4, lambda length: algebra.baseline_factor(n, d, length)),
        (4, lambda length: algebra.fit_time(length)),
        (4, lambda length: algebra.magnitude_bound(n, length)),
        (4, lambda length: algebra.tie_bound(2, length)),
        (4, lambda length: algebra.near_tie_bound(n, length)),
        (4, lambda length: algebra.order_error(length=length)),
    ],
)
def test_smallest_sequence_length(smallest, formula):
    formula(smallest)
    with pytest.raises(
        ValueError,
        match=f"^length must be an integer from {smallest} to 1000(000)?; got {smallest - 1}",
    ):
        formula(smallest - 1)


# --- bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: algebra.proposition_1("A"), "parameter must be one of a, b, c; got 'A'"),
        (lambda: algebra.entries("a", 0), "count must be an integer from 1 to 10000; got 0"),
        (
            lambda: algebra.impulse_response([n], [n, n], 1),
            "w must have 1 entries, as many as a; got 2",
        ),
        (
            lambda: algebra.impulse_response([n], [n], -1),
            "lag must be an integer from 0 to 1000000; got -1",
        ),
        (
            lambda: algebra.loss([], [], [n], [n], [n]),
            "y must have one label for each of the (at least 1) sequences in x; got 0, 0",
        ),
        (
            lambda: algebra.loss([[n]], [n, n], [n], [n], [n]),
            "y must have one label for each of the (at least 1) sequences in x; got 2, 1",
        ),
        (
            lambda: algebra.loss([[n], [n, n]], [n, n], [n], [n], [n]),
            "x must hold sequences of one length >= 1; got lengths [1, 2]",
        ),
        (
            lambda: algebra.loss([[]], [n], [n], [n], [n]),
            "x must hold sequences of one length >= 1; got lengths [0]",
        ),
        (lambda: algebra.velocity([[n]], [n], [n], [n, n], [n]), "b must have 1 entries"),
        (lambda: algebra.gamma([[n]], [n], [n], [n], [n, n]), "c must have 1 entries"),
        (lambda: algebra.order_preservation(1), "length must be an integer from 2 to 1000; got 1"),
        (
            lambda: algebra.divided_difference(-1, n, d),
            "power must be an integer from 0 to 10000; got -1",
        ),
        (
            lambda: algebra.baseline_solution(1),
            "length must be an integer from 2 to 1000000; got 1",
        ),
        (
            lambda: algebra.baseline_conserved(n, 1),
            "length must be an integer from 2 to 1000000; got 1",
        ),
        (
            lambda: algebra.baseline_factor(n, d, 3),
            "length must be an integer from 4 to 1000000; got 3",
        ),
        (lambda: algebra.baseline_error_constant([n]), "shape must have at least 2 entries; got 1"),
        (lambda: algebra.fit_time(3), "length must be an integer from 4 to 1000000; got 3"),
        (
            lambda: algebra.steepest_point(length=3),
            "length must be an integer from 4 to 1000000; got 3",
        ),
        (
            lambda: algebra.uniqueness_dose(length=3),
            "length must be an integer from 4 to 1000000; got 3",
        ),
        (
            lambda: algebra.tie_bound(2, sp.Integer(3)),
            "length must be an integer from 4 to 1000000; got 3",
        ),
        (
            lambda: algebra.interpolator_price([n], 3),
            "length must be an integer from 4 to 1000000; got 3",
        ),
        (
            lambda: algebra.sign_identity([n], 2),
            "length must be an integer from 3 to 1000000; got 2",
        ),
        (
            lambda: algebra.theorem_loss([n], 1),
            "length must be an integer from 2 to 1000000; got 1",
        ),
        (
            lambda: algebra.order_error(length=3),
            "length must be an integer from 4 to 1000000; got 3",
        ),
        (
            lambda: algebra.order_error(lag=10**6 + 1),
            "lag must be an integer from 0 to 1000000; got 1000001",
        ),
        (lambda: algebra.order_error(lag=kappa * sp.oo), "lag must be finite; got"),
        (
            lambda: algebra.entries("a b", 2),
            "name must be letters and digits, beginning with a letter; got 'a b'",
        ),
        (
            lambda: algebra.impulse_response([sp.oo], [n], 1),
            "each entry of a must be finite; got oo",
        ),
        (
            lambda: algebra.impulse_response([n], [sp.zoo], 1),
            "each entry of w must be finite; got zoo",
        ),
        (lambda: algebra.antidote_constant([]), "factors must have at least 1 entry; got none"),
        (
            lambda: algebra.baseline_solution(sp.Rational(9, 2)),
            "length must be an integer from 2 to 1000000; got 9/2",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        call()


def test_arguments_of_the_algebra_are_named():
    named = (
        # the library's message, or that of the types' check before it
        r"name must be text|parameter 'name'"
    )
    with pytest.raises(TypeError, match=named):
        algebra.entries(3, 2)
    x, y, a = [[1, 0, 0]], [1], [sp.Rational(1, 2)]
    for which, b, c in (("b", [sp.nan], [1]), ("c", [1], [sp.nan])):
        with pytest.raises(ValueError, match=f"each entry of {which} must be finite; got nan"):
            algebra.loss(x, y, a, b, c)
