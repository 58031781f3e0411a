"""Networks are measured in training, and training does not notice."""

import pytest
import torch

from rllib_hypermarl import HyperMARLConfig, metrics
from rllib_hypermarl.errors import ConfigError
from rllib_hypermarl.rllib.measuring import measure_on
from rllib_hypermarl.rllib.sequences import values_and_advantages
from tests.helpers import game, weights

pytestmark = pytest.mark.usefixtures("ray_session")
KEYS = {
    "snd", "gradient_noise", "gradient_variance", "entry_variance", "gradient_cosine", "embedding_cosine_distance",
    "embedding_euclidean_distance",
}  # fmt: skip


def kinds(found):
    """Of what was measured, embeddings number by number left out."""
    return {key for key in found if not key.startswith("embeddings/")}


def build(*overrides):
    return HyperMARLConfig.from_groups(game(*overrides)).build_algo()


def test_networks_are_measured_at_the_interval_and_nothing_else_changes():
    measured, plain = build("run.metrics_interval=3"), build()
    results = [measured.train() for _ in range(4)]
    for _ in range(4):
        plain.train()
    assert [kinds(result.get("metrics", {})) for result in results] == [KEYS, set(), KEYS, set()]
    assert "metrics" in results[0]["timers"] and "metrics" not in plain.train()
    first, second = weights(measured), weights(plain)
    plain.stop()
    again = build("run.metrics_interval=3")
    for _ in range(5):
        again.train()
    assert all(torch.equal(value, second[name]) for name, value in weights(again).items()) and first.keys()
    again.stop()
    measured.stop()


def test_what_is_measured_is_what_sampled():
    """The first iteration's numbers are those of the networks as they were initialised, on its own rollout."""
    algo, twin = build("run.metrics_interval=100"), build()
    found = algo.train()["metrics"]
    rollout = twin.env_runner.sample()
    _, advantage = values_and_advantages(twin.env_runner.net, rollout, twin.config)
    expected = metrics.measure(twin.env_runner.net, rollout, advantage)
    assert {key: float(value) for key, value in found.items()} == pytest.approx(expected)
    assert expected["snd"] == metrics.snd(twin.env_runner.net, metrics.sample_observations(rollout, 2000))
    algo.stop()
    twin.stop()


@pytest.mark.parametrize(
    ("overrides", "missing"),
    [
        (("hypermarl.sharing=none",), {"embedding_cosine_distance", "embedding_euclidean_distance"}),
        (("hypermarl.memory=gru",), KEYS - {"embedding_cosine_distance", "embedding_euclidean_distance"}),
        (("training.use_critic=false",), set()),
        (("hypermarl.hypernet_rank=2", "hypermarl.hypernet_shared_trunk=true"), set()),
        (("hypermarl.hypernet_reads_obs=true",), {"gradient_noise", "gradient_variance"}),
        (("hypermarl.groups={a: agent_0, b: '*'}",), set()),
        (("env_runners.num_env_runners=1", "env_runners.num_cpus_per_env_runner=0.5"), set()),
        (("env=tests.mortal_env:MortalEnv", "env_config={}"), set()),
    ],
)
def test_every_kind_of_team_is_measured(overrides, missing):
    algo = build("run.metrics_interval=1", *overrides)
    found = algo.train()["metrics"]
    assert set(measure_on(algo.env_runner)) == set(found)  # as `evaluate --metrics` does, where others sample, too
    algo.stop()
    assert kinds(found) == KEYS - missing
    assert (set(found) > kinds(found)) == ("embedding_cosine_distance" in found)
    assert all(value == value for value in found.values())


def test_gradients_of_too_short_a_rollout_are_left_out():
    small = ("env_runners.num_envs_per_env_runner=2", "env_runners.rollout_fragment_length=4",
             "training.train_batch_size_per_learner=8", "training.minibatch_size=8")  # fmt: skip
    algo = build("run.metrics_interval=1", *small)
    found = algo.train()["metrics"]
    algo.stop()
    assert kinds(found) == {"snd", "embedding_cosine_distance", "embedding_euclidean_distance"}
    assert all(value == value for value in found.values())


def test_an_interval_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="expected null or a positive"):
        build("run.metrics_interval=0")
