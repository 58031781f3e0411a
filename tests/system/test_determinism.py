"""Same config, seed and machine: the same numbers, in real processes that share nothing."""

import pickle
import shutil

import numpy as np
import pytest

from rllib_hypermarl.rllib import checkpoints
from tests.helpers import ROOT, STEPS, comparable, rows, run, same, write_config

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
DISPERSION = (
    "env=vmas/dispersion", "env_config={n_agents: 4, n_food: 4, max_steps: 20, continuous_actions: false}",
    "run.stop_env_steps=512",
)  # fmt: skip
EVALUATING = ("evaluation.evaluation_interval=2", "evaluation.evaluation_duration=5")


def train(*arguments):
    done = run(*arguments, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def weights(run_dir):
    """The parameters in a run's newest checkpoint."""
    module = checkpoints.find(run_dir) / "learner_group/learner/rl_module/hyper/module_state.pkl"
    return {name: np.asarray(value) for name, value in pickle.loads(module.read_bytes()).items()}


def assert_same_run(first, second):
    ours, theirs = [comparable(row) for row in rows(first)], [comparable(row) for row in rows(second)]
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert same(a, b)
    ours, theirs = weights(first), weights(second)
    assert len(ours) > 10
    assert all(np.array_equal(value, theirs[name]) for name, value in ours.items())


def test_a_run_of_a_game_that_stopped_half_way_is_one_that_did_not(tmp_path):
    path = write_config(tmp_path, "run.stop_env_steps=768", *EVALUATING)
    train("train", path, "--out", tmp_path / "first")
    train("train", path, f"run.stop_env_steps={3 * STEPS}", "--out", tmp_path / "stopped")
    train("resume", tmp_path / "stopped", "--stop-env-steps", 768)
    assert len(rows(tmp_path / "stopped")) == 6
    assert_same_run(tmp_path / "first", tmp_path / "stopped")


def test_two_runs_on_vmas_are_one_and_two_resumes_from_one_checkpoint_are_one(tmp_path):
    path = write_config(tmp_path, *DISPERSION, *EVALUATING, "run.torch_threads=2")
    train("train", path, "--out", tmp_path / "first")
    train("train", path, "--out", tmp_path / "second")
    assert_same_run(tmp_path / "first", tmp_path / "second")

    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    for name in ("first", "copy"):
        train("resume", tmp_path / name, "--stop-env-steps", 1024)
        assert len(rows(tmp_path / name)) == 8
    assert_same_run(tmp_path / "first", tmp_path / "copy")
    assert not same(comparable(rows(tmp_path / "first")[4]), comparable(rows(tmp_path / "first")[3]))
