"""The memory game's rules, and that memory and an identity are what it takes."""

import pytest
import torch

from rllib_hypermarl import HyperMARLConfig
from rllib_hypermarl import env as envs
from rllib_hypermarl.errors import UnknownEnvError
from rllib_hypermarl.rllib.env_runner import BatchedEnvRunner
from tests.helpers import ROOT


def make(num_envs=5, **env_config):
    return envs.make("games/recall", num_envs=num_envs, **{"n_agents": 3, "n_cues": 3, "delay": 2, **env_config})


def test_the_cue_is_shown_once_and_asked_for_at_the_end():
    env = make()
    step = env.reset(0)
    for _ in range(3):
        cue = step.obs[:, 0, :3].argmax(dim=1)
        assert torch.equal(step.obs, torch.nn.functional.one_hot(cue, 4).float().unsqueeze(1).expand(-1, 3, -1))
        right = (cue.unsqueeze(1) + torch.arange(3)) % 3
        for sign in (0, 0, 1):
            step = env.step(right)
            assert not step.obs[..., :3].any() and (step.obs[..., 3] == sign).all()
            assert not step.reward.any() and not step.terminated.any() and step.final_obs is step.obs
        answers = right.clone()
        answers[:, 1] += 1
        step = env.step(answers % 3)
        assert torch.equal(step.reward, torch.tensor([[1.0, 0.0, 1.0]]).expand(5, 3))
        assert step.terminated.all() and not step.truncated.any() and not step.final_obs.any()


def test_cues_repeat_with_their_seed_and_go_on_from_a_saved_state():
    first, second = make(num_envs=50), make(num_envs=50)
    assert torch.equal(first.reset(3).obs, second.reset(3).obs)
    assert not torch.equal(first.reset(4).obs, second.reset(3).obs)
    assert len(first.reset(5).obs[:, 0].unique(dim=0)) == 3
    nothing = torch.zeros(50, 3, dtype=torch.int64)
    first.step(nothing)
    second.set_state(first.get_state())
    for _ in range(9):
        a, b = first.step(nothing), second.step(nothing)
        assert torch.equal(a.obs, b.obs) and torch.equal(a.reward, b.reward)


@pytest.mark.parametrize("wrong", [{"n_agents": 0}, {"n_cues": 1}, {"delay": -1}, {"delay": 0.5}])
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(UnknownEnvError, match=next(iter(wrong))):
        make(**wrong)


SMALL = (
    "env_config={n_agents: 3, n_cues: 3, delay: 4}", "env_runners.rollout_fragment_length=12", "run.device=cpu",
    "training.train_batch_size_per_learner=768", "training.minibatch_size=192", "hypermarl.sequence_length=6",
    "training.lr=1e-3",
)  # fmt: skip


def trained(*overrides, iterations=12):
    """The greedy return per agent, and that of the last hundred training episodes."""
    config = HyperMARLConfig.from_yaml(ROOT / "tune_configs" / "recall.yaml", [*SMALL, *overrides])
    config.validate()
    runner = BatchedEnvRunner(config=config)
    learner = config.build_learner(spaces=runner.get_spaces())
    for iteration in range(iterations):
        learner.update(batch=runner.sample())
        runner.copy_weights(learner.module, iteration)
    (played,) = runner.sample(num_episodes=64)
    return played.returns.mean().item(), runner._episodes.recent().returns.mean().item()


@pytest.mark.parametrize(("memory", "iterations"), [("gru", 15), ("lstm", 30)])
def test_a_team_that_remembers_solves_the_game(memory, iterations):
    greedy, sampled = trained(f"hypermarl.memory={memory}", iterations=iterations)
    assert greedy > 0.95 and sampled > 0.9


@pytest.mark.parametrize("lacking", ["hypermarl.memory=null", "hypermarl.sharing=full"])
def test_without_memory_or_identity_a_team_stays_at_chance(lacking):
    greedy, sampled = trained(lacking)
    assert 0.2 < greedy < 0.5 and 0.2 < sampled < 0.5
