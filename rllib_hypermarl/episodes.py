"""Results of finished episodes, and how they are gathered across rollouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .rollout import Rollout


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

    def summary(self, agents: Sequence[str], groups: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Metrics under RLlib's names; `agent_return_mean` (mean over agents, the paper's measure) is ours.

        Args:
            agents: the agents whose own returns are reported, the first ones of the env's order.
            groups: of each group that learns apart, the indices of its agents: the means over them are reported.
        """
        if not len(self):
            return {}
        team = self.returns.sum(dim=1)
        of_groups = {name: self.returns[:, own].mean().item() for name, own in groups.items()}
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
            **({"group_return_mean": of_groups} if groups else {}),
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
