"""The fact that remains of one exchange."""

from dataclasses import dataclass
from enum import Enum

from corral.core.call import Endpoint
from corral.core.principal import Priority
from corral.core.usage import Usage

NO_USAGE = Usage()


class Outcome(Enum):
    """How an exchange ended. The default, ``ABORTED``, is what is left when nobody decided otherwise."""

    OK = "ok"
    # 4xx: refused by Corral or by llama-server for the client's own fault.
    REFUSED = "refused"
    # 429.
    LIMITED = "limited"
    # 503: queue full or too late, no replica ready, shutting down.
    UNAVAILABLE = "unavailable"
    # 502: llama-server failed before the first byte reached the client.
    UPSTREAM_ERROR = "upstream_error"
    # 504.
    TIMEOUT = "timeout"
    # The stream had begun and could not be finished; the client was told in the stream.
    CUT = "cut"
    # 499: the client left.
    CLIENT_GONE = "client_gone"
    # A bug of ours (500), or cut off by shutdown.
    ABORTED = "aborted"

    def __init__(self, label: str) -> None:
        # As ``Endpoint.label``.
        self.label = label


@dataclass(slots=True)
class Record:
    """Marks and figures of one exchange, filled by its coroutine and closed by the ledger.

    All times are seconds of the event loop's clock (monotonic); ``opened_at``
    is also given as ``opened_unix_s``. ``None`` means that the phase was never
    reached.
    """

    request_id: str
    endpoint: Endpoint
    opened_at: float
    opened_unix_s: float
    client: str = ""
    # Of the key in the store that it came with; empty for those of the environment.
    key_id: str = ""
    priority: Priority = Priority.DEFAULT
    # The configured model that served, empty until it is known; what the client asked for is not kept.
    model: str = ""
    replica: str = ""
    # Why this one of several, and the tokens that were thought to be in its cache (None when nobody looked).
    route_reason: str = ""
    foreseen_tokens: int | None = None
    stream: bool = False
    status: int = 0
    outcome: Outcome = Outcome.ABORTED
    error_code: str | None = None
    attempts: int = 0
    # That the last attempt held.
    slots: int = 0
    # The code of each error behind which another attempt went on with the answer.
    resumed: tuple[str, ...] = ()
    queued_at: float | None = None
    leased_at: float | None = None
    first_byte_at: float | None = None
    closed_at: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    usage: Usage = NO_USAGE
    # When the last token event came, and how many came: their mean distance is the inter-token latency.
    last_token_at: float | None = None
    token_events: int = 0
    # Its line in the journal; 0 as long as it has none.
    sequence: int = 0

    @property
    def duration_s(self) -> float:
        return (self.closed_at or self.opened_at) - self.opened_at

    @property
    def queue_wait_s(self) -> float | None:
        if self.queued_at is None:
            return None
        return (self.leased_at or self.closed_at or self.queued_at) - self.queued_at

    @property
    def ttft_s(self) -> float | None:
        """Time to first token: from the request's arrival to the first event of the reply."""
        return None if self.first_byte_at is None else self.first_byte_at - self.opened_at

    @property
    def inter_token_s(self) -> float | None:
        """Mean distance of two tokens, from the usage where known (a delta may hold several tokens)."""
        tokens = self.usage.completion_tokens or self.token_events
        if self.first_byte_at is None or self.last_token_at is None or tokens < 2:
            return None
        return (self.last_token_at - self.first_byte_at) / (tokens - 1)
