"""The PPO objective as the paper's reference code has it, over rows of agents."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class PPOLossConfig:
    """Coefficients of `ppo_loss`; the names are RLlib's, and `clip_value_loss` is ours."""

    clip_param: float = 0.2
    vf_loss_coeff: float = 0.5
    entropy_coeff: float = 0.01
    clip_value_loss: float | None = 0.2


def standardise(advantage: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over all rows and agents of a minibatch, jointly."""
    std, mean = torch.std_mean(advantage, correction=0)
    return (advantage - mean) / (std + 1e-8)


def ppo_loss(
    logp: Tensor,
    entropy: Tensor,
    value: Tensor,
    *,
    old_logp: Tensor,
    old_value: Tensor,
    advantage: Tensor,
    value_target: Tensor,
    config: PPOLossConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate, squared value error (halved; clipped around the old value if asked for), entropy bonus.

    All tensors are `[N, B]`; the loss is the mean over all their entries. `advantage` is used as it is given.

    Returns:
        The loss, and detached scalars for the log under RLlib's names: `policy_loss`, `vf_loss`, `entropy`,
        `mean_kl_loss` (k3 estimate of the KL from the old to the new policy), `clip_fraction`.
    """
    log_ratio = logp - old_logp
    ratio = log_ratio.exp()
    low, high = 1 - config.clip_param, 1 + config.clip_param
    policy_loss = -torch.min(ratio * advantage, ratio.clamp(low, high) * advantage).mean()

    error = (value - value_target).square()
    if config.clip_value_loss is not None:
        limit = config.clip_value_loss
        clipped = old_value + (value - old_value).clamp(-limit, limit)
        error = torch.max(error, (clipped - value_target).square())
    vf_loss = 0.5 * error.mean()

    mean_entropy = entropy.mean()
    loss = policy_loss + config.vf_loss_coeff * vf_loss - config.entropy_coeff * mean_entropy
    with torch.no_grad():
        stats = {
            "policy_loss": policy_loss.detach(),
            "vf_loss": vf_loss.detach(),
            "entropy": mean_entropy.detach(),
            "mean_kl_loss": (ratio - 1 - log_ratio).mean(),
            "clip_fraction": ((ratio - 1).abs() > config.clip_param).float().mean(),
        }
    return loss, stats
