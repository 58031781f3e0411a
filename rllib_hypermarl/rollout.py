"""Rollouts: what runners collect, agent-major in memory, joined and split over envs; advantage estimation."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .env import Step


@dataclasses.dataclass(slots=True)
class Rollout:
    """T steps of E envs with N agents.

    Tensors are stored with the agent axis first, `[N, T, E, ...]`: target networks read each agent's rows as one block,
    and minibatches are slices of rows `(t, e)` that keep a team together.

    Attributes:
        obs: `[N, T, E, obs]`, what the agents acted on.
        actions: `[N, T, E]`, or `[N, T, E, components]`; as sampled, before clipping or squashing.
        logp: `[N, T, E]`, log-probability of the action when it was taken.
        reward: `[N, T, E]`.
        terminated, truncated: `[T, E]` bool.
        last_obs: `[N, E, obs]`, what follows the last step.
        final_obs: `[N, F, obs]`, last observations of the F episodes that were cut by time, those included that were
            cut for some of their agents alone.
        final_index: `[F]`, for each of them its row `t * E + e`.
        state: `[T, E, state]`, of envs that have one, beside `obs`; so are `last_state` `[E, state]` and `final_state`
            `[F, state]`.
        action_mask: `[N, T, E, choices]` bool, of envs that have one: what was allowed.
        alive: `[N, T, E]` bool, of envs whose agents come and go: who acted. All else that is of the others is
            meaningless; their observations are zeros.
        died: `[N, T, E]` bool, beside `alive`: who acted, and was not alive any more after the step.
        cut: `[N, T, E]` bool, beside `alive`: who acted, and was truncated alone.
        actor_memory, critic_memory: `[N, S, E, size]`, of teams with memory: what they remembered at the start of each
            of S sequences of equal length that the T steps are.
    """

    obs: Tensor
    actions: Tensor
    logp: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    last_obs: Tensor
    final_obs: Tensor
    final_index: Tensor
    state: Tensor | None = None
    last_state: Tensor | None = None
    final_state: Tensor | None = None
    action_mask: Tensor | None = None
    alive: Tensor | None = None
    died: Tensor | None = None
    cut: Tensor | None = None
    actor_memory: Tensor | None = None
    critic_memory: Tensor | None = None

    def env_steps(self) -> int:
        """T * E."""
        return self.terminated.numel()

    def agent_steps(self) -> int:
        """T * E * N, of agents that were alive."""
        return self.reward.numel() if self.alive is None else int(self.alive.sum())

    def ends(self) -> tuple[Tensor, Tensor]:
        """Who terminated, and who was truncated: `[T, E]` each, or `[N, T, E]` where agents come and go."""
        if self.died is None:
            return self.terminated, self.truncated
        return self.terminated | self.died, self.truncated | self.cut

    def forgets(self) -> Tensor:
        """`[N or 1, T, E]` bool, for whom nothing of what came before the end of a step counts any more."""
        ended = (self.terminated | self.truncated).unsqueeze(0)
        return ended if self.alive is None else ended | self.died | ~self.alive

    def arrays(self) -> Rollout:
        """The same in NumPy arrays, which travel between processes without being copied."""
        return self._map(lambda x: x.numpy(force=True))

    def tensors(self, device: torch.device | None = None) -> Rollout:
        """The same in tensors on a device (None: where they are)."""
        with warnings.catch_warnings():  # arrays out of an object store are read-only, and are only read
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return self._map(lambda x: torch.as_tensor(x, device=device))

    def _map(self, function: Callable[[Any], Any]) -> Rollout:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Rollout(**{name: None if x is None else function(x) for name, x in fields.items()})


# The axis of the envs in each field of a rollout; of the final ones, of the episodes that were cut.
_ENV_AXIS = {
    "obs": 2, "actions": 2, "logp": 2, "reward": 2, "terminated": 1, "truncated": 1, "last_obs": 1, "state": 1,
    "last_state": 0, "action_mask": 2, "alive": 2, "died": 2, "cut": 2, "actor_memory": 2, "critic_memory": 2,
}  # fmt: skip
_UNSAID = {"action_mask": True, "alive": True, "died": False, "cut": False}  # what it means where nothing is said


def join(rollouts: Sequence[Rollout]) -> Rollout:
    """One rollout of all the envs of rollouts of equal length, in their order."""
    if len(rollouts) == 1:
        return rollouts[0]
    fields: dict[str, Any] = {}
    for name, axis in (*_ENV_AXIS.items(), ("final_obs", 1), ("final_state", 0)):
        parts = [getattr(rollout, name) for rollout in rollouts]
        said = next((part for part in parts if part is not None), None)
        if said is not None and name in _UNSAID:
            parts = [_unsaid(name, said, r) if part is None else part for part, r in zip(parts, rollouts, strict=True)]
        fields[name] = None if said is None else torch.cat(parts, dim=axis)
    num_envs, first, index = fields["terminated"].shape[1], 0, []
    for rollout in rollouts:
        own = rollout.terminated.shape[1]
        t, e = rollout.final_index // own, rollout.final_index % own
        index.append(t * num_envs + first + e)
        first += own
    return Rollout(**fields, final_index=torch.cat(index))


def _unsaid(name: str, said: Tensor, rollout: Rollout) -> Tensor:
    """A field `[N, T, E, ...]` that a rollout does without. Args: said, the same field of another one."""
    return said.new_full((*rollout.reward.shape, *said.shape[3:]), _UNSAID[name])


def split(rollout: Rollout, shards: int) -> list[Rollout]:
    """Rollouts of equally many envs each; envs that are left over are dropped."""
    if shards == 1:
        return [rollout]
    num_envs = rollout.terminated.shape[1]
    own = num_envs // shards
    t, e = rollout.final_index // num_envs, rollout.final_index % num_envs
    result = []
    for first in range(0, own * shards, own) if own else [0] * shards:
        fields: dict[str, Any] = {}
        for name, axis in _ENV_AXIS.items():
            x = getattr(rollout, name)
            fields[name] = None if x is None else x.narrow(axis, first, own).contiguous()
        mine = ((e >= first) & (e < first + own)).nonzero().squeeze(1)
        fields["final_obs"] = rollout.final_obs[:, mine]
        fields["final_state"] = None if rollout.final_state is None else rollout.final_state[mine]
        result.append(Rollout(**fields, final_index=t[mine] * own + e[mine] - first))
    return result


class RolloutBuffer:
    """Collects one rollout, step by step, without synchronising."""

    def __init__(
        self,
        num_agents: int,
        length: int,
        num_envs: int,
        obs_dim: int,
        device: torch.device,
        action_shape: tuple[int, ...] = (),
        action_dtype: torch.dtype = torch.int64,
        state_dim: int | None = None,
    ):
        shape = (num_agents, length, num_envs)
        self.obs = torch.empty(*shape, obs_dim, device=device)
        self.actions = torch.empty(*shape, *action_shape, dtype=action_dtype, device=device)
        self.logp = torch.empty(shape, device=device)
        self.reward = torch.empty(shape, device=device)
        self.terminated = torch.empty(shape[1:], dtype=torch.bool, device=device)
        self.truncated = torch.empty(shape[1:], dtype=torch.bool, device=device)
        self.state = None if state_dim is None else torch.empty(length, num_envs, state_dim, device=device)
        self.action_mask: Tensor | None = None
        self.alive: Tensor | None = None
        self.died: Tensor | None = None
        self.cut: Tensor | None = None
        self._ends: list[tuple[int, Step]] = []
        self._t = 0

    def add(self, obs: Tensor, actions: Tensor, logp: Tensor, step: Step, before: Step | None = None) -> None:
        """Adds one step.

        Args:
            obs: `[N, E, obs]`, what was acted on.
            actions: `[N, E, ...]`.
            logp: `[N, E]`.
            step: what the env answered.
            before: the step that `obs` is of; for what else it says: state, masks, who is alive.
        """
        t = self._t
        if self.state is not None:
            self.state[t] = before.state
        reward = step.reward.T
        if before is not None and (mask := before.allowed()) is not None:
            self._keep("action_mask", t, mask)
        if before is not None and (gone := step.departures(before)) is not None:
            acted, died, cut = (x.T for x in gone)
            reward = reward.masked_fill(~acted, 0.0)
            for name, value in (("alive", acted), ("died", died), ("cut", cut)):
                self._keep(name, t, value)
        self.obs[:, t], self.actions[:, t], self.logp[:, t] = obs, actions, logp
        self.reward[:, t] = reward
        self.terminated[t], self.truncated[t] = step.terminated, step.truncated
        if step.final_obs is not step.obs:  # something ended, or may have
            self._ends.append((t, step))
        self._t += 1

    def _keep(self, name: str, t: int, value: Tensor) -> None:
        """What not all envs have, nor all steps. Args: value `[N, E, ...]`."""
        if getattr(self, name) is None:
            setattr(self, name, value.new_full((*self.reward.shape, *value.shape[2:]), _UNSAID[name]))
        getattr(self, name)[:, t] = value

    def finish(self, last_obs: Tensor, last_state: Tensor | None = None) -> Rollout:
        """Args: last_obs `[N, E, obs]`, last_state `[E, state]`."""
        num_agents, _, num_envs, obs_dim = self.obs.shape
        final_obs = self.obs.new_zeros(num_agents, 0, obs_dim)
        final_index = torch.zeros(0, dtype=torch.int64, device=self.obs.device)
        final_state = None if self.state is None else self.state.new_zeros(0, self.state.shape[-1])
        if self._ends:
            steps = torch.tensor([t for t, _ in self._ends], device=self.obs.device)
            observations = torch.stack([step.final_obs for _, step in self._ends])  # [k, E, N, obs]
            cut = self.truncated & ~self.terminated
            if self.cut is not None:
                cut = cut | self.cut.any(dim=0)
            k, e = cut[steps].nonzero(as_tuple=True)
            final_obs = observations[k, e].transpose(0, 1).contiguous()
            if self.alive is not None:
                gone = ~self.alive[:, steps[k], e] | self.died[:, steps[k], e]  # [N, F]
                final_obs = final_obs.masked_fill(gone.unsqueeze(-1), 0.0)
            final_index = steps[k] * num_envs + e
            if self.state is not None:
                final_state = torch.stack([step.final_state for _, step in self._ends])[k, e]
        return Rollout(
            self.obs, self.actions, self.logp, self.reward, self.terminated, self.truncated,
            last_obs, final_obs, final_index, self.state, last_state, final_state,
            self.action_mask, self.alive, self.died, self.cut,
        )  # fmt: skip


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    lambda_: float,
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, Eq. 16), time on the second axis.

    Args:
        reward, value: `[N, T, E]`.
        next_value: `[N, T, E]`, the value of what follows each step; at the end of an episode, of its final
            observation. Ignored where the episode terminated.
        terminated, truncated: `[T, E]`, or `[N, T, E]`, bool. Either ends the sum of later errors.

    Returns:
        Advantages `[N, T, E]`. Value targets are advantages plus values.
    """
    delta = reward + gamma * next_value * ~terminated - value
    carry = gamma * lambda_ * (~(terminated | truncated)).to(delta.dtype)
    advantage = torch.empty_like(delta)
    running = torch.zeros_like(delta[:, 0])
    for t in reversed(range(delta.shape[1])):
        running = torch.addcmul(delta[:, t], carry[..., t, :], running)
        advantage[:, t] = running
    return advantage


