"""Tells whoever started Corral what happens: progress while models load, then what is served and how to try it."""

from rich.console import Console
from rich.markup import escape

from corral import __version__
from corral.assembly import Assembly
from corral.config import key_digest
from corral.core.lifecycle import State
from corral.upstream.pool import Pool

# The key of the README's examples; it opens nothing but a listener on loopback, so it may be shown.
EXAMPLE_KEY = "local"


async def announce(assembly: Assembly, port: int, console: Console) -> bool:
    """Show progress until a model is ready, then what is served; False when no model can ever be."""
    names = ", ".join(pool.name for pool in assembly.fleet)
    with console.status(f"loading {escape(names)} …"):
        if not console.is_terminal:
            console.print(f"loading {names} …", highlight=False, markup=False)
        await assembly.until(lambda: assembly.fleet.ready or _hopeless(assembly) or _unreachable(assembly))
    if assembly.fleet.ready:
        _print_served(assembly, port, console)
        return True
    for pool in assembly.fleet:
        for replica in pool.replicas:
            where = f" at {replica.address}" if replica.address else ""
            console.print(f"{pool.name}{where}: {replica.why}", style="red", highlight=False, markup=False)
    if _hopeless(assembly):
        return False
    console.print("waiting for it; requests get 503 until it answers (is llama-server running?)", highlight=False)
    await assembly.until(lambda: assembly.fleet.ready)
    _print_served(assembly, port, console)
    return True


def _hopeless(assembly: Assembly) -> bool:
    return all(replica.state is State.FAILED for pool in assembly.fleet for replica in pool.replicas)


def _unreachable(assembly: Assembly) -> bool:
    states = {replica.state for pool in assembly.fleet for replica in pool.replicas}
    return states <= {State.FAILED, State.UNREACHABLE}


def _print_served(assembly: Assembly, port: int, console: Console) -> None:
    host = assembly.config.server.host
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    lines = [f"Corral {__version__} serves {url}/v1", *(_model_line(assembly, pool) for pool in assembly.fleet)]
    key = _key(assembly)
    lines.append(f"  key      {key or 'none is needed'}")
    lines.append(f"  more     {url}/docs (API), {url}/health, {url}/metrics; Ctrl-C stops it")
    lines.append("  try it:")
    name = next(iter(assembly.fleet)).name
    bearer = f'-H "Authorization: Bearer {key}" ' if key else ""
    body = f'{{"model":"{name}","messages":[{{"role":"user","content":"hello"}}]}}'
    lines.append(f"""curl {url}/v1/chat/completions {bearer}-H "Content-Type: application/json" -d '{body}'""")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _model_line(assembly: Assembly, pool: Pool) -> str:
    facts = next((replica.facts for replica in pool.replicas if replica.facts), None)
    told = f"{facts.slots} slots, {facts.context or '?'} tokens of context each" if facts else pool.why
    anything = ", by any name" if assembly.config.any_model else ""
    return f"  model    {pool.name} ({told}){anything}"


def _key(assembly: Assembly) -> str | None:
    """What to write for the key: the example key itself, never another one; None when none is needed."""
    keys = assembly.config.auth.keys
    if assembly.config.auth.allow_anonymous or not (keys or assembly.config.store.used):
        return None
    example = key_digest(EXAMPLE_KEY)
    return EXAMPLE_KEY if any(key.digest == example for key in keys) else "$OPENAI_API_KEY"
