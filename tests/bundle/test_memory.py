"""Bundles of teams with memory: they act as the networks do in evaluation, step by step, across ends of episodes."""

import re

import numpy as np
import pytest
import torch

from rllib_hypermarl import load_policy
from rllib_hypermarl.errors import MemoryMissingError, ObservationError
from rllib_hypermarl.evaluation import evaluate, play
from rllib_hypermarl.nets import HeadSpec, Memory, ModelSpec
from tests.bundle.teams import ACTIONS, CORE, OBS, inputs, save, trained, with_memory
from tests.helpers import ROOT
from tests.restless_env import RestlessEnv


class Restless(RestlessEnv):
    """With the observations of these tests; keeps what it was told."""

    def __init__(self, num_envs):
        super().__init__(num_envs)
        self.told = []

    def _noise(self, *shape):
        return super()._noise(*shape[:-1], OBS) if len(shape) == 2 else super()._noise(*shape)

    def step(self, actions):
        self.told.append(actions.clone())
        return super().step(actions)


def model(memory="gru", actions="categorical", encoder_sharing="full", **options):
    spec = ACTIONS[actions]
    heads = {"actor": HeadSpec(OBS, spec.head_dim, (8,)), "critic": HeadSpec(OBS, 1, (8,))}
    heads = with_memory(heads, encoder_sharing)
    return ModelSpec(("one", "two"), (0, 1, 1), heads, actions=spec, memory=memory, memory_size=CORE, **options)


@pytest.fixture
def policy(tmp_path):
    return load_policy(save(trained(model()), tmp_path / "bundle", include_critic=True))


def player(policy, ask):
    """What plays as the policy does, asked by `ask(observations, memory)`; forgets as the env says."""
    before, memory = None, policy.blank(4)

    def act(step):
        nonlocal before
        if before is not None:
            memory.forget(step.forgets(before))
        before = step
        obs = dict(zip(policy.spec.agents, step.observed().numpy(), strict=True))
        return torch.stack([torch.from_numpy(actions) for actions in ask(obs, memory).values()])

    return act


@pytest.mark.parametrize("kind", ["full", "frozen"])
@pytest.mark.parametrize("encoder_sharing", ["full", "hyper_mlp"])
@pytest.mark.parametrize("memory", ["gru", "lstm"])
def test_a_bundle_acts_as_its_networks_in_evaluation_step_by_step(tmp_path, memory, encoder_sharing, kind):
    net = trained(model(memory, encoder_sharing=encoder_sharing, normalise_obs=True))
    policy = load_policy(save(net, tmp_path / "bundle", kind=kind))
    expected, env = Restless(4), Restless(4)
    results = evaluate(net, expected, 12, seed=1)
    played = play(player(policy, lambda obs, memory: policy.act(obs, memory=memory)), env, 12, seed=1)
    assert torch.equal(torch.stack(env.told), torch.stack(expected.told))
    assert torch.equal(played.returns, results.returns)

    forgetful = Restless(4)  # without memory it would act otherwise: the comparison above says something
    play(player(policy, lambda obs, memory: policy.act(obs, memory=policy.blank(4))), forgetful, 12, seed=1)
    assert not torch.equal(torch.stack(forgetful.told), torch.stack(expected.told))


def test_agents_alone_act_as_in_the_team(policy):
    def one_by_one(obs, memory):
        return {agent: policy.act({agent: rows}, memory=memory)[agent] for agent, rows in reversed(obs.items())}

    alone = {agent: policy.agent(agent) for agent in policy.spec.agents}
    theirs = {}

    def as_programs(obs, memory):
        found = {}
        for i, (agent, rows) in enumerate(obs.items()):
            theirs[agent] = Memory(memory.state[i])
            dist = alone[agent].distribution(torch.from_numpy(rows), memory=theirs[agent])
            memory.state[i] = theirs[agent].state
            found[agent] = dist.mode().numpy()
        return found

    ways = (lambda obs, memory: policy.act(obs, memory=memory), lambda o, m: dict(reversed(one_by_one(o, m).items())))
    told = []
    for ask in (*ways, as_programs):
        env = Restless(4)
        play(player(policy, ask), env, 8, seed=2)
        told.append(torch.stack(env.told))
    assert torch.equal(told[0], told[1]) and torch.equal(told[0], told[2])


