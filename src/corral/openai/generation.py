"""What chat completions and completions check and mend alike."""

from collections.abc import Mapping
from typing import Any

from corral.core.errors import InvalidRequest
from corral.openai.complaints import INVALID_VALUE
from corral.openai.sampling import Generation

UNSUPPORTED_GENERATION: Mapping[str, str] = {
    # llama-server's alias of "n", which it prefers: choices that nobody has counted.
    "n_cmpl": "use 'n'",
}


def ensure_sound(request: Generation) -> None:
    """Refuse combinations that no generation can have."""
    if request.stream_options is not None and not request.stream:
        raise refusal("stream_options", "'stream_options' is only for streams; add 'stream': true, or leave it out")
    if request.grammar is not None and request.json_schema is not None:
        raise refusal("grammar", "use either 'grammar' or 'json_schema', not both")


def mend_stop(fields: dict[str, Any]) -> None:
    """Leave out empty stop strings: llama-server takes one as found at once and returns nothing."""
    if "stop" not in fields:
        return
    stop = fields.pop("stop")
    kept = [text for text in stop if text] if isinstance(stop, list) else stop
    if kept:
        fields["stop"] = kept


def without_nulls(item: dict[str, Any], keep: str = "") -> dict[str, Any]:
    """SDKs write nulls for what is not there; llama-server answers 500 where it looks for text."""
    if None not in item.values():
        return item
    return {key: value for key, value in item.items() if value is not None or key == keep}


def include_usage(request: Generation) -> bool:
    """The client wants the usage chunk."""
    return request.stream_options is not None and bool(request.stream_options.include_usage)


def refusal(param: str, message: str) -> InvalidRequest:
    """An error for values that are right by themselves and wrong together."""
    return InvalidRequest(message, param=param, code=INVALID_VALUE)
