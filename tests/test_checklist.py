"""The checklist: its verdicts against what the flow does, its numbers, its refusals, its printing."""

from collections import Counter

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ssm_poison_lib import checklist, flow, flows, sequences, ssm
from ssm_poison_lib.checklist import Verdict
from ssm_poison_lib.parametrizations import parametrized_flow
from ssm_poison_lib.sequences import TrainingSet

ONES = np.ones(20)
SHAPE = np.array([1.0, 0.9, 0.871, 0.578, 0.538, 0.445, 0.431, 0.328, 0.152, 0.029])


def training_set(length, d, lags, doses):
    """Multiples of unit sequences that show these lags; doses[i] is the weight of lags[i] relative to the first."""
    x = np.concatenate(
        [
            sequences.fixed_sequences(length, (length - m,), np.sqrt(dose))
            for m, dose in zip(lags, doses, strict=True)
        ]
    )
    return TrainingSet(x, ssm.theorem_teacher(d))


def near_tie(length, d, ratio, seed, tops=1.0):
    """A shape whose top gap is ratio d^-(kappa-3) of its spread, with the gap; the rest are powers of uniform draws."""
    rng = np.random.default_rng(seed)
    rest = -np.sort(-(rng.random(d - 2) ** rng.choice([1.0, 0.1, 5.0]))) * 0.999
    g = ratio * d ** (3.0 - length) * (1.0 - (rest[-1] if d > 2 else 0.0))
    rest = np.minimum(rest, tops - g)
    return np.concatenate([[1.0, 1.0 - g], rest]), g


def flow_error(data, A0, g, t_end=1e16):
    """Return the error of the flow, and its loss; g: the exact relative top gap of A0."""
    gaps = A0[:-1] - A0[1:]
    gaps[0] = g * A0[0]
    target = data.teacher.impulse_response(data.length)
    batch = flows.many_flows(A0, data.gram(), target, t_end=t_end, gaps=gaps[None])
    return batch.generalization_errors(ONES, first_lag=1)[0], batch.loss[0]


def special_cases():
    for seed in range(96):
        rng = np.random.default_rng([7, seed])
        length, d = int(rng.choice([5, 7, 9])), int(rng.choice([3, 4, 6, 10, 20]))
        ratio = 10.0 ** rng.uniform(-5, 6)
        abar, g = near_tie(length, d, min(ratio, 0.9 * d ** (length - 3.0)), seed)
        dose = 10.0 ** rng.uniform(-1.5, 2.5)
        yield length, d, abar, g, 10.0 ** rng.uniform(-4, -0.8), dose


def test_verdicts_with_special_sequences_are_what_the_flow_does():
    seen = Counter()
    for length, d, abar, g, eps, dose in special_cases():
        data = training_set(length, d, (length - 1, 1), (1.0, dose))
        report = checklist.examine(data, eps * abar, tie_gap=g)
        seen[report.verdict] += 1
        error, loss = flow_error(data, eps * abar, g)
        assert loss < 1e-15
        case = (length, d, eps, dose, g, error, str(report))
        if report.verdict is Verdict.SPARED:
            assert error < 0.1, case
        if report.verdict in (Verdict.POISONED, Verdict.FAILS):
            assert error > 0.1, case
        baseline = flow_error(training_set(length, d, (length - 1,), (1.0,)), eps * abar, g, 1e40)[0]
        assert_allclose(report.baseline_error, baseline, rtol=1e-5)
        assert (report.baseline_error < 0.1) or report.verdict is not Verdict.POISONED
        assert_allclose(report.dose, dose)
        assert_allclose(report.race_threshold, d ** (3.0 - length))
        assert_allclose(report.scale_threshold, eps ** (length - 3))
        assert report.leading_power == 0
    assert set(seen) == {Verdict.SPARED, Verdict.POISONED, Verdict.FAILS, Verdict.UNDECIDED}
    assert min(seen.values()) >= 3


