"""llama-server's error replies, read into errors that say whose fault it was.

Its shape is ``{"error": {"code": status, "message": …, "type": …}}``, but
nothing is certain: an uncaught exception is plain text, a proxy in between
answers HTML. Many mistakes of clients come as 500 (server.cpp, ``ex_wrapper``).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from corral.core.call import Endpoint
from corral.core.errors import (
    ContextLengthExceeded,
    CorralError,
    Unsupported,
    UpstreamError,
    UpstreamFailed,
    UpstreamLoading,
    UpstreamRefused,
)

# Some of llama-server's messages repeat the request.
MESSAGE_CHARS = 500

# llama-server says neither when it has loaded nor when it has time.
COME_BACK_S = 1.0

PROMPT_PARAM: Mapping[Endpoint, str] = {
    Endpoint.CHAT: "messages",
    Endpoint.COMPLETIONS: "prompt",
    Endpoint.EMBEDDINGS: "input",
}

# What llama-server's 500s say when the request was wrong (b11434; most of them seen on a real one).
CLIENT_MISTAKES = re.compile(
    r"Cannot use both"
    r"|input is not supported"
    r"|Failed to parse (messages|tools)"
    r"|Unknown reasoning format"
    r"|'messages' is required|Expected '\w+' to be"
    r"|must (either )?contain (either )?'content'"
    r"|Failed to download|Invalid image_url|must be base64 encoded|Invalid url"
    # Chat templates refuse conversations with raise_exception.
    r"|Jinja Exception|raise_exception|roles must alternate"
)
# The operator would have to start it in another way.
NOT_STARTED_FOR = re.compile(r"requires --jinja|Pooling type 'none'")

TOO_LARGE = re.compile(r"input \((\d+) tokens\) is too large to process.*?(?:batch size: (\d+)|$)", re.DOTALL)
FIELD = re.compile(r"Field '([\w.]{1,64})'")

# A Retry-After may be a date too (RFC 9110, section 10.2.3); that is what no one between us and llama-server sends.
SECONDS = re.compile(rb"[0-9]{1,6}")


@dataclass(frozen=True, slots=True)
class _Detail:
    message: str
    type: str
    prompt_tokens: object = None
    context_tokens: object = None


def upstream_error(status: int, body: bytes, endpoint: Endpoint, retry_after: bytes | None = None) -> CorralError:
    """The error that a reply with this status means; ``body`` may be anything, ``retry_after`` is that header."""
    try:
        reply = orjson.loads(body)
    except orjson.JSONDecodeError:
        reply = None
    error = _classified(status, _detail(reply), endpoint)
    if isinstance(error, UpstreamError) and retry_after is not None and SECONDS.fullmatch(retry_after):
        error.retry_after_s = float(retry_after)
    return error


def upstream_event_error(event: object, endpoint: Endpoint) -> CorralError:
    """The error in a stream's event: the event's object, or what stands in it under ``error``."""
    error = event.get("error", event) if isinstance(event, dict) else event
    status = error.get("code") if isinstance(error, dict) else None
    # bool is an int.
    known = status if type(status) is int and 400 <= status <= 599 else 500
    return _classified(known, _detail({"error": error}), endpoint)


def _detail(reply: object) -> _Detail:
    error = reply.get("error") if isinstance(reply, dict) else None
    if isinstance(error, str):
        return _Detail(_tidy(error), "")
    if not isinstance(error, dict):
        # Not llama-server's; whatever it says may name machines that are no client's business.
        return _Detail("", "")
    return _Detail(
        message=_tidy(error.get("message")),
        type=str(error.get("type")),
        prompt_tokens=error.get("n_prompt_tokens"),
        context_tokens=error.get("n_ctx"),
    )


def _tidy(message: object) -> str:
    # Cut first: the text may be large.
    text = message[: 4 * MESSAGE_CHARS] if isinstance(message, str) else ""
    return "".join(char for char in " ".join(text.split()) if char.isprintable())[:MESSAGE_CHARS]


def _classified(status: int, detail: _Detail, endpoint: Endpoint) -> CorralError:
    too_long = _too_long(detail, endpoint)
    if too_long is not None:
        return too_long
    if status == 501 or NOT_STARTED_FOR.search(detail.message):
        return Unsupported(f"the model server was not started for this: {detail.message or 'not supported'}")
    if status in (401, 403, 404, 429):
        return _misplaced(status)
    if 400 <= status < 500 or (status == 500 and CLIENT_MISTAKES.search(detail.message)):
        return _refused(status, detail)
    if status == 503 and detail.message.startswith("Loading model"):
        return UpstreamLoading("the model is still loading; try again in a moment", retry_after_s=COME_BACK_S)
    what = f": {detail.message}" if detail.message else ""
    return UpstreamFailed(f"the model server failed with status {status}{what}", upstream_status=status)


def _too_long(detail: _Detail, endpoint: Endpoint) -> ContextLengthExceeded | None:
    param = PROMPT_PARAM[endpoint]
    if detail.type == "exceed_context_size_error":
        return ContextLengthExceeded(_context_message(detail, param), param=param)
    found = TOO_LARGE.search(detail.message)
    if found is None:
        return None
    tokens, limit = found.groups()
    most = f" at most {limit} tokens" if limit else " fewer tokens"
    return ContextLengthExceeded(f"an input has {tokens} tokens, but the model takes{most} at once", param=param)


def _context_message(detail: _Detail, param: str) -> str:
    if not (isinstance(detail.prompt_tokens, int) and isinstance(detail.context_tokens, int)):
        return detail.message
    # Some clients look for the words "maximum context length".
    return (
        f"this model's maximum context length is {detail.context_tokens} tokens, "
        f"but '{param}' has {detail.prompt_tokens} tokens; shorten it"
    )


def _misplaced(status: int) -> UpstreamFailed:
    """A status that is not about the client's request, though a 4xx."""
    if status == 429:
        message = "the model server has no room at the moment"
        return UpstreamFailed(message, upstream_status=status, retry_after_s=COME_BACK_S)
    if status == 404:
        return UpstreamFailed("the model server does not know this endpoint", upstream_status=status)
    # The client's key never goes upstream.
    return UpstreamFailed("the model server refused Corral's own key; the operator must set it", upstream_status=status)


def _refused(status: int, detail: _Detail) -> UpstreamRefused:
    message = detail.message or f"the model server refused the request with status {status}"
    field = FIELD.search(message)
    return UpstreamRefused(
        message,
        status=400 if status >= 500 else status,
        param=field[1] if field else None,
        code="invalid_value" if field else "invalid_request",
    )
