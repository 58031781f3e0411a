"""How unlike the agents of a team act: System Neural Diversity, and the distances between policies it is the mean of.

SND (Bettini et al. 2023, https://arxiv.org/abs/2305.02128; HyperMARL, Section 5) of N agents over observations O:

    SND = 2 / (N (N - 1) |O|)  sum over pairs i < j  sum over o in O  D(pi_i(o), pi_j(o))

It is a mean, so it has the range of D. Ours is the Jensen-Shannon distance, the square root of the divergence in bits:
a metric, 0 where two policies act alike and 1 where they never do the same. The paper reports the same SND with values
of about 6e-4 on Dispersion, for teams whose agents plainly do different things. That is the scale of a mean over 10,000
observations that was divided by their number once more (its code for this is not public); ours is the formula's. So
compare the paper's modes with one another, and ours with one another, not across.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError, MemoryMissingError
from ..nets import Categorical, Distribution, Gaussian, MultiCategorical, TeamNet
from ..rollout import Rollout
from .histories import Histories
from .pairs import mean_over_pairs

Distance = Literal["jensen_shannon", "wasserstein"]
_Measure = Callable[[Tensor, Tensor], Tensor]
"""From policies i and j, `[n]` each, to their distances at every observation, `[n, rows]`."""

_CHUNK = 2**20  # numbers in one temporary tensor
_MOST_JOINT_ACTIONS = 4096  # of several components that are still enumerated


def snd(
    net: TeamNet, obs: Tensor | Histories, distance: Distance = "jensen_shannon", *, samples: int = 64, seed: int = 0
) -> float:
    """System Neural Diversity of the team's agents; arguments as of `policy_distances`.

    Agents that share a policy, or all weights (`full`), are at distance 0 from one another, and count as pairs, as the
    formula has it. 0 for a team of one.
    """
    policy_of = net.groups.policy_of
    return mean_over_pairs(policy_distances(net, obs, distance, samples=samples, seed=seed)[policy_of][:, policy_of])


@torch.no_grad()
def policy_distances(
    net: TeamNet, obs: Tensor | Histories, distance: Distance = "jensen_shannon", *, samples: int = 64, seed: int = 0
) -> Tensor:
    """How far apart all policies act on the same observations; with memory, after the same histories of observations,
    which every policy reads from the beginning with a memory of its own.

    `jensen_shannon`, 0 to 1, is the distance between distributions over whole actions.
    - Discrete: exact.
    - Several discrete components: exact over joint actions, up to 4096 of them; beyond, estimated. (No sum or mean over
      components is the distance of the policies: one component in which they never agree already makes it 1.)
    - Gaussian: estimated, jointly over dimensions. The divergence is the mean of 1 - H(p / (p + q)), H the entropy of a
      coin in bits, over draws of the mixture (p + q) / 2: `samples` from either policy at every observation. That is
      unbiased, and within 0 and 1. Its root is low: at 64 samples by 0.3 % where policies differ little, by 1.3 % where
      they differ little and in standard deviations alone, and by less where they differ more. Squashing by tanh changes
      no Jensen-Shannon distance. Clipping would lower it: what is compared is what the objective sees, before clipping.

    `wasserstein`: the 2-Wasserstein distance of Gaussians, exact: the root of the sum over dimensions of squared
    differences of means and of standard deviations, before clipping or squashing. In units of actions, without limit.

    Args:
        obs: `[O, obs]`, as the env gives them; every policy acts on all of them. Or histories, whose observations O are
            those that count; teams with memory need them.
        samples: draws per policy and observation, where distances are estimated.
        seed: of those draws.

    Returns:
        `[P, P]` float64, symmetric, means over the observations.

    Raises:
        ConfigError: the distance is unknown, or needs continuous actions.
        MemoryMissingError: the team has memory, and observations come without their histories.
    """
    if distance not in ("jensen_shannon", "wasserstein"):
        raise ConfigError(f"distance is {distance!r}, valid are jensen_shannon, wasserstein")
    if distance == "wasserstein" and not net.spec.actions.continuous:
        raise ConfigError("distance 'wasserstein' needs continuous actions, take 'jensen_shannon'")
    spec = net.spec
    num_policies, num_agents = len(spec.policies), len(spec.agent_policies)
    device = (obs.obs if isinstance(obs, Histories) else obs).device
    pairs = torch.triu_indices(num_policies, num_policies, offset=1, device=device)
    total = torch.zeros(pairs.shape[1], dtype=torch.float64, device=device)
    speaker = torch.tensor([spec.agent_policies.index(p) for p in range(num_policies)], device=device)
    generator = torch.Generator(device=device).manual_seed(seed)
    width, count = _width(net, distance, samples), 0
    for dist, rows in _acted(net, obs, _CHUNK // (num_agents * max(width, *spec.heads["actor"].hidden, 1))):
        measure = _measure(_take(dist, speaker), distance, samples, generator)
        size = max(1, _CHUNK // (rows * width))
        total += torch.cat([measure(i, j).sum(dim=1) for i, j in pairs.split(size, dim=1)])
        count += rows
    result = torch.zeros(num_policies, num_policies, dtype=torch.float64, device=total.device)
    result[pairs[0], pairs[1]] = result[pairs[1], pairs[0]] = total / count
    return result


def _acted(net: TeamNet, obs: Tensor | Histories, size: int) -> Iterator[tuple[Distribution, int]]:
    """What all agents do on the same observations, in chunks of about `size` rows, and the number of rows of each."""
    num_agents, weights = len(net.spec.agent_policies), net.generate("actor")
    if net.spec.memory is not None and not isinstance(obs, Histories):
        raise MemoryMissingError(
            f"this team has memory ({net.spec.memory}): it acts on histories, take greedy_histories(net, env, steps)"
        )
    if net.spec.memory is None:
        for rows in (obs.obs[obs.counted] if isinstance(obs, Histories) else obs).split(max(1, size)):
            yield net.policy(rows.expand(num_agents, *rows.shape), weights), len(rows)
        return
    for columns in torch.arange(obs.obs.shape[1], device=obs.obs.device).split(max(1, size // len(obs.obs))):
        rows, lost, counted = (x[:, columns].flatten(0, 1) for x in (obs.obs, obs.lost, obs.counted))
        memory = net.blank("actor", len(columns))
        memory.lost = lost.unsqueeze(0)
        dist = net.policy(rows.expand(num_agents, *rows.shape), weights, memory=memory)
        if counted.any():
            yield dist.rows(counted), int(counted.sum())


def sample_observations(rollout: Rollout, count: int, seed: int = 0) -> Tensor:
    """`[count, obs]`, drawn without replacement from those of all agents while alive; all, if there are fewer."""
    obs = rollout.obs.flatten(0, 2) if rollout.alive is None else rollout.obs[rollout.alive]
    return obs[torch.randperm(len(obs), generator=torch.Generator().manual_seed(seed))[:count].to(obs.device)]


# ----------------------------------------------------------------------------------------------------- distributions


def _width(net: TeamNet, distance: Distance, samples: int) -> int:
    """Numbers that one policy or pair takes per observation."""
    actions = net.spec.actions
    if actions.continuous:
        return len(actions.low) * (1 if distance == "wasserstein" else samples)
    joint = math.prod(actions.choices)
    return joint if _enumerable(actions.choices) else samples * sum(actions.choices)


def _enumerable(choices: tuple[int, ...]) -> bool:
    return len(choices) == 1 or math.prod(choices) <= _MOST_JOINT_ACTIONS


def _take(dist: Distribution, index: Tensor) -> Distribution:
    """The distributions of some rows of the first axis, in double precision: roots make small errors large."""
    if isinstance(dist, Categorical):
        return Categorical(dist.log_probs.double()[index])
    if isinstance(dist, MultiCategorical):
        choices = tuple(part.log_probs.shape[-1] for part in dist.parts)
        return MultiCategorical(torch.cat([part.log_probs.double()[index] for part in dist.parts], dim=-1), choices)
    return Gaussian(dist.mean.double()[index], dist.log_std.double()[index], dist.low, dist.high, squash=False)


def _measure(dist: Distribution, distance: Distance, samples: int, generator: torch.Generator) -> _Measure:
    if distance == "wasserstein":
        return _wasserstein(dist)
    if isinstance(dist, Categorical):
        return _enumerated(dist.log_probs)
    if isinstance(dist, MultiCategorical) and _enumerable(tuple(part.log_probs.shape[-1] for part in dist.parts)):
        return _enumerated(functools.reduce(_joint, (part.log_probs for part in dist.parts)))
    return _sampled(dist, samples, generator)


def _joint(a: Tensor, b: Tensor) -> Tensor:
    """Log-probabilities `[..., A * B]` of pairs of independent choices."""
    return (a.unsqueeze(-1) + b.unsqueeze(-2)).flatten(-2)


def _bits(log_ratio: Tensor) -> Tensor:
    """1 - H(p / (p + q)) in bits, from log(p / q): what an outcome tells about which of two policies it is of.

    0 at equal probabilities and 1 where one of them is zero; accurate near both.
    """
    x = torch.tanh(log_ratio / 2).nan_to_num(0.0)  # (p - q) / (p + q); where both are zero, it counts for nothing
    return (torch.special.xlog1py(1 + x, x) + torch.special.xlog1py(1 - x, -x)) / (2 * math.log(2))


def _enumerated(log_probs: Tensor) -> _Measure:
    """Args: log_probs `[P, rows, A]`."""
    probs = log_probs.exp()
    return lambda i, j: ((probs[i] + probs[j]) / 2 * _bits(log_probs[i] - log_probs[j])).sum(dim=-1).sqrt()


def _sampled(dist: Distribution, samples: int, generator: torch.Generator) -> _Measure:
    def repeat(index: Tensor) -> Distribution:
        return _take(dist, index.repeat(samples))

    def log_prob(index: Tensor, actions: Tensor) -> Tensor:
        """Of actions `[samples, n, rows, ...]` under policies `[n]`; `[samples, n, rows]`."""
        return repeat(index).log_prob(actions.flatten(0, 1)).unflatten(0, (samples, len(index)))

    num_policies = len(dist.mean if isinstance(dist, Gaussian) else dist.parts[0].log_probs)
    everyone = torch.arange(num_policies, device=generator.device)
    actions = repeat(everyone).sample(generator).unflatten(0, (samples, num_policies))
    own = log_prob(everyone, actions)

    def half(i: Tensor, j: Tensor) -> Tensor:
        return _bits(own[:, i] - log_prob(j, actions[:, i])).mean(dim=0)

    return lambda i, j: ((half(i, j) + half(j, i)) / 2).sqrt()


def _wasserstein(dist: Gaussian) -> _Measure:
    moments = torch.cat([dist.mean, dist.log_std.exp()], dim=-1)
    return lambda i, j: (moments[i] - moments[j]).square().sum(dim=-1).sqrt()
