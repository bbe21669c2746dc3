"""From a well-typed embedding request to a ``Call``."""

from collections.abc import Mapping
from typing import Any

from corral.core.call import Call, Endpoint
from corral.core.errors import InvalidRequest
from corral.openai.complaints import UNSUPPORTED
from corral.openai.inputs import count_inputs
from corral.openai.policy import Policy, fields_of, refuse_unsupported
from corral.openai.requests import EmbeddingRequest

UNSUPPORTED_EMBEDDING: Mapping[str, str] = {
    "dimensions": "the model server returns the model's own dimensions; leave it out",
    # It would make llama-server answer in another shape.
    "content": "use 'input'",
}


def embedding_call(request: EmbeddingRequest, body: Mapping[str, Any], policy: Policy) -> Call:
    """``body`` is what ``request`` was read from. Raises ``InvalidRequest`` for what cannot be served."""
    refuse_unsupported(body, UNSUPPORTED_EMBEDDING)
    if body.get("stream"):
        raise InvalidRequest("'stream' is not supported: embeddings come whole", param="stream", code=UNSUPPORTED)
    inputs = count_inputs(request.input, "input", policy)
    fields = fields_of(body, policy)
    return Call(endpoint=Endpoint.EMBEDDINGS, model=request.model or "", fields=fields, inputs=inputs)
