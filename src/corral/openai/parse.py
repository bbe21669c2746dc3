"""From the bytes of a request to a ``Call``: read once, checked once."""

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError

from corral.core.call import Call, Endpoint
from corral.core.errors import InvalidRequest
from corral.openai.body import decode, ensure_shallow
from corral.openai.chat import chat_call, everyday_call
from corral.openai.complaints import INVALID_VALUE, complaint
from corral.openai.completions import completion_call
from corral.openai.embeddings import embedding_call
from corral.openai.policy import Policy
from corral.openai.requests import ChatRequest, CompletionRequest, EmbeddingRequest, EverydayChatRequest
from corral.openai.sampling import Addressed

__all__ = ["Policy", "parse"]

Request = TypeVar("Request", bound=Addressed)
PolicyOf = Callable[[str], Policy]

EVERYDAY = EverydayChatRequest.model_fields.keys()


def parse(endpoint: Endpoint, body: bytes, policy_of: PolicyOf) -> Call:
    """Read and check the body of an inference request; raises ``InvalidRequest``, which names the parameter.

    ``policy_of`` gives the settings for the model that the request names; ""
    stands for none. What is sent upstream is written anew from what was read
    here, so llama-server cannot read it in another way.
    """
    document = decode(body)
    match endpoint:
        case Endpoint.CHAT:
            if document.keys() <= EVERYDAY:
                everyday = _checked(EverydayChatRequest, document)
                policy = _policy(everyday, document, body, policy_of)
                if policy.parameters is None:
                    return everyday_call(everyday, document, policy)
            chat = _checked(ChatRequest, document)
            return chat_call(chat, document, _policy(chat, document, body, policy_of))
        case Endpoint.COMPLETIONS:
            completion = _checked(CompletionRequest, document)
            return completion_call(completion, document, _policy(completion, document, body, policy_of))
        case Endpoint.EMBEDDINGS:
            embedding = _checked(EmbeddingRequest, document)
            return embedding_call(embedding, document, _policy(embedding, document, body, policy_of))


def _checked(model: type[Request], document: dict[str, Any]) -> Request:
    try:
        request: Request = model.__pydantic_validator__.validate_python(document)
    except ValidationError as error:
        raise complaint(error) from error
    if request.model is not None and not request.model.isprintable():
        raise InvalidRequest("'model' must be printable", param="model", code=INVALID_VALUE)
    return request


def _policy(request: Addressed, document: dict[str, Any], body: bytes, policy_of: PolicyOf) -> Policy:
    policy = policy_of(request.model or "")
    ensure_shallow(document, body, policy.max_depth)
    return policy
