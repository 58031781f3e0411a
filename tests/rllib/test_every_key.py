"""Every key that a config accepts does something: it changes a run, or the test named here shows what it does."""

import re

from rllib_hypermarl.rllib.grammar import GROUPS, TOP_LEVEL
from tests.helpers import ROOT

# Steps that leave the clip ranges and the norm of 0.5, an embedding each, episodes that end within a rollout.
BASE = ("training.lr=0.02", "training.num_epochs=3", "env_config.horizon=3")
BOX = (
    "env=vmas/dispersion", "env_config={n_agents: 2, n_food: 2, max_steps: 6, continuous_actions: true}",
)  # fmt: skip
BATCH = "training.train_batch_size_per_learner=64"

# What a key is set to, with what it needs beside it; compared with a run without it (but with what it needs).
CHANGES = {
    "hypermarl.sharing": ["none"],
    "hypermarl.critic_sharing": ["none"],
    "hypermarl.critic": ["central"],
    "hypermarl.context": ["one_hot"],
    "hypermarl.embedding_dim": [2],
    "hypermarl.hypernet_hidden": ["[4]"],
    "hypermarl.hypernet_shared_trunk": ["true"],
    "hypermarl.hypernet_rank": [2],
    "hypermarl.hypernet_reads_obs": ["true"],
    "hypermarl.actor_hidden": ["[4]"],
    "hypermarl.critic_hidden": ["[4]"],
    "hypermarl.activation": ["tanh"],
    "hypermarl.init": ["paper"],
    "hypermarl.clip_value_loss": ["0.001"],
    "hypermarl.standardise_advantages": ["false"],
    "hypermarl.log_std": ["per_policy", *BOX],
    "hypermarl.action_bound": ["tanh", *BOX],
    "hypermarl.optim": ["sgd"],
    "hypermarl.huber_delta": [0.01],
    "hypermarl.normalise_obs": ["true"],
    "hypermarl.normalise_values": ["true"],
    "hypermarl.adaptive_lr_kl": [1e-6],
    "hypermarl.early_stop_kl": [1e-9],
    "hypermarl.trainable": ["contexts"],
    "hypermarl.frozen": ["[agent_0]"],
    "hypermarl.groups": ['{first: agent_0, rest: "*"}'],
    "hypermarl.memory": ["gru"],
    "hypermarl.memory_size": [4, "hypermarl.memory=gru"],
    "hypermarl.memory_encoder_hidden": ["[4]", "hypermarl.memory=gru"],
    "hypermarl.memory_encoder_sharing": ["hyper_mlp", "hypermarl.memory=gru"],
    "hypermarl.sequence_length": [2, "hypermarl.memory=gru"],
    "training.lr": [0.001],
    "training.gamma": [0.5],
    "training.lambda_": [0.1],
    "training.use_critic": ["false"],
    "training.clip_param": [0.01],
    "training.vf_loss_coeff": [2.0],
    "training.entropy_coeff": [0.5],
    "training.grad_clip": ["1e-5", "hypermarl.optim=sgd"],
    "training.num_epochs": [1],
    "training.minibatch_size": [64],
    "training.train_batch_size_per_learner": [64, "env_runners.rollout_fragment_length=auto"],
    "training.shuffle_batch_per_epoch": ["false"],
    "env_runners.num_envs_per_env_runner": [8, "env_runners.rollout_fragment_length=auto"],
    "env_runners.rollout_fragment_length": ["auto", "training.train_batch_size_per_learner=128"],
    "run.seed": [1],
    "env": ["games/synchronisation"],
    "env_config": ["{n_agents: 4, horizon: 2}"],
    "policies": ["{team: '*'}"],
}
# Keys that do not change what is learnt, or not by themselves -> a test that fails without them.
ELSEWHERE = {
    "hypermarl.init_from": "test_a_run_starts_with_another_run_s_networks_for_more_agents_and_for_fewer",
    "hypermarl.init_like": "test_copies_of_what_two_have_learned_solve_the_game_of_four_at_once",
    "hypermarl.init_heads": "test_a_central_critic_is_left_behind_where_the_config_says_so",
    "hypermarl.sample_ahead": "test_sampling_ahead_is_one_update_behind_and_repeats_with_its_seed",
    "env_runners.num_env_runners": "test_two_runs_of_one_seed_with_two_remote_runners_are_one",
    "env_runners.sample_timeout_s": "test_a_runner_that_hangs_is_left_out_and_what_it_sends_later_is_dropped",
    "env_runners.num_cpus_per_env_runner": "test_a_build_that_needs_more_than_the_cluster_has_says_so_at_once",
    "env_runners.num_gpus_per_env_runner": "test_a_build_that_needs_more_than_the_cluster_has_says_so_at_once",
    "env_runners.custom_resources_per_env_runner": "test_actors_take_the_resources_that_their_keys_name",
    "learners.num_learners": "test_learners_are_bit_equal_from_the_start_and_over_twenty_updates",
    "learners.num_cpus_per_learner": "test_actors_take_the_resources_that_their_keys_name",
    "learners.num_gpus_per_learner": "test_actors_follow_rllib_s_gpu_keys",
    "learners.custom_resources_per_learner": "test_actors_take_the_resources_that_their_keys_name",
    "fault_tolerance.restart_failed_env_runners": "test_without_restarts_a_dead_runner_ends_the_run_with_the_reason",
    "fault_tolerance.max_num_env_runner_restarts": "test_rllib_reads_what_we_hand_on_of_fault_tolerance",
    "fault_tolerance.env_runner_health_probe_timeout_s": "test_rllib_reads_what_we_hand_on_of_fault_tolerance",
    "fault_tolerance.env_runner_restore_timeout_s": "test_rllib_reads_what_we_hand_on_of_fault_tolerance",
    "evaluation.evaluation_interval": "test_evaluation_comes_at_its_interval_with_its_episodes",
    "evaluation.evaluation_duration": "test_evaluation_comes_at_its_interval_with_its_episodes",
    "evaluation.evaluation_config": "test_evaluation_is_greedy_unless_told_otherwise",
    "reporting.metrics_num_episodes_for_smoothing": "test_returns_are_of_the_last_episodes_as_many_as_asked_for",
    "reporting.min_time_s_per_iteration": "test_reporting_s_minimum_makes_an_iteration_of_several_rollouts",
    "reporting.min_train_timesteps_per_iteration": "test_reporting_s_minimum_makes_an_iteration_of_several_rollouts",
    "reporting.min_sample_timesteps_per_iteration": "test_reporting_s_minimum_makes_an_iteration_of_several_rollouts",
    "resources.num_cpus_for_main_process": "test_a_trial_asks_for_what_the_resource_keys_say",
    "resources.custom_resources_for_main_process": "test_a_trial_asks_for_what_the_resource_keys_say",
    "resources.placement_strategy": "test_a_trial_asks_for_what_the_resource_keys_say",
    "run.stop_env_steps": "test_a_run_of_a_game_that_stopped_half_way_is_one_that_did_not",
    "run.checkpoint_seconds": "test_a_kill_loses_at_most_the_checkpoint_interval",
    "run.milestone_env_steps": "test_checkpoints_at_milestones_stay",
    "run.metrics_interval": "test_networks_are_measured_at_the_interval_and_nothing_else_changes",
    "run.max_failures": "test_a_run_that_loses_a_learner_goes_on_from_its_last_checkpoint",
    "run.device": "test_a_missing_cuda_device_is_named",
    "run.torch_threads": "test_threads_are_those_that_the_key_names",
}


def test_the_lists_hold_every_key():
    keys = {f"{group}.{key}" for group, keys in GROUPS.items() for key in keys} | set(TOP_LEVEL)
    assert set(CHANGES) | set(ELSEWHERE) == keys
    assert not set(CHANGES) & set(ELSEWHERE)


def test_the_tests_named_here_exist():
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^def (test_\w+)", text, flags=re.MULTILINE))
    assert set(ELSEWHERE.values()) <= defined, set(ELSEWHERE.values()) - defined
