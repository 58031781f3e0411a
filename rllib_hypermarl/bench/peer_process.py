"""Peers in virtual environments and processes of their own: what they need is not installed here, nor imported."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import ConfigError, RunFailedError

BENCHMARL = ("benchmarl==1.5.2", "torchrl==0.11.1", "tensordict==0.11.0")
"""Found to work with torch 2.13; torchvision and the rest are what pip finds for these."""
_STAMP = "peer-requirements.txt"
_PATIENCE = 20.0  # seconds that a peer has to end


def requirements() -> list[str]:
    """What BenchMARL's environment holds: BenchMARL, and the torch and the VMAS of this process. Torch comes first.

    Raises:
        ConfigError: there is no VMAS.
    """
    try:
        vmas = version("vmas")
    except PackageNotFoundError as error:
        raise ConfigError("bench peers needs VMAS: pip install 'rllib-hypermarl[vmas]'") from error
    torch = version("torch").split("+")[0]  # without the +cpu of a build
    return [f"torch=={torch}", f"vmas=={vmas}", *BENCHMARL]


def default_directory() -> Path:
    """Of BenchMARL's environment: in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "rllib_hypermarl" / BENCHMARL[0].replace("==", "-")


def prepare(directory: Path, log: Callable[[str], None]) -> Path:
    """Builds BenchMARL's virtual environment, if it is not there already.

    Args:
        directory: of the environment; what another version of this function built there is brought up to date.

    Returns:
        Its Python.

    Raises:
        ConfigError: the directory holds something else.
        RunFailedError: a package cannot be installed.
    """
    wanted = "\n".join(requirements()) + "\n"
    python, stamp = directory / "bin" / "python", directory / _STAMP
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted and python.exists():
        return python
    if (
        directory.exists()
        and not (directory / "pyvenv.cfg").is_file()
        and (directory.is_file() or any(directory.iterdir()))
    ):
        raise ConfigError(f"--environment {directory}: there is something else there; choose another directory")
    log(f"building an environment for BenchMARL in {directory}: once, a few minutes")
    stamp.unlink(missing_ok=True)
    _call(sys.executable, "-m", "venv", directory)
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    torch, *others = requirements()
    _call(*pip, torch)  # alone, so that it is the build that pip finds here, not one that others ask for
    _call(*pip, torch, *others)
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _call(*command: Any) -> None:
    done = subprocess.run([str(word) for word in command], text=True, capture_output=True)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("ERROR", "Error"))] or lines[-1:] or ["no message"]
        raise RunFailedError(f"BenchMARL's environment cannot be built: {errors[-1]}")


class PeerProcess:
    """A program that answers JSON lines with JSON lines.

    It waits while others measure. Its stderr is kept in a file, and the end of it told if the program fails.

    Attributes:
        hello: its answer to the first line.
    """

    def __init__(self, command: Sequence[str | Path], setup: dict[str, Any], name: str):
        """Starts it and sends it `setup`. Args: name: what errors call it."""
        self.name = name
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            self.hello = self.ask(setup)
        except BaseException:
            self.close()
            raise

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Sends one line and waits for its answer.

        Raises:
            RunFailedError: it answered with an error, with something else, or not at all.
        """
        try:
            print(json.dumps(message), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._process.wait(_PATIENCE)
            raise RunFailedError(f"{self.name} ended with status {status}: {self._last_words()}")
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise RunFailedError(f"{self.name} answered what is not JSON: {line.strip()[:200]}") from error
        if "error" in answer:
            raise RunFailedError(f"{self.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"

    def close(self) -> None:
        """Ends it: by ending its stdin, or by force."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()
