"""corral.yaml: places of values, refusals by line."""

from collections.abc import Callable

import pytest

from corral.config import Config

Refused = Callable[..., list[str]]
Configured = Callable[..., Config]


def test_values_stand_under_their_sections(configured: Configured) -> None:
    config = configured("server: {port: 9000}\ntimeouts:\n  embeddings:\n    connect: 1500ms\nlogs:\n  level: DEBUG\n")
    assert config.server.port == 9000
    assert config.timeouts.embeddings.connect_s == 1.5
    assert config.logs.level == "debug"


def test_what_is_set_in_a_section_leaves_its_other_defaults_alone(configured: Configured) -> None:
    assert configured("timeouts: {embeddings: {connect: 1s}}").timeouts.embeddings.first_byte_s == 120


@pytest.mark.parametrize(
    "content", ["", "# Text.\n", "null\n", "---\n", "server:\n", "server: {port: null}\n", "\ufeff# BOM"]
)
def test_a_file_without_values_changes_nothing(configured: Configured, content: str) -> None:
    assert configured(content) == configured()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a: 1", "a (corral.yaml line 1): there is no such setting; docs/configuration.md lists every setting"),
        ("server:\n  prot: 1", "server.prot (corral.yaml line 2): there is no such setting; did you mean server.port?"),
        ("port: 1", "port (corral.yaml line 1): there is no such setting; did you mean server.port?"),
        ("sever: {}", "sever (corral.yaml line 1): there is no such setting; did you mean server?"),
        ("timeouts: {chat: {connect_s: 1}}", "timeouts.chat.connect_s (corral.yaml line 1): there is no such setting; "
         "did you mean timeouts.chat.connect?"),
        ("server: 8000", "server (corral.yaml line 1): is not a group of settings; write 'name: value' lines"),
        ("- a", "corral.yaml (corral.yaml line 1): is not a group of settings; write 'name: value' lines"),
        ("logs: {level: loud}",
         "logs.level (corral.yaml line 1): 'loud' is none of 'debug', 'info', 'warning' or 'error'; "
         "write e.g. level: info"),
        ("server: {port: x}", "server.port (corral.yaml line 1): 'x' is not a whole number; write e.g. port: 8000"),
        ("server:\n  port: 1\n  port: 2", "server.port (corral.yaml line 3): stands there twice; keep one of them"),
        ("logs: {}\nlogs: {}", "corral.yaml.logs (corral.yaml line 2): stands there twice; keep one of them"),
        ("limits: {window: 2024-13-45}",
         "limits.window (corral.yaml line 1): the value cannot be read; put it into quotes"),
        ("limits: {window: !x y}", "limits.window (corral.yaml line 1): the value cannot be read; put it into quotes"),
        ("any_model: 2", "any_model (corral.yaml line 1): 2 is neither true nor false; write 1, 0, true or false"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(refused: Refused, content: str, problem: str) -> None:
    assert refused(yaml=content) == [problem]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("a: b\n  c: canary: d", "corral.yaml line 2, column"),
        ("server: [canary", "corral.yaml line"),
        ("a: *canary", "corral.yaml line 1, column 4"),
        ("a: 1\n---\nb: canary", "corral.yaml line 2"),
        ("a: \x07canary", "corral.yaml"),
    ],
)
def test_a_syntax_error_tells_its_place_and_quotes_nothing(refused: Refused, content: str, place: str) -> None:
    (problem,) = refused(yaml=content)
    assert problem.startswith(f"corral.yaml ({place}")
    assert "not valid YAML" in problem
    assert "canary" not in problem


@pytest.mark.parametrize(
    ("content", "right"),
    [
        ("auth: {keys: [canary]}", "OPENAI_API_KEYS"),
        ("auth:\n  keys:\n    canary: canary", "OPENAI_API_KEYS"),
        ("llama: {api_key: canary}", "LLAMA_API_KEY"),
    ],
)
def test_secrets_are_refused_and_shown_where_they_belong(refused: Refused, content: str, right: str) -> None:
    (problem,) = refused(yaml=content)
    assert "secrets do not belong into this file" in problem
    assert right in problem
    assert "canary" not in problem