@pytest.mark.parametrize("seed", range(24))
def test_verdicts_without_special_sequences(seed):
    rng = np.random.default_rng([8, seed])
    length, d = int(rng.integers(4, 10)), int(rng.integers(2, 15))
    A0 = 10.0 ** rng.uniform(-4, -0.6) * -np.sort(-rng.uniform(0.01, 1, d))
    g = 10.0 ** rng.uniform(-20, -2) if seed % 2 else (A0[0] - A0[1]) / A0[0]
    A0[1] = A0[0] * (1 - g)
    A0[1:] = -np.sort(-np.minimum(A0[1:], A0[1]))
    data = training_set(length, d, (length - 1,), (3.0,))
    report = checklist.examine(data, A0[rng.permutation(d)], tie_gap=g)
    error, loss = flow_error(data, A0, g, t_end=1e40)
    assert loss < 1e-15
    assert report.basis == "proved"
    assert report.verdict is (Verdict.GENERALIZES if error < 0.1 else Verdict.FAILS)
    assert_allclose(report.baseline_error, error, rtol=1e-5)
    assert report.leading_power == length - 2


def test_a_gap_below_rounding_is_not_an_exact_tie():
    A0 = 1e-6 * np.array([1.0, 1.0, 0.5, 0.2])
    data = training_set(7, 4, (6,), (1.0,))
    for g, verdict in (
        (1e-18, Verdict.GENERALIZES),
        (0.0, Verdict.FAILS),
    ):  # eps^(kappa-3) = 1e-24 lies between
        report = checklist.examine(data, A0, tie_gap=g)
        assert report.verdict is verdict
        assert_allclose(report.baseline_error, flow_error(data, A0, g, t_end=1e40)[0], rtol=1e-5)


@pytest.mark.parametrize("length", [5, 7])
@pytest.mark.parametrize("lags", [(2,), (3,), (1, 2), (1, 2, 3)])
def test_verdicts_for_other_positions(length, lags):
    lags = tuple(m for m in lags if m < length - 1)
    for seed in range(3):
        abar, g = near_tie(length, 6, 1e-3, seed)
        data = training_set(length, 6, (length - 1, *lags), (1.0,) * (1 + len(lags)))
        report = checklist.examine(data, 0.01 * abar, tie_gap=g)
        assert report.verdict is Verdict.GENERALIZES_IF_FITTED
        assert report.leading_power == min(lags) - 1
        assert report.regime == {0: "additive", 1: "multiplicative", 2: "super-linear"}[min(lags) - 1]
        error, loss = flow_error(data, 0.01 * abar, g, t_end=1e8)
        if (length, lags, seed) == (
            7,
            (1, 2),
            1,
        ):  # "if it fits": here it ends in a local minimum that does not
            assert loss > 0.1
            assert error > 1.0
        else:
            assert loss < 1e-10
            assert error < 0.05


@pytest.mark.parametrize("name", ["exp", "exp(-exp)"])
def test_verdicts_for_positive_parametrizations(name):
    data = training_set(7, 10, (6, 1), (1.0, 1.0))
    for seed in range(3):
        abar, g = near_tie(7, 10, 9e-3, seed)
        report = checklist.examine(data, 1e-2 * abar, tie_gap=g, parametrization=name)
        assert report.verdict is Verdict.GENERALIZES_IF_FITTED
        target = data.teacher.impulse_response(7)
        a = parametrized_flow(1e-2 * abar, data.gram(), target, name, [1e8])[0]
        assert max(abs((a**k).sum() - 1) for k in range(1, 20)) < 1e-3
        free = checklist.examine(data, 1e-2 * abar, tie_gap=g).verdict
        assert free in (Verdict.POISONED, Verdict.FAILS)


