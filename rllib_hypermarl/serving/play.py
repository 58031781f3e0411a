"""Plays a served team in an environment here: `python -m rllib_hypermarl.serving.play URL`. No Ray."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .. import env as envs
from ..env import BatchedEnv, Step
from ..episodes import Episodes
from ..errors import ConfigError, HyperMARLError
from ..evaluation import play
from ..nets import ActionSpec
from ..spaces import choices_of
from .client import Acted, TeamClient


def play_served(
    client: TeamClient, env: BatchedEnv, num_episodes: int, *, seed: int | None, name: str = "env"
) -> tuple[Episodes, set[str]]:
    """Plays greedy episodes; every step is one request for all agents in all the env's copies.

    Returns:
        The episodes, and the versions that acted in them.

    Raises:
        ServingError: the server refused or did not answer.
    """
    versions: set[str] = set()
    last: tuple[Step, Acted] | None = None
    sizes = [env.observation_spaces[agent].shape[0] for agent in env.agents]

    def act(step: Step) -> Tensor:
        nonlocal last
        given = zip(env.agents, step.observed().cpu().numpy(), sizes, strict=True)
        observations = {agent: rows[:, :size] for agent, rows, size in given}
        memory = None if last is None else remembered(step, *last)
        acted = client.act(observations, action_mask=masks(step), memory=memory)
        last = step, acted
        versions.add(acted.version)
        actions = [torch.as_tensor(acted.actions[agent]) for agent in env.agents]
        width = max(x.shape[-1] if x.ndim == 2 else 0 for x in actions)
        if width:  # agents with fewer dimensions or components than others
            actions = [x if x.ndim == 2 else x.unsqueeze(-1) for x in actions]
            actions = [functional.pad(x, (0, width - x.shape[-1])) for x in actions]
        return torch.stack(actions).to(env.device)

    def remembered(step: Step, before: Step, acted: Acted) -> dict[str, np.ndarray] | None:
        if acted.memory is None:
            return None
        lost = step.forgets(before).expand(len(env.agents), -1).cpu().numpy()
        return {agent: np.where(lost[i, :, None], 0, acted.memory[agent]) for i, agent in enumerate(env.agents)}

    choices = {agent: choices_of(space) for agent, space in env.action_spaces.items()}
    own = {agent: ActionSpec(choices=found) for agent, found in choices.items() if found}
    team = ActionSpec.covering(list(own.values())) if own else None
    places = {agent: team.places_of(spec) for agent, spec in own.items()}

    def masks(step: Step) -> dict[str, np.ndarray] | None:
        allowed = step.allowed()
        if allowed is None:
            return None
        parts = zip(env.agents, allowed.cpu().numpy(), strict=True)
        return {agent: mask[:, places[agent]] for agent, mask in parts}

    return play(act, env, num_episodes, seed=seed, name=name), versions


@click.command()
@click.argument("url")
@click.option("--env", "name", help="Default: the one that the team was trained in.")
@click.option("--env-config", help="JSON; default: as in training.")
@click.option("--episodes", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--token-env", help="Environment variable with the token that the server asks for.")
def main(url: str, name: str | None, env_config: str | None, episodes: int, seed: int, token_env: str | None) -> None:
    """Play whole episodes with a served team and report the returns as JSON."""
    try:
        report = _report(url, name, env_config, episodes, seed, os.environ[token_env] if token_env else None)
    except (HyperMARLError, KeyError, json.JSONDecodeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(getattr(error, "exit_status", 2))
    print(json.dumps(report, indent=1))


def _report(
    url: str, name: str | None, env_config: str | None, episodes: int, seed: int, token: str | None
) -> dict[str, Any]:
    with TeamClient(url, token=token) as client:
        trained = client.metadata()["provenance"]
        name = name or trained["env"]
        if name is None:
            raise ConfigError("this bundle does not say where it was trained: give --env")
        config = (
            json.loads(env_config) if env_config else (trained["env_config"] or {}) if name == trained["env"] else {}
        )
        torch.set_num_threads(1)
        env = envs.make(name, num_envs=min(episodes, 256), **config)
        try:
            played, versions = play_served(client, env, episodes, seed=seed, name=name)
        finally:
            env.close()
    found = played.summary((), {})
    keys = ("agent_return_mean", "agent_return_std", "episode_return_mean", "episode_len_mean")
    return {"url": url, "versions": sorted(versions), "env": name, "episodes": episodes, "seed": seed} | {
        key: found[key] for key in keys
    }


if __name__ == "__main__":
    main()
