"""Fields that reach into llama-server, and media that make it fetch."""

from typing import Any

import orjson
import pytest

from corral.core.call import Endpoint
from corral.openai.parse import Policy, parse
from corral.openai.policy import Parameters
from support.parsing import HELLO, POLICY, read_chat, refused

INTERNAL = [
    "__verbose",
    "chat_format",
    "chat_parser",
    "generation_prompt",
    "grammar_triggers",
    "id_slot",
    "lora",
    "message_delimiters",
    "n_cache_reuse",
    "n_predict",
    "preserved_tokens",
    "reasoning_budget_end_tag",
    "reasoning_budget_end_tags",
    "reasoning_budget_start_tag",
    "response_fields",
    "speculative",
    "speculative.n_max",
    "speculative.p_min",
    "verbose",
]
GOOD: dict[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT: {"messages": HELLO},
    Endpoint.COMPLETIONS: {"prompt": "once"},
    Endpoint.EMBEDDINGS: {"input": "once"},
}


def allowing(*fields: str) -> Policy:
    return Policy(default_max_tokens=500, allow_fields=frozenset(fields))


@pytest.mark.parametrize("endpoint", list(Endpoint), ids=lambda endpoint: endpoint.value)
@pytest.mark.parametrize("field", INTERNAL)
def test_a_field_that_is_internal_to_llama_server_is_refused(field: str, endpoint: Endpoint) -> None:
    error = refused(endpoint, orjson.dumps(GOOD[endpoint] | {field: 1}))
    assert (error.status, error.param, error.code) == (400, field, "unsupported_parameter")


@pytest.mark.parametrize("field", [field for field in INTERNAL if field != "n_predict"])
def test_the_models_settings_can_allow_it(field: str) -> None:
    assert read_chat(allowing(field), **{field: 1}).fields[field] == 1


@pytest.mark.parametrize(
    ("pattern", "field"),
    [
        ("speculative.*", "speculative.n_max"),
        ("speculative.*", "speculative"),
        ("reasoning_budget_*_tag", "reasoning_budget_start_tag"),
        ("reasoning_budget_*_tag", "reasoning_budget_end_tags"),
    ],
)
def test_a_pattern_allows_a_family(pattern: str, field: str) -> None:
    assert read_chat(allowing(pattern), **{field: 1}).fields[field] == 1


def test_allowing_one_field_allows_no_other() -> None:
    error = refused(
        Endpoint.CHAT, orjson.dumps({"messages": HELLO, "id_slot": 1, "verbose": True}), allowing("id_slot")
    )
    assert error.param == "verbose"


@pytest.mark.parametrize("field", ["reasoning_budget_tokens", "reasoning_control", "t_max_predict_ms", "speculation"])
def test_similar_names_are_not_meant(field: str) -> None:
    assert read_chat(POLICY, **{field: 1}).fields[field] == 1


def test_internal_fields_within_others_are_no_parameters() -> None:
    kwargs = {"id_slot": 1, "verbose": True}
    assert read_chat(chat_template_kwargs=kwargs).fields["chat_template_kwargs"] == kwargs


PARTS: list[tuple[str, str]] = [
    ("image_url", "url"),
    ("video_url", "url"),
    ("input_audio", "data"),
    ("input_audio", "url"),
    ("input_video", "data"),
    ("input_video", "url"),
]


def said(kind: str, key: str, reference: str) -> list[dict[str, Any]]:
    return [
        *HELLO,
        {"role": "user", "content": [{"type": "text", "text": "see"}, {"type": kind, kind: {key: reference}}]},
    ]


@pytest.mark.parametrize(
    "reference",
    [
        "http://169.254.169.254/latest",
        "https://example.com/cat.png",
        "HTTP://example.com",
        " http://example.com",
        "http:example.com",
        "httpexample.com",
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "ftp://example.com",
        "gopher://example.com",
    ],
)
@pytest.mark.parametrize(("kind", "key"), PARTS)
def test_llama_server_is_not_made_to_fetch(kind: str, key: str, reference: str) -> None:
    error = refused(Endpoint.CHAT, orjson.dumps({"messages": said(kind, key, reference)}))
    assert (error.param, error.code) == (f"messages[1].content[1].{kind}.{key}", "invalid_value")


@pytest.mark.parametrize("reference", ["data:image/png;base64,AAAA", "Data:image/png;base64,AAAA", "iVBORw0KGgo=", ""])
@pytest.mark.parametrize(("kind", "key"), PARTS)
def test_content_in_the_request_itself_passes(kind: str, key: str, reference: str) -> None:
    messages = said(kind, key, reference)
    assert read_chat(messages=messages).fields["messages"] == messages


def test_web_addresses_pass_where_the_operator_allows_them_and_files_never() -> None:
    policy = Policy(default_max_tokens=1, remote_images=True)
    messages = said("image_url", "url", "https://example.com/cat.png")
    assert read_chat(policy, messages=messages).fields["messages"] == messages
    for reference in ("file:///etc/passwd", "ftp://example.com/cat.png"):
        body = orjson.dumps({"messages": said("image_url", "url", reference)})
        assert refused(Endpoint.CHAT, body, policy).param == "messages[1].content[1].image_url.url"


def test_an_image_of_megabytes_passes() -> None:
    reference = "data:image/png;base64," + "A" * 4_000_000
    body = orjson.dumps({"messages": said("image_url", "url", reference)})
    assert (
        parse(Endpoint.CHAT, body, lambda _: POLICY).fields["messages"][1]["content"][1]["image_url"]["url"]
        == reference
    )


def test_the_operators_parameters_are_put_in_and_left_out() -> None:
    parameters = Parameters({"temperature": 0.2, "top_k": 5}, {"cache_prompt": True}, frozenset({"seed", "top_k"}))
    policy = Policy(default_max_tokens=500, parameters=parameters)
    said = read_chat(policy, temperature=1.5, top_k=9, seed=3, cache_prompt=False, top_p=0.5).fields
    assert (said["temperature"], said["top_k"], said["cache_prompt"], said["top_p"]) == (1.5, 5, True, 0.5)
    assert "seed" not in said
    assert read_chat(policy, temperature=None).fields["temperature"] == 0.2