def test_memory_moves_on_for_the_agents_that_are_asked(policy):
    obs, memory = inputs(policy.spec.model, rows=3)[0], policy.blank(3)
    policy.act({"agent_1": obs[1].numpy()}, memory=memory)
    assert memory.state.any(dim=-1).all(dim=-1).tolist() == [False, True, False]
    before = memory.state
    policy.act({"agent_0": obs[0].numpy(), "agent_2": obs[2].numpy()}, memory=memory)
    assert torch.equal(memory.state[1], before[1]) and memory.state.any(dim=-1).all()
    memory.forget(torch.tensor([True, False, False]))
    assert memory.state.any(dim=-1).tolist() == [[False, True, True]] * 3


def test_one_environment_needs_no_axis(policy):
    obs, memory, both = inputs(policy.spec.model)[0], policy.blank(1), policy.blank(6)
    for _ in range(3):
        one = policy.act({"agent_2": obs[2, 0].numpy()}, memory=memory)["agent_2"]
        every = policy.act({"agent_2": obs[2].numpy()}, memory=both)["agent_2"]
        assert one.shape == () and one == every[0]
    torch.testing.assert_close(memory.state[2, 0], both.state[2, 0])


def test_a_frozen_bundle_remembers_for_the_actors_alone_unless_asked(tmp_path):
    net = trained(model("lstm"))
    policy = load_policy(save(net, tmp_path / "actors"))
    assert list(policy.spec.heads) == ["actor", "actor_encoder"]
    assert (policy.spec.memory_dim("actor"), policy.spec.memory_dim("critic")) == (2 * CORE, 0)
    assert policy.blank(2).state.shape == (3, 2, 2 * CORE) and policy.blank(2, "critic") is None
    assert load_policy(save(net, tmp_path / "both", include_critic=True)).spec.memory_dim("critic") == 2 * CORE


def test_the_page_s_code_runs(policy):
    (block,) = re.findall(r"```python\n(memory = .*?)```", (ROOT / "docs/bundles.md").read_text(), flags=re.DOTALL)
    namespace = {"policy": policy, "agents": policy.spec.agents, "size": OBS, "np": np, "torch": torch}
    exec(block, namespace)
    assert namespace["actions"]["agent_0"].shape == (128,) and namespace["memory"].state.any()


@pytest.mark.parametrize(
    ("memory", "error", "words"),
    [
        (lambda policy: None, MemoryMissingError, r"this team has memory \(gru\): give act a memory, blank\(2\)"),
        (lambda policy: policy.blank(3), ObservationError, r"shape \(3, 3, 6\), expected \(3, 2, 6\)"),
        (lambda policy: Memory(torch.full((3, 2, CORE), np.nan)), ObservationError, "the memory is not finite"),
    ],
)
def test_memory_that_does_not_fit_is_refused(policy, memory, error, words):
    with pytest.raises(error, match=words):
        policy.act({"agent_0": np.zeros((2, OBS))}, memory=memory(policy))
    with pytest.raises(MemoryMissingError):
        policy.agent("agent_0")(torch.zeros(2, OBS))
    with pytest.raises(MemoryMissingError):
        policy.values(torch.zeros(3, 2, OBS))


def test_teams_without_memory_take_none(tmp_path):
    heads = {"actor": HeadSpec(OBS, 4)}
    spec = ModelSpec(("one",), (0,), heads, actions=ACTIONS["categorical"])
    policy = load_policy(save(trained(spec), tmp_path / "bundle"))
    assert policy.blank(2) is None and policy.agent("agent_0").blank(2) is None
    with pytest.raises(ObservationError, match="this team has no memory"):
        policy.act({"agent_0": np.zeros(OBS)}, memory=Memory(torch.zeros(1, 1, 6)))
