"""PettingZoo envs stepped one by one through PettingZoo's own interface, an env made anew for every episode."""

import gymnasium as gym
import numpy as np
from rllib_hypermarl.envs.pettingzoo_copies import episode_seed

FIELDS = ("obs", "reward", "terminated", "truncated", "final_obs", "state", "final_state")


def random_actions(env, steps, seed):
    """`[T, E, N, ...]`, drawn from the batched env's own spaces."""
    space = env.action_spaces[env.agents[0]]
    space.seed(seed)
    drawn = [space.sample() for _ in range(steps * env.num_envs * len(env.agents))]
    return np.array(drawn).reshape(steps, env.num_envs, len(env.agents), *space.shape)


def reference(make, seed, actions, with_state):
    """What a `Step` should hold after the reset and after each of the actions `[T, E, N, ...]`.

    Args:
        make: returns one parallel env.
    """
    steps = [dict.fromkeys(FIELDS) for _ in range(len(actions) + 1)]
    for step in steps:
        step.update({field: [] for field in FIELDS})
    for copy in range(actions.shape[1]):
        episode = 0
        env, obs = start(make, seed, copy, episode)
        agents = list(env.possible_agents)
        state = env.state().astype(np.float32) if with_state else None
        record(steps[0], obs, [0.0] * len(agents), False, False, obs, state, state)
        for t, action in enumerate(actions[:, copy]):
            raw, reward, terminated, truncated, _ = env.step(dict(zip(agents, action, strict=True)))
            final_obs = obs = flat(env, agents, raw)
            final_state = state = env.state().astype(np.float32) if with_state else None
            terminated, truncated = all(terminated.values()), all(truncated.values())
            if terminated or truncated:
                env.close()
                episode += 1
                env, obs = start(make, seed, copy, episode)
                state = env.state().astype(np.float32) if with_state else None
            rewards = [reward[agent] for agent in agents]
            record(steps[t + 1], obs, rewards, terminated, truncated, final_obs, state, final_state)
    return steps


def start(make, seed, copy, episode):
    env = make()
    obs, _ = env.reset(seed=episode_seed(seed, copy, episode))
    return env, flat(env, list(env.possible_agents), obs)


def flat(env, agents, obs):
    return [gym.spaces.flatten(env.observation_space(agent), obs[agent]) for agent in agents]


def record(step, *values):
    for field, value in zip(FIELDS, values, strict=True):
        step[field].append(value)


def compare(batched, seed, actions, expected):
    """Steps the batched env and compares all of it, bit for bit. Returns the number of ends of either kind."""
    import torch

    ends = [0, 0]
    step = batched.reset(seed)
    for t, values in enumerate(expected):
        if t:
            step = batched.step(torch.from_numpy(actions[t - 1]))
        for field, value in values.items():
            found = getattr(step, field)
            if found is None:
                assert field in ("state", "final_state") and value[0] is None
                continue
            wanted = np.array(value).astype(found.numpy().dtype)
            np.testing.assert_array_equal(found.numpy(), wanted, err_msg=f"{field} of step {t}")
        ends[0] += int(step.terminated.sum())
        ends[1] += int(step.truncated.sum())
    return ends
