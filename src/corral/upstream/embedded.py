"""llama-server out of a wheel: ``python -m corral.upstream.embedded`` takes llama-server's arguments and serves.

The binding ``xllamacpp`` carries the same server; it has no reader of
arguments and one server per process.
"""

import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from corral.upstream.embedded_args import BadArgument, parse
from corral.upstream.embedded_options import Enum, Lora, Settings

KEY_NAME = "LLAMA_API_KEY"

OK, CANNOT_SERVE, USAGE = 0, 1, 2


def main(argv: Sequence[str]) -> int:
    """Serve until TERM or INT. 2 for arguments that will never do, 1 for a server that does not come up."""
    try:
        import xllamacpp
    except ImportError as error:
        return _say(f"the embedded engine cannot be loaded ({error}); pip install 'corral[engine]'", USAGE)
    try:
        params = _params(xllamacpp, parse(argv))
    except (BadArgument, OverflowError) as error:
        return _say(str(error), USAGE)
    # While a model loads nothing needs to be tidied up: let the signal end the process at once.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        # The reason has gone to stderr already.
        return _say(str(error), CANNOT_SERVE)
    return _serve(server)


def _params(binding: Any, settings: Settings) -> Any:  # noqa: ANN401  (the binding has no types)
    params = binding.CommonParams()
    # Nobody looks at a page of a server behind a gateway; --ui wins.
    params.ui = False
    key = os.environ.get(KEY_NAME)
    if key and "api_keys" not in settings:
        params.api_keys = [key]
    for path, value in settings.items():
        *parents, name = path.split(".")
        target = params
        for parent in parents:
            target = getattr(target, parent)
        _set(target, name, _native(binding, value))
    return params


def _set(target: object, name: str, value: object) -> None:
    # A set takes only sets.
    setattr(target, name, set(value) if isinstance(value, list) and isinstance(getattr(target, name), set) else value)


def _native(binding: Any, value: object) -> Any:  # noqa: ANN401  (the binding has no types)
    match value:
        case Enum(type, member):
            return getattr(getattr(binding, type), member)
        case Lora(path, scale):
            return binding.CommonAdapterLoraInfo(path, scale)
        case list() | tuple():
            return [_native(binding, each) for each in value]
    return value


def _serve(_server: object) -> NoReturn:
    """Let the server's threads work until TERM or INT, then end the process."""
    # They may be the ones that get the signal: only the wake-up socket tells for sure.
    heard, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    heard.recv(1)
    # To take the server down in order would wait for its streams, up to half a
    # minute in which they get nothing more, and there is nothing to save.
    os._exit(OK)


def _say(message: str, status: int) -> int:
    sys.stderr.write(f"{message}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
