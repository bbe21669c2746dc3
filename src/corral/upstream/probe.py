"""Asks a llama-server how it is, and how many tokens a text is: /health, /props, /slots and /tokenize."""

from dataclasses import dataclass
from typing import Any

import orjson

from corral.core.errors import UpstreamError, UpstreamLoading
from corral.upstream.address import Address
from corral.upstream.wire import Client

# A llama-server answers these between two batches; on a busy CPU one batch may take seconds.
CONNECT_S = 3.0
ANSWER_S = 10.0
# Also of the ids of the tokens of a text as long as any that is continued.
REPLY_LIMIT_BYTES = 16 * 1024 * 1024

# What a llama-server that does not tell its slots is trusted with.
UNTOLD_SLOTS = 1


@dataclass(frozen=True, slots=True)
class Facts:
    """What /props says of a ready llama-server (llama.cpp: tools/server/README.md, GET /props)."""

    slots: int
    # Of one slot, in tokens; None when it does not say.
    context: int | None = None
    # Whether the chat template knows tools; a template that does not ignores them in silence.
    tools: bool = True
    # /slots can be asked.
    shows_slots: bool = True


@dataclass(frozen=True, slots=True)
class Prober:
    """Asks over the same client that serves calls."""

    client: Client

    async def facts(self, address: Address, key: str | None) -> Facts:
        """The facts of a ready server; raises UpstreamLoading while it loads, UpstreamError when it cannot be asked."""
        status, _ = await self._get(address, "/health", key)
        _ensure_well(status)
        status, body = await self._get(address, "/props", key)
        _ensure_well(status)
        return read_facts(body) if status == 200 else _unknown_facts(status)

    async def processing(self, address: Address, key: str | None) -> frozenset[tuple[int, int]]:
        """The (slot, task) pairs that are being worked on; raises UpstreamError when it cannot be asked."""
        status, body = await self._get(address, "/slots", key)
        if status != 200 or not isinstance(body, list):
            raise UpstreamError("the model server does not show its slots")
        slots = [slot for slot in body if isinstance(slot, dict) and slot.get("is_processing")]
        return frozenset((_number(slot.get("id")), _number(slot.get("id_task"))) for slot in slots)

    async def tokens(self, address: Address, key: str | None, text: str) -> int:
        """How many tokens a text is by itself; raises UpstreamError when it cannot be asked."""
        content = orjson.dumps({"content": text, "add_special": False, "parse_special": False})
        status, body = await self._ask("POST", address, "/tokenize", key, content)
        tokens = body.get("tokens") if isinstance(body, dict) else None
        if status != 200 or not isinstance(tokens, list):
            raise UpstreamError("the model server does not count tokens")
        return len(tokens)

    async def _get(self, address: Address, path: str, key: str | None) -> tuple[int, Any]:
        return await self._ask("GET", address, path, key)

    async def _ask(
        self, method: str, address: Address, path: str, key: str | None, content: bytes = b""
    ) -> tuple[int, Any]:
        headers = authorization(key)
        if content:
            headers.append((b"content-type", b"application/json"))
        reply = await self.client.send(
            address, method, path, headers=headers, body=content, connect_s=CONNECT_S, head_s=ANSWER_S
        )
        with reply:
            reply.limit(ANSWER_S, "first_byte")
            body = await reply.read(REPLY_LIMIT_BYTES)
        try:
            return reply.status, orjson.loads(body)
        except orjson.JSONDecodeError:
            return reply.status, None


def _number(value: object) -> int:
    return value if isinstance(value, int) else -1


def authorization(key: str | None) -> list[tuple[bytes, bytes]]:
    """The header with which llama-server wants its key."""
    return [(b"authorization", b"Bearer " + key.encode())] if key else []


def read_facts(props: Any) -> Facts:  # noqa: ANN401  (JSON)
    """Facts from the JSON of /props; what is missing or of another type counts as untold."""
    told = props if isinstance(props, dict) else {}
    settings = told.get("default_generation_settings")
    context = settings.get("n_ctx") if isinstance(settings, dict) else None
    slots = told.get("total_slots")
    caps = told.get("chat_template_caps")
    return Facts(
        slots=slots if isinstance(slots, int) and slots > 0 else UNTOLD_SLOTS,
        context=context if isinstance(context, int) and context > 0 else None,
        tools=bool(caps.get("supports_tools", True)) if isinstance(caps, dict) else True,
        shows_slots=told.get("endpoint_slots") is True,
    )


def _ensure_well(status: int) -> None:
    """A server that is loading, or one in front of it that cannot reach it, is not ready; 501 is a missing route."""
    if status == 503:
        raise UpstreamLoading("the model is loading")
    if status > 501 or status == 500:
        raise UpstreamError(f"the model server answers with status {status}")


def _unknown_facts(status: int) -> Facts:
    if status in (401, 403):
        raise UpstreamError("the model server refuses our key; set LLAMA_API_KEY to the one it was started with")
    return Facts(slots=UNTOLD_SLOTS, shows_slots=False)
