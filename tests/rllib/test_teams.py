"""A team that gets one more policy, or freezes one; and what a checkpoint keeps of it."""

import dataclasses

import pytest
import torch
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from rllib_hypermarl.errors import ConfigError
from rllib_hypermarl.nets import SHARING
from rllib_hypermarl.rllib import checkpoints
from rllib_hypermarl.rllib.env_runner import BatchedEnvRunner
from rllib_hypermarl.rllib.sequences import values_and_advantages
from tests import oracle
from tests.helpers import weights
from tests.teams import EVALUATING, act, actor_of, adam, build, goes_on_from, learner, runners_agree, sides

pytestmark = pytest.mark.usefixtures("ray_session")

MODES = [f"hypermarl.sharing={sharing}" for sharing in SHARING] + ["hypermarl.critic=central"]


# ---------------------------------------------------------------------------------------------------------- add_policy


@pytest.mark.parametrize("like", [None, "agent_1"])
@pytest.mark.parametrize("mode", MODES)
def test_a_new_policy_leaves_the_others_as_they_are(mode, like):
    algo = build(mode, *EVALUATING)
    algo.train()
    (probs, values), moments = act(algo), adam(algo)
    before = learner(algo).net
    algo.add_policy("scout", "agent_2", like=like)
    net = learner(algo).net
    assert net.spec.policies == ("agent_0", "agent_1", "scout", "agent_3")
    assert runners_agree(algo)
    now = act(algo)
    others = [0, 1, 3]
    assert torch.equal(now[0][others], probs[others])
    assert torch.equal(now[1][others], values[others])
    moved = not torch.equal(now[0][2], probs[2])
    assert moved == (mode != "hypermarl.sharing=full")
    if like:
        assert all(torch.equal(*pair) for pair in zip(actor_of(net, 2), actor_of(net, 1), strict=True))

    axes, after = net.policy_axes(), adam(algo)
    assert after.keys() == moments.keys() == dict(before.named_parameters()).keys()
    for name, slots in after.items():
        assert slots["step"] == moments[name]["step"] == 8  # 2 epochs of 4 minibatches
        for key in ("exp_avg", "exp_avg_sq"):
            new, old = slots[key], moments[name][key]
            if name in axes:
                dim, first = axes[name]
                assert new.select(dim, first + 2).abs().max() == 0
                kept = [i for i in range(new.shape[dim]) if i != first + 2]
                new, old = (x.index_select(dim, torch.tensor(kept)) for x in (new, old))
            assert torch.equal(new, old)
    algo.train()
    assert not torch.equal(act(algo)[0], now[0])
    assert algo.evaluate()["env_runners"]["num_episodes"] == 3
    algo.stop()


@pytest.mark.parametrize("mode", MODES)
def test_the_next_update_is_the_one_that_the_old_team_would_have_made(mode):
    """A new policy that is a copy of the one its agent had before: nothing differs but Adam's memory of it."""
    one_step = ("training.num_epochs=1", "training.minibatch_size=128")
    algo, twin = build(mode, *one_step), build(mode, *one_step)
    for either in (algo, twin):
        either.train()
    algo.add_policy("scout", ["agent_2"], like="agent_2")
    ours, theirs = (either.train()["learners"]["hyper"] for either in (algo, twin))
    for key in ("total_loss", "entropy", "gradients_default_optimizer_global_norm"):
        assert ours[key] == theirs[key]
    net, axes = learner(algo).net, learner(algo).net.policy_axes()
    expected = dict(learner(twin).net.named_parameters())
    for name, value in net.named_parameters():
        other = expected[name]
        if name in axes:
            dim, first = axes[name]
            kept = torch.tensor([i for i in range(value.shape[dim]) if i != first + 2])
            new = [x.select(dim, first + 2) for x in (value, other)]
            assert not torch.equal(*new)
            value, other = (x.index_select(dim, kept) for x in (value, other))
        assert torch.equal(value, other), name
    algo.stop()
    twin.stop()


