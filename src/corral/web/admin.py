"""The operator's API: how the models stand, and what is to become of them. Not served without an operator's key."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from corral import __version__
from corral.core.errors import ConfigError, InvalidRequest, NotReady
from corral.core.lifecycle import Phase
from corral.openai.complaints import INVALID_VALUE
from corral.openai.replies import ErrorReply
from corral.upstream.changes import Reloaded
from corral.upstream.fleet import Entry, Fleet
from corral.upstream.loader import Loader
from corral.upstream.local import LocalModel
from corral.upstream.replica import Replica
from corral.web.admin_shapes import AdminModel, AdminModels, AdminReload, shape_of

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": text}
    for status, text in {
        400: "The model runs elsewhere, or has no such replica: Corral cannot do that with it.",
        404: "There is no such model.",
        503: "It could not be loaded; the message has the reason.",
    }.items()
}

# What every route for operators refuses.
CLOSED: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorReply, "description": "No key, or one that is not known here."},
    403: {"model": ErrorReply, "description": "Not an operator's key."},
}

Model = Annotated[str, Path(description="The model's name, or one of its aliases.")]
AtOnce = Annotated[bool, Query(description="Do not wait for the end of its calls, but cut them.")]
Only = Annotated[str | None, Query(alias="replica", description="Only this one of its replicas.")]


def admin_router(
    fleet: Fleet, loader: Loader, patience_s: float, reload: Callable[[], Awaitable[Reloaded]]
) -> APIRouter:
    """The routes below /admin; one that waits for something to be loaded or unloaded gives up after ``patience_s``."""

    router = APIRouter(prefix="/admin", tags=["operator"], responses=CLOSED)
    does = _Routes(fleet, loader, patience_s)
    actions: dict[str, tuple[Callable[..., Awaitable[AdminModel]], str]] = {
        "load": (does.load, "Load a model, and let it take calls"),
        "unload": (does.unload, "End the processes of a model"),
        "restart": (does.restart, "Serve a model by new processes"),
        "drain": (does.drain, "Let a model take no more calls"),
        "pin": (does.pin, "Never stop a model for others, nor for being idle"),
        "unpin": (does.unpin, "Take the pin away"),
    }
    router.add_api_route("/models", does.list_models, methods=["GET"], summary="How all models stand")
    for name, (action, summary) in actions.items():
        path = f"/models/{{model:path}}/{name}"
        router.add_api_route(path, action, methods=["POST"], summary=summary, responses=REFUSALS)
    router.add_api_route(
        "/models/{model:path}",
        does.get_model,
        methods=["GET"],
        summary="How one model stands, with its log",
        responses={404: REFUSALS[404]},
    )

    @router.post("/reload", summary="Read the settings anew", responses={400: {"model": ErrorReply}})
    async def reload_settings() -> AdminReload:
        try:
            done = await reload()
        except ConfigError as error:
            message = "\n".join(["the settings are wrong and nothing was changed:", *error.problems])
            raise InvalidRequest(message, code=INVALID_VALUE) from error
        return AdminReload(**asdict(done.models), restart_needed=done.restart_needed)

    return router


class _Routes:
    """Each does what the operator asks for, and waits until it is done. Holds nothing."""

    def __init__(self, fleet: Fleet, loader: Loader, patience_s: float) -> None:
        self._fleet = fleet
        self._loader = loader
        self._patience_s = patience_s

    async def list_models(self) -> AdminModels:
        now = time.monotonic()
        return AdminModels(
            version=__version__,
            budget_bytes=self._loader.settings.memory_bytes,
            taken_bytes=sum(model.taken_bytes() for model in self._loader.models.values()),
            models=[shape_of(entry, now) for entry in self._fleet.entries.values()],
        )

    async def get_model(self, model: Model) -> AdminModel:
        return shape_of(self._fleet.entry(model), time.monotonic(), with_log=True)

    async def load(self, model: Model, replica: Only = None) -> AdminModel:
        entry = self._fleet.entry(model)
        for each in _replicas(entry, replica):
            each.put_aside(aside=False)
        if replica is not None:
            return _shown(entry)
        if (local := entry.local) is None:
            return _drain_remote(entry, draining=False)
        self._loader.load(local)
        await self._until(lambda: _settled(local), "loaded")
        if local.phase is not Phase.LOADED:
            raise NotReady(f"model '{local.name}' was not loaded: {local.error or 'it was unloaded meanwhile'}")
        return _shown(entry)

    async def unload(self, model: Model, at_once: AtOnce = False) -> AdminModel:
        entry, local = self._started(model)
        self._loader.unload(local, at_once=at_once)
        await self._until(lambda: local.phase is not Phase.UNLOADING, "unloaded")
        return _shown(entry)

    async def restart(self, model: Model) -> AdminModel:
        entry, local = self._started(model)
        self._loader.replace(local)
        await self._until(lambda: _settled(local) and not local.changing, "restarted")
        if local.error is not None:
            raise NotReady(f"model '{local.name}' was not restarted: {local.error}")
        return _shown(entry)

    async def drain(self, model: Model, replica: Only = None, at_once: AtOnce = False) -> AdminModel:
        entry = self._fleet.entry(model)
        if replica is not None:
            for each in _replicas(entry, replica):
                each.put_aside(aside=True)
        elif entry.local is None:
            _drain_remote(entry, draining=True)
        else:
            self._loader.drain(entry.local)
        if at_once:
            # What can go on at another replica does.
            for each in _replicas(entry, replica):
                each.cut_off()
        return _shown(entry)

    async def pin(self, model: Model) -> AdminModel:
        entry, local = self._started(model)
        self._loader.pin(local, pinned=True)
        return _shown(entry)

    async def unpin(self, model: Model) -> AdminModel:
        entry, local = self._started(model)
        self._loader.pin(local, pinned=False)
        return _shown(entry)

    def _started(self, model: str) -> tuple[Entry, LocalModel]:
        entry = self._fleet.entry(model)
        if entry.local is None:
            message = f"the llama-servers of '{entry.settings.name}' are not started by Corral"
            raise InvalidRequest(message, param="model", code=INVALID_VALUE)
        return entry, entry.local

    async def _until(self, claim: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(self._patience_s):
                await self._loader.until(claim)
        except TimeoutError:
            message = f"it is still not {what} after {self._patience_s:g} s; 'corral status' shows how it goes on"
            raise NotReady(message) from None


def _drain_remote(entry: Entry, *, draining: bool) -> AdminModel:
    entry.pool.absent = f"model '{entry.settings.name}' takes no requests" if draining else None
    for replica in entry.pool.replicas:
        replica.drain(draining=draining)
    return _shown(entry)


def _replicas(entry: Entry, name: str | None) -> Sequence[Replica]:
    """All of them, or the one of this name."""
    found = [replica for replica in entry.pool.replicas if name in (None, replica.name)]
    if found:
        return found
    names = ", ".join(f"'{replica.name}'" for replica in entry.pool.replicas)
    message = f"model '{entry.settings.name}' has no replica '{name}'; there are: {names}"
    raise InvalidRequest(message, param="replica", code=INVALID_VALUE)


def _settled(local: LocalModel) -> bool:
    """It is loaded, or will not be by itself."""
    return local.phase in (Phase.LOADED, Phase.FAILED) or (local.phase is Phase.UNLOADED and not local.asked)


def _shown(entry: Entry) -> AdminModel:
    return shape_of(entry, time.monotonic())
