"""Where target weights come from: the sharing modes, behind one call.

Every source returns, per layer of the target network, `(weight [G, in, out], bias [G, out])`. G is the number of
policies P, or 1 where all policies share the tensor.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from .spec import HeadSpec

Layer = tuple[Tensor, Tensor]
Axis = tuple[int, int]
"""Where a parameter holds one slice per policy: the dimension, and the index in it of policy 0."""


def _affine(x: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
    """`x @ weight + bias` over a leading batch axis; x None is the identity matrix."""
    return weight + bias if x is None else torch.baddbmm(bias, x, weight)


class HyperNetwork(nn.Module):
    """Generates target weights from contexts (paper Eq. 2 and 3).

    As in the paper, every target layer has two generators of its own, one for the matrix and one for the bias; each is
    an MLP with its own hidden layers (none: the linear hypernetwork). All 2L hidden stacks run as one batched product.

    Args:
        context_dim: d.
        hidden: hidden sizes of each generator.
        layers: `(in, out, gain)` of the target network's layers.
    """

    def __init__(self, context_dim: int, hidden: tuple[int, ...], layers: list[tuple[int, int, float]]):
        super().__init__()
        self.layers = layers
        self.shapes = [shape for i, o, _ in layers for shape in ((i, o), (o,))]  # matrix, bias, matrix, bias, ...
        generators, sizes = len(self.shapes), [context_dim, *hidden]
        self.trunk_weights = nn.ParameterList(
            nn.Parameter(torch.empty(generators, i, o)) for i, o in itertools.pairwise(sizes)
        )
        self.trunk_biases = nn.ParameterList(nn.Parameter(torch.empty(generators, 1, o)) for o in hidden)
        outputs = [torch.Size(shape).numel() for shape in self.shapes]
        self.head_weights = nn.ParameterList(nn.Parameter(torch.empty(sizes[-1], out)) for out in outputs)
        self.head_biases = nn.ParameterList(nn.Parameter(torch.empty(out)) for out in outputs)

    def features(self, context: Tensor | None) -> list[Tensor | None]:
        """What each generator's last layer reads: `[P, h]` per generator."""
        if not len(self.trunk_weights):
            return [context] * len(self.shapes)
        x = None if context is None else context.expand(len(self.shapes), *context.shape)
        for weight, bias in zip(self.trunk_weights, self.trunk_biases, strict=True):
            x = torch.relu(_affine(x, weight, bias))
        return list(x.unbind(0))

    def forward(self, context: Tensor | None) -> list[Layer]:
        """Args: context `[P, d]`, or None for the identity. Returns `(weight [P, in, out], bias [P, out])` a layer."""
        flat = [
            weight + bias if x is None else torch.addmm(bias, x, weight)
            for x, weight, bias in zip(self.features(context), self.head_weights, self.head_biases, strict=True)
        ]
        generated = [x.view(-1, *shape) for x, shape in zip(flat, self.shapes, strict=True)]
        return list(zip(generated[::2], generated[1::2], strict=True))

    def policy_axes(self, one_hot: bool) -> dict[str, Axis]:
        """Parameter -> where it holds one slice per policy: a one-hot context picks rows of the first layers."""
        if not one_hot:
            return {}
        if len(self.trunk_weights):
            return {"trunk_weights.0": (1, 0)}
        return {f"head_weights.{i}": (0, 0) for i in range(len(self.shapes))}


class Direct(nn.Module):
    """Weights that are parameters themselves: one set per policy (`none`) or one for all (`full`)."""

    def __init__(self, groups: int, layers: list[tuple[int, int, float]], per_policy: bool = False):
        super().__init__()
        self.layers, self.per_policy = layers, per_policy
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(groups, i, o)) for i, o, _ in layers)
        self.biases = nn.ParameterList(nn.Parameter(torch.empty(groups, o)) for _, o, _ in layers)

    def forward(self, context: Tensor | None = None) -> list[Layer]:
        return list(zip(self.weights, self.biases, strict=True))

    def policy_axes(self, one_hot: bool) -> dict[str, Axis]:
        if not self.per_policy:
            return {}
        return {f"{kind}.{depth}": (0, 0) for kind in ("weights", "biases") for depth in range(len(self.layers))}


class DirectWithId(Direct):
    """`full_id`: one net for all that reads the observation and the policy's one-hot id.

    A one-hot input picks one row of the first matrix, so the id is the same as a first bias of each policy's own: the
    observation never has to be copied beside an id.
    """

    def __init__(self, num_policies: int, layers: list[tuple[int, int, float]]):
        (in_dim, out_dim, gain), *rest = layers
        super().__init__(1, [(in_dim + num_policies, out_dim, gain), *rest])
        self.in_dim = in_dim

    def forward(self, context: Tensor | None = None) -> list[Layer]:
        (weight, bias), *rest = super().forward()
        return [(weight[:, : self.in_dim], weight[0, self.in_dim :] + bias), *rest]

    def policy_axes(self, one_hot: bool) -> dict[str, Axis]:
        return {"weights.0": (1, self.in_dim)}


def make_source(head: HeadSpec, num_policies: int, context_dim: int, hypernet_hidden: tuple[int, ...]) -> nn.Module:
    """The weight source of a head. `context_dim` and `hypernet_hidden` matter to hypernetworks only."""
    if head.sharing == "none":
        return Direct(num_policies, head.layers, per_policy=True)
    if head.sharing == "full":
        return Direct(1, head.layers)
    if head.sharing == "full_id":
        return DirectWithId(num_policies, head.layers)
    return HyperNetwork(context_dim, hypernet_hidden if head.sharing == "hyper_mlp" else (), head.layers)
