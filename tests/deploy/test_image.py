"""What can be said about the Dockerfile without building it, and the entry point as it is."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8")


def instructions():
    """(instruction, arguments), continued lines joined, comments left out."""
    lines = "\n".join(line for line in TEXT.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def of(name):
    return [arguments for instruction, arguments in instructions() if instruction == name]


def copied():
    """Paths of the build context that the image takes."""
    return {path for line in of("COPY") if "--from" not in line for path in line.split()[:-1]}


def test_bases_are_pinned_to_a_patch_version():
    bases = [line.split()[0] for line in of("FROM")]
    assert bases
    assert all(re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+-[\w-]+", base) for base in bases)
    assert "latest" not in TEXT


def test_python_is_the_one_that_the_requirements_are_tested_with():
    assert "on Python 3.11" in REQUIREMENTS
    assert {re.match(r"python:(\d+\.\d+)\.", base)[1] for base in of("FROM")} == {"3.11"}


def test_the_last_user_is_not_root_and_owns_its_home():
    assert of("USER")[-1] == "1000:1000"
    names = [name for name, _ in instructions()]
    assert "RUN" not in names[names.index("USER") :]
    assert "HOME=/home/ray" in " ".join(of("ENV"))


def test_nothing_is_fetched_by_add_and_no_secret_is_baked_in():
    assert of("ADD") == []
    for setting in of("ENV") + of("ARG"):
        assert not re.search(r"(?i)token|secret|passw|credential|api_?key", setting.replace("RAY_AUTH_MODE=token", ""))


def test_authentication_is_on_and_health_is_checked():
    assert "RAY_AUTH_MODE=token" in " ".join(of("ENV"))
    assert len(of("HEALTHCHECK")) == 1
    assert "CMD" in of("HEALTHCHECK")[0]


def test_no_cache_stays_in_a_layer():
    for run in of("RUN"):
        assert run.count("pip install") + run.count("pip wheel") == run.count("--no-cache-dir")
        assert "apt-get install" not in run or run.endswith("rm -rf /var/lib/apt/lists/*")


def test_kuberay_s_probes_and_the_cluster_launcher_find_their_programs():
    (apt,) = [run for run in of("RUN") if "apt-get install" in run]
    assert {"wget", "rsync", "openssh-client", "tini"} <= set(apt.split())


def test_the_lines_it_takes_from_the_requirements_are_there():
    patterns = re.findall(r"grep '(\^[^']+)'", TEXT)
    assert patterns == ["^setuptools==", "^torch=="]
    for pattern in patterns:
        assert len(re.findall(pattern, REQUIREMENTS, flags=re.M)) == 1
    (end,) = re.findall(r"sed '/(\^[^/]+)/,\$d'", TEXT)
    runtime = re.split(end, REQUIREMENTS, flags=re.M)[0]
    assert re.search(r"^ray\[", runtime, flags=re.M)
    assert "pytest" not in runtime
    assert all("==" in line for line in runtime.splitlines() if line and not line.startswith("#"))


@pytest.mark.parametrize(("compute", "index"), [("cpu", "download.pytorch.org/whl/cpu"), ("cuda", "pypi.org/simple")])
def test_compute_chooses_where_torch_is_from(compute, index):
    (run,) = [run for run in of("RUN") if "COMPUTE" in run]
    choice = run[: run.index("esac") + 4] + '; echo "$index"'
    done = subprocess.run(["sh", "-c", choice], env={"COMPUTE": compute}, text=True, capture_output=True, check=True)
    assert done.stdout.strip() == f"https://{index}"
    wrong = subprocess.run(["sh", "-c", choice], env={"COMPUTE": "rocm"}, text=True, capture_output=True)
    assert wrong.returncode == 2
    assert "rocm" in wrong.stderr


def test_the_build_sees_what_it_copies_and_nothing_else():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"  # so .git, .venv, runs, tests and docs are out
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == copied()
    assert all((ROOT / path).exists() for path in copied())


@pytest.mark.parametrize(
    ("arguments", "started"),
    [
        (["train", "a b.yaml"], "rllib-hypermarl|train|a b.yaml|"),
        ([], "rllib-hypermarl|"),
        (["--help"], "rllib-hypermarl|--help|"),
        (["ray", "start", "--head"], "ray|start|--head|"),
        (["bash"], "bash|"),
    ],
)
def test_the_entry_point_starts_ours_or_a_node(tmp_path, arguments, started):
    for name in ("rllib-hypermarl", "ray", "bash"):
        program = tmp_path / name
        program.write_text('#!/bin/sh\nprintf "%s|" "${0##*/}" "$@"\n')
        program.chmod(0o755)
    script = ROOT / "deploy/entrypoint.sh"
    assert os.access(script, os.X_OK)
    done = subprocess.run([script, *arguments], env={"PATH": f"{tmp_path}:/bin"}, text=True, capture_output=True)
    assert done.stdout == started