@pytest.mark.parametrize("mode", ["hypermarl.sharing=hyper_mlp", "hypermarl.sharing=hyper_linear"])
def test_a_team_of_one_policy_grows_policy_by_policy(mode):
    algo = build(mode, "policies={team: '*'}")
    algo.train()
    probs, values = act(algo)
    algo.add_policy("left", ["agent_0", "agent_3"])
    algo.add_policy("right", "agent_1", like="left")
    assert learner(algo).net.spec.policies == ("left", "right", "team")
    assert learner(algo).net.spec.agent_policies == (0, 1, 2, 0)
    now = act(algo)
    torch.testing.assert_close(now[0][2], probs[2])
    torch.testing.assert_close(now[1][2], values[2])
    assert not torch.allclose(now[0][0], probs[0])
    assert len(learner(algo).get_optimizers_for_module("hyper")) == 1
    algo.train()
    algo.stop()


def test_a_grown_team_is_saved_restored_and_grown_again(tmp_path):
    algo = build(*EVALUATING)
    algo.train()
    algo.add_policy("scout", ["agent_2"])
    algo.train()
    checkpoint = checkpoints.save(algo, tmp_path)
    assert goes_on_from(checkpoint, algo)
    restored = checkpoints.load(checkpoint)
    assert restored.config.policy_patterns == {"scout": ["agent_2"], "*": "own"}
    restored.add_policy("guard", "agent_3", like="scout")
    restored.freeze_policy("scout")
    restored.train()
    assert goes_on_from(checkpoints.save(restored, tmp_path), restored)
    algo.stop()
    restored.stop()


def test_a_seedless_run_grows_too():
    algo = build("run.seed=null")
    algo.add_policy("scout", "agent_2")
    assert runners_agree(algo)
    algo.stop()


def test_a_runner_that_knows_the_old_team_only_takes_over_the_new_one():
    """A remote runner that Ray restarts is made from the config of the first hour."""
    algo = build()
    first = algo.config
    algo.train()
    algo.add_policy("scout", "agent_2")
    algo.freeze_policy("agent_0")
    late = BatchedEnvRunner(config=first)
    assert late.net.spec != algo.env_runner.net.spec
    late.set_state(algo.env_runner.get_state())
    assert late.net.spec == algo.env_runner.net.spec
    ours = algo.env_runner.module["hyper"].state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in late.module["hyper"].state_dict().items())
    late.stop()
    algo.stop()


# ------------------------------------------------------------------------------------------------------- freeze_policy


@pytest.mark.parametrize("mode", MODES)
def test_a_frozen_policy_stays_while_the_others_learn_whatever_it_does(mode):
    algo = build(mode, *EVALUATING)
    algo.train()
    algo.freeze_policy("agent_2")
    assert runners_agree(algo)
    probs, _ = act(algo)
    for _ in range(10):
        algo.train()
    algo.evaluate()
    assert runners_agree(algo)
    now, _ = act(algo)
    assert torch.equal(now[2], probs[2])
    assert all(not torch.equal(now[agent], probs[agent]) for agent in (0, 1, 3))
    algo.stop()


@pytest.mark.parametrize("mode", MODES)
def test_what_frozen_agents_did_and_got_teaches_nobody(mode):
    """Their actions, probabilities and rewards can be anything: every weight comes out the same, bit for bit."""
    outcomes = []
    for factor in (1.0, -100.0):
        algo = build(mode)
        algo.freeze_policy("agent_2")
        rollout = algo.env_runner.sample()
        rollout = dataclasses.replace(
            rollout, **{k: getattr(rollout, k).clone() for k in ("reward", "logp", "actions")}
        )
        rollout.reward[2] *= factor
        rollout.logp[2] *= 1 if factor == 1 else 0.5
        rollout.actions[2] = 0 if factor == 1 else 3
        update(algo, rollout)
        outcomes.append(weights(algo))
        algo.stop()
    assert all(torch.equal(value, outcomes[1][name]) for name, value in outcomes[0].items())


def update(algo, rollout):
    return learner(algo).update(batch=rollout, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 0})


