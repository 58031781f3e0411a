"""Running normalisation whose statistics are buffers: they travel with state dicts, weight syncs and checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningNorm(nn.Module):
    """Shifts and scales by the mean and standard deviation of what it has seen; does nothing before that.

    Args:
        dim: features, the last axis of what it normalises.
        window: the newest statistics keep at least the weight of 1 / window of all; None: everything counts alike.
        limit: normalised values are clamped to it; a feature that hardly ever changed would explode when it does.
    """

    def __init__(self, dim: int, window: float | None = None, limit: float | None = None):
        super().__init__()
        self.window, self.limit = window, limit
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("var", torch.ones(dim))
        self.register_buffer("count", torch.zeros(1))  # single precision, as RLlib makes of every number it restores

    @property
    def std(self) -> Tensor:
        return (self.var + 1e-8).sqrt()

    def forward(self, x: Tensor, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
        """Args: mean, std: others to normalise by, that broadcast against x."""
        x = (x - (self.mean if mean is None else mean)) / (self.std if std is None else std)
        return x if self.limit is None else x.clamp(-self.limit, self.limit)

    def inverse(self, x: Tensor) -> Tensor:
        return x * self.std + self.mean

    @staticmethod
    def moments(x: Tensor) -> Tensor:
        """Count, sums and sums of squares `[1 + 2 * dim]` of rows `[..., dim]`; those of several learners add up."""
        x = x.flatten(0, -2).double()
        return torch.cat([x.new_full((1,), len(x)), x.sum(dim=0), x.square().sum(dim=0)])

    @torch.no_grad()
    def update(self, moments: Tensor) -> None:
        """Takes in new rows (Chan et al. 1979, parallel variance). Args: moments as `moments` returns them."""
        count, total, squares = moments[:1].clamp_min(1e-9), *moments[1:].chunk(2)  # there may be no rows
        mean = total / count
        var = (squares / count - mean.square()).clamp_min(0)
        past = self.count if self.window is None else self.count.clamp_max((self.window - 1) * count)
        share = count / (past + count)
        delta = mean - self.mean
        self.var.copy_((1 - share) * self.var + share * var + share * (1 - share) * delta.square())
        self.mean.copy_(self.mean + share * delta)
        self.count.copy_(past + count)
