"""Context encoders: what a hypernetwork reads, one row per policy.

An encoder is a module without inputs that returns the context `[P, d]`. Positions or system parameters can join here
later as encoders that read them; hypernetworks only see `[G, d]`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Embedding(nn.Module):
    """One learned vector per policy (the paper's choice for the MLP hypernetwork)."""

    def __init__(self, num_policies: int, dim: int):
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(torch.empty(num_policies, dim))

    def forward(self) -> Tensor:
        """Returns `[P, d]`."""
        return self.weight


class OneHot(nn.Module):
    """The identity matrix, one row per policy (the paper's choice for the linear hypernetwork). No parameters."""

    def __init__(self, num_policies: int):
        super().__init__()
        self.dim = num_policies

    def forward(self) -> None:
        """Returns None, which stands for the identity: multiplying by it needs no arithmetic."""
        return None
