"""Why nobody need wait: what no replica can take, and what is told of a model that is not ready."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from corral.core.call import Endpoint
from corral.core.demand import Demand
from corral.core.errors import ContextLengthExceeded, InvalidRequest
from corral.core.lifecycle import State
from corral.upstream.replica import Replica

# Where a request holds its prompt.
PROMPTS = {Endpoint.CHAT: "messages", Endpoint.COMPLETIONS: "prompt", Endpoint.EMBEDDINGS: "input"}


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


def beyond_all(demand: Demand, replicas: Sequence[Replica]) -> ContextLengthExceeded | InvalidRequest | None:
    """What is wrong with a call that none of them can ever take, as far as they are known."""
    ready = any(replica.ready for replica in replicas)
    # Those that drain while others are ready have been replaced; else they take calls again.
    staying = [replica for replica in replicas if not (ready and replica.draining)]
    fitting = [replica for replica in staying if demand.may_fit(replica.context)]
    if staying and not fitting:
        return _too_long(demand, max(replica.context or 0 for replica in staying))
    # One that is not ready at the moment comes back with as many slots as it had.
    slots = max((replica.slots for replica in fitting), default=0)
    return _too_many_tasks(demand.tasks, slots) if ready and demand.tasks > slots else None


def _too_long(demand: Demand, context: int) -> ContextLengthExceeded:
    """A prompt that fits into no slot."""
    return ContextLengthExceeded(
        f"this model's maximum context length is {context} tokens and the prompt has at least "
        f"{demand.least_tokens()}; send a shorter one",
        param=PROMPTS[demand.call.endpoint],
    )


def _too_many_tasks(tasks: int, slots: int) -> InvalidRequest:
    """A call that no replica can ever take; llama-server refuses it too (n must be at most its slots)."""
    return InvalidRequest(
        f"the request makes {tasks} tasks at once (prompts x n) and this model has {slots} slots; ask for no more",
        param="n",
        code="invalid_value",
    )
