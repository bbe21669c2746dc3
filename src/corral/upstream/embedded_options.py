"""llama-server's arguments and the settings they are in the embedded engine.

Names and meanings are those of llama.cpp b11434 (common/arg.cpp). What the
binding has no setting for is not here, and so is refused. Nothing here imports
the binding: its enums go by name.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# By path in ``CommonParams``: ``cpuparams.n_threads``. Lists grow with each
# argument that adds to them, dicts are merged, everything else is replaced.
Settings = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Enum:
    """A member of an enum of the binding."""

    type: str
    member: str


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA adapter file and its scale."""

    path: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Option:
    """An argument and the settings it makes of its value; a switch has no value."""

    names: tuple[str, ...]
    settings: Callable[[str], Settings]
    is_switch: bool = False


def _number(path: str, *names: str, limit: int = 2**31) -> list[Option]:
    def settings(text: str) -> Settings:
        if not -limit <= int(text) < limit:
            raise ValueError("it is out of range")
        return {path: int(text)}

    return [Option(names, settings)]


def _real(path: str, *names: str) -> list[Option]:
    return [Option(names, lambda text: {path: float(text)})]


def _text(path: str, *names: str) -> list[Option]:
    return [Option(names, lambda text: {path: text})]


def _switch(settings: Settings, *names: str) -> list[Option]:
    return [Option(names, lambda _: settings, is_switch=True)]


def _either(path: str, on: Sequence[str], off: Sequence[str], *, inverted: bool = False) -> list[Option]:
    """A pair of switches; ``inverted`` when the setting says what is off."""
    return [*_switch({path: not inverted}, *on), *_switch({path: inverted}, *off)]


def _choice(path: str, members: Mapping[str, Enum | int], *names: str) -> list[Option]:
    def settings(text: str) -> Settings:
        if text not in members:
            raise ValueError(f"one of {', '.join(members)} is wanted")
        return {path: members[text]}

    return [Option(names, settings)]


def _enum(type_: str, prefix: str, **members: str) -> dict[str, Enum]:
    return {text: Enum(type_, prefix + member) for text, member in members.items()}


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _hosts(text: str) -> Settings:
    hosts = tuple(_words(text))
    if not hosts:
        raise ValueError("at least one address is wanted")
    return {"hostnames": hosts}


def _slots(text: str) -> Settings:
    if int(text) == 0:
        raise ValueError("0 slots cannot serve anybody")
    return {"n_parallel": int(text)}


def _threads(path: str, *names: str) -> list[Option]:
    # llama-server takes 0 for all CPUs; -1 has the engine choose, which is next to it.
    return [Option(names, lambda text: {path: int(text) if int(text) > 0 else -1})]


def _idle(text: str) -> Settings:
    if int(text) == 0 or int(text) < -1:
        raise ValueError("it cannot be 0 or less than -1")
    return {"sleep_idle_seconds": int(text)}


def _gpu_layers(text: str) -> Settings:
    return {"n_gpu_layers": {"auto": -1, "all": -2}.get(text) or int(text or "0")}


def _template_values(text: str) -> Settings:
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("a JSON object is wanted")
    return {"default_template_kwargs": {name: json.dumps(value) for name, value in values.items()}}


def _reasoning(text: str) -> Settings:
    state = ON_OFF_AUTO.get(text)
    if state is None:
        raise ValueError("on, off or auto is wanted")
    thinking = {} if state < 0 else {"default_template_kwargs": {"enable_thinking": "true" if state else "false"}}
    return {"enable_reasoning": state, **thinking}


def _reasoning_preserved(value: str) -> Settings:
    return {"default_template_kwargs": {"preserve_reasoning": value}, "preserve_reasoning_specified": True}


def _directory(path: str) -> Callable[[str], Settings]:
    def settings(text: str) -> Settings:
        if not Path(text).is_dir():
            raise ValueError("it is not a directory")
        return {path: text.rstrip("/") + "/"}

    return settings


def _scaled_loras(text: str) -> Settings:
    pairs = [item.rpartition(":") for item in _words(text)]
    return {"lora_adapters": [Lora(path, float(scale)) for path, _, scale in pairs]}


ON_OFF_AUTO = {
    **dict.fromkeys(("on", "enabled", "true", "1"), 1),
    **dict.fromkeys(("off", "disabled", "false", "0"), 0),
    **dict.fromkeys(("auto", "-1"), -1),
}

