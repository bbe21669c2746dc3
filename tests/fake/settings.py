"""What the fake is told at its start, and may be told anew while it runs."""

from dataclasses import dataclass


@dataclass
class Settings:
    """Written by the command line, then only by ``POST /fake/settings``."""

    slots: int = 2
    # Tokens that fit into one slot, as ``n_ctx`` in ``/props``.
    n_ctx: int = 4096
    # A prefill is done in steps of this many tokens; between two steps a cancelled task is let go.
    n_batch: int = 2048
    # An embedding input may not be longer than this.
    n_ubatch: int = 512
    alias: str = "fake"
    api_key: str = ""
    embeddings: bool = False
    metrics: bool = False
    # Whether the chat template knows tools, as ``chat_template_caps`` tells.
    tools: bool = False
    # Numbers in an embedding.
    dims: int = 8
    # Every route answers 503 for so long after the start.
    load_s: float = 0.0
    # Seconds for a whole prompt, whatever its length.
    prefill_s: float = 0.0
    # Seconds from one token to the next.
    token_s: float = 0.0
    # Tokens of an answer that neither ``max_tokens`` nor a script ends sooner.
    tokens: int = 16
    # llama-server's own two (cpp-httplib), here so that tests need not wait for them.
    keep_alive_s: float = 5.0
    keep_alive_requests: int = 100
