"""The scale and the spread of what a team starts with."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from rllib_hypermarl.nets import SHARING, HeadSpec, ModelSpec, TeamNet
from rllib_hypermarl.nets.init import calibrate, lecun_normal_, orthogonal, spread
from tests import oracle


def team(
    n, d, hypernet_hidden, init, seed, *, obs=16, actions=9, hidden=(64, 64), sharing="hyper_mlp", context=None, **spec
):
    torch.manual_seed(seed)
    heads = {
        "actor": HeadSpec(obs, actions, hidden, sharing, out_gain=0.01),
        "critic": HeadSpec(obs, 1, hidden, sharing),
    }
    hypernet_hidden = (hypernet_hidden,) if isinstance(hypernet_hidden, int) else hypernet_hidden
    policies = tuple(f"p{i}" for i in range(n))
    return TeamNet(ModelSpec(policies, tuple(range(n)), heads, context, d, hypernet_hidden, init=init, **spec))


def gains(head):
    """The standard scale of each layer of a head."""
    return [math.sqrt(2)] * len(head.hidden) + [head.out_gain]


@torch.no_grad()
def relative_rms(net):
    """Root mean square singular value over gain, `[P]` per layer of every head."""
    return [
        weight.flatten(1).norm(dim=1) / min(weight.shape[1:]) ** 0.5 / gain
        for head, layers in net.generate().items()
        for (weight, _), gain in zip(layers, gains(net.spec.heads[head]), strict=True)
    ]


@torch.no_grad()
def distances(net):
    """Relative Frobenius distance of every two policies' whole networks, each matrix scaled by its norm."""
    result = []
    for layers in net.generate().values():
        scaled = [torch.nn.functional.normalize(weight.flatten(1), dim=1) for weight, _ in layers]
        flat = torch.cat(scaled, dim=1).double() / len(scaled) ** 0.5
        result.append(torch.nn.functional.pdist(flat))
    return torch.cat(result)


# ------------------------------------------------------------------------------------------------------------- exact

# name: (size, seeds, least distance of any two policies over these seeds: half to nine tenths of what was measured)
EXACT = {
    "n4-d4-h64": ({"n": 4, "d": 4, "hypernet_hidden": 64}, 5, 0.8),
    "n17-d64-h64": ({"n": 17, "d": 64, "hypernet_hidden": 64}, 5, 0.8),
    "n20-d4-h16": ({"n": 20, "d": 4, "hypernet_hidden": 16}, 8, 0.4),
    "n64-d4-h64": ({"n": 64, "d": 4, "hypernet_hidden": 64}, 3, 0.4),
    "n4-one-hot-h64": ({"n": 4, "d": 4, "hypernet_hidden": 64, "context": "one_hot"}, 3, 0.8),
    "n4-d4-h64x32": ({"n": 4, "d": 4, "hypernet_hidden": (64, 32)}, 3, 0.5),
    "n20-d4-no-hidden": ({"n": 20, "d": 4, "hypernet_hidden": ()}, 3, 0.8),
    "n4-shared-trunk": ({"n": 4, "d": 4, "hypernet_hidden": 64, "hypernet_shared_trunk": True}, 3, 0.8),
    "n20-linear": ({"n": 20, "d": 4, "hypernet_hidden": (), "sharing": "hyper_linear"}, 2, 1.0),
    "n20-linear-embedding": (
        {"n": 20, "d": 4, "hypernet_hidden": (), "sharing": "hyper_linear", "context": "embedding"},
        2,
        0.8,
    ),
}
for games in (2, 4, 8, 16, 20):
    for width in (4, 4 * games):
        size = {"n": games, "d": 4, "hypernet_hidden": 16, "obs": games**2, "actions": games, "hidden": (width,)}
        EXACT[f"game{games}-hidden{width}"] = (size, 8, 0.3)


