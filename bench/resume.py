"""Whether clients notice that the llama-server behind their answer was killed.

    python bench/resume.py [--model models/SmolLM2-135M-Instruct.Q4_1.gguf] [--quick]

Behind Corral are two replicas of a real llama.cpp. A killer ends one that is at work with `kill -9`, again and again,
and starts it anew, while clients chat at temperature 0, streaming and not. First with one slot each: every text has to
be the one that was said without kills. Then with four slots each: every answer has to be complete, and as many texts
the same as in that load without kills, but for what is chance (two standard deviations). Answers under a grammar cannot
be gone on with: those that are cut have to end in an honest error.

The replicas read prompts in steps of fewer than 64 tokens: from 64 on, llama.cpp computes in another way (on a CPU), so
that a text it reads differs by rounding from one it has written, and the most likely next word is now and then another.
`--batch 64` shows that, which is Corral's default for its own llama.cpp as it is faster.
"""

import http.client
import json
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from compare.section import publish
from corral.pull.wheels import SMOLLM2
from corral.upstream.spec import EngineSpec
from corral_process import KEY, OPERATOR, Corral
from real_engine import RealEngine, wait_until

DEMO_MODEL = Path("models") / SMOLLM2.file_name
REPLICAS = 2
REQUEST_LIMIT_S = 600.0
TOKENS = 96
BATCH = 56
# As many answers of each kind, streaming and not.
ANSWERS, QUICK_ANSWERS = 20, 5
# A replica that was killed is back for so long, by chance, when the next kill comes.
KILL_EVERY_S = (0.5, 2.0)
LOOK_S = 0.05
TOPICS = ("horses", "rivers", "lamps", "winter", "bread", "the sea", "a fence", "old clocks", "rain", "a gate")
SETTINGS = {
    "limits": {"requests": 0},
    "queue": {"length": 1000, "per_client": 1000, "patience": "10m", "unready_patience": "2m"},
    # The killer is faster than accidents are.
    "retries": {"resumes": 50, "attempts": 20},
    "timeouts": {"chat": {"total": "10m"}},
}
GRAMMAR = 'root ::= ("the horse is tall and the river is wide. ")+'

