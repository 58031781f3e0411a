"""How noisy the policy gradient is, and whether agents pull shared parameters in different directions.

All of it is about actor losses: the clipped surrogate of `ppo_loss` (with an entropy bonus, if the given config has
one), advantages standardised, where training does that, jointly over the agents of a minibatch (of a group that learns
apart). On data of the current policy its gradient is the policy gradient. Frozen policies are left out. Nothing here
changes the networks.

What a minibatch is (rows, and how many of them) changes all these numbers: compare equal ones only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ConfigError
from ..losses import PPOLossConfig, ppo_loss, standardise
from ..nets import TeamNet, Weights
from ..rollout import Rollout
from .pairs import mean_over_pairs

_SURROGATE = PPOLossConfig(entropy_coeff=0.0)


@dataclasses.dataclass(frozen=True, slots=True)
class ActorRows:
    """What actor losses need of B rows `(t, e)` of N agents.

    Attributes:
        obs: `[N, B, obs]`.
        actions: `[N, B, ...]`.
        logp: `[N, B]`, log-probabilities of the actions when they were taken.
        advantage: `[N, B]`, not standardised.
        action_mask: `[N, B, choices]` bool, what was allowed; None: everything.
        alive: `[N, B]` bool, which rows count; None: all.
    """

    obs: Tensor
    actions: Tensor
    logp: Tensor
    advantage: Tensor
    action_mask: Tensor | None = None
    alive: Tensor | None = None

    @classmethod
    def from_rollout(cls, rollout: Rollout, advantage: Tensor) -> ActorRows:
        """Args: advantage `[N, T, E]`."""
        fields = (rollout.obs, rollout.actions, rollout.logp, advantage, rollout.action_mask, rollout.alive)
        return cls(*(None if x is None else x.flatten(1, 2) for x in fields))

    def minibatches(self, count: int, seed: int = 0, size: int | None = None) -> list[ActorRows]:
        """Shuffled, and split into `count` of nearly equal size, or of `size`; teams stay together, as in training."""
        order = torch.randperm(self.logp.shape[1], generator=torch.Generator().manual_seed(seed)).to(self.logp.device)
        fields = [getattr(self, field.name) for field in dataclasses.fields(self)]
        return [
            ActorRows(*(None if x is None else x.index_select(1, rows) for x in fields))
            for rows in order[: None if size is None else count * size].tensor_split(count)
        ]


def _losses(net: TeamNet, rows: ActorRows, weights: Weights, config: PPOLossConfig) -> Tensor:
    """Each trained agent's actor loss, the mean over its rows (0 of an agent that is never alive). Args: weights of the
    actor. Returns `[N]`."""
    dist = net.policy(rows.obs, weights, rows.action_mask)
    alive = torch.ones_like(rows.logp) if rows.alive is None else rows.alive.to(rows.logp.dtype)
    columns = (dist.log_prob(rows.actions), dist.entropy(), rows.logp, rows.advantage, alive)
    logp, entropy, old_logp, advantage, alive = (net.trained(x) for x in columns)
    advantage = torch.where(alive > 0, advantage, 0.0)  # what the dead's is may be anything
    if config.standardise_advantages:
        for group in net.group_members().bool():
            counted = (alive > 0) & group.unsqueeze(1)
            advantage[counted] = standardise(advantage[counted])
    by_agent = zip(logp, entropy, old_logp, advantage, alive / alive.sum(1, keepdim=True).clamp_min(1), strict=True)
    losses = [
        ppo_loss(new, bonus, None, old_logp=old, old_value=None, advantage=adv, value_target=None, config=config,
                 weight=weight)[0]
        for new, bonus, old, adv, weight in by_agent
    ]  # fmt: skip
    return torch.stack(losses)


# ------------------------------------------------------------------------------------------------------------- noise


@dataclasses.dataclass(frozen=True, slots=True)
class GradientNoise:
    """Of each trained policy's gradient g with respect to its target weights, over M minibatches.

    Attributes:
        variance: `[P]`, trace of the covariance of g (divided by M - 1): expected squared distance from the mean.
        signal: `[P]`, squared norm of the mean of g.
    """

    variance: Tensor
    signal: Tensor

    @property
    def ratio(self) -> float:
        """Noise to signal: variance over signal, each summed over policies. Units of the loss cancel.

        0, where all minibatches agree, to about M, which pure noise gives: the squared mean of M minibatches is then
        an M-th of the variance itself.
        """
        return float(self.variance.sum() / self.signal.sum())


def target_gradients(net: TeamNet, rows: ActorRows, config: PPOLossConfig = _SURROGATE) -> Tensor:
    """Gradient of every trained policy's actor loss, the mean over its agents' rows, in its own target weights.

    Target weights are what is generated, or what `none` has as parameters; where policies share them, every policy
    counts as if it had a copy. So their number is the same in all sharing modes, and the sources behind them, of
    whatever size, play no part.

    Returns:
        `[P, D]` float64, all matrices and biases of the target network in a row.
    """
    num_policies = len(net.spec.policies)
    with torch.no_grad():
        shared = net.generate("actor")["actor"]
    layers = [
        tuple(x.detach().expand(num_policies, *x.shape[1:]).clone().requires_grad_() for x in layer) for layer in shared
    ]
    policy_of = net.trained(net.groups.policy_of)
    members = policy_of.bincount(minlength=num_policies)
    loss = (_losses(net, rows, {"actor": layers}, config) / members[policy_of]).sum()
    gradients = torch.autograd.grad(loss, [x for layer in layers for x in layer])
    return torch.cat([x.flatten(1) for x in gradients], dim=1)[members > 0].double()


def target_gradient_noise(
    net: TeamNet, minibatches: Sequence[ActorRows], config: PPOLossConfig = _SURROGATE
) -> GradientNoise:
    """How much the gradients of `target_gradients` differ between minibatches.

    Unlike a variance across parameters (`entry_variance`), more parameters behind the target weights do not lower it.

    Raises:
        ConfigError: there are fewer than two minibatches.
    """
    if len(minibatches) < 2:
        raise ConfigError(f"a variance over minibatches needs at least two, not {len(minibatches)}")
    first, *others = (target_gradients(net, rows, config) for rows in minibatches)
    count, total, squares = len(minibatches), torch.zeros_like(first), first.new_zeros(len(first))
    for gradient in others:
        shifted = gradient - first  # exactly zero for equal minibatches
        total += shifted
        squares += shifted.square().sum(dim=1)
    variance = (squares - total.square().sum(dim=1) / count).clamp_min(0) / (count - 1)
    return GradientNoise(variance, (first + total / count).square().sum(dim=1))


def entry_variance(net: TeamNet, minibatches: Sequence[ActorRows], config: PPOLossConfig = _SURROGATE) -> float:
    """The paper's "gradient variance" (Figure 4c), to compare with its figures: the variance *across entries* of the
    gradient of the team's actor loss in all parameters that are trained, mean over minibatches. Entries of critics,
    which are zero, are included.

    It is about ||g||^2 / (number of parameters): of two networks with equal gradients, the one with more parameters
    gets the smaller value. `target_gradient_noise` measures what the name says. 0 and more, in squared units of loss.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    size = sum(p.numel() for p in parameters)
    variances = []
    for rows in minibatches:
        loss = _losses(net, rows, net.generate("actor"), config).mean()
        reached = [x.double() for x in torch.autograd.grad(loss, parameters, allow_unused=True) if x is not None]
        mean = sum(x.sum() for x in reached) / size
        variances.append(sum(x.square().sum() for x in reached) / size - mean.square())
    return float(torch.stack(variances).mean())


