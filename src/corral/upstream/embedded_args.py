"""Reads llama-server's command line for the embedded engine."""

from collections.abc import Sequence

from corral.upstream.embedded_options import OPTIONS, Settings

# llama-server's choice without ``-np`` (tools/server/server.cpp): slots that share one cache.
AUTO_SLOTS = 4
# common/common.h.
DEFAULT_BATCH, DEFAULT_PHYSICAL_BATCH = 2048, 512


class BadArgument(Exception):
    """llama-server would refuse it too, or the embedded engine has no such argument; the message names it."""


def parse(argv: Sequence[str]) -> Settings:
    """The settings of a command line, those that llama-server derives from them included; raises BadArgument."""
    settings: Settings = {}
    words = iter(argv)
    for word in words:
        option = OPTIONS.get(word)
        if option is None:
            raise BadArgument(
                f"the embedded engine has no argument {word}; leave it out, or set LLAMA_SERVER_BIN to a llama-server"
            )
        text = "" if option.is_switch else next(words, None)
        if text is None:
            raise BadArgument(f"{word} needs a value")
        try:
            _merge(settings, option.settings(text))
        except (ValueError, ArithmeticError, OSError) as error:
            raise BadArgument(f"{word} {text}: {error}") from error
    return _derived(settings)


def _merge(settings: Settings, more: Settings) -> None:
    for path, value in more.items():
        old = settings.get(path)
        if isinstance(value, list):
            settings[path] = [*(old or []), *value]
        elif isinstance(value, dict):
            settings[path] = {**(old or {}), **value}
        else:
            settings[path] = value


def _derived(settings: Settings) -> Settings:
    if settings.get("n_parallel", -1) < 0:
        settings |= {"n_parallel": AUTO_SLOTS, "kv_unified": True}
    if settings.get("embedding"):
        # Pooling needs the whole input in one physical batch; a larger logical one trips an assertion.
        physical = settings.get("n_ubatch", DEFAULT_PHYSICAL_BATCH)
        settings["n_batch"] = min(settings.get("n_batch", DEFAULT_BATCH), physical)
    if "cpuparams.n_threads" in settings:
        settings.setdefault("cpuparams_batch.n_threads", settings["cpuparams.n_threads"])
    return settings