@pytest.mark.parametrize("size, seeds, least", EXACT.values(), ids=EXACT.keys())
def test_exact_gives_every_policy_the_standard_scale_and_weights_of_its_own(size, seeds, least):
    nearest, mean = math.inf, 0.0
    for seed in range(seeds):
        net = team(**size, init="exact", seed=seed)
        for rms in relative_rms(net):
            torch.testing.assert_close(rms, torch.ones(size["n"]), rtol=0.05, atol=0)
        between = distances(net)
        nearest, mean = min(nearest, between.min().item()), mean + between.mean().item() / seeds
        assert all(bias.abs().max() == 0 for layers in net.generate().values() for _, bias in layers)
    print(f"distance of two policies: mean {mean:.2f}, least {nearest:.2f}, bound {least}")
    assert nearest > least


@pytest.mark.parametrize("rank", [1, 2, 8])
@pytest.mark.parametrize("init", ["exact", "paper"])
def test_a_base_and_what_is_generated_beside_it_have_the_standard_scale_together(rank, init):
    net = team(6, 64, 64, init, 0, hypernet_rank=rank)
    nearly = {"exact": 0.2, "paper": 0.4}[init]  # factors have the scale, their product has it but for chance
    for rms in relative_rms(net):
        torch.testing.assert_close(rms, torch.ones(6), rtol=nearly, atol=0)
    for head, layers in net.generate().items():
        for (weight, _), shape, gain in zip(
            layers, net.sources[head].shapes[::2], gains(net.spec.heads[head]), strict=True
        ):
            least, own = min(rank, *shape), torch.linalg.svdvals(weight[0] - weight[1]) / gain
            assert (own[: min(2 * least, len(own))] > 1e-3).all() and (own[2 * least :] < 1e-5).all()


def test_weights_by_row_start_at_the_standard_scale_for_standard_normal_observations():
    net = team(4, 4, 64, "exact", 0, hypernet_reads_obs=True)
    x = torch.randn(4, 256, 16)
    for source, context in ((source, net._context(name)) for name, source in net.sources.items()):
        lengths = torch.stack(source.features(source.read(context, x))).norm(dim=-1)
        torch.testing.assert_close(lengths.square().mean(-1).sqrt(), torch.ones(len(lengths)), rtol=0.1, atol=0)
    plain = team(4, 4, 64, "exact", 0)
    ours, theirs = (n("critic", x, n.generate()).square().mean().sqrt().item() for n in (net, plain))
    assert 0.5 < ours / theirs < 2


@pytest.mark.parametrize("context", ["embedding", "one_hot"])
def test_exact_features_have_unit_length(context):
    net = team(17, 8, (32, 16), "exact", 0, context=context)
    for source_name, source in net.sources.items():
        lengths = torch.stack(source.features(net._context(source_name))).norm(dim=-1)
        torch.testing.assert_close(lengths.square().mean(-1), torch.ones(len(lengths)), rtol=1e-4, atol=0)
        assert lengths.min() > 0.4


@pytest.mark.parametrize("init", ["paper", "exact", "framework"])
@pytest.mark.parametrize(
    "n, d, hypernet_hidden", [(1, 1, 1), (4, 1, 64), (8, 8, 1), (20, 2, (2, 2)), (1, 4, ()), (3, 1, ())]
)
def test_tiny_sizes_give_finite_weights_and_gradients(n, d, hypernet_hidden, init):
    net = team(n, d, hypernet_hidden, init, 0, obs=1, actions=2, hidden=(1,))
    x = torch.randn(n, 3, 1)
    weights = net.generate()
    loss = sum(net(head, x, weights).square().mean() for head in weights)
    assert all(torch.isfinite(grad).all() for grad in oracle.gradients(loss, net).values())
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())


# ------------------------------------------------------------------------------------------------------------- paper


