"""Ten minutes of trouble, and whether Corral tells the truth about all of it.

    python bench/chaos.py [--model models/SmolLM2-135M-Instruct.Q4_1.gguf] [--seconds 600] [--quick]

Corral runs two replicas of a real llama.cpp, and has three fake ones that run elsewhere (tests/fake_llama.py). Clients
ask for chats, completions and embeddings, streamed and not; some read slowly, some leave. Meanwhile llama-servers are
killed, stopped and let go on, fakes stall and misbehave, and settings are reloaded, good ones and broken ones, all by
chance. The last line says whether Corral's promises hold: every exchange has one record in the log, with an outcome
that is true as far as its client can judge; no stream ends without [DONE] or an error; what fakes say to a prompt is
always the same, also where one has gone on for another; in the end nothing waits and nothing is busy, everything
serves again, and no process is left behind, not even a stopped one. Ctrl-C ends the trouble sooner.
"""

import itertools
import json
import os
import signal
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from corral.pull.wheels import SMOLLM2
from corral_process import KEY, OPERATOR, Corral
from fakes import Fake
from offspring import Offspring
from troubles import FAKE, GUEST, REAL, Troubles
from witness import Ending, Kind, Request, Seen, ask, contradictions

DEMO_MODEL = Path("models") / SMOLLM2.file_name
SECONDS, QUICK_SECONDS = 600.0, 30.0
CLIENTS = 16
FAKES = 3
# Between two troubles.
PAUSE_S = (0.2, 1.5)
MEND_S = 0.1
# Longer than a lease lingers whose llama-server does not say that it is free.
SETTLE_LIMIT_S = 180.0
# How often each is asked for, of a hundred times; the last one does not exist.
MODELS = {REAL: 35, FAKE: 50, GUEST: 10, "nobody": 5}
KINDS = {Kind.CHAT_STREAM: 35, Kind.CHAT: 20, Kind.COMPLETION_STREAM: 15, Kind.COMPLETION: 10, Kind.EMBEDDINGS: 15}
TOKENS = (4, 40)
# So few different prompts that each is asked often: fakes say the same each time.
HERDS = 20
LEAVES, LEAVES_AFTER_S = 0.2, 3.0
# One that was told of an error comes back after so long.
BACK_AFTER_S = 0.5
# Slow ones of the fakes ask for a megabyte, which fills every buffer on the way.
SLOW, PAUSE_OF_SLOW_S = 0.1, 0.1
LONG_TOKENS = 60
LONG_SCRIPT, SCRIPT = {"tokens": ["w" * 16_384] * LONG_TOKENS}, {"count": 1000}
FAKE_FLAGS = ("--slots", "4", "--n-ctx", "1000000", "--token-s", "0.02", "--prefill-s", "0.02", "--embeddings")
# Only a fault makes a fake say so much of its own.
FAULTY_TEXT = 100_000
GAUGES = ("corral_exchanges_in_flight", "corral_queue_waiters", "corral_slots_busy", "corral_slots_lingering")
LIMITS = {"connect": "2s", "first_byte": "6s", "between_tokens": "4s", "total": "40s"}
LLAMA = {"ctx": 2048, "parallel": 2, "threads": 1, "log_dir": None}

console = Console()


@dataclass(slots=True)
class Load:
    """The clients and what they have seen. Writers: their threads."""

    corral: Corral
    seen: list[Seen] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)
    numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def start(self, seed: int) -> None:
        for number in range(CLIENTS):
            chance = Random(f"{seed}/{number}")
            self.threads.append(threading.Thread(target=self._ask_on, args=(chance,), daemon=True))
            self.threads[-1].start()

    def _ask_on(self, chance: Random) -> None:
        while not self.over.is_set():
            seen = self.ask(request_of(f"chaos-{next(self.numbers)}", chance))
            if seen.ending is Ending.TOLD:
                self.over.wait(BACK_AFTER_S)

    def ask(self, request: Request) -> Seen:
        seen = ask(self.corral.port, KEY, request)
        self.seen.append(seen)
        return seen


