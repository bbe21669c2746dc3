"""The process that writes the store: told by Corral what to take, at a low priority.

    python -m corral.store.taker

Within Corral it would cost each request twice as much: the database's thread and the requests would take turns in one
interpreter (measured). It is told everything on standard input, a JSON object a line, the store's address first,
and answers on standard output. It ends with its input, so that it does not outlive its Corral.
"""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from pydantic import SecretStr

from corral.config import StoreSettings, UsageSettings
from corral.core.price import Price
from corral.store.database import open_engine
from corral.store.take import Taken, Taker, Task

# Below everything that answers requests.
NICENESS = 10
# How long it may take to end: a transaction.
END_S = 2.0
# An answer is a few hundred bytes.
LIMIT_BYTES = 2**20


class TakerFailed(Exception):
    """What the process said that did not work."""


class Child:
    """A taker in a process of its own. One writer: whoever asks it, one at a time; it is started when it is needed."""

    def __init__(self, store: StoreSettings) -> None:
        self._store = store
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, if it has been started."""
        return None if self._process is None else self._process.pid

    async def take(self, task: Task) -> Taken:
        """As ``Taker.take``; raises TakerFailed or OSError."""
        return Taken(**await self._ask({"take": asdict(task)}))

    async def forget(self, settings: UsageSettings, now: float) -> None:
        """As ``Taker.forget``."""
        await self._ask({"forget": [settings.keep_days, settings.keep_sums_days, now]})

    async def close(self) -> None:
        """Let it end, or end it."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(END_S):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        process = self._process
        if process is None or process.returncode is not None:
            process = self._process = await self._start()
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018  (pipes of ours)
        try:
            process.stdin.write(_line(question))
            await process.stdin.drain()
            answer = await process.stdout.readline()
        except BaseException:
            # What it would answer is an answer to nothing that is asked later.
            self._process = None
            with suppress(ProcessLookupError):
                process.kill()
            raise
        if not answer:
            await self.close()
            raise TakerFailed("the process that writes the store has ended")
        told: dict[str, Any] = orjson.loads(answer)
        if "error" in told:
            raise TakerFailed(told["error"])
        return told

    async def _start(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            # Nothing of the directory that Corral was started in is run.
            *(sys.executable, "-P", "-m", "corral.store.taker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=LIMIT_BYTES,
            # Signals of the terminal are for Corral.
            start_new_session=True,
        )
        assert process.stdin is not None  # noqa: S101  (a pipe of ours)
        url = None if self._store.url is None else self._store.url.get_secret_value()
        process.stdin.write(_line({"file": str(self._store.file), "url": url}))
        return process


def main() -> None:
    """Do what is asked until nobody asks any more."""
    # Who stops Corral stops it too, but it has still to write what Corral has to tell.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(NICENESS)
    told = orjson.loads(sys.stdin.buffer.readline() or b"null")
    if told is not None:
        url = None if told["url"] is None else SecretStr(told["url"])
        asyncio.run(_serve(StoreSettings(file=Path(told["file"]), url=url)))


async def _serve(store: StoreSettings) -> None:
    engine = open_engine(store)
    taker = Taker(engine)
    try:
        # Nothing else is to be done meanwhile.
        while question := sys.stdin.buffer.readline():
            try:
                answer = await _answer(taker, orjson.loads(question))
            except Exception as error:  # noqa: BLE001  (the border: Corral is told, and tells the operator)
                answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            sys.stdout.buffer.write(_line(answer))
            sys.stdout.buffer.flush()
    finally:
        await engine.dispose()


async def _answer(taker: Taker, question: dict[str, Any]) -> dict[str, Any]:
    if "forget" in question:
        keep_days, keep_sums_days, now = question["forget"]
        await taker.forget(UsageSettings(keep_days=keep_days, keep_sums_days=keep_sums_days), now)
        return {}
    asked = question["take"]
    prices = {model: Price(**price) for model, price in asked.pop("prices").items()}
    return asdict(await taker.take(Task(**asked, prices=prices)))


def _line(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


if __name__ == "__main__":
    main()
