"""Real runs, stopped and killed: what is on disk afterwards, and that `resume` goes on from it."""

import os
import signal
import time

import pytest

from rllib_hypermarl.rllib import checkpoints
from tests.helpers import ROOT, STEPS, processes_of, rows, run, start, wait_until, write_config

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
ENDLESS = "run.stop_env_steps=100_000_000"


def saved_iteration(run_dir):
    return checkpoints.verify(checkpoints.find(run_dir))["iteration"]


def row_count(run_dir):
    path = run_dir / "result.json"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def assert_whole(run_dir, last=None):
    """Every env step is in result.json once, in order."""
    found = rows(run_dir)
    count = len(found)
    assert [row["training_iteration"] for row in found] == list(range(1, count + 1))
    assert [row["num_env_steps_sampled_lifetime"] for row in found] == [STEPS * i for i in range(1, count + 1)]
    assert (run_dir / "result.json").read_bytes().count(b"\n") == count
    assert last is None or count == last


def goes_on(run_dir, iterations):
    """Resumes the run for some iterations more, and checks its rows."""
    before = saved_iteration(run_dir)
    done = run("resume", run_dir, "--stop-env-steps", (before + iterations) * STEPS, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert_whole(run_dir, last=before + iterations)
    assert saved_iteration(run_dir) == before + iterations


def stop(process, signum):
    """Sends the signal. Returns exit status and stderr, when whatever Ray started is gone too."""
    process.send_signal(signum)
    error = process.communicate(timeout=120)[1]
    wait_until(lambda: not processes_of(process.pid))
    return process.returncode, error


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_last_iteration_and_resume_goes_on_from_it(tmp_path, signum, status):
    run_dir = tmp_path / "run"
    process = start("train", write_config(tmp_path), ENDLESS, "--out", run_dir, cwd=ROOT)
    wait_until(lambda: row_count(run_dir) >= 20, process)
    assert processes_of(process.pid)  # the check at the end can fail
    returncode, err = stop(process, signum)
    assert returncode == status, err
    assert err.splitlines()[-1] == (f"stopped by {signum.name}; go on with: python -m rllib_hypermarl resume {run_dir}")
    assert "Traceback" not in err
    assert_whole(run_dir)
    assert saved_iteration(run_dir) == row_count(run_dir) >= 20
    goes_on(run_dir, 5)


def test_a_signal_does_not_wait_for_a_long_iteration(tmp_path):
    """The first iteration takes 2.4 s, the second 40 s. Asking again and again does not prolong the wait."""
    run_dir = tmp_path / "run"
    path = write_config(tmp_path, "env=tests.faulty_envs:SlowEnv", "env_config={}")
    process = start("train", path, ENDLESS, "--out", run_dir, cwd=ROOT)
    wait_until(lambda: checkpoints.list_checkpoints(run_dir), process)
    time.sleep(1)
    asked = time.monotonic()
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    returncode, err = stop(process, signal.SIGINT)
    assert returncode == 130, err
    assert time.monotonic() - asked < 20  # about 3; 40 would be the iteration's end
    assert "stopped by SIGINT" in err
    assert "Traceback" not in err
    assert (row_count(run_dir), saved_iteration(run_dir)) == (1, 1)
    done = run("resume", run_dir, "--stop-env-steps", STEPS, cwd=ROOT)  # already reached: loads, and that is all
    assert done.returncode == 0, done.stderr
    assert_whole(run_dir, last=1)


def test_a_kill_loses_at_most_the_checkpoint_interval(tmp_path):
    run_dir, interval = tmp_path / "run", 2.0
    path = write_config(tmp_path, ENDLESS, f"run.checkpoint_seconds={interval}")
    process = start("train", path, "--out", run_dir, cwd=ROOT)
    wait_until(lambda: len(checkpoints.list_checkpoints(run_dir)) >= 2, process)
    time.sleep(interval / 2)
    process.kill()
    process.communicate(timeout=60)

    found, saved = rows(run_dir), saved_iteration(run_dir)
    at = {row["training_iteration"]: row["time_total_s"] for row in found}
    assert 0 < saved <= found[-1]["training_iteration"]
    assert at[found[-1]["training_iteration"]] - at[saved] < interval + 0.5

    text = (run_dir / "result.json").read_text()
    (run_dir / "result.json").write_text(text + '{"training_iteration": 10')  # as a kill in the middle of a line does
    (run_dir / ".checkpoint_999999.unfinished").mkdir()
    goes_on(run_dir, 5)
    wait_until(lambda: not processes_of(process.pid))  # Ray's notice after a while that nobody is there


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path):
    run_dir = tmp_path / "run"
    process = start("train", write_config(tmp_path), ENDLESS, "--out", run_dir, cwd=ROOT)
    wait_until(lambda: row_count(run_dir) >= 3, process)
    process.kill()
    process.communicate(timeout=60)
    assert checkpoints.list_checkpoints(run_dir) == []
    done = run("resume", run_dir, "--stop-env-steps", 5 * STEPS, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert_whole(run_dir, last=5)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_ray_starts_leaves_nothing_behind(tmp_path, signum):
    run_dir = tmp_path / "run"
    process = start("train", write_config(tmp_path), ENDLESS, "--out", run_dir, cwd=ROOT)
    wait_until(lambda: processes_of(process.pid), process)  # the first of Ray's
    returncode, err = stop(process, signum)
    assert returncode in (128 + signum, -signum), err
    assert "Traceback" not in err


def test_a_signal_while_the_algorithm_is_built_ends_it_at_once(tmp_path):
    """Ray's core worker has a handler of its own for SIGTERM, which would abort the process (`ray_session`)."""
    made = tmp_path / "made"
    path = write_config(tmp_path, "env=tests.faulty_envs:SlowToMakeEnv", f"env_config={{file: {made}}}")
    process = start("train", path, ENDLESS, "--out", tmp_path / "run", cwd=ROOT)
    wait_until(made.exists, process)
    returncode, err = stop(process, signal.SIGTERM)
    assert (returncode, err) == (143, "error: stopped\n")


@pytest.mark.parametrize("learners", [0, 1])
def test_a_signal_to_all_processes_ends_a_run_that_can_go_on(tmp_path, learners):
    """As `timeout`, systemd and Slurm send it: Ray's processes, and with them runners and learners, die at once.

    Where Ray's client in the command needs its raylet before Python's handler had its turn, it ends the process itself,
    with status 1 and no word.
    """
    run_dir = tmp_path / "run"
    actors = ["env_runners.num_env_runners=1", "env_runners.num_cpus_per_env_runner=0.1", "run.checkpoint_seconds=0.5",
              f"learners.num_learners={learners}", "learners.num_cpus_per_learner=0.1"]  # fmt: skip
    process = start("train", write_config(tmp_path), ENDLESS, *actors, "--out", run_dir, cwd=ROOT)
    wait_until(lambda: checkpoints.list_checkpoints(run_dir), process)
    os.killpg(process.pid, signal.SIGTERM)
    error = process.communicate(timeout=120)[1]
    assert process.returncode in (143, 1), error
    said = f"stopped by SIGTERM; go on with: python -m rllib_hypermarl resume {run_dir}" in error.splitlines()
    assert said == (process.returncode == 143), error
    # Of ours; RLlib may have found an actor dead before Python's handler had its turn, and says so in its log.
    assert not [line for line in error.splitlines() if line.startswith("error:")]
    assert "Traceback" not in error
    wait_until(lambda: not processes_of(process.pid))
    goes_on(run_dir, 2)


def test_a_failing_env_ends_a_real_run_with_one_line(tmp_path):
    path = write_config(tmp_path, "env=tests.faulty_envs:RaisingEnv", "env_config={}", "run.checkpoint_seconds=0.001")
    process = start("train", path, "--out", tmp_path / "run", cwd=ROOT)
    out, err = process.communicate(timeout=240)
    assert (process.returncode, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("error: env 'tests.faulty_envs:RaisingEnv' raised in step() after 128 env steps: KeyError")
    wait_until(lambda: not processes_of(process.pid))
    assert saved_iteration(tmp_path / "run") == row_count(tmp_path / "run") == 1
