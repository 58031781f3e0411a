"""A team that acts: torch modules over weights generated once. Stateless, so that threads may share one: what agents
remember is the caller's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import BundleError, MemoryMissingError, ObservationError
from ..nets import ActionSpec, Distribution, Memory, TeamNet, Weights
from ..nets.sharing import Layer
from ..nets.spec import encoder_of
from .spec import BundleSpec

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


class TeamPolicy(nn.Module):
    """All agents of a bundle, in one batched product per layer. Tensors are `[N, B, ...]`, in the order of the agents.

    Teams with memory need a `memory` wherever they are asked: `blank`, when episodes begin. It is moved on by each
    question, which is one step of B episodes; `memory.forget` is for episodes that have ended.

    Attributes:
        spec: what the bundle says of itself.
        version: a short hash of the bundle's content; says which weights answered.

    Args:
        net: becomes this object's own, and loses what generates weights.
    """

    def __init__(self, spec: BundleSpec, net: TeamNet, version: str):
        super().__init__()
        self.spec, self.version = spec, version
        self.net = net.requires_grad_(False)
        for head, layers in net.generate().items():
            for depth, layer in enumerate(layers):
                for name, tensor in zip(("weight", "bias"), layer, strict=True):
                    self.register_buffer(f"{head}_{depth}_{name}", tensor.detach().clone())
        net.sources.clear()  # they have generated what there was to generate
        net.contexts.clear()

    def _weights(self, head: str) -> Weights:
        """Of the head and its encoder."""
        return {
            name: [(getattr(self, f"{name}_{i}_weight"), getattr(self, f"{name}_{i}_bias"))
                   for i in range(len(self.spec.heads[name].layers))]
            for name in self.spec.model.with_encoders([head])
        }  # fmt: skip

    def blank(self, num_envs: int, head: str = "actor") -> Memory | None:
        """What agents remember in episodes that begin; None where the team has no memory. `critic`: for `values`."""
        return self.net.blank(head, num_envs)

    def distribution(
        self, obs: Tensor, action_mask: Tensor | None = None, memory: Memory | None = None
    ) -> Distribution:
        """The agents' action distributions.

        Args:
            obs: `[N, B, obs]`.
            action_mask: `[N, B, sum(choices)]` bool, of discrete actions: True where one is allowed. None: all are.
            memory: of teams that have one; moved on.

        Raises:
            ObservationError: an agent has nothing allowed.
            MemoryMissingError: the team has memory, and none was given.
            ValueError: actions are continuous and cannot be masked.
        """
        if action_mask is not None and not self.spec.actions.continuous:
            self._check_mask(action_mask)
        return self.net.policy(obs, self._weights("actor"), action_mask, memory)

    def forward(self, obs: Tensor, memory: Memory | None = None) -> Tensor:
        """What the actors put out: logits, or means (and log standard deviations where those are generated)."""
        return self.net.action_inputs(obs, self._weights("actor"), memory)

    def actions(
        self,
        obs: Tensor,
        *,
        greedy: bool = True,
        generator: torch.Generator | None = None,
        action_mask: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """What the env takes, `[N, B, ...]`: int64, or float32 within the bounds. Args: as `distribution`'s."""
        dist = self.distribution(obs, action_mask, memory)
        return dist.to_env(dist.mode() if greedy else dist.sample(generator))

    def values(self, obs: Tensor, state: Tensor | None = None, memory: Memory | None = None) -> Tensor:
        """The agents' values `[N, B]`, in units of the reward.

        Args:
            obs: `[N, B, obs]`.
            state: `[B, state]`, where the critic reads the env's state.
            memory: the critics', `blank(B, "critic")`, of teams that have one; moved on.

        Raises:
            BundleError: the bundle has no critic.
            ObservationError: the critic reads a state, and there is none.
            MemoryMissingError: the team has memory, and none was given.
        """
        if self.spec.critic_reads is None:
            raise BundleError("this bundle has no critic; export it with --critic or as --kind full")
        if self.spec.critic_reads == "state" and state is None:
            raise ObservationError(f"the critic reads the env's state, {self.spec.state_dim} numbers, which is missing")
        return self.net.value(obs, state, self._weights("critic"), memory)

    def act(
        self,
        observations: Mapping[str, Any],
        *,
        greedy: bool = True,
        seed: int | None = None,
        action_mask: Mapping[str, Any] | None = None,
        memory: Memory | None = None,
    ) -> dict[str, np.ndarray]:
        """Actions of any of the agents.

        Args:
            observations: agent -> `[E, its size]`, the same number E for all; or without E, and so comes back.
            greedy: the most likely actions; else sampled.
            seed: of sampled actions. With the same seed and E an agent does the same, whoever else is asked.
            action_mask: agent -> `[E, its choices]` bool, of any of them; True where an action is allowed.
            memory: of teams that have one, `blank(E)` when episodes begin; moved on for the agents that are asked.

        Returns:
            Agent -> what the env takes, `[E, ...]`.

        Raises:
            ObservationError: names the agent and what is wrong with what it was given.
            MemoryMissingError: the team has memory, and none was given.
        """
        if not observations:
            return {}
        device = self.actor_0_weight.device
        rows = {agent: self._rows(agent, given, torch.float32) for agent, given in observations.items()}
        masks = {agent: self._rows(agent, given, torch.bool) for agent, given in (action_mask or {}).items()}
        first, num_envs = next((agent, len(x)) for agent, x in rows.items())
        for agent, x in [*rows.items(), *masks.items()]:
            if len(x) != num_envs:
                raise ObservationError(f"agent {agent!r} has {len(x)} rows, agent {first!r} has {num_envs}")
        obs = torch.zeros(len(self.spec.agents), num_envs, self.spec.obs_dim)
        mask = torch.ones(*obs.shape[:2], sum(self.spec.actions.choices), dtype=torch.bool) if masks else None
        for agent, x in rows.items():
            obs[self.spec.agents.index(agent), :, : x.shape[1]] = x
        for agent, x in masks.items():
            mask[self.spec.agents.index(agent)][:, self.spec.actions.places_of(self.spec.agent_actions(agent))] = x
        self._check_memory(memory, num_envs)
        generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        after = None if memory is None else Memory(memory.state)
        with torch.no_grad():
            mask = None if mask is None else mask.to(device)
            actions = self.actions(
                obs.to(device), greedy=greedy, generator=generator, action_mask=mask, memory=after
            ).cpu().numpy()  # fmt: skip
        if memory is not None:
            asked = torch.tensor([[[agent in rows]] for agent in self.spec.agents], device=device)
            memory.state = torch.where(asked, after.state, memory.state)
        acted = {
            agent: self.spec.actions.part_of(actions[self.spec.agents.index(agent)], self.spec.agent_actions(agent))
            for agent in observations
        }
        return {agent: x[0] if np.ndim(observations[agent]) == 1 else x for agent, x in acted.items()}

    def agent(self, name: str) -> AgentPolicy:
        """One agent alone, as a plain MLP.

        Raises:
            ObservationError: the bundle has no such agent.
        """
        return AgentPolicy(self, self._index(name))

    # ----------------------------------------------------------------------------------------------------- checking

    def _index(self, agent: str) -> int:
        if agent not in self.spec.agents:
            known = ", ".join(self.spec.agents[:8]) + (", ..." if len(self.spec.agents) > 8 else "")
            raise ObservationError(f"no agent {agent!r}; agents are {known}")
        return self.spec.agents.index(agent)

    def _rows(self, agent: str, given: Any, dtype: torch.dtype) -> Tensor:
        """Args: given `[E, size]` or `[size]`. Returns it as a tensor `[E, size]`."""
        self._index(agent)
        what, size = "observation", self.spec.observations[agent].size
        if dtype == torch.bool:
            what, size = "action mask", sum(self.spec.agent_actions(agent).choices)
            if self.spec.actions.continuous:
                raise ObservationError(f"agent {agent!r}: continuous actions cannot be masked")
        try:
            x = torch.as_tensor(np.asarray(given)).to("cpu", dtype)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ObservationError(f"agent {agent!r}: its {what} is no array of numbers ({error})") from error
        x = x.unsqueeze(0) if x.ndim == 1 else x
        if x.ndim != 2 or x.shape[1] != size:
            raise ObservationError(f"agent {agent!r}: its {what} has shape {np.shape(given)}, expected {size} numbers")
        if not torch.isfinite(x).all():
            raise ObservationError(f"agent {agent!r}: its {what} is not finite")
        return x

    def _check_memory(self, memory: Memory | None, num_envs: int) -> None:
        kind, shape = self.spec.model.memory, (len(self.spec.agents), num_envs, self.spec.memory_dim("actor"))
        if kind is None and memory is not None:
            raise ObservationError("this team has no memory: leave it out")
        if kind is not None and memory is None:
            raise MemoryMissingError(f"this team has memory ({kind}): give act a memory, blank({num_envs}) at first")
        if memory is not None and memory.state.shape != shape:
            raise ObservationError(
                f"the memory has shape {tuple(memory.state.shape)}, expected {shape}: agents, environments, numbers"
            )
        if memory is not None and not torch.isfinite(memory.state).all():
            raise ObservationError("the memory is not finite")

    def _check_mask(self, mask: Tensor) -> None:
        blocked = self.spec.actions.blocked(self.net.allowed(mask)).nonzero()
        if len(blocked):
            agent, row = blocked[0].tolist()
            raise ObservationError(f"agent {self.spec.agents[agent]!r}: its action mask allows nothing (row {row})")


