"""Batched envs behind RLlib's own APIs: the same trajectories, and stock PPO trains on them."""

from collections import Counter
from typing import ClassVar

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from rllib_hypermarl.envs.pettingzoo_copies import episode_seed

from rllib_hypermarl import env as envs
from rllib_hypermarl import stock_module_spec
from rllib_hypermarl.errors import EnvError
from rllib_hypermarl.rllib.multi_agent_env import BatchedMultiAgentEnv, BatchedVectorEnv, BatchedVectorEnvRunner
from tests import zoo
from tests.mortal_env import MortalEnv

GAME = {"env": "games/specialisation", "n_agents": 3, "horizon": 4}
# Food this large is often eaten before time is up, and not in all envs at once: ends of both kinds, staggered.
VMAS = {"env": "vmas/dispersion", "n_agents": 4, "n_food": 2, "food_radius": 0.6, "max_steps": 12,
        "continuous_actions": False}  # fmt: skip
CONTINUOUS = VMAS | {"continuous_actions": True}
STEPS = 40


def trajectory(config, num_envs, seed=3):
    """Actions and what the batched env itself answers to them: `(actions, first obs, steps)`."""
    if config["env"].startswith("vmas"):
        pytest.importorskip("vmas")
    env = envs.make(num_envs=num_envs, name=config["env"], **{k: v for k, v in config.items() if k != "env"})
    first, generator = env.reset(seed), torch.Generator().manual_seed(0)
    space, shape = env.action_spaces[env.agents[0]], (STEPS, num_envs, len(env.agents))
    if space.shape:
        actions = torch.rand(*shape, *space.shape, generator=generator) * 2 - 1
    else:
        actions = torch.randint(int(space.n), shape, generator=generator)
    return env, actions, first, [env.step(a) for a in actions]


def rows(values, agents):
    """`[N, ...]` as RLlib has it."""
    return dict(zip(agents, values.numpy(), strict=True))


def assert_equal(got, expected):
    assert list(got) == list(expected)
    for agent, value in expected.items():
        np.testing.assert_array_equal(got[agent], value)


def assert_same_transition(got, step, e, agents):
    observation, reward, terminated, truncated, infos = got
    assert_equal(observation, rows(step.final_obs[e], agents))
    assert_equal(reward, rows(step.reward[e], agents))
    assert (terminated, truncated) == ({"__all__": bool(step.terminated[e])}, {"__all__": bool(step.truncated[e])})
    assert infos == {agent: {} for agent in agents}


@pytest.mark.parametrize("config", [GAME, VMAS, CONTINUOUS], ids=["game", "vmas", "continuous"])
def test_one_copy_is_the_batched_env_step_by_step(config):
    env, actions, first, steps = trajectory(config, 1)
    single = BatchedMultiAgentEnv(config)
    assert single.possible_agents == list(env.agents)
    assert [single.get_observation_space(a) for a in env.agents] == list(env.observation_spaces.values())
    assert [single.get_action_space(a) for a in env.agents] == list(env.action_spaces.values())
    observation, _ = single.reset(seed=3)
    assert_equal(observation, rows(first.obs[0], env.agents))
    ended = 0
    for action, step in zip(actions, steps, strict=True):
        assert_same_transition(single.step(rows(action[0], env.agents)), step, 0, env.agents)
        if step.terminated[0] or step.truncated[0]:
            assert_equal(single.reset()[0], rows(step.obs[0], env.agents))
            ended += 1
    assert ended >= 3
    assert all(
        single.observation_spaces[a].contains(x.astype(np.float32)) and x.dtype == np.float32
        for a, x in single.reset()[0].items()
    )
    single.close()


@pytest.mark.parametrize("name", ["diff_drive", "simple_tag"])
def test_agents_with_unlike_spaces_see_and_send_their_own_parts(name):
    config = {"env": f"vmas/{name}", "max_steps": 5}
    single, batched = BatchedMultiAgentEnv(config), envs.make(f"vmas/{name}", num_envs=1, max_steps=5)
    observation, _ = single.reset(seed=3)
    step = batched.reset(3)
    width = max(space.shape[0] for space in batched.action_spaces.values())
    for seed in range(4):
        for n, agent in enumerate(batched.agents):
            space = single.get_observation_space(agent)
            assert observation[agent].shape == space.shape
            np.testing.assert_array_equal(observation[agent], step.obs[0, n, : space.shape[0]].numpy())
        actions, padded = {}, torch.zeros(1, len(batched.agents), width)
        for n, agent in enumerate(batched.agents):
            single.get_action_space(agent).seed(seed + n)
            actions[agent] = single.get_action_space(agent).sample()
            padded[0, n, : len(actions[agent])] = torch.from_numpy(actions[agent])
        observation, *_ = single.step(actions)
        step = batched.step(padded)
    single.close()


