"""What the store has of requests that a client has seen the end of, or has not."""

import os
import resource
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.books import Row, empty_store, exchanges, hours, make_store, summed, told_sums
from support.door import Door
from support.fake import FakeLlama
from support.front import write_settings
from support.gateway import Gateway
from support.offspring import children_of
from support.services import own_postgres
from support.talk import CHAT, DONE, EMBEDDINGS, MODES, begin, chat, new_id, post

SETTINGS = """\
models:
  - name: one
    upstream: {fake.url}
    price_input: 1
    price_cached: 0.5
    price_output: 2
  - {{name: away, upstream: "http://127.0.0.1:1"}}
retries: {{attempts: 2, backoff: 10ms}}
queue: {{unready_patience: 1s}}
usage: {{ingest: 100ms, currency: EUR}}
"""
ENVIRONMENT = {"OPENAI_API_KEYS": "key-of-ann:ann,key-of-bob:bob", "OPERATOR_API_KEY": "key-of-operator"}
ANN = "key-of-ann"
COUNTING = 'script:{"count": 1000}'
LONG = chat('script:{"count": 100000}', max_tokens=100_000, stream=True)


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeLlama]:
    with FakeLlama(slots=4) as fake:
        yield fake


@pytest.fixture(scope="module")
def directory(door: Door, fake: FakeLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a Corral has its settings and a new SQLite database."""
    directory = tmp_path_factory.mktemp(f"usage-{door.value}")
    make_store(directory / "run" / "corral.db")
    write_settings(directory, SETTINGS.format(fake=fake))
    return directory


@pytest.fixture(scope="module")
def books(door: Door, directory: Path) -> Iterator[Gateway]:
    with Gateway(
        directory, door=door, check_idle=True, CORRAL_CONFIG=str(directory / "corral.yaml"), **ENVIRONMENT
    ) as gateway:
        gateway.until(lambda: gateway.metric("corral_replica_state", state="ready") == 1, "ready")
        yield gateway


def rows_of(place: Path | str, request_id: str) -> list[Row]:
    return [row for row in exchanges(place) if row["request_id"] == request_id]


def row_of(gateway: Gateway, place: Path | str, request_id: str) -> Row:
    """The one row of a request, once its end is told."""

    def settled() -> bool:
        rows = rows_of(place, request_id)
        return bool(rows) and rows[0]["outcome"] != "unconfirmed"

    gateway.until(settled, f"a row of {request_id}")
    (row,) = rows_of(place, request_id)
    return row


def database(directory: Path) -> Path:
    return directory / "run" / "corral.db"


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_that_was_seen_to_its_end_has_a_row_with_its_usage(
    books: Gateway, directory: Path, mode: str
) -> None:
    request_id = new_id()
    fields = MODES[mode] | ({"stream_options": {"include_usage": True}} if mode == "stream" else {})
    reply = post(books, CHAT, chat("tell me of horses", **fields), key=ANN, **{"x-request-id": request_id})
    usage = reply.chunks[-1]["usage"] if mode == "stream" else reply.json["usage"]
    row = row_of(books, database(directory), request_id)
    assert (row["client"], row["key_id"], row["model"], row["endpoint"]) == ("ann", "", "one", "chat")
    assert (row["outcome"], row["status"], row["error_code"]) == ("ok", 200, None)
    assert row["prompt_tokens"] == usage["prompt_tokens"]
    assert row["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
    assert row["completion_tokens"] == usage["completion_tokens"]
    assert not row["estimated"]
    assert row["stream"] == (mode == "stream")
    assert 0 < row["ttft_s"] <= row["duration_s"]
    assert 0 < row["slot_s"] <= row["duration_s"]
    uncached = usage["prompt_tokens"] - row["cached_tokens"]
    assert row["cost"] == pytest.approx((uncached + 0.5 * row["cached_tokens"] + 2 * usage["completion_tokens"]) / 1e6)


def test_embeddings_have_a_row(books: Gateway, directory: Path) -> None:
    request_id = new_id()
    body = {"model": "one", "input": [f"text {number}" for number in range(9)]}
    reply = post(books, EMBEDDINGS, body, key=ANN, **{"x-request-id": request_id})
    row = row_of(books, database(directory), request_id)
    assert (row["endpoint"], row["outcome"]) == ("embeddings", "ok")
    assert row["prompt_tokens"] == reply.json["usage"]["prompt_tokens"]


def test_a_stream_that_broke_off_is_marked_as_cut(books: Gateway, directory: Path, fake: FakeLlama) -> None:
    request_id = new_id()
    fake.fault("error_event", after=5)
    body = chat(max_tokens=30, stream=True, logprobs=True)
    reply = post(books, CHAT, body, key=ANN, **{"x-request-id": request_id})
    fake.clear_faults()
    assert DONE not in reply.events
    row = row_of(books, database(directory), request_id)
    assert (row["outcome"], row["estimated"]) == ("cut", True)
    assert row["completion_tokens"] > 0


def test_a_client_that_left_is_marked(books: Gateway, directory: Path, fake: FakeLlama) -> None:
    request_id = new_id()
    fake.set(token_s=0.01)
    with begin(books, CHAT, LONG, key=ANN, **{"x-request-id": request_id}) as client:
        client.receive(until=b'"content"')
    row = row_of(books, database(directory), request_id)
    fake.set(token_s=0.0)
    assert (row["outcome"], row["status"], row["estimated"]) == ("client_gone", 499, True)


@pytest.mark.parametrize(
    ("body", "outcome", "status"),
    [
        (chat(temperature="warm"), "refused", 400),
        (chat(model="nobody"), "refused", 404),
        (chat(model="away"), "unavailable", 503),
    ],
)
def test_what_was_refused_has_a_row_without_tokens(
    books: Gateway, directory: Path, body: dict[str, Any], outcome: str, status: int
) -> None:
    request_id = new_id()
    assert post(books, CHAT, body, key=ANN, **{"x-request-id": request_id}).status == status
    row = row_of(books, database(directory), request_id)
    assert (row["outcome"], row["status"]) == (outcome, status)
    assert row["prompt_tokens"] + row["completion_tokens"] == 0
    assert row["cost"] == 0


def test_strangers_leave_nothing(books: Gateway, directory: Path) -> None:
    before = new_id(), new_id()
    assert post(books, CHAT, chat(), key="wrong", **{"x-request-id": before[0]}).status == 401
    post(books, CHAT, chat(max_tokens=2), key=ANN, **{"x-request-id": before[1]})
    row_of(books, database(directory), before[1])
    assert rows_of(database(directory), before[0]) == []


def test_the_sums_by_hour_are_those_of_the_rows(books: Gateway, directory: Path) -> None:
    request_id = new_id()
    post(books, CHAT, chat(max_tokens=2), key=ANN, **{"x-request-id": request_id})
    row_of(books, database(directory), request_id)
    books.until(
        lambda: told_sums(hours(database(directory))) == summed(exchanges(database(directory))), "the same as its rows"
    )


def test_a_client_sees_its_own_usage_and_nobody_elses(books: Gateway, directory: Path) -> None:
    ids = new_id(), new_id()
    for key, request_id in zip((ANN, "key-of-bob"), ids, strict=True):
        post(books, CHAT, chat(max_tokens=2), key=key, **{"x-request-id": request_id})
        row_of(books, database(directory), request_id)
    told = books.get("/v1/usage?since=1d", headers={"x-api-key": "key-of-bob"}).json()
    assert told["currency"] == "EUR"
    (line,) = told["data"]
    mine = [row for row in exchanges(database(directory)) if row["client"] == "bob"]
    assert (line["model"], line["requests"]) == ("one", len(mine))
    assert line["total_tokens"] == sum(row["prompt_tokens"] + row["completion_tokens"] for row in mine)
    assert line["outcomes"] == {"ok": len(mine)}
    assert line["time_to_first_token"]["p50"] > 0
    assert books.get("/v1/usage").status_code == 401
    assert books.get("/v1/usage?client=ann", headers={"x-api-key": "key-of-bob"}).json()["data"] == told["data"]


def test_the_operator_sees_everybodys(books: Gateway) -> None:
    told = books.get("/admin/usage?every=day&since=1d", headers={"x-api-key": "key-of-operator"}).json()
    assert {line["client"] for line in told["data"]} >= {"ann", "bob"}
    assert {line["period"] for line in told["data"]} != {None}
    for key in (ANN, "wrong"):
        assert books.get("/admin/usage", headers={"x-api-key": key}).status_code in (401, 403)
    refused = books.get("/admin/usage?since=yesterday", headers={"x-api-key": "key-of-operator"})
    assert refused.json()["error"]["param"] == "since"


def test_nothing_secret_is_in_the_journal_or_the_store(books: Gateway, directory: Path) -> None:
    request_id = new_id()
    said = 'canary-prompt script:{"text": "canary-completion and many words more than the sixteen which are short"}'
    for fields in MODES.values():
        post(books, CHAT, chat(said, **fields), key=ANN, **{"x-request-id": request_id})
    assert post(books, CHAT, chat(said, model="canary-model"), key=ANN).status == 404
    books.until(lambda: len(rows_of(database(directory), request_id)) == len(MODES), "rows")
    files = [path for path in (directory / "run").rglob("*") if path.is_file()]
    assert len(files) >= 2
    for path in files:
        content = path.read_bytes()
        assert request_id.encode() in content or b"canary" not in content
        assert not [secret for secret in (b"canary", ANN.encode()) if secret in content]


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where an empty store is."""
    if request.param == "sqlite":
        make_store(tmp_path / "run" / "corral.db")
        return tmp_path / "run" / "corral.db"
    url: str = request.getfixturevalue("postgres_url")
    empty_store(url)
    return url


def gateway_of(tmp_path: Path, fake: FakeLlama, place: Path | str, *, check_idle: bool = True) -> Gateway:
    settings = write_settings(tmp_path, SETTINGS.format(fake=fake))
    url = {} if isinstance(place, Path) else {"CORRAL_STORE_URL": place}
    return Gateway(tmp_path, door=Door.LANE, check_idle=check_idle, CORRAL_CONFIG=str(settings), **ENVIRONMENT, **url)


def test_nothing_is_lost_or_doubled_when_corral_is_killed(tmp_path: Path, fake: FakeLlama, place: Path | str) -> None:
    seen: dict[str, int] = {}
    open_ids = []
    for _ in range(4):
        with gateway_of(tmp_path, fake, place, check_idle=False) as gateway:
            gateway.until(lambda: gateway.metric("corral_replica_state", state="ready") == 1, "ready")
            fake.set(token_s=0.01)
            open_ids.append(new_id())
            with begin(gateway, CHAT, LONG, key=ANN, **{"x-request-id": open_ids[-1]}) as client:
                client.receive(until=b'"content"')
                for mode in MODES.values():
                    request_id = new_id()
                    reply = post(gateway, CHAT, chat(COUNTING, **mode), key=ANN, **{"x-request-id": request_id})
                    seen[request_id] = mode["max_tokens"]
                    assert reply.status == 200
                gateway.process.kill()
                gateway.process.wait()
    with gateway_of(tmp_path, fake, place) as gateway:
        gateway.until(lambda: {row["request_id"] for row in exchanges(place)} >= set(seen), "all adopted")
        gateway.until(lambda: gateway.metric("corral_usage_lag_bytes") == 0, "without lag")
    fake.set(token_s=0.0)
    rows = {row["request_id"]: row for row in exchanges(place)}
    assert len(rows) == len(exchanges(place))
    assert set(seen) <= set(rows)
    for request_id, tokens in seen.items():
        assert rows[request_id]["completion_tokens"] == tokens
        assert rows[request_id]["outcome"] in ("ok", "unconfirmed")
    for request_id in open_ids:
        # Cut by the kill, without a chance to say so.
        assert request_id not in rows or rows[request_id]["outcome"] != "ok"
    assert told_sums(hours(place)) == summed(exchanges(place))


def test_a_corral_that_stops_leaves_nothing_to_be_read(tmp_path: Path, fake: FakeLlama, place: Path | str) -> None:
    with gateway_of(tmp_path, fake, place) as gateway:
        gateway.until(lambda: gateway.metric("corral_replica_state", state="ready") == 1, "ready")
        request_id = new_id()
        post(gateway, CHAT, chat(max_tokens=3), key=ANN, **{"x-request-id": request_id})
    (row,) = rows_of(place, request_id)
    assert row["outcome"] == "ok"
    assert list((tmp_path / "run" / "journal").iterdir()) == []


def test_a_client_gets_its_answer_while_the_database_is_locked(tmp_path: Path, fake: FakeLlama) -> None:
    place = tmp_path / "run" / "corral.db"
    make_store(place)
    with gateway_of(tmp_path, fake, place) as gateway:
        gateway.until(lambda: gateway.metric("corral_replica_state", state="ready") == 1, "ready")
        other = sqlite3.connect(place, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        request_id = new_id()
        assert post(gateway, CHAT, chat(max_tokens=3), key=ANN, **{"x-request-id": request_id}).status == 200
        gateway.until(lambda: "usage store cannot be written" in gateway.output, "told")
        assert gateway.metric("corral_usage_lag_bytes") > 0
        other.execute("ROLLBACK")
        other.close()
        gateway.until(lambda: "usage has caught up" in gateway.output, "caught up")
        assert row_of(gateway, place, request_id)["outcome"] == "ok"
    told = [each["event"] for each in gateway.events() if each["level"] == "warning" and "usage" in each["event"]]
    assert told == ["usage store cannot be written"]


def test_a_client_gets_its_answer_while_the_database_is_stopped(tmp_path: Path, fake: FakeLlama) -> None:
    with own_postgres() as server:
        make_store(server.url)
        with gateway_of(tmp_path, fake, server.url) as gateway:
            gateway.until(lambda: gateway.metric("corral_replica_state", state="ready") == 1, "ready")
            server.stop()
            ids = [new_id() for _ in range(5)]
            for request_id in ids:
                reply = post(gateway, CHAT, chat(max_tokens=3), key=ANN, **{"x-request-id": request_id})
                assert reply.status == 200
            gateway.until(lambda: "usage store cannot be written" in gateway.output, "told")
            refused = gateway.get("/v1/usage", headers={"x-api-key": ANN})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
            server.start()
            gateway.until(lambda: "usage has caught up" in gateway.output, "caught up")
            rows = {row["request_id"]: row["outcome"] for row in exchanges(server.url)}
            assert [rows.get(request_id) for request_id in ids] == ["ok"] * len(ids)


def test_a_client_gets_its_answer_while_the_disk_of_the_journal_is_full(
    tmp_path: Path, fake: FakeLlama, postgres_url: str
) -> None:
    empty_store(postgres_url)
    with gateway_of(tmp_path, fake, postgres_url) as gateway:
        gateway.until(lambda: gateway.metric("corral_replica_state", state="ready") == 1, "ready")
        before = resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE)
        # The store is elsewhere, so that nothing but the journal meets this border, in the middle of a line.
        (file,) = (tmp_path / "run" / "journal").glob("*.journal")
        resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (file.stat().st_size + 100, before[1]))
        ids = [new_id() for _ in range(5)]
        for request_id in ids:
            reply = post(gateway, CHAT, chat(max_tokens=3), key=ANN, **{"x-request-id": request_id})
            assert reply.status == 200
        gateway.until(lambda: "usage journal cannot be written" in gateway.output, "told")
        assert gateway.metric("corral_usage_lines_waiting") >= len(ids)
        resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, before)
        gateway.until(lambda: "usage journal is written again" in gateway.output, "written again")
        for request_id in ids:
            assert row_of(gateway, postgres_url, request_id)["outcome"] == "ok"
        assert gateway.metric("corral_usage_lines_lost_total") == 0


