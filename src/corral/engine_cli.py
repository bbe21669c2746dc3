"""``corral engine``: llama-servers without a gateway, for the launcher scripts."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from corral.config import launch_plan, load
from corral.core.errors import ConfigError, CorralError
from corral.core.lifecycle import State
from corral.upstream import launch, pidfile
from corral.upstream.launch import News
from corral.upstream.pidfile import Kept
from corral.upstream.spec import EngineSpec

engine_app = typer.Typer(
    help="Start and stop llama-servers without the gateway, as MODEL_PATH or MODEL_PATHS and MODEL_UPSTREAMS say.",
    no_args_is_help=True,
)

FAILED, WRONG_SETTINGS = 1, 2
# As shells say it.
INTERRUPTED = 128 + signal.SIGINT

RunDir = Annotated[Path, typer.Option("--run-dir", help="Where the pid file goes.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="The settings file.")]
DEFAULT_RUN_DIR = Path("run")

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


@engine_app.command()
def run(config: ConfigFile = None) -> None:
    """Run one llama-server for MODEL_PATH where LLAMA_BASE_URL says, in the foreground. Ctrl-C stops it."""
    with _told():
        specs = _specs(config)
        if len(specs) > 1:
            raise ConfigError(["MODEL_PATHS: there are several models; use 'corral engine start', or ENABLED_MODELS"])
        console.print(f"{specs[0].name} at http://{specs[0].host}:{specs[0].port}; Ctrl-C stops it")
        launch.run(specs[0])


@engine_app.command()
def start(run_dir: RunDir = DEFAULT_RUN_DIR, config: ConfigFile = None) -> None:
    """Start a llama-server for each enabled model in the background, and wait until all are ready."""
    with _told():
        if keeper := pidfile.find(run_dir):
            console.print("running already; 'corral engine stop' stops:")
            console.print(_table(keeper.servers, {}))
            return
        specs = _specs(config)
        command = [sys.executable, "-P", "-m", "corral.engine_cli", "keep", "--run-dir", str(run_dir)]
        keeper_process = launch.start([*command, *(["--config", str(config)] if config else [])], run_dir)
        try:
            ready = _until_ready(keeper_process, len(specs))
        except KeyboardInterrupt:
            _stop_early(keeper_process)
            raise typer.Exit(INTERRUPTED) from None
        if ready is None:
            _stop_early(keeper_process)
            raise typer.Exit(FAILED)
        found = pidfile.find(run_dir)
        console.print(_table(found.servers if found else (), ready))


@engine_app.command()
def stop(run_dir: RunDir = DEFAULT_RUN_DIR) -> None:
    """Stop what ``start`` has started."""
    with _told():
        with console.status("stopping"):
            keeper = launch.stop(run_dir)
        names = ", ".join(server.name for server in keeper.servers) if keeper else ""
        console.print(f"stopped: {names}" if keeper else "nothing is running")


@engine_app.command(hidden=True)
def keep(run_dir: RunDir = DEFAULT_RUN_DIR, config: ConfigFile = None) -> None:
    """What ``start`` leaves in the background."""
    with _told():
        asyncio.run(launch.keep(_specs(config), run_dir))


def _specs(config: Path | None) -> Sequence[EngineSpec]:
    settings = load(file=config)
    return [EngineSpec.launched(each, settings.llama) for each in launch_plan(settings)]


def _until_ready(keeper: subprocess.Popen[bytes], count: int) -> dict[str, News] | None:
    """The llama-servers' news once all are ready; None, having said why, when one cannot be started."""
    ready: dict[str, News] = {}
    with console.status(f"starting {count} llama-server(s)") as status:
        for told in launch.news(keeper):
            if told.state is State.READY:
                ready[told.name] = told
                console.print(f"{told.name}: {told.why}")
                status.update(f"{len(ready)} of {count} ready")
            elif told.state is State.FAILED:
                errors.print(f"{told.name} cannot be started: {told.why}", markup=False)
                return None
            elif told.state is State.BACKOFF:
                console.print(f"{told.name}: {told.why.splitlines()[0]} trying again", markup=False)
            if len(ready) == count:
                return ready
    errors.print("the llama-servers ended while they were starting; keeper.log in the run directory may say why")
    return None


def _stop_early(keeper: subprocess.Popen[bytes]) -> None:
    keeper.send_signal(signal.SIGTERM)
    with console.status("stopping"):
        keeper.wait()


def _table(servers: Sequence[Kept], ready: dict[str, News]) -> Table:
    """Where each is; its pid too when it has just become ready, for later it may be another."""
    table = Table("model", "url", "log", *(["pid"] if ready else []))
    for server in servers:
        told = ready.get(server.name)
        table.add_row(server.name, server.url, server.log, *([str(told.pid)] if told else []))
    return table


@contextmanager
def _told() -> Iterator[None]:
    """What goes wrong is said in words: exit status 2 for settings, 1 for the rest."""
    try:
        yield
    except ConfigError as error:
        for problem in error.problems:
            errors.print(problem, markup=False)
        raise typer.Exit(WRONG_SETTINGS) from None
    except CorralError as error:
        errors.print(error.message, markup=False)
        raise typer.Exit(FAILED) from None
    except OSError as error:
        errors.print(f"{error.filename or ''} {error.strerror}".strip(), markup=False)
        raise typer.Exit(FAILED) from None


if __name__ == "__main__":
    engine_app()
