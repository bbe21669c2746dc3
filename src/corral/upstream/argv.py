"""The command line and environment of a llama-server, and which llama-server that is."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from math import ceil
from pathlib import Path

from corral.config.names import KEY_NAMES
from corral.core.errors import EngineError
from corral.upstream.spec import EngineSpec

NATIVE = "llama-server"
# ``-P``: a directory named corral in the working directory is not ours.
EMBEDDED = (sys.executable, "-P", "-m", "corral.upstream.embedded")

# llama-server looks for a client who has left only between two steps of a prompt,
# and the other slots wait for each. Measured: docs/decisions/0006-a-small-batch.md.
# For the embedded engine, which computes on the processor; a native one may have a GPU,
# which so small a batch would leave idle for the most part.
PROMPT_BATCH = 64
# An embedding input must fit into one batch (server-context.cpp: "input is too
# large to process"), so this is its limit in tokens for whoever asks for embeddings.
# llama-server's own 512 refuses the 1,000-token chunks that retrieval applications
# send; 2048 makes the other slots wait twice as long for each step of a long prompt.
EMBEDDINGS_BATCH = 1024
# llama-server counts its cache of prompts in these.
MIB = 2**20
BATCH_ARGUMENTS = frozenset({"-b", "--batch-size", "-ub", "--ubatch-size"})

# Keys to Corral are none of a llama-server's business.
SECRET_NAMES = frozenset({*KEY_NAMES, "LLAMA_API_KEY"})
OWN_PREFIX = "CORRAL_"


def engine_command(server_bin: Path | None) -> list[str]:
    """The native llama-server that is named or on the PATH, else the embedded one.

    Raises EngineError when there is none.
    """
    if server_bin is not None:
        if not (server_bin.is_file() and os.access(server_bin, os.X_OK)):
            raise EngineError(f"LLAMA_SERVER_BIN: {server_bin} cannot be run; give the path of a llama-server")
        return [str(server_bin)]
    if found := shutil.which(NATIVE):
        return [found]
    if find_spec("xllamacpp") is not None:
        return list(EMBEDDED)
    raise EngineError(
        "there is no llama-server here; install the embedded one with pip install 'corral[engine]', "
        "or set LLAMA_SERVER_BIN to the path of a llama-server"
    )


def llama_argv(spec: EngineSpec, port: int, command: Sequence[str]) -> list[str]:
    """The arguments for the engine of ``command``. Keys are not among them: everybody can read a command line.

    llama-server takes the last of repeated arguments, so ``extra_args`` win.
    """
    prompt_batch = PROMPT_BATCH if tuple(command) == EMBEDDED else None
    # fmt: off
    argv = [
        "--model", str(spec.file), "--alias", spec.name, "--host", spec.host, "--port", str(port),
        "--metrics", "--slots",
    ]
    # fmt: on
    if spec.embeddings is not False:
        # Of what is pooled, a chat model knows nothing: llama-server wants to be told.
        argv += ["--embeddings", "--pooling", "mean"]
    numbers = {
        "-c": spec.ctx,
        "-t": spec.threads,
        "-tb": spec.threads_batch,
        **_batches(spec, prompt_batch),
        "-np": spec.parallel,
        "-ngl": spec.gpu_layers,
        "--cache-ram": None if spec.cache_ram_bytes is None else ceil(spec.cache_ram_bytes / MIB),
    }
    for name, value in numbers.items():
        if value is not None:
            argv += [name, str(value)]
    return [*argv, *spec.extra_args]


def _batches(spec: EngineSpec, prompt_batch: int | None) -> dict[str, int | None]:
    """The logical and the physical batch; with embeddings llama-server takes the smaller one for both."""
    batch = spec.n_batch
    # Whoever names one of them means it: beside a default of ours the smaller one would win.
    if batch is None and BATCH_ARGUMENTS.isdisjoint(spec.extra_args):
        batch = EMBEDDINGS_BATCH if spec.embeddings else prompt_batch
    return {"-b": batch, "-ub": None if spec.embeddings is False else batch}


def llama_environment(inherited: Mapping[str, str], key: str | None) -> dict[str, str]:
    """What the llama-server inherits: everything but Corral's own settings and keys, and its own key."""
    kept = {
        name: value for name, value in inherited.items() if name not in SECRET_NAMES and not name.startswith(OWN_PREFIX)
    }
    # As a variable, because the argument is called --no-ui in newer builds and
    # --no-webui in older ones, and a build ends at an argument it does not know.
    kept["LLAMA_ARG_UI"] = "0"
    if key is not None:
        kept["LLAMA_API_KEY"] = key
    return kept
