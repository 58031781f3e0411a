"""Env steps per second of training on Dispersion, sampling and update included: ours, a bare loop, stock RLlib.

All contenders of a work live in one process and take turns, iteration by iteration, so that whatever else the machine
does hits all of them; a round's ratio is the ratio of the medians of that round. Everybody has the same number of
torch threads, the same PPO settings and discarded warm-up iterations. Stock RLlib has fewer turns where it is slow:
with one env each, one a round; at 600 x 100, where that takes minutes, one in all, without a warm-up. With one batched
env at 600 x 100, one a round. On a GPU there is no stock RLlib, whose envs are stepped through NumPy; shares are those
of the CPU's time, which waits for the GPU where it has to.
"""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from ..cli.ray_session import ray_session
from ..rllib.config import HyperMARLConfig
from ..rllib.multi_agent_env import BatchedMultiAgentEnv, BatchedVectorEnvRunner
from ..rllib.resources import granted_cpus
from .bare import BarePPO, Settings
from .measure import Stopwatch, in_fresh_process, machine, memory_mb

DISPERSION = {
    "n_agents": 4, "n_food": 4, "max_steps": 100, "food_radius": 0.08, "share_reward": False, "penalise_by_time": True,
    "continuous_actions": False,
}  # fmt: skip
HIDDEN = (64, 64)
EPOCHS = 4
WARM_UP = 2  # iterations of ours and of the bare loop
STOCK = {"vector": BatchedVectorEnvRunner, "one_env_each": None}
"""One batched env behind RLlib's vector API, or one env of one copy per sub-env."""


@dataclasses.dataclass(frozen=True)
class Work:
    """`num_envs` x `length` env steps an iteration; `slow` for stock RLlib; `pairs` turns of the others a round."""

    num_envs: int
    length: int
    minibatches: int
    pairs: int = 5
    slow: bool = False
    env: str = "vmas/dispersion"
    env_config: dict = dataclasses.field(default_factory=lambda: DISPERSION)

    @property
    def name(self) -> str:
        return f"{self.num_envs}x{self.length}"

    @property
    def minibatch_size(self) -> int:
        return self.num_envs * self.length // self.minibatches


WORKS = (Work(16, 128, 2), Work(600, 100, 30, pairs=3, slow=True))


# ---------------------------------------------------------------------------------------------------------- contenders


class Ours:
    """`HyperMARL.train()`, with stopwatches on its parts."""

    def __init__(self, work: Work, sharing: str, threads: int, device: str = "cpu"):
        size = work.num_envs * work.length
        self.algo = (
            HyperMARLConfig()
            .environment(work.env, env_config=dict(work.env_config))
            .hypermarl(sharing=sharing, actor_hidden=HIDDEN, critic_hidden=HIDDEN)
            .training(num_epochs=EPOCHS, minibatch_size=work.minibatch_size, train_batch_size_per_learner=size)
            .env_runners(num_envs_per_env_runner=work.num_envs, rollout_fragment_length=work.length)
            .run(torch_threads=threads, device=device)
            .build_algo()
        )
        runner = self.algo.env_runner
        self._watches = {
            "step": Stopwatch(runner.env, "step"),
            "reset": Stopwatch(runner.env, "_restart"),  # of VMAS envs; others count as simulation
            "sample": Stopwatch(runner, "sample"),
            "update": Stopwatch(self.algo.learner_group, "update"),
            "all": Stopwatch(self.algo, "train"),
        }

        self._parts: list[dict[str, float]] = []

    def iterate(self) -> int:
        before, start = self.algo.env_steps, self._seconds()
        self.algo.train()
        spent = {key: end - start[key] for key, end in self._seconds().items()}
        self._parts.append(
            {
                "sim": spent["step"] - spent["reset"],
                "policy": spent["sample"] - spent["step"],
                "reset": spent["reset"],
                "update": spent["update"],
                "other": spent["all"] - spent["sample"] - spent["update"],
            }
        )
        return self.algo.env_steps - before

    def _seconds(self) -> dict[str, float]:
        return {key: watch.seconds for key, watch in self._watches.items()}

    def shares(self, discard: int) -> dict[str, float]:
        """Of an iteration: simulation, policy (and all else in sampling), resets, update, everything else.

        Resets are means, for they come in some iterations only; all else medians. Without the first `discard` ones.
        """
        parts = self._parts[discard:]
        seconds = {
            key: (statistics.mean if key == "reset" else statistics.median)(part[key] for part in parts)
            for key in parts[0]
        }
        return {key: round(x / sum(seconds.values()), 4) for key, x in seconds.items()}

    def close(self) -> None:
        self.algo.stop()


