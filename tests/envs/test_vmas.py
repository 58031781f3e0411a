import random

import numpy as np
import pytest
import torch
from rllib_hypermarl.envs import vmas as vmas_envs
from rllib_hypermarl.envs.vmas_probe import why_inexact

from rllib_hypermarl import env as envs

vmas = pytest.importorskip("vmas")

DISPERSION = {"n_agents": 4, "n_food": 4, "penalise_by_time": True, "continuous_actions": False}
STAGGERED = DISPERSION | {"food_radius": 0.4, "pos_range": 0.5, "max_steps": 15}  # episodes end at different times
NAVIGATION = {"collisions": False, "observe_all_goals": True, "shared_rew": False}


def make(name="dispersion", num_envs=6, **config):
    return envs.make(f"vmas/{name}", num_envs=num_envs, **config)


def play(env, steps, seed=None, actions_seed=0, between=lambda: None):
    """Steps with random actions; returns the first step and all others."""
    generator = torch.Generator().manual_seed(actions_seed)
    space, shape = env.action_spaces[env.agents[0]], (env.num_envs, len(env.agents))
    result = [env.reset(seed)]
    for _ in range(steps):
        if hasattr(space, "n"):
            actions = torch.randint(0, int(space.n), shape, generator=generator)
        else:
            actions = torch.rand(*shape, *space.shape, generator=generator) * float(space.high.min())
        between()
        result.append(env.step(actions))
    return result


def same(a, b):
    fields = ("obs", "final_obs", "reward", "terminated", "truncated")
    return len(a) == len(b) and all(
        torch.equal(getattr(x, f), getattr(y, f)) for x, y in zip(a, b, strict=True) for f in fields
    )


# ---------------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("dispersion", DISPERSION),
        ("navigation", NAVIGATION | {"n_agents": 3}),
        ("wheel", {}),  # pays [E, 1]
        ("simple_reference", {"continuous_actions": False}),  # talks
    ],
)
def test_shapes(name, config):
    env = make(name, max_steps=3, **config)
    for step in play(env, 4, seed=0):
        envs.StepCheck(env, name)(step)
        assert step.obs.transpose(0, 1).is_contiguous()
        assert step.obs.dtype == step.reward.dtype == torch.float32
    assert env.max_episode_steps == 3
    assert env.get_state() is None


@pytest.mark.parametrize("continuous", [False, True])
def test_actions_stay_as_they_are(continuous):
    env = make(continuous_actions=continuous, clamp_actions=True)
    env.reset(0)
    actions = torch.full((6, 4, 2), 3.0) if continuous else torch.arange(24).view(6, 4) % 9
    before = actions.clone()
    env.step(actions)
    assert torch.equal(actions, before)


def test_time_truncates_and_success_terminates():
    steps = play(make(**DISPERSION, max_steps=4, food_radius=0.01), 9, seed=0)
    assert [int(s.truncated.sum()) for s in steps] == [0, 0, 0, 0, 6, 0, 0, 0, 6, 0]
    assert not any(s.terminated.any() for s in steps)
    ended = steps[4]
    assert (ended.obs[..., :4] == 0).all()  # all start at the origin
    assert (ended.final_obs[..., :2] != 0).any()
    assert steps[3].final_obs is steps[3].obs
    step = play(make(**DISPERSION, food_radius=3.0), 1, seed=0)[-1]
    assert step.terminated.all()
    assert not step.truncated.any()


def test_steps_do_not_change_later():
    env = make(**STAGGERED)
    steps = play(env, 20, seed=0)
    assert same(steps, play(make(**STAGGERED), 20, seed=0))


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("dispersion", {"n_foods": 4}, "'n_foods': 4"),
        ("dispersion", {"max_steps": "long"}, "max_steps must be"),
        ("dispersion", {"n_agents": "four"}, "refuses env_config"),
        ("dispersion", {"seed": 1}, "seed: belongs to"),
        ("dispersion", {"terminated_truncated": False}, "terminated_truncated: not to be set"),
        ("navigation", {"n_agents": 2, "agents_with_same_goal": 3}, "1 <= self.agents_with_same_goal"),
    ],
)
def test_wrong_configuration(name, config, message):
    with pytest.raises(envs.UnknownEnvError, match=message):
        make(name, **config)


def test_names():
    names = vmas_envs.names()
    assert {"dispersion", "navigation", "simple_spread", "waterfall"} <= set(names)
    assert set(names) >= vmas_envs.EXACT_POOL_RESETS


@pytest.mark.parametrize("name", ["simple_tag", "diff_drive", "simple_speaker_listener", "simple_adversary"])
@pytest.mark.parametrize("continuous", [True, False])
def test_agents_with_unlike_spaces_get_their_own_parts(name, continuous):
    """Observations are VMAS's, filled up with zeros; of actions an agent gets as many as its space has."""
    env, steps = make(name, max_steps=4, continuous_actions=continuous), 6
    theirs = vmas.make_env(name, env.num_envs, max_steps=4, continuous_actions=continuous, seed=0)
    sizes = [env.observation_spaces[agent].shape[0] for agent in env.agents]
    first = env.reset(0)
    for n, obs in enumerate(theirs.reset(seed=0)):
        assert torch.equal(first.obs[:, n, : sizes[n]], obs)
        assert not first.obs[:, n, sizes[n] :].any()
    width = max(space.shape[0] if space.shape else 1 for space in env.action_spaces.values())
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        if continuous:
            actions = torch.rand(env.num_envs, len(env.agents), width, generator=generator) * 0.1
        else:
            actions = torch.zeros(env.num_envs, len(env.agents), dtype=torch.int64)
        step = env.step(actions)
        envs.StepCheck(env, name)(step)
        for n, size in enumerate(sizes):
            assert not step.obs[:, n, size:].any() and not step.final_obs[:, n, size:].any()
            assert step.obs[:, n, :size].any()


