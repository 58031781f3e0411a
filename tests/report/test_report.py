"""The numbers that a report says of a store of runs, the same bytes every time; the command."""

import json
import re
import shutil
import sys

import numpy as np
import pytest

from rllib_hypermarl.cli.app import run
from rllib_hypermarl.errors import ReportError
from rllib_hypermarl.report import statistics
from rllib_hypermarl.report.numbers import report_numbers
from rllib_hypermarl.report.store import read_run
from rllib_hypermarl.report.write import write_report
from rllib_hypermarl.rllib.run_dir import read_rows
from tests.helpers import ROOT
from tests.report.stores import STEPS, greedy, grouped, write_run

pytestmark = pytest.mark.usefixtures("few_resamples")


def test_final_numbers_are_those_of_the_runs(numbers, store):
    groups = {group["label"]: group for group in numbers["tasks"][1]["groups"]}
    mlp = groups["sharing=hyper_mlp"]
    last = [greedy(store / f"mlp/seed_{seed}")[-1] for seed in range(5)]
    assert mlp["final"]["greedy"]["values"] == pytest.approx(last, rel=1e-5)
    assert mlp["final"]["greedy"]["iqm"] == pytest.approx(sum(sorted(last)[1:4]) / 3, rel=1e-5)
    assert mlp["final"]["greedy"]["low"] < mlp["final"]["greedy"]["iqm"] < mlp["final"]["greedy"]["high"]
    assert mlp["to_threshold"]["reached"] == 5
    assert mlp["curves"]["greedy"]["env_steps"]["x"] == [2 * STEPS, 4 * STEPS, 6 * STEPS, 8 * STEPS]
    assert len(mlp["curves"]["sampled"]["env_steps"]["x"]) == 8
    assert (mlp["parameters"], mlp["env_steps"]) == (123, 8 * STEPS)
    assert list(mlp["metrics"]) == ["noise/ratio", "snd"] and groups["sharing=none"]["metrics"] == {}
    kept = mlp["embeddings"]  # of one seed; the store's rise with what is written beside them
    assert (kept["seed"], kept["policies"]) == (0, ["agent_0", "agent_1", "agent_2"])
    assert (kept["first"]["env_steps"], kept["last"]["env_steps"]) == (STEPS, 8 * STEPS)
    rise = kept["last"]["values"][0][0] - kept["first"]["values"][0][0]
    assert rise > 0 and np.allclose(np.array(kept["last"]["values"]) - kept["first"]["values"], rise)
    assert groups["sharing=none"]["embeddings"] is None
    assert groups["sharing=full"]["final"]["greedy"]["low"] is None
    assert groups["sharing=full"]["to_threshold"]["reached"] == 0


@pytest.mark.usefixtures("no_figures")
def test_an_evaluation_by_hand_is_taken_up_and_a_damaged_one_named(tmp_path):
    for seed in range(2):
        path = write_run(tmp_path / f"seed_{seed}", seed=seed)
        (path / "evaluation.json").write_text(json.dumps({"agent_return_mean": 0.25 * (seed + 1), "seed": 0}))
    write_run(tmp_path / "seed_2", seed=2)
    (tmp_path / "seed_2/evaluation.json").write_text("{}")
    _, numbers = write_report([(str(tmp_path), tmp_path)], tmp_path / "out")
    assert numbers["left_out"] == [{"run": "seed_2", "why": "evaluation.json is not what `evaluate --json` prints"}]
    ((group,),) = [task["groups"] for task in json.loads((tmp_path / "out/report.json").read_text())["tasks"]]
    assert group["final"]["evaluated"]["values"] == [0.25, 0.5]
    assert "<code>evaluate</code>" in (tmp_path / "out/report.html").read_text()


# --------------------------------------------------------------------------------------------- the same bytes again


@pytest.mark.usefixtures("no_figures")
def test_the_same_store_gives_the_same_numbers_wherever_it_is(store, made, tmp_path):
    moved = shutil.copytree(store, tmp_path / "elsewhere")
    write_report([(str(moved), moved)], tmp_path / "out", threshold=0.5)
    for name in ("report.json", "marl_eval.json"):
        assert (tmp_path / "out" / name).read_bytes() == (made / name).read_bytes()


