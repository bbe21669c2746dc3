"""What a llama-server is started with."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from corral.config import Launch, LlamaSettings, ModelSettings
from corral.config.gguf import made_for_embeddings
from corral.upstream.address import Address

# What a model may say for itself.
OF_A_MODEL = ("ctx", "parallel", "threads", "n_batch", "gpu_layers", "cache_ram_bytes", "extra_args")


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One llama-server to start: its model, where it listens, and the settings that are passed on.

    With ``port`` 0 it is Corral's own: each start takes a free port and a new
    key. With a port it listens there, with ``api_key`` if there is one, so
    that others find it.
    """

    name: str
    file: Path
    host: str = "127.0.0.1"
    port: int = 0
    threads: int | None = None
    threads_batch: int | None = None
    ctx: int | None = None
    n_batch: int | None = None
    parallel: int | None = None
    gpu_layers: int | None = None
    cache_ram_bytes: int | None = None
    # None: of inputs that fit into a batch which is chosen for prompts.
    embeddings: bool | None = None
    extra_args: tuple[str, ...] = ()
    server_bin: Path | None = None
    log_dir: Path | None = None
    log_bytes: int = 10 * 2**20
    start_timeout_s: float = 600.0
    start_stall_s: float = 120.0
    stop_grace_s: float = 10.0
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def own(cls, name: str, file: Path, llama: LlamaSettings) -> "EngineSpec":
        """A llama-server that only this process is to use."""
        return cls(
            name=name,
            file=file,
            threads=llama.threads,
            threads_batch=llama.threads_batch,
            ctx=llama.ctx,
            n_batch=llama.n_batch,
            parallel=llama.parallel,
            gpu_layers=llama.gpu_layers,
            cache_ram_bytes=llama.cache_ram_bytes,
            embeddings=True if llama.embeddings is None and made_for_embeddings(file) else llama.embeddings,
            extra_args=llama.extra_args,
            server_bin=llama.server_bin,
            log_dir=llama.log_dir,
            log_bytes=llama.log_bytes,
            start_timeout_s=llama.start_timeout_s,
            start_stall_s=llama.start_stall_s,
            stop_grace_s=llama.stop_grace_s,
        )

    @classmethod
    def of(cls, model: ModelSettings, llama: LlamaSettings) -> "EngineSpec":
        """A llama-server for one of the models that Corral starts, with what the model says before what all say."""
        if model.file is None:
            raise ValueError("a llama-server needs a model file")
        spec = cls.own(model.name, model.file, llama)
        own = {name: getattr(model, name) for name in OF_A_MODEL}
        return replace(spec, **{name: value for name, value in own.items() if value is not None})

    @classmethod
    def launched(cls, launch: Launch, llama: LlamaSettings) -> "EngineSpec":
        """A llama-server at the address where others, Corral among them, are told to find it."""
        address = Address.parse(launch.url)
        key = llama.api_key.get_secret_value() if llama.api_key else None
        return replace(cls.own(launch.name, launch.path, llama), host=address.host, port=address.port, api_key=key)
