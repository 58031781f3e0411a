"""Rollouts: what a runner collects, agent-major in memory, and generalised advantage estimation."""

from __future__ import annotations

import dataclasses

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
        actions: `[N, T, E]`.
        logp: `[N, T, E]`, log-probability of the action when it was taken.
        reward: `[N, T, E]`.
        terminated, truncated: `[T, E]` bool.
        last_obs: `[N, E, obs]`, what follows the last step.
        final_obs: `[N, F, obs]`, last observations of the F episodes that were cut by time.
        final_index: `[F]`, for each of them its row `t * E + e`.
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

    @property
    def num_env_steps(self) -> int:
        """T * E."""
        return self.terminated.numel()


class RolloutBuffer:
    """Collects one rollout, step by step, without synchronising."""

    def __init__(self, num_agents: int, length: int, num_envs: int, obs_dim: int, device: torch.device):
        shape = (num_agents, length, num_envs)
        self.obs = torch.empty(*shape, obs_dim, device=device)
        self.actions = torch.empty(shape, dtype=torch.int64, device=device)
        self.logp = torch.empty(shape, device=device)
        self.reward = torch.empty(shape, device=device)
        self.terminated = torch.empty(shape[1:], dtype=torch.bool, device=device)
        self.truncated = torch.empty(shape[1:], dtype=torch.bool, device=device)
        self._ends: list[tuple[int, Tensor]] = []
        self._t = 0

    def add(self, obs: Tensor, actions: Tensor, logp: Tensor, step: Step) -> None:
        """Args: obs `[N, E, obs]`, actions and logp `[N, E]` of one step, and what the env answered."""
        t = self._t
        self.obs[:, t], self.actions[:, t], self.logp[:, t] = obs, actions, logp
        self.reward[:, t] = step.reward.T
        self.terminated[t], self.truncated[t] = step.terminated, step.truncated
        if step.final_obs is not step.obs:  # something ended, or may have
            self._ends.append((t, step.final_obs))
        self._t += 1

    def finish(self, last_obs: Tensor) -> Rollout:
        """Args: last_obs `[N, E, obs]`."""
        num_agents, _, num_envs, obs_dim = self.obs.shape
        final_obs = self.obs.new_zeros(num_agents, 0, obs_dim)
        final_index = torch.zeros(0, dtype=torch.int64, device=self.obs.device)
        if self._ends:
            steps = torch.tensor([t for t, _ in self._ends], device=self.obs.device)
            observations = torch.stack([obs for _, obs in self._ends])  # [k, E, N, obs]
            k, e = (self.truncated & ~self.terminated)[steps].nonzero(as_tuple=True)
            final_obs = observations[k, e].transpose(0, 1).contiguous()
            final_index = steps[k] * num_envs + e
        return Rollout(
            self.obs, self.actions, self.logp, self.reward, self.terminated, self.truncated,
            last_obs, final_obs, final_index,
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
    carry = gamma * lambda_ * ~(terminated | truncated)
    advantage = torch.empty_like(delta)
    running = torch.zeros_like(delta[:, 0])
    for t in reversed(range(delta.shape[1])):
        running = torch.addcmul(delta[:, t], carry[t], running)
        advantage[:, t] = running
    return advantage


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
