"""One grammar in YAML and in Python; whatever the fast path would ignore is refused by name."""

import enum
import math
from pathlib import Path

import pytest
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.callbacks.callbacks import RLlibCallback

from rllib_hypermarl import HyperMARLConfig
from rllib_hypermarl.rllib.grammar import GROUPS, ConfigError
from rllib_hypermarl.rllib.validation import _HONOURED_CALLBACKS, _INTERNAL
from tests.faulty_envs import NaNEnv
from tests.helpers import GAME, ROOT, game, write_config

HONOURED = {key for keys in GROUPS.values() for key in keys}


def fluent():
    return (
        HyperMARLConfig()
        .environment("games/specialisation", env_config={"n_agents": 4, "horizon": 5})
        .hypermarl(actor_hidden=[16], critic_hidden=[16], hypernet_hidden=[8])
        .training(num_epochs=2, minibatch_size=32, train_batch_size_per_learner=128)
        .env_runners(num_envs_per_env_runner=16, rollout_fragment_length=8)
        .run(stop_env_steps=384, torch_threads=1, device="cpu")
    )


def refused(*overrides):
    """The error of the small game's config with these overrides."""
    with pytest.raises(ConfigError) as caught:
        HyperMARLConfig.from_groups(game(*overrides)).validate()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------- the grammar


def test_yaml_and_fluent_calls_give_the_same_config(tmp_path):
    written = HyperMARLConfig.from_yaml(write_config(tmp_path))
    assert written.to_groups() == fluent().to_groups()
    ours, theirs = vars(written), vars(fluent())
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if ours[key] != theirs[key]] == []
    assert written.to_groups() != fluent().training(lr=0.5).to_groups()


def test_every_honoured_key_reads_back_from_yaml(tmp_path):
    config = fluent().training(lr=1e-7, gamma=0.9, grad_clip=None, shuffle_batch_per_epoch=False)
    config.hypermarl(sharing="none", critic_sharing="full_id", context="one_hot", init="paper", clip_value_loss=None)
    config.hypermarl(critic="central", log_std="generated", action_bound="tanh")
    config.hypermarl(init_from="runs/old", init_like={"agent_3": "agent_0"}, init_heads=["actor"], frozen=("agent_1",))
    config.evaluation(evaluation_interval=3, evaluation_duration=7, evaluation_config={"explore": True})
    config.reporting(min_time_s_per_iteration=2.0).resources(num_cpus_for_main_process=2)
    config.multi_agent(policies={"scouts": ["agent_0", "agent_1"], "*": "own"}).run(seed=None)
    text = config.to_yaml(tmp_path / "config.yaml")
    again = HyperMARLConfig.from_yaml(tmp_path / "config.yaml")
    assert again.to_groups() == config.to_groups()
    assert again.to_yaml() == text
    assert set(config.to_groups()) == {"env", "env_config", "policies", *GROUPS}


CONFIGS = [p for p in sorted((ROOT / "tune_configs").glob("*.yaml")) if "\nsearch:" not in p.read_text()]


