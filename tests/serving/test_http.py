"""The HTTP app on its own, without Serve: answers equal local ones, refusals name the field, limits hold."""

import logging

import gymnasium as gym
import numpy as np
import orjson
import pytest
import torch
from fastapi.testclient import TestClient

from rllib_hypermarl import load_policy, save_bundle
from rllib_hypermarl.nets import ActionSpec, HeadSpec, ModelSpec, TeamNet
from rllib_hypermarl.serving.http import TeamApp
from rllib_hypermarl.serving.schemas import RefusedError, encode, parse
from rllib_hypermarl.serving.team import ServedTeam, answer, check
from tests.serving.teams import AGENTS, CORE, KINDS, OBS, Alone, assert_same_actions, observations, write_bundle


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles")
    return {kind: write_bundle(path / kind, kind) for kind in KINDS}


def client_of(bundle, **options):
    return TestClient(TeamApp(Alone(bundle), **options), raise_server_exceptions=False)


@pytest.fixture
def client(bundles):
    return client_of(bundles["discrete"])


def post(client, content=None, **request):
    content = encode(request) if content is None else content
    return client.post("/v1/act", content=content, headers={"Content-Type": "application/json"})


def act(client, **request):
    response = post(client, **request)
    assert response.status_code == 200, response.text
    return response.json()


def refused(response, status, field):
    """The message of a refusal, of which the status and the field are those."""
    assert (response.status_code, response.json()["field"]) == (status, field), response.text
    assert response.json().keys() == {"field", "error"}
    return response.json()["error"]


# ------------------------------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize("rows", [None, 1, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_actions_are_those_of_the_bundle(bundles, kind, rows):
    obs = observations(rows)
    found, policy = act(client_of(bundles[kind]), observations=obs), load_policy(bundles[kind])
    assert found["version"] == policy.version
    assert_same_actions(found["actions"], policy.act(obs))


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_actions_are_those_of_the_bundle_with_the_same_seed(bundles, kind):
    client, policy, obs = client_of(bundles[kind]), load_policy(bundles[kind]), observations(5)
    drawn = []
    for seed in (0, 1, 2**63 - 1):
        found = act(client, observations=obs, greedy=False, seed=seed)
        assert_same_actions(found["actions"], policy.act(obs, greedy=False, seed=seed))
        drawn.append(orjson.dumps(found["actions"]))
    assert len(set(drawn)) == 3
    unseeded = [orjson.dumps(act(client, observations=obs, greedy=False)["actions"]) for _ in range(3)]
    assert len(set(unseeded)) == 3


