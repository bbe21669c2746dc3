"""What the operator's API tells: models, their replicas and their processes."""

from pydantic import BaseModel, ConfigDict

from corral.core.lifecycle import Phase, State
from corral.upstream.child import Child
from corral.upstream.fleet import Entry
from corral.upstream.local import LocalModel
from corral.upstream.replica import Replica


class AdminShape(BaseModel):
    """A piece of an answer."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class AdminReplica(AdminShape):
    """A llama-server."""

    name: str
    state: State
    why: str
    """What has led to this state; may hold the last lines of its output."""
    address: str | None
    """Where it listens."""
    draining: bool
    """It finishes its calls and takes no more."""
    slots: int
    busy: int
    """Slots that calls hold, or gave up and llama-server has not freed yet."""
    served: int
    """Calls since it is known."""
    weight: float
    pid: int | None = None
    """Its process, if Corral has started it."""
    memory_bytes: int | None = None
    """What the process takes; null where the system does not tell."""


class AdminModel(AdminShape):
    """A model and everything that serves it."""

    name: str
    aliases: tuple[str, ...]
    description: str | None
    hidden: bool
    started: bool
    """Corral starts its llama-servers; else they run already, and what is below `waiting` does not apply."""
    ready: bool
    """It takes calls now."""
    drained: bool
    """The operator wants no calls to be taken."""
    waiting: int
    """Calls in its queue."""
    phase: Phase | None = None
    on_demand: bool = False
    pinned: bool = False
    memory_bytes: int | None = None
    """What its processes take now, or will take while they load."""
    needed_bytes: int | None = None
    """What they will take when it is loaded: as estimated, or as seen before."""
    idle_s: float | None = None
    """Since its last call; null while it is busy or not loaded."""
    load_s: float | None = None
    """How long it took to load."""
    error: str | None = None
    """Why it is not loaded, or not as it should be."""
    replicas: list[AdminReplica]
    log: list[str] | None = None
    """The last lines that its processes have printed; only when one model is asked for."""


class AdminModels(AdminShape):
    """All models, and the memory that they share."""

    version: str
    budget_bytes: int | None
    """What the started models may take together; null is no limit."""
    taken_bytes: int
    """What they take."""
    models: list[AdminModel]


class AdminReload(AdminShape):
    """What a reload has changed: the names of models, and settings."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    replaced: tuple[str, ...]
    """Models that are served by new processes, or by other replicas."""
    adjusted: tuple[str, ...]
    """Models that go on as they run, by other rules."""
    restart_needed: tuple[str, ...]
    """Settings that differ and count from the next start on."""


def shape_of(entry: Entry, now: float, *, with_log: bool = False) -> AdminModel:
    """How a model stands; ``now`` is on the monotonic clock."""
    settings, pool, local = entry.settings, entry.pool, entry.local
    children = {child.replica: child for child in local.processes} if local else {}
    shown = AdminModel(
        name=settings.name,
        aliases=settings.aliases,
        description=settings.description,
        hidden=settings.hidden,
        started=local is not None,
        ready=pool.ready,
        drained=local.drained if local else all(replica.draining for replica in pool.replicas),
        waiting=pool.waiting,
        replicas=[_replica(replica, children.get(replica)) for replica in pool.replicas],
    )
    if local is None:
        return shown
    log = [f"{name}: {line}" for name, line in _lines(local)] if with_log else None
    return shown.model_copy(update=_local(local, now) | {"log": log})


def _local(local: LocalModel, now: float) -> dict[str, object]:
    idle = local.phase is Phase.LOADED and not local.busy
    return {
        "phase": local.phase,
        "on_demand": local.residency.on_demand,
        "pinned": local.pinned,
        "memory_bytes": local.taken_bytes(),
        "needed_bytes": local.needed_bytes,
        "idle_s": round(max(0.0, now - local.used_at), 1) if idle else None,
        "load_s": None if local.load_s is None else round(local.load_s, 2),
        "error": local.error,
    }


def _lines(local: LocalModel) -> list[tuple[str, str]]:
    return [(child.replica.name, line) for child in local.processes for line in child.log_tail()]


def _replica(replica: Replica, child: Child | None) -> AdminReplica:
    return AdminReplica(
        name=replica.name,
        state=replica.state,
        why=replica.why,
        address=str(replica.address) if replica.address else None,
        draining=replica.draining or replica.set_aside,
        slots=replica.slots,
        busy=replica.busy,
        served=replica.served,
        weight=replica.weight,
        pid=child.pid if child else None,
        memory_bytes=child.resident_bytes if child else None,
    )