# ---------------------------------------------------------------------------------------------------------- conflict


def agent_cosines(net: TeamNet, rows: ActorRows, config: PPOLossConfig = _SURROGATE) -> Tensor:
    """Cosines of the angles between agents' gradients: of each trained agent's own actor loss, with respect to all
    parameters behind the actor (its source, the contexts it reads, a free log_std).

    One backward pass per agent; all their gradients are held at once.

    Returns:
        `[N, N]`. An agent without a gradient is at 0 to all.
    """
    parameters = [
        p for name, p in net.named_parameters()
        if p.requires_grad and (name.startswith("sources.actor.") or not name.startswith("sources."))
    ]  # fmt: skip
    gradients = []
    for loss in _losses(net, rows, net.generate("actor"), config):
        of_agent = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        gradients.append(torch.cat([x.flatten() for x in of_agent]))
    unit = functional.normalize(torch.stack(gradients), dim=1)
    return unit @ unit.T


def gradient_cosine(net: TeamNet, minibatches: Sequence[ActorRows], config: PPOLossConfig = _SURROGATE) -> float:
    """Mean of `agent_cosines` over pairs of agents and minibatches: -1 to 1.

    **Negative is conflict**: what helps one agent hurts another. (The paper's code computes minus this, and its figure
    calls it cosine similarity.) 0 for `none`, where nothing is shared, unless agents have one policy, or one log_std; 0
    for a team of one. Noise takes every cosine towards 0: big minibatches show most.
    """
    cosines = [mean_over_pairs(agent_cosines(net, rows, config)) for rows in minibatches]
    return sum(cosines) / len(cosines)
