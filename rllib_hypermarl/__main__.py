"""The command line: `python -m rllib_hypermarl --help`.

Exit status: 0 done, 1 failed, 2 bad config or argument, 130 or 143 stopped by a signal with the checkpoint written.
"""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status. Errors are one line on stderr."""
    from .cli import run

    return run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
