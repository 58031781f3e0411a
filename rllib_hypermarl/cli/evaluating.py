"""`evaluate`: whole episodes of a checkpoint, what they returned, and on request measurements and a film."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import evaluation
from ..rllib import checkpoints
from ..rllib.measuring import measure_on
from ..storage import Storage
from .ray_session import ray_session

_KEYS = ("agent_return_mean", "agent_return_std", "episode_return_mean", "episode_len_mean")


def evaluate_checkpoint(
    stored: Storage,
    episodes: int,
    seed: int,
    *,
    random: bool = False,
    metrics: bool = False,
    video: Path | None = None,
    others: Sequence[Storage] = (),
) -> dict[str, Any]:
    """The report of `evaluate`, ready for JSON.

    Args:
        stored: a run or a checkpoint.
        random: play random actions instead of the team's.
        metrics: also measure the team on a rollout.
        video: also film up to three episodes; others: runs or checkpoints filmed at their side.
    """
    checkpoint = checkpoints.find(stored.path)
    beside = [checkpoints.find(other.path) for other in others]
    with ray_session():
        algo = checkpoints.load(checkpoint)
        runner = algo.env_runner
        if video is not None:  # first, so that an env without pictures is found at once
            from ..report.video import film_teams

            teams = [algo, *map(checkpoints.load, beside)]
            film_teams(teams, video, episodes=min(episodes, 3), seed=seed)
            for team in teams[1:]:
                team.stop()
        env = runner.make_batched_env(min(episodes, 256))
        groups = runner.net.spec.group_agents()
        if random:
            act = evaluation.random_actions(runner.net, seed)
            played = evaluation.play(act, env, episodes, seed=seed, name=runner.env_name)
        else:
            played = evaluation.evaluate(runner.net, env, episodes, seed=seed, name=runner.env_name)
        results = played.summary((), groups)
        report = {
            "checkpoint": str(checkpoint).replace(str(stored.path), str(stored)),
            "env_steps": algo.env_steps,
            "actions": "random" if random else "greedy",
            "episodes": episodes,
            "seed": seed,
        }
        report |= {key: results[key] for key in (*_KEYS, *(["group_return_mean"] if groups else []))}
        if metrics:
            report["metrics"] = measure_on(runner)
        if video is not None:
            report["video"] = str(video)
        algo.stop()
    return report
