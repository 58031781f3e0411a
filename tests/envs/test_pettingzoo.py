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
from tests.envs.pettingzoo_reference import compare, play, reference, turns_reference

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
    # agents that differ
    ("mpe2.simple_speaker_listener_v4", {"max_cycles": 6}, (False, True), True),
    ("mpe2.simple_speaker_listener_v4", {"continuous_actions": True, "max_cycles": 5}, (False, True), True),
    ("mpe2.simple_adversary_v3", {"max_cycles": 6}, (False, True), True),
    ("mpe2.simple_tag_v3", {"max_cycles": 6}, (False, True), True),
    ("mpe2.simple_crypto_v3", {"max_cycles": 6}, (False, True), True),
    ("mpe2.simple_world_comm_v3", {"max_cycles": 6}, (False, True), True),
    # agents that come and go
    ("butterfly.knights_archers_zombies_v11", {"line_death": True, "max_cycles": 115}, (False, True), False),
    ("tests.zoo:Travellers", {}, (True, True), True),
    ("tests.zoo:Travellers", {"continuous": True}, (True, True), True),
    # and are told what they may do
    ("tests.zoo:Travellers", {"masks": "observation"}, (True, True), True),
    ("tests.zoo:Travellers", {"masks": "info"}, (True, True), True),
]
IDS = ["-".join([name, *(f"{key}={kwargs[key]}" for key in kwargs if key.startswith(("cont", "masks")))])
       for name, kwargs, *_ in ENVS]  # fmt: skip
GAMES = ["tictactoe_v3", "connect_four_v3"]
STEPS = 30
FORGETFUL = "butterfly.knights"  # in whose weapons something of the last episode is left


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


def equals_pettingzoo(env, name, kwargs, with_state, seed):
    """Returns what `compare` counts."""
    actions, steps = play(env, seed, 4 * STEPS if name.startswith(FORGETFUL) else STEPS)
    check = envs.StepCheck(env, name)
    for step in steps:
        check(step)
    masked, anew = bool(kwargs.get("masks")), not name.startswith(FORGETFUL)
    return compare(steps, reference(original(name, kwargs), seed, actions, with_state, masked, anew))


@pytest.mark.parametrize(("name", "kwargs", "ends", "with_state"), ENVS, ids=IDS)
def test_equals_pettingzoo_step_by_step(name, kwargs, ends, with_state):
    env = make(name, **kwargs)
    seen, examples = np.zeros(3, dtype=int), 1 if name.startswith(FORGETFUL) else 3
    assert (env.state_space is not None) == with_state

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(seed=st.integers(0, 2**31 - 1))
    def check(seed):
        nonlocal seen
        seen += equals_pettingzoo(env, name, kwargs, with_state, seed)

    check()
    assert tuple(seen[:2] > 0) == ends
    assert (seen[2] > 0) == (name.startswith("butterfly") or name.endswith("Travellers"))
    env.close()


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("seed", [0, 7])
def test_equals_pettingzoo_turn_by_turn(name, seed):
    """Against PettingZoo's AEC interface, not against its conversion."""
    env = make(f"classic.{name}", num_envs=3)
    actions, steps = play(env, seed, 60)
    game = importlib.import_module(f"pettingzoo.classic.{name}").env
    ended, cut, absent = compare(steps, turns_reference(game, seed, actions))
    assert ended >= 3 and not cut and not absent
    assert any(step.reward.any() for step in steps)
    for step in steps:  # one of them moves, the other has one thing to do
        assert (step.action_mask[..., 1:].any(-1).sum(1) <= 1).all() and step.action_mask.any(-1).all()


def test_with_workers():
    for name, kwargs, _, with_state in (ENVS[1], ENVS[-1]):
        env = make(name, num_envs=5, num_workers=2, **kwargs)
        for seed in (0, 7):
            equals_pettingzoo(env, name, kwargs, with_state, seed)
        env.close()


