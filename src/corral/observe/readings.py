"""What is true now, asked of its owner when someone looks."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from corral.core.lifecycle import State
from corral.upstream.local import LocalModel


class Instrument(Enum):
    """Everything that can be read at a scrape: its metric's name, meaning and labels."""

    EXCHANGES = ("corral_exchanges_in_flight", "Exchanges that are open now.", ("route",))
    WAITERS = ("corral_queue_waiters", "Calls that wait for a slot now.", ("model", "priority"))
    DECISIONS = (
        "corral_routing_decisions_total",
        "Calls for which a replica was chosen among several, by what decided.",
        ("model", "reason"),
    )
    SLOTS = ("corral_slots", "Slots of a replica.", ("model", "replica"))
    SLOTS_BUSY = ("corral_slots_busy", "Slots that calls hold now.", ("model", "replica"))
    SLOTS_LINGERING = (
        "corral_slots_lingering",
        "Slots that calls have given up and llama-server has not freed yet.",
        ("model", "replica"),
    )
    REPLICA_STATE = (
        "corral_replica_state",
        "1 for the state that the replica is in, 0 for the others.",
        ("model", "replica", "state"),
    )
    BREAKER = (
        "corral_replica_breaker_open",
        "1 while the replica is left alone because its calls failed, else 0.",
        ("model", "replica"),
    )
    MODEL_MEMORY = (
        "corral_model_memory_bytes",
        "Memory that the llama-servers of a started model take now, or will take while they load.",
        ("model",),
    )
    MEMORY_BUDGET = ("corral_memory_budget_bytes", "Memory that all started models may take together.", ())
    MODEL_LOADS = ("corral_model_loads_total", "How often a model was loaded.", ("model",))
    MODEL_UNLOADS = ("corral_model_unloads_total", "How often a model was unloaded.", ("model", "reason"))
    VALKEY = ("corral_valkey_connected", "1 while limits can be counted in Valkey, else 0.", ())
    SETTLEMENTS_LOST = (
        "corral_limit_settlements_lost_total",
        "What requests have used that could not be told to Valkey.",
        (),
    )
    TASKS = ("corral_event_loop_tasks", "Tasks of the event loop now, the scrape's own included.", ())
    LOG_LINES_LOST = ("corral_log_lines_lost_total", "Log lines that could not be written.", ())
    USAGE_LAG = ("corral_usage_lag_bytes", "Bytes of the journal that the store has not taken yet.", ())
    USAGE_WAITING = (
        "corral_usage_lines_waiting",
        "Lines that wait in memory because the journal cannot be written.",
        (),
    )
    USAGE_LOST = ("corral_usage_lines_lost_total", "Lines that were given up as the journal could not be written.", ())
    USAGE_ROWS = ("corral_usage_exchanges_stored_total", "Exchanges that this process has put into the store.", ())
    BUILD = ("corral_build_info", "Always 1; the versions are in the labels.", ("version", "python"))
    START_TIME = ("process_start_time_seconds", "When the process started, in Unix time.", ())
    CPU = ("process_cpu_seconds_total", "CPU time that the process has used.", ())
    MEMORY = ("process_resident_memory_bytes", "Memory that the process holds now (Linux only).", ())
    PEAK_MEMORY = ("process_peak_resident_memory_bytes", "The most memory that the process has held.", ())
    OPEN_FDS = ("process_open_fds", "File descriptors that are open now.", ())
    MAX_FDS = ("process_max_fds", "File descriptors that the process may open.", ())

    def __init__(self, metric: str, meaning: str, labels: tuple[str, ...]) -> None:
        self.metric = metric
        self.meaning = meaning
        self.labels = labels


@dataclass(frozen=True, slots=True)
class Reading:
    """One value, with the values of its instrument's labels in their order."""

    instrument: Instrument
    value: float
    labels: tuple[str, ...] = ()


Source = Callable[[], Iterable[Reading]]


def loaded_models(models: Iterable[LocalModel], budget: int | None) -> Iterator[Reading]:
    """What the started models take, and how often they have come and gone; looking at them loads none."""
    if budget is not None:
        yield Reading(Instrument.MEMORY_BUDGET, budget)
    for model in models:
        yield Reading(Instrument.MODEL_MEMORY, model.taken_bytes(), (model.name,))
        yield Reading(Instrument.MODEL_LOADS, model.loads, (model.name,))
        for reason, count in model.departures.items():
            yield Reading(Instrument.MODEL_UNLOADS, count, (model.name, reason.value))


def replica_state(model: str, replica: str, state: State) -> Iterator[Reading]:
    """One reading for each state there is, so that a state that was left goes to 0 instead of vanishing."""
    for each in State:
        yield Reading(Instrument.REPLICA_STATE, float(each is state), (model, replica, each.value))
