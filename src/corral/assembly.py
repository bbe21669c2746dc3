"""Puts the parts together: the one place that knows them all."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from corral.config import Config, ModelSettings, is_loopback, load
from corral.core.lifecycle import Transition
from corral.observe import logs
from corral.observe.event_loop import watched_lag
from corral.observe.metrics import Metrics
from corral.observe.readings import Instrument, Reading, replica_state
from corral.openai.policy import Parameters, Policy
from corral.pipeline.attempt import Attempts
from corral.pipeline.authenticate import Keyring
from corral.pipeline.exchange import Exchange
from corral.pipeline.forward import Forwarder
from corral.pipeline.ledger import Ledger
from corral.pipeline.limiter import Limiter
from corral.upstream.fleet import Fleet
from corral.upstream.loader import Loader
from corral.upstream.maker import Maker
from corral.upstream.probe import Prober
from corral.upstream.replica import Clocks
from corral.upstream.wire import Client
from corral.web.app import Parts, create_app
from corral.web.probes import Readiness


class Assembly:
    """All parts of one Corral, from one Config.

    Writer of none of their state; ``running`` owns the tasks that watch the
    replicas and keep the llama-servers alive. To be made within a running loop.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.client = Client()
        self.metrics = Metrics()
        self.readiness = Readiness()
        self.changed = asyncio.Event()
        self.loader = Loader(config.fleet, time.monotonic)
        maker = Maker(config, Prober(self.client), Clocks(time.monotonic, time.time), self._tell, self.loader.wake)
        self.fleet = Fleet([maker.entry(model) for model in config.models], any_model=config.any_model)
        self.ledger = Ledger([self.metrics.observe, logs.write_record], time.monotonic, time.time)
        self.exchange = self._exchange()
        self.metrics.pull(logs.lost_lines)
        self.metrics.pull(self._readings)
        self.app = self._app()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch the replicas and run the llama-servers within the block; nothing of them is left after it."""
        remote = [entry.pool for entry in self.fleet.entries.values() if entry.local is None]
        for entry in self.fleet.entries.values():
            if entry.local is not None:
                self.loader.add(entry.local)
        async with asyncio.TaskGroup() as tasks:
            owned = [tasks.create_task(replica.watch()) for pool in remote for replica in pool.replicas]
            owned.append(tasks.create_task(self.loader.run(), name="corral-loader"))
            try:
                with watched_lag(self.metrics.late, time.monotonic):
                    yield
            finally:
                self.fleet.close()
                for task in owned:
                    task.cancel()
        await self.client.close()

    async def until(self, claim: Callable[[], bool]) -> None:
        """Wait until ``claim`` holds; it is asked anew whenever a replica changes its state."""
        while not claim():
            self.changed.clear()
            await self.changed.wait()

    def _exchange(self) -> Exchange:
        config = self.config
        attempts = Attempts(self.client, config.timeouts, config.requests, time.monotonic)
        forwarder = Forwarder(attempts, config.retries, random.random, self.metrics.retry, self.fleet.fallback)
        return Exchange(
            keyring=Keyring(config.auth.keys, allow_anonymous=config.auth.allow_anonymous),
            limiter=Limiter(config.limits.requests, config.limits.window_s, time.monotonic),
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
            started_unix_s=int(time.time()),
            loader=self.loader,
            load_patience_s=self.config.llama.start_timeout_s,
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
        for pool in self.fleet:
            yield Reading(Instrument.WAITERS, pool.waiting, (pool.name,))
            for replica in pool.replicas:
                labels = (pool.name, replica.name)
                yield Reading(Instrument.SLOTS, replica.slots, labels)
                yield Reading(Instrument.SLOTS_BUSY, replica.busy - replica.lingering, labels)
                yield Reading(Instrument.SLOTS_LINGERING, replica.lingering, labels)
                yield from replica_state(pool.name, replica.name, replica.state)


class Policies:
    """What each model lets a request say; fixed once built."""

    def __init__(self, config: Config) -> None:
        self._of = {
            name: policy
            for model in config.models
            for policy in [_policy(config, model)]
            for name in (*model.aliases, model.name)
        }
        self._default = next(iter(self._of.values()))

    def of(self, model: str) -> Policy:
        """The policy of a model; of the first for a name there is not, which is refused later or means the only one."""
        return self._of.get(model, self._default)


def _policy(config: Config, model: ModelSettings) -> Policy:
    return Policy(
        default_max_tokens=model.default_max_tokens or config.requests.default_max_tokens,
        allow_fields=frozenset(model.allow_fields),
        remote_images=config.requests.remote_images,
        max_inputs=config.requests.max_inputs,
        max_depth=config.requests.max_depth,
        parameters=_parameters(model),
    )


def _parameters(model: ModelSettings) -> Parameters | None:
    if not (model.defaults or model.overrides or model.strip):
        return None
    return Parameters(model.defaults, model.overrides, frozenset(model.strip))


def asgi() -> ASGIApp:
    """For any ASGI server with lifespan events: ``uvicorn --factory corral.assembly:asgi``."""
    config = load()
    logs.configure(config.logs.level)
    return _Lifespan(config)


class _Lifespan:
    """Builds the assembly when the server's loop runs, and takes it down with the server. Writer: its lifespan."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            if self._app is None:
                raise RuntimeError("this ASGI server sends no lifespan events; run it with them switched on")
            await self._app(scope, receive, send)
            return
        await receive()
        assembly = Assembly(self._config)
        async with assembly.running():
            self._app = assembly.app
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})
