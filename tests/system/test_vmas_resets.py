"""Every scenario of the installed VMAS: can it be stepped, and is its place in `EXACT_POOL_RESETS` right? Minutes."""

import pytest
import torch
from rllib_hypermarl.envs import vmas as vmas_envs
from rllib_hypermarl.envs.vmas_probe import why_inexact

from rllib_hypermarl import env as envs

pytest.importorskip("vmas")
pytestmark = pytest.mark.system


@pytest.mark.parametrize("name", vmas_envs.names())
def test_scenario(name):
    env = envs.make(f"vmas/{name}", num_envs=3, max_steps=2)
    envs.StepCheck(env, name)(env.reset(0))
    width = max(space.shape[0] for space in env.action_spaces.values())
    ended = torch.zeros(3)
    for _ in range(4):
        step = env.step(torch.zeros(3, len(env.agents), width))
        envs.StepCheck(env, name)(step)
        ended += step.terminated | step.truncated
    assert (ended >= 2).all()
    difference = why_inexact(name)
    assert (difference is None) == (name in vmas_envs.EXACT_POOL_RESETS), difference
