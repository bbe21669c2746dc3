"""Starts one llama-server, waits until it serves, and starts it again when it dies."""

import asyncio
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from corral.core.errors import EngineError, UpstreamError
from corral.core.lifecycle import State, Transition
from corral.upstream.address import Address
from corral.upstream.argv import engine_command, llama_argv, llama_environment
from corral.upstream.logfile import LogFile, log_path
from corral.upstream.process import Process, computed_s, resident_bytes
from corral.upstream.spec import EngineSpec

# Returns when the server is ready and raises UpstreamError while it is not, as ``Prober.facts`` does.
Probe = Callable[[Address, str | None], Awaitable[object]]

# llama-server tells nobody when it becomes ready: it must be asked.
PROBE_INTERVAL_S = 0.1
PROBE_LIMIT_S = 2.0

BACKOFF_S = 0.5
BACKOFF_MAX_S = 30.0
# What has served for so long has not died of the way it was started.
STEADY_S = 60.0

# Starts that fail in a row; one more would fail too.
START_FAILURES = 3
# The embedded engine says 2 to arguments that will never do; the leash says 126 and 127 to what cannot be run.
HOPELESS = frozenset({2, 126, 127})

# A server that answers our probes and does nothing else needs less for it than this in a stall's time, and
# a second of computing takes it minutes.
SIGN_BYTES = 4 * 2**20

# Of the child's output, in a reason.
WHY_LINES = 15


@dataclass(frozen=True, slots=True)
class _Life:
    """How one start ended; ``served_s`` is None when it never became ready."""

    why: str
    served_s: float | None = None
    hopeless: bool = False