def test_a_sweep_is_not_trained():
    with pytest.raises(ConfigError, match="run it with `tune`"):
        HyperMARLConfig.from_yaml(ROOT / "tune_configs" / "games_quick.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path):
    config = HyperMARLConfig.from_yaml(path)
    config.validate()
    assert HyperMARLConfig.from_groups(config.to_groups()).to_groups() == config.to_groups()


def test_overrides_reach_every_group_and_leave_the_file_s_other_keys(tmp_path):
    overrides = ["training.lr=1e-3", "hypermarl.actor_hidden=[8, 8]", "env_config.n_agents=5", "run.seed=null",
                 "policies={team: '*'}", "env=games/synchronisation"]  # fmt: skip
    config = HyperMARLConfig.from_yaml(write_config(tmp_path), overrides)
    assert (config.lr, config.actor_hidden, config.seed) == (0.001, [8, 8], None)
    assert config.env_config == {"n_agents": 5, "horizon": 5}
    assert (config.env, config.policy_patterns) == ("games/synchronisation", {"team": "*"})
    assert (config.num_epochs, config.minibatch_size) == (2, 32)
    assert GAME["env_config"]["n_agents"] == 4  # the source is not written to


def test_scientific_notation_is_a_number(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "env: games/specialisation\ntraining: {lr: 1e-3, entropy_coeff: 5E-2}\nrun: {stop_env_steps: 8e6}\n"
    )
    config = HyperMARLConfig.from_yaml(path)
    assert (config.lr, config.entropy_coeff, config.stop_env_steps) == (0.001, 0.05, 8_000_000)
    assert isinstance(config.stop_env_steps, int)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("env: a\nenv: b\n", ["line 1", "env is given twice"]),
        ("env: a\ntraining:\n  lr: 1\n  gamma: 0.9\n  lr: 2\n", ["line 3", "lr is given twice"]),
        ("env: [a\n", ["line"]),
        ("env: a\n\tb: 1\n", ["line 2"]),
        ("just words", ["expected a mapping"]),
        ("", ["expected a mapping"]),
        ("env: !!python/object/apply:os.system ['true']\n", ["could not determine a constructor"]),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, text, words):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        HyperMARLConfig.from_yaml(path)
    assert all(word in str(caught.value) for word in [str(path), *words])
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        HyperMARLConfig.from_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        HyperMARLConfig.from_yaml(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file"):
        HyperMARLConfig.from_yaml(tmp_path / "binary")


# ------------------------------------------------------------------------------------------------- unknown and wrong


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.learning_rate=1", "unknown key 'training.learning_rate'"),
        ("training.minibatchsize=8", "did you mean 'training.minibatch_size'?"),
        ("hypermarl.embeding_dim=8", "did you mean 'hypermarl.embedding_dim'?"),
        ("trainig.lr=8", "did you mean 'training'?"),
        ("run.sed=8", "did you mean 'run.seed'?"),
        ("training.kl_coeff=0.1", "training.kl_coeff: HyperMARL does not honour this RLlib setting"),
        ("env_runners.batch_mode=complete_episodes", "env_runners.batch_mode: HyperMARL does not honour"),
        ("training=5", "training is 5: expected keys below it"),
        ("training.lr", "expected group.key=value"),
        ("=5", "expected group.key=value"),
        ("training.lr.x=5", "'lr' holds a value, not keys"),
        ("training.lr=[1", "is not valid YAML"),
        ("env=5", "env is 5: expected a name"),
        ("env_config=5", "env_config is 5"),
        ("policies=5", "policies is 5"),
        ("policies={team: [1]}", "policies is"),
    ],
)
def test_unknown_keys_and_broken_overrides_are_named(override, words):
    error = refused("training.lr=1e-3", override)
    assert words in error


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("training.num_epochs=many", "training.num_epochs is 'many'"),
        ("training.num_epochs=1.5", "training.num_epochs is 1.5"),
        ("training.minibatch_size=[3]", "training.minibatch_size is [3]"),
        ("training.gamma=high", "training.gamma is 'high'"),
        ("training.lr=fast", "training.lr is 'fast'"),
        ("hypermarl.sharing=some", "hypermarl.sharing is 'some'"),
        ("hypermarl.critic=mine", "hypermarl.critic is 'mine'"),
        ("hypermarl.actor_hidden=64", "hypermarl.actor_hidden is 64"),
        ("hypermarl.trainable=heads", "hypermarl.trainable is 'heads'"),
        ("hypermarl.frozen=agent_0", "hypermarl.frozen is 'agent_0'"),
        ("hypermarl.init_like=[agent_0]", "hypermarl.init_like is ['agent_0']"),
        ("hypermarl.init=random", "hypermarl.init is 'random'"),
        ("env_runners.rollout_fragment_length=long", "rollout_fragment_length"),
        ("run.seed=first", "run.seed is 'first'"),
        ("run.torch_threads=all", "run.torch_threads is 'all'"),
        ("run.device=warp", "run.device is 'warp'"),
        ("evaluation.evaluation_duration=auto", "evaluation.evaluation_duration is 'auto'"),
    ],
)
def test_wrong_types_are_named(override, key):
    assert key in refused(override)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.train_batch_size_per_learner=100", "training.train_batch_size_per_learner is 100"),
        ("training.minibatch_size=256", "minibatch_size"),
        ("training.minibatch_size=0", "training.minibatch_size is 0"),
        ("training.gamma=1.01", "training.gamma is 1.01"),
        ("training.lambda_=-0.1", "training.lambda_ is -0.1"),
        ("training.lr=0", "training.lr is 0"),
        ("training.lr=.nan", "training.lr is nan"),
        ("training.lr=[[5, 0.1], [10, 0.01]]", "training.lr is [[5"),
        ("training.lr=[[0, 0.1], [10, 0.0]]", "expected positive numbers, one or a schedule"),
        ("training.lr=[]", "training.lr is []"),
        ("training.entropy_coeff=[[0, 0.1], [10, 0.01], [10, 0.02]]", "training.entropy_coeff is [[0"),
        ("training.entropy_coeff=-0.1", "expected numbers of at least 0"),
        ("hypermarl.huber_delta=0", "hypermarl.huber_delta is 0"),
        ("hypermarl.early_stop_kl=-1", "hypermarl.early_stop_kl is -1"),
        ("hypermarl.sample_ahead=true", "only remote env runners can: set env_runners.num_env_runners"),
        ("run.max_failures=-1", "run.max_failures is -1"),
        ("training.clip_param=-0.2", "training.clip_param is -0.2"),
        ("training.grad_clip=0", "training.grad_clip is 0"),
        ("training.num_epochs=0", "training.num_epochs is 0"),
        ("env_runners.num_env_runners=-1", "num_env_runners"),
        ("env_runners.num_env_runners=2", "= 2 * 16 * 8;"),
        ("learners.num_learners=2", "num_envs_per_env_runner * rollout_fragment_length / num_learners"),
        ("env_runners.num_envs_per_env_runner=0", "`num_envs_per_env_runner` (0)"),
        ("learners.num_learners=-1", "learners.num_learners is -1"),
        ("hypermarl.actor_hidden=[16, 0]", "hypermarl.actor_hidden is [16, 0]"),
        ("hypermarl.embedding_dim=0", "hypermarl.embedding_dim is 0"),
        ("hypermarl.init_like={agent_1: agent_0}", "it names policies of init_from, which is not set"),
        ("hypermarl.hypernet_rank=0", "expected null or a positive number"),
        ("hypermarl={hypernet_reads_obs: true, memory: gru}", "gives every row weights of its own; leave out one"),
        (
            "hypermarl={hypernet_reads_obs: true, hypernet_rank: 2}",
            "hypermarl.hypernet_rank is 2: hypermarl.hypernet_reads_obs",
        ),
        ("hypermarl.init_heads=[actor]", "it names networks of init_from, which is not set"),
        (
            "hypermarl={init_from: runs/old, init_heads: []}",
            "hypermarl.init_heads is []: expected actor, critic or both",
        ),
        ("hypermarl={init_from: a, init_heads: [actor], trainable: contexts}", "would stay as it was drawn"),
        ("hypermarl.frozen=[agent_1, agent_1]", "a policy is named twice"),
        ("evaluation.evaluation_interval=0", "evaluation.evaluation_interval is 0"),
        ("evaluation.evaluation_duration=0", "evaluation.evaluation_duration is 0"),
        ("evaluation.evaluation_config={gamma: 0.5}", "only the key explore is supported"),
        ("run.torch_threads=0", "run.torch_threads is 0"),
        ("run.stop_env_steps=0", "run.stop_env_steps is 0"),
        ("run.checkpoint_seconds=-1", "run.checkpoint_seconds is -1"),
        ("run.milestone_env_steps=0", "run.milestone_env_steps is 0"),
        ("env=games/specialization", "did you mean 'games/specialisation'?"),
        ("env=nowhere", "unknown env 'nowhere'"),
        ("env=tests.nowhere:Env", "env 'tests.nowhere:Env' cannot be imported"),
    ],
)
def test_what_cannot_work_is_named(override, words):
    assert words in refused(override)


