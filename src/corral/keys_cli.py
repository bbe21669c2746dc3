"""``corral keys``: the keys in the store, with or without a Corral that runs."""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from corral.config import StoreSettings, load_store
from corral.config.units import seconds
from corral.core.api_key import KeyStanding, StoredKey
from corral.core.errors import CorralError, InvalidRequest
from corral.store.key_shapes import AdminKey, AdminNewKey
from corral.store.terms import KeyChange, KeyTerms, QuotaTerms

if TYPE_CHECKING:
    from corral.store.keys import KeyStore

T = TypeVar("T")

keys_app = typer.Typer(
    help="Keys of clients, kept in the store: made, changed, rotated and revoked. A Corral that uses the store "
    "goes by a change within a second.",
    no_args_is_help=True,
)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="The settings; ./corral.yaml when there is one.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
KeyId = Annotated[str, typer.Argument(help="What the key goes by: key_…, or what its secret begins with.")]
Client = Annotated[str | None, typer.Option(help="Whose it is: the name in metrics, logs and usage.")]
Name = Annotated[str | None, typer.Option(help="What it is for.")]
Scopes = Annotated[
    list[str] | None,
    typer.Option("--scope", help="What it opens: inference, admin or metrics; may be given again."),
]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="A model it may ask for, or a pattern such as 'llama-*'; may be given again."),
]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=NUMBER",
        help="requests or tokens (in a window), in_flight, tokens_day, tokens_month, max_tokens, max_context; "
        "0 is no limit, and nothing is as the settings have it.",
    ),
]
ModelLimits = Annotated[
    list[str] | None,
    typer.Option(
        "--model-limit",
        metavar="MODEL:NAME=NUMBER,…",
        help="Limits beside these, of each model that a pattern names; 'MODEL:' takes them away.",
    ),
]
PriorityName = Annotated[
    str | None, typer.Option("--priority", help="Its class in the queue: interactive, default, batch.")
]
Weight = Annotated[float | None, typer.Option(help="Its share beside others of its class.")]
Expires = Annotated[
    str | None, typer.Option(help="When it ends: 90d, 12h, or a date, 2027-01-31, which is UTC; never for never.")
]

out = Console(highlight=False, soft_wrap=True)
notes = Console(stderr=True, highlight=False, soft_wrap=True)


