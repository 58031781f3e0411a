"""Means over the pairs of a team."""

from __future__ import annotations

from torch import Tensor


def mean_over_pairs(square: Tensor) -> float:
    """Mean of a symmetric matrix `[N, N]` over its N (N - 1) / 2 pairs, the diagonal left out; 0 for a team of one."""
    n = len(square)
    return float((square.sum() - square.trace()) / (n * (n - 1))) if n > 1 else 0.0
