"""The fake behaves as llama-server does: its replies, its slots, its queue, its connections."""

import signal
import socket
from collections.abc import Iterator

import pytest

from support.fake import FakeLlama, flags
from support.raw_client import RawClient, ask

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
EMBED = "/v1/embeddings"
HELLO = [{"role": "user", "content": "hello"}]
LONG = {"messages": HELLO, "max_tokens": 500, "ignore_eos": True, "stream": True}


def scripted(script: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"script: {script}"}]


@pytest.fixture(scope="module")
def running() -> Iterator[FakeLlama]:
    with FakeLlama() as fake:
        yield fake


@pytest.fixture
def fake(running: FakeLlama) -> FakeLlama:
    running.reset()
    return running


# -- text ---------------------------------------------------------------------


def test_the_same_prompt_gets_the_same_answer_and_another_seed_another(fake: FakeLlama) -> None:
    texts = [
        ask(fake.port, CHAT, {"messages": HELLO, "seed": seed}).json["choices"][0]["message"]["content"]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_stream_says_what_a_whole_reply_says(fake: FakeLlama) -> None:
    whole = ask(fake.port, CHAT, {"messages": HELLO, "max_tokens": 5}).json["choices"][0]["message"]["content"]
    stream = ask(fake.port, CHAT, {"messages": HELLO, "max_tokens": 5, "stream": True})
    deltas = [chunk["choices"][0]["delta"].get("content") for chunk in stream.chunks]
    assert deltas[0] is None
    assert deltas[-1] is None
    assert len(deltas) == 7
    assert "".join(delta or "" for delta in deltas) == whole


def test_an_assistant_message_at_the_end_is_continued(fake: FakeLlama) -> None:
    whole = ask(fake.port, CHAT, {"messages": HELLO, "max_tokens": 6}).json["choices"][0]["message"]["content"]
    begun = " ".join(whole.split()[:4])
    rest = ask(fake.port, CHAT, {"messages": [*HELLO, {"role": "assistant", "content": begun}], "max_tokens": 2})
    assert begun + rest.json["choices"][0]["message"]["content"] == whole


@pytest.mark.parametrize(
    ("fields", "tokens", "finish"),
    [
        ({}, 16, "stop"),
        ({"max_tokens": 3}, 3, "length"),
        ({"max_completion_tokens": 2, "max_tokens": 3}, 2, "length"),
        ({"max_tokens": 0}, 1, "length"),
        ({"max_tokens": -1}, 16, "stop"),
        ({"max_tokens": 100}, 16, "stop"),
        ({"max_tokens": 100, "ignore_eos": True}, 100, "length"),
    ],
)
def test_an_answer_is_as_long_as_asked_for(fake: FakeLlama, fields: dict[str, int], tokens: int, finish: str) -> None:
    reply = ask(fake.port, CHAT, {"messages": HELLO} | fields).json
    assert reply["usage"]["completion_tokens"] == tokens
    assert reply["choices"][0]["finish_reason"] == finish


def test_a_script_in_the_prompt_decides_the_answer(fake: FakeLlama) -> None:
    script = '{"text": "Hi you", "reasoning": "hm", "tool_calls": [{"name": "f", "arguments": "{}"}]}'
    choice = ask(fake.port, CHAT, {"messages": scripted(script)}).json["choices"][0]
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}, "id": "call0f"}
    wanted = {"role": "assistant", "content": "Hi you", "reasoning_content": "hm", "tool_calls": [call]}
    assert choice["message"] == wanted
    assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_and_is_not_shown(fake: FakeLlama, stream: bool) -> None:
    body = {"messages": scripted('{"text": "one two three"}'), "stop": ["wo t"], "stream": stream}
    reply = ask(fake.port, CHAT, body)
    if stream:
        assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in reply.chunks) == "one t"
    else:
        assert reply.json["choices"][0]["message"]["content"] == "one t"
        assert reply.json["choices"][0]["finish_reason"] == "stop"


# -- streams --------------------------------------------------------------------


def test_each_choice_of_a_stream_has_its_own_usage_chunk_which_counts_that_choice(fake: FakeLlama) -> None:
    body = {"messages": HELLO, "max_tokens": 3, "n": 2, "stream": True, "stream_options": {"include_usage": True}}
    reply = ask(fake.port, CHAT, body)
    spent = [chunk["usage"]["completion_tokens"] for chunk in reply.chunks if not chunk["choices"]]
    assert spent == [3, 3]
    assert reply.events[-1] == "[DONE]"
    assert {chunk["choices"][0]["index"] for chunk in reply.chunks if chunk["choices"]} == {0, 1}


def test_a_stream_of_several_prompts_says_null_for_each_but_the_first(fake: FakeLlama) -> None:
    reply = ask(fake.port, TEXT, {"prompt": ["a", "b", "c"], "max_tokens": 2, "stream": True})
    assert reply.events[0] == "null"
    assert reply.events.count("null") == 2
    finished = [chunk for chunk in reply.chunks if chunk["choices"][0]["finish_reason"]]
    assert [chunk["choices"][0]["index"] for chunk in finished] == [0, 1, 2]
    assert all(chunk["usage"]["completion_tokens"] == 2 for chunk in finished)


