"""Figures of others, a paper's say, to stand beside a report's own: read from a YAML file that names their sources."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import ConfigError
from ..rllib.grammar import read_yaml


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReferenceFigure(_Model):
    """A final return that somebody reports.

    Attributes:
        env, env_config, config: of the groups it stands beside: every key that is given here has this value there.
        value: the return, mean over agents as ours.
        low, high: its interval, if there is one.
        source: where it is reported, and what is unlike ours (env steps, how it was read or converted).
    """

    env: str
    env_config: dict[str, Any] = {}
    config: dict[str, Any] = {}
    value: float
    low: float | None = None
    high: float | None = None
    source: str

    def fits(self, config: Mapping[str, Any]) -> bool:
        """Args: config, of a run: dotted keys."""
        wanted = {f"env_config.{key}": value for key, value in self.env_config.items()} | self.config
        return config["env"] == self.env and all(config.get(key) == value for key, value in wanted.items())


class Reference(_Model):
    """A file of figures; the first that fits a group stands beside it.

    Attributes:
        name: of whoever reports them.
    """

    name: str
    figures: tuple[ReferenceFigure, ...]

    @classmethod
    def from_yaml(cls, path: Path) -> Reference:
        """
        Raises:
            ConfigError: the file cannot be read, or holds something else.
        """
        try:
            return cls.model_validate(read_yaml(path))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"{path}: {key}: {first['msg']}") from error

    def beside(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """The figure for a group, as JSON has it; None where there is none. Args: config, of one of its runs."""
        found = next((figure for figure in self.figures if figure.fits(config)), None)
        return found and found.model_dump(include={"value", "low", "high", "source"})
