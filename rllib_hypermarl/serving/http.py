"""The HTTP side of a served team: routes, limits, the token, and errors that name the field. No Ray."""

from __future__ import annotations

import hmac
import logging
from typing import Any, Protocol

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from .schemas import ActAnswer, ActRequest, Refusal, RefusedError, encode, parse
from .team import Ask, ServedTeam, check

logger = logging.getLogger("ray.serve")
OPEN_PATHS = ("/healthz", "/readyz")
"""For probes, which have no token."""

_REASONS = {
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


def refusal(field: str, error: str, status: int, **headers: str) -> Response:
    """An answer of the schema `Refusal`."""
    content = orjson.dumps({"field": field, "error": error})
    return Response(content, status, headers or None, media_type="application/json")


def make_app(answerer: Answerer, *, token: str | None = None, max_body: int = 4 * 2**20) -> FastAPI:
    """The app around a served team.

    Args:
        token: that every request but probes has to bear; None: none.
        max_body: bytes of a request at most.
    """
    team = answerer.team
    refusals = {status: {"model": Refusal, "description": text} for status, text in _REASONS.items()}
    app = FastAPI(title="HyperMARL team", version=__version__, redirect_slashes=False)

    @app.post(
        "/v1/act",
        summary="What the agents do",
        responses={200: {"model": ActAnswer}, **refusals},
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": {}}}}},
    )
    async def act(request: Request) -> Response:
        if team.policy is None:
            return refusal("path", "nothing is served yet", 503, **{"Retry-After": "1"})
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json":
            return refusal("content-type", "send application/json", 415)
        ask = check(parse(await request.body()), team.policy)
        answer = await answerer.answer(ask)
        if isinstance(answer, RefusedError):
            raise answer
        return Response(encode(answer), media_type="application/json")

    @app.get("/metadata", summary="What is served", responses={401: refusals[401], 503: refusals[503]})
    async def metadata() -> Response:
        if team.policy is None:
            return refusal("path", "nothing is served yet", 503, **{"Retry-After": "1"})
        return Response(orjson.dumps(team.metadata()), media_type="application/json")

    @app.get("/healthz", summary="Whether the process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Whether a team is served", responses={503: refusals[503]})
    async def readyz() -> Response:
        if team.policy is None:
            return refusal("path", "nothing is served yet", 503, **{"Retry-After": "1"})
        return Response(
            orjson.dumps({"status": "ready", "version": team.policy.version}), media_type="application/json"
        )

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return refusal(error.field, error.message, error.status)

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        field = "method" if error.status_code == 405 else "path"
        return refusal(field, str(error.detail), error.status_code, **(error.headers or {}))

    app.openapi = lambda: _openapi(app, team)
    app.add_middleware(_Limits, token=token, max_body=max_body)
    return app


def _openapi(app: FastAPI, team: ServedTeam) -> dict[str, Any]:
    """The app's description, with the agents and sizes of the team that is served now."""
    page = get_openapi(title=app.title, version=app.version, routes=app.routes)
    request = ActRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    if team.policy is not None:
        spec = team.policy.spec
        request["properties"]["observations"] |= _per_agent(
            dict.fromkeys(spec.agents, _rows({"type": "number"}, spec.obs_dim))
        )
        if not spec.actions.continuous:
            mask = _rows({"type": "boolean"}, sum(spec.actions.choices))
            request["properties"]["action_mask"] = {
                **{k: v for k, v in request["properties"]["action_mask"].items() if k in ("description", "title")},
                "anyOf": [{"type": "object", **_per_agent(dict.fromkeys(spec.agents, mask))}, {"type": "null"}],
            }
    body = page["paths"]["/v1/act"]["post"]["requestBody"]
    body["content"]["application/json"]["schema"] = request
    return page


def _per_agent(properties: dict[str, Any]) -> dict[str, Any]:
    return {"properties": properties, "additionalProperties": False}


def _rows(item: dict[str, Any], width: int) -> dict[str, Any]:
    row = {"type": "array", "items": item, "minItems": width, "maxItems": width}
    return {"anyOf": [row, {"type": "array", "items": row, "minItems": 1}]}


class _Limits:
    """Turns away who bears no token and what is too large, before anything reads a body; no error leaves a trace."""

    def __init__(self, app: ASGIApp, token: str | None, max_body: int):
        self.app, self.max_body = app, max_body
        self._expected = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if self._expected is not None and path not in OPEN_PATHS:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                answer = refusal(
                    "authorization", "bearer token missing or wrong", 401, **{"WWW-Authenticate": "Bearer"}
                )
                await answer(scope, receive, send)
                return
        too_large = f"more than {self.max_body} bytes; send fewer environments in one request"
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self.max_body:
            await refusal("body", too_large, 413)(scope, receive, send)
            return
        started, received = False, 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_body:
                raise RefusedError("body", too_large, 413)
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, counted if not length else receive, noted)
        except ClientDisconnect:
            return
        except Exception as error:
            if started:
                raise
            if isinstance(error, RefusedError):
                await refusal(error.field, error.message, error.status)(scope, receive, send)
                return
            logger.exception("a request failed")
            await refusal("path", "internal error, see the server's log", 500)(scope, receive, send)
