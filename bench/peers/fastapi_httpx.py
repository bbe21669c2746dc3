"""A gateway as most are built: FastAPI in front, httpx behind, a key, and streams passed on as they come.

STUB=http://127.0.0.1:8080 KEY=sk-bench uvicorn fastapi_httpx:app
"""

import os
from collections.abc import AsyncIterator

import httpx
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse

KEY = f"Bearer {os.environ['KEY']}"

app = FastAPI()
# Without limits: httpx would otherwise open no more than 100 connections.
client = httpx.AsyncClient(
    base_url=os.environ["STUB"], timeout=None, limits=httpx.Limits(max_keepalive_connections=128, keepalive_expiry=4)
)


@app.post("/v1/{path:path}")
async def forward(path: str, request: Request) -> Response:
    """Ask the upstream and pass on what it says."""
    if request.headers.get("authorization") != KEY:
        raise HTTPException(401)
    fields = await request.json()
    asked = client.build_request("POST", f"/v1/{path}", json=fields)
    if not fields.get("stream"):
        reply = await client.send(asked)
        return Response(reply.content, reply.status_code, media_type="application/json")
    reply = await client.send(asked, stream=True)
    return StreamingResponse(pieces(reply), reply.status_code, media_type="text/event-stream")


async def pieces(reply: httpx.Response) -> AsyncIterator[bytes]:
    """The bytes of a stream; it is closed whatever happens."""
    try:
        async for piece in reply.aiter_raw():
            yield piece
    finally:
        await reply.aclose()
