"""The slow, obvious way to compute what the library computes: loops over agents, rows and time, no batching.

Nothing here calls the code under test; it only reads parameters out of the library's modules.
"""

import torch
from torch import Tensor

from rllib_hypermarl.nets import HeadSpec, ModelSpec, TeamNet

ACTIVATIONS = {"relu": lambda x: x * (x > 0), "tanh": lambda x: 2 / (1 + torch.exp(-2 * x)) - 1}


def team(
    sharing="hyper_mlp",
    critic_sharing=None,
    agent_policies=(0, 1, 2),
    obs_dim=5,
    state_dim=7,
    actions=3,
    hidden=(6, 5),
    activation="relu",
    **spec,
) -> TeamNet:
    """A float64 actor and critic whose every parameter is random: biases that start at zero would hide mistakes."""
    heads = {
        "actor": HeadSpec(obs_dim, actions, hidden, sharing, activation, 0.01),
        "critic": HeadSpec(state_dim, 1, hidden, critic_sharing or sharing, activation),
    }
    policies = tuple(f"p{i}" for i in range(max(agent_policies) + 1))
    net = TeamNet(ModelSpec(policies, tuple(agent_policies), heads, **spec)).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise / parameter.shape[-2] ** 0.5 if parameter.dim() > 1 else 0.5 * noise)
    return net


# -------------------------------------------------------------------------------------------------------------- nets


def context_of(net: TeamNet, head: str, policy: int) -> Tensor:
    """What the hypernetwork of this head reads for one policy: a row of the embedding, or a one-hot vector."""
    spec, sharing = net.spec, net.spec.heads[head].sharing
    if (spec.context or {"hyper_mlp": "embedding", "hyper_linear": "one_hot"}[sharing]) == "embedding":
        return net.contexts["embedding"].weight[policy]
    return torch.eye(len(spec.policies), dtype=torch.float64)[policy]