def test_an_aec_env_equals_its_own_agents_steps():
    """Against PettingZoo's loop over agents, not against its conversion."""
    env = make("tests.zoo:aec_spread", num_envs=1, max_cycles=4)
    actions, (step, *steps) = play(env, 3, 6)
    aec = zoo.aec_spread(max_cycles=4)
    for t in range(6):
        if t % 4 == 0:
            aec.reset(seed=episode_seed(3, 0, t // 4))
            np.testing.assert_array_equal(step.obs[0], [aec.observe(agent) for agent in env.agents])
        for n, agent in enumerate(aec.agents):
            assert (aec.agent_selection, agent) == (agent, env.agents[n])
            aec.step(actions[t, 0, n])
        step = steps[t]
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
    actions, steps = play(env, 5, 8)
    compare(steps, reference(wrapped, 5, actions, True))


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
    actions, _ = play(env, 0, 30)

    def played(seed):
        steps = [env.reset(seed), *(env.step(torch.from_numpy(a)) for a in actions)]
        return torch.stack([step.final_obs for step in steps])

    first = played(3)
    assert not torch.equal(first, played(4))
    assert not torch.equal(first, played(None))
    assert torch.equal(first, played(3))
    assert len({tuple(row) for row in first[0].flatten(1).tolist()}) == 4  # copies differ


def test_unseeded_envs_differ():
    first, second = (make("mpe2.simple_v3").reset() for _ in range(2))
    assert not torch.equal(first.obs, second.obs)


@settings(max_examples=50, deadline=None)
@given(st.sets(st.tuples(*[st.integers(0, 2**31 - 1)] * 3), min_size=2, max_size=20))
def test_seeds_of_episodes_are_valid_and_differ(keys):
    seeds = {episode_seed(*key) for key in keys}
    assert all(0 <= seed < 2**31 for seed in seeds) and len(seeds) >= len(keys) - 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_agents_that_ended_but_stay_in_agents_are_gone(num_workers):
    env = make("tests.zoo:Sloppy", num_envs=3, num_workers=num_workers)
    env.reset(0)
    step = do(env, zoo.GO_ON, zoo.ONE_DIES, zoo.ONE_TERMINATES)
    assert step.reward.tolist() == [[1.0, -0.5]] * 3
    assert step.alive.tolist() == [[True, True], [False, True], [True, True]]
    assert step.final_alive.tolist() == [[True, True], [False, True], [False, True]]  # then, right's time is up
    assert step.truncated.tolist() == [False, False, True] and not step.terminated.any()
    assert step.obs[..., 1].tolist() == [[1, -1], [0, -1], [0, 0]]
    assert step.final_obs[..., 1].tolist() == [[1, -1], [0, -1], [0, -1]]
    step = do(env, zoo.GO_ON, zoo.GO_ON, zoo.GO_ON)
    assert step.reward.tolist() == [[2.0, -0.5], [0.0, -0.5], [1.0, -0.5]]
    assert step.alive.tolist() == step.final_alive.tolist() == [[True, True], [False, True], [True, True]]
    step = do(env, zoo.GO_ON, zoo.TRUNCATE, zoo.GO_ON)
    assert step.truncated.tolist() == [False, True, False]
    assert step.alive.all() and step.final_alive.tolist() == [[True, True], [False, True], [True, True]]
    assert do(env, zoo.GO_ON, zoo.GO_ON, zoo.GO_ON).alive is None
    env.close()


# ----------------------------------------------------------------------------------------------------------- refusals


DISCRETE, PICTURE, BOX = gym.spaces.Discrete, gym.spaces.Box(0, 255, (8, 8, 3), np.uint8), gym.spaces.Box(0, 1, (2,))
MASKED = gym.spaces.Dict({"observation": BOX, "action_mask": gym.spaces.MultiBinary(9)})


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("mpe2.simple_spread_v3", {"n_agents": 4}, "unexpected keyword argument 'n_agents'"),
        ("tests.zoo:with_spaces", {"actions": BOX}, r"left \(Discrete\(13\)\) and right \(Box.* all continuous or all"),
        ("tests.zoo:with_spaces", {"actions": DISCRETE(3, start=1)}, "actions of right are .* supported are"),
        ("tests.zoo:with_spaces", {"observations": PICTURE}, "right observes pictures, .*flatten_v0, in `wrappers`"),
        ("tests.zoo:with_spaces", {"observations": MASKED}, "mask of right has 9 entries, its actions are"),
        ("tests.zoo:Masked", {"size": 9}, r"the action mask of left has 9 entries, its actions are Discrete\(13\)"),
        ("tests.zoo:TurnsInFloats", {}, "agents act in turns, and actions of a are Box"),
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
    with pytest.raises(envs.UnknownEnvError, match="the action mask of left has 9 entries"):
        make("tests.zoo:Masked", size=9, num_workers=1)


@pytest.mark.parametrize(
    ("agents", "message"),
    [
        (("left", "right"), "copy 0: no observation of right, which is among the env's agents"),
        (("left", "nobody"), "copy 0: nobody is among the env's agents, but not among its possible_agents"),
        ((), "copy 0: an episode begins without agents"),
    ],
)
def test_agents_that_are_not_there_as_they_should_be(agents, message):
    with pytest.raises(envs.EnvError, match=message):
        make("tests.zoo:Absent", agents=agents).reset(0)


def test_masks_that_come_late_are_not_passed_over():
    env = make("tests.zoo:Masked", since=2)
    env.reset(0)
    do(env, zoo.GO_ON, zoo.GO_ON)
    with pytest.raises(envs.EnvError, match="infos have action masks, but those of the first reset had none"):
        do(env, zoo.GO_ON, zoo.GO_ON)


def test_states_that_are_no_vectors_are_used_when_asked_for():
    assert make("sisl.pursuit_v5", state=True).state_space.shape == (16 * 16 * 3,)
    assert make("mpe2.simple_v3", state=False).state_space is None


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (zoo.VANISH, "copy 1: right is among the env's agents no more, but neither terminated nor truncated"),
        (zoo.FORGET, "copy 1: no observation of right, which is among the env's agents"),
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
