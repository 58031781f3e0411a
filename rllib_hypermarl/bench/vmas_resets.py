"""What resets and our wrapper cost on VMAS; `python -m rllib_hypermarl.bench.vmas_resets` prints JSON.

Random actions, one thread, CPU time (so that others on the machine hardly count). `together`: all envs begin at once
and mostly end at once; `staggered`: they begin at different ages, so that some end in nearly every step.
"""

from __future__ import annotations

import json
import os
import statistics
import time

import torch

from ..envs.vmas import VmasEnv

DISPERSION = {"n_agents": 4, "n_food": 4, "food_radius": 0.08, "penalise_by_time": True, "continuous_actions": False}
NAVIGATION = {"n_agents": 4, "collisions": False, "observe_all_goals": True, "shared_rew": False}
NAVIGATION_LIDAR = NAVIGATION | {"collisions": True}
TASKS = [("dispersion", DISPERSION), ("navigation", NAVIGATION), ("navigation", NAVIGATION_LIDAR)]


class TimedEnv(VmasEnv):
    """Counts the seconds spent on restarting episodes."""

    seconds = 0.0

    def _restart(self, *args):
        start = time.process_time()
        try:
            return super()._restart(*args)
        finally:
            self.seconds += time.process_time() - start


def rollout(env: TimedEnv, length: int) -> tuple[float, float]:
    """Seconds of `length` steps, and the part of them that went into resets."""
    actions = random_actions(env)
    env.seconds, start = 0.0, time.process_time()
    for _ in range(length):
        env.step(actions)
    return time.process_time() - start, env.seconds


def random_actions(env: VmasEnv) -> torch.Tensor:
    space, shape = env.action_spaces[env.agents[0]], (env.num_envs, len(env.agents))
    return torch.randint(0, int(space.n), shape) if hasattr(space, "n") else torch.rand(*shape, *space.shape) * 2 - 1


def reset_share(scenario: str, config: dict, num_envs: int, length: int, fast: bool, staggered: bool) -> dict:
    env = TimedEnv(scenario, num_envs, fast_resets=fast, max_steps=100, **config)
    env.reset(0)
    if staggered:
        env._env.steps = torch.randint(0, 100, (num_envs,)).float()
    rollout(env, 10)
    totals, resets = zip(*(rollout(env, length) for _ in range(5)), strict=True)
    return {
        "scenario": scenario,
        "lidar": config.get("collisions", False),
        "envs": num_envs,
        "steps": length,
        "resets": "pool" if fast else "one by one",
        "ends": "staggered" if staggered else "together",
        "env_steps_per_second": round(num_envs * length / statistics.median(totals)),
        "reset_share_of_simulator": round(sum(resets) / sum(totals), 4),
    }


def wrapper_overhead(scenario: str, config: dict, num_envs: int, pairs: int = 1500) -> dict:
    """Median of one step through the wrapper over the median of VMAS's own, steps interleaved."""
    import vmas

    env, bare = VmasEnv(scenario, num_envs, **config), vmas.make_env(scenario, num_envs, **config)
    env.reset(0)
    actions = random_actions(env)
    per_agent = [a.unsqueeze(-1) if a.dim() == 1 else a for a in actions.unbind(1)]
    times: dict[str, list[float]] = {"wrapper": [], "vmas": []}
    for _ in range(pairs):
        for key, call in (("wrapper", lambda: env.step(actions)), ("vmas", lambda: bare.step(list(per_agent)))):
            start = time.process_time()
            call()
            times[key].append(time.process_time() - start)
    wrapper, own = (statistics.median(times[key]) for key in ("wrapper", "vmas"))
    return {
        "scenario": scenario,
        "envs": num_envs,
        "overhead": round(wrapper / own - 1, 4),
        "vmas_us": round(own * 1e6),
    }


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shares = [
        reset_share(scenario, config, num_envs, length, fast, staggered)
        for scenario, config in TASKS
        for num_envs, length in ((16, 128), (600, 100))
        for staggered in (False, True)
        for fast in (True, False)
    ]
    overheads = [wrapper_overhead(scenario, config, 16) for scenario, config in TASKS[:2]]
    machine = {"cpus": os.cpu_count(), "threads": 1, "torch": torch.__version__}
    print(json.dumps({"machine": machine, "overheads": overheads, "resets": shares}, indent=1))


if __name__ == "__main__":
    main()
