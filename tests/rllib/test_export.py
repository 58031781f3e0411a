"""From a run to a bundle: the same actions as the algorithm's own, and where it comes from."""

import json
import re
import shutil

import pytest
import torch

from rllib_hypermarl import HyperMARLConfig, evaluation, load_policy, load_team
from rllib_hypermarl.cli import run
from rllib_hypermarl.env import Wrapper
from rllib_hypermarl.errors import BundleError, CheckpointError, TransferError
from rllib_hypermarl.rllib import checkpoints
from rllib_hypermarl.rllib.export import export_bundle, provenance
from tests.helpers import STEPS, write_config
from tests.teams import EVALUATING, build, learner
from tests.test_docs import code_blocks

pytestmark = pytest.mark.usefixtures("ray_session")
VMAS = ("env=vmas/dispersion", "env_config={n_agents: 3, n_food: 3, max_steps: 20, food_radius: 0.3}")
NAVIGATION = ("env=vmas/navigation", "env_config={n_agents: 3, max_steps: 15}")


class Recorder(Wrapper):
    """Keeps what an env's agents saw and did."""

    def reset(self, seed=None):
        self.seen, self.done = [], []
        step = super().reset(seed)
        self.seen.append(step.obs.clone())
        return step

    def step(self, actions):
        self.done.append(actions.clone())
        step = super().step(actions)
        self.seen.append(step.obs.clone())
        return step


def played(algo, explore=False):
    """What the algorithm's own evaluation saw and did: `[T, N, B, obs]` and `[T, N, B, ...]`."""
    runner = algo.env_runner
    env = Recorder(runner.make_batched_env(4))
    evaluation.evaluate(runner.net, env, 8, seed=5, explore=explore, name=runner.env_name)
    return [x.transpose(0, 1) for x in env.seen[:-1]], [x.transpose(0, 1) for x in env.done]


@pytest.mark.parametrize("kind", ["frozen", "full"])
@pytest.mark.parametrize(
    "overrides",
    [
        ("hypermarl.normalise_obs=true", "policies={pair: [agent_1, agent_3], '*': own}"),
        ("hypermarl.sharing=full_id", "hypermarl.critic=central", "env_config.n_agents=11"),  # agent_10 is the last one
        ("hypermarl.sharing=none", "training.use_critic=false", "hypermarl.frozen=[agent_2]"),
        (*VMAS, "env_config.continuous_actions=false", "hypermarl.normalise_obs=true", "hypermarl.frozen=[agent_1]"),
        (*NAVIGATION, "hypermarl.log_std=per_policy", "hypermarl.sharing=hyper_linear"),
        (*NAVIGATION, "hypermarl.log_std=generated", "hypermarl.action_bound=tanh", "hypermarl.sharing=full"),
    ],
    ids=["game-shared", "game-id", "game-frozen", "dispersion", "navigation", "navigation-tanh"],
)
def test_a_bundle_does_what_the_algorithm_s_own_evaluation_did(tmp_path, overrides, kind):
    algo = build(*overrides)
    for _ in range(2):
        algo.train()
    checkpoint = checkpoints.save(algo, tmp_path)
    export_bundle(checkpoint, tmp_path / "bundle", kind)
    policy = load_policy(tmp_path / "bundle")
    assert list(policy.spec.agents) == algo.env_runner.agents
    seen, done = played(algo)
    assert len(seen) > 4
    for obs, actions in zip(seen, done, strict=True):
        assert torch.equal(policy.actions(obs), actions)
        assert torch.equal(policy.actions(obs[:, :1]), actions[:, :1]) or policy.spec.actions.continuous
        by_name = policy.act({agent: obs[i] for i, agent in enumerate(policy.spec.agents)})
        assert all((by_name[agent] == actions[i].numpy()).all() for i, agent in enumerate(policy.spec.agents))
    seen, done = played(algo, explore=True)
    generator = torch.Generator().manual_seed(5)
    for obs, actions in zip(seen, done, strict=True):
        assert torch.equal(policy.actions(obs, greedy=False, generator=generator), actions)
    if kind == "full":
        net = learner(algo).net
        assert load_team(tmp_path / "bundle").spec == net.spec
        if "critic" in net.spec.heads:
            with torch.no_grad():
                assert torch.equal(policy.values(seen[0]), net.value(seen[0], None, net.generate()))
    algo.stop()


