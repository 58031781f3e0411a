"""Every key of which `tests/rllib/test_every_key.py` says so changes what is learnt, one by one."""

import functools

import pytest

from rllib_hypermarl import HyperMARLConfig
from tests.helpers import assert_equal, game, parameters
from tests.rllib.test_every_key import BASE, BATCH, CHANGES

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("ray_session")]


@functools.cache
def learned(*overrides):
    """Parameters after two iterations."""
    algo = HyperMARLConfig.from_groups(game(*BASE, *overrides)).build_algo()
    for _ in range(2):
        algo.train()
    (found,) = parameters(algo)
    algo.stop()
    return found


@pytest.mark.parametrize("key", CHANGES)
def test_a_key_changes_what_is_learnt(key):
    value, *needs = CHANGES[key]
    if any(need.startswith("env=vmas") for need in needs):
        pytest.importorskip("vmas")
    if key == "training.train_batch_size_per_learner":
        other = learned(*needs)
    elif key.startswith("env_runners"):
        other = learned(BATCH, "env_runners.rollout_fragment_length=4") if "length" in key else learned(*needs)
    else:
        other = learned(*needs)
    ours = learned(*needs, f"{key}={value}")
    with pytest.raises(AssertionError):
        assert_equal(ours, other)


def test_the_same_config_learns_the_same():
    first = learned()
    learned.cache_clear()
    assert_equal(first, learned())
