"""What we rely on in the pinned Ray, one small test each: an upgrade that changes it fails here, by name."""

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from ray.rllib.core import COMPONENT_ENV_RUNNER, COMPONENT_EVAL_ENV_RUNNER, COMPONENT_LEARNER, COMPONENT_LEARNER_GROUP

from rllib_hypermarl import HyperMARL, HyperMARLConfig
from rllib_hypermarl.rllib.env_runner import BatchedEnvRunner
from rllib_hypermarl.rllib.learner import HyperMARLLearner
from tests.helpers import STEPS, game, weights

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def algo():
    made = HyperMARLConfig.from_groups(
        game("evaluation.evaluation_interval=100", "evaluation.evaluation_duration=3")
    ).build_algo()
    made.train()
    yield made
    made.stop()


def test_this_is_the_pinned_ray():
    assert ray.__version__ == "2.60.0"


def test_a_training_step_that_returns_nothing_is_called_and_its_metrics_are_the_result(monkeypatch):
    training_step, returned = HyperMARL.training_step, []

    def step(self):
        self.metrics.log_value("mine", 7.0, window=1)
        returned.append(training_step(self))

    monkeypatch.setattr(HyperMARL, "training_step", step)
    once = HyperMARLConfig.from_groups(game()).build_algo()
    result = once.train()
    once.stop()
    assert (returned, result["mine"], result["training_iteration"]) == ([None], 7.0, 1)


def test_the_learner_group_hands_any_batch_on_as_training_data(algo, monkeypatch):
    seen = []
    monkeypatch.setattr(HyperMARLLearner, "update", lambda self, **kwargs: seen.append(kwargs) or {})
    batch = object()
    algo.learner_group.update(batch=batch, timesteps={"steps": 3})
    assert seen[0]["training_data"].batch is batch
    assert seen[0]["timesteps"] == {"steps": 3}


def test_foreach_learner_reaches_the_local_learner_itself(algo):
    found = []
    algo.learner_group.foreach_learner(found.append)
    assert found == [algo.learner_group._learner]
    assert isinstance(found[0], HyperMARLLearner)


def test_save_to_path_and_restore_from_path_carry_our_runner_s_state(algo, tmp_path):
    runner = algo.env_runner
    runner.save_to_path(tmp_path / "runner")
    saved = runner.get_state()["sampling"]
    other = BatchedEnvRunner(config=algo.config)
    assert not torch.equal(other.get_state()["sampling"]["generator"], saved["generator"])
    other.restore_from_path(tmp_path / "runner")
    restored = other.get_state()["sampling"]
    assert torch.equal(restored["generator"], saved["generator"])
    assert restored["env"] == saved["env"]
    assert torch.equal(restored["step"].obs, saved["step"].obs)
    assert all(torch.equal(restored["episodes"][key], value) for key, value in saved["episodes"].items())
    assert other.num_env_steps_sampled_lifetime == STEPS
    other.stop()


def test_the_algorithm_s_components_have_the_names_that_checkpoints_use(algo, tmp_path):
    algo.save_to_path(tmp_path / "algo")
    assert (tmp_path / "algo" / COMPONENT_ENV_RUNNER / "state.pkl").is_file()
    assert (tmp_path / "algo" / COMPONENT_LEARNER_GROUP / COMPONENT_LEARNER / "state.pkl").is_file()


def test_the_evaluation_config_is_an_unfrozen_copy_marked_as_such(algo):
    config = algo.config.get_evaluation_config_object()
    assert config.in_evaluation
    assert config.explore is False
    assert (config.env, config.env_config, config.seed) == (algo.config.env, algo.config.env_config, algo.config.seed)
    assert algo.config.explore is True
    assert algo.eval_env_runner.config.in_evaluation
    assert config.get_evaluation_config_object() is None


