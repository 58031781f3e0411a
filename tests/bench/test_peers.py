"""`bench peers` without BenchMARL: a stub speaks for it, in a process as BenchMARL's is."""

import json
import sys
from pathlib import Path

import pytest
import torch

from rllib_hypermarl import HyperMARLConfig
from rllib_hypermarl.bench import peer_process, peers
from rllib_hypermarl.bench.measure import Store
from rllib_hypermarl.bench.peer_contenders import Ours, Peer, Setup, our_config
from rllib_hypermarl.bench.throughput import Work
from rllib_hypermarl.errors import RunFailedError
from tests.cli.test_cli import error_of
from tests.helpers import ROOT

STUB = Path(__file__).with_name("peer_stub.py")
SETUP = Setup(4, 8, 2, 1, evaluation_episodes=2)


def stub(side, sharing, setup):
    """Everybody is the stub."""
    return Peer(setup, sharing, (sys.executable, STUB))


def asked(sharing="shared", seed=0, **more):
    setup = Setup(4, 8, 2, 1, seed=seed)
    return {"side": "benchmarl", "sharing": sharing, "setup": setup.to_json(), "env_steps": 300, "every": 4, **more}


# ------------------------------------------------------------------------------------------------------------ protocol


def test_a_peer_iterates_and_evaluates_on_request():
    peer = stub("benchmarl", "shared", SETUP)
    assert peer.about == {"versions": {}, "threads": 1}
    assert peer.iterate(3) == (96, 0.096)
    assert (peer.evaluate(), peer.evaluate(explore=True)) == (0.3, pytest.approx(-0.7))
    peer.close()


@pytest.mark.parametrize(
    ("message", "words"), [({"fail": 1}, "the stub: ValueError: asked to"), ({}, "answered what is not JSON: Hello!")]
)
def test_a_peer_s_error_is_told(message, words):
    process = peer_process.PeerProcess((sys.executable, STUB), SETUP.to_json(), "the stub")
    with pytest.raises(RunFailedError, match=words):
        process.ask(message)
    process.close()


@pytest.mark.parametrize(
    ("command", "words"),
    [((sys.executable, STUB), "status 1: this seed brings bad luck"), (("true",), "status 0: it said nothing")],
)
def test_a_peer_that_ends_is_told_with_its_last_words(command, words):
    with pytest.raises(RunFailedError, match=words):
        Peer(Setup(4, 8, 2, 1, seed=13), "shared", command)


# --------------------------------------------------------------------------------------------------------- environment


def test_the_environment_gets_torch_first_and_is_built_once(tmp_path, monkeypatch):
    calls, lines = [], []

    def call(*command):
        calls.append([str(word) for word in command])
        (tmp_path / "env" / "bin").mkdir(parents=True, exist_ok=True)
        for name in ("pyvenv.cfg", "bin/python"):
            (tmp_path / "env" / name).touch()

    monkeypatch.setattr(peer_process, "_call", call)
    python = peer_process.prepare(tmp_path / "env", lines.append)
    torch_pin = f"torch=={torch.__version__.split('+')[0]}"
    assert [command[-1] for command in calls[:2]] == [str(tmp_path / "env"), torch_pin]
    assert {torch_pin, "benchmarl==1.5.2"} < set(calls[2]) and len(calls) == 3 and len(lines) == 1
    assert peer_process.prepare(tmp_path / "env", lines.append) == python and len(calls) == 3
    monkeypatch.setattr(peer_process, "BENCHMARL", ("benchmarl==1.6",))
    peer_process.prepare(tmp_path / "env", lines.append)
    assert len(calls) == 6


def test_a_package_that_cannot_be_installed_is_told():
    with pytest.raises(RunFailedError, match="cannot be built: ERROR: no"):
        peer_process._call(sys.executable, "-c", "print('ERROR: no\\n'); raise SystemExit(1)")


# --------------------------------------------------------------------------------------------------------------- store


def test_what_is_finished_is_not_measured_again(tmp_path):
    file = tmp_path / "out" / "peers.jsonl"
    assert Store(file).get({"seed": 0}, lambda: {"final": 1})["final"] == 1
    with file.open("a") as out:
        out.write('{"asked": {"seed": 1}, "fin')  # killed
    store = Store(file)
    assert store.get({"seed": 0}, lambda: pytest.fail("measured again"))["final"] == 1
    assert store.get({"seed": 1}, lambda: {"final": 2})["final"] == 2
    assert [json.loads(line)["final"] for line in file.read_text().splitlines()] == [1, 2]


def test_a_failed_run_leaves_no_line(tmp_path):
    def fail():
        raise RunFailedError("no")

    store = Store(tmp_path / "peers.jsonl")
    with pytest.raises(RunFailedError):
        store.get({"seed": 0}, fail)
    assert not (tmp_path / "peers.jsonl").exists()


# --------------------------------------------------------------------------------------------------------------- bench


@pytest.fixture(scope="module")
def race():
    lines = []
    return peers.race(Work(16, 128, 2, pairs=2), stub, 1, 2, lines.append), lines