def test_a_run_starts_from_a_full_bundle_as_it_does_from_its_checkpoint(tmp_path):
    algo = build()
    algo.train()
    checkpoint = checkpoints.save(algo, tmp_path)
    export_bundle(checkpoint, tmp_path / "full", "full")
    export_bundle(checkpoint, tmp_path / "frozen")
    starts = [build(f"hypermarl.init_from={path}", "run.seed=7") for path in (checkpoint, tmp_path / "full")]
    first, second = (learner(start).net.state_dict() for start in starts)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    with pytest.raises(TransferError, match=r"actor.sharing is 'none' there and 'hyper_mlp' here"):
        build(f"hypermarl.init_from={tmp_path / 'frozen'}", "hypermarl.init_heads=[actor]")
    (tmp_path / "full/bundle.json").write_text("{}")
    with pytest.raises(BundleError, match=r"bundle.json is damaged"):
        build(f"hypermarl.init_from={tmp_path / 'full'}")
    for start in (algo, *starts):
        start.stop()


def test_a_run_with_memory_becomes_bundles_that_act_give_values_and_start_runs(tmp_path):
    memory = ("hypermarl.memory=lstm", "hypermarl.memory_size=6", "hypermarl.memory_encoder_hidden=[8]")
    algo = build(*memory, "hypermarl.critic=central", "hypermarl.normalise_obs=true")
    algo.train()
    checkpoint, net = checkpoints.save(algo, tmp_path), learner(algo).net
    export_bundle(checkpoint, tmp_path / "frozen", include_critic=True)
    export_bundle(checkpoint, tmp_path / "full", "full")
    seen, done = played(algo)
    for kind in ("frozen", "full"):
        policy = load_policy(tmp_path / kind)
        states = {head: (policy.blank(4, head), net.blank(head, 4)) for head in ("actor", "critic")}
        for t, (obs, actions) in enumerate(zip(seen, done, strict=True)):
            if t % 5 == 0:  # the game's horizon, in all envs at once
                for both in states.values():
                    for state in both:
                        state.forget(torch.ones(4, dtype=torch.bool))
            assert torch.equal(policy.actions(obs, memory=states["actor"][0]), actions)
            with torch.no_grad():
                values = net.value(obs, None, net.generate("critic"), states["critic"][1])
            assert torch.equal(policy.values(obs, memory=states["critic"][0]), values)
    start = build(*memory, "hypermarl.critic=central", "hypermarl.normalise_obs=true",
                  f"hypermarl.init_from={tmp_path / 'full'}", "run.seed=7")  # fmt: skip
    theirs = learner(start).net.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in net.state_dict().items())
    for one in (algo, start):
        one.stop()


def test_a_team_that_has_grown_is_exported_as_it_is(tmp_path):
    algo = build(*EVALUATING)
    algo.add_policy("scout", "agent_2")
    algo.freeze_policy("agent_1")
    algo.train()
    export_bundle(checkpoints.save(algo, tmp_path), tmp_path / "bundle")
    policy = load_policy(tmp_path / "bundle")
    assert "scout" in policy.spec.policies and policy.spec.model.frozen == ("agent_1",)
    seen, done = played(algo)
    assert all(torch.equal(policy.actions(obs), actions) for obs, actions in zip(seen, done, strict=True))
    algo.stop()


def test_a_checkpoint_that_rllib_wrote_without_us_is_exported_too(tmp_path):
    algo = build()
    algo.train()
    algo.save_to_path((tmp_path / "plain").absolute())
    export_bundle(tmp_path / "plain", tmp_path / "bundle")
    seen, done = played(algo)
    assert torch.equal(load_policy(tmp_path / "bundle").actions(seen[0]), done[0])
    told = provenance(tmp_path / "plain")
    assert told["env_steps"] is told["evaluation"] is told["config"] is None
    assert set(told["versions"]) == {"rllib_hypermarl", "ray", "torch"}
    algo.stop()


