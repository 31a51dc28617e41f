"""Every public function, called with a wrong value for each of its arguments: an error must name
the argument.

A table holds one right call of each function; a test holds the table against what the modules
export. Wrong values that an argument may have after all are listed beside the call. The type
checker of the test suite is off: a reader does not have it.
"""

import importlib
import inspect
import re

import jaxtyping
import numpy as np
import pytest
import sympy as sp
import torch

from ssm_poison_lib import (
    algebra,
    descent,
    figures,
    flow,
    flows,
    networks,
    paper,
    records,
    sequences,
    ssm,
)

NAN, INF = float("nan"), float("inf")


class Thing:
    """An object that is nothing the library knows."""

    def __repr__(self):
        return "Thing()"


WRONG = {
    "None": None,
    "text": "no",
    "object": Thing(),
    "class": Thing,
    "empty": [],
    "nan": NAN,
    "inf": INF,
    "minus": -1,
    "fraction": 1.5,
    "flag": True,
    "complex": 1j,
    "huge": 10**400,
    "many": 10**12,
    "mapping": {"a": 1.0},
    "ragged": [[1.0], [1.0, 2.0]],
    "texts": np.array(["a", "b"]),
    "objects": np.array([Thing(), None], dtype=object),
    "complexes": np.array([1j, 2.0]),
    "flags": np.array([True, False]),
    "masked": np.ma.array([0.25, 0.5], mask=[False, True]),
    "masked rows": [np.ma.array([0.25, 0.5], mask=[False, True])] * 2,
    "gradient": torch.tensor([0.25, 0.5], requires_grad=True),
    "gradients": [torch.tensor(0.25, requires_grad=True), torch.tensor(0.5, requires_grad=True)],
    "nans": np.array([NAN, 0.5]),
}

NUMBERS = ("minus", "fraction", "many")
SYSTEM = ssm.DiagonalSSM([0.5, 0.1], [1.0, 1.0], [1.0, 1.0])
DATA = sequences.TrainingSet(sequences.baseline_sequences(4), ssm.theorem_teacher(2))
NETWORK = networks.authors_teacher(2)
NETWORK_DATA = sequences.TrainingSet(np.eye(3)[:2], NETWORK)
RULE = descent.Rule(0.1, 5)
RUN = flow.gradient_flow(SYSTEM, DATA, t_end=1.0, rtol=1e-6)
BATCH = flows.many_flows([[0.2, 0.1]], (np.diag([0.0, 1.0]), [2.0, 1.0]), t_end=1.0)
FIGURE, (AXES,) = figures.new()
SETTING = paper.THEOREM_SETTINGS["theorem_kappa7"]
EXPERIMENT = next(iter(paper.EXPERIMENTS.values()))
CURVE = {"epoch": [1, 2], "loss": [1.0, 0.1], "error": [1.0, 0.5]}
CURVES = records.Curves(
    unit="epoch",
    at=(1, 2),
    loss=(1.0, 0.1),
    largest_abs_a=((1.0,), (1.0,)),
    effective_rank=(1.0, 1.0),
    gamma0=(0.0, 0.0),
    error=(1.0, 0.5),
    error_from_lag_1=None,
)
RECORD = records.Record(
    start="drawn",
    precision="float64",
    trained=True,
    stop_epoch=None,
    epochs=100,
    end_time=None,
    logged_epoch=100,
    logged_error=1.0,
    logged_error_from_lag_1=None,
    worst_lag=None,
    logged_train_loss=0.01,
    error_at_stop=None,
    effective_rank=1.0,
    largest_abs_a=(1.0,),
    max_abs_gamma0=0.0,
    seconds=1.0,
    curves=CURVES,
)
SPREAD = [{"n": 1, "q25": 0.1, "median": 0.2, "q75": 0.3}]
CELL = {
    "outcomes": {
        key: {"by_epoch": SPREAD, "by_loss": SPREAD, "at_stop": [0.1]}
        for key in ("baseline", "with special")
    },
    "grid": [1],
    "losses": [0.1],
    "seeds": [1],
    "method": "descent",
}
A, U = algebra.entries("a", 2), (sp.Integer(1), sp.Integer(1))
X, Y = [algebra.entries("x", 3)], algebra.entries("y", 1)
GRADIENT = {"x": X, "y": Y, "a": A, "b": U, "c": U}

