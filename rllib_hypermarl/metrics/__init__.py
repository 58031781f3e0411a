"""What teams are measured by, beside their returns: diversity, gradients, embeddings. Pure torch: needs no Ray."""

from .diversity import policy_distances, sample_observations, snd
from .embeddings import embedding_distances, embedding_drift, learned_embeddings
from .gradients import (
    ActorRows,
    GradientNoise,
    agent_cosines,
    entry_variance,
    gradient_cosine,
    target_gradient_noise,
    target_gradients,
)
from .histories import Histories, greedy_histories
from .measure import measure

__all__ = [
    "ActorRows", "GradientNoise", "Histories", "agent_cosines", "embedding_distances", "embedding_drift",
    "entry_variance", "gradient_cosine", "greedy_histories", "learned_embeddings", "measure", "policy_distances",
    "sample_observations", "snd", "target_gradient_noise", "target_gradients",
]  # fmt: skip
