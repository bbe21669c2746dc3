"""What llama-server tells of itself: /props, /v1/models, /slots, /metrics."""

from fake.settings import Settings
from fake.shapes import BUILD, Json
from fake.slots import Slot, Slots

# A part of the real one's sampling parameters, in its order.
PARAMS: Json = {
    "seed": 4294967295, "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05,
    "max_tokens": -1, "n_predict": -1, "ignore_eos": False, "stream": False,
}  # fmt: skip


def props(settings: Settings) -> Json:
    return {
        "default_generation_settings": {"params": PARAMS, "n_ctx": settings.n_ctx},
        "total_slots": settings.slots,
        "model_alias": settings.alias,
        "model_ftype": "Q4_1",
        "model_path": f"{settings.alias}.gguf",
        "modalities": {"vision": False, "video": False, "audio": False},
        "media_marker": "<__media__>",
        "endpoint_slots": True,
        "endpoint_props": False,
        "endpoint_metrics": settings.metrics,
        "ui": True,
        "ui_settings": {},
        "chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}",
        "chat_template_caps": {
            "supports_object_arguments": settings.tools,
            "supports_parallel_tool_calls": settings.tools,
            "supports_preserve_reasoning": False,
            "supports_reasoning_effort": False,
            "supports_string_content": True,
            "supports_system_role": True,
            "supports_tool_calls": settings.tools,
            "supports_tools": settings.tools,
            "supports_typed_content": False,
        },
        "bos_token": "<s>",
        "eos_token": "</s>",
        "build_info": BUILD,
        "is_sleeping": False,
        "cors_proxy_enabled": False,
    }


def models(settings: Settings) -> Json:
    name = settings.alias
    details = {
        "parent_model": "", "format": "gguf", "family": "", "families": [""],
        "parameter_size": "", "quantization_level": "",
    }  # fmt: skip
    short = {
        "name": name, "model": name, "modified_at": "", "size": "", "digest": "", "type": "model",
        "description": "", "tags": [""], "capabilities": ["completion"], "parameters": "", "details": details,
    }  # fmt: skip
    meta = {
        "vocab_type": 2, "n_vocab": 49152, "n_ctx": settings.n_ctx, "n_ctx_train": 8192,
        "n_embd": settings.dims, "n_params": 134515008, "size": 96576768, "ftype": "Q4_1",
    }  # fmt: skip
    full = {
        "id": name, "aliases": [name], "tags": [], "object": "model",
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
        "created": 1795362791, "owned_by": "llamacpp", "meta": meta,
    }  # fmt: skip
    return {"models": [short], "object": "list", "data": [full]}


def slots(engine: Slots, n_ctx: int) -> list[Json]:
    return [_slot(slot, n_ctx) for slot in engine.slots]


def _slot(slot: Slot, n_ctx: int) -> Json:
    """A slot that never had a task tells less."""
    told: Json = {"id": slot.id, "n_ctx": n_ctx, "speculative": False, "is_processing": slot.busy}
    task = slot.task
    if task is None:
        return told
    processed = task.prompt_tokens - task.cached_tokens if task.decode_from else 0
    remain = len(task.plan.pieces) - task.decoded if slot.busy else -1
    token = {"has_next_token": slot.busy, "has_new_line": False, "n_remain": remain, "n_decoded": task.decoded}
    return told | {
        "id_task": task.id,
        "n_prompt_tokens": task.prompt_tokens + task.decoded,
        "n_prompt_tokens_processed": processed if slot.busy else 0,
        "n_prompt_tokens_cache": task.cached_tokens if slot.busy else 0,
        "params": PARAMS | {"stream": task.stream},
        "next_token": [token if slot.busy else token | {"n_decoded": 0}],
    }


def metrics(engine: Slots) -> str:
    """Prometheus text; names, kinds and order are llama-server's."""
    totals = engine.totals
    per_prompt = totals.prompt_tokens / totals.prompt_s if totals.prompt_s else 0
    per_token = totals.predicted_tokens / totals.predicted_s if totals.predicted_s else 0
    rows: list[tuple[str, str, str, float]] = [
        ("prompt_tokens_total", "counter", "Number of prompt tokens processed", totals.prompt_tokens),
        ("prompt_tokens_cached_total", "counter", "Number of prompt tokens reused", totals.cached_tokens),
        ("prompt_seconds_total", "counter", "Total time spent processing prompts", totals.prompt_s),
        ("tokens_predicted_total", "counter", "Number of generation tokens processed", totals.predicted_tokens),
        ("tokens_predicted_seconds_total", "counter", "Total time spent generating tokens", totals.predicted_s),
        ("n_decode_total", "counter", "Total number of llama_decode() calls", totals.decodes),
        ("n_tokens_max", "counter", "Largest observed sequence length", totals.longest),
        ("spec_decode_num_draft_tokens_total", "counter", "Speculative: draft tokens generated", 0),
        ("spec_decode_num_accepted_tokens_total", "counter", "Speculative: draft tokens accepted", 0),
        ("spec_decode_num_drafts_total", "counter", "Speculative: verification steps", 0),
        ("prompt_tokens_seconds", "gauge", "Average prompt throughput in tokens/s", per_prompt),
        ("predicted_tokens_seconds", "gauge", "Average generation throughput in tokens/s", per_token),
        ("requests_processing", "gauge", "Number of requests processing", engine.processing),
        ("requests_deferred", "gauge", "Number of requests deferred", len(engine.deferred)),
        ("n_busy_slots_per_decode", "gauge", "Average number of busy slots per llama_decode() call", 0),
    ]
    return "".join(
        f"# HELP llamacpp:{name} {text}\n# TYPE llamacpp:{name} {kind}\nllamacpp:{name} {value:g}\n"
        for name, kind, text, value in rows
    )
