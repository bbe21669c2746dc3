"""The real llama.cpp server, bare: to compare with what Corral and the fake make of it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from support.models import smollm2
from support.ports import free_port
from support.raw_client import Reply, ask

# Loading takes about a second; a busy machine takes longer.
PATIENCE_S = 60.0
# It lives as long as its standard input does.
PROGRAM = """
import json, os, sys, threading
import xllamacpp as x
options = json.loads(sys.argv[1])
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
p = x.CommonParams()
p.model.path, p.model_alias = options["model"], {"real"}
p.hostnames, p.port = ["127.0.0.1"], options["port"]
p.n_parallel, p.n_ctx, p.cpuparams.n_threads = 2, 1024, 2
p.api_keys = options["api_keys"]
p.endpoint_metrics = p.embedding = options["everything"]
if options["everything"]:
    p.pooling_type = x.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
server = x.Server(p)
threading.Event().wait()
"""


class BareEngine:
    """A running llama.cpp with two slots of 512 tokens; ``loading`` is what it answered while it was not ready."""

    def __init__(self, *, everything: bool = True, api_keys: tuple[str, ...] = ()) -> None:
        self.port = free_port()
        self.loading: list[Reply] = []
        options = {"model": str(model()), "port": self.port, "everything": everything, "api_keys": api_keys}
        command = [sys.executable, "-c", PROGRAM, json.dumps(options)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._until_ready()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _until_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self._ready():
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.stop()
                raise AssertionError("llama.cpp did not start")

    def _ready(self) -> bool:
        try:
            reply = ask(self.port, "/health")
        except ConnectionError:
            return False
        if reply.raw and reply.status != 200:
            self.loading.append(reply)
        return bool(reply.raw) and reply.status == 200


def model() -> Path:
    named = os.environ.get("CORRAL_TEST_MODEL")
    return Path(named) if named else smollm2()
