"""Finds the clients that settings name and nobody can be."""

from corral.config.problems import nearest
from corral.config.settings import Config
from corral.core.principal import ANONYMOUS


def unknown_clients(config: Config) -> list[str]:
    """What the queue's settings say of clients that no key has, a line each: a slip of the pen, most likely.

    Where there is a store, its keys may have any.
    """
    if config.store.used:
        return []
    keys, queue = config.auth.keys, config.queue
    known = {key.client for key in keys}
    if config.auth.allow_anonymous or not keys:
        known.add(ANONYMOUS.client)
    named = {
        "queue.interactive": queue.interactive,
        "queue.batch": queue.batch,
        "queue.weights": tuple(client for client, _ in queue.weights),
    }
    return [
        _told(setting, client, nearest(client, sorted(known)))
        for setting, clients in named.items()
        for client in clients
        if client not in known
    ]


def _told(setting: str, client: str, meant: str | None) -> str:
    question = f"; did you mean {meant}?" if meant else ""
    return f"{setting}: no key has the client {client}{question}"