def test_unlike_agents_ask_and_are_answered_in_their_own_sizes(tmp_path):
    sizes, choices = {"scout": 3, "carrier": 6}, {"scout": (4,), "carrier": (2, 3)}
    own = tuple(ActionSpec(choices=c) for c in choices.values())
    actions = ActionSpec.covering(own)
    heads = {"actor": HeadSpec(6, actions.head_dim, (16,), out_gain=1.0)}
    net = TeamNet(ModelSpec(tuple(sizes), (0, 1), heads, actions=actions, agent_actions=own))
    spaces = {agent: gym.spaces.Box(-1, 1, (size,)) for agent, size in sizes.items()}
    save_bundle(net, tmp_path / "bundle", agents=list(sizes), observation_spaces=spaces)
    client, policy = client_of(tmp_path / "bundle"), load_policy(tmp_path / "bundle")
    obs = {agent: np.random.default_rng(0).normal(size=(5, size)).astype(np.float32) for agent, size in sizes.items()}
    found = act(client, observations=obs, probabilities=True)
    assert_same_actions(found["actions"], policy.act(obs))
    assert np.shape(found["actions"]["scout"]) == (5,) and np.shape(found["actions"]["carrier"]) == (5, 2)
    assert np.shape(found["probabilities"]["scout"]) == (5, 4)
    assert [np.shape(part) for part in found["probabilities"]["carrier"]] == [(5, 2), (5, 3)]
    mask = {"carrier": [[False, True, False, False, True]] * 5}
    assert act(client, observations=obs, action_mask=mask)["actions"]["carrier"] == [[1, 2]] * 5
    assert "expected 3 values, got 6" in refused(
        post(client, observations={"scout": [0.0] * 6}), 422, "observations.scout"
    )
    assert "expected 5 values" in refused(
        post(client, observations=obs, action_mask={"carrier": [[True] * 4] * 5}), 422, "action_mask.carrier[0]"
    )
    described = client.get("/openapi.json").json()["components"]["schemas"]["ActRequest"]["properties"]
    assert described["observations"]["properties"]["scout"]["anyOf"][0]["maxItems"] == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_is_answered_the_same_alone_and_among_128(bundles, kind):
    """Of one and several environments, whole teams and single agents, greedy and sampled, masked and not."""
    policy, rng = load_policy(bundles[kind]), np.random.default_rng(0)
    asks = []
    for i in range(128):
        rows, agents = (None, 1, 3)[i % 3], AGENTS if i % 2 else AGENTS[i % 4 :: 2]
        request = {"observations": observations(rows, i, agents), "greedy": i % 5 > 1, "seed": i}
        if policy.spec.actions.choices and i % 7 == 0:
            mask = rng.random((*([] if rows is None else [rows]), sum(policy.spec.actions.choices))) < 0.5
            mask[..., [0, *np.cumsum(policy.spec.actions.choices)[:-1]]] = True
            request["action_mask"] = {agents[0]: mask}
        asks.append(check(parse(encode(request)), policy))
    for ask, together in zip(asks, answer(asks), strict=True):
        (alone,) = answer([ask])
        assert_same_actions(together["actions"], alone["actions"])


def test_an_agent_does_the_same_whoever_else_is_asked(client):
    obs = observations(3)
    team = act(client, observations=obs, greedy=False, seed=4)["actions"]
    for agent in AGENTS:
        alone = act(client, observations={agent: obs[agent]}, greedy=False, seed=4)["actions"]
        assert alone == {agent: team[agent]}


@pytest.mark.parametrize("kind", ["discrete", "multi_discrete"])
def test_probabilities_are_of_every_choice_and_a_mask_takes_them_away(bundles, kind):
    client, obs, choices = client_of(bundles[kind]), observations(4), KINDS[kind].choices
    allowed = np.zeros(sum(choices), bool)
    allowed[np.cumsum(choices) - 1] = True  # the last choice of every component
    mask = {AGENTS[1]: np.tile(allowed, (4, 1))}
    found = act(client, observations=obs, action_mask=mask, probabilities=True)
    stacked = torch.stack([torch.from_numpy(obs[agent]) for agent in AGENTS])
    inputs = load_policy(bundles[kind])(stacked).split(choices, -1)
    for i, agent in enumerate(AGENTS):
        parts = found["probabilities"][agent]
        parts = [parts] if len(choices) == 1 else parts
        for k, part in enumerate(parts):
            expected = torch.softmax(inputs[k][i], -1).numpy()
            if agent in mask:
                expected = np.eye(choices[k])[[-1] * 4]
            np.testing.assert_allclose(part, expected, atol=1e-6)
    assert np.array_equal(np.reshape(found["actions"][AGENTS[1]], (4, -1)), np.tile(np.array(choices) - 1, (4, 1)))


@pytest.mark.parametrize(("reads", "state_dim"), [("obs", None), ("team", None), ("state", 3)])
def test_values_are_those_of_the_critic(tmp_path, reads, state_dim):
    bundle = write_bundle(tmp_path / "b", reads=reads, state_dim=state_dim)
    client, obs = client_of(bundle), observations(5)
    state = np.arange(15, dtype=np.float32).reshape(5, 3) if state_dim else None
    request = {"observations": obs, "values": True} | ({} if state is None else {"state": state})
    found = act(client, **request)["values"]
    stacked = torch.stack([torch.from_numpy(obs[agent]) for agent in AGENTS])
    expected = load_policy(bundle).values(stacked, None if state is None else torch.from_numpy(state))
    np.testing.assert_allclose([found[agent] for agent in AGENTS], expected, atol=1e-5)

    if reads == "team":
        some = {agent: obs[agent] for agent in AGENTS[:2]}
        assert "all agents" in refused(post(client, observations=some, values=True), 422, "values")
    if reads == "state":
        refused(post(client, observations=obs, values=True), 422, "values")
        refused(post(client, observations=obs, values=True, state=state[:2]), 422, "state")
        refused(post(client, observations=obs, values=True, state=state[:, :2]), 422, "state[0]")
        refused(post(client, observations=obs, values=True, state=np.full((5, 3), 1e300)), 422, "state[0][0]")
        refused(post(client, observations=obs, state=state), 422, "state")
    else:
        refused(post(client, observations=obs, values=True, state=[0.0]), 422, "state")


