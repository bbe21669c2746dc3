"""The routes of the fake, in llama-server's order of checks: loading, key, 404, then the endpoint."""

import asyncio
import sys
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace

from fake import introspection
from fake.connection import ClientGone, Connection
from fake.door import Door
from fake.exchange import Exchange
from fake.faults import AT_THE_DOOR, Fault, FaultBook
from fake.inference import Engine, Refused
from fake.record import Record, record_of
from fake.settings import Settings
from fake.shapes import BAD_KEY, LOADING, NOT_FOUND, dump, error, token_id
from fake.slots import Task
from fake.text import TOKEN

PUBLIC = ("/health", "/v1/health")


class Server:
    """The whole fake. Written by its own methods and by the control routes, all in one event loop."""

    def __init__(self, settings: Settings, control: "Control") -> None:
        self.initial = replace(settings)
        self.settings = settings
        self.engine = Engine(settings)
        self.book = FaultBook([])
        self.records: deque[tuple[Record, Connection]] = deque(maxlen=10_000)
        self.connections: set[Connection] = set()
        self.accepted = 0
        self.started_at = time.monotonic()
        self.door: Door
        self._control = control
        self._reopening: set[asyncio.Task[None]] = set()

    def connect(self) -> Connection:
        """A protocol for a new connection; both doors use it."""
        self.accepted += 1
        return Connection(self.serve, self.accepted)

    def ready(self) -> bool:
        return time.monotonic() - self.started_at >= self.settings.load_s

    async def add_faults(self, faults: list[Fault]) -> None:
        """Put these in force beside those that are."""
        self.book.faults.extend(faults)
        await self.mind_door()
        for fault in faults:
            if fault.kind in AT_THE_DOOR and fault.seconds is not None:
                reopening = asyncio.get_running_loop().create_task(self._drop(fault, fault.seconds))
                self._reopening.add(reopening)
                reopening.add_done_callback(self._reopening.discard)

    async def clear_faults(self) -> None:
        self.book.faults.clear()
        await self.mind_door()

    async def mind_door(self) -> None:
        """Open the door, unless a fault keeps it shut."""
        shut = next((fault for fault in self.book.faults if fault.kind in AT_THE_DOOR), None)
        if shut is None:
            await self.door.open()
        elif shut.kind == "refuse":
            self.door.refuse()
        else:
            self.door.hang()

    async def _drop(self, fault: Fault, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        # By identity: an equal fault may have been added since.
        self.book.faults = [one for one in self.book.faults if one is not fault]
        await self.mind_door()

    async def serve(self, connection: Connection) -> None:
        """One connection, request after request."""
        self.connections.add(connection)
        try:
            while request := await connection.read_request(self.settings.keep_alive_s):
                record = record_of(connection, request)
                exchange = Exchange(connection, request, record, [])
                exchange.keep = exchange.keep and request.nth < self.settings.keep_alive_requests
                await self._answer(exchange)
                if not exchange.keep:
                    return
        except ClientGone:
            pass
        finally:
            connection.close()
            self.connections.discard(connection)

    async def _answer(self, exchange: Exchange) -> None:
        if exchange.request.path.startswith("/fake/"):
            await self._control(self, exchange)
            return
        record, connection = exchange.record, exchange.connection
        self.records.append((record, connection))
        exchange.faults = self.book.take(exchange.request)
        record.faults = [fault.kind for fault in exchange.faults]
        try:
            if not await exchange.answer_with_fault():
                await self._route(exchange)
        finally:
            record.left_at, record.ended_at = connection.left_at, time.monotonic()
            if record.ended == "running":
                record.ended = "client_gone" if connection.left_at else "complete"

    async def _route(self, exchange: Exchange) -> None:
        request = exchange.request
        route = ROUTES.get((request.method, request.path))
        try:
            self._check(exchange, found=route is not None)
            if route is not None:
                await route(self, exchange)
        except Refused as refused:
            await exchange.whole(refused.status, dump(refused.body))
        except (LookupError, TypeError, ValueError, AttributeError) as problem:
            # As in llama-server, what nobody checked is a 500.
            traceback.print_exc(file=sys.stderr)
            await exchange.whole(500, dump(error(500, "server_error", str(problem))))

    def _check(self, exchange: Exchange, *, found: bool) -> None:
        request, key = exchange.request, self.settings.api_key
        if not self.ready():
            raise Refused(503, LOADING)
        given = request.headers.get("authorization", "").removeprefix("Bearer ") or request.headers.get("x-api-key")
        if key and request.path not in PUBLIC and given != key:
            raise Refused(401, BAD_KEY)
        if not found:
            raise Refused(404, NOT_FOUND)

    # -- endpoints ------------------------------------------------------------

    async def health(self, exchange: Exchange) -> None:
        await exchange.whole(200, dump({"status": "ok"}))

    async def props(self, exchange: Exchange) -> None:
        await exchange.whole(200, dump(introspection.props(self.settings)))

    async def models(self, exchange: Exchange) -> None:
        await exchange.whole(200, dump(introspection.models(self.settings)))

    async def slots(self, exchange: Exchange) -> None:
        await exchange.whole(200, dump(introspection.slots(self.engine.slots, self.settings.n_ctx)))

    async def metrics(self, exchange: Exchange) -> None:
        if not self.settings.metrics:
            raise unsupported("metrics endpoint", "--metrics")
        text = introspection.metrics(self.engine.slots).encode()
        started = str(int(self.started_at))
        await exchange.whole(200, text, "text/plain; version=0.0.4", Process_Start_Time_Unix=started)

    async def tokenize(self, exchange: Exchange) -> None:
        text = str(self.engine.fields(exchange.request.body).get("content", ""))
        await exchange.whole(200, dump({"tokens": [token_id(token) for token in TOKEN.findall(text)]}))

    async def chat(self, exchange: Exchange) -> None:
        fields = self.engine.fields(exchange.request.body)
        await self._infer(exchange, fields, self.engine.chat(fields), chat=True)

    async def completions(self, exchange: Exchange) -> None:
        fields = self.engine.fields(exchange.request.body)
        await self._infer(exchange, fields, self.engine.completion(fields), chat=False)

    async def embeddings(self, exchange: Exchange) -> None:
        if not self.settings.embeddings:
            raise unsupported("embeddings", "--embeddings")
        fields = self.engine.fields(exchange.request.body)
        tasks = self.engine.post(self.engine.embeddings(fields))
        exchange.record.tasks = [task.id for task in tasks]
        await self.engine.finish(tasks)
        await exchange.whole(200, dump(self.engine.embedded(fields, tasks)))

    async def _infer(
        self, exchange: Exchange, fields: dict[str, object], groups: list[list[Task]], *, chat: bool
    ) -> None:
        tasks = self.engine.post(groups)
        exchange.record.tasks = [task.id for task in tasks]
        if fields.get("stream") is not True:
            await self.engine.finish(tasks)
            await exchange.whole(200, dump(self.engine.whole(fields, tasks, chat=chat)))
            return
        try:
            # Until a task begins, a stream has no headers.
            first = await tasks[0].results.get()
            await exchange.stream(self.engine.stream(fields, tasks, first, chat=chat))
        finally:
            for task in tasks:
                task.cancelled = True


def unsupported(what: str, flag: str) -> Refused:
    text = f"This server does not support {what}. Start it with `{flag}`"
    return Refused(501, error(501, "not_supported_error", text))


Control = Callable[[Server, Exchange], Awaitable[None]]

ROUTES: dict[tuple[str, str], Callable[[Server, Exchange], Awaitable[None]]] = {
    ("GET", "/health"): Server.health,
    ("GET", "/v1/health"): Server.health,
    ("GET", "/props"): Server.props,
    ("GET", "/models"): Server.models,
    ("GET", "/v1/models"): Server.models,
    ("GET", "/slots"): Server.slots,
    ("GET", "/metrics"): Server.metrics,
    ("POST", "/tokenize"): Server.tokenize,
    ("POST", "/chat/completions"): Server.chat,
    ("POST", "/v1/chat/completions"): Server.chat,
    ("POST", "/v1/completions"): Server.completions,
    ("POST", "/v1/embeddings"): Server.embeddings,
}