@keys_app.command()
def create(
    client: Annotated[str, typer.Option(help="Whose it is: the name in metrics, logs and usage.")],
    name: Name = None,
    scope: Scopes = None,
    model: Models = None,
    limit: Limits = None,
    model_limit: ModelLimits = None,
    priority: PriorityName = None,
    weight: Weight = None,
    expires: Expires = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Make a key. It is printed once, on standard output; nobody can see it again."""
    terms = _terms(KeyTerms, client, name, scope, model, limit, model_limit, priority, weight, expires)
    settings = load_store(config)
    fresh = not settings.used
    key, secret = _with_store(settings, lambda store: store.create(terms), make=True)
    if fresh:
        notes.print(f"made the store {settings.where}; a Corral that runs already uses it after a restart")
    _print_secret(key, secret, as_json=as_json)


@keys_app.command("list")
def list_keys(
    revoked: Annotated[bool, typer.Option("--revoked", help="Those too that were revoked.")] = False,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Show all keys."""
    found = [AdminKey.of(key, time.time()) for key in _with_store(load_store(config), lambda store: store.all())]
    keys = [key for key in found if revoked or key.standing is not KeyStanding.REVOKED]
    if as_json:
        _print_json([key.model_dump(mode="json") for key in keys])
    else:
        out.print(_table(keys))


@keys_app.command()
def show(key: KeyId, config: ConfigFile = None, as_json: Json = False) -> None:
    """Show one key."""
    _print_key(_with_store(load_store(config), lambda store: _named(store, key)), as_json=as_json)


@keys_app.command()
def edit(
    key: KeyId,
    client: Client = None,
    name: Name = None,
    scope: Scopes = None,
    model: Models = None,
    limit: Limits = None,
    model_limit: ModelLimits = None,
    priority: PriorityName = None,
    weight: Weight = None,
    expires: Expires = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Change a key; what is not said stays. --model '' lets it ask for all of them."""
    change = _terms(KeyChange, client, name, scope, model, limit, model_limit, priority, weight, expires)

    async def changed(store: "KeyStore") -> StoredKey:
        return await store.change((await _named(store, key)).id, change)

    _print_key(_with_store(load_store(config), changed), as_json=as_json)


@keys_app.command()
def rotate(
    key: KeyId,
    overlap: Annotated[str, typer.Option(help="How long the old secret counts beside the new one: 1h, 7d.")] = "0s",
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Give a key another secret, on the same terms and limits."""
    overlap_s = _understood("--overlap", lambda: seconds(overlap))

    async def rotated(store: "KeyStore") -> tuple[StoredKey, str]:
        return await store.rotate((await _named(store, key)).id, overlap_s)

    _print_secret(*_with_store(load_store(config), rotated), as_json=as_json)


@keys_app.command()
def revoke(key: KeyId, config: ConfigFile = None, as_json: Json = False) -> None:
    """Let a key open nothing any more, for ever."""

    async def revoked(store: "KeyStore") -> StoredKey:
        return await store.revoke((await _named(store, key)).id)

    _print_key(_with_store(load_store(config), revoked), as_json=as_json)


def _with_store(settings: StoreSettings, do: "Callable[[KeyStore], Awaitable[T]]", *, make: bool = False) -> T:
    """What is done with the store, which is made only by who makes a key."""
    if not (make or settings.used):
        raise InvalidRequest(f"there is no store at {settings.file}; 'corral keys create' makes one")
    from corral.store.keys import KeyStore
    from corral.store.opened import Store

    async def run() -> T:
        store = Store(settings)
        try:
            await store.prepare()
            return await do(KeyStore(store.engine, time.time))
        finally:
            await store.close()

    return asyncio.run(run())


async def _named(store: "KeyStore", name: str) -> StoredKey:
    """The key of this id; or the only one whose secret begins so."""
    found = [key for key in await store.all() if name in (key.id, key.prefix)]
    return found[0] if len(found) == 1 else await store.get(name)


def _terms(
    kind: type[T],
    client: str | None,
    name: str | None,
    scope: list[str] | None,
    model: list[str] | None,
    limit: list[str] | None,
    model_limit: list[str] | None,
    priority: str | None,
    weight: float | None,
    expires: str | None,
) -> T:
    """What the options say; what they do not say is left out."""
    said: dict[str, Any] = {
        "client": client,
        "name": name,
        "scopes": scope,
        "models": None if model is None else [each for each in model if each],
        "limits": _quota(limit),
        "model_limits": None if model_limit is None else _model_quotas(model_limit),
        "priority": priority,
        "weight": weight,
    }
    told: dict[str, Any] = {field: value for field, value in said.items() if value is not None}
    if expires is not None:
        told["expires"] = _moment(expires)
    try:
        return kind(**told)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"{where}: {first['msg']}", param=where) from None


def _quota(limits: list[str] | None) -> dict[str, int | None] | None:
    return None if limits is None else dict(map(_limit, limits))


def _limit(entry: str) -> tuple[str, int | None]:
    name, equals, number = entry.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or name not in QuotaTerms.model_fields or not re.fullmatch(r"\s*[0-9]*\s*", number):
        names = ", ".join(QuotaTerms.model_fields)
        raise InvalidRequest(f"'{entry}' is not a limit; write NAME=NUMBER, where NAME is one of {names}")
    return name, int(number) if number.strip() else None


def _model_quotas(entries: list[str]) -> dict[str, dict[str, int | None] | None]:
    """All that is said of a model counts, as it does where no model is named."""
    quotas: dict[str, dict[str, int | None] | None] = {}
    for model, quota in map(_model_quota, entries):
        quotas[model] = None if quota is None else (quotas.get(model) or {}) | quota
    return quotas


def _model_quota(entry: str) -> tuple[str, dict[str, int | None] | None]:
    """``llama-*:requests=10,tokens=1000``; a model's name may have colons."""
    model, colon, limits = entry.rpartition(":")
    if not colon or not model:
        raise InvalidRequest(f"'{entry}' is not a limit of a model; write e.g. 'llama-*:requests=10,tokens=1000'")
    return model, dict(map(_limit, limits.split(","))) if limits else None


def _moment(expires: str) -> float | None:
    if expires == "never":
        return None
    if expires[:4].isdigit() and expires[4:5] == "-":
        moment = _understood("--expires", lambda: datetime.fromisoformat(expires))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return time.time() + _understood("--expires", lambda: seconds(expires))


def _understood(option: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except (ValueError, CorralError) as error:
        raise InvalidRequest(f"{option}: {error}") from None


def _print_key(key: StoredKey, *, as_json: bool) -> None:
    shown = AdminKey.of(key, time.time())
    if as_json:
        _print_json(shown.model_dump(mode="json"))
    else:
        out.print(_details(shown))


def _print_secret(key: StoredKey, secret: str, *, as_json: bool) -> None:
    shown = AdminNewKey.with_secret(key, time.time(), secret)
    if as_json:
        _print_json(shown.model_dump(mode="json"))
        return
    notes.print(_details(shown))
    notes.print("the key, which nobody can see again:")
    print(secret)  # noqa: T201  (for programs)


def _print_json(value: Any) -> None:  # noqa: ANN401  (JSON)
    print(json.dumps(value))  # noqa: T201  (for programs)


def _table(keys: list[AdminKey]) -> Table:
    table = Table(title=f"{len(keys)} keys")
    for column in ("id", "begins with", "client", "name", "standing", "last used"):
        table.add_column(column, no_wrap=column in ("id", "begins with"))
    for key in keys:
        cells = (key.id, key.prefix, key.client, key.name, key.standing.value)
        table.add_row(*map(escape, cells), _date(key.last_used, "never")[:10])
    return table


def _details(key: AdminKey) -> str:
    lines = [f"{key.id}: {key.prefix}…, {key.standing.value}, of client {key.client}"]
    lines += [f"  for {key.name}"] if key.name else []
    lines += [f"  opens {', '.join(key.scopes)}; models: {', '.join(key.models) or 'all'}"]
    lines += [f"  {_limits_of(key.limits)}"] if _limits_of(key.limits) else []
    lines += [f"  {model}: {_limits_of(limits)}" for model, limits in key.model_limits.items()]
    lines += [f"  priority {key.priority}"] if key.priority else []
    lines += [f"  weight {key.weight:g}"] if key.weight else []
    lines += [f"  created {_date(key.created)}, last used {_date(key.last_used, 'never')}"]
    lines += [f"  expires {_date(key.expires)}"] if key.expires else []
    lines += [f"  the secret before counts until {_date(key.old_until)}"] if key.old_until else []
    return escape("\n".join(lines))


def _limits_of(limits: QuotaTerms) -> str:
    return ", ".join(f"{name} {value}" for name, value in limits.model_dump(exclude_none=True).items())


def _date(unix_s: float | None, otherwise: str = "") -> str:
    return otherwise if unix_s is None else datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M")
