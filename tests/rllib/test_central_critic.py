"""MAPPO end to end: what the central critic reads, and what cut episodes bootstrap from."""

import gymnasium as gym
import pytest
import torch

from rllib_hypermarl import BatchedEnv, HyperMARLConfig, Step
from rllib_hypermarl.rllib.sequences import values_and_advantages

pytestmark = pytest.mark.usefixtures("ray_session")
LENGTH = 5


class Counting(BatchedEnv):
    """Observations and state count up and never repeat; env e is cut after `LENGTH + e` steps, env 0 terminates."""

    def __init__(self, num_envs, device, with_state=True):
        self.num_envs, self.device, self.agents = num_envs, device, ("a", "b")
        self.observation_spaces = {a: gym.spaces.Box(-1e9, 1e9, (2,)) for a in self.agents}
        self.action_spaces = {a: gym.spaces.Box(-1.0, 1.0, (1,)) for a in self.agents}
        self.state_space = gym.spaces.Box(-1e9, 1e9, (3,)) if with_state else None
        self.calls = 0

    def _fresh(self):
        self.calls += 1
        envs = torch.arange(self.num_envs) / 10
        obs = (self.calls + envs)[:, None, None] / torch.tensor([[10.0, 20.0], [30.0, 40.0]])
        state = (self.calls + envs)[:, None] / torch.tensor([5.0, 6.0, 7.0]) if self.state_space else None
        return obs, state

    def reset(self, seed=None):
        self.t = torch.zeros(self.num_envs, dtype=torch.int64)
        obs, state = self._fresh()
        none = torch.zeros(self.num_envs, dtype=torch.bool)
        return Step(obs, torch.zeros(self.num_envs, 2), none, none, obs, state, state)

    def step(self, actions):
        self.t += 1
        final_obs, final_state = self._fresh()
        obs, state = self._fresh()
        done = self.t >= LENGTH + torch.arange(self.num_envs)
        first = torch.arange(self.num_envs) == 0
        self.t *= ~done
        obs = torch.where(done[:, None, None], obs, final_obs)
        state = None if state is None else torch.where(done[:, None], state, final_state)
        return Step(obs, final_obs[..., 0], done & first, done & ~first, final_obs, state, final_state)


def build(**hypermarl):
    with_state = hypermarl.pop("with_state", True)
    config = HyperMARLConfig().environment(Counting, env_config={"with_state": with_state})
    config.hypermarl(critic="central", actor_hidden=[4], critic_hidden=[6], init="framework", **hypermarl)
    config.env_runners(num_envs_per_env_runner=3, rollout_fragment_length=12)
    config.training(train_batch_size_per_learner=36, minibatch_size=36).run(torch_threads=1)
    return config.build_algo()


@pytest.mark.parametrize("with_state", [True, False])
def test_advantages_bootstrap_from_the_final_state(with_state):
    algo = build(with_state=with_state)
    rollout = algo.env_runner.sample()
    learner = algo.learner_group._learner
    value, advantage = values_and_advantages(learner.net, rollout, learner.config)
    net, gamma, lam = learner.net, algo.config.gamma, algo.config.lambda_
    weights = net.generate("critic")

    def value_of(obs, state):  # [N, obs], [state]
        state = None if state is None else state[None]
        return net.value(obs[:, None], state, weights)[:, 0].detach()

    replay = Counting(3, "cpu", with_state)  # the env ignores actions: the same course again, with nothing left out
    step = replay.reset()
    obs, states, finals, final_states = [], [], [], []
    for _ in range(12):
        obs.append(step.obs)
        states.append(step.state)
        step = replay.step(None)
        finals.append(step.final_obs)
        final_states.append(step.final_state)
    for e in range(3):
        running = torch.zeros(2)
        for t in reversed(range(12)):
            now = value_of(obs[t][e], states[t][e] if with_state else None)
            after = value_of(finals[t][e], final_states[t][e] if with_state else None)
            delta = rollout.reward[:, t, e] + gamma * after * ~rollout.terminated[t, e] - now
            running = delta + gamma * lam * running * ~(rollout.terminated[t, e] | rollout.truncated[t, e])
            torch.testing.assert_close(value[:, t, e], now, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(advantage[:, t, e], running, rtol=1e-4, atol=1e-4)
    assert rollout.truncated.any()
    assert rollout.terminated.any()
    algo.train()
    algo.stop()


def test_actor_and_critic_sharing_differ_at_will():
    algo = build(sharing="hyper_mlp", critic_sharing="full")
    sources = algo.get_module("hyper").net.sources
    assert type(sources["actor"]).__name__ == "HyperNetwork"
    assert type(sources["critic"]).__name__ == "Direct"
    algo.train()
    algo.stop()