def test_combinations_that_cannot_work_are_named():
    schedule = "training.lr=[[0, 0.1], [10, 0.01]]"
    assert "training.lr has a schedule" in refused(schedule, "hypermarl.adaptive_lr_kl=0.01")
    for override in ("hypermarl.critic=central", "hypermarl.normalise_values=true", "hypermarl.critic_sharing=none"):
        assert f"{override.split('=')[0]} is" in refused("training.use_critic=false", override)
    shares = ("env_runners.num_envs_per_env_runner=15", "training.train_batch_size_per_learner=60")
    assert "15 envs cannot be shared out equally" in refused(*shares, "learners.num_learners=2")


def test_a_fluent_call_is_checked_as_a_yaml_file_is():
    with pytest.raises(ConfigError, match=r"hypermarl.embedding_dim is 'four'"):
        HyperMARLConfig().hypermarl(embedding_dim="four")
    with pytest.raises(ConfigError, match=r"training.num_epochs is 1.5"):
        fluent().training(num_epochs=1.5).validate()
    with pytest.raises(ConfigError, match=r"training.gamma is 'high'"):
        fluent().training(gamma="high").validate()
    with pytest.raises(ConfigError, match="unknown config key 'sharin': did you mean 'sharing'"):
        config = fluent()
        config.sharin = "none"
        config.validate()
    fluent().validate()


