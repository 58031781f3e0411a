import itertools

import pytest
import torch

from rllib_hypermarl import env as envs


def make(game, n=2, horizon=10, num_envs=3):
    return envs.make(f"games/{game}", num_envs=num_envs, n_agents=n, horizon=horizon)


def payoffs(game, joint):
    """The paper's formulas, agent by agent."""
    n, counts = len(joint), [sum(other == own for other in joint) for own in joint]
    return [1 / k if game == "specialisation" else 1 / (n - k + 1) for k in counts]


@pytest.mark.parametrize("game", ["specialisation", "synchronisation"])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_payoffs_of_every_joint_action(game, n):
    joint_actions = list(itertools.product(range(n), repeat=n))
    env = make(game, n, num_envs=len(joint_actions))
    env.reset()
    reward = env.step(torch.tensor(joint_actions)).reward
    torch.testing.assert_close(reward, torch.tensor([payoffs(game, joint) for joint in joint_actions]))


def test_what_is_best():
    together, apart = torch.zeros(1, 4, dtype=torch.int64), torch.arange(4)[None]
    for game, best, worst in (("specialisation", apart, together), ("synchronisation", together, apart)):
        env = make(game, 4, num_envs=1)
        assert env.step(best).reward.tolist() == [[1.0] * 4]
        assert env.step(worst).reward.tolist() == [[0.25] * 4]


def test_observation_is_the_last_joint_action():
    env = make("specialisation", 3, num_envs=2)
    first = env.reset()
    envs.StepCheck(env, "game")(first)
    assert (first.obs == -1).all()
    step = env.step(torch.tensor([[0, 1, 2], [2, 2, 0]]))
    expected = torch.tensor([[1, 0, 0, 0, 1, 0, 0, 0, 1], [0, 0, 1, 0, 0, 1, 1, 0, 0]]).float()
    for agent in range(3):
        assert torch.equal(step.obs[:, agent], expected)
    assert step.final_obs is step.obs
    assert step.obs.transpose(0, 1).is_contiguous()


@pytest.mark.parametrize("horizon", [1, 10])
def test_episodes_terminate_at_the_horizon(horizon):
    env = make("synchronisation", 2, horizon)
    env.reset()
    actions = torch.tensor([[0, 1]] * 3)
    for t in range(1, 3 * horizon + 1):
        step = env.step(actions)
        envs.StepCheck(env, "game")(step)
        ended = t % horizon == 0
        assert step.terminated.tolist() == [ended] * 3
        assert not step.truncated.any()
        assert (step.obs == -1).all() == ended
        assert (step.final_obs[:, 0] == torch.tensor([1.0, 0, 0, 1])).all()


def test_resumes_bit_for_bit():
    actions = torch.randint(0, 4, (40, 3, 4), generator=torch.Generator().manual_seed(0))
    env, other = make("specialisation", 4, 7), make("specialisation", 4, 7)
    env.reset(), other.reset()
    for action in actions[:17]:
        env.step(action)
    other.set_state(env.get_state())
    for action in actions[17:]:
        a, b = env.step(action), other.step(action)
        for field in ("obs", "final_obs", "reward", "terminated", "truncated"):
            assert torch.equal(getattr(a, field), getattr(b, field))


@pytest.mark.parametrize("wrong", [{"n_agents": 1}, {"n_agents": 2.5}, {"horizon": 0}, {"agents": 4}])
def test_wrong_configuration(wrong):
    with pytest.raises(envs.UnknownEnvError, match=next(iter(wrong))):
        envs.make("games/specialisation", num_envs=2, **wrong)
