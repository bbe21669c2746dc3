"""More models than memory: three models, room for two, and clients that want all of them.

    python bench/swap.py [--model models/SmolLM2-135M-Instruct.Q4_1.gguf] [--quick]

A real llama.cpp behind three names, loaded on demand under a memory budget that holds two of them. Eight
clients ask for one of the three at random, streaming and not, for five minutes; meanwhile the memory of all
llama-servers is sampled. The last line says whether Corral's promises hold: no request lost, none cut or tried
twice because its model was stopped under it, memory never above the budget, no process left behind. Ctrl-C
shows what has been measured so far.
"""

import http.client
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from corral.pull.wheels import SMOLLM2
from corral_process import KEY, OPERATOR, Corral, children_of, resident_bytes

DEMO_MODEL = Path("models") / SMOLLM2.file_name
NAMES = ("red", "green", "blue")
CLIENTS = 8
# Two and a half models fit: two, and never three.
ROOM = 2.5
SAMPLE_S = 0.02
REQUEST_LIMIT_S = 600.0
TOKENS = (4, 40)
SECONDS, QUICK_SECONDS = 300.0, 40.0

console = Console()


@dataclass(slots=True)
class Asked:
    """One request. Written by its client."""

    model: str
    status: int = 0
    whole: bool = False
    first_s: float = 0.0
    total_s: float = 0.0


@dataclass(slots=True)
class Memory:
    """What the llama-servers take. Written by ``sample``."""

    most_bytes: int = 0
    samples: int = 0
    pids: set[int] = field(default_factory=set)


def main(
    model: Annotated[Path, typer.Option(help="The GGUF file; the default is what `corral pull smollm2` fetches.")] = (
        DEMO_MODEL
    ),
    seconds: Annotated[float, typer.Option(min=1, help="How long clients go on asking.")] = SECONDS,
    seed: Annotated[int, typer.Option(help="Of what clients ask for.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help=f"{QUICK_SECONDS:g} seconds.")] = False,
) -> None:
    """Ask for three models with memory for two."""
    if not model.is_file():
        raise SystemExit(f"there is no {model}; get it with 'corral pull smollm2', or name a --model")
    seconds = min(seconds, QUICK_SECONDS) if quick else seconds
    budget = int(ROOM * one_model(model))
    asked: list[Asked] = []
    memory = Memory()
    with serving(model, budget) as corral:
        with sampling(corral, memory), suppress(KeyboardInterrupt):
            ask_for(corral, seconds, seed, asked)
        loads = loads_of(corral)
        records = corral.records()
    left = [pid for pid in memory.pids if Path(f"/proc/{pid}").exists()]
    console.print(table(asked, loads, memory, budget))
    raise SystemExit(verdict(asked, records, loads, memory, budget, left))


def one_model(model: Path) -> int:
    """What one of them takes when it has served."""
    with serving(model, None) as corral:
        post(corral, "/v1/chat/completions", body_of(NAMES[0], random.Random(0)))
        (told,) = (each for each in admin(corral)["models"] if each["name"] == NAMES[0])
    return int(told["memory_bytes"])


@contextmanager
def serving(model: Path, budget: int | None) -> Iterator[Corral]:
    """Corral with the three models, and nothing loaded."""
    settings = {
        "fleet": {"on_demand": True, **({"memory_size": budget} if budget is not None else {})},
        # As much patience as it takes: what is to be seen is that nobody is forgotten.
        "queue": {"patience": "10m", "unready_patience": "10m"},
        "limits": {"requests": 0},
        # Without llama-server's cache of prompts, a model takes as much later as at first.
        "llama": {"ctx": 2048, "parallel": 2, "threads": 1, "log_dir": None, "extra_args": ["--cache-ram", "0"]},
        "models": [{"name": name, "file": str(model.resolve())} for name in NAMES],
    }
    with Corral(settings, OPERATOR_API_KEY=OPERATOR) as corral:
        corral.until_listening()
        yield corral


def ask_for(corral: Corral, seconds: float, seed: int, asked: list[Asked]) -> None:
    """Let the clients ask until the time is up and the last answer is there."""
    until = time.monotonic() + seconds
    threads = [
        threading.Thread(target=client, args=(corral, until, random.Random(f"{seed}/{number}"), asked), daemon=True)
        for number in range(CLIENTS)
    ]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("asking", total=seconds)
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.2)
            done = min(seconds, seconds - (until - time.monotonic()))
            progress.update(bar, completed=done, description=f"{len(asked)} answers")


def client(corral: Corral, until: float, chance: random.Random, asked: list[Asked]) -> None:
    while time.monotonic() < until:
        asked.append(ask(corral, chance))


def ask(corral: Corral, chance: random.Random) -> Asked:
    body = body_of(chance.choice(NAMES), chance)
    result = Asked(body["model"])
    since = time.monotonic()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", corral.port, timeout=REQUEST_LIMIT_S)
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers(KEY))
            reply = connection.getresponse()
            result.status = reply.status
            first = reply.read(1)
            result.first_s = time.monotonic() - since
            content = first + reply.read()
        finally:
            connection.close()
        result.whole = is_whole(content, stream=body["stream"])
    except (OSError, http.client.HTTPException):
        pass
    result.total_s = time.monotonic() - since
    return result


