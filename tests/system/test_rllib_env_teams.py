"""Teams of RLlib's `MultiAgentEnv`s train and are evaluated on the fast path. `Guild` refuses what is not allowed, and
answers of those that it did not ask."""

import math

import pytest

from rllib_hypermarl import HyperMARLConfig

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("ray_session")]
GUILD = "tests.rllib_envs:Guild"
CARTPOLE = "ray.rllib.examples.envs.classes.multi_agent:MultiAgentCartPole"
TEAMS = {
    "deaths, masks, waits": (GUILD, {"masks": "observation", "waits": True}, {}),
    "continuous, memory": (GUILD, {"continuous": True}, {"memory": "gru", "memory_size": 4}),
    "masks in infos, central critic": (GUILD, {"masks": "info", "waits": True}, {"critic": "central"}),
    "agents that are called by numbers": (CARTPOLE, {"num_agents": 3}, {"sharing": "full_id"}),
}


def build(env, env_config, hypermarl):
    return (
        HyperMARLConfig()
        .environment(f"rllib/{env}", env_config=env_config)
        .hypermarl(actor_hidden=[8], critic_hidden=[8], hypernet_hidden=[8], **hypermarl)
        .training(num_epochs=2, minibatch_size=32, train_batch_size_per_learner=64)
        .env_runners(num_envs_per_env_runner=4, rollout_fragment_length=16)
        .run(seed=0, torch_threads=1, device="cpu")
        .build_algo()
    )


@pytest.mark.parametrize(("env", "env_config", "hypermarl"), TEAMS.values(), ids=TEAMS)
def test_teams_train_and_are_evaluated(env, env_config, hypermarl):
    algo = build(env, env_config, hypermarl)
    for _ in range(3):
        result = algo.train()
    evaluated = algo.evaluate()["env_runners"]
    algo.stop()
    for value in (result["learners"]["hyper"]["total_loss"], evaluated["agent_return_mean"]):
        assert math.isfinite(value)
    agents = evaluated["agent_episode_returns_mean"]
    assert set(agents) == ({"0", "1", "2"} if env == CARTPOLE else {"late", "7", "always"})
    assert result["learners"]["hyper"]["num_module_steps_trained"] < 64 * len(agents)


def test_who_waits_learns_nothing_from_it():
    algo = build("tests.rllib_envs:Seeded", {}, {})
    rollout = algo.env_runner.sample()
    algo.stop()
    waits = (rollout.action_mask.sum(-1) == 1) & rollout.action_mask[..., 0]
    assert (waits.sum(0)[1:] >= 1).sum() > 30  # one of two, but for the second player until it is first asked
    assert (rollout.logp[waits] == 0).all() and (rollout.actions[waits] == 0).all()
    assert (rollout.logp[rollout.action_mask.all(-1)] < 0).any()
