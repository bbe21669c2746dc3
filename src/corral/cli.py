"""The command line: serve, check, models, usage and so on; engine, for the launcher scripts."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from corral import __version__
from corral.config import Config, Files, ModelSettings, launch_plan, load, settings_schema, unknown_clients
from corral.core.call import Endpoint
from corral.core.errors import ConfigError, CorralError
from corral.engine_cli import engine_app
from corral.keys_cli import keys_app
from corral.operate import models_app, reload, status
from corral.usage_cli import usage

app = typer.Typer(
    name="corral",
    help="The front door of llama.cpp: one OpenAI-compatible API in front of one or many llama-servers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(engine_app, name="engine")
app.add_typer(models_app, name="models")
app.add_typer(keys_app, name="keys")
app.command()(status)
app.command()(reload)
app.command()(usage)

# What is wrong with the settings or the arguments.
USAGE_ERROR = 2

# People read stderr; stdout is for what programs read, such as the log.
console = Console(stderr=True)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="The settings; ./corral.yaml when there is one.")
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model", "-m", help="A GGUF file to serve, as FILE or NAME=FILE; may be given several times.", metavar="FILE"
    ),
]


@app.command()
def serve(
    config: ConfigFile = None,
    model: Models = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on. [default: 8000]")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error. [default: info]")] = None,
) -> None:
    """Serve models: files with --model, which needs no settings at all, or what the settings name."""
    from corral.pull.named import fetched
    from corral.serve import run

    files = Files()

    def source() -> Config:
        return fetched(load(file=config, flags=_flags(model, host, port, log_level), files=files), console)

    raise typer.Exit(run(source(), source, files))


@app.command()
def check(
    config: ConfigFile = None,
    model: Models = None,
    host: Annotated[str | None, typer.Option(help="As for serve.")] = None,
    port: Annotated[int | None, typer.Option(help="As for serve.")] = None,
) -> None:
    """Check the settings without starting anything, and show what would be served."""
    settings = load(file=config, flags=_flags(model, host, port, None))
    launched = launch_plan(settings) if settings.llama.model_paths or settings.llama.model_path else ()
    out = Console()
    out.print(_table(settings))
    for launch in launched:
        out.print(f"the launcher scripts start {launch.path} as '{launch.name}' at {launch.url}", highlight=False)
    for unknown in unknown_clients(settings):
        out.print(f"warning: {unknown}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    out.print("the settings are sound", highlight=False)


@app.command()
def schema() -> None:
    """Print the JSON schema of corral.yaml, by which editors check and complete it."""
    print(json.dumps(settings_schema(), indent=2))  # noqa: T201  (for programs)


@app.command()
def pull(
    what: Annotated[
        str, typer.Argument(help="smollm2, or a GGUF on Hugging Face: ORG/REPO[:QUANT] or ORG/REPO/FILE.gguf.")
    ],
    into: Annotated[Path, typer.Option(help="The directory it goes to.")] = Path("models"),
) -> None:
    """Fetch a model file; an interrupted download goes on where it stopped."""
    from corral.pull import pull as fetch

    print(fetch(what, into, console))  # noqa: T201  (the path, for programs)


@app.command()
def bench(
    url: Annotated[str, typer.Option(help="Where Corral, or any OpenAI-compatible server, listens.")] = (
        "http://127.0.0.1:8000"
    ),
    requests: Annotated[int, typer.Option(help="How many requests to send.")] = 40,
    concurrency: Annotated[int, typer.Option(help="How many at once.")] = 8,
    model: Annotated[str, typer.Option(help="The model to ask for.")] = "llama",
    api_key: Annotated[
        str, typer.Option(envvar="OPENAI_API_KEY", help="The key to send.", show_default=False)
    ] = "local",
    endpoint: Annotated[Endpoint, typer.Option(help="What to ask for.")] = Endpoint.CHAT,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Stream the replies; TTFT needs it.")] = True,
    prompt: Annotated[str, typer.Option(help="The prompt of each request.")] = "Write one short sentence about horses.",
    max_tokens: Annotated[int, typer.Option(help="The longest reply, in tokens.")] = 64,
    timeout: Annotated[float, typer.Option(help="How long one request may take, in seconds.")] = 300.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Send requests to a live server and measure: requests/s, tokens/s, TTFT, inter-token and total latency, errors."""
    from corral.load import Plan, run_load

    plan = Plan(url, requests, concurrency, model, api_key, endpoint, stream, prompt, max_tokens, timeout)
    raise typer.Exit(run_load(plan, Console(), as_json=as_json))


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)  # noqa: T201


def main() -> None:
    """Run the command line; problems are told in a line or two and by the exit code, never by a traceback."""
    try:
        app()
    except ConfigError as error:
        _tell("\n".join(error.problems))
        sys.exit(USAGE_ERROR)
    except CorralError as error:
        _tell(error.message)
        sys.exit(1)


def _tell(message: str) -> None:
    console.print(message, style="red", highlight=False, markup=False, soft_wrap=True)


def _served(model: ModelSettings, settings: Config) -> tuple[str, str, str]:
    """What serves a model, when its llama-servers are loaded, and what they will take, if Corral starts them."""
    remotes = ", ".join(each.url for each in model.remotes)
    if model.file is None:
        return ", ".join(filter(None, (model.hf, remotes))), "", ""
    from corral.upstream.maker import footprint_of
    from corral.upstream.spec import EngineSpec
    from corral.upstream.told import told_bytes

    on_demand = model.starts_on_demand(settings.fleet.on_demand)
    loaded = "on demand" if on_demand and not model.preload else "at the start"
    each = footprint_of(EngineSpec.of(model, settings.llama), model)
    return (
        ", ".join(filter(None, (str(model.file), remotes))),
        loaded,
        f"{'' if each.told else 'about '}{told_bytes(each.bytes * model.replicas)}",
    )


def _flags(model: list[str] | None, host: str | None, port: int | None, log_level: str | None) -> dict[str, object]:
    return {
        "models": tuple(model or ()),
        "server.host": host,
        "server.port": port,
        "logs.level": log_level,
    }


def _table(settings: Config) -> Table:
    table = Table(title=f"Corral {__version__} on {settings.server.host}:{settings.server.port}")
    table.add_column("model")
    table.add_column("served by", overflow="fold")
    table.add_column("loaded")
    table.add_column("memory", justify="right")
    for model in settings.models:
        table.add_row(model.name, *_served(model, settings))
    clients = sorted({key.client for key in settings.auth.keys})
    clients += [f"those of the store ({settings.store.where})"] if settings.store.used else []
    budget = settings.fleet.memory_bytes
    limit = f"\nmemory: {budget / 2**30:.1f} GiB for the models that Corral starts" if budget is not None else ""
    table.caption = f"clients: {', '.join(clients) or 'anyone, no key is needed'}{limit}"
    return table
