"""Target networks applied: every agent's rows to its policy, and every policy's network to its rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .sharing import Layer

ACTIVATIONS = {"relu": torch.relu_, "tanh": torch.tanh_}


def apply_target(layers: list[Layer], x: Tensor, activation: str) -> Tensor:
    """Runs every policy's target network on its own rows.

    Args:
        layers: `(weight [G, in, out], bias [G, out])` per layer; a leading 1 means one tensor for all.
        x: `[P, B, in]`.

    Returns:
        `[P, B, out]`.
    """
    act, rows = ACTIVATIONS[activation], x.shape[:2]
    for depth, (weight, bias) in enumerate(layers):
        if depth:
            x = act(x)
        if len(weight) == rows[0]:
            x = torch.baddbmm(bias.unsqueeze(1), x, weight)
        elif len(bias) == 1:  # flat to the end: activations in place on a view would cost autograd a copy
            x = torch.addmm(bias[0], x.reshape(-1, x.shape[-1]), weight[0])
        else:
            x = x.view(*rows, x.shape[-1]) @ weight[0] + bias.unsqueeze(1)
    return x.view(*rows, x.shape[-1])


class AgentGroups(nn.Module):
    """Moves rows of N agents to their P policies and back: P = N, P < N and P = 1 in one code path.

    Policies with fewer agents than the largest are filled up with rows of agent 0, whose outputs nobody reads.
    """

    def __init__(self, agent_policies: tuple[int, ...], num_policies: int):
        super().__init__()
        members: list[list[int]] = [[] for _ in range(num_policies)]
        for agent, policy in enumerate(agent_policies):
            members[policy].append(agent)
        self.size = max(len(group) for group in members)
        slots = [group + [0] * (self.size - len(group)) for group in members]
        places = {agent: p * self.size + i for p, group in enumerate(members) for i, agent in enumerate(group)}
        home = [places[agent] for agent in range(len(agent_policies))]
        order = [agent for group in slots for agent in group]
        self.register_buffer("slots", torch.tensor(order), persistent=False)
        self.register_buffer("policy_of", torch.tensor(agent_policies), persistent=False)
        self.register_buffer("home", torch.tensor(home), persistent=False)
        self.identity = order == list(range(len(agent_policies)))
        self.num_policies = num_policies

    def gather(self, x: Tensor) -> Tensor:
        """`[N, B, ...] -> [P, K * B, ...]`, K the most agents of one policy."""
        if not self.identity:
            x = x.index_select(0, self.slots)
        return x.reshape(self.num_policies, -1, *x.shape[2:])

    def scatter(self, x: Tensor) -> Tensor:
        """`[P, K * B, ...] -> [N, B, ...]`."""
        x = x.reshape(self.num_policies * self.size, -1, *x.shape[2:])
        return x if self.identity else x.index_select(0, self.home)
