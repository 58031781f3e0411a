"""What goes into a bundle comes out of it, bit for bit, where Ray is not installed too."""

import dataclasses
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_hypermarl import load_policy, load_team, save_bundle
from rllib_hypermarl.bundle.spec import SCHEMA_VERSION
from rllib_hypermarl.errors import BundleError, ObservationError
from rllib_hypermarl.nets import ActionSpec, HeadSpec, ModelSpec, TeamNet, transfer
from tests.bundle.teams import ACTIONS, OBS, agents_of, behaviour, behaviour_of_net, equal, inputs, save, specs, trained


def model(actions="categorical", **options):
    spec = ACTIONS[actions]
    heads = {"actor": HeadSpec(OBS, spec.head_dim, (8,)), "critic": HeadSpec(OBS, 1, (8,))}
    return ModelSpec(("one", "two", "three"), (0, 1, 1, 2), heads, actions=spec, **options)


@pytest.fixture
def policy(tmp_path):
    return load_policy(save(trained(model()), tmp_path / "bundle", include_critic=True))


@given(spec=specs(), kind=st.sampled_from(["full", "frozen"]))
@settings(max_examples=40, deadline=None)
def test_what_was_saved_acts_bit_for_bit_as_what_is_loaded(spec, kind):
    net = trained(spec)
    before = behaviour_of_net(net)
    with tempfile.TemporaryDirectory() as directory:
        path = save(net, Path(directory) / "bundle", kind=kind, include_critic=True)
        policy, team = load_policy(path), load_team(path)
    assert equal(behaviour(policy, spec), before)
    assert equal(behaviour_of_net(team), before)
    assert equal(behaviour_of_net(net), before)  # saving changes nothing
    assert list(policy.spec.agents) == agents_of(spec)
    obs, _ = inputs(spec)
    policy, obs = policy.double(), obs.double()
    memories = [policy.blank(obs.shape[1]) for _ in range(3)]
    for _ in range(2):
        put_out, of_team = policy(obs, memories[0]), policy.distribution(obs, memory=memories[1])
        acted = policy.actions(obs, memory=memories[2])
    for index, name in enumerate(policy.spec.agents):
        alone = policy.agent(name)
        memories = [alone.blank(obs.shape[1]) for _ in range(2)]
        for _ in range(2):
            puts_out, dist = alone(obs[index], memories[0]), alone.distribution(obs[index], memory=memories[1])
        torch.testing.assert_close(puts_out, put_out[index], rtol=1e-8, atol=1e-8)
        if spec.actions.continuous:
            torch.testing.assert_close(dist.log_std, of_team.log_std[index], rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(dist.to_env(dist.mode()), acted[index], rtol=1e-8, atol=1e-8)


def test_a_full_bundle_holds_the_team_as_it_was(tmp_path):
    net = trained(model(normalise_obs=True, normalise_values=True, frozen=("two",)))
    team = load_team(save(net, tmp_path / "bundle", kind="full"))
    assert team.spec == net.spec
    assert list(team.state_dict()) == list(net.state_dict())
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in team.state_dict().items())


def test_research_goes_on_from_a_full_bundle_with_one_policy_more(tmp_path):
    net = trained(model())
    team = load_team(save(net, tmp_path / "bundle", kind="full"))
    larger = TeamNet(ModelSpec((*net.spec.policies, "new"), (0, 1, 2, 3), net.spec.heads, actions=net.spec.actions))
    transfer(team, larger, like={"new": "one"})
    optimizer = torch.optim.Adam(larger.parameters(), lr=1e-2)
    obs, weights = inputs(larger.spec)[0], larger.generate()
    copied, like = larger.action_inputs(obs[[0, 0, 0, 0]], weights)[3], net.action_inputs(obs, net.generate())[0]
    torch.testing.assert_close(copied, like)
    larger.action_inputs(obs, weights)[3, :4].square().mean().backward()
    before = larger.contexts["embedding"].weight.detach().clone()
    optimizer.step()
    assert not torch.equal(larger.contexts["embedding"].weight[3], before[3])


