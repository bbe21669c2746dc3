"""The inference routes: FastAPI documents them, the exchange serves them from the raw body."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from corral.config import ServerSettings
from corral.core.call import Endpoint
from corral.pipeline.asgi import AsgiAnswer, AsgiInbound
from corral.pipeline.exchange import Exchange

SUMMARIES = {
    Endpoint.CHAT: "Chat completion",
    Endpoint.COMPLETIONS: "Text completion",
    Endpoint.EMBEDDINGS: "Embeddings",
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
    """The routes of the three inference endpoints; what they take and give is told in web/document.py."""
    router = APIRouter(tags=["inference"])
    for endpoint, summary in SUMMARIES.items():
        router.add_api_route(
            endpoint.path,
            _route(exchange, endpoint, server),
            methods=["POST"],
            # FastAPI cannot read it off the response's class.
            status_code=200,
            summary=summary,
            name=endpoint.value,
            response_class=ExchangeResponse,
        )
    return router


def _route(exchange: Exchange, endpoint: Endpoint, server: ServerSettings) -> Any:  # noqa: ANN401  (FastAPI reads it)
    async def serve(_: Request) -> Response:
        return ExchangeResponse(exchange, endpoint, server)

    return serve