class Bare(BarePPO):
    """The bare loop."""

    def __init__(self, work: Work, sharing: str, threads: int, device: str = "cpu"):
        sizes = work.num_envs, work.length, work.minibatches, EPOCHS
        super().__init__(Settings(work.env, work.env_config, *sizes, sharing=sharing, hidden=HIDDEN, device=device))

    def close(self) -> None:
        self.env.close()


class Stock:
    """RLlib's own PPO, runner, RLModules and learner: four policies, separate actor and critic."""

    def __init__(self, work: Work, adapter: str, threads: int):
        env_config = {"env": work.env, **work.env_config}
        agents = BatchedMultiAgentEnv(env_config).possible_agents
        ours = HyperMARLConfig()
        same = ("lr", "gamma", "lambda_", "clip_param", "entropy_coeff", "vf_loss_coeff", "grad_clip", "vf_clip_param",
                "use_kl_loss")  # fmt: skip
        self.algo = (
            PPOConfig()
            .environment(BatchedMultiAgentEnv, env_config=env_config)
            .env_runners(
                env_runner_cls=STOCK[adapter],
                num_env_runners=0,
                num_envs_per_env_runner=work.num_envs,
                rollout_fragment_length=work.length,
            )
            .multi_agent(policies=agents, policy_mapping_fn=_own_policy)
            .rl_module(
                model_config=DefaultModelConfig(
                    fcnet_hiddens=list(HIDDEN), fcnet_activation="relu", vf_share_layers=False
                )
            )
            .training(
                num_epochs=EPOCHS,
                minibatch_size=work.minibatch_size,
                train_batch_size_per_learner=work.num_envs * work.length,
                **{key: getattr(ours, key) for key in same},
            )
            .debugging(seed=0, log_level="ERROR")
            .build_algo()
        )
        self._done = 0

    def iterate(self) -> int:
        before = self._done
        self._done = int(self.algo.train()["env_runners"]["num_env_steps_sampled_lifetime"])
        return self._done - before

    def close(self) -> None:
        self.algo.stop()


def _own_policy(agent: str, *args: Any, **kwargs: Any) -> str:
    return agent


# -------------------------------------------------------------------------------------------------------------- bench