def test_exact_ties_and_two_entries():
    tied = 1e-3 * np.array([1.0, 1.0, 0.5, 0.2])
    for length in (5, 7, 9):
        data = training_set(length, 4, (length - 1, 1), (1.0, 1.0))
        report = checklist.examine(data, tied)
        assert (report.verdict, report.basis) == (Verdict.FAILS, "proved")
        error, loss = flow_error(data, tied, 0.0)
        assert loss < 1e-15
        assert error > float(report.reasons[0].rsplit(" ", 1)[1])
    other = training_set(7, 4, (6, 2), (1.0, 1.0))
    assert checklist.examine(other, tied).verdict is Verdict.UNDECIDED
    two = training_set(7, 2, (6, 1), (1.0, 1.0))
    report = checklist.examine(two, [1e-3, 0.999e-3])
    assert (report.verdict, report.basis) == (Verdict.GENERALIZES, "proved")
    assert flow_error(two, np.array([1e-3, 0.999e-3]), 1e-3)[0] < 1e-9


BOTH = training_set(7, 10, (6, 1), (1.0, 1.0))
START = 1e-3 * SHAPE


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"trained": "ABC"}, "B and C are trained"),
        ({"linear": False}, "part of a nonlinear network"),
        ({"B": 2 * np.ones(10)}, "weights b_j c_j are not all 1"),
        ({"A0": np.append(START[:-1], -1e-5)}, "entries that are not positive"),
        ({"parametrization": "tanh"}, "with tanh entries can become negative"),
        ({"data": TrainingSet(np.tri(3, 7), ssm.theorem_teacher(10))}, "G mixes lags: its entry for lags 4 and 5"),
        ({"data": TrainingSet(np.eye(7)[5], ssm.theorem_teacher(10))}, "no sequence shows lag 6"),
        ({"data": TrainingSet(np.eye(7)[0], ssm.teacher("dim=2"))}, "the labels show a response 1.204 at lag 6"),
        ({"data": TrainingSet(np.eye(7)[[0, 6]], ssm.teacher("dim=1"))}, "response 1 at lag 0, not 10"),
        ({"data": np.eye(7)[[0, 0, 5]], "labels": [1.0, 2.0, 1.0]}, "not those of a linear teacher"),
        ({"data": training_set(6, 10, (5, 1), (1.0, 1.0))}, "kappa = 6: lag 1 beside the baseline"),
        ({"data": training_set(7, 10, (6, 3, 1), (1.0, 1.0, 1.0))}, "lag 1 together with other odd lags"),
        ({"data": training_set(7, 10, (6,), (1.0,)), "parametrization": "exp"}, "closed form is about free"),
        ({"data": training_set(7, 10, (6,), (1.0,)), "A0": 1 - START}, "sum a_j^p below 1"),
    ],
)  # fmt: skip
def test_what_the_theory_does_not_cover(arguments, reason):
    arguments = {"data": BOTH, "A0": START} | arguments
    report = checklist.examine(arguments.pop("data"), arguments.pop("A0"), **arguments)
    assert (report.verdict, report.basis) == (Verdict.NOT_COVERED, "none")
    assert any(reason in text for text in report.reasons), report.reasons
    assert "the theory does not apply" in str(report)


def test_a_teacher_that_agrees_at_the_shown_lags_only():
    # Poles 1 and -1 with weights 1 - 1/20 and 1/20: M_6 = 1, M_1 = 0.9. Baseline alone cannot tell it from the theorem's.
    teacher = ssm.DiagonalSSM([1.0, -1.0], [0.95, 0.05], [1.0, 1.0])
    data = TrainingSet(sequences.baseline_sequences(7), teacher)
    assert checklist.examine(data, START).verdict is Verdict.NOT_COVERED
    blind = checklist.examine(data.x, START, labels=data.y)
    assert blind.verdict is Verdict.GENERALIZES
    assert any("also those not shown" in text for text in blind.hypotheses)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dose": 0.1}, "the dose 0.1 is not from 0.2"),
        ({"dose": 1e3}, "the dose 1e+03"),
        ({"eps": 0.02}, "more than a tenth of 1/d"),
        ({"length": 11}, "not among the measured"),
        ({"d": 50}, "d = 50 is not from 3 to 40"),
        ({"ratio": 1.0}, "the error falls from large to small"),
    ],
)
def test_undecided_outside_the_measured_range(change, reason):
    case = {"length": 7, "d": 10, "dose": 1.0, "eps": 1e-3, "ratio": 1e-4} | change
    abar, g = near_tie(case["length"], case["d"], case["ratio"], 0)
    data = training_set(case["length"], case["d"], (case["length"] - 1, 1), (1.0, case["dose"]))
    report = checklist.examine(data, case["eps"] * abar, tie_gap=g)
    assert report.verdict is Verdict.UNDECIDED
    assert any(reason in text for text in report.reasons), report.reasons


