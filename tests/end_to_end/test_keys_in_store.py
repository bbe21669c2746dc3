"""Keys in a store, as users meet them: by commands and by the operator's API, in one Corral and in several."""

import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.commands import corral, run
from support.door import Door
from support.fake import FakeLlama
from support.gateway import KEY, Gateway
from support.raw_client import Reply
from support.services import fresh_database, own_postgres
from support.talk import CHAT, chat, error_of, new_id, post, record_of, send_raw

CORRAL = (sys.executable, "-m", "corral")
OPERATOR = {"authorization": "Bearer key-of-operator"}
MODELS = """\
models:
  - name: one
    aliases: [uno]
    upstream: {fake.url}
    fallback: two
  - name: two
    upstream: {fake.url}
  - name: secret
    hidden: true
    upstream: {fake.url}
  - name: away
    upstream: http://127.0.0.1:1
    fallback: two
"""


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeLlama]:
    with FakeLlama() as fake:
        yield fake


class Place:
    """A directory with settings and a store, for commands and for Corrals."""

    def __init__(self, directory: Path, fake: FakeLlama, **settings: str) -> None:
        (directory / "corral.yaml").write_text(MODELS.format(fake=fake))
        self.directory = directory
        self.settings = {
            "CORRAL_QUEUE_UNREADY_PATIENCE": "100ms",
            "CORRAL_USAGE_INGEST": "100ms",
            "OPERATOR_API_KEY": "key-of-operator",
            **settings,
        }

    def corral(self, *arguments: str) -> str:
        """What a command prints, which succeeds."""
        done = corral(arguments, self.directory, **self.settings)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def key(self, *arguments: str) -> tuple[str, str]:
        """A new key: its id and its secret."""
        made = json.loads(self.corral("keys", "create", "--client", "team_a", *arguments, "--json"))
        return made["id"], made["secret"]

    def gateway(self) -> Gateway:
        return Gateway(self.directory, door=Door.LANE, check_idle=True, **self.settings)


@pytest.fixture
def place(tmp_path: Path, fake: FakeLlama) -> Place:
    return Place(tmp_path, fake)


@dataclass(frozen=True)
class Served:
    """A ready Corral whose store holds a key, and keys of one test each: id and secret by what they were made with."""

    gateway: Gateway
    keys: dict[str, tuple[str, str]]

    @property
    def secret(self) -> str:
        return self.secret_of("")

    def secret_of(self, options: str) -> str:
        return self.keys[options][1]


OWN_KEYS = (
    *("--model o*", "--model away", "--model away --model two"),
    *("--model-limit away:requests=9", "--model-limit tw?:requests=1"),
    *("--limit requests=5", "--limit requests=2 --model-limit two:in_flight=1"),
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, fake: FakeLlama) -> Iterator[Served]:
    """Shared by tests that change nothing but a key of their own."""
    place = Place(tmp_path_factory.mktemp("served"), fake)
    keys = {options: place.key(*options.split()) for options in ("", *OWN_KEYS)}
    with place.gateway() as gateway:
        gateway.until_ready()
        yield Served(gateway, keys)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, fake: FakeLlama) -> Place:
    """A store with a key, shared by commands that change nothing."""
    place = Place(tmp_path_factory.mktemp("filled"), fake)
    place.key()
    return place


def status(gateway: Gateway, key: str | None, **fields: Any) -> int:
    return post(gateway, CHAT, chat(max_tokens=2, **fields), key=key).status


def until_status(gateway: Gateway, key: str, expected: int) -> None:
    gateway.until(lambda: status(gateway, key) == expected, f"answering {expected}")


def admin(gateway: Gateway, method: str, path: str, body: object = None) -> Any:
    return gateway._http.request(method, f"{gateway.url}/admin/keys{path}", json=body, headers=OPERATOR)


# -- commands ------------------------------------------------------------------------


