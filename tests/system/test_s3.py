"""Runs and sweeps whose results are in an object store: a real S3 server on this machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from pyarrow.fs import FileSelector, FileSystem

from tests import helpers as processes
from tests.helpers import ROOT, STEPS, environment, game, rows, wait_until, write_config

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


class Bucket:
    """A bucket of a server that this test started."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(**KEYS),
        )  # fmt: skip
        wait_until(self._answers, self.server, timeout=60)
        self.fs = FileSystem.from_uri(self.uri("", "allow_bucket_creation=true"))[0]
        self.fs.create_dir("bucket")

    def _answers(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def uri(self, name, *options):
        return f"s3://bucket/{name}?" + "&".join([f"endpoint_override=127.0.0.1:{self.port}", "scheme=http", *options])

    def files(self, name):
        found = self.fs.get_file_info(FileSelector(f"bucket/{name}", recursive=True, allow_not_found=True))
        return [info.path.removeprefix(f"bucket/{name}/") for info in found if info.is_file]

    def read(self, name):
        with self.fs.open_input_stream(f"bucket/{name}") as file:
            return file.read().decode()


@pytest.fixture(scope="module", autouse=True)
def keys():
    with pytest.MonkeyPatch.context() as patch:
        for key, value in KEYS.items():
            patch.setenv(key, value)
        yield


@pytest.fixture(scope="module")
def bucket(keys):
    made = Bucket()
    yield made
    made.server.kill()
    made.server.wait()


def steps(bucket, run):
    found = [json.loads(line) for line in bucket.read(f"{run}/result.json").splitlines()]
    return [row["num_env_steps_sampled_lifetime"] for row in found]


def test_a_run_in_a_bucket_is_killed_and_goes_on_and_can_be_evaluated(bucket, tmp_path):
    budget = STEPS * 600
    config = write_config(tmp_path, "run.checkpoint_seconds=1", f"run.stop_env_steps={budget}")
    train = ("train", config, "--out", bucket.uri("run"))
    process = processes.start(*train, cwd=tmp_path)
    wait_until(lambda: any(name.endswith("manifest.json") for name in bucket.files("run")), process, every=0.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = processes.run(*train, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming s3://bucket/run" in done.stderr
    found = steps(bucket, "run")
    assert found == sorted(set(found)) and found[-1] >= budget
    kept = {name.split("/")[0] for name in bucket.files("run") if name.startswith("checkpoint_")}
    assert len(kept) <= 3 and max(kept) == f"checkpoint_{len(found):06d}"  # one more that the kill left half there
    evaluated = processes.run("evaluate", bucket.uri("run"), "--episodes", "4", "--json", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    report = json.loads(evaluated.stdout)
    assert report["env_steps"] == found[-1] and report["checkpoint"].startswith("s3://bucket/run")
    resumed = processes.run("resume", bucket.uri("run"), "--stop-env-steps", str(budget + 10 * STEPS), cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert steps(bucket, "run")[-1] >= budget + 10 * STEPS
    assert not (tmp_path / "runs").exists() and not list(tmp_path.glob("s3*"))


def test_a_sweep_in_a_bucket_is_killed_and_goes_on(bucket, tmp_path):
    stop = 128 * 40
    config = game(f"run.stop_env_steps={stop}", "run.checkpoint_seconds=1", "evaluation.evaluation_interval=5",
                  "evaluation.evaluation_duration=4")  # fmt: skip
    settings = {"seeds": [0], "cpus_per_trial": 0.5}
    path = tmp_path / "sweep.yaml"
    search = {"training.lr": {"grid": [1e-3, 1e-2]}}
    path.write_text(yaml.safe_dump({"config": config, "search": search, "tune": settings}))
    tune = ("tune", path, "--out", bucket.uri("sweep"))
    driver = processes.start(*tune, cwd=tmp_path)
    wait_until(lambda: any("manifest.json" in f for f in bucket.files("sweep/candidates")), driver, every=0.5)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    time.sleep(1)
    done = processes.run(*tune, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = json.loads(bucket.read("sweep/ranking.json"))
    assert [row["state"] for row in table] == ["done"] * 2 and all(row["env_steps"] >= stop for row in table)
    assert {"best.yaml", "index.html", "study.db", "sweep.yaml", "best/config.yaml"} <= set(bucket.files("sweep"))
    evaluated = processes.run("evaluate", bucket.uri("sweep/best"), "--episodes", "4", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr


def test_a_bucket_that_is_not_there_or_cannot_be_reached_is_said_before_training(bucket, tmp_path):
    config = write_config(tmp_path)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    for uri in (
        bucket.uri("x").replace("bucket", "nobodys"),
        f"s3://b/x?endpoint_override=127.0.0.1:{port}&scheme=http",
    ):
        done = processes.run("train", config, "--out", uri, cwd=ROOT)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert "s3://" in line and ("cannot be read" in line or "cannot be written" in line)


def test_a_store_that_goes_away_does_not_stop_training_and_the_results_are_kept(tmp_path):
    own = Bucket()
    config = write_config(tmp_path, "run.checkpoint_seconds=1", "run.stop_env_steps=1_000_000_000")
    process = processes.start("train", config, "--out", own.uri("run"), cwd=tmp_path)
    wait_until(lambda: any(name.endswith("manifest.json") for name in own.files("run")), process, every=0.5)
    own.server.kill()
    own.server.wait()
    line = next(line for line in process.stderr if "results stay in" in line)
    kept = Path(line.rpartition("results stay in ")[2].partition(", and go there")[0])
    before = len(rows(kept))
    wait_until(lambda: len(rows(kept)) >= before + 50, process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in stderr, stderr
    assert stderr.rstrip().endswith(f"the results are in {kept}")
    done = processes.run("evaluate", kept, "--episodes", "4", "--json", cwd=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)["env_steps"] == STEPS * len(rows(kept))
    shutil.rmtree(kept.parent)