def test_progress_is_told_for_every_batch_of_the_prompt(fake: FakeLlama) -> None:
    fake.set(n_batch=4)
    body = {"prompt": "a b c d e f g h i j", "max_tokens": 1, "stream": True, "return_progress": True}
    reply = ask(fake.port, TEXT, body)
    told = [chunk["prompt_progress"]["processed"] for chunk in reply.chunks if "prompt_progress" in chunk]
    assert told == [0, 4, 8, 10]


# -- refusals -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/nothing", {}, 404, "not_found_error"),
        (CHAT, {}, 400, "invalid_request_error"),
        (CHAT, {"messages": HELLO, "n": 3}, 400, "invalid_request_error"),
        (CHAT, {"messages": [{"role": "user", "content": "a " * 5000}]}, 400, "exceed_context_size_error"),
        (TEXT, {"prompt": "a " * 5000, "stream": True}, 400, "exceed_context_size_error"),
        (EMBED, {"input": "a " * 600}, 500, "server_error"),
        (EMBED, {"input": []}, 400, "invalid_request_error"),
    ],
)
def test_a_refusal_has_its_type_and_closes(fake: FakeLlama, path: str, body: object, status: int, kind: str) -> None:
    reply = ask(fake.port, path, body, Connection="keep-alive")
    assert reply.status == reply.json["error"]["code"] == status
    assert reply.json["error"]["type"] == kind
    assert reply.headers["connection"] == "close"
    assert reply.end == "fin"


def test_an_error_between_two_checks_is_a_500(fake: FakeLlama) -> None:
    assert ask(fake.port, CHAT, {"messages": ["x"]}).status == 500


def test_what_was_not_switched_on_is_a_501() -> None:
    with FakeLlama(embeddings=False, metrics=False) as fake:
        assert ask(fake.port, EMBED, {"input": "a"}).status == 501
        assert ask(fake.port, "/metrics").status == 501


def test_with_a_key_all_but_health_asks_for_it() -> None:
    with FakeLlama(api_key="sesame") as fake:
        assert ask(fake.port, "/health").status == 200
        assert ask(fake.port, "/nothing").status == 401
        assert ask(fake.port, "/props", Authorization="Bearer wrong").json["error"]["type"] == "authentication_error"
        assert ask(fake.port, "/props", Authorization="Bearer sesame").status == 200
        assert ask(fake.port, "/props", X_Api_Key="sesame").status == 200


def test_while_it_loads_every_route_says_so() -> None:
    with FakeLlama(load_s=3600) as fake:
        for path in ("/health", "/props", "/nothing"):
            assert ask(fake.port, path).json["error"]["message"] == "Loading model"
        fake.set(load_s=0)
        assert ask(fake.port, "/health").json == {"status": "ok"}


# -- slots ----------------------------------------------------------------------


def test_a_third_stream_on_two_slots_is_deferred_without_headers(fake: FakeLlama) -> None:
    fake.set(token_s=0.05)
    with RawClient(fake.port) as one, RawClient(fake.port) as two, RawClient(fake.port) as three:
        for client in (one, two):
            client.send("POST", CHAT, LONG)
            client.receive(until=b"data: ")
        three.send("POST", CHAT, LONG)
        fake.until(lambda state: state["deferred"] == 1)
        assert [slot["is_processing"] for slot in ask(fake.port, "/slots").json] == [True, True]
        metrics = ask(fake.port, "/metrics").body.decode()
        assert "\nllamacpp:requests_processing 2\n" in metrics
        assert "\nllamacpp:requests_deferred 1\n" in metrics
        assert three.receive(0.2).raw == b""
        one.close()
        assert three.receive(until=b"data: ").status == 200


def test_a_client_that_leaves_a_stream_frees_its_slot(fake: FakeLlama) -> None:
    fake.set(token_s=0.02)
    with RawClient(fake.port) as client:
        client.send("POST", CHAT, LONG)
        client.receive(until=b"data: ")
    fake.until(lambda state: state["processing"] == 0)
    (request,) = fake.until_ended(CHAT)
    assert request["ended"] == "client_gone"
    assert request["left_at"] is not None
    assert ask(fake.port, "/slots").json[0]["n_prompt_tokens"] < 500


def test_a_client_that_leaves_a_whole_reply_is_not_noticed(fake: FakeLlama) -> None:
    fake.set(token_s=0.02)
    with RawClient(fake.port) as client:
        client.send("POST", CHAT, {"messages": HELLO, "max_tokens": 10})
        fake.until(lambda state: state["processing"] == 1)
    (request,) = fake.until_ended(CHAT)
    assert request["ended"] == "client_gone"
    assert request["ended_at"] > request["left_at"]
    # All ten tokens were made.
    told = {slot["id_task"]: slot for slot in ask(fake.port, "/slots").json if "id_task" in slot}
    assert told[request["tasks"][0]]["n_prompt_tokens"] >= 10
    assert "\nllamacpp:tokens_predicted_total 10\n" in ask(fake.port, "/metrics").body.decode()