@pytest.mark.parametrize(
    "n, d, hypernet_hidden, length",
    [(4, 4, 64, 3.99), (4, 8, 64, 2.81), (4, 64, 64, 0.99), (8, 4, 64, 2.72), (17, 64, 64, 0.99)],
)
def test_paper_starts_at_the_scale_of_the_reference_code(n, d, hypernet_hidden, length):
    lengths, scales = [], []
    for seed in range(12):
        net = team(n, d, hypernet_hidden, "paper", seed)
        for head, source in net.sources.items():
            lengths.append(torch.stack(source.features(net._context(head))).norm(dim=-1))
        scales.append(torch.stack(relative_rms(net)))
    assert torch.cat(lengths).mean().item() == pytest.approx(length, rel=0.03)
    assert torch.cat(scales).mean().item() == pytest.approx(length, rel=0.05)  # half as many draws


def test_paper_heads_are_orthogonal_blocks_and_generated_biases_zero():
    net = team(4, 8, 16, "paper", 0)
    torch.testing.assert_close(net.contexts["embedding"].weight @ net.contexts["embedding"].weight.T, 2 * torch.eye(4))
    for head, source in net.sources.items():
        for (fan_in, fan_out, gain), kernel in zip(net.spec.heads[head].layers, source.head_weights[::2], strict=True):
            singular = torch.linalg.svdvals(kernel.view(-1, fan_in, fan_out))
            torch.testing.assert_close(singular, torch.full_like(singular, gain), rtol=1e-4, atol=0)
        assert all(kernel.abs().max() == 0 for kernel in source.head_weights[1::2])
        assert all(bias.abs().max() == 0 for bias in [*source.head_biases, *source.trunk_biases])


def test_linear_hypernetwork_on_one_hot_starts_as_the_direct_initialisation():
    layers = team(5, 4, (), "paper", 0, sharing="hyper_linear").generate("actor")["actor"]
    for (weight, _), gain in zip(layers, (math.sqrt(2), math.sqrt(2), 0.01), strict=True):
        singular = torch.linalg.svdvals(weight)
        torch.testing.assert_close(singular, torch.full_like(singular, gain), rtol=1e-4, atol=0)


# --------------------------------------------------------------------------------------------- direct and framework


@pytest.mark.parametrize("init", ["paper", "exact"])
@pytest.mark.parametrize("sharing", ["none", "full", "full_id"])
def test_networks_that_are_not_generated_are_orthogonal(sharing, init):
    net = team(5, 4, 64, init, 0, sharing=sharing)
    for head, source in net.sources.items():
        for weight, bias, gain in zip(source.weights, source.biases, gains(net.spec.heads[head]), strict=True):
            singular = torch.linalg.svdvals(weight)  # full_id: of the whole first matrix, id rows included
            torch.testing.assert_close(singular, torch.full_like(singular, gain), rtol=1e-4, atol=0)
            assert bias.abs().max() == 0
    first = net.sources["actor"].weights[0]
    assert first.shape == {"none": (5, 16, 64), "full": (1, 16, 64), "full_id": (1, 21, 64)}[sharing]
    if sharing == "none":
        assert distances(net).min() > 1


@torch.no_grad()
@pytest.mark.parametrize("sharing", SHARING)
def test_framework_has_the_bounds_of_torch_linear(sharing):
    net = team(6, 7, (40, 30), "framework", 0, sharing=sharing, context="one_hot")
    pairs = []
    for source in net.sources.values():
        if sharing.startswith("hyper"):
            pairs += [*zip(source.trunk_weights, source.trunk_biases, strict=True)]
            pairs += [*zip(source.head_weights, source.head_biases, strict=True)]
        else:
            pairs += [*zip(source.weights, source.biases, strict=True)]
    assert sum(tensor.numel() for pair in pairs for tensor in pair) == net.parameter_counts()["total"]
    for weight, bias in pairs:
        linear = torch.nn.Linear(weight.shape[-2], 4000)
        bound = linear.weight.abs().max().item()
        assert bound == pytest.approx(linear.bias.abs().max().item(), rel=0.01)
        for tensor in (weight, bias):
            assert tensor.abs().max() < 1.001 * weight.shape[-2] ** -0.5
            assert tensor.numel() < 200 or tensor.abs().max() == pytest.approx(bound, rel=0.05)
            assert tensor.numel() < 200 or tensor.std() == pytest.approx(linear.weight.std().item(), rel=0.15)


