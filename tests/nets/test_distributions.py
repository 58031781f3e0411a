"""Categorical against torch's own."""

import pytest
import torch

from rllib_hypermarl.nets import Categorical

LOGITS = 3 * torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("shift", [0.0, 1e3, -1e3])
def test_log_prob_and_entropy_equal_torch(shift):
    ours, theirs = Categorical(LOGITS + shift), torch.distributions.Categorical(logits=LOGITS + shift)
    actions = torch.randint(5, LOGITS.shape[:-1], generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.entropy(), theirs.entropy(), rtol=1e-10, atol=1e-10)
    assert torch.equal(ours.mode(), theirs.mode)


def test_gradients_equal_torch():
    actions = torch.randint(5, LOGITS.shape[:-1], generator=torch.Generator().manual_seed(1))
    grads = []
    for make in (Categorical, lambda logits: torch.distributions.Categorical(logits=logits)):
        logits = LOGITS.clone().requires_grad_()
        dist = make(logits)
        grads.append(torch.autograd.grad((dist.log_prob(actions).sin() + dist.entropy().square()).sum(), logits)[0])
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frequencies_are_the_probabilities(dtype):
    logits = torch.tensor([[0, 0, 0, 0, 0], [2, 1, 0, -1, -2], [9, 9, 5, 8, 7]], dtype=dtype)
    draws = 40_000
    samples = Categorical(logits.expand(draws, 3, 5)).sample(torch.Generator().manual_seed(0))
    assert samples.shape == (draws, 3) and samples.dtype == torch.int64
    for row in range(3):
        counts = torch.bincount(samples[:, row], minlength=5).double()
        expected = draws * torch.softmax(logits[row].double(), dim=-1)
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert chi_square < 18.47  # 99.9 % of chi-square with 4 degrees of freedom
    pairs = torch.bincount(5 * samples[:, 0] + samples[:, 0].roll(1), minlength=25).double()  # draws are independent
    assert ((pairs - draws / 25) ** 2 / (draws / 25)).sum() < 51.18  # 99.9 %, 24 degrees


def test_an_excluded_action_is_never_drawn():
    logits = torch.zeros(50_000, 3)
    logits[:, 1] = -1e10
    dist = Categorical(logits)
    assert set(dist.sample(torch.Generator().manual_seed(0)).tolist()) == {0, 2}
    torch.testing.assert_close(dist.entropy()[0], torch.tensor(2.0).log())


def test_a_generator_repeats_itself_and_leaves_the_global_one_alone():
    dist, before = Categorical(LOGITS), torch.get_rng_state()
    first, again, other = (dist.sample(torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_a_restored_generator_goes_on_where_it_was():
    dist, generator = Categorical(LOGITS), torch.Generator().manual_seed(3)
    dist.sample(generator)
    state = generator.get_state()
    expected = dist.sample(generator)
    generator.set_state(state)
    assert torch.equal(dist.sample(generator), expected)