def test_a_frozen_bundle_has_the_actors_alone_unless_asked(tmp_path):
    net = trained(model())
    policy = load_policy(save(net, tmp_path / "actors"))
    assert list(policy.spec.heads) == ["actor"]
    assert {head.sharing for head in policy.spec.heads.values()} == {"none"}
    with pytest.raises(BundleError, match="has no critic"):
        policy.values(inputs(net.spec)[0])
    sizes = [sum(f.stat().st_size for f in save(net, tmp_path / k, kind=k).iterdir()) for k in ("frozen", "full")]
    assert sizes[0] < sizes[1]
    assert len([p for p in policy.parameters() if p.requires_grad]) == 0


def test_an_agent_of_the_usual_size_takes_tens_of_kilobytes(tmp_path):
    actions = ACTIONS["categorical"]
    spec = ModelSpec(("a", "b", "c", "d"), (0, 1, 2, 3), {"actor": HeadSpec(OBS, actions.head_dim)}, actions=actions)
    path = save(TeamNet(spec), tmp_path / "bundle")
    assert sum(file.stat().st_size for file in path.iterdir()) / 4 < 30_000


def test_the_same_team_makes_the_same_bundle_and_another_one_another_version(tmp_path, policy):
    net = trained(model())
    again = save(net, tmp_path / "again", include_critic=True)
    assert [file.read_bytes() for file in sorted(again.iterdir())] == [
        file.read_bytes() for file in sorted((tmp_path / "bundle").iterdir())
    ]
    assert re.fullmatch("[0-9a-f]{16}", policy.version)
    other = load_policy(save(trained(model(), seed=1), tmp_path / "other", include_critic=True))
    assert other.version != policy.version


def test_the_spec_is_plain_json_that_says_what_is_inside(tmp_path):
    path = save(trained(model("clip")), tmp_path / "bundle")

    def fail(constant):
        raise AssertionError(f"{constant} is no JSON")

    data = json.loads((path / "bundle.json").read_text(), parse_constant=fail)
    assert data["agents"] == ["agent_0", "agent_1", "agent_2", "agent_3"]
    assert data["model"]["policies"] == ["one", "two", "three"] and data["model"]["agent_policies"] == [0, 1, 1, 2]
    assert data["observations"]["agent_3"] == {"size": OBS, "low": -2.0, "high": [1.0, 2.0, 3.0, 4.0, "Infinity"]}
    assert data["model"]["actions"]["high"] == [1.0, "Infinity"]
    assert data["provenance"] == {"env_steps": 3} and data["schema_version"] == SCHEMA_VERSION


def test_a_bundle_of_schema_1_is_read_for_ever():
    policy = load_policy(Path(__file__).parent / "v1")
    assert policy.version == "46fe8246489d183a"
    obs = torch.arange(20.0).view(2, 2, OBS) / 10 - 1
    first = [[-1.2793766, -1.2085091, -1.4929633, -1.6172615], [-0.4843425, -2.5136094, -2.4660041, -1.5232656]]
    first = torch.tensor(first)
    torch.testing.assert_close(policy.distribution(obs).log_probs[:, 0], first, rtol=1e-5, atol=1e-5)
    values = torch.tensor([[-1.9323425, -1.4671924], [-0.6043264, -0.1391763]])
    torch.testing.assert_close(policy.values(obs), values, rtol=1e-5, atol=1e-5)


def test_what_schema_4_says_of_networks_has_not_changed():
    """Whoever adds a field raises SCHEMA_VERSION, or older code would refuse new bundles with a puzzling word."""
    parts = (ModelSpec, HeadSpec, ActionSpec)
    fields = {part.__name__: " ".join(field.name for field in dataclasses.fields(part)) for part in parts}
    assert SCHEMA_VERSION == 4 and fields == {
        "ModelSpec": "policies agent_policies heads context embedding_dim hypernet_hidden hypernet_shared_trunk "
        "hypernet_rank hypernet_reads_obs init actions normalise_obs normalise_values frozen agent_actions memory "
        "memory_size groups",
        "HeadSpec": "in_dim out_dim hidden sharing activation out_gain reads",
        "ActionSpec": "choices low high log_std bound",
    }


