"""SND and the distances it is the mean of, against SciPy observation by observation, and in cases that are known."""

import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.integrate import quad
from scipy.spatial.distance import jensenshannon

from rllib_hypermarl.errors import ConfigError
from rllib_hypermarl.metrics import diversity, policy_distances, sample_observations, snd
from rllib_hypermarl.nets import SHARING, ActionSpec
from rllib_hypermarl.rollout import Rollout
from tests import oracle
from tests.metrics.teams import CONTINUOUS, DISCRETE, MULTI, constant, observations, team

TEAMS = [(0, 1, 2), (1, 0, 0, 2, 0), (0, 0), (0, 1)]


def probabilities(net, policy, row):
    """Of every action, or joint action, of one policy at one observation, one number at a time."""
    outputs = oracle.forward_row(net, "actor", oracle.policy_layers(net, "actor", policy), policy, row).tolist()
    parts, first = [], 0
    for choices in net.spec.actions.choices:
        exps = [math.exp(x) for x in outputs[first : first + choices]]
        parts.append([x / sum(exps) for x in exps])
        first += choices
    return [math.prod(joint) for joint in itertools.product(*parts)]


def scipy_distance(p, q):
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(jensenshannon(p, q, base=2))  # rounding makes tiny divergences negative, their roots NaN


def slow_snd(net, obs):
    policies, total = net.spec.agent_policies, 0.0
    for row in obs:
        for i, j in itertools.combinations(range(len(policies)), 2):
            total += scipy_distance(probabilities(net, policies[i], row), probabilities(net, policies[j], row))
    n = len(policies)
    return 2 / (n * (n - 1) * len(obs)) * total


@torch.no_grad()
@pytest.mark.parametrize("actions", [DISCRETE, MULTI], ids=["discrete", "multi-discrete"])
@pytest.mark.parametrize("agent_policies", TEAMS, ids=str)
@pytest.mark.parametrize("sharing", SHARING)
def test_snd_equals_scipy_pair_by_pair_and_observation_by_observation(sharing, agent_policies, actions):
    net, obs = team(sharing, agent_policies, actions), observations(6)
    assert snd(net, obs) == pytest.approx(slow_snd(net, obs), abs=1e-7)  # SciPy's root of what rounding leaves of zero


def test_policies_that_act_alike_are_at_zero_and_those_that_never_do_at_one():
    obs = observations(5, dim=2)
    never = [[0.0, -1e3, -1e3], [-1e3, 0.0, -1e3], [-1e3, -1e3, 0.0]]
    assert snd(constant(never, DISCRETE), obs) == 1.0
    assert snd(constant([never[0]] * 4, DISCRETE), obs) == 0.0
    assert snd(team("full"), observations(50)) == 0.0
    assert snd(constant([[0.0, 0.0], [50.0, 0.0]], CONTINUOUS), obs) == pytest.approx(1.0)
    assert snd(constant([[0.3, 0.1]] * 3, CONTINUOUS), obs) == 0.0
    masked = [[0.0, 1.0, -math.inf], [-math.inf, -math.inf, 2.0]]
    assert snd(constant(masked, DISCRETE), obs) == 1.0


def test_agents_of_one_policy_count_as_pairs():
    obs = observations(9)
    apart = policy_distances(team("none", (0, 1)), obs)[0, 1].item()
    assert 0.1 < apart < 1
    assert snd(team("none", (0, 0, 1)), obs) == pytest.approx(2 / 3 * apart)
    assert snd(team("none", (0,)), obs) == 0.0


logits = st.lists(st.floats(-40, 40) | st.just(-math.inf), min_size=4, max_size=4).filter(lambda x: max(x) > -math.inf)


