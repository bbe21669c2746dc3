"""From a well-typed completion request to a ``Call``."""

from collections.abc import Mapping
from typing import Any

from corral.core.call import Call, Endpoint
from corral.core.errors import InvalidRequest
from corral.openai.complaints import UNSUPPORTED
from corral.openai.generation import UNSUPPORTED_GENERATION, ensure_sound, include_usage, mend_stop
from corral.openai.inputs import count_inputs
from corral.openai.policy import Policy, fields_of, refuse_unsupported, token_limit
from corral.openai.requests import CompletionRequest

# llama-server would ignore these in silence.
UNSUPPORTED_COMPLETION: Mapping[str, str] = {
    **UNSUPPORTED_GENERATION,
    "suffix": "the model server does not insert text; leave it out",
    "response_format": "use 'json_schema' or 'grammar', or chat completions",
}


def completion_call(request: CompletionRequest, body: Mapping[str, Any], policy: Policy) -> Call:
    """``body`` is what ``request`` was read from. Raises ``InvalidRequest`` for what cannot be served."""
    refuse_unsupported(body, UNSUPPORTED_COMPLETION)
    _ensure_honoured(request)
    ensure_sound(request)
    inputs = count_inputs(request.prompt, "prompt", policy)
    fields = fields_of(body, policy)
    _mend(request, fields)
    given = token_limit((request.n_predict, request.max_tokens))
    max_tokens = policy.default_max_tokens if given is None else given
    fields["max_tokens"] = max_tokens
    return Call(
        endpoint=Endpoint.COMPLETIONS,
        model=request.model or "",
        fields=fields,
        stream=bool(request.stream),
        include_usage=include_usage(request),
        include_progress=bool(request.return_progress),
        n=request.n or 1,
        inputs=inputs,
        max_tokens=max_tokens,
        max_tokens_given=given is not None,
        logprobs=request.logprobs is not None or bool(request.n_probs),
    )


def _ensure_honoured(request: CompletionRequest) -> None:
    if request.best_of not in (None, request.n or 1):
        raise _unsupported("best_of", "the model server does not choose among completions; leave it out")
    if request.echo:
        raise _unsupported("echo", "the model server does not repeat the prompt; leave it out")


def _unsupported(param: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"'{param}' is not supported: {reason}", param=param, code=UNSUPPORTED)


def _mend(request: CompletionRequest, fields: dict[str, Any]) -> None:
    fields.pop("best_of", None)
    fields.pop("echo", None)
    mend_stop(fields)
    if request.logprobs == 0:
        # llama-server takes 0 for "no logprobs at all"; the tokens' own come with one alternative.
        fields["logprobs"] = 1
