"""Puts the parts together: the one place that knows them all."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from rich.console import Console
from starlette.types import ASGIApp, Receive, Scope, Send

from corral.config import Config, Files, ValkeySettings, is_loopback, load, unknown_clients
from corral.config.differences import fixed_differences, with_fixed_of
from corral.core.api_key import StoredKey
from corral.core.errors import ConfigError, ShuttingDown
from corral.core.lifecycle import Transition
from corral.core.principal import Priority
from corral.file_watch import watch
from corral.observe import logs
from corral.observe.event_loop import watched_lag
from corral.observe.metrics import Metrics
from corral.observe.readings import Instrument, Reading, loaded_models, replica_state
from corral.pipeline.attempt import Attempts
from corral.pipeline.authenticate import Keyring
from corral.pipeline.exchange import Exchange
from corral.pipeline.forward import Forwarder
from corral.pipeline.ledger import Ledger
from corral.pipeline.limiter import Limiter
from corral.pipeline.policies import Policies
from corral.pipeline.time_limits import TimeLimits
from corral.pull.named import fetched
from corral.upstream.changes import Changes, Reloaded, begin
from corral.upstream.fleet import Fleet
from corral.upstream.loader import Loader
from corral.upstream.maker import Maker
from corral.upstream.probe import Prober
from corral.upstream.replica import Clocks
from corral.upstream.shared.book import ValkeyBook
from corral.upstream.shared.sharing import Sharing
from corral.upstream.watches import Watches
from corral.upstream.wire import Client
from corral.web.app import Parts, create_app
from corral.web.probes import Readiness

if TYPE_CHECKING:
    from corral.tenancy import Tenancy
    from corral.valkey.link import Link
    from corral.valkey.shared_limits import SharedLimits

log = logging.getLogger("corral")


class Assembly:
    """All parts of one Corral, from one Config.

    Writer of none of their state; ``running`` owns the tasks that watch the
    replicas and keep the llama-servers alive. To be made within a running loop.
    """

    def __init__(self, config: Config, source: Callable[[], Config] = load, files: Files | None = None) -> None:
        """``source`` reads the settings anew, for a reload; ``files`` are those it has read."""
        self.config = config
        self._source = source
        self._files = files or Files()
        self._reloading = asyncio.Lock()
        self._started_unix_s = int(time.time())
        self.client = Client()
        self.metrics = Metrics()
        self.readiness = Readiness()
        self.changed = asyncio.Event()
        self.loader = Loader(config.fleet, time.monotonic)
        self.shared = _shared(config.valkey)
        self.shared_limits = None if self.shared is None else self.shared.limits
        self.shared_slots = None if self.shared is None else self.shared.slots
        self.watches = Watches(self.shared_slots)
        maker = self._maker(config)
        self.tenancy = self._tenancy(config)
        self.fleet = Fleet([maker.entry(model) for model in config.models], any_model=config.any_model)
        # Only what is shared is counted by a share of it while nobody can count together.
        share = config.valkey.corrals if self.shared_limits and config.valkey.away == "share" else None
        self.limiter = Limiter(
            config.limits, time.monotonic, time.time, self.metrics.limited, self.shared_limits, share
        )
        sinks = [self.metrics.observe, logs.write_record]
        if self.tenancy is not None:
            sinks.append(self.tenancy.books.journal.close)
        self.ledger = Ledger(sinks, time.monotonic, time.time)
        self.exchange = self._exchange(config)
        self.metrics.pull(logs.lost_lines)
        self.metrics.pull(self._readings)
        self.app = Current(self._app())
        _warn(config)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch the replicas and run the llama-servers within the block; nothing of them is left after it."""
        async with self._remembering(), self._linked(), asyncio.TaskGroup() as tasks:
            self.watches.group = tasks
            for entry in self.fleet.entries.values():
                begin(entry, self.loader, self.watches)
            own = [tasks.create_task(self.loader.run(), name="corral-loader")]
            if self.shared is not None:
                own.append(tasks.create_task(self.shared.limits.run(), name="corral-shared-limits"))
                own.append(tasks.create_task(self.shared.slots.run(), name="corral-sharing"))
            if self.config.server.watch:
                own.append(tasks.create_task(watch(self._files, self.reload_and_tell), name="corral-file-watch"))
            try:
                with watched_lag(self.metrics.late, time.monotonic):
                    yield
            finally:
                self.fleet.close()
                self.watches.close()
                for task in own:
                    task.cancel()
        await self.client.close()

    def _tenancy(self, config: Config) -> "Tenancy | None":
        """Where there is a store; without one nothing of it is imported."""
        if not config.store.used:
            return None
        from corral.tenancy import Tenancy

        return Tenancy(config, self._learn_keys, self._restore_budget)

    def _remembering(self) -> AbstractAsyncContextManager[None]:
        return nullcontext() if self.tenancy is None else self.tenancy.running()

    @asynccontextmanager
    async def _linked(self) -> AsyncIterator[None]:
        """Where there is a Valkey: who is told to end within the block still says its last word."""
        if self.shared is None:
            yield
            return
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.shared.link.run(), name="corral-valkey")
            try:
                yield
            finally:
                await self.shared.link.drain()
                task.cancel()

    def _restore_budget(self, account: str, tokens_day: int, tokens_month: int, unix_s: float) -> None:
        self.limiter.restore(account, tokens_day, tokens_month, unix_s)

    def _learn_keys(self, keys: Sequence[StoredKey], anew: bool) -> None:
        self.exchange.keyring.learn(keys, anew=anew)

    async def reload(self) -> Reloaded:
        """Read the settings anew and go by them, as far as that goes without a restart.

        Raises ConfigError, and changes nothing, when they are wrong, and
        ShuttingDown when it is too late. Requests that run finish where they
        run, by the settings that they began with.
        """
        # One after the other: an older reading must not take the place of a newer one.
        async with self._reloading:
            return await self._reload()

    async def reload_and_tell(self) -> None:
        """Reload, and tell the log what came of it, where nobody else is there to be told."""
        try:
            await self.reload()
        except ConfigError as error:
            log.error("settings not reloaded", extra={"fields": {"problems": error.problems}})
        except ShuttingDown:
            log.info("settings not reloaded at the end")

    async def _reload(self) -> Reloaded:
        config = await asyncio.to_thread(self._source)
        if config.server.host != self.config.server.host:
            # Whether keys are needed depends on it.
            raise ConfigError(["server.host: cannot be changed while Corral runs; restart it"])
        if self.tenancy is None and config.store.used and not config.auth.keys and not config.auth.allow_anonymous:
            # Nobody would be asked for a key: what has passed as safe counts on those of the store.
            raise ConfigError(["store: its keys count from the next start on, and no other key is set; restart Corral"])
        maker = self._maker(config)
        await asyncio.to_thread(maker.read_files)
        if self.watches.closed:
            # Nothing may begin any more that nobody would end.
            raise ShuttingDown("the server is shutting down")
        old, self.config = self.config, with_fixed_of(config, self.config)
        models = Changes(self.fleet, self.loader, self.watches, maker, config).apply()
        self._exchange_by(old)
        if self.tenancy is not None:
            self.tenancy.books.change(self.config)
        self.app.change(self._app())
        done = Reloaded(models, fixed_differences(old, config))
        _warn(config)
        log.info("settings reloaded", extra={"fields": {**asdict(models), "restart_needed": done.restart_needed}})
        return done

    async def until(self, claim: Callable[[], bool]) -> None:
        """Wait until ``claim`` holds; it is asked anew whenever a replica changes its state."""
        while not claim():
            self.changed.clear()
            await self.changed.wait()

    def _maker(self, config: Config) -> Maker:
        clocks = Clocks(time.monotonic, time.time)
        return Maker(config, Prober(self.client), clocks, self._tell, self.loader.wake, self.shared_slots)

    def _exchange_by(self, old: Config) -> None:
        """Give the exchange, which the listener holds, what the settings in force say."""
        new = self._exchange(self.config)
        if self.config.limits != old.limits:
            self.limiter.change(self.config.limits)
        self.exchange.keyring = new.keyring
        self.exchange.forwarder = new.forwarder
        self.exchange.policy_of = new.policy_of

    def _exchange(self, config: Config) -> Exchange:
        attempts = Attempts(self.client, TimeLimits(config.timeouts, config.models), config.requests, time.monotonic)
        forwarder = Forwarder(attempts, config.retries, random.random, self.metrics.retry, self.fleet.fallback)
        if self.tenancy is not None:
            forwarder = replace(forwarder, seal=self.tenancy.books.journal.seal)
        return Exchange(
            keyring=Keyring(
                config.auth.keys,
                config.queue,
                allow_anonymous=config.auth.allow_anonymous,
                clock=time.time,
                stored=None if self.tenancy is None else self.tenancy.stored,
            ),
            limiter=self.limiter,
            fleet=self.fleet,
            forwarder=forwarder,
            ledger=self.ledger,
            server=config.server,
            policy_of=Policies(config).of,
            new_id=lambda: f"{random.getrandbits(128):032x}",
        )

    def _app(self) -> ASGIApp:
        parts = Parts(
            exchange=self.exchange,
            fleet=self.fleet,
            keyring=self.exchange.keyring,
            metrics=self.metrics,
            readiness=self.readiness,
            server=self.config.server,
            loopback=is_loopback(self.config.server.host),
            started_unix_s=self._started_unix_s,
            loader=self.loader,
            load_patience_s=self.config.llama.start_timeout_s,
            reload=self.reload,
            keys=None if self.tenancy is None else self.tenancy.keys,
            usage=None if self.tenancy is None else self.tenancy.books.usage_of,
            currency=self.config.usage.currency,
        )
        return create_app(parts)

    def _tell(self, transition: Transition) -> None:
        self.metrics.transition(transition)
        logs.write_transition(transition)
        self.changed.set()
        self.loader.wake()

    def _readings(self) -> Iterator[Reading]:
        """What is true now, for /metrics."""
        for endpoint, count in self.ledger.in_flight().items():
            yield Reading(Instrument.EXCHANGES, count, (endpoint.value,))
        if self.shared_limits is not None:
            yield Reading(Instrument.VALKEY, not self.shared_limits.away)
            yield Reading(Instrument.SETTLEMENTS_LOST, self.shared_limits.lost)
        yield from loaded_models(self.loader.models.values(), self.config.fleet.memory_bytes)
        for pool in self.fleet:
            for priority in Priority:
                yield Reading(Instrument.WAITERS, pool.waiting_of(priority), (pool.name, priority.label))
            for reason, count in pool.routing.decisions.items():
                yield Reading(Instrument.DECISIONS, count, (pool.name, reason))
            for replica in pool.replicas:
                labels = (pool.name, replica.name)
                yield Reading(Instrument.SLOTS, replica.slots, labels)
                yield Reading(Instrument.SLOTS_BUSY, replica.busy - replica.lingering, labels)
                yield Reading(Instrument.SLOTS_LINGERING, replica.lingering, labels)
                if replica.shared is not None:
                    yield Reading(Instrument.SLOTS_ELSEWHERE, replica.elsewhere, labels)
                yield Reading(Instrument.BREAKER, not replica.breaker.closed, labels)
                yield from replica_state(pool.name, replica.name, replica.state)
        if self.tenancy is not None:
            yield from self.tenancy.readings()


