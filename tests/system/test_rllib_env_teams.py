"""Teams of RLlib's `MultiAgentEnv`s train and are evaluated on the fast path. `Guild` refuses what is not allowed, and
answers of those that it did not ask."""

import pytest

from tests.teams import small_team, train_and_evaluate

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("ray_session")]
GUILD = "tests.rllib_envs:Guild"
CARTPOLE = "ray.rllib.examples.envs.classes.multi_agent:MultiAgentCartPole"
TEAMS = {
    "deaths, masks, waits": (GUILD, {"masks": "observation", "waits": True}, {}),
    "continuous, memory": (GUILD, {"continuous": True}, {"memory": "gru", "memory_size": 4}),
    "masks in infos, central critic": (GUILD, {"masks": "info", "waits": True}, {"critic": "central"}),
    "agents that are called by numbers": (CARTPOLE, {"num_agents": 3}, {"sharing": "full_id"}),
}


@pytest.mark.parametrize(("env", "env_config", "hypermarl"), TEAMS.values(), ids=TEAMS)
def test_teams_train_and_are_evaluated(env, env_config, hypermarl):
    learned, evaluated = train_and_evaluate(f"rllib/{env}", env_config, hypermarl)
    agents = evaluated["agent_episode_returns_mean"]
    assert set(agents) == ({"0", "1", "2"} if env == CARTPOLE else {"late", "7", "always"})
    assert learned["num_module_steps_trained"] < 64 * len(agents)


def test_who_waits_learns_nothing_from_it():
    algo = small_team("rllib/tests.rllib_envs:Seeded")
    rollout = algo.env_runner.sample()
    algo.stop()
    waits = (rollout.action_mask.sum(-1) == 1) & rollout.action_mask[..., 0]
    assert (waits.sum(0)[1:] >= 1).sum() > 30  # one of two, but for the second player until it is first asked
    assert (rollout.logp[waits] == 0).all() and (rollout.actions[waits] == 0).all()
    assert (rollout.logp[rollout.action_mask.all(-1)] < 0).any()
