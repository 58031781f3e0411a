"""docs/serving.md from a trained run to an update and back, and deploy/serve.yaml on a real Ray head."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from rllib_hypermarl import load_policy
from rllib_hypermarl.bench.measure import free_port
from tests.helpers import ROOT, STEPS, environment, wait_until, write_config
from tests.ray_head import Head
from tests.serving.load import Load
from tests.serving.teams import write_bundle

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
BIN = Path(sys.executable).parent


def test_the_page_leads_from_a_run_to_an_update_and_back(tmp_path):
    page = (ROOT / "docs/serving.md").read_text(encoding="utf-8").split("## What can be asked")[0]
    blocks = re.findall(r"```(bash|python)\n(.*?)```", page, flags=re.DOTALL)
    assert [language for language, _ in blocks] == ["bash", "python", "bash"]
    script = "".join(f"python - <<'EOF'\n{text}EOF\n" if language == "python" else text for language, text in blocks)
    port, config = free_port(), write_config(tmp_path, "run.checkpoint_seconds=0.01")
    for old, new in (("8000", str(port)), ("tune_configs/dispersion.yaml", str(config)),
                     ("16_000_000", str(6 * STEPS)), ("sleep 5", "sleep 15")):  # fmt: skip
        assert old in script
        script = script.replace(old, new)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script + "\necho over"], cwd=tmp_path, text=True, capture_output=True,
        timeout=600, env=environment(PATH=f"{BIN}:{os.environ['PATH']}"),
    )  # fmt: skip
    first, second = (load_policy(tmp_path / f"bundles/dispersion-{i}").version for i in (1, 2))
    assert first != second
    found = re.findall(r"serving version (\w+)", done.stdout)
    assert found == [first, second, first], done.stdout + done.stderr
    assert f'"versions": [\n  "{first}"\n ]' in done.stdout  # of who played
    assert f'{{"version":"{second}"' in done.stdout  # of /metadata after the update
    assert "Traceback" not in done.stderr


def test_the_config_is_updated_and_rolled_back_under_load(tmp_path):
    bundles = [write_bundle(tmp_path / f"v{seed}", seed=seed) for seed in range(2)]
    versions = [load_policy(bundle).version for bundle in bundles]
    (config,) = yaml.safe_load_all((ROOT / "deploy/serve.yaml").read_text(encoding="utf-8"))
    port = config["http_options"]["port"] = free_port()
    for app, bundle in zip(config["applications"], bundles, strict=True):
        app["args"] = {"bundle": str(bundle), "num_cpus": 0.5}
        app["deployments"][0]["user_config"] = {"bundle": str(bundle)}
    head, path = Head(), tmp_path / "serve.yaml"
    url = f"http://127.0.0.1:{port}/dispersion"

    def deploy(bundle):
        config["applications"][0]["deployments"][0]["user_config"] = {"bundle": str(bundle)}
        path.write_text(yaml.safe_dump(config))
        where = ("--address", head.address)
        done = subprocess.run(
            [BIN / "serve", "deploy", *where, path], env=head.env, cwd=ROOT, text=True, capture_output=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def metadata(at=url):
        try:
            answer = httpx.get(f"{at}/metadata", timeout=60)
        except httpx.TransportError:
            return {}
        return answer.json() if answer.status_code == 200 else {}

    try:
        deploy(bundles[0])
        wait_until(lambda: metadata().get("version") == versions[0])
        wait_until(lambda: metadata(f"{url}-next").get("version") == versions[1])
        with Load(url, bundles).running() as load:
            wait_until(lambda: load.answers[versions[0]] > 20)
            deploy(bundles[1])
            wait_until(lambda: load.answers[versions[1]] > 20)
            deploy(tmp_path / "nowhere")
            wait_until(lambda: metadata().get("refused"))
            assert metadata()["version"] == versions[1] and str(tmp_path) not in metadata()["refused"]["reason"]
            deploy(bundles[0])
            wait_until(lambda: metadata().get("version") == versions[0] and metadata()["refused"] is None)
            before = load.answers[versions[0]]
            wait_until(lambda: load.answers[versions[0]] > before + 20)
        assert load.errors == []
    finally:
        head.stop()