def run_generator(net: TeamNet, head: str, index: int, read: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What one generator puts out: hidden layers with ReLU, then an affine head; or two factors beside a base."""
    source, x = net.sources[head], read
    trunk = 0 if net.spec.hypernet_shared_trunk else index
    for weight, bias in zip(source.trunk_weights, source.trunk_biases, strict=True):
        x = ACTIVATIONS["relu"](x @ weight[trunk] + bias[trunk, 0])
    x, base = x @ source.head_weights[index], source.head_biases[index].reshape(shape)
    if net.spec.hypernet_rank is None or len(shape) == 1:
        return x.reshape(shape) + base
    rank = min(net.spec.hypernet_rank, *shape)
    down, up = x[: shape[0] * rank].reshape(shape[0], rank), x[shape[0] * rank :].reshape(rank, shape[1])
    return base + sum(torch.outer(down[:, r], up[r]) for r in range(rank))


def policy_layers(net: TeamNet, head: str, policy: int, row: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
    """One policy's ordinary network: `(weight [in, out], bias [out])` per layer. `full_id` reads `[x, one-hot]`.

    Args:
        row: `[in]`, for which it is generated, where generators read the observation.
    """
    spec, source = net.spec.heads[head], net.sources[head]
    sizes = [spec.in_dim, *spec.hidden, spec.out_dim]
    layers = []
    for depth in range(len(sizes) - 1):
        if spec.sharing.startswith("hyper"):
            read, shape = context_of(net, head, policy), (sizes[depth], sizes[depth + 1])
            if net.spec.hypernet_reads_obs and spec.sharing == "hyper_mlp":
                read = torch.cat([row, read])
            weight = run_generator(net, head, 2 * depth, read, shape)
            layers.append((weight, run_generator(net, head, 2 * depth + 1, read, shape[1:])))
        else:
            index = policy if spec.sharing == "none" else 0
            layers.append((source.weights[depth][index], source.biases[depth][index]))
    return layers


def forward_row(net: TeamNet, head: str, layers: list[tuple[Tensor, Tensor]], policy: int, row: Tensor) -> Tensor:
    """One policy's network on one observation."""
    spec = net.spec.heads[head]
    if spec.sharing == "full_id":
        row = torch.cat([row, torch.eye(len(net.spec.policies), dtype=row.dtype)[policy]])
    for depth, (weight, bias) in enumerate(layers):
        if depth:
            row = ACTIVATIONS[spec.activation](row)
        row = row @ weight + bias
    return row


def forward(net: TeamNet, head: str, x: Tensor) -> Tensor:
    """`[N, B, in] -> [N, B, out]`, agent by agent and row by row."""
    rows = []
    for agent, policy in enumerate(net.spec.agent_policies):
        made = [(row, policy_layers(net, head, policy, row)) for row in x[agent]]
        rows.append(torch.stack([forward_row(net, head, layers, policy, row) for row, layers in made]))
    return torch.stack(rows)


# ------------------------------------------------------------------------------------------------------------ memory


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def core_step(net: TeamNet, head: str, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One step of a GRU (Cho et al. 2014, as PyTorch has it) or an LSTM: what comes out, and the new state."""
    cell, size = net.cores[head].cell, net.spec.memory_size
    h, tanh = state[:size], torch.tanh
    read = (cell.weight_ih @ x + cell.bias_ih).split(size)
    kept = (cell.weight_hh @ h + cell.bias_hh).split(size)
    if net.spec.memory == "gru":
        reset, update = sigmoid(read[0] + kept[0]), sigmoid(read[1] + kept[1])
        h = (1 - update) * tanh(read[2] + reset * kept[2]) + update * h
        return h, h
    take, keep, new, out = (a + b for a, b in zip(read, kept, strict=True))
    c = sigmoid(keep) * state[size:] + sigmoid(take) * tanh(new)
    h = sigmoid(out) * tanh(c)
    return h, torch.cat([h, c])


def recall(net: TeamNet, head: str, agent: int, row: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One agent, one observation: what its head puts out, and the state of its memory afterwards."""
    policy, encoder = net.spec.agent_policies[agent], f"{head}_encoder"
    encoded = forward_row(net, encoder, policy_layers(net, encoder, policy), policy, row)
    seen, state = core_step(net, head, ACTIVATIONS[net.spec.heads[encoder].activation](encoded), state)
    return forward_row(net, head, policy_layers(net, head, policy), policy, seen), state


def recall_all(net: TeamNet, head: str, x: Tensor, start: Tensor, lost: Tensor) -> tuple[Tensor, Tensor]:
    """All agents, steps and envs, one by one.

    Args:
        x: `[N, T, E, in]`.
        start: `[N, S, E, size]`, the state at the start of S sequences that T is cut into.
        lost: `[N, T, E]` bool, whose state is zero after the step.

    Returns:
        What heads put out `[N, T, E, out]`, and the states after each step, before anything is lost `[N, T, E, size]`.
    """
    agents, steps, envs = x.shape[:3]
    length = steps // start.shape[1]
    outputs, states = {}, {}
    for n in range(agents):
        for e in range(envs):
            for t in range(steps):
                if t % length == 0:
                    state = start[n, t // length, e]
                elif lost[n, t - 1, e]:
                    state = torch.zeros_like(state)
                outputs[n, t, e], state = recall(net, head, n, x[n, t, e], state)
                states[n, t, e] = state
    stack = [torch.stack([found[key] for key in sorted(found)]) for found in (outputs, states)]
    return tuple(one.view(agents, steps, envs, -1) for one in stack)


def gradients(loss: Tensor, net: TeamNet) -> dict[str, Tensor]:
    """Gradient per parameter name; zeros where the loss does not reach."""
    named = dict(net.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(named, grads, strict=True))


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        describe = f"{name}: {{}}".format
        torch.testing.assert_close(ours[name], theirs[name], rtol=tolerance, atol=tolerance, msg=describe)


# --------------------------------------------------------------------------------------------------------------- GAE


def advantages(reward, value, last_value, final_value, terminated, truncated, gamma, lambda_) -> Tensor:
    """Generalised advantages as the sum they are defined by.

    Args:
        reward, value: `[N, T, E]`.
        last_value: `[N, E]`.
        final_value: `[N, T, E]`, value of the observation that ended an episode at (t, e); read only there.
        terminated, truncated: `[T, E]`.
    """
    result = torch.zeros_like(reward)
    agents, steps, envs = reward.shape
    for n in range(agents):
        for e in range(envs):
            for t in range(steps):
                total, weight = 0.0, 1.0
                for k in range(t, steps):
                    if terminated[k, e]:
                        following = 0.0
                    elif truncated[k, e]:
                        following = final_value[n, k, e]
                    else:
                        following = last_value[n, e] if k == steps - 1 else value[n, k + 1, e]
                    total = total + weight * (reward[n, k, e] + gamma * following - value[n, k, e])
                    weight *= gamma * lambda_
                    if terminated[k, e] or truncated[k, e]:
                        break
                result[n, t, e] = total
    return result


# ---------------------------------------------------------------------------------------------------------- PPO loss


def log_softmax(logits: Tensor) -> Tensor:
    """Of one row."""
    return logits - logits.max() - (logits - logits.max()).exp().sum().log()


def value_error(distance: Tensor, delta: float | None) -> Tensor:
    """Half the square, or Huber's: beyond delta the line that goes on with the parabola's slope."""
    if delta is None or abs(distance) <= delta:
        return distance**2 / 2
    return delta**2 / 2 + delta * (abs(distance) - delta)


def ppo_loss(logp, entropy, value, old_logp, old_value, advantage, value_target, config) -> tuple[Tensor, dict]:
    """The PPO loss, entry by entry, with branches in place of minima and clamps."""
    policy, error, kl, clipped_rows = [], [], [], 0
    rows = list(zip(*(x.flatten() for x in (logp, value, old_logp, old_value, advantage, value_target)), strict=True))
    for new, v, old, old_v, adv, target in rows:
        ratio = torch.exp(new - old)
        too_high, too_low = ratio > 1 + config.clip_param, ratio < 1 - config.clip_param
        clipped_rows += int(too_high or too_low)
        if too_high and adv > 0:
            policy.append((1 + config.clip_param) * adv)
        elif too_low and adv < 0:
            policy.append((1 - config.clip_param) * adv)
        else:
            policy.append(ratio * adv)
        worst, limit = value_error(v - target, config.huber_delta), config.clip_value_loss
        if limit is not None and abs(v - old_v) > limit:
            near = old_v + limit if v > old_v else old_v - limit
            if abs(near - target) > abs(v - target):
                worst = value_error(near - target, config.huber_delta)
        error.append(worst)
        kl.append(ratio - 1 - (new - old))
    count = len(rows)
    stats = {
        "policy_loss": -sum(policy) / count,
        "vf_loss": sum(error) / count,
        "entropy": sum(entropy.flatten()) / count,
        "mean_kl_loss": sum(kl) / count,
        "clip_fraction": torch.tensor(clipped_rows / count),
    }
    loss = stats["policy_loss"] + config.vf_loss_coeff * stats["vf_loss"] - config.entropy_coeff * stats["entropy"]
    return loss, {name: x.detach() for name, x in stats.items()}
