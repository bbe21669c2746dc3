"""What may not be left behind at the end of a soak, and how Corral stands in between."""

import json
import urllib.request
from collections import Counter
from dataclasses import dataclass, field

import orjson

from corral_process import Corral, Scrape, Stub
from soak_judge import CUT, REFUSED, RIGHT, UNAVAILABLE
from soak_plan import MODEL

GAUGES = ("corral_exchanges_in_flight", "corral_queue_waiters", "corral_slots_busy", "corral_slots_lingering")
MIB = 1024 * 1024
# Of all exchanges, while the faults of others make replicas unready.
UNAVAILABLE_LIMIT = 0.05
# More series than one model, one client and a handful of statuses can make.
SERIES_LIMIT = 1000

# What the log may say of an exchange whose client saw it come out so.
OUTCOMES = {
    RIGHT: {"ok"},
    REFUSED: {"refused", "upstream_error", "timeout", "unavailable"},
    CUT: {"cut", "refused", "upstream_error", "timeout", "unavailable"},
    UNAVAILABLE: {"unavailable", "cut"},
}


@dataclass(frozen=True, slots=True)
class Level:
    """How Corral stands at one moment."""

    done: int
    memory_bytes: float
    descriptors: float
    tasks: float
    busy: float
    series: int
    exchanges: float

    @property
    def memory_mib(self) -> float:
        return self.memory_bytes / MIB

    def as_quiet_as(self, before: list["Level"]) -> bool:
        """Nothing is busy, and no more is open than was at one time before."""
        quiet = self.descriptors <= max(level.descriptors for level in before)
        return quiet and self.tasks <= max(level.tasks for level in before) and self.busy == 0


@dataclass(slots=True)
class Ended:
    """What the clients were told. Written by the workers; ``lines`` by ``complaints``."""

    # Of each request's id the status, and how it came out.
    told: dict[str, tuple[int, str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    lines: int = 0


def level_of(corral: Corral, done: int) -> Level:
    scrape = corral.scrape()
    return Level(
        done=done,
        memory_bytes=scrape.total("process_resident_memory_bytes"),
        descriptors=scrape.total("process_open_fds"),
        tasks=scrape.total("corral_event_loop_tasks"),
        busy=sum(scrape.total(gauge) for gauge in GAUGES),
        series=len(scrape.series),
        exchanges=scrape.total("corral_requests_total"),
    )


def slope_bytes(levels: list[Level]) -> float:
    """The line through these points of memory over requests, by least squares: bytes a request."""
    if len(levels) < 2:
        return 0.0
    x0 = sum(level.done for level in levels) / len(levels)
    y0 = sum(level.memory_bytes for level in levels) / len(levels)
    spread = sum((level.done - x0) ** 2 for level in levels)
    return sum((level.done - x0) * (level.memory_bytes - y0) for level in levels) / spread if spread else 0.0


def complaints(before: list[Level], after: Level, ended: Ended, corral: Corral) -> list[str]:
    """All that does not hold, but for the memory; wrong answers last, of which there may be many."""
    scrape = corral.scrape()
    found = [f"{gauge} is {value:g}" for gauge in GAUGES if (value := scrape.total(gauge))]
    for name in ("descriptors", "tasks"):
        most, left = max(getattr(level, name) for level in before), getattr(after, name)
        if left > most:
            found.append(f"{left:.0f} {name} at the end, {most:.0f} at the start")
    return [*found, *counted(scrape), *logged(corral, scrape, ended), *ended.wrong]


def counted(scrape: Scrape) -> list[str]:
    """What the metrics say that they must not."""
    found = []
    outcomes = scrape.by("corral_requests_total", "outcome")
    if outcomes.get("aborted"):
        found.append(f"{outcomes['aborted']:.0f} exchanges were aborted")
    if outcomes.get("unavailable", 0) > UNAVAILABLE_LIMIT * sum(outcomes.values()):
        found.append(f"{outcomes['unavailable']:.0f} exchanges found no replica")
    if unknown := set(scrape.by("corral_requests_total", "model")) - {MODEL, "none"}:
        found.append(f"clients made up models in the metrics: {sorted(unknown)[:3]}")
    if unknown := set(scrape.by("corral_requests_total", "client")) - {"default", "none"}:
        found.append(f"clients made up clients in the metrics: {sorted(unknown)[:3]}")
    if len(scrape.series) > SERIES_LIMIT:
        found.append(f"{len(scrape.series)} series in the metrics")
    if lost := scrape.total("corral_log_lines_lost_total"):
        found.append(f"{lost:.0f} log lines were lost")
    return found


def logged(corral: Corral, scrape: Scrape, ended: Ended) -> list[str]:
    """Where the log says something else than the metrics, or than what the clients were told."""
    found: list[str] = []
    seen: Counter[str] = Counter()
    with corral.log.open("rb") as lines:
        for line in lines:
            event = orjson.loads(line)
            if event["event"] != "exchange":
                if event["level"] in ("error", "critical"):
                    found.append(f"an error in the log: {line[:600].decode()}")
                continue
            ended.lines += 1
            request_id = event["request_id"]
            seen[request_id] += 1
            if (told := ended.told.get(request_id)) is not None:
                status, outcome = told
                if event["status"] != status or event["outcome"] not in OUTCOMES.get(outcome, {event["outcome"]}):
                    found.append(f"{request_id}: told {status}, {outcome}; logged {line.decode().strip()}")
    counted_exchanges = int(scrape.total("corral_requests_total"))
    if ended.lines != counted_exchanges:
        found.append(f"{ended.lines} lines in the log for {counted_exchanges} exchanges in the metrics")
    if twice := [request_id for request_id, times in seen.items() if times > 1]:
        found.append(f"{len(twice)} exchanges are in the log twice: {twice[:3]}")
    if missing := [request_id for request_id in ended.told if request_id not in seen]:
        found.append(f"{len(missing)} exchanges are not in the log: {missing[:3]}")
    return found


def over_capacity(stubs: list[Stub]) -> list[str]:
    """Calls that a stub got while all its slots were taken, and those that it still serves."""
    found = []
    for number, stub in enumerate(stubs):
        with urllib.request.urlopen(f"{stub.url}/soak", timeout=10) as reply:
            told = json.load(reply)
        if told["over"]:
            found.append(f"replica {number} got {told['over']} of {told['calls']} calls while it had no slot free")
        if told["busy"]:
            found.append(f"replica {number} still serves {told['busy']} calls")
    return found
