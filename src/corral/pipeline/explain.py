"""The headers in which an answer says how it came about, as far as that is known before its first byte."""

from corral.core.record import Record
from corral.pipeline.answer import Answer

REPLICA = b"x-corral-replica"
ATTEMPTS = b"x-corral-attempts"
QUEUE_MS = b"x-corral-queue-ms"
NAMES = frozenset({REPLICA, ATTEMPTS, QUEUE_MS})

# What most answers say.
FIRST_ATTEMPT = (ATTEMPTS, b"1")
NO_WAIT = (QUEUE_MS, b"0")


def explain(answer: Answer, record: Record) -> None:
    """An attempt begins: put its headers in the place of those of the attempt before."""
    if answer.started:
        # A comment was needed while it waited.
        return
    if record.attempts > 1:
        answer.headers[:] = [header for header in answer.headers if header[0] not in NAMES]
    waited_ms = round((record.queue_wait_s or 0.0) * 1000)
    answer.headers += (
        (REPLICA, record.replica.encode()),
        FIRST_ATTEMPT if record.attempts == 1 else (ATTEMPTS, b"%d" % record.attempts),
        NO_WAIT if waited_ms == 0 else (QUEUE_MS, b"%d" % waited_ms),
    )
