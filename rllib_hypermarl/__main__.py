"""The command line: `python -m rllib_hypermarl --help`.

Exit status: 0 done, 1 failed, 2 bad config or argument, 130 or 143 stopped by a signal with the checkpoint written.
"""

from __future__ import annotations

import os
import sys

# How often GNU OpenMP's threads, torch's on Linux, look for work before they sleep: 300,000 times if nobody says so.
# Where other processes have the CPUs, that leaves a fifth of one thread's speed; this leaves three quarters, and on an
# idle machine it costs nothing that could be measured (docs/results/threads.json). Read once, when torch loads.
SPIN_COUNT = "1000"


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status. Errors are one line on stderr."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    from .cli import run

    return run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
