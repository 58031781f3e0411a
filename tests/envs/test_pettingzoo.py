import functools
import importlib

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pettingzoo")

from rllib_hypermarl.envs import pettingzoo as zoo_envs
from rllib_hypermarl.envs.pettingzoo_copies import episode_seed

from rllib_hypermarl import env as envs
from tests import zoo
from tests.envs.pettingzoo_reference import compare, random_actions, reference

# name, arguments, whether episodes end by termination and by truncation, whether there is a flat state
ENVS = [
    ("mpe2.simple_v3", {"max_cycles": 6}, (False, True), True),
    ("mpe2.simple_spread_v3", {"N": 4, "max_cycles": 7}, (False, True), True),
    ("mpe2.simple_spread_v3", {"continuous_actions": True, "max_cycles": 5}, (False, True), True),
    ("mpe2.simple_reference_v3", {"max_cycles": 5}, (False, True), True),
    ("mpe2.simple_formation_v1", {"max_cycles": 8}, (False, True), True),
    ("mpe2.simple_line_v1", {"max_cycles": 6}, (False, True), True),
    ("sisl.multiwalker_v9", {"max_cycles": 9}, (True, False), True),
    ("sisl.pursuit_v5", {"n_pursuers": 3, "n_evaders": 2, "max_cycles": 8}, (False, True), False),
    ("classic.rps_v2", {"max_cycles": 4}, (False, True), False),
    ("tests.zoo:Wanderers", {}, (True, True), False),
]
IDS = [f"{name}{'-continuous' if 'continuous_actions' in kwargs else ''}" for name, kwargs, _, _ in ENVS]


def make(name, num_envs=2, **env_config):
    return envs.make(f"pettingzoo/{name}", num_envs=num_envs, **env_config)


def puppets(num_envs=3, **env_config):
    return make("tests.zoo:Puppet", num_envs, **env_config)


def do(env, *actions):
    """Steps with one action for each copy; the second agent always goes on."""
    return env.step(torch.tensor([[action, zoo.GO_ON] for action in actions]))


def original(name, kwargs):
    """A function that makes the env without any code of ours."""
    path, _, attr = name.partition(":")
    if not attr:
        path, attr = path if path.startswith("mpe2") else f"pettingzoo.{path}", "parallel_env"
    return functools.partial(getattr(importlib.import_module(path), attr), **kwargs)


# --------------------------------------------------------------------------------------------------- same as PettingZoo


@pytest.mark.parametrize(("name", "kwargs", "ends", "with_state"), ENVS, ids=IDS)
def test_equals_pettingzoo_step_by_step(name, kwargs, ends, with_state):
    env = make(name, **kwargs)
    seen = np.zeros(2, dtype=int)
    assert (env.state_space is not None) == with_state

    @settings(max_examples=3, deadline=None, derandomize=True, database=None)
    @given(seed=st.integers(0, 2**31 - 1), actions_seed=st.integers(0, 2**31 - 1))
    def check(seed, actions_seed):
        nonlocal seen
        actions = random_actions(env, 20, actions_seed)
        seen += compare(env, seed, actions, reference(original(name, kwargs), seed, actions, with_state))

    check()
    assert tuple(seen > 0) == ends
    env.close()


def test_with_workers():
    name, kwargs, _, with_state = ENVS[1]
    env = make(name, num_envs=5, num_workers=2, **kwargs)
    for seed in (0, 7):
        actions = random_actions(env, 20, seed)
        assert compare(env, seed, actions, reference(original(name, kwargs), seed, actions, with_state)) == [0, 10]
    env.close()


