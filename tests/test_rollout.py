"""Storage order and advantages, with values that tell where they came from."""

import dataclasses
import itertools
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from rllib_hypermarl.env import Step
from rllib_hypermarl.episodes import EpisodeTracker
from rllib_hypermarl.rollout import Rollout, RolloutBuffer, gae, join, next_values, returns_to_go, split
from tests import oracle

N, T, E, OBS = 3, 6, 4, 2
CPU = torch.device("cpu")


def code(t, kind=0.0):
    """`[E, N]`: each entry names its kind, step, env and agent (exact in float32)."""
    return kind * 1000 + t * 100 + 10 * torch.arange(E).view(-1, 1) + torch.arange(N).view(1, -1)


def observation(t, kind=0.0):
    return torch.stack([code(t, kind), -code(t, kind)], dim=-1).float()


def collect(ends):
    """Plays T steps; `ends` maps (t, e) to "terminated", "truncated" or "both"."""
    buffer = RolloutBuffer(N, T, E, OBS, CPU)
    for t in range(T):
        terminated = torch.tensor([ends.get((t, e)) in ("terminated", "both") for e in range(E)])
        truncated = torch.tensor([ends.get((t, e)) in ("truncated", "both") for e in range(E)])
        obs = observation(t + 1)
        final = observation(t + 1, kind=5) if any(step == t for step, _ in ends) else obs
        step = Step(obs, code(t, kind=3), terminated, truncated, final)
        buffer.add(observation(t).transpose(0, 1), code(t, kind=1).T.long(), code(t, kind=2).T, step)
    return buffer.finish(observation(T).transpose(0, 1))


def test_every_value_lies_at_its_agent_step_and_env():
    ends = {(0, 1): "terminated", (2, 3): "truncated", (2, 0): "both", (4, 2): "truncated", (5, 3): "truncated"}
    rollout = collect(ends)
    assert rollout.env_steps() == T * E and rollout.agent_steps() == T * E * N
    for n in range(N):
        for e in range(E):
            for t in range(T):
                where = 100 * t + 10 * e + n
                assert rollout.obs[n, t, e].tolist() == [where, -where]
                assert rollout.actions[n, t, e] == 1000 + where
                assert rollout.logp[n, t, e] == 2000 + where
                assert rollout.reward[n, t, e] == 3000 + where
                assert rollout.terminated[t, e] == (ends.get((t, e)) in ("terminated", "both"))
                assert rollout.truncated[t, e] == (ends.get((t, e)) in ("truncated", "both"))
            assert rollout.last_obs[n, e, 0] == 100 * T + 10 * e + n

    cut = [(t, e) for (t, e), how in sorted(ends.items()) if how == "truncated"]
    assert rollout.final_index.tolist() == [t * E + e for t, e in cut]
    for i, (t, e) in enumerate(cut):
        for n in range(N):
            assert rollout.final_obs[n, i, 0] == 5000 + 100 * (t + 1) + 10 * e + n


@pytest.mark.parametrize("ends", [{}, {(1, 2): "terminated", (3, 0): "both"}], ids=["nothing ended", "no time limit"])
def test_without_truncation_there_is_nothing_to_bootstrap_from(ends):
    rollout = collect(ends)
    assert rollout.final_obs.shape == (N, 0, OBS)
    assert rollout.final_index.shape == (0,)


def life(seed, envs, quiet=False):
    """Random steps of agents that die, are truncated alone, and come back. What their env does not say, it leaves out.

    Returns the first step, and the others. Args: quiet: all agents live on.
    """
    generator = torch.Generator().manual_seed(seed)
    happens = lambda p, *shape: torch.rand(envs, *shape, generator=generator) < p  # noqa: E731
    obs = torch.randn(envs, N, OBS, generator=generator)
    never = torch.zeros(envs, dtype=torch.bool)
    alive = torch.ones(envs, N, dtype=torch.bool)
    steps = [Step(obs, torch.zeros(envs, N), never, never, obs)]
    for _ in range(T):
        terminated, truncated = happens(0.1), happens(0.1)
        ended = (terminated | truncated)[:, None]
        died, cut, born = ((happens(0.0 if quiet else 0.1, N)) for _ in range(3))
        final_alive = alive & ~died
        alive = torch.where(ended, True, (final_alive & ~cut) | (born & ~alive))
        final = torch.randn(envs, N, OBS, generator=generator)
        obs = torch.where(ended[..., None], torch.randn(envs, N, OBS, generator=generator), final)
        step = Step(obs, torch.randn(envs, N, generator=generator), terminated, truncated, final)
        if not (alive.all() and final_alive.all()):
            step.alive, step.final_alive = alive, final_alive
        steps.append(step)
    return steps


