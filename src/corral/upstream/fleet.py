"""Which pool serves a model name."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from corral.config import ModelSettings
from corral.core.errors import ModelForbidden, ModelNotFound
from corral.core.principal import Principal
from corral.upstream.local import LocalModel
from corral.upstream.pool import Pool

# So many models are named to a client that asked for one there is not.
NAMED_MODELS = 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A model as it is configured, and what serves it; ``local`` when its llama-servers are ours."""

    settings: ModelSettings
    pool: Pool
    local: LocalModel | None = None


class Fleet:
    """The models by their names and aliases. One writer: ``change``, at the start and at a reload."""

    def __init__(self, entries: Iterable[Entry], *, any_model: bool) -> None:
        self.change(entries, any_model=any_model)

    def change(self, entries: Iterable[Entry], *, any_model: bool) -> None:
        """Serve these models from now on."""
        self.entries = {entry.settings.name: entry for entry in entries}
        aliases = {alias: entry for entry in self.entries.values() for alias in entry.settings.aliases}
        self._by_name = {**aliases, **self.entries}
        self._pools = {name: entry.pool for name, entry in self._by_name.items()}
        self._only = next(iter(self._pools.values())) if any_model and len(self.entries) == 1 else None

    def __iter__(self) -> Iterator[Pool]:
        return (entry.pool for entry in self.entries.values())

    def pool(self, model: str) -> Pool:
        """The pool that serves ``model``, which is the only one there is if any name will do; or ModelNotFound."""
        pool = self._pools.get(model, self._only)
        if pool is None:
            raise self._unknown(model)
        return pool

    def ensure_allowed(self, principal: Principal, pool: Pool, model: str) -> None:
        """Raises ModelForbidden when the key is not for this model, which the client calls ``model``.

        Of a hidden one it learns no more than of one that there is not.
        """
        if principal.may_ask(pool.name):
            return
        if self.entries[pool.name].settings.hidden:
            raise self._unknown(model)
        raise ModelForbidden(f"this API key is not for the model '{_short(model)}'", param="model")

    def entry(self, model: str) -> Entry:
        """The model of this name or alias; raises ModelNotFound."""
        name = self.pool(model).name
        return self.entries[name]

    def fallback(self, pool: Pool) -> Pool | None:
        """What serves the calls of a pool that cannot, if the operator has named such a model."""
        entry = self.entries.get(pool.name)
        return self._pools[entry.settings.fallback] if entry and entry.settings.fallback else None

    @property
    def ready(self) -> bool:
        """Some model can be served, or will be loaded when it is asked for."""
        return any(pool.ready or pool.sleeping for pool in self)

    def close(self) -> None:
        """Let nobody wait for a slot any more."""
        for pool in self:
            pool.close()

    def _unknown(self, model: str) -> ModelNotFound:
        return ModelNotFound(f"the model '{_short(model)}' does not exist; there are: {self._names()}", param="model")

    def _names(self) -> str:
        names = [name for name, entry in self.entries.items() if not entry.settings.hidden]
        more = f" and {len(names) - NAMED_MODELS} more" if len(names) > NAMED_MODELS else ""
        return (", ".join(f"'{name}'" for name in names[:NAMED_MODELS]) or "none that is listed") + more


def _short(name: str) -> str:
    return name if len(name) <= 80 else name[:80] + "…"
