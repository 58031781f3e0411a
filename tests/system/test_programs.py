"""ONNX and torch.export programs put out what the policy does, on random and on extreme observations."""

import json
import sys

import onnx
import onnxruntime
import pytest
import torch

from rllib_hypermarl import load_policy
from rllib_hypermarl.bundle.programs import export_programs
from rllib_hypermarl.cli import run
from rllib_hypermarl.errors import BundleError
from rllib_hypermarl.nets import HeadSpec, Memory, ModelSpec
from tests.bundle.teams import ACTIONS, CORE, OBS, save, trained, with_memory
from tests.helpers import ROOT

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
AGENTS = ("agent_0", "left/right", "agent_2")
FILES = {"agent_0", "left%2Fright", "agent_2"}


def policy_of(tmp_path, actions, sharing="hyper_mlp", **options):
    heads = {"actor": HeadSpec(OBS, ACTIONS[actions].head_dim, (16, 8), sharing=sharing, activation="tanh")}
    if "memory" in options:
        heads, options["memory_size"] = with_memory(heads), CORE
    spec = ModelSpec(("one", "two"), (0, 1, 1), heads, actions=ACTIONS[actions], **options)
    path = save(trained(spec), tmp_path / "bundle", agents=AGENTS)
    return load_policy(path)


def observations(rows=200):
    """`[N, B, OBS]`: ordinary ones, nothing, tiny and huge ones, and single numbers that stick out."""
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(3, rows, OBS, generator=generator)
    obs[:, 0] = 0
    scales = torch.tensor([1e-40, 1e-30, 1e3, 1e6, 1e12, 1e30])
    obs[:, 1 : 1 + len(scales)] *= scales[:, None]
    obs[:, 10, 2], obs[:, 11, 2] = 1e25, -1e25
    return obs


def check(outputs, policy, obs, agent=slice(None), memory=None):
    """That a program's outputs are those of the policy, up to the rounding of what they are computed from."""
    if memory is not None:
        *outputs, new_memory = outputs
    dist = policy.distribution(obs, memory=memory)
    if memory is not None:
        close([torch.as_tensor(new_memory)], [memory.state[agent]])
    actions, *rest = (torch.as_tensor(x) for x in outputs)
    if policy.spec.actions.continuous:
        close(rest, [dist.mean[agent], dist.log_std[agent]])
        close([actions], [dist.to_env(dist.mode())[agent]])
        low, high = torch.tensor(policy.spec.actions.low), torch.tensor(policy.spec.actions.high)
        assert ((actions >= low) & (actions <= high)).all()
        return
    parts = getattr(dist, "parts", [dist])
    log_probs = rest[0].split(policy.spec.actions.choices, dim=-1)
    chosen = [actions] if len(parts) == 1 else actions.unbind(-1)
    for part, ours, action in zip(parts, log_probs, chosen, strict=True):
        theirs = part.log_probs[agent]
        close([ours], [theirs])
        best = theirs.topk(2, dim=-1).values
        clear = best[..., 0] - best[..., 1] > 1e-4 * theirs.abs().amax(-1).clamp_min(1)  # no tie, up to rounding
        assert clear.float().mean() > 0.9
        assert torch.equal(action[clear], part.mode()[agent][clear])


def close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert torch.isfinite(b).all()
        assert ((a - b).abs() <= 1e-4 * b.abs().amax(-1, keepdim=True).clamp_min(1)).all()


