"""Makes what serves a model out of its settings: the pool, its replicas, and the processes that are ours."""

from collections.abc import Callable, Container, Sequence
from itertools import count, islice

from corral.config import Config, ModelSettings, RemoteSettings, gguf
from corral.config.gguf_metadata import anatomy_of
from corral.core.balance import Balance
from corral.core.footprint import Footprint, estimate_bytes
from corral.core.lifecycle import Transition
from corral.upstream.address import Address
from corral.upstream.child import Child
from corral.upstream.fleet import Entry
from corral.upstream.local import LocalModel, Residency
from corral.upstream.pool import Pool
from corral.upstream.probe import Prober
from corral.upstream.replica import Clocks, Replica
from corral.upstream.spec import EngineSpec

# Beside weights and KV cache: buffers for computing, the program itself, Python where the engine is embedded.
# Measured with SmolLM2-135M on the embedded engine: 57 MiB (docs/operations.md); larger models take more.
MARGIN_BYTES = 96 * 2**20


class Maker:
    """Makes the parts of one configuration; what it made is owned by others."""

    def __init__(
        self,
        config: Config,
        prober: Prober,
        clocks: Clocks,
        on_transition: Callable[[Transition], None],
        on_change: Callable[[], None],
    ) -> None:
        """``on_transition`` is told of every replica's changes, ``on_change`` of those of our own processes."""
        self._config = config
        self._prober = prober
        self._clocks = clocks
        self._on_transition = on_transition
        self._on_change = on_change
        self._footprints: dict[str, Footprint] = {}

    def entry(self, model: ModelSettings, taken: Container[str] = ()) -> Entry:
        """What serves this model; nothing of it has begun, and none of its processes has a name that is taken."""
        if model.file is None:
            return Entry(model, self._pool(model, self.remote_replicas(model)))
        local = self._local(model, taken)
        return Entry(model, local.pool, local)

    def remote_replicas(self, model: ModelSettings) -> list[Replica]:
        """The replicas of a model that run elsewhere; nobody watches them yet."""
        # The numbers alone belong to our own, where there are such.
        name = f"{model.name}/remote-" if model.file else f"{model.name}/"
        return [self._remote(model, remote, f"{name}{number}") for number, remote in enumerate(model.remotes)]

    def residency(self, model: ModelSettings) -> Residency:
        """When this model is loaded and when it goes."""
        fleet = self._config.fleet
        on_demand = model.starts_on_demand(fleet.on_demand)
        return Residency(
            on_demand=on_demand,
            preload=not on_demand if model.preload is None else model.preload,
            idle_ttl_s=(fleet.idle_ttl_s if model.idle_ttl_s is None else model.idle_ttl_s) if on_demand else 0.0,
            group=model.group,
            exclusive=model.exclusive,
        )

    def children_of(self, model: ModelSettings) -> Callable[[Container[str]], Sequence[Child]]:
        """What makes the processes of this model, with the first numbers in their names that are not taken."""
        spec, footprint = EngineSpec.of(model, self._config.llama), self.footprint(model)

        def make(taken: Container[str]) -> Sequence[Child]:
            free = (name for name in map(f"{model.name}/{{}}".format, count()) if name not in taken)
            names = list(islice(free, model.replicas))
            replicas = [self._replica(name, model.name) for name in names]
            return [Child(spec, footprint, replica, self._prober, self._on_change) for replica in replicas]

        return make

    def footprint(self, model: ModelSettings) -> Footprint:
        """The memory that each process of this model will take. Reads the model's files, once."""
        if model.name not in self._footprints:
            self._footprints[model.name] = footprint_of(EngineSpec.of(model, self._config.llama), model)
        return self._footprints[model.name]

    def read_files(self) -> None:
        """Read all that has to be read, so that nothing that is called later waits for a disk."""
        for model in self._config.models:
            if model.file is not None:
                self.footprint(model)

    def _pool(self, model: ModelSettings, replicas: Sequence[Replica]) -> Pool:
        return Pool(model.name, replicas, self._config.queue, Balance(self._config.routing.balance))

    def _local(self, model: ModelSettings, taken: Container[str]) -> LocalModel:
        make = self.children_of(model)
        children, remotes = make(taken), self.remote_replicas(model)
        return LocalModel(
            model.name,
            self._pool(model, [*(child.replica for child in children), *remotes]),
            make,
            children,
            self.residency(model),
            pinned=model.pinned,
            remotes=remotes,
        )

    def _remote(self, model: ModelSettings, remote: RemoteSettings, name: str) -> Replica:
        key = remote.key_file or self._config.llama.api_key
        address = Address.parse(remote.url)
        return self._replica(name, model.name, address, key.get_secret_value() if key else None, remote.weight)

    def _replica(
        self, name: str, model: str, address: Address | None = None, key: str | None = None, weight: float = 1.0
    ) -> Replica:
        replica = Replica(name, model, self._prober, self._clocks, address=address, key=key, weight=weight)
        replica.on_transition = self._on_transition
        return replica


def footprint_of(spec: EngineSpec, model: ModelSettings) -> Footprint:
    """The memory that one process of a model will take, as its settings or its files tell."""
    if model.memory_bytes is not None:
        return Footprint(model.memory_bytes, told=True)
    return Footprint(estimate_bytes(anatomy_of(gguf.parts_of(spec.file)), spec.ctx, spec.extra_args, MARGIN_BYTES))
