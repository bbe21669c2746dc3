"""An answer says how it came about."""

from corral.core.call import Endpoint
from corral.core.record import Record
from corral.pipeline.asgi import AsgiAnswer
from corral.pipeline.explain import explain
from support.asgi_client import AsgiClient
from support.exchanges import LONG_S
from support.run import async_test

ID = (b"x-request-id", b"req_1")


@async_test
async def test_each_attempt_takes_the_place_of_the_one_before() -> None:
    client = AsgiClient()
    record = Record("req_1", Endpoint.CHAT, opened_at=0.0, opened_unix_s=0.0, queued_at=1.0, leased_at=1.25)
    async with AsgiAnswer(client.receive, client.send, stall_s=LONG_S) as answer:
        answer.headers.append(ID)
        for attempt, replica in enumerate(["m/0", "m/1", "m/0"], start=1):
            record.attempts, record.replica = attempt, replica
            explain(answer, record)
            assert answer.headers == [
                ID,
                (b"x-corral-replica", replica.encode()),
                (b"x-corral-attempts", b"%d" % attempt),
                (b"x-corral-queue-ms", b"250"),
            ]


@async_test
async def test_what_has_begun_is_not_explained_any_more() -> None:
    client = AsgiClient()
    record = Record("req_1", Endpoint.CHAT, opened_at=0.0, opened_unix_s=0.0, attempts=1, replica="m/0")
    async with AsgiAnswer(client.receive, client.send, stall_s=LONG_S) as answer:
        answer.start(200, [])
        explain(answer, record)
        answer.end()
        assert answer.headers == []