def test_an_aec_env_equals_its_own_agents_steps():
    """Against PettingZoo's loop over agents, not against its conversion."""
    env = make("tests.zoo:aec_spread", num_envs=1, max_cycles=4)
    actions = random_actions(env, 6, 0)
    aec, step = zoo.aec_spread(max_cycles=4), env.reset(3)
    for t in range(6):
        if t % 4 == 0:
            aec.reset(seed=episode_seed(3, 0, t // 4))
            np.testing.assert_array_equal(step.obs[0], [aec.observe(agent) for agent in env.agents])
        for n, agent in enumerate(aec.agents):
            assert (aec.agent_selection, agent) == (agent, env.agents[n])
            aec.step(actions[t, 0, n])
        step = env.step(torch.from_numpy(actions[t]))
        np.testing.assert_array_equal(step.final_obs[0], [aec.observe(agent) for agent in env.agents])
        np.testing.assert_array_equal(step.reward[0], np.float32([aec.rewards[agent] for agent in env.agents]))
        assert bool(step.truncated) == all(aec.truncations.values()) == (t == 3)


def test_wrappers_are_supersuit_s():
    import supersuit

    wrappers = [
        {"frame_stack_v1": {"stack_size": 3}},
        "agent_indicator_v0",
        {"supersuit:dtype_v0": {"dtype": "float32"}},
    ]
    env = make("mpe2.simple_spread_v3", max_cycles=5, wrappers=wrappers)

    def wrapped():
        stacked = supersuit.frame_stack_v1(original("mpe2.simple_spread_v3", {"max_cycles": 5})(), stack_size=3)
        return supersuit.agent_indicator_v0(stacked)

    assert env.observation_spaces["agent_0"].shape == (3 * 18 + 3,)
    actions = random_actions(env, 8, 1)
    compare(env, 5, actions, reference(wrapped, 5, actions, True))


def test_padding_makes_unlike_agents_alike():
    pad = {"wrappers": ["pad_observations_v0", "pad_action_space_v0"]}
    env = make("mpe2.simple_speaker_listener_v4", **pad)
    assert env.agents == ("speaker_0", "listener_0")
    assert {space.shape for space in env.observation_spaces.values()} == {(11,)}
    envs.StepCheck(env, "padded")(env.reset(0))


def test_pictures_become_vectors_when_asked_to():
    small = [{"color_reduction_v0": {"mode": "full"}}, {"resize_v1": {"x_size": 10, "y_size": 10}}, "flatten_v0"]
    env = make("butterfly.pistonball_v6", num_envs=1, n_pistons=2, wrappers=small)
    step = env.reset(0)
    envs.StepCheck(env, "small pictures")(step)
    assert step.obs.shape == (1, 2, 100) and step.obs.std() > 1
    env.close()


# ----------------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ends_final_observations_and_new_episodes(num_workers):
    env = puppets(num_workers=num_workers)
    first = env.reset(5)
    start = torch.tensor([[episode_seed(5, e, 0) % 1000 / 1000] for e in range(3)])
    torch.testing.assert_close(first.obs[:, 0], torch.cat([start, torch.zeros(3, 1)], dim=1))
    torch.testing.assert_close(first.state, torch.cat([start, torch.zeros(3, 1), -torch.ones(3, 1)], dim=1))
    step = do(env, zoo.GO_ON, zoo.GO_ON, zoo.GO_ON)
    assert step.final_obs is step.obs and step.final_state is step.state

    step = do(env, zoo.TERMINATE, zoo.GO_ON, zoo.TRUNCATE)
    assert (step.terminated.tolist(), step.truncated.tolist()) == ([True, False, False], [False, False, True])
    assert step.reward.tolist() == [[2.0, -0.5]] * 3
    assert step.final_obs[..., 1].tolist() == [[2, -2]] * 3 and step.final_state[:, 1].tolist() == [2] * 3
    assert step.obs[..., 1].tolist() == [[0, 0], [2, -2], [0, 0]] and step.state[:, 1].tolist() == [0, 2, 0]
    torch.testing.assert_close(step.obs[:, 0, 0], torch.tensor([
        episode_seed(5, 0, 1) % 1000 / 1000, float(start[1]), episode_seed(5, 2, 1) % 1000 / 1000
    ]))  # fmt: skip
    before = step.obs.clone(), step.final_obs.clone()
    do(env, zoo.GO_ON, zoo.GO_ON, zoo.GO_ON)
    assert torch.equal(step.obs, before[0]) and torch.equal(step.final_obs, before[1])
    for field in (step.obs, step.final_obs, step.reward):
        assert field.transpose(0, 1).is_contiguous() and field.dtype == torch.float32
    assert env.get_state() is None and env.take_counts() == {}
    env.close()


@pytest.mark.parametrize("space", [gym.spaces.Discrete(11), gym.spaces.Box(-1, 1, (3,), np.float64)], ids=str)
def test_actions_arrive_as_the_space_has_them(space, monkeypatch):
    seen = []

    class Keeper(zoo.Puppet):
        def __init__(self):
            super().__init__()
            self.action_spaces = dict.fromkeys(self.possible_agents, space)

        def step(self, actions):
            assert all(space.contains(action) for action in actions.values())
            seen.append(actions["right"])
            return super().step({"left": zoo.GO_ON})

    monkeypatch.setattr(zoo, "Keeper", Keeper, raising=False)
    env = make("tests.zoo:Keeper", num_envs=1)
    env.reset(0)
    values = [torch.full((1, 2), value) for value in (4, 9)]
    if space.shape:
        values = [torch.full((1, 2, 3), value) for value in (0.25, 0.5)]
    for value in values:
        env.step(value)
    np.testing.assert_array_equal(seen, [value[0, 1].numpy() for value in values])  # kept ones did not change


def test_same_seed_same_episodes_also_after_others():
    env = make("tests.zoo:Wanderers", num_envs=4)
    actions = random_actions(env, 30, 0)

    def play(seed):
        steps = [env.reset(seed), *(env.step(torch.from_numpy(a)) for a in actions)]
        return torch.stack([step.final_obs for step in steps])

    first = play(3)
    assert not torch.equal(first, play(4))
    assert not torch.equal(first, play(None))
    assert torch.equal(first, play(3))
    assert len({tuple(row) for row in first[0].flatten(1).tolist()}) == 4  # copies differ


def test_unseeded_envs_differ():
    first, second = (make("mpe2.simple_v3").reset() for _ in range(2))
    assert not torch.equal(first.obs, second.obs)


@settings(max_examples=50, deadline=None)
@given(st.sets(st.tuples(*[st.integers(0, 2**31 - 1)] * 3), min_size=2, max_size=20))
def test_seeds_of_episodes_are_valid_and_differ(keys):
    seeds = {episode_seed(*key) for key in keys}
    assert all(0 <= seed < 2**31 for seed in seeds) and len(seeds) >= len(keys) - 1


# ----------------------------------------------------------------------------------------------------------- refusals


DISCRETE, PICTURE = gym.spaces.Discrete, gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)
MASKED = gym.spaces.Dict({"observation": gym.spaces.Box(0, 1, (2,)), "action_mask": gym.spaces.MultiBinary(12)})


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("mpe2.simple_spread_v3", {"n_agents": 4}, "unexpected keyword argument 'n_agents'"),
        ("mpe2.simple_tag_v3", {}, "unlike observation spaces are not supported yet: adversary_0 has .* agent_0 has"),
        ("tests.zoo:with_spaces", {"actions": DISCRETE(3)}, r"unlike action .* left has .*12\), right has .*\(3\)"),
        ("tests.zoo:with_spaces", {"actions": DISCRETE(3, start=1)}, "actions of right are .* supported are"),
        ("tests.zoo:with_spaces", {"observations": PICTURE}, "right observes pictures, .*flatten_v0, in `wrappers`"),
        ("tests.zoo:with_spaces", {"observations": MASKED}, r"action masks \(in observations\) are not supported yet"),
        ("tests.zoo:Masked", {}, r"action masks \(in infos\) are not supported yet"),
        ("tests.zoo:Late", {}, "agents that join later are not supported yet: right is not there at reset"),
        ("tests.zoo:turns", {}, "agents act in turns"),
        ("tests.zoo:not_an_env", {}, "not_an_env returns .*, which is neither a ParallelEnv nor an AECEnv"),
        ("tests.zoo:Puppet", {"wrappers": ["frame_stack_v0"]}, "frame_stack_v0 is now deprecated, use frame_stack_v1"),
        ("tests.zoo:Puppet", {"wrappers": ["frame_stakc_v1"]}, "wrappers: 'frame_stakc_v1': cannot import"),
        ("tests.zoo:Puppet", {"wrappers": ["pettingzoo_env_to_vec_env_v1"]}, "MarkovVectorEnv, which is neither"),
        ("tests.zoo:Puppet", {"wrappers": [{"a": 1, "b": 2}]}, "each is a name, or one name with its arguments"),
        ("tests.zoo:Puppet", {"wrappers": "frame_stack_v1"}, "wrappers must be a list, not 'frame_stack_v1'"),
        ("tests.zoo:Puppet", {"num_workers": -1}, "num_workers must be"),
        ("tests.zoo:Puppet", {"on_crash": "ignore"}, "on_crash must be"),
        ("tests.zoo:Puppet", {"on_crash": "replace"}, "on_crash: replace needs worker processes"),
        ("tests.zoo:Puppet", {"step_timeout_s": 0}, "step_timeout_s must be"),
        ("classic.rps_v2", {"state": True}, r"state is true, but the env's state\(\) raised TypeError"),
    ],
)  # fmt: skip
def test_what_is_refused(name, config, message):
    with pytest.raises(envs.UnknownEnvError, match=message):
        make(name, **config)


