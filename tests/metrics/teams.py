"""Small teams in double precision, with actors that act."""

import torch

from rllib_hypermarl.nets import ActionSpec, HeadSpec, ModelSpec, TeamNet

DISCRETE = ActionSpec(choices=(3,))
MULTI = ActionSpec(choices=(2, 3))
CONTINUOUS = ActionSpec(low=(-1.0, -1.0), high=(1.0, 1.0))


def team(sharing="hyper_mlp", agent_policies=(0, 1, 2), actions=DISCRETE, critic_hidden=(6, 5), **spec):
    """Every parameter is random: weights that start small, or at zero, would hide mistakes."""
    heads = {
        "actor": HeadSpec(4, actions.head_dim, (6, 5), sharing, "tanh"),
        "critic": HeadSpec(4, 1, critic_hidden, sharing, "tanh"),
    }
    policies = tuple(f"p{i}" for i in range(max(agent_policies) + 1))
    options = {"embedding_dim": 3, "hypernet_hidden": (7,), **spec}
    net = TeamNet(ModelSpec(policies, tuple(agent_policies), heads, actions=actions, **options)).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if not name.startswith("sources.critic"):
                scale = 0.3 if name == "log_std" else 0.7
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return net


def constant(outputs, actions, agent_policies=None, log_std=None):
    """A team that puts out the same at every observation. Args: outputs `[P, head_dim]`, log_std `[P, dim]`."""
    outputs = torch.as_tensor(outputs, dtype=torch.float64)
    num_policies, head_dim = outputs.shape
    policies = tuple(f"p{i}" for i in range(num_policies))
    head = HeadSpec(2, head_dim, (), "none")
    net = TeamNet(ModelSpec(policies, agent_policies or tuple(range(num_policies)), {"actor": head}, actions=actions))
    net = net.double()
    with torch.no_grad():
        net.sources["actor"].weights[0].zero_()
        net.sources["actor"].biases[0].copy_(outputs)
        if log_std is not None:
            net.log_std.copy_(torch.as_tensor(log_std, dtype=torch.float64))
    return net


def observations(count, dim=4, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
