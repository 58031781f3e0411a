"""`bench serving`: what needs no Serve; and all of it for a second per figure where there is a load generator."""

import json
import shutil

import pytest
from fastapi.testclient import TestClient

from rllib_hypermarl import load_policy
from rllib_hypermarl.bench import serving
from rllib_hypermarl.bench.serving_bare import make_app
from rllib_hypermarl.errors import ConfigError


def test_a_missing_load_generator_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="wrk on PATH"):
        serving.run(rounds=1)


def test_the_bare_app_answers_as_the_team_does(tmp_path):
    work = serving._prepare(tmp_path)
    body = (work / "single.json").read_bytes()
    client = TestClient(make_app(str(work / "bundle")))
    answer = client.post("/v1/act", content=body, headers={"Content-Type": "application/json"})
    expected = load_policy(work / "bundle").act(json.loads(body)["observations"])
    assert answer.json()["actions"] == {agent: int(action) for agent, action in expected.items()}


@pytest.mark.system
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs the load generator wrk")
def test_every_app_is_measured_without_errors():
    lines = []
    results = serving.run((1, 32), rounds=1, seconds=1, log=lines.append)
    assert [(p["app"], p["clients"]) for p in results["points"]] == [(app, n) for app in serving.APPS for n in (1, 32)]
    assert all(
        p["errors"] == 0 and p["requests_per_second"] > 0 < p["p50_ms"] <= p["p99_ms"] for p in results["points"]
    )
    assert [(b["app"], b["errors"]) for b in results["batched"]] == [("proxy", 0), ("direct", 0)]
    assert set(results["ratios"]) > {"direct to bare"} and len(lines) == 12
    assert json.loads(json.dumps(results)) == results and "direct to bare" in serving.table(results)