def test_provenance_is_whatever_json_can_say(tmp_path):
    told = {"config": {"a": [1, 2.5, None, True, "x", {}]}, "score": float("nan")}
    policy = load_policy(save(trained(model()), tmp_path / "bundle", provenance=told))
    assert policy.spec.provenance == {**told, "score": "NaN"}
    with pytest.raises(BundleError, match="provenance"):
        save(trained(model()), tmp_path / "other", provenance={"net": TeamNet})


UNLIKE = {
    "discrete": (ActionSpec(choices=(3,)), ActionSpec(choices=(5,)), ActionSpec(choices=(2, 4))),
    "clip": tuple(ActionSpec(low=(-1.0, -2.0)[:n], high=(1.0, 2.0)[:n]) for n in (1, 2, 1)),
    "tanh": tuple(
        ActionSpec(low=(-1.0, 0.0)[:n], high=(1.0, 2.0)[:n], log_std="generated", bound="tanh") for n in (2, 1, 2)
    ),
}
SIZES = (3, OBS, 2)


@pytest.mark.parametrize("kind", ["full", "frozen"])
@pytest.mark.parametrize("sharing", ["hyper_mlp", "full_id", "none"])
@pytest.mark.parametrize("own", UNLIKE.values(), ids=UNLIKE.keys())
def test_unlike_agents_are_asked_and_answer_in_their_own_sizes(own, sharing, kind, tmp_path):
    actions = ActionSpec.covering(own)
    net = trained(
        ModelSpec(
            ("a", "b", "c"), (0, 1, 2), {"actor": HeadSpec(OBS, actions.head_dim, (6,), sharing)},
            actions=actions, agent_actions=own,
        )
    )  # fmt: skip
    agents = ["a", "b", "c"]
    spaces = {agent: gym.spaces.Box(-1, 1, (size,)) for agent, size in zip(agents, SIZES, strict=True)}
    save_bundle(net, tmp_path / "bundle", agents=agents, observation_spaces=spaces, kind=kind)
    policy = load_policy(tmp_path / "bundle")
    obs = {agent: torch.randn(4, size).numpy() for agent, size in zip(agents, SIZES, strict=True)}
    team = torch.zeros(3, 4, OBS)
    for n, size in enumerate(SIZES):
        team[n, :, :size] = torch.from_numpy(obs[agents[n]])
    expected = policy.actions(team)
    for asked in (obs, {"c": obs["c"]}):
        for agent, acted in policy.act(asked).items():
            n = agents.index(agent)
            shape = (4,) if own[n].shape == () else (4, *own[n].shape)
            assert acted.shape == shape
            assert np.array_equal(acted, actions.part_of(expected[n], own[n]).numpy())
            alone = policy.agent(agent)
            dist = alone.distribution(torch.from_numpy(obs[agent]))
            np.testing.assert_allclose(acted, dist.to_env(dist.mode()).numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(ObservationError, match=r"agent 'a': its observation has shape \(5,\), expected 3 numbers"):
        policy.act({"a": np.zeros(5)})
    if not actions.continuous:
        mask = np.zeros((4, 6), bool)
        mask[:, [1, 4]] = True  # of the third agent's two components, the second choice and the third
        assert policy.act(obs, action_mask={"c": mask})["c"].tolist() == [[1, 2]] * 4
        with pytest.raises(ObservationError, match="agent 'c': its action mask allows nothing"):
            policy.act(obs, action_mask={"c": np.zeros((4, 6), bool)})


def test_a_large_team_is_no_burden(tmp_path):
    actions = ACTIONS["categorical"]
    heads = {"actor": HeadSpec(OBS, actions.head_dim, (4,))}
    spec = ModelSpec(tuple(map(str, range(2000))), (*range(2000), *range(2000)), heads, actions=actions)
    policy = load_policy(save(TeamNet(spec, draw=False).requires_grad_(False).apply(zeroed), tmp_path / "bundle"))
    assert policy.actions(torch.zeros(4000, 2, OBS)).shape == (4000, 2)


def zeroed(module):
    for parameter in module.parameters(recurse=False):
        parameter.zero_()


# ------------------------------------------------------------------------------------------------------------- acting


def test_any_agents_may_be_asked_alone_or_for_many_envs(policy):
    obs, _ = inputs(policy.spec.model)
    every = policy.actions(obs).numpy()
    asked = policy.act({"agent_3": obs[3].numpy(), "agent_1": obs[1].double().tolist()})
    assert list(asked) == ["agent_3", "agent_1"]
    assert np.array_equal(asked["agent_3"], every[3]) and np.array_equal(asked["agent_1"], every[1])
    one = policy.act({"agent_2": obs[2, 0]})["agent_2"]
    assert one.shape == () and one == every[2, 0] and one.dtype == np.int64
    assert policy.act({}) == {}


def test_samples_repeat_with_their_seed_whoever_else_is_asked(policy):
    obs = {f"agent_{i}": np.zeros((200, OBS), np.float32) for i in range(4)}
    state = torch.get_rng_state()
    every = policy.act(obs, greedy=False, seed=3)
    alone = policy.act({"agent_2": obs["agent_2"]}, greedy=False, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(alone["agent_2"], every["agent_2"])
    assert not np.array_equal(policy.act(obs, greedy=False, seed=4)["agent_2"], every["agent_2"])
    assert not np.array_equal(every["agent_1"], every["agent_2"])  # one policy, two agents
    assert len(set(policy.act(obs, greedy=False)["agent_0"].tolist())) > 1


@pytest.mark.parametrize("actions", ["categorical", "multi_discrete"])
def test_what_is_masked_is_never_chosen_and_the_rest_keeps_its_odds(tmp_path, actions):
    policy = load_policy(save(trained(model(actions)), tmp_path / "bundle"))
    choices = policy.spec.actions.choices
    obs, _ = inputs(policy.spec.model, rows=300)
    mask = torch.rand(4, 300, sum(choices), generator=torch.Generator().manual_seed(0)) < 0.5
    mask |= torch.cat([torch.nn.functional.one_hot(torch.tensor(c - 1), c) for c in choices]).bool()
    offsets = torch.tensor([0, *choices]).cumsum(0)[:-1]
    for actions in (policy.actions(obs, action_mask=mask), policy.actions(obs, greedy=False, action_mask=mask)):
        chosen = actions.reshape(4, 300, -1) + offsets
        assert mask.gather(-1, chosen).all()
    assert equal([policy.actions(obs, action_mask=torch.ones_like(mask))], [policy.actions(obs)])
    acted = policy.act({"agent_1": obs[1].numpy()}, action_mask={"agent_1": mask[1].numpy()})
    assert np.array_equal(acted["agent_1"], policy.actions(obs, action_mask=mask)[1].numpy())


def test_an_agent_with_nothing_allowed_is_named(policy):
    obs = {"agent_0": np.zeros((2, OBS)), "agent_3": np.zeros((2, OBS))}
    with pytest.raises(ObservationError, match=r"agent 'agent_3': its action mask allows nothing \(row 1\)"):
        policy.act(obs, action_mask={"agent_3": [[1, 0, 0, 0], [0, 0, 0, 0]]})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"agent_9": [0.0] * OBS}, "no agent 'agent_9'; agents are agent_0, agent_1, agent_2, agent_3"),
        ({"agent_1": [0.0] * 4}, "agent 'agent_1': its observation has shape (4,), expected 5 numbers"),
        ({"agent_1": 3.0}, "agent 'agent_1': its observation has shape ()"),
        ({"agent_1": [0.0, float("nan"), 0, 0, 0]}, "agent 'agent_1': its observation is not finite"),
        ({"agent_1": [0.0, 1e300, 0, 0, 0]}, "agent 'agent_1': its observation is not finite"),
        ({"agent_1": ["a"] * OBS}, "agent 'agent_1': its observation is no array of numbers"),
        ({"agent_1": [[0.0] * OBS, [0.0]]}, "agent 'agent_1': its observation is no array of numbers"),
        ({"agent_1": None}, "agent 'agent_1': its observation is no array of numbers"),
        ({"agent_0": [[0.0] * OBS], "agent_1": [[0.0] * OBS] * 2}, "agent 'agent_1' has 2 rows, agent 'agent_0' has 1"),
    ],
)
def test_observations_that_nobody_can_act_on_are_named(policy, given, words):
    with pytest.raises(ObservationError) as caught:
        policy.act(given)
    assert words in str(caught.value)


