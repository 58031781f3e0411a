"""`ray job submit` as the README has it, against a real Ray head with token authentication."""

import subprocess
import sys
import time

import pytest

from tests.helpers import ROOT, STEPS, rows, wait_until, write_config
from tests.ray_head import Head
from tests.system.test_tune import ranking, write_sweep

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
STOP_WAIT = '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "30"}}'


@pytest.fixture(scope="module")
def head():
    head = Head()
    yield head
    head.stop()


def test_a_training_job_succeeds_and_the_same_one_again_goes_on(head, tmp_path):
    config = write_config(tmp_path)
    done = head.submit("train", config, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout and len(rows(tmp_path / "run")) == 3
    again = head.submit("train", config, f"run.stop_env_steps={5 * STEPS}", "--out", tmp_path / "run")
    assert again.returncode == 0 and "resuming" in again.stdout + again.stderr
    assert [row["training_iteration"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4, 5]


def test_runners_on_the_cluster(head, tmp_path):
    config = write_config(tmp_path, "env_runners.num_env_runners=1")
    done = head.submit("train", config, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    refused = head.submit("train", config, "env_runners.num_cpus_per_env_runner=9", "--out", tmp_path / "other")
    assert refused.returncode == 1
    assert "need 9 CPU, the cluster has 2" in refused.stdout + refused.stderr


def test_a_job_fails_as_its_command_does_and_says_why(head, tmp_path):
    failed = head.submit("train", write_config(tmp_path), "training.lrr=1", "--out", tmp_path / "run")
    assert failed.returncode == 1
    assert "did you mean 'training.lr'" in failed.stdout + failed.stderr


def test_results_that_would_be_lost_with_the_job_are_refused(head, tmp_path):
    for out in ((), ("--out", "runs/here")):
        failed = head.submit("train", write_config(tmp_path), *out)
        assert failed.returncode == 1
        assert "absolute path" in failed.stdout + failed.stderr


def test_a_stopped_job_has_saved_its_last_iteration_and_goes_on(head, tmp_path):
    config = write_config(tmp_path, "run.checkpoint_seconds=1000")
    run_dir, endless = tmp_path / "run", "run.stop_env_steps=100_000_000"
    options = ("--no-wait", "--submission-id", "endless", "--runtime-env-json", STOP_WAIT)
    assert head.submit("train", config, endless, "--out", run_dir, options=options).returncode == 0
    wait_until(lambda: (run_dir / "result.json").exists() and len(rows(run_dir)) > 20)
    stopped = head.ray("job", "stop", "--address", head.address, "endless")
    assert stopped.returncode == 0, stopped.stderr
    found = rows(run_dir)
    saved = max(int(path.name[11:]) for path in run_dir.glob("checkpoint_*"))
    assert saved == found[-1]["training_iteration"] > 20
    on = STEPS * (saved + 2)
    again = head.submit("train", config, f"run.stop_env_steps={on}", "--out", run_dir)
    assert again.returncode == 0, again.stdout
    assert rows(run_dir)[-1]["training_iteration"] == saved + 2


def test_a_sweep_is_a_job_like_any_other(head, tmp_path):
    path = write_sweep(tmp_path, {"training.lr": {"grid": [1e-3, 1e-2]}}, seeds=[0], cpus_per_trial=1)
    done = head.submit("tune", path, "--out", tmp_path / "sweep")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["state"] for row in ranking(tmp_path / "sweep")] == ["done", "done"]


def test_a_wrong_token_is_one_line_in_seconds(head, tmp_path):
    wrong = {"RAY_AUTH_TOKEN": "0" * 64}
    started = time.monotonic()
    refused = head.submit("train", write_config(tmp_path), "--out", tmp_path / "run", **wrong)
    assert refused.returncode == 1 and time.monotonic() - started < 60
    assert "Authentication failed" in refused.stdout + refused.stderr
    env = {**head.env, **wrong, "RAY_ADDRESS": f"127.0.0.1:{head.port}"}
    joined = subprocess.run(
        [sys.executable, "-m", "rllib_hypermarl", "train", write_config(tmp_path), "--out", str(tmp_path / "run")],
        env=env, cwd=ROOT, text=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert joined.returncode == 1
    (line,) = [line for line in joined.stderr.splitlines() if line.startswith("error:")]
    assert "RAY_ADDRESS" in line and "token" in line and "Traceback" not in joined.stderr


def test_the_working_directory_is_small(head, tmp_path):
    """What travels is the code: no tests, no history, no runs."""
    sizes = [path.stat().st_size for path in (head.home / "ray").rglob("_ray_pkg_*/**/*") if path.is_file()]
    assert 0 < sum(sizes) < 2_000_000
    names = {path.name for path in (head.home / "ray").rglob("_ray_pkg_*/*")}
    assert {"rllib_hypermarl", "envs", "tune_configs"} <= names and not {"tests", "docs", ".git", "runs"} & names