def returns_to_go(reward: Tensor, ended: Tensor, gamma: float) -> Tensor:
    """Discounted sums of the rewards to come, of what the rollout holds of each episode, `[N, T, E]`.

    Args:
        reward: `[N, T, E]`.
        ended: `[T, E]`, or `[N, T, E]`, bool.
    """
    nothing = torch.zeros_like(reward)
    return gae(reward, nothing, nothing, ended, torch.zeros_like(ended), gamma, 1.0)


def next_values(
    value: Tensor, last_value: Tensor, final_value: Tensor, final_index: Tensor, truncated: Tensor | None = None
) -> Tensor:
    """What follows each step: the next step's value, and the final observation's where time cut an episode.

    Args:
        value: `[N, T, E]`.
        last_value: `[N, E]`, after the last step.
        final_value: `[N, F]` at the rows `final_index` `[F]`.
        truncated: `[N, T, E]`, for whom time did. None, or `[T, E]`: for all agents.

    Returns:
        `[N, T, E]`.
    """
    result = torch.cat([value[:, 1:], last_value.unsqueeze(1)], dim=1)
    rows = result.view(len(value), -1)
    if truncated is not None and truncated.dim() == 3:
        final_value = torch.where(truncated.flatten(1)[:, final_index], final_value, rows[:, final_index])
    rows[:, final_index] = final_value
    return result
