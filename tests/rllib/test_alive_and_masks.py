"""Agents that die or come later, and actions that are not allowed: what counts, is bootstrapped, and is learnt."""

import dataclasses
import itertools
import math

import pytest
import torch

from rllib_hypermarl import HyperMARLConfig
from rllib_hypermarl.errors import EnvError
from rllib_hypermarl.losses import standardise
from rllib_hypermarl.nets import SHARING
from rllib_hypermarl.rllib.learner import _rows
from rllib_hypermarl.rllib.sequences import values_and_advantages
from rllib_hypermarl.rollout import join, split
from tests import oracle
from tests.helpers import weights
from tests.mortal_env import ACTIONS, AGENTS, MortalEnv

pytestmark = pytest.mark.usefixtures("ray_session")


def build(env_config=None, **hypermarl):
    return (
        HyperMARLConfig()
        .environment(MortalEnv, env_config=env_config or {})
        .hypermarl(actor_hidden=[16], critic_hidden=[16], hypernet_hidden=[8], **hypermarl)
        .training(lr=1e-2, num_epochs=2, minibatch_size=64, train_batch_size_per_learner=160)
        .env_runners(num_envs_per_env_runner=16, rollout_fragment_length=10)
        .run(seed=3, torch_threads=1, device="cpu")
        .build_algo()
    )


@pytest.fixture(scope="module")
def rollout():
    algo = build()
    rollout = algo.env_runner.sample()
    algo.stop()
    return rollout


def replayed(rollout):
    """The steps of an env of the same seed that is told the same actions, the first one too."""
    env = MortalEnv(16)
    steps = [env.reset(3)]
    return steps + [env.step(rollout.actions[:, t].T) for t in range(10)]


def test_a_rollout_says_who_acted_and_who_died_and_nothing_of_the_others(rollout):
    steps = replayed(rollout)
    assert 0 < rollout.died.sum() < rollout.alive.sum() < rollout.alive.numel()
    assert rollout.agent_steps() == rollout.alive.sum()
    for t, (before, step) in enumerate(itertools.pairwise(steps)):
        assert torch.equal(rollout.alive[:, t], before.alive.T)
        assert torch.equal(rollout.died[:, t], (before.alive & ~step.final_alive).T)
        for n in range(len(AGENTS)):
            here = before.alive[:, n]
            assert torch.equal(rollout.obs[n, t][here], before.obs[:, n][here])
            assert torch.equal(rollout.reward[n, t][here], step.reward[:, n][here])
            assert rollout.action_mask[n, t][~here].all()
            assert torch.equal(rollout.action_mask[n, t][here], before.action_mask[:, n][here])
            for field in ("obs", "reward"):
                assert not getattr(rollout, field)[n, t][~here].any()
    allowed = rollout.action_mask.gather(-1, rollout.actions.unsqueeze(-1))
    assert allowed.all()
    for x in (rollout.obs, rollout.logp, rollout.reward, rollout.last_obs, rollout.final_obs):
        assert torch.isfinite(x).all()


@pytest.mark.parametrize("cuts", [0.0, 0.2])
def test_a_death_ends_an_agent_s_return_and_time_does_not(cuts):
    algo = build({"cuts": cuts})
    rollout = algo.env_runner.sample()
    assert rollout.cut.any() == (cuts > 0) and not (rollout.cut & rollout.died).any()
    learner = algo.learner_group._learner
    value, advantage = values_and_advantages(learner.net, rollout, learner.config)
    net = algo.env_runner.net
    generated = net.generate("critic")
    last = net.value(rollout.last_obs, None, generated)
    final = torch.zeros_like(value).flatten(1)
    final[:, rollout.final_index] = net.value(rollout.final_obs, None, generated).detach()
    final = final.view_as(value)
    for n in range(len(AGENTS)):
        ends = rollout.terminated | rollout.died[n], rollout.truncated | rollout.cut[n]
        one = slice(n, n + 1)
        expected = oracle.advantages(rollout.reward[one], value[one], last[one], final[one], *ends, 0.99, 0.95)[0]
        here = rollout.alive[n]
        torch.testing.assert_close(advantage[n][here], expected[here], rtol=1e-5, atol=1e-6)
    algo.stop()


