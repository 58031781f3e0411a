"""Teams with memory behind HTTP: the state goes out with an answer and comes back with the next request."""

import re

import httpx
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_hypermarl import load_policy
from rllib_hypermarl.evaluation import play
from rllib_hypermarl.nets import Memory
from rllib_hypermarl.serving import TeamClient
from rllib_hypermarl.serving.http import TeamApp
from rllib_hypermarl.serving.play import play_served
from rllib_hypermarl.serving.schemas import RefusedError, encode, parse
from rllib_hypermarl.serving.team import answer, check
from tests.helpers import ROOT
from tests.restless_env import OBS as RESTLESS_OBS
from tests.restless_env import RestlessEnv
from tests.serving.teams import AGENTS, CORE, KINDS, OBS, Alone, assert_same_actions, observations, write_bundle

A, GOOD = AGENTS[0], [0.0] * OBS
SIZES = {"gru": CORE, "lstm": 2 * CORE}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """By kind of memory."""
    path = tmp_path_factory.mktemp("bundles")
    return {memory: write_bundle(path / memory, memory=memory) for memory in SIZES}


def app_of(bundle):
    return TestClient(TeamApp(Alone(bundle)), raise_server_exceptions=False)


def client_of(bundle):
    server = app_of(bundle)

    def forward(request):
        there = server.request(request.method, request.url.path, content=request.content, headers=dict(request.headers))
        return httpx.Response(there.status_code, content=there.content)

    return TeamClient("http://team", transport=httpx.MockTransport(forward))


def post(client, **request):
    return client.post("/v1/act", content=encode(request), headers={"Content-Type": "application/json"})


