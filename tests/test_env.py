import importlib.util
import types

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_hypermarl import env as envs


class Counter(envs.BatchedEnv):
    """One agent that observes the number of steps."""

    def __init__(self, num_envs, device, start=0.0):
        self.num_envs, self.device, self.start = num_envs, device, start
        self.agents = ("a",)
        self.observation_spaces = {"a": gym.spaces.Box(-np.inf, np.inf, (1,))}
        self.action_spaces = {"a": gym.spaces.Discrete(2)}
        self.closed = False

    def reset(self, seed=None):
        self.t = self.start
        return self._step()

    def step(self, actions):
        self.t += 1
        return self._step()

    def _step(self):
        obs, never = torch.full((self.num_envs, 1, 1), self.t), torch.zeros(self.num_envs, dtype=torch.bool)
        return envs.Step(obs, obs[..., 0], never, never, obs)

    def get_state(self):
        return {"t": self.t}

    def set_state(self, state):
        self.t = state["t"]

    def close(self):
        self.closed = True


# ---------------------------------------------------------------------------------------------------------- registry


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("games/specialization", "did you mean 'games/specialisation'"),
        ("game/specialisation", "did you mean 'games/specialisation'"),
        ("specialisation", "did you mean 'games/specialisation'"),
        ("games/", "games/"),
        ("games/zzzzzzzzzz", "valid are games/recall, games/specialisation, games/synchronisation"),
        ("vmas/disperson", "did you mean 'vmas/dispersion'"),
    ],
)
def test_unknown_name_names_the_nearest(name, hint):
    with pytest.raises(envs.UnknownEnvError, match=hint):
        envs.make(name, num_envs=2)


def test_module_attribute():
    env = envs.make(f"{__name__}:Counter", num_envs=3, start=5.0)
    assert type(env).__name__ == "Counter"
    assert env.device == torch.device("cpu")
    assert env.reset().obs.flatten().tolist() == [5.0] * 3


@pytest.mark.parametrize("name", ["no_such_module:Env", f"{__name__}:NoSuchEnv", ":Env"])
def test_module_attribute_that_is_not_there(name):
    with pytest.raises(envs.UnknownEnvError, match="cannot be imported"):
        envs.make(name, num_envs=1)


def test_wrong_env_config_is_named():
    with pytest.raises(envs.UnknownEnvError, match=r"refuses env_config \{'stop': 3\}: .*'stop'"):
        envs.make(f"{__name__}:Counter", num_envs=1, stop=3)


def test_register(monkeypatch):
    monkeypatch.setattr(envs, "_PROVIDERS", dict(envs._PROVIDERS))
    provider = types.ModuleType("own_provider")
    provider.REQUIRES, provider.names = None, lambda: ["counter"]
    provider.make = lambda name, **kwargs: Counter(**kwargs)
    monkeypatch.setitem(__import__("sys").modules, "own_provider", provider)
    envs.register("own", "own_provider")
    assert "own/counter" in envs.list_names()
    assert envs.list_names("own") == ["own/counter"]
    assert envs.make("own/counter", num_envs=2, start=1.0).start == 1.0


def test_missing_package(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "vmas" else find_spec(name, *a))
    with pytest.raises(envs.UnknownEnvError, match="pip install vmas"):
        envs.make("vmas/dispersion", num_envs=1)
    assert not any(name.startswith("vmas/") for name in envs.list_names())


# ----------------------------------------------------------------------------------------------------------- wrapper


def test_wrapper_passes_everything_on():
    inner = Counter(2, torch.device("cpu"))
    env = envs.Wrapper(envs.Wrapper(inner))
    env.reset()
    assert env.step(torch.zeros(2, 1)).obs.flatten().tolist() == [1.0, 1.0]
    assert (env.num_envs, env.agents, env.action_spaces) == (2, ("a",), inner.action_spaces)
    assert env.get_state() == {"t": 1.0}
    env.set_state({"t": 7.0})
    assert inner.t == 7.0
    env.close()
    assert inner.closed
    with pytest.raises(AttributeError):
        _ = env.no_such_attribute


def test_wrapper_shows_the_attributes_of_the_env_it_wraps():
    inner = Counter(2, torch.device("meta"))
    inner.max_episode_steps, inner.state_space = 9, gym.spaces.Box(-1, 1, (3,))
    env = envs.Wrapper(inner)
    assert env.max_episode_steps == 9
    assert env.state_space == inner.state_space
    assert env.device == torch.device("meta")


def test_env_without_a_state_cannot_be_restored():
    class Forgetful(Counter):
        get_state, set_state = envs.BatchedEnv.get_state, envs.BatchedEnv.set_state

    env = Forgetful(1, torch.device("cpu"))
    assert env.get_state() is None
    with pytest.raises(envs.EnvError, match="Forgetful cannot be restored"):
        env.set_state({})


# ------------------------------------------------------------------------------------------------------------ checks


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("obs", torch.zeros(2, 1, 2), r"'count' returned obs of shape \(2, 1, 2\), expected \(2, 1, 1\)"),
        ("final_obs", None, "final_obs of shape NoneType"),
        ("reward", torch.zeros(2), r"reward of shape \(2,\), expected \(2, 1\)"),
        ("truncated", torch.zeros(2), r"truncated as torch.float32, expected torch.bool"),
    ],
)
def test_check_shapes(field, value, message):
    env = Counter(2, torch.device("cpu"))
    step = env.reset()
    envs.StepCheck(env, "count")(step)
    setattr(step, field, value)
    with pytest.raises(envs.EnvError, match=message):
        envs.StepCheck(env, "count")(step)


def test_check_finite():
    values = torch.zeros(4, 3, 2, 5)
    envs.check_finite(values, "obs", ("a", "b"), "count")
    values[2, 1, 1, 3] = float("nan")
    values[3, 0, 0, 0] = float("inf")
    message = r"non-finite obs \(nan\) for agent 'b', sub-env 1, step 2 of the rollout; 2 such"
    with pytest.raises(envs.EnvError, match=message):
        envs.check_finite(values, "obs", ("a", "b"), "count")


def test_check_finite_passes_large_finite_values():
    envs.check_finite(torch.full((4, 3, 2), 3e38), "reward", ("a", "b"), "count")
