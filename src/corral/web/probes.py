"""GET /health, /health/live and /metrics: for load balancers, orchestrators and Prometheus."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.responses import Response

from corral import __version__
from corral.observe.metrics import CONTENT_TYPE, Metrics
from corral.pipeline.authenticate import Keyring
from corral.upstream.fleet import Fleet
from corral.upstream.pool import Pool
from corral.web.roles import is_operator


class Readiness:
    """Whether this process wants traffic. One writer: the shutdown, which says no."""

    def __init__(self) -> None:
        self.stopping = False


def probes_router(fleet: Fleet, keyring: Keyring, metrics: Metrics, readiness: Readiness) -> APIRouter:
    """The routes of the probes; an operator's key shows more of the health."""
    router = APIRouter(tags=["operation"])

    @router.get("/health", summary="Can a model be served?", responses={503: {"description": "No; the body says why."}})
    async def health(request: Request) -> JSONResponse:
        ok = fleet.ready and not readiness.stopping
        status = "ok" if ok else "stopping" if readiness.stopping else "unavailable"
        operator = is_operator(request, keyring)
        shown = [entry.pool for entry in fleet.entries.values() if operator or not entry.settings.hidden]
        models = {pool.name: _pool_health(pool, operator=operator) for pool in shown}
        return JSONResponse({"status": status, "version": __version__, "models": models}, 200 if ok else 503)

    @router.get("/health/live", summary="Does the process live?")
    async def live() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
    async def scrape() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    return router


def _pool_health(pool: Pool, *, operator: bool) -> dict[str, Any]:
    replicas = []
    for replica in pool.replicas:
        told: dict[str, Any] = {"state": replica.state.value, "slots": replica.slots, "busy": replica.busy}
        if operator:
            told |= {"name": replica.name, "address": str(replica.address or ""), "why": replica.why}
        replicas.append(told)
    reason = {} if pool.ready else {"reason": pool.why}
    return {"ready": pool.ready, "waiting": pool.waiting, **reason, "replicas": replicas}
