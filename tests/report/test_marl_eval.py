"""The file for marl-eval: its documented format, and its own reader where that is installed (id-marl-eval 0.0.4)."""

import copy

import numpy as np
import pytest

from rllib_hypermarl.report.grouping import group_runs
from rllib_hypermarl.report.marl_eval import marl_eval_data
from rllib_hypermarl.report.store import read_runs
from tests.report.stores import STEPS, greedy, write_run


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two groups on two tasks, one of them with a seed less in one task; and one group that is on one task alone."""
    directory = tmp_path_factory.mktemp("runs")
    for n in (4, 8):
        for sharing in ("hyper_mlp", "none"):
            for seed in range(2 if (n, sharing) == (8, "none") else 3):
                overrides = f"env_config.n_agents={n}", f"hypermarl.sharing={sharing}"
                write_run(directory / f"{sharing}_{n}_{seed}", *overrides, seed=seed, level=n / 10)
    write_run(directory / "full", "hypermarl.sharing=full")
    return directory


@pytest.fixture(scope="module")
def made(store):
    runs, _ = read_runs([(str(store), store)])
    return marl_eval_data(group_runs(runs)[0])


def test_the_documented_format(made, store):
    data, notes = made
    assert notes == [
        "games/specialisation: without sharing=full, which are not in all of its tasks",
        "games/specialisation: the first 2 of up to 3 seeds of each group",
    ]
    assert list(data) == ["games_specialisation"]
    tasks = data["games_specialisation"]
    assert sorted(tasks) == ["n_agents=4", "n_agents=8"]
    for task, algorithms in tasks.items():
        assert list(algorithms) == ["sharing=hyper_mlp", "sharing=none"]
        for algorithm, runs in algorithms.items():
            assert list(runs) == ["run_0", "run_1"]
            for seed, steps in enumerate(runs.values()):
                path = store / f"{algorithm.partition('=')[2]}_{task.partition('=')[2]}_{seed}"
                assert list(steps) == ["step_0", "step_1", "step_2", "step_3", "absolute_metrics"]
                assert [steps[f"step_{i}"]["step_count"] for i in range(4)] == [2 * STEPS * (i + 1) for i in range(4)]
                values = [steps[f"step_{i}"]["return"][0] for i in range(4)]
                assert values == pytest.approx(greedy(path), rel=1e-5)
                assert steps["absolute_metrics"] == {"return": [values[-1]]}
    assert not any("," in algorithm for algorithms in tasks.values() for algorithm in algorithms)


def test_its_own_reader_finds_nothing_wrong_and_reads_the_returns(made):
    reader = pytest.importorskip("marl_eval.utils.data_processing_utils")
    from marl_eval.utils.diagnose_data_errors import DiagnoseData

    data = copy.deepcopy(made[0])
    ((env, verdict),) = DiagnoseData(data).check_data().items()
    assert all(verdict.values()), verdict
    processed = reader.data_process_pipeline(raw_data=data, metrics_to_normalize=["return"])
    finals, curves = reader.create_matrices_for_rliable(processed, env, ["return"])
    assert finals["mean_norm_return"]["sharing=none"].shape == (2, 2)  # runs, tasks
    assert curves["mean_norm_return"]["sharing=hyper_mlp"].shape == (2, 2, 4)
    assert np.isfinite(curves["mean_norm_return"]["sharing=hyper_mlp"]).all()
    assert curves["extra"]["evaluation_interval"] == 2 * STEPS
