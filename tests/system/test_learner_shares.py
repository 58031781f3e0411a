"""Two learners on half a rollout each are one learner on the whole, and a run may go from one to two and back."""

import pytest
import torch

from rllib_hypermarl import HyperMARLConfig
from rllib_hypermarl.rllib import checkpoints
from tests.helpers import STEPS, assert_equal, game, parameters

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("ray_session")]
TWO = (
    "learners.num_learners=2", "learners.num_cpus_per_learner=0.5",
    f"training.train_batch_size_per_learner={STEPS // 2}",
)  # fmt: skip
# One gradient step of plain SGD with rate 1: the parameters move by the gradient.
ONE_STEP = (
    "hypermarl.optim=sgd", "training.lr=1.0", "training.num_epochs=1", "training.grad_clip=null",
    "training.minibatch_size=128",
)  # fmt: skip
HALF_STEP = tuple(o.replace("=128", "=64") for o in ONE_STEP)


def build(*overrides):
    return HyperMARLConfig.from_groups(game(*overrides)).build_algo()


@pytest.mark.parametrize(
    "options",
    [
        ("hypermarl.sharing=hyper_mlp",),
        ("hypermarl.sharing=none", "hypermarl.critic=central"),
        (
            "policies={pair: [agent_0, agent_1], '*': own}",
            "hypermarl.normalise_values=true",
            "training.entropy_coeff=1",
        ),
        ("hypermarl.memory=gru", "hypermarl.memory_size=8", "hypermarl.sequence_length=4"),
    ],
    ids=["hyper_mlp", "central", "mixed", "memory"],
)
def test_two_learners_on_half_the_rollout_each_have_the_gradient_of_one_on_the_whole(options):
    one, both = build(*ONE_STEP, *options), build(*TWO, *HALF_STEP, *options)
    before = parameters(one)[0]
    assert_equal(before, parameters(both)[0])
    rollout = one.env_runner.sample()
    results = [one._update(rollout)[0], *both._update(rollout)]
    after, (first, second) = parameters(one)[0], parameters(both)
    one.stop()
    both.stop()
    assert_equal(first, second)
    assert_equal(after, first, tolerance=1e-6)
    assert max(abs(torch.as_tensor(after[n]) - torch.as_tensor(before[n])).max() for n in after) > 1e-3
    norms = [float(r["hyper"]["gradients_default_optimizer_global_norm"].peek()) for r in results]
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-5)


def test_from_one_learner_to_two_and_back_the_next_update_is_the_same(tmp_path):
    """With the new config's learning rate from the first update on, and Adam's state on both sides."""
    one = build("training.shuffle_batch_per_epoch=false")
    for _ in range(2):
        one.train()
    first = checkpoints.save(one, tmp_path / "one")
    rollout = one.env_runner.sample()
    direct = build("training.shuffle_batch_per_epoch=false", "training.lr=2e-3")
    direct.restore_from_path(first)
    detour = build(*TWO, "training.shuffle_batch_per_epoch=false", "training.lr=5e-4")
    detour.restore_from_path(first)
    assert detour.env_runner._weights_seq_no == one.env_runner._weights_seq_no
    assert_equal(*parameters(detour))
    assert_equal(parameters(one)[0], parameters(detour)[1])
    second = checkpoints.save(detour, tmp_path / "two")
    detour.stop()
    back = build("training.shuffle_batch_per_epoch=false", "training.lr=2e-3")
    back.restore_from_path(second)
    for algo in (direct, back):
        algo._update(rollout)
    assert_equal(parameters(direct)[0], parameters(back)[0])
    one._update(rollout)
    different = parameters(one)[0]
    assert any((different[name] != value).any() for name, value in parameters(back)[0].items())
    for algo in (one, direct, back):
        algo.stop()