@pytest.mark.parametrize("standard", [True, False])
@pytest.mark.parametrize("critic", ["independent", "central"])
@pytest.mark.parametrize("sharing", SHARING)
def test_the_loss_is_the_mean_over_rows_of_agents_that_were_alive(rollout, sharing, critic, standard):
    algo = build(sharing=sharing, critic=critic, standardise_advantages=standard)
    learner = algo.learner_group._learner
    value, advantage = values_and_advantages(learner.net, rollout, learner.config)
    net, here = learner.net, rollout.alive.flatten(1, 2)
    generated = net.generate()
    obs, actions = rollout.obs.flatten(1, 2), rollout.actions.flatten(1, 2)
    dist = net.policy(obs, generated, rollout.action_mask.flatten(1, 2))
    rows = (dist.log_prob(actions), dist.entropy(), net.value(obs, None, generated), rollout.logp, value, advantage)
    logp, entropy, now, old_logp, old_value, adv = (x.flatten(1)[here] for x in rows)
    config = algo.config.loss_config(entropy_coeff=0.01)
    used = standardise(adv) if standard else adv
    expected, expected_stats = oracle.ppo_loss(logp, entropy, now, old_logp, old_value, used, adv + old_value, config)
    statistics = next(learner._statistics(advantage.flatten(1), here, [(torch.arange(here.shape[1]),)]))
    loss, stats = learner._loss(_rows(rollout, value, advantage), statistics, config)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    for name, stat in expected_stats.items():
        torch.testing.assert_close(stats[name].float(), stat.float(), rtol=1e-4, atol=1e-5, msg=name)
    oracle.assert_same(oracle.gradients(loss, net), oracle.gradients(expected, net), 1e-4)
    algo.stop()


@pytest.mark.parametrize(
    "more",
    [{}, {"normalise_obs": True, "normalise_values": True}, {"memory": "lstm", "memory_size": 4, "sequence_length": 5}],
    ids=["plain", "normalised", "memory"],
)
def test_what_is_said_of_agents_that_are_not_alive_touches_nothing(more):
    learned = []
    for disturbed in (False, True):
        algo = build(**more)
        data = algo.env_runner.sample()  # the same ones both times
        if disturbed:
            generator = torch.Generator().manual_seed(0)
            for name in ("obs", "logp", "reward"):
                x = getattr(data, name)
                noise = torch.randn(x.shape, generator=generator)
                here = data.alive if x.dim() == 3 else data.alive.unsqueeze(-1)
                setattr(data, name, torch.where(here, x, noise))
            data.actions = torch.where(data.alive, data.actions, (data.actions + 1) % ACTIONS)
        before = weights(algo)
        algo.learner_group.update(batch=data, timesteps={})
        learned.append(weights(algo))
        assert any(not torch.equal(before[name], x) for name, x in learned[-1].items())
        algo.stop()
    for name, x in learned[0].items():
        assert torch.equal(x, learned[1][name]), name


def test_frozen_policies_and_dead_agents_go_together():
    algo = build(frozen=["second"])
    result = algo.train()
    assert math.isfinite(result["learners"]["hyper"]["total_loss"])
    algo.stop()


@pytest.mark.parametrize("sharing", ["hyper_mlp", "full"])
def test_a_team_that_dies_learns_and_its_returns_count_while_it_lives(sharing):
    algo = build(sharing=sharing)
    first = algo.train()["env_runners"]
    for _ in range(25):
        last = algo.train()
    returns = algo.evaluate()["env_runners"]
    algo.stop()
    # Half of the time the one allowed action of two is right by chance; an agent lives for some four steps.
    assert 0.5 < first["agent_return_mean"] < 3
    assert last["env_runners"]["agent_return_mean"] > 1.5 * first["agent_return_mean"]
    assert returns["agent_return_mean"] > 1.5 * first["agent_return_mean"]
    assert last["env_runners"]["agent_episode_returns_mean"]["late"] < 7


def test_an_agent_that_may_do_nothing_is_named():
    algo = build({"blocked": True})
    with pytest.raises(EnvError, match=r"allows no action to agent '\w+' in sub-env 1, step 2"):
        algo.train()
    algo.stop()


def test_a_team_without_masks_may_die_too():
    algo = build({"masks": False})
    assert algo.env_runner.sample().action_mask is None
    algo.stop()


def test_rollouts_of_mortals_are_split_and_joined(rollout):
    again = join(split(rollout, 4))
    for field in dataclasses.fields(rollout):
        a, b = getattr(again, field.name), getattr(rollout, field.name)
        if field.name not in ("final_obs", "final_index"):
            assert (a is None and b is None) or torch.equal(a, b), field.name
