"""The study of gradient matching: fair comparisons, resumed trainings, controls of equal size,
intervals.
"""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssm_poison_lib.__main__ import main
from ssm_poison_lib.attacks.datasets import Examples
from ssm_poison_lib.studies import gradient_matching as study
from ssm_poison_lib.studies import store

TINY = {"clean": 20, "bases": 20, "targets": 30, "others": 20, "groups": ((1, 2, 4), (2, 10, 8))}
TINY |= {"channels": 8, "state_dim": 4, "batch": 10, "steps": 12, "brew_steps": 2}
PROTOCOL = study.replace(study.SMALL, **TINY)


def drawn(n=40, length=20, seed=0):
    """Two classes of sequences, told apart by their mean."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    return Examples(torch.randn(n, length, 1, generator=generator) + y[:, None, None], y)


@pytest.mark.parametrize("kind", study.KINDS)
def test_every_kind_learns_and_has_second_derivatives(kind):
    data = drawn(60)
    protocol = study.replace(PROTOCOL, steps=60)
    model = study.build(kind, data, protocol, seed=0)
    before = study.score(model, data)[0].mean()
    [seen] = study.train([model], [data], protocol, seed=0, watched={"others": drawn(seed=1)})
    assert seen[-1]["loss"] < 0.7 * before
    assert seen[-1]["step"] == 60
    assert seen[-1]["others"] > 0.7
    assert [m["step"] for m in seen] == [33, 42, 51, 60]
    x = data.x[:4].clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(model(x), data.y[:4])
    first = torch.autograd.grad(
        loss, list(model.parameters()), create_graph=True, allow_unused=True
    )
    size = sum(g.square().sum() for g in first if g is not None)
    (second,) = torch.autograd.grad(size, x)
    assert second.abs().max() > 0


def weights(model):
    return {name: w.detach().clone() for name, w in model.named_parameters()}


@pytest.mark.parametrize("kind", study.KINDS)
def test_models_trained_side_by_side_end_where_each_ends_alone(kind):
    x, y = drawn().x.double(), drawn().y
    noise = torch.randn(3, *x.shape, generator=torch.Generator().manual_seed(1)).double()
    datasets = [Examples(x + change, y.roll(k)) for k, change in enumerate(noise)]
    watched = {"others": Examples(x, y)}

    def fresh():
        return study.build(kind, datasets[0], PROTOCOL, seed=0).double()

    together = [fresh() for _ in datasets]
    seen = study.train(together, datasets, PROTOCOL, seed=2, watched=watched)
    assert not torch.equal(together[0].decoder.weight, together[1].decoder.weight)
    for model, data, path in zip(together, datasets, seen, strict=True):
        alone = fresh()
        [expected] = study.train([alone], [data], PROTOCOL, seed=2, watched=watched)
        for name, weight in weights(alone).items():
            torch.testing.assert_close(weights(model)[name], weight, rtol=0, atol=1e-10)
        assert path == [pytest.approx(moment, rel=2e-5) for moment in expected]


def test_a_model_beside_others_refuses_values_that_are_not_finite():
    models = [study.build("s4d", drawn(), PROTOCOL, seed=0) for _ in range(2)]
    spoiled = Examples(drawn().x.clone(), drawn().y)
    spoiled.x[0, 0] = np.nan
    with pytest.raises(ValueError, match="x must be finite; got NaN"):
        study.train(models, [drawn(), spoiled], PROTOCOL, seed=0)


def test_starts_depend_on_the_seed_alone():
    data = drawn()
    one, again, other = (study.build("lru", data, PROTOCOL, seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(one[k], again[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)


ONE = drawn(4)


class Killed(Exception):
    pass


@pytest.mark.parametrize("count", [1, 2])
def test_an_interrupted_training_goes_on_with_the_same_numbers(tmp_path, monkeypatch, count):
    datasets = [drawn(seed=k) for k in range(count)]
    protocol = study.replace(PROTOCOL, dropout=0.2)

    def trained(checkpoint=None):
        models = [study.build("cnn", data, protocol, seed=0) for data in datasets]
        return models, study.train(models, datasets, protocol, seed=5, checkpoint=checkpoint)

    whole, seen = trained()
    state = tmp_path / "state.pt"
    true, calls = study._moment, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 2 * count + 1:
            raise Killed
        return true(*arguments)

    monkeypatch.setattr(study, "_moment", dies)
    with pytest.raises(Killed):
        trained(state)
    monkeypatch.setattr(study, "_moment", true)
    assert state.exists()
    models, resumed = trained(state)
    assert resumed == seen
    for one, other in zip(whole, models, strict=True):
        for key, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[key])


def test_training_past_its_steps_stops_at_the_loss_or_the_horizon():
    data = drawn()
    for bound, steps in ((0.0, 24), (100.0, 12)):
        model = study.build("cnn", data, PROTOCOL, seed=0)
        [seen] = study.train([model], [data], PROTOCOL, seed=0, horizon=24, stop_loss=bound)
        assert seen[-1]["step"] == steps


@given(seed=st.integers(0, 1000), n=st.integers(2, 9))
def test_controls_have_the_size_of_the_attack(seed, n):
    delta = torch.randn(n, 5, 1, generator=torch.Generator().manual_seed(seed))
    made = study.controls(delta, seed=seed)
    assert torch.equal(made["noise"].abs(), delta.abs())
    assert torch.equal(made["flipped"], -delta)
    rows = [[torch.equal(a, b) for b in delta] for a in made["swapped"]]
    assert np.array(rows).sum() == n  # every example's changes go to one other example
    assert not np.diag(rows).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: study.controls(torch.ones(1, 5, 1), seed=0),
            "delta must be finite changes of two",
        ),
        (lambda: study.controls(torch.full((2, 5, 1), np.nan), seed=0), "delta must be finite"),
        (lambda: study.replace(PROTOCOL, batch=0), "batch must be an integer >= 1; got 0"),
        (lambda: study.replace(PROTOCOL, steps=0), "steps must be an integer >= 1; got 0"),
        (lambda: study.replace(PROTOCOL, learning_rate=-1.0), "learning_rate must be .* > 0"),
        (lambda: study.replace(PROTOCOL, dropout=1.0), "dropout must be below 1; got 1.0"),
        (
            lambda: study.trial(data="digits", kind="cnn", seed=0, protocol={"size": 3}),
            "each name in protocol must be one of .*; got 'size'",
        ),
        (
            lambda: study.build("cnn", Examples(ONE.x, 0 * ONE.y), PROTOCOL, seed=0),
            "data must have two classes or more; got 4 examples without",
        ),
        (
            lambda: study.train(
                [torch.nn.Linear(1, 1)], [Examples(ONE.x[:0], ONE.y[:0])], PROTOCOL, seed=0
            ),
            r"datasets must have equally many examples, one or more; got \{0\}",
        ),
        (
            lambda: study.train(
                [torch.nn.Linear(1, 1)] * 2, [ONE, Examples(ONE.x[:3], ONE.y[:3])], PROTOCOL, seed=0
            ),
            r"datasets must have equally many examples, one or more; got \{3, 4\}",
        ),
        (
            lambda: study.train([torch.nn.Linear(1, 1)], [ONE, ONE], PROTOCOL, seed=0),
            "datasets must be one for each of one or more models; got 2 for 1",
        ),
        (
            lambda: study.train([], [], PROTOCOL, seed=0),
            "datasets must be one for each of one or more models; got 0 for 0",
        ),
    ],
)
def test_bad_input_of_the_study_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture(scope="module")
def tiny():
    return study.trial(data="mnist1d", kind="cnn", seed=0, protocol=TINY)


def test_a_trial_has_every_condition_at_every_size_and_start(tiny):
    found = {(r["condition"], r["eps"], r["start"]) for r in tiny["runs"]}
    for start in ("same", "new"):
        assert ("duplicates", 0.0, start) in found
        for eps in study.EPS:
            assert {(c, eps, start) for c in ("noise", "matched")} <= found
    for eps in study.EPS:
        assert {(c, eps, "same") for c in ("swapped", "flipped", "planted")} <= found
    assert {(c, 1.0, "same") for c in ("tail", "tail noise", "authors' step")} <= found
    assert {r["path"][-1][0] for r in tiny["runs"]} == {12}  # equal steps
    assert len(found) == len(tiny["runs"])
    assert tiny == study.trial(data="mnist1d", kind="cnn", seed=0, protocol=TINY)


def test_tail_and_match_are_compared_at_equal_norm():
    case = study._Trial("cnn", *study._data("mnist1d").split(20, 20, 30, 20, seed=0), PROTOCOL, 0)
    _, _, changes, _ = study._attack(case, [1.0], [*study.CONDITIONS, "tail"])
    sizes = [changes[name, 1.0].flatten(1).norm(dim=1) for name in ("tail", "matched, tail's size")]
    torch.testing.assert_close(*sizes)
    assert changes["planted", 1.0].abs().max() <= 1.0


def test_the_planted_gradient_is_noise_of_equal_size():
    gradient = [torch.full((400,), 2.0), torch.arange(300.0)]
    noise = study._noise_like(gradient, seed=0)
    for g, n in zip(gradient, noise, strict=True):
        assert float(n.norm()) == pytest.approx(float(g.norm()))
        assert abs(float(torch.nn.functional.cosine_similarity(g, n, dim=0))) < 0.2


def row(kind, seed, shares, loss=0.5):
    path = [[5, 2 * loss, s / 2, s / 2] for s in shares.values()]
    runs = [
        {"victim": kind, "condition": c, "eps": 0.0 if c == "clean" else 1.0, "start": "same"}
        | {"attacked": s, "others": s, "loss": loss, "path": [way, [9, loss, s, s]]}
        for (c, s), way in zip(shares.items(), path, strict=True)
    ]
    return {"data": "mnist1d", "kind": kind, "seed": seed, "runs": runs}


def test_effects_are_averaged_over_models_that_share_a_split():
    trials = [
        row(kind, seed, {"clean": 0.9, "noise": 0.8, "matched": 0.7 - seed / 10 + shift})
        for seed in (0, 1)
        for kind, shift in (("cnn", 0.05), ("lru", -0.05))
    ]
    found = study.effect(trials, "matched", "noise", "attacked", kinds=("cnn", "lru"))
    np.testing.assert_allclose(found, [-10, -20])
    np.testing.assert_allclose(
        study.effect(trials, "noise", "clean", "others", kinds=("cnn",)), -10
    )
    with pytest.raises(ValueError, match="no runs of 'tail' and 'noise' in cnn, 0"):
        study.effect(trials, "tail", "noise", "attacked", kinds=("cnn",))
    with pytest.raises(ValueError, match="no trials of 'digits'"):
        study.effect(trials, "matched", "noise", "attacked", data="digits")
    with pytest.raises(ValueError, match="on must be one of attacked, others"):
        study.effect(trials, "matched", "noise", "all")


def test_equal_loss_reads_the_curve_of_the_one_that_fits_better():
    trial = row("cnn", 0, {"noise": 0.8, "matched": 0.6})
    better = trial["runs"][0]
    better["loss"], better["path"] = 0.25, [[5, 0.75, 0.4, 0.4], [9, 0.25, 0.8, 0.8]]
    # the poisoned run ends at loss .5, where the other one had .6 of the answers
    found = study.effect([trial], "matched", "noise", "attacked", kinds=("cnn",), equal_loss=True)
    np.testing.assert_allclose(found, [0], atol=1e-9)


def test_interval_is_the_t_interval():
    mean, low, high = study.interval([1.0, 2.0, 4.0, 5.0])
    assert mean == 3
    assert high - mean == pytest.approx(3.182446 * np.std([1, 2, 4, 5], ddof=1) / 2)
    assert high - mean == pytest.approx(mean - low)
    for bad in ([1.0], [1.0, np.nan], np.ones((1, 2))):
        with pytest.raises(ValueError, match="values must be at least two finite numbers"):
            study.interval(bad)


def test_the_stored_study_is_complete():
    content, provenance = store.load("gradient_matching")
    rows = [{key: r[key] for key in ("data", "kind", "seed")} for r in content["runs"]]
    assert rows == [
        {k: job.arguments[k] for k in ("data", "kind", "seed")} for job in study.STUDY.jobs
    ]
    assert "gradient_matching" in provenance["command"]
    assert {r["seed"] for r in content["runs"]} == set(range(10))


def test_a_model_too_poor_to_choose_targets_from_is_named_before_the_attack():
    noise = torch.randn(30, 20, 1, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(30) % 2  # nothing in x tells them: all right by chance in 2^-30
    protocol = study.replace(PROTOCOL, groups=((3, 10, 4),))
    case = study._Trial(
        "mamba2", drawn(20), drawn(20, seed=1), Examples(noise, labels), drawn(), protocol, 0
    )
    with pytest.raises(ValueError, match=r"need 30 that .* mamba2 does so with \d+ of 30 after 12"):
        study._attack(case, [1.0], ["matched"])


def test_the_authors_rates_go_with_the_architecture():
    found = {kind: study.large(kind) for kind in study.KINDS}
    assert (found["mamba2"].learning_rate, found["mamba2"].weight_decay) == (0.003, 0.05)
    assert (found["lru"].learning_rate, found["lru"].weight_decay) == (0.001, 0.05)
    assert found["s4d"] == found["cnn"] == study.LARGE
    with pytest.raises(ValueError, match="kind must be one of"):
        study.large("s5")


def images(path, n, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n, dtype=np.uint8)
    pixels = rng.integers(0, 128, (n, 3072), dtype=np.uint8) + 100 * labels[:, None]
    np.concatenate([labels[:, None], pixels.astype(np.uint8)], axis=1).tofile(path)


def test_the_command_for_image_files_resumes_and_gives_the_same(tmp_path, capsys):
    images(tmp_path / "data_batch_1.bin", 30, 0)
    images(tmp_path / "test_batch.bin", 20, 1)
    sizes = "clean=10 bases=10 targets=8 others=8 channels=4 state_dim=4 depth=1 batch=5 steps=4"
    command = [
        "images",
        "--train",
        str(tmp_path / "data_batch_1.bin"),
        "--test",
        str(tmp_path / "test_batch.bin"),
    ]
    command += ["--kind", "s4d", "--results", str(tmp_path / "out"), "--groups", "1x1x4", "1x4x4"]
    command += ["--set", *sizes.split(), "brew_steps=1", "restarts=1"]
    assert main(command) == 0
    written = tmp_path / "out" / "images" / "s4d-0.json"
    first = store.read_json(written)
    assert [r["condition"] for r in first["runs"]] == ["clean", "duplicates", "matched", "noise"]
    (tmp_path / "out" / "images" / "s4d-0" / "noise-0.25.pt").unlink()
    written.unlink()
    assert main(command) == 0
    assert store.read_json(written)["runs"] == first["runs"]
    assert "noise" in capsys.readouterr().out
    for wrong, message in (
        (["--set", "steps=much"], "--set must give steps a number; got 'steps=much'"),
        (["--set", "size=3"], "--set must name a number of the protocol; got 'size=3'"),
        (["--groups", "3x2"], "--groups must be three numbers each"),
        (["--precision", "half"], "precision must be one of float32, float64, tf32"),
        (["--kind", "s5"], "kind must be one of cnn, lru"),
        (["--device", "cuda:99"], "device must be one that torch has here"),
    ):
        assert main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err
    assert json.loads(written.read_text())["checksum"]
