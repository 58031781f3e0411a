"""PettingZoo envs stepped one by one through PettingZoo's own interfaces.

Nothing of ours is in the references but the seeds; what they should be equal to is written down from `Step`'s contract.
"""

import itertools

import gymnasium as gym
import numpy as np
import torch
from rllib_hypermarl.envs.pettingzoo_copies import episode_seed

FIELDS = (
    "obs", "reward", "terminated", "truncated", "final_obs", "state", "final_state", "alive", "final_alive",
    "action_mask",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------ the batched env


def play(env, seed, num_steps):
    """Steps a batched env with random actions, allowed ones where there are masks. Returns actions and steps."""
    rng, actions, steps = np.random.default_rng(seed), [], [env.reset(seed)]
    for _ in range(num_steps):
        actions.append(draw(env, steps[-1], rng))
        steps.append(env.step(torch.from_numpy(actions[-1])))
    return np.array(actions), steps


def draw(env, step, rng):
    """`[E, N, ...]`, of each agent's own space; what lies beyond it is garbage."""
    spaces = list(env.action_spaces.values())
    shape = env.num_envs, len(spaces)
    if isinstance(spaces[0], gym.spaces.Box):
        width = max(space.shape[0] for space in spaces)
        actions = rng.normal(size=(*shape, width)).astype(spaces[0].dtype)
        for n, space in enumerate(spaces):
            own = slice(0, space.shape[0])
            actions[:, n, own] = np.clip(actions[:, n, own], space.low, space.high)
        return actions
    widths = components(spaces)
    scores = rng.random((*shape, sum(widths)))
    for n, space in enumerate(spaces):
        scores[:, n, ~np.isin(np.arange(sum(widths)), places(space, spaces))] = -2
    if step.action_mask is not None:
        scores[~step.action_mask.numpy()] -= 1.5  # of the dead, nothing need be allowed
    starts = np.cumsum([0, *widths])
    actions = np.stack([scores[..., a:b].argmax(-1) for a, b in itertools.pairwise(starts)], axis=-1)
    return actions[..., 0] if len(widths) == 1 else actions


def counts(space):
    return [int(space.n)] if isinstance(space, gym.spaces.Discrete) else [int(n) for n in space.nvec]


def components(spaces):
    """The most choices of each component."""
    most = max(len(counts(space)) for space in spaces)
    return [max(counts(space)[i] for space in spaces if len(counts(space)) > i) for i in range(most)]


def places(space, spaces):
    """Where one agent's choices lie in the mask for all."""
    starts = np.cumsum([0, *components(spaces)])
    return [starts[i] + j for i, n in enumerate(counts(space)) for j in range(n)]


def compare(steps, expected):
    """All of them, bit for bit. Returns how often episodes terminated and were truncated, and agents were absent."""
    for t, (step, values) in enumerate(zip(steps, expected, strict=True)):
        for field, value in values.items():
            found = getattr(step, field)
            if found is None and field in ("alive", "final_alive"):
                found = torch.ones_like(step.reward, dtype=torch.bool)
            if found is None:
                assert value[0] is None, field
                continue
            if field == "action_mask" and step.alive is not None:  # what it says of others is not read
                found = found & step.alive.unsqueeze(-1)
            wanted = np.array(value).astype(found.numpy().dtype)
            np.testing.assert_array_equal(found.numpy(), wanted, err_msg=f"{field} of step {t}")
    absent = [step.alive for step in steps if step.alive is not None]
    return [
        int(sum(step.terminated.sum() for step in steps)),
        int(sum(step.truncated.sum() for step in steps)),
        int(sum((~alive).sum() for alive in absent)),
    ]


# ----------------------------------------------------------------------------------------------------- PettingZoo alone


class Team:
    """What does not change: agents and their spaces."""

    def __init__(self, env):
        self.agents = list(env.possible_agents)
        self.actions = [env.action_space(agent) for agent in self.agents]
        self.spaces = {agent: env.observation_space(agent) for agent in self.agents}
        nobody = {agent: space.sample() for agent, space in self.spaces.items()}
        self.width = max(len(self.flat(agent, value)) for agent, value in nobody.items())

    def flat(self, agent, value):
        space = self.spaces[agent]
        if isinstance(space, gym.spaces.Dict) and "action_mask" in space.spaces:
            return np.concatenate([
                np.ravel(gym.spaces.flatten(part, value[key]))
                for key, part in space.spaces.items() if key != "action_mask"
            ])  # fmt: skip
        return gym.spaces.flatten(space, value)

    def observed(self, obs, who):
        rows = np.zeros((len(self.agents), self.width), np.float32)
        for n, agent in enumerate(self.agents):
            if agent in who:
                vector = self.flat(agent, obs[agent])
                rows[n, : len(vector)] = vector
        return rows

    def own_actions(self, row, who):
        actions = {}
        for n, agent in enumerate(self.agents):
            space = self.actions[n]
            if agent in who:
                own = np.ravel(row[n])[: int(np.prod(space.shape))].astype(space.dtype)
                actions[agent] = own.reshape(space.shape) if space.shape else own[0]
        return actions

    def allowed(self, obs, infos, who):
        """None if nothing is said of anybody; all of an agent's own choices where nothing is said of it."""
        said = {agent: infos[agent]["action_mask"] for agent in who if "action_mask" in infos.get(agent, {})}
        for agent in who:
            if isinstance(self.spaces[agent], gym.spaces.Dict) and "action_mask" in self.spaces[agent].spaces:
                said.setdefault(agent, obs[agent]["action_mask"])
        return said

    def masks(self, said, who):
        rows = np.zeros((len(self.agents), sum(components(self.actions))), bool)
        for n, (agent, space) in enumerate(zip(self.agents, self.actions, strict=True)):
            mask = said.get(agent, np.ones(sum(counts(space))))
            mask = np.concatenate(mask) if isinstance(mask, tuple) else mask
            rows[n, places(space, self.actions)] = np.asarray(mask) == 1
            if agent not in who:
                rows[n] = False
        return rows

    def flags(self, who):
        return [agent in who for agent in self.agents]


def reference(make, seed, actions, with_state, masked=False, anew=True):
    """What a `Step` should hold after the reset and after each of the actions `[T, E, N, ...]`.

    Args:
        make: returns one parallel env.
        anew: whether each episode gets an env of its own.
    """
    steps = [{field: [] for field in FIELDS} for _ in range(len(actions) + 1)]
    for copy in range(actions.shape[1]):
        episode, (env, obs, infos) = 0, start(make(), seed, copy, 0)
        team, alive, state = Team(env), list(env.agents), state_of(env, with_state)
        first = team.observed(obs, alive)
        masks = team.masks(team.allowed(obs, infos, alive), alive) if masked else None
        flags = team.flags(alive)
        record(steps[0], first, np.zeros(len(flags)), False, False, first, state, state, flags, flags, masks)
        for t, row in enumerate(actions[:, copy]):
            obs, reward, died, _, infos = env.step(team.own_actions(row, env.agents))
            rewards = [reward[agent] if agent in alive else 0 for agent in team.agents]
            survivors = [agent for agent in alive if not died[agent]]
            over = not env.agents
            terminated = over and not survivors
            if terminated:
                survivors = alive
            final_state = state = state_of(env, with_state)
            final_alive = survivors if over else {*survivors, *env.agents}
            final_obs = team.observed(obs, final_alive)
            if over:
                episode += 1
                if anew:
                    env.close()
                    env = make()
                env, obs, infos = start(env, seed, copy, episode)
                state = state_of(env, with_state)
            alive = list(env.agents)
            masks = team.masks(team.allowed(obs, infos, alive), alive) if masked else None
            record(
                steps[t + 1], team.observed(obs, alive), rewards, terminated, over and not terminated, final_obs,
                state, final_state, team.flags(alive), team.flags(final_alive), masks,
            )  # fmt: skip
    return steps


def start(env, seed, copy, episode):
    return env, *env.reset(seed=episode_seed(seed, copy, episode))


def state_of(env, with_state):
    return env.state().astype(np.float32) if with_state else None


def record(step, *values):
    for field, value in zip(FIELDS, values, strict=True):
        step[field].append(value)


def turns_reference(make, seed, actions):
    """As `reference`, of an AEC env whose agents act in turns, through the AEC interface itself.

    Who waits is allowed its first action.
    """
    steps = [{field: [] for field in FIELDS} for _ in range(len(actions) + 1)]
    for copy in range(actions.shape[1]):
        episode, env = 0, make()
        env.reset(seed=episode_seed(seed, copy, 0))
        team = Team(env)
        everybody, nothing = team.flags(team.agents), np.zeros(len(team.agents))
        first, masks = turn(team, env)
        record(steps[0], first, nothing, False, False, first, None, None, everybody, everybody, masks)
        for t, row in enumerate(actions[:, copy]):
            env.step(team.own_actions(row, team.agents)[env.agent_selection])
            final_obs, masks = turn(team, env)
            obs, rewards = final_obs, [env.rewards[agent] for agent in team.agents]
            terminated, truncated = all(env.terminations.values()), all(env.truncations.values())
            if terminated or truncated:
                episode, env = episode + 1, make()
                env.reset(seed=episode_seed(seed, copy, episode))
                obs, masks = turn(team, env)
            record(
                steps[t + 1], obs, rewards, terminated, truncated and not terminated, final_obs, None, None, everybody,
                everybody, masks,
            )  # fmt: skip
    return steps


def turn(team, env):
    obs = {agent: env.observe(agent) for agent in team.agents}
    waiting = {agent: np.eye(counts(env.action_space(agent))[0])[0] for agent in team.agents}
    del waiting[env.agent_selection]
    masks = team.masks(team.allowed(obs, {}, team.agents) | waiting, team.agents)
    return team.observed(obs, team.agents), masks
