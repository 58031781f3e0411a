"""Stock RLlib trains teams with memory: its env runners, connectors, PPO learner and checkpoints carry the states."""

import pytest
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns

from rllib_hypermarl import ViewLearner, stock_module_spec
from rllib_hypermarl.rllib.multi_agent_env import BatchedMultiAgentEnv
from tests.helpers import assert_equal

pytestmark = [pytest.mark.system, pytest.mark.timeout(600), pytest.mark.usefixtures("ray_session")]
ENV = {"env": "games/recall", "n_agents": 2, "n_cues": 2, "delay": 3}
EPISODE, SMALL = 5, {"actor_hidden": [16], "critic_hidden": [16], "hypernet_hidden": [16], "seed": 0}


class Canary(ViewLearner):
    """Compares the first log-probabilities of every iteration with those of sampling: RLlib's connectors must have
    given sequences that begin in mid-episode the states that their agents had there."""

    def before_gradient_based_update(self, **kwargs):
        super().before_gradient_based_update(**kwargs)
        self.is_first = True

    def compute_losses(self, *, fwd_out, batch):
        for key in self._views() if self.is_first and Columns.STATE_IN in batch["agent_0"] else ():
            dist = self.module[key].get_train_action_dist_cls().from_logits(fwd_out[key][Columns.ACTION_DIST_INPUTS])
            found, given = dist.logp(batch[key][Columns.ACTIONS]), batch[key][Columns.ACTION_LOGP]
            assert ((found - given).abs() * batch[key][Columns.LOSS_MASK]).max() < 1e-5
            assert all(state.any() for state in batch[key][Columns.STATE_IN].values())
        self.is_first = False
        return super().compute_losses(fwd_out=fwd_out, batch=batch)


def build(memory):
    env = BatchedMultiAgentEnv(ENV)
    agents = env.possible_agents
    spec = stock_module_spec(
        agents, env.observation_spaces[agents[0]], env.action_spaces[agents[0]], memory=memory, memory_size=16,
        memory_encoder_hidden=[16], sequence_length=3, **SMALL,
    )  # fmt: skip
    return (
        PPOConfig()
        .environment(BatchedMultiAgentEnv, env_config=ENV)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=16, rollout_fragment_length=32)
        .multi_agent(policies=agents, policy_mapping_fn=lambda agent, *_, **__: agent)
        .rl_module(rl_module_spec=spec)
        .learners(learner_class=Canary)
        .training(train_batch_size_per_learner=512, minibatch_size=64, num_epochs=4, lr=1e-3, gamma=0.99)
        .training(use_kl_loss=False, entropy_coeff=0.01, grad_clip=0.5)
        .debugging(seed=0)
    ).build_algo()


@pytest.mark.parametrize("memory", ["lstm", None])
def test_a_game_that_takes_memory_is_learnt_with_it_alone(memory, tmp_path):
    assert 512 % EPISODE and EPISODE % 3  # episodes go on in the next rollout, and in several sequences
    algo, returns = build(memory), []
    while len(returns) < (60 if memory else 20) and max(returns, default=0) < 1.9:  # of 2 at best; chance is 1
        returns.append(algo.train()["env_runners"]["episode_return_mean"])
    # 7 or 17 iterations, by PYTHONHASHSEED: RLlib walks over sets of names. At a rate of 3e-3 one of the two never did.
    assert returns[-1] >= 1.9 if memory else max(returns[-5:]) < 1.3, returns
    algo.save_to_path(tmp_path / "algo")
    restored = Algorithm.from_checkpoint(str(tmp_path / "algo"))
    states = [one.learner_group._learner.module["hyper"].get_state() for one in (algo, restored)]
    assert_equal(*states)
    restored.train()
    for one in (algo, restored):
        one.stop()
