"""1,000 mutations of bundles: refused in one line that names the bundle, or provably the same behaviour."""

import collections
import hashlib
import json
import os
import pickle
import random
import shutil

import pytest
import safetensors.torch
import torch

from rllib_hypermarl import load_policy
from rllib_hypermarl.bundle import spec as specs
from rllib_hypermarl.errors import BundleError
from rllib_hypermarl.nets import HeadSpec, ModelSpec
from tests.bundle.teams import ACTIONS, CORE, OBS, behaviour, equal, save, trained, with_memory

SPEC, WEIGHTS = "bundle.json", "weights.safetensors"
PER_KIND = 100


def model(actions, sharing, **options):
    head = HeadSpec(OBS, ACTIONS[actions].head_dim, (8, 6), sharing=sharing)
    critic = HeadSpec(4 * OBS, 1, (8,), sharing=sharing, reads="team")
    heads = {"actor": head, "critic": critic}
    if "memory" in options:
        heads, options["memory_size"] = with_memory(heads), CORE
    return ModelSpec(("one", "two", "three"), (0, 1, 1, 2), heads, actions=ACTIONS[actions], **options)


TEAMS = {
    "discrete": (model("categorical", "hyper_mlp", normalise_obs=True), "frozen"),
    "frozen_policy": (model("clip_per_policy", "hyper_mlp", normalise_obs=True, frozen=("two",)), "full"),
    "with_id": (model("multi_discrete", "full_id", normalise_values=True), "full"),
    "tanh": (model("tanh_generated", "none"), "frozen"),
    "memory": (model("categorical", "hyper_mlp", memory="lstm"), "frozen"),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Of each team: where its bundle lies, the policy, and how it behaves."""
    directory, made = tmp_path_factory.mktemp("bundles"), {}
    for name, (spec, kind) in TEAMS.items():
        path = save(trained(spec), directory / name, kind=kind, include_critic=True)
        policy = load_policy(path)
        made[name] = path, policy, behaviour(policy, spec)
    return made


class Planted:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


# ---------------------------------------------------------------------------------------------- of the files as bytes


def some_file(path, rng):
    return path / rng.choice([SPEC, WEIGHTS])


def changed(file, change):
    file.write_bytes(bytes(change(bytearray(file.read_bytes()))))


def flip_a_bit(path, rng, other):
    def flip(data):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return data

    changed(some_file(path, rng), flip)


def flip_bytes_of_the_header(path, rng, other):
    def flip(data):
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(300)] = rng.randrange(256)
        return data

    changed(some_file(path, rng), flip)


def cut(path, rng, other):
    changed(some_file(path, rng), lambda data: data[: rng.randrange(len(data))])


def append(path, rng, other):
    changed(some_file(path, rng), lambda data: data + rng.choice([rng.randbytes(9), b" ", b"\n", b"\0", b"{}"]))


def move_a_slice(path, rng, other):
    def move(data):
        at, to, length = rng.randrange(len(data)), rng.randrange(len(data)), rng.randint(1, 50)
        piece = data[at : at + length]
        if rng.random() < 0.5:
            del data[at : at + length]
        return data[:to] + piece + data[to:]

    changed(some_file(path, rng), move)


def swap_files(path, rng, other):
    name = rng.choice([SPEC, WEIGHTS, "both"])
    if name == "both":
        (path / SPEC).rename(path / "aside")
        (path / WEIGHTS).rename(path / SPEC)
        (path / "aside").rename(path / WEIGHTS)
    else:
        shutil.copy(other / name, path / name)


def extra_entry(path, rng, other):
    name = rng.choice(["weights.pt", ".hidden", "policy.pkl", "Z", "weights.safetensors~", "bundle.json.bak", "a b"])
    plant = [
        lambda entry: entry.write_bytes(pickle.dumps(Planted(path.parent / "ran"))),
        lambda entry: entry.mkdir(),
        lambda entry: entry.symlink_to(path / WEIGHTS),
        lambda entry: shutil.copy(path / WEIGHTS, entry),
        lambda entry: os.mkfifo(entry),
    ]
    rng.choice(plant)(path / name)


def another_kind_of_entry(path, rng, other):
    file = some_file(path, rng)
    aside = path.parent / "aside"
    file.rename(aside)
    put = [
        lambda: None,
        lambda: file.mkdir(),
        lambda: os.mkfifo(file),
        lambda: file.symlink_to(aside),
        lambda: file.symlink_to("../aside"),
        lambda: file.symlink_to("/dev/zero"),
        lambda: file.write_bytes(b""),
        lambda: aside.rename(path / file.name.upper()),
    ]
    rng.choice(put)()


# ------------------------------------------------------------------------- with every checksum made to fit afterwards


def sealed(path, data):
    """Writes a spec with the checksums of what lies there, as somebody who wants to deceive would."""
    data = {**data, "files": {WEIGHTS: hashlib.sha256((path / WEIGHTS).read_bytes()).hexdigest()}}
    data.pop("checksum", None)
    (path / SPEC).write_text(json.dumps({"checksum": specs._checksum(data)[0], **data}))


def content(path):
    return json.loads((path / SPEC).read_text())


def plant_a_pickle(path, rng, other):
    trap = Planted(path.parent / "ran")
    if rng.random() < 0.5:
        (path / WEIGHTS).write_bytes(pickle.dumps(trap, protocol=rng.randint(0, 5)))
    else:
        torch.save({"sources.actor.weights.0": trap}, path / WEIGHTS, _use_new_zipfile_serialization=rng.random() < 0.5)
    if rng.random() < 0.2:
        shutil.copy(path / WEIGHTS, path / SPEC)
    else:
        sealed(path, content(path))


def wrong_tensors(path, rng, other):
    tensors = safetensors.torch.load_file(path / WEIGHTS)
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    one = torch.zeros(tensor.numel())
    one[rng.randrange(tensor.numel())] = rng.choice([float("nan"), float("inf"), -float("inf")])
    wrong = [
        tensor.unsqueeze(0),
        torch.cat([tensor, tensor]),
        tensor[..., :0],
        tensor.double(),
        tensor.half(),
        tensor.int(),
        tensor.bfloat16(),
        tensor + one.view_as(tensor),
        None,
    ]
    tensors[name] = rng.choice(wrong)
    if tensors[name] is None:
        del tensors[name]
        if rng.random() < 0.5:
            tensors[rng.choice(["sources.actor.weights.9", "__metadata", name.upper()])] = tensor
    safetensors.torch.save_file(tensors, path / WEIGHTS)
    sealed(path, content(path))


MUTATIONS = [
    flip_a_bit, flip_bytes_of_the_header, cut, append, move_a_slice, swap_files, extra_entry, another_kind_of_entry,
    plant_a_pickle, wrong_tensors,
]  # fmt: skip


def refusal(path):
    """The error of a bundle that is refused; else None."""
    try:
        load_policy(path)
    except BundleError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        assert len(str(error)) < 600
        return str(error)
    return None


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_a_mutation_is_refused_or_changes_nothing(bundles, tmp_path, monkeypatch, mutate):
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch.load was called"))
    verdicts = collections.Counter()
    for seed in range(PER_KIND):
        rng = random.Random(seed)
        name, other = rng.sample(sorted(bundles), 2)
        genuine, policy, before = bundles[name]
        place = tmp_path / str(seed)
        path = shutil.copytree(genuine, place / "bundle")
        mutate(path, rng, bundles[other][0])
        if refusal(path):
            verdicts["refused"] += 1
        else:
            again = load_policy(path)
            assert again.version == policy.version, f"seed {seed}"
            assert again.spec == policy.spec and equal(behaviour(again, again.spec.model), before), f"seed {seed}"
            verdicts["same"] += 1
        assert not (place / "ran").exists(), "code of a bundle has run"
    assert verdicts["refused"] + verdicts["same"] == PER_KIND
    layout_only = {flip_a_bit, flip_bytes_of_the_header, append, move_a_slice}  # blanks between JSON's tokens
    assert verdicts["refused"] == PER_KIND or mutate in layout_only, verdicts
    assert verdicts["refused"] > PER_KIND / 2


# ------------------------------------------------------------------------------------ specs that somebody has rewritten

VALUES = [
    None, True, -1, 0, 1, 2, 3.5, 64, 2**20, 2**31, 2**63, 10**30, 1e308, "", "x", "Infinity", "NaN", [], [0], [1, 1],
    ["x"], {}, {"x": 1}, "none", "full", "hyper_mlp", "tanh", "frozen", "state", "team",
]  # fmt: skip


def leaves(data, path=()):
    """Where values lie in nested JSON."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


def edit(data, rng):
    """Changes one value, key or list somewhere outside the provenance, on which nothing depends."""
    *parents, key = rng.choice([where for where in leaves(data) if where[0] not in ("provenance", "checksum", "files")])
    place = data
    for parent in parents:
        place = place[parent]
    change = rng.randrange(5)
    if change == 0:
        del place[key]
    elif change == 1 and isinstance(place, dict):
        place[rng.choice(["extra", "__class__", ""])] = rng.choice(VALUES)
    elif change == 2 and isinstance(place, list):
        place.append(rng.choice([*place, *VALUES]))
    elif change == 3 and isinstance(place[key], int | float):
        place[key] += rng.choice([-1, 1, 1000])
    else:
        place[key] = rng.choice(VALUES)


def test_a_rewritten_spec_is_refused_or_is_a_sound_bundle_of_another_version(bundles, tmp_path):
    verdicts = collections.Counter()
    for seed in range(1000):
        rng = random.Random(seed)
        genuine, policy, before = bundles[rng.choice(sorted(bundles))]
        path = shutil.copytree(genuine, tmp_path / str(seed))
        data = content(path)
        edit(data, rng)
        sealed(path, data)
        if refusal(path):
            verdicts["refused"] += 1
        else:
            again = load_policy(path)
            actions = again.actions(torch.zeros(len(again.spec.agents), 3, again.spec.obs_dim), memory=again.blank(3))
            if again.spec.actions.continuous:
                low, high = (torch.tensor(x) for x in (again.spec.actions.low, again.spec.actions.high))
                assert ((actions >= low) & (actions <= high)).all()
            else:
                choices = torch.tensor(again.spec.actions.choices)
                assert (actions.reshape(-1, len(choices)) < choices).all()
            same = again.spec == policy.spec and equal(behaviour(again, again.spec.model), before)
            assert same or again.version != policy.version
            verdicts["same" if same else "another version"] += 1
        shutil.rmtree(path)
    assert verdicts["refused"] > 700, verdicts


@pytest.mark.parametrize("team", TEAMS)
def test_an_actor_that_reads_states_is_refused(bundles, tmp_path, team):
    path = shutil.copytree(bundles[team][0], tmp_path / "bundle")
    data = content(path)
    data["model"]["normalise_obs"] = True
    heads = data["model"]["heads"]
    data["model"]["heads"] = {name: head for name, head in heads.items() if name.startswith("actor")}
    heads["actor"]["reads"] = "state"
    sealed(path, data)
    assert "read" in refusal(path)


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("schema_version",), 99, "has schema_version 99, this rllib_hypermarl reads up to 4: install a newer one"),
        (("schema_version",), 0, "schema_version"),
        (("kind",), "thawed", "kind: Input should be 'frozen' or 'full'"),
        (("colour",), "red", "colour: Extra inputs are not permitted"),
        (("model", "heads", "actor", "colour"), "red", "model.heads.actor.colour"),
        (("model", "heads", "actor", "hidden"), [2**20, 2**20], "268,435,456 are the most"),
        (("model", "heads", "actor", "hidden"), [10**12], "sizes of layers"),
        (("model", "heads", "actor", "hidden"), [1] * 10**6, "sizes of layers"),
        (("model", "heads", "actor", "hidden"), [9, 6], "its spec says torch.float32 (3, 5, 9)"),
        (("model", "heads", "actor", "hidden"), [8, 6, 6], "lacks or has beside what its spec says"),
        (("model", "actions", "choices"), [-1, 5], "sizes of layers"),
        (("agents",), ["agent_0", "agent_0", "agent_1", "agent_2"], "agents: expected 1 to 4096 names, no two alike"),
        (("files",), {WEIGHTS: "0" * 64}, "weights.safetensors is damaged (its checksum differs)"),
        (("files",), {"../weights.safetensors": "0" * 64}, "files"),
    ],
)
def test_what_is_wrong_is_named(bundles, tmp_path, keys, value, words):
    path = shutil.copytree(bundles["discrete"][0], tmp_path / "bundle")
    data = content(path)
    place = data
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    data.pop("checksum")
    (path / SPEC).write_text(json.dumps({"checksum": specs._checksum(data)[0], **data}))
    assert words in refusal(path)


