"""Teams with memory: what a loop over agents, envs and steps computes, sequences that stay whole, states that go on."""

import dataclasses
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rllib_hypermarl import HyperMARLConfig
from rllib_hypermarl.errors import ConfigError, MemoryMissingError, TransferError
from rllib_hypermarl.evaluation import evaluate
from rllib_hypermarl.losses import PPOLossConfig, standardise
from rllib_hypermarl.metrics import snd
from rllib_hypermarl.nets import SHARING, TeamNet, transfer
from rllib_hypermarl.rllib.env_runner import BatchedEnvRunner
from rllib_hypermarl.rllib.learner import _rows
from rllib_hypermarl.rllib.sequences import Sequences, values_and_advantages
from rllib_hypermarl.rollout import Rollout, gae, join, split
from tests import oracle
from tests.restless_env import Recording, RestlessEnv

STEPS, ENVS, LENGTH = 8, 4, 4


def config(env_config=None, policies=None, **hypermarl):
    networks = {"actor_hidden": [6], "critic_hidden": [5], "hypernet_hidden": [4], "memory": "gru", "memory_size": 5}
    made = (
        HyperMARLConfig()
        .environment(RestlessEnv, env_config=env_config or {})
        .hypermarl(**{**networks, "memory_encoder_hidden": [7], "sequence_length": LENGTH, **hypermarl})
        .training(lr=1e-2, num_epochs=3, minibatch_size=12, train_batch_size_per_learner=STEPS * ENVS)
        .env_runners(num_envs_per_env_runner=ENVS, rollout_fragment_length=STEPS)
        .multi_agent(policies=policies or {"*": "own"})
        .run(seed=3, torch_threads=1, device="cpu")
    )
    made.validate()
    return made


def team(**options):
    """An env runner and a learner of one team, whose every parameter is random: biases of zero would hide mistakes."""
    made = config(**options)
    runner = BatchedEnvRunner(config=made)
    learner = made.build_learner(spaces=runner.get_spaces())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in learner.net.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 0.5 * noise)
    runner.copy_weights(learner.module, 0)
    return runner, learner


def double(rollout):
    return rollout._map(lambda x: x.double() if x.is_floating_point() else x)


def lost_of(rollout):
    """`[N, T, E]`, from the plain words: an episode ended, or an agent died, or was not alive."""
    lost = torch.zeros(rollout.reward.shape, dtype=torch.bool)
    for n, t, e in torch.cartesian_prod(*(torch.arange(size) for size in lost.shape)).tolist():
        there = rollout.alive is None or (bool(rollout.alive[n, t, e]) and not rollout.died[n, t, e])
        lost[n, t, e] = bool(rollout.terminated[t, e]) or bool(rollout.truncated[t, e]) or not there
    return lost


def critic_input(net, obs, state):
    """What critics read, `[N, ..., in]`, of obs `[N, ..., obs]` and state `[..., state]`."""
    reads = net.spec.heads["critic"].reads
    if reads == "obs":
        return obs
    whole = state if reads == "state" else torch.cat(list(obs), dim=-1)
    return torch.stack([whole] * len(obs))


def minibatch_of(learner, rollout, chosen=None):
    """Rows of the chosen sequences as the learner makes them; with their indices, and the values before."""
    value, advantage = values_and_advantages(learner.net, rollout, learner.config)
    sequences = Sequences.of(rollout)
    index = sequences.rows(torch.randperm(sequences.count) if chosen is None else torch.tensor(chosen))
    rows = {key: x.index_select(1, index) for key, x in _rows(rollout, value, advantage).items()}
    return rows | sequences.memories(index), index, value, advantage


TEAMS = {
    **{f"gru-{sharing}": {"sharing": sharing} for sharing in SHARING},
    "lstm": {"memory": "lstm"},
    "lstm-central": {"memory": "lstm", "critic": "central"},
    "state": {"critic": "central", "env_config": {"with_state": True}},
    "immortal": {"env_config": {"deaths": 0.0}},
    "whole fragment": {"sequence_length": None},
    "single steps": {"sequence_length": 1},
    "own encoders": {"memory_encoder_sharing": "hyper_mlp", "memory_encoder_hidden": [4, 6]},
    "encoders with ids": {"memory_encoder_sharing": "full_id", "activation": "tanh"},
    "shared policies": {"policies": {"both": ["a", "c"], "*": "own"}},
}


