"""What agents have observed, in order: teams with memory act on that, and not on single observations."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..env import BatchedEnv
from ..nets import TeamNet


@dataclasses.dataclass(frozen=True, slots=True)
class Histories:
    """What B agents observed in L steps, episode after episode.

    Attributes:
        obs: `[L, B, obs]`.
        lost: `[L, B]` bool: after which steps an episode was over, or an agent was not alive, so that memory is lost.
        counted: `[L, B]` bool: where the agent was alive.
    """

    obs: Tensor
    lost: Tensor
    counted: Tensor


@torch.no_grad()
def greedy_histories(net: TeamNet, env: BatchedEnv, steps: int, *, seed: int | None) -> Histories:
    """Of the agents of a team that takes the most likely actions, in all copies of an env: B = N * E.

    Args:
        net: on the env's device.
        steps: L, from a reset on.
    """
    weights, memory, step = net.generate("actor"), net.blank("actor", env.num_envs), env.reset(seed)
    kept: dict[str, list[Tensor]] = {"obs": [], "lost": [], "counted": []}
    for _ in range(steps):
        before, obs = step, step.observed()
        dist = net.policy(obs, weights, step.allowed(), memory)
        step = env.step(dist.to_env(dist.mode()).transpose(0, 1))
        lost = step.forgets(before).expand(obs.shape[:2])
        if memory is not None:
            memory.forget(lost)
        kept["obs"].append(obs.clone())
        kept["lost"].append(lost)
        kept["counted"].append(torch.ones_like(lost) if before.alive is None else before.alive.T.clone())
    return Histories(**{key: torch.stack(parts).flatten(1, 2) for key, parts in kept.items()})
