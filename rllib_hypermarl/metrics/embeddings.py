"""How far apart the learned embeddings of policies lie, and how far they have moved."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..nets import TeamNet
from .pairs import mean_over_pairs


def learned_embeddings(net: TeamNet) -> Tensor | None:
    """`[P, d]`, a copy; None where no hypernetwork reads learned embeddings."""
    return net.contexts["embedding"].weight.detach().clone() if "embedding" in net.contexts else None


def embedding_distances(embeddings: Tensor) -> dict[str, float]:
    """Mean pairwise distances of embeddings `[P, d]` (HyperMARL, Section 6.2).

    Returns:
        `cosine`: 1 - cosine similarity, 0 (same direction) to 2 (opposite); 1 is orthogonal. `euclidean`: 0 and more.
        Both 0 for one policy. Where they start depends on the initialisation and on P and d: d-dimensional embeddings
        start out orthogonal only while P <= d. So read them beside those of the first checkpoint.
    """
    x = embeddings.double()
    unit = functional.normalize(x, dim=1)
    differences = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return {"cosine": mean_over_pairs(1 - unit @ unit.T), "euclidean": mean_over_pairs(differences)}


def embedding_drift(before: Tensor, now: Tensor) -> dict[str, float]:
    """Mean distances of each policy's embedding from where it was before; both `[P, d]`. Keys and ranges as above."""
    before, now = before.double(), now.double()
    return {
        "cosine": float((1 - functional.cosine_similarity(before, now)).mean()),
        "euclidean": float((now - before).norm(dim=1).mean()),
    }
