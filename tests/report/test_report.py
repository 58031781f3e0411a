"""What a report says of a store of runs: who belongs together, what is left out, the same bytes every time."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from rllib_hypermarl.cli.app import run
from rllib_hypermarl.errors import ReportError
from rllib_hypermarl.report import statistics, write
from rllib_hypermarl.report.across import figure_over
from rllib_hypermarl.report.grouping import group_runs, labels
from rllib_hypermarl.report.numbers import report_numbers
from rllib_hypermarl.report.reference import Reference
from rllib_hypermarl.report.store import dotted, read_runs
from rllib_hypermarl.report.write import write_report
from rllib_hypermarl.rllib.run_dir import read_rows
from rllib_hypermarl.tuning.spec import Sweep
from tests.helpers import ROOT
from tests.report.stores import STEPS, greedy, small_store, write_run


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "REPS", 20)


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(write, "task_figures", lambda task, threshold: {})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return small_store(tmp_path_factory.mktemp("runs") / "store")


@pytest.fixture(scope="module")
def made(store, tmp_path_factory):
    """The directory of a report on the store."""
    out = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "REPS", 20)
        write_report([(str(store), store)], out, threshold=0.5)
    return out


@pytest.fixture
def numbers(made):
    return json.loads((made / "report.json").read_text())


def grouped(*paths):
    runs, _ = read_runs([(str(path), path) for path in paths])
    return group_runs(runs)


# ----------------------------------------------------------------------------------------------------- what is found


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


PAPER = """
name: the paper
figures:
- {env: games/specialisation, env_config: {n_agents: 8}, value: 9, source: Table 1}
- {env: games/specialisation, config: {hypermarl.sharing: none}, value: 0.5, low: 0.4, high: 0.6, source: a plot}
- {env: games/specialisation, config: {hypermarl.sharing: none}, value: 7, source: what fits second}
- {env: games/synchronisation, value: 1, source: another game}
"""


@pytest.mark.usefixtures("no_figures")
def test_figures_of_others_stand_beside_the_groups_they_fit(store, tmp_path, capfd):
    (tmp_path / "paper.yaml").write_text(PAPER)
    assert run(["report", str(store), "--out", str(tmp_path), "--beside", str(tmp_path / "paper.yaml")]) == 0
    table = capfd.readouterr().out.splitlines()
    assert (
        table[0].endswith("the paper") and table[1].endswith(" 9.000") and table[-2].endswith(" 0.500 [0.400, 0.600]")
    )
    numbers = json.loads((tmp_path / "report.json").read_text())
    eight, four = ({g["label"]: g["reference"] for g in task["groups"]} for task in numbers["tasks"])
    assert eight["sharing=hyper_mlp"] == {"value": 9.0, "low": None, "high": None, "source": "Table 1"}
    assert four["sharing=none"]["source"] == "a plot" and four["sharing=full"] is four["sharing=hyper_mlp"] is None
    text = (tmp_path / "report.html").read_text()
    assert "the paper on sharing=none: a plot." in text and "0.500 [0.400, 0.600]" in text
    (tmp_path / "paper.yaml").write_text(PAPER.replace("value: 9", "worth: 9"))
    assert run(["report", str(store), "--beside", str(tmp_path / "paper.yaml")]) == 2
    assert "paper.yaml: figures.0.value: Field required" in capfd.readouterr().err


def test_every_figure_of_the_paper_stands_beside_a_run_of_ours():
    """What docs/paper.yaml says of keys and values, some sweep that is shipped has."""
    sweeps = [
        Sweep.from_yaml(path) for path in (ROOT / "tune_configs").glob("*.yaml") if "\nsearch:" in path.read_text()
    ]
    configs = [
        dotted(sweep.groups({d.key: d.decoded(params[d.key]) for d in sweep.search if d.key in params}))
        for sweep in sweeps
        for params in (sweep.design() if sweep.is_grid else [])
    ]
    figures = Reference.from_yaml(ROOT / "docs/paper.yaml").figures
    unfit = [figure for figure in figures if not any(figure.fits(config) for config in configs)]
    assert len(figures) > 70 and not unfit


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


# ---------------------------------------------------------------------------------------------------- what is said


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


class _Sources(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.sources = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.sources += [value for key, value in attributes if key in ("src", "href", "srcset", "data", "poster")]


def test_the_page_needs_nothing_else(made):
    text = (made / "report.html").read_text()
    page = _Sources(text)
    assert not page.tags & {"script", "link", "iframe", "object", "embed"}
    assert len(page.sources) == 2 + 3 + 1  # curves and finals of two tasks, metrics and embeddings of one
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search(r"url\(|@import|https?://", text)


def test_the_page_says_how_many_seeds_there_are_where_they_are_few(made):
    text = (made / "report.html").read_text()
    assert text.count("only 3 seeds") == 2  # of the greedy and the sampled return of `none`
    assert text.count("no interval of 1 seed") == 4
    assert "sharing=none (3 seeds)" in text and "sharing=hyper_mlp (5 seeds)" not in text
    assert "is unfinished: 512 of 1,024 env steps" in text


def test_figures_are_pictures_named_by_their_task(made):
    names = sorted(path.name for path in made.glob("*.png"))
    four, eight = ("specialisation_n_agents_4", "specialisation_n_agents_8")
    assert names == [
        *(f"{four}_{name}.png" for name in ("curves", "embeddings", "final", "metrics")),
        *(f"{eight}_{name}.png" for name in ("curves", "final")),
    ]
    for name in names:
        with Image.open(BytesIO((made / name).read_bytes())) as image:
            image.verify()
            assert image.width > 1000


def test_final_returns_are_drawn_over_a_number_of_the_env(tmp_path):
    for n in (2, 4, 8):
        for horizon in (1, 5):
            for mode in ("hyper_mlp", "none"):
                env = (f"env_config.n_agents={n}", f"env_config.horizon={horizon}", f"hypermarl.sharing={mode}")
                for seed in range(2):
                    write_run(tmp_path / f"runs/{n}-{horizon}-{mode}-{seed}", *env, seed=seed, rows=2)
    tasks, _ = grouped(tmp_path / "runs")
    told = report_numbers(tasks, [])["tasks"]
    with Image.open(BytesIO(figure_over(told, "n_agents"))) as image:
        assert image.width > 1000
    for wrong in ("n_foods", "horizons"):
        with pytest.raises(ReportError, match=f"--over {wrong}: no two tasks differ"):
            figure_over(told, wrong)
    with pytest.raises(ReportError, match="--over n_agents"):
        figure_over(told[:1], "n_agents")


@pytest.mark.usefixtures("no_figures")
def test_names_cannot_become_markup(tmp_path):
    write_run(tmp_path / "<img src=x>")
    write_report([(str(tmp_path), tmp_path)], tmp_path / "out")
    text = (tmp_path / "out/report.html").read_text()
    assert "<img src=x>" not in text and "&lt;img src=x&gt;" in text


# --------------------------------------------------------------------------------------------- the same bytes again


@pytest.mark.usefixtures("no_figures")
def test_the_same_store_gives_the_same_numbers_wherever_it_is(store, made, tmp_path):
    moved = shutil.copytree(store, tmp_path / "elsewhere")
    write_report([(str(moved), moved)], tmp_path / "out", threshold=0.5)
    for name in ("report.json", "marl_eval.json"):
        assert (tmp_path / "out" / name).read_bytes() == (made / name).read_bytes()


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
    """One group of them, for the time it takes; `report` on each `runs` of docs/results does it all."""
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