@settings(max_examples=100, deadline=None)
@given(st.lists(logits, min_size=3, max_size=3))
def test_the_distance_is_a_metric_between_0_and_1_and_scipy_s(outputs):
    distances = policy_distances(constant(outputs, ActionSpec(choices=(4,))), observations(1, dim=2))
    assert torch.equal(distances, distances.T) and (distances.diagonal() == 0).all()
    assert (distances >= 0).all() and (distances <= 1 + 1e-12).all()
    for i, j, k in itertools.permutations(range(3)):
        assert distances[i, j] <= distances[i, k] + distances[k, j] + 1e-12
    probs = torch.tensor(outputs, dtype=torch.float64).softmax(dim=-1).numpy()
    for i, j in itertools.combinations(range(3), 2):
        assert distances[i, j].item() == pytest.approx(scipy_distance(probs[i], probs[j]), abs=1e-7)


def test_small_distances_are_exact():
    """The law of small differences: half the Fisher information's distance, per bit. SciPy has lost it to rounding."""
    base, change = torch.tensor([0.5, -0.3, 0.1]).double(), torch.tensor([1.0, 2.0, -0.5]).double()
    probs = base.softmax(dim=0)
    variance = (probs * change.square()).sum() - (probs * change).sum().square()
    for size in (1e-4, 1e-6, 1e-9):
        distance = policy_distances(constant(torch.stack([base, base + size * change]), DISCRETE), observations(1, 2))
        assert distance[0, 1].item() == pytest.approx(size * (variance / (8 * math.log(2))).sqrt().item(), rel=1e-3)


def test_a_component_in_which_all_agree_changes_nothing():
    """Of joint actions that are enumerated, and of so many that they are sampled."""
    one, other, same = [0.7, -0.7], [-1.0, 1.0], [0.2, 0.4]
    expected = policy_distances(constant([one, other], ActionSpec(choices=(2,))), observations(1, 2))[0, 1].item()
    for components, tolerance in ((2, 1e-12), (13, 0.01)):  # 4 and 8192 joint actions
        spec = ActionSpec(choices=(2,) * components)
        net = constant([one + same * (components - 1), other + same * (components - 1)], spec)
        assert snd(net, observations(400, 2)) == pytest.approx(expected, rel=tolerance)


# ----------------------------------------------------------------------------------------------------------- Gaussian


def normal(x, mean, std):
    return math.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))


def jsd_of_normals(mean, std, other_mean, other_std):
    """Jensen-Shannon divergence of two normals in bits, by numerical integration."""

    def integrand(x):
        p, q = normal(x, mean, std), normal(x, other_mean, other_std)
        return sum(a / 2 * math.log2(2 * a / (p + q)) for a in (p, q) if a > 0)

    low = min(mean - 12 * std, other_mean - 12 * other_std)
    high = max(mean + 12 * std, other_mean + 12 * other_std)
    return quad(integrand, low, high, points=[mean, other_mean], limit=500)[0]


@pytest.mark.parametrize("means", [[0.0, 0.2], [0.0, 1.0], [-1.0, 2.0]], ids=str)
@pytest.mark.parametrize("stds", [[1.0, 1.0], [1.0, 1.3], [0.5, 4.0]], ids=str)
def test_gaussian_estimate_equals_the_integral(means, stds):
    spec = ActionSpec(low=(-1.0,), high=(1.0,), log_std="per_policy")
    net = constant([[m] for m in means], spec, log_std=[[math.log(s)] for s in stds])
    expected = math.sqrt(jsd_of_normals(means[0], stds[0], means[1], stds[1]))
    assert snd(net, observations(2000, 2)) == pytest.approx(expected, rel=0.015)


def test_gaussians_are_compared_jointly_over_dimensions():
    """With equal standard deviations all that counts is the distance of the means in them."""
    spec = ActionSpec(low=(-1.0,) * 3, high=(1.0,) * 3)
    net = constant([[0.0, 0.0, 0.0], [0.2, -0.2, 1.5]], spec, log_std=[[math.log(0.2), math.log(0.4), math.log(3.0)]])
    distance = math.hypot(0.2 / 0.2, 0.2 / 0.4, 1.5 / 3.0)
    assert snd(net, observations(2000, 2)) == pytest.approx(math.sqrt(jsd_of_normals(0, 1, distance, 1)), rel=0.01)


