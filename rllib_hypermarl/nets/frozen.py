"""Frozen policies: fixed actor weights in place of generated ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .normalise import RunningNorm
from .sharing import Layer


class Snapshot(nn.Module):
    """Actor weights of F frozen policies, as buffers: they travel with state dicts, weight syncs and checkpoints.

    A policy whose weights are generated cannot be frozen by leaving its data out: the hypernetwork that it shares with
    the others moves on, and it with it.

    Args:
        rows: the frozen policies' rows among all P.
        agent_policies: of each agent, the row of its policy.
        layers: `(in, out, gain)` of the actor's layers.
        log_std_dim: of continuous actions whose log standard deviation is a parameter; else 0.
        norm_dim: of observations that are normalised; else 0.
    """

    def __init__(
        self,
        rows: Sequence[int],
        agent_policies: Sequence[int],
        layers: list[tuple[int, int, float]],
        log_std_dim: int,
        norm_dim: int,
    ):
        super().__init__()
        trained = [agent for agent, policy in enumerate(agent_policies) if policy not in rows]
        self.register_buffer("rows", torch.tensor(rows), persistent=False)
        self.register_buffer("trained", torch.tensor(trained, dtype=torch.int64), persistent=False)
        self.depth = len(layers)
        for depth, (i, o, _) in enumerate(layers):
            self.register_buffer(f"weight_{depth}", torch.zeros(len(rows), i, o))
            self.register_buffer(f"bias_{depth}", torch.zeros(len(rows), o))
        self.register_buffer("log_std", torch.zeros(len(rows), log_std_dim) if log_std_dim else None)
        for name in ("obs_mean", "obs_std"):
            self.register_buffer(name, torch.zeros(len(rows), norm_dim) if norm_dim else None)

    def take(self, slot: int, row: int, layers: list[Layer], log_std: Tensor | None, norm: RunningNorm | None) -> None:
        """Stores what the policy in `row` of all acts with, as the `slot`-th frozen one."""
        for depth, layer in enumerate(layers):
            for kept, tensor in zip(self.layer(depth), layer, strict=True):
                kept[slot].copy_(tensor[row if len(tensor) > 1 else 0])  # one row may stand for all
        if self.log_std is not None:
            self.log_std[slot].copy_(log_std[row if len(log_std) > 1 else 0])
        if norm is not None:
            self.obs_mean[slot].copy_(norm.mean)
            self.obs_std[slot].copy_(norm.std)

    def layer(self, depth: int) -> Layer:
        """Weights `[F, in, out]` and biases `[F, out]` of one layer."""
        return getattr(self, f"weight_{depth}"), getattr(self, f"bias_{depth}")

    def put_in(self, layers: list[Layer], num_policies: int) -> list[Layer]:
        """The layers with the frozen policies' rows replaced, `[P, ...]` each; no gradient flows through those."""
        return [
            tuple(
                self._replace(tensor, kept, num_policies) for tensor, kept in zip(layer, self.layer(depth), strict=True)
            )
            for depth, layer in enumerate(layers)
        ]

    def put_in_log_std(self, log_std: Tensor, num_policies: int) -> Tensor:
        """Args: log_std `[1, dim]` or `[P, dim]`. Returns `[P, dim]`."""
        return self._replace(log_std, self.log_std, num_policies)

    def put_in_norm(self, norm: RunningNorm, num_policies: int) -> tuple[Tensor, Tensor]:
        """The mean and standard deviation `[P, obs]` that each policy's observations are normalised by."""
        mean, std = norm.mean.unsqueeze(0), norm.std.unsqueeze(0)
        return self._replace(mean, self.obs_mean, num_policies), self._replace(std, self.obs_std, num_policies)

    def _replace(self, tensor: Tensor, kept: Tensor, num_policies: int) -> Tensor:
        return tensor.expand(num_policies, *tensor.shape[1:]).index_copy(0, self.rows, kept)
