"""What it brings to send a conversation where its beginning is cached.

    python bench/routing.py --model models/SmolLM2-135M-Instruct.Q4_1.gguf [--quick]

Two real llama.cpp of one model behind Corral, started anew for each balance: `prefix`, `least_busy`, `round_robin`.
Conversations about a document each share a few system prompts; six go on at the same time, and people read what they
are told before they ask again. The table has the ladder of cached tokens: what one cache without bounds would have
(ideal), what two of them would have if each request went where most of it is (perfect), and what llama-server says it
had. The last line says whether it holds: `prefix` has at least 90 % of the ideal share, and half of its first tokens
come in at most half the time that `round_robin` takes. Ctrl-C shows what has been measured so far.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from compare.bars import Bar, Panel, drawn
from compare.figures import Spread
from compare.section import publish
from corral.pull.wheels import SMOLLM2
from corral.upstream.spec import EngineSpec
from corral_process import KEY, Corral
from real_engine import RealEngine, long_prompt
from talk import Line, Told, percentile

DEMO_MODEL = Path("models") / SMOLLM2.file_name

REPLICAS = 2
SLOTS = 2
CONTEXT = SLOTS * 4096
# People read before they ask again. Without that the slot that has just been left is the only one that is free, and
# every balance finds the right one.
AT_ONCE = 6
READS_S = (1.0, 4.0)
SYSTEM_WORDS = 80
# The first question of a conversation holds a document, the next ones are short.
DOCUMENT_WORDS = 160
QUESTION_WORDS = 20
# Answers of different length, so that conversations do not go in step.
TOKENS = (8, 12, 16, 20, 24)

OF_THE_IDEAL = 0.9
OF_ROUND_ROBIN = 0.5

PREFIX, LEAST_BUSY, ROUND_ROBIN = "prefix", "least_busy", "round_robin"

Messages = list[dict[str, str]]
# Tokens, and what follows each.
Trie = dict[int, Any]

console = Console()


@dataclass(frozen=True, slots=True)
class Load:
    """How much is asked: conversations, turns of each, and different system prompts."""

    conversations: int
    turns: int
    systems: int

    @property
    def requests(self) -> int:
        return self.conversations * self.turns


@dataclass(frozen=True, slots=True)
class Turn:
    """One request and its answer."""

    messages: Messages
    told: Told


@dataclass(slots=True)
class Case:
    """A balance, and what came of it. Written by ``main``."""

    balance: str
    turns: list[Turn] = field(default_factory=list)
    # Shares of all prompt tokens.
    ideal: float = 0.0
    perfect: float = 0.0

    @property
    def cached(self) -> float:
        tokens = sum(turn.told.prompt_tokens for turn in self.turns)
        return sum(turn.told.cached_tokens for turn in self.turns) / tokens

    @property
    def ttfts(self) -> list[float]:
        return [turn.told.ttft_s for turn in self.turns]


def main(
    model: Annotated[Path, typer.Option(help="The GGUF file; the default is what `corral pull smollm2` fetches.")] = (
        DEMO_MODEL
    ),
    conversations: Annotated[int, typer.Option(min=2, help="Conversations.")] = 24,
    turns: Annotated[int, typer.Option(min=2, help="Turns of each.")] = 3,
    systems: Annotated[int, typer.Option(min=1, help="System prompts that they share.")] = 4,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each llama-server.")] = max(
        1, (os.cpu_count() or 1) // REPLICAS
    ),
    docs: Annotated[bool, typer.Option("--docs", help="Write the section of docs/benchmarks.md.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="7 conversations of 3 turns, without least_busy.")] = False,
) -> None:
    """Hold the same conversations with each balance."""
    load = Load(7, 3, 3) if quick else Load(conversations, turns, systems)
    cases = [Case(balance) for balance in (PREFIX, LEAST_BUSY, ROUND_ROBIN) if not quick or balance != LEAST_BUSY]
    progress = Progress(
        TextColumn("{task.description}"),
        *(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
        console=Console(stderr=True),
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), progress:
        task = progress.add_task("measuring", total=len(cases) * load.requests)
        for case in cases:
            progress.update(task, description=case.balance)
            with serving(model, threads, case.balance) as (engines, corral):
                hold(case, load, corral, lambda: progress.advance(task))
                measure(case, engines[0])
    measured = [case for case in cases if case.ideal]
    shown, (holds, said) = table(measured, load, threads), verdict({case.balance: case for case in measured})
    console.print(shown)
    print(said)
    if docs and measured:
        publish("routing", "Where a conversation is cached", shown, said, drawn(panels(measured)))
    sys.exit(0 if holds else 1)


@contextmanager
def serving(model: Path, threads: int, balance: str) -> Iterator[tuple[list[RealEngine], Corral]]:
    """Llama-servers as Corral starts them, which know nothing yet, and Corral in front of them."""
    if not model.is_file():
        raise SystemExit(f"there is no {model}; get it with 'corral pull smollm2', or name a --model")
    spec = EngineSpec("measured", model, threads=threads, ctx=CONTEXT, parallel=SLOTS)
    with ExitStack() as stack:
        engines = [stack.enter_context(RealEngine(spec)) for _ in range(REPLICAS)]
        settings = {
            "models": [{"name": "measured", "upstreams": [engine.url for engine in engines]}],
            "limits": {"requests": 0},
            "routing": {"balance": balance},
        }
        corral = stack.enter_context(Corral(settings))
        corral.until_ready()
        yield engines, corral


def hold(case: Case, load: Load, corral: Corral, advance: Callable[[], None]) -> None:
    """So many conversations at a time; the next begins when one has ended."""

    def converse(conversation: int) -> None:
        line = Line(corral.port, KEY)
        system = long_prompt(SYSTEM_WORDS, f"system {conversation % load.systems}")[0]["content"]
        messages = [{"role": "system", "content": system}]
        for turn in range(load.turns):
            time.sleep(random.Random(f"{conversation} {turn}").uniform(*READS_S))
            words = QUESTION_WORDS if turn else DOCUMENT_WORDS
            messages = [*messages, *long_prompt(words, f"{conversation} {turn}")]
            tokens = TOKENS[(conversation + turn) % len(TOKENS)]
            told = line.stream(messages, model="measured", max_tokens=tokens, ignore_eos=True, temperature=0)
            case.turns.append(Turn(messages, told))
            messages = [*messages, {"role": "assistant", "content": told.text}]
            advance()

    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(converse, range(load.conversations)))


def measure(case: Case, engine: RealEngine) -> None:
    """The upper rungs of the ladder, for what was asked in this case."""
    asked = [tokens_of(engine, turn.messages) for turn in sorted(case.turns, key=lambda turn: turn.told.asked_at)]
    total = sum(map(len, asked))
    one: Trie = {}
    case.ideal = sum(read(one, tokens) for tokens in asked) / total
    case.perfect = sum(read_best([{} for _ in range(REPLICAS)], asked)) / total


def tokens_of(engine: RealEngine, messages: Messages) -> list[int]:
    prompt = engine.post("/apply-template", {"messages": messages})["prompt"]
    found: list[int] = engine.post("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})[
        "tokens"
    ]
    return found


def read_best(caches: list[Trie], asked: list[list[int]]) -> Iterator[int]:
    """How much of each prompt is in the cache that has most of it, which then reads the rest; equal ones take turns."""
    turns = [0] * len(caches)
    for tokens in asked:
        best = max(range(len(caches)), key=lambda number: (had(caches[number], tokens), -turns[number]))
        turns[best] += 1
        yield read(caches[best], tokens)


def read(cache: Trie, tokens: list[int]) -> int:
    """How much of a prompt a cache has, which has all of it afterwards. The last token is always read."""
    known, node = had(cache, tokens), cache
    for token in tokens:
        node = node.setdefault(token, {})
    return min(known, len(tokens) - 1)


def had(cache: Trie, tokens: list[int]) -> int:
    """How many tokens from the start on a cache has."""
    node = cache
    for number, token in enumerate(tokens):
        if token not in node:
            return number
        node = node[token]
    return len(tokens)


def table(cases: list[Case], load: Load, threads: int) -> Table:
    shown = Table(
        title=f"{REPLICAS} x {SLOTS} slots, {load.conversations} conversations of {load.turns} turns, {load.systems} "
        f"system prompts, {threads} thread(s) each, load {os.getloadavg()[0]:.1f}"
    )
    for name in ("balance", "ideal", "perfect", "cached", "of the ideal", "first token p50, s", "p99, s"):
        shown.add_column(name, justify="right")
    for case in cases:
        shown.add_row(
            case.balance,
            *(f"{share:.1%}" for share in (case.ideal, case.perfect, case.cached, case.cached / case.ideal)),
            f"{median(case.ttfts):.2f}",
            f"{percentile(case.ttfts, 0.99):.2f}",
        )
    return shown


def panels(cases: list[Case]) -> list[Panel]:
    """The ladder of cached tokens, and what it brings."""
    ladder = [("ideal", cases[0].ideal), ("perfect routing", cases[0].perfect)]
    ladder += [(case.balance, case.cached) for case in cases]
    shares = [Bar(name, Spread(100 * share, 100 * share, 100 * share), ours=name == PREFIX) for name, share in ladder]
    return [
        Panel("cached tokens", "% of all prompt tokens, more is better", shares),
        *(
            Panel(f"first token p{round(100 * share)}", "s, less is better", _bars(cases, share), 2)
            for share in (0.5, 0.99)
        ),
    ]


def _bars(cases: list[Case], share: float) -> list[Bar]:
    found = [(case.balance, percentile(case.ttfts, share)) for case in cases]
    return [Bar(name, Spread(value, value, value), ours=name == PREFIX) for name, value in found]


def verdict(cases: dict[str, Case]) -> tuple[bool, str]:
    """Whether it holds, and the last line."""
    if not {PREFIX, ROUND_ROBIN} <= cases.keys():
        return False, "falls short: not everything was measured"
    ours, other = cases[PREFIX], cases[ROUND_ROBIN]
    share = ours.cached / ours.ideal
    p50_s, other_s = median(ours.ttfts), median(other.ttfts)
    holds = share >= OF_THE_IDEAL and p50_s <= OF_ROUND_ROBIN * other_s
    return holds, (
        f"{'holds' if holds else 'falls short'}: prefix has {share:.0%} of the ideal share of cached tokens (limit "
        f"{OF_THE_IDEAL:.0%}; perfect {ours.perfect / ours.ideal:.0%}, round_robin {other.cached / other.ideal:.0%}); "
        f"first token p50 {p50_s:.2f} s, {p50_s / other_s:.2f} of round_robin's {other_s:.2f} s "
        f"(limit {OF_ROUND_ROBIN})"
    )


if __name__ == "__main__":
    typer.run(main)
