"""A llama-server that misbehaves on request: a real process on a real socket, with a fault for every row of the matrix.

    python tests/fake_llama.py --port 0 --slots 2 --load-s 0.5 --fault rst,after=3,times=1

Prints one line of JSON, ``{"port": …, "control": …}``, and serves until TERM, INT, or, with ``--exit-with-stdin``,
the end of its standard input. It answers as llama-server does; ``--fault list`` prints the faults. The routes under
``/fake/`` tell what it got and change what it does; they are on both ports, and faults never touch those of the second:

    GET  /fake/requests   every request so far, with how it ended       GET    /fake/state     slots, queue, faults
    POST /fake/faults     add faults: {"kind": …, "after": …} or a list DELETE /fake/faults    end all faults
    POST /fake/settings   change settings: {"token_s": 0.1}             POST   /fake/reset     as freshly started

A prompt may carry a script: its last message starts with ``script:`` and JSON follows, with ``text``, ``tokens`` or
``count``, and ``finish``, ``reasoning``, ``tool_calls``. It takes llama-server's own flags too, so that it can stand in
for one; more flags may stand in the environment variable ``FAKE_LLAMA_ARGS``.
"""

import argparse
import asyncio
import json
import os
import shlex
import signal
import sys
from dataclasses import fields

from fake.control import control
from fake.door import Door
from fake.faults import KINDS, Fault, parse
from fake.server import Server
from fake.settings import Settings

# Of llama-server's flags those that change nothing here.
IGNORED = (
    "-m",
    "--model",
    "-t",
    "--threads",
    "-tb",
    "--threads-batch",
    "--pooling",
    "--cache-ram",
    "--chat-template-file",
)
IGNORED_SWITCHES = ("--no-ui", "--no-webui", "--jinja", "--no-kv-unified", "--kv-unified", "--props")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--control-port", type=int, default=0)
    parser.add_argument("--fault", action="append", default=[], help="kind,key=value,…; may stand several times")
    parser.add_argument("--exit-with-stdin", action="store_true")
    parser.add_argument("--ignore-term", action="store_true", help="only KILL ends it")
    parser.add_argument("--fail-load", action="store_true", help="exit with 1 when loading is over")
    # llama-server's own --slots is a switch, and on by default.
    parser.add_argument("-np", "--parallel", "--slots", dest="slots", type=int, nargs="?", default=Settings.slots)
    parser.add_argument("-c", "--ctx-size", type=int, help="tokens of all slots together")
    parser.add_argument("--n-ctx", type=int, default=Settings.n_ctx, help="tokens of one slot")
    parser.add_argument("-b", "--batch-size", dest="n_batch", type=int, default=Settings.n_batch)
    parser.add_argument("-ub", "--ubatch-size", dest="n_ubatch", type=int, default=Settings.n_ubatch)
    parser.add_argument("-a", "--alias", default=Settings.alias)
    parser.add_argument("--api-key", default=Settings.api_key)
    for switch in ("embeddings", "metrics", "tools"):
        parser.add_argument(f"--{switch}", action="store_true")
    for number in ("dims", "tokens", "keep-alive-requests"):
        parser.add_argument(f"--{number}", type=int, default=getattr(Settings, number.replace("-", "_")))
    for seconds in ("load-s", "prefill-s", "token-s", "keep-alive-s"):
        parser.add_argument(f"--{seconds}", type=float, default=getattr(Settings, seconds.replace("-", "_")))
    parser.add_argument(*IGNORED, dest="ignored", action="append", help="taken and ignored")
    parser.add_argument(*IGNORED_SWITCHES, dest="ignored", action="store_true", help="taken and ignored")
    return parser


def settings_of(options: argparse.Namespace) -> Settings:
    settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
    settings.slots = settings.slots or Settings.slots
    if options.ctx_size:
        settings.n_ctx = options.ctx_size // settings.slots
    return settings


async def serve(options: argparse.Namespace, faults: list[Fault]) -> int:
    """Serve until told to stop; the exit code."""
    stop = stop_event(options)
    server = Server(settings_of(options), control)
    server.door = Door(options.host, options.port, server.connect)
    side_door = Door(options.host, options.control_port, server.connect)
    await server.add_faults(faults)
    await side_door.open()
    sys.stdout.write(json.dumps({"port": server.door.port, "control": side_door.port}) + "\n")
    sys.stdout.flush()
    if options.fail_load:
        await asyncio.sleep(options.load_s)
        sys.stderr.write("error: failed to load model\n")
        return 1
    await stop.wait()
    return 0


def stop_event(options: argparse.Namespace) -> asyncio.Event:
    """Set by what ends the process."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, (lambda: None) if options.ignore_term else stop.set)
    if options.exit_with_stdin:
        loop.add_reader(sys.stdin, lambda: None if os.read(0, 4096) else stop.set())
    return stop


def main() -> None:
    parser = arguments()
    options = parser.parse_args([*shlex.split(os.environ.get("FAKE_LLAMA_ARGS", "")), *sys.argv[1:]])
    if "list" in options.fault:
        sys.stdout.writelines(f"{kind}: {text}\n" for kind, text in KINDS.items())
        return
    try:
        faults = [parse(text) for text in options.fault]
    except ValueError as problem:
        parser.error(str(problem))
    sys.exit(asyncio.run(serve(options, faults)))


if __name__ == "__main__":
    main()