POOLING = _enum(
    "llama_pooling_type", "LLAMA_POOLING_TYPE_", none="NONE", mean="MEAN", cls="CLS", last="LAST", rank="RANK"
)
FLASH_ATTENTION = {
    text: Enum("llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_" + {1: "ENABLED", 0: "DISABLED", -1: "AUTO"}[state])
    for text, state in ON_OFF_AUTO.items()
}
CACHE_TYPES = {
    name: Enum("ggml_type", "GGML_TYPE_" + name.upper())
    for name in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
}
REASONING_FORMATS = {
    name: Enum("common_reasoning_format", "COMMON_REASONING_FORMAT_" + name.upper().replace("-", "_"))
    for name in ("none", "auto", "deepseek", "deepseek-legacy")
}
ROPE_SCALING = _enum("llama_rope_scaling_type", "LLAMA_ROPE_SCALING_TYPE_", none="NONE", linear="LINEAR", yarn="YARN")
NUMA = _enum("ggml_numa_strategy", "GGML_NUMA_STRATEGY_", distribute="DISTRIBUTE", isolate="ISOLATE", numactl="NUMACTL")
LOAD_MODES = {
    name: Enum("llama_load_mode", "LLAMA_LOAD_MODE_" + member)
    for name, member in {
        "auto": "AUTO",
        "none": "NONE",
        "mmap": "MMAP",
        "mlock": "MLOCK",
        "mmap+mlock": "MMAP_MLOCK",
        "dio": "DIRECT_IO",
    }.items()
}

