"""Secrets that are looked for everywhere afterwards: keys, prompts and completions are in no log, metric or error."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.commands import succeed
from support.door import Door
from support.fake import FakeLlama
from support.front import write_settings
from support.gateway import Gateway
from support.raw_client import Reply
from support.talk import CHAT, COMPLETIONS, DONE, EMBEDDINGS, begin, chat, post, send_raw

CLIENT_KEY = "canary-key-of-a-client-7f3a"
OPERATOR_KEY = "canary-key-of-the-operator-91c2"
# The fake's command line has it: those of other runs beside this one have others.
UPSTREAM_KEY = f"canary-key-of-the-upstream-{os.getpid()}"
WRONG_KEY = "canary-key-of-a-stranger-0b6e"
PROMPT = "canary-prompt-c4d1"
COMPLETION = "canary-completion-8e90"
SECRETS = [CLIENT_KEY, OPERATOR_KEY, UPSTREAM_KEY, WRONG_KEY, PROMPT, COMPLETION]

SCRIPT = f'{PROMPT} script:{{"text": "{COMPLETION} and more words than sixteen, which makes the reply long enough"}}'
MALFORMED = [
    {"model": PROMPT, "messages": PROMPT},
    {"model": "one", "messages": [{"role": PROMPT, "content": PROMPT}]},
    {"model": "one", "messages": [{"role": "user", "content": PROMPT}], "stop": {PROMPT: PROMPT}},
    {"model": "one", "messages": [{"role": "user", "content": PROMPT}], "temperature": PROMPT},
    {"model": "one", "messages": [{"role": "user", "content": PROMPT}], "response_format": {"type": PROMPT}},
    {"model": "one", "messages": [{"role": "user", "content": PROMPT}], "id_slot": PROMPT},
]
FAULTS: list[dict[str, Any]] = [
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 503, "body": "html"},
    {"kind": "error_event", "after": 3},
    {"kind": "malformed", "after": 6},
    {"kind": "rst", "after": 8},
    {"kind": "garbage"},
]


@pytest.fixture(scope="module")
def stored() -> list[str]:
    """The keys that the store has made, once there is a scene."""
    return []


@pytest.fixture(scope="module")
def scene(
    door: Door, tmp_path_factory: pytest.TempPathFactory, stored: list[str]
) -> Iterator[tuple[Gateway, FakeLlama, list[Reply]]]:
    """A gateway after a mix of good and bad requests; the replies to those that were refused or failed."""
    directory = tmp_path_factory.mktemp("canary")
    create = [sys.executable, "-m", "corral", "keys", "create", "--client", "stored", "--scope", "inference"]
    stored[:] = [succeed(create, directory).strip()]
    settings = write_settings(directory, "retries: {attempts: 2, backoff: 10ms}\nlogs: {level: debug}\n")
    with (
        FakeLlama(api_key=UPSTREAM_KEY) as fake,
        Gateway(
            directory,
            door=door,
            CORRAL_CONFIG=str(settings),
            MODEL_UPSTREAMS=f"one={fake.url}",
            OPENAI_API_KEYS=f"{CLIENT_KEY}:client",
            OPERATOR_API_KEY=OPERATOR_KEY,
            LLAMA_API_KEY=UPSTREAM_KEY,
        ) as gateway,
    ):
        gateway.until_ready()
        yield gateway, fake, trouble(gateway, fake, stored[0])


def trouble(gateway: Gateway, fake: FakeLlama, stored_key: str) -> list[Reply]:
    """Cause it, and return the replies that were errors."""
    for fields in ({"max_tokens": 8}, {"max_tokens": 60}, {"max_tokens": 60, "stream": True}):
        assert post(gateway, CHAT, chat(SCRIPT) | fields, key=CLIENT_KEY).status == 200
    replies = [
        post(gateway, path, body, key=CLIENT_KEY) for body in MALFORMED for path in (CHAT, COMPLETIONS, EMBEDDINGS)
    ]
    replies += [post(gateway, CHAT, chat(SCRIPT), key=WRONG_KEY), post(gateway, f"/{PROMPT}", {}, key=WRONG_KEY)]
    replies.append(send_raw(gateway, f"POST {CHAT} HTTP/1.1", f"Authorization: Bearer {WRONG_KEY}\0"))
    replies.append(post(gateway, CHAT, chat(SCRIPT), key=CLIENT_KEY, **{"content-type": PROMPT}))
    for fault in FAULTS:
        fake.fault(**fault)
        replies += [
            post(gateway, CHAT, chat(SCRIPT, max_tokens=60, stream=stream), key=CLIENT_KEY) for stream in (False, True)
        ]
        fake.clear_faults()
        gateway.until_ready()
    for stream in (False, True):
        assert post(gateway, CHAT, chat(SCRIPT, max_tokens=60, stream=stream), key=stored_key).status == 200
    with begin(gateway, CHAT, chat('script:{"count": 10000}', max_tokens=10000), key=CLIENT_KEY):
        fake.until(lambda state: state["processing"] == 1)
    gateway.until_idle()
    return replies


def assert_clean(text: str, *, but: str = "") -> None:
    assert [secret for secret in SECRETS if secret in text and secret != but] == []


def test_row_8_the_secrets_did_their_work(scene: tuple[Gateway, FakeLlama, list[Reply]]) -> None:
    gateway, fake, _ = scene
    reply = post(gateway, CHAT, chat(SCRIPT, max_tokens=60), key=CLIENT_KEY)
    assert COMPLETION in reply.body.decode()
    sent = fake.requests(CHAT)[-1]
    assert PROMPT in str(sent["body"])
    assert sent["headers"]["authorization"] == f"Bearer {UPSTREAM_KEY}"


def test_row_8_no_secret_is_in_what_corral_prints(scene: tuple[Gateway, FakeLlama, list[Reply]]) -> None:
    gateway = scene[0]
    assert len(gateway.records()) > 30
    assert_clean(gateway.output)


@pytest.mark.parametrize("key", [None, CLIENT_KEY, OPERATOR_KEY])
@pytest.mark.parametrize("path", ["/metrics", "/health", "/v1/models", "/openapi.json", "/docs"])
def test_row_8_no_secret_is_in_what_corral_tells(
    scene: tuple[Gateway, FakeLlama, list[Reply]], path: str, key: str | None
) -> None:
    assert_clean(scene[0].get(path, headers={"x-api-key": key} if key else {}).text)


def test_row_8_no_secret_is_in_an_error(scene: tuple[Gateway, FakeLlama, list[Reply]]) -> None:
    """A name that a client asked for stands in its own 404, and nowhere else."""
    for reply in scene[2]:
        streamed = reply.status == 200
        assert not streamed or DONE not in reply.events
        assert_clean(reply.events[-1] if streamed else reply.raw.decode(), but=PROMPT if reply.status == 404 else "")


def test_row_8_no_secret_of_corral_goes_upstream(scene: tuple[Gateway, FakeLlama, list[Reply]]) -> None:
    for request in scene[1].requests():
        told = str(request["headers"])
        assert not [key for key in (CLIENT_KEY, OPERATOR_KEY, WRONG_KEY) if key in told]


def test_row_8_no_secret_is_in_the_store_or_in_the_journal(
    scene: tuple[Gateway, FakeLlama, list[Reply]], stored: list[str]
) -> None:
    gateway = scene[0]
    gateway.until(lambda: gateway.metric("corral_usage_lag_bytes") == 0, "taken into the store")
    directory = gateway.directory
    files = [file for file in directory.rglob("*") if file.is_file() and file.name != "corral.yaml"]
    assert {"corral.db"} <= {file.name for file in files}
    assert len(files) > 2
    for file in files:
        content = file.read_bytes()
        assert [secret for secret in (*SECRETS, *stored) if secret.encode() in content] == []


def test_row_8_no_key_of_the_store_is_told(scene: tuple[Gateway, FakeLlama, list[Reply]], stored: list[str]) -> None:
    gateway = scene[0]
    operator = {"authorization": f"Bearer {OPERATOR_KEY}"}
    for path in ("/metrics", "/health", "/admin/keys", "/admin/usage?by=key", "/admin/models"):
        told = gateway.get(path, headers=operator)
        assert told.status_code == 200
        assert stored[0] not in told.text
    assert stored[0] not in gateway.output
    assert not [request for request in scene[1].requests() if stored[0] in str(request["headers"])]


def test_row_8_no_secret_is_in_the_list_of_processes(scene: tuple[Gateway, FakeLlama, list[Reply]]) -> None:
    gateway = scene[0]
    seen = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text(errors="replace")
        except OSError:
            continue
        if int(process.name) in (gateway.process.pid, os.getpid()):
            seen += 1
        if int(process.name) != scene[1].pid:
            assert_clean(command)
    assert seen == 2