def writers_of(pid: int) -> list[int]:
    """The processes that write the store for a Corral."""
    return [child for child in children_of(pid) if b"corral.store.taker" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_the_process_that_writes_the_store_may_die(tmp_path: Path, fake: FakeLlama, place: Path | str) -> None:
    with gateway_of(tmp_path, fake, place) as gateway:
        gateway.until(lambda: gateway.metric("corral_replica_state", state="ready") == 1, "ready")
        ids = []
        for _ in range(3):
            gateway.until(lambda: writers_of(gateway.process.pid), "writing the store")
            ids.append(new_id())
            post(gateway, CHAT, chat(max_tokens=3), key=ANN, **{"x-request-id": ids[-1]})
            for pid in writers_of(gateway.process.pid):
                os.kill(pid, signal.SIGKILL)
            ids.append(new_id())
            post(gateway, CHAT, chat(max_tokens=3), key=ANN, **{"x-request-id": ids[-1]})
            assert row_of(gateway, place, ids[-1])["outcome"] == "ok"
    assert sorted(row["request_id"] for row in exchanges(place)) == sorted(ids)
    assert told_sums(hours(place)) == summed(exchanges(place))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_process_that_writes_the_store_ends_with_its_corral(
    tmp_path: Path, fake: FakeLlama, number: signal.Signals
) -> None:
    make_store(tmp_path / "run" / "corral.db")
    with gateway_of(tmp_path, fake, tmp_path / "run" / "corral.db", check_idle=False) as gateway:
        gateway.until(lambda: writers_of(gateway.process.pid), "writing the store")
        (pid,) = writers_of(gateway.process.pid)
        gateway.process.send_signal(number)
        gateway.process.wait()
        gateway.until(lambda: not runs(pid), "without it")


def runs(pid: int) -> bool:
    """It is there, and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_stopped_corral_leaves_its_journal_to_the_next_one(tmp_path: Path, fake: FakeLlama) -> None:
    """Also one that is stopped in the middle of everything, and killed then."""
    place = tmp_path / "run" / "corral.db"
    make_store(place)
    with gateway_of(tmp_path, fake, place, check_idle=False) as gateway:
        gateway.until(lambda: gateway.metric("corral_replica_state", state="ready") == 1, "ready")
        os.kill(gateway.process.pid, signal.SIGSTOP)
        with gateway_of(tmp_path, fake, place) as second:
            second.until(lambda: second.metric("corral_replica_state", state="ready") == 1, "ready")
            assert "usage journal adopted" not in second.output
        gateway.process.kill()
        gateway.process.wait()
    with gateway_of(tmp_path, fake, place) as third:
        third.until(lambda: "usage journal adopted" in third.output, "adopted")