# name -> (a right call, {argument: names of the wrong values that it may have})
CALLS = {
    "algebra.antidote_constant": ({"factors": A}, {}),
    "algebra.baseline_conserved": ({"entry": 0.5, "length": 7}, {"entry": (*NUMBERS, "huge")}),
    "algebra.baseline_error_constant": ({"shape": (1.0, 0.5), "length": 7}, {}),
    "algebra.baseline_factor": (
        {"first": 1.0, "other": 0.5, "length": 7},
        dict.fromkeys(("first", "other"), (*NUMBERS, "huge")),
    ),
    "algebra.baseline_race": ({"length": 5}, {}),
    "algebra.baseline_solution": ({"length": 5}, {}),
    "algebra.divided_difference": (
        {"power": 3, "first": 1, "second": 2},
        {"first": (*NUMBERS, "huge"), "second": (*NUMBERS, "huge"), "power": ("fraction",)},
    ),
    "algebra.entries": ({"name": "a", "count": 2}, {"name": ("text",)}),
    "algebra.escape_time": ({"length": 7, "state_dim": 3}, {"state_dim": (*NUMBERS, "huge")}),
    "algebra.exponential_dynamics": ({"a": A, "length": 5}, {"a": ("empty",)}),
    "algebra.fit_time": ({"length": 7}, {}),
    "algebra.gamma": (GRADIENT, {}),
    "algebra.holds": ({"identity": algebra.sign_identity(A, 5)}, {}),
    "algebra.impulse_response": ({"a": A, "w": U, "lag": 1}, {}),
    "algebra.interpolator_price": ({"a": A, "length": 5}, {"a": ("empty",)}),
    "algebra.last_output": ({"x": X[0], "a": A, "w": U}, {"x": ("empty",)}),
    "algebra.loss": (GRADIENT, {}),
    "algebra.magnitude_bound": ({"largest": 0.5, "length": 7}, {"largest": (*NUMBERS, "huge")}),
    "algebra.near_tie_bound": ({"gap": 0.1, "length": 7}, {"gap": (*NUMBERS, "huge")}),
    "algebra.negative_gradient": (
        GRADIENT | {"b": algebra.entries("b", 2), "c": algebra.entries("c", 2)},
        {},
    ),
    "algebra.order_error": (
        {"length": 7, "state_dim": 3, "lag": 1},
        {"state_dim": (*NUMBERS, "huge")},
    ),
    "algebra.order_preservation": ({"length": 4}, {}),
    "algebra.proposition_1": ({"parameter": "a"}, {}),
    "algebra.saddle_function": (
        {"point": 0.5, "length": 7, "state_dim": 3},
        dict.fromkeys(("point", "state_dim"), (*NUMBERS, "huge")),
    ),
    "algebra.saddle_slope": (
        {"point": 0.5, "length": 7, "state_dim": 3},
        dict.fromkeys(("point", "state_dim"), (*NUMBERS, "huge")),
    ),
    "algebra.saddle_spectrum": (
        {"point": 0.5, "length": 7, "state_dim": 3},
        dict.fromkeys(("point", "state_dim"), (*NUMBERS, "huge")),
    ),
    "algebra.sign_identity": ({"a": A, "length": 5}, {"a": ("empty",)}),
    "algebra.steepest_point": ({"length": 7, "state_dim": 3}, {"state_dim": (*NUMBERS, "huge")}),
    "algebra.theorem_dynamics": ({"a": A, "length": 5}, {"a": ("empty",)}),
    "algebra.theorem_loss": ({"a": A, "length": 5}, {"a": ("empty",)}),
    "algebra.tie_bound": ({"tied": 2, "length": 7}, {"tied": (*NUMBERS, "huge")}),
    "algebra.uniqueness_dose": ({"length": 7, "state_dim": 3}, {"state_dim": (*NUMBERS, "huge")}),
    "algebra.velocity": (GRADIENT, {}),
    "checklist.examine": (
        {
            "data": DATA.x,
            "A0": [0.2, 0.1],
            "labels": DATA.y,
            "B": [1.0, 1.0],
            "C": [1.0, 1.0],
            "tie_gap": 0.5,
            "parametrization": "free",
            "trained": "A",
            "linear": True,
            "order": "mixed",
        },
        {"linear": ("flag",)},
    ),
    "checklist.race_limit": (
        {
            "A0": [0.3, 0.2, 0.1],
            "length": 7,
            "dose": 1.0,
            "gaps": [0.1, 0.1],
            "reference": "median",
        },
        {"dose": ("fraction", "many")},
    ),
    "descent.Descent": (
        {
            "start": SYSTEM,
            "data": DATA,
            "rule": RULE,
            "log_at": (1,),
            "log_after_stop": (1,),
            "log_at_loss": (0.1,),
        },
        dict.fromkeys(("log_at", "log_after_stop", "log_at_loss"), ("empty",)),
    ),
    "descent.Rule": (
        {
            "learning_rate": 0.1,
            "max_epochs": 5,
            "optimizer": "adam",
            "train": "A",
            "precision": "float64",
            "normalized": False,
            "off_diagonal": False,
            "reset_BC": False,
            "stop_loss": 0.1,
            "epochs_after_stop": 1,
        },
        {
            "learning_rate": ("fraction", "many"),
            "max_epochs": (),
            "normalized": ("flag",),
            "off_diagonal": ("flag",),
            "reset_BC": ("flag",),
            "stop_loss": ("fraction", "many"),
        },
    ),
    "descent.train_many": (
        {"runs": [], "threads": 1, "progress": False},
        {"runs": ("empty",), "progress": ("flag",)},
    ),
    "torch_reference.SSMNetwork": ({"network": NETWORK, "precision": "float64"}, {}),
    "torch_reference.train": ({"start": SYSTEM, "data": DATA, "rule": RULE, "epochs": 1}, {}),
    "network_flow.network_flow": (
        {
            "start": NETWORK,
            "training_set": NETWORK_DATA,
            "times": [0.1],
            "log_at_loss": (0.1,),
            "rtol": 1e-3,
            "atol": 1e-6,
            "loss_tol": 1e-9,
            "max_evaluations": 100,
        },
        {
            "log_at_loss": ("empty",),
            **{name: ("fraction", "many") for name in ("rtol", "atol", "loss_tol")},
        },
    ),
    "networks.Network": ({"ssm": SYSTEM, "mlp": ()}, {"mlp": ("empty",)}),
    "networks.authors_teacher": ({"width": 2}, {}),
    "networks.relative_error": ({"student": NETWORK, "teacher": NETWORK, "x": [[1.0, 0.5]]}, {}),
    "paper.TheoremSetting": (
        {
            "length": 7,
            "state_dim": 3,
            "init_scale": 0.1,
            "tie_gap": 1e-3,
            "extrapolation_length": 20,
            "seeds": (1,),
            "name": "mine",
        },
        {
            "init_scale": ("fraction", "many"),
            "tie_gap": ("None", "fraction", "many"),
            "seeds": ("empty",),
            "name": ("text",),
        },
    ),
    "paper.median_interval": ({"values": [1.0, 2.0], "confidence": 0.9}, {}),
    "parametrizations.phase_entries": (
        {"A0": [0.2, 0.1], "largest": [0.5], "parametrization": "exp", "lag": 2},
        {"largest": ("fraction", "many")},
    ),
    "parametrizations.phase_limit": (
        {"A0": [0.2, 0.1], "parametrization": "exp", "lag": 2, "gaps": [0.1]},
        {},
    ),
    "tensorflow_random.stateless_normal": ({"seed": 1, "shape": (2,)}, {"shape": ("empty",)}),
    "tensorflow_random.tied_weights": (
        {
            "raw": np.float32([1.0, 0.5]),
            "scale": 0.1,
            "warm_init": 0.0,
            "tie_gap": 1e-3,
            "tie_factors": (1.0,),
        },
        {
            "scale": ("fraction", "many"),
            "warm_init": NUMBERS,
            "tie_gap": ("None", *NUMBERS),
            "tie_factors": ("empty",),
        },
    ),
    "figures.Interactive": (
        {"static": FIGURE, "traces": [{}], "layout": {}, "frames": {"1": [{}]}, "slider": "dose"},
        {"layout": ("mapping",), "slider": ("text",)},
    ),
    "figures.convergence": (
        {
            "runs": {"baseline": [CURVE]},
            "ylabel": "error",
            "marks": {"baseline": [1]},
            "xlabel": "epoch",
        },
        {"ylabel": ("text",), "xlabel": ("text",)},
    ),
    "figures.dynamics": ({"records": {"baseline": RECORD}}, {}),
    "figures.entries": ({"cases": {"a": {"baseline": RECORD}}, "columns": 1}, {}),
    "figures.impulse_responses": (
        {"systems": {"teacher": SYSTEM}, "length": 4, "training_length": 2, "first_lag": 1},
        {},
    ),
    "figures.line_end_label": (
        {"ax": AXES, "text": "here", "x": 1.0, "y": 1.0, "colour": "#000000", "dx": 1.0, "dy": 1.0},
        {"text": ("text",), **dict.fromkeys(("x", "y", "dx", "dy"), NUMBERS)},
    ),
    "figures.medians": (
        {"cells": {"a": CELL}, "against": "epoch", "ylabel": "error", "columns": 1},
        {"ylabel": ("text",)},
    ),
    "figures.new": (
        {"columns": 1, "rows": 1, "height": 1.0, "width": 2.0},
        dict.fromkeys(("height", "width"), ("fraction",)),
    ),
    "figures.race": (
        {"trajectories": {"baseline": RUN}, "shown": 1, "logarithmic": False, "start": 0.1},
        {"logarithmic": ("flag",), "start": ("minus",)},
    ),
    "figures.scales": (
        {
            "scale": [1e-3],
            "cases": {"a": {"baseline": [[1e-3]], "with special": [[1e-2]]}},
            "factor": 10.0,
        },
        {"factor": ("fraction", "many")},
    ),
    "figures.summary": ({"figure": FIGURE}, {}),
    "figures.to_svg": ({"figure": FIGURE}, {}),
    "flow.baseline_closed_form": ({"A0": [0.2, 0.1], "length": 7, "tau": [0.0, 1.0]}, {}),
    "flow.baseline_limit": ({"A0": [0.2, 0.1], "length": 7, "gaps": [0.1]}, {}),
    "flow.gradient_flow": (
        {
            "start": SYSTEM,
            "training_set": DATA,
            "t_end": 1.0,
            "times": None,
            "train": "A",
            "parametrization": "free",
            "gaps": [0.4],
            "decay": 0.0,
            "loss_tol": 1e-9,
            "stop_at_loss": False,
            "stationary_tol": 1e-9,
            "rtol": 1e-6,
            "atol": 1e-12,
            "max_steps": 100,
        },
        {
            "t_end": ("fraction", "many"),
            "loss_tol": ("fraction", "many"),
            "stop_at_loss": ("flag",),
            "stationary_tol": ("fraction", "many"),
            "decay": ("fraction", "many"),
            "rtol": ("fraction", "many"),
            "atol": ("fraction", "many"),
        },
    ),
    "flow.jacobian": ({"student": SYSTEM, "training_set": DATA, "train": "A"}, {}),
    "flow.velocity": ({"student": SYSTEM, "training_set": DATA, "train": "A"}, {}),
    "flows.many_flows": (
        {
            "start": [[0.2, 0.1]],
            "training_set": (np.eye(3), [2.0, 1.0, 1.0]),
            "t_end": 1.0,
            "w": [1.0, 1.0],
            "train": "A",
            "parametrization": "free",
            "gaps": [[0.1]],
            "loss_tol": 1e-9,
            "rtol": 1e-6,
            "atol": 1e-9,
            "max_steps": 100,
            "workers": 1,
            "on_failure": "nan",
        },
        {name: ("fraction", "many") for name in ("t_end", "loss_tol", "atol")},
    ),
    "flows.near_tie_starts": (
        {"shape": [1.0, 0.9, 0.5], "scales": 0.1, "tie_gaps": 0.1},
        {"scales": ("fraction", "many")},
    ),
    "flows.theorem_flows": (
        {
            "start": [[0.2, 0.1]],
            "length": 5,
            "alpha": 1.0,
            "beta": 1.0,
            "t_end": 1.0,
            "gaps": [[0.1]],
            "special_position": 4,
        },
        {name: ("fraction", "many") for name in ("alpha", "beta", "t_end")},
    ),
    "metrics.effective_rank": ({"values": [0.5, 0.1]}, {}),
    "metrics.error_by_lag": ({"student": SYSTEM, "teacher": SYSTEM, "length": 5}, {}),
    "metrics.extrapolation_loss": (
        {"student": SYSTEM, "teacher": SYSTEM, "length": 5, "first_lag": 1},
        {},
    ),
    "metrics.gamma": ({"student": SYSTEM, "training_set": DATA}, {}),
    "metrics.generalization_error": (
        {"student": SYSTEM, "teacher": SYSTEM, "length": 5, "first_lag": 1},
        {},
    ),
    "metrics.loss": ({"student": SYSTEM, "training_set": DATA}, {}),
    "sequences.TrainingSet": ({"x": [[1.0, 0.0]], "teacher": SYSTEM}, {}),
    "sequences.baseline_sequences": (
        {"length": 5, "coefficients": [1.0]},
        {"coefficients": NUMBERS},
    ),
    "sequences.check_labels": (
        {"x": [[1.0, 0.0]], "y": DATA.y[:1] * 0 + 0.6, "teacher": SYSTEM, "rtol": 1e-9},
        {"rtol": ("fraction", "many")},
    ),
    "sequences.concatenate": ({"first": DATA}, {}),
    "sequences.fixed_sequences": (
        {"length": 5, "positions": (1,), "coefficients": [1.0]},
        {"coefficients": NUMBERS},
    ),
    "sequences.gaussian_sequences": (
        {"length": 5, "positions": (1,), "count": 2, "seed": 0, "scale": 1.0},
        {"seed": ("many", "huge"), "scale": ("fraction", "many")},
    ),
    "sequences.special_sequences": (
        {"length": 5, "coefficients": [1.0]},
        {"coefficients": NUMBERS},
    ),
    "ssm.DiagonalSSM": ({"A": [0.5, 0.1], "B": [1.0, 1.0], "C": [1.0, 1.0]}, {}),
    "ssm.impulse_response": ({"A": [0.5, 0.1], "w": [1.0, 1.0], "length": 3}, {}),
    "ssm.near_zero": (
        {"state_dim": 3, "scale": 0.1, "seed": 0, "tie_gap": 1e-5},
        {"seed": ("many", "huge"), "scale": ("fraction", "many")},
    ),
    "ssm.teacher": ({"name": "theorem", "state_dim": 3}, {}),
    "ssm.theorem_teacher": ({"state_dim": 3}, {}),
}
METHODS = {
    "output": (SYSTEM.output, {"x": [1.0, 0.0], "method": "fft"}, {}),
    "last_output": (SYSTEM.last_output, {"x": [1.0, 0.0]}, {}),
    "output_scale": (SYSTEM.output_scale, {"x": [1.0, 0.0]}, {}),
    "output_scale of a network": (NETWORK.output_scale, {"x": [[1.0, 0.0]]}, {}),
    "ones": (ssm.DiagonalSSM.ones, {"A": [0.5, 0.1]}, {}),
    "impulse_response": (SYSTEM.impulse_response, {"length": 3}, {}),
    "transfer_function": (
        SYSTEM.transfer_function,
        {"z": [2.0, 3.0]},
        {"z": ("empty", "minus", "fraction", "complex", "many", "complexes")},
    ),
    "start of a theorem's": (SETTING.start, {"seed": 1}, {}),
    "training_set of a theorem's": (SETTING.training_set, {"seed": 1, "which": "baseline"}, {}),
    "error of a theorem's": (
        SETTING.error,
        {"student": SETTING.start(1), "seed": 1, "first_lag": 1},
        {},
    ),
    "authors of a theorem's": (SETTING.authors, {"seed": 1, "which": "baseline"}, {}),
    "authors_value": (
        SETTING.authors_value,
        {"seed": 1, "which": "baseline", "quantity": "logged_error"},
        {},
    ),
    "start": (EXPERIMENT.start, {"seed": 1}, {}),
    "authors_start": (EXPERIMENT.authors_start, {"seed": EXPERIMENT.seeds[0]}, {}),
    "training_set": (EXPERIMENT.training_set, {"seed": 1, "which": "baseline"}, {}),
    "rule": (EXPERIMENT.rule, {"which": "baseline", "precision": "float64"}, {}),
    "descent": (EXPERIMENT.descent, {"seed": 1, "which": "baseline", "precision": "float64"}, {}),
    "test_inputs": (EXPERIMENT.test_inputs, {"seed": 1}, {}),
    "error": (EXPERIMENT.error, {"student": EXPERIMENT.start(1), "seed": 1, "first_lag": 0}, {}),
    "student": (RUN.student, {"row": 0}, {"row": ("minus",)}),
    "impulse_responses": (BATCH.impulse_responses, {"length": 3}, {}),
    "generalization_errors": (
        BATCH.generalization_errors,
        {"target": [2.0, 1.0], "first_lag": 1},
        {},
    ),
}

