"""Plays whole episodes with a team's networks. No Ray."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .env import BatchedEnv, Step
from .episodes import Episodes
from .errors import EnvError
from .nets import TeamNet

_LONGEST = 10_000  # steps after which an episode of an env without a time limit is given up


@torch.no_grad()
def evaluate(
    net: TeamNet, env: BatchedEnv, num_episodes: int, *, seed: int | None, explore: bool = False, name: str = "env"
) -> Episodes:
    """Plays `num_episodes` episodes, spread evenly over the env's copies.

    Every copy plays a number of episodes fixed beforehand, so that short episodes are not counted more often than long
    ones. The same net, env and seed give the same episodes.

    Args:
        net: on the env's device.
        seed: of the env and, with `explore`, of the actions.
        explore: sample actions; else take the most likely ones.

    Raises:
        EnvError: an episode does not end.
    """
    generator = torch.Generator(device=env.device)
    generator.manual_seed(seed if seed is not None else torch.seed())
    weights, memory = net.generate("actor"), net.blank("actor", env.num_envs)
    before: Step | None = None

    def act(step: Step) -> Tensor:
        nonlocal before
        if memory is not None and before is not None:
            memory.forget(step.forgets(before))
        before, dist = step, net.policy(step.observed(), weights, step.allowed(), memory)
        return dist.to_env(dist.sample(generator) if explore else dist.mode())

    return play(act, env, num_episodes, seed=seed, name=name)


def random_actions(net: TeamNet, seed: int) -> Callable[[Step], Tensor]:
    """For `play`, what any team is compared with: uniform among the choices that are allowed, or within the bounds of
    continuous actions (standard normal, clipped, where a bound is infinite)."""
    spec = net.spec.actions
    generator = torch.Generator(net.groups.policy_of.device).manual_seed(seed)

    def act(step: Step) -> Tensor:
        obs = step.observed()
        dist = net.distribution(obs.new_zeros(*obs.shape[:2], spec.head_dim), step.allowed())
        if not spec.continuous:
            return dist.sample(generator)
        shape = (*obs.shape[:2], len(spec.low))
        low, high = net.action_low.expand(shape), net.action_high.expand(shape)
        uniform = low + (high - low) * torch.empty(shape, device=obs.device).uniform_(generator=generator)
        normal = torch.empty(shape, device=obs.device).normal_(generator=generator)
        return torch.where((high - low).isfinite(), uniform, torch.minimum(torch.maximum(normal, low), high))

    return act


@torch.no_grad()
def play(
    act: Callable[[Step], Tensor], env: BatchedEnv, num_episodes: int, *, seed: int | None, name: str = "env"
) -> Episodes:
    """As `evaluate`, with anything that acts: `act` turns each step of the env into actions `[N, E, ...]`."""
    quota = torch.full((env.num_envs,), num_episodes // env.num_envs, device=env.device)
    quota[: num_episodes % env.num_envs] += 1
    step = env.reset(seed)
    running = torch.zeros_like(step.reward)
    length = torch.zeros_like(quota)
    returns, lengths = [], []
    limit = (env.max_episode_steps or _LONGEST) * int(quota.max())
    for _ in range(limit):
        before, step = step, env.step(act(step).transpose(0, 1))
        reward = step.reward if before.alive is None else step.reward.masked_fill(~before.alive, 0.0)
        running, length = running + reward, length + 1
        done = step.terminated | step.truncated
        counted = done & (quota > 0)
        returns.append(running[counted])
        lengths.append(length[counted])
        quota -= counted.int()
        running, length = running * ~done[:, None], length * ~done
        if not (quota > 0).any():
            return Episodes(torch.cat(returns).cpu(), torch.cat(lengths).cpu())
    raise EnvError(
        f"env {name!r}: {int(quota.sum())} of {num_episodes} episodes did not end within {limit} steps; "
        "give it a time limit (max_steps)"
    )
