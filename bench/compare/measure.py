"""Runs the load against one proxy and notes what it cost."""

import json
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare.machine import Cores, cpu_s, rss_bytes, tree
from compare.processes import KEY, MODEL
from compare.rows import PROMPT, Row

Sample = dict[str, Any]

MANY_STREAMS = 2000
# For peers that cannot keep up with the tokens of so many.
FEWER_STREAMS = 200
MANY_RAMP_S = 3
MANY_PACE_MS = 500
MANY_TOKENS = 12
LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Bench:
    """The load generator, the stub's process, and the cores."""

    load: Path
    stub_pid: int
    cores: Cores

    def sample(self, row: Row, port: int, root: int | None, seconds: float, rate: float = 0) -> Sample:
        """One measurement of a proxy, or of the stub itself when there is none."""
        return self.sampled(row.arguments(port, seconds, rate), root) | {"offered": rate}

    def sampled(self, arguments: Sequence[str], root: int | None) -> Sample:
        """The same of a load that is given by its arguments."""
        stub_before, before = cpu_s(self.stub_pid), cpu_s(root) if root else 0.0
        alone_before = cpu_s(root, alone=True) if root else 0.0
        begun = time.monotonic()
        told = self._run(arguments)
        lasted = time.monotonic() - begun
        spent = cpu_s(root) - before if root else 0.0
        if told["requests"]:
            told["cpu_us"] = spent / told["requests"] * 1e6
            told["alone_us"] = (cpu_s(root, alone=True) - alone_before) / told["requests"] * 1e6 if root else 0.0
            told["per_cpu_s"] = told["requests"] / spent if spent else 0.0
        if told["tokens"]:
            told["cpu_us_token"] = spent / told["tokens"] * 1e6
        told["proxy_busy"] = spent / lasted
        # Near 1 the load's core is full: then the figure is the harness's, and the proxy might do more.
        told["load_busy"] = (told["cpu_s"] + cpu_s(self.stub_pid) - stub_before) / lasted
        return told

    def memory_of_streams(self, port: int, root: int, streams: int) -> Sample:
        """The memory of a proxy with so many open streams over that before them."""
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"pace={MANY_PACE_MS} {PROMPT}"}],
            "max_tokens": MANY_TOKENS,
            "stream": True,
        }
        options: dict[str, object] = {"--port": port, "--key": KEY, "--body": json.dumps(body), "--tokens": MANY_TOKENS}
        options |= {"--connections": streams, "--requests": streams, "--ramp-ms": MANY_RAMP_S * 1000}
        before, seen = rss_bytes(root), [0]
        stop = threading.Event()
        watcher = threading.Thread(target=_watch, args=(root, seen, stop))
        watcher.start()
        try:
            told = self._run([text for pair in options.items() for text in map(str, pair)])
        finally:
            stop.set()
            watcher.join()
        told["before_bytes"], told["most_bytes"] = before, max(seen)
        told["streams"] = streams
        told["stream_bytes"] = (max(seen) - before) / streams
        return told

    def idle(self, root: int, seconds: float) -> Sample:
        """What a proxy has and does when nobody asks."""
        before = cpu_s(root)
        time.sleep(seconds)
        return {"rss_bytes": rss_bytes(root), "busy": (cpu_s(root) - before) / seconds, "processes": len(tree(root))}

    def _run(self, arguments: Sequence[str]) -> Sample:
        command = ["taskset", "--cpu-list", str(self.cores.load), str(self.load), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            out, _ = process.communicate(timeout=180)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        sample: Sample = json.loads(out)
        return sample


def _watch(root: int, seen: list[int], stop: threading.Event) -> None:
    while not stop.wait(LOOK_S):
        seen.append(rss_bytes(root))