console = Console()


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked; a key of its own for each."""

    topic: str
    stream: bool
    fields: tuple[tuple[str, str], ...] = ()

    def body(self) -> dict[str, Any]:
        text = f"Write a few sentences about {self.topic}."
        asked = {"model": "m", "messages": [{"role": "user", "content": text}], "temperature": 0}
        return asked | {"max_tokens": TOKENS, "stream": self.stream} | dict(self.fields)


@dataclass(slots=True)
class Answer:
    """What came of a question."""

    question: Question
    text: str = ""
    # It has come to its end, as answers of its kind do.
    complete: bool = False
    # It ended with an error, and says so.
    told: bool = False


@dataclass(slots=True)
class Phase:
    """Some answers, and what happened meanwhile. Written by ``run``."""

    name: str
    answers: list[Answer] = field(default_factory=list)
    kills: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return sum(not answer.complete for answer in self.answers)

    @property
    def resumed(self) -> int:
        """Answers that went on elsewhere, once or more."""
        return sum(record["resumed"] > 0 for record in self.records)

    def same_as(self, texts: dict[Question, str]) -> int:
        return sum(answer.complete and answer.text == texts[answer.question] for answer in self.answers)

    @property
    def honest(self) -> bool:
        """Whoever has no complete answer was told, and nothing of it counts as a success."""
        ok = sum(record["outcome"] == "ok" for record in self.records)
        complete = sum(answer.complete for answer in self.answers)
        return ok == complete and all(answer.complete or answer.told for answer in self.answers)


class Killer:
    """Ends a replica that is at work, now and then, when there is another to go on. One writer: the main thread."""

    def __init__(self, spec: EngineSpec, chance: random.Random) -> None:
        self._spec = spec
        self._chance = chance
        self._due = 0.0

    def strikes(self, corral: Corral, engines: list[RealEngine]) -> int:
        """Kill one if it is time, and start it anew; how many were killed."""
        now = time.monotonic()
        if now < self._due:
            return 0
        told = replicas_of(corral)
        busy = [number for number, each in enumerate(told) if each["busy"]]
        if not busy or any(each["state"] != "ready" for each in told):
            return 0
        victim = self._chance.choice(busy)
        engines[victim].process.kill()
        engines[victim].process.wait()
        engines[victim] = RealEngine(self._spec, engines[victim].port)
        self._due = time.monotonic() + self._chance.uniform(*KILL_EVERY_S)
        return 1


def main(
    model: Annotated[Path, typer.Option(help="The GGUF file; the default is what `corral pull smollm2` fetches.")] = (
        DEMO_MODEL
    ),
    batch: Annotated[int, typer.Option(help="Tokens of a prompt that are read in one step.")] = BATCH,
    seed: Annotated[int, typer.Option(help="Of when is killed, and whom.")] = 1,
    docs: Annotated[bool, typer.Option("--docs", help="Write the section of docs/benchmarks.md.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help=f"{QUICK_ANSWERS} answers of each kind.")] = False,
) -> None:
    """Kill replicas in the middle of their answers."""
    if not model.is_file():
        raise SystemExit(f"there is no {model}; get it with 'corral pull smollm2', or name a --model")
    count = QUICK_ANSWERS if quick else ANSWERS
    questions = [Question(topic_of(number), stream) for number in range(count) for stream in (True, False)]
    unsound = [Question(topic_of(number), stream=True, fields=(("grammar", GRAMMAR),)) for number in range(count)]
    chance = random.Random(seed)
    phases: list[Phase] = []
    with suppress(KeyboardInterrupt):
        spec = spec_of(model, 1, batch)
        killer = Killer(spec, chance)
        with serving(spec) as served:
            phases.append(run(served, "1 slot, no kills", questions, clients=2))
            phases.append(run(served, "1 slot, kills", questions, clients=3, killer=killer))
            phases.append(run(served, "a grammar, kills", unsound, clients=2, killer=killer))
        spec = spec_of(model, 4, batch)
        killer = Killer(spec, chance)
        with serving(spec) as served:
            phases.append(run(served, "4 slots, no kills", questions, clients=8))
            phases.append(run(served, "4 slots, kills", questions, clients=8, killer=killer))
    shown, (holds, said) = table(phases), verdict(phases)
    console.print(shown)
    print(said)
    if docs and phases:
        publish("resume", "Replicas that are killed", shown, said)
    raise SystemExit(0 if holds else 1)


def topic_of(number: int) -> str:
    return f"{TOPICS[number % len(TOPICS)]} and {TOPICS[(number * 7 + number // len(TOPICS) + 1) % len(TOPICS)]}"


def spec_of(model: Path, slots: int, batch: int) -> EngineSpec:
    return EngineSpec("m", model, ctx=slots * 1024, parallel=slots, threads=1, n_batch=batch)


@contextmanager
def serving(spec: EngineSpec) -> Iterator[tuple[Corral, list[RealEngine]]]:
    """Corral, and the replicas behind it, which the killer changes."""
    engines: list[RealEngine] = []
    try:
        engines.extend(RealEngine(spec) for _ in range(REPLICAS))
        models = [{"name": "m", "upstreams": [engine.url for engine in engines]}]
        with Corral({**SETTINGS, "models": models}, OPERATOR_API_KEY=OPERATOR) as corral:
            corral.until_ready()
            yield corral, engines
    finally:
        for engine in engines:
            engine.stop()


def run(
    served: tuple[Corral, list[RealEngine]],
    name: str,
    questions: list[Question],
    *,
    clients: int,
    killer: Killer | None = None,
) -> Phase:
    """Ask them all, and let the killer have its way meanwhile."""
    corral, engines = served
    phase, before = Phase(name), len(corral.records())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(clients) as threads:
        bar = progress.add_task(name, total=len(questions))
        asked = {threads.submit(ask, corral, question) for question in questions}
        while asked:
            done, asked = wait(asked, timeout=LOOK_S, return_when=FIRST_COMPLETED)
            phase.answers += [each.result() for each in done]
            progress.advance(bar, len(done))
            if killer is not None and asked:
                phase.kills += killer.strikes(corral, engines)
    wait_until(lambda: len(corral.records()) >= before + len(questions))
    phase.records = corral.records()[before:]
    return phase


def ask(corral: Corral, question: Question) -> Answer:
    answer = Answer(question)
    try:
        status, content = post(corral, question.body())
    except (OSError, http.client.HTTPException):
        return answer
    if status != 200:
        answer.told = "error" in json.loads(content)
    elif question.stream:
        read_stream(content, answer)
    else:
        (choice,) = json.loads(content)["choices"]
        answer.text, answer.complete = choice["message"]["content"], choice["finish_reason"] in ("stop", "length")
    return answer


def post(corral: Corral, body: dict[str, Any]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", corral.port, timeout=REQUEST_LIMIT_S)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    with closing(connection):
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        reply = connection.getresponse()
        return reply.status, reply.read()


def read_stream(content: bytes, answer: Answer) -> None:
    """Take in a stream; it is complete when it says why it ends, once, and ends so."""
    events = [event.removeprefix(b"data: ") for event in content.split(b"\n\n") if event.startswith(b"data: ")]
    chunks = [json.loads(event) for event in events if event != b"[DONE]"]
    choices = [chunk["choices"][0] for chunk in chunks if chunk.get("choices")]
    roles = sum("role" in choice["delta"] for choice in choices)
    answer.text = "".join(choice["delta"].get("content") or "" for choice in choices)
    answer.told = "error" in chunks[-1]
    finishes = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    one = len({chunk["id"] for chunk in chunks if "id" in chunk}) == 1 and roles == 1
    answer.complete = one and len(finishes) == 1 and events[-1:] == [b"[DONE]"] and not answer.told


def replicas_of(corral: Corral) -> list[dict[str, Any]]:
    status, told = corral.operate("GET", "/admin/models")
    if status != 200:
        raise SystemExit(f"/admin/models answers {status}")
    replicas: list[dict[str, Any]] = told["models"][0]["replicas"]
    return replicas


def texts_of(phases: list[Phase]) -> dict[Question, str]:
    """What is said without kills, one at a time."""
    return {answer.question: answer.text for answer in phases[0].answers} if phases else {}


def table(phases: list[Phase]) -> Table:
    shown = Table(title=f"{REPLICAS} replicas, load average {os.getloadavg()[0]:.1f}")
    shown.add_column("load")
    for name in ("requests", "kills", "resumed", "identical", "failed", "told so"):
        shown.add_column(name, justify="right")
    texts = texts_of(phases)
    for phase in phases:
        known = all(answer.question in texts for answer in phase.answers)
        told = sum(answer.told for answer in phase.answers)
        same = str(phase.same_as(texts)) if known else "-"
        counts = (len(phase.answers), phase.kills, phase.resumed, same, phase.failed, told)
        shown.add_row(phase.name, *map(str, counts))
    return shown


def verdict(phases: list[Phase]) -> tuple[bool, str]:
    """Whether it holds, and the last line."""
    if len(phases) < 5:
        return False, "falls short: not every load was measured"
    alone, single, unsound, calm, crowd = phases
    texts = texts_of(phases)
    same, before, after = single.same_as(texts), calm.same_as(texts), crowd.same_as(texts)
    kills = single.kills + crowd.kills
    share = before / max(1, len(calm.answers))
    by_chance = 2 * sqrt(2 * len(calm.answers) * share * (1 - share))
    holds = (
        not (alone.failed or single.failed or calm.failed or crowd.failed)
        and same == len(single.answers)
        and after >= before - by_chance
        and single.resumed > 0
        and crowd.resumed > 0
        and unsound.failed > 0
        and all(phase.honest for phase in phases)
    )
    return holds, (
        f"{'holds' if holds else 'falls short'}: {kills} kills, {single.resumed + crowd.resumed} answers resumed, "
        f"{single.failed + crowd.failed} failed; with one slot {same} of {len(single.answers)} texts identical, "
        f"with four {after} (without kills {before}); of {len(unsound.answers)} with a grammar "
        f"{unsound.failed} were cut, {sum(answer.told for answer in unsound.answers)} told so"
    )


if __name__ == "__main__":
    typer.run(main)