# What a module exports beside functions that take arguments of the reader.
NO_ARGUMENTS = {
    "algebra.baseline_limit", "algebra.conservation", "algebra.gap_identity",
    "algebra.jacobian_at_saddle", "figures.use_style",
}  # fmt: skip
RESULTS = {
    "flow.FlowError", "flow.FlowStatus", "flow.Trajectory",
    "parametrizations.Parametrization",
    "sequences.Teacher",
}  # fmt: skip
TABLED = (
    "algebra",
    "figures",
    "flow",
    "flows",
    "metrics",
    "networks",
    "parametrizations",
    "sequences",
    "ssm",
)


def function(name):
    module, _, attribute = name.partition(".")
    return getattr(importlib.import_module(f"ssm_poison_lib.{module}"), attribute)


@pytest.fixture(autouse=True)
def _as_a_reader_runs_it():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def cases():
    for name, (right, allowed) in CALLS.items():
        yield pytest.param(function(name), right, allowed, id=name)
    for name, (method, right, allowed) in METHODS.items():
        yield pytest.param(method, right, allowed, id=f"method {name}")


def answer(call, arguments):
    """What a call does: "returned", or the class and message of its exception."""
    try:
        call(**arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "returned"


@pytest.mark.parametrize(("call", "right", "allowed"), list(cases()))
def test_a_wrong_value_is_an_error_that_names_its_argument(call, right, allowed):
    assert answer(call, right) == "returned"
    parameters = inspect.signature(call).parameters
    assert set(allowed) <= set(right) <= set(parameters), (
        "the table names arguments that do not exist"
    )
    assert {
        n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    } == set(right)
    bad = []
    for argument in right:
        for label, value in WRONG.items():
            if label in allowed.get(argument, ()) or (
                label == "None" and parameters[argument].default is None
            ):
                continue
            said = answer(call, right | {argument: value})
            if not re.match(rf"(TypeError|ValueError): .*\b{argument}\b", said, re.DOTALL):
                bad.append(f"{argument}={label}: {said[:200]}")
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("module", TABLED)
def test_the_table_holds_every_public_function(module):
    public = {
        f"{module}.{name}" for name in importlib.import_module(f"ssm_poison_lib.{module}").__all__
    }
    callables = {
        name
        for name in public
        if callable(function(name)) and not isinstance(function(name), sp.Basic)
    }
    listed = {name for name in (*CALLS, *NO_ARGUMENTS, *RESULTS) if name.startswith(f"{module}.")}
    assert callables == listed
