"""From a config and an env's spaces to the team's networks."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import TYPE_CHECKING

import gymnasium as gym

from ..errors import ConfigError
from ..nets import ActionSpec, HeadSpec, ModelSpec
from ..nets.spec import encoder_of
from ..spaces import choices_of
from .policies import assign, map_agents

if TYPE_CHECKING:
    from .config import HyperMARLConfig


def build_model_spec(
    config: HyperMARLConfig,
    observation_spaces: dict[str, gym.Space],
    action_spaces: dict[str, gym.Space],
    state_space: gym.Space | None,
) -> ModelSpec:
    """The team's networks for an env with these spaces per agent, in the env's order of agents.

    Where agents differ, all networks have the sizes of the greatest: what an agent does not observe is zero, and what
    it cannot do is masked, so that neither changes its log-probabilities. One batched product then serves all of them.

    Raises:
        ConfigError: the patterns do not fit the agents, or the spaces are not supported.
    """
    agents = list(observation_spaces)
    policy_of = map_agents(config.policy_patterns, agents)
    policies = tuple(dict.fromkeys(policy_of.values()))
    for key, names in (("frozen", config.frozen), ("init_like", config.init_like or ())):
        for name in names:
            if name not in policies:
                raise ConfigError(f"hypermarl.{key}: {name!r} is no policy; policies are {', '.join(policies)}")
    if set(config.frozen) == set(policies):
        raise ConfigError("hypermarl.frozen names all policies: nothing is left to train")
    groups = _groups(config, policies)
    sizes = [observation_spaces[agent].shape[0] for agent in agents]
    if config.normalise_obs and len(set(sizes)) > 1:
        raise ConfigError("hypermarl.normalise_obs: agents' observations of different sizes have no common statistics")
    own = [_action_spec(config, agent, action_spaces[agent]) for agent in agents]
    for agent, spec in zip(agents, own, strict=True):
        if spec.continuous != own[0].continuous:
            raise ConfigError(
                f"agents {agents[0]} ({action_spaces[agents[0]]}) and {agent} ({action_spaces[agent]}): actions of a "
                "team must be all continuous or all discrete"
            )
    obs_dim, actions = max(sizes), ActionSpec.covering(own)
    head = functools.partial(HeadSpec, in_dim=obs_dim, activation=config.activation)
    actor = head(out_dim=actions.head_dim, hidden=tuple(config.actor_hidden), sharing=config.sharing, out_gain=0.01)
    critic = head(out_dim=1, hidden=tuple(config.critic_hidden), sharing=config.critic_sharing or config.sharing)
    if config.critic == "central":
        reads = ("team", obs_dim * len(agents)) if state_space is None else ("state", state_space.shape[0])
        critic = dataclasses.replace(critic, reads=reads[0], in_dim=reads[1])
    heads = {"actor": actor, "critic": critic} if config.use_critic else {"actor": actor}
    if config.memory is not None:
        heads = dict(itertools.chain.from_iterable(_with_memory(config, *item) for item in heads.items()))
    spec = ModelSpec(
        policies=policies,
        agent_policies=tuple(policies.index(policy_of[agent]) for agent in agents),
        heads=heads,
        context=config.context,
        embedding_dim=config.embedding_dim,
        hypernet_hidden=tuple(config.hypernet_hidden),
        hypernet_shared_trunk=config.hypernet_shared_trunk,
        hypernet_rank=config.hypernet_rank,
        hypernet_reads_obs=config.hypernet_reads_obs,
        init=config.init,
        actions=actions,
        normalise_obs=config.normalise_obs,
        normalise_values=config.normalise_values,
        frozen=tuple(config.frozen),
        agent_actions=None if all(spec == actions for spec in own) else tuple(own),
        memory=config.memory,
        memory_size=config.memory_size if config.memory is not None else ModelSpec.memory_size,
        groups=groups,
    )
    embedded = [h for h in spec.heads.values() if "hyper" in h.sharing and spec.context_of(h) == "embedding"]
    if embedded and config.embedding_dim == 1 and len(policies) > 2:
        raise ConfigError("hypermarl.embedding_dim is 1: of more than two policies some would start alike; take 2")
    if config.trainable == "contexts" and not embedded:
        raise ConfigError(
            "hypermarl.trainable is 'contexts', but no network reads learned embeddings: nothing to train"
        )
    return spec


def _groups(config: HyperMARLConfig, policies: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The policies of each group."""
    group_of = assign(config.groups, policies, "hypermarl.groups", "policies") if config.groups else {}
    return {group: tuple(p for p in policies if group_of[p] == group) for group in dict.fromkeys(group_of.values())}


def _with_memory(config: HyperMARLConfig, name: str, head: HeadSpec) -> list[tuple[str, HeadSpec]]:
    """A head behind a recurrent core, and the encoder that reads in its place."""
    *hidden, out_dim = config.memory_encoder_hidden
    encoder = dataclasses.replace(
        head, out_dim=out_dim, hidden=tuple(hidden), sharing=config.memory_encoder_sharing, out_gain=math.sqrt(2.0)
    )
    return [(name, dataclasses.replace(head, in_dim=config.memory_size)), (encoder_of(name), encoder)]


def _action_spec(config: HyperMARLConfig, agent: str, space: gym.Space) -> ActionSpec:
    flat = isinstance(space, gym.spaces.MultiDiscrete) and space.nvec.ndim == 1
    if flat or (isinstance(space, gym.spaces.Discrete) and space.start == 0):
        return ActionSpec(choices=choices_of(space))
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise ConfigError(
            f"agent {agent}: action space {space} is not supported (Discrete from 0, MultiDiscrete, flat Box)"
        )
    if config.action_bound == "tanh" and not space.is_bounded():
        raise ConfigError(f"hypermarl.action_bound is 'tanh', but the actions of {agent} have no bounds ({space})")
    low, high = (tuple(float(x) for x in bound) for bound in (space.low, space.high))
    return ActionSpec(low=low, high=high, log_std=config.log_std, bound=config.action_bound)