def refused(response, field):
    assert (response.status_code, response.json()["field"]) == (422, field), response.text
    return response.json()["error"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory", SIZES)
def test_a_served_team_acts_as_the_policy_step_by_step(tmp_path, memory, kind):
    """Through one step after another, greedy and sampled, with values, and with one environment that begins anew."""
    bundle = write_bundle(tmp_path / "b", kind, memory=memory)
    policy, rows = load_policy(bundle), 3
    actors, critics, remembered = policy.blank(rows), policy.blank(rows, "critic"), None
    with client_of(bundle) as client:
        for step in range(5):
            obs, how = observations(rows, step), {"greedy": step != 2, "seed": step}
            found = client.act(obs, values=True, memory=remembered, **how)
            assert_same_actions(found.actions, policy.act(obs, memory=actors, **how))
            values = policy.values(torch.from_numpy(np.stack(list(obs.values()))), memory=critics)
            np.testing.assert_allclose(np.stack(list(found.values.values())), values, atol=1e-5)
            both = torch.cat([actors.state, critics.state], dim=-1)
            remembered = found.memory
            np.testing.assert_allclose(np.stack(list(remembered.values())), both, atol=1e-5)
            if step == 3:
                ended = torch.tensor([False, True, False])
                for state in (actors, critics):
                    state.forget(ended)
                for state in remembered.values():
                    state[ended] = 0


def test_memory_matters(bundles):
    with client_of(bundles["gru"]) as client:
        first = client.act(observations(50), values=True)
        again = client.act(observations(50), values=True, memory=first.memory)
    assert not np.allclose(first.values[A], again.values[A])
    assert not np.allclose(first.memory[A], again.memory[A])


class Restless(RestlessEnv):
    def __init__(self):
        super().__init__(4)
        self.told = []

    def step(self, actions):
        self.told.append(actions.clone())
        return super().step(actions)


@pytest.mark.parametrize("memory", SIZES)
def test_a_played_team_forgets_what_the_env_ends(tmp_path, memory):
    """Episodes end at any step, agents die and come back."""
    bundle = write_bundle(tmp_path / "b", agents=("a", "b", "c"), obs=RESTLESS_OBS, memory=memory)
    policy, envs = load_policy(bundle), (Restless(), Restless())
    before, kept = None, policy.blank(4)

    def act(step):
        nonlocal before
        if before is not None:
            kept.forget(step.forgets(before))
        before = step
        return policy.actions(step.observed(), memory=kept)

    expected = play(act, envs[0], 12, seed=3)
    with client_of(bundle) as client:
        found, versions = play_served(client, envs[1], 12, seed=3)
    assert torch.equal(torch.stack(envs[0].told), torch.stack(envs[1].told))
    assert torch.equal(found.returns, expected.returns) and versions == {policy.version}


def one_of_128(i):
    """Requests of one and several environments, whole teams and single agents, greedy and sampled, in the middle of
    episodes and at their beginning."""
    rows, agents = (None, 1, 3)[i % 3], AGENTS if i % 2 else AGENTS[i % 4 :: 2]
    request = {"observations": observations(rows, i, agents), "greedy": i % 5 > 1, "seed": i, "values": i % 7 == 0}
    if i % 4:
        size = SIZES["lstm"] * (2 if request["values"] else 1)
        shape = (size,) if rows is None else (rows, size)
        known = agents[: 1 + i % len(agents)]  # the others begin
        rng = np.random.default_rng(i)
        request["memory"] = {agent: rng.uniform(-1, 1, shape).astype(np.float32) for agent in known}
    return request


def test_a_request_is_answered_the_same_alone_and_among_128(bundles):
    policy = load_policy(bundles["lstm"])
    asks = [check(parse(encode(one_of_128(i))), policy) for i in range(128)]
    assert {ask.memory is None for ask in asks} == {True, False}
    for ask, together in zip(asks, answer(asks), strict=True):
        (alone,) = answer([ask])
        assert_same_actions(together["actions"], alone["actions"])
        for agent, state in alone["memory"].items():
            assert state.shape == ((SIZES["lstm"] * (2 if ask.values else 1),) if ask.single else
                                   (ask.rows, SIZES["lstm"] * (2 if ask.values else 1)))  # fmt: skip
            np.testing.assert_allclose(together["memory"][agent], state, atol=1e-6)


@given(st.lists(st.integers(0, 127), min_size=1, max_size=12), st.randoms())
@settings(max_examples=30, deadline=None)
def test_whoever_waits_beside_a_request_changes_nothing(bundles, chosen, random):
    policy = load_policy(bundles["lstm"])
    requests = [one_of_128(i) for i in chosen]
    found = answer([check(parse(encode(request)), policy) for request in requests])
    for request, one in zip(requests, found, strict=True):
        rows = len(next(iter(request["observations"].values()))) if one["actions"] and not is_single(request) else 1
        memory = policy.blank(rows)
        for agent, state in request.get("memory", {}).items():
            memory.state[AGENTS.index(agent)] = torch.from_numpy(np.atleast_2d(state)[:, : SIZES["lstm"]])
        how = {key: request[key] for key in ("greedy", "seed")}
        assert_same_actions(one["actions"], policy.act(request["observations"], memory=memory, **how))
        for agent, state in one["memory"].items():
            own = np.atleast_2d(state)[:, : SIZES["lstm"]]
            np.testing.assert_allclose(own, memory.state[AGENTS.index(agent)], atol=1e-6)


def is_single(request):
    return next(iter(request["observations"].values())).ndim == 1


@pytest.mark.parametrize("memory", [None, "gru"])
def test_the_page_s_code_runs(tmp_path, memory):
    (block,) = re.findall(r"```python\n(answer = .*?)```", (ROOT / "docs/serving.md").read_text(), flags=re.DOTALL)
    with client_of(write_bundle(tmp_path / "b", memory=memory)) as client:
        given = {"team": client, "observations": observations(3), "ended": np.array([False, True, False])}
        exec(block, given)
    assert (given["answer"].memory is None) == (memory is None)


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("memory", "field", "words"),
    [
        ({A: [0.0] * (CORE - 1)}, f"memory.{A}", f"expected {CORE} values, got {CORE - 1}"),
        ({A: [0.0] * 2 * CORE}, f"memory.{A}", f"expected {CORE} values, got {2 * CORE}"),
        ({A: [[0.0] * CORE]}, f"memory.{A}", "does not fit the observations"),
        ({A: [[0.0] * CORE, [0.0]]}, f"memory.{A}[1]", f"expected {CORE} values, got 1"),
        ({A: []}, f"memory.{A}", "got 0"),
        ({A: [1e300] * CORE}, f"memory.{A}[0]", "too large"),
        ({A: ["x"] * CORE}, f"memory.{A}[0]", "valid number"),
        ({A: 3.0}, f"memory.{A}", "valid array"),
        ({"guard": [0.0] * CORE}, "memory", "'guard' is not among observations"),
        ({"nobody": [0.0] * CORE}, "memory", "'nobody' is not among observations"),
        ([0.0] * CORE, "memory", ""),
    ],
)
def test_memory_that_does_not_fit_is_refused_by_name(bundles, memory, field, words):
    assert words in refused(post(app_of(bundles["gru"]), observations={A: GOOD}, memory=memory), field)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity"])
