"""Policy bundles: what a robot or a service needs of a trained team, and nothing that can run code. Needs no Ray."""

from .files import load_policy, load_team, save_bundle
from .policy import AgentPolicy, TeamPolicy
from .spec import BundleSpec

__all__ = ["AgentPolicy", "BundleSpec", "TeamPolicy", "load_policy", "load_team", "save_bundle"]
