"""Rollouts: what a runner collects, agent-major in memory, and generalised advantage estimation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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


# ---------------------------------------------------------------------------------------------------------- episodes


@dataclasses.dataclass(slots=True)
class Episodes:
    """Results of K finished episodes.

    Attributes:
        returns: `[K, N]`, sum of each agent's rewards.
        lengths: `[K]`, in env steps.
    """

    returns: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def env_steps(self) -> int:
        return int(self.lengths.sum())

    def agent_steps(self) -> int:
        return self.env_steps() * self.returns.shape[1]

    def summary(self, agents: Sequence[str]) -> dict[str, Any]:
        """Metrics under RLlib's names; `agent_return_mean` (mean over agents, the paper's measure) is ours.

        Args:
            agents: the agents whose own returns are reported, the first ones of the env's order.
        """
        if not len(self):
            return {}
        team = self.returns.sum(dim=1)
        return {
            "episode_return_mean": team.mean().item(),
            "episode_return_min": team.min().item(),
            "episode_return_max": team.max().item(),
            "episode_len_mean": self.lengths.float().mean().item(),
            "episode_len_min": self.lengths.min().item(),
            "episode_len_max": self.lengths.max().item(),
            "agent_return_mean": self.returns.mean().item(),
            "agent_return_std": self.returns.mean(dim=1).std(correction=0).item(),
            "agent_episode_returns_mean": dict(zip(agents, self.returns.mean(dim=0).tolist(), strict=False)),
        }


class EpisodeTracker:
    """Follows episodes across rollouts and keeps the last `window` finished ones."""

    def __init__(self, num_agents: int, num_envs: int, window: int, device: torch.device):
        self.running_return = torch.zeros(num_agents, num_envs, device=device)
        self.running_length = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self.window = window
        self._recent = Episodes(torch.zeros(0, num_agents), torch.zeros(0, dtype=torch.int64))

    def update(self, rollout: Rollout) -> int:
        """Adds a rollout. Returns the number of episodes that finished in it."""
        done = rollout.terminated | rollout.truncated
        going = ~done
        returns = torch.empty_like(rollout.reward)
        lengths = torch.empty(done.shape, dtype=torch.int64, device=done.device)
        for t in range(len(done)):
            returns[:, t] = self.running_return + rollout.reward[:, t]
            lengths[t] = self.running_length + 1
            self.running_return = returns[:, t] * going[t]
            self.running_length = lengths[t] * going[t]
        finished = returns.permute(1, 2, 0)[done].cpu()
        self._recent = Episodes(
            torch.cat([self._recent.returns, finished])[-self.window :],
            torch.cat([self._recent.lengths, lengths[done].cpu()])[-self.window :],
        )
        return len(finished)

    def recent(self) -> Episodes:
        """The last `window` finished episodes."""
        return self._recent

    def get_state(self) -> dict[str, Tensor]:
        return {
            "running_return": self.running_return.cpu(),
            "running_length": self.running_length.cpu(),
            "returns": self._recent.returns,
            "lengths": self._recent.lengths,
        }

    def set_state(self, state: dict[str, Tensor], keep_running: bool = True) -> None:
        """Args: keep_running: whether the unfinished episodes go on (else they are dropped)."""
        self._recent = Episodes(state["returns"], state["lengths"])
        if keep_running:
            self.running_return = state["running_return"].to(self.running_return.device)
            self.running_length = state["running_length"].to(self.running_length.device)
        else:
            self.running_return = torch.zeros_like(self.running_return)
            self.running_length = torch.zeros_like(self.running_length)
