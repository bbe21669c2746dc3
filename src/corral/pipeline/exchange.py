"""One request and its answer: from the headers to the record."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from corral.config import ServerSettings
from corral.core.call import Endpoint
from corral.core.errors import (
    CorralError,
    RateLimited,
    RequestError,
    ShuttingDown,
    Unavailable,
    UnsupportedMediaType,
    UpstreamTimeout,
)
from corral.core.headers import request_id
from corral.core.principal import Scope
from corral.core.record import Outcome, Record
from corral.openai.errors import error_body, error_event, error_headers
from corral.openai.parse import Policy, parse
from corral.pipeline.answer import Answer, ClientGone, Headers, Inbound
from corral.pipeline.attempt import refuse_unknown_tools
from corral.pipeline.authenticate import Keyring, ensure_scope
from corral.pipeline.comments import Comments
from corral.pipeline.forward import JSON_HEADERS, Forwarder
from corral.pipeline.ledger import Ledger
from corral.pipeline.limiter import Limiter
from corral.upstream.fleet import Fleet
from corral.upstream.pool import Pool

log = logging.getLogger("corral")

# What nginx logs for a client that closed its connection before the answer.
CLIENT_CLOSED_REQUEST = 499

JSON = b"application/json"


@dataclass(slots=True)
class Exchange:
    """Serves inference requests, whichever door they came in by; holds nothing of them.

    Its parts are written by a reload, all at once; a request goes by those that it meets.
    """

    keyring: Keyring
    limiter: Limiter
    fleet: Fleet
    forwarder: Forwarder
    ledger: Ledger
    server: ServerSettings
    # What the model that is asked for lets a request say.
    policy_of: Callable[[str], Policy]
    new_id: Callable[[], str]

    async def serve(self, endpoint: Endpoint, inbound: Inbound, answer: Answer) -> None:
        """Answer one request, whatever happens, and leave one record of it.

        Cancelled because the client has left (``answer.gone``), it returns;
        cancelled otherwise, it tells the client and goes on being cancelled.
        """
        with self.ledger.open(endpoint, request_id(_header(inbound.headers, b"x-request-id"), self.new_id)) as record:
            answer.headers.append((b"x-request-id", record.request_id.encode()))
            try:
                await self._serve(endpoint, inbound, answer, record)
                await answer.flush()
                _succeed(answer, record)
            except CorralError as error:
                _fail(error, answer, record)
            except ClientGone:
                _forget(record)
            except asyncio.CancelledError:
                if not answer.gone:
                    _fail(ShuttingDown("the server is shutting down", retry_after_s=1.0), answer, record)
                    raise
                _uncancel()
                _forget(record)
            except Exception:
                # The last border: a bug of ours becomes an answer too, and says where it is.
                log.exception("an exchange failed", extra={"fields": {"request_id": record.request_id}})
                _fail(CorralError("Corral failed to serve this request; the operator's log says why"), answer, record)
                record.outcome = Outcome.ABORTED
            finally:
                record.bytes_out = answer.bytes_sent

    async def _serve(self, endpoint: Endpoint, inbound: Inbound, answer: Answer, record: Record) -> None:
        principal = self.keyring.authenticate(inbound.headers)
        record.client = principal.client
        record.key_id = principal.key_id
        ensure_scope(principal, Scope.INFERENCE)
        record.priority = principal.priority
        _ensure_json(inbound.headers)
        body = await inbound.body(self.server.body_bytes, self.server.body_timeout_s)
        record.bytes_in = len(body)
        call = parse(endpoint, body, self.policy_of)
        record.stream = call.stream
        pool = self.fleet.pool(call.model)
        if principal.models:
            self.fleet.ensure_allowed(principal, pool, call.model)
        record.model = pool.name
        if call.tools:
            refuse_unknown_tools([replica.facts for replica in pool.replicas])
        context_of = partial(self._largest_context, pool)
        with await self.limiter.admit(principal, call, pool.name, record, context_of) as reservation:
            call = reservation.call
            answer.headers.extend(reservation.headers)
            if not call.stream:
                await self.forwarder.forward(call, principal, pool, answer, record)
                return
            told = partial(pool.told_wait, call) if call.include_progress else None
            with Comments(answer, self.server.comment_interval_s, told):
                await self.forwarder.forward(call, principal, pool, answer, record)

    def _largest_context(self, pool: Pool) -> int | None:
        """The tokens that fit into the largest slot that may serve; None where one is not known."""
        contexts = [pool.largest_context()]
        if (other := self.forwarder.fallback(pool)) is not None:
            contexts.append(other.largest_context())
        return None if None in contexts else max(context or 0 for context in contexts)


def _header(headers: Headers, name: bytes) -> bytes | None:
    for key, value in headers:
        if key == name:
            return value
    return None


def _ensure_json(headers: Headers) -> None:
    # curl -d says application/x-www-form-urlencoded; llama-server and OpenAI's own examples name JSON.
    content_type = _header(headers, b"content-type") or JSON
    if content_type != JSON and content_type.partition(b";")[0].strip().lower() != JSON:
        raise UnsupportedMediaType("send the body as JSON, with the header 'Content-Type: application/json'")


def _succeed(answer: Answer, record: Record) -> None:
    if answer.gone:
        _forget(record)
    else:
        record.status = 200
        record.outcome = Outcome.OK


def _forget(record: Record) -> None:
    """The client has left: nobody is to blame, and nothing can be said."""
    record.status = CLIENT_CLOSED_REQUEST
    record.outcome = Outcome.CLIENT_GONE


def _fail(error: CorralError, answer: Answer, record: Record) -> None:
    """Tell the client: by the status, or within a stream that has begun, which then ends without [DONE]."""
    record.error_code = error.code
    record.status = 200 if answer.started else error.status
    record.outcome = Outcome.CUT if record.token_events and answer.started else _outcome(error)
    if not answer.started:
        headers = [*JSON_HEADERS, *error_headers(error)]
        answer.send(error.status, headers, error_body(error))
    elif not answer.ended:
        answer.write(error_event(error))
        answer.end()


def _outcome(error: CorralError) -> Outcome:
    match error:
        case RateLimited():
            return Outcome.LIMITED
        case RequestError():
            return Outcome.REFUSED
        case Unavailable():
            return Outcome.UNAVAILABLE
        case UpstreamTimeout():
            return Outcome.TIMEOUT
        case _:
            return Outcome.UPSTREAM_ERROR


def _uncancel() -> None:
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