def is_whole(content: bytes, *, stream: bool) -> bool:
    """The answer has come to its end, as answers of its kind do."""
    if stream:
        return content.endswith(b"data: [DONE]\n\n") and b'"finish_reason":"length"' in content
    return bool(json.loads(content)["choices"][0]["finish_reason"] == "length")


def body_of(model: str, chance: random.Random) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": f"Tell me about the colour {model}."}],
        "max_tokens": chance.randint(*TOKENS),
        "stream": chance.random() < 0.5,
        "ignore_eos": True,
    }


@contextmanager
def sampling(corral: Corral, memory: Memory) -> Iterator[None]:
    """Look at the memory of all llama-servers all the time within the block."""
    over = threading.Event()

    def sample() -> None:
        while not over.wait(SAMPLE_S):
            pids = children_of(corral.pid)
            memory.pids |= pids
            taken = 0
            for pid in pids:
                # One may have ended since it was listed.
                with suppress(OSError, IndexError):
                    taken += resident_bytes(pid)
            memory.most_bytes = max(memory.most_bytes, taken)
            memory.samples += 1

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def loads_of(corral: Corral) -> Counter[str]:
    """How often each model was loaded."""
    return Counter(line["model"] for line in corral.events() if line["event"] == "model loaded")


def table(asked: list[Asked], loads: Counter[str], memory: Memory, budget: int) -> Table:
    load = os.getloadavg()[0]
    title = f"{CLIENTS} clients, load average {load:.1f}"
    shown = Table(title=title, caption=f"memory at most {mib(memory.most_bytes)} of {mib(budget)} MiB")
    shown.add_column("model")
    for name in ("requests", "lost", "loads", "first byte p50, s", "p99, s", "whole p50, s", "p99, s"):
        shown.add_column(name, justify="right")
    for name in (*NAMES, "all"):
        of = [each for each in asked if name in (each.model, "all")]
        lost = sum(not each.whole for each in of)
        loaded = loads[name] if name in NAMES else loads.total()
        firsts, totals = [each.first_s for each in of], [each.total_s for each in of]
        shown.add_row(name, str(len(of)), str(lost), str(loaded), *_spread(firsts), *_spread(totals))
    return shown


def verdict(
    asked: list[Asked],
    records: list[dict[str, Any]],
    loads: Counter[str],
    memory: Memory,
    budget: int,
    left: list[int],
) -> int:
    """Print the last line; the exit code."""
    lost = sum(not each.whole for each in asked)
    disturbed = sum(record["outcome"] != "ok" or record["attempts"] != 1 for record in records)
    swaps = loads.total() - len(NAMES)
    over = memory.most_bytes > budget
    holds = bool(asked) and not (lost or disturbed or over or left) and swaps > 0 and len(records) == len(asked)
    print(
        f"{'holds' if holds else 'falls short'}: {len(asked)} requests, {lost} lost, {disturbed} cut or repeated, "
        f"{swaps} swaps, at most {mib(memory.most_bytes)} of {mib(budget)} MiB in {memory.samples} samples, "
        f"{len(left)} of {len(memory.pids)} processes left"
    )
    return 0 if holds else 1


def mib(count: int) -> str:
    return f"{count / 2**20:.0f}"


def headers(key: str) -> dict[str, str]:
    return {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}


def post(corral: Corral, path: str, body: dict[str, Any]) -> dict[str, Any]:
    return _send(corral, "POST", path, KEY, json.dumps(body | {"stream": False}))


def admin(corral: Corral) -> dict[str, Any]:
    return _send(corral, "GET", "/admin/models", OPERATOR, None)


def _send(corral: Corral, method: str, path: str, key: str, body: str | None) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", corral.port, timeout=REQUEST_LIMIT_S)
    try:
        connection.request(method, path, body, headers(key))
        reply = connection.getresponse()
        told: dict[str, Any] = json.loads(reply.read())
    finally:
        connection.close()
    if reply.status != 200:
        raise SystemExit(f"{path} answers {reply.status}: {told}")
    return told


def _spread(values: list[float]) -> tuple[str, str]:
    if len(values) < 2:
        return "", ""
    return f"{median(values):.2f}", f"{quantiles(values, n=100)[98]:.2f}"


if __name__ == "__main__":
    typer.run(main)