def collected(steps):
    """The rollout, and per step and agent what it should say: who acted, died, was cut; and the final observations."""
    envs = len(steps[0].obs)
    buffer = RolloutBuffer(N, T, envs, OBS, CPU)
    expected = []
    for before, step in itertools.pairwise(steps):
        zeros = torch.zeros(N, envs)
        buffer.add(before.observed(), zeros.long(), zeros, step, before)
        everybody = torch.ones(envs, N, dtype=torch.bool)
        acted, alive, final_alive = (
            everybody if x is None else x for x in (before.alive, step.alive, step.final_alive)
        )
        ended = (step.terminated | step.truncated)[:, None]
        expected.append(((acted.T, (acted & ~final_alive).T, (acted & final_alive & ~alive & ~ended).T), step))
    return buffer.finish(steps[-1].observed()), expected


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), central=st.booleans())
def test_each_agent_s_return_ends_as_its_life_does(seed, central):
    """Death ends it, time of its own or of all is bootstrapped: against the sums by definition, agent by agent.

    A central value is of what all observe: of others than who left, the next step's counts, not the final one.
    """
    rollout, expected = collected(life(seed, E))
    if rollout.alive is None:
        assert all(flags[0].all() and not flags[1].any() for flags, _ in expected)
        return
    for t, (flags, _) in enumerate(expected):
        for name, flag in zip(("alive", "died", "cut"), flags, strict=True):
            assert torch.equal(getattr(rollout, name)[:, t], flag), name
    value_of = lambda obs: obs.sum(-1) + 3 + central * obs.sum((0, -1))  # noqa: E731
    value, last, final = value_of(rollout.obs), value_of(rollout.last_obs), value_of(rollout.final_obs)
    ends = rollout.ends()
    found = gae(rollout.reward, value, next_values(value, last, final, rollout.final_index, ends[1]), *ends, 0.9, 0.8)
    stayed = [(acted & ~died).unsqueeze(-1) for (acted, died, _), _ in expected]
    finals = torch.stack(
        [value_of(step.final_obs.transpose(0, 1) * here) for here, (_, step) in zip(stayed, expected, strict=True)],
        dim=1,
    )
    for n in range(N):
        one = slice(n, n + 1)
        of_agent = rollout.terminated | rollout.died[n], rollout.truncated | rollout.cut[n]
        wanted = oracle.advantages(rollout.reward[one], value[one], last[one], finals[one], *of_agent, 0.9, 0.8)[0]
        here = rollout.alive[n]
        torch.testing.assert_close(found[n][here], wanted[here])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_rollouts_in_which_nobody_left_join_the_others(seed):
    parts = [collected(life(seed + i, 2, quiet=i != 1))[0] for i in range(3)]
    assert parts[0].alive is None and parts[2].cut is None
    whole = join(parts)
    for name, unsaid in (("alive", True), ("died", False), ("cut", False)):
        said = getattr(parts[1], name)
        field = getattr(whole, name)
        assert (field is None) == (said is None)
        if said is not None:
            assert torch.equal(field[:, :, 2:4], said)
            assert (field[:, :, :2] == unsaid).all() and (field[:, :, 4:] == unsaid).all()


def test_final_observations_flow_into_next_values():
    ends = {(1, 1): "truncated", (T - 1, 0): "truncated", (3, 2): "terminated"}
    rollout = collect(ends)
    value_of = lambda obs: 2 * obs[..., 0]  # noqa: E731
    result = next_values(
        value_of(rollout.obs), value_of(rollout.last_obs), value_of(rollout.final_obs), rollout.final_index
    )
    for n in range(N):
        for t in range(T):
            for e in range(E):
                kind = 5 if ends.get((t, e)) == "truncated" else 0
                assert result[n, t, e] == 2 * (1000 * kind + 100 * (t + 1) + 10 * e + n)


FIELDS = [field.name for field in dataclasses.fields(Rollout)]


