"""What the benches share: the machine, fresh processes, memory, stopwatches, results on disk."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import platform
import random
import resource
import socket
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import ConfigError


def machine() -> dict[str, Any]:
    """What figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "ray")},
    }


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has: above those of Ray's workers, below those that the system gives to outgoing
    connections, one of which could take it before the caller does."""
    while True:
        port = random.SystemRandom().randrange(20_000, 29_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def in_fresh_process(function: Callable, *args: Any, method: str = "spawn", preload: str | None = None) -> Any:
    """Calls a module-level function in a process of its own and returns what it returns.

    Args:
        method: `spawn`, a new interpreter; `forkserver`, a fork of an idle process that has imported `preload`, which
            takes milliseconds instead of seconds.
    """
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([preload])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def memory_mb() -> tuple[float, float]:
    """Resident memory of this process in MB: now, and at its highest.

    `getrusage` would not do for the latter: a process inherits the peak of the one that started it.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if platform.system() == "Darwin" else 2**10)
        return peak, peak
    sizes = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return tuple(int(sizes[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))


class Stopwatch:
    """Adds up the seconds spent in one method of one object, which keeps the timed method."""

    def __init__(self, owner: Any, method: str):
        self.seconds = 0.0
        self._call = getattr(owner, method, None)
        if self._call is not None:
            setattr(owner, method, self._timed)

    def _timed(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return self._call(*args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - start


class Store:
    """Results as JSON lines, each found again by what was asked for: work that takes hours can be stopped and go on."""

    def __init__(self, file: Path):
        """
        Raises:
            ConfigError: the file, or its directory, is not what it should be.
        """
        self._file, self._rows = file, []
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            text = file.read_text(encoding="utf-8") if file.exists() else ""
            whole = text[: text.rfind("\n") + 1]
            if whole != text:  # a line that was cut by a kill
                file.write_text(whole, encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--out {file.parent}: cannot be used ({error})") from error
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
                self._rows.append((row["asked"], row))
            except (ValueError, TypeError, KeyError) as error:
                raise ConfigError(f"{file} line {number} is no result; remove it, or choose another --out") from error

    def get(self, asked: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row of what was asked for: from the file, or measured and appended to it."""
        for known, row in self._rows:
            if known == asked:
                return row
        row = {"asked": asked, **measure()}
        with self._file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        self._rows.append((asked, row))
        return row
