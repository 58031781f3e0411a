"""What a served team is asked and what it answers, as pydantic models: they validate, and document in OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import HyperMARLError

MAX_NUMBERS = 2**22
"""That the observations and memory of one request may hold, counting agents that are not asked, too: they act on
zeros."""

Number = Annotated[float, Field(allow_inf_nan=False)]
Rows = list[Number] | list[list[Number]]
MaskRows = list[bool] | list[list[bool]]


class RefusedError(HyperMARLError):
    """A request that cannot be answered: its HTTP status, the field at fault, and what to do."""

    def __init__(self, field: str, message: str, status: int = 422):
        super().__init__(f"{field}: {message}")
        self.field, self.message, self.status = field, message, status


class ActRequest(BaseModel):
    """One team's observations, of any subset of its agents and any number of environments."""

    model_config = ConfigDict(extra="forbid", strict=True)

    observations: dict[str, Rows] = Field(
        min_length=1,
        description="Agent -> its observation, or a list of its observations in several environments (as many for "
        "every agent; the answer then has that axis too).",
    )
    action_mask: dict[str, MaskRows] | None = Field(
        None,
        description="Agent -> true where a choice is allowed, in the shape of its observations. Agents left out may do "
        "anything. Discrete actions only; at least one choice must be allowed.",
    )
    memory: dict[str, Rows] | None = Field(
        None,
        description="Of teams with memory: agent -> what it remembers, the `memory` of the answer before, in the shape "
        "of its observations. Zeros, and agents left out, are at the beginning of an episode. With `values` it is "
        "longer by what the critics remember: ask for them at every step of an episode or at none.",
    )
    state: Rows | None = Field(
        None, description="The environment's own state, where `values` need it: one for all agents of an environment."
    )
    greedy: bool = Field(True, description="The most likely actions; else they are sampled.")
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**63,
        description="Of sampled actions: the same request with the same seed is answered the same. Without meaning "
        "where greedy.",
    )
    probabilities: bool = Field(False, description="Whether to answer the probabilities of discrete choices.")
    values: bool = Field(False, description="Whether to answer the critic's values, if the bundle has a critic.")


class ActAnswer(BaseModel):
    """What each agent that was asked for does."""

    version: str = Field(description="Of the bundle that gave this answer.")
    actions: dict[str, Any] = Field(
        description="Agent -> a choice, choices of several components, or numbers within the bounds of the space."
    )
    memory: dict[str, Any] | None = Field(
        None, description="Of teams with memory: agent -> what it remembers now, for the request of the next step."
    )
    probabilities: dict[str, Any] | None = Field(None, description="Agent -> of every choice (of every component).")
    values: dict[str, Any] | None = Field(None, description="Agent -> the value, in units of the reward.")


class Refusal(BaseModel):
    """Why a request was not answered."""

    field: str = Field(description="Where the fault is: a field of the request, `body`, `path`, `authorization`, ...")
    error: str


def parse(body: bytes) -> ActRequest:
    """Reads a JSON request.

    Raises:
        RefusedError: names the field.
    """
    try:
        return ActRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> RefusedError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where, kind, message = list(first["loc"]), first["type"], first["msg"]
    if kind == "json_invalid":
        return RefusedError("body", message, 400)
    if where and where[0] in ("observations", "action_mask", "memory"):
        del where[2:3]  # which of the two shapes pydantic tried
    elif where and where[0] == "state":
        del where[1:2]
    if kind == "extra_forbidden":
        message = f"unknown; fields are {', '.join(ActRequest.model_fields)}"
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).removeprefix(".")
    return RefusedError(_shortened(field) or "body", message)


def _shortened(text: str, limit: int = 120) -> str:
    """What strangers sent goes into answers and logs by the line, not by the page."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= limit else f"{text[:limit]}..."


def as_rows(value: Any, width: int, field: str, dtype: Any = np.float32) -> tuple[np.ndarray, bool]:
    """Numbers as `[B, width]`, and whether they came without an axis of environments.

    Raises:
        RefusedError: they are not `width` each.
    """
    single = not value or not isinstance(value[0], list)
    rows = [value] if single else value
    for i, row in enumerate(rows):
        if len(row) != width:
            where = field if single else f"{field}[{i}]"
            raise RefusedError(where, f"expected {width} values, got {len(row)}")
    return np.array(rows, dtype), single


def check_finite(array: np.ndarray, single: bool, field: str) -> None:
    """Args: array `[B, width]` float32; single, as `as_rows` returned it.

    Raises:
        RefusedError: a number was larger than they can be.
    """
    if not np.isfinite(array).all():
        row, column = np.argwhere(~np.isfinite(array))[0]
        where = f"{field}[{column}]" if single else f"{field}[{row}][{column}]"
        raise RefusedError(where, "too large for a 32-bit float")


def encode(answer: dict[str, Any]) -> bytes:
    """JSON of an answer that holds numpy arrays; 32-bit floats are written so that reading them gives the same bits."""
    return orjson.dumps(answer, np.ndarray.tolist, orjson.OPT_SERIALIZE_NUMPY)  # the former for odd strides
