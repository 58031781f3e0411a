"""Which runs a report finds, who belongs together, what is left out."""

import json
import re
import shutil

import pytest

from rllib_hypermarl.report.grouping import labels
from rllib_hypermarl.report.store import read_runs
from rllib_hypermarl.report.write import write_report
from tests.report.stores import STEPS, greedy, grouped, write_run

pytestmark = pytest.mark.usefixtures("few_resamples")


def test_tasks_groups_and_labels(numbers):
    found = {task["name"]: {g["label"]: g["seeds"] for g in task["groups"]} for task in numbers["tasks"]}
    assert found == {
        "games/specialisation n_agents=8": {"sharing=hyper_mlp": [0]},
        "games/specialisation n_agents=4": {
            "sharing=full": [0], "sharing=hyper_mlp": [0, 1, 2, 3, 4], "sharing=none": [0, 1, 2]
        },
    }  # fmt: skip


def test_what_does_not_count_is_named_and_said_why(numbers):
    assert numbers["left_out"] == [
        {"run": "broken/config", "why": "unknown key 'hypermarl.sharring': did you mean 'hypermarl.sharing'?"},
        {"run": "broken/empty", "why": "has no results: result.json is missing or empty"},
        {"run": "broken/nameless", "why": "has no config.yaml"},
        {"run": "none/seed_3", "why": "is unfinished: 512 of 1,024 env steps"},
    ]
    assert len(numbers["runs"]) == 5 + 3 + 1 + 1


def test_keys_that_change_nothing_part_no_seeds_and_others_do(tmp_path):
    write_run(tmp_path / "a", "run.checkpoint_seconds=5", "run.torch_threads=1", seed=0)
    write_run(tmp_path / "b", "fault_tolerance={max_num_env_runner_restarts: 3}", seed=1)
    write_run(tmp_path / "c", "training.lr=0.5", "hypermarl.actor_hidden=[16, 8]", seed=1)
    write_run(tmp_path / "d", rows=9, seed=2)
    (task,), left_out = grouped(tmp_path)
    assert {group.label: [run.name for run in group.runs] for group in task.groups} == {
        "actor_hidden=16 lr=0.001 stop_env_steps=1024": ["a", "b"],
        "actor_hidden=16x8 lr=0.5 stop_env_steps=1024": ["c"],
        "actor_hidden=16 lr=0.001 stop_env_steps=1152": ["d"],
    }
    assert left_out == []


def test_keys_of_hypernetworks_count_where_there_are_some(tmp_path):
    for name, seed, *overrides in (
        ("small", 0, "hypermarl.embedding_dim=4"),
        ("large", 0, "hypermarl.embedding_dim=8"),
        ("none", 0, "hypermarl.sharing=none", "hypermarl.embedding_dim=4"),
        ("none_too", 1, "hypermarl.sharing=none", "hypermarl.embedding_dim=8", "hypermarl.hypernet_hidden=[32]"),
        ("critic", 0, "hypermarl.sharing=none", "hypermarl.critic_sharing=hyper_mlp", "hypermarl.embedding_dim=8"),
        ("linear", 0, "hypermarl.sharing=hyper_linear", "hypermarl.embedding_dim=4"),
        ("linear_too", 1, "hypermarl.sharing=hyper_linear", "hypermarl.embedding_dim=8"),
    ):
        write_run(tmp_path / name, *overrides, seed=seed)
    (task,), left_out = grouped(tmp_path)
    assert {group.label: [run.name for run in group.runs] for group in task.groups} == {
        "sharing=hyper_mlp critic_sharing=null embedding_dim=4": ["small"],
        "sharing=hyper_mlp critic_sharing=null embedding_dim=8": ["large"],
        "sharing=none critic_sharing=null": ["none", "none_too"],
        "sharing=none critic_sharing=hyper_mlp embedding_dim=8": ["critic"],
        "sharing=hyper_linear critic_sharing=null": ["linear", "linear_too"],
    }
    assert left_out == []


def test_a_config_from_before_a_key_has_that_key_s_default(tmp_path):
    for name, seed in (("new", 0), ("old", 1)):
        write_run(tmp_path / name, seed=seed)
    text = (tmp_path / "old/config.yaml").read_text()
    older = re.sub(r"^  sample_ahead: false\n", "", text, flags=re.MULTILINE)
    assert older != text
    (tmp_path / "old/config.yaml").write_text(older)
    (task,), _ = grouped(tmp_path)
    assert [len(group.runs) for group in task.groups] == [2]


def test_a_seed_that_was_run_twice_counts_once(tmp_path):
    for name in ("first", "second"):
        write_run(tmp_path / name, seed=4)
    (task,), left_out = grouped(tmp_path)
    assert [run.name for run in task.groups[0].runs] == ["first"]
    assert left_out == [{"run": "second", "why": "has the config and the seed of first"}]