def test_a_bundle_without_a_critic_has_no_values(tmp_path):
    client = client_of(write_bundle(tmp_path / "b", critic=False))
    assert "no critic" in refused(post(client, observations=observations(1), values=True), 422, "values")


# ----------------------------------------------------------------------------------------------------------- refusals

A = AGENTS[0]
GOOD = [0.0] * OBS


@pytest.mark.parametrize(
    ("content", "status", "field"),
    [
        (b"", 400, "body"),
        (b"{", 400, "body"),
        (b"\xff\xfe", 400, "body"),
        (b"[" * 100_000, 400, "body"),
        (b'{"observations": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001, 400, "body"),
        (b"[]", 422, "body"),
        (b"null", 422, "body"),
        (b"{}", 422, "observations"),
        (b'{"observations": {}}', 422, "observations"),
        (b'{"observations": []}', 422, "observations"),
        (b'{"observations": {"scout_0": 1}}', 422, "observations.scout_0"),
        (b'{"observations": {"scout_0": []}}', 422, "observations.scout_0"),
        (b'{"observations": {"scout_0": [[]]}}', 422, "observations.scout_0[0]"),
        (b'{"observations": {"scout_0": [1, 2]}}', 422, "observations.scout_0"),
        (b'{"observations": {"scout_0": [[1, 2], [1, 2, 3]]}}', 422, "observations.scout_0[0]"),
        (b'{"observations": {"scout_0": [0, 0, NaN, 0, 0, 0]}}', 422, "observations.scout_0[2]"),
        (b'{"observations": {"scout_0": [0, 0, 0, -Infinity, 0, 0]}}', 422, "observations.scout_0[3]"),
        (b'{"observations": {"scout_0": [0, 0, 0, 0, 1e400, 0]}}', 422, "observations.scout_0[4]"),
        (b'{"observations": {"scout_0": [0, 0, 0, 0, 1e39, 0]}}', 422, "observations.scout_0[4]"),
        (b'{"observations": {"scout_0": [0, 0, 0, 0, 0, ' + b"9" * 400 + b"]}}", 422, "observations.scout_0[5]"),
        (b'{"observations": {"scout_0": ["0", 0, 0, 0, 0, 0]}}', 422, "observations.scout_0[0]"),
        (b'{"observations": {"scout_0": [true, 0, 0, 0, 0, 0]}}', 422, "observations.scout_0[0]"),
        (b'{"observations": {"scout_0": [null, 0, 0, 0, 0, 0]}}', 422, "observations.scout_0[0]"),
        (b'{"observations": {"scout_9": [0, 0, 0, 0, 0, 0]}}', 422, "observations"),
        (b'{"observations": {"\\ud800": [0, 0, 0, 0, 0, 0]}}', 400, "body"),
    ],
)  # fmt: skip
def test_bad_bodies_are_refused_by_field(client, content, status, field):
    refused(post(client, content), status, field)


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"greedy": 1}, "greedy"),
        ({"greedy": "yes"}, "greedy"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": True}, "seed"),
        ({"sede": 1}, "sede"),
        ({"recurrent_state": {}}, "recurrent_state"),
        ({"memory": {A: [0.0] * CORE}}, "memory"),
        ({"state": [1.0]}, "state"),
        ({"probabilities": None}, "probabilities"),
        ({"action_mask": {A: [True] * 8}}, f"action_mask.{A}"),
        ({"action_mask": {A: [False] * 9}}, f"action_mask.{A}"),
        ({"action_mask": {A: [[True] * 9]}}, f"action_mask.{A}"),
        ({"action_mask": {A: [1] * 9}}, f"action_mask.{A}[0]"),
        ({"action_mask": {"guard": [True] * 9}}, "action_mask"),
        ({"action_mask": {"nobody": [True] * 9}}, "action_mask"),
    ],
)
def test_bad_fields_are_refused_by_name(client, extra, field):
    refused(post(client, observations={A: GOOD}, **extra), 422, field)


