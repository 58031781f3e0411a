"""What a config will train, without training it."""

from __future__ import annotations

from typing import Any

import torch

from .. import env as envs
from ..nets import TeamNet
from .config import HyperMARLConfig
from .policies import map_agents


def inspect_config(config: HyperMARLConfig) -> dict[str, Any]:
    """Agents, policies, spaces, parameter counts and the scale of the initial weights, ready for JSON.

    `generated_weight_rms` is, per head and layer, the root mean square singular value of the weight matrix over its
    gain (1.0: the standard scale), as the least and the greatest over policies. Weights that are generated row by row
    have none.
    """
    env_config = dict(config.env_config)
    if isinstance(config.env, str):
        env = envs.make(config.env, num_envs=1, **env_config)
    else:
        env = config.env(num_envs=1, device=torch.device("cpu"), **env_config)
    spec = config.model_spec(env.observation_spaces, env.action_spaces, env.state_space)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(config.seed or 0)
        net = TeamNet(spec)
        weights = net.generate()
    rms = {
        name: [
            {"least": round(scale.min().item(), 4), "greatest": round(scale.max().item(), 4)}
            for (weight, _), (i, o, gain) in zip(weights[name], head.layers, strict=True)
            for scale in [weight.flatten(1).norm(dim=1) / (gain * min(i, o) ** 0.5)]
        ]
        for name, head in spec.heads.items()
        if not spec.generated_by_row(name)
    }
    report = {
        "agents": list(env.agents),
        "policies": map_agents(config.policy_patterns, env.agents),
        "spaces": {
            agent: {"observation": str(env.observation_spaces[agent]), "action": str(env.action_spaces[agent])}
            for agent in env.agents
        },
        "parameters": net.parameter_counts(),
        "generated_weight_rms": rms,
        "config": config.to_groups(),
    }
    env.close()
    return report
