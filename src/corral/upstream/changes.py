"""Brings the models from one configuration to another, and touches only what has changed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count

from corral.config import Config, ModelSettings
from corral.core.balance import Balance
from corral.core.errors import ModelNotFound
from corral.upstream.child import Child
from corral.upstream.fleet import Entry, Fleet
from corral.upstream.loader import Loader
from corral.upstream.local import LocalModel
from corral.upstream.maker import Maker
from corral.upstream.replica import Replica
from corral.upstream.spec import EngineSpec
from corral.upstream.watches import Watches


@dataclass(frozen=True, slots=True)
class Changed:
    """The names of the models that a reload has touched."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    # New processes serve it, or other replicas.
    replaced: tuple[str, ...] = ()
    # What runs goes on running, by other rules.
    adjusted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload has done."""

    models: Changed
    # The settings that differ and count from the next start on.
    restart_needed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Changes:
    """One change of the models; ``maker`` makes those of the new configuration."""

    fleet: Fleet
    loader: Loader
    watches: Watches
    maker: Maker
    new: Config

    def apply(self) -> Changed:
        """Do it, without awaiting: no request sees a half of it. What runs finishes where it runs."""
        before = self.fleet.entries
        wanted = {model.name: model for model in self.new.models}
        gone = [entry for name, entry in before.items() if not _goes_on(entry, wanted.get(name))]
        kept = {name: entry for name, entry in before.items() if entry not in gone}
        for each in gone:
            self._remove(each)
        self.loader.settings = self.new.fleet
        entries, replaced, adjusted = [], [], []
        for name, model in wanted.items():
            if name not in kept:
                entries.append(self._add(model))
                continue
            entry = kept[name]
            if self._change(entry, model):
                replaced.append(name)
            elif entry.settings != model:
                adjusted.append(name)
            entries.append(replace(entry, settings=model))
        self.fleet.change(entries, any_model=self.new.any_model)
        self.loader.wake()
        return Changed(
            added=tuple(name for name in wanted if name not in before),
            removed=tuple(name for name in before if name not in wanted),
            replaced=(*replaced, *(each.settings.name for each in gone if each.settings.name in wanted)),
            adjusted=tuple(adjusted),
        )

    def _add(self, model: ModelSettings) -> Entry:
        # Processes of a model of this name may still be there, and write their logs.
        taken = frozenset().union(*(local.names for local in self.loader.models.values()))
        entry = self.maker.entry(model, taken)
        begin(entry, self.loader, self.watches)
        return entry

    def _remove(self, entry: Entry) -> None:
        """Who waits for what does not exist any more need not wait; nor who comes to its pool late."""
        name = entry.settings.name
        entry.pool.on_wanted = _nothing
        entry.pool.absent = f"model '{name}' does not exist any more"
        entry.pool.refuse(ModelNotFound(f"the model '{name}' does not exist any more", param="model"))
        if entry.local is not None:
            self.loader.remove(entry.local)
        for replica in remotes_of(entry):
            replica.drain()
            self.watches.end(replica)

    def _change(self, entry: Entry, model: ModelSettings) -> bool:
        """Adjust a model that goes on; whether other replicas serve it from now on."""
        entry.pool.go_by(self.new.queue, Balance(self.new.routing.balance))
        remotes = self._change_remotes(remotes_of(entry), model)
        changed = remotes != tuple(remotes_of(entry))
        local = entry.local
        if local is None:
            if changed:
                entry.pool.change(remotes)
            return changed
        local.remotes = remotes
        if changed:
            entry.pool.change(local.replicas)
        return self._change_local(local, entry.settings, model) or changed

    def _change_remotes(self, now: Sequence[Replica], model: ModelSettings) -> tuple[Replica, ...]:
        """The replicas that are named now; those at an address that was named before are the same ones."""
        before = list(now)
        replicas: list[Replica] = []
        for made in self.maker.remote_replicas(model):
            same = next((each for each in before if each.address == made.address), None)
            if same is None:
                _name_apart(made, (*now, *replicas))
                self.watches.begin(made)
            else:
                # It has calls that run, and knows of them.
                before.remove(same)
                same.go_by(made.key, made.weight)
            replicas.append(same or made)
        for gone in before:
            gone.drain()
            self.watches.end(gone)
        return tuple(replicas)

    def _change_local(self, local: LocalModel, before: ModelSettings, model: ModelSettings) -> bool:
        if before.pinned is not model.pinned:
            local.pinned = model.pinned
        local.make = self.maker.children_of(model)
        self.loader.adjust(local, self.maker.residency(model))
        spec = EngineSpec.of(model, self.new.llama)
        for child in local.processes:
            if child.spec == spec:
                child.footprint = self.maker.footprint(model)
        wanted = [spec] * model.replicas
        # Compared with what runs, or is to: a change that failed before is tried again.
        if _specs(local.incoming or local.children) == wanted:
            return False
        if _specs(local.children) == wanted:
            self.loader.keep(local)
            return False
        self.loader.replace(local)
        return True


def begin(entry: Entry, loader: Loader, watches: Watches) -> None:
    """Have a model served that nothing has begun of yet."""
    if entry.local is not None:
        loader.add(entry.local)
    for replica in remotes_of(entry):
        watches.begin(replica)


def remotes_of(entry: Entry) -> Sequence[Replica]:
    """The llama-servers of a model that run elsewhere."""
    return entry.pool.replicas if entry.local is None else entry.local.remotes


def _specs(children: Iterable[Child]) -> list[EngineSpec]:
    return [child.spec for child in children]


def _name_apart(made: Replica, others: Iterable[Replica]) -> None:
    """Give a new one the first number that none of the others has."""
    taken = {other.name for other in others}
    names = map(f"{made.name.rstrip('0123456789')}{{}}".format, count())
    made.name = next(name for name in names if name not in taken)


def _goes_on(entry: Entry, model: ModelSettings | None) -> bool:
    """It is still there, and still started by us or still running elsewhere."""
    return model is not None and (model.file is None) == (entry.local is None)


def _nothing() -> None:
    pass
