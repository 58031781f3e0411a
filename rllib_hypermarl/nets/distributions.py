"""Action distributions over a leading shape `[...]`, from what an actor head puts out.

`torch.distributions` draws from the global generator and checks its arguments at every call; these take a generator, so
that a run can be resumed and evaluation leaves training alone. What they sample is what the learner stores; `to_env`
turns it into what the environment takes.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

LogStd = Literal["shared", "per_policy", "generated"]
Bound = Literal["clip", "tanh"]
LOG_STDS: tuple[str, ...] = get_args(LogStd)
BOUNDS: tuple[str, ...] = get_args(Bound)
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
_QUADRATURE = list(zip(_NODES.tolist(), (_WEIGHTS / _WEIGHTS.sum()).tolist(), strict=True))  # of a standard normal
FORBIDDEN = -1e10  # log-probability (or logit) of an action that is masked: its probability is exactly zero
_LOG_STD_RANGE = (-10.0, 2.0)  # of generated ones, which an optimiser can throw far


@dataclasses.dataclass(frozen=True)
class ActionSpec:
    """What agents can do.

    Attributes:
        choices: of discrete actions, the number of choices of each component (`Discrete`: one). Empty: continuous.
        low, high: of continuous actions, the bounds of each dimension. Empty: discrete.
        log_std: where the log standard deviation comes from. `shared`: one free vector for all policies (the paper's),
            `per_policy`: one for each, `generated`: the actor head puts it out.
        bound: how continuous actions are kept in their bounds. `clip` (the paper's): the environment gets the clipped
            action, the objective sees the unclipped one. `tanh`: squashed, with the change of density.
    """

    choices: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    log_std: LogStd = "shared"
    bound: Bound = "clip"

    def __post_init__(self) -> None:
        if bool(self.choices) == bool(self.low) or len(self.low) != len(self.high):
            raise ValueError("an action space has either choices or as many low as high bounds")
        if self.log_std not in LOG_STDS:
            raise ValueError(f"log_std is {self.log_std!r}, valid are {', '.join(LOG_STDS)}")
        if self.bound not in BOUNDS:
            raise ValueError(f"bound is {self.bound!r}, valid are {', '.join(BOUNDS)}")
        if self.low and not all(math.isfinite(x) for x in self.low + self.high) and self.bound == "tanh":
            raise ValueError("bound is 'tanh', which needs finite bounds")
        if not all(low <= high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError(f"low bounds {self.low} are not below the high bounds {self.high}")

    @property
    def continuous(self) -> bool:
        return not self.choices

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one agent's action: `()` for `Discrete`, else `(components,)`."""
        if self.continuous:
            return (len(self.low),)
        return () if len(self.choices) == 1 else (len(self.choices),)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.continuous else torch.int64

    @property
    def head_dim(self) -> int:
        """Outputs that an actor head needs."""
        if self.continuous:
            return len(self.low) * (2 if self.log_std == "generated" else 1)
        return sum(self.choices)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ActionSpec:
        tuples = {key: tuple(data[key]) for key in ("choices", "low", "high")}
        return cls(**{**data, **tuples})

    @classmethod
    def covering(cls, specs: Sequence[ActionSpec]) -> ActionSpec:
        """The smallest spec that all of `specs` fit into: of every component the most choices, or of all the most
        dimensions, each with the bounds of the first that has it.

        Raises:
            ValueError: some are continuous and some are not.
        """
        first = specs[0]
        if any(spec.continuous != first.continuous for spec in specs):
            raise ValueError("some actions are continuous and some are discrete")
        if first.continuous:
            longest = max(specs, key=lambda spec: len(spec.low))
            return dataclasses.replace(first, low=longest.low, high=longest.high)
        components = itertools.zip_longest(*(spec.choices for spec in specs), fillvalue=1)
        return dataclasses.replace(first, choices=tuple(max(choices) for choices in components))

    def used_by(self, own: ActionSpec) -> list[bool]:
        """Which choices, or which dimensions, of this spec an agent's `own` one has. Of a component that it lacks,
        the first choice: chosen with certainty, it has log-probability 0 and entropy 0."""
        if self.continuous:
            return [i < len(own.low) for i in range(len(self.low))]
        counts = itertools.zip_longest(self.choices, own.choices, fillvalue=1)
        return [i < mine for most, mine in counts for i in range(most)]

    def places_of(self, own: ActionSpec) -> list[int]:
        """Where the choices, or the dimensions, of an agent's `own` spec lie in this one."""
        if self.continuous:
            return list(range(len(own.low)))
        starts = itertools.accumulate(self.choices, initial=0)
        return [start + i for start, mine in zip(starts, own.choices, strict=False) for i in range(mine)]

    def part_of(self, actions: Any, own: ActionSpec) -> Any:
        """Of actions of this spec, `[...]` or `[..., components]`, what an agent's `own` spec has."""
        if not self.shape or own == self:
            return actions
        return actions[..., : own.shape[0]] if own.shape else actions[..., 0]

    def distribution(
        self,
        inputs: Tensor,
        log_std: Tensor | None = None,
        low: Tensor | None = None,
        high: Tensor | None = None,
        mask: Tensor | None = None,
        used: Tensor | None = None,
    ) -> Distribution:
        """What an actor head means.

        Args:
            inputs: `[..., head_dim]`.
            log_std: broadcasts against `[..., dim]`; None where the head puts it out, or for discrete actions.
            low, high: of continuous actions, the bounds as tensors `[dim]` on the device, or what broadcasts against
                `[..., dim]`.
            mask: of discrete actions, `[..., sum(choices)]` bool: True where one is allowed, in every component at
                least one (see `blocked`). None: all are.
            used: of continuous actions, `[..., dim]` bool: False for dimensions that an agent does not have.

        Raises:
            ValueError: a mask of continuous actions.
        """
        if mask is not None and self.continuous:
            raise ValueError("continuous actions cannot be masked")
        if not self.continuous:
            return Categorical(inputs, mask) if len(self.choices) == 1 else MultiCategorical(inputs, self.choices, mask)
        if self.log_std == "generated":
            inputs, log_std = self.mean_and_log_std(inputs)
        return Gaussian(inputs, log_std, low, high, squash=self.bound == "tanh", used=used)

    def blocked(self, mask: Tensor) -> Tensor:
        """Where a mask `[..., sum(choices)]` leaves nothing to choose in some component: `[...]` bool."""
        return torch.stack([~part.any(dim=-1) for part in mask.split(self.choices, dim=-1)]).any(dim=0)

    @staticmethod
    def mean_and_log_std(inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Of an actor head that puts out both, `[..., 2 * dim]`."""
        mean, log_std = inputs.chunk(2, dim=-1)
        return mean, log_std.clamp(*_LOG_STD_RANGE)


class Categorical:
    """One of A discrete actions.

    Args:
        logits: `[..., A]`, any scale.
        mask: `[..., A]` bool, True where an action is allowed; at least one is. None: all are.
    """

    def __init__(self, logits: Tensor, mask: Tensor | None = None):
        if mask is None:
            self.log_probs = torch.log_softmax(logits, dim=-1)
        else:  # normalised among the allowed ones, whatever their scale; then finite, or the entropy would be NaN
            self.log_probs = torch.log_softmax(logits.masked_fill(~mask, -math.inf), dim=-1)
            self.log_probs = self.log_probs.masked_fill(~mask, FORBIDDEN)

    def rows(self, span: slice | Tensor) -> Categorical:
        """That of some rows of the second axis, such as one of several requests that were answered together."""
        part = copy.copy(self)
        part.log_probs = self.log_probs[:, span]
        return part

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

    def to_env(self, actions: Tensor) -> Tensor:
        """As they are."""
        return actions


class MultiCategorical:
    """K independent discrete choices.

    Args:
        logits: `[..., sum(choices)]`, one block per component.
        choices: the number of choices of each component.
        mask: `[..., sum(choices)]` bool, True where a choice is allowed. None: all are.
    """

    def __init__(self, logits: Tensor, choices: tuple[int, ...], mask: Tensor | None = None):
        masks = [None] * len(choices) if mask is None else mask.split(choices, dim=-1)
        parts = zip(logits.split(choices, dim=-1), masks, strict=True)
        self.parts = [Categorical(part, allowed) for part, allowed in parts]

    def rows(self, span: slice | Tensor) -> MultiCategorical:
        """That of some rows of the second axis, such as one of several requests that were answered together."""
        part = copy.copy(self)
        part.parts = [component.rows(span) for component in self.parts]
        return part

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Returns `[..., K]` int64."""
        return torch.stack([part.sample(generator) for part in self.parts], dim=-1)

    def mode(self) -> Tensor:
        """The most likely choices, `[..., K]` int64."""
        return torch.stack([part.mode() for part in self.parts], dim=-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Args: actions `[..., K]` int64. Returns `[...]`, of all components together."""
        return sum(part.log_prob(action) for part, action in zip(self.parts, actions.unbind(-1), strict=True))

    def entropy(self) -> Tensor:
        """Returns `[...]`, in nats."""
        return sum(part.entropy() for part in self.parts)

    def to_env(self, actions: Tensor) -> Tensor:
        """As they are."""
        return actions


class Gaussian:
    """Independent normals, kept in the bounds by clipping or by tanh.

    Samples are unbounded; with `squash`, densities are those of the squashed action.

    Args:
        mean: `[..., dim]`.
        log_std: broadcasts against it.
        low, high: broadcast against it, bounds of each dimension; infinite ones do not clip.
        squash: tanh instead of clipping.
        used: broadcasts against it, bool: dimensions that are not used add nothing to densities and entropies.
    """

    def __init__(
        self, mean: Tensor, log_std: Tensor, low: Tensor, high: Tensor, squash: bool, used: Tensor | None = None
    ):
        self.mean, self.log_std, self.squash = mean, log_std.expand_as(mean), squash
        self.low, self.high, self.used = low, high, used

    def rows(self, span: slice | Tensor) -> Gaussian:
        """That of some rows of the second axis, such as one of several requests that were answered together."""
        part = copy.copy(self)
        part.mean, part.log_std = self.mean[:, span], self.log_std[:, span]
        return part

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Returns `[..., dim]`, before clipping or squashing."""
        noise = torch.empty_like(self.mean).normal_(generator=generator)
        return self.mean + noise * self.log_std.exp()

    def mode(self) -> Tensor:
        """The mean, `[..., dim]`; squashed, that is the median of each dimension."""
        return self.mean

    def log_prob(self, actions: Tensor) -> Tensor:
        """Args: actions `[..., dim]` as `sample` returns them. Returns `[...]`."""
        z = (actions - self.mean) * (-self.log_std).exp()
        log_prob = -0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        if self.squash:
            log_prob = log_prob - self._log_slope(actions)
        return self._sum(log_prob)

    def entropy(self) -> Tensor:
        """Returns `[...]`, in nats; the mean slope of tanh by Gauss-Hermite quadrature."""
        entropy = self.log_std + 0.5 * math.log(2 * math.pi * math.e)
        if self.squash:
            std = self.log_std.exp()
            entropy = entropy + sum(w * self._log_slope(self.mean + z * std) for z, w in _QUADRATURE)
        return self._sum(entropy)

    def _sum(self, x: Tensor) -> Tensor:
        """Over the dimensions that are used."""
        return (x if self.used is None else x.masked_fill(~self.used, 0.0)).sum(dim=-1)

    def to_env(self, actions: Tensor) -> Tensor:
        """Clips or squashes `[..., dim]` into the bounds."""
        if self.squash:  # what is squashed can end a rounding error outside
            actions = self.low + (self.high - self.low) * (0.5 * (torch.tanh(actions) + 1))
        return torch.minimum(torch.maximum(actions, self.low), self.high)

    def _log_slope(self, actions: Tensor) -> Tensor:
        """Log of d(squashed)/d(action): log(1 - tanh^2) in a form that does not underflow, times half the range."""
        log_one_minus_tanh2 = 2 * (math.log(2) - actions - torch.nn.functional.softplus(-2 * actions))
        return log_one_minus_tanh2 + ((self.high - self.low) / 2).log()


Distribution = Categorical | MultiCategorical | Gaussian
