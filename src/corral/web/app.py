"""The FastAPI application: every route, and errors in OpenAI's shape on each of them."""

import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from corral import __version__
from corral.config import ServerSettings
from corral.core.call import PATHS
from corral.core.errors import CorralError, InvalidRequest, MethodNotAllowed, NotFound
from corral.core.headers import request_id
from corral.observe.metrics import Metrics
from corral.openai.complaints import INVALID_VALUE
from corral.openai.errors import error_body, error_headers
from corral.pipeline.authenticate import Keyring
from corral.pipeline.exchange import Exchange
from corral.upstream.changes import Reloaded
from corral.upstream.fleet import Fleet
from corral.upstream.loader import Loader
from corral.web.admin import admin_router
from corral.web.document import document
from corral.web.inference import inference_router
from corral.web.keys import Keys, keys_router
from corral.web.models import models_router
from corral.web.probes import Readiness, probes_router
from corral.web.roles import guard
from corral.web.usage import Look, usage_router

DESCRIPTION = "An OpenAI-compatible gateway in front of llama.cpp."
INFERENCE_PATHS = frozenset(PATHS.values())

# What pages of other origins may read of an answer.
EXPOSED_HEADERS = (
    "x-request-id",
    "retry-after",
    "retry-after-ms",
    "x-corral-replica",
    "x-corral-attempts",
    "x-corral-queue-ms",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
    "x-corral-limit",
    "x-corral-fallback",
)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes need."""

    exchange: Exchange
    fleet: Fleet
    keyring: Keyring
    metrics: Metrics
    readiness: Readiness
    server: ServerSettings
    loopback: bool
    started_unix_s: int
    loader: Loader
    # How long an operator waits for a model to be loaded.
    load_patience_s: float
    reload: Callable[[], Awaitable[Reloaded]]
    # The keys of the store, where there is one.
    keys: Keys | None = None
    # Asks the store; None where there is none.
    usage: Look | None = None
    currency: str | None = None


def create_app(parts: Parts) -> ASGIApp:
    """The application for any ASGI server."""
    app = FastAPI(title="Corral", version=__version__, description=DESCRIPTION, redirect_slashes=False)
    guarded = [Depends(guard(parts.keyring, loopback=parts.loopback))]
    for router in _routers(parts):
        app.include_router(router, dependencies=guarded)
    app.add_exception_handler(CorralError, _tell)
    app.add_exception_handler(RequestValidationError, _tell_of_terms)
    app.add_exception_handler(HTTPException, _tell_of_route)
    app.add_exception_handler(Exception, _tell_of_bug)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way
    return _Identified(_with_cors(app, parts.server.cors_origins))


def _routers(parts: Parts) -> Iterator[APIRouter]:
    yield inference_router(parts.exchange, parts.server)
    yield models_router(parts.fleet, parts.started_unix_s)
    yield probes_router(parts.fleet, parts.keyring, parts.metrics, parts.readiness)
    if parts.keyring.has_operator:
        yield admin_router(parts.fleet, parts.loader, parts.load_patience_s, parts.reload)
    if parts.keys is not None:
        yield keys_router(parts.keys)
    if parts.usage is not None:
        yield usage_router(parts.usage, parts.currency)


class _Identified:
    """Gives every answer but those of the exchange, which does so itself, an ``x-request-id``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["path"] in INFERENCE_PATHS and scope["method"] == "POST"):
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
        header = (b"x-request-id", request_id(given, lambda: uuid.uuid4().hex).encode())

        async def identified(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], header]}
            await send(message)

        await self._app(scope, receive, identified)


def _with_cors(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    """Around the whole application, so that errors have the headers too; without origins there are none."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("authorization", "content-type", "x-api-key", "x-request-id", "*"),
        expose_headers=EXPOSED_HEADERS,
        max_age=3600,
    )


async def _tell(_: Request, error: Exception) -> Response:
    known = error if isinstance(error, CorralError) else CorralError("Corral failed to serve this request")
    headers = {name.decode(): value.decode() for name, value in error_headers(known)}
    return Response(error_body(known), known.status, headers, "application/json")


async def _tell_of_route(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return await _tell(request, error)
    if error.status_code == 405:
        allowed = dict(error.headers or {})
        message = f"{request.method} is not allowed here; use {allowed.get('Allow', 'another method')}"
        answer = await _tell(request, MethodNotAllowed(message))
        answer.headers.update(allowed)
        return answer
    return await _tell(request, NotFound(f"there is no route {request.method} {request.url.path[:200]}"))


async def _tell_of_terms(request: Request, error: Exception) -> Response:
    """What an operator wrote is not right; its own text is not repeated."""
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    where = ".".join(str(part) for part in first.get("loc", ())[1:] if not isinstance(part, int)) or None
    message = f"{where}: {first.get('msg')}" if where else str(first.get("msg"))
    return await _tell(request, InvalidRequest(message, param=where, code=INVALID_VALUE))


async def _tell_of_bug(request: Request, _: Exception) -> Response:
    return await _tell(request, CorralError("Corral failed to serve this request; the operator's log says why"))


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = document(app)
    return app.openapi_schema