@pytest.mark.parametrize("options", TEAMS.values(), ids=TEAMS)
def test_loss_and_gradients_are_those_of_a_loop_over_agents_envs_and_steps(options):
    runner, learner = team(**options)
    runner.sample()
    net, rollout = learner.net.double(), double(runner.sample())
    lost = lost_of(rollout)
    assert 0 < lost.sum() < lost.numel()
    logits, _ = oracle.recall_all(net, "actor", rollout.obs, rollout.actor_memory, lost)
    read = critic_input(net, rollout.obs, rollout.state)
    now, _ = oracle.recall_all(net, "critic", read, rollout.critic_memory, lost)
    log_probs = torch.log_softmax(logits, dim=-1)
    logp = log_probs.gather(-1, rollout.actions.unsqueeze(-1)).squeeze(-1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)

    rows, index, value, advantage = minibatch_of(learner, rollout)
    here = torch.ones_like(lost) if rollout.alive is None else rollout.alive
    old = (rollout.logp, value)
    new_logp, bonus, new, old_logp, old_value, adv = (
        x.squeeze(-1)[here] if x.dim() == 4 else x[here] for x in (logp, entropy, now, *old, advantage)
    )
    loss_config = PPOLossConfig(0.2, 0.5, 0.01, 0.2)
    expected, _ = oracle.ppo_loss(
        new_logp, bonus, new, old_logp, old_value, standardise(adv), adv + old_value, loss_config
    )
    alive = None if rollout.alive is None else rollout.alive.flatten(1)
    statistics = next(learner._statistics(advantage.flatten(1), alive, [(index,)]))
    loss, _ = learner._loss(rows, statistics, loss_config)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    oracle.assert_same(oracle.gradients(loss, net), oracle.gradients(expected, net), 1e-9)

    generated = net.generate()
    memories = Sequences.of(rollout).memories(index)
    dist = net.policy(rows["obs"], generated, None, memories["actor_memory"])
    found = dist.log_prob(rows["actions"])
    torch.testing.assert_close(found, logp.flatten(1)[:, index], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", [TEAMS[key] for key in ("gru-hyper_mlp", "lstm-central", "state", "immortal")])
def test_values_go_through_a_rollout_in_order_and_know_what_came_before_a_cut(options):
    runner, learner = team(**options)
    runner.sample()
    net, rollout = learner.net.double(), double(runner.sample())
    lost = lost_of(rollout)
    value, _ = values_and_advantages(learner.net, rollout, learner.config)
    read = critic_input(net, rollout.obs, rollout.state)
    expected, states = oracle.recall_all(net, "critic", read, rollout.critic_memory[:, :1], lost)
    torch.testing.assert_close(value, expected.squeeze(-1), rtol=1e-10, atol=1e-10)

    following = {}
    for name, obs, state in (
        ("last", rollout.last_obs, rollout.last_state), ("final", rollout.final_obs, rollout.final_state)
    ):  # fmt: skip
        following[name] = critic_input(net, obs, state)
    assert len(rollout.final_index)
    next_value = torch.zeros_like(value)
    next_value[:, :-1] = value[:, 1:]
    for n in range(3):
        for e in range(ENVS):
            before = states[n, -1, e] * ~lost[n, -1, e]
            next_value[n, -1, e] = oracle.recall(net, "critic", n, following["last"][n, e], before)[0]
        for f, (t, e) in enumerate((row // ENVS, row % ENVS) for row in rollout.final_index.tolist()):
            next_value[n, t, e] = oracle.recall(net, "critic", n, following["final"][n, f], states[n, t, e])[0]
    ends = rollout.ends()
    here = torch.ones_like(lost) if rollout.alive is None else rollout.alive
    _, advantage = values_and_advantages(learner.net, rollout, learner.config)
    expected = gae(rollout.reward, value, next_value, *ends, 0.99, 0.95)
    torch.testing.assert_close(advantage[here], expected[here], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("memory", ["gru", "lstm"])
def test_what_runners_remember_goes_on_from_rollout_to_rollout(memory):
    runner, learner = team(memory=memory)
    first, second = (double(runner.sample()) for _ in range(2))
    net = learner.net.double()
    for head in ("actor", "critic"):
        stored = [getattr(rollout, f"{head}_memory") for rollout in (first, second)]
        assert not stored[0][:, 0].any()
        obs, lost = (torch.cat([of(x) for x in (first, second)], dim=1) for of in (lambda x: x.obs, lost_of))
        _, states = oracle.recall_all(net, head, obs, stored[0][:, :1], lost)
        kept = states * ~lost.unsqueeze(-1)
        expected = kept[:, [LENGTH - 1, STEPS - 1, STEPS + LENGTH - 1]]
        torch.testing.assert_close(torch.cat([stored[0][:, 1:], stored[1]], dim=1), expected, rtol=1e-5, atol=1e-6)
        assert expected.any()


def test_gradients_end_where_sequences_begin():
    runner, learner = team(env_config={"deaths": 0.0})
    rollout = runner.sample()
    for field in (rollout.terminated, rollout.truncated):
        field.zero_()
    rollout.final_index, rollout.final_obs = rollout.final_index[:0], rollout.final_obs[:, :0]
    rollout.obs.requires_grad_()
    rows, index, *_ = minibatch_of(learner, rollout, chosen=list(range(2 * ENVS)))
    dist = learner.net.policy(rows["obs"], learner.net.generate(), None, rows["actor_memory"])
    last = (index == (STEPS - 1) * ENVS + 1).nonzero().item()  # of the second env, in the second sequence
    (reached,) = torch.autograd.grad(dist.log_probs[0, last, 0], rollout.obs)
    touched = reached[0].abs().sum(dim=-1) > 0
    expected = torch.zeros(STEPS, ENVS, dtype=torch.bool)
    expected[LENGTH:, 1] = True
    assert torch.equal(touched, expected) and not reached[1:].any()


@pytest.mark.parametrize("more", [{}, {"normalise_obs": True, "normalise_values": True}], ids=["plain", "normalised"])
@pytest.mark.parametrize(
    "central", [{}, {"critic": "central", "env_config": {"with_state": True}}], ids=["own", "state"]
)
def test_the_networks_that_sampled_find_their_own_log_probabilities_and_values(more, central):
    runner, learner = team(**more, **central)
    learner.update(batch=runner.sample())
    runner.copy_weights(learner.module, 1)
    rollout = runner.sample()
    rows, index, value, _ = minibatch_of(learner, rollout)
    with torch.no_grad():
        dist = learner.net.policy(rows["obs"], learner.net.generate(), None, rows["actor_memory"])
        state = rows["state"][0] if central else None
        again = learner.net.value(rows["obs"], state, learner.net.generate(), rows["critic_memory"])
    here = rows["alive"]
    torch.testing.assert_close(dist.log_prob(rows["actions"])[here], rows["logp"][here], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again, value.flatten(1)[:, index], rtol=1e-5, atol=1e-5)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.randoms())
def test_rows_of_sequences_are_whole(number, length, envs, random):
    sequences = Sequences(number * envs, length, envs, None, {})
    chosen = list(range(number * envs))
    random.shuffle(chosen)
    rows = sequences.rows(torch.tensor(chosen)).tolist()
    assert sorted(rows) == list(range(number * length * envs))
    for b, sequence in enumerate(chosen):
        s, e = divmod(sequence, envs)
        assert rows[b :: len(chosen)] == [(s * length + step) * envs + e for step in range(length)]


def test_every_minibatch_is_of_whole_sequences_and_every_epoch_of_all():
    runner, learner = team()
    rollout = runner.sample()
    ids = torch.arange(STEPS * ENVS).view(STEPS, ENVS)
    rollout.logp = ids.expand(3, -1, -1).float().contiguous()
    seen, loss = [], learner._loss

    def record(rows, *args):
        seen.append(rows["logp"][0].long())
        return loss(rows | {"logp": torch.zeros_like(rows["logp"])}, *args)

    learner._loss = record
    learner.update(batch=rollout)
    assert [len(rows) for rows in seen] == 3 * [12, 12, 8]  # three epochs; of eight sequences, three at a time
    for first in range(0, len(seen), 3):
        assert sorted(torch.cat(seen[first : first + 3]).tolist()) == ids.flatten().tolist()
    for rows in seen:
        for b in range(len(rows) // LENGTH):
            steps, env = rows.view(LENGTH, -1)[:, b] // ENVS, rows.view(LENGTH, -1)[:, b] % ENVS
            assert steps[0] % LENGTH == 0 and (steps.diff() == 1).all() and (env == env[0]).all()


# ------------------------------------------------------------------------------------------------------- going on


def equal(first, second):
    """Whether two rollouts are equal bit for bit."""
    pairs = [(getattr(first, field.name), getattr(second, field.name)) for field in dataclasses.fields(Rollout)]
    return all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("memory", ["gru", "lstm"])
def test_a_runner_goes_on_from_its_saved_state_bit_for_bit(memory):
    runner, _ = team(memory=memory)
    runner.sample()
    state = pickle.dumps(runner.get_state())
    other = BatchedEnvRunner(config=config(memory=memory))
    other.set_state(pickle.loads(state))
    assert equal(runner.sample(), other.sample())
    forgetful = pickle.loads(state)
    forgetful["sampling"]["memory"] = {}
    other.set_state(forgetful)
    assert not other.sample().actor_memory[:, 0].any()


def test_rollouts_with_memory_are_split_and_joined_and_arrays():
    runner, _ = team()
    runner.sample()
    rollout = runner.sample()
    parts = split(rollout, 2)
    assert torch.equal(parts[1].critic_memory, rollout.critic_memory[:, :, 2:])
    again = join([part.arrays().tensors() for part in parts])
    order = again.final_index.argsort()
    again.final_index, again.final_obs = again.final_index[order], again.final_obs[:, order]
    assert equal(again, rollout)


@pytest.mark.parametrize("memory", ["gru", "lstm"])
def test_a_team_remembers_in_evaluation(memory):
    _, learner = team(memory=memory)
    env, net = Recording(ENVS), learner.net
    evaluate(net, env, 8, seed=1)
    net.double()
    state = torch.zeros(3, ENVS, net.cores["actor"].state_dim, dtype=torch.float64)
    for before, actions, step in zip(env.said, env.told, env.said[1:], strict=False):
        lost = (step.terminated | step.truncated).unsqueeze(1) | ~(before.alive & step.final_alive)  # [E, N]
        for n, e in torch.cartesian_prod(torch.arange(3), torch.arange(ENVS)).tolist():
            outputs, new = oracle.recall(net, "actor", n, before.observed()[n, e].double(), state[n, e])
            assert actions[e, n] == outputs.argmax()
            state[n, e] = new.detach() * ~lost[e, n]


# ------------------------------------------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"frozen": ["a"]}, r"hypermarl.frozen is \['a'\]: policies of a team with memory share its cores"),
        ({"sequence_length": 3}, "hypermarl.sequence_length is 3: must divide rollout_fragment_length, 8"),
        ({"sequence_length": -4}, "hypermarl.sequence_length is -4"),
        ({"memory_encoder_hidden": []}, r"hypermarl.memory_encoder_hidden is \[\]: an encoder needs"),
        ({"memory_encoder_hidden": [0]}, "hypermarl.memory_encoder_hidden is .*positive"),
        ({"memory_size": 0}, "hypermarl.memory_size is 0"),
        ({"memory": "rnn"}, "hypermarl.memory is 'rnn'"),
    ],
)
def test_what_cannot_work_is_refused_by_its_key(options, text):
    with pytest.raises(ConfigError, match=text) as caught:
        config(**options)
    assert "\n" not in str(caught.value)


def test_minibatches_smaller_than_a_sequence_are_refused():
    made = config().training(minibatch_size=2)
    with pytest.raises(ConfigError, match=r"training.minibatch_size is 2: too small for one sequence of 4 steps"):
        made.validate()


def test_who_keeps_no_memory_for_a_team_is_told():
    _, learner = team()
    net, obs = learner.net, torch.zeros(3, 2, 3)
    for ask in (lambda: net.policy(obs, net.generate()), lambda: net.value(obs, None, net.generate())):
        with pytest.raises(MemoryMissingError, match=r"this team has memory \(gru\)"):
            ask()
    with pytest.raises(MemoryMissingError):
        snd(net, obs[0])


def test_networks_with_memory_start_from_another_team_s():
    source, target = team()[1].net, TeamNet(team(policies={"all": "*"})[1].net.spec)
    transfer(source, target, like={"all": "b"})
    named = dict(source.named_parameters())
    shared = {name for name, x in target.named_parameters() if torch.equal(x, named[name])}
    assert {name for name in named if name.startswith(("cores.", "sources."))} <= shared
    for options, text in (
        ({"memory": "lstm"}, "actor.memory is 'gru' there and 'lstm' here"),
        ({"memory": None}, "actor.memory is 'gru' there and None here"),
        ({"memory_encoder_hidden": [3]}, "actor_encoder.out_dim is 7 there and 3 here"),
    ):
        with pytest.raises(TransferError, match=text):
            transfer(source, team(**options)[1].net)
