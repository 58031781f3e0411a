"""Commands, their output and their exit status; every error is one line on stderr."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rllib_hypermarl import HyperMARLConfig
from rllib_hypermarl.__main__ import SPIN_COUNT, main
from rllib_hypermarl.cli import run
from rllib_hypermarl.rllib import checkpoints
from tests.helpers import STEPS, environment, rows, write_config

pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    """Commands write where they stand."""
    monkeypatch.chdir(tmp_path)


def error_of(capfd, status, *arguments):
    """The one line on stderr of a command that must fail with this status and print nothing else."""
    capfd.readouterr()
    assert run([str(argument) for argument in arguments]) == status
    out, err = capfd.readouterr()
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    assert "Traceback" not in out
    return err


# ------------------------------------------------------------------------------------------------- arguments, exit 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.learning_rat=1", "unknown key 'training.learning_rat'"),
        ("training.num_epochs=many", "training.num_epochs is 'many'"),
        ("training.minibatch_size=4096", "minibatch_size"),
        ("env_runners.rollout_fragment_length=3", "training.train_batch_size_per_learner is 128"),
        ("env=nowhere/task", "unknown env 'nowhere/task'"),
        ("env=games/specialization", "did you mean 'games/specialisation'?"),
        ("env=vmas/dispersal", "did you mean 'vmas/dispersion'?"),
        ("env=rllib/cartpoles", "the command line takes rllib/module:callable"),
        ("training.lr", "expected group.key=value"),
    ],
)
@pytest.mark.parametrize("command", ["train", "inspect"])
def test_a_bad_override_is_named_and_nothing_is_made(capfd, tmp_path, command, override, words):
    path = write_config(tmp_path)
    assert words in error_of(capfd, 2, command, path, override)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fly"], "No such command 'fly'"),
        (["train"], "Missing argument 'CONFIG'"),
        (["train", "none.yaml"], "none.yaml: No such file"),
        (["train", "none.yaml", "--fast"], "No such option"),
        (["train", "none.yaml", "--seed", "first"], "'first' is not a valid integer"),
        (["resume", "nowhere"], "'nowhere' does not exist"),
        (["resume", "."], "holds no"),
        (["resume", ".", "--stop-env-steps", "0"], "0 is not in the range"),
        (["resume", ".", "--stop-env-steps", "5"], "config.yaml: No such file"),
        (["evaluate", "nowhere"], "'nowhere' does not exist"),
        (["evaluate", ".", "--episodes", "0"], "0 is not in the range"),
        (["evaluate", ".", "--video", "film.avi"], "ends in .gif or .mp4"),
        (["evaluate", ".", "--video", "none/film.gif"], "its directory must be there"),
        (["evaluate", ".", "--random", "--metrics"], "--random: leave out --metrics and --video"),
        (["evaluate", ".", "--beside", "."], "--beside: give the film's name with --video"),
        (["inspect", "none.yaml"], "none.yaml: No such file"),
        (["envs", "nowhere"], "unknown env 'nowhere'"),
        (["envs", "games/nothing"], "unknown env 'games/nothing'"),
        (["bench", "beauty"], "'beauty' is not one of"),
        (["report", "nowhere"], "'nowhere' does not exist"),
        (["report", "."], "result.json"),
    ],
)
def test_bad_arguments_are_named(capfd, arguments, words):
    status = 1 if arguments == ["resume", "."] else 2
    assert words in error_of(capfd, status, *arguments)


def test_a_run_without_a_checkpoint_cannot_be_evaluated(capfd, tmp_path):
    assert "holds no checkpoint" in error_of(capfd, 1, "evaluate", tmp_path)


def test_a_config_that_is_no_yaml_is_named_with_its_line(capfd, tmp_path):
    (tmp_path / "config.yaml").write_text("env: games/specialisation\ntraining: {lr: 1\n")
    assert "config.yaml line " in error_of(capfd, 2, "train", "config.yaml")
    (tmp_path / "config.yaml").write_text("env: a\ntraining:\n  lr: 1\n  lr: 2\n")
    assert "lr is given twice" in error_of(capfd, 2, "train", "config.yaml")


def test_help_is_instant_and_needs_no_ray():
    code = (
        "import sys; sys.modules['ray'] = sys.modules['torch'] = None\n"
        "from rllib_hypermarl.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    for arguments in (["--help"], ["train", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], text=True, capture_output=True, env=environment(), timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "Usage: " in done.stdout
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, env=environment(), timeout=60)
    assert (done.returncode, done.stderr) == (2, "")
    names = ("train", "resume", "evaluate", "export", "inspect", "envs", "bench", "report")
    assert all(name in done.stdout for name in names)


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU OpenMP on Linux")
def test_torch_s_threads_do_not_spin_for_long(monkeypatch):
    for key in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(key, raising=False)
    code = "from rllib_hypermarl.__main__ import main; main(['--help']); import torch"
    done = subprocess.run(
        [sys.executable, "-c", code],
        text=True, capture_output=True, env=environment(OMP_DISPLAY_ENV="VERBOSE"), timeout=60, check=True,
    )  # fmt: skip
    assert f"GOMP_SPINCOUNT = '{SPIN_COUNT}'" in done.stderr


@pytest.mark.parametrize("key, value", [("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "7")])
def test_they_spin_as_the_user_says(monkeypatch, key, value):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(key, value)
    assert main(["envs", "games"]) == 0
    told = {name: os.environ[name] for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in os.environ}
    assert told == {key: value}


# ------------------------------------------------------------------------------------------- what needs no training


def test_envs_lists_names_and_shows_one(capfd):
    assert run(["envs", "--json"]) == 0
    listing = json.loads(capfd.readouterr().out)
    assert listing["games"] == {"requires": None, "names": ["recall", "specialisation", "synchronisation"]}
    assert "dispersion" in listing["vmas"]["names"]
    assert listing["pettingzoo"]["also_requires"]["sisl.*"] == "pettingzoo[sisl]"
    assert listing["rllib"]["requires"] == "ray" and set(listing["rllib"]["accepts"]) == {"module:callable", "NAME"}
    assert run(["envs", "games", "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    details = {"agents": 4, "observation": "Box(-1.0, 1.0, (16,), float32)", "action": "Discrete(4)"}
    assert {name: shown[name] for name in ("specialisation", "synchronisation")} == dict.fromkeys(
        ("specialisation", "synchronisation"), details
    )
    assert run(["envs", "games/specialisation", "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert list(shown["agents"]) == ["agent_0", "agent_1", "agent_2", "agent_3"]
    assert shown["agents"]["agent_0"]["action"] == "Discrete(4)"
    assert "paid 1/k" in shown["doc"]


def test_envs_shows_one_agent_of_each_kind(capfd):
    pytest.importorskip("mpe2")
    from rllib_hypermarl.cli.app import _short_details

    assert _short_details("pettingzoo/mpe2.simple_tag_v3") == {
        "agents": 4,
        "unlike": {
            "adversary_0": {"observation": "Box(-inf, inf, (16,), float32)", "action": "Discrete(5)"},
            "agent_0": {"observation": "Box(-inf, inf, (14,), float32)", "action": "Discrete(5)"},
        },
    }
    assert run(["envs", "pettingzoo/classic.tictactoe_v3", "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown["action_masks"] is True and list(shown["agents"]) == ["player_1", "player_2"]


def test_envs_shows_one_of_rllib_s(capfd):
    assert run(["envs", "rllib/tests.rllib_envs:Guild", "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert {agent: spaces["action"] for agent, spaces in shown["agents"].items()} == {
        "late": "Discrete(5)", "7": "MultiDiscrete([2 4])", "always": "Discrete(3)"
    }  # fmt: skip
    assert "ray.tune.register_env" in error_of(capfd, 2, "envs", "rllib/cartpoles")


def test_inspect_shows_what_would_be_trained(capfd, tmp_path):
    path = write_config(tmp_path)
    assert run(["inspect", str(path), "policies={pair: [agent_3, agent_1], '*': own}", "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert set(shown) == {"agents", "policies", "spaces", "parameters", "generated_weight_rms", "config"}
    assert shown["agents"] == ["agent_0", "agent_1", "agent_2", "agent_3"]
    assert [shown["policies"][agent] for agent in shown["agents"]] == ["agent_0", "pair", "agent_2", "pair"]
    assert set(shown["parameters"]) == {"total", "actor", "critic", "context"}
    assert shown["config"]["env_config"] == {"n_agents": 4, "horizon": 5}


@pytest.mark.parametrize(
    ("sharing", "total"), [("hyper_mlp", 728_346), ("hyper_linear", 55_730), ("none", 44_584), ("full_id", 11_658)]
)
def test_inspect_counts_the_parameters_of_the_paper(capfd, sharing, total):
    from tests.helpers import ROOT

    assert run(["inspect", str(ROOT / "tune_configs/dispersion.yaml"), f"hypermarl.sharing={sharing}", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["parameters"]["total"] == total


@pytest.mark.parametrize("pattern", ["{drones: 'drone_*', '*': own}", "{team: agent_0}"])
def test_inspect_names_patterns_that_do_not_fit(capfd, tmp_path, pattern):
    assert "policies" in error_of(capfd, 2, "inspect", write_config(tmp_path), f"policies={pattern}")


# ------------------------------------------------------------------------------------------------------------- a run


@pytest.mark.usefixtures("ray_session")
class TestRun:
    def test_train_evaluate_resume_report(self, capfd, tmp_path):
        path = write_config(tmp_path)
        assert run(["train", str(path), "--out", "run", "--seed", "3"]) == 0
        told = capfd.readouterr().out
        assert all(f"python -m rllib_hypermarl {command} run" in told for command in ("evaluate", "resume", "report"))
        assert [row["num_env_steps_sampled_lifetime"] for row in rows("run")] == [STEPS, 2 * STEPS, 3 * STEPS]

        assert run(["evaluate", "run", "--episodes", "6", "--seed", "5", "--json"]) == 0
        report = json.loads(capfd.readouterr().out)
        assert list(report) == [
            "checkpoint", "env_steps", "actions", "episodes", "seed", "agent_return_mean", "agent_return_std",
            "episode_return_mean", "episode_len_mean",
        ]  # fmt: skip
        assert (report["env_steps"], report["episodes"], report["seed"]) == (3 * STEPS, 6, 5)
        assert report["episode_return_mean"] == pytest.approx(4 * report["agent_return_mean"])
        assert run(["evaluate", report["checkpoint"], "--episodes", "6", "--seed", "5", "--json"]) == 0
        assert json.loads(capfd.readouterr().out) == report
        assert run(["evaluate", "run", "--episodes", "6", "--seed", "5", "--random", "--json"]) == 0
        random = json.loads(capfd.readouterr().out)
        assert (report["actions"], random["actions"]) == ("greedy", "random")
        assert random["agent_return_mean"] != report["agent_return_mean"]

        assert run(["resume", "run", "--stop-env-steps", str(5 * STEPS)]) == 0
        assert "resuming run at 384 env steps" in capfd.readouterr().err
        assert [row["training_iteration"] for row in rows("run")] == [1, 2, 3, 4, 5]
        assert HyperMARLConfig.from_yaml(tmp_path / "run/config.yaml").stop_env_steps == 5 * STEPS  # reports believe it
        assert run(["report", "run"]) == 0
        written = {"report.html", "report.json", "marl_eval.json", "curves.png"}
        assert written <= {entry.name for entry in (tmp_path / "run").iterdir()}

        capfd.readouterr()
        assert run(["evaluate", "run", "--episodes", "1", "--video", "film.gif", "--beside", "run", "--json"]) == 0
        assert json.loads(capfd.readouterr().out)["video"] == "film.gif"
        assert (tmp_path / "film.gif").read_bytes().startswith(b"GIF89a")

    def test_train_on_the_same_run_goes_on_and_of_another_config_is_refused(self, capfd, tmp_path):
        path = write_config(tmp_path)
        assert run(["train", str(path), "--out", "run"]) == 0
        assert run(["train", str(path), "run.stop_env_steps=512", "--out", "run"]) == 0
        assert [row["training_iteration"] for row in rows("run")] == [1, 2, 3, 4]
        before = (tmp_path / "run" / "result.json").read_bytes()
        error = error_of(capfd, 2, "train", path, "training.lr=0.5", "--out", "run")
        assert "training.lr is 0.001 there and 0.5 here" in error
        assert "run.seed is 0 there and 1 here" in error_of(capfd, 2, "train", path, "--seed", 1, "--out", "run")
        assert (tmp_path / "run" / "result.json").read_bytes() == before

    def test_the_default_place_is_named_after_config_and_time(self, tmp_path):
        write_config(tmp_path, "run.stop_env_steps=128", name="small.yaml")
        assert run(["train", "small.yaml"]) == 0
        (made,) = (tmp_path / "runs").iterdir()
        assert made.name.startswith("small-20")
        assert checkpoints.find(made).name == "checkpoint_000001"

    def test_a_place_that_cannot_be_used_is_named(self, capfd, tmp_path):
        path = write_config(tmp_path)
        assert "is a file" in error_of(capfd, 2, "train", path, "--out", path)
        assert "cannot be written" in error_of(capfd, 2, "train", path, "--out", path / "run")
        assert "cannot be written" in error_of(capfd, 2, "train", path, "--out", "/proc/run")
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "thesis.tex").write_text("...")
        assert "holds no run" in error_of(capfd, 2, "train", path, "--out", "full")

    @pytest.mark.parametrize(
        ("overrides", "words"),
        [
            (["policies={drones: 'drone_*', '*': own}"], "'drone_*' matches none of the agents"),
            (["policies={team: agent_0}"], "no entry covers agent_1, agent_2, agent_3"),
            (["env_config.players=4"], "refuses env_config"),
            (["env_config.n_agents=one"], "n_agents must be a whole number"),
            (["env=vmas/dispersion", "env_config={n_agent: 4}"], "n_agent"),
        ],
    )
    def test_what_only_the_env_can_tell_is_refused_and_the_place_stays_free(self, capfd, tmp_path, overrides, words):
        path = write_config(tmp_path)
        assert words in error_of(capfd, 2, "train", path, *overrides, "--out", "run")
        assert run(["train", str(path), "run.stop_env_steps=128", "--out", "run"]) == 0

    @pytest.mark.parametrize(
        ("overrides", "words"),
        [
            (["env=tests.faulty_envs:NaNEnv"], "non-finite reward (nan) for agent 'right', sub-env 2, step 2"),
            (["env=tests.faulty_envs:ShapeEnv"], "returned obs of shape (16, 1, 3), expected (16, 2, 3)"),
            (["env=tests.faulty_envs:RaisingEnv"], "raised in step() after 128 env steps: KeyError"),
        ],
    )
    def test_an_env_that_fails_in_the_run_is_named(self, capfd, tmp_path, overrides, words):
        path = write_config(tmp_path, "env_config={}")
        error = error_of(capfd, 1, "train", path, *overrides, "--out", "run")
        assert words in error
        assert overrides[0].removeprefix("env=") in error

    def test_what_nobody_foresaw_is_one_line_and_its_traceback_is_kept(self, capfd, tmp_path, monkeypatch):
        from rllib_hypermarl import HyperMARL

        monkeypatch.setattr(HyperMARL, "training_step", lambda self: 1 / 0)
        error = error_of(capfd, 1, "train", write_config(tmp_path), "--out", "run")
        assert "ZeroDivisionError: division by zero (details in run/error.txt)" in error
        assert "Traceback" in (tmp_path / "run" / "error.txt").read_text()

    def test_a_full_disk_is_one_line(self, capfd, tmp_path, monkeypatch):
        from rllib_hypermarl import HyperMARL

        def fill(self):
            (tmp_path / "run" / "error.txt").symlink_to("/dev/full")
            Path("/dev/full").write_text("x")

        monkeypatch.setattr(HyperMARL, "training_step", fill)
        error = error_of(capfd, 1, "train", write_config(tmp_path), "--out", "run")
        assert "run: No space left on device; make room" in error and "details" not in error

    def test_a_damaged_checkpoint_is_named(self, capfd, tmp_path):
        path = write_config(tmp_path)
        assert run(["train", str(path), "--out", "run"]) == 0
        (tmp_path / "run/checkpoint_000003/algorithm_state.pkl").write_bytes(b"")
        for command in (["resume", "run"], ["evaluate", "run"], ["train", path, "--out", "run"]):
            assert "algorithm_state.pkl is damaged" in error_of(capfd, 1, *command)