def _warn(config: Config) -> None:
    """Tell of what can be meant, and hardly is."""
    if unknown := unknown_clients(config):
        log.warning("the settings name unknown clients", extra={"fields": {"clients": unknown}})


@dataclass(frozen=True, slots=True)
class Shared:
    """The one way to Valkey, and what goes it."""

    link: "Link"
    limits: "SharedLimits"
    slots: Sharing


def _shared(settings: ValkeySettings) -> Shared | None:
    """If there is a Valkey."""
    if settings.url is None:
        return None
    # Its library takes memory.
    from corral.valkey.link import Link
    from corral.valkey.listener import Listener
    from corral.valkey.shared_limits import SharedLimits

    url = settings.url.get_secret_value()
    link = Link(url, settings.timeout_s, settings.prefix)
    book = ValkeyBook(settings, link, Listener(url, settings.timeout_s))
    limits = SharedLimits(link, settings.lease_s, settings.prefix, lambda: f"{random.getrandbits(96):024x}")
    return Shared(link, limits, Sharing(settings, book))


class Current:
    """The application as the settings in force want it. Writer: ``Assembly.reload``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def change(self, app: ASGIApp) -> None:
        """Serve requests by this one from now on; those that run stay with theirs."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def asgi() -> ASGIApp:
    """For any ASGI server with lifespan events: ``uvicorn --factory corral.assembly:asgi``."""
    files = Files()

    def source() -> Config:
        return fetched(load(files=files), Console(stderr=True))

    config = source()
    logs.configure(config.logs.level)
    return _Lifespan(config, source, files)


class _Lifespan:
    """Builds the assembly when the server's loop runs, and takes it down with the server. Writer: its lifespan."""

    def __init__(self, config: Config, source: Callable[[], Config], files: Files) -> None:
        self._config = config
        self._source = source
        self._files = files
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            if self._app is None:
                raise RuntimeError("this ASGI server sends no lifespan events; run it with them switched on")
            await self._app(scope, receive, send)
            return
        await receive()
        assembly = Assembly(self._config, self._source, self._files)
        async with assembly.running():
            self._app = assembly.app
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})