@pytest.mark.parametrize(("progress", "batch", "frees"), [(False, 1, False), (True, 1, True), (True, 2048, False)])
def test_only_progress_and_a_small_batch_free_a_slot_during_prefill(
    fake: FakeLlama, progress: bool, batch: int, frees: bool
) -> None:
    fake.set(prefill_s=1.0, n_batch=batch)
    with RawClient(fake.port) as client:
        client.send("POST", TEXT, {"prompt": "a " * 20, "stream": True, "return_progress": progress, "max_tokens": 50})
        client.receive(until=b"\r\n\r\n")
    fake.until(lambda state: state["processing"] == 0)
    assert "\nllamacpp:requests_processing 0\n" in ask(fake.port, "/metrics").body.decode()
    # The prefill was cut short, so that no token was made; or it was not, and the first told that nobody reads.
    made = "\nllamacpp:tokens_predicted_total 0\n" not in ask(fake.port, "/metrics").body.decode()
    assert made is not frees


def test_embedding_inputs_queue_for_slots_one_by_one(fake: FakeLlama) -> None:
    fake.set(prefill_s=0.1)
    with RawClient(fake.port) as client:
        client.send("POST", EMBED, {"input": ["a"] * 8})
        fake.until(lambda state: state["deferred"] == 6)
        assert len(client.receive(until=b'"index":7').json["data"]) == 8


def test_a_prompt_seen_before_comes_from_the_cache_but_for_a_token(fake: FakeLlama) -> None:
    replies = [ask(fake.port, TEXT, {"prompt": "a b c d", "max_tokens": 1}).json for _ in range(2)]
    assert [reply["usage"]["prompt_tokens_details"]["cached_tokens"] for reply in replies] == [0, 3]


# -- connections ----------------------------------------------------------------


def test_a_whole_reply_keeps_the_connection_and_a_stream_ends_it(fake: FakeLlama) -> None:
    with RawClient(fake.port) as client:
        for _ in range(2):
            assert client.whole("GET", "/health").headers["keep-alive"] == "timeout=5, max=100"
        client.send("POST", CHAT, {"messages": HELLO, "stream": True})
        reply = client.receive()
    assert reply.end == "fin"
    assert reply.raw.endswith(b"0\r\n\r\n")
    assert [request["nth"] for request in fake.requests()] == [1, 2, 3]


def test_an_idle_connection_is_closed_and_so_is_one_that_served_its_share() -> None:
    with FakeLlama(keep_alive_s=0.2, keep_alive_requests=2) as fake:
        with RawClient(fake.port) as client:
            client.whole("GET", "/health")
            assert client.receive().end == "fin"
        with RawClient(fake.port) as client:
            client.whole("GET", "/health")
            assert client.whole("GET", "/health").headers["connection"] == "close"


def test_a_client_that_does_not_read_holds_the_stream_up(fake: FakeLlama) -> None:
    fake.fault("huge", size=64 << 20)
    with RawClient(fake.port) as client:
        client.send("POST", CHAT, {"messages": HELLO, "stream": True})
        # All tokens are made, and the reply is not through.
        fake.until(lambda state: state["running"] == 1 and state["processing"] == 0)
        assert client.receive().events[-1] == "[DONE]"
    assert fake.until_ended(CHAT)[0]["ended"] == "complete"


# -- the process ----------------------------------------------------------------


def test_it_remembers_what_it_got(fake: FakeLlama) -> None:
    ask(fake.port, f"{CHAT}?x=1", {"messages": HELLO}, X_Request_Id="r1")
    (request,) = fake.until_ended(CHAT)
    assert request["method"] == "POST"
    assert request["query"] == "x=1"
    assert request["headers"]["x-request-id"] == "r1"
    assert request["body"] == {"messages": HELLO}
    assert (request["status"], request["ended"]) == (200, "complete")


def test_it_ends_with_the_one_that_started_it() -> None:
    with FakeLlama() as fake:
        assert fake.process.stdin is not None
        fake.process.stdin.close()
        assert fake.process.wait(timeout=10) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", fake.port))


def test_term_ends_it_unless_it_ignores_that() -> None:
    with FakeLlama() as willing, FakeLlama(ignore_term=True) as stubborn:
        for fake in (willing, stubborn):
            fake.process.send_signal(signal.SIGTERM)
        assert willing.process.wait(timeout=10) == 0
        assert stubborn.state()["ready"]


def test_it_takes_the_flags_of_llama_server() -> None:
    with FakeLlama(model="x.gguf", parallel=4, ctx_size=8192, alias="small", threads=2, no_ui=True) as fake:
        props = ask(fake.port, "/props").json
    assert (props["total_slots"], props["default_generation_settings"]["n_ctx"]) == (4, 2048)
    assert props["model_alias"] == "small"


def test_a_load_that_fails_ends_it_with_1() -> None:
    with FakeLlama(fail_load=True) as fake:
        assert fake.process.wait(timeout=10) == 1


def test_flags_are_options_with_dashes() -> None:
    assert flags({"load_s": 1.5, "tools": True, "metrics": False}) == ["--load-s", "1.5", "--tools"]