def test_evaluation_asks_for_episodes_that_count_their_steps(algo, monkeypatch):
    asked = []
    sample = BatchedEnvRunner.sample

    def listening(self, **kwargs):
        asked.append((self, kwargs))
        return sample(self, **kwargs)

    monkeypatch.setattr(BatchedEnvRunner, "sample", listening)
    algo.evaluate()
    ((runner, kwargs),) = asked
    assert runner is algo.eval_env_runner
    assert kwargs["num_episodes"] == 3
    assert not kwargs.get("num_timesteps")
    (episodes,) = sample(runner, num_episodes=3)
    assert (episodes.env_steps(), episodes.agent_steps()) == (3 * 5, 3 * 5 * 4)


def test_set_state_hands_the_training_runner_s_state_to_the_evaluation_runner_which_takes_only_the_weights(
    algo, monkeypatch
):
    given = []
    set_state = BatchedEnvRunner.set_state

    def listening(self, state):
        given.append((self, state))
        set_state(self, state)

    monkeypatch.setattr(BatchedEnvRunner, "set_state", listening)
    state = algo.get_state()
    assert COMPONENT_ENV_RUNNER in state
    evaluator = algo.eval_env_runner
    before = evaluator._generator.get_state()
    state[COMPONENT_EVAL_ENV_RUNNER] = state[COMPONENT_ENV_RUNNER]
    algo.set_state(state)
    handed = [given_state for runner, given_state in given if runner is evaluator and "sampling" in given_state]
    assert handed
    assert not torch.equal(handed[0]["sampling"]["generator"], before)
    assert torch.equal(evaluator._generator.get_state(), before)
    assert evaluator._step is None
    learned = weights(algo)
    assert all(torch.equal(p, learned[name]) for name, p in evaluator.module["hyper"].named_parameters())


def test_a_dict_space_built_of_pairs_keeps_their_order():
    agents = [f"agent_{i}" for i in range(12)]
    space = gym.spaces.Dict([(agent, gym.spaces.Box(-1, 1, (1,), np.float32)) for agent in agents])
    assert list(space) == agents
    assert list(gym.spaces.Dict(dict(space.items()))) != agents  # built of a dict it is sorted: agent_10 before agent_2


def test_a_frozen_config_stays_frozen_in_the_algorithm(algo):
    with pytest.raises(AttributeError, match="frozen"):
        algo.config.lr = 1.0


def test_an_env_runner_s_metrics_reach_the_result_under_env_runners(algo):
    assert algo.metrics.peek(("env_runners", "num_env_steps_sampled_lifetime")) == STEPS


def test_torch_does_not_count_what_a_fused_optimiser_changes():
    """Were it to, `TeamModule` could keep generated weights in a learner too."""
    counted = {}
    for fused in (True, False):
        parameter = torch.nn.Parameter(torch.ones(3))
        parameter.grad = torch.ones(3)
        torch.optim.Adam([parameter], fused=fused).step()
        assert (parameter < 1).all()
        counted[fused] = parameter._version
    assert counted == {True: 0, False: 1}


def test_rllib_restores_numbers_in_single_precision():
    from ray.rllib.utils.torch_utils import convert_to_torch_tensor

    assert convert_to_torch_tensor({"count": np.float64(3.0)})["count"].dtype == torch.float32


def test_an_actor_that_raises_is_given_up_which_is_why_ours_answer_with_their_errors():
    from ray.rllib.utils.actor_manager import FaultAwareApply

    actor = FaultAwareApply()
    actor.config = HyperMARLConfig().fault_tolerance(restart_failed_env_runners=False)
    with pytest.raises(SystemExit):
        actor.apply(lambda _: 1 / 0)


def test_an_empty_list_of_runners_means_all_of_them_which_is_why_we_never_ask_with_one(monkeypatch):
    from ray.rllib.utils.actor_manager import FaultTolerantActorManager

    asked = []
    manager = FaultTolerantActorManager(["one", "two"], init_id=1)
    monkeypatch.setattr(manager, "_call_actors", lambda **kwargs: asked.extend(kwargs["remote_actor_ids"]) or [])
    manager.foreach_actor_async("sample", remote_actor_ids=[])
    assert asked == [1, 2]
