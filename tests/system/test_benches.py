"""The benches that start a Ray of their own, at toy size."""

import pytest

from rllib_hypermarl.bench import actors, threads, tune
from rllib_hypermarl.bench.throughput import Work
from tests.helpers import STEPS, write_config

pytestmark = pytest.mark.system
TOY = Work(4, 8, 2, pairs=2, env="games/specialisation", env_config={"n_agents": 4, "horizon": 5})


def test_the_tune_bench_measures_both_sides(monkeypatch):
    monkeypatch.setattr(tune, "_WARM_UP", 0.0)
    monkeypatch.setattr(tune, "_PROBE_STEPS", 16 * 8192)
    result = tune.run(rounds=1, seconds=25.0, log=lambda line: None)
    assert set(result["sides"]) == {"by hand", "tune"}
    assert all(side["steady"] > 0 and side["wall"] > 8 for side in result["sides"].values())
    assert "tune / by hand, steady" in tune.table(result)


def test_the_actors_bench_has_every_set_up_of_a_work():
    (entry,) = actors.run(works=[TOY], rounds=1, turns=1, log=lambda line: None)
    assert set(entry["setups"]) == set(actors.SETUPS)
    assert entry["setups"]["local"]["ratio"] == 1
    for setup in entry["setups"].values():
        assert setup["env_steps_per_second"] > 0 and set(setup["seconds"]) == {"sample", "update", "sync", "other"}
    assert "2 runners, 2 learners" in actors.table([entry])


def test_the_threads_bench_trains(tmp_path):
    config = str(write_config(tmp_path))
    assert threads.speed("run.torch_threads=1", "7", config, [f"run.stop_env_steps={4 * STEPS}"]) > 0
