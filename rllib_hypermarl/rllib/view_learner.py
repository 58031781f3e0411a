"""RLlib's PPO learner with the team's loss: the mean over agent rows instead of the sum of the policies' means."""

from __future__ import annotations

import logging
from typing import Any

import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.columns import Columns
from torch import Tensor

from .views import PolicyView

_logger = logging.getLogger(__name__)


class ViewLearner(PPOTorchLearner):
    """Weights each policy's loss by its share of the rows, for modules made by `stock_module_spec`.

    Everything else is RLlib's. With it, on equal advantages, the stock path has the loss and the gradients of
    `HyperMARLLearner` (whose value error is halved: `vf_loss_coeff` 0.5 there is 0.25 here).
    """

    def build(self) -> None:
        super().build()
        held = [key for key in self._views() if not self.should_module_be_updated(key)]
        if held:
            _logger.warning(
                "policies_to_train leaves out %s: their data teaches nobody, but their weights are generated, and move "
                "with the hypernetwork that all policies share",
                ", ".join(held),
            )

    def _views(self) -> list[str]:
        return [key for key, module in self.module.items() if isinstance(module.unwrapped(), PolicyView)]

    def compute_losses(self, *, fwd_out: dict[str, Any], batch: dict[str, Any]) -> dict[str, Tensor]:
        losses = super().compute_losses(fwd_out=fwd_out, batch=batch)
        rows = {key: _rows(batch[key]) for key in self._views() if key in losses}
        total = sum(rows.values())
        return {key: loss * rows[key] / total if key in rows else loss for key, loss in losses.items()}


def _rows(batch: dict[str, Any]) -> Tensor | int:
    """Rows that count in the loss."""
    mask = batch.get(Columns.LOSS_MASK)
    return len(batch[Columns.OBS]) if mask is None else torch.as_tensor(mask).sum()
