"""Groups of policies that learn separately: adversaries, whose gains are each other's losses, share no weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .sharing import Axis, Layer


class LearningGroups(nn.Module):
    """Which of P policies learn together, as indices that lie where the net does.

    Args:
        members: of each of G groups, the rows of its policies among all P.
    """

    def __init__(self, members: list[list[int]]):
        super().__init__()
        of_policy = {row: group for group, rows in enumerate(members) for row in rows}
        self.register_buffer("of_policy", torch.tensor([of_policy[row] for row in sorted(of_policy)]), persistent=False)
        self.register_buffer("all", torch.arange(len(members)), persistent=False)

    def members(self, policy_of: Tensor) -> Tensor:
        """`[G, N]`, 1.0 where an agent is of a group. Args: policy_of `[N]`, the agents' policies."""
        return (self.of_policy[policy_of] == self.all.unsqueeze(1)).double()

    def owner(self, parameter: str, per_policy: bool) -> Tensor:
        """The group of each slice along a parameter's first axis, or `[1]`, of all of it.

        Args:
            parameter: its name in the `TeamNet`.
            per_policy: whether it has a slice for each policy; else it has one for each group, or is a group's own.
        """
        if parameter.startswith("sources."):  # sources.HEAD.groups.GROUP...
            group = int(parameter.split(".")[3])
            return self.all[group : group + 1]
        return self.of_policy if per_policy else self.all


class SeparateSources(nn.Module):
    """The weight sources of several groups of policies behind the call of one (`sharing.py`).

    Args:
        members: of each source, the rows of its policies among all P.
    """

    def __init__(self, sources: list[nn.Module], members: list[list[int]]):
        super().__init__()
        self.groups, self.members = nn.ModuleList(sources), members
        order = [row for rows in members for row in rows]
        self.register_buffer("home", torch.tensor(order).argsort(), persistent=False)

    def contexts(self, context: Tensor | None) -> list[Tensor | None]:
        """What each group's source reads. Args: context `[P, d]`, or None, the identity."""
        return [None if context is None else context[rows] for rows in self.members]

    def forward(self, context: Tensor | None) -> list[Layer]:
        """Args: context `[P, d]`, or None, the identity. Returns `(weight [P, in, out], bias [P, out])` a layer."""
        made = [source(x) for source, x in zip(self.groups, self.contexts(context), strict=True)]
        return [tuple(self._join(tensors) for tensors in zip(*layer, strict=True)) for layer in zip(*made, strict=True)]

    def _join(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """`[P, ...]` of `[G's policies or 1, ...]` per group."""
        pairs = zip(tensors, self.members, strict=True)
        return torch.cat([x.expand(len(rows), *x.shape[1:]) for x, rows in pairs]).index_select(0, self.home)

    def policy_axes(self, one_hot: bool) -> dict[str, Axis]:
        """None to tell: teams with groups change neither their policies nor the order of them."""
        return {}


def clip_by_group_(parameters: list[tuple[nn.Parameter, Tensor]], num_groups: int, limit: float) -> Tensor:
    """Clips the norm of each group's gradient by itself, in place: a great one of one group would shrink all others'.

    Args:
        parameters: each with the group of its every slice along the first axis `[len]`, or the one of all of it `[1]`.
        limit: of each group's norm.

    Returns:
        `[num_groups]`, the norms before.
    """
    with_gradients = [(p.grad, owner) for p, owner in parameters if p.grad is not None]
    squares = with_gradients[0][0].new_zeros(num_groups)
    for gradient, owner in with_gradients:
        squares.index_add_(0, owner, gradient.square().reshape(len(owner), -1).sum(dim=1))
    norms = squares.sqrt()
    factors = (limit / (norms + 1e-6)).clamp_max(1.0)  # as torch's own
    for gradient, owner in with_gradients:
        gradient.mul_(factors[owner].view(-1, *[1] * (gradient.dim() - 1)))
    return norms
