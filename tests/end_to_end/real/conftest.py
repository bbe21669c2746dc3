"""Real llama.cpp for the end-to-end tests: few models, loaded once; after each test nothing is busy or waiting."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.embedded_engine import EmbeddedEngine
from support.gateway import Gateway
from support.models import smollm2

TEMPLATE = Path(__file__).parent / "tools.jinja"


@pytest.fixture(scope="session")
def engine() -> Iterator[EmbeddedEngine]:
    """SmolLM2 with a chat template that knows tools and thoughts; two slots of 1024 tokens."""
    with EmbeddedEngine(smollm2(), "--jinja", "--chat-template-file", str(TEMPLATE)) as engine:
        yield engine


@pytest.fixture(scope="session")
def shared_corral(engine: EmbeddedEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("corral"), MODEL_UPSTREAMS=f"smol={engine.url}") as gateway:
        gateway.until_ready()
        yield gateway


@pytest.fixture
def corral(shared_corral: Gateway) -> Iterator[Gateway]:
    """Corral in front of ``engine``, which is its only model, ``smol``; other names are refused."""
    yield shared_corral
    shared_corral.until_idle()


@pytest.fixture(scope="session")
def shared_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("demo")
    with Gateway(
        directory, "--model", str(smollm2()), LLAMA_PARALLEL="2", LLAMA_CTX="2048", LLAMA_THREADS="1"
    ) as gateway:
        gateway.until_ready()
        yield gateway


@pytest.fixture
def demo(shared_demo: Gateway) -> Iterator[Gateway]:
    """What ``make run`` starts: Corral with SmolLM2 as its child, by any name, with the template that it came with."""
    yield shared_demo
    shared_demo.until_idle()