def test_the_loss_is_the_mean_over_the_rows_of_the_others():
    one_step = ("training.num_epochs=1", "training.minibatch_size=128")
    algo = build(*one_step, "hypermarl.frozen=[agent_2, agent_0]")
    rollout, net = algo.env_runner.sample(), learner(algo).net
    before = {key: value.clone() for key, value in net.state_dict().items()}
    value, advantage = values_and_advantages(learner(algo).net, rollout, algo.config)
    logged = update(algo, rollout)
    net.load_state_dict(before)
    others = [1, 3]
    obs = rollout.obs.flatten(1, 2)
    with torch.no_grad():
        dist = net.policy(obs, net.generate())
        logp, entropy = dist.log_prob(rollout.actions.flatten(1)), dist.entropy()
    value, advantage = value.flatten(1), advantage.flatten(1)
    learned = advantage[others]
    standardised = (learned - learned.mean()) / learned.std(correction=0)
    rows = (logp[others], entropy[others], value[others], rollout.logp.flatten(1)[others], value[others])
    expected, stats = oracle.ppo_loss(
        *rows, standardised, (advantage + value)[others], algo.config.loss_config(entropy_coeff=0.01)
    )
    found = {key: stat.peek() if hasattr(stat, "peek") else stat for key, stat in logged["hyper"].items()}
    assert float(found["total_loss"]) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
    assert float(found["vf_loss"]) == pytest.approx(float(stats["vf_loss"]), rel=1e-4)
    assert float(found["entropy"]) == pytest.approx(float(stats["entropy"]), rel=1e-4)
    algo.stop()


def test_a_frozen_team_is_saved_and_restored(tmp_path):
    algo = build(*EVALUATING)
    algo.train()
    algo.freeze_policy("agent_1")
    algo.train()
    assert goes_on_from(checkpoints.save(algo, tmp_path), algo)
    assert algo.config.frozen == ["agent_1"]
    algo.stop()


def test_a_frozen_policy_that_nobody_follows_any_more_is_gone():
    algo = build("hypermarl.frozen=[agent_1]")
    algo.add_policy("scout", "agent_1", like="agent_1")
    assert learner(algo).net.spec.frozen == ()
    assert algo.config.frozen == []
    algo.train()
    algo.stop()


def test_continuous_policies_freeze_with_their_spread():
    algo = sides(4, "env_config={n_agents: 4, continuous: true}")
    algo.train()
    algo.freeze_policy("agent_0")
    kept = learner(algo).net.snapshot.log_std.clone()
    for _ in range(3):
        algo.train()
    net = learner(algo).net
    obs = torch.ones(4, 1, 2)
    dist = net.policy(obs, net.generate())
    assert torch.equal(dist.log_std[0, 0], kept[0])
    assert not torch.equal(dist.log_std[1, 0], kept[0])
    algo.stop()


def test_what_cannot_be_done_to_a_team_is_named_and_not_done():
    algo = build("policies={left: [agent_0, agent_1], right: [agent_2, agent_3]}", "hypermarl.frozen=[left]")
    before = weights(algo)
    for call, words in (
        (lambda: algo.add_policy("left", "agent_0"), "policy 'left' exists already; policies are left, right"),
        (lambda: algo.add_policy("new", "drone"), "'drone' matches none of the agents"),
        (lambda: algo.add_policy("new", "agent_0", like="none"), "like is 'none', which is no policy"),
        (lambda: algo.freeze_policy("new"), "'new' is no policy; policies are left, right"),
        (lambda: algo.freeze_policy("left"), "policy 'left' is frozen already"),
        (lambda: algo.freeze_policy("right"), "nothing is left to train"),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    assert learner(algo).net.spec.policies == ("left", "right")
    assert all(torch.equal(value, before[name]) for name, value in weights(algo).items())
    algo.train()
    algo.stop()


def test_a_team_with_memory_can_get_one_more_policy():
    algo = build("hypermarl.memory=gru", "hypermarl.memory_size=8", *EVALUATING)
    algo.train()
    core, before = learner(algo).net.cores["actor"].cell, adam(algo)
    algo.add_policy("new", "agent_3", like="agent_0")
    now = learner(algo).net.cores["actor"].cell
    assert now is not core and all(torch.equal(a, b) for a, b in zip(now.parameters(), core.parameters(), strict=True))
    assert all(torch.equal(adam(algo)[name]["exp_avg"], before[name]["exp_avg"]) for name in before if "cores" in name)
    assert "new" in learner(algo).net.spec.policies and runners_agree(algo)
    algo.train()
    assert algo.evaluate()["env_runners"]["num_episodes"] == 3
    with pytest.raises(ConfigError, match=r"hypermarl.frozen is .*: policies of a team with memory share its cores"):
        algo.freeze_policy("new")
    algo.stop()