def main(
    model: Annotated[Path, typer.Option(help="The GGUF file; the default is what `corral pull smollm2` fetches.")] = (
        DEMO_MODEL
    ),
    seconds: Annotated[float, typer.Option(min=1, help="How long there is trouble.")] = SECONDS,
    seed: Annotated[int, typer.Option(help="Of the troubles, and of what clients ask for.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help=f"{QUICK_SECONDS:g} seconds.")] = False,
) -> None:
    """Make trouble for Corral, real and fake llama-servers, and hold what clients see against the log."""
    if not model.is_file():
        raise SystemExit(f"there is no {model}; get it with 'corral pull smollm2', or name a --model")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        fakes = [stack.enter_context(Fake(*FAKE_FLAGS)) for _ in range(FAKES)]
        settings = settings_of(model, fakes)
        corral = stack.enter_context(Corral(settings, OPERATOR_API_KEY=OPERATOR))
        offspring = stack.enter_context(Offspring(corral.pid))
        corral.until_ready()
        load, troubles = Load(corral), Troubles(corral, fakes, settings, Random(seed))
        make_trouble(load, troubles, min(seconds, QUICK_SECONDS) if quick else seconds, seed)
        wrong, outcomes = judge(load, troubles, offspring)
    console.print(table(load.seen))
    for name, counts in (("in the log", outcomes), ("troubles", troubles.counts)):
        told = ", ".join(f"{each} {count}" for each, count in counts.most_common())
        console.print(f"{name}: {told}", highlight=False, soft_wrap=True)
    raise SystemExit(verdict(load, troubles, wrong, offspring))


def settings_of(model: Path, fakes: list[Fake]) -> dict[str, Any]:
    """Little patience for everything, so that its end is met often."""
    return {
        "any_model": False,
        "server": {"comment_interval": "1s", "grace": "5s"},
        "limits": {"requests": 0},
        "queue": {"length": 40, "per_client": 40, "patience": "10s", "unready_patience": "6s"},
        "timeouts": dict.fromkeys(("chat", "completions", "embeddings"), LIMITS),
        "retries": {"attempts": 4, "backoff": "50ms", "backoff_max": "500ms", "deadline": "5s"},
        "llama": LLAMA | {"stop_grace": "2s", "start_stall": "10s", "start_timeout": "60s"},
        "models": [
            {"name": REAL, "file": str(model.resolve()), "replicas": 2},
            {"name": FAKE, "upstreams": [fake.url for fake in fakes]},
            {"name": GUEST, "upstreams": [fakes[0].url]},
        ],
    }


def request_of(request_id: str, chance: Random) -> Request:
    """What a client asks for, and how it behaves."""
    (model,) = chance.choices(list(MODELS), list(MODELS.values()))
    (kind,) = chance.choices(list(KINDS), list(KINDS.values()))
    slow = chance.random() < SLOW
    return Request(
        request_id,
        kind,
        body_of(kind, model, chance, slow=slow),
        leave_after_s=chance.uniform(0, LEAVES_AFTER_S) if chance.random() < LEAVES else None,
        pause_s=PAUSE_OF_SLOW_S if slow else 0.0,
    )


def body_of(kind: Kind, model: str, chance: Random, *, slow: bool = False) -> dict[str, Any]:
    text = f"Tell me a story about {chance.randint(1, HERDS)} horses."
    if kind is Kind.EMBEDDINGS:
        return {"model": model, "input": [text] * chance.randint(1, 4)}
    tokens = chance.randint(*TOKENS)
    if model in (FAKE, GUEST):
        # By a script a fake knows where a prompt ends, and what is its own text so far.
        tokens, script = (LONG_TOKENS, LONG_SCRIPT) if slow else (tokens, SCRIPT)
        text = f"{text} script:{json.dumps(script)}"
    asked = {"model": model, "max_tokens": tokens, "ignore_eos": True, "stream": kind.streamed}
    if kind in (Kind.CHAT, Kind.CHAT_STREAM):
        return asked | {"messages": [{"role": "user", "content": text}]}
    return asked | {"prompt": text}


def make_trouble(load: Load, troubles: Troubles, seconds: float, seed: int) -> None:
    """Let clients ask and trouble come for so long; returns when the last answer is there."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    chance = Random(f"{seed}/pauses")
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("0 answers", total=seconds)
        since = strike_at = time.monotonic()
        load.start(seed)
        with suppress(KeyboardInterrupt):
            while (now := time.monotonic()) - since < seconds:
                troubles.mend()
                if now >= strike_at:
                    troubles.strike()
                    strike_at = now + chance.uniform(*PAUSE_S)
                progress.update(bar, completed=now - since, description=f"{len(load.seen)} answers")
                time.sleep(MEND_S)
        load.over.set()
        progress.update(bar, completed=seconds, description="the trouble ends")
        troubles.end()
        for thread in load.threads:
            thread.join()


def judge(load: Load, troubles: Troubles, offspring: Offspring) -> tuple[list[str], Counter[str]]:
    """All that does not hold, and how often the log has each outcome; stops Corral."""
    corral = load.corral
    found = list(troubles.wrong)
    found += restlessness(corral)
    found += well_again(load, troubles)
    with suppress(SystemExit):
        corral.until(lambda: len(corral.records()) >= len(load.seen), "telling of all exchanges")
    records = corral.records()
    found += contradictions(load.seen, records)
    found += differing_texts(load.seen)
    counted = corral.scrape().total("corral_requests_total")
    if counted != len(records):
        found.append(f"{counted:.0f} exchanges in the metrics, {len(records)} in the log")
    found += [f"an error in the log: {line}" for line in corral.events() if is_error(line)]
    for pid in sorted(offspring.now())[:1]:
        # One that does not hear that it is to stop.
        os.kill(pid, signal.SIGSTOP)
    if code := corral.stop():
        found.append(f"Corral has ended with status {code}")
    outcomes = Counter(record["outcome"] for record in records)
    outcomes["(went on elsewhere)"] = sum(record["resumed"] > 0 for record in records)
    return found, outcomes


def differing_texts(seen: list[Seen]) -> list[str]:
    """Where fakes have not said the same to the same prompt, alone or in turn, as far as the shorter text goes."""
    longest: dict[str, str] = {}
    found = []
    for each in sorted(seen, key=lambda each: -len(each.text)):
        body = each.request.body
        if each.ending is Ending.WHOLE and body["model"] in (FAKE, GUEST) and len(each.text) < FAULTY_TEXT:
            prompt = json.dumps(body.get("messages") or body.get("prompt") or "")
            if not longest.setdefault(prompt, each.text).startswith(each.text):
                found.append(f"{each.request.id}: {each.text!r} is not how {longest[prompt]!r} begins")
    return found


def restlessness(corral: Corral) -> list[str]:
    """What is still busy, or waits, long after everything is over."""
    with suppress(SystemExit):
        corral.until(lambda: not any(map(corral.scrape().total, GAUGES)), "at rest", SETTLE_LIMIT_S)
    scrape = corral.scrape()
    return [f"{gauge} is {value:g}" for gauge in GAUGES if (value := scrape.total(gauge))]


def well_again(load: Load, troubles: Troubles) -> list[str]:
    """Which models do not serve, now that the trouble is over."""

    def ready() -> bool:
        troubles.mend()
        models = load.corral.operate("GET", "/admin/models")[1]["models"]
        return all(replica["state"] == "ready" for model in models for replica in model["replicas"])

    with suppress(SystemExit):
        load.corral.until(ready, "well again", SETTLE_LIMIT_S)
    chance = Random(0)
    names = (REAL, FAKE)
    kind = Kind.CHAT_STREAM
    seen = [load.ask(Request(f"chaos-last-{name}", kind, body_of(kind, name, chance))) for name in names]
    return [f"in the end {each.request.id}: {each.ending.value}" for each in seen if each.ending is not Ending.WHOLE]


def is_error(line: dict[str, Any]) -> bool:
    """A promise was broken; broken settings are the script's own."""
    return line["level"] in ("error", "critical") and line["event"] != "settings not reloaded"


def table(seen: list[Seen]) -> Table:
    shown = Table(title=f"what clients saw, load average {os.getloadavg()[0]:.1f}")
    for name in ("", *(ending.value for ending in Ending)):
        shown.add_column(name, justify="right" if name else "left")
    counts = Counter((each.request.kind, each.ending) for each in seen)
    for kind in Kind:
        shown.add_row(kind.title, *(str(counts[kind, ending]) for ending in Ending))
    shown.add_section()
    shown.add_row("all", *(str(sum(counts[kind, ending] for kind in Kind)) for ending in Ending))
    return shown


def verdict(load: Load, troubles: Troubles, wrong: list[str], offspring: Offspring) -> int:
    """Print what is wrong, and the last line; the exit code."""
    for each in wrong[:20]:
        console.print(f"wrong: {each}", highlight=False, soft_wrap=True, markup=False)
    left = offspring.left()
    broken = sum(each.ending is Ending.BROKEN for each in load.seen)
    holds = bool(load.seen) and not (wrong or left or broken)
    print(
        f"{'holds' if holds else 'falls short'}: {len(load.seen)} exchanges in {troubles.counts.total()} troubles, "
        f"{broken} broken, {len(wrong)} things wrong, {len(left)} of {len(offspring.seen)} processes left"
    )
    return 0 if holds else 1


if __name__ == "__main__":
    typer.run(main)
