"""The benchmark of defences: its cases are what they say, its scores follow, and somebody's own
defence runs by name.
"""

import json

import numpy as np
import pytest

from ssm_poison_lib.__main__ import main
from ssm_poison_lib.studies import benchmark, detectors, store
from ssm_poison_lib.studies.benchmark import ATTACKS, BOOK_SEEDS, CASES, HARMLESS, Plan, Row

QUICK = [
    case
    for case in CASES
    if case.length == 5 and case.kind in ("mixture", "special first", "Gaussian")
]


def test_there_are_24_cases_half_of_them_harmless():
    assert len(CASES) == len({case.name for case in CASES}) == 24
    assert len(ATTACKS) == len(HARMLESS) == 6


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_labels_are_clean_and_seeds_repeat(case):
    data, again, other = case.data(7), case.data(7), case.data(8)
    np.testing.assert_array_equal(data.x, again.x)
    assert data.x.shape != other.x.shape or not np.array_equal(data.x, other.x)
    # the teacher's response is d, 1, 1, ...: its answer is the sum of the inputs and (d - 1) times
    # the last
    np.testing.assert_allclose(data.y, data.x.sum(axis=1) + (case.state_dim - 1) * data.x[:, -1])
    assert data.harmful.any() != case.harmless
    assert sorted(np.concatenate(data.phases)) == list(range(len(data.x)))


def test_seeds_of_data_and_start_are_apart():
    case = CASES[0]
    assert not np.array_equal(case.start(1)[0], case.start(2)[0])
    assert case.data(1).x.shape == case.data(2).x.shape


def test_attacks_harm_and_harmless_data_do_not():
    rows = benchmark.score(benchmark.named("do nothing"), [11])
    attacked = [row for row in rows if not row.harmless]
    # of 12: some starts are not so near a tie
    assert sum(row.undefended > 0.1 for row in attacked) >= 10
    assert all(row.undefended > 1 for row in attacked if "first" in row.case)
    fine = [row.undefended < 0.1 for row in rows if row.harmless and "sparse" not in row.case]
    assert all(fine)
    assert len(fine) == 10
    assert all(row.error == row.undefended for row in rows)


def test_a_perfect_defence_scores_as_one():
    truth = {}
    for case in QUICK:
        data = case.data(3)
        truth[data.x.tobytes()] = ~data.harmful
    rows = benchmark.score(lambda x, y, seed: Plan(truth[x.tobytes()]), [3], QUICK)
    found = benchmark.summary(rows)
    assert (found["detected"], found["false_alarms"], found["repaired"], found["spoilt"]) == (
        1,
        0,
        1,
        0,
    )
    worst = benchmark.summary(
        benchmark.score(lambda x, y, seed: ~truth[x.tobytes()] | (x[:, 0] != 0), [3], QUICK)
    )
    assert worst["repaired"] < 1


def test_the_stored_table_is_made_by_this_code():
    content, _ = store.load("benchmark")
    stored = [row for row in content["rows"] if row["defence"] == "do nothing" and row["seed"] == 0]
    for row, now in zip(
        stored[:6], benchmark.score(benchmark.named("do nothing"), [0], CASES[:6]), strict=True
    ):
        assert row["case"] == now.case
        np.testing.assert_allclose(row["undefended"], now.undefended, rtol=1e-6)
    for name, summary in content["summaries"].items():
        rows = [row for row in content["rows"] if row["defence"] == name]
        assert len(rows) == len(CASES) * len(BOOK_SEEDS)
        assert benchmark.summary(rows) == pytest.approx(summary, nan_ok=True)


def test_what_draws_from_the_random_numbers_of_a_process_has_one_of_its_own():
    # ART seeds NumPy's global state, training torch's: two threads would draw from each other's
    for study in (benchmark.STUDY, detectors.STUDY):
        assert study.scheduler == "processes"


def test_a_summary_counts_what_it_says():
    def row(harmless, detected, alarms, error, undefended):
        return Row("case", harmless, 0, detected, alarms, error, undefended, 0.5)

    rows = [
        row(False, 1.0, 0.0, 0.01, 0.5),
        row(False, 0.0, 0.5, 0.5, 0.5),
        row(True, None, 0.1, None, 0.01),
    ]
    assert benchmark.summary(rows) == {
        "detected": 0.5,
        "false_alarms": pytest.approx(0.2),
        "repaired": 0.5,
        "spoilt": 1.0,
        "error_attacked": pytest.approx(0.255),
        "error_harmless": None,
        "seconds": 1.5,
    }


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([True], "a defence must return 9 truth values"),
        ([1] * 9, "a defence must return 9 truth values"),
        (Plan([True] * 9, phases=[[9]]), "phases must be rows from 0 to 8"),
        (Plan([True] * 9, parametrization="log"), "parametrization must be"),
    ],
)
def test_a_defence_that_returns_something_else_is_refused(answer, message):
    with pytest.raises(ValueError, match=message):
        benchmark.score(lambda x, y, seed: answer, [0], CASES[:1])


@pytest.mark.parametrize(
    "name",
    ["nobody", "nobody.py", "no_such_module:f", "math:nothing", "math:pi", "operator:add"],
)
def test_a_defence_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="defence must"):
        benchmark.named(name)


def test_a_defence_in_a_file_of_its_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n\n\ndef defence(x, y, seed):\n"
        "    return x[:, :-2].any(axis=1)  # nothing late alone\n"
    )
    monkeypatch.chdir(tmp_path)
    command = [
        "benchmark",
        "mine:defence",
        "--seeds",
        "11",
        "12",
        "13",
        "14",
        "15",
        "--json",
        "mine.json",
    ]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "do nothing" in printed
    assert "mine:defence, your seeds" in printed
    written = json.loads((tmp_path / "mine.json").read_text())
    assert len(written["rows"]) == 10 * len(CASES)
    assert written["versions"]["python"]
    # It misses lag 3 of "lags 1 and 3" and all of "special first, hidden".
    assert written["summaries"]["mine:defence, your seeds"]["detected"] == pytest.approx(4.5 / 6)


def test_the_books_seeds_are_not_yours(capsys):
    assert main(["benchmark", "shuffle", "--seeds", "0", "12", "13", "14", "15"]) == 2
    assert "--seeds must differ from the book's" in capsys.readouterr().err