def test_the_race_has_a_ratio_of_every_pair(race):
    entry, lines = race
    assert set(entry["env_steps_per_second"].values()) == {1000}
    assert len(entry["ratio"]) == 6 and set(entry["ratio"].values()) == {1.0}
    assert entry["ratio_range"]["none / not shared"] == [1.0, 1.0]
    assert [len(turn) for turn in entry["rounds"]["ours none"]] == [2, 2] and len(lines) == 10


def test_a_run_is_evaluated_at_intervals_and_at_the_end():
    row = peers.learn(asked(), Setup(4, 8, 2, 1), stub, lambda line: None)
    assert row["curve"] == [[0, 0.0, 0.0], [128, 0.13, 0.4], [256, 0.26, 0.8], [320, 0.32, 1.0]]
    assert row["final"] == {"greedy": 1.0, "sampled": 0.0}


def test_the_summary_and_the_table(race):
    curves = {0: [[0, 0.0, -0.5], [100, 0.1, 0.6]], 1: [[0, 0.0, -0.5], [50, 0.05, 0.7], [100, 0.05, 0.5]]}
    rows = [
        {"asked": asked(seed=seed), "curve": curve, "final": {"greedy": curve[-1][2], "sampled": 0.0}, "about": {},
         "machine": {}} for seed, curve in curves.items()
    ]  # fmt: skip
    (entry,) = peers.summary(rows)
    assert (entry["sharing"], entry["lr"], entry["seeds"]) == ("shared", 1e-3, [0, 1])
    assert (entry["env_steps_per_second"], entry["to_threshold"]) == (1500, [None, [50, 0.05]])
    assert entry["final"]["greedy"]["iqm"] == pytest.approx(0.55)
    text = peers.table({"speed": [race[0]], "tuning": [], "learning": [entry], "differences": ["one"]})
    assert "1.00 (1.00 to 1.00)" in text and "none / not shared at least 1.3" in text
    assert "0.550 (0.500 to 0.600)" in text and "never, 0.0M in 0 s" in text and "- one" in text


def test_ours_is_the_shipped_config():
    shipped = HyperMARLConfig.from_yaml(ROOT / "tune_configs" / "dispersion.yaml").to_groups()
    ours = our_config(Setup(128, 64, 8, 1), "hyper_mlp").to_groups()
    for groups in (shipped, ours):
        groups["training"].pop("lr")  # constant here, for BenchMARL's sake
    assert {key for key in shipped if shipped[key] != ours.get(key)} <= {"run", "evaluation"}


@pytest.mark.usefixtures("ray_session")
def test_ours_answers_as_a_peer_does():
    pytest.importorskip("vmas")
    ours = Ours(SETUP, "none")
    env_steps, seconds = ours.iterate(2)
    assert env_steps == 64 and seconds > 0
    assert -2 < ours.evaluate() < 1 and -2 < ours.evaluate(explore=True) < 1
    assert ours.about["parameters"]["actor"] == 4 * ((16 + 1) * 64 + 65 * 64 + 65 * 9)
    ours.close()


@pytest.mark.usefixtures("ray_session")
def test_a_second_run_finds_all_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(peer_process, "prepare", lambda directory, log: Path(sys.executable))
    monkeypatch.setattr(peers, "SCRIPT", STUB)
    monkeypatch.setattr(peers, "SHARINGS", ())
    monkeypatch.setattr(peers, "LEARNERS", {("benchmarl", "shared"): ((5e-4, 0.0), (1e-3, 0.01))})
    options = {
        "out": tmp_path,
        "seeds": 2,
        "env_steps": 5 * 8192,
        "tuning_steps": 8192,
        "works": [Work(4, 8, 2, pairs=1)],
    }
    first = peers.run(1, lambda line: None, **options)
    settings = {
        task: [(entry["lr"], entry["entropy_coeff"], entry["seeds"]) for entry in first[task]]
        for task in ("tuning", "learning")
    }
    assert settings == {"tuning": [(5e-4, 0.0, [0]), (1e-3, 0.01, [0])], "learning": [(1e-3, 0.01, [1, 2])]}
    assert len((tmp_path / "peers.jsonl").read_text().splitlines()) == 5
    monkeypatch.setattr(peers, "SCRIPT", tmp_path / "nothing.py")
    assert peers.run(1, lambda line: None, **options) == first == json.loads(json.dumps(first))


# -------------------------------------------------------------------------------------------------------- command line


def test_bad_arguments_are_one_line(capfd, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "peers.jsonl").write_text("3\n")
    out = ("--out", tmp_path / "out")
    assert "bench scaling has no such option" in error_of(capfd, 2, "bench", "scaling", "--seeds", 3)
    assert "-1 is not in the range" in error_of(capfd, 2, "bench", "peers", "--seeds", -1)
    assert "there is something else there" in error_of(capfd, 2, "bench", "peers", *out, "--environment", tmp_path)
    assert "line 1 is no result" in error_of(capfd, 2, "bench", "peers", "--out", tmp_path)
    assert "is a file" in error_of(capfd, 2, "bench", "peers", "--out", tmp_path / "file")
    assert "cannot be used" in error_of(capfd, 2, "bench", "peers", "--out", tmp_path / "file" / "below")
