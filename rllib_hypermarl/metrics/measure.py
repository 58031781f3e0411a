"""Everything that is measured on a team's networks, as one row of numbers."""

from __future__ import annotations

from torch import Tensor

from ..nets import TeamNet
from ..rollout import Rollout
from .diversity import sample_observations, snd
from .embeddings import embedding_distances, learned_embeddings
from .gradients import ActorRows, entry_variance, gradient_cosine, target_gradient_noise

_OBSERVATIONS = 2000  # of SND
_MINIBATCHES, _ROWS = 8, 1024  # of gradients: equal ones in all runs, since these numbers depend on them
_LEAST_ROWS = 2  # of one minibatch: the advantages of fewer have no deviation
_MOST_AGENTS = 32  # whose pairwise gradients are compared, each one of a backward pass
_MOST_NUMBERS = 512  # of all embeddings together: more would swamp a run's results
EMBEDDINGS = "embeddings"


def measure(net: TeamNet, rollout: Rollout, advantage: Tensor, seed: int = 0) -> dict[str, float]:
    """Measures a team on a rollout that it sampled itself.

    SND is over 2,000 of the rollout's observations, gradient statistics are over 8 minibatches of at most 1,024 rows
    `(t, e)` each. What cannot be measured is left out: gradients on a rollout of fewer than 16 env steps; gradients
    in target weights where every row has its own; and all but embeddings of teams with memory, which act on episodes
    rather than observations.

    Args:
        advantage: `[N, T, E]`, of the rollout.
        seed: of what is drawn from the rollout.

    Returns:
        `snd`; `gradient_noise` and `gradient_variance` (ratio, and variance summed over policies, of
        `target_gradient_noise`); `entry_variance` (the paper's); `gradient_cosine`, for teams of up to 32 agents;
        `embedding_cosine_distance`, `embedding_euclidean_distance`, and the embeddings themselves, number by number
        (`embeddings/POLICY/0` and so on, if there are at most 512), where they are learned.
    """
    found = {}
    if net.spec.memory is None:
        found["snd"] = snd(net, sample_observations(rollout, _OBSERVATIONS, seed), seed=seed)
    rows = min(_ROWS, rollout.env_steps() // _MINIBATCHES)
    if net.spec.memory is None and rows >= _LEAST_ROWS:
        minibatches = ActorRows.from_rollout(rollout, advantage).minibatches(_MINIBATCHES, seed, rows)
        if not net.spec.generated_by_row("actor"):
            noise = target_gradient_noise(net, minibatches)
            found |= {"gradient_noise": noise.ratio, "gradient_variance": float(noise.variance.sum())}
        found["entry_variance"] = entry_variance(net, minibatches)
        if len(net.spec.agent_policies) <= _MOST_AGENTS:
            found["gradient_cosine"] = gradient_cosine(net, minibatches)
    if (embeddings := learned_embeddings(net)) is not None:
        distances = embedding_distances(embeddings)
        found |= {f"embedding_{kind}_distance": value for kind, value in distances.items()}
        if embeddings.numel() <= _MOST_NUMBERS:
            rows = zip(net.spec.policies, embeddings.tolist(), strict=True)
            found |= {f"{EMBEDDINGS}/{policy}/{i}": x for policy, row in rows for i, x in enumerate(row)}
    return found