def test_masks_of_continuous_actions_and_missing_states_are_named(tmp_path):
    spec = ACTIONS["clip"]
    heads = {"actor": HeadSpec(OBS, spec.head_dim), "critic": HeadSpec(7, 1, reads="state")}
    net = trained(ModelSpec(("one",), (0, 0), heads, actions=spec))
    policy = load_policy(save(net, tmp_path / "bundle", kind="full"))
    with pytest.raises(ObservationError, match="agent 'agent_0': continuous actions cannot be masked"):
        policy.act({"agent_0": [0.0] * OBS}, action_mask={"agent_0": [True]})
    with pytest.raises(ObservationError, match="the critic reads the env's state, 7 numbers"):
        policy.values(inputs(net.spec)[0])


# --------------------------------------------------------------------------------------------------- writing and place


def test_a_place_that_is_taken_stays_as_it_is(tmp_path):
    net = trained(model())
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("...")
    (tmp_path / "file").write_text("...")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("full", "file", "link"):
        with pytest.raises(BundleError, match=f"{name} exists already"):
            save(net, tmp_path / name)
    (tmp_path / "empty").mkdir()
    load_policy(save(net, tmp_path / "empty"))
    load_policy(save(net, tmp_path / "some/where/deep"))
    with pytest.raises(BundleError, match="cannot be written"):
        save(net, tmp_path / "file/bundle")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file", "full", "link", "some"]