def test_json_that_is_no_spec_is_refused(bundles, tmp_path):
    path = shutil.copytree(bundles["discrete"][0], tmp_path / "bundle")
    whole = (path / SPEC).read_text()
    twice = whole.replace('"kind"', '"kind": "full", "kind"', 1)
    deep = '{"provenance": ' + "[" * 100_000 + "]" * 100_000 + "}"
    digits = '{"schema_version": ' + "9" * 10_000 + "}"
    for text in (twice, deep, digits, "[]", "null", "1", '"x"', "{", '{"\\ud800": 1}', "\ufeff" + whole):
        (path / SPEC).write_text(text, encoding="utf-8")
        assert SPEC in refusal(path)
    (path / SPEC).write_bytes(whole.encode("utf-16"))
    refusal(path)
    with (path / SPEC).open("wb") as file:
        file.truncate(2**40)  # of holes
    assert "more than the 16,777,216 that are possible" in refusal(path)


def test_a_file_of_absurd_size_is_refused_unread(bundles, tmp_path):
    path = shutil.copytree(bundles["tanh"][0], tmp_path / "bundle")
    with (path / WEIGHTS).open("r+b") as file:
        file.truncate(2**40)
    assert "weights.safetensors has 1,099,511,627,776 bytes" in refusal(path)


def test_places_without_a_bundle_are_named(tmp_path):
    (tmp_path / "file").write_text("...")
    (tmp_path / "empty").mkdir()
    assert "cannot be read as a bundle (No such file" in refusal(tmp_path / "nowhere")
    assert "cannot be read as a bundle (Not a directory" in refusal(tmp_path / "file")
    assert "holds nothing; expected bundle.json and weights.safetensors, nothing else" in refusal(tmp_path / "empty")