@pytest.mark.parametrize("config", [GAME, VMAS, CONTINUOUS], ids=["game", "vmas", "continuous"])
def test_a_vector_env_is_the_batched_env_step_by_step(config):
    env, actions, first, steps = trajectory(config, 5)
    vector = BatchedVectorEnv(config, 5)
    assert [list(e.unwrapped.possible_agents) for e in vector.envs] == [list(env.agents)] * 5
    observations, _ = vector.reset(seed=3)
    for e in range(5):
        assert_equal(observations[e], rows(first.obs[e], env.agents))
    for action, step in zip(actions, steps, strict=True):
        results = vector.step([rows(a, env.agents) for a in action])
        for e in range(5):
            assert_same_transition([column[e] for column in results], step, e, env.agents)
        ended = (step.terminated | step.truncated).nonzero().squeeze(1).tolist()
        assert sorted(vector.first_observations) == ended
        for e in ended:
            assert_equal(vector.first_observations[e], rows(step.obs[e], env.agents))
    vector.close()


def test_the_game_of_staggered_ends_has_them():
    _, _, _, steps = trajectory(VMAS, 5)
    ends = torch.stack([s.terminated | s.truncated for s in steps])
    assert (ends.any(1) & ~ends.all(1)).any()
    assert any(s.terminated.any() for s in steps)
    assert any((s.truncated & ~s.terminated).any() for s in steps)


def test_a_new_episode_does_not_rewrite_the_observations_of_the_last_one():
    vector = BatchedVectorEnv(GAME, 2)
    observations, _ = vector.reset(seed=0)
    kept = [{agent: x.copy() for agent, x in row.items()} for row in observations]
    for _ in range(6):
        vector.step([dict.fromkeys(vector.envs[0].possible_agents, 1)] * 2)
    for row, copy in zip(observations, kept, strict=True):
        assert_equal(row, copy)


TRAVELLERS = {"env": "pettingzoo/tests.zoo:Travellers", "returns": False}


class Plain:
    """One copy of `Travellers`, as RLlib should see it, made of what PettingZoo itself says."""

    def __init__(self, masks, copy, seed):
        self.env, self.masks, self.copy, self.seed, self.episode = (
            zoo.Travellers(masks, returns=False),
            masks,
            copy,
            seed,
            0,
        )
        self.rng, self.counts = np.random.default_rng(copy), Counter()

    def reset(self):
        obs, _ = self.env.reset(seed=episode_seed(self.seed, self.copy, self.episode))
        self.episode += 1
        return self.told(obs, self.env.agents)

    def told(self, obs, agents):
        """With their masks those that go on; the others may do anything, as they will do nothing."""
        self.seen = self._told(obs, agents)
        return dict(self.seen)

    def _told(self, obs, agents):
        if self.masks is None:
            return {agent: np.float32(obs[agent]) for agent in agents}
        vectors = {a: np.float32(obs[a]["observation"] if self.masks == "observation" else obs[a]) for a in agents}
        masks = {a: self.env.allowed[a] if a in self.env.agents else np.ones_like(self.env.allowed[a]) for a in agents}
        return {a: {"observations": vectors[a], "action_mask": np.float32(masks[a])} for a in agents}

    def act(self):
        """An action that is allowed, for everybody that is there."""
        actions = {}
        for agent in self.env.agents:
            mask = self.env.allowed[agent] if self.masks else np.ones(sum(self.env.choices[agent]))
            parts = np.split(mask, np.cumsum(self.env.choices[agent])[:-1])
            chosen = [self.rng.choice(np.flatnonzero(part)) for part in parts]
            actions[agent] = np.array(chosen) if len(chosen) > 1 else chosen[0]
        return actions

    def step(self, actions):
        """What RLlib is told, and the first observations of the next episode, if this was the last step of one."""
        acted = self.env.agents
        seen, (obs, rewards, died, cut, _) = self.seen, self.env.step(actions)
        dead = [agent for agent in acted if died[agent]]
        over, all_dead = not self.env.agents, len(dead) == len(acted)
        terminated = {"__all__": over and all_dead} | dict.fromkeys([] if over and all_dead else dead, True)
        alone = [agent for agent in acted if cut[agent] and not died[agent] and not over]
        truncated = {"__all__": over and not all_dead} | dict.fromkeys(alone, True)
        present = {*acted, *self.env.agents} - set([] if over and all_dead else dead)
        result = self.told(obs, present), rewards, terminated, truncated
        if over and not all_dead:  # RLlib wants some last observation of all
            for agent in dead:
                result[0][agent] = seen[agent]
                if self.masks:
                    result[0][agent] = seen[agent] | {"action_mask": np.ones_like(seen[agent]["action_mask"])}
        self.counts.update(died=len(dead), cut=len(alone), over=over, came=len(set(self.env.agents) - set(acted)))
        return result, self.reset() if over else None