def test_memory_that_is_no_number_is_refused(bundles, number):
    content = b'{"observations": {"%s": [0,0,0,0,0,0]}, "memory": {"%s": [%s]}}' % (A.encode(), A.encode(), number)
    answer = app_of(bundles["gru"]).post("/v1/act", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422 and answer.json()["field"] == f"memory.{A}[0]"


def test_values_need_the_critics_memory_at_every_step(bundles):
    client = app_of(bundles["gru"])
    without, with_values = (post(client, observations={A: GOOD}, values=values).json() for values in (False, True))
    assert [len(found["memory"][A]) for found in (without, with_values)] == [CORE, 2 * CORE]
    refused(post(client, observations={A: GOOD}, values=True, memory=without["memory"]), f"memory.{A}")
    refused(post(client, observations={A: GOOD}, memory=with_values["memory"]), f"memory.{A}")


def test_memory_that_overflows_the_networks_is_refused_and_harms_nobody_beside_it(bundles):
    policy = load_policy(bundles["gru"])
    good = check(parse(encode({"observations": observations(2)})), policy)
    huge = {agent: np.where(np.arange(2 * CORE).reshape(2, CORE) % 2, 3e38, -3e38) for agent in AGENTS}
    found = answer([good, check(parse(encode({"observations": observations(2), "memory": huge})), policy), good])
    assert isinstance(found[1], RefusedError) and found[1].field == "memory"
    for one in (found[0], found[2]):
        assert_same_actions(one["actions"], policy.act(observations(2), memory=policy.blank(2)))


# --------------------------------------------------------------------------------------------------- what is told of it


@pytest.mark.parametrize("critic", [True, False])
def test_metadata_and_the_description_tell_its_size(tmp_path, critic):
    bundle = write_bundle(tmp_path / "b", critic=critic, memory="lstm")
    client, size = app_of(bundle), SIZES["lstm"]
    with_values = 2 * size if critic else None
    told = client.get("/metadata").json()
    assert told["memory"] == {"kind": "lstm", "size": size, "size_with_values": with_values}
    assert told["critic_reads"] == ("obs" if critic else None)
    described = client.get("/openapi.json").json()["components"]["schemas"]["ActRequest"]["properties"]["memory"]
    rows = [shape for shape in described["anyOf"][0]["properties"][A]["anyOf"] if shape["items"]["type"] == "number"]
    assert [row["maxItems"] for row in rows] == [size, *([with_values] if critic else [])]


def test_teams_without_memory_say_so_and_answer_none(tmp_path):
    client = app_of(write_bundle(tmp_path / "b"))
    assert client.get("/metadata").json()["memory"] is None
    assert "memory" not in post(client, observations={A: GOOD}).json()
    described = client.get("/openapi.json").json()["components"]["schemas"]["ActRequest"]["properties"]["memory"]
    assert described["anyOf"] == [{"type": "null"}]


def test_only_a_team_of_the_same_memory_takes_over(tmp_path):
    backing = Alone(write_bundle(tmp_path / "v1", memory="gru"))
    for other in ("lstm", None):
        backing.team.exchange(str(write_bundle(tmp_path / f"{other}", memory=other)))
        assert "its memory missing or different" in backing.team.metadata()["refused"]["reason"]
    backing.team.exchange(str(write_bundle(tmp_path / "v2", memory="gru", seed=1)))
    assert backing.team.metadata()["refused"] is None
    kept = Memory(torch.zeros(len(AGENTS), 1, CORE))
    expected = load_policy(tmp_path / "v2").act(observations(1), memory=kept)
    found = post(TestClient(TeamApp(backing)), observations=observations(1)).json()
    assert_same_actions(found["actions"], expected)
