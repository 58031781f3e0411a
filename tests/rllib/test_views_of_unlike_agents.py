"""Stock RLlib with agents that see and do different things, and with action masks."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.env.multi_agent_env import MultiAgentEnv

from rllib_hypermarl import stock_module_spec
from rllib_hypermarl.errors import ConfigError
from rllib_hypermarl.nets import SHARING

pytestmark = pytest.mark.usefixtures("ray_session")
SMALL = {"actor_hidden": [16], "critic_hidden": [16], "hypernet_hidden": [16], "seed": 0}
CHOICES = {"few": 3, "many": 5}
SIZES = {"few": 3, "many": 7}


def spaces(masked):
    observations = {agent: gym.spaces.Box(0.0, 1.0, (size,), np.float32) for agent, size in SIZES.items()}
    if masked:
        observations = {
            agent: gym.spaces.Dict(
                observations=space, action_mask=gym.spaces.Box(0.0, 1.0, (CHOICES[agent],), np.float32)
            )
            for agent, space in observations.items()
        }
    return observations, {agent: gym.spaces.Discrete(n) for agent, n in CHOICES.items()}


class Unlike(MultiAgentEnv):
    """Each agent is paid for the action that its observation's 1 shows. One action is forbidden at random, and costs
    more than can be won."""

    def __init__(self, config):
        self.agents = self.possible_agents = list(CHOICES)
        self.masked = config["masked"]
        self.observation_spaces, self.action_spaces = spaces(self.masked)
        self.random = np.random.default_rng(0)
        super().__init__()

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.draw(), {}

    def draw(self):
        self.wanted = {agent: self.random.integers(n) for agent, n in CHOICES.items()}
        shift = {agent: 1 + self.random.integers(n - 1) for agent, n in CHOICES.items()}
        self.forbidden = {agent: (self.wanted[agent] + shift[agent]) % n for agent, n in CHOICES.items()}
        obs = {agent: np.eye(size, dtype=np.float32)[self.wanted[agent]] for agent, size in SIZES.items()}
        if not self.masked:
            return obs
        masks = {agent: np.ones(n, np.float32) for agent, n in CHOICES.items()}
        for agent, mask in masks.items():
            mask[self.forbidden[agent]] = 0
        return {agent: {"observations": obs[agent], "action_mask": masks[agent]} for agent in self.agents}

    def step(self, actions):
        for agent, action in actions.items():
            assert self.action_spaces[agent].contains(np.int64(action))
        reward = {agent: float(action == self.wanted[agent]) for agent, action in actions.items()}
        if self.masked:
            reward = {agent: r - 1000 * (actions[agent] == self.forbidden[agent]) for agent, r in reward.items()}
        self.t += 1
        ends = {"__all__": self.t == 10}
        return self.draw(), reward, ends, {"__all__": False}, {}


def build(masked, **networks):
    return (
        PPOConfig()
        .environment(Unlike, env_config={"masked": masked})
        .env_runners(num_env_runners=0, rollout_fragment_length=50)
        .multi_agent(policies=set(CHOICES), policy_mapping_fn=lambda agent, *args, **kwargs: agent)
        .rl_module(rl_module_spec=stock_module_spec(list(CHOICES), *spaces(masked), **SMALL, **networks))
        .training(train_batch_size_per_learner=400, minibatch_size=200, num_epochs=8, lr=1e-2, grad_clip=0.5)
        .debugging(seed=0)
        .build_algo()
    )


@pytest.mark.parametrize(
    ("sharing", "masked"),
    [("hyper_mlp", True)]
    + [
        pytest.param(sharing, masked, marks=pytest.mark.system)
        for sharing, masked in zip(SHARING, itertools.cycle((False, True)))  # every mode once, masks in every other
    ],
)
def test_a_team_of_unlike_agents_learns_in_stock_rllib(sharing, masked):
    algo = build(masked, sharing=sharing)
    results = [algo.train()["env_runners"] for _ in range(6)]
    algo.stop()
    assert results[-1]["episode_return_mean"] > 1.5 * results[0]["episode_return_mean"]
    assert all(result["episode_return_min"] >= 0 for result in results)


def test_what_is_masked_has_no_probability_and_gives_no_gradient():
    module = stock_module_spec(list(CHOICES), *spaces(True), **SMALL).build()
    mask = {agent: (torch.rand(8, n) < 0.5).float() for agent, n in CHOICES.items()}
    for agent in CHOICES:
        mask[agent][:, 1] = 1
    batch = {
        agent: {"obs": {"observations": torch.rand(8, SIZES[agent]), "action_mask": mask[agent]}} for agent in CHOICES
    }
    out = module.forward_train(batch)
    for agent, n in CHOICES.items():
        inputs = out[agent]["action_dist_inputs"]
        assert inputs.shape == (8, n)
        dist = module[agent].get_train_action_dist_cls().from_logits(inputs)
        probs = torch.softmax(inputs, -1)
        assert not probs[mask[agent] == 0].any() and torch.isfinite(dist.entropy()).all()
        grad = torch.autograd.grad(dist.entropy().sum() + dist.logp(torch.ones(8)).sum(), inputs, retain_graph=True)[0]
        assert torch.isfinite(grad).all() and not grad[mask[agent] == 0].any()


def test_a_dict_that_is_no_mask_is_named():
    space = gym.spaces.Dict(position=gym.spaces.Box(0, 1, (2,)), goal=gym.spaces.Box(0, 1, (2,)))
    with pytest.raises(ConfigError, match=r"observations of few are a Dict of .*position.*; flatten them"):
        stock_module_spec(["few"], space, gym.spaces.Discrete(2), **SMALL)
