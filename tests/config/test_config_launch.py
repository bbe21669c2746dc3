"""What the launcher scripts start."""

from collections.abc import Callable
from pathlib import Path

import pytest

from corral.config import Config, Launch, launch_plan
from corral.core.errors import ConfigError

Configured = Callable[..., Config]
Make = Callable[[str], Path]

UPSTREAMS = "a=http://127.0.0.1:8081,b=http://localhost:8082"


@pytest.fixture
def problems(configured: Configured) -> Callable[..., list[str]]:
    def problems_of(**env: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            launch_plan(configured(env=env))
        return caught.value.problems

    return problems_of


Problems = Callable[..., list[str]]


def test_one_file_goes_to_the_base_url(configured: Configured, gguf_file: Make) -> None:
    gguf_file("x.gguf")
    plan = launch_plan(configured(env={"MODEL_PATH": "./x.gguf"}))
    assert plan == (Launch("llama", Path("x.gguf"), "http://127.0.0.1:8080"),)
    plan = launch_plan(configured(env={"MODEL_PATH": "./x.gguf", "LLAMA_BASE_URL": "http://127.0.0.1:9000"}))
    assert plan[0].url == "http://127.0.0.1:9000"


def test_several_files_go_to_their_upstreams(configured: Configured, gguf_file: Make) -> None:
    gguf_file("x.gguf")
    gguf_file("y-00001-of-00002.gguf")
    gguf_file("y-00002-of-00002.gguf")
    env = {"MODEL_UPSTREAMS": UPSTREAMS, "MODEL_PATHS": "b=y-00001-of-00002.gguf,a=x.gguf", "MODEL_PATH": "z.gguf"}
    assert launch_plan(configured(env=env)) == (
        Launch("b", Path("y-00001-of-00002.gguf"), "http://localhost:8082"),
        Launch("a", Path("x.gguf"), "http://127.0.0.1:8081"),
    )


def test_only_enabled_models_are_started_and_looked_for(configured: Configured, gguf_file: Make) -> None:
    gguf_file("x.gguf")
    env = {"MODEL_UPSTREAMS": UPSTREAMS, "MODEL_PATHS": "a=x.gguf,b=nowhere.gguf", "ENABLED_MODELS": "a"}
    assert [launch.name for launch in launch_plan(configured(env=env))] == ["a"]


def test_all_problems_are_told_at_once(problems: Problems, gguf_file: Make) -> None:
    gguf_file("y-00001-of-00002.gguf")
    found = problems(
        MODEL_UPSTREAMS=UPSTREAMS,
        MODEL_PATHS="a=nowhere.gguf,b=y-00001-of-00002.gguf,lama=x.gguf",
        ENABLED_MODELS="a,b,lama,llama",
    )
    assert [problem.split("; ")[0] for problem in found] == [
        "ENABLED_MODELS: 'llama' is not in MODEL_PATHS",
        "MODEL_PATHS, a: there is no file nowhere.gguf",
        "MODEL_PATHS, b: there is no file y-00002-of-00002.gguf",
        "MODEL_PATHS, lama: 'lama' has no address in MODEL_UPSTREAMS",
    ]
    assert found[0].endswith("did you mean lama?")


def test_without_a_file_nothing_can_be_launched(problems: Problems) -> None:
    (problem,) = problems(ENABLED_MODELS="a")
    assert problem.startswith("MODEL_PATH: no model file is named; set MODEL_PATH=")


def test_one_file_does_not_go_with_named_upstreams(problems: Problems, gguf_file: Make) -> None:
    gguf_file("x.gguf")
    (problem,) = problems(MODEL_PATH="x.gguf", MODEL_UPSTREAMS=UPSTREAMS)
    assert problem.endswith("with MODEL_UPSTREAMS set MODEL_PATHS=name=./models/x.gguf")


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1:8081", "http://10.0.0.5:8081", "http://llama:80", "http://[::1]:8/x"]
)
def test_only_plain_http_on_loopback_can_be_launched(problems: Problems, gguf_file: Make, url: str) -> None:
    gguf_file("x.gguf")
    (problem,) = problems(MODEL_PATH="x.gguf", LLAMA_BASE_URL=url)
    assert problem.startswith(f"MODEL_PATH: {url} is not an address on this machine's loopback")


def test_two_models_cannot_listen_at_one_address(problems: Problems, gguf_file: Make) -> None:
    gguf_file("x.gguf")
    (problem,) = problems(MODEL_UPSTREAMS="a=http://[::1]:81,b=http://[::1]:81", MODEL_PATHS="a=x.gguf,b=x.gguf")
    assert problem == "MODEL_UPSTREAMS: two models are to listen at http://[::1]:81; give each a port of its own"
