"""The inference routes: FastAPI documents them, the exchange serves them from the raw body."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from corral.config import ServerSettings
from corral.core.call import Endpoint
from corral.openai.replies import ChatCompletion, Completion, EmbeddingList, ErrorReply
from corral.openai.requests import ChatRequest, CompletionRequest, EmbeddingRequest
from corral.pipeline.asgi import AsgiAnswer, AsgiInbound
from corral.pipeline.exchange import Exchange

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorReply, "description": "The request is not valid; `param` names the parameter."},
    401: {"model": ErrorReply, "description": "No key, or one that is not known here."},
    404: {"model": ErrorReply, "description": "There is no such model."},
    413: {"model": ErrorReply, "description": "The body is too large."},
    415: {"model": ErrorReply, "description": "The body is not JSON."},
    429: {"model": ErrorReply, "description": "The client's limit is reached; `Retry-After` says when to come back."},
    502: {"model": ErrorReply, "description": "The model server failed."},
    503: {"model": ErrorReply, "description": "The queue is full, or no model server is ready."},
    504: {"model": ErrorReply, "description": "A time limit was exceeded; the message names the phase."},
}


class ExchangeResponse(Response):
    """A response that is the exchange itself, over the raw ``receive`` and ``send``."""

    def __init__(self, exchange: Exchange, endpoint: Endpoint, server: ServerSettings) -> None:
        super().__init__()
        self._exchange = exchange
        self._endpoint = endpoint
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("an ASGI application runs in a task")
        answer = AsgiAnswer(receive, send, stall_s=self._server.client_stall_s)
        inbound = AsgiInbound(list(scope["headers"]), receive, lambda: answer.on_gone(task.cancel))
        try:
            async with answer:
                await self._exchange.serve(self._endpoint, inbound, answer)
        except asyncio.CancelledError:
            # The client left when the exchange was over already, or the exchange has told it that the server shuts
            # down: either way nothing is left to do, and nothing that a server should log as an error.
            if not (answer.gone or answer.ended):
                raise
            task.uncancel()


def inference_router(exchange: Exchange, server: ServerSettings) -> APIRouter:
    """The routes of the three inference endpoints."""
    router = APIRouter(tags=["inference"])
    for endpoint, summary, request, reply in (
        (Endpoint.CHAT, "Chat completion", ChatRequest, ChatCompletion),
        (Endpoint.COMPLETIONS, "Text completion", CompletionRequest, Completion),
        (Endpoint.EMBEDDINGS, "Embeddings", EmbeddingRequest, EmbeddingList),
    ):
        router.add_api_route(
            endpoint.path,
            _route(exchange, endpoint, server),
            methods=["POST"],
            # FastAPI cannot read it off the response's class.
            status_code=200,
            summary=summary,
            name=endpoint.value,
            response_class=ExchangeResponse,
            responses={200: _success(endpoint, reply), **ERRORS},
            openapi_extra={"requestBody": _body(request), "security": [{"bearer": []}]},
        )
    return router


def _route(exchange: Exchange, endpoint: Endpoint, server: ServerSettings) -> Any:  # noqa: ANN401  (FastAPI reads it)
    async def serve(_: Request) -> Response:
        return ExchangeResponse(exchange, endpoint, server)

    return serve


def _success(endpoint: Endpoint, reply: type[BaseModel]) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": reply.model_json_schema()}}
    if endpoint is not Endpoint.EMBEDDINGS:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {"description": "The reply; a stream of server-sent events with `stream: true`.", "content": content}


def _body(request: type[BaseModel]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": request.model_json_schema()}}}