def test_squashing_changes_nothing_and_seeds_little():
    nets = [
        team(actions=ActionSpec(low=(-1.0, -2.0), high=(1.0, 3.0), log_std="generated", bound=bound))
        for bound in ("clip", "tanh")
    ]
    obs, before = observations(300), torch.get_rng_state()
    first = snd(nets[0], obs)
    assert 0.1 < first < 1
    assert snd(nets[0], obs) == first == snd(nets[1], obs)
    assert 0 < abs(snd(nets[0], obs, seed=1) - first) < 0.01 * first
    assert torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
@pytest.mark.parametrize("log_std", ["shared", "per_policy", "generated"])
def test_wasserstein_distance_of_gaussians(log_std):
    actions = ActionSpec(low=(-1.0, -1.0), high=(1.0, 1.0), log_std=log_std)
    net, obs = team("hyper_mlp", (0, 1, 1, 2), actions), observations(5)
    total = 0.0
    for row in obs:
        means, stds = [], []
        for policy in net.spec.agent_policies:
            outputs = oracle.forward_row(net, "actor", oracle.policy_layers(net, "actor", policy), policy, row)
            means.append(outputs[:2])
            if log_std == "generated":
                stds.append(outputs[2:].clamp(-10, 2).exp())
            else:
                stds.append(net.log_std[policy if log_std == "per_policy" else 0].exp())
        for i, j in itertools.combinations(range(4), 2):
            squared = sum((means[i] - means[j]) ** 2) + sum((stds[i] - stds[j]) ** 2)
            total += math.sqrt(squared) * 2 / (4 * 3 * len(obs))
    assert snd(net, obs, "wasserstein") == pytest.approx(total, rel=1e-10)


def test_distances_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match="needs continuous actions"):
        snd(team(), observations(2), "wasserstein")
    with pytest.raises(ConfigError, match="'cosine', valid are jensen_shannon, wasserstein"):
        snd(team(), observations(2), "cosine")


# -------------------------------------------------------------------------------------------------- size and sampling


@pytest.mark.parametrize(
    ("actions", "distance"),
    [(DISCRETE, "jensen_shannon"), (MULTI, "jensen_shannon"), (CONTINUOUS, "wasserstein")],
    ids=["discrete", "multi-discrete", "wasserstein"],
)
def test_chunks_change_nothing(monkeypatch, actions, distance):
    net, obs = team(agent_policies=(0, 1, 2, 3, 1), actions=actions), observations(23)
    whole = policy_distances(net, obs, distance)
    for size in (30, 300):
        monkeypatch.setattr(diversity, "_CHUNK", size)
        torch.testing.assert_close(policy_distances(net, obs, distance), whole, rtol=1e-12, atol=1e-12)


def test_temporaries_stay_small(monkeypatch):
    sizes, bits = [], diversity._bits
    monkeypatch.setattr(diversity, "_CHUNK", 2**14)
    monkeypatch.setattr(diversity, "_bits", lambda ratio: sizes.append(ratio.numel()) or bits(ratio))
    for actions in (DISCRETE, MULTI, CONTINUOUS):
        snd(team("none", range(20), actions), observations(60))
    assert max(sizes) <= 2**14 and sum(sizes) > 50 * 2**14


def test_sampled_observations_are_the_rollout_s_each_once():
    obs = torch.arange(2 * 3 * 4 * 2.0).view(2, 3, 4, 2)
    fields = dict.fromkeys(("actions", "logp", "reward", "terminated", "truncated", "last_obs", "final_obs"), obs)
    rollout = Rollout(obs=obs, final_index=obs, **fields)
    chosen = sample_observations(rollout, 10)
    assert chosen.shape == (10, 2)
    assert len({tuple(row) for row in chosen.tolist()} & {tuple(row) for row in obs.view(-1, 2).tolist()}) == 10
    assert torch.equal(chosen, sample_observations(rollout, 10))
    assert not torch.equal(chosen, sample_observations(rollout, 10, seed=1))
    everything = sample_observations(rollout, 1000)
    np.testing.assert_array_equal(np.sort(everything.numpy(), axis=0), obs.view(-1, 2).numpy())
