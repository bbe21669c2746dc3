"""What can befall Corral and its llama-servers: kills, stops, faults and reloads, by chance, and how each is mended."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

from corral_process import Corral, children_of
from fakes import Fake

REAL, FAKE, GUEST = "real", "fake", "guest"
# Of all troubles. The real ones are rare: a llama-server that dies often is left dead for longer and longer.
WEIGHTS = {"kill": 3, "kill real": 1, "stop": 2, "stop real": 1, "fault": 8, "reload": 3}
# Shorter and longer than what Corral has patience for.
STOPPED_S, DEAD_S = (0.3, 7.0), (0.2, 3.0)
FAULTS: tuple[dict[str, Any], ...] = (
    {"kind": "stall", "after": 5, "seconds": 1.0},
    {"kind": "stall", "after": 5, "seconds": 20.0},
    {"kind": "silence", "seconds": 2.0},
    {"kind": "silence"},
    {"kind": "head_then_silence"},
    {"kind": "refuse", "seconds": 2.0},
    {"kind": "connect_hang", "seconds": 3.0},
    {"kind": "loading"},
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 503, "retry_after": "1"},
    {"kind": "head_cut"},
    {"kind": "garbage"},
    {"kind": "close"},
    {"kind": "reset"},
    {"kind": "rst", "after": 4},
    {"kind": "fin", "after": 4},
    {"kind": "truncate", "after": 4},
    {"kind": "die", "after": 4},
    {"kind": "malformed", "after": 4},
    {"kind": "error_event", "after": 4},
    {"kind": "huge", "after": 4},
    {"kind": "no_done"},
    {"kind": "no_usage"},
    {"kind": "pings"},
    {"kind": "wrong_type"},
    {"kind": "trickle", "size": 40, "seconds": 0.01},
)
STRUCK = (1, 3)
FAILED_EVERY_S = 2.0


class Troubles:
    """Makes trouble and mends it. One writer: the thread that owns the fakes."""

    def __init__(self, corral: Corral, fakes: list[Fake], settings: dict[str, Any], chance: Random) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._corral = corral
        self._fakes = fakes
        self._settings = settings
        self._chance = chance
        # What mends what was done, and when.
        self._due: list[tuple[float, Callable[[], None]]] = []
        self._dead_since: dict[Fake, float] = {}
        self._looked_at = 0.0

    def strike(self) -> None:
        """Make one trouble."""
        (kind,) = self._chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
        match kind:
            case "kill":
                self._chance.choice(self._fakes).send(signal.SIGKILL)
            case "stop":
                self._stop(self._chance.choice(self._fakes).pid)
            case "kill real":
                _signal(self._own_child(), signal.SIGKILL)
            case "stop real":
                self._stop(self._own_child())
            case "fault":
                self._fault()
            case "reload":
                self._reload()
        self.counts[kind] += 1

    def mend(self) -> None:
        """Mend what is due: let go on what was stopped, start what is dead, load what was given up."""
        now = time.monotonic()
        due, self._due = [each for each in self._due if each[0] <= now], [each for each in self._due if each[0] > now]
        for _, mend in due:
            mend()
        for fake in self._fakes:
            since = self._dead_since.setdefault(fake, now) if fake.pid is None else None
            if since is None:
                self._dead_since.pop(fake, None)
            elif now - since > self._chance.uniform(*DEAD_S):
                fake.start()
        if now - self._looked_at > FAILED_EVERY_S:
            self._looked_at = now
            self._load_failed()

    def end(self) -> None:
        """Mend everything, and make no more trouble."""
        for _, mend in self._due:
            mend()
        self._due.clear()
        for fake in self._fakes:
            if fake.pid is None:
                fake.start()
            fake.clear_faults()

    def _own_child(self) -> int | None:
        """One of the llama-servers that Corral has started."""
        children = sorted(children_of(self._corral.pid))
        return self._chance.choice(children) if children else None

    def _stop(self, pid: int | None) -> None:
        _signal(pid, signal.SIGSTOP)
        due = time.monotonic() + self._chance.uniform(*STOPPED_S)
        self._due.append((due, lambda: _signal(pid, signal.SIGCONT)))

    def _fault(self) -> None:
        fault = self._chance.choice(FAULTS) | {"times": self._chance.randint(*STRUCK)}
        self._chance.choice(self._fakes).fault(fault)

    def _load_failed(self) -> None:
        """As an operator would: what could not be started too often is not tried again by itself."""
        _, told = self._corral.operate("GET", "/admin/models")
        for model in told["models"]:
            if model["phase"] == "failed":
                # It answers when the model is loaded; nobody waits for that here.
                with suppress(TimeoutError):
                    self._corral.operate("POST", f"/admin/models/{model['name']}/load", limit_s=0.2)
                self.counts["load"] += 1

    def _reload(self) -> None:
        broken = self._chance.random() < 0.2
        if broken:
            self._corral.configure({**self._settings, "queue": {"lenght": 1}})
        else:
            self._chance.choice((self._context, self._replicas, self._guest, self._limits, self._balance))()
            self._corral.configure(self._settings)
        if self._chance.random() < 0.25:
            os.kill(self._corral.pid, signal.SIGHUP)
            return
        status, told = self._corral.operate("POST", "/admin/reload")
        if status != (400 if broken else 200):
            self.wrong.append(f"a reload of {'broken' if broken else 'good'} settings answers {status}: {told}")

    # What a reload changes.

    def _context(self) -> None:
        model = self._settings["models"][0]
        model["ctx"] = 3072 if model.get("ctx") != 3072 else 2048

    def _replicas(self) -> None:
        """The last fake serves, or does not."""
        upstreams = self._settings["models"][1]["upstreams"]
        if len(upstreams) == len(self._fakes):
            upstreams.pop()
        else:
            upstreams.append(self._fakes[-1].url)

    def _guest(self) -> None:
        models = self._settings["models"]
        if models[-1]["name"] == GUEST:
            models.pop()
        else:
            models.append({"name": GUEST, "upstreams": [self._fakes[0].url]})

    def _limits(self) -> None:
        limits = {"requests": 0}, {"requests": 40, "window": "2s"}
        self._settings["limits"] = self._chance.choice(limits)

    def _balance(self) -> None:
        self._settings["routing"] = {"balance": self._chance.choice(("prefix", "least_busy", "round_robin", "sticky"))}


def _signal(pid: int | None, number: signal.Signals) -> None:
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
