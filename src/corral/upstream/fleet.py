"""Which pool serves a model name."""

from collections.abc import Iterator, Mapping

from corral.core.errors import ModelNotFound
from corral.upstream.pool import Pool

# So many models are named to a client that asked for one there is not.
NAMED_MODELS = 20


class Fleet:
    """The pools by model name; fixed once built."""

    def __init__(self, pools: Mapping[str, Pool], *, any_model: bool) -> None:
        self._pools = dict(pools)
        self._only = next(iter(self._pools.values())) if any_model and len(self._pools) == 1 else None

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._pools.values())

    def pool(self, model: str) -> Pool:
        """The pool that serves ``model``, which is the only one there is if any name will do; or ModelNotFound."""
        pool = self._pools.get(model, self._only)
        if pool is None:
            raise ModelNotFound(
                f"the model '{_short(model)}' does not exist; there are: {self._names()}", param="model"
            )
        return pool

    @property
    def ready(self) -> bool:
        """Some model can be served."""
        return any(pool.ready for pool in self)

    def close(self) -> None:
        """Let nobody wait for a slot any more."""
        for pool in self:
            pool.close()

    def _names(self) -> str:
        names = list(self._pools)
        more = f" and {len(names) - NAMED_MODELS} more" if len(names) > NAMED_MODELS else ""
        return ", ".join(f"'{name}'" for name in names[:NAMED_MODELS]) + more


def _short(name: str) -> str:
    return name if len(name) <= 80 else name[:80] + "…"
