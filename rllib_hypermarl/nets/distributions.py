"""Action distributions over a leading shape `[...]`, from what an actor head puts out."""

from __future__ import annotations

import torch
from torch import Tensor


class Categorical:
    """One of A discrete actions.

    `torch.distributions.Categorical` draws from the global generator and checks its arguments at every call; this one
    takes a generator, so that a run can be resumed and evaluation leaves training alone.

    Args:
        logits: `[..., A]`, any scale.
    """

    def __init__(self, logits: Tensor):
        self.log_probs = torch.log_softmax(logits, dim=-1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Returns `[...]` int64."""
        # The smallest of independent exponentials with rates p is action a with probability p_a.
        clocks = torch.empty_like(self.log_probs).exponential_(generator=generator)
        return (self.log_probs - clocks.log()).argmax(dim=-1)

    def mode(self) -> Tensor:
        """The most likely action, `[...]` int64."""
        return self.log_probs.argmax(dim=-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Args: actions `[...]` int64. Returns `[...]`."""
        return self.log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Returns `[...]`, in nats."""
        return -(self.log_probs.exp() * self.log_probs).sum(dim=-1)