def test_what_continuous_actions_have_not_is_refused(bundles):
    client = client_of(bundles["clip"])
    refused(post(client, observations={A: GOOD}, probabilities=True), 422, "probabilities")
    refused(post(client, observations={A: GOOD}, action_mask={A: [True] * 2}), 422, "action_mask")


def test_agents_of_one_request_have_equally_many_environments(client):
    error = refused(post(client, observations={A: [GOOD] * 2, "guard": [GOOD] * 3}), 422, "observations.guard")
    assert error == "3 environments, but observations.scout_0 has 2 environments"
    refused(post(client, observations={A: GOOD, "guard": [GOOD]}), 422, "observations.guard")


@pytest.mark.parametrize("kind", KINDS)
def test_observations_that_overflow_the_networks_are_refused_and_harm_nobody_beside_them(bundles, kind):
    policy = load_policy(bundles[kind])
    good = check(parse(encode({"observations": observations(2)})), policy)
    huge = {agent: np.full(OBS, 3e38) * np.sign(np.arange(OBS) - 2.5) for agent in AGENTS}
    found = answer([good, check(parse(encode({"observations": huge})), policy), good])
    assert isinstance(found[1], RefusedError) and found[1].field == "observations"
    for one in (found[0], found[2]):
        assert_same_actions(one["actions"], policy.act(observations(2)))


def test_names_of_strangers_are_shortened_and_harmless(client):
    error = refused(post(client, observations={"x\n" * 10_000: GOOD}), 422, "observations")
    assert len(error) < 300 and "\n" not in error
    field = post(client, content=b'{"observations": {"a": [0]}, "' + b"y\\n" * 10_000 + b'": 1}').json()["field"]
    assert len(field) < 300 and "\n" not in field


def test_other_routes_and_methods(client):
    refused(client.get("/v1/act"), 405, "method")
    refused(client.post("/metadata"), 405, "method")
    refused(client.get("/nothing"), 404, "path")
    refused(client.post("/v1/act", content=b"{}", headers={"Content-Type": "text/plain"}), 415, "content-type")


def test_large_bodies_are_refused_declared_or_not(bundles):
    client = client_of(bundles["discrete"], max_body=1000)
    content = b'{"observations": {' + b" " * 1000 + b"}}"
    assert "1000 bytes" in refused(post(client, content), 413, "body")
    refused(post(client, iter([content[:600], content[600:]])), 413, "body")  # in chunks, without a length
    assert post(client, iter([b'{"observations": {"guard": ', b"[0,0,0,0,0,0]}}"])).status_code == 200


def test_a_fault_of_ours_is_told_in_the_log_only(bundles, caplog):
    class Broken(Alone):
        async def answer(self, ask):
            raise RuntimeError("secret place /home/me")

    client = TestClient(TeamApp(Broken(bundles["discrete"])), raise_server_exceptions=False)
    with caplog.at_level(logging.ERROR, logger="ray.serve"):
        error = refused(post(client, observations={A: GOOD}), 500, "path")
    assert "secret" not in error and "secret" in caplog.text


# -------------------------------------------------------------------------------------------------------------- token


WRONG = [None, "", "Bearer", "Bearer wrong", "bearer s3cret", "Basic s3cret", "Bearer s3cret!", "Bearer \xe4"]