def test_a_missing_cuda_device_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "run.device is 'cuda', but torch sees no CUDA device here" in refused("run.device=cuda")


def test_an_env_class_is_written_as_module_and_name():
    config = fluent().environment(NaNEnv, env_config={})
    assert config.to_groups()["env"] == "tests.faulty_envs:NaNEnv"
    again = HyperMARLConfig.from_groups(config.to_groups())
    again.validate()
    assert again.env == "tests.faulty_envs:NaNEnv"


# ------------------------------------------------------------------------------------------------ what RLlib would do


def different(value):
    """Another value of about the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return 7 if math.isinf(value) else value + 7
    if isinstance(value, enum.Enum):
        return "something else"
    return {dict: {"x": 1}, list: ["x"], str: "something else"}.get(type(value), object)


@pytest.mark.parametrize("key", sorted(set(vars(PPOConfig())) - HONOURED - _INTERNAL))
def test_an_rllib_setting_that_is_not_honoured_is_refused(key):
    config = fluent()
    vars(config)[key] = different(vars(config)[key])
    with pytest.raises(ConfigError) as caught:
        config.validate()
    assert key.strip("_") in str(caught.value)


def test_the_internal_list_holds_nothing_that_changes_training():
    """Keys that a config may hold without being told; each with the reason."""
    reasons = {
        "algo_class": "the class itself",
        "_is_frozen": "RLlib's bookkeeping",
        "in_evaluation": "RLlib's bookkeeping",
        "simple_optimizer": "set by RLlib's validation",
        "_train_batch_size_per_learner": "training.train_batch_size_per_learner",
        "seed": "run.seed",
        "env": "top level",
        "env_config": "top level",
        "evaluation_config": "honoured, and emptied on RLlib's copy for evaluation",
        "policies": "checked: must be ours",
        "policy_mapping_fn": "checked: must be ours",
        "env_runner_cls": "checked: must be ours",
        "callbacks_class": "checked method by method",
        "log_level": "logging",
        "log_sys_usage": "logging",
        **{f"callbacks_{name}": "called by the Algorithm" for name in _HONOURED_CALLBACKS},
    }
    assert _INTERNAL & set(vars(PPOConfig())) == set(reasons)


def test_rllib_s_policies_and_other_classes_are_refused():
    for policies in ({"a", "b"}, {"a": None}, ["a"]):
        with pytest.raises(ConfigError, match="policies"):
            fluent().multi_agent(policies=policies).validate()
    with pytest.raises(ConfigError, match="map agents with patterns"):
        fluent().multi_agent(policy_mapping_fn=lambda agent, *_, **__: agent).validate()
    with pytest.raises(ConfigError, match="policies_to_train"):
        fluent().multi_agent(policies_to_train=["agent_0"]).validate()
    with pytest.raises(ConfigError, match="env_runner_cls"):
        fluent().env_runners(env_runner_cls=RLlibCallback).validate()
    with pytest.raises(ConfigError, match="learner_class"):
        fluent().learners(learner_class=RLlibCallback).validate()


def test_connector_hooks_are_refused():
    hooks = {
        "env_runners": {
            "env_to_module_connector": lambda *a, **k: None,
            "module_to_env_connector": lambda *a, **k: None,
        },
        "training": {"learner_connector": lambda *a, **k: None},
    }
    for group, keys in hooks.items():
        for key, hook in keys.items():
            with pytest.raises(ConfigError, match=key):
                getattr(fluent(), group)(**{key: hook}).validate()


class EpisodeCallback(RLlibCallback):
    def on_episode_end(self, **kwargs):
        pass


class ResultCallback(RLlibCallback):
    def on_train_result(self, **kwargs):
        pass


def test_callbacks_that_would_never_be_called_are_refused():
    with pytest.raises(ConfigError, match=r"EpisodeCallback.on_episode_end would never be called"):
        fluent().callbacks(EpisodeCallback).validate()
    with pytest.raises(ConfigError, match="on_episode_end"):
        fluent().callbacks([ResultCallback, EpisodeCallback]).validate()
    with pytest.raises(ConfigError, match="callbacks_on_episode_step"):
        fluent().callbacks(on_episode_step=lambda **k: None).validate()
    fluent().callbacks(ResultCallback).validate()
    fluent().callbacks(on_train_result=lambda **k: None).validate()


def test_the_path_type_does_not_matter(tmp_path):
    path = write_config(tmp_path)
    assert HyperMARLConfig.from_yaml(str(path)).to_groups() == HyperMARLConfig.from_yaml(Path(path)).to_groups()
