"""Initialisation schemes.

`paper`      What the reference code does: orthogonal blocks in the heads of the hypernetwork, LeCun-normal hidden
             layers, generated biases zero. The generated matrices come out at `||h(e)||` times the standard scale:
             four times too large with 4 agents and 4-d embeddings, about right with 64-d ones.
`exact`      The default. Features of unit length, and every generated matrix of every policy at the standard scale
             (root mean square singular value = gain), for any embedding size and number of policies. Hidden layers
             much narrower than the number of policies miss it for some: so few features cannot serve so many.
`framework`  PyTorch's own defaults everywhere (the paper's ablation "without RF").

Networks that are not generated get the direct PPO initialisation (orthogonal, biases zero) under `paper` and `exact`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .contexts import Embedding
from .groups import SeparateSources
from .memory import Core
from .sharing import Direct, HyperNetwork, RowHyperNetwork

_ROWS = 64  # standard normal observations for each policy, where what is generated depends on them


def orthogonal(count: int, rows: int, cols: int, gain: float) -> Tensor:
    """`count` independent random matrices `[rows, cols]` whose singular values all equal `gain`."""
    q, r = torch.linalg.qr(torch.randn(count, max(rows, cols), min(rows, cols)))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # makes the distribution uniform
    return gain * (q if rows >= cols else q.mT)


def lecun_normal_(weight: Tensor) -> None:
    """Truncated normal with variance 1 / fan-in, for `[..., in, out]` (Flax's default, used by the reference)."""
    std = weight.shape[-2] ** -0.5 / 0.87962566103423978  # standard deviation of a normal cut at two sigmas
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def spread(count: int, dim: int, length: float, steps: int = 300) -> Tensor:
    """`count` vectors `[count, dim]` of one length, as far apart in direction as gradient descent finds.

    Orthogonal where there is room. More vectors than dimensions would start as close as chance has it, and two policies
    with equal embeddings are one policy: pushing them apart costs milliseconds, once.
    """
    if count <= dim:
        return orthogonal(1, count, dim, length)[0]
    x = torch.randn(count, dim)
    for step in range(steps):
        x = nn.functional.normalize(x, dim=-1)
        cosine = x @ x.T
        push = torch.softmax(cosine.fill_diagonal_(-math.inf) * 20.0, dim=-1)  # the nearest neighbours push most
        x = x - 0.5 * (1 - step / steps) * (push @ x)
    return length * nn.functional.normalize(x, dim=-1)


def calibrate(features: Tensor, kernel: Tensor, norm: float, rounds: int = 100) -> Tensor:
    """Nudges a head's kernel until it generates rows of one Frobenius norm for every policy.

    Alternates between rescaling the generated rows and the smallest change of the kernel that yields them.

    Args:
        features: `[P, h]`, what the head reads.
        kernel: `[h, in * out]`.
        norm: the wanted norm of each row of `features @ kernel`.

    Returns:
        The changed kernel, `[h, in * out]`.
    """
    features, kernel = features.double(), kernel.double()
    inverse = torch.linalg.pinv(features, rtol=1e-2)
    # All changes are products from the left, and norms take the Gram matrix alone: `[h, h]` stands for `[h, in * out]`.
    gram, change = kernel @ kernel.mT, torch.eye(len(kernel)).to(kernel)
    for _ in range(rounds):
        mixed = features @ change
        length = ((mixed @ gram) * mixed).sum(dim=-1, keepdim=True).clamp_min(0).sqrt()
        excess = norm / length.clamp_min(1e-9) - 1
        if excess.abs().max() < 5e-3:
            break
        change = change + inverse @ (excess * mixed)
    return (change @ kernel).float()


@torch.no_grad()
def init_embedding(encoder: Embedding, rows: list[int], scheme: str) -> None:
    """Learned contexts of policies that one source reads: orthogonal of gain sqrt(2) (`paper`), spread on that sphere
    (`exact`), normal (`framework`)."""
    count, dim = len(rows), encoder.dim
    if scheme == "paper":
        encoder.weight[rows] = orthogonal(1, count, dim, math.sqrt(2.0))[0]
    elif scheme == "exact":
        encoder.weight[rows] = spread(count, dim, math.sqrt(2.0))
    else:
        encoder.weight[rows] = torch.randn(count, dim)


@torch.no_grad()
def init_direct(source: Direct, scheme: str) -> None:
    """Weights that are parameters: orthogonal with the layer's gain, or PyTorch's `Linear` default."""
    for weight, bias, (i, o, gain) in zip(source.weights, source.biases, source.layers, strict=True):
        if scheme == "framework":
            bound = i**-0.5
            weight.uniform_(-bound, bound)
            bias.uniform_(-bound, bound)
        else:
            weight.copy_(orthogonal(len(weight), i, o, gain))
            bias.zero_()


def init_source(source: nn.Module, context: Tensor | None, scheme: str) -> None:
    """Any weight source. Args: context `[P, d]` as it will be read at the start (None: the identity)."""
    if isinstance(source, SeparateSources):
        for part, read in zip(source.groups, source.contexts(context), strict=True):
            init_source(part, read, scheme)
    elif isinstance(source, RowHyperNetwork):
        in_dim = source.layers[0][0]
        policies = source.context_dim - in_dim if context is None else len(context)
        rows = torch.randn(policies, _ROWS, in_dim)
        init_hypernetwork(source, source.read(context, rows), scheme, of_policies=False)
    elif isinstance(source, HyperNetwork):
        init_hypernetwork(source, context, scheme)
    else:
        init_direct(source, scheme)


@torch.no_grad()
def init_core(core: Core, scheme: str) -> None:
    """Recurrent cores: gates orthogonal in the state, LeCun-normal in the input, biases zero (Flax's cells, which the
    reference uses); or PyTorch's own."""
    if scheme == "framework":
        core.cell.reset_parameters()
        return
    for weight, bias in ((core.cell.weight_ih, core.cell.bias_ih), (core.cell.weight_hh, core.cell.bias_hh)):
        bias.zero_()
        for gate in weight.split(core.size):  # [size, in] each
            if weight is core.cell.weight_hh:
                gate.copy_(orthogonal(1, *gate.shape, gain=1.0)[0])
            else:
                lecun_normal_(gate.T)


def _unit_features(source: HyperNetwork, context: Tensor | None, rounds: int = 100) -> None:
    """Scales the hidden layers so that features have unit length (root mean square over policies) in each generator.

    Narrow hidden layers can leave most units of some policy off (ReLU); no head could then give it weights of the same
    scale as the others. Generators are drawn again until the shortest features are at least half as long as the
    typical ones; where no draw gets there, the best one is kept.
    """
    kept = [weight.clone() for weight in source.trunk_weights]
    scale = kept[0].new_ones(len(kept[0]))
    evenness = torch.full_like(scale, -1.0)  # shortest / typical length
    for _ in range(rounds):
        length = torch.stack(source.features(context)[: len(scale)]).norm(dim=-1)  # [trunks, P]
        typical = length.square().mean(-1).sqrt()
        even = length.min(-1).values / typical.clamp_min(1e-9)
        better = (even > evenness) & (evenness < 0.5)
        evenness[better], scale[better] = even[better], typical[better]
        for keep, weight in zip(kept, source.trunk_weights, strict=True):
            keep[better] = weight[better]
        if (evenness >= 0.5).all():
            break
        for weight in source.trunk_weights:
            lecun_normal_(weight)
    for keep, weight in zip(kept, source.trunk_weights, strict=True):
        weight.copy_(keep)
    source.trunk_weights[-1].div_(scale.clamp_min(1e-9)[:, None, None])  # ReLU is homogeneous: this scales features


@torch.no_grad()
def init_hypernetwork(source: HyperNetwork, context: Tensor | None, scheme: str, of_policies: bool = True) -> None:
    """Args: context `[P, d]` as it will be read at the start (None: the identity). Not `of_policies`: a sample of what
    will be read, for which features have unit length in the mean, and nothing more is exact.
    """
    if scheme == "framework":
        for weight, bias in [
            *zip(source.trunk_weights, source.trunk_biases, strict=True),
            *zip(source.head_weights, source.head_biases, strict=True),
        ]:
            bound = weight.shape[-2] ** -0.5
            weight.uniform_(-bound, bound)
            bias.uniform_(-bound, bound)
        return

    for weight, bias in zip(source.trunk_weights, source.trunk_biases, strict=True):
        lecun_normal_(weight)
        bias.zero_()
    if scheme == "exact" and len(source.trunk_weights):
        _unit_features(source, context)

    heads = zip(
        source.features(context), source.head_weights, source.head_biases, source.shapes, source.ranks, strict=True
    )
    gains = [gain for _, _, gain in source.layers for _ in range(2)]
    for (features, weight, bias, shape, rank), gain in zip(heads, gains, strict=True):
        weight.zero_()
        bias.zero_()
        if len(shape) == 1:  # generated biases start at zero
            continue
        calibrated = scheme == "exact" and of_policies and features is not None
        if rank is None:
            _init_blocks(weight, shape, gain, features if calibrated else None)
            continue
        # A base, and beside it `rank` directions of the same gain, by which policies differ; together the whole scale.
        gain = gain * (1 + rank / min(shape)) ** -0.5
        bias.copy_(orthogonal(1, *shape, gain).flatten())
        down, up = weight.split([shape[0] * rank, rank * shape[1]], dim=1)
        for factor, size in ((down, (shape[0], rank)), (up, (rank, shape[1]))):
            _init_blocks(factor, size, gain**0.5, features if calibrated else None)


def _init_blocks(weight: Tensor, shape: tuple[int, int], gain: float, features: Tensor | None) -> None:
    """A head's kernel: each of its rows is an orthogonal matrix. Args: weight `[h, in * out]`; features `[P, h]`, for
    which generated matrices get the norm of such a one."""
    weight.copy_(orthogonal(len(weight), *shape, gain).flatten(1))
    if features is not None:
        weight.copy_(calibrate(features, weight, gain * min(shape) ** 0.5))
