"""What a candidate is worth, and what it takes."""

import pytest

from rllib_hypermarl.errors import ConfigError
from rllib_hypermarl.storage import Storage
from rllib_hypermarl.tuning import candidate
from rllib_hypermarl.tuning.candidate import aggregate, candidate_bundles, check_shared, newest
from tests.helpers import STEPS, game


def test_the_newest_value_is_the_last_row_s_that_has_it():
    rows = [{"a": {"b": 1}}, {"a": {"b": 2.5, "c": "x"}}, {"a": {}}, {}]
    assert newest(rows, "a/b") == 2.5
    assert newest(rows, "a/c") is None and newest(rows, "a") is None and newest(rows, "a/b/c") is None


def test_the_mean_of_the_middle_half():
    assert aggregate([0, 10, 20, 300], "iqm") == 15
    assert aggregate([0, 10, 20, 300], "mean") == 82.5
    assert aggregate([7.0], "iqm") == 7
    assert aggregate([1, 2, 6], "iqm") == 3


def test_every_seed_s_actors_are_counted():
    overrides = ("env_runners.num_env_runners=2", "env_runners.num_cpus_per_env_runner=0.5", "learners.num_learners=1")
    config = {"config": game(*overrides), "seeds": [0, 1], "cpus_per_trial": 1, "gpus_per_trial": 0.25}
    bundles = candidate_bundles(config)
    assert bundles[0] == {"CPU": 1, "GPU": 0.25}
    assert [bundle["CPU"] for bundle in bundles[1:]] == [2 * 0.5 + 2, 2 * 0.5 + 2, 2 * 1]  # see the docstring
    config["params"] = {"env_runners.num_env_runners": 0}
    assert len(candidate_bundles(config)) == 2


def test_a_node_that_does_not_see_the_sweep_s_directory_is_named(tmp_path):
    check_shared(Storage(tmp_path))
    check_shared(Storage("s3://bucket/sweep"))
    with pytest.raises(ConfigError, match=r"does not see .*here; take one that all nodes share"):
        check_shared(Storage(tmp_path / "here"))


@pytest.mark.parametrize("how", ["mean", "iqm"])
def test_a_value_that_is_no_number_shows(how):
    assert str(aggregate([1.0, float("nan"), 2.0], how)) == "nan"


def test_progress_is_told_before_the_first_values(ray_session, tmp_path, monkeypatch):
    monkeypatch.setattr(candidate, "STEP_SECONDS", 0)  # a step is an iteration
    evaluation = ("evaluation.evaluation_interval=2", "evaluation.evaluation_duration=1")
    settings = {
        "storage": str(tmp_path), "config": game(*evaluation, f"run.stop_env_steps={4 * STEPS}"), "params": {},
        "seeds": [0, 1], "metric": "evaluation/env_runners/agent_return_mean", "aggregate": "mean",
        "report_iterations": 2, "save_when_stopped": False,
    }  # fmt: skip
    monkeypatch.setattr(candidate.Candidate, "logdir", "trial_0000")  # Tune's, of the first trial
    trial = candidate.Candidate(settings)
    results = [trial.step() for _ in range(8)]
    trial.stop()
    assert [result["trained_env_steps"] // STEPS for result in results] == [0, 1, 1, 2, 2, 3, 3, 4]
    assert [result["env_steps"] // STEPS for result in results] == [0, 0, 0, 2, 2, 2, 2, 4]
    assert [result["done"] for result in results if "done" in result] == [False] * 4 + [True]
