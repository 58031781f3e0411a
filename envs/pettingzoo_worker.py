"""A process that steps some copies of a PettingZoo env for `pettingzoo_pool.py`, which starts it.

Its arguments are three file descriptors: of the connection to its owner, of a pipe that nobody ever writes into and
that breaks when the owner ends, however it ends, and of the memory that both share.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import sys
from multiprocessing.connection import Connection

from ..errors import EnvError
from .pettingzoo_copies import Arrays, Copies, EnvRaisedError

OK, REFUSED, RAISED, BROKEN = "ok", "refused", "raised", "broken"


def end_with_owner(life: int) -> None:
    """From now on the kernel sends SIGIO, which ends a process, when the pipe breaks: also one that hangs in C."""
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([life], [], [], 0)[0]:  # it broke before
        os._exit(1)


def main(connection: int, life: int, memory: int) -> None:
    end_with_owner(life)
    owner = Connection(connection)
    with contextlib.suppress(EOFError, ConnectionError):  # the owner has had enough
        try:
            serve(owner, memory)
        except EnvRaisedError as error:
            owner.send((RAISED, str(error)))
        except EnvError as error:
            owner.send((BROKEN, str(error)))
        except ValueError as error:
            owner.send((REFUSED, str(error)))


def serve(owner: Connection, memory: int) -> None:
    copies = Copies(*owner.recv())
    try:
        owner.send((OK, copies.description))
        num_envs, workers, description = owner.recv()
        copies.bind(Arrays(description, num_envs, workers, lambda size: mmap.mmap(memory, size)), description)
        while True:
            method, seed = owner.recv()
            getattr(copies, method)(seed)
            owner.send((OK, None))
    finally:
        with contextlib.suppress(Exception):  # nobody is there to be told
            copies.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