@pytest.mark.parametrize("given", WRONG)
def test_without_the_token_nothing_but_probes_answers(bundles, given):
    client = client_of(bundles["discrete"], token="s3cret")
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    for method, path in [
        ("POST", "/v1/act"),
        *(("GET", path) for path in ("/metadata", "/openapi.json", "/docs", "/x")),
    ]:
        response = client.request(method, path, headers=headers)
        refused(response, 401, "authorization")
        assert response.headers["www-authenticate"] == "Bearer"
    for probe in ("/healthz", "/readyz"):
        assert client.get(probe, headers=headers).status_code == 200


def test_with_the_token_everything_answers(bundles):
    client = client_of(bundles["discrete"], token="s3cret")
    client.headers["Authorization"] = "Bearer s3cret"
    assert act(client, observations={A: GOOD})["actions"].keys() == {A}
    assert client.get("/metadata").status_code == client.get("/docs").status_code == 200


# ------------------------------------------------------------------------------------------------------------- reload


def test_reload_keeps_the_old_version_where_the_new_one_cannot_stand_in(tmp_path, caplog):
    first, second = write_bundle(tmp_path / "v1"), write_bundle(tmp_path / "v2", seed=1)
    damaged = write_bundle(tmp_path / "damaged", seed=2)
    (damaged / "weights.safetensors").write_bytes(b"x" + (damaged / "weights.safetensors").read_bytes()[1:])
    others = {
        "agents": write_bundle(tmp_path / "agents", agents=("scout_0", "x", "y", "z")),
        "observations": write_bundle(tmp_path / "observations", obs=7),
        "actions": write_bundle(tmp_path / "actions", "multi_discrete"),
        "memory": write_bundle(tmp_path / "memory", memory="gru"),
    }
    backing = Alone(first)
    client, v1, v2 = TestClient(TeamApp(backing)), load_policy(first).version, load_policy(second).version

    def served():
        return client.get("/readyz").json()["version"], client.get("/metadata").json()["refused"]

    assert served() == (v1, None)
    for bad in [damaged, tmp_path / "missing", *others.values(), None, {"bundle": 1}]:
        backing.team.exchange(bad if bad is None or isinstance(bad, dict) else str(bad))
        version, why = served()
        assert version == v1 == act(client, observations={A: GOOD})["version"]
        assert why["reason"] and str(tmp_path) not in why["reason"] and "/" not in why["reason"]
    backing.team.exchange(str(second))
    assert served() == (v2, None)
    assert str(damaged) in caplog.text and f"still serving version {v1}" in caplog.text


def test_a_team_that_has_more_agents_may_take_over(tmp_path):
    backing = Alone(write_bundle(tmp_path / "v1"))
    backing.team.exchange(str(write_bundle(tmp_path / "v2", agents=(*AGENTS, "late"))))
    assert backing.team.metadata()["refused"] is None
    assert act(TestClient(TeamApp(backing)), observations={"late": GOOD})["actions"].keys() == {"late"}


def test_a_replica_that_starts_while_its_bundle_is_damaged_serves_the_fallback(tmp_path):
    good, team = write_bundle(tmp_path / "good"), ServedTeam()
    with pytest.raises(Exception, match="missing"):
        team.exchange(str(tmp_path / "missing"))
    team.exchange(str(tmp_path / "missing"), str(good))
    assert team.policy.version == load_policy(good).version
    assert "missing" in team.metadata()["refused"]["reason"]


def test_nothing_is_served_before_a_bundle_is_loaded(bundles):
    backing = Alone(bundles["discrete"])
    backing.team.policy = None
    client = TestClient(TeamApp(backing))
    for response in (post(client, observations={A: GOOD}), client.get("/metadata"), client.get("/readyz")):
        refused(response, 503, "path")
        assert response.headers["retry-after"] == "1"
    assert client.get("/healthz").status_code == 200


def test_the_description_names_the_agents_and_their_sizes(client):
    page = client.get("/openapi.json").json()
    observed = page["components"]["schemas"]["ActRequest"]["properties"]["observations"]
    assert list(observed["properties"]) == list(AGENTS) and observed["additionalProperties"] is False
    row = observed["properties"][A]["anyOf"][0]
    assert (row["minItems"], row["maxItems"]) == (OBS, OBS)
    assert set(page["paths"]) == {"/v1/act", "/metadata", "/healthz", "/readyz"}
