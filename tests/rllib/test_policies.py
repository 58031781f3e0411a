"""Patterns over agent ids say who shares a policy."""

import pytest

from rllib_hypermarl import HyperMARLConfig
from rllib_hypermarl.errors import ConfigError
from rllib_hypermarl.rllib.policies import map_agents
from tests.helpers import game

AGENTS = [f"agent_{i}" for i in range(12)]


def test_own_gives_every_agent_a_policy_of_its_own():
    assert map_agents({"*": "own"}, AGENTS) == {agent: agent for agent in AGENTS}


def test_groups_share_and_the_rest_has_its_own():
    mapped = map_agents({"scouts": ["agent_0", "agent_1"], "heavy": "agent_1?", "*": "own"}, AGENTS)
    assert mapped["agent_0"] == mapped["agent_1"] == "scouts"
    assert mapped["agent_10"] == mapped["agent_11"] == "heavy"
    assert [mapped[agent] for agent in AGENTS[2:10]] == AGENTS[2:10]
    assert list(mapped) == AGENTS  # in the env's order, whatever the patterns' order


def test_the_first_match_counts():
    assert set(map_agents({"team": "*", "agent_0": "own"}, AGENTS).values()) == {"team"}
    mapped = map_agents({"agent_0": "own", "team": "*"}, AGENTS)
    assert (mapped["agent_0"], mapped["agent_1"]) == ("agent_0", "team")
    assert map_agents({"a": "agent_[01]", "b": ["agent_1", "*"]}, AGENTS)["agent_1"] == "a"


def test_a_pattern_that_matches_nobody_is_named():
    with pytest.raises(ConfigError, match=r"policies.scouts: 'drone_\*' matches none of the agents agent_0, "):
        map_agents({"scouts": ["agent_0", "drone_*"], "*": "own"}, AGENTS)
    with pytest.raises(ConfigError, match=r"policies.agent_12: 'agent_12' matches none of the agents"):
        map_agents({"agent_12": "own", "*": "own"}, AGENTS)


def test_agents_left_out_are_named():
    with pytest.raises(ConfigError, match="no entry covers agent_10, agent_11;"):
        map_agents({"team": "agent_?"}, AGENTS)
    with pytest.raises(ConfigError, match="no entry covers agent_0, "):
        map_agents({}, AGENTS)


def test_agents_of_one_policy_share_one_row_of_the_context():
    config = HyperMARLConfig.from_groups(game("policies={b: agent_3, '*': own, }", "env_config.n_agents=4"))
    import rllib_hypermarl

    env = rllib_hypermarl.make(config.env, num_envs=1, **config.env_config)
    spec = config.model_spec(env.observation_spaces, env.action_spaces)
    assert spec.policies == ("agent_0", "agent_1", "agent_2", "b")
    assert spec.agent_policies == (0, 1, 2, 3)

    config.multi_agent(policies={"pair": ["agent_3", "agent_1"], "*": "own"})
    spec = config.model_spec(env.observation_spaces, env.action_spaces)
    assert spec.policies == ("agent_0", "pair", "agent_2")
    assert spec.agent_policies == (0, 1, 2, 1)
