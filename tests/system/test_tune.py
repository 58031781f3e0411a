"""Sweeps as users start them: whole, killed half way, stopped, extended, and with input that cannot work."""

import contextlib
import itertools
import json
import os
import signal
import sqlite3
import statistics

import optuna
import psutil
import pytest
import yaml
from optuna.trial import TrialState

from rllib_hypermarl.cli import run
from rllib_hypermarl.rllib.grammar import read_yaml
from rllib_hypermarl.tuning.study import STUDY_NAME, candidates, storage_url
from tests import helpers as processes
from tests.helpers import ROOT, game, processes_of, rows, wait_until, write_config

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
GRID = {"training.lr": {"grid": [1e-3, 1e-2]}, "hypermarl.embedding_dim": {"grid": [2, 4]}}
STOP = 128 * 60


def write_sweep(directory, search=GRID, overrides=(), name="sweep.yaml", **tune):
    config = game(f"run.stop_env_steps={STOP}", "evaluation.evaluation_interval=5", "evaluation.evaluation_duration=4",
                  *overrides)  # fmt: skip
    settings = {"seeds": [0, 1], "max_concurrent": 2, "cpus_per_trial": 0.5, **tune}
    path = directory / name
    path.write_text(yaml.safe_dump({"config": config, "search": search, "tune": settings}))
    return path


def ranking(directory):
    return json.loads((directory / "ranking.json").read_text())


def study(directory):
    return optuna.load_study(study_name=STUDY_NAME, storage=storage_url(directory))


def finished(directory):
    """Trials that a sweep's driver has finished so far; not asked of Optuna, which would write to a new file."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{directory / 'study.db'}?mode=ro", uri=True)) as database:
            return database.execute("SELECT COUNT(*) FROM trials WHERE state = 'COMPLETE'").fetchone()[0]
    except sqlite3.OperationalError:  # not there yet
        return 0


def of_all(directory):
    """Parameters -> state, value and seeds' values."""
    table = ranking(directory)
    return {json.dumps(row["params"], sort_keys=True): (row["state"], row["value"], row["seeds"]) for row in table}


@pytest.fixture(scope="module")
def whole_grid(tmp_path_factory):
    """A grid that nobody disturbed."""
    directory = tmp_path_factory.mktemp("whole")
    done = processes.run("tune", write_sweep(directory), "--out", directory / "sweep", cwd=directory)
    assert done.returncode == 0, done.stderr
    return directory / "sweep"


