"""A real llama.cpp with a small model: the tokens a second through Corral, beside those of llama-server itself."""

import json
import math
import random
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from compare.peers import BY_NAME, Place
from compare.processes import KEY, MODEL, NotStarted, Running, free_port, running
from corral.upstream.argv import engine_command, llama_argv, llama_environment
from corral.upstream.spec import EngineSpec

SLOTS = 4
CLIENTS = 8
TOKENS = 64
REQUESTS = 16
PAIRS = 6
RESAMPLES = 10_000


def measure_model(model: Path, load: Path, directory: Path, cores: Sequence[int], *, quick: bool) -> dict[str, Any]:
    """Paired runs, direct and through Corral in turns; or why there are none."""
    if not model.is_file():
        return {"absent": f"{model.name} is not there: run make bench"}
    places = directory / "engine", directory / "corral-engine"
    for place in places:
        place.mkdir()
    # llama.cpp's threads wait for each other: as many as cores, and it stands still whenever another program runs.
    threads = max(1, len(cores) - 1)
    spec = EngineSpec(name=MODEL, file=model, ctx=2048 * SLOTS, parallel=SLOTS, threads=threads)
    port = free_port()
    # The embedded engine is a module of Corral's: it runs in Corral's own Python.
    native = engine_command(None)
    argv = [*native, *llama_argv(spec, port, native)]
    env = llama_environment({}, None)
    try:
        with running(argv, port, cores=cores, directory=places[0], env=env, ready=_healthy) as engine:
            peer, door = BY_NAME["corral"], Place(places[1], free_port(), engine.port)
            with running(peer.command(door), door.port, cores=cores, directory=places[1], env=peer.env(door)) as up:
                return _pairs(load, engine, up, 3 if quick else PAIRS)
    except NotStarted as error:
        return {"absent": str(error)}


def _pairs(load: Path, engine: Running, corral: Running, count: int) -> dict[str, Any]:
    _tokens_per_s(load, engine)
    pairs = []
    for number in range(count):
        # Who is first changes, so that a machine that grows slower does no one a favour.
        order = [engine, corral] if number % 2 == 0 else [corral, engine]
        rates = {each.port: _tokens_per_s(load, each) for each in order}
        pairs.append((rates[engine.port], rates[corral.port]))
    logs = [math.log(ours / theirs) for theirs, ours in pairs]
    chance = random.Random(1)
    means = sorted(fmean(chance.choices(logs, k=len(logs))) for _ in range(RESAMPLES))
    interval = [math.exp(means[int(share * RESAMPLES)]) for share in (0.025, 0.975)]
    told = {"pairs": pairs, "ratio": math.exp(fmean(logs)), "interval": interval}
    return told | {"slots": SLOTS, "clients": CLIENTS, "tokens": TOKENS, "requests": REQUESTS}


def _tokens_per_s(load: Path, server: Running) -> float:
    fields = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Tell me a long story of a horse."}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    options = {"--port": server.port, "--key": KEY, "--body": json.dumps(fields)}
    counts = {"--connections": CLIENTS, "--requests": REQUESTS}
    words = [text for pair in (options | counts).items() for text in map(str, pair)]
    told = json.loads(subprocess.run([load, *words], capture_output=True, text=True, check=True).stdout)
    if told["errors"]:
        raise NotStarted(f"{told['errors']} errors: {told['why']}")
    return float(told["tokens"]) / float(told["seconds"])


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
