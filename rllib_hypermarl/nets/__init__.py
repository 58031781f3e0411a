"""Pure torch: contexts, hypernetworks, sharing modes, target networks, distributions. Needs no Ray."""

from .distributions import ActionSpec, Categorical, Distribution, Gaussian, MultiCategorical
from .memory import Memory
from .spec import ACTIVATIONS, CONTEXTS, INITS, SHARING, HeadSpec, ModelSpec
from .team import TeamNet, Weights
from .transfer import transfer

__all__ = [
    "ACTIVATIONS", "CONTEXTS", "INITS", "SHARING", "ActionSpec", "Categorical", "Distribution", "Gaussian", "HeadSpec",
    "Memory", "ModelSpec", "MultiCategorical", "TeamNet", "Weights", "transfer",
]  # fmt: skip
