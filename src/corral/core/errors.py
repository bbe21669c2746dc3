"""Everything that can go wrong, by what a client or operator can do about it.

    CorralError
    ├── ConfigError              the operator corrects a setting
    ├── EngineError              the operator reads why llama-server does not start
    ├── OperateError             the operator reads why a running Corral did not do as told
    ├── PullError                the operator reads why a model file could not be fetched
    ├── RequestError             4xx: the client changes its request
    │   ├── InvalidRequest           400
    │   ├── ContextLengthExceeded    400
    │   ├── Unauthorized             401
    │   ├── Forbidden                403  the key is good, and does not open this
    │   ├── ModelForbidden           403
    │   ├── NotFound                 404  no such route
    │   ├── ModelNotFound            404
    │   ├── KeyNotFound              404
    │   ├── MethodNotAllowed         405
    │   ├── HeadTimeout              408
    │   ├── BodyTimeout              408
    │   ├── BodyTooLarge             413
    │   ├── UnsupportedMediaType     415
    │   ├── RateLimited              429
    │   │   ├── TokensLimited
    │   │   └── QuotaExhausted           waiting does not help
    │   ├── HeadTooLarge             431
    │   ├── UpstreamRefused          4xx  llama-server's own refusal, normalised
    │   └── Unsupported              501  the model cannot do this
    ├── Unavailable              503: the client comes back later
    │   ├── QueueFull
    │   ├── QueueTimeout
    │   ├── NotReady                 no replica can serve the model now
    │   ├── TooManyConnections       of clients, to all of Corral
    │   ├── StoreUnavailable         the database of keys and usage does not answer
    │   ├── LimitsUnavailable        what several Corrals count together cannot be counted
    │   └── ShuttingDown
    └── UpstreamError            502: an attempt at a replica failed
        ├── ConnectFailed            nothing was sent
        ├── ConnectionLost           the reply broke off
        ├── Withdrawn                the operator has taken the replica out of service
        ├── BadReply                 not HTTP, not JSON, or not what was asked for
        ├── UpstreamFailed           5xx of llama-server's own making
        ├── UpstreamLoading          503 while it loads
        └── UpstreamTimeout          504, names the phase

Whether an attempt may be repeated stands in ``core/retry.py``.
"""


class CorralError(Exception):
    """An answer in OpenAI's error shape: ``status``, ``type``, ``code``, ``param`` and a message.

    The message is shown to clients: it names the thing and what to do, and
    holds no path, address, command line or key.
    """

    status = 500
    type = "server_error"
    code: str | None = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class ConfigError(CorralError):
    """One or more settings are wrong; each problem names the setting, what is wrong and what would be right."""

    code = "config_error"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class EngineError(CorralError):
    """A llama-server cannot be started; the message holds its last log lines and is for operators only."""

    code = "engine_error"


class OperateError(CorralError):
    """A running Corral cannot be asked, or refuses; the message says what to do, and is for operators only."""

    code = "operate_error"


class PullError(CorralError):
    """A model file could not be fetched; the message says why and what to try, and is for operators only."""

    code = "pull_error"


class RequestError(CorralError):
    """The client can put this right."""

    status = 400
    type = "invalid_request_error"
    code: str | None = None


class InvalidRequest(RequestError):
    """The body is not what the endpoint takes."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param=param)
        self.code = code


class ContextLengthExceeded(RequestError):
    code = "context_length_exceeded"


class Unauthorized(RequestError):
    status = 401
    code = "invalid_api_key"


class Forbidden(RequestError):
    status = 403
    code = "permission_denied"


class ModelForbidden(RequestError):
    status = 403
    code = "model_not_allowed"


class NotFound(RequestError):
    status = 404
    code = "unknown_url"


class ModelNotFound(RequestError):
    status = 404
    code = "model_not_found"


class KeyNotFound(RequestError):
    status = 404
    code = "key_not_found"


class MethodNotAllowed(RequestError):
    status = 405
    code = "method_not_allowed"


class HeadTimeout(RequestError):
    status = 408
    code = "request_timeout"


class BodyTimeout(RequestError):
    status = 408
    code = "request_timeout"


class BodyTooLarge(RequestError):
    status = 413
    code = "request_too_large"


class HeadTooLarge(RequestError):
    status = 431
    code = "request_headers_too_large"


class UnsupportedMediaType(RequestError):
    status = 415
    code = "unsupported_media_type"


class RateLimited(RequestError):
    """``headers`` are the ``x-ratelimit-*`` headers of the answer; ``vain``: the same request is refused again."""

    status = 429
    type = "requests"
    code = "rate_limit_exceeded"

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        vain: bool = False,
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.headers = headers
        self.vain = vain


class TokensLimited(RateLimited):
    type = "tokens"


class QuotaExhausted(RateLimited):
    """OpenAI's word for what is used up for long."""

    type = "insufficient_quota"
    code = "insufficient_quota"


class UpstreamRefused(RequestError):
    """llama-server refused what we let through; its status and message, in OpenAI's shape."""

    def __init__(self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.status = status
        self.code = code


class Unsupported(RequestError):
    status = 501
    code = "unsupported"


class Unavailable(CorralError):
    """Nothing is wrong with the request; it can be sent again later."""

    status = 503
    type = "server_error"
    code = "unavailable"


class QueueFull(Unavailable):
    code = "queue_full"


class QueueTimeout(Unavailable):
    code = "queue_timeout"


class NotReady(Unavailable):
    code = "model_not_ready"


class TooManyConnections(Unavailable):
    code = "too_many_connections"


class StoreUnavailable(Unavailable):
    code = "store_unavailable"


class LimitsUnavailable(Unavailable):
    code = "limits_unavailable"


class ShuttingDown(Unavailable):
    code = "shutting_down"


class UpstreamError(CorralError):
    """An attempt at a replica failed through no fault of the client."""

    status = 502
    code = "upstream_error"


class ConnectFailed(UpstreamError):
    code = "upstream_unreachable"


class ConnectionLost(UpstreamError):
    """``reused``: it was an idle connection, and no byte of the reply had come."""

    code = "upstream_connection_lost"

    def __init__(self, message: str, *, reused: bool = False) -> None:
        super().__init__(message)
        self.reused = reused


class Withdrawn(UpstreamError):
    """The reply was broken off here, as its replica is not to serve any more."""

    code = "upstream_withdrawn"


class BadReply(UpstreamError):
    code = "upstream_bad_reply"


class UpstreamFailed(UpstreamError):
    """llama-server answered 5xx. ``upstream_status`` is its status."""

    code = "upstream_failed"

    def __init__(self, message: str, *, upstream_status: int, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.upstream_status = upstream_status


class UpstreamLoading(UpstreamError):
    status = 503
    code = "model_loading"


class UpstreamTimeout(UpstreamError):
    """``phase`` is ``connect``, ``first_byte``, ``between_tokens`` or ``total``."""

    status = 504
    code = "upstream_timeout"

    def __init__(self, phase: str, limit_s: float) -> None:
        super().__init__(f"the model server exceeded the time limit '{phase}' of {limit_s:g} s")
        self.phase = phase
