"""Thousands of requests that no client of ours would send. Always an answer that the description has, where it is a
refusal a 4xx that names the field, and never a path or a trace of the code.

`FUZZ_EXAMPLES=5000 FUZZ_COUNTS=counts.json pytest tests/serving/test_fuzz.py` asks more, and writes down the answers.
"""

import collections
import json
import os
import re
from pathlib import Path

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from rllib_hypermarl.serving.http import TeamApp
from rllib_hypermarl.serving.schemas import ActRequest
from tests.serving.teams import AGENTS, CORE, KINDS, OBS, Alone, write_bundle

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
EXAMPLES = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "50")),
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
TRACES = re.compile(rb"Traceback|File \"|\.py\b|/tmp|/home|/usr|/root|site-packages|0x[0-9a-f]{6}")


@pytest.fixture(scope="module")
def counts():
    """What was answered: test -> status and field -> number."""
    found = collections.defaultdict(collections.Counter)
    yield found
    if "FUZZ_COUNTS" in os.environ:
        table = {test: dict(sorted(counter.items())) for test, counter in found.items()}
        requests = sum(sum(counter.values()) for counter in found.values())
        Path(os.environ["FUZZ_COUNTS"]).write_text(json.dumps({"requests": requests, **table}, indent=1) + "\n")


@pytest.fixture(scope="module", params=[None, "lstm"])
def app(tmp_path_factory, request):
    """Of a team with and of one without memory."""
    bundle = write_bundle(tmp_path_factory.mktemp("fuzz") / "b", "multi_discrete", memory=request.param)
    return TeamApp(Alone(bundle), max_body=2**20)


@pytest.fixture(scope="module")
def client(app):
    return TestClient(app, raise_server_exceptions=False)


def judge(status, content, counter):
    """That an answer is right or names the field, and tells nothing of the inside."""
    assert not TRACES.search(content), content
    if status == 200:
        counter["200"] += 1
        return
    assert 400 <= status < 500, content
    said = json.loads(content)
    assert said.keys() == {"field", "error"} and said["field"] and said["error"]
    # Of names that strangers gave, only the first part.
    counter[f"{status} {re.match(r'[a-z_-]*', said['field'])[0] or 'other'}"] += 1


ROUTES = [("/v1/act", "POST"), ("/metadata", "GET"), ("/healthz", "GET"), ("/readyz", "GET")]


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("path", "method"), ROUTES)
def test_the_description_holds(app, counts, path, method, mode):
    """With requests that fit it, and with ones that do not."""
    operation = schemathesis.openapi.from_asgi("/openapi.json", app)[path][method]
    if mode is GenerationMode.NEGATIVE and path != "/v1/act":
        return  # nothing in them can be wrong

    @EXAMPLES
    @given(operation.as_strategy(generation_mode=mode))
    def holds(case):
        answer = case.call_and_validate(checks=CHECKS)
        judge(answer.status_code, answer.content, counts[f"description, {mode.value}"])

    holds()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=8), inner, max_size=8),
    max_leaves=30,
)
NUMBERS = st.floats(width=32) | st.floats() | st.integers(-(10**400), 10**400) | JSON
ROW = st.lists(NUMBERS, min_size=OBS, max_size=OBS) | st.just([0.5] * OBS) | JSON
ROWS = ROW | st.lists(ROW, max_size=4)
MASK = st.lists(st.booleans() | JSON, min_size=9, max_size=9) | JSON
SIZES = st.sampled_from([2 * CORE, 4 * CORE])  # without and with the critics' part
MEMORY = SIZES.flatmap(lambda size: st.lists(NUMBERS, min_size=size, max_size=size) | st.just([0.5] * size)) | JSON
KNOWN = st.dictionaries(st.just(AGENTS[0]), MEMORY, min_size=1)
NAMES = st.sampled_from(AGENTS) | st.text(max_size=10)
FIELDS = {
    "observations": st.just({AGENTS[0]: [0.5] * OBS}) | st.dictionaries(NAMES, ROWS, max_size=5) | JSON,
    "action_mask": st.dictionaries(NAMES, MASK | st.lists(MASK, max_size=3), max_size=5) | JSON,
    "memory": KNOWN | st.dictionaries(NAMES, MEMORY | st.lists(MEMORY, max_size=4), max_size=5) | JSON,
    "state": ROWS,
    "greedy": st.booleans() | JSON,
    "seed": st.integers() | JSON,
    "probabilities": st.booleans() | JSON,
    "values": st.booleans() | JSON,
}


@EXAMPLES
@given(
    st.fixed_dictionaries({}, optional=FIELDS) | st.dictionaries(st.sampled_from(list(FIELDS)) | st.text(), JSON) | JSON
)
def test_wrong_shapes_types_and_numbers(client, counts, asked):
    body = json.dumps(asked).encode()
    answer = client.post("/v1/act", content=body, headers={"Content-Type": "application/json"})
    judge(answer.status_code, answer.content, counts["shapes, types and numbers"])


@EXAMPLES
@given(
    st.binary(max_size=300)
    | st.text(alphabet='{}[]":,.0123456789eE+-naNIinfityrulse \\u', max_size=300).map(str.encode)
)
def test_bodies_that_are_not_json(client, counts, body):
    answer = client.post("/v1/act", content=body, headers={"Content-Type": "application/json"})
    judge(answer.status_code, answer.content, counts["not JSON"])


@settings(EXAMPLES, max_examples=max(20, EXAMPLES.max_examples // 20))
@given(st.sampled_from(["[", '{"a":', '{"observations":', '"', "9", " ", '{"observations": {"guard": [' + "0," * 9]),
       st.integers(1, 2 * 2**20))  # fmt: skip
def test_deep_and_megabyte_bodies(client, counts, part, size):
    body = (part * (size // len(part) + 1))[:size].encode()
    answer = client.post("/v1/act", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code == 413) == (size > 2**20)
    judge(answer.status_code, answer.content, counts["deep and large"])


def test_every_field_is_fuzzed():
    assert set(FIELDS) == set(ActRequest.model_fields)
    assert KINDS["multi_discrete"].head_dim == 9