def random_rollout(seed, envs, with_state=True):
    """A rollout of random numbers, with ends at random."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    terminated, truncated = (torch.rand(T, envs, generator=generator) < 0.3 for _ in range(2))
    index = (truncated & ~terminated).flatten().nonzero().squeeze(1)
    state = {"state": draw(T, envs, 3), "last_state": draw(envs, 3), "final_state": draw(len(index), 3)}
    return Rollout(
        draw(N, T, envs, OBS), draw(N, T, envs).long(), draw(N, T, envs), draw(N, T, envs), terminated, truncated,
        draw(N, envs, OBS), draw(N, len(index), OBS), index, **(state if with_state else {}),
    )  # fmt: skip


def by_env(rollout):
    """Everything about each env, in a form that does not depend on where it stands in the batch."""
    envs, found = rollout.terminated.shape[1], []
    for e in range(envs):
        mine = (rollout.final_index % envs == e).nonzero().squeeze(1)
        mine = mine[rollout.final_index[mine].argsort()]
        state = []
        if rollout.state is not None:
            state = [rollout.state[:, e], rollout.last_state[e], rollout.final_state[mine]]
        found.append([
            *(getattr(rollout, name)[:, :, e] for name in ("obs", "actions", "logp", "reward")),
            rollout.terminated[:, e], rollout.truncated[:, e], rollout.last_obs[:, e], rollout.final_obs[:, mine],
            rollout.final_index[mine] // envs, *state,
        ])  # fmt: skip
    return found


def assert_same_envs(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), state=st.booleans())
def test_a_joined_rollout_holds_every_env_as_it_was(seed, sizes, state):
    parts = [random_rollout(seed + i, envs, state) for i, envs in enumerate(sizes)]
    assert_same_envs(by_env(join(parts)), [env for part in parts for env in by_env(part)])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), envs=st.integers(1, 7), shards=st.integers(1, 4), state=st.booleans())
def test_shards_are_equal_and_hold_every_env_as_it_was_but_those_left_over(seed, envs, shards, state):
    rollout = random_rollout(seed, envs, state)
    parts = split(rollout, shards)
    assert [part.terminated.shape[1] for part in parts] == [envs // shards if shards > 1 else envs] * shards
    kept = by_env(rollout)[: envs // shards * shards]
    assert_same_envs([env for part in parts for env in by_env(part)], kept)


def test_arrays_and_back_is_the_same_rollout():
    rollout = random_rollout(0, 3, with_state=False)
    arrays = rollout.arrays()
    assert isinstance(arrays.obs, np.ndarray) and arrays.state is None
    arrays.obs.flags.writeable = False  # as Ray's object store hands it out
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = arrays.tensors()
    assert all(torch.equal(getattr(again, n), getattr(rollout, n)) for n in FIELDS if getattr(rollout, n) is not None)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), gamma=st.sampled_from([0.0, 0.9, 1.0]))
def test_returns_to_go_are_discounted_sums_up_to_the_episode_s_end(seed, gamma):
    rollout = random_rollout(seed, 3)
    ended = rollout.terminated | rollout.truncated
    ours = returns_to_go(rollout.reward.double(), ended, gamma)
    for n in range(N):
        for e in range(3):
            for t in range(T):
                last = next((k for k in range(t, T) if ended[k, e]), T - 1)
                slow = sum(gamma ** (k - t) * rollout.reward[n, k, e].double() for k in range(t, last + 1))
                torch.testing.assert_close(ours[n, t, e], slow)


def random_episodes(seed, steps=9, agents=2, envs=3, end_rate=0.2):
    """Rewards, values and ends, and what the library reads of them: `next_value` through `next_values`."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    reward, value, final = (draw(agents, steps, envs) for _ in range(3))
    last = draw(agents, envs)
    terminated, truncated = (torch.rand(steps, envs, generator=generator) < end_rate for _ in range(2))
    index = (truncated & ~terminated).flatten().nonzero().squeeze(-1)
    following = next_values(value, last, final.flatten(1)[:, index], index)
    return reward, value, last, final, terminated, truncated, following


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    steps=st.integers(1, 9),
    end_rate=st.sampled_from([0.0, 0.2, 0.6]),
    gamma=st.floats(0, 1),
    lambda_=st.floats(0, 1),
)
def test_gae_equals_its_definition(seed, steps, end_rate, gamma, lambda_):
    reward, value, last, final, terminated, truncated, following = random_episodes(seed, steps, end_rate=end_rate)
    ours = gae(reward, value, following, terminated, truncated, gamma, lambda_)
    expected = oracle.advantages(reward, value, last, final, terminated, truncated, gamma, lambda_)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_the_episodes_above_end_in_every_way():
    *_, terminated, truncated, _ = random_episodes(0)
    assert {(a, b) for a, b in zip(terminated.flatten().tolist(), truncated.flatten().tolist(), strict=True)} == {
        (False, False), (True, False), (False, True), (True, True),
    }  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), gamma=st.floats(0, 1))
def test_gae_with_lambda_one_is_the_discounted_return_minus_the_value(seed, gamma):
    reward, value, last, final, terminated, truncated, following = random_episodes(seed)
    expected, following_return = torch.empty_like(value), last
    for t in reversed(range(value.shape[1])):
        after = torch.where(truncated[t], final[:, t], following_return)
        after = torch.where(terminated[t], torch.zeros_like(after), after)
        following_return = reward[:, t] + gamma * after
        expected[:, t] = following_return - value[:, t]
    torch.testing.assert_close(gae(reward, value, following, terminated, truncated, gamma, 1.0), expected)


