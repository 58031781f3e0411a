"""Applications in one Serve, over real HTTP and through handles: exact answers, bounded queues."""

import asyncio

import httpx
import numpy as np
import pytest
from ray import serve

from rllib_hypermarl import load_policy
from rllib_hypermarl.bench.measure import free_port
from rllib_hypermarl.serving import Settings, build
from rllib_hypermarl.serving.schemas import encode
from tests.serving.teams import AGENTS, KINDS, OBS, assert_same_actions, observations, write_bundle

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def url(ray_session):
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "WARNING"})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def deploy(bundle, name, **settings):
    return serve.run(build(Settings(bundle=str(bundle), num_cpus=0, **settings)), name=name, route_prefix=f"/{name}")


def post_together(url, requests, connections=128):
    """Answers of requests that are under way at the same time."""

    async def post():
        limits = httpx.Limits(max_connections=connections)
        async with httpx.AsyncClient(timeout=60, limits=limits) as client:
            posts = [client.post(f"{url}/v1/act", content=encode(request), headers=JSON) for request in requests]
            return await asyncio.gather(*posts)

    return asyncio.run(post())


@pytest.mark.parametrize("kind", ["discrete", "tanh_generated"])  # tests/serving/test_http.py asks all kinds
def test_answers_are_the_policy_s_alone_and_among_128(url, tmp_path, kind):
    bundle = write_bundle(tmp_path / kind, kind)
    handle, policy = deploy(bundle, kind), load_policy(bundle)
    asked = [
        {"observations": observations((None, 1, 4)[i % 3], i), "greedy": i % 2 == 0, "seed": i} for i in range(128)
    ]
    expected = [policy.act(**request) for request in asked]
    alone = [httpx.post(f"{url}/{kind}/v1/act", content=encode(request), headers=JSON) for request in asked[:6]]
    for answers in (alone, post_together(f"{url}/{kind}", asked)):
        for answer, actions in zip(answers, expected, strict=False):
            assert answer.status_code == 200, answer.text
            assert answer.json()["version"] == policy.version
            assert_same_actions(answer.json()["actions"], actions)
    for request, actions in zip(asked[:3], expected, strict=False):
        assert_same_actions(handle.act.remote(request).result()["actions"], actions)
    assert httpx.get(f"{url}/{kind}/metadata").json()["actions"][AGENTS[0]]["choices"] == list(KINDS[kind].choices)
    serve.delete(kind)


def test_what_agents_remember_goes_from_answer_to_request_among_128(url, tmp_path):
    """In one batch: the second step of one half of the requests, the first of the other."""
    bundle = write_bundle(tmp_path / "lstm", memory="lstm")
    handle, policy = deploy(bundle, "lstm"), load_policy(bundle)
    asked = [{"observations": observations(1 + i % 3, i)} for i in range(128)]
    kept = [policy.blank(1 + i % 3) for i in range(128)]
    first = post_together(f"{url}/lstm", asked[::2])
    for request, answer, state in zip(asked[::2], first, kept[::2], strict=True):
        assert_same_actions(answer.json()["actions"], policy.act(**request, memory=state))
        request["memory"] = answer.json()["memory"]
        request["observations"] = {agent: 2 * x for agent, x in request["observations"].items()}
    expected = [
        (policy.act(request["observations"], memory=state), state.state.numpy())
        for request, state in zip(asked, kept, strict=True)
    ]
    answers = [answer.json() for answer in post_together(f"{url}/lstm", asked)]
    answers.append(handle.act.remote(asked[0]).result())
    for answer, (actions, state) in zip(answers, [*expected, expected[0]], strict=True):
        assert_same_actions(answer["actions"], actions)
        np.testing.assert_allclose([answer["memory"][agent] for agent in AGENTS], state, rtol=0, atol=1e-6)
    serve.delete("lstm")


def test_a_full_queue_is_503_with_a_time_to_come_back(url, tmp_path):
    deploy(write_bundle(tmp_path / "b"), "full", max_ongoing_requests=1, max_queued_requests=1)
    answers = post_together(f"{url}/full", [{"observations": observations(256)}] * 64)
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 503}
    assert {answer.headers["retry-after"] for answer in answers if answer.status_code == 503} == {"1"}
    serve.delete("full")


def test_refusals_through_serve_are_those_of_the_app(url, tmp_path):
    deploy(write_bundle(tmp_path / "b"), "small", max_body_mb=0.01)
    for content, status, field in (
        (b"{", 400, "body"),
        (b'{"observations": {"scout_0": [1]}}', 422, "observations.scout_0"),
        (encode({"observations": {AGENTS[0]: [[0.0] * OBS] * 1000}}), 413, "body"),
    ):
        answer = httpx.post(f"{url}/small/v1/act", content=content, headers=JSON)
        assert (answer.status_code, answer.json()["field"]) == (status, field)
    assert httpx.get(f"{url}/small/nothing").json()["field"] == "path"
    assert "/v1/act" in httpx.get(f"{url}/small/openapi.json").json()["paths"]
    serve.delete("small")
