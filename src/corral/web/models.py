"""GET /v1/models: the models there are, in OpenAI's shape."""

from typing import Any

from fastapi import APIRouter, Request

from corral.openai.replies import ErrorReply, Model, ModelList
from corral.upstream.fleet import Entry, Fleet
from corral.web.roles import principal_of

REFUSALS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorReply} for status in (401, 403, 404)}


def models_router(fleet: Fleet, started_unix_s: int) -> APIRouter:
    """The routes of the models; ``created`` is when Corral started, as llama-server tells no other time."""
    router = APIRouter(tags=["models"])

    @router.get("/v1/models", summary="All models", responses={401: REFUSALS[401], 403: REFUSALS[403]})
    async def list_models(request: Request) -> ModelList:
        principal = principal_of(request)
        shown = [entry for entry in fleet.entries.values() if principal.may_ask(entry.settings.name)]
        return ModelList(
            object="list", data=[_model(entry, started_unix_s) for entry in shown if not entry.settings.hidden]
        )

    @router.get("/v1/models/{model:path}", summary="One model", responses=REFUSALS)
    async def get_model(request: Request, model: str) -> Model:
        entry = fleet.entry(model)
        fleet.ensure_allowed(principal_of(request), entry.pool, model)
        # Under the name that was asked for, as its replies are: with one model, any name is its name.
        return _model(entry, started_unix_s).model_copy(update={"id": model})

    return router


def _model(entry: Entry, created: int) -> Model:
    pool, settings = entry.pool, entry.settings
    facts = next((replica.facts for replica in pool.replicas if replica.facts), None)
    told: dict[str, Any] = {"context_length": facts.context, "slots": facts.slots} if facts else {}
    told |= {"description": settings.description} if settings.description else {}
    told |= {"aliases": settings.aliases} if settings.aliases else {}
    return Model.model_validate(
        {"id": pool.name, "object": "model", "created": created, "owned_by": "llamacpp", "ready": pool.ready} | told
    )
