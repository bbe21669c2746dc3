"""What must not be reachable from other machines: a gateway without keys, or with keys that everybody knows."""

from collections.abc import Sequence

from corral.config.keys import ApiKey, FoundKey, key_digest
from corral.config.problems import Given, Problems
from corral.config.settings import Config
from corral.config.urls import is_loopback

# Keys that stand in documentation or are the first that anyone would try.
EXAMPLE_WORDS = (
    "local",
    "key_a",
    "key_b",
    "key_c",
    "key_o",
    "key",
    "key1",
    "key_1",
    "key-1",
    "test",
    "testing",
    "changeme",
    "change-me",
    "change_me",
    "secret",
    "sk-1234",
    "sk-123",
    "sk-test",
    "sk-local",
    "sk-dummy",
    "sk-secret",
    "sk-xxx",
    "sk-xxxx",
    "sk-no-key-required",
    "no-key-required",
    "your-api-key",
    "your_api_key",
    "your-key",
    "your-secret-key",
    "my-api-key",
    "my-key",
    "mykey",
    "api-key",
    "api_key",
    "apikey",
    "password",
    "passwd",
    "example",
    "default",
    "dummy",
    "none",
    "null",
    "empty",
    "demo",
    "dev",
    "admin",
    "root",
    "user",
    "operator",
    "corral",
    "llama",
    "llama.cpp",
    "openai",
    "lm-studio",
    "ollama",
    "secret-api-key",
    "token",
    "token-abc123",
    "abc",
    "abc123",
    "1234",
    "12345",
    "123456",
    "12345678",
    "123456789",
    "xxx",
    "foo",
    "bar",
    "letmein",
    "qwerty",
)

# Keys are known by their digests only, and so are these; nobody makes them safe by writing them in capitals.
EXAMPLE_DIGESTS = frozenset(
    key_digest(form) for word in EXAMPLE_WORDS for form in (word, word.upper(), word.capitalize())
)


def is_example(key: ApiKey) -> bool:
    """Whether the key is one that strangers know."""
    return key.digest in EXAMPLE_DIGESTS


def check_exposure(config: Config, host: Given, keys: Sequence[FoundKey], problems: Problems) -> None:
    """Off loopback, ask for keys unless anonymous use is allowed, and refuse the keys of our examples always.

    ``host`` is where the address came from; ``keys`` are those found, in ``config`` or not.
    """
    if is_loopback(config.server.host):
        return
    if not keys and not config.auth.allow_anonymous and not config.store.used:
        problems.add(
            host,
            f"other machines can reach {config.server.host} and no key is set",
            "set OPENAI_API_KEY, or listen on 127.0.0.1, or set CORRAL_AUTH_ALLOW_ANONYMOUS=1 to serve everybody",
        )
    for found in keys:
        if is_example(found.key):
            wrong = (
                f"{found.place} is an example that everybody knows, and other machines can reach {config.server.host}"
            )
            problems.add(found.given, wrong, "make a key of your own, e.g. with 'openssl rand -hex 24'")
