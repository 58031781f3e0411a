"""Which agent follows which policy: patterns over agent ids."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

from ..errors import ConfigError

OWN = "own"
Patterns = Mapping[str, "str | Sequence[str]"]


def map_agents(patterns: Patterns, agents: Sequence[str]) -> dict[str, str]:
    """Agent id -> policy id, in the agents' order; `assign` of a config's `policies`."""
    return assign(patterns, agents, "policies", "agents")


def assign(patterns: Patterns, members: Sequence[str], key: str, plural: str) -> dict[str, str]:
    """Resolves patterns to one owner per member: a policy per agent, or a group per policy.

    An entry is either `owner: pattern(s)` (`scouts: [agent_0, agent_1]`, `team: "*"`) or `pattern: own`, which gives
    every member it matches an owner of its own name. The first entry that matches a member counts.

    Args:
        patterns: as in a config's `policies`.
        members: their ids, in order.
        key: of the config; plural: what members are, both for errors.

    Returns:
        Member -> owner, in the members' order.

    Raises:
        ConfigError: a pattern matches no member, or a member is left out.
    """
    owner_of: dict[str, str] = {}
    for owner, value in patterns.items():
        own = value == OWN
        for pattern in [owner] if own else [value] if isinstance(value, str) else value:
            matched = fnmatch.filter(members, pattern)
            if not matched:
                raise ConfigError(f"{key}.{owner}: {pattern!r} matches none of the {plural} {', '.join(members)}")
            for member in matched:
                owner_of.setdefault(member, member if own else owner)
    missing = [member for member in members if member not in owner_of]
    if missing:
        raise ConfigError(f"{key}: no entry covers {', '.join(missing)}; add a pattern, or '\"*\": own' for the rest")
    return {member: owner_of[member] for member in members}
