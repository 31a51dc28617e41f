"""The audit: verdicts and exit status on known and harmless sets, hostile files, the report."""

import io
import json
import os
import re
import signal
import stat
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import dask.array as da
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from axe_playwright_python.sync_playwright import Axe
from distributed import Client, LocalCluster
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import sync_playwright

from ssm_poison_lib.__main__ import main
from ssm_poison_lib.architectures import S4D, SequenceModel
from ssm_poison_lib.attacks.datasets import digits, mnist1d
from ssm_poison_lib.audit import VERDICTS, _student, audit, audit_parts
from ssm_poison_lib.audit._read import from_path
from ssm_poison_lib.audit.harmless import KINDS, false_finding, harmless
from ssm_poison_lib.defences.before import data_sums

E = np.eye(7)


def rows(position, n=10):
    return E[position - 1] * np.arange(1.0, n + 1)[:, None]


BASELINE, SPECIAL = rows(1), rows(6)
BOTH = np.concatenate([BASELINE, SPECIAL])
LABELS = np.r_[BASELINE.sum(1), SPECIAL.sum(1)]  # of a teacher whose response is 1 from lag 1 on


def gaussian(n, *shape, seed=0):
    return np.random.default_rng(seed).standard_normal((n, *shape))


def command(*arguments):
    return main(["audit", *map(str, arguments)])


def verdicts(found):
    return [f.verdict for f in found.findings]


# ---- verdicts ------------------------------------------------------------------------------------


def test_the_theorems_baseline_set_leaves_lags_to_the_implicit_bias():
    found = audit(BASELINE, BASELINE.sum(1))
    assert (found.verdict, found.status) == ("underdetermined", 1)
    assert "1 of 7 lags" in found.findings[0].text
    assert "10 of 10 generalizes" in found.theory[0]


def test_the_theorems_mixture_contains_special_sequences():
    found = audit(BOTH, LABELS)
    assert verdicts(found) == ["contains special sequences", "underdetermined"]
    assert found.findings[0].rows == tuple(range(10, 20))
    assert found.gaps == ((2, 5),)
    assert {r["row"] for r in found.standing_out} >= set(range(10, 20))
    assert found.student["without them"]["explained anyway"] > 0.5  # the others had said it already


def test_one_special_sequence_among_many_is_found():
    x = np.concatenate([gaussian(300, 12), np.zeros((1, 12))])
    x[:, 5:] = 0.0
    x[300, 10] = 0.01
    found = audit(x, x[:, ::-1] @ 0.8 ** np.arange(12))
    assert found.verdict == "contains special sequences"
    assert found.findings[0].rows == (300,)


def test_the_same_data_in_two_orders():
    short_first, mixed = np.repeat([1, 0], 10), np.tile([0, 1], 10)
    assert audit(BOTH, LABELS, order=short_first).verdict == "order-sensitive"
    assert "order-sensitive" not in verdicts(audit(BOTH, LABELS, order=mixed))


def test_short_lags_first_matters_without_any_gap():
    x = gaussian(200, 8)
    x[:100, :5] *= 0.01  # the first half shows lags 0 to 2 alone
    y = x[:, ::-1] @ (0.9 ** np.arange(8) + (-0.5) ** np.arange(8))
    found = audit(x, y, order=np.arange(200)[::-1])
    assert found.student["in the given order"]["phases"] == 4
    assert verdicts(audit(x, y, order=np.random.default_rng(0).random(200))) == []


def test_gaussian_sequences():
    x = gaussian(20, 7)
    assert audit(x, x[:, ::-1] @ 0.8 ** np.arange(7)).status == 0
    wide = audit(gaussian(20, 50), gaussian(20))
    assert verdicts(wide) == ["underdetermined"]
    assert wide.lags.rank == 20


def test_mnist1d_and_digits_and_poisoned_mnist1d():
    data = mnist1d(500)
    x, y = data.x[:200].numpy(), data.y[:200].numpy()
    clean = audit(x, y)
    # a linear student cannot tell the classes
    assert (clean.verdict, clean.status, clean.outputs, clean.channels) == ("undecided", 0, 10, 1)
    assert "explains only 11% of the labels" in clean.findings[0].text
    # gradient matching with a small budget leaves copies within eps of their originals, which stay
    signs = np.random.default_rng(0).choice([-1.0, 1.0], x[:60].shape)
    poisoned = audit(np.concatenate([x, x[:60] + 0.25 * signs]), np.r_[y, y[:60]])
    assert poisoned.verdict == "contains special sequences"
    assert poisoned.findings[0].count == 120
    pixels = digits()
    assert verdicts(audit(pixels.x.numpy(), pixels.y.numpy())) == ["undecided"]


def test_poison_of_gradient_matching():
    import torch

    from ssm_poison_lib.attacks.gradient_matching import gradient_matching

    data = mnist1d(500)
    x, y = data.x[:160], data.y[:160]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(40, 10))
    brew = gradient_matching(
        model, x[:50], y[:50], x[100:], y[100:], eps=0.25, steps=10, restarts=1
    )
    found = audit(torch.cat([x, brew.x]).numpy(), torch.cat([y, y[:50]]).numpy())
    assert found.verdict == "contains special sequences"
    assert found.findings[0].count == 100