def test_gae_with_lambda_zero_is_the_one_step_error():
    reward, value, _, _, terminated, truncated, following = random_episodes(1)
    expected = reward + 0.9 * following * (~terminated).double() - value
    torch.testing.assert_close(gae(reward, value, following, terminated, truncated, 0.9, 0.0), expected)


def test_nothing_after_an_end_reaches_back():
    reward, value, _, _, _, _, following = random_episodes(2, end_rate=0.0)
    ended = torch.zeros(reward.shape[1:], dtype=torch.bool)
    ended[4] = True
    later = reward.clone()
    later[:, 5:] += 100
    for terminated, truncated in ((ended, ~ended & False), (~ended & False, ended)):
        before, after = (gae(r, value, following, terminated, truncated, 0.99, 0.95) for r in (reward, later))
        assert torch.equal(before[:, :5], after[:, :5])
        assert not torch.isclose(before[:, 5:], after[:, 5:]).any()


# ---------------------------------------------------------------------------------------------------------- episodes


def play(lengths, rollouts):
    """Rollouts in which env e plays episodes of `lengths[e]` in turn, each with the episodes that end in it."""
    ends = {sum(own[: i + 1]) - 1: e for e, own in enumerate(lengths) for i in range(len(own))}
    assert len(ends) == sum(len(own) for own in lengths)  # no two at once: the order is plain
    finished, begun = [], [0] * E
    for t, e in sorted(ends.items()):
        steps = range(begun[e], t + 1)
        finished.append(([sum(float(code(k % T, 3)[e, n] + k // T) for k in steps) for n in range(N)], len(steps)))
        begun[e] = t + 1
    for i in range(rollouts):
        here = {(t - i * T, e): ("terminated", "truncated", "both")[t % 3] for t, e in ends.items() if t // T == i}
        rollout = collect(here)
        rollout.reward += i  # tells rollouts apart
        yield rollout, [episode for (t, _), episode in zip(sorted(ends.items()), finished, strict=True) if t // T == i]


LENGTHS = ((1, 3, 9), (2, 14), (6, 1), (18,))  # of 18 steps, in three rollouts


def tracked(rollouts, window=100, restart=False):
    tracker, counts = EpisodeTracker(N, E, window, CPU), []
    for rollout, _ in rollouts:
        counts.append(tracker.update(rollout))
        if restart:
            state, tracker = tracker.get_state(), EpisodeTracker(N, E, window, CPU)
            tracker.set_state(state)
    return tracker, counts


@pytest.mark.parametrize("restart", [False, True], ids=["at once", "restored after every rollout"])
@pytest.mark.parametrize("window", [100, 3])
def test_episodes_are_followed_across_rollouts(window, restart):
    played = list(play(LENGTHS, 3))
    tracker, counts = tracked(played, window, restart)
    expected = [episode for _, episodes in played for episode in episodes]
    assert counts == [len(episodes) for _, episodes in played] and sum(counts) == 8
    assert tracker.recent().returns.tolist() == [returns for returns, _ in expected[-window:]]
    assert tracker.recent().lengths.tolist() == [length for _, length in expected[-window:]]


def test_unfinished_episodes_can_be_dropped_on_restore_without_touching_the_saved_state():
    played = list(play(((4,), (8,), (5,), (2,)), 2))
    tracker, _ = tracked(played[:1])
    state = tracker.get_state()
    saved = {name: value.clone() for name, value in state.items()}
    assert state["running_length"].tolist() == [2, 6, 1, 4]
    tracker.set_state(state, keep_running=False)
    tracker.update(played[1][0])
    assert tracker.recent().lengths.tolist() == [2, 4, 5, 2]  # the last one since the restore only
    assert all(torch.equal(saved[name], state[name]) for name in saved)


def test_summary_of_episodes():
    tracker, _ = tracked(play(LENGTHS, 3))
    episodes, summary = tracker.recent(), tracker.recent().summary(("a", "b"), {})
    returns = episodes.returns.tolist()
    teams, count = [sum(row) for row in returns], len(returns)
    assert (summary["episode_return_min"], summary["episode_return_max"]) == (min(teams), max(teams))
    assert summary["episode_return_mean"] == pytest.approx(sum(teams) / count)
    assert summary["agent_return_mean"] == pytest.approx(sum(teams) / count / N)
    assert summary["agent_episode_returns_mean"] == pytest.approx(
        {"a": sum(row[0] for row in returns) / count, "b": sum(row[1] for row in returns) / count}
    )
    assert (summary["episode_len_min"], summary["episode_len_max"]) == (1, 18)
    assert episodes.env_steps() == 54 and episodes.agent_steps() == 54 * N
    assert EpisodeTracker(N, E, 5, CPU).recent().summary(("a",), {}) == {}
