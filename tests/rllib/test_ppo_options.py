"""PPO as the field runs it: schedules, adaptive learning rates, early stops, normalisation, REINFORCE."""

import pytest
import torch

from rllib_hypermarl import HyperMARLConfig
from rllib_hypermarl.rllib import checkpoints
from rllib_hypermarl.rllib.sequences import values_and_advantages
from tests.helpers import STEPS, game, weights

pytestmark = pytest.mark.usefixtures("ray_session")


def build(*overrides):
    return HyperMARLConfig.from_groups(game(*overrides)).build_algo()


def trained(*overrides, iterations=1):
    algo = build(*overrides)
    results = [algo.train()["learners"]["hyper"] for _ in range(iterations)]
    algo.stop()
    return results


def learner(algo):
    return algo.learner_group._learner


# ------------------------------------------------------------------------------------------------------ learning rate


def test_the_learning_rate_follows_its_schedule_over_env_steps():
    results = trained(f"training.lr=[[0, 1e-3], [{2 * STEPS}, 0.5e-3], [{4 * STEPS}, 0.5e-3]]", iterations=4)
    rates = [result["default_optimizer_learning_rate"] for result in results]
    assert rates == pytest.approx([0.75e-3, 0.5e-3, 0.5e-3, 0.5e-3])


def test_the_entropy_bonus_follows_its_schedule():
    (first, second) = trained(f"training.entropy_coeff=[[0, 2.0], [{STEPS}, 2.0], [{STEPS + 1}, 0.0]]", iterations=2)
    for result, coefficient in ((first, 2.0), (second, 0.0)):
        parts = result["policy_loss"] + 0.5 * result["vf_loss"] - coefficient * result["entropy"]
        assert result["total_loss"] == pytest.approx(parts, abs=1e-4)


@pytest.mark.parametrize("standardised", ["true", "false"])
def test_the_size_of_advantages_is_reported_as_they_are(standardised):
    algo = build(f"hypermarl.standardise_advantages={standardised}")
    sample, expected = algo.env_runner.sample, []

    def watched(**kwargs):
        rollout = sample(**kwargs)
        _, advantage = values_and_advantages(learner(algo).net, rollout, algo.config)
        expected.append(advantage.std(correction=0).item())
        return rollout

    algo.env_runner.sample = watched
    reported = algo.train()["learners"]["hyper"]["advantage_std"]
    algo.stop()
    assert [reported] == pytest.approx(expected, rel=1e-5) and 0 < reported < 5


def test_the_adaptive_rate_rises_while_little_changes_and_falls_when_much_does(tmp_path):
    rising = trained("training.lr=1e-5", "hypermarl.adaptive_lr_kl=0.01", iterations=2)
    assert [r["default_optimizer_learning_rate"] for r in rising] == pytest.approx([1e-5 * 1.5**2, 1e-5 * 1.5**4])
    falling = trained("training.lr=1e-2", "hypermarl.adaptive_lr_kl=1e-6", iterations=2)
    assert [r["default_optimizer_learning_rate"] for r in falling] == pytest.approx([1e-2 / 1.5**2, 1e-2 / 1.5**4])


def test_a_restored_run_goes_on_with_its_adapted_rate_and_another_config_with_its_own(tmp_path):
    algo = build("training.lr=1e-5", "hypermarl.adaptive_lr_kl=0.01")
    algo.train()
    path = checkpoints.save(algo, tmp_path)
    algo.stop()
    again = checkpoints.load(path)
    rate = again.train()["learners"]["hyper"]["default_optimizer_learning_rate"]
    again.stop()
    assert rate == pytest.approx(1e-5 * 1.5**4)
    other = build("training.lr=3e-4")
    other.restore_from_path(path)
    moved = []
    step = torch.optim.Adam.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.optim.Adam, "step", lambda self, *a: (moved.append(self.param_groups[0]["lr"]), step(self, *a))
        )
        other.train()
    other.stop()
    assert moved and set(moved) == {3e-4}  # from the first gradient step on


def test_an_early_stop_ends_the_epochs_of_one_rollout():
    per_epoch = STEPS // 32
    common = ("training.num_epochs=5", "training.lr=1e-2")
    assert trained(*common)[0]["num_gradient_steps"] == 5 * per_epoch
    assert trained(*common, "hypermarl.early_stop_kl=1e-9")[0]["num_gradient_steps"] == per_epoch
    assert trained(*common, "hypermarl.early_stop_kl=1e9")[0]["num_gradient_steps"] == 5 * per_epoch


