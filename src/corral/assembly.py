"""Puts the parts together: the one place that knows them all."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from corral.config import Config, ModelSettings, is_loopback, load
from corral.core.balance import Balance
from corral.core.lifecycle import State, Transition
from corral.core.principal import Priority
from corral.observe import logs
from corral.observe.event_loop import watched_lag
from corral.observe.metrics import Metrics
from corral.observe.readings import Instrument, Reading, replica_state
from corral.openai.policy import Policy
from corral.pipeline.attempt import Attempts
from corral.pipeline.authenticate import Keyring
from corral.pipeline.exchange import Exchange
from corral.pipeline.forward import Forwarder
from corral.pipeline.ledger import Ledger
from corral.pipeline.limiter import Limiter
from corral.upstream.fleet import Fleet
from corral.upstream.pool import Pool
from corral.upstream.probe import Prober
from corral.upstream.replica import Clocks, Replica
from corral.upstream.spec import EngineSpec
from corral.upstream.supervisor import Supervisor
from corral.upstream.wire import Address, Client
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
        self.supervisors: list[Supervisor] = []
        self._prober = Prober(self.client)
        self._clocks = Clocks(time.monotonic, time.time)
        self.fleet = Fleet({model.name: self._pool(model) for model in config.models}, any_model=config.any_model)
        self.ledger = Ledger([self.metrics.observe, logs.write_record], time.monotonic, time.time)
        self.exchange = self._exchange()
        self.metrics.pull(logs.lost_lines)
        self.metrics.pull(self._readings)
        self.app = self._app()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch the replicas and run the llama-servers within the block; nothing of them is left after it."""
        watchers = [replica.watch() for pool in self.fleet for replica in pool.replicas]
        async with asyncio.TaskGroup() as tasks:
            owned = [tasks.create_task(each) for each in watchers]
            owned += [tasks.create_task(supervisor.run()) for supervisor in self.supervisors]
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
        forwarder = Forwarder(attempts, config.retries, random.random, self.metrics.retry)
        return Exchange(
            keyring=Keyring(config.auth.keys, config.queue, allow_anonymous=config.auth.allow_anonymous),
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
        )
        return create_app(parts)

    def _pool(self, model: ModelSettings) -> Pool:
        replicas = [self._remote(model, url, number) for number, url in enumerate(model.upstreams)]
        if model.file is not None:
            replicas.append(self._child(model))
        return Pool(model.name, replicas, self.config.queue, Balance(self.config.routing.balance))

    def _remote(self, model: ModelSettings, url: str, number: int) -> Replica:
        key = self.config.llama.api_key
        name = f"{model.name}/{number}"
        return self._replica(name, model, Address.parse(url), key.get_secret_value() if key else None)

    def _child(self, model: ModelSettings) -> Replica:
        """A replica whose llama-server is a child of ours, and its supervisor."""
        if model.file is None:
            raise ValueError("a child needs a model file")
        replica = self._replica(f"{model.name}/0", model, None, None)
        spec = EngineSpec.own(model.name, model.file, self.config.llama)
        supervisor = Supervisor(
            spec,
            self._prober.facts,
            lambda transition: _follow(replica, supervisor, transition),
            replica=replica.name,
        )
        self.supervisors.append(supervisor)
        return replica

    def _replica(self, name: str, model: ModelSettings, address: Address | None, key: str | None) -> Replica:
        replica = Replica(name, model.name, self._prober, self._clocks, address=address, key=key)
        replica.on_transition = self._tell
        return replica

    def _tell(self, transition: Transition) -> None:
        self.metrics.transition(transition)
        logs.write_transition(transition)
        self.changed.set()

    def _readings(self) -> Iterator[Reading]:
        """What is true now, for /metrics."""
        for endpoint, count in self.ledger.in_flight().items():
            yield Reading(Instrument.EXCHANGES, count, (endpoint.value,))
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
                yield Reading(Instrument.BREAKER, not replica.breaker.closed, labels)
                yield from replica_state(pool.name, replica.name, replica.state)


class Policies:
    """What each model lets a request say; fixed once built."""

    def __init__(self, config: Config) -> None:
        self._of = {model.name: _policy(config, model) for model in config.models}
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
    )


def _follow(replica: Replica, supervisor: Supervisor, transition: Transition) -> None:
    """What happens to a child happens to its replica, which is ready as soon as it has told its facts."""
    if transition.new is State.READY:
        replica.move(supervisor.address, supervisor.api_key)
    else:
        replica.move(None, None)
        replica.become(transition.new, transition.why)


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
