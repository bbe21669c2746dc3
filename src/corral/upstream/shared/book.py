"""The book of shared slots in Valkey: who holds how many at which llama-server."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple, Protocol

from corral.config import ValkeySettings
from corral.core.holding import Answer, Ask
from corral.valkey.script import Script

# Where nothing is shared nobody pays for the library.
if TYPE_CHECKING:
    from corral.valkey.link import Link
    from corral.valkey.listener import Listener

# An answer that one waits for keeps its place this long without being asked for anew, as part of a lease: a Corral
# that dies in line keeps free slots from others until then, one that dies with calls only the slots of these.
PLACE_SHARE = 1 / 3
# A Valkey that is away is tried this often.
RETRY_S = 0.5
SLOTS = Script(files(__package__).joinpath("slots.lua").read_text(encoding="utf-8"))
# What is another one after each start of the server, and how many seconds ago that was.
STARTED = Script("""
local told = redis.call('INFO', 'server')
return string.match(told, 'run_id:(%w+)') .. ' ' .. string.match(told, 'uptime_in_seconds:(%d+)')
""")


def settle_s(settings: ValkeySettings) -> float:
    """How long a Corral may take to notice that Valkey is back, and to state what it holds."""
    return RETRY_S + 2 * settings.timeout_s


class Message(NamedTuple):
    """So many slots of a replica were held by all, at that point."""

    name: str
    total: int
    version: int


class Start(NamedTuple):
    """The server that keeps the book: another ``run_id`` is another start, which may have forgotten all."""

    run_id: str
    age_s: float


class Book(Protocol):
    """What keepers ask; a Valkey, or a test's own."""

    async def hold(self, holder: str, name: str, ask: Ask) -> Answer:
        """State what is held and ask for more; raises ValkeyLost."""
        ...

    def listen(self) -> AbstractAsyncContextManager[AsyncIterator[Message]]:
        """What is said of all replicas from now on; raises ValkeyLost when it cannot be heard, now or later."""
        ...

    async def start(self) -> Start:
        """Who keeps it; raises ValkeyLost."""
        ...


class ValkeyBook:
    """The book in a Valkey: one hash for each llama-server, written by ``slots.lua`` alone."""

    def __init__(self, settings: ValkeySettings, link: "Link", listener: "Listener") -> None:
        self._link = link
        self._listener = listener
        self._prefix = settings.prefix
        self._channel = f"{settings.prefix}:slots"
        times_s = (settings.lease_s, settings.lease_s * PLACE_SHARE, settle_s(settings))
        self._times = " ".join(str(round(time_s * 1000)) for time_s in times_s)

    async def hold(self, holder: str, name: str, ask: Ask) -> Answer:
        # In braces: what a cluster goes by to find the server of a key.
        key = f"{self._prefix}:slots:{{{name}}}"
        numbers = " ".join((str(ask.slots), self._times, str(ask.keep), *map(str, ask.tasks)))
        answer = await self._link.ask(SLOTS, (key,), (numbers, holder, self._channel, name), again=True)
        granted, others, ahead, version, expires_ms = map(int, answer.split(b" "))
        return Answer(granted, others, ahead, version, expires_ms / 1000 if expires_ms >= 0 else None)

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[AsyncIterator[Message]]:
        async with self._listener.listen(self._channel) as said:
            yield _messages(said)

    async def start(self) -> Start:
        # Who can listen knows that it is there.
        await self._link.found()
        answer = await self._link.ask(STARTED, (f"{self._prefix}:start",), (), again=True)
        run_id, age_s = answer.decode().split(" ")
        return Start(run_id, float(age_s))


async def _messages(said: AsyncIterator[str]) -> AsyncIterator[Message]:
    async for text in said:
        if (message := _message(text)) is not None:
            yield message


def _message(text: str) -> Message | None:
    """None for whatever else somebody may say there."""
    try:
        version, total, name = text.split(" ", 2)
        return Message(name, int(total), int(version))
    except ValueError:
        return None
