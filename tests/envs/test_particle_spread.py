"""Blind-Particle Spread equals a slow one-env simulation, agent by agent and coordinate by coordinate."""

import math

import pytest
import torch
from rllib_hypermarl.envs import particle_spread

from rllib_hypermarl import env as envs

GROUPS = {"1": [5, 5, 5], "2": [10, 10, 10], "3": [6, 6, 6, 6, 6], "4": [2, 2, 2, 15, 9]}


class SlowWorld:
    """One env of plain numbers, from the rules of the multi-agent particle env as PettingZoo 1.3.5 has them.

    Args:
        obs: `[N][4 + 2G]`, first observations, from which positions are read.
        groups: number of agents in each.
    """

    def __init__(self, obs, groups, reward_scale):
        self.position = [row[2:4] for row in obs]
        self.velocity = [[0.0, 0.0] for _ in obs]
        x, y = obs[0][2:4]
        self.landmarks = [[obs[0][4 + 2 * g] + x, obs[0][5 + 2 * g] + y] for g in range(len(groups))]
        self.group = [g for g, size in enumerate(groups) for _ in range(size)]
        self.reward_scale = reward_scale

    def step(self, actions):
        rewards = []
        for agent, action in enumerate(actions):
            force = [0.0, 0.0]
            if action in (1, 2):
                force[0] = 5.0 if action == 2 else -5.0
            elif action in (3, 4):
                force[1] = 5.0 if action == 4 else -5.0
            for axis in range(2):
                self.velocity[agent][axis] = 0.75 * self.velocity[agent][axis] + 0.1 * force[axis]
                self.position[agent][axis] += 0.1 * self.velocity[agent][axis]
            rewards.append(-self.reward_scale * math.dist(self.position[agent], self.landmarks[self.group[agent]]))
        return rewards

    def observe(self):
        rows = []
        for position, velocity in zip(self.position, self.velocity, strict=True):
            relative = [at - own for landmark in self.landmarks for at, own in zip(landmark, position, strict=True)]
            rows.append([*velocity, *position, *relative])
        return rows


def make(name="1", num_envs=3, **config):
    return envs.make(f"bps/{name}", num_envs=num_envs, **config)