def test_own_scenario():
    scenario = type(vmas.make_env("dispersion", 1).scenario)
    env = vmas_envs.VmasEnv(scenario, 3, max_steps=5, n_agents=2)
    envs.StepCheck(env, "own")(env.reset())
    assert env.agents == ("agent_0", "agent_1")


# -------------------------------------------------------------------------------------------------------- randomness


@pytest.mark.parametrize("fast_resets", [True, False])
def test_same_seed_same_episodes(fast_resets):
    config = STAGGERED | {"fast_resets": fast_resets}
    env = make(**config)
    first = play(env, 40, seed=5)
    ends = [int((s.terminated | s.truncated).sum()) for s in first]
    assert sum(0 < n < 6 for n in ends) > 5
    assert same(first, play(env, 40, seed=5))
    assert same(first, play(make(**config), 40, seed=5))
    assert not same(first, play(env, 40, seed=6))
    assert not same(first, play(env, 40))


def test_other_envs_and_random_numbers_do_not_disturb():
    def disturb():
        other.step(torch.zeros(4, 4, dtype=torch.int64))
        torch.rand(3), np.random.rand(3), random.random()

    env, other = make(**STAGGERED), make(num_envs=4, **STAGGERED)
    alone = play(env, 30, seed=1)
    other.reset(1)
    assert same(alone, play(env, 30, seed=1, between=disturb))


def test_global_random_numbers_are_not_disturbed():
    def numbers():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    def seed():
        torch.manual_seed(0), np.random.seed(0), random.seed(0)

    seed()
    expected = numbers()
    seed()
    play(make(**STAGGERED), 20, seed=1)
    assert numbers() == expected


def test_envs_without_a_seed_differ():
    a, b = make(**DISPERSION).reset(), make(**DISPERSION).reset()
    assert not torch.equal(a.obs, b.obs)


# ------------------------------------------------------------------------------------------------------------ resets


@pytest.mark.parametrize("fast_resets", [True, False])
def test_only_ended_envs_restart(fast_resets):
    env = make(**STAGGERED, fast_resets=fast_resets)
    steps = play(env, 60, seed=2)
    length, starts = torch.zeros(6, dtype=torch.int64), []
    for step in steps[1:]:
        length += 1
        ended = step.terminated | step.truncated
        assert torch.equal(step.truncated, length == 15)
        assert torch.equal(step.obs[~ended], step.final_obs[~ended])
        assert (step.obs[ended][..., :4] == 0).all()
        food = step.obs[:, 0, 4:].view(6, 4, 3)
        assert (food[ended][..., 2] == 0).all()  # not eaten
        starts += food[ended].flatten(1).tolist()
        length[ended] = 0
    assert len({tuple(start) for start in starts}) == len(starts) > 20


def test_more_restarts_than_the_pool_has_rows():
    env = make(**DISPERSION, num_envs=5)
    env.reset(0)
    pool = vmas_envs.ResetPool(env._env, env.make_vmas())
    obs = torch.zeros(4, 5, 16)
    first = pool.restart(torch.arange(3), obs)
    second = pool.restart(torch.tensor([4, 1, 0]), first)
    assert torch.equal(second[:, 2], first[:, 2])
    assert not second[:, 3].any()
    now = env._env.get_from_scenario(True, False, False, False)[0]
    assert torch.equal(torch.stack(now)[:, [0, 1, 2, 4]], second[:, [0, 1, 2, 4]])


def test_shared_goals_stay_shared():
    env = make("navigation", **NAVIGATION, agents_with_same_goal=4, fast_resets=True)
    env.reset(0)
    ended = torch.tensor([True, False, True, False, False, False])
    env._restart(ended, env.step(torch.zeros(6, 4, 2)).obs)
    goals = [agent.goal.state.pos for agent in env._env.agents]
    assert all(goal is goals[0] for goal in goals)


def test_scenario_whose_rows_cannot_be_exchanged():
    env = make("ball_passage", fast_resets=True)
    env.reset(0)
    with pytest.raises(envs.EnvError, match="set fast_resets to false"):
        for _ in range(20):  # it shuffles its passages; once in a while they lie as in the pool
            env._restart(torch.arange(6) < 1, env.reset().obs)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("dispersion", DISPERSION | {"food_radius": 0.3}),
        ("navigation", NAVIGATION),
        ("navigation", NAVIGATION | {"agents_with_same_goal": 2}),
        ("navigation", NAVIGATION | {"agents_with_same_goal": 2, "split_goals": True}),
        ("simple_spread", {}),
        ("simple_push", {}),
        ("football", {}),
        ("het_mass", {}),
    ],
)
def test_fast_resets_are_exact_where_they_are_used(name, config):
    assert (why_inexact(name, **config) is None) == (name in vmas_envs.EXACT_POOL_RESETS)