def test_the_first_key_makes_the_store_and_shuts_the_door(place: Place) -> None:
    settings = {name: value for name, value in place.settings.items() if name != "OPERATOR_API_KEY"}
    made = run([*CORRAL, "keys", "create", "--client", "team_a"], place.directory, **settings)
    secret = made.stdout.strip()
    assert made.returncode == 0
    assert secret.startswith("sk-corral-")
    assert secret not in made.stderr
    assert "made the store run/corral.db" in made.stderr
    with Gateway(place.directory, door=Door.LANE, check_idle=True, **settings | {"OPENAI_API_KEY": ""}) as gateway:
        assert (status(gateway, None), status(gateway, KEY), status(gateway, secret)) == (401, 401, 200)
        gateway.until(lambda: len(gateway.records()) == 3, "three records")
        assert gateway.records()[-1]["client"] == "team_a"
        gateway.until(lambda: "try it" in gateway.output, "telling how to try it")
        assert "none is needed" not in gateway.output
        assert secret not in gateway.output


def test_a_store_is_made_only_by_a_key(place: Place) -> None:
    refused = run([*CORRAL, "keys", "list"], place.directory, **place.settings)
    assert refused.returncode == 1
    assert "corral keys create" in refused.stderr
    assert not (place.directory / "run").exists()


def test_check_tells_of_the_store(place: Place) -> None:
    assert "store" not in place.corral("check")
    place.key()
    assert "those of the store (run/corral.db)" in " ".join(place.corral("check").split())


def test_commands_tell_people_and_programs(place: Place) -> None:
    key_id, secret = place.key("--name", "[red]x[/red]", "--limit", "requests=3", "--model-limit", "qwen:7b:tokens=9")
    assert key_id in place.corral("keys", "list")
    (listed,) = json.loads(place.corral("keys", "list", "--json"))
    assert (listed["id"], listed["limits"]["requests"], listed["model_limits"]["qwen:7b"]["tokens"]) == (key_id, 3, 9)
    assert "secret" not in listed
    assert "[red]x[/red]" in place.corral("keys", "show", secret[:14])
    place.corral("keys", "edit", key_id, "--limit", "requests=", "--expires", "2100-01-31", "--priority", "batch")
    told = json.loads(place.corral("keys", "show", key_id, "--json"))
    assert (told["limits"]["requests"], told["expires"], told["priority"]) == (None, 4105036800.0, "batch")
    place.corral("keys", "revoke", key_id)
    assert json.loads(place.corral("keys", "list", "--json")) == []
    assert [key["standing"] for key in json.loads(place.corral("keys", "list", "--revoked", "--json"))] == ["revoked"]


def test_each_limit_that_is_said_of_a_model_counts(place: Place) -> None:
    said = ("--model-limit", "qwen:tokens=9", "--model-limit", "qwen:requests=2")
    key_id, _ = place.key(*said)

    def limits(*change: str) -> Any:
        told = json.loads(place.corral("keys", "edit", key_id, *change, "--json"))["model_limits"]
        return {model: {name: value for name, value in of.items() if value} for model, of in told.items()}

    assert limits() == {"qwen": {"tokens": 9, "requests": 2}}
    assert limits("--model-limit", "qwen:in_flight=1") == {"qwen": {"tokens": 9, "requests": 2, "in_flight": 1}}
    assert limits("--model-limit", "qwen:") == {}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["create", "--client", "a b"], "client"),
        (["create", "--client", "a", "--limit", "wishes=3"], "in_flight"),
        (["create", "--client", "a", "--limit", "requests=many"], "NAME=NUMBER"),
        (["create", "--client", "a", "--limit", "requests=\u00b2"], "NAME=NUMBER"),
        (["create", "--client", "a", "--model-limit", "requests=3"], "llama-*"),
        (["create", "--client", "a", "--expires", "soon"], "--expires"),
        (["create", "--client", "a", "--scope", "root"], "scopes"),
        (["show", "key_of_nobody"], "corral keys list"),
        (["rotate", "key_of_nobody", "--overlap", "x"], "--overlap"),
    ],
)
def test_what_is_wrong_is_said_with_what_would_be_right(filled: Place, arguments: list[str], says: str) -> None:
    refused = corral(["keys", *arguments], filled.directory, **filled.settings)
    assert refused.returncode == 1
    assert says in refused.stderr
    assert "Traceback" not in refused.stderr


