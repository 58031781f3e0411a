"""Where target weights come from: the sharing modes, behind one call.

Every source returns, per layer of the target network, `(weight [G, in, out], bias [G, out])`. G is the number of
policies P, or 1 where all policies share the tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .spec import HeadSpec, ModelSpec

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
        shared_trunk: all generators read what one hidden stack puts out.
        rank: matrices are `base + down @ up`, base for all policies, `down [in, rank]` and `up [rank, out]` generated.
            None: every entry is generated.
    """

    def __init__(
        self,
        context_dim: int,
        hidden: tuple[int, ...],
        layers: list[tuple[int, int, float]],
        shared_trunk: bool = False,
        rank: int | None = None,
    ):
        super().__init__()
        self.context_dim, self.layers = context_dim, layers
        self.shapes = [shape for i, o, _ in layers for shape in ((i, o), (o,))]  # matrix, bias, matrix, bias, ...
        self.ranks = [None if rank is None or len(shape) == 1 else min(rank, *shape) for shape in self.shapes]
        trunks, sizes = 1 if shared_trunk else len(self.shapes), [context_dim, *hidden]
        self.trunk_weights = nn.ParameterList(
            nn.Parameter(torch.empty(trunks, i, o)) for i, o in itertools.pairwise(sizes)
        )
        self.trunk_biases = nn.ParameterList(nn.Parameter(torch.empty(trunks, 1, o)) for o in hidden)
        full = [torch.Size(shape).numel() for shape in self.shapes]
        outputs = [
            numbers if rank is None else rank * sum(shape)
            for numbers, rank, shape in zip(full, self.ranks, self.shapes, strict=True)
        ]
        self.head_weights = nn.ParameterList(nn.Parameter(torch.empty(sizes[-1], out)) for out in outputs)
        self.head_biases = nn.ParameterList(nn.Parameter(torch.empty(numbers)) for numbers in full)

    def features(self, context: Tensor | None) -> list[Tensor | None]:
        """What each generator's last layer reads: `[P, h]` per generator."""
        if not len(self.trunk_weights):
            return [context] * len(self.shapes)
        x = None if context is None else context.expand(len(self.trunk_weights[0]), *context.shape)
        for weight, bias in zip(self.trunk_weights, self.trunk_biases, strict=True):
            x = torch.relu(_affine(x, weight, bias))
        return list(x.expand(len(self.shapes), *x.shape[1:]).unbind(0))

    def forward(self, context: Tensor | None) -> list[Layer]:
        """Args: context `[P, d]`, or None for the identity. Returns `(weight [P, in, out], bias [P, out])` a layer."""
        parts = (self.features(context), self.head_weights, self.head_biases, self.shapes, self.ranks)
        generated = [self._head(*part) for part in zip(*parts, strict=True)]
        return list(zip(generated[::2], generated[1::2], strict=True))

    @staticmethod
    def _head(x: Tensor | None, weight: Tensor, bias: Tensor, shape: tuple[int, ...], rank: int | None) -> Tensor:
        if rank is None:
            return (weight + bias if x is None else torch.addmm(bias, x, weight)).view(-1, *shape)
        down, up = (weight if x is None else x @ weight).split([shape[0] * rank, rank * shape[1]], dim=1)
        return torch.baddbmm(bias.view(shape), down.reshape(-1, shape[0], rank), up.reshape(-1, rank, shape[1]))

    def policy_axes(self, one_hot: bool) -> dict[str, Axis]:
        """Parameter -> where it holds one slice per policy: a one-hot context picks rows of the first layers."""
        if not one_hot:
            return {}
        if len(self.trunk_weights):
            return {"trunk_weights.0": (1, 0)}
        return {f"head_weights.{i}": (0, 0) for i in range(len(self.shapes))}


class RowHyperNetwork(HyperNetwork):
    """Generators that also read what the target network reads: every row has weights of its own.

    The paper's ablation without gradient decoupling: the gradient in a policy's weights no longer factors into one part
    of the context and one of the observations. It costs about as much arithmetic per row as generating a network does.

    Args: as of `HyperNetwork`, but for context_dim, which is `in + d`, and without `rank`.
    """

    _CHUNK, _CHUNK_CPU = 4096, 512
    """Rows whose products of features and inputs are held at once; 64 x 64 of 512 rows, 8 MB, stay in a CPU's cache."""

    def forward(self, context: Tensor | None) -> list[Layer]:
        """Nothing: no weights belong to a policy alone; see `apply`."""
        return []

    def read(self, context: Tensor | None, x: Tensor, policies: slice = slice(None)) -> Tensor:
        """What the generators read, `[P * B, in + d]`. Args: as of `apply`."""
        if context is None:
            context = torch.eye(self.context_dim - x.shape[-1], dtype=x.dtype, device=x.device)
        return torch.cat([x, context[policies].unsqueeze(1).expand(*x.shape[:2], -1)], dim=-1).flatten(0, 1)

    def apply(
        self, context: Tensor | None, x: Tensor, act: Callable[[Tensor], Tensor], policies: slice = slice(None)
    ) -> Tensor:
        """Runs every row through the network that is generated for it.

        Args:
            context: `[P, d]`, or None, the identity.
            x: `[P, B, in]`.
            act: between layers.
            policies: those whose rows x holds.

        Returns:
            `[P, B, out]`.
        """
        chunk = self._CHUNK_CPU if x.device.type == "cpu" else self._CHUNK
        read = self.read(context, x, policies).split(chunk)
        parts = [self._rows(*part, act) for part in zip(read, x.flatten(0, 1).split(chunk), strict=True)]
        return torch.cat(parts).unflatten(0, x.shape[:2])

    def _rows(self, read: Tensor, x: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        """`x W(h) + b(h)` per layer. W = sum_k h_k K_k + base, so all pairs `h_k x_i` meet all K in one product."""
        features = self.features(read)
        for depth, (i, o, _) in enumerate(self.layers):
            matrix, bias = 2 * depth, 2 * depth + 1
            x = act(x) if depth else x
            pairs = (features[matrix].unsqueeze(2) * x.unsqueeze(1)).flatten(1)  # [rows, h * in]
            offset = torch.addmm(self.head_biases[bias], features[bias], self.head_weights[bias])
            offset = torch.addmm(offset, x, self.head_biases[matrix].view(i, o))
            x = torch.addmm(offset, pairs, self.head_weights[matrix].view(-1, o))
        return x

    def policy_axes(self, one_hot: bool) -> dict[str, Axis]:
        in_dim = self.layers[0][0]
        return {name: (dim, in_dim + first) for name, (dim, first) in super().policy_axes(one_hot).items()}


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


def make_source(spec: ModelSpec, head: HeadSpec, num_policies: int, context_dim: int) -> nn.Module:
    """The weight source of one of a spec's heads, for a number of its policies."""
    if head.sharing == "none":
        return Direct(num_policies, head.layers, per_policy=True)
    if head.sharing == "full":
        return Direct(1, head.layers)
    if head.sharing == "full_id":
        return DirectWithId(num_policies, head.layers)
    if head.sharing == "hyper_linear":
        return HyperNetwork(context_dim, (), head.layers, rank=spec.hypernet_rank)
    if spec.hypernet_reads_obs:
        return RowHyperNetwork(head.in_dim + context_dim, spec.hypernet_hidden, head.layers, spec.hypernet_shared_trunk)
    return HyperNetwork(context_dim, spec.hypernet_hidden, head.layers, spec.hypernet_shared_trunk, spec.hypernet_rank)
