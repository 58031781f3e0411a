"""Pure torch: contexts, hypernetworks, sharing modes, target networks, distributions. Needs no Ray."""

from .distributions import Categorical
from .spec import ACTIVATIONS, CONTEXTS, INITS, SHARING, HeadSpec, ModelSpec
from .team import TeamNet, Weights

__all__ = ["ACTIVATIONS", "CONTEXTS", "INITS", "SHARING", "Categorical", "HeadSpec", "ModelSpec", "TeamNet", "Weights"]