def test_a_grid_is_ranked_and_its_best_can_be_trained_and_evaluated(whole_grid, tmp_path):
    table = ranking(whole_grid)
    assert len(table) == 4 and {row["state"] for row in table} == {"done"}
    values = [row["value"] for row in table]
    assert values == sorted(values, reverse=True)
    assert all(row["value"] == pytest.approx(statistics.mean(row["seeds"])) for row in table)
    best = read_yaml(whole_grid / "best.yaml")
    assert best["training"]["lr"] == table[0]["params"]["training.lr"]
    assert processes.run("evaluate", whole_grid / "best", "--episodes", "4", cwd=tmp_path).returncode == 0

    # The same config and seed by hand is the same run.
    seed = 1
    done = processes.run(
        "train", whole_grid / "best.yaml", "--seed", str(seed), "--out", tmp_path / "by_hand", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    of_sweep = rows(whole_grid / "candidates" / f"{table[0]['candidate']:04d}" / f"seed_{seed}")
    by_hand = rows(tmp_path / "by_hand")
    assert len(by_hand) == len(of_sweep) == 60
    assert by_hand[-1]["env_runners"]["agent_return_mean"] == of_sweep[-1]["env_runners"]["agent_return_mean"]
    newest = [row["evaluation"]["env_runners"]["agent_return_mean"] for row in by_hand if "evaluation" in row][-1]
    assert newest == table[0]["seeds"][1]


def test_seeds_of_a_candidate_have_actors_of_their_own(tmp_path):
    actors = ["env_runners.num_env_runners=2", "env_runners.num_cpus_per_env_runner=0.05", "learners.num_learners=2",
              "learners.num_cpus_per_learner=0.05", "training.train_batch_size_per_learner=128",
              f"run.stop_env_steps={256 * 5}"]  # fmt: skip
    path = write_sweep(tmp_path, {"training.lr": {"grid": [1e-3]}}, actors, seeds=[0, 1])
    done = processes.run("tune", path, "--out", tmp_path / "sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [len(rows(tmp_path / "sweep" / "candidates" / "0000" / f"seed_{seed}")) for seed in (0, 1)] == [5, 5]


def kill_half_way(path, directory, number):
    driver = processes.start("tune", path, "--out", directory, cwd=path.parent)
    wait_until(lambda: finished(directory) >= number, driver)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert any(trial.state == TrialState.RUNNING for trial in study(directory).get_trials())


def test_a_grid_whose_driver_was_killed_ends_as_one_that_was_not(whole_grid, tmp_path):
    directory = tmp_path / "sweep"
    kill_half_way(write_sweep(tmp_path), directory, 2)
    done = processes.run("tune", tmp_path / "sweep.yaml", "--out", directory, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert of_all(directory) == of_all(whole_grid)
    assert all(trial.state != TrialState.RUNNING for trial in study(directory).get_trials())


def test_tpe_whose_driver_was_killed_meets_its_budget_and_repeats_nothing(tmp_path):
    search = {"training.lr": {"loguniform": [1e-4, 1e-2]}}
    path, directory = write_sweep(tmp_path, search, candidates=5), tmp_path / "sweep"
    kill_half_way(path, directory, 2)
    before = {t.number: t.value for t in study(directory).get_trials() if t.state == TrialState.COMPLETE}
    done = processes.run("tune", path, "--out", directory, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    after = study(directory)
    assert [t.state for t in candidates(after).values()] == [TrialState.COMPLETE] * 5
    assert all(trial.state != TrialState.RUNNING for trial in after.get_trials())
    assert {number: after.trials[number].value for number in before} == before
    drawn = [trial.params["training.lr"] for trial in candidates(after).values()]
    assert len(set(drawn)) == 5
    done = processes.run(
        "tune", path, "tune.candidates=6", "--out", directory, cwd=tmp_path
    )  # a finished sweep can be extended
    assert done.returncode == 0 and len(ranking(directory)) == 6


def test_a_stopped_sweep_is_saved_and_goes_on(tmp_path):
    search = {"training.lr": {"choice": [1e-3, 1e-2]}}
    path, directory = write_sweep(tmp_path, search, candidates=2, sampler="random"), tmp_path / "sweep"
    driver = processes.start("tune", path, f"run.stop_env_steps={128 * 4000}", "--out", directory, cwd=tmp_path)
    runs = directory / "candidates" / "0000" / "seed_0"
    wait_until(lambda: (runs / "result.json").exists() and len(rows(runs)) > 10, driver)
    driver.send_signal(signal.SIGTERM)
    _, stderr = driver.communicate(timeout=60)
    assert driver.returncode == 143, stderr
    assert "the same command goes on" in stderr and "Traceback" not in stderr
    saved = max(int(path.name[11:]) for path in runs.glob("checkpoint_*"))
    assert rows(runs)[-1]["training_iteration"] == saved
    assert all(trial.state != TrialState.RUNNING for trial in study(directory).get_trials())
    refused = processes.run("tune", path, "--out", directory, cwd=tmp_path)
    assert refused.returncode == 2 and "another sweep (config.run.stop_env_steps" in refused.stderr


def test_a_sweep_whose_ray_died_does_not_wait_for_it(tmp_path):
    path, directory = write_sweep(tmp_path), tmp_path / "sweep"
    driver = processes.start("tune", path, f"run.stop_env_steps={128 * 4000}", "--out", directory, cwd=tmp_path)
    runs = directory / "candidates" / "0000" / "seed_0"
    wait_until(lambda: (runs / "result.json").exists() and len(rows(runs)) > 10, driver)
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "raylet" and os.getsid(process.pid) == driver.pid:
            process.kill()
    _, stderr = driver.communicate(timeout=120)
    assert driver.returncode == 1
    assert stderr.splitlines()[-1].startswith("error: Ray has no living node left")
    assert all(trial.state != TrialState.RUNNING for trial in study(directory).get_trials())
    wait_until(lambda: not processes_of(driver.pid), timeout=60)


def test_the_shipped_quick_sweep_finds_a_config_that_does_as_well_again(tmp_path):
    quick = (ROOT / "tune_configs" / "games_quick.yaml", "tune.candidates=8")
    done = processes.run("tune", *quick, "--out", tmp_path / "sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = ranking(tmp_path / "sweep")
    assert len(table) == 8 and "pruned" in {row["state"] for row in table}
    best = table[0]
    again = []
    for seed in (10, 11, 12):
        out = tmp_path / f"again_{seed}"
        done = processes.run("train", tmp_path / "sweep" / "best.yaml", "--seed", str(seed), "--out", out, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        again.append([r["evaluation"] for r in rows(out) if "evaluation" in r][-1]["env_runners"]["agent_return_mean"])
    # Two means of three seeds each: half a step of ten apart at most, or what their spread allows.
    spread = statistics.stdev([*best["seeds"], *again])
    assert abs(statistics.mean(again) - best["value"]) <= max(0.5, 2 * spread * (2 / 3) ** 0.5)
    page = (tmp_path / "sweep" / "index.html").read_text()
    assert page.count("data:image/png") == 3


PBT = {"training.lr": {"loguniform": [1e-5, 1e-1]}, "training.clip_param": {"uniform": [0.1, 0.4]}}


def test_population_based_training_really_changes_the_learning_rate(tmp_path):
    # Three times to be changed: whoever is first at the first one finds nobody to be compared with.
    path = write_sweep(
        tmp_path, PBT, [f"run.stop_env_steps={128 * 120}"], seeds=[0], candidates=4,
        scheduler="pbt", perturbation_env_steps=128 * 30, max_concurrent=4, cpus_per_trial=0.25,
    )  # fmt: skip
    done = processes.run("tune", path, "--out", tmp_path / "sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    changes = 0
    for run_dir in (tmp_path / "sweep" / "candidates").glob("*/seed_0"):
        read = rows(run_dir)
        rates = [row["learners"]["hyper"]["default_optimizer_learning_rate"] for row in read]
        iterations = [row["training_iteration"] for row in read]
        assert iterations == list(range(1, 121))
        assert rates[-1] == pytest.approx(yaml.safe_load((run_dir / "config.yaml").read_text())["training"]["lr"])
        changes += sum(a != b for a, b in itertools.pairwise(rates))
    assert changes > 0


def test_a_population_whose_driver_was_killed_goes_on_from_where_its_members_were(tmp_path):
    path = write_sweep(
        tmp_path, PBT, [f"run.stop_env_steps={128 * 60}", "run.checkpoint_seconds=0.5"], seeds=[0], candidates=4,
        scheduler="pbt", perturbation_env_steps=128 * 15, max_concurrent=4, cpus_per_trial=0.25,
    )  # fmt: skip
    directory = tmp_path / "sweep"
    driver = processes.start("tune", path, "--out", directory, cwd=tmp_path)
    members = [directory / "candidates" / f"{number:04d}" / "seed_0" for number in range(4)]
    wait_until(lambda: all(list(member.glob("checkpoint_*/manifest.json")) for member in members), driver)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    saved = {member: max(int(path.name[11:]) for path in member.glob("checkpoint_*")) for member in members}
    done = processes.run("tune", path, "--out", directory, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {row["state"] for row in ranking(directory)} == {"done"} and len(ranking(directory)) == 4
    for member in members:
        read = rows(member)
        assert [row["training_iteration"] for row in read] == list(range(1, 61))
        restored = [row["training_iteration"] for row in read if row["iterations_since_restore"] == 1]
        assert max(restored) > saved[member]
    assert all(trial.state != TrialState.RUNNING for trial in study(directory).get_trials())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"search": {}}, "search is empty"),
        ({"search": {"training.lrr": {"uniform": [0, 1]}}}, "did you mean 'training.lr'"),
        ({"metric": "env_runners/agent_retrun_mean"}, "did you mean 'env_runners/agent_return_mean'"),
        ({"cpus_per_trial": 64}, "need 64 CPU, the cluster has"),
        (
            {"overrides": ["env_runners.num_env_runners=40", "training.train_batch_size_per_learner=5120"]},
            "need 80.5 CPU",
        ),
        ({"overrides": ["env_config.n_agentss=3"]}, "n_agentss"),
        ({"loggers": {"wandbb": {}}}, "'wandbb' is not known"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_what_cannot_work_ends_in_seconds_with_one_line(tmp_path, change, words):
    path = write_sweep(tmp_path, **change)
    done = processes.run("tune", path, "--out", tmp_path / "sweep", cwd=tmp_path, timeout=180)  # seconds, when idle
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert words in line and "Traceback" not in done.stderr


def test_two_drivers_do_not_work_on_one_sweep(tmp_path):
    path = write_sweep(tmp_path, overrides=[f"run.stop_env_steps={128 * 4000}"])
    driver = processes.start("tune", path, "--out", tmp_path / "sweep", cwd=tmp_path)
    wait_until(lambda: (tmp_path / "sweep" / "study.db").exists(), driver)
    second = processes.run("tune", path, "--out", tmp_path / "sweep", cwd=tmp_path)
    assert second.returncode == 2 and "another process works on this sweep" in second.stderr
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=60)
    assert driver.returncode == 130


def test_a_sweep_whose_disk_is_full_goes_on_when_there_is_room(tmp_path):
    search = {"training.lr": {"choice": [1e-3, 1e-2]}}
    tune = {"sampler": "random", "max_concurrent": 1, "seeds": [0]}
    path, directory = write_sweep(tmp_path, search, candidates=1, **tune), tmp_path / "sweep"
    done = processes.run("tune", path, "--out", directory, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (full := directory / "candidates" / "0001" / "seed_0" / ".progress.csv").parent.mkdir(parents=True)
    full.symlink_to("/dev/full")
    path = write_sweep(tmp_path, search, candidates=2, **tune)
    done = processes.run("tune", path, "--out", directory, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    full_disk = "No space left on device; make room, then go on from what is saved"
    assert done.stderr.splitlines()[-1] == f"error: {directory}: {full_disk}"
    assert [row["state"] for row in ranking(directory)] == ["done", "waiting"]
    full.unlink()
    done = processes.run("tune", path, "--out", directory, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted((row["candidate"], row["state"]) for row in ranking(directory)) == [(0, "done"), (1, "done")]


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(["tune", str(write_sweep(tmp_path, name="a.yaml")), "--out", str(tmp_path / "file" / "sweep")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert run(["tune", str(write_sweep(tmp_path, name="a.yaml")), "--out", str(tmp_path)]) == 2
    assert "holds no sweep" in capsys.readouterr().err
    assert run(["tune", str(write_config(tmp_path)), "--out", str(tmp_path / "x")]) == 2
    assert "unknown key" in capsys.readouterr().err
