"""The wheel holds the whole library, environments included; a bare checkout works without any installation."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

from tests.helpers import ROOT, STEPS, environment, rows, write_config

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


def call(*command, cwd, **extra):
    env = {key: value for key, value in environment(**extra).items() if key != "PYTHONPATH" or "PYTHONPATH" in extra}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, text=True, capture_output=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what a clone would hold: no build products, nothing of this checkout's `.git`."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, text=True, capture_output=True, check=True,
    ).stdout  # fmt: skip
    target = tmp_path_factory.mktemp("clone") / "repository"
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(checkout, out / "source")
    call(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", out,
         cwd=source)  # fmt: skip
    (made,) = out.glob("*.whl")
    return made


def test_the_wheel_holds_every_module_and_nothing_else(wheel, checkout):
    packaged = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ours = {str(path.relative_to(checkout)) for path in (checkout / "rllib_hypermarl").rglob("*.py")}
    ours |= {f"rllib_hypermarl/envs/{path.name}" for path in (checkout / "envs").glob("*.py")}
    assert packaged == ours | {"rllib_hypermarl/py.typed"}
    licences = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(("/LICENSE", "/NOTICE"))]
    assert len(licences) == 2


def test_two_iterations_from_an_installed_wheel_outside_the_repository(wheel, tmp_path):
    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv/bin/python"
    site = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    # The requirements come from the environment of this test; the library itself must come from the wheel.
    with open(os.path.join(site, "requirements.pth"), "w") as file:
        file.write(sysconfig.get_path("purelib") + "\n")
    call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "-q", wheel,
         cwd=tmp_path)  # fmt: skip
    where = call(python, "-c", "import rllib_hypermarl; print(rllib_hypermarl.__file__)", cwd=tmp_path)
    assert where.startswith(site)

    write_config(tmp_path, "run.stop_env_steps=256")
    call(tmp_path / "venv/bin/rllib-hypermarl", "train", "config.yaml", "--out", "run", cwd=tmp_path)
    assert [row["num_env_steps_sampled_lifetime"] for row in rows(tmp_path / "run")] == [STEPS, 2 * STEPS]
    call(python, "-m", "rllib_hypermarl", "evaluate", "run", "--episodes", "2", cwd=tmp_path)


def test_two_iterations_from_a_bare_checkout(checkout):
    assert (checkout / "envs/matrix_games.py").is_file()
    where = call(sys.executable, "-c", "import rllib_hypermarl; print(rllib_hypermarl.__file__)", cwd=checkout)
    assert where.strip() == str(checkout / "rllib_hypermarl/__init__.py")
    write_config(checkout, "run.stop_env_steps=256")
    call(sys.executable, "-m", "rllib_hypermarl", "train", "config.yaml", "--out", "run", cwd=checkout)
    assert [row["num_env_steps_sampled_lifetime"] for row in rows(checkout / "run")] == [STEPS, 2 * STEPS]