# ------------------------------------------------------------------------------------------------------ normalisation


def test_observations_are_normalised_by_what_all_rollouts_held():
    algo = build("hypermarl.normalise_obs=true")
    seen = []
    sample = algo.env_runner.sample
    algo.env_runner.sample = lambda **kwargs: (seen.append(sample(**kwargs)), seen[-1])[1]
    for _ in range(3):
        algo.train()
    rows = torch.cat([rollout.obs.flatten(0, 2) for rollout in seen])
    for net in (learner(algo).net, algo.env_runner.net):
        torch.testing.assert_close(net.norms["obs"].mean, rows.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(net.norms["obs"].var, rows.var(0, correction=0), rtol=1e-4, atol=1e-5)
    algo.stop()


def test_the_policy_is_compared_with_the_one_that_sampled_it():
    """Were the statistics renewed before the update, the divergence would be there without any learning."""
    for result in trained("hypermarl.normalise_obs=true", "training.lr=1e-9", iterations=3):
        assert abs(result["mean_kl_loss"]) < 1e-6


def test_values_are_learnt_in_units_of_their_targets_and_reported_in_those_of_the_reward(tmp_path):
    algo = build("hypermarl.normalise_values=true", "training.lr=3e-3", "training.num_epochs=8")
    for _ in range(10):
        result = algo.train()["learners"]["hyper"]
    norm = learner(algo).net.norms["value"]
    assert result["vf_explained_var"] > 0.1
    assert norm.mean.item() > 0.5 and norm.count > 0  # of five rewards between 1/4 and 1, discounted
    path = checkpoints.save(algo, tmp_path)
    algo.stop()
    again = checkpoints.load(path)
    assert torch.equal(learner(again).net.norms["value"].mean, norm.mean)
    again.stop()


# --------------------------------------------------------------------------------------------------------- REINFORCE


def test_without_a_critic_an_epoch_of_sgd_is_a_step_of_reinforce():
    algo = build(
        "training.use_critic=false", "hypermarl.optim=sgd", "training.lr=0.5", "training.num_epochs=1",
        "training.minibatch_size=128", "training.grad_clip=null", "training.entropy_coeff=0", "hypermarl.sharing=none",
    )  # fmt: skip
    net = learner(algo).net
    assert set(net.sources) == {"actor"}
    before = weights(algo)
    rollout = algo.env_runner.sample()
    algo._update(rollout)
    after = weights(algo)
    algo.stop()

    returns = torch.zeros_like(rollout.reward)
    for t in reversed(range(rollout.reward.shape[1])):
        going = ~(rollout.terminated | rollout.truncated)[t]
        later = returns[:, t + 1] if t + 1 < returns.shape[1] else 0
        returns[:, t] = rollout.reward[:, t] + 0.99 * going * later
    advantage = (returns - returns.mean()) / (returns.std(correction=0) + 1e-8)
    net.load_state_dict({name.removeprefix("net."): value for name, value in before.items()})
    logp = net.policy(rollout.obs.flatten(1, 2), net.generate()).log_prob(rollout.actions.flatten(1, 2))
    loss = -(logp * advantage.flatten(1, 2)).mean()
    names, params = zip(*net.named_parameters(), strict=True)
    for name, grad in zip(names, torch.autograd.grad(loss, params), strict=True):
        torch.testing.assert_close(before[f"net.{name}"] - after[f"net.{name}"], 0.5 * grad, rtol=1e-4, atol=1e-6)


def test_reinforce_reports_no_critic_and_learns():
    """Four agents in four places; chance pays 0.68 a step, a team that has split up 1."""
    algo = build("training.use_critic=false", "training.num_epochs=1", "training.lr=1e-2", "hypermarl.sharing=none")
    for _ in range(60):
        result = algo.train()
    algo.stop()
    assert "vf_loss" not in result["learners"]["hyper"] and "vf_explained_var" not in result["learners"]["hyper"]
    assert result["env_runners"]["agent_return_mean"] > 5 * 0.8


def test_a_huber_loss_is_linear_beyond_its_delta():
    """The first value error is of the order of the returns; a tiny delta makes it that much smaller."""
    ((squared,), (huber,)) = (trained(o, "hypermarl.clip_value_loss=null", "training.lr=1e-9")
                              for o in ("hypermarl.huber_delta=null", "hypermarl.huber_delta=0.001"))  # fmt: skip
    assert huber["vf_loss"] < 0.01 * squared["vf_loss"]