def assert_told(found, expected):
    assert set(found) == set(expected)
    for agent, value in expected.items():
        for x, y in zip(*(v.values() if isinstance(v, dict) else [v] for v in (found[agent], value)), strict=True):
            np.testing.assert_array_equal(x, y)


def assert_same_step(found, expected):
    assert_told(found[0], expected[0])
    assert found[1] == pytest.approx(expected[1])
    assert tuple(found[2:4]) == expected[2:]
    assert found[4] == {agent: {} for agent in expected[0]}


@pytest.mark.parametrize("masks", ["observation", "info", None])
def test_one_copy_s_agents_come_and_go_as_pettingzoo_s(masks):
    single, plain = BatchedMultiAgentEnv(TRAVELLERS | {"masks": masks}), Plain(masks, 0, 5)
    assert_told(single.reset(seed=5)[0], plain.reset())
    for _ in range(80):
        actions = plain.act()
        found, (expected, first) = single.step(actions), plain.step(actions)
        assert_same_step(found, expected)
        for agent, observation in found[0].items():
            assert single.get_observation_space(agent).contains(observation)
        if first is not None:
            assert_told(single.reset()[0], first)
    assert min(plain.counts.values()) > 2
    single.close()


@pytest.mark.parametrize("masks", ["observation", None])
def test_a_vector_env_s_agents_come_and_go_as_pettingzoo_s(masks):
    vector, plain = BatchedVectorEnv(TRAVELLERS | {"masks": masks}, 3), [Plain(masks, e, 5) for e in range(3)]
    for found, env in zip(vector.reset(seed=5)[0], plain, strict=True):
        assert_told(found, env.reset())
    for _ in range(60):
        actions = [env.act() for env in plain]
        found = vector.step(actions)
        for e, env in enumerate(plain):
            expected, first = env.step(actions[e])
            assert_same_step([column[e] for column in found], expected)
            assert (e in vector.first_observations) == (first is not None)
            if first is not None:
                assert_told(vector.first_observations[e], first)
    assert min(sum((env.counts for env in plain), Counter()).values()) > 2
    vector.close()


def test_an_episode_that_nobody_is_left_in_is_refused():
    env = BatchedMultiAgentEnv({"env": MortalEnv, "deaths": 1.0})
    observation, _ = env.reset(seed=0)
    with pytest.raises(EnvError, match="MortalEnv: all agents of copy 0 are gone, and its episode goes on"):
        env.step(dict.fromkeys(observation, 0))


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("runner", [None, BatchedVectorEnvRunner], ids=["one_env_each", "vector"])
@pytest.mark.parametrize("masks", ["info", None])
def test_our_networks_train_in_stock_rllib_on_agents_that_come_and_go(runner, masks):
    """The env refuses what is not allowed, and actions of those that are not there."""
    config = stock(TRAVELLERS | {"masks": masks}, runner)
    env = BatchedMultiAgentEnv(config.env_config)
    networks = {"actor_hidden": [8], "critic_hidden": [8], "hypernet_hidden": [8], "seed": 0}
    spec = stock_module_spec(env.possible_agents, env.observation_spaces, env.action_spaces, **networks)
    config.environment(disable_env_checking=True)  # the check ignores masks
    algo = config.rl_module(rl_module_spec=spec).build_algo()
    for _ in range(2):
        result = algo.train()
    assert set(result["env_runners"]["agent_episode_returns_mean"]) == {"late", "early", "always"}
    assert np.isfinite(result["learners"]["early"]["total_loss"])
    algo.stop()
    ends = [single for chain in Recorder.episodes.values() for episode in chain
            for single in episode.agent_episodes.values()]  # fmt: skip
    assert all(single.is_terminated or single.is_truncated for single in ends)
    assert any(single.is_terminated for single in ends) and any(single.is_truncated for single in ends)


# ------------------------------------------------------------------------------------------------------ stock training


class Recorder(RLlibCallback):
    """Keeps finished episodes by sub-env, and counts the callbacks."""

    episodes: ClassVar[dict] = {}
    counts: ClassVar[Counter] = Counter()

    def on_environment_created(self, **kwargs):
        self.counts["environment_created"] += 1

    def on_episode_start(self, *, episode, **kwargs):
        assert episode.is_reset
        self.counts["start"] += 1

    def on_episode_end(self, *, episode, env_index, **kwargs):
        self.counts["end"] += 1
        self.episodes.setdefault(env_index, []).append(episode)


