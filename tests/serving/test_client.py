"""The client: answers as arrays, refusals as errors, and what it asks again."""

import subprocess
import sys

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from rllib_hypermarl import load_policy
from rllib_hypermarl.serving import TeamClient
from rllib_hypermarl.serving.client import ServingError
from rllib_hypermarl.serving.http import TeamApp
from tests.helpers import environment
from tests.serving.teams import AGENTS, KINDS, Alone, assert_same_actions, observations, write_bundle

URL = "http://team/route"
ANSWER = {"version": "v", "actions": {"a": 1}}


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The pauses of the client, in seconds, which no test waits for."""
    taken = []
    monkeypatch.setattr("rllib_hypermarl.serving.client.time.sleep", taken.append)
    return taken


def scripted(*steps):
    """A server that goes through these: an exception, a status, or (status, headers)."""
    seen, script = [], iter(steps)

    def handle(request):
        seen.append(request)
        step = next(script)
        if isinstance(step, Exception):
            raise step
        status, headers = step if isinstance(step, tuple) else (step, {})
        if status == 200:
            return httpx.Response(200, json=ANSWER)
        if "text" in headers:
            return httpx.Response(status, text=headers["text"])
        return httpx.Response(status, headers=headers, json={"field": "body", "error": "no"})

    return httpx.MockTransport(handle), seen


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_gives_the_arrays_of_the_local_policy(tmp_path, kind):
    bundle = write_bundle(tmp_path / "b", kind)
    server = TestClient(TeamApp(Alone(bundle), token="t"))

    def forward(request):
        there = server.request(request.method, request.url.path, content=request.content, headers=dict(request.headers))
        return httpx.Response(there.status_code, content=there.content)

    policy = load_policy(bundle)
    with TeamClient("http://team", token="t", transport=httpx.MockTransport(forward)) as client:
        assert client.ready()
        assert client.metadata()["version"] == policy.version
        for rows in (None, 1, 3):
            obs = observations(rows)
            found = client.act(obs, values=True)
            assert found.version == policy.version
            assert_same_actions(found.actions, policy.act(obs))
            assert found.values[AGENTS[0]].shape == (() if rows is None else (rows,))
            sampled = client.act({a: x.tolist() for a, x in obs.items()}, greedy=False, seed=1)
            assert_same_actions(sampled.actions, policy.act(obs, greedy=False, seed=1))
        if policy.spec.actions.choices:
            mask = {AGENTS[2]: np.eye(sum(policy.spec.actions.choices), dtype=bool).any(axis=0)}
            assert client.act(observations(None), action_mask=mask, probabilities=True).probabilities
        with pytest.raises(ServingError, match="unknown agent 'nobody'") as error:
            client.act({"nobody": [0.0]})
        assert (error.value.status, error.value.field) == (422, "observations")


@pytest.mark.parametrize(
    "lost",
    [
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("gone"),
        httpx.ReadTimeout("slow"),
        (503, {}),
        (408, {}),
        (500, {"text": "Internal Server Error"}),
    ],
)
def test_what_was_not_answered_is_asked_again_with_growing_pauses(lost, pauses):
    transport, seen = scripted(lost, lost, lost, 200)
    found = TeamClient(URL, transport=transport).act({"a": [1.0]})
    assert (found.version, found.actions) == ("v", {"a": np.array(1)})
    assert len(seen) == 4 and len({request.content for request in seen}) == 1
    assert {str(request.url) for request in seen} == {URL + "/v1/act"}
    assert pauses == sorted(pauses) and 0 < pauses[0] < pauses[2] < 1


def test_the_server_says_how_long_to_wait(pauses):
    transport, _ = scripted((503, {"Retry-After": "2"}), (503, {"Retry-After": "soon"}), 200)
    TeamClient(URL, transport=transport).act({"a": [1.0]})
    assert 1.6 <= pauses[0] <= 2.4 and pauses[1] < 1


@pytest.mark.parametrize("status", [400, 401, 413, 415, 422, 500])
def test_a_refusal_is_not_asked_again(status):
    transport, seen = scripted(status)
    with pytest.raises(ServingError, match=f"HTTP {status}: body: no"):
        TeamClient(URL, transport=transport).act({"a": [1.0]})
    assert len(seen) == 1


def test_it_gives_up_after_its_retries_and_says_why():
    transport, seen = scripted(*[httpx.ConnectError("refused")] * 3)
    with pytest.raises(ServingError, match=r"route/metadata: ConnectError: refused"):
        TeamClient(URL, retries=2, transport=transport).metadata()
    assert len(seen) == 3


def test_several_urls_take_turns():
    transport, seen = scripted(200, httpx.ConnectError("down"), 200)
    client = TeamClient(["http://one/", "http://two"], transport=transport)
    client.act({"a": [1.0]})
    client.act({"a": [1.0]})
    assert [request.url.host for request in seen] == ["one", "two", "one"]


def test_tokens_are_sent_and_never_shown():
    transport, seen = scripted(401)
    with pytest.raises(ServingError) as error:
        TeamClient(URL, token="s3cret", transport=transport).metadata()
    assert seen[0].headers["authorization"] == "Bearer s3cret"
    assert "s3cret" not in str(error.value)


def test_the_client_needs_neither_ray_nor_torch(tmp_path):
    code = (
        "import sys; from rllib_hypermarl.serving import TeamClient\n"
        "assert TeamClient('http://127.0.0.1:9', retries=0).ready() is False\n"
        "assert not {'ray', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), text=True, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
