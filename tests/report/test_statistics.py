"""Aggregates are rliable's own; curves and crossings are what the definitions say."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rliable import metrics
from rliable.library import get_interval_estimates

from rllib_hypermarl.report import statistics
from rllib_hypermarl.report.statistics import curve, estimate, intervals, plain, shared_grid, to_threshold
from rllib_hypermarl.report.store import Series


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "REPS", 200)


def series(values, env_steps=None, seconds=None):
    steps = np.arange(1, len(values) + 1) * 100.0 if env_steps is None else np.array(env_steps, float)
    return Series(steps, steps / 10 if seconds is None else np.array(seconds, float), np.array(values, float))


@pytest.mark.parametrize("runs", [2, 3, 5, 10])
def test_intervals_are_rliable_s_own(runs):
    scores = np.random.RandomState(runs).normal(size=(runs, 7))
    np.random.seed(0)
    points, ends = get_interval_estimates(  # as rliable's README has it for curves: [runs, tasks, frames]
        {"ours": scores[:, None, :]},
        lambda x: np.array([metrics.aggregate_iqm(x[..., frame]) for frame in range(x.shape[-1])]),
        reps=statistics.REPS,
    )
    point, low, high = intervals(scores)
    np.testing.assert_allclose(point, points["ours"], rtol=1e-12)
    np.testing.assert_allclose([low, high], ends["ours"], rtol=1e-12)


def test_one_number_per_run_is_rliable_s_matrix_of_one_task():
    scores = np.random.RandomState(0).normal(size=(5, 1))
    np.random.seed(0)
    points, ends = get_interval_estimates({"": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]),
                                          reps=statistics.REPS)  # fmt: skip
    found = estimate(scores[:, 0].tolist())
    assert [found[key] for key in ("iqm", "low", "high")] == pytest.approx([points[""][0], *ends[""][:, 0]], rel=1e-5)


def test_the_global_random_stream_is_left_as_it_was():
    np.random.seed(7)
    expected = np.random.rand()
    np.random.seed(7)
    intervals(np.ones((3, 2)))
    assert np.random.rand() == expected


def test_one_run_has_no_interval_and_no_run_nothing():
    assert estimate([0.5]) == {"iqm": 0.5, "low": None, "high": None, "values": [0.5]}
    assert estimate([None]) is None
    assert curve([series([])], "seconds") is None
    assert curve([series([0.1, 0.3])], "seconds") == {
        "x": [10, 20], "iqm": [0.1, 0.3], "low": [None, None], "high": [None, None]
    }  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(arrays(float, st.tuples(st.integers(2, 6), st.integers(1, 4)), elements=st.floats(-1e3, 1e3)))
def test_intervals_are_within_what_runs_have_and_shift_with_them(values):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "REPS", 50)
        point, low, high = intervals(values)
        moved = intervals(values + 5.0)
    slack = 1e-9 * (1 + np.abs(values).max())
    assert (values.min(axis=0) - slack <= low).all() and (low <= high).all()
    assert (high <= values.max(axis=0) + slack).all()
    np.testing.assert_allclose(np.stack(moved), np.stack([point, low, high]) + 5.0, atol=1e-6)


def test_runs_with_the_same_axis_are_compared_there_and_others_on_what_all_cover():
    same = np.array([10.0, 20.0, 40.0])
    assert shared_grid([same, same.copy()]) is same
    grid = shared_grid([same, np.array([15.0, 30.0])])
    assert (grid[0], grid[-1]) == (15.0, 30.0)
    found = curve([series([0, 1], env_steps=[0, 100]), series([1, 1], env_steps=[50, 100])], "env_steps")
    assert (found["x"][0], found["iqm"][0]) == (50, 0.75)  # the mean of 1/2, between two of its values, and of 1


def test_crossings():
    runs = [series([0.1, 0.8, 0.2]), series([0.7, 0.1, 0.1]), series([0.0, 0.1, 0.9])]
    assert to_threshold(runs, 0.7) == {
        "reached": 3, "runs": 3, "env_steps": 200, "seconds": 20, "iqm_env_steps": None
    }  # fmt: skip
    assert to_threshold(runs, 0.85) == {
        "reached": 1, "runs": 3, "env_steps": None, "seconds": None, "iqm_env_steps": None
    }  # fmt: skip
    assert to_threshold(runs, 0.4)["iqm_env_steps"] == 300
    assert to_threshold([series([])], 0.4) is None


def test_plain_numbers():
    assert [plain(x) for x in (3.0, 0.1 + 0.2, 123456.789, math.inf, math.nan)] == [3, 0.3, 123457, None, None]
    assert isinstance(plain(np.float64(2.0)), int)