class AgentPolicy(nn.Module):
    """One agent alone: a plain MLP with what belongs to it, for programs that know nothing of teams.

    Made by `TeamPolicy.agent`; it holds copies. With memory, an encoder and a recurrent core stand before the MLP.
    """

    def __init__(self, team: TeamPolicy, index: int):
        super().__init__()
        net, spec, name = team.net, team.spec, team.spec.agents[index]
        policy = spec.agent_policies[index]
        self.actions: ActionSpec = spec.agent_actions(name)
        size, places = spec.observations[name].size, spec.actions.places_of(self.actions)
        if spec.actions.continuous and spec.actions.log_std == "generated":
            places = [*places, *(len(spec.actions.low) + place for place in places)]
        weights = {
            head: [[x[policy if len(x) > 1 else 0] for x in layer] for layer in layers]
            for head, layers in team._weights("actor").items()
        }
        reader = weights["actor" if spec.model.memory is None else encoder_of("actor")]
        reader[0][0] = reader[0][0][:size]  # without what only others observe or can do
        weights["actor"][-1] = [x[..., places] for x in weights["actor"][-1]]
        mlps = {head: _mlp(layers, spec.heads[head].activation) for head, layers in weights.items()}
        self.mlp = mlps["actor"][:-1]
        self.encoder: nn.Sequential | None = mlps.get(encoder_of("actor"))
        self.core = None if self.encoder is None else copy.deepcopy(net.cores["actor"])
        own: dict[str, Tensor] = {}
        if "obs" in net.norms:
            norm = net.norms["obs"]
            mean, std = norm.mean, norm.std  # all observe alike where observations are normalised
            if net.snapshot is not None:
                mean, std = (x[policy] for x in net.snapshot.put_in_norm(norm, len(team.spec.policies)))
            own |= {"obs_mean": mean, "obs_std": std}
            self.limit = norm.limit
        if self.actions.continuous:
            device = net.action_low.device
            own |= {key: torch.tensor(getattr(self.actions, key), device=device) for key in ("low", "high")}
            if (log_std := net.agent_log_std()) is not None:
                own["log_std"] = (log_std[index] if len(log_std) > 1 else log_std[0]).reshape(-1)[places]
        for name in ("obs_mean", "obs_std", "low", "high", "log_std"):
            self.register_buffer(name, own[name].clone() if name in own else None)

    def blank(self, num_envs: int) -> Memory | None:
        """As `TeamPolicy.blank`, of this agent: its `state` is `[B, size]`."""
        if self.core is None:
            return None
        return Memory(self.core.cell.weight_hh.new_zeros(num_envs, self.core.state_dim))

    def forward(self, obs: Tensor, memory: Memory | None = None) -> Tensor:
        """What its actor puts out. Args: obs `[B, obs]`. Returns `[B, out]`, as `TeamPolicy.forward` does."""
        if self.obs_mean is not None:
            obs = ((obs - self.obs_mean) / self.obs_std).clamp(-self.limit, self.limit)
        if self.core is None:
            return self.mlp(obs)
        if memory is None:
            raise MemoryMissingError("this agent has memory: give it one, blank(num_envs) at first")
        seen, memory.state = self.core.step(self.encoder(obs), memory.state)
        return self.mlp(seen)

    def distribution(
        self, obs: Tensor, action_mask: Tensor | None = None, memory: Memory | None = None
    ) -> Distribution:
        """Its action distribution.

        Args:
            obs: `[B, obs]`.
            action_mask: `[B, sum(choices)]` bool, of discrete actions.
            memory: of agents that have one; moved on.
        """
        return self.actions.distribution(self(obs, memory), self.log_std, self.low, self.high, action_mask)


def _mlp(layers: list[Layer], activation: str) -> nn.Sequential:
    """Layers `(weight [in, out], bias [out])`, with the activation behind every one of them, the last one too."""
    modules: list[nn.Module] = []
    for weight, bias in layers:
        linear = nn.utils.skip_init(nn.Linear, *weight.shape, device=weight.device, dtype=weight.dtype)
        linear.weight.data.copy_(weight.T)
        linear.bias.data.copy_(bias)
        modules += [linear, _ACTIVATIONS[activation]()]
    return nn.Sequential(*modules).requires_grad_(False)
