"""GET /v1/models: the models there are, in OpenAI's shape."""

from typing import Any

from fastapi import APIRouter, Request

from corral.openai.replies import ErrorReply, Model, ModelList
from corral.pipeline.authenticate import Keyring
from corral.upstream.fleet import Fleet
from corral.upstream.pool import Pool

REFUSALS: dict[int | str, dict[str, Any]] = {401: {"model": ErrorReply}, 404: {"model": ErrorReply}}


def models_router(fleet: Fleet, keyring: Keyring, started_unix_s: int) -> APIRouter:
    """The routes of the models; ``created`` is when Corral started, as llama-server tells no other time."""
    router = APIRouter(tags=["models"])

    @router.get("/v1/models", summary="All models", responses={401: {"model": ErrorReply}})
    async def list_models(request: Request) -> ModelList:
        keyring.authenticate(list(request.scope["headers"]))
        return ModelList(object="list", data=[_model(pool, started_unix_s) for pool in fleet])

    @router.get("/v1/models/{model:path}", summary="One model", responses=REFUSALS)
    async def get_model(request: Request, model: str) -> Model:
        keyring.authenticate(list(request.scope["headers"]))
        # Under the name that was asked for, as its replies are: with one model, any name is its name.
        return _model(fleet.pool(model), started_unix_s).model_copy(update={"id": model})

    return router


def _model(pool: Pool, created: int) -> Model:
    facts = next((replica.facts for replica in pool.replicas if replica.facts), None)
    told = {"context_length": facts.context, "slots": facts.slots} if facts else {}
    return Model.model_validate(
        {"id": pool.name, "object": "model", "created": created, "owned_by": "llamacpp", "ready": pool.ready} | told
    )