def onnx_program(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return lambda *given: session.run(None, {name: x.numpy() for name, x in zip(names, given, strict=True)})


def torch_program(path):
    return torch.export.load(path).module()


CASES = [
    ("categorical", {}),
    ("multi_discrete", {"sharing": "full_id", "normalise_obs": True}),
    ("clip", {"normalise_obs": True, "frozen": ("two",)}),
    ("clip_per_policy", {"sharing": "full", "frozen": ("two",)}),
    ("tanh_generated", {}),
]


@pytest.mark.parametrize(
    ("form", "suffix", "open_program"), [("onnx", "onnx", onnx_program), ("torch_export", "pt2", torch_program)]
)
@pytest.mark.parametrize(("actions", "options"), CASES, ids=[actions for actions, _ in CASES])
def test_programs_put_out_what_the_policy_does(tmp_path, form, suffix, open_program, actions, options):
    policy = policy_of(tmp_path, actions, **options)
    export_programs(policy, tmp_path / "out", form)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {f"team.{suffix}", "agents", "spec.json"}
    assert {file.name for file in (tmp_path / "out/agents").iterdir()} == {f"{name}.{suffix}" for name in FILES}
    obs = observations()
    team = open_program(tmp_path / f"out/team.{suffix}")
    for rows in (1, 2, 200):
        check(team(obs[:, :rows].contiguous()), policy, obs[:, :rows])
    for index, name in ((0, "agent_0"), (1, "left%2Fright"), (2, "agent_2")):
        alone = open_program(tmp_path / f"out/agents/{name}.{suffix}")
        for rows in (1, 200):
            check(alone(obs[index, :rows]), policy, obs[:, :rows], index)


@pytest.mark.parametrize(
    ("form", "suffix", "open_program"), [("onnx", "onnx", onnx_program), ("torch_export", "pt2", torch_program)]
)
@pytest.mark.parametrize(("memory", "actions"), [("gru", "categorical"), ("lstm", "clip")])
def test_programs_remember_what_the_policy_does(tmp_path, form, suffix, open_program, memory, actions):
    """Through four steps, each with what the one before put out."""
    policy = policy_of(tmp_path, actions, memory=memory, normalise_obs=True)
    export_programs(policy, tmp_path / "out", form)
    obs = observations()
    team = open_program(tmp_path / f"out/team.{suffix}")
    alone = [open_program(tmp_path / f"out/agents/{name}.{suffix}") for name in ("agent_0", "left%2Fright", "agent_2")]
    for rows in (1, 200):
        state = policy.blank(rows).state
        for step in range(4):
            seen = obs[:, :rows].roll(step, dims=1).contiguous()
            put_out = team(seen, state)
            for index, program in enumerate(alone):
                check(program(seen[index], state[index].contiguous()), policy, seen, index, Memory(state))
            check(put_out, policy, seen, memory=Memory(state))
            state = torch.as_tensor(put_out[-1])
        assert state.any(dim=-1).all()


def test_what_is_beside_and_in_the_programs(tmp_path):
    policy = policy_of(tmp_path, "clip")
    export_programs(policy, tmp_path / "out", "onnx")
    export_programs(policy, tmp_path / "pt2", "torch_export")
    said = json.loads((tmp_path / "out/spec.json").read_text())
    assert said["version"] == policy.version and said["agents"] == list(AGENTS)
    assert said["model"]["actions"]["high"] == [1.0, "Infinity"] and said["provenance"] == {"env_steps": 3}
    model = onnx.load(tmp_path / "out/agents/left%2Fright.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [output.name for output in model.graph.output] == ["actions", "mean", "log_std"]
    assert {p.key: p.value for p in model.metadata_props} == {"version": policy.version, "agents": '["left/right"]'}
    for file in tmp_path.glob("*/**/*.*"):  # nothing of the machine that exported
        assert str(ROOT).encode() not in file.read_bytes() and b"site-packages" not in file.read_bytes()
    with pytest.raises(BundleError, match="exists already"):
        export_programs(policy, tmp_path / "out", "onnx")


def test_a_bundle_becomes_programs_on_the_command_line(tmp_path, capfd):
    policy = policy_of(tmp_path, "categorical")
    bundle, out = str(tmp_path / "bundle"), str(tmp_path / "out")
    assert run(["export", bundle, out, "--format", "torch_export"]) == 0
    assert f"version {policy.version}, 3 agents" in capfd.readouterr().out
    assert run(["export", bundle, out, "--format", "torch_export"]) == 2
    assert run(["export", bundle, str(tmp_path / "b"), "--format", "onnx", "--kind", "full"]) == 2
    assert run(["export", bundle, str(tmp_path / "b")]) == 2
    words = ("exists already", "holds the actors alone", "is a bundle already")
    assert all(word in line for word, line in zip(words, capfd.readouterr().err.splitlines(), strict=True))


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    policy = policy_of(tmp_path, "categorical")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(BundleError, match="needs the packages onnxscript: pip install onnxscript"):
        export_programs(policy, tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()