# -- one change, several Corrals -------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def shared_place(request: pytest.FixtureRequest, tmp_path: Path, fake: FakeLlama) -> Place:
    if request.param == "sqlite":
        return Place(tmp_path, fake)
    return Place(tmp_path, fake, CORRAL_STORE_URL=fresh_database(request.getfixturevalue("postgres_url")))


def test_row_15_a_change_reaches_every_process(shared_place: Place) -> None:
    key_id, secret = shared_place.key()
    with shared_place.gateway() as one, shared_place.gateway() as other:
        assert [status(each, secret) for each in (one, other)] == [200, 200]
        shared_place.corral("keys", "revoke", key_id)
        for gateway in (one, other):
            until_status(gateway, secret, 401)
        made = admin(one, "POST", "", {"client": "late"}).json()
        # The process that made it knows at once.
        assert status(one, made["secret"]) == 200
        until_status(other, made["secret"], 200)
        rotated = admin(other, "POST", f"/{made['id']}/rotate", {"overlap_s": 3600}).json()
        assert [status(other, key) for key in (made["secret"], rotated["secret"])] == [200, 200]
        until_status(one, rotated["secret"], 200)
        assert admin(one, "POST", f"/{made['id']}/revoke").json()["standing"] == "revoked"
        assert [status(one, key) for key in (made["secret"], rotated["secret"])] == [401, 401]
        until_status(other, made["secret"], 401)
        until_status(other, rotated["secret"], 401)


def test_keys_are_changed_by_the_operators_api(place: Place) -> None:
    key_id, secret = place.key()
    with place.gateway() as gateway:
        (listed,) = admin(gateway, "GET", "").json()["keys"]
        assert (listed["id"], listed["client"], listed["standing"]) == (key_id, "team_a", "valid")
        changed = admin(gateway, "PATCH", f"/{key_id}", {"models": ["two"], "limits": {"in_flight": 5}, "name": "x"})
        assert (changed.status_code, changed.json()["models"], changed.json()["limits"]["in_flight"]) == (
            200,
            ["two"],
            5,
        )
        assert status(gateway, secret, model="one") == 403
        assert admin(gateway, "PATCH", f"/{key_id}", {"models": None}).json()["models"] == []
        assert status(gateway, secret, model="one") == 200
        events = [event for event in gateway.events() if event["event"].startswith("key ")]
        assert [(event["event"], event["key_id"], event["by"]) for event in events] == [
            ("key changed", key_id, "operator")
        ] * 2


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "", {"client": "a b"}, (400, "client")),
        ("POST", "", {}, (400, "client")),
        ("POST", "", {"client": "a", "limits": {"wishes": 1}}, (400, "limits.wishes")),
        ("POST", "", [], (400, None)),
        ("PATCH", "/key_of_nobody", {"scopes": []}, (400, "scopes")),
        ("PATCH", "/key_of_nobody", {"name": "x"}, (404, "id")),
        ("GET", "/key_of_nobody", None, (404, "id")),
        ("POST", "/key_of_nobody/revoke", None, (404, "id")),
        ("POST", "/key_of_nobody/rotate", {"overlap_s": -1}, (400, "overlap_s")),
    ],
)
def test_the_operators_api_says_what_is_wrong_with_terms(
    served: Served, method: str, path: str, body: object, expected: tuple[int, str | None]
) -> None:
    refused = admin(served.gateway, method, path, body)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == expected
    assert error["message"]


# -- what a key opens --------------------------------------------------------------------


