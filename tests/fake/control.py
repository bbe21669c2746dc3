"""The routes that only the fake has: what it got, how it stands, and what it is to do wrong next."""

import asyncio
import json
import time
from dataclasses import asdict, fields, replace
from typing import Any

from fake.exchange import Exchange
from fake.faults import from_mapping
from fake.inference import Engine
from fake.server import Server
from fake.settings import Settings
from fake.shapes import dump


async def control(server: Server, exchange: Exchange) -> None:
    """Answer a request under ``/fake/``; a mistake in it is a 400 that says what would be right."""
    request = exchange.request
    try:
        told = await _do(server, request.method, request.path, objects(request.body))
    except ValueError as problem:
        await exchange.whole(400, dump({"error": str(problem)}))
        return
    await exchange.whole(200 if told is not None else 404, dump(told))


async def _do(server: Server, method: str, path: str, given: list[dict[str, Any]]) -> object:
    match method, path:
        case "GET", "/fake/requests":
            return [record.told(connection) for record, connection in server.records]
        case "GET", "/fake/state":
            return state(server)
        case "POST", "/fake/faults":
            await server.add_faults([from_mapping(one) for one in given])
        case "DELETE", "/fake/faults":
            await server.clear_faults()
        case "POST", "/fake/settings":
            for one in given:
                change_settings(server.settings, one)
        case "POST", "/fake/reset":
            await reset(server)
        case _:
            return None
    return state(server)


def objects(body: bytes) -> list[dict[str, Any]]:
    """The JSON object of a body, or those of its list; raises ``ValueError``."""
    parsed = json.loads(body or b"[]")
    listed = parsed if isinstance(parsed, list) else [parsed]
    if not all(isinstance(one, dict) for one in listed):
        raise ValueError("the body must be a JSON object or a list of such")
    return listed


def state(server: Server) -> dict[str, Any]:
    """How the fake stands now. ``now`` is the clock of the records' times."""
    slots = server.engine.slots
    return {
        "now": time.monotonic(),
        "ready": server.ready(),
        "door": server.door.state,
        "connections": len(server.connections),
        "accepted": server.accepted,
        "requests": len(server.records),
        "running": sum(record.ended == "running" for record, _ in server.records),
        "processing": slots.processing,
        "deferred": len(slots.deferred),
        "most_deferred": slots.most_deferred,
        "slots": [{"id": slot.id, "busy": slot.busy, "task": slot.task and slot.task.id} for slot in slots.slots],
        "faults": server.book.told(),
        "settings": asdict(server.settings),
    }


def change_settings(settings: Settings, given: dict[str, Any]) -> None:
    """Set some settings anew; ``slots`` stays as it was at the start. Raises ``ValueError``."""
    kinds = {field.name: type(getattr(settings, field.name)) for field in fields(Settings) if field.name != "slots"}
    if unknown := given.keys() - kinds.keys():
        raise ValueError(f"no setting {sorted(unknown)}; there are: {', '.join(kinds)}")
    for name, value in given.items():
        setattr(settings, name, kinds[name](value))


async def reset(server: Server) -> None:
    """As freshly started and loaded: no faults, records, tasks, or connections, but the one that asks."""
    asking = asyncio.current_task()
    server.engine.slots.stop()
    for connection in [one for one in server.connections if one.task is not asking]:
        connection.reset()
        connection.task.cancel()
    server.records.clear()
    server.settings = replace(server.initial, load_s=0.0)
    server.engine = Engine(server.settings)
    await server.clear_faults()