def test_what_cannot_be_told_is_undecided():
    x = gaussian(40, 6)
    assert audit(x).verdict == "undecided"
    assert audit(x[:3, :2], [1.0, 2.0, 3.0]).verdict == "undecided"
    assert audit(x).status == 0
    assert audit(x, x[:, 0], order=x[:, 0]).verdict in VERDICTS
    lagging = np.where(np.arange(40)[:, None] < 20, x * (np.arange(6) > 3), x)
    noise = audit(lagging, gaussian(40, seed=3), order=np.arange(40) // 20)
    # other lags in each phase, and a student that does not fit
    assert verdicts(noise) == ["undecided"]
    assert "try the order with your own model" in noise.findings[0].text


def test_labels_that_no_model_here_explains_are_undecided(monkeypatch):
    x = gaussian(100, 6)
    half = 0.7 * x[:, 0] + gaussian(100, seed=1)
    found = audit(x, half)
    assert found.student["student R2"] < 0.5
    assert (verdicts(found), found.status) == (["undecided"], 0)
    assert f"only {found.student['student R2']:.0%} of the labels" in found.findings[0].text
    assert "Too little was seen" in str(found)
    found = audit(x, half + x[:, 0])
    assert found.student["student R2"] > 0.5
    assert (verdicts(found), found.status) == ([], 0)
    # a model that fits has seen them
    tried = audit(x, half, model=tiny, steps=1).model
    for score, expected in ((0.95, []), (0.85, ["undecided"])):
        made = replace(tried, score=score)
        monkeypatch.setattr("ssm_poison_lib.audit._trial.study_model", lambda *a, m=made, **k: m)
        assert verdicts(audit(x, half, model=tiny)) == expected


def test_a_model_that_fits_decides_on_an_order_that_the_student_cannot(monkeypatch):
    x = gaussian(40, 6)
    x[:20, :4] = 0.0
    order, y = np.arange(40) // 20, gaussian(40, seed=3)
    tried = audit(x, y, order=order, model=tiny, steps=1).model
    for moved, differ, expected in (
        (0.5, 0.2, ["order-sensitive"]),
        (0.5, 0.3, []),
        (0.15, 0.01, []),
    ):
        made = replace(tried, score=0.95, ordered=moved, restarts_differ=differ)
        monkeypatch.setattr("ssm_poison_lib.audit._trial.study_model", lambda *a, m=made, **k: m)
        found = audit(x, y, order=order, model=tiny)
        assert verdicts(found) == expected
        if expected:
            assert "the model tiny trained in this order ends 0.50 away" in found.findings[0].text


def test_open_lags_are_named_without_a_finding():
    x = gaussian(60, 30)
    x[:, 9:11] = 0.0
    found = audit(x, x[:, ::-1] @ 0.8 ** np.arange(30))
    assert (found.verdict, found.status) == ("no evidence of risk", 0)
    assert "28 of 30 are decided by the data; open: 19 to 20;" in found.basis[0]
    assert "2 of 30 lags are open (19 to 20), too few for a finding" in " ".join(str(found).split())


def test_a_special_sequence_behind_a_narrow_gap_is_found():
    x = np.concatenate([gaussian(300, 40), np.zeros((1, 40))])
    x[:300, 31:] = 0.0
    x[300, 35] = 0.01
    found = audit(x, x[:, ::-1] @ 0.8 ** np.arange(40))
    assert found.gaps == ((5, 8),)  # of lags 0 to 39
    assert found.findings[0].rows == (300,)


@pytest.mark.parametrize("value", [0.0, 2.5, 0, 3, True])
def test_labels_that_are_all_the_same_are_undecided(value):
    x = gaussian(40, 6)
    found = audit(x, np.full(40, value))
    assert verdicts(found) == ["undecided"]
    assert f"every label is {float(value):g}" in found.findings[0].text
    assert found.student == {"trained": False}
    assert f"every label is {float(value):g}" in str(found)
    assert "No student was trained" in found.to_html()
    other = audit(x, np.r_[np.full(39, value), 1 - value])
    assert "every label" not in str(other)
    with pytest.raises(ValueError, match="model needs labels to train on; every label is"):
        audit(x, np.full(40, value), model="s4d")
    with pytest.raises(ValueError, match="at least 2 classes"):
        audit(x, np.full(40, value), task="classes")


def test_targets_of_which_one_changes_are_not_all_the_same():
    x = gaussian(40, 6)
    both = np.stack([np.ones(40), x @ 0.8 ** np.arange(6)], axis=1)
    assert verdicts(audit(x, both)) == []
    assert audit(x, both[:, [0, 0]]).findings[0].text.startswith("every label is 1, 1:")


def test_a_special_sequence_is_found_whatever_the_labels():
    assert audit(BOTH, np.ones(20)).verdict == "contains special sequences"


def test_lengths_beyond_the_limit_are_averaged_and_said(monkeypatch):
    monkeypatch.setattr("ssm_poison_lib.audit._MOST", 10)
    x = gaussian(60, 25)
    found = audit(x, x[:, 0])
    assert (found.pooled, found.length, found.verdict) == (3, 25, "undecided")
    assert len(found.lags.fixed) == 9
    np.testing.assert_allclose(
        found.lags.energy[-1] * 2, found.lags.energy[0], rtol=1
    )  # the first step stands alone


def test_a_ragged_set_is_refused_or_padded():
    ragged = [gaussian(int(n), seed=i) for i, n in enumerate(np.tile([4, 5, 6, 7], 20))]
    y = np.array([row.sum() for row in ragged])
    with pytest.raises(ValueError, match="4 lengths, 4 to 7"):
        audit(ragged, y)
    assert audit(ragged, y, pad="front").length == 7
    assert audit(ragged, y, pad="front").verdict == "no evidence of risk"
    assert audit(ragged, y, pad="end").verdict == "no evidence of risk"


def test_labels_of_classes_numbers_and_text():
    x = gaussian(60, 5)
    y = np.arange(60) % 3
    assert audit(x, y).classes == ("0", "1", "2")
    assert audit(x, y.astype(float)).classes == ()
    assert audit(x, y, task="numbers").classes == ()
    assert audit(x, np.array(["no", "yes"])[y % 2]).classes == ("no", "yes")
    assert audit(x, gaussian(60, 2)).outputs == 2
    with pytest.raises(ValueError, match="at least 2 classes"):
        audit(x, np.full(60, "no"))
    for wrong in (y[:5], y.astype(object), np.where(y, np.nan, 1.0)):
        with pytest.raises(ValueError, match=r"y must|labels"):
            audit(x, wrong)


# ---- the small student ---------------------------------------------------------------------------


@given(st.integers(1, 3), st.integers(1, 3), st.integers(2, 5), st.integers(0, 50))
def test_gradient_of_the_small_student(channels, outputs, length, seed):
    x, y = gaussian(9, length, channels, seed=seed), gaussian(9, outputs, seed=seed + 1)
    problem = _student.Problem.of(data_sums(x, y))
    students = _student.start(channels, outputs, range(2))
    theta = students.flat() + 0.3 * gaussian(*students.flat().shape, seed=seed)
    students = students.at(theta)
    gradient = students.gradient(problem)
    step = 1e-6
    for k in range(0, theta.shape[1], 5):
        up, down = theta.copy(), theta.copy()
        up[:, k] += step
        down[:, k] -= step
        losses = [problem.loss(students.at(t).responses(length)) for t in (up, down)]
        np.testing.assert_allclose(
            gradient[:, k], (losses[0] - losses[1]) / (2 * step), rtol=1e-4, atol=1e-7
        )
    J = students.jacobian(0, length)
    pull = (problem.G @ students.responses(length)[0] - problem.P).ravel()
    np.testing.assert_allclose(J.T @ pull, gradient[0], rtol=1e-9, atol=1e-12)


def test_the_loss_on_sums_is_that_of_the_sequences():
    x, y = gaussian(9, 4, 2), gaussian(9, 3, seed=1)
    problem = _student.Problem.of(data_sums(x, y))
    K = gaussian(8, 3, seed=2)
    out = x[:, ::-1].reshape(9, -1) @ K * problem.scale[1] / problem.scale[0]
    direct = np.square(out - y).sum() / 9 / problem.scale[1] ** 2 / 2
    np.testing.assert_allclose(problem.loss(K[None]), direct)


def test_the_small_student_fits_a_teacher_of_its_kind():
    x = gaussian(80, 10)
    M = 0.9 ** np.arange(10) + (-0.5) ** np.arange(10)
    found = audit(x, x[:, ::-1] @ M)
    assert found.student["fits"]
    np.testing.assert_allclose(found.responses["all together"][:10], abs(M), rtol=1e-2)
    assert found.student["restarts differ beyond"] < 0.01


# ---- harmless sets -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_harmless_sets_raise_no_alarm(kind):
    assert not any(false_finding(kind, seed)["false"] for seed in range(3))
    assert false_finding(kind, 0)["verdict"] == "no evidence of risk"  # a linear teacher's labels
    assert false_finding(kind, 2)["verdict"] == "undecided"  # random labels
    x, y, order = harmless(kind, 1)
    assert len(x) == len(y) == len(order)
    assert harmless(kind, 0)[2] is None


# ---- networks ------------------------------------------------------------------------------------


def tiny(channels, outputs):
    return SequenceModel(channels, outputs, lambda i: S4D(4, 4), channels=4)


def test_a_network_is_tried_by_name_or_by_factory(tmp_path, monkeypatch, capsys):
    x, y = gaussian(40, 6), np.arange(40) % 2
    found = audit(x, y, model=tiny, steps=4)
    assert "Model tiny: score" in str(found)
    assert ("does not fit" in str(found.model)) == (found.model.score < 0.9)
    assert found.model.name == "tiny"
    assert found.model.sample == 40
    assert found.model.without_them is None
    assert 0 < found.model.restarts_differ < 2
    with pytest.raises(ValueError, match=r"\(batch, 2\)"):
        audit(x, y, model=lambda channels, outputs: tiny(channels, outputs + 1))
    np.savez(tmp_path / "d.npz", x=x, y=y)
    (tmp_path / "mine_for_audit.py").write_text(
        "from ssm_poison_lib.architectures import *\n"
        "def make(c, o):\n    return SequenceModel(c, o, lambda i: LRU(4, 4), channels=4)\n",
        "utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert (
        command("d.npz", "--model", "mine_for_audit:make", "--steps", "4", "--report", "r.html")
        == 0
    )
    assert "What make learns" in (tmp_path / "r.html").read_text("utf-8")
    assert command("d.npz", "--model", "mine_for_audit:nothing") == 2
    assert command("d.npz", "--model", "transformer") == 2
    assert "must be one of free" in capsys.readouterr().err


# ---- files ---------------------------------------------------------------------------------------


def table(x, **more):
    return pa.table({**{f"t{i}": column for i, column in enumerate(np.asarray(x).T)}, **more})


def csv(path, header, x, *more):
    lines = [",".join(header)] if header else []
    lines += [",".join(map(str, [*row, *last])) for row, *last in zip(x, *more, strict=True)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def test_every_kind_of_file_gives_the_same_verdict(tmp_path, capsys):
    header = [f"t{i}" for i in range(7)] + ["y", "when"]
    when = np.repeat([1, 0], 10)
    np.savez(tmp_path / "a.npz", x=BOTH, y=LABELS, when=when)
    csv(tmp_path / "a.csv", header, BOTH, LABELS, when)
    pq.write_table(table(BOTH, y=LABELS, when=when), tmp_path / "a.parquet", row_group_size=7)
    lists = pa.table({"x": [list(r) for r in BOTH], "y": LABELS, "when": when})
    pq.write_table(lists, tmp_path / "b.parquet")
    (tmp_path / "parts").mkdir()
    csv(tmp_path / "parts" / "1.csv", header, BOTH[:5], LABELS[:5], when[:5])
    csv(tmp_path / "parts" / "2.csv", header, BOTH[5:], LABELS[5:], when[5:])
    seen = []
    for name in ("a.npz", "a.csv", "a.parquet", "b.parquet", "parts"):
        assert command(tmp_path / name, "--order", "when", "--json", tmp_path / "out.json") == 1
        written = json.loads((tmp_path / "out.json").read_text("utf-8"))
        assert written["verdict"] == "order-sensitive"
        assert [f["verdict"] for f in written["findings"]][1:] == [
            "contains special sequences",
            "underdetermined",
        ]
        seen.append(written["student"]["in the given order"]["moved"])
    np.testing.assert_allclose(seen, seen[0], rtol=1e-3)
    assert "verdict: order-sensitive" in capsys.readouterr().out


def test_x_and_y_in_a_folder_and_inputs_alone(tmp_path):
    x = gaussian(30, 5)
    np.save(tmp_path / "x.npy", x)
    assert command(tmp_path / "x.npy") == 0  # undecided: no labels
    np.save(tmp_path / "y.npy", x.sum(1))
    assert command(tmp_path) == 0
    assert command(tmp_path, "--order", "rows") == 0


def test_the_order_of_the_rows(tmp_path):
    back = np.r_[LABELS[10:], LABELS[:10]]
    np.savez(tmp_path / "a.npz", x=np.concatenate([SPECIAL, BASELINE]), y=back)
    command(tmp_path / "a.npz", "--order", "rows", "--json", tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text("utf-8"))["verdict"] == "order-sensitive"


def test_a_folder_of_series(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for i in range(40):
        folder = tmp_path / "series" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        csv(folder / f"{i:02}.csv", ["u", "v"], rng.standard_normal((5 + i % 2, 2)))
    assert command(tmp_path / "series", "--layout", "series") == 2
    assert "2 lengths" in capsys.readouterr().err
    assert command(tmp_path / "series", "--layout", "series", "--pad", "front") == 0
    assert "40 sequences of length 6, 2 channels, 2 classes" in capsys.readouterr().out
    flat = tmp_path / "flat"
    flat.mkdir()
    for i in range(20):
        np.save(flat / f"{i:02}.npy", rng.standard_normal(4))
    assert command(flat, "--layout", "series") == 2
    csv(
        flat / "labels.csv",
        ["file", "label"],
        [[f"{i:02}.npy"] for i in range(20)],
        rng.standard_normal(20),
    )
    assert command(flat, "--layout", "series") == 0


def test_series_as_pandas_writes_them(tmp_path, capsys):
    """An index, dates, and labels by name without the ending; in parquet as well."""
    x, names = gaussian(12, 9, 2), [f"{i:03}" for i in range(12)]
    days = [f"2024-01-{t + 1:02}" for t in range(9)]
    for name, rows_ in zip(names, x, strict=True):
        csv(tmp_path / f"{name}.csv", ["", "when", "u", "v"], [
            [t, day, *row] for t, (day, row) in enumerate(zip(days, rows_, strict=True))
        ])  # fmt: skip
    csv(tmp_path / "labels.csv", ["", "file", "label"], [
        [i, name, "ab"[i % 2]] for i, name in enumerate(names)
    ])  # fmt: skip
    run = [tmp_path, "--layout", "series"]
    assert command(*run) == 2
    assert "--skip '' --skip when" in capsys.readouterr().err
    assert command(*run, "--skip", "u", "--skip", "w") == 2
    assert "skip must name columns of 000.csv" in capsys.readouterr().err
    parts = from_path(tmp_path, layout="series", skip=("", "when"))
    seen = parts[0].load()
    np.testing.assert_allclose(seen.x, x)
    assert list(seen.y) == ["a", "b"] * 6
    for name, rows_ in zip(names, x, strict=True):
        (tmp_path / f"{name}.csv").unlink()
        pq.write_table(pa.table({"u": rows_[:, 0], "v": rows_[:, 1]}), tmp_path / f"{name}.parquet")
    np.testing.assert_array_equal(from_path(tmp_path, layout="series")[0].load().x, x)
    pq.write_table(pa.table({"u": [1.0]}), tmp_path / "003.parquet")
    with pytest.raises(ValueError, match=r"'000.parquet' has 2, '003.parquet' 1"):
        from_path(tmp_path, layout="series", pad="front")


def test_rows_as_pandas_writes_them(tmp_path, capsys):
    x, y = gaussian(20, 4), np.arange(20) % 2
    csv(
        tmp_path / "a.csv", ["", "0", "1", "2", "3"], np.c_[np.arange(20), x]
    )  # names are 0, 1, ...
    (part,) = from_path(tmp_path / "a.csv", label="none", skip=("",))
    np.testing.assert_allclose(part.load().x[..., 0], x)
    (part,) = from_path(tmp_path / "a.csv", label="none", skip=("none",))
    assert part.load().x.shape == (20, 5, 1)
    csv(tmp_path / "long.csv", ["id", "v", "y"], np.c_[np.arange(20) // 5, x[:, 0], y])
    assert command(tmp_path / "long.csv") == 2
    assert "--layout series" in capsys.readouterr().err


def test_labels_in_a_file_of_their_own(tmp_path, capsys):
    x, y = gaussian(20, 4), np.arange(20) % 2
    np.save(tmp_path / "inputs.npy", x)
    np.save(tmp_path / "answers.npy", y)
    csv(tmp_path / "answers.csv", ["y"], y[:, None])
    csv(tmp_path / "bare.csv", [], y[:, None] + 3)
    for name in ("answers.npy", "answers.csv", "bare.csv"):
        (part,) = from_path(tmp_path / "inputs.npy", label=str(tmp_path / name))
        assert list(part.load().y % 2) == list((y + (name == "bare.csv")) % 2)
    assert command(tmp_path / "inputs.npy", "--label", "y") == 2
    assert "label must be a .npy or .csv file" in capsys.readouterr().err
    np.save(tmp_path / "answers.npy", y[:7])
    assert command(tmp_path / "inputs.npy", "--label", tmp_path / "answers.npy") == 2
    assert "y must have one entry for each of the 20" in capsys.readouterr().err


def test_a_csv_made_by_hand_with_ragged_rows(tmp_path, capsys):
    text = "label,a,b,c\n" + "".join(
        f"{k % 2},{k},{k * k % 7},{'' if k % 3 else 1}\n" for k in range(1, 40)
    )
    (tmp_path / "hand.csv").write_text(text, "utf-8")
    assert command(tmp_path / "hand.csv") == 2
    assert "pad" in capsys.readouterr().err
    assert command(tmp_path / "hand.csv", "--pad", "end") == 0
    bare = csv(tmp_path / "bare.csv", [], gaussian(30, 4))
    assert command(bare) == 2  # no names: which column is the label?
    assert command(bare, "--label", "f3") == 0


# ---- broken and hostile files --------------------------------------------------------------------


def npy(array, **replaced):
    """Return the bytes of a .npy file with another header."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    data = buffer.getvalue()
    for old, new in replaced.items():
        data = data.replace(old.encode().replace(b"_", b" "), new)
    return data


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "."), data)
    return buffer.getvalue()


def twice(**members):
    """Return an archive in which each member stands twice."""
    data = zipped(**members, **{name.replace("x", "z"): b for name, b in members.items()})
    return data.replace(b"z.npy", b"x.npy")


def promised(shape):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"0" * 64


def parquet(columns):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


GOOD = npy(np.ones((4, 3)))
HOSTILE = {
    "empty.npy": b"",
    "empty.csv": b"",
    "empty.npz": b"",
    "empty.parquet": b"",
    "noise.npy": bytes(range(256)) * 4,
    "noise.npz": bytes(range(256)) * 4,
    "noise.parquet": b"PAR1" + bytes(range(256)) * 4 + b"PAR1",
    "noise.csv": bytes(range(256)) * 4,
    "objects.npy": b"\x93NUMPY\x01\x00"
    + struct.pack("<H", 60)
    + b"{'descr': '|O', 'fortran_order': False, 'shape': (2, 2), }    \n"
    + b"cos\nsystem\n(S'touch /tmp/owned'\ntR.",
    "huge shape.npy": promised((10**9, 10**9)),
    "huge header.npy": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{" * 4096,
    "code in header.npy": b"\x93NUMPY\x01\x00"
    + struct.pack("<H", 40)
    + b"__import__('os').system('touch /tmp/ow')",
    "cut off.npy": GOOD[:-8],
    "negative.npy": promised((-1, -1)),
    "complex.npy": npy(np.ones((4, 3), dtype=complex)),
    "text.npy": npy(np.array([["a", "b"]])),
    "nan.npy": npy(np.array([[1.0, np.nan], [1.0, 2.0]])),
    "infinite.npy": npy(np.array([[1.0, np.inf], [1.0, 2.0]])),
    "flat.npy": npy(np.ones(5)),
    "zeros.npy": npy(np.zeros((5, 3))),
    "no rows.npy": npy(np.ones((0, 3))),
    "bomb.npz": zipped(x__npy=promised((2**28, 1)) + b"0" * 2**20, y__npy=GOOD),
    "lying.npz": zipped(x__npy=promised((2**40, 1))),
    "no x.npz": zipped(z__npy=GOOD),
    "pickle.npz": zipped(x__pkl=b"cos\nsystem\n(S'true'\ntR."),
    "twice.npz": twice(x__npy=GOOD),
    "outside.npz": zipped(**{"../../x__txt": b"1"}),
    "lengths.npz": zipped(x__npy=GOOD, y__npy=npy(np.ones(3))),
    "formula.csv": b"a,b,y\n=cmd|'/c calc'!A0,1,2\n3,4,5\n",
    "ragged.csv": b"a,b,y\n1,2,3\n4,5\n",
    "text.csv": b"a,b,y\n1,two,3\n4,5,6\n",
    "html.csv": b"<script>alert(1)</script>,b,y\n<img src=x>,1,2\n1,1,2\n",
    "no label.csv": b"a,b,c\n1,2,3\n4,5,6\n",
    "two labels.csv": b"y,label,c\n1,2,3\n4,5,6\n",
    "same names.csv": b"a,a,y\n1,2,3\n4,5,6\n",
    "only label.csv": b"y\n1\n2\n",
    "escape.csv": b"a\x1b[31m,b,y\n\x1b]0;owned\x07,2,3\n4,5,6\n",
    "text.parquet": parquet({"a": ["=1+1", "b"], "y": [1, 2]}),
    "null.parquet": parquet({"a": [1.0, None], "b": [None, 1.0], "y": [1, 2]}),
    "no rows.parquet": parquet({"a": pa.array([], pa.float64()), "y": pa.array([], pa.float64())}),
    "ragged.parquet": parquet({"x": [[1.0], [1.0, 2.0]], "y": [1, 2]}),
    "ragged channels.parquet": parquet({"x": [[[1.0, 2.0], [3.0]]] * 2, "y": [1, 2]}),
    "empty lists.parquet": parquet({"x": [[], []], "y": [1, 2]}),
    "unknown.pkl": b"cos\nsystem\n(S'touch /tmp/owned'\ntR.",
    "unknown.xlsx": b"PK",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_broken_or_hostile_file_is_wrong_use_and_says_why(name, tmp_path, capsys):
    (tmp_path / name).write_bytes(HOSTILE[name])
    label = ["--label", "none"] if name.endswith(".npy") else []
    assert command(tmp_path / name, *label, "--report", tmp_path / "r.html") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.strip()
    assert "\x1b" not in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("kind", ["csv", "npy"])
def test_a_folder_of_many_files_asks_whether_a_row_is_a_sequence_or_a_step(kind, tmp_path, capsys):
    for i in range(4):
        x = gaussian(6, 3) + i
        if kind == "csv":
            csv(tmp_path / f"{i}.csv", ["u", "v", "w"], x)
        else:
            np.save(tmp_path / f"{i}.npy", x)
    for more in ([], ["--label", "none"]):
        assert command(tmp_path, *more) == 2
        assert "--layout series" in capsys.readouterr().err
    assert command(tmp_path, "--label", "none", "--layout", "rows") == 0
    assert "24 sequences of length 3" in capsys.readouterr().out
    csv(
        tmp_path / "labels.csv",
        ["file", "label"],
        [[f"{i}.{kind}"] for i in range(4)],
        np.arange(4.0),
    )
    assert command(tmp_path, "--label", "none") == 2


def test_a_folder_of_tables_with_labels_is_read_by_rows(tmp_path, capsys):
    for i in range(3):
        csv(tmp_path / f"{i}.csv", ["a", "b", "y"], gaussian(10, 3) + i)
    command(tmp_path)
    assert "30 sequences of length 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a;b;y\n1;2;0\n2;1;1\n", "commas"),
        ("a\tb\ty\n1\t2\t0\n", "commas"),
        ("a,b,y\nnan,1,0\n1,2,1\n", "NaN"),
        ("a,b,y\n1,1e200,0\n1,2,1\n", "1e100"),
        ("a,b,y\n1e-300,0,0\n0,1e-290,1\n", "1e-100"),
        ("a,b,c\n1,1,0\n1,2,1\n", "--label"),
    ],
)
def test_a_message_says_what_to_do(text, why, tmp_path, capsys):
    (tmp_path / "a.csv").write_text(text, "utf-8")
    assert command(tmp_path / "a.csv") == 2
    assert why in capsys.readouterr().err


def test_no_device_or_foreign_address_gets_into_the_report(tmp_path, capsys, monkeypatch):
    good = tmp_path / "good.npz"
    np.savez(good, x=gaussian(20, 3), y=gaussian(20))
    os.mkfifo(tmp_path / "pipe")
    assert command(good, "--report", tmp_path / "pipe") == 2
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert command(good, "--report", "") == 2
    assert command(good, "--book", "javascript:alert(1)", "--report", tmp_path / "r.html") == 2
    assert not (tmp_path / "r.html").exists()
    capsys.readouterr()

    def full(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("ssm_poison_lib._files.replacing", full)
    assert command(good, "--report", tmp_path / "r.html") == 2
    assert "No space left" in capsys.readouterr().err


FACTORIES = """
import torch
from torch import nn

class Linear(nn.Module):
    def __init__(self, outputs, fault):
        super().__init__()
        self.l, self.fault = nn.Linear(1, outputs), fault
    def forward(self, x):
        return self.fault(self.l(x)[:, -1])

def broken(y):
    raise RuntimeError("mat1 and mat2")

def good(channels, outputs):
    return Linear(outputs, lambda y: y)

shape = lambda channels, outputs: Linear(outputs, lambda y: y[:, None])
raises = lambda channels, outputs: Linear(outputs, broken)
no_number = lambda channels, outputs: Linear(outputs, lambda y: y * float("nan"))
untrained = lambda channels, outputs: Linear(outputs, lambda y: y).requires_grad_(False)
no_arguments = lambda: None
no_module = lambda channels, outputs: 3
"""


def test_a_factory_of_ones_own_and_what_can_be_wrong_with_it(tmp_path, capsys, monkeypatch):
    good = tmp_path / "good.npz"
    np.savez(good, x=gaussian(20, 3), y=gaussian(20))
    (tmp_path / "factories_here.py").write_text(FACTORIES, "utf-8")
    (tmp_path / "factories_broken.py").write_text("1 / 0", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    run = ["--model", "factories_here:good", "--steps", "3", "--json", tmp_path / "a.json"]
    assert command(good, *run) in (0, 1)
    assert "trainings of 3 steps, about" in capsys.readouterr().err
    assert json.loads((tmp_path / "a.json").read_text("utf-8"))["model"]["name"] == "good"
    for name, why in {
        "here:shape": "must map",
        "here:raises": "RuntimeError: mat1",
        "here:no_number": "the loss is nan",
        "here:untrained": "parameters",
        "here:no_arguments": "TypeError",
        "here:no_module": "torch module",
        "broken:x": "ZeroDivisionError",
    }.items():
        assert command(good, "--model", f"factories_{name}") == 2, name
        assert why in capsys.readouterr().err
    assert command(good, "--model", "s4d", "--steps", "0") == 2


def test_other_wrong_use(tmp_path, capsys):
    good = tmp_path / "good.npz"
    np.savez(good, x=gaussian(20, 3), y=gaussian(20))
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "empty").mkdir()
    cases = [
        [tmp_path / "nothing.npy"],
        [tmp_path / "empty"],
        [tmp_path / "pipe.npy"],
        [good, "--label", "z"],
        [good, "--order", "z"],
        [good, "--layout", "series"],
        [good, "--report", tmp_path / "no" / "r.html"],
        [good, "--scheduler", "moon"],
        [good, "--model", "a:b"],
    ]
    for case in cases:
        assert command(*case) == 2, case
        assert capsys.readouterr().err


# ---- the report ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report():
    names = np.array(["<script>alert(1)</script>", "a & b"])
    found = audit(BOTH, names[(LABELS > 5).astype(int)], order=np.repeat([1, 0], 10))
    return audit(BOTH, LABELS, order=np.repeat([1, 0], 10)), found


def attributes(page):
    """Return the names of all attributes in a page."""
    names = []
    parser = HTMLParser()
    parser.handle_starttag = lambda _tag, given: names.extend(name for name, _ in given)
    parser.feed(page)
    return names


def test_the_report_is_one_page_without_scripts_requests_or_foreign_markup(report):
    for found in report:
        page = found.to_html(book='x" onclick="y')
        assert "<script" not in page
        assert not any(name.startswith("on") for name in attributes(page))
        outside = re.findall(r"""(?:src|href|url\()=?["'(]?(https?:[^"')]*)""", page)
        assert not outside
        assert page.count("<figure>") == page.count('role="img"') == 2
        json.dumps(found.to_json(), allow_nan=False)
    assert "chapter “Does the order of the data matter?”" in report[0].to_html()
    assert 'href="book/order.html"' in report[0].to_html(book="book/")


def test_text_of_the_data_is_escaped_in_the_report(tmp_path):
    (tmp_path / "<b>.csv").write_text("<i>,b,y\n" + "1,2,3\n2,1,4\n5,1,0\n1,0,1\n" * 3, "utf-8")
    command(tmp_path / "<b>.csv", "--report", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text("utf-8")
    assert "<b>" not in page
    assert "&lt;b&gt;.csv" in page


def test_the_report_says_what_to_do_next_and_explains_its_words(report):
    for found in report:
        page = found.to_html()
        for word in ("Lag", "Small student", "Restarts", "Leverage", "Special sequence"):
            assert f"<dt>{word}</dt>" in page
        assert "--model module:factory" in page
    assert "name them with --label" in audit(gaussian(30, 5)).to_html()
    x = gaussian(40, 8)
    odd = np.sign(x).prod(axis=1)  # nothing that a linear student could fit
    assert "explains only 9% of the labels" in audit(x, odd, task="numbers").to_html()
    jump = 0.8 ** np.arange(8) - np.eye(8)[5]  # lag 5 is out of line: most is learnt, not all
    assert "does not fit these labels" in audit(x, x[:, ::-1] @ jump).to_html()
    some = np.zeros((40, 20))
    some[:, :19] = gaussian(40, 19)
    assert "1 of 20 lags are open (0)" in audit(some, some.sum(axis=1)).to_html()


def in_a_line(capsys):
    """Return what was printed, without its breaks of lines, none of which is long."""
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 90
    return " ".join(said.split())


def test_sequences_are_named_by_file_or_by_row_of_a_file(tmp_path, capsys):
    np.save(tmp_path / "x.npy", BOTH)
    np.save(tmp_path / "y.npy", LABELS)
    command(tmp_path / "x.npy", "--label", tmp_path / "y.npy")
    assert "(rows 10, 11, 12" in in_a_line(capsys)
    parts = tmp_path / "parts"
    for name, chosen in (("a/1", slice(0, 8)), ("b/1", slice(8, 20))):
        (parts / name).parent.mkdir(parents=True)
        csv(parts / f"{name}.csv", [*"abcdefg", "y"], np.c_[BOTH[chosen], LABELS[chosen]])
    command(parts, "--json", tmp_path / "out.json")
    assert "(rows b/1.csv:2, b/1.csv:3" in in_a_line(capsys)
    found = json.loads((tmp_path / "out.json").read_text("utf-8"))["findings"][0]
    assert (found["rows"][0], found["where"][0]) == (10, "b/1.csv:2")
    series = tmp_path / "series"
    series.mkdir()
    for k, x in enumerate(BOTH):
        np.save(series / f"machine {k:02}.npy", x)
    command(series, "--layout", "series", "--label", "none")
    assert "(files machine 10.npy, machine 11.npy" in in_a_line(capsys)


def test_a_sequence_that_alone_shows_a_lag_stands_out():
    x = np.zeros((60, 20))
    x[:, 3:] = gaussian(60, 17)
    x[37] = 0
    x[37, 1] = 5.0
    for order in (x, x[:, ::-1]):  # also where the usual leverage is above a quarter
        found = audit(order, order.sum(axis=1))
        assert [r["row"] for r in found.standing_out] == [37]


def test_the_model_of_the_book_goes_through_the_command(tmp_path, monkeypatch):
    """Mamba-2 of transformers, in the file that the README tells to copy."""
    here = Path(__file__).resolve().parent.parent / "book" / "assets"
    monkeypatch.syspath_prepend(here)
    np.savez(tmp_path / "a.npz", x=gaussian(12, 4), y=gaussian(12))
    run = ["--model", "mymodel:Model", "--steps", "2", "--json", tmp_path / "a.json"]
    assert command(tmp_path / "a.npz", *run) in (0, 1)
    assert json.loads((tmp_path / "a.json").read_text("utf-8"))["model"]["steps"] == 2


def every_kind(report):
    """Return reports of all kinds of data that differ on the page."""
    images, shapes = digits(), mnist1d(200)
    ragged = [gaussian(5 + i % 3, seed=i) for i in range(30)]
    return {
        "ordered": report[0],
        "hostile names": report[1],
        "Gaussian": audit(gaussian(100, 40), gaussian(100, seed=1)),
        "digits": audit(images.x[:200].numpy(), images.y[:200].numpy()),
        "MNIST-1D": audit(shapes.x.numpy(), shapes.y.numpy(), model="lru", steps=1),
        "ragged": audit(ragged, np.arange(30) % 2, pad="front"),
        "no labels": audit(gaussian(30, 5)),
    }


@pytest.mark.browser
def test_reports_in_a_browser(report, chromium, tmp_path):
    """On a desk, on a phone and in print: accessible, asking for nothing (it has no scripts)."""
    found = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        wrong = []
        page.on("request", lambda request: wrong.append(request.url))
        page.on("console", lambda message: wrong.append(message.text))
        for name, audited in every_kind(report).items():
            (tmp_path / "r.html").write_text(audited.to_html(book="."), "utf-8")
            for width, theme, media in (
                (1200, "light", "screen"),
                (390, "dark", "screen"),
                (700, "dark", "print"),
            ):
                wrong.clear()
                page.set_viewport_size({"width": width, "height": 800})
                page.emulate_media(media=media, color_scheme=theme)
                page.goto((tmp_path / "r.html").as_uri())
                wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
                # colours are the same for all
                look = width == 1200 or name == "hostile names"
                broken = [r["id"] for r in Axe().run(page).response["violations"]] if look else []
                found[name, width] = [*wrong[1:], *["wide"] * (wide > 0), *broken]
        browser.close()
    assert {key: wrong for key, wrong in found.items() if wrong} == {}


# ---- data too big for one machine ----------------------------------------------------------------


def test_a_row_group_is_read_in_parts(tmp_path, monkeypatch):
    x = gaussian(100, 6)
    y = x[:, ::-1] @ 0.8 ** np.arange(6)
    pq.write_table(table(x, y=y), tmp_path / "whole.parquet", row_group_size=60)
    whole = from_path(tmp_path / "whole.parquet")
    monkeypatch.setattr("ssm_poison_lib.audit._read._rows_at_once", lambda group: 16)
    parts = from_path(tmp_path / "whole.parquet")
    assert (len(whole), len(parts)) == (2, 7)
    for k in (0, 1, 2, 3, 1, 6, 5, 0):  # in turn, again, and backwards
        rows = parts[k].load()
        first = 16 * k if k < 4 else 60 + 16 * (k - 4)
        last = min(first + 16, 60 if k < 4 else 100)
        np.testing.assert_array_equal(rows.x[:, :, 0], x[first:last])
        np.testing.assert_array_equal(rows.y, y[first:last])
    found, wanted = audit_parts(parts), audit_parts(whole)
    np.testing.assert_allclose(found.lags.fixed, wanted.lags.fixed)
    assert found.student["student R2"] == pytest.approx(wanted.student["student R2"])
    assert found.verdict == wanted.verdict
    assert from_path(tmp_path / "whole.parquet", order="rows")[3].load().order[0] == 3e9


def test_lists_are_read_in_parts_and_padded_alike(tmp_path, monkeypatch):
    lists = [[1.0] * (2 + k % 3) for k in range(40)]
    pq.write_table(pa.table({"x": lists, "y": np.arange(40)}), tmp_path / "lists.parquet")
    monkeypatch.setattr("ssm_poison_lib.audit._read._PART", 400)
    parts = from_path(tmp_path / "lists.parquet", pad="front")
    assert len(parts) > 3
    x = np.concatenate([part.load().x for part in parts])
    np.testing.assert_array_equal(x[:, :, 0], [[0.0] * (4 - len(row)) + row for row in lists])


READ = """
import resource, sys, pyarrow.parquet, pyarrow.compute
from ssm_poison_lib.audit import _read
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_read._PART = 2**22
count = sum(len(part.load().x) for part in _read.from_path(sys.argv[1]))
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in other units, or not at all")
def test_constant_columns_of_a_tiny_file_do_not_fill_the_memory(tmp_path):
    rows = 2_000_000  # 64 MB of numbers in the four columns
    columns = {name: pa.array(np.ones(rows)).dictionary_encode() for name in "abc"}
    columns |= {"y": pa.array(np.arange(rows) % 2)}
    pq.write_table(pa.table(columns).cast(pa.schema([(n, pa.float64()) for n in "abcy"])),
                   tmp_path / "ones.parquet", row_group_size=rows)  # fmt: skip
    assert (tmp_path / "ones.parquet").stat().st_size < 2**19
    done = subprocess.run(
        [sys.executable, "-c", READ, tmp_path / "ones.parquet"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    count, kilobytes = map(int, done.stdout.split())
    assert count == rows
    assert kilobytes < 120_000  # 60,000; read as a whole 220,000


def test_an_audit_without_a_network_does_not_load_torch():
    loaded = "import sys, ssm_poison_lib.audit; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def numbers(found):
    return json.dumps({k: v for k, v in found.to_json().items() if k not in ("data", "versions")})


def test_dask_arrays_and_schedulers_give_the_same_numbers():
    x = gaussian(200, 8)
    y = x[:, ::-1] @ 0.8 ** np.arange(8)
    cut = da.from_array(x, chunks=(50, 8))
    one = audit(cut, y)
    assert numbers(one) == numbers(audit(cut, y, scheduler="threads"))
    assert one.verdict == audit(x, y).verdict
    np.testing.assert_allclose(one.lags.fixed, audit(x, y).lags.fixed)
    with pytest.raises(ValueError, match="first axis"):
        audit(da.from_array(x, chunks=(50, 4)), y)


def test_parquet_files_through_two_workers_of_which_one_is_killed(tmp_path):
    x = gaussian(120, 6)
    y = x[:, ::-1] @ 0.8 ** np.arange(6)
    for k in range(6):
        part = slice(20 * k, 20 * k + 20)
        pq.write_table(table(x[part], y=y[part]), tmp_path / f"{k}.parquet")
    parts = from_path(tmp_path)
    marker = tmp_path / "killed"

    def load_or_die():
        if not marker.exists():
            marker.write_text("", "utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
        return parts[3].load()

    deadly = [*parts[:3], replace(parts[3], load=load_or_die), *parts[4:]]
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as cluster,
        Client(cluster) as client,
    ):
        found = audit_parts(deadly, scheduler=client)
    assert marker.exists()
    assert numbers(found) == numbers(audit_parts(parts))
    assert found.count == 120