def play(env, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield env.step(torch.randint(5, (env.num_envs, len(env.agents)), generator=generator))


def same(a, b):
    fields = ("obs", "final_obs", "reward", "terminated", "truncated")
    return all(torch.equal(getattr(a, field), getattr(b, field)) for field in fields)


@pytest.mark.parametrize(
    ("name", "config"),
    [*((name, {}) for name in GROUPS), ("1", {"groups": [1, 3], "reward_scale": 1.0, "max_steps": 7})],
    ids=str,
)
def test_equals_the_slow_simulation(name, config):
    env = make(name, **config)
    groups, steps = config.get("groups", GROUPS[name]), config.get("max_steps", 50)
    generator = torch.Generator().manual_seed(2)
    obs = env.reset(seed=1).obs
    assert obs.shape == (3, sum(groups), 4 + 2 * len(groups))
    for _ in range(2):  # episodes
        slow = [SlowWorld(rows.tolist(), groups, config.get("reward_scale", 0.5)) for rows in obs]
        assert (obs[..., :2] == 0).all()  # they start at rest
        for t in range(1, steps + 1):
            actions = torch.randint(5, (3, sum(groups)), generator=generator)
            step = env.step(actions)
            envs.StepCheck(env, "bps")(step)
            rewards = [world.step(row) for world, row in zip(slow, actions.tolist(), strict=True)]
            torch.testing.assert_close(step.reward, torch.tensor(rewards), rtol=1e-5, atol=1e-5)
            expected = torch.tensor([world.observe() for world in slow])
            torch.testing.assert_close(step.final_obs, expected, rtol=1e-5, atol=1e-5)
            assert step.truncated.tolist() == [t == steps] * 3 and not step.terminated.any()
            assert (step.obs is step.final_obs) == (t < steps)
            assert step.obs.transpose(0, 1).is_contiguous()
        obs = step.obs


def test_agents_and_landmarks_start_uniformly_in_their_squares():
    obs = make("3", num_envs=4000).reset(seed=0).obs
    position = obs[..., 2:4]
    landmarks = obs[:, 0, 4:].unflatten(-1, (5, 2)) + position[:, :1]
    for points, limit in ((position, 1.0), (landmarks, 3.0)):
        assert points.abs().max() <= limit
        spread = points.double().flatten(0, 1)
        # Mean 0 and variance limit^2 / 3, within five standard errors of so many points; both axes independent.
        error = 5 * limit**2 / len(spread) ** 0.5
        assert spread.mean(dim=0).abs().max() < error
        assert (torch.cov(spread.T) - torch.eye(2) * limit**2 / 3).abs().max() < error
    independent = torch.corrcoef(torch.cat([position.flatten(1), landmarks.flatten(1)], dim=1).T.double())
    assert (independent - torch.eye(len(independent))).abs().max() < 0.1


def test_an_observation_does_not_tell_the_group():
    """Agents of other groups in the same places see and do the same, and are paid otherwise."""
    one, other = make(groups=[2, 2]), make(groups=[3, 1])
    assert torch.equal(one.reset(seed=5).obs, other.reset(seed=5).obs)
    for a, b in zip(play(one, 20), play(other, 20), strict=True):
        assert torch.equal(a.obs, b.obs)
        assert torch.equal(a.reward[:, [0, 1, 3]], b.reward[:, [0, 1, 3]])
        assert not torch.equal(a.reward[:, 2], b.reward[:, 2])


def test_agents_are_called_by_their_groups():
    assert make("4").agents[:5] == ("group0_agent0", "group0_agent1", "group1_agent0", "group1_agent1", "group2_agent0")
    assert [sum(agent.startswith(f"group{g}_") for agent in make("4").agents) for g in range(5)] == GROUPS["4"]
    assert envs.list_names("bps") == ["bps/1", "bps/2", "bps/3", "bps/4"]


def test_a_seed_restarts_the_stream_and_none_goes_on():
    env, other = make(), make()
    first, second = env.reset(seed=3), env.reset()
    assert not torch.equal(first.obs, second.obs)
    assert same(first, other.reset(seed=3)) and same(second, other.reset())
    assert all(same(a, b) for a, b in zip(play(env, 120), play(other, 120), strict=True))
    assert not torch.equal(first.obs, env.reset(seed=4).obs)
    assert not torch.equal(make().reset().obs, make().reset().obs)  # unseeded envs differ


def test_the_global_random_stream_is_left_alone():
    before = torch.get_rng_state()
    env = make()
    env.reset(seed=0), env.reset()
    assert torch.equal(before, torch.get_rng_state())


def test_resumes_bit_for_bit():
    env, other = make("2"), make("2")
    env.reset(seed=0), other.reset(seed=9)
    list(play(env, 63, seed=1))
    state = env.get_state()
    ahead = list(play(env, 100, seed=2))
    other.set_state(state)
    assert all(same(a, b) for a, b in zip(ahead, play(other, 100, seed=2), strict=True))
    other.set_state(state)  # and it was not written into
    assert all(same(a, b) for a, b in zip(ahead, play(other, 100, seed=2), strict=True))


@pytest.mark.parametrize(
    "wrong",
    [
        {"groups": []}, {"groups": [5, 0]}, {"groups": [2.5]}, {"groups": 15}, {"max_steps": 0}, {"max_steps": 1.5},
        {"reward_scale": 0}, {"reward_scale": "half"}, {"n_agents": 4},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_configuration(wrong):
    with pytest.raises(envs.UnknownEnvError, match=next(iter(wrong))):
        make(**wrong)


@pytest.mark.parametrize(("name", "team_return"), [("bps/1", -203), ("bps/2", -404), ("bps/3", -404), ("bps/4", -404)])
def test_what_a_controller_gets_that_knows_its_landmark(name, team_return):
    """The figure that learned teams are compared with: it minimises its distance after each step."""
    env = envs.make(name, num_envs=4096)
    step, total = env.reset(0), 0.0
    own = env._group_of.view(1, -1, 1, 1).expand(4096, -1, 1, 2)
    for _ in range(env.max_episode_steps):
        velocity, landmarks = step.obs[..., :2], step.obs[..., 4:].unflatten(-1, (-1, 2))
        target = landmarks.gather(2, own).squeeze(2)
        moves = (velocity.unsqueeze(2) * (1 - particle_spread._DAMPING) + env._acceleration) * particle_spread._DT
        step = env.step((target.unsqueeze(2) - moves).norm(dim=-1).argmin(dim=-1))
        total += step.reward.sum(dim=1).mean().item()
    assert total == pytest.approx(team_return, rel=0.015)