def test_a_key_opens_its_models_only(served: Served) -> None:
    secret = served.secret_of("--model o*")
    gateway = served.gateway
    assert status(gateway, secret, model="one") == 200
    assert status(gateway, secret, model="uno") == 200
    refused = post(gateway, CHAT, chat(model="two"), key=secret)
    assert (refused.status, error_of(refused)["code"]) == (403, "model_not_allowed")
    # Of a hidden model it learns no more than of one that there is not.
    hidden, nobody = (post(gateway, CHAT, chat(model=name), key=secret) for name in ("secret", "nobody"))
    assert error_of(hidden) == {
        **error_of(nobody),
        "message": error_of(nobody)["message"].replace("nobody", "secret"),
    }
    headers = {"authorization": f"Bearer {secret}"}
    assert [model["id"] for model in gateway.get("/v1/models", headers=headers).json()["data"]] == ["one"]
    assert gateway.get("/v1/models/two", headers=headers).status_code == 403
    assert gateway.get("/v1/models/secret", headers=headers).status_code == 404


def test_a_key_gets_no_fallback_that_it_may_not_ask_for(served: Served) -> None:
    narrow = served.secret_of("--model away")
    wide = served.secret_of("--model away --model two")
    gateway = served.gateway
    assert status(gateway, narrow, model="away") == 503
    assert status(gateway, wide, model="away") == 200


def test_a_fallback_is_no_way_past_the_limits_of_a_model(served: Served) -> None:
    wide = served.secret_of("--model-limit away:requests=9")
    narrow = served.secret_of("--model-limit tw?:requests=1")
    gateway = served.gateway
    assert status(gateway, wide, model="away") == 200
    assert [status(gateway, narrow, model=model) for model in ("two", "two", "away")] == [200, 429, 503]


# -- a store that is away ------------------------------------------------------------------


def test_authentication_goes_on_while_the_database_is_away(tmp_path: Path, fake: FakeLlama) -> None:
    with own_postgres() as server:
        url = fresh_database(server.url).replace("postgres:@", "postgres:canary-password-31c9@")
        place = Place(tmp_path, fake, CORRAL_STORE_URL=url)
        _, secret = place.key()
        with place.gateway() as gateway:
            assert status(gateway, secret) == 200
            server.stop()
            gateway.until(lambda: "key store away" in gateway.output, "told")
            assert (status(gateway, secret), status(gateway, "sk-corral-x"), status(gateway, KEY)) == (200, 401, 200)
            away = admin(gateway, "POST", "", {"client": "late"})
            assert (away.status_code, away.json()["error"]["code"]) == (503, "store_unavailable")
            with place.gateway() as newcomer:
                # It has never seen the keys: it cannot say that this is none.
                assert (status(newcomer, KEY), status(newcomer, secret)) == (200, 503)
                server.start()
                until_status(newcomer, secret, 200)
            gateway.until(lambda: "key store back" in gateway.output, "back")
            assert admin(gateway, "POST", "", {"client": "late"}).status_code == 201
            assert url not in gateway.output
            assert "canary-password" not in gateway.output + str(gateway.get("/admin/models", headers=OPERATOR).text)


def test_a_locked_database_keeps_only_operators_waiting(place: Place) -> None:
    _, secret = place.key()
    with place.gateway() as gateway:
        gateway.until_ready()
        with closing(sqlite3.connect(place.directory / "run" / "corral.db")) as other:
            other.execute("BEGIN EXCLUSIVE")
            away = admin(gateway, "POST", "", {"client": "late"})
            assert (away.status_code, away.json()["error"]["code"]) == (503, "store_unavailable")
            assert status(gateway, secret) == 200
        made = admin(gateway, "POST", "", {"client": "late"})
        assert made.status_code == 201
        assert status(gateway, made.json()["secret"]) == 200
        gateway.until(lambda: len(own_usage(gateway, secret)) == 1, "accounted for")


# -- row 1 -----------------------------------------------------------------------------------

