"""Copies of a PettingZoo env in worker processes with shared memory, and what becomes of workers that crash or hang.

Not `multiprocessing`: forked processes inherit the locks and the sockets of Ray's and torch's threads, spawned ones run
the main module again, and neither ends for certain when its parent is killed.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import signal
import subprocess
import sys
import time
import weakref
from multiprocessing.connection import Pipe
from typing import Any, Literal, NoReturn

from ..errors import EnvError
from . import pettingzoo_worker as protocol
from .pettingzoo_copies import Arrays
from .pettingzoo_task import Description, Task

log = logging.getLogger(__name__)

OnCrash = Literal["fail", "replace"]
_START_SECONDS = 300.0  # until a worker has made its copies; imports are slow on a busy machine
_CLOSE_SECONDS = 5.0


class LostWorkerError(EnvError):
    """A worker crashed, hung, or its env raised. The message says which, and how."""


class Worker:
    """One process and its copies.

    Args:
        index: of the worker.
        copies: that it steps.
        memory: file descriptor of what is shared.
    """

    def __init__(self, task: Task, index: int, copies: range, memory: int):
        self.index, self.copies, self.name = index, copies, task.full_name
        self.unproven = False
        """Whether it replaces a lost one, and has not stepped yet."""
        self._connection, its = Pipe()
        life, self._life = os.pipe()  # one for each worker: of a shared one only the last would hear
        files = (its.fileno(), life, memory)
        paths = [os.path.abspath(path) for path in sys.path if isinstance(path, str)]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", protocol.__name__, *map(str, files)],
            env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            pass_fds=files, stdin=subprocess.DEVNULL, stdout=2, process_group=0,  # Ctrl-C is the owner's
        )  # fmt: skip
        its.close()
        os.close(life)
        self.send(task, copies.start, len(copies), index)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, *message: Any) -> None:
        self._asked = time.monotonic()
        with contextlib.suppress(OSError):  # it died: whoever asks for the answer will be told
            self._connection.send(message)

    def answer(self, seconds: float | None, busy: Any = None) -> Any:
        """What the worker answers to what was sent last, at most so many seconds after that.

        Args:
            busy: `Arrays.busy`, once there are arrays.

        Raises:
            LostWorkerError: it crashed or hung (then it is killed), or its env raised.
            EnvError, ValueError: its env broke the contract; refuses its arguments.
        """
        try:
            left = None if seconds is None else max(0.0, self._asked + seconds - time.monotonic())
            if not self._connection.poll(left):
                self._lose(f"did not answer within {seconds:g} s and was killed", busy)
            kind, content = self._connection.recv()
        except (EOFError, OSError):
            self._lose(None, busy)
        if kind == protocol.RAISED:
            raise LostWorkerError(f"{content}; in {self}")
        if kind == protocol.BROKEN:
            raise EnvError(content)
        if kind == protocol.REFUSED:
            raise ValueError(content)
        return content

    def _lose(self, how: str | None, busy: Any) -> NoReturn:
        if how is None:
            try:
                code = self._process.wait(_CLOSE_SECONDS)
                killed = f"was killed by {signal.Signals(-code).name}" if code < 0 else ""
                how = killed or f"ended with exit code {code}"
            except subprocess.TimeoutExpired:
                how = "closed its connection and went on"
        self.kill()
        at = "" if busy is None else f" while it was at copy {busy[self.index]}"
        raise LostWorkerError(f"env '{self.name}': {self} {how}{at}")

    def __str__(self) -> str:
        copies = f"copies {self.copies[0]} to {self.copies[-1]}" if len(self.copies) > 1 else f"copy {self.copies[0]}"
        return f"worker {self.index} (pid {self.pid}, {copies})"

    def dismiss(self) -> None:
        """It will close its copies and end, once it is done with what it does."""
        self._connection.close()

    def kill(self, after: float = 0.0) -> None:
        """Args: after, seconds that it is given to end by itself."""
        self.dismiss()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, after))
        self._process.kill()
        self._process.wait()
        if self._life is not None:
            os.close(self._life)
            self._life = None


class WorkerPool:
    """`num_envs` copies, shared out among `num_workers` processes in blocks; the calls are those of `Copies`.

    Args:
        on_crash: what happens when a worker crashes, hangs or its env raises. `fail`: `LostWorkerError`. `replace`: a
            new process takes over its copies, each in a new episode; unless that is lost before its first step is done.
        step_timeout_s: how long a worker may take for a step or a reset of all its copies; None: for ever.
    """

    def __init__(self, task: Task, num_envs: int, num_workers: int, on_crash: OnCrash, step_timeout_s: float | None):
        self._task, self._num_envs = task, num_envs
        self._on_crash, self._step_timeout_s = on_crash, step_timeout_s
        self._memory = os.memfd_create("pettingzoo")
        self._workers: list[Worker] = []
        self.close = weakref.finalize(self, _close, self._workers, self._memory)
        starts = [num_envs * i // num_workers for i in range(num_workers + 1)]
        try:
            for i in range(num_workers):
                self._workers.append(self._start(i, range(starts[i], starts[i + 1])))
            descriptions = [worker.answer(_START_SECONDS) for worker in self._workers]
            self.description: Description = descriptions[0]  # one order of agents for all
            self.arrays = Arrays(self.description, num_envs, num_workers, self._map)
            for worker in self._workers:
                self._bind(worker)
        except BaseException:
            self.close()
            raise

    def reset(self, seed: int) -> list[int]:
        """Begins new episodes everywhere. Returns the copies whose worker was replaced."""
        return self._all("reset", seed)

    def step(self, seed: int) -> list[int]:
        """As `Copies.step`. Returns the copies whose worker was replaced: they have begun new episodes, and the arrays
        say nothing of how the old ones ended."""
        return self._all("step", seed)

    def _all(self, method: str, seed: int) -> list[int]:
        for worker in self._workers:
            worker.send(method, seed)
        replaced: list[int] = []
        try:
            for worker in list(self._workers):
                try:
                    worker.answer(self._step_timeout_s, self.arrays.busy)
                    worker.unproven = False
                except LostWorkerError as error:
                    self._replace(worker, error, seed)
                    replaced += worker.copies
        except BaseException:  # also of an interrupt: answers that nobody waits for would be taken for later ones
            self.close()
            raise
        return replaced

    def _replace(self, lost: Worker, error: LostWorkerError, seed: int) -> None:
        lost.kill()
        if self._on_crash == "fail":
            raise LostWorkerError(f"{error} (on_crash: replace in env_config would go on)") from error
        if lost.unproven:
            raise LostWorkerError(f"{error}; it had just replaced another one, so no third one is tried") from error
        log.warning("%s; its copies begin new episodes in a new process", error)
        worker = self._workers[lost.index] = self._start(lost.index, lost.copies)
        try:
            worker.answer(_START_SECONDS)
            self._bind(worker)
            worker.send("reset", seed)
            worker.answer(self._step_timeout_s, self.arrays.busy)
        except (EnvError, ValueError) as second:
            raise LostWorkerError(f"{error}; so was the process that should have replaced it: {second}") from second
        worker.unproven = True

    def _start(self, index: int, copies: range) -> Worker:
        return Worker(self._task, index, copies, self._memory)

    def _bind(self, worker: Worker) -> None:
        worker.send(self._num_envs, len(self._workers), self.description)

    def _map(self, size: int) -> mmap.mmap:
        os.ftruncate(self._memory, size)
        return mmap.mmap(self._memory, size)


def _close(workers: list[Worker], memory: int) -> None:
    for worker in workers:
        worker.dismiss()
    deadline = time.monotonic() + _CLOSE_SECONDS
    for worker in workers:
        worker.kill(after=deadline - time.monotonic())
    os.close(memory)
