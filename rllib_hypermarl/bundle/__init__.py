"""Policy bundles: what a robot or a service needs of a trained team, and nothing that can run code. Needs no Ray."""

from .files import is_bundle, load_policy, load_team, save_bundle
from .policy import AgentPolicy, TeamPolicy
from .spec import BundleSpec

__all__ = ["AgentPolicy", "BundleSpec", "TeamPolicy", "is_bundle", "load_policy", "load_team", "save_bundle"]