def test_seconds_of_a_resumed_run_that_begin_again_are_counted_on(tmp_path):
    path = write_run(tmp_path / "run")
    rows = [json.loads(line) for line in (path / "result.json").read_text().splitlines()]
    for i, row in enumerate(rows):
        row["time_total_s"] = [1.0, 2.0, 0.5, 1.5, 2.5, 1.0, 1.0, 2.0][i]  # two resumes
    (path / "result.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["time_total_s"] for row in read_run("run", path).rows] == [1.0, 2.0, 2.5, 3.5, 4.5, 5.5, 5.5, 6.5]


@pytest.mark.usefixtures("no_figures")
def test_what_was_kept_of_a_store_gives_the_same_numbers_and_is_small(store, made, tmp_path):
    kept = tmp_path / "kept"
    write_report([(str(store), store)], tmp_path / "out", threshold=0.5, store=kept)
    _, numbers = write_report([(str(kept), kept)], tmp_path / "again", threshold=0.5)
    assert numbers["left_out"] == []  # only what counts is kept
    first, again = (json.loads((tmp_path / out / "report.json").read_text()) for out in ("out", "again"))
    assert again | {"left_out": first["left_out"]} == first
    assert (tmp_path / "again/marl_eval.json").read_bytes() == (made / "marl_eval.json").read_bytes()
    rows = read_rows(kept / "mlp/seed_0")
    assert set(rows[0]) == {"num_env_steps_sampled_lifetime", "time_total_s", "env_steps_per_second", "env_runners",
                            "learners", "metrics"}  # fmt: skip
    assert set(rows[0]["env_runners"]) == {"agent_return_mean"}
    with pytest.raises(ReportError, match="the runs are there already"):
        write_report([(str(kept), kept)], tmp_path / "again", store=kept)


def test_committed_runs_give_the_committed_numbers(monkeypatch):
    """One group of them, for the time it takes; tests/system/test_results.py does it for every page."""
    monkeypatch.setattr(statistics, "REPS", 2000)
    study = ROOT / "docs/results/recall"
    told = json.loads((study / "report.json").read_text())
    (expected,) = [group for group in told["tasks"][0]["groups"] if group["config"]["hypermarl.sharing"] == "full_id"]
    tasks, left_out = grouped(study / "runs/recall_full_id")
    found = report_numbers(tasks, left_out, told["threshold"], told["until"])
    (group,) = found["tasks"][0]["groups"]
    assert not left_out and group | {key: expected[key] for key in ("label", "config")} == expected
    assert found["aggregate"] == told["aggregate"]


# ---------------------------------------------------------------------------------------------------------- command


@pytest.mark.usefixtures("no_figures")
def test_the_command_writes_and_names_what_it_left_out(store, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["report", str(store), "--out", "report", "--threshold", "0.5"]) == 0
    told = capfd.readouterr()
    *table, paths = told.out.splitlines()
    assert paths == "report/report.html, report/report.json, report/marl_eval.json"
    assert table[0].split("  ")[0] == "games/specialisation n_agents=8" and len(table) == 2 + 4
    assert re.fullmatch(r"sharing=none +0\.\d{3} \[0\.\d{3}, 0\.\d{3}\], only 3 seeds", table[-1])
    assert "left out: none/seed_3 is unfinished: 512 of 1,024 env steps\n" in told.err
    assert run(["report", f"file://{store}/mlp", f"file://{store}/none", "--out", "copied"]) == 0
    (task,) = json.loads((tmp_path / "copied/report.json").read_text())["tasks"]
    assert [entry["run"] for entry in json.loads((tmp_path / "copied/report.json").read_text())["runs"]] == [
        *(f"mlp/seed_{seed}" for seed in range(5)), *(f"none/seed_{seed}" for seed in range(3))
    ]  # fmt: skip
    assert len(task["groups"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["broken"], "error: config: unknown key 'hypermarl.sharring'"),
        (["nothing"], "holds no run"),
        (["full", "--out", "file/report"], "file/report: cannot be written (Not a directory)"),
        (["full", "--threshold", "high"], "'high' is not a valid float"),
        (["full", "--until", "9", "--store", "kept"], "--until: a store holds whole runs"),
    ],
)
@pytest.mark.usefixtures("no_figures")
def test_a_report_on_nothing_is_refused_in_one_line(store, capfd, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "file").write_text("")
    where = arguments[0] if arguments[0] == "nothing" else str(store / arguments[0])
    assert run(["report", where, *arguments[1:]]) == 2
    error = capfd.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.usefixtures("no_figures")
def test_without_rliable_it_is_asked_for(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rliable.library", None)
    with pytest.raises(ReportError, match=r"pip install 'rllib-hypermarl\[report\]'"):
        write_report([(str(store), store)], tmp_path)