INJECTIONS = [
    b"' OR '1'='1",
    b"'; DROP TABLE api_key; --",
    b'" OR 1=1 --',
    b"\\x00",
    b"%27%20OR%201",
    b"$1",
    b":digest",
    b"\xff\xfe\xfd",
    "ключ-鍵-🔑".encode(),
    b"sk-corral-" + b"A" * 40_000,
    b"x" * 1_000_000,
]


@pytest.mark.parametrize("path", [f"POST {CHAT}", "GET /v1/models", "GET /admin/keys", "GET /metrics"])
def test_row_1_no_key_is_sql(served: Served, path: str) -> None:
    for written in INJECTIONS:
        for header in (b"Authorization: Bearer " + written, b"x-api-key: " + written):
            lines: list[str | bytes] = [f"{path} HTTP/1.1", "Host: x", "X-Forwarded-For: 10.0.0.1", header]
            reply = send_raw(served.gateway, *lines, "Connection: close", "Content-Length: 0")
            assert reply.status in (400, 401, 431), written[:40]
            assert b"sql" not in reply.raw.lower()
    assert status(served.gateway, served.secret) == 200


def test_row_5_two_keys_that_begin_alike_are_two(served: Served) -> None:
    secret = served.secret
    assert status(served.gateway, secret) == 200
    for other in (secret[:20], secret + "x", secret[:-1] + ("A" if secret[-1] != "A" else "B"), secret[:20] * 3):
        assert status(served.gateway, other) == 401


def test_an_exchange_says_whose_key_it_was(served: Served) -> None:
    request_id = new_id()
    headers = {"x-request-id": request_id}
    assert post(served.gateway, CHAT, chat(max_tokens=2), key=served.secret, **headers).status == 200
    assert record_of(served.gateway, request_id)["client"] == "team_a"


# -- limits of a key ----------------------------------------------------------------------------


def told(reply: Reply) -> tuple[int, str, str | None]:
    return reply.status, error_of(reply)["code"], reply.headers.get("x-should-retry")


def test_each_key_has_limits_of_its_own_and_a_change_of_them_counts(served: Served) -> None:
    wide = served.secret_of("--limit requests=5")
    key_id, narrow = served.keys["--limit requests=2 --model-limit two:in_flight=1"]
    gateway = served.gateway
    assert [status(gateway, narrow) for _ in range(3)] == [200, 200, 429]
    assert status(gateway, wide) == 200
    admin(gateway, "PATCH", f"/{key_id}", {"limits": {"requests": 4}})
    assert [status(gateway, narrow) for _ in range(3)] == [200, 200, 429]
    # Another secret is the same key.
    other = admin(gateway, "POST", f"/{key_id}/rotate").json()["secret"]
    assert told(post(gateway, CHAT, chat(), key=other)) == (429, "rate_limit_exceeded", None)


def test_a_budget_is_known_after_a_corral_was_killed(shared_place: Place) -> None:
    _, secret = shared_place.key("--limit", "tokens_day=2500")

    def ask(gateway: Gateway) -> Reply:
        return post(gateway, CHAT, chat('script:{"count": 900}', max_tokens=900), key=secret)

    with shared_place.gateway() as gateway:
        gateway.until_ready()
        first = ask(gateway)
        used = json.loads(first.body)["usage"]["total_tokens"]
        assert used > 850
        gateway.process.kill()
        gateway.process.wait()
    with shared_place.gateway() as gateway:
        gateway.until_ready()
        left = int(ask(gateway).headers["x-ratelimit-remaining-tokens"])
        assert 2500 - used - 1300 < left < 2500 - used - 900
        assert told(ask(gateway)) == (429, "insufficient_quota", "false")
        usage = gateway.get("/v1/usage", headers={"authorization": f"Bearer {secret}"})
        assert usage.status_code == 200
        gateway.until(
            lambda: sum(line["total_tokens"] for line in own_usage(gateway, secret)) == 2 * used, "both accounted for"
        )
        assert own_usage(gateway, KEY) == []


def own_usage(gateway: Gateway, key: str) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = gateway.get("/v1/usage", headers={"authorization": f"Bearer {key}"}).json()["data"]
    return told
