"""Which agent follows which policy: patterns over agent ids."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

from ..errors import ConfigError

OWN = "own"
Patterns = Mapping[str, "str | Sequence[str]"]


def map_agents(patterns: Patterns, agents: Sequence[str]) -> dict[str, str]:
    """Resolves patterns to one policy per agent.

    An entry is either `policy: pattern(s)` (`scouts: [agent_0, agent_1]`, `team: "*"`) or `pattern: own`, which gives
    every agent it matches a policy of its own, named as the agent. The first entry that matches an agent counts.

    Args:
        patterns: as in a config's `policies`.
        agents: the env's agent ids, in its order.

    Returns:
        Agent id -> policy id, in the agents' order.

    Raises:
        ConfigError: a pattern matches no agent, or an agent is left out.
    """
    policy_of: dict[str, str] = {}
    for key, value in patterns.items():
        own = value == OWN
        for pattern in [key] if own else [value] if isinstance(value, str) else value:
            matched = fnmatch.filter(agents, pattern)
            if not matched:
                raise ConfigError(f"policies.{key}: {pattern!r} matches no agent; agents are {', '.join(agents)}")
            for agent in matched:
                policy_of.setdefault(agent, agent if own else key)
    missing = [agent for agent in agents if agent not in policy_of]
    if missing:
        raise ConfigError(
            f"policies: no entry covers {', '.join(missing)}; add a pattern, or '\"*\": own' for the rest"
        )
    return {agent: policy_of[agent] for agent in agents}
