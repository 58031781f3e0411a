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
        final_obs: `[N, F, obs]`, last observations of the F episodes that were cut by time.
        final_index: `[F]`, for each of them its row `t * E + e`.
        state: `[T, E, state]`, of envs that have one, beside `obs`; so are `last_state` `[E, state]` and `final_state`
            `[F, state]`.
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

    def env_steps(self) -> int:
        """T * E."""
        return self.terminated.numel()

    def agent_steps(self) -> int:
        """T * E * N."""
        return self.reward.numel()

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
    "last_state": 0,
}  # fmt: skip


def join(rollouts: Sequence[Rollout]) -> Rollout:
    """One rollout of all the envs of rollouts of equal length, in their order."""
    if len(rollouts) == 1:
        return rollouts[0]
    fields: dict[str, Any] = {}
    for name, axis in (*_ENV_AXIS.items(), ("final_obs", 1), ("final_state", 0)):
        parts = [getattr(rollout, name) for rollout in rollouts]
        fields[name] = None if parts[0] is None else torch.cat(parts, dim=axis)
    num_envs, first, index = fields["terminated"].shape[1], 0, []
    for rollout in rollouts:
        own = rollout.terminated.shape[1]
        t, e = rollout.final_index // own, rollout.final_index % own
        index.append(t * num_envs + first + e)
        first += own
    return Rollout(**fields, final_index=torch.cat(index))


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
        self._ends: list[tuple[int, Step]] = []
        self._t = 0

    def add(self, obs: Tensor, actions: Tensor, logp: Tensor, step: Step, state: Tensor | None = None) -> None:
        """Adds one step.

        Args:
            obs: `[N, E, obs]`, what was acted on; so is `state` `[E, state]`.
            actions: `[N, E, ...]`.
            logp: `[N, E]`.
            step: what the env answered.
        """
        t = self._t
        if self.state is not None:
            self.state[t] = state
        self.obs[:, t], self.actions[:, t], self.logp[:, t] = obs, actions, logp
        self.reward[:, t] = step.reward.T
        self.terminated[t], self.truncated[t] = step.terminated, step.truncated
        if step.final_obs is not step.obs:  # something ended, or may have
            self._ends.append((t, step))
        self._t += 1

    def finish(self, last_obs: Tensor, last_state: Tensor | None = None) -> Rollout:
        """Args: last_obs `[N, E, obs]`, last_state `[E, state]`."""
        num_agents, _, num_envs, obs_dim = self.obs.shape
        final_obs = self.obs.new_zeros(num_agents, 0, obs_dim)
        final_index = torch.zeros(0, dtype=torch.int64, device=self.obs.device)
        final_state = None if self.state is None else self.state.new_zeros(0, self.state.shape[-1])
        if self._ends:
            steps = torch.tensor([t for t, _ in self._ends], device=self.obs.device)
            observations = torch.stack([step.final_obs for _, step in self._ends])  # [k, E, N, obs]
            k, e = (self.truncated & ~self.terminated)[steps].nonzero(as_tuple=True)
            final_obs = observations[k, e].transpose(0, 1).contiguous()
            final_index = steps[k] * num_envs + e
            if self.state is not None:
                final_state = torch.stack([step.final_state for _, step in self._ends])[k, e]
        return Rollout(
            self.obs, self.actions, self.logp, self.reward, self.terminated, self.truncated,
            last_obs, final_obs, final_index, self.state, last_state, final_state,
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
        terminated, truncated: `[T, E]` bool. Either ends the sum of later errors.

    Returns:
        Advantages `[N, T, E]`. Value targets are advantages plus values.
    """
    delta = reward + gamma * next_value * ~terminated - value
    carry = gamma * lambda_ * (~(terminated | truncated)).to(delta.dtype)
    advantage = torch.empty_like(delta)
    running = torch.zeros_like(delta[:, 0])
    for t in reversed(range(delta.shape[1])):
        running = torch.addcmul(delta[:, t], carry[t], running)
        advantage[:, t] = running
    return advantage


def returns_to_go(reward: Tensor, ended: Tensor, gamma: float) -> Tensor:
    """Discounted sums of the rewards to come, of what the rollout holds of each episode, `[N, T, E]`.

    Args:
        reward: `[N, T, E]`.
        ended: `[T, E]` bool.
    """
    nothing = torch.zeros_like(reward)
    return gae(reward, nothing, nothing, ended, torch.zeros_like(ended), gamma, 1.0)


def next_values(value: Tensor, last_value: Tensor, final_value: Tensor, final_index: Tensor) -> Tensor:
    """What follows each step: the next step's value, and the final observation's where time cut an episode.

    Args:
        value: `[N, T, E]`.
        last_value: `[N, E]`, after the last step.
        final_value: `[N, F]` at the rows `final_index` `[F]`.

    Returns:
        `[N, T, E]`.
    """
    result = torch.cat([value[:, 1:], last_value.unsqueeze(1)], dim=1)
    result.view(len(value), -1)[:, final_index] = final_value
    return result
