"""What several learners do together: sums over all of them, with a time limit."""

from __future__ import annotations

import datetime
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

TIMEOUT = datetime.timedelta(seconds=60)
"""How long a learner waits for another one (torch's own limit is half an hour)."""


class Collective:
    """The learners of a group; alone, nothing is exchanged.

    Args:
        size: number of learners. More than one: all of them must make their `Collective` together, in processes that
            `torch.distributed` knows.
    """

    def __init__(self, size: int):
        self.size = size
        self._group = dist.new_group(timeout=TIMEOUT) if size > 1 else None

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all learners, in place."""
        if self._group is not None:
            dist.all_reduce(x, group=self._group)
        return x

    def range(self, x: float, device: torch.device) -> tuple[float, float]:
        """The least and the greatest `x` of all learners."""
        if self._group is None:
            return x, x
        extremes = torch.tensor([-x, x], dtype=torch.float64, device=device)
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=self._group)
        low, high = extremes.tolist()
        return -low, high

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces all gradients by their means over the learners, in one exchange."""
        if self._group is None:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = self.sum(torch.cat([grad.flatten() for grad in grads])).div_(self.size)
        for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(mean.view_as(grad))

    def copy_first(self, module: nn.Module) -> None:
        """Gives all learners the first one's parameters and buffers."""
        if self._group is not None:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0, group=self._group)