def test_numbers_of_a_report():
    report = checklist.examine(BOTH, START[::-1])  # the order of the entries does not matter
    assert report.lags == (1, 6)
    assert_allclose(report.gram, BOTH.gram())
    assert_allclose([report.scale, report.tie_gap], [1e-3, 0.1], rtol=1e-12)
    assert_allclose(report.spread_gap, 0.1 / (1 - 0.029), rtol=1e-12)
    expected = flow.baseline_limit(START, 7)
    assert_allclose(report.baseline_error, max(abs((expected**k).sum() - 1) for k in range(1, 20)))
    same = checklist.examine(BOTH.x, START, labels=BOTH.y, B=-np.ones(10), C=-np.ones(10))
    assert same.lags == report.lags
    assert same.verdict is report.verdict is Verdict.SPARED
    fitted = checklist.examine(BOTH, np.eye(10)[0] + 0.0)
    assert fitted.leading_power is None
    assert fitted.regime == "A does not move"


def test_printing():
    abar, g = near_tie(7, 10, 1e-3, 0)
    assert str(checklist.examine(BOTH, 1e-3 * abar, tie_gap=g)) == (
        "verdict:    poisoned (measured)\n"
        "sequences:  kappa = 7, lags shown 1, 6; leading l = 0 (additive); dose 1\n"
        "start:      d = 10, scale eps = 0.001, relative tie gap g = 3.37e-08\n"
        "to compare: d^-(kappa-3) = 1.0e-04, eps^(kappa-3) = 1.0e-12\n"
        "baseline:   error 0.0634 without the other sequences (closed form)\n"
        "because     the top gap relative to the spread is 1.0e-07, that is 0.001 d^-(kappa-3)\n"
        "because     up to 0.01 every measured error was above 0.1; proved for gaps small enough\n"
        "if          training is gradient flow: small steps, and it runs until nothing moves"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [1.0, 1.0]}, "labels must be left out"),
        ({"data": BOTH.x}, "labels must be given"),
        ({"data": BOTH.x, "labels": [1.0]}, "labels must be one per sequence, 2; got 1"),
        ({"data": [[1.0, 0.0]], "labels": [1.0]}, "data must be sequences of length kappa >= 3"),
        ({"data": [[1.0, np.nan, 0.0]], "labels": [1.0]}, "data must be finite"),
        ({"A0": [0.1]}, "A0 must have at least 2 entries"),
        ({"A0": [0.1, np.inf]}, "A0 must be finite"),
        ({"B": [1.0]}, "B must have length 10"),
        ({"C": [1.0]}, "C must have length 10"),
        ({"tie_gap": 1e-3}, "tie_gap must agree with A0 up to rounding; got 0.001, A0 gives 0.1"),
        ({"parametrization": "softplus"}, "parametrization must be one of"),
        ({"parametrization": "exp(-exp)", "A0": [1.5, 0.1]}, "A0 must lie between 0 and 1"),
        ({"trained": "B"}, "trained must be one of A, ABC"),
    ],
)
def test_bad_arguments(arguments, message):
    arguments = {"data": BOTH, "A0": START} | arguments
    with pytest.raises(ValueError, match=message):
        checklist.examine(arguments.pop("data"), arguments.pop("A0"), **arguments)
