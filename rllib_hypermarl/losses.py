"""The PPO objective as the paper's reference code has it, over rows of agents."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional


@dataclasses.dataclass(frozen=True)
class PPOLossConfig:
    """Of `ppo_loss` and what it is given; the names are RLlib's, the last three are ours.

    `huber_delta`: value errors count linearly beyond it; None: squared throughout. `standardise_advantages`: whoever
    calls `ppo_loss` does that before (`standardise`), as only they know which rows belong together.
    """

    clip_param: float = 0.2
    vf_loss_coeff: float = 0.5
    entropy_coeff: float = 0.01
    clip_value_loss: float | None = 0.2
    huber_delta: float | None = None
    standardise_advantages: bool = True


def standardise(advantage: Tensor, std_mean: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Mean 0 and standard deviation 1 over all rows and agents of a minibatch, jointly.

    Args:
        std_mean: those of the minibatch, where not all of it is here, or counts.
    """
    std, mean = torch.std_mean(advantage, correction=0) if std_mean is None else std_mean
    return (advantage - mean) / (std + 1e-8)


def ppo_loss(
    logp: Tensor,
    entropy: Tensor,
    value: Tensor | None,
    *,
    old_logp: Tensor,
    old_value: Tensor | None,
    advantage: Tensor,
    value_target: Tensor | None,
    config: PPOLossConfig,
    weight: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate, squared value error (halved; clipped around the old value if asked for), entropy bonus.

    All tensors are `[N, B]`; the loss is the mean over all their entries, or their sum by `weight`. `advantage` is used
    as it is given. Without a critic (`value` None) there is no value error.

    Returns:
        The loss, and detached scalars for the log under RLlib's names: `policy_loss`, `vf_loss`, `entropy`,
        `mean_kl_loss` (k3 estimate of the KL from the old to the new policy), `clip_fraction`.
    """

    def mean(x: Tensor) -> Tensor:
        return x.mean() if weight is None else (x * weight).sum()

    log_ratio = logp - old_logp
    ratio = log_ratio.exp()
    low, high = 1 - config.clip_param, 1 + config.clip_param
    policy_loss = -mean(torch.min(ratio * advantage, ratio.clamp(low, high) * advantage))

    vf_loss = logp.new_zeros(()) if value is None else mean(_value_errors(value, old_value, value_target, config))
    mean_entropy = mean(entropy)
    loss = policy_loss + config.vf_loss_coeff * vf_loss - config.entropy_coeff * mean_entropy
    with torch.no_grad():
        stats = {
            "policy_loss": policy_loss.detach(),
            "vf_loss": vf_loss.detach(),
            "entropy": mean_entropy.detach(),
            "mean_kl_loss": mean(ratio - 1 - log_ratio),
            "clip_fraction": mean(((ratio - 1).abs() > config.clip_param).float()),
        }
    return loss, stats


def _value_errors(value: Tensor, old_value: Tensor, target: Tensor, config: PPOLossConfig) -> Tensor:
    def error(x: Tensor) -> Tensor:
        if config.huber_delta is None:
            return 0.5 * (x - target).square()
        return functional.huber_loss(x, target, reduction="none", delta=config.huber_delta)

    loss = error(value)
    if config.clip_value_loss is not None:
        limit = config.clip_value_loss
        loss = torch.max(loss, error(old_value + (value - old_value).clamp(-limit, limit)))
    return loss
