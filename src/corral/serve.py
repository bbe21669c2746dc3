"""Runs Corral: the listener, the signals, and the order of starting and stopping."""

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import ceil

import uvicorn
import uvloop
from rich.console import Console

from corral.assembly import Assembly
from corral.banner import announce
from corral.config import Config, Files
from corral.core.errors import ConfigError
from corral.observe import logs
from corral.web.fastlane import fast_lane

log = logging.getLogger("corral")

# After the grace: what was cancelled gets this long to tell its client.
LAST_WORDS_S = 2.0
BACKLOG = 2048
# What the kernel keeps for a client that does not read; Linux keeps twice that. Left alone it grows to
# 4 MiB, a stream of an hour. This much keeps a line of 100 ms busy with a megabyte a second.
SEND_BUFFER_BYTES = 128 * 1024
# New objects that outlive their makers, until the collector looks at these; then every so many such looks at the older.
COLLECT_AFTER = (10_000, 20, 20)
# sys/syslimits.h
MACOS_OPEN_MAX = 10240


class Server(uvicorn.Server):
    """uvicorn with our own signal handlers: uvicorn's would end the process before its children are stopped."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class Terminal(Console):
    """Standard error, for people, who may leave: ``announce`` is told by an OSError, as of any other fault."""

    def on_broken_pipe(self) -> None:
        """Pass the error on. Rich would close standard output, where the log goes, and end the process."""
        raise

    def silence(self) -> None:
        """Print nothing from now on. The null device takes what is buffered, else the interpreter's exit fails."""
        self.quiet = True
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.file.fileno())
        os.close(null)


def run(config: Config, source: Callable[[], Config], files: Files) -> int:
    """Serve until a signal comes or nothing can be served; the exit code. Raises ConfigError when it cannot listen.

    ``source`` reads the settings anew, ``files`` are those it has read.
    """
    logs.configure(config.logs.level)
    _raise_descriptor_limit()
    listener = _listen(config.server.host, config.server.port)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(config, source, files, listener))
    finally:
        listener.close()


async def _serve(config: Config, source: Callable[[], Config], files: Files, listener: socket.socket) -> int:
    assembly = Assembly(config, source, files)
    server = Server(_uvicorn_config(assembly))
    stopping = Stopping(assembly, server)
    async with assembly.running(), asyncio.TaskGroup() as tasks:
        stopping.on_signals(tasks)
        announcing = tasks.create_task(_announce(assembly, listener.getsockname()[1], Terminal(stderr=True)))
        announcing.add_done_callback(stopping.unless_served)
        _settle_memory()
        await server.serve(sockets=[listener])
        announcing.cancel()
        await _last_words(server)
        stopping.done()
    return stopping.exit_code


def _settle_memory() -> None:
    """Tell Python's garbage collector that what is here by now stays, and to look less often.

    What a request leaves is freed by counting references; looking through all
    of Corral for cycles, many times a second, took a twelfth of its time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


async def _announce(assembly: Assembly, port: int, terminal: Terminal) -> bool:
    """As ``announce``; that nobody can read it is no reason to stop serving."""
    try:
        return await announce(assembly, port, terminal)
    except OSError:
        terminal.silence()
        return await announce(assembly, port, terminal)


async def _last_words(server: uvicorn.Server) -> None:
    """Let the exchanges that are cut off say so. After the grace uvicorn has cancelled them, when forced it has not."""
    tasks = set(server.server_state.tasks)
    if server.force_exit:
        for task in tasks:
            task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=LAST_WORDS_S)


class Stopping:
    """The way from a signal to the end. One writer: the signal handlers."""

    def __init__(self, assembly: Assembly, server: uvicorn.Server) -> None:
        self.exit_code = 0
        self._assembly = assembly
        self._server = server
        self._task: asyncio.Task[None] | None = None

    def on_signals(self, tasks: asyncio.TaskGroup) -> None:
        """Stop gently at the first signal, at once at the second; HUP reads the settings anew."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._reload, tasks)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, tasks, number)

    def unless_served(self, announcing: asyncio.Task[bool]) -> None:
        """End with exit code 1 when it has turned out that no model can be started."""
        if not announcing.cancelled() and announcing.exception() is None and not announcing.result():
            self.exit_code = 1
            self._server.should_exit = True

    def done(self) -> None:
        """The server has stopped: signals end the process again."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(number)
        if self._task is not None:
            self._task.cancel()

    def _reload(self, tasks: asyncio.TaskGroup) -> None:
        tasks.create_task(self._assembly.reload_and_tell(), name="corral-reload")

    def _stop(self, tasks: asyncio.TaskGroup, number: int) -> None:
        if self._task is not None:
            self._server.force_exit = self._server.should_exit = True
            return
        log.info("stopping", extra={"fields": {"signal": signal.Signals(number).name}})
        self._task = tasks.create_task(self._close_listener_later(), name="corral-stop")

    async def _close_listener_later(self) -> None:
        """Tell load balancers first, and give them time to look."""
        self._assembly.readiness.stopping = True
        await asyncio.sleep(self._assembly.config.server.unready_s)
        self._server.should_exit = True


def _uvicorn_config(assembly: Assembly) -> uvicorn.Config:
    server = assembly.config.server
    return uvicorn.Config(
        assembly.app,
        http=fast_lane(assembly.exchange, server, assembly.readiness, server.connections or _most_connections()),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=ceil(server.keep_alive_s),
        timeout_graceful_shutdown=ceil(server.grace_s),
    )


def _raise_descriptor_limit() -> None:
    """Let this process open as many files as the system lets it: each client and each upstream takes one.

    Shells and systemd start programs with 1024 for the sake of select(), which
    nothing here calls; llama-servers inherit the limit and stay far below it.
    """
    now, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS says "unlimited", but takes no more than its OPEN_MAX.
    for soft in (hard, max(now, MACOS_OPEN_MAX)):
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            return


def _most_connections() -> int:
    """As many as leave enough files for the llama-servers."""
    now, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return now // 2


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises ConfigError that says what to do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Those that are accepted inherit it.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        problem = f"server.port: cannot listen on {host}:{port} ({error.strerror}); choose another with --port"
        raise ConfigError([problem]) from error
    listener.set_inheritable(False)
    return listener