def stock(config, runner, num_envs=4, length=32):
    agents = BatchedMultiAgentEnv(config).possible_agents
    config = (
        PPOConfig()
        .environment(BatchedMultiAgentEnv, env_config=config)
        .env_runners(
            env_runner_cls=runner, num_env_runners=0, num_envs_per_env_runner=num_envs, rollout_fragment_length=length
        )
        .multi_agent(policies=set(agents), policy_mapping_fn=lambda agent, *args, **kwargs: agent)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[16]))
        .training(train_batch_size_per_learner=num_envs * length, minibatch_size=64, num_epochs=2)
        .callbacks(Recorder)
        .debugging(seed=0, log_level="ERROR")
    )
    Recorder.episodes.clear()
    Recorder.counts.clear()
    return config


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("runner", [None, BatchedVectorEnvRunner], ids=["one_env_each", "vector"])
@pytest.mark.parametrize("config", [GAME | {"n_agents": 4}, VMAS], ids=["game", "vmas"])
def test_stock_ppo_trains(config, runner):
    algo = stock(config, runner).build_algo()
    before = algo.get_weights()
    for iteration in (1, 2):
        result = algo.train()
        assert iteration * 128 <= result["env_runners"]["num_env_steps_sampled_lifetime"] < iteration * (128 + 4)
    assert result["env_runners"]["episode_return_mean"] == pytest.approx(
        sum(result["env_runners"]["agent_episode_returns_mean"].values())
    )
    after = algo.get_weights()
    assert len(after) == 4
    assert all(any((after[p][key] != before[p][key]).any() for key in after[p]) for p in after)
    algo.stop()


@pytest.mark.usefixtures("ray_session")
def test_rllib_s_episodes_are_the_batched_env_s():
    """What the runner recorded, played again on the batched env: every observation, reward and end is the same."""
    config = stock(VMAS, BatchedVectorEnvRunner)
    runner = BatchedVectorEnvRunner(config=config, worker_index=0)
    ongoing = [e for e in runner.sample(num_timesteps=4 * STEPS) if not e.is_done]
    episodes = [Recorder.episodes[e] for e in range(4)]
    assert Recorder.counts["end"] == sum(map(len, episodes)) >= 12
    assert Recorder.counts["start"] == Recorder.counts["end"] + 4
    assert Recorder.counts["environment_created"] == 1
    env = runner.env.env
    unfinished = [chain for chain in episodes if sum(map(len, chain)) < STEPS]
    for chain, rest in zip(unfinished, ongoing, strict=True):
        chain.append(rest)
    played = [joint(chain, "get_actions", env.agents) for chain in episodes]
    assert {len(p) for p in played} == {STEPS}

    again = envs.make(num_envs=4, name=VMAS["env"], **{k: v for k, v in VMAS.items() if k != "env"})
    obs = again.reset(config.seed).obs
    position = [(0, 0)] * 4  # episode and step in it, by sub-env
    for t in range(STEPS):
        step = again.step(torch.tensor(np.stack([p[t] for p in played])))
        for e in range(4):
            k, i = position[e]
            episode = episodes[e][k]
            np.testing.assert_array_equal(one(episode, "get_observations", i, env.agents), obs[e])
            np.testing.assert_array_equal(one(episode, "get_observations", i + 1, env.agents), step.final_obs[e])
            np.testing.assert_array_equal(one(episode, "get_rewards", i, env.agents), step.reward[e])
            last = i + 1 == len(episode)
            ends = [episode, *episode.agent_episodes.values()]
            assert [last and x.is_terminated for x in ends] == [step.terminated[e]] * 5
            assert [last and x.is_truncated for x in ends] == [step.truncated[e]] * 5
            position[e] = (k + 1, 0) if last and episode.is_done else (k, i + 1)
        obs = step.obs
    runner.stop()


def joint(chain, method, agents):
    return [one(episode, method, i, agents) for episode in chain for i in range(len(episode))]


def one(episode, method, index, agents):
    """`[N, ...]` of one step of an episode."""
    return np.stack([getattr(episode.agent_episodes[agent], method)(index) for agent in agents])


@pytest.mark.usefixtures("ray_session")
def test_whole_episodes_can_be_sampled_again_and_again():
    runner = BatchedVectorEnvRunner(config=stock(GAME, BatchedVectorEnvRunner), worker_index=0)
    for count in (2, 1, 4, 3):
        episodes = runner.sample(num_episodes=count)
        assert len(episodes) == count
        assert all(e.is_terminated and len(e) == 4 for e in episodes)
    assert sum(e.env_steps() for e in runner.sample(num_timesteps=32)) == 32
    runner.stop()