@pytest.mark.parametrize("init", ["paper", "exact", "framework"])
def test_the_seed_decides_everything(init):
    a, b, c = (team(5, 4, 8, init, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


# ---------------------------------------------------------------------------------------------------- building blocks


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 12), cols=st.integers(1, 12), gain=st.floats(0.01, 3))
def test_orthogonal_matrices_have_one_singular_value(rows, cols, gain):
    matrices = orthogonal(3, rows, cols, gain)
    assert matrices.shape == (3, rows, cols)
    singular = torch.linalg.svdvals(matrices)
    torch.testing.assert_close(singular, torch.full_like(singular, gain), rtol=1e-4, atol=0)


def calibrate_slowly(features, kernel, norm):
    """Whole generated rows in every round."""
    features, kernel = features.double(), kernel.double()
    inverse = torch.linalg.pinv(features, rtol=1e-2)
    for _ in range(100):
        generated = features @ kernel
        excess = norm / generated.norm(dim=-1, keepdim=True) - 1
        if excess.abs().max() < 5e-3:
            break
        kernel = kernel + inverse @ (excess * generated)
    return kernel.float()


@pytest.mark.parametrize("policies, hidden", [(1, 8), (4, 64), (20, 16), (64, 64), (100, 8)])
def test_a_kernel_is_calibrated_as_whole_rows_would_have_it(policies, hidden):
    torch.manual_seed(policies)
    features = torch.rand(policies, hidden) / hidden**0.5
    kernel = orthogonal(hidden, 12, 10, 1.4).flatten(1)
    found = calibrate(features, kernel, 4.0)
    torch.testing.assert_close(found, calibrate_slowly(features, kernel, 4.0), rtol=1e-5, atol=1e-6)
    if policies <= hidden:
        torch.testing.assert_close((features @ found).norm(dim=-1), torch.full((policies,), 4.0), rtol=6e-3, atol=0)


def test_orthogonal_matrices_point_everywhere():
    matrices = orthogonal(4000, 3, 3, 1.0)
    assert matrices.mean(dim=0).abs().max() < 0.05
    assert abs((torch.linalg.det(matrices) > 0).float().mean() - 0.5) < 0.05  # rotations and reflections alike
    assert abs(matrices.square().mean(dim=0) - 1 / 3).max() < 0.03


@pytest.mark.parametrize("count, dim", [(1, 1), (2, 2), (4, 4), (5, 8), (17, 64)])
def test_spread_is_orthogonal_where_there_is_room(count, dim):
    x = spread(count, dim, 1.5)
    torch.testing.assert_close(x @ x.T, 2.25 * torch.eye(count))


@pytest.mark.parametrize("count, dim, cosine", [(5, 4, 0.0), (8, 4, 0.1), (20, 4, 0.6), (64, 4, 0.85), (3, 2, -0.4)])
def test_spread_keeps_crowded_vectors_apart(count, dim, cosine):
    for seed in range(3):
        torch.manual_seed(seed)
        x = spread(count, dim, 1.5)
        torch.testing.assert_close(x.norm(dim=1), torch.full((count,), 1.5))
        assert ((x @ x.T) / 2.25 - 2 * torch.eye(count)).max() < cosine


def test_lecun_normal_has_variance_one_over_fan_in_and_no_outliers():
    weight = torch.empty(4, 50, 200)
    lecun_normal_(weight)
    assert weight.var().item() == pytest.approx(1 / 50, rel=0.03)
    assert weight.abs().max() <= 2.28 * 50**-0.5
