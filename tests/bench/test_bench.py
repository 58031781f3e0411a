"""The benches at toy size; and the bare loop as an independent check of everything that RLlib's structure adds."""

import json
import math
import subprocess
import sys

import psutil
import pytest
import torch

from rllib_hypermarl import HyperMARLConfig
from rllib_hypermarl.bench import measure, nodes, plot, scaling, threads, throughput
from rllib_hypermarl.bench.bare import BarePPO, Settings
from tests.helpers import environment, game, weights

GAME = {"n_agents": 4, "horizon": 5}
# Ends of both kinds, not in all envs at once.
VMAS = {"n_agents": 4, "n_food": 2, "food_radius": 0.6, "max_steps": 12, "continuous_actions": False}


@pytest.fixture
def toy():
    threads = torch.get_num_threads()
    yield throughput.Work(4, 8, 2, pairs=2, env="games/specialisation", env_config=GAME)
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("sharing", ["hyper_mlp", "none"])
@pytest.mark.parametrize(("env", "env_config"), [("games/specialisation", GAME), ("vmas/dispersion", VMAS)])
def test_the_algorithm_finds_the_weights_of_the_bare_loop(env, env_config, sharing):
    if env.startswith("vmas"):
        pytest.importorskip("vmas")
    groups = game("run.seed=3", f"hypermarl.sharing={sharing}") | {"env": env, "env_config": env_config}
    algo = HyperMARLConfig.from_groups(groups).build_algo()
    bare = BarePPO(
        Settings(env, env_config, num_envs=16, length=8, minibatches=4, epochs=2, sharing=sharing, hidden=(16,),
                 hypernet_hidden=(8,), seed=3)
    )  # fmt: skip
    for _ in range(3):
        algo.train()
        bare.iterate()
        expected = {f"net.{name}": value for name, value in bare.net.state_dict().items()}
        found = weights(algo)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    algo.stop()


