"""The checks themselves: what they take, what they return, and what the message says."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from ssm_poison_lib import _checks


def test_arrays_keep_masks_and_gradients_or_refuse():
    whole = np.ma.array([1.0, 2.0], mask=False)
    assert type(_checks.as_array("x", whole, ndim=1)) is np.ndarray
    with pytest.raises(
        ValueError, match="x must be an array of real numbers; got 1 masked entries: fill"
    ):
        _checks.as_array("x", np.ma.array([1.0, 2.0], mask=[True, False]), ndim=1)
    deep: list = []
    deep.append(deep)  # a list that holds itself
    with pytest.raises(ValueError, match="x must be an array of real numbers"):
        _checks.as_array("x", deep, ndim=1)


def test_a_long_double_beyond_float64_is_not_finite():
    if np.finfo(np.longdouble).max > np.finfo(float).max:
        with pytest.raises(ValueError, match="x must be finite; got inf"):
            _checks.as_array("x", np.array([np.longdouble(10) ** 400]), ndim=1)


def test_numpy_scalars_become_pythons():
    assert type(_checks.as_integer("n", np.int8(3), low=1)) is int
    assert type(_checks.as_seed("seed", np.uint64(3))) is int
    assert type(_checks.as_flag("flag", np.bool_(True))) is bool
    assert type(_checks.as_scalar("x", np.float32(0.5), low=0.0, high=1.0)) is float


@pytest.mark.parametrize(
    ("bounds", "value", "message"),
    [
        ({}, 10**400, "x must be a finite number; got 1000"),
        ({"low": 0.0, "high": 1.0}, 2.0, r"x must be a finite number >= 0 and <= 1; got 2\.0"),
        ({"low": 0.0, "strict": True}, 0, "x must be a finite number > 0; got 0"),
        ({"high": 1.0}, 2, "x must be a finite number <= 1; got 2"),
    ],
)
def test_bounds_of_a_number_are_told(bounds, value, message):
    with pytest.raises(ValueError, match=message):
        _checks.as_scalar("x", value, **bounds)


def test_messages_stay_short_and_never_fail():
    assert len(_checks.shown(list(range(10_000)))) < 250
    assert _checks.shown(10**5000) == "an object of type int"


def test_paths_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert _checks.as_path("folder", "~/results") == Path("/somewhere/results")
    for wrong, kind in (
        (b"bytes", TypeError),
        (3, TypeError),
        ("", ValueError),
        ("a\0b", ValueError),
    ):
        with pytest.raises(kind, match=r"^folder must be a path"):
            _checks.as_path("folder", wrong)


def test_cores_are_counted_on_every_system(monkeypatch):
    assert 1 <= _checks.available_cores() <= (os.cpu_count() or 1)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert _checks.available_cores() == 1
    assert _checks.as_workers("workers", None) == 1
    for wrong in (0, 1025, True, 1.0, "2"):
        with pytest.raises(ValueError, match="workers must be an integer from 1 to 1024"):
            _checks.as_workers("workers", wrong)


def test_endless_positions_end():
    def endless():
        while True:
            yield 1

    with pytest.raises(ValueError, match="positions must name at least one position, each once"):
        _checks.as_positions("positions", endless(), length=5)
