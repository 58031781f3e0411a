"""A client of a served team: asks, checks, tries again. Needs neither Ray nor torch."""

from __future__ import annotations

import dataclasses
import itertools
import random
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import httpx
import numpy as np
import orjson

from ..errors import HyperMARLError

_JSON = {"Content-Type": "application/json"}
_AGAIN = (408, 429, 502, 503, 504)


class ServingError(HyperMARLError):
    """A served team that refused a request, or did not answer it however often it was asked.

    Attributes:
        status: of the answer; None: there was none.
        field: of the request that is at fault, where the server named one.
    """

    def __init__(self, message: str, status: int | None = None, field: str | None = None):
        super().__init__(message)
        self.status, self.field = status, field


@dataclasses.dataclass(frozen=True, slots=True)
class Acted:
    """An answer, agent by agent.

    Attributes:
        version: of the bundle that gave it.
        actions: `[E, ...]`, or without E where the observations had none.
        probabilities: `[E, choices]`, of several components a list of those; None where not asked for.
        values: `[E]`; None where not asked for.
        memory: `[E, size]`, for the next step, with zeros where an episode has ended; None: the team has none.
    """

    version: str
    actions: dict[str, np.ndarray]
    probabilities: dict[str, Any] | None = None
    values: dict[str, np.ndarray] | None = None
    memory: dict[str, np.ndarray] | None = None


class TeamClient:
    """Asks a served team for actions over HTTP. Not for use by several threads at once.

    A question changes nothing on the server, so one that was not answered (no connection, a replica that died, a full
    queue) is asked again, at the next URL if there are several, after a pause that grows or that the server asked for.

    Args:
        url: of the team, with its route prefix; several (direct ingress) are used in turn.
        token: that the server asks for.
        timeout: seconds for one try.
        retries: tries after the first.
        transport: of httpx, for tests.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        token: str | None = None,
        timeout: float = 10.0,
        retries: int = 5,
        transport: httpx.BaseTransport | None = None,
    ):
        urls = [url] if isinstance(url, str) else list(url)
        self._urls = itertools.cycle([one.rstrip("/") for one in urls])
        self._retries = retries
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(headers=headers, timeout=timeout, transport=transport)
        self._random = random.Random()

    def __enter__(self) -> TeamClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def act(
        self,
        observations: Mapping[str, Any],
        *,
        greedy: bool = True,
        seed: int | None = None,
        action_mask: Mapping[str, Any] | None = None,
        memory: Mapping[str, Any] | None = None,
        state: Any = None,
        probabilities: bool = False,
        values: bool = False,
    ) -> Acted:
        """What the agents do; arguments as in the API's `ActRequest`, arrays or lists.

        Raises:
            ServingError: the server refused the request, or did not answer.
        """
        given = {"seed": seed, "state": None if state is None else np.asarray(state, np.float32)}
        request = {
            "observations": {agent: np.ascontiguousarray(x, np.float32) for agent, x in observations.items()},
            "greedy": greedy,
            "probabilities": probabilities,
            "values": values,
            **{key: value for key, value in given.items() if value is not None},
        }
        if action_mask is not None:
            request["action_mask"] = {agent: np.ascontiguousarray(x, bool) for agent, x in action_mask.items()}
        if memory is not None:
            request["memory"] = {agent: np.ascontiguousarray(x, np.float32) for agent, x in memory.items()}
        body = orjson.dumps(request, option=orjson.OPT_SERIALIZE_NUMPY)
        answer = self._ask("POST", "/v1/act", content=body, headers=_JSON)
        arrays = {key: {agent: np.asarray(x) for agent, x in answer[key].items()}
                  for key in ("actions", "values", "memory") if answer.get(key) is not None}  # fmt: skip
        return Acted(answer["version"], probabilities=answer.get("probabilities"), **arrays)

    def metadata(self) -> dict[str, Any]:
        """What is served: version, agents, sizes, where it comes from, a reload that was refused."""
        return self._ask("GET", "/metadata")

    def ready(self) -> bool:
        """Whether a team is served now; asks once."""
        try:
            return self._http.get(f"{next(self._urls)}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def _ask(self, method: str, path: str, **request: Any) -> Any:
        for attempt in range(self._retries + 1):
            url, pause = f"{next(self._urls)}{path}", 0.05 * 2**attempt
            try:
                answer = self._http.request(method, url, **request)
            except httpx.TransportError as error:
                problem = ServingError(f"{url}: {type(error).__name__}: {error}")
            except httpx.InvalidURL as error:
                raise ServingError(f"{url}: {error}") from error
            else:
                if answer.status_code == 200:
                    return orjson.loads(answer.content)
                problem = _problem(url, answer)
                if answer.status_code not in _AGAIN and not _lost_replica(answer):
                    raise problem
                pause = max(pause, _retry_after(answer))
            if attempt < self._retries:
                time.sleep(min(pause, 10.0) * self._random.uniform(0.8, 1.2))
        raise problem


def _lost_replica(answer: httpx.Response) -> bool:
    """Whether Serve's proxy lost the replica that was to answer: it says so with a status of 500, in plain text."""
    return answer.status_code == 500 and "json" not in answer.headers.get("content-type", "")


def _retry_after(answer: httpx.Response) -> float:
    value = answer.headers.get("retry-after", "")
    return float(value) if value.isdigit() else 0.0


def _problem(url: str, answer: httpx.Response) -> ServingError:
    try:
        said = orjson.loads(answer.content)
        field, error = str(said["field"]), str(said["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ServingError(f"{url}: HTTP {answer.status_code}: {answer.text[:200]}", answer.status_code)
    return ServingError(f"{url}: HTTP {answer.status_code}: {field}: {error}", answer.status_code, field)