class Supervisor:
    """One child and what became of it.

    One writer: the task that runs ``run``. Others ask it to ``stop`` and read
    the rest; ``state``, ``why``, ``address`` and ``api_key`` belong together
    whenever ``on_transition`` is called. There is an address while a child
    runs, ready or not.
    """

    def __init__(
        self,
        spec: EngineSpec,
        probe: Probe,
        on_transition: Callable[[Transition], None] = lambda _: None,
        *,
        replica: str | None = None,
    ) -> None:
        """``replica`` names the log file and stands in transitions; it is the model's name if not given."""
        self.spec = spec
        self.state = State.UNKNOWN
        self.why = "not started yet"
        self.address: Address | None = None
        self.api_key: str | None = None
        self._replica = replica or spec.name
        self._probe = probe
        self._on_transition = on_transition
        self._log = LogFile(log_path(spec.log_dir, self._replica) if spec.log_dir else None, spec.log_bytes)
        self._process: Process | None = None
        self._starts = 0
        self._stalled = False
        self._stopping = False
        self._wake: asyncio.Future[None] | None = None
        self._ended = asyncio.Event()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def resident_bytes(self) -> int | None:
        """The memory that the child takes now; None when there is none, or where the system does not tell."""
        return resident_bytes(self._process.pid) if self._process else None

    def log_tail(self) -> list[str]:
        """The last lines that the child has printed, or the one before it until there is a new one."""
        return self._log.tail()

    async def run(self) -> None:
        """Keep the child serving until it is stopped, cancelled, or cannot be started; leaves no process behind."""
        self._wake = asyncio.get_running_loop().create_future()
        try:
            await self._keep_serving()
        finally:
            await self._end()

    async def stop(self) -> None:
        """Stop the child and end ``run``; returns when that has happened."""
        self._stopping = True
        if self._wake is not None:
            if not self._wake.done():
                self._wake.set_result(None)
            await self._ended.wait()

    async def _keep_serving(self) -> None:
        failures = pauses = 0
        while not self._stopping:
            life = await self._live()
            if self._stopping:
                break
            failures = failures + 1 if life.served_s is None else 0
            if life.hopeless or failures == START_FAILURES:
                self._become(State.FAILED, life.why)
                break
            if life.served_s is not None and life.served_s >= STEADY_S:
                pauses = 0
            self._become(State.BACKOFF, life.why)
            await self._pause(min(BACKOFF_S * 2**pauses, BACKOFF_MAX_S))
            pauses += 1

    async def _end(self) -> None:
        try:
            if self.state is not State.FAILED:
                self._become(State.STOPPED, "stopped")
            # The log waits for the disk.
            await asyncio.to_thread(self._log.close)
        finally:
            self._ended.set()

    async def _live(self) -> _Life:
        """From one start to its end, whatever ends it."""
        try:
            command = self._command()
        except EngineError as error:
            return _Life(error.message, hopeless=True)
        try:
            process = self._start(command)
        except OSError as error:
            where = f" at {self.spec.host}:{self.spec.port}" if self.spec.port else ""
            return _Life(f"llama-server cannot be started{where}: {error.strerror}")
        try:
            return await self._watch(process)
        except asyncio.CancelledError:
            self._stopping = True
            raise
        finally:
            self.address = self.api_key = None
            if self._stopping:
                self._become(State.STOPPED, "told to stop")
            await process.stop(self.spec.stop_grace_s)
            self._process = None

    def _command(self) -> list[str]:
        if not self.spec.file.is_file():
            raise EngineError(f"there is no model file {self.spec.file}; 'corral pull' gets one")
        return engine_command(self.spec.server_bin)

    def _start(self, command: list[str]) -> Process:
        spec = self.spec
        port = _claim_port(spec.host, spec.port)
        self._starts += 1
        self._log.begin(f"corral: start {self._starts} of {spec.name}, port {port}")
        key = spec.api_key if spec.port else secrets.token_urlsafe(32)
        process = Process.spawn(
            [*command, *llama_argv(spec, port, command)], llama_environment(os.environ, key), self._log
        )
        self._process, self.address, self.api_key = process, Address(spec.host, port), key
        return process

    async def _watch(self, process: Process) -> _Life:
        exited, clock = process.exited, asyncio.get_running_loop().time
        self._stalled = False
        self._become(State.LOADING, "started")
        since = clock()
        if not await self._until_ready(exited):
            return self._not_started(exited)
        self._become(State.READY, f"ready after {clock() - since:.1f} s")
        since = clock()
        await self._first_of(exited, None)
        if not exited.done():
            return _Life("told to stop", clock() - since)
        return _Life(self._told(f"llama-server {_ending(exited.result())}"), clock() - since)

    async def _until_ready(self, exited: asyncio.Future[int]) -> bool:
        clock = asyncio.get_running_loop().time
        until = clock() + self.spec.start_timeout_s
        progress = Progress(self.spec.start_stall_s, clock())
        while clock() < until and not exited.done() and not self._stopping and not self._stalled:
            if await self._answers():
                return not exited.done()
            await self._first_of(exited, PROBE_INTERVAL_S)
            self._stalled = progress.stalled(self._signs(), clock())
        return False

    def _signs(self) -> tuple[int | None, ...]:
        """What changes as long as the child does more than answer our probes."""
        if self.pid is None:
            return ()
        grown = (resident_bytes(self.pid) or 0) // SIGN_BYTES
        return (self._log.written_bytes, grown, computed_s(self.pid))

    async def _answers(self) -> bool:
        if self.address is None:
            return False
        try:
            async with asyncio.timeout(PROBE_LIMIT_S):
                await self._probe(self.address, self.api_key)
        except (UpstreamError, TimeoutError):
            return False
        return True

    def _not_started(self, exited: asyncio.Future[int]) -> _Life:
        if not exited.done() and self._stalled:
            return _Life(self._told(f"llama-server showed no sign of life for {self.spec.start_stall_s:g} s"))
        if not exited.done():
            return _Life(self._told(f"llama-server was not ready within {self.spec.start_timeout_s:g} s"))
        code = exited.result()
        return _Life(self._told(f"llama-server {_ending(code)} before it was ready"), hopeless=code in HOPELESS)

    def _told(self, what: str) -> str:
        return "\n".join([f"{what}; its last lines:", *self._log.tail(WHY_LINES)])

    async def _pause(self, seconds: float) -> None:
        await self._first_of(None, seconds)

    async def _first_of(self, exited: asyncio.Future[int] | None, limit_s: float | None) -> None:
        """Wait for the end of the child, a request to stop, or the limit."""
        awaited = {future for future in (exited, self._wake) if future is not None}
        await asyncio.wait(awaited, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)

    def _become(self, state: State, why: str) -> None:
        old, self.state, self.why = self.state, state, why
        if state is not old:
            self._on_transition(Transition(self._replica, self.spec.name, old, state, why, time.time()))


class Progress:
    """Whether what loads still gives signs of life. Writer: the supervisor."""

    def __init__(self, limit_s: float, now: float) -> None:
        self._limit_s = limit_s
        self._signs: object = None
        self._seen_at = now

    def stalled(self, signs: object, now: float) -> bool:
        """True when nothing in ``signs`` has changed for longer than the limit."""
        if signs != self._signs:
            self._signs, self._seen_at = signs, now
        return now - self._seen_at > self._limit_s


def _claim_port(host: str, port: int) -> int:
    """The port, or a free one for 0; raises OSError when something listens there: we would take it for our child."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        claimed: int = listener.getsockname()[1]
        return claimed


def _ending(code: int) -> str:
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