class TestCommand:
    @pytest.fixture(scope="class")
    def run_dir(self, tmp_path_factory, ray_session):
        directory = tmp_path_factory.mktemp("run")
        path = write_config(
            directory, "evaluation.evaluation_interval=2", "evaluation.evaluation_duration=6",
            "hypermarl.critic=central", "run.stop_env_steps=640",
        )  # fmt: skip
        assert run(["train", str(path), "--out", str(directory / "run")]) == 0
        return directory / "run"

    def test_a_run_is_exported_with_its_provenance(self, run_dir, tmp_path, capfd):
        assert run(["export", str(run_dir), str(tmp_path / "bundle")]) == 0
        policy = load_policy(tmp_path / "bundle")
        out, err = capfd.readouterr()
        assert re.fullmatch(rf".*bundle: version {policy.version}, 4 agents, \d+ kB\n", out) and err == ""
        told = policy.spec.provenance
        assert (told["checkpoint"], told["env_steps"]) == ("checkpoint_000005", 5 * STEPS)
        assert told["config"] == HyperMARLConfig.from_yaml(run_dir / "config.yaml").to_groups()
        assert told["evaluation"]["env_steps"] == 4 * STEPS
        (row,) = [json.loads(line) for line in (run_dir / "result.json").read_text().splitlines()[3:4]]
        for key in ("agent_return_mean", "episode_return_mean"):
            assert told["evaluation"][key] == row["evaluation"]["env_runners"][key]
        assert run(["export", str(run_dir), str(tmp_path / "bundle")]) == 2
        assert "exists already and is not empty" in capfd.readouterr().err

    def test_an_older_checkpoint_does_not_boast_of_later_evaluations(self, run_dir, tmp_path):
        copy = shutil.copytree(run_dir, tmp_path / "run")
        manifest = checkpoints.find(copy) / checkpoints.MANIFEST
        content = json.loads(manifest.read_text())
        for iteration, evaluated in ((3, {"env_steps": 2 * STEPS}), (1, None)):
            manifest.write_text(json.dumps({**content, "iteration": iteration}))
            told = provenance(manifest.parent)["evaluation"]
            assert told == evaluated or told.items() > evaluated.items()

    def test_kinds_and_critics(self, run_dir, tmp_path):
        heads = {}
        for name, options in (("plain", []), ("critic", ["--critic"]), ("full", ["--kind", "full"])):
            assert run(["export", str(run_dir), str(tmp_path / name), *options]) == 0
            heads[name] = {head: spec.sharing for head, spec in load_policy(tmp_path / name).spec.heads.items()}
        assert heads["plain"] == {"actor": "none"}
        assert heads["critic"] == {"actor": "none", "critic": "none"}
        assert heads["full"] == {"actor": "hyper_mlp", "critic": "hyper_mlp"}

    def test_what_is_no_run_is_named(self, tmp_path, capfd):
        (tmp_path / "empty").mkdir()
        assert run(["export", str(tmp_path / "empty"), str(tmp_path / "bundle")]) == 1
        assert "holds no checkpoint" in capfd.readouterr().err
        assert run(["export", str(tmp_path / "nowhere"), str(tmp_path / "bundle")]) == 2
        assert not (tmp_path / "bundle").exists()

    def test_a_damaged_checkpoint_makes_no_bundle(self, run_dir, tmp_path):
        copy = shutil.copytree(checkpoints.find(run_dir), tmp_path / "checkpoint_000005")
        (copy / "learner_group/learner/rl_module/hyper/module_state.pkl").write_bytes(b"")
        with pytest.raises(CheckpointError, match=r"module_state.pkl is damaged"):
            export_bundle(copy, tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()

    def test_the_page_s_code_runs(self, run_dir, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert run(["export", str(run_dir), "full", "--kind", "full"]) == 0
        acting, batched, _, going_on, onnx = code_blocks("docs/bundles.md", "python")
        namespace = {}
        for block in (acting, batched, going_on):
            exec(compile(block, "bundles.md", "exec"), namespace)
        assert namespace["actions"].shape == (4, 128) and len(namespace["larger"].spec.agent_policies) == 5
        assert "InferenceSession" in onnx  # programs have tests of their own
