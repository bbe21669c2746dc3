"""API keys: their clients, their hashes, their files."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.config import Config
from corral.config.keys import CLIENT, generated_client, key_digest, parse_entry
from corral.config.problems import Mistake

Refused = Callable[..., list[str]]

CANARY = "canary-5f2b9c"
KEYS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":,"), min_size=1)
CLIENTS = st.from_regex(CLIENT, fullmatch=True)


def clients(config: Config) -> dict[bytes, str]:
    return {key.digest: key.client for key in config.auth.keys}


def test_the_only_key_belongs_to_the_client_default(configured: Callable[..., Config]) -> None:
    config = configured(env={"OPENAI_API_KEY": "local"})
    assert clients(config) == {hashlib.sha256(b"local").digest(): "default"}


def test_several_keys_have_their_clients_and_one_without_gets_a_stable_one(configured: Callable[..., Config]) -> None:
    env = {"OPENAI_API_KEY": "local", "OPENAI_API_KEYS": "key_a:team_a, key_b:team_b ,key_c"}
    found = list(clients(configured(env=env)).values())
    assert found[:3] == ["default", "team_a", "team_b"]
    assert re.fullmatch(r"client-[0-9a-f]{8}", found[3])
    assert found == list(clients(configured(env=env)).values())


def test_a_generated_client_id_tells_nothing_of_the_digest() -> None:
    assert generated_client(CANARY).removeprefix("client-") not in key_digest(CANARY).hex()


def test_the_operators_key_is_a_client_that_may_see_more(configured: Callable[..., Config]) -> None:
    config = configured(env={"OPENAI_API_KEY": "local", "OPERATOR_API_KEY": CANARY})
    assert [(key.client, key.operator) for key in config.auth.keys] == [("default", False), ("operator", True)]


def test_two_keys_may_share_a_client(configured: Callable[..., Config]) -> None:
    config = configured(env={"OPENAI_API_KEYS": "old:team,new:team"})
    assert list(clients(config).values()) == ["team", "team"]


def test_the_only_key_is_taken_whole(configured: Callable[..., Config]) -> None:
    assert key_digest("a:b,c") in clients(configured(env={"OPENAI_API_KEY": "a:b,c"}))


def test_a_key_file_holds_one_entry_a_line(here: Path, configured: Callable[..., Config]) -> None:
    (here / "keys.txt").write_bytes(b"\xef\xbb\xbf# Teams.\r\nkey1x:team_a # the first\r\n\r\nkey#2:team_b\r\n")
    config = configured(env={"OPENAI_API_KEYS_FILE": "keys.txt"})
    assert clients(config) == {key_digest("key1x"): "team_a", key_digest("key#2"): "team_b"}


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (f"{CANARY}x:a\n{CANARY}:\n".encode(), "line 2 has a client id that is not one"),
        (f"{CANARY}:a\n{CANARY}:b".encode(), "line 2 is the same key as line 1"),
        (b"# nothing\n", "holds no key"),
        (CANARY.encode() + b"\xff", "not UTF-8"),
    ],
)
def test_a_bad_key_file_is_refused_by_line(here: Path, refused: Refused, content: bytes, wrong: str) -> None:
    (here / "keys.txt").write_bytes(content)
    (problem,) = refused(env={"OPENAI_API_KEYS_FILE": "keys.txt"})
    assert problem.startswith("OPENAI_API_KEYS_FILE (environment): ")
    assert wrong in problem
    assert CANARY not in problem


def test_a_missing_key_file_is_refused(refused: Refused) -> None:
    assert "cannot be read" in refused(env={"OPENAI_API_KEYS_FILE": "nowhere.txt"})[0]


@pytest.mark.parametrize(
    ("env", "wrong"),
    [
        ({"OPENAI_API_KEYS": f"{CANARY}:a,{CANARY}:b"}, "entry 2 is the same key as entry 1 of OPENAI_API_KEYS"),
        ({"OPENAI_API_KEY": CANARY, "OPENAI_API_KEYS": f"x1:a,{CANARY}"}, "entry 2 is the same key as the key of"),
        ({"OPENAI_API_KEY": CANARY, "OPERATOR_API_KEY": CANARY}, "the key is the same key as the key of"),
        ({"OPENAI_API_KEYS": f"{CANARY}:a,,x1:b"}, "entry 2 holds no key"),
        ({"OPENAI_API_KEYS": f":{CANARY}"}, "entry 1 holds no key"),
        ({"OPENAI_API_KEYS": f"{CANARY}:a b"}, "entry 1 has a client id that is not one"),
        ({"OPENAI_API_KEYS": f"{CANARY}:a:b"}, "entry 1 has a client id that is not one"),
        ({"OPENAI_API_KEYS": f"{CANARY} {CANARY}:a"}, "entry 1 holds a space"),
        ({"OPENAI_API_KEY": f"{CANARY} {CANARY}"}, "the key holds a space"),
        ({"OPENAI_API_KEY": f"{CANARY}é"}, "the key holds a space or a character"),
    ],
)
def test_a_bad_key_is_refused_by_its_place_alone(refused: Refused, env: dict[str, str], wrong: str) -> None:
    (problem,) = refused(env=env)
    assert wrong in problem
    assert CANARY not in problem


@given(KEYS, CLIENTS)
def test_an_entry_with_a_client_is_split_at_its_colon(key: str, client: str) -> None:
    assert parse_entry(f" {key} : {client} ") == (key, client)


@given(KEYS)
def test_an_entry_without_a_client_gets_a_valid_one(key: str) -> None:
    found, client = parse_entry(key)
    assert (found, client) == (key, generated_client(key))
    assert CLIENT.fullmatch(client)


@given(st.text())
def test_any_entry_is_a_key_with_a_valid_client_or_a_mistake(entry: str) -> None:
    try:
        key, client = parse_entry(entry)
    except Mistake:
        return
    assert key in entry
    assert CLIENT.fullmatch(client)


@given(KEYS.map(lambda key: f"{CANARY}{key}"), st.sampled_from([":", ": ", ":a b", ":a:b", " x:a", "\n", "é"]))
def test_a_mistake_in_an_entry_quotes_nothing_of_it(key: str, spoiled: str) -> None:
    with pytest.raises(Mistake) as caught:
        parse_entry(f"{key}{spoiled}x" if spoiled == "\n" else f"{key}{spoiled}")
    assert CANARY not in f"{caught.value!r} {caught.value.right}"
