import pytest
import torch

from rllib_hypermarl import env as envs

from .test_vmas import DISPERSION, play

pytest.importorskip("vmas")

CONFIG = DISPERSION | {"food_radius": 0.4, "pos_range": 0.5, "max_steps": 9}  # all food found, or out of time


@pytest.mark.parametrize("terminates", [True, False])
@pytest.mark.parametrize("stale", [True, False])
def test_only_what_is_said_differs_from_vmas(terminates, stale):
    name = "rllib_hypermarl.envs.published_vmas:PublishedVmas"
    switches = {"time_limit_terminates": terminates, "stale_first_obs": stale}
    published = envs.make(name, num_envs=6, scenario="dispersion", **switches, **CONFIG)
    theirs = play(published, 40, seed=3)
    ours = play(envs.make("vmas/dispersion", num_envs=6, **CONFIG), 40, seed=3)
    ended, late = (torch.stack([x.terminated | x.truncated for x in ours]), torch.stack([x.truncated for x in ours]))
    assert late.any()
    assert (ended & ~late).any()
    for a, b in zip(theirs, ours, strict=True):
        assert torch.equal(a.obs, b.final_obs if stale else b.obs)
        assert torch.equal(a.final_obs, b.final_obs)
        assert torch.equal(a.reward, b.reward)
        assert torch.equal(a.terminated, b.terminated | b.truncated if terminates else b.terminated)
        assert torch.equal(a.truncated, b.truncated & (not terminates))
    assert stale == all(torch.equal(a.obs, a.final_obs) for a in theirs)
    assert torch.equal(theirs[0].obs, ours[0].obs)


def test_what_vmas_refuses_is_refused():
    with pytest.raises(envs.UnknownEnvError, match="n_foods"):
        envs.make("rllib_hypermarl.envs.published_vmas:PublishedVmas", num_envs=2, scenario="dispersion", n_foods=3)
