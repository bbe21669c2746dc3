"""One try at one replica: what is sent, and how its reply is read."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import orjson

from corral.config import RequestSettings, RouteTimeouts
from corral.core.call import Call, Endpoint
from corral.core.errors import BadReply, ConnectFailed, InvalidRequest, UpstreamError, UpstreamTimeout
from corral.core.record import Record
from corral.core.transcript import Said
from corral.openai.errors import upstream_error
from corral.pipeline.answer import Answer
from corral.pipeline.gather import Gathered
from corral.pipeline.relay import StreamWatch
from corral.pipeline.strand import Strand
from corral.pipeline.time_limits import TimeLimits
from corral.pipeline.whole import Whole, read_whole
from corral.upstream.lease import Lease
from corral.upstream.probe import Facts, Prober, authorization
from corral.upstream.replica import Replica
from corral.upstream.wire import Client, Reply

# An error reply is a few hundred bytes; more of it is of no use to anyone.
ERROR_LIMIT_BYTES = 64 * 1024
# Nobody can be told of a client who leaves a reply that was asked for whole: its
# prompt has to be short too. This is some hundred tokens, one or two steps of reading.
WHOLE_BODY_BYTES = 512
# 2048 embeddings of 8192 dimensions as text.
WHOLE_LIMIT_BYTES = 512 * 1024 * 1024

# Is given what pauses an upstream and what lets it go on.
OnFlow = Callable[[Callable[[], None], Callable[[], None]], None]


@dataclass(frozen=True, slots=True)
class Attempts:
    """Makes attempts: the same client and settings for all."""

    client: Client
    limits: TimeLimits
    requests: RequestSettings
    clock: Callable[[], float]

    async def relay(self, answer: Answer, strand: Strand, lease: Lease, record: Record) -> None:
        """Stream to the client; raises what broke it."""
        await self._stream(strand, lease, record, answer.watch)
        answer.end()

    async def gather(self, gathered: Gathered, strand: Strand, lease: Lease, record: Record) -> Whole:
        """The reply in one piece, gathered from a stream; raises what broke it."""
        await self._stream(strand, lease, record)
        return Whole(gathered.body(record.usage), record.usage)

    async def whole(self, call: Call, lease: Lease, record: Record) -> Whole:
        """The reply in one piece, asked for whole."""
        with await self._send(lease, call, record, stream=False) as reply:
            body = await reply.read(WHOLE_LIMIT_BYTES)
            lease.abandoned = False
        record.first_byte_at = record.first_byte_at or self.clock()
        whole = read_whole(body, call)
        record.usage = whole.usage
        return whole

    async def _stream(self, strand: Strand, lease: Lease, record: Record, on_flow: OnFlow | None = None) -> None:
        """Read the stream to its end, or the rest of it; sets the record's usage, however it ends.

        ``on_flow`` is given what pauses and resumes the upstream.
        """
        try:
            if strand.said is not None and not strand.resume(await self._tokens(strand.said, lease.replica)):
                return
            with await self._send(lease, strand.call, record, stream=True) as reply:
                if on_flow is not None:
                    on_flow(reply.pause, reply.resume)
                limits = self.limits.of(lease.replica.model, strand.call.endpoint)
                watch = StreamWatch(reply, record, self.clock, limits.between_tokens_s)
                await strand.splice(reply, watch.tokens)
                lease.abandoned = False
        finally:
            record.usage = strand.usage

    async def _tokens(self, said: Said, replica: Replica) -> int | None:
        """How many tokens it is in the replica's vocabulary; None when it does not tell."""
        if not said.text or replica.address is None:
            return 0
        try:
            return await Prober(self.client).tokens(replica.address, replica.key, said.text)
        except UpstreamError:
            return None

    def asked_whole(self, call: Call, body_bytes: int) -> bool:
        """Embeddings, short replies to short prompts, and logprobs with tools, which llama-server refuses to stream."""
        if call.endpoint is Endpoint.EMBEDDINGS or (call.logprobs and call.tools):
            return True
        short = call.tasks == 1 and call.max_tokens <= self.requests.whole_max_tokens
        return short and body_bytes <= WHOLE_BODY_BYTES

    async def _send(self, lease: Lease, call: Call, record: Record, *, stream: bool) -> Reply:
        """Send the call; the reply is what was asked for, and anything else is raised."""
        replica = lease.replica
        if replica.address is None:
            raise ConnectFailed("the model server has just stopped")
        limits = self.limits.of(replica.model, call.endpoint)
        if call.tools:
            refuse_unknown_tools((replica.facts,))
        lease.abandoned = True
        try:
            reply = await self.client.send(
                replica.address,
                "POST",
                call.endpoint.path,
                headers=[*_headers(record.request_id, stream=stream), *authorization(replica.key)],
                body=_body(call, stream=stream),
                connect_s=limits.connect_s,
                head_s=limits.first_byte_s if stream else self._whole_s(call, limits),
            )
        except (ConnectFailed, UpstreamTimeout) as error:
            # Nothing runs at a replica that was never connected to.
            lease.abandoned = isinstance(error, UpstreamTimeout) and error.phase != "connect"
            raise
        lease.started = stream
        lease.cut = reply.fail
        reply.limit(limits.first_byte_s, "first_byte")
        if reply.status != 200:
            with reply:
                body = await reply.read(ERROR_LIMIT_BYTES)
                lease.abandoned = False
                raise upstream_error(reply.status, body, call.endpoint, reply.header(b"retry-after"))
        expected = b"text/event-stream" if stream else b"application/json"
        if not (reply.header(b"content-type") or b"").startswith(expected):
            reply.close()
            raise BadReply("the model server answered with an unexpected content type")
        return reply

    def _whole_s(self, call: Call, limits: RouteTimeouts) -> float:
        """The head of a whole reply comes with its last token: nearly the first of a short one, not of a long one."""
        if call.max_tokens <= self.requests.whole_max_tokens:
            return limits.first_byte_s
        return min(limits.total_s, limits.first_byte_s + call.max_tokens * limits.between_tokens_s)


def refuse_unknown_tools(servers: Iterable[Facts | None]) -> None:
    """Refuse what llama-server would ignore in silence: tools, where no known server's template has them."""
    known = [facts for facts in servers if facts is not None]
    if known and not any(facts.tools for facts in known):
        raise InvalidRequest(
            "the chat template of this model knows no tools; ask another model, or leave 'tools' out",
            param="tools",
            code="unsupported_parameter",
        )


def _headers(request_id: str, *, stream: bool) -> list[tuple[bytes, bytes]]:
    accept = b"text/event-stream" if stream else b"application/json"
    return [(b"content-type", b"application/json"), (b"accept", accept), (b"x-request-id", request_id.encode())]


def _body(call: Call, *, stream: bool) -> bytes:
    fields = dict(call.fields)
    if call.model:
        fields["model"] = call.model
    if stream:
        fields["stream"] = True
        fields["stream_options"] = {"include_usage": True}
        # With it llama-server looks for a departed client while it reads the prompt, and we see that it is alive.
        fields["return_progress"] = True
        # Its comments would be dropped: they say nothing of a model that is stuck.
        fields["sse_ping_interval"] = -1
    return orjson.dumps(fields)