def test_a_worker_refuses_as_well():
    with pytest.raises(envs.UnknownEnvError, match="agents that join later are not supported yet: right"):
        make("tests.zoo:Late", num_workers=1)


def test_states_that_are_no_vectors_are_used_when_asked_for():
    assert make("sisl.pursuit_v5", state=True).state_space.shape == (16 * 16 * 3,)
    assert make("mpe2.simple_v3", state=False).state_space is None


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (zoo.ONE_DIES, "copy 1: left ended before others did: agents that die or leave are not supported yet"),
        (zoo.ONE_TERMINATES, "copy 1: left ended before others did"),
        (zoo.FORGET, "copy 1: no observation of right: agents that die or leave are not supported yet"),
        (zoo.RAISE, r"copy 1, raised in step\(\): RuntimeError: the string\s+broke \(.*zoo.py:\d+\)"),
        (zoo.WIDEN, r"copy 1, raised in step\(\): ValueError: cannot reshape array"),
    ],
)
def test_what_goes_wrong_in_an_episode(action, message):
    env = puppets()
    env.reset(0)
    with pytest.raises(envs.EnvError, match=message):
        do(env, zoo.GO_ON, action, zoo.GO_ON)


# -------------------------------------------------------------------------------------------------------------- names


def test_names():
    names = zoo_envs.names()
    assert {"mpe2.simple_spread_v3", "sisl.multiwalker_v9", "sisl.pursuit_v5", "butterfly.pistonball_v6"} <= set(names)
    assert "pettingzoo/mpe2.simple_spread_v3" in envs.list_names("pettingzoo")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mpe2.simple_spread_v2", "no module 'mpe2.simple_spread_v2'; did you mean 'mpe2.simple_spread_v3'"),
        ("sisl.multiwalker_v8", "did you mean 'sisl.multiwalker_v9'"),
        ("mpe.simple_spread_v3", "did you mean 'mpe2.simple_spread_v3'"),
        ("no_such_package:make", "there is no module 'no_such_package'"),
        ("tests.zoo:no_such_env", "cannot be imported: .*no_such_env"),
        ("atari.pong_v3", r"it needs 'multi_agent_ale_py': pip install 'pettingzoo\[atari\]'"),
    ],
)
def test_names_that_cannot_be_imported(name, message):
    with pytest.raises(envs.UnknownEnvError, match=message):
        envs.resolve(f"pettingzoo/{name}")