def test_a_sweep_is_its_candidates_runs_and_not_the_copy_of_the_best(tmp_path):
    sweep = tmp_path / "sweep"
    for candidate, sharing in (("0000", "hyper_mlp"), ("0001", "none")):
        for seed in range(2):
            write_run(sweep / f"candidates/{candidate}/seed_{seed}", f"hypermarl.sharing={sharing}", seed=seed)
    (sweep / "sweep.yaml").write_text("")
    shutil.copytree(sweep / "candidates/0000/seed_1", sweep / "best")
    (sweep / "tune/trial").mkdir(parents=True)
    for given in (sweep, tmp_path):
        (task,), left_out = grouped(given)
        assert [[run.name for run in group.runs] for group in task.groups] == [
            [f"sweep/candidates/{candidate}/seed_{seed}" for seed in range(2)] for candidate in ("0000", "0001")
        ]
        assert left_out == []
    runs, _ = read_runs([(str(sweep), sweep), (str(tmp_path), sweep / "candidates/0000/seed_0")])
    assert len(runs) == 4  # what is named twice is read once


def test_labels_name_keys_in_full_where_short_ones_are_alike():
    configs = [{"env": "e", "a.x": x, "b.x": [1, y], "c.y": {"k": "v"}} for x, y in ((1.5e-4, 2), (None, True))]
    assert [label for label, _ in labels(configs)] == ["a.x=0.00015 b.x=1x2", "a.x=null b.x=1xtrue"]
    schedules = [{"env": "e", "a.lr": lr} for lr in (0.001, [[0, 0.001], [5000, 1e-4]])]
    assert [label for label, _ in labels(schedules)] == ["lr=0.001", "lr=0:0.001;5000:0.0001"]


@pytest.mark.usefixtures("no_figures")
def test_unfinished_runs_have_curves_and_no_final_numbers_where_none_is_finished(tmp_path):
    for seed, rows in ((0, 6), (1, 4)):
        write_run(tmp_path / f"seed_{seed}", seed=seed, rows=rows, stop=8 * STEPS)
    write_report([(str(tmp_path), tmp_path)], tmp_path / "out", threshold=0.0)
    ((group,),) = [task["groups"] for task in json.loads((tmp_path / "out/report.json").read_text())["tasks"]]
    assert not group["finished"]
    assert group["final"] == {"greedy": None, "sampled": None, "evaluated": None} and group["to_threshold"] is None
    assert group["curves"]["greedy"]["env_steps"]["x"][-1] == 4 * STEPS
    assert "unfinished" in (tmp_path / "out/report.html").read_text()
    assert json.loads((tmp_path / "out/marl_eval.json").read_text()) == {}


@pytest.mark.usefixtures("no_figures")
def test_runs_of_different_budgets_are_compared_at_equal_env_steps(tmp_path):
    """What a longer run did later, and its evaluation at the end, count for nothing; a shorter one is unfinished."""
    for seed in (0, 1):
        long = write_run(tmp_path / f"runs/long_{seed}", seed=seed, rows=16)
        (long / "evaluation.json").write_text('{"agent_return_mean": 1}')
        write_run(tmp_path / f"runs/none_{seed}", "hypermarl.sharing=none", seed=seed, rows=8)
        write_run(tmp_path / f"runs/short_{seed}", "hypermarl.sharing=full", seed=seed, rows=4)
    write_report([("runs", tmp_path / "runs")], tmp_path / "out", until=8 * STEPS - 1, threshold=0.0)
    numbers = json.loads((tmp_path / "out/report.json").read_text())
    assert numbers["until"] == 8 * STEPS - 1 and numbers["left_out"] == []
    (task,) = numbers["tasks"]
    found = {group["label"]: group for group in task["groups"]}
    assert set(found) == {"sharing=hyper_mlp", "sharing=none", "sharing=full"}  # not by the budgets they had
    assert {group["env_steps"] for group in found.values()} == {8 * STEPS, 4 * STEPS}
    assert [found[f"sharing={mode}"]["finished"] for mode in ("hyper_mlp", "none", "full")] == [True, True, False]
    final = found["sharing=hyper_mlp"]["final"]
    assert final["greedy"]["values"] == [pytest.approx(greedy(tmp_path / f"runs/long_{s}")[3]) for s in (0, 1)]
    assert final["evaluated"] is None
    assert found["sharing=hyper_mlp"]["curves"]["sampled"]["env_steps"]["x"][-1] == 8 * STEPS
    assert "Of every run the first 1,023 env steps." in (tmp_path / "out/report.html").read_text()
