"""How sizes and refusals for want of memory are told."""

from corral.core.placement import Never, Wanted


def told_bytes(size: int) -> str:
    """A size as people read it."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def why_never(wanted: Wanted, never: Never, budget: int | None) -> str:
    """Why a model can never be loaded, with the sum, for clients too: no name but its own."""
    if never.apart:
        return f"model '{wanted.name}' is not loaded together with another that always stays loaded"
    kept = f", of which models that always stay loaded take {told_bytes(never.pinned_bytes)}" if never.pinned else ""
    needs = f"model '{wanted.name}' needs {told_bytes(wanted.bytes)} of memory"
    return f"{needs} and the budget is {told_bytes(budget or 0)}{kept}"