def test_a_team_that_cannot_be_loaded_again_is_not_written(tmp_path):
    net = trained(model())
    with torch.no_grad():
        net.sources["actor"].head_biases[0][0] = float("nan")
    with pytest.raises(BundleError, match="is not finite"):
        save(net, tmp_path / "bundle")
    by_row = trained(dataclasses.replace(model(), hypernet_reads_obs=True))
    for kind in ("full", "frozen"):
        with pytest.raises(BundleError, match=r"made of this team .*each observation has its own"):
            save(by_row, tmp_path / "bundle", kind=kind)
    box = gym.spaces.Box(-1, 1, (OBS + 1,))
    with pytest.raises(BundleError, match="no bundle can be made of this team"):
        save_bundle(trained(model()), tmp_path / "b", agents=agents_of(model()),
                    observation_spaces=dict.fromkeys(agents_of(model()), box))  # fmt: skip
    assert not list(tmp_path.iterdir())


SCRIPT = """
import sys
sys.modules["ray"] = None  # every `import ray` fails from here on
import numpy as np
from rllib_hypermarl import load_policy
for path in sys.argv[1:]:
    policy = load_policy(path)
    observations = {agent: np.linspace(-1, 1, policy.spec.obs_dim) * i for i, agent in enumerate(policy.spec.agents)}
    print(policy.version, {agent: action.tolist() for agent, action in policy.act(observations).items()})
loaded = [name for name in sys.modules if name.split(".")[0] == "ray" and sys.modules[name] is not None]
assert not loaded, loaded
"""


def test_where_ray_is_not_installed(tmp_path):
    team = trained(model("clip_per_policy", frozen=("two",)))
    paths = [save(team, tmp_path / kind, kind=kind) for kind in ("full", "frozen")]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *paths], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = []
    for policy in map(load_policy, paths):
        observations = {agent: np.linspace(-1, 1, OBS) * i for i, agent in enumerate(policy.spec.agents)}
        acted = {agent: action.tolist() for agent, action in policy.act(observations).items()}
        expected.append(f"{policy.version} {acted}")
    assert done.stdout.splitlines() == expected
