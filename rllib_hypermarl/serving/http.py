"""The HTTP side of a served team: routes, limits, the token, and errors that name the field. No Ray."""

from __future__ import annotations

import hmac
import logging
from typing import Any, Protocol

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from .. import __version__
from .schemas import ActAnswer, ActRequest, Refusal, RefusedError, encode, parse
from .team import Ask, ServedTeam, check

logger = logging.getLogger("ray.serve")
ACT = "/v1/act"
PROBES = ("/healthz", "/readyz")  # have no token
_REFUSALS = {
    400: "The body is not JSON.",
    401: "The bearer token is missing or wrong.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "A field is wrong; `field` names it.",
    503: "Too many requests are waiting, or nothing is served yet. Ask again after `Retry-After` seconds.",
}


class Answerer(Protocol):
    """What stands behind the routes."""

    team: ServedTeam

    async def answer(self, ask: Ask) -> dict[str, Any] | RefusedError: ...


class TeamApp:
    """The ASGI app around a served team.

    FastAPI has the pages. The one route that has to be fast goes around it: routing, dependencies and exit stacks cost
    more than the team's forward.

    Args:
        token: that every request but probes has to bear; None: none.
        max_body: bytes of a request at most.
    """

    def __init__(self, answerer: Answerer, *, token: str | None = None, max_body: int = 4 * 2**20):
        self.team, self._answer, self._max_body = answerer.team, answerer.answer, max_body
        self._pages = _pages(self.team)
        self._expected = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._pages(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        try:
            headers = dict(scope["headers"])
            self._check_token(headers, path)
            if path != ACT:
                await self._pages(scope, receive, send)
                return
            if scope["method"] != "POST":
                raise RefusedError("method", "POST observations", 405)
            response = await self._act(headers, receive)
        except RefusedError as error:
            response = _refusal(error)
        except Exception:
            logger.exception("a request failed")
            response = _refusal(RefusedError("path", "internal error, see the server's log", 500))
        if response is not None:
            await response(scope, receive, send)

    def _check_token(self, headers: dict[bytes, bytes], path: str) -> None:
        if self._expected is None or path in PROBES:
            return
        if not hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
            raise RefusedError("authorization", "bearer token missing or wrong", 401)

    async def _act(self, headers: dict[bytes, bytes], receive: Receive) -> Response | None:
        policy = _served(self.team)
        kind = headers.get(b"content-type", b"application/json").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise RefusedError("content-type", "send application/json", 415)
        body = await self._body(headers, receive)
        if body is None:  # the client has gone
            return None
        answer = await self._answer(check(parse(body), policy))
        if isinstance(answer, RefusedError):
            raise answer
        return Response(encode(answer), media_type="application/json")

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        length, parts, received = headers.get(b"content-length", b""), [], 0
        declared = int(length) if length.isdigit() and len(length) < 20 else 0
        while max(declared, received) <= self._max_body:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            received += len(parts[-1])
            if not message.get("more_body", False) and received <= self._max_body:
                return b"".join(parts)
        raise RefusedError("body", f"more than {self._max_body} bytes: send fewer environments in one request", 413)


def _served(team: ServedTeam) -> Any:
    if team.policy is None:
        raise RefusedError("path", "nothing is served yet", 503)
    return team.policy


_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 405: {"Allow": "POST"}, 503: {"Retry-After": "1"}}


def _refusal(error: RefusedError) -> Response:
    content = orjson.dumps({"field": error.field, "error": error.message})
    return Response(content, error.status, _HEADERS.get(error.status), media_type="application/json")


# -------------------------------------------------------------------------------------------------------------- pages


def _pages(team: ServedTeam) -> FastAPI:
    app = FastAPI(title="HyperMARL team", version=__version__, redirect_slashes=False)
    refusals = {status: {"model": Refusal, "description": text} for status, text in _REFUSALS.items()}

    @app.get("/metadata", summary="What is served", responses={status: refusals[status] for status in (401, 503)})
    async def metadata() -> Response:
        _served(team)
        return Response(orjson.dumps(team.metadata()), media_type="application/json")

    @app.get("/healthz", summary="Whether the process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Whether a team is served", responses={503: refusals[503]})
    async def readyz() -> dict[str, str]:
        return {"status": "ready", "version": _served(team).version}

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return _refusal(error)

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        field = "method" if error.status_code == 405 else "path"
        response = _refusal(RefusedError(field, str(error.detail), error.status_code))
        response.headers.update(error.headers or {})
        return response

    app.openapi = lambda: _openapi(app, team)
    return app


def _openapi(app: FastAPI, team: ServedTeam) -> dict[str, Any]:
    """The description of all routes, with the agents and sizes of the team that is served now."""
    page = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = page.setdefault("components", {}).setdefault("schemas", {})
    for model in (ActRequest, ActAnswer, Refusal):
        schemas[model.__name__] = model.model_json_schema(ref_template="#/components/schemas/{model}")
    if team.policy is not None:
        _describe_team(schemas["ActRequest"]["properties"], team)

    def content(model: str) -> dict[str, Any]:
        return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}}}

    page["paths"][ACT] = {
        "post": {
            "summary": "What the agents do",
            "operationId": "act",
            "requestBody": {"required": True, **content("ActRequest")},
            "responses": {
                "200": {"description": "Their actions.", **content("ActAnswer")},
                **{str(status): {"description": text, **content("Refusal")} for status, text in _REFUSALS.items()},
            },
        }
    }
    return page


def _describe_team(properties: dict[str, Any], team: ServedTeam) -> None:
    spec = team.policy.spec
    sizes = {agent: (spec.observations[agent].size,) for agent in spec.agents}
    properties["observations"] |= _per_agent(sizes, {"type": "number"})
    if not spec.actions.continuous:
        choices = {agent: (sum(spec.agent_actions(agent).choices),) for agent in spec.agents}
        mask = {"type": "object", **_per_agent(choices, {"type": "boolean"})}
        properties["action_mask"]["anyOf"] = [mask, {"type": "null"}]
    remembered = team.metadata()["memory"] or {}
    widths = tuple(size for key in ("size", "size_with_values") if (size := remembered.get(key)))
    memory = {"type": "object", **_per_agent(dict.fromkeys(spec.agents, widths), {"type": "number"})}
    properties["memory"]["anyOf"] = [*([memory] if remembered else []), {"type": "null"}]


def _per_agent(widths: dict[str, tuple[int, ...]], item: dict[str, Any]) -> dict[str, Any]:
    """Args: widths: agent -> how many of `item` it may have."""
    properties = {}
    for agent, own in widths.items():
        rows = [{"type": "array", "items": item, "minItems": width, "maxItems": width} for width in own]
        several = [{"type": "array", "items": row, "minItems": 1} for row in rows]
        properties[agent] = {"anyOf": [*rows, *several]}
    return {"properties": properties, "additionalProperties": False}
