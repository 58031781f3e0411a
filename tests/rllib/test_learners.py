"""Several learners are one learner: the same gradients, bit-equal weights, and no learner waits for ever."""

import logging

import pytest

from rllib_hypermarl import HyperMARLConfig
from rllib_hypermarl.errors import RunFailedError
from rllib_hypermarl.rllib.collective import TIMEOUT
from tests.helpers import STEPS, assert_equal, game, parameters

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(120)]
TWO = (
    "learners.num_learners=2", "learners.num_cpus_per_learner=0.5",
    f"training.train_batch_size_per_learner={STEPS // 2}",
)  # fmt: skip


def build(*overrides):
    return HyperMARLConfig.from_groups(game(*overrides)).build_algo()


@pytest.fixture(scope="module")
def two():
    logging.getLogger("ray.rllib").setLevel(logging.CRITICAL)  # it logs what we make its learners raise
    algo = build(*TWO, "hypermarl.normalise_obs=true", "hypermarl.normalise_values=true", "run.seed=null")
    yield algo
    algo.stop()


def test_learners_are_bit_equal_from_the_start_and_over_twenty_updates(two):
    first, second = parameters(two)  # with no seed, each has drawn its own parameters
    assert_equal(first, second)
    for _ in range(20):
        two.train()
    updated, other = parameters(two)
    assert_equal(updated, other)
    assert any((updated[name] != first[name]).any() for name in first)
    assert_equal({n: p.numpy() for n, p in two.env_runner.module["hyper"].state_dict().items()}, updated)


def test_the_driver_shares_out_equally_and_refuses_what_it_cannot_share(two):
    rollout = two.env_runner.sample()
    with pytest.raises(RunFailedError, match="fewer than the 2 learners"):
        two._update(rollout_of(rollout, 1))
    before = parameters(two)[0]
    results = two._update(rollout_of(rollout, 3))  # the odd one is left out
    assert [r["__all_modules__"]["num_env_steps_trained"].peek() for r in results] == [8, 8]
    first, second = parameters(two)
    assert_equal(first, second)
    assert any((first[name] != before[name]).any() for name in before)


def test_a_learner_with_an_empty_shard_is_an_error_on_both_and_nobody_waits(two):
    """One that went on alone would wait for the other until the time limit. (RLlib gives up learners that raise.)"""
    rollout = two.env_runner.sample()
    with pytest.raises(Exception, match="shards of 0 to 128 rows: all must be of one size"):
        two.learner_group.update(batches=[rollout_of(rollout, n).arrays() for n in (16, 0)])


def rollout_of(rollout, envs):
    """The first envs of a rollout."""
    fields = {"obs": 2, "actions": 2, "logp": 2, "reward": 2, "terminated": 1, "truncated": 1, "last_obs": 1}
    cut = {name: getattr(rollout, name).narrow(axis, 0, envs) for name, axis in fields.items()}
    return type(rollout)(**cut, final_obs=rollout.final_obs[:, :0], final_index=rollout.final_index[:0])


def test_a_learner_does_not_wait_for_half_an_hour():
    assert TIMEOUT.total_seconds() == 60
