"""Commands of `python -m rllib_hypermarl`: parsing, printing and exit status; the work is done elsewhere."""

from .app import run

__all__ = ["run"]
