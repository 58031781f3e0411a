"""PettingZoo's unlike, masked, and mortal teams train and are evaluated. `Travellers` refuses what is not allowed."""

import pytest

pytest.importorskip("pettingzoo")

from tests.teams import small_team, train_and_evaluate

pytestmark = pytest.mark.usefixtures("ray_session")
TRAVELLERS = "tests.zoo:Travellers"
TEAMS = {
    "deaths, masks in observations": (TRAVELLERS, {"masks": "observation"}, {}),
    "masks in infos, central critic": (TRAVELLERS, {"masks": "info"}, {"critic": "central"}),
    "continuous, memory": (TRAVELLERS, {"continuous": True}, {"memory": "gru", "memory_size": 4}),
    "no state, alike weights": (TRAVELLERS, {"state": False}, {"critic": "central", "sharing": "full_id"}),
    "turns": ("classic.tictactoe_v3", {}, {}),
    "tag": ("mpe2.simple_tag_v3", {"max_cycles": 8}, {}),
}


@pytest.mark.parametrize(("env", "env_config", "hypermarl"), TEAMS.values(), ids=TEAMS)
def test_teams_train_and_are_evaluated(env, env_config, hypermarl):
    learned, evaluated = train_and_evaluate(f"pettingzoo/{env}", env_config, hypermarl)
    agents = len(evaluated["agent_episode_returns_mean"])
    assert (learned["num_module_steps_trained"] < 64 * agents) == (env == TRAVELLERS)


def test_who_waits_for_a_turn_learns_nothing_from_it():
    algo = small_team("pettingzoo/classic.tictactoe_v3")
    rollout = algo.env_runner.sample()
    algo.stop()
    waits = rollout.action_mask.sum(-1) == 1
    waits &= rollout.action_mask[..., 0]
    assert (waits.sum(0) >= 1).all()
    assert (rollout.logp[waits] == 0).all() and (rollout.actions[waits] == 0).all()