def test_the_bare_loop_needs_no_ray(tmp_path):
    code = (
        "import sys; from rllib_hypermarl.bench.bare import BarePPO, Settings\n"
        "loop = BarePPO(Settings('games/synchronisation', {'n_agents': 3, 'horizon': 5}, 4, 6, 2))\n"
        "assert loop.iterate() == 24 and 'ray' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), text=True, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------------------ benches


@pytest.mark.usefixtures("ray_session")
def test_throughput(toy):
    lines = []
    results = throughput.run(1, lines.append, works=[toy], sharings=["hyper_mlp"], threads=1, memory_iterations=0)
    assert [entry["sharing"] for entry in results] == ["hyper_mlp"]
    for entry in results:
        assert {"work", "threads", "machine", "rounds", "ours", "bare", "stock"} < entry.keys()
        assert entry["stock"] == max(entry["stock_adapters"].values()) > 0
        assert list(entry["shares"]) == ["sim", "policy", "reset", "update", "other"]
        assert sum(entry["shares"].values()) == pytest.approx(1, abs=1e-3)
        assert all(share >= 0 for share in entry["shares"].values())
        turns = {key: [len(turn) for turn in rounds] for key, rounds in entry["rounds"].items()}
        assert turns == {"ours": [2], "bare": [2], "vector": [2], "one_env_each": [1]}
        low, high = entry["ratio_stock_range"]
        assert 0 < low <= entry["ratio_stock"] <= high
    assert json.loads(json.dumps(results)) == results
    text = throughput.table(results)
    assert f"{results[0]['ours']:,}" in text and "4x8" in text
    assert len(lines) == 4


def test_a_slow_contender_is_measured_once():
    rates = {"ours none": [[10.0, 14.0], [20.0, 20.0]], "bare none": [[20.0, 20.0], [20.0, 20.0]],
             "stock vector": [[4.0], [5.0]], "stock one_env_each": [[6.0]]}  # fmt: skip
    entry = throughput._entry(throughput.Work(1, 1, 1), "none", rates)
    assert (entry["ours"], entry["bare"], entry["stock"]) == (16, 20, 6)
    assert (entry["ratio_bare"], entry["ratio_bare_range"]) == (0.8, [0.6, 1.0])
    assert (entry["ratio_stock"], entry["ratio_stock_range"]) == (2.67, [2.0, 3.33])


def test_scaling():
    results = scaling.run(1, lambda line: None, agents=(2, 4), sizes=(64,), threads=1, turns=2)
    assert [(entry["agents"], entry["rows"]) for entry in results] == [(2, 64), (4, 64)]
    for entry in results:
        assert all(entry["ms"][mode] > 0 and entry["memory_mb"][mode] >= 0 for mode in scaling.MODES)
        assert entry["ratio"]["full"] == 1
    assert "at most" in scaling.table(results)
    assert json.loads(json.dumps(results)) == results


def test_the_threads_bench_compares_within_a_round_and_its_other_work_ends(monkeypatch):
    at_work = []

    def speed(override, spin_count, config, overrides):
        at_work.append(len(psutil.Process().children()))
        return {"run.torch_threads=1": 10.0}.get(override, 40.0 if spin_count == threads.SPIN_COUNT else 5.0)

    before = len(psutil.Process().children())
    monkeypatch.setattr(threads, "speed", speed)
    rows = threads.measure(2)
    cpus = measure.machine()["cpus"]
    assert [row["busy_processes"] for row in rows] == [0, 0, 0, cpus, cpus, cpus]
    assert [row["to_one_thread"] for row in rows] == [1, 0.5, 4, 1, 0.5, 4]
    assert at_work == [before] * 6 + [before + cpus] * 6
    assert len(psutil.Process().children()) == before


def test_scaling_gives_every_agent_gradients_and_the_loss_is_one_number():
    net, rows = scaling.make_net("none", 3), scaling.make_rows(3, 12)
    scaling.forward_backward(net, rows)
    assert all(p.grad.abs().flatten(1).sum(1).min() > 0 for p in net.parameters())
    assert rows["obs"].shape == (3, 4, scaling.OBS_DIM)


def test_memory_of_a_fresh_process_does_not_count_this_one_s():
    ballast = torch.ones(60_000_000)  # 240 MB
    here, _ = measure.memory_mb()
    now, peak = measure.in_fresh_process(measure.memory_mb)
    assert now <= peak < here - 100
    assert len(ballast) > 0


def test_a_stopwatch_counts_only_its_method():
    class Thing:
        def work(self, x):
            return math.sqrt(x)

    thing = Thing()
    watch, idle = measure.Stopwatch(thing, "work"), measure.Stopwatch(thing, "missing")
    assert thing.work(4.0) == 2.0
    assert watch.seconds > 0 == idle.seconds


def test_the_plot(tmp_path):
    entry = {"work": "16x128", "sharing": "none", "ours": 7000, "bare": 7100, "stock": 2000}
    rows = [{"agents": n, "rows": 64, "ratio": {"hyper_mlp": 1.2, "none": 1.1}} for n in (4, 8)]
    for name, data in (("a.json", [entry]), ("b.json", rows)):
        (tmp_path / name).write_text(json.dumps(data))
    plot.plot(tmp_path / "a.json", tmp_path / "b.json", tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 5000


def test_the_sizing_model_is_exact_where_it_was_fitted_and_knows_cores():
    model = {"s": 0.3, "x": 0.02, "u0": 0.01, "u1": 0.2, "y": 0.001}
    for cores in (1, 2, 8):
        one, two = (nodes.predict(model, n, cores) for n in (1, 2))
        if cores > 1:  # on one core nothing tells a runner's work from what follows it
            assert nodes.fit(one, two, cores) == pytest.approx(model)
    assert nodes.predict(model, 4, 2)["sampling"] == pytest.approx(0.6 + 0.08)
    assert nodes.predict(model, 4, 8)["sampling"] == pytest.approx(0.3 + 0.08)
    sizes = {"rollout": 10**6, "weights": 10**6, "parameters": 10**6}
    alone, many = (nodes.extrapolate(model, sizes, 64, learners) for learners in (1, 16))
    assert alone["update"] == pytest.approx(0.01 + 0.2 * 64) and many["update"] < alone["update"] / 4
    assert all(slow < fast for slow, fast in (alone["env_steps_per_second"], many["env_steps_per_second"]))
