"""RLlib's `MultiAgentEnv`s in other processes: worker processes, and env runners that are Ray actors."""

import pytest
from ray.tune.registry import ENV_CREATOR, _global_registry, register_env

from rllib_hypermarl import HyperMARLConfig
from rllib_hypermarl.errors import EnvError
from tests.envs.pettingzoo_reference import compare, play
from tests.envs.test_rllib_env import ENVS, make, reference
from tests.rllib_envs import Guild

pytestmark = pytest.mark.system


@pytest.fixture
def registered():
    class Local(Guild):
        """Cannot be imported by others."""

    register_env("guild", lambda config: Local(config))
    yield "guild"
    _global_registry.unregister(ENV_CREATOR, "guild")


@pytest.mark.parametrize("case", [ENVS[0], ENVS[-1]], ids=["CartPole", "Guild"])
def test_workers_equal_a_plain_loop(case):
    name, config, keys, _ = case
    env = make(name, num_workers=2, **config, **keys)
    actions, steps = play(env, 3, 40)
    compare(steps, reference(name, config, 3, actions, steps[0].action_mask is not None))
    env.close()


def test_workers_make_what_is_registered_here(registered):
    env = make(registered, num_workers=1, waits=True)
    actions, steps = play(env, 3, 40)
    compare(steps, reference("tests.rllib_envs:Guild", {"waits": True}, 3, actions, True))
    env.close()


def test_a_worker_is_named_with_the_env():
    env = make("tests.rllib_envs:Told", num_workers=1, then=["a"])
    env.reset(0)
    with pytest.raises(EnvError, match=r"env 'rllib/tests\.rllib_envs:Told', copy 0: b is neither observed nor done"):
        play(env, 0, 1)


@pytest.mark.usefixtures("ray_session")
def test_remote_env_runners_make_what_is_registered_here(registered):
    algo = (
        HyperMARLConfig()
        .environment(f"rllib/{registered}", env_config={"waits": True})
        .hypermarl(actor_hidden=[8], critic_hidden=[8], hypernet_hidden=[8])
        .training(num_epochs=1, minibatch_size=32, train_batch_size_per_learner=64)
        .env_runners(num_env_runners=1, num_envs_per_env_runner=4, rollout_fragment_length=16)
        .run(seed=0, torch_threads=1, device="cpu")
        .build_algo()
    )
    result = algo.train()
    algo.stop()
    assert result["num_env_steps_sampled_lifetime"] == 64