def run(
    rounds: int = 3,
    log: Callable[[str], None] = print,
    works: Sequence[Work] = WORKS,
    sharings: Sequence[str] = ("hyper_mlp", "none"),
    threads: int | None = None,
    memory_iterations: int = 50,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Measures every work and sharing.

    Args:
        threads: torch threads of every contender; None: the CPUs of this process.
        memory_iterations: of the memory check that the last work ends with; 0: none.
        device: of env and learner, `cpu` or `cuda`.

    Returns:
        One entry per work and sharing, figures in env steps per second. `stock` is the better of `stock_adapters`;
        ratios are medians over the rounds, with their lowest and highest beside them. Without stock RLlib, its keys are
        missing.

    Raises:
        ConfigError: torch sees no such device.
    """
    HyperMARLConfig().run(device=device).torch_device()  # before anything is started
    threads = threads or granted_cpus()
    info = machine()
    results = []
    with ray_session():
        for work in works:
            rates, shares = _race(work, sharings, threads, rounds, device, log)
            results += [
                {
                    **_entry(work, sharing, rates),
                    "device": device,
                    "threads": threads,
                    "shares": shares[sharing],
                    "machine": info,
                }
                for sharing in sharings
            ]
    if memory_iterations:
        log(f"{works[-1].name}: memory over {memory_iterations} iterations")
        last = next(entry for entry in results if entry["work"] == works[-1].name)
        last["memory"] = driver_memory(works[-1], sharings[0], memory_iterations, threads)
    return results


Rates = dict[str, list[list[float]]]
"""Contender -> round -> env steps per second of each of its iterations."""


def _race(
    work: Work, sharings: Sequence[str], threads: int, rounds: int, device: str, log: Callable[[str], None]
) -> tuple[Rates, dict[str, dict[str, float]]]:
    """Lets all contenders take turns. Returns their rates, and the shares of ours by sharing."""
    torch.set_num_threads(threads)
    ours = {f"ours {sharing}": Ours(work, sharing, threads, device) for sharing in sharings}
    bare = {f"bare {sharing}": Bare(work, sharing, threads, device) for sharing in sharings}
    adapters = STOCK if device == "cpu" else {}
    stock = {f"stock {adapter}": Stock(work, adapter, threads) for adapter in adapters}
    contenders = ours | bare | stock
    fast = [name for sharing in sharings for name in (f"ours {sharing}", f"bare {sharing}")]
    paired = fast if work.slow or not stock else [*fast, "stock vector"]
    once = {"stock one_env_each"} if work.slow else set()
    for name, contender in contenders.items():
        for _ in range(0 if name in once else 1 if name in stock else WARM_UP):
            contender.iterate()
    assert torch.get_num_threads() == threads

    rates: Rates = {name: [] for name in contenders}
    for i in range(rounds):
        turns = [name for pair in range(work.pairs) for name in (paired[::-1] if pair % 2 else paired)]
        turns += [name for name in stock if name not in paired and not (name in once and i)]
        measured = [(name, _rate(contenders[name])) for name in turns]
        for name in dict.fromkeys(turns):
            rates[name].append([rate for other, rate in measured if other == name])
            log(f"{work.name} round {i + 1}: {name:18s} {statistics.median(rates[name][-1]):9,.0f} env steps/s")
    shares = {sharing: ours[f"ours {sharing}"].shares(WARM_UP) for sharing in sharings}
    for contender in contenders.values():
        contender.close()
    return rates, shares


def _rate(contender: Ours | Bare | Stock) -> float:
    gc.collect()  # nobody pays for the garbage of others
    start = time.perf_counter()
    steps = contender.iterate()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return steps / (time.perf_counter() - start)


def _entry(work: Work, sharing: str, rates: Rates) -> dict[str, Any]:
    medians = {name: [statistics.median(turn) for turn in turns] for name, turns in rates.items()}
    ours, bare = medians[f"ours {sharing}"], medians[f"bare {sharing}"]
    to_bare = [a / b for a, b in zip(ours, bare, strict=True)]
    mine = {"ours": f"ours {sharing}", "bare": f"bare {sharing}"}
    entry = {
        "work": work.name,
        "sharing": sharing,
        "ours": round(statistics.median(ours)),
        "bare": round(statistics.median(bare)),
        "ratio_bare": round(statistics.median(to_bare), 3),
        "ratio_bare_range": [round(min(to_bare), 3), round(max(to_bare), 3)],
    }
    adapters = {a: statistics.median(medians[f"stock {a}"]) for a in STOCK if f"stock {a}" in medians}
    if adapters:
        best = max(adapters, key=adapters.get)
        stock = medians[f"stock {best}"]
        to_stock = [a / stock[min(i, len(stock) - 1)] for i, a in enumerate(ours)]
        mine |= {adapter: f"stock {adapter}" for adapter in adapters}
        entry |= {
            "stock": round(adapters[best]),
            "ratio_stock": round(statistics.median(to_stock), 2),
            "ratio_stock_range": [round(min(to_stock), 2), round(max(to_stock), 2)],
            "stock_adapters": {adapter: round(rate) for adapter, rate in adapters.items()},
        }
    rounds = {key: [[round(rate, 1) for rate in turn] for turn in rates[name]] for key, name in mine.items()}
    return {**entry, "rounds": rounds}


def table(results: list[dict[str, Any]]) -> str:
    """The results as text."""
    lines = [f"{'work':8} {'sharing':10} {'ours':>8} {'bare':>8} {'stock':>7}   to bare (range)      to stock  shares"]
    for r in results:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in r["shares"].items())
        low, high = r["ratio_bare_range"]
        lines.append(
            f"{r['work']:8} {r['sharing']:10} {r['ours']:8,} {r['bare']:8,} {r.get('stock', 0) or '-':>7}   "
            f"{r['ratio_bare']:.2f} ({low:.2f} to {high:.2f})  {r.get('ratio_stock', '-'):>9}   {shares}"
        )
    lines.append(f"env steps per second, {results[0]['threads']} torch threads, {results[0]['machine']['cpu']}")
    lines += [
        f"driver memory at {r['work']}: peak {r['memory']['peak_mb']:,} MB, growth after iteration "
        f"{r['memory']['settled']}: {r['memory']['growth_mb']:+.1f} MB"
        for r in results
        if "memory" in r
    ]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------- memory


def driver_memory(
    work: Work = WORKS[-1], sharing: str = "hyper_mlp", iterations: int = 50, threads: int | None = None
) -> dict[str, Any]:
    """Memory of a process that trains, as the command line does: Ray started, env and learner in the driver.

    Returns:
        `peak_mb`; `rss_mb` after every iteration; `settled`, an iteration by which all that is kept has been made;
        `growth_mb` from there to the end, as the difference of the medians of three iterations.
    """
    return in_fresh_process(_train_and_watch, work, sharing, iterations, threads)


def _train_and_watch(work: Work, sharing: str, iterations: int, threads: int | None) -> dict[str, Any]:
    with ray_session():
        ours, resident = Ours(work, sharing, threads or granted_cpus()), []
        for _ in range(iterations):
            ours.iterate()
            resident.append(memory_mb()[0])
        ours.close()
    settled = min(10, iterations // 2)
    growth = statistics.median(resident[-3:]) - statistics.median(resident[settled : settled + 3])
    return {
        "peak_mb": round(memory_mb()[1]),
        "settled": settled,
        "growth_mb": round(growth, 1),
        "rss_mb": [round(mb, 1) for mb in resident],
    }
