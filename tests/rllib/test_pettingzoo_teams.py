"""PettingZoo's unlike, masked, and mortal teams train and are evaluated. `Travellers` refuses what is not allowed."""

import math

import pytest

pytest.importorskip("pettingzoo")

from rllib_hypermarl import HyperMARLConfig

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


def build(env, env_config, hypermarl):
    return (
        HyperMARLConfig()
        .environment(f"pettingzoo/{env}", env_config=env_config)
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
    steps = result["learners"]["hyper"]["num_module_steps_trained"]
    agents = len(evaluated["agent_episode_returns_mean"])
    assert (steps < 64 * agents) == (env == TRAVELLERS)


def test_who_waits_for_a_turn_learns_nothing_from_it():
    algo = build("classic.tictactoe_v3", {}, {})
    rollout = algo.env_runner.sample()
    algo.stop()
    waits = rollout.action_mask.sum(-1) == 1
    waits &= rollout.action_mask[..., 0]
    assert (waits.sum(0) >= 1).all()
    assert (rollout.logp[waits] == 0).all() and (rollout.actions[waits] == 0).all()
