"""The one queue: bounded in length and in time, first come first served, and never one task too many behind it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.front import Front, Narrow
from support.raw_client import Reply
from support.talk import (
    CHAT,
    COMPLETIONS,
    DONE,
    EMBEDDINGS,
    MODES,
    begin,
    chat,
    completion,
    error_of,
    last_error,
    new_id,
    post,
    record_of,
)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(narrow: Narrow) -> None:
    gateway, request_id = narrow.gateway, new_id()
    with narrow.occupied():
        waiting = [begin(gateway, CHAT, chat(max_tokens=8)) for _ in range(3)]
        narrow.until_waiting(3)
        reply = post(gateway, CHAT, chat(max_tokens=8), **{"x-request-id": request_id})
        assert (reply.status, error_of(reply)["code"]) == (503, "queue_full")
        assert int(reply.headers["retry-after"]) >= 1
        assert int(reply.headers["retry-after-ms"]) >= 1000
        narrow.until_waiting(3)
    for client in waiting:
        assert client.receive().status == 200
        client.close()
    record = record_of(gateway, request_id)
    assert (record["outcome"], record["attempts"]) == ("unavailable", 0)


def test_patience_ends(narrow: Narrow) -> None:
    gateway, ids = narrow.gateway, {mode: new_id() for mode in MODES}
    with narrow.occupied():
        clients = {mode: begin(gateway, CHAT, chat(**MODES[mode]), **{"x-request-id": ids[mode]}) for mode in MODES}
        replies = {mode: client.receive() for mode, client in clients.items()}
    for client in clients.values():
        client.close()
    for mode in ("whole", "gathered"):
        assert (replies[mode].status, error_of(replies[mode])["code"]) == (503, "queue_timeout")
        assert "retry-after" in replies[mode].headers
    # Its comments had begun the answer long before.
    assert last_error(replies["stream"])["code"] == "queue_timeout"
    assert {record_of(gateway, each)["outcome"] for each in ids.values()} == {"unavailable"}
    assert len(narrow.fake.requests(CHAT)) == 1


def test_who_comes_first_is_served_first(narrow: Narrow) -> None:
    gateway, contents = narrow.gateway, ["first", "second", "third"]
    with narrow.occupied():
        clients = []
        for place, content in enumerate(contents, start=1):
            clients.append(begin(gateway, CHAT, chat(content, max_tokens=30)))
            narrow.until_waiting(place)
    for client in clients:
        assert client.receive().status == 200
        client.close()
    came = [request["body"]["messages"][0]["content"] for request in narrow.fake.requests(CHAT)]
    assert came[1:] == contents


@pytest.mark.parametrize("mode", MODES)
def test_a_call_for_more_slots_than_there_are_is_refused(narrow: Narrow, mode: str) -> None:
    reply = post(narrow.gateway, CHAT, chat(n=2, **MODES[mode]))
    error = error_of(reply)
    assert (reply.status, error["param"]) == (400, "n")
    assert narrow.fake.requests(CHAT) == []


def test_a_call_for_two_slots_waits_for_both_and_is_not_overtaken(front: Front) -> None:
    gateway, fake = front.gateway, front.one
    fake.set(token_s=0.02)
    holder = begin(gateway, CHAT, chat('script:{"count": 100000}', max_tokens=100_000, stream=True))
    holder.receive(until=b'"content"')
    clients = []
    for place, (content, n) in enumerate([("both", 2), ("one", 1)], start=1):
        clients.append(begin(gateway, CHAT, chat(content, n=n, max_tokens=30)))
        front.until_waiting(place)
    assert len(fake.requests(CHAT)) == 1
    holder.close()
    for client in clients:
        assert client.receive().status == 200
        client.close()
    came = [request["body"]["messages"][0]["content"] for request in fake.requests(CHAT)]
    assert came[1:] == ["both", "one"]


# The requests that fifty clients send at once; each can be told by its number.
MIXTURE: list[Callable[[Front, int], Reply]] = [
    lambda front, i: post(front.gateway, CHAT, chat(f"whole {i}", max_tokens=8)),
    lambda front, i: post(front.gateway, CHAT, chat(f"gathered {i}", max_tokens=30)),
    lambda front, i: post(front.gateway, CHAT, chat(f"stream {i}", max_tokens=30, stream=True)),
    lambda front, i: post(front.gateway, CHAT, chat(f"two choices {i}", max_tokens=30, n=2)),
    lambda front, i: post(front.gateway, CHAT, chat(f"two in a stream {i}", max_tokens=30, n=2, stream=True)),
    lambda front, i: post(front.gateway, COMPLETIONS, completion(f"once {i}", max_tokens=20)),
    lambda front, i: post(front.gateway, COMPLETIONS, completion([f"a {i}", f"b {i}"], max_tokens=20, stream=True)),
    lambda front, i: post(front.gateway, COMPLETIONS, completion([f"a {i}", f"b {i}", f"c {i}"], max_tokens=20)),
    lambda front, i: post(front.gateway, EMBEDDINGS, {"model": "one", "input": [f"{i} {j}" for j in range(7)]}),
    lambda front, i: post(front.gateway, EMBEDDINGS, {"model": "one", "input": f"input {i}"}),
]


def test_a_crowd_is_served_and_nothing_ever_waits_inside_the_llama_server(front: Front) -> None:
    front.one.set(token_s=0.001)
    with ThreadPoolExecutor(50) as pool:
        replies = list(pool.map(lambda i: MIXTURE[i % len(MIXTURE)](front, i), range(50)))
    assert [reply.status for reply in replies] == [200] * 50
    assert front.one.state()["most_deferred"] == 0
    for i, reply in enumerate(replies):
        assert sound(reply, i % len(MIXTURE)), (i, reply)


def sound(reply: Reply, kind: int) -> bool:
    """A reply has all that was asked for."""
    if "event-stream" in reply.headers["content-type"]:
        choices = {choice["index"] for chunk in reply.chunks for choice in chunk["choices"] if choice["finish_reason"]}
        return reply.events[-1] == DONE and len(choices) == {2: 1, 4: 2, 6: 2}[kind]
    items = reply.json.get("choices") or reply.json["data"]
    return [item["index"] for item in items] == list(range({0: 1, 1: 1, 3: 2, 5: 1, 7: 3, 8: 7, 9: 1}[kind]))


def test_a_large_array_of_embeddings_leaves_room_for_a_chat(front: Front) -> None:
    """Its inputs take turns with others: two never fill the queue before somebody who came later."""
    gateway, fake = front.gateway, front.one
    fake.set(prefill_s=0.05)
    large = begin(gateway, EMBEDDINGS, {"model": "one", "input": [f"input {i}" for i in range(40)]})
    gateway.until(lambda: fake.requests(EMBEDDINGS), "embedding")
    assert post(gateway, CHAT, chat(max_tokens=8)).status == 200
    chatted = fake.requests(CHAT)[0]["ended_at"]
    assert [len(each["embedding"]) for each in large.receive().json["data"]] == [8] * 40
    large.close()
    after = [request for request in fake.requests(EMBEDDINGS) if request["received_at"] > chatted]
    assert len(after) > 10
    assert fake.state()["most_deferred"] == 0
