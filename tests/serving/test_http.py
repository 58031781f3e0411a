"""The HTTP app on its own, without Serve: answers equal local ones, refusals name the field, limits hold."""

import numpy as np
import orjson
import pytest
from fastapi.testclient import TestClient

from rllib_hypermarl import load_policy
from rllib_hypermarl.serving.http import TeamApp
from rllib_hypermarl.serving.team import ServedTeam, answer
from tests.serving.teams import AGENTS, KINDS, observations, write_bundle


class Alone:
    """Answers each request by itself."""

    def __init__(self, bundle):
        self.team = ServedTeam()
        self.team.exchange(str(bundle))

    async def answer(self, ask):
        return answer([ask])[0]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles")
    return {kind: write_bundle(path / kind, kind) for kind in KINDS}


def client_of(bundle, **options):
    return TestClient(TeamApp(Alone(bundle), **options), raise_server_exceptions=False)


@pytest.fixture
def client(bundles):
    return client_of(bundles["discrete"])


def body(**request):
    return orjson.dumps(request, option=orjson.OPT_SERIALIZE_NUMPY)


def act(client, **request):
    response = client.post("/v1/act", content=body(**request), headers={"Content-Type": "application/json"})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("rows", [None, 1, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_actions_are_those_of_the_bundle(bundles, kind, rows):
    obs = observations(rows)
    policy = load_policy(bundles[kind])
    found, expected = act(client_of(bundles[kind]), observations=obs), policy.act(obs)
    assert found["version"] == policy.version
    assert list(found["actions"]) == list(AGENTS)
    for agent in AGENTS:
        given = np.asarray(found["actions"][agent])
        assert given.shape == expected[agent].shape
        if policy.spec.actions.continuous:
            np.testing.assert_allclose(given, expected[agent], rtol=0, atol=1e-6)
        else:
            assert given.tolist() == expected[agent].tolist()
