"""SND of teams with memory, on the histories of greedy rollouts, against a loop over policies, histories and steps."""

import itertools

import pytest
import torch

from rllib_hypermarl.errors import MemoryMissingError
from rllib_hypermarl.evaluation import evaluate
from rllib_hypermarl.metrics import Histories, diversity, greedy_histories, policy_distances, sample_observations, snd
from rllib_hypermarl.nets import SHARING, ActionSpec, HeadSpec, ModelSpec, TeamNet
from rllib_hypermarl.rollout import Rollout
from tests import oracle
from tests.metrics.test_diversity import scipy_distance
from tests.restless_env import ACTIONS, OBS, Recording, RestlessEnv

STEPS, ENVS = 12, 3


def team(sharing="hyper_mlp", memory="gru", encoder_sharing="full", agent_policies=(0, 1, 0), actions=None):
    """Every parameter is random."""
    actions = actions or ActionSpec(choices=(ACTIONS,))
    heads = {
        "actor": HeadSpec(5, actions.head_dim, (6,), sharing),
        "actor_encoder": HeadSpec(OBS, 7, (), encoder_sharing),
    }
    policies = tuple(f"p{i}" for i in range(max(agent_policies) + 1))
    net = TeamNet(ModelSpec(policies, agent_policies, heads, actions=actions, memory=memory, memory_size=5))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.8 * torch.randn(parameter.shape, generator=generator))
    return net


def test_histories_are_those_of_evaluation():
    net, envs = team(), (Recording(ENVS), Recording(ENVS))
    evaluate(net, envs[0], 30, seed=1)
    histories = greedy_histories(net, envs[1], STEPS, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(envs[0].told, envs[1].told, strict=False))
    for t, n, e in itertools.product(range(STEPS), range(3), range(ENVS)):
        before, step, b = envs[1].said[t], envs[1].said[t + 1], n * ENVS + e
        assert torch.equal(histories.obs[t, b], before.observed()[n, e])
        assert histories.counted[t, b] == before.alive[e, n]
        ended = step.terminated[e] or step.truncated[e]
        assert histories.lost[t, b] == (ended or not (before.alive[e, n] and step.final_alive[e, n]))
    assert 0 < histories.lost.sum() < histories.lost.numel() and not histories.counted.all()


def slow_distances(net, histories):
    """Of the policies of agents 0 and 1, step by step."""
    found = []
    for b in range(histories.obs.shape[1]):
        states = [torch.zeros(net.cores["actor"].state_dim).double() for _ in range(2)]
        for t in range(len(histories.obs)):
            acted = []
            for n in range(2):
                outputs, states[n] = oracle.recall(net, "actor", n, histories.obs[t, b].double(), states[n])
                acted.append(outputs.softmax(dim=-1).tolist())
                states[n] = states[n] * ~histories.lost[t, b]
            if histories.counted[t, b]:
                found.append(scipy_distance(*acted))
    return sum(found) / len(found)


def of_doubles(histories):
    return Histories(histories.obs.double(), histories.lost, histories.counted)


@torch.no_grad()
@pytest.mark.parametrize("memory", ["gru", "lstm"])
@pytest.mark.parametrize("encoder_sharing", ["full", "hyper_mlp"])
@pytest.mark.parametrize("sharing", SHARING)
def test_snd_equals_a_loop_in_which_every_policy_reads_every_history(sharing, encoder_sharing, memory):
    net = team(sharing, memory, encoder_sharing)
    histories = greedy_histories(net, RestlessEnv(ENVS), STEPS, seed=2)
    net = net.double()
    expected = slow_distances(net, histories)
    distances = policy_distances(net, of_doubles(histories))
    assert distances[0, 1].item() == pytest.approx(expected, abs=1e-7)
    assert snd(net, of_doubles(histories)) == pytest.approx(2 / 3 * expected, abs=1e-7)  # agents 0 and 2 are alike
    alike = sharing == encoder_sharing == "full"
    assert (expected == 0) == alike


def test_chunks_change_nothing(monkeypatch):
    net = team().double()
    histories = of_doubles(greedy_histories(team(), RestlessEnv(ENVS), STEPS, seed=3))
    whole = policy_distances(net, histories)
    for size in (30, 1000):
        monkeypatch.setattr(diversity, "_CHUNK", size)
        torch.testing.assert_close(policy_distances(net, histories), whole, rtol=1e-12, atol=1e-12)


def test_what_the_dead_see_counts_for_nothing():
    net, histories = team(), greedy_histories(team(), RestlessEnv(ENVS), STEPS, seed=3)
    changed = histories.obs + 5.0 * ~histories.counted.unsqueeze(-1)
    assert snd(net, Histories(changed, histories.lost, histories.counted)) == snd(net, histories)
    fields = dict.fromkeys(("actions", "logp", "reward", "terminated", "truncated", "last_obs", "final_obs"), changed)
    obs = torch.arange(2 * 3 * 4.0).view(2, 3, 4, 1)
    rollout = Rollout(obs=obs, final_index=obs, alive=obs.squeeze(-1) % 3 > 0, **fields)
    assert sorted(sample_observations(rollout, 100).flatten().tolist()) == [x for x in range(24) if x % 3]


def test_teams_without_memory_take_the_observations_that_count():
    actions, env = ActionSpec(choices=(ACTIONS,)), RestlessEnv(ENVS)
    net = TeamNet(ModelSpec(("a", "b"), (0, 1, 0), {"actor": HeadSpec(OBS, ACTIONS)}, actions=actions))
    histories = greedy_histories(net, env, STEPS, seed=4)
    assert snd(net, histories) == snd(net, histories.obs[histories.counted])


@pytest.mark.parametrize("distance", ["jensen_shannon", "wasserstein"])
def test_continuous_actions_and_whole_teams_alike(distance):
    actions = ActionSpec(low=(-1.0, -1.0), high=(1.0, 1.0))
    net, env = team(actions=actions), RestlessEnv(ENVS, deaths=0.0)
    histories = greedy_histories(net, env, STEPS, seed=5)
    assert histories.counted.all() and snd(net, histories, distance) > 0.05
    assert snd(team("full", actions=actions), histories, distance) == 0


def test_single_observations_are_refused():
    with pytest.raises(MemoryMissingError, match="greedy_histories"):
        snd(team(), torch.zeros(4, OBS))
