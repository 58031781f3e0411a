"""Rollouts of teams with memory as sequences, and the values and advantages of whole rollouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..nets import Memory, TeamNet
from ..rollout import Rollout, gae, next_values, returns_to_go

if TYPE_CHECKING:
    from .config import HyperMARLConfig

_VALUE_ROWS = 16_384  # rows (t, e) per chunk of the value pass: bounds its memory


@dataclasses.dataclass(frozen=True, slots=True)
class Sequences:
    """How a rollout's rows `(t, e)` are cut into sequences that are learnt from as a whole, numbered in the order
    `(s, e)`: of L steps in one env; of one step where there is no memory.

    Attributes:
        count: S * E.
        length: L.
        num_envs: E.
        lost: `[N or 1, T * E]` bool, of teams with memory: after which rows it is lost.
        start: head -> `[N, S * E, size]`, what they remember at the start of every sequence.
    """

    count: int
    length: int
    num_envs: int
    lost: Tensor | None
    start: dict[str, Tensor]

    @classmethod
    def of(cls, rollout: Rollout) -> Sequences:
        steps, num_envs = rollout.terminated.shape
        if rollout.actor_memory is None:
            return cls(steps * num_envs, 1, num_envs, None, {})
        memories = {"actor": rollout.actor_memory, "critic": rollout.critic_memory}
        start = {head: x.flatten(1, 2) for head, x in memories.items() if x is not None}
        number = rollout.actor_memory.shape[1]
        return cls(number * num_envs, steps // number, num_envs, rollout.forgets().flatten(1, 2), start)

    def rows(self, chosen: Tensor) -> Tensor:
        """Rows of sequences, step by step: B sequences `[B]` to `[L * B]`, in the order `(t, b)`."""
        if self.length == 1:
            return chosen
        first = chosen // self.num_envs * self.length * self.num_envs + chosen % self.num_envs
        steps = torch.arange(self.length, device=chosen.device) * self.num_envs
        return (steps.unsqueeze(1) + first).flatten()

    def memories(self, rows: Tensor) -> dict[str, Memory]:
        """Of the sequences behind rows `[L * B]`: `actor_memory`, `critic_memory`. Nothing where there is no memory."""
        first = rows[: len(rows) // self.length]
        chosen = first // (self.length * self.num_envs) * self.num_envs + first % self.num_envs
        return {
            f"{head}_memory": Memory(state.index_select(1, chosen), self.lost.index_select(1, rows))
            for head, state in self.start.items()
        }


# ------------------------------------------------------------------------------------------------------------- values


@torch.no_grad()
def values_and_advantages(net: TeamNet, rollout: Rollout, config: HyperMARLConfig) -> tuple[Tensor, Tensor]:
    """Returns values and advantages, `[N, T, E]` each; without a critic, zeros and discounted returns."""
    ends = rollout.ends()
    if not config.use_critic:
        advantage = returns_to_go(rollout.reward, ends[0] | ends[1], config.gamma)
        return torch.zeros_like(advantage), advantage
    find_values = values_at_once if rollout.critic_memory is None else values_in_order
    value, last, final = find_values(net, rollout)
    following = next_values(value, last, final, rollout.final_index, ends[1])
    return value, gae(rollout.reward, value, following, *ends, config.gamma, config.lambda_)


def values_at_once(net: TeamNet, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
    """Values of all that a rollout holds: `[N, T, E]`, of `last_obs` `[N, E]`, and of `final_obs` `[N, F]`."""
    weights = net.generate("critic")
    agents, steps, num_envs, _ = rollout.obs.shape
    obs = rollout.obs.flatten(1, 2)
    chunks = list(_chunks(obs, None if rollout.state is None else rollout.state.flatten(0, 1)))
    chunks += [(rollout.last_obs, rollout.last_state), (rollout.final_obs, rollout.final_state)]
    found = torch.cat([net.value(x, state, weights) for x, state in chunks], dim=1)
    value, last, final = found.split([steps * num_envs, num_envs, rollout.final_obs.shape[1]], dim=1)
    return value.view(agents, steps, num_envs), last, final


def values_in_order(net: TeamNet, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
    """The same of critics with memory, step by step; of what cut episodes end with, by what came before in them."""
    weights, memory, lost = net.generate("critic"), Memory(rollout.critic_memory[:, 0]), rollout.forgets()
    value = torch.empty_like(rollout.reward)
    final = rollout.reward.new_zeros(len(rollout.obs), len(rollout.final_index))
    cut_at, cut_envs = rollout.final_index // lost.shape[-1], rollout.final_index % lost.shape[-1]
    cuts = {t: (cut_at == t).nonzero().squeeze(1) for t in cut_at.unique().tolist()}
    for t in range(value.shape[1]):
        state = None if rollout.state is None else rollout.state[t]
        value[:, t] = net.value(rollout.obs[:, t], state, weights, memory)
        if t in cuts:
            state = None if rollout.final_state is None else rollout.final_state[cuts[t]]
            before = Memory(memory.state.index_select(1, cut_envs[cuts[t]]))
            final[:, cuts[t]] = net.value(rollout.final_obs[:, cuts[t]], state, weights, before)
        memory.forget(lost[:, t])
    return value, net.value(rollout.last_obs, rollout.last_state, weights, memory), final


def _chunks(obs: Tensor, state: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Chunks of rows `[N, rows, obs]`, with their states `[rows, state]` where there are any."""
    for first in range(0, obs.shape[1], _VALUE_ROWS):
        rows = slice(first, first + _VALUE_ROWS)
        yield obs[:, rows], None if state is None else state[rows]
