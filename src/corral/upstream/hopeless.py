"""Why nobody need wait, or wait any longer: what no replica can take, and what is told of a model that is not ready."""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

from corral.config import QueueSettings
from corral.core.demand import Demand, too_long, too_many_tasks
from corral.core.errors import ContextLengthExceeded, InvalidRequest, NotReady, QueueFull, QueueTimeout, SharedStateAway
from corral.core.lifecycle import State
from corral.upstream.pace import DEFAULT_RETRY_S
from corral.upstream.replica import Replica


def why_unready(model: str, states: AbstractSet[State]) -> str:
    """Why no replica takes calls, when they are in these states."""
    if not states.isdisjoint((State.LOADING, State.UNKNOWN, State.BACKOFF)):
        return f"model '{model}' is loading"
    if State.STOPPED in states:
        return f"model '{model}' is not loaded"
    if State.READY in states:
        return f"model '{model}' takes no requests at the moment"
    if State.FAILED in states:
        return f"model '{model}' could not be started"
    return f"the server of model '{model}' cannot be reached"


def crowded(
    model: str, ahead: int, own: int, settings: QueueSettings, retry_after_s: Callable[[], float]
) -> QueueFull | None:
    """Why one more may not wait: so many do already, and so many of the same client."""
    if ahead >= settings.length:
        who = f"{ahead} requests are"
    elif own >= settings.per_client:
        who = f"{own} requests of this client are"
    else:
        return None
    return QueueFull(f"{who} waiting for model '{model}' already; try again later", retry_after_s=retry_after_s())


def impatient(model: str, unready: str | None, patience_s: float, retry_after_s: float) -> NotReady | QueueTimeout:
    """Why one waits no longer; ``unready`` is why no replica is ready, if that is so."""
    if unready is not None:
        return NotReady(f"{unready}; try again later", retry_after_s=retry_after_s)
    return QueueTimeout(
        f"no slot of model '{model}' became free within {patience_s:g} s; try again later", retry_after_s=retry_after_s
    )


def withheld(model: str, demand: Demand, replicas: Sequence[Replica]) -> SharedStateAway | None:
    """All that are ready are shared, and the call can have none of their slots for now: nobody tells whose they are."""
    ready = [replica for replica in replicas if replica.ready and replica.slots >= demand.tasks]
    if not ready or any(replica.usable >= demand.tasks for replica in ready):
        return None
    return SharedStateAway(
        f"the slots of model '{model}' cannot be shared at the moment; try again later", retry_after_s=DEFAULT_RETRY_S
    )


def beyond_all(demand: Demand, replicas: Sequence[Replica]) -> ContextLengthExceeded | InvalidRequest | None:
    """What is wrong with a call that none of them can ever take, as far as they are known."""
    ready = any(replica.ready for replica in replicas)
    # Those that drain while others are ready have been replaced; else they take calls again.
    staying = [replica for replica in replicas if not (ready and (replica.draining or replica.set_aside))]
    fitting = [replica for replica in staying if demand.may_fit(replica.context)]
    if staying and not fitting:
        return too_long(demand, max(replica.context or 0 for replica in staying))
    # One that is not ready at the moment comes back with as many slots as it had.
    slots = max((replica.slots for replica in fitting), default=0)
    return too_many_tasks(demand.tasks, slots) if ready and demand.tasks > slots else None