_ALL: list[Option] = [
    # What is served, and where.
    *_text("model.path", "-m", "--model"),
    *_text("mmproj.path", "-mm", "--mmproj"),
    Option(("-a", "--alias"), lambda text: {"model_alias": _words(text)}),
    Option(("--tags",), lambda text: {"model_tags": _words(text)}),
    Option(("--host",), _hosts),
    *_number("port", "--port"),
    Option(("--api-key",), lambda text: {"api_keys": _words(text)}),
    *_number("n_threads_http", "--threads-http"),
    Option(("-to", "--timeout"), lambda text: {"timeout_read": int(text), "timeout_write": int(text)}),
    *_number("sse_ping_interval", "--sse-ping-interval"),
    Option(("--sleep-idle-seconds",), _idle),
    *_switch({"endpoint_metrics": True}, "--metrics"),
    *_switch({"endpoint_props": True}, "--props"),
    *_either("endpoint_slots", ["--slots"], ["--no-slots"]),
    *_either("ui", ["--ui", "--webui"], ["--no-ui", "--no-webui"]),
    Option(("--slot-save-path",), _directory("slot_save_path")),
    Option(("--media-path",), _directory("media_path")),
    # Threads, batches, slots and caches.
    *_threads("cpuparams.n_threads", "-t", "--threads"),
    *_threads("cpuparams_batch.n_threads", "-tb", "--threads-batch"),
    *_number("cpuparams.poll", "--poll"),
    *_number("n_ctx", "-c", "--ctx-size"),
    *_number("n_batch", "-b", "--batch-size"),
    *_number("n_ubatch", "-ub", "--ubatch-size"),
    Option(("-np", "--parallel"), _slots),
    *_either("cont_batching", ["-cb", "--cont-batching"], ["-nocb", "--no-cont-batching"]),
    *_either("kv_unified", ["-kvu", "--kv-unified"], ["-no-kvu", "--no-kv-unified"]),
    *_choice("cache_type_k", CACHE_TYPES, "-ctk", "--cache-type-k"),
    *_choice("cache_type_v", CACHE_TYPES, "-ctv", "--cache-type-v"),
    *_choice("flash_attn_type", FLASH_ATTENTION, "-fa", "--flash-attn"),
    *_switch({"swa_full": True}, "--swa-full"),
    *_either("ctx_shift", ["--context-shift"], ["--no-context-shift"]),
    *_number("n_ctx_checkpoints", "-ctxcp", "--ctx-checkpoints", "--swa-checkpoints"),
    *_number("cache_ram_mib", "-cram", "--cache-ram"),
    *_either("cache_idle_slots", ["--cache-idle-slots"], ["--no-cache-idle-slots"]),
    *_either("cache_prompt", ["--cache-prompt"], ["--no-cache-prompt"]),
    *_number("n_cache_reuse", "--cache-reuse"),
    *_real("slot_prompt_similarity", "-sps", "--slot-prompt-similarity"),
    # Generation.
    *_number("n_predict", "-n", "--predict", "--n-predict"),
    *_number("n_keep", "--keep"),
    *_number("sampling.seed", "-s", "--seed", limit=2**32),
    # Templates and reasoning.
    *_text("chat_template", "--chat-template"),
    Option(("--chat-template-file",), lambda text: {"chat_template": Path(text).read_text(encoding="utf-8")}),
    Option(("--chat-template-kwargs",), _template_values),
    *_either("use_jinja", ["--jinja"], ["--no-jinja"]),
    *_either("prefill_assistant", ["--prefill-assistant"], ["--no-prefill-assistant"]),
    *_either("force_pure_content_parser", ["--skip-chat-parsing"], ["--no-skip-chat-parsing"]),
    *_choice("reasoning_format", REASONING_FORMATS, "--reasoning-format"),
    Option(("-rea", "--reasoning"), _reasoning),
    *_number("sampling.reasoning_budget_tokens", "--reasoning-budget"),
    *_text("sampling.reasoning_budget_message", "--reasoning-budget-message"),
    *_switch(_reasoning_preserved("true"), "--reasoning-preserve"),
    *_switch(_reasoning_preserved("false"), "--no-reasoning-preserve"),
    # Embeddings.
    *_switch({"embedding": True}, "--embedding", "--embeddings"),
    *_switch({"embedding": True, "pooling_type": POOLING["rank"]}, "--rerank", "--reranking"),
    *_choice("pooling_type", POOLING, "--pooling"),
    # Loading.
    *_choice("load_mode", LOAD_MODES, "-lm", "--load-mode"),
    # Older spellings of two load modes.
    *_switch({"load_mode": LOAD_MODES["mmap+mlock"]}, "--mlock"),
    *_switch({"load_mode": LOAD_MODES["none"]}, "--no-mmap"),
    *_choice("numa", NUMA, "--numa"),
    *_switch({"check_tensors": True}, "--check-tensors"),
    *_either("warmup", ["--warmup"], ["--no-warmup"]),
    *_either("no_extra_bufts", ["--repack"], ["-nr", "--no-repack"], inverted=True),
    Option(("-ngl", "--gpu-layers", "--n-gpu-layers"), _gpu_layers),
    *_number("main_gpu", "-mg", "--main-gpu"),
    *_either("no_kv_offload", ["-kvo", "--kv-offload"], ["-nkvo", "--no-kv-offload"], inverted=True),
    *_either("no_op_offload", ["--op-offload"], ["--no-op-offload"], inverted=True),
    *_either("mmproj_use_gpu", ["--mmproj-offload"], ["--no-mmproj-offload"]),
    *_number("image_min_tokens", "--image-min-tokens"),
    *_number("image_max_tokens", "--image-max-tokens"),
    Option(("--lora",), lambda text: {"lora_adapters": [Lora(path) for path in _words(text)]}),
    Option(("--lora-scaled",), _scaled_loras),
    *_switch({"lora_init_without_apply": True}, "--lora-init-without-apply"),
    *_switch({"offline": True}, "--offline"),
    # RoPE and YaRN.
    *_choice("rope_scaling_type", ROPE_SCALING, "--rope-scaling"),
    Option(("--rope-scale",), lambda text: {"rope_freq_scale": 1 / float(text)}),
    *_real("rope_freq_base", "--rope-freq-base"),
    *_real("rope_freq_scale", "--rope-freq-scale"),
    *_number("yarn_orig_ctx", "--yarn-orig-ctx"),
    *_real("yarn_ext_factor", "--yarn-ext-factor"),
    *_real("yarn_attn_factor", "--yarn-attn-factor"),
    *_real("yarn_beta_slow", "--yarn-beta-slow"),
    *_real("yarn_beta_fast", "--yarn-beta-fast"),
    # What is told.
    *_number("verbosity", "-lv", "--verbosity", "--log-verbosity"),
    *_switch({"verbosity": 2**31 - 1}, "-v", "--verbose", "--log-verbose"),
]

OPTIONS = {name: option for option in _ALL for name in option.names}
