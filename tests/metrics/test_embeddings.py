"""Distances of embeddings, against SciPy pair by pair."""

import itertools

import numpy as np
import pytest
import torch
from scipy.spatial import distance

from rllib_hypermarl.metrics import embedding_distances, embedding_drift, learned_embeddings
from tests.metrics.teams import team


def vectors(policies=6, dim=3, seed=0):
    return torch.randn(policies, dim, generator=torch.Generator().manual_seed(seed))


def test_mean_pairwise_distances_equal_scipy_s():
    x = vectors()
    pairs = list(itertools.combinations(x.double().numpy(), 2))
    found = embedding_distances(x)
    assert found["cosine"] == pytest.approx(np.mean([distance.cosine(a, b) for a, b in pairs]), rel=1e-12)
    assert found["euclidean"] == pytest.approx(np.mean([distance.euclidean(a, b) for a, b in pairs]), rel=1e-12)


def test_known_distances():
    assert embedding_distances(torch.eye(4)) == pytest.approx({"cosine": 1.0, "euclidean": 2**0.5})
    assert embedding_distances(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])) == pytest.approx({"cosine": 2, "euclidean": 4})
    assert embedding_distances(torch.ones(3, 4)) == pytest.approx({"cosine": 0.0, "euclidean": 0.0}, abs=1e-12)
    assert embedding_distances(torch.ones(1, 4)) == {"cosine": 0.0, "euclidean": 0.0}


def test_a_common_scale_changes_lengths_only():
    one, ten = embedding_distances(vectors()), embedding_distances(10 * vectors())
    assert ten["cosine"] == pytest.approx(one["cosine"])
    assert ten["euclidean"] == pytest.approx(10 * one["euclidean"])


def test_drift_is_that_of_each_policy():
    before, now = vectors(), vectors(seed=1)
    pairs = list(zip(before.double().numpy(), now.double().numpy(), strict=True))
    found = embedding_drift(before, now)
    assert found["cosine"] == pytest.approx(np.mean([distance.cosine(a, b) for a, b in pairs]), rel=1e-9)
    assert found["euclidean"] == pytest.approx(np.mean([distance.euclidean(a, b) for a, b in pairs]), rel=1e-9)
    assert embedding_drift(before, before) == pytest.approx({"cosine": 0.0, "euclidean": 0.0}, abs=1e-12)
    assert embedding_drift(before, 2 * before)["cosine"] == pytest.approx(0.0, abs=1e-12)


def test_embeddings_of_a_team_are_a_copy():
    net = team("hyper_mlp")
    taken = learned_embeddings(net)
    assert taken.shape == (3, 3) and torch.equal(taken, net.contexts["embedding"].weight)
    with torch.no_grad():
        net.contexts["embedding"].weight.add_(1.0)
    assert embedding_drift(taken, learned_embeddings(net))["euclidean"] == pytest.approx(3**0.5)


@pytest.mark.parametrize("sharing", ["hyper_linear", "none", "full", "full_id"])
def test_teams_without_embeddings(sharing):
    assert learned_embeddings(team(sharing)) is None
