"""The example in docs/metrics.md runs as it is written."""

import torch

from rllib_hypermarl.rollout import Rollout
from tests.metrics.teams import team
from tests.test_docs import code_blocks


def test_the_example_runs():
    net = team()
    obs = torch.randn(3, 8, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # [N, T, E, obs]
    with torch.no_grad():
        dist = net.policy(obs.flatten(1, 2), net.generate("actor"))
        actions = dist.sample(torch.Generator().manual_seed(0))
        logp = dist.log_prob(actions).view(3, 8, 5)
    never, nothing = torch.zeros(8, 5, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
    rollout = Rollout(obs, actions.view(3, 8, 5), logp, logp, never, never, obs[:, 0], obs[:, 0, :0], nothing)
    (example,) = code_blocks("docs/metrics.md", "python")
    exec(example, {"net": net, "rollout": rollout, "advantage": logp})
